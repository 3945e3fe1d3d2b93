"""Cancels are the marks of jobs that people have cancelled while a worker had them, as this worker last read them.

Scripts obey the marks too: if this process dies, or never hears of one, its job is buried by the move that comes next. What is
done here makes it end sooner, and takes the mark away when it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from runtime.jobs import STREAMS, Lease
from runtime.worker.held import Held

Place = tuple[int, bytes]  # a stream, and an entry on it

LOOKED_FOR_S: Final = 60.0  # a guess: a fetch whose answer was on its way when the mark was read has brought its jobs by then


class Cancels:
    """Owns the marks that may be of jobs here. `ended` are those whose jobs have left this process: they may be taken away."""

    def __init__(self) -> None:
        self.ended: list[Place] = []
        self._read_s: dict[Place, float] = {}
        self._ours: set[Place] = set()

    def __repr__(self) -> str:
        return f"<Cancels {len(self._ours)} of {len(self._read_s)} marks are of jobs here>"

    def saw(self, places: Iterable[str], now_s: float) -> None:
        """Note marks that were read; what names no entry of a stream is a stranger's."""
        for text in places:
            name, _, entry = text.partition("/")
            if name in STREAMS:
                self._read_s.setdefault((STREAMS.index(name), entry.encode()), now_s)

    def look(self, held: Held, now_s: float) -> list[Lease]:
        """Return the leases of this process that are cancelled, and forget the marks of others after a while."""
        found: list[Lease] = []
        for place, read_s in list(self._read_s.items()):
            lease = held.get(*place)
            if lease is not None:
                self._ours.add(place)
                found.append(lease)
            elif place in self._ours:
                self._forget(place)
                self.ended.append(place)
            elif read_s < now_s - LOOKED_FOR_S:
                self._forget(place)
        return found

    def _forget(self, place: Place) -> None:
        self._ours.discard(place)
        del self._read_s[place]
