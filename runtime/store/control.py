"""Writes by people: send dead letters back or delete them, and open a stream that an id far ahead has closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from runtime.store.base import AHEAD_MS, Store
from runtime.store.connection import Connection

REOPEN_IDS: Final = 500  # a guess: entries moved by one call, a few milliseconds of the server


class Control(Store):
    """A person's verbs that change a queue. Owns one connection."""

    def __init__(self, url: str, queue: str, name: str = "control") -> None:
        super().__init__(url, queue)
        self._connection = Connection(url, name)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def replay(self, letter: str) -> str:
        """Move a dead letter back to its stream; return its new entry, or `gone`, `unreadable`, `left-out`, `owned`.

        May be repeated: a letter that was moved is gone.

        Raises:
            QueueFull: memory is full; the letter is where it was.
            StoreUnavailable: no answer or an error.
        """
        return bytes(await self.call_one(self._connection, self.command("replay", letter))).decode()

    async def purge(self, letters: Sequence[str]) -> int:
        """Delete dead letters by their places; return how many were there.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return int(await self.call_one(self._connection, ("XDEL", self.keys.dead, *letters))) if letters else 0

    async def reopen(self, stream: int, may_set_aside: bool = True) -> tuple[int, int, bool]:
        """Move a part of a closed stream to a fresh key; the number behind the streams' stands for the dead letters.

        Returns how many entries were moved, how many are left, and whether the stream was set aside just now. May be repeated,
        also by others: nothing is lost, and what ran when the key was set aside runs again.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        key = (*self.keys.streams, self.keys.dead)[stream]
        command = self.command("reopen", self.keys.scripted.index(key) + 1, AHEAD_MS, REOPEN_IDS, int(may_set_aside))
        moved, left, is_new = await self.call_one(self._connection, command)
        return moved, left, bool(is_new)
