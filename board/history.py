"""What was counted in the last 24 hours, as far as it was read, and how fast things move now. No I/O: readings are given.

Minutes are closed when two newer ones have begun: then no worker writes to them any more. Those of the last hour stay as they
are, older ones are folded to ten minutes each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from runtime.jobs import STREAMS
from runtime.store.base import WorkerRow
from runtime.store.sample import FAILED, LEFT, Minute, Sample

HOUR: Final = 60  # minutes
DAY: Final = 24 * 60
TEN: Final = 10
WINDOW_MS: Final = 10_000  # of rates, as the page says
LEAST_MS: Final = 2_000  # a guess: of a shorter time a rate would jump


class Step(msgspec.Struct, frozen=True):
    """A minute, or ten, in short: how many ended how, waits by powers of two, and each type by its name."""

    done: int
    retried: int
    dead: int
    waits: dict[str, dict[int, int]]
    types: dict[str, TypeStep]


class TypeStep(msgspec.Struct, frozen=True):
    """How many runs of a type ended in a step, how many of those failed, and at which priority most of them ran."""

    ended: int
    failed: int
    priority: str


NOTHING: Final = TypeStep(0, 0, "")


class History:
    """Owns the closed minutes that were read; `note` hears of readings, `missing` says which are to be read next."""

    def __init__(self) -> None:
        self.minutes: dict[int, Minute] = {}  # of the last hour, and the two that are not closed
        self.tens: dict[int, Minute] = {}  # without run times: nothing shows those of a day
        self.now: int = 0
        self.apps: dict[str, int] = {}  # when each version of the application was first seen, in ms
        self._have: set[int] = set()
        self._steps: dict[tuple[int, int], Step] = {}  # what was worked out: minutes in a step, and its number
        self._day: dict[str, tuple[int, int]] | None = None
        self._sum: tuple[object, Minute] | None = None

    def look(self, sample: Sample) -> None:
        """Take the present minute and the one before, and forget what is older than a day.

        What was read before it was closed stays until it is read again.
        """
        self.now = sample.minute
        self.minutes |= sample.minutes
        for number in sample.minutes:
            self._forget(number)
        oldest, oldest_ten = self.now - HOUR - TEN, (self.now - DAY) // TEN
        for number in [number for number in self.minutes if number < oldest]:
            del self.minutes[number]
        for ten in [ten for ten in self.tens if ten < oldest_ten]:
            del self.tens[ten]
        for span, number in [key for key in self._steps if key[1] < (oldest if key[0] == 1 else oldest_ten)]:
            del self._steps[span, number]
        self._have = {number for number in self._have if number // TEN >= oldest_ten}

    def missing(self) -> list[int]:
        """Return which closed minutes of the last day are not read yet, the newest first."""
        newest = self.now - 2
        return [number for number in range(newest, newest - DAY, -1) if number not in self._have]

    def note(self, read: Mapping[int, Minute]) -> None:
        """Take closed minutes, each once, the newest first."""
        for number, minute in read.items():
            if number in self._have or number > self.now - 2:
                continue
            self._have.add(number)
            self._forget(number)
            self._day = None
            if number >= self.now - HOUR - TEN:
                self.minutes[number] = minute
            self.tens.setdefault(number // TEN, Minute({}, {}, {}, {})).add(minute, has_runs=False)

    def saw(self, rows: Iterable[WorkerRow]) -> None:
        """Take note of the versions that workers run, and since when."""
        for row in rows:
            app = row.app or row.version
            if app and row.since:
                self.apps[app] = min(row.since, self.apps.get(app, row.since))

    def knows(self, minutes: int) -> bool:
        """Return whether all of the last so many minutes were read."""
        return all(number in self._have for number in range(self.now - minutes + 1, self.now - 1))

    def last(self, minutes: int) -> Minute:
        """Return what was counted in the present minute and so many before it, of the last hour, as far as it was read."""
        total, closed = Minute({}, {}, {}, {}), self._closed(minutes)
        for number in (self.now, self.now - 1):
            if number in self.minutes and number >= self.now - minutes:
                total.add(self.minutes[number])
        total.add(closed)
        return total

    def _closed(self, minutes: int) -> Minute:
        """Return the sum of the minutes that change no more, which is worked out once for all looks of a minute."""
        numbers = tuple(number for number in range(self.now - 2, self.now - minutes - 1, -1) if number in self.minutes)
        known = tuple(number in self._have for number in numbers)
        if self._sum is None or self._sum[0] != (numbers, known):
            total = Minute({}, {}, {}, {})
            for number in numbers:
                total.add(self.minutes[number])
            self._sum = (numbers, known), total
        return self._sum[1]

    def ended(self, minutes: int) -> tuple[int, int, int]:
        """Return how many were done, failed and are retried, and died, in the present minute and so many before it."""
        steps = [self.step(1, number) for number in range(self.now, self.now - minutes - 1, -1)]
        known = [step for step in steps if step is not None]
        return sum(step.done for step in known), sum(step.retried for step in known), sum(step.dead for step in known)

    def step(self, span: int, number: int) -> Step | None:
        """Return a minute of the last hour, or ten minutes of the day, in short; None where nothing of it was read."""
        found = self._steps.get((span, number))
        if found is None:
            minute = self.minutes.get(number) if span == 1 else self._ten(number)
            if minute is not None:
                found = self._steps[span, number] = step_of(minute)
        return found

    def _ten(self, number: int) -> Minute | None:
        """Return what was counted in ten minutes, with what is not closed of them."""
        live = [at for at in (self.now, self.now - 1) if at // TEN == number and at in self.minutes]
        if not live:
            return self.tens.get(number)
        total = Minute({}, {}, {}, {})
        for minute in [*(self.minutes[at] for at in live), *([self.tens[number]] if number in self.tens else [])]:
            total.add(minute, has_runs=False)
        return total

    def _forget(self, number: int) -> None:
        self._steps.pop((1, number), None)
        self._steps.pop((TEN, number // TEN), None)

    def day(self, type_name: str) -> tuple[int, int]:
        """Return how many runs of a type ended in the last day, as far as it was read, and how many of them failed."""
        if self._day is None:
            self._day = {}
            for minute in self.tens.values():
                for name, one in step_of(minute).types.items():
                    ended, failed = self._day.get(name, (0, 0))
                    self._day[name] = ended + one.ended, failed + one.failed
        return self._day.get(type_name, (0, 0))

    @property
    def hours_known(self) -> int:
        """How many hours back all was read."""
        missing = self.missing()
        return 24 if not missing else max(0, (self.now - 2 - missing[0]) // 60)


def step_of(minute: Minute) -> Step:
    """Return a minute in short."""
    done, retried, dead = (minute.count((outcome,)) for outcome in ("done", *FAILED))
    types: dict[str, TypeStep] = {}
    most: dict[str, int] = {}
    for (name, priority), counts in minute.outcomes.items():
        failed = sum(counts.get(outcome, 0) for outcome in FAILED)
        ended = counts.get("done", 0) + failed
        if name and ended:
            before = types.get(name, NOTHING)
            most[name] = max(ended, most.get(name, 0))
            at = priority if most[name] == ended else before.priority
            types[name] = TypeStep(before.ended + ended, before.failed + failed, at)
    return Step(done, retried, dead, minute.waits, types)


# --- how fast ------------------------------------------------------------------------------------------------------------------


class Pace(msgspec.Struct, frozen=True):
    """How one priority moves: rates a second over the last seconds, and by how much a second what waits grows."""

    added_s: float
    done_s: float
    grows_s: float
    over_ms: int


class _Stand(msgspec.Struct, frozen=True):
    at_ms: int
    done: dict[str, int]
    left: dict[str, int]
    lengths: dict[str, int]
    waiting: dict[str, int]
    delivered: dict[str, str]


class Rates:
    """Owns the stands of the last seconds: counters only grow, so the difference of two stands is what happened between them."""

    def __init__(self) -> None:
        self._stands: deque[_Stand] = deque()
        self._before: dict[int, Minute] = {}
        self._closed: tuple[dict[str, int], dict[str, int]] = ({}, {})  # of minutes that samples do not show any more

    def note(self, sample: Sample) -> None:
        """Take a sample. After a gap, and where the counters are fewer than they were, all begins again."""
        if self._before and sample.minute - max(self._before) not in (0, 1):
            self._begin_again()
        for number, minute in self._before.items():
            if number not in sample.minutes:
                for total, outcomes in zip(self._closed, (("done",), LEFT), strict=True):
                    _add(total, by_priority(minute, outcomes))
        self._before = sample.minutes
        done, left = ({**total} for total in self._closed)
        for minute in sample.minutes.values():
            _add(done, by_priority(minute, ("done",)))
            _add(left, by_priority(minute, LEFT))
        stand = _Stand(sample.now_ms, done, left, sample.lengths, sample.waiting, sample.delivered)
        if self._stands and (stand.at_ms < self._stands[-1].at_ms or sum(left.values()) < sum(self._stands[-1].left.values())):
            self._stands.clear()
        self._stands.append(stand)
        while len(self._stands) > 2 and stand.at_ms - self._stands[1].at_ms >= WINDOW_MS:
            self._stands.popleft()

    def pace(self, priority: str) -> Pace | None:
        """Return how a priority moves; None where too little was seen of it."""
        over_ms = self.over_ms
        if over_ms < LEAST_MS:
            return None
        first, last = self._stands[0], self._stands[-1]
        over_s = over_ms / 1000
        left = last.left.get(priority, 0) - first.left.get(priority, 0)
        added = last.lengths[priority] - first.lengths[priority] + left
        done = last.done.get(priority, 0) - first.done.get(priority, 0)
        grown = last.waiting[priority] - first.waiting[priority]
        return Pace(max(0, added) / over_s, done / over_s, grown / over_s, over_ms)

    @property
    def over_ms(self) -> int:
        """Over how long it was looked."""
        return self._stands[-1].at_ms - self._stands[0].at_ms if self._stands else 0

    @property
    def has_fetched(self) -> bool:
        """Whether anything was fetched meanwhile."""
        return bool(self._stands) and self._stands[0].delivered != self._stands[-1].delivered

    def _begin_again(self) -> None:
        self._stands.clear()
        self._before, self._closed = {}, ({}, {})


def by_priority(minute: Minute, outcomes: Iterable[str]) -> dict[str, int]:
    """Return how many ended so, by priority."""
    wanted = tuple(outcomes)
    total: dict[str, int] = dict.fromkeys(STREAMS, 0)
    for (_, priority), counts in minute.outcomes.items():
        for outcome in wanted:
            total[priority] += counts.get(outcome, 0)
    return total


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, n in more.items():
        total[name] = total.get(name, 0) + n
