"""Deaths of worker processes: who saw one end says so, and readers hear of the newest.

`reap` changes one thing, that a worker is dead for certain; the sweep of those that live does the rest. Killed before it: the
leases end by themselves. Killed after it: it is done, and may be repeated. A beat that the dead one had sent, and that Redis
reads later, takes it back: then the leases end by themselves as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from random import random
from typing import Any, Final

import msgspec

from runtime.backoff import Backoff, delay_s
from runtime.codec import as_text
from runtime.errors import StoreUnavailable
from runtime.store.base import Store, pairs, parse_int
from runtime.store.connection import Connection

AGAIN: Final = Backoff(base_s=0.2, cap_s=2.0)  # a guess: Redis may be away as well
DEATHS: Final = 500  # parts that are read; as many as are kept


class Death(msgspec.Struct):
    """A worker that died: when that was seen or noticed, in the server's ms, how many jobs it held; type and id of the first."""

    at_ms: int
    worker: str
    held: int
    jobs: list[str]


def read_deaths(rows: Iterable[Any]) -> list[Death]:
    """Return the deaths that entries of the record tell of, the newest first, each worker once; a stranger may have told."""
    found: dict[str, Death] = {}
    for entry, flat in rows:
        fields, told = as_text(flat), [value.decode(errors="replace") for name, value in pairs(flat) if name == b"job"]
        at_ms = parse_int(bytes(entry).partition(b"-")[0].decode()) or 0
        one = found.setdefault(fields.get("by", ""), Death(at_ms, fields.get("by", ""), 0, []))
        one.held += parse_int(fields.get("held", "")) or 0
        one.jobs = told + one.jobs
    return list(found.values())


class Reaper(Store):
    """Tells Redis which workers are dead for certain. Owns one connection."""

    def __init__(self, url: str, queue: str) -> None:
        super().__init__(url, queue)
        self._connection = Connection(url, "reaper")

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def reap(self, consumer: str) -> bool:
        """Say that a worker is dead for certain; return whether that is news. May be repeated.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self.call_one(self._connection, self.command("reap", consumer)) == 1

    async def reap_within(self, consumer: str, for_s: float) -> bool:
        """Do so, and try again for so long while Redis is away: after a lease it would change nothing. Return whether it did."""
        give_up_s, failures = time.monotonic() + for_s, 0
        while True:
            try:
                await self.reap(consumer)
            except StoreUnavailable:
                failures += 1
                wait_s = delay_s(failures, AGAIN, random)
                if time.monotonic() + wait_s > give_up_s:
                    return False
                await asyncio.sleep(wait_s)
            else:
                return True
