"""What to ask Redis for next, and how much at once: entries of each priority by weight, bytes as the connection allows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from runtime.jobs import CRITICAL

START_BYTES: Final = 1 << 20  # a guess: a second of a slow connection, and more than a thousand small entries
MOST_BYTES: Final = 16 << 20  # a guess: so much at once that the round trip no longer counts
LEAST_BYTES: Final = 4096  # a guess: less than this says nothing of how fast a connection is
UNKNOWN_BYTES: Final = 64 * 1024  # what an entry is taken for before any has come, a guess: 16 are asked for at first
SAMPLE: Final = 8  # a guess: entries of a delivery that are weighed
ENTRY_BYTES: Final = 40  # about: beside its fields, in an answer
WEIGHTS: Final = (8, 4, 2, 1)  # a choice: critical, high, medium, low: none starves, and critical gets more than half


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the fetcher knows when it chooses its next step. A round of steps begins with a capacity, and ends with no step.

    `has_asks`: lots may be asked for something now. `has_taken`, `has_fetched`, `has_found`: what this round did and found.
    `is_quiet`: the last wait brought nothing, so that only lots can hold anything. `is_free_left`: something waits in the `~free`
    of a stream. `are_lots_full`: a lot gave all that it was asked for. `is_deaf`: no stream can be waited at, since each rests or
    cannot be read. `wait_from` is the capacity that a wait may use up, since one entry of each stream may come.

    `capacity` is for entries of any priority, `reserved` for some of CRITICAL beside those. `is_critical_due`: it may hold
    something, since it gave all that it was asked for, or was not asked for a while. Where only CRITICAL has capacity,
    `is_free_left` is about its stream alone. `are_gates_due`: gates may be asked now; `has_served`: this round did, and where
    `are_gates_open` one of them has more.
    """

    capacity: int
    reserved: int = 0
    is_critical_due: bool = False
    are_gates_due: bool = False
    has_served: bool = False
    are_gates_open: bool = False
    has_asks: bool = False
    has_taken: bool = False
    has_fetched: bool = False
    has_found: bool = False
    is_quiet: bool = False
    is_free_left: bool = False
    are_lots_full: bool = False
    is_stopping: bool = False
    is_deaf: bool = False
    wait_from: int = 4


class ServeGates(msgspec.Struct, frozen=True):
    """Ask gates for what may start now."""


class TakeParked(msgspec.Struct, frozen=True):
    """Take entries of lots."""


class Fetch(msgspec.Struct, frozen=True):
    """Lease up to `capacity` new entries, divided among the streams by the plan, and up to `reserved` of CRITICAL beside them."""

    capacity: int
    reserved: int = 0


class Wait(msgspec.Struct, frozen=True):
    """Wait in Redis for the first entry that comes."""


class AwaitCapacity(msgspec.Struct, frozen=True):
    """Wait until a lane is free, or CRITICAL is due. Not in Redis, where nothing tells of a lane that becomes free meanwhile."""


class Pause(msgspec.Struct, frozen=True):
    """Do nothing for a moment."""


Step = ServeGates | TakeParked | Fetch | Wait | AwaitCapacity | Pause


def next_step(view: View) -> Step | None:
    """Return what the fetcher does next; None when the round is over, and another one begins with the capacity there is then.

    Lots come first, as far as they are due; then streams; and only where both have nothing, a wait.
    """
    if view.are_gates_due and not view.has_served:
        return ServeGates()
    if view.has_asks and not view.has_taken:
        return TakeParked()
    if view.capacity < 1 and view.reserved < 1:
        return None
    can_wait = view.capacity >= view.wait_from
    is_dry = view.is_quiet and can_wait if view.capacity > 0 else not view.is_critical_due
    is_more_known = view.is_free_left or view.are_gates_open or (view.are_lots_full and view.capacity > 0)
    if not view.has_fetched and (is_more_known or not is_dry):
        return Fetch(view.capacity, view.reserved)
    if view.has_fetched and (view.has_found or is_more_known or view.is_stopping):
        return None
    if can_wait and not view.is_deaf:
        return Wait()
    return AwaitCapacity() if view.reserved > 0 and not view.is_deaf else Pause()


class Plan:
    """Owns what is owed to each stream, and which of them answered with less than they were asked for.

    A stream that ran dry is only probed, with one entry; the others share the capacity by weight. So a fetch may bring
    up to three entries more than the capacity, when it is nearly used up and dry streams wake up. Where it `is_strict`, the
    first stream that is not dry gets all, those before it are probed, and nothing is asked of those behind it.

    `closed` are the streams of which nothing may be asked now.
    """

    def __init__(self, weights: Sequence[int] = WEIGHTS, *, is_strict: bool = False) -> None:
        self.closed: frozenset[int] = frozenset()
        self._weights = weights
        self._is_strict = is_strict
        self._owed = [0.0] * len(weights)
        self._is_loaded = [False] * len(weights)

    def __repr__(self) -> str:
        return f"<Plan owed={[round(owed, 2) for owed in self._owed]} loaded={self._is_loaded}>"

    def shares(self, capacity: int, reserved: int = 0) -> list[int]:
        """Return how many entries to ask of each stream for `capacity` of them, and for `reserved` of CRITICAL beside those."""
        shares = [0] * len(self._weights)
        if CRITICAL not in self.closed:
            shares[CRITICAL] = reserved
        if capacity < 1:
            return shares
        sharing, probed = self._sharing_and_probed()
        for at in probed:
            shares[at] += 1
        left = max(1, capacity - len(probed))
        total = sum(self._weights[at] for at in sharing)
        for at in sharing:
            self._owed[at] += left * self._weights[at] / total
        for at, share in zip(sharing, _divide([self._owed[at] for at in sharing], left) if sharing else (), strict=True):
            self._owed[at] -= share
            shares[at] += share
        return shares

    def _sharing_and_probed(self) -> tuple[list[int], list[int]]:
        """Return the streams that share the capacity, and those that are asked for one entry."""
        asked = [at for at in range(len(self._weights)) if at not in self.closed]
        loaded = [at for at in asked if self._is_loaded[at]]
        if self._is_strict:  # where nothing is known to wait, by weight would bring much of the last while the first has more
            return loaded[:1], [at for at in asked if not loaded or at < loaded[0]]
        return (loaded, [at for at in asked if not self._is_loaded[at]]) if loaded else (asked, [])

    @property
    def asked(self) -> set[int]:
        """The streams of which something may be asked now."""
        sharing, probed = self._sharing_and_probed()
        return {*sharing, *probed}

    def part_beside(self, lots: Collection[int]) -> float:
        """Return which part is due to what waits in lots of these streams: by weight, as to the streams that are loaded.

        Never all: where streams have run dry, a fetch must look whether that is still so.
        """
        theirs = sum(self._weights[at] for at in lots)
        others = sum(self._weights[at] for at in self.asked if self._is_loaded[at])
        return theirs / (theirs + (others or min(self._weights)))

    def parts(self) -> list[float]:
        """Return which part of a large capacity each stream would get."""
        sharing, probed = self._sharing_and_probed()
        counted = sharing or probed or range(len(self._weights))
        weights = [weight * (at in counted) for at, weight in enumerate(self._weights)]
        return [weight / sum(weights) for weight in weights]

    def learn(self, shares: Sequence[int], got: Sequence[int]) -> None:
        """Note what each stream answered: one that ran dry is owed nothing."""
        for at, share in enumerate(shares):
            if share > 0:
                self._is_loaded[at] = got[at] >= share
                if not self._is_loaded[at]:
                    self._owed[at] = 0.0


class Budget:
    """Owns how many bytes may go over a line at once: what takes `target_s` at most; half as many after a silence, and more again
    only after a large part of what is allowed got through in time.
    """

    def __init__(self, target_s: float, most_bytes: int = MOST_BYTES) -> None:
        self._target_s = target_s
        self._most_bytes = most_bytes
        self.bytes: int = START_BYTES

    def __repr__(self) -> str:
        return f"<Budget {self.bytes} bytes>"

    def passed(self, size: int, took_s: float) -> None:
        """Note that so many bytes got through, and how long they took."""
        if took_s > self._target_s:
            if size > LEAST_BYTES:
                self.bytes = min(self.bytes, int(size * self._target_s / took_s))
        elif size >= self.bytes / 2 and took_s <= self._target_s / 2:
            self.bytes = min(max(2 * self.bytes, size), self._most_bytes)

    def failed(self) -> None:
        """Note that what was within the budget did not get through."""
        self.bytes = max(1, self.bytes // 2)


class Sizes:
    """Owns what an entry of each stream weighs, in bytes: learnt from what came, up at once and down by and by."""

    def __init__(self, streams: int = len(WEIGHTS)) -> None:
        self._known: list[float | None] = [None] * streams

    def __repr__(self) -> str:
        return f"<Sizes {[size and round(size) for size in self._known]}>"

    def entries(self, parts: Sequence[float], most_bytes: int) -> int:
        """Return how many entries weigh `most_bytes`, when each stream has this part in them; at least 1."""
        unknown = max([size for size in self._known if size is not None], default=UNKNOWN_BYTES)
        sizes = [unknown if size is None else size for size in self._known]
        return max(1, int(most_bytes / sum(part * size for part, size in zip(parts, sizes, strict=True))))

    def learn(self, deliveries: Sequence[tuple[int, Sequence[tuple[bytes, Sequence[bytes]]]]], size: int) -> None:
        """Note what came: of each stream its rows, a few of which are weighed, and the size of all together."""
        found = [(stream, len(rows), _mean_size(rows)) for stream, rows in deliveries if rows]
        together = sum(n * mean for _, n, mean in found)
        scale = max(1.0, size / together) if found else 1.0  # the sample may have missed the large ones
        for stream, _, mean in found:
            known, new = self._known[stream], mean * scale
            self._known[stream] = new if known is None or new > known else (known + new) / 2


def _mean_size(rows: Sequence[tuple[bytes, Sequence[bytes]]]) -> float:
    sample = rows[:: max(1, len(rows) // SAMPLE)]
    return ENTRY_BYTES + sum([sum(map(len, fields)) for _, fields in sample]) / len(sample)


def _divide(owed: Sequence[float], whole: int) -> list[int]:
    """Divide `whole` as near to what is owed as whole numbers allow: largest remainders first, none below zero."""
    shares = [max(0, int(value)) for value in owed]
    while sum(shares) < whole:
        at = max(range(len(owed)), key=lambda at: owed[at] - shares[at])
        shares[at] += 1
    while sum(shares) > whole:
        at = max(range(len(owed)), key=lambda at: (shares[at] > 0, shares[at] - owed[at]))
        shares[at] -= 1
    return shares
