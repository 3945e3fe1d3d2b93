"""Reads back what was sent to a queue and is still there: for tests, which ask what their code has enqueued."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from runtime.codec import read_record
from runtime.errors import StoreError
from runtime.jobs import STREAMS
from runtime.store.base import pairs
from runtime.store.inspector import Inspector

MOST: Final = 10_000  # a guess: more than a test sends, and looks at


class Stored(msgspec.Struct, frozen=True):
    """A message that stands in a queue: an entry of a stream, or a delayed job, which is due at `due_ms`, and has no entry."""

    stream: int
    entry: bytes
    fields: list[bytes]
    due_ms: int = 0


class SentReader(Inspector):
    """An Inspector that reads all that a small queue holds."""

    async def stored(self) -> list[Stored]:
        """Return each message that waits, runs or is delayed, of one moment: stream by stream, and then what is delayed.

        Raises:
            StoreError: there are more than 10,000, or a key is of another type than it should be.
            StoreUnavailable: no answer.
        """
        keys = self.keys
        sizes = await self.ask(self._connection, *[("XLEN", key) for key in keys.streams], ("ZCARD", keys.due))
        if sum(map(self.checked, sizes)) > MOST:
            raise StoreError(f"more than {MOST:,} messages are in the queue: too many to look at")
        entries = [("XRANGE", key, "-", "+", "COUNT", MOST) for key in keys.streams]
        delayed = [("ZRANGE", keys.due, 0, MOST, "WITHSCORES"), ("HGETALL", keys.messages)]
        *streams, due, records = self.checked((await self.ask(self._connection, ("MULTI",), *entries, *delayed, ("EXEC",)))[-1])
        found = [Stored(at, row[0], row[1]) for at, rows in enumerate(streams) for row in rows]
        return found + _delayed(dict(pairs(due)), dict(pairs(records)))


def _delayed(due: dict[bytes, Any], records: dict[bytes, bytes]) -> list[Stored]:
    found: list[Stored] = []
    for member, record in records.items():  # in the order in which they were stored, where Redis keeps that
        stream, fields = read_record(record)
        if member in due and stream in STREAMS:
            found.append(Stored(STREAMS.index(stream), b"", fields, int(float(due[member]))))
    return found
