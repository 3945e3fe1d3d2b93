"""Stats counts outcomes, run times and waits of one process by type and priority, and its calls of the store."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from runtime.errors import Dead, Retry, Snooze
from runtime.jobs import DONE, STREAMS, Done, Job, Lost, Outcome, Park, Postpone, Release, ms_of

OUTCOMES: Final = (
    "done",
    "retry",
    "snooze",
    "dead",
    "released",
    "parked",
    "postponed",
    "lost",
    "duplicate",
    "reclaimed",
    "undelivered",
)
_NAMES: Final[dict[type, str]] = {
    Done: "done",
    Retry: "retry",
    Snooze: "snooze",
    Dead: "dead",
    Release: "released",
    Park: "parked",
    Postpone: "postponed",
    Lost: "lost",
}
BUCKETS: Final = 64  # powers of two in µs: more than any run can take, so that nothing needs a bound
_MICROSECONDS: Final = 1_000_000
WINDOW_S: Final = 60  # a guess: longer than the time between two scrapes, and short enough for "now"
# Of a delivery, so many jobs tell how long its jobs have waited: measured, 2.3 µs a delivery, 0.005 µs a job where it brings 500.
# Each job would cost 0.55 µs, and a count of the types alone 0.06.
WAITS_SEEN: Final = 4
_STEP: Final = 618  # thousandths, of the golden section: steps of this size fall together with no pattern in the order of types
MAX_WAIT_MS: Final = 10 * 365 * 24 * 3600 * 1000  # an entry that is older has an id such as 5-3, which says no time
UNKNOWN_TYPE: Final = "(unknown)"  # how people and metrics are shown what has no name here: no type, or one of too many
STRANGE_TYPES: Final = 100  # a guess: types without a handler here that are told apart; each has some kilobytes of counts


class Count:
    """Counts of one type on one stream. `runs[k]` counts runs of less than 2**k µs (and at least half of it).

    `waits[k]` counts waits of less than 2**k ms, from the entry's time to its fetch; `timeouts` runs that were cut at their
    deadline. `fresh_s` are run times in seconds that are not sorted in yet.
    """

    __slots__ = ("done", "fresh_s", "outcomes", "run_s", "runs", "timeouts", "wait_ms", "waits")

    def __init__(self) -> None:
        self.done: int = 0
        self.outcomes: dict[str, int] = {}
        self.runs: list[int] = [0] * BUCKETS
        self.run_s: float = 0.0
        self.fresh_s: list[float] = []
        self.waits: list[int] = [0] * BUCKETS
        self.wait_ms: int = 0
        self.timeouts: int = 0

    def fold(self) -> None:
        """Sort in the runs since the last call: a batch at once, for half of what it would cost one by one (measured)."""
        fresh_s = self.fresh_s
        fresh_s.sort()
        self.run_s += sum(fresh_s)
        power = start = 0
        while start < len(fresh_s):
            end = bisect_left(fresh_s, 2**power / _MICROSECONDS, start)
            self.runs[power] += end - start
            power, start = power + 1, end
        fresh_s.clear()

    def add(self, other: Count) -> Count:
        """Add what another has counted, and return this one."""
        self.done += other.done
        for name, n in other.outcomes.items():
            self.outcomes[name] = self.outcomes.get(name, 0) + n
        self.runs = [a + b for a, b in zip(self.runs, other.runs, strict=True)]
        self.waits = [a + b for a, b in zip(self.waits, other.waits, strict=True)]
        self.run_s += other.run_s
        self.wait_ms += other.wait_ms
        self.timeouts += other.timeouts
        return self

    def totals(self) -> dict[str, int]:
        """Return all outcomes with their number."""
        return {"done": self.done, **self.outcomes} if self.done else dict(self.outcomes)


class Blocks:
    """Times in which the loop stood still: their number, their sum and the longest of them in seconds; `where` it last stood."""

    __slots__ = ("count", "longest_s", "total_s", "where")

    def __init__(self) -> None:
        self.count: int = 0
        self.total_s: float = 0.0
        self.longest_s: float = 0.0
        self.where: str = ""

    def add(self, still_s: float) -> None:
        """Count one."""
        self.count += 1
        self.total_s += still_s
        self.longest_s = max(self.longest_s, still_s)


class Lag:
    """How late the ticks of the loop came, which are due each 50 ms: so late comes any timer of a handler, too.

    `counts[k]` counts ticks that were less than 2**k µs late (and at least half of it), `total_s` is their sum.
    """

    __slots__ = ("_longest_s", "_window", "counts", "last_s", "total_s")

    def __init__(self) -> None:
        self.last_s: float = 0.0
        self.total_s: float = 0.0
        self.counts: list[int] = [0] * BUCKETS
        self._window = 0
        self._longest_s = (0.0, 0.0)  # in the window before, and in this one

    def add(self, now_s: float, late_s: float) -> None:
        """Count a tick that came so late."""
        self.last_s = late_s
        self.total_s += late_s
        self.counts[int(late_s * _MICROSECONDS).bit_length()] += 1
        before_s, longest_s = self._longest_of(now_s)
        self._longest_s, self._window = (before_s, max(longest_s, late_s)), int(now_s // WINDOW_S)

    def longest_s(self, now_s: float) -> float:
        """Return how late the latest tick of the last WINDOW_S came, or up to twice that: the longest turn of the loop.

        Called in any thread: it changes nothing.
        """
        return max(self._longest_of(now_s))

    def _longest_of(self, now_s: float) -> tuple[float, float]:
        """Return the longest of the window before this one, and of this one; what is older is forgotten."""
        later = int(now_s // WINDOW_S) - self._window
        return self._longest_s if later == 0 else (self._longest_s[1] if later == 1 else 0.0, 0.0)


class Calls:
    """Counts answered calls of the store of one kind: `times[k]` those of less than 2**k µs, `sizes[k]` those that carried up to
    2**k jobs, and more than half of that.
    """

    __slots__ = ("jobs", "sizes", "times", "took_s")

    def __init__(self) -> None:
        self.times: list[int] = [0] * BUCKETS
        self.took_s: float = 0.0
        self.sizes: list[int] = [0] * BUCKETS
        self.jobs: int = 0

    def note(self, took_s: float, jobs: int) -> None:
        """Count one call, which took so many seconds and carried so many jobs."""
        self.times[int(max(0.0, took_s) * _MICROSECONDS).bit_length()] += 1
        self.took_s += took_s
        self.sizes[max(0, jobs - 1).bit_length()] += 1
        self.jobs += jobs


class Stats:
    """Owns the counts of this process since it started; they only grow.

    `known` are the types that have a handler here: of others, STRANGE_TYPES are told apart. `flushes` and `fetches` are answered
    calls; a fetch that waited for an entry is not among them.

    `blocked` has, by type, what handlers have blocked the loop, and under the empty name what nobody is blamed for: it was over
    before it was seen, or many handlers held the loop in turn. `stalls` has what is no handler's doing: `gc`, the collection of
    garbage, and `process`, when the whole process stood still. All of them count what is longer than `--block-warn-ms`.
    """

    def __init__(self, known: Collection[bytes] = ()) -> None:
        self._counts: dict[bytes, list[Count]] = {}
        self._known = known
        self._strange = 0
        self._phase = 0
        self.flushes: Calls = Calls()
        self.fetches: Calls = Calls()
        self.isolated: int = 0
        self.finished: int = 0
        self.refused: int = 0
        self.shortfall: int = 0
        self.unkept: int = 0
        self.store_errors: int = 0
        self.lag: Lag = Lag()
        self.blocked: dict[bytes, Blocks] = {}
        self.stalls: dict[str, Blocks] = {"gc": Blocks(), "process": Blocks()}

    def ran(self, job: Job, outcome: Outcome, run_s: float) -> None:
        """Count one run of a handler and what became of it. On the hot path: no tuple, no key made per job."""
        self.finished += 1
        counts = self._counts.get(job.type)
        count = (self._of(job.type) if counts is None else counts)[job.stream]
        count.fresh_s.append(run_s)
        if outcome is DONE:
            count.done += 1
        else:
            name = outcome_name(outcome)
            count.outcomes[name] = count.outcomes.get(name, 0) + 1

    def moved(self, type_name: bytes, stream: int, name: str, by: int = 1) -> None:
        """Count jobs that were moved without a run: `duplicate`, `parked`, `released`, `dead`, …"""
        outcomes = self._of(type_name)[stream].outcomes
        outcomes[name] = outcomes.get(name, 0) + by

    def timed_out(self, job: Job) -> None:
        """Count one run that was cut at its deadline, whatever becomes of it."""
        self._of(job.type)[job.stream].timeouts += 1

    def _of(self, type_name: bytes) -> list[Count]:
        counts = self._counts.get(type_name)
        if counts is None and type_name and type_name not in self._known:
            if self._strange >= STRANGE_TYPES:
                return self._of(b"")
            self._strange += 1
        return self._counts.setdefault(type_name, [Count() for _ in STREAMS]) if counts is None else counts

    def fold(self) -> None:
        """Sort in the times of the newest runs. To be called now and then: they pile up until they are asked for."""
        for counts in self._counts.values():
            for count in counts:
                if count.fresh_s:
                    count.fold()

    def blocked_by(self, type_name: bytes, still_s: float, where: str = "") -> None:
        """Count that a handler of this type has blocked the loop for so long, and `where`; empty where it is not known which."""
        blocks = self.blocked.get(type_name)
        if blocks is None:
            blocks = self.blocked[type_name] = Blocks()
        blocks.add(still_s)
        blocks.where = where or blocks.where

    def waited(self, jobs: Sequence[Job], now_ms: int) -> None:
        """Count how long the jobs of a delivery have waited to be fetched, at this time of the server in ms.

        Of more than WAITS_SEEN, so many speak for all: they stand evenly apart, from another place on each time.
        """
        seen = len(jobs)
        apart = 1.0
        if seen > WAITS_SEEN:
            apart, seen = seen / WAITS_SEEN, WAITS_SEEN
            self._phase = (self._phase + _STEP) % 1000
        told, offset = 0, self._phase / 1000 if apart > 1.0 else 0.0
        for n in range(seen):
            job = jobs[int((n + offset) * apart)]
            upto = int((n + 1) * apart)
            stands_for, told = upto - told, upto
            wait_ms = now_ms - ms_of(job.entry, now_ms)
            if wait_ms > MAX_WAIT_MS:
                continue
            counts = self._counts.get(job.type)
            count = (self._of(job.type) if counts is None else counts)[job.stream]
            count.waits[wait_ms.bit_length()] += stands_for
            count.wait_ms += wait_ms * stands_for

    def totals(self) -> Iterator[tuple[str, int]]:
        """Return every counter with its name in the shared statistics: `type priority outcome`, `type priority run<k>` (runs of
        less than 2**k µs), ` priority wait<k>` (waits of less than 2**k ms).
        """
        for type_name, priority, count in self.rows():
            for outcome, total in count.totals().items():
                yield f"{type_name} {priority} {outcome}", total
            for power, total in enumerate(count.runs):
                if total:
                    yield f"{type_name} {priority} run{power}", total
        for stream, priority in enumerate(STREAMS):
            for power, total in enumerate(self.waits(stream)):
                if total:
                    yield f" {priority} wait{power}", total

    def waits(self, stream: int) -> list[int]:
        """Return the waits of all types on a stream, by powers of two ms."""
        rows = [counts[stream].waits for counts in self._counts.values()]
        return [sum(row[power] for row in rows) for power in range(BUCKETS)]

    def rows(self) -> Iterator[tuple[str, str, Count]]:
        """Return type, priority and counts of all that was seen."""
        self.fold()
        for type_name, counts in list(self._counts.items()):
            for priority, count in zip(STREAMS, counts, strict=True):
                if count.done or count.outcomes or count.timeouts or any(count.waits):
                    yield type_name.decode(errors="replace"), priority, count


def outcome_name(outcome: Outcome) -> str:
    """Return the label of an outcome in metrics and statistics; handlers may raise subclasses of `Retry`, `Snooze`, `Dead`."""
    return _NAMES.get(type(outcome)) or next(_NAMES[kind] for kind in type(outcome).__mro__ if kind in _NAMES)
