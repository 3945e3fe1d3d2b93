"""Reads of what workers write down for those who only look: how runs ended, and their contracts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from runtime.codec import as_text
from runtime.ended import Ended, read_ended
from runtime.schema import MAX_CONTRACT_BYTES, Declared, read_declared
from runtime.store.base import Store
from runtime.store.connection import Connection
from runtime.store.deaths import DEATHS, Death, read_deaths
from runtime.store.resp import ServerError

EVENTS: Final = 10_000  # runs that are looked at for those of a job, and how many in a round trip: guesses, a few MB at most
EVENTS_PAGE: Final = 500
MAX_CONTRACTS: Final = 2000  # a guess: more types and versions than anybody has
MAX_CONTRACTS_BYTES: Final = 16 << 20  # of all of them; a guess: 2000 of 8 kB
CONTRACTS_PAGE: Final = 100  # contracts a round trip: 6 MB at most


class Events(Store):
    """Reads what workers have written down. Owns one connection."""

    def __init__(self, url: str, queue: str, name: str = "events") -> None:
        super().__init__(url, queue)
        self._connection = Connection(url, name)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def events(self, n: int, before: str = "+", after: str = "-") -> tuple[list[Ended], str]:
        """Return the newest `n` runs that have ended, newest first, and where to go on: `before` for the next call, empty at the
        end. With `after`, an `entry` of these, only what came later. What it does not have, was not written: see `Ended`.

        Raises:
            StoreUnavailable: no answer.
        """
        end, start = (f"({entry}" if entry not in "+-" else entry for entry in (before, after))
        rows = self._rows((await self.ask(self._connection, ("XREVRANGE", self.keys.events, end, start, "COUNT", n)))[0])
        found = [read_ended(bytes(row[0]).decode(), as_text(row[1])) for row in rows]
        return found, found[-1].entry if len(found) == n else ""

    async def events_of(self, job_id: str, n: int) -> list[Ended]:
        """Return the newest `n` runs of a job among the newest EVENTS of all, the newest first.

        Raises:
            StoreUnavailable: no answer.
        """
        return await self.events_about((job_id,), (), n)

    async def events_about(self, ids: Collection[str], places: Collection[str], n: int) -> list[Ended]:
        """Return the newest `n` runs of jobs with one of these ids, or that stood at one of these places; see `events_of`.

        Raises:
            StoreUnavailable: as there.
        """
        found: list[Ended] = []
        last, left, wanted = "+", EVENTS, {name.encode() for name in (*ids, *places)}
        while left > 0 and len(found) < n:
            command = ("XREVRANGE", self.keys.events, last, "-", "COUNT", EVENTS_PAGE)
            rows = self._rows((await self.ask(self._connection, command))[0])
            runs = [read_ended(bytes(row[0]).decode(), as_text(row[1])) for row in rows if not wanted.isdisjoint(row[1][1::2])]
            found += [run for run in runs if run.id in ids or run.place in places]
            if len(rows) < EVENTS_PAGE:
                break
            last, left = f"({bytes(rows[-1][0]).decode()}", left - len(rows)
        return found[:n]

    async def deaths(self) -> list[Death]:
        """Return the workers that died, as far as that is still known, the newest first.

        Raises:
            StoreUnavailable: no answer.
        """
        return read_deaths(
            self._rows((await self.ask(self._connection, ("XREVRANGE", self.keys.deaths, "+", "-", "COUNT", DEATHS)))[0])
        )

    def _rows(self, answer: Any) -> list[Any]:
        return [] if isinstance(answer, ServerError) else answer

    async def contract(self, type_name: str, version: int) -> Declared | None:
        """Return what workers have written down of a version of a type; None where that is nothing, too long, or cannot be read.

        Raises:
            StoreUnavailable: no answer.
        """
        key, field = self.keys.contracts, f"{type_name}@{version}"
        length = (await self.ask(self._connection, ("HSTRLEN", key, field)))[0]
        if isinstance(length, ServerError) or not 0 < length <= MAX_CONTRACT_BYTES:
            return None
        text = (await self.ask(self._connection, ("HGET", key, field)))[0]
        return read_declared(field, text) if isinstance(text, bytes) else None

    async def contracts(self) -> list[Declared]:
        """Return the contracts that workers have written down, by type, of each the newest version first.

        Of more than MAX_CONTRACTS some, and MAX_CONTRACTS_BYTES at most; what is too long or cannot be read is left out.

        Raises:
            StoreUnavailable: no answer.
        """
        key = self.keys.contracts
        answer = (await self.ask(self._connection, ("HRANDFIELD", key, MAX_CONTRACTS)))[0]
        names: list[bytes] = [] if isinstance(answer, ServerError) else answer
        lengths = await self.ask(self._connection, *[("HSTRLEN", key, name) for name in names]) if names else []
        wanted: list[bytes] = []
        left = MAX_CONTRACTS_BYTES
        for name, length in zip(names, lengths, strict=True):
            if not isinstance(length, ServerError) and length <= min(left, MAX_CONTRACT_BYTES):
                wanted.append(name)
                left -= length
        found: list[Declared] = []
        for start in range(0, len(wanted), CONTRACTS_PAGE):
            part = wanted[start : start + CONTRACTS_PAGE]
            answer = (await self.ask(self._connection, ("HMGET", key, *part)))[0]
            texts: list[bytes | None] = [None] * len(part) if isinstance(answer, ServerError) else answer
            told = [read_declared(name.decode(errors="replace"), text or b"") for name, text in zip(part, texts, strict=True)]
            found += [one for one in told if one is not None]
        return sorted(found, key=lambda one: (one.type, -one.version))
