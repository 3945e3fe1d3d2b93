"""Dead letters in short, for lists and groups: a bounded part of them at a time, never whole ones of a few hundred KB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from runtime.codec import DATA
from runtime.jobs import STREAMS, default_id
from runtime.store.base import Store, pairs, parse_int
from runtime.store.connection import Connection

STEP: Final = 30  # letters of one look, as letters.lua has it
_AT: Final = 22  # words of a letter that was asked for by its place
Shelf = Literal["dead", "trash"]


class Head(msgspec.Struct, frozen=True, gc=False):
    """What a letter says of itself, cut: `error` to 200 bytes, ids and names to 128.

    `stood` is its place when it died, such as `low/12-0`. `id` is never empty: one that carries none goes by where it stood.
    `frame` is the last one of its stack that is neither the runtime's nor a library's, as "file:line function". `args` is the
    beginning of its payload, as far as was asked for, and `args_bytes` how long that is. `stays` is why it could not be replayed
    now, and known only of letters that were asked for by their places.
    """

    place: str
    id: str
    type: str
    reason: str
    error: str
    has_stack: bool
    frame: str
    by: str
    app: str
    attempts: int
    at_ms: int
    stood: str
    size: int
    trace: str
    key: str
    exp_ms: int | None
    version: int
    is_msgpack: bool
    operation: str
    args: bytes
    args_bytes: int
    stays: str

    @property
    def priority(self) -> str:
        """The stream on which it stood; nothing where it stood on none."""
        name = self.stood.partition("/")[0]
        return name if name in STREAMS else ""


class LetterStore(Store):
    """Reads dead letters, and those in the trash. Owns one connection."""

    def __init__(self, url: str, queue: str, name: str = "letters") -> None:
        super().__init__(url, queue)
        self._connection = Connection(url, name)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    def shelf(self, name: Shelf) -> str:
        """Return the key of the dead letters, or of the trash."""
        return self.keys.dead if name == "dead" else self.keys.trash

    async def count(self, shelf: Shelf = "dead") -> int:
        """Return how many letters there are.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        key = self.shelf(shelf)
        [answer] = await self.ask(self._connection, ("XLEN", key))
        return int(self.checked(answer, key))

    async def older(self, than: str = "+", shelf: Shelf = "dead", args_bytes: int = 0) -> tuple[list[Head], bool]:
        """Return up to STEP letters, the newest first, from one on, and whether these are the last.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self._walk(shelf, "older", args_bytes, than)

    async def newer(self, than: str = "-", shelf: Shelf = "dead") -> tuple[list[Head], bool]:
        """Return up to STEP letters, the oldest first, from one on, and whether these are the last.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self._walk(shelf, "newer", 0, than)

    async def at(self, places: Sequence[str], shelf: Shelf = "dead", args_bytes: int = 0) -> list[Head]:
        """Return the letters at these places; those that are gone are left out.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found: list[Head] = []
        done = 0
        while done < len(places):
            part = places[done : done + STEP]
            _, looked, *rows = await self._call(shelf, "at", args_bytes, *part)
            found += map(_head, rows)
            done += max(1, int(looked))
        return found

    async def whole(self, place: str, shelf: Shelf = "dead") -> dict[bytes, bytes] | None:
        """Return all fields of one letter, None where it is gone.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        key = self.shelf(shelf)
        [answer] = await self.ask(self._connection, ("XRANGE", key, place, place))
        rows = self.checked(answer, key)
        return dict(pairs(rows[0][1])) if rows else None

    async def payloads(self, places: Sequence[str]) -> dict[str, bytes]:
        """Return the payloads of letters by their places; those that are gone are left out. The caller bounds the bytes.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        asks = [("XRANGE", self.keys.dead, place, place) for place in places]
        answers = await self.ask(self._connection, *asks) if asks else []
        rows = [row for answer in answers for row in self.checked(answer, self.keys.dead)]
        return {bytes(place).decode(): dict(pairs(fields)).get(DATA, b"") for place, fields in rows}

    async def _walk(self, shelf: Shelf, how: str, args_bytes: int, than: str) -> tuple[list[Head], bool]:
        is_end, _, *rows = await self._call(shelf, how, args_bytes, than)
        return [_head(row) for row in rows], bool(is_end)

    async def _call(self, shelf: Shelf, how: str, args_bytes: int, *ids: str) -> list[Any]:
        [answer] = await self.ask(self._connection, self.command("letters", shelf, how, args_bytes, *ids))
        return list(self.checked(answer, self.shelf(shelf)))


def _head(row: Sequence[Any]) -> Head:
    *words, size, args_bytes, args, stays = row if len(row) == _AT else (*row, b"")
    texts = [str(word, errors="backslashreplace") for word in words]
    place, job_id, type_name, reason, by, app, attempts, at, stood, trace, key, exp, version, kind, *more = texts
    operation, error, stack, frame = more
    return Head(
        place=place,
        id=job_id or _id_of_none(stood, place),
        type=type_name,
        reason=reason,
        error=error,
        has_stack=stack == "1",
        frame=frame,
        by=by,
        app=app,
        attempts=parse_int(attempts) or 0,
        at_ms=parse_int(at) or parse_int(place.partition("-")[0]) or 0,
        stood=stood,
        size=size,
        trace=trace,
        key=key,
        exp_ms=parse_int(exp),
        version=parse_int(version) or 1,
        is_msgpack=kind == "application/msgpack",
        operation=operation,
        args=args,
        args_bytes=args_bytes,
        stays=bytes(stays).decode(),
    )


def _id_of_none(stood: str, place: str) -> str:
    """Return the id of a letter that carries none, as one whose message could not be read."""
    stream, _, entry = stood.partition("/")
    return default_id(stream, entry) if entry else place
