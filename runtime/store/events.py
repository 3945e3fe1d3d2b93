"""Reads of what workers write down for those who only look: their contracts."""

from __future__ import annotations

from typing import Final

from runtime.schema import MAX_CONTRACT_BYTES, Declared, read_declared
from runtime.store.base import Store
from runtime.store.connection import Connection
from runtime.store.resp import ServerError

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
