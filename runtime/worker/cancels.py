"""Cancels are the marks of jobs that people have cancelled while a worker had them, as this worker last read them.

Scripts obey the marks too: if this process dies, or never hears of one, its job is buried by the move that comes next. What is
done here makes it end sooner, and takes the mark away when it has.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        self._by: dict[Place, str] = {}
        self._ours: set[Place] = set()

    def __repr__(self) -> str:
        return f"<Cancels {len(self._ours)} of {len(self._read_s)} marks are of jobs here>"

    def saw(self, marks: Mapping[str, str], now_s: float) -> None:
        """Note marks that were read, with who asked for each; what names no entry of a stream is a stranger's."""
        for text, by in marks.items():
            name, _, entry = text.partition("/")
            if name in STREAMS:
                place = (STREAMS.index(name), entry.encode())
                self._read_s.setdefault(place, now_s)
                self._by[place] = by

    def look(self, held: Held, now_s: float) -> list[tuple[Lease, str]]:
        """Return the leases of this process that are cancelled, with by whom, and forget the marks of others after a while."""
        found: list[tuple[Lease, str]] = []
        for place, read_s in list(self._read_s.items()):
            lease = held.get(*place)
            if lease is not None:
                self._ours.add(place)
                found.append((lease, self._by[place]))
            elif place in self._ours:
                self._forget(place)
                self.ended.append(place)
            elif read_s < now_s - LOOKED_FOR_S:
                self._forget(place)
        return found

    def _forget(self, place: Place) -> None:
        self._ours.discard(place)
        del self._read_s[place], self._by[place]
