"""How many entries to take from each priority: by weight, what one does not use goes to the others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

WEIGHTS: Final = (8, 4, 2, 1)  # critical, high, medium, low: nobody starves, and critical gets more than half


class Plan:
    """Owns what is owed to each stream, and which of them answered with less than they were asked for.

    A stream that ran dry is only probed, with one entry; the others share the room by weight. So a fetch may bring up to three
    entries more than there is room for, when room is nearly gone and dry streams wake up.
    """

    def __init__(self, weights: Sequence[int] = WEIGHTS) -> None:
        self._weights = weights
        self._owed = [0.0] * len(weights)
        self._is_loaded = [False] * len(weights)

    def __repr__(self) -> str:
        return f"<Plan owed={[round(owed, 2) for owed in self._owed]} loaded={self._is_loaded}>"

    def shares(self, room: int) -> list[int]:
        """Give how many entries to ask of each stream for `room` of them, at least 1."""
        loaded = [at for at, is_loaded in enumerate(self._is_loaded) if is_loaded]
        shares = [0 if self._is_loaded[at] else 1 for at in range(len(self._weights))]
        if not loaded:  # nothing is known to wait: ask all, by weight
            loaded, shares = list(range(len(self._weights))), [0] * len(self._weights)
        left = max(1, room - sum(shares))
        total = sum(self._weights[at] for at in loaded)
        for at in loaded:
            self._owed[at] += left * self._weights[at] / total
        for at, share in zip(loaded, _divide([self._owed[at] for at in loaded], left), strict=True):
            self._owed[at] -= share
            shares[at] += share
        return shares

    def part_beside(self, rooms: Collection[int]) -> float:
        """Return which part is due to what waits in rooms of these streams: by weight, as to the streams that are loaded.

        Never all: where streams have run dry, somebody must look whether that is still so.
        """
        theirs = sum(self._weights[at] for at in rooms)
        others = sum(weight for weight, is_loaded in zip(self._weights, self._is_loaded, strict=True) if is_loaded)
        return theirs / (theirs + (others or min(self._weights)))

    def learn(self, shares: Sequence[int], got: Sequence[int]) -> None:
        """Note what each stream answered: one that ran dry is owed nothing."""
        for at, share in enumerate(shares):
            if share > 0:
                self._is_loaded[at] = got[at] >= share
                if not self._is_loaded[at]:
                    self._owed[at] = 0.0


def _divide(owed: Sequence[float], whole: int) -> list[int]:
    """Divide `whole` as near to what is owed as whole numbers allow: largest remainders first, nobody below zero."""
    shares = [max(0, int(value)) for value in owed]
    while sum(shares) < whole:
        at = max(range(len(owed)), key=lambda at: owed[at] - shares[at])
        shares[at] += 1
    while sum(shares) > whole:
        at = max(range(len(owed)), key=lambda at: (shares[at] > 0, shares[at] - owed[at]))
        shares[at] -= 1
    return shares
