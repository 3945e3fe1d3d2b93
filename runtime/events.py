"""What happened, counted: outcomes and run times per type and priority. Read by statistics and metrics, never per job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from runtime.errors import Dead, Retry, Snooze
from runtime.jobs import STREAMS, Done, Job, Lost, Outcome, Park, Postpone, Release

OUTCOMES: Final = ("done", "retry", "snooze", "dead", "released", "parked", "postponed", "lost", "copy")
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
BUCKETS: Final = 33  # powers of two in µs: the last holds all from 2**31 µs, that is, 36 min
_MICROSECONDS: Final = 1_000_000


class Count:
    """Counts of one type on one stream. `runs[k]` counts runs of less than 2**k µs (and at least half of it)."""

    __slots__ = ("outcomes", "run_s", "runs")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.runs = [0] * BUCKETS
        self.run_s = 0.0


class Tally:
    """Owns the counts of this process since it started; they only grow."""

    def __init__(self) -> None:
        self.counts: dict[tuple[bytes, int], Count] = {}
        self.finished = 0
        self.refused = 0
        self.shortfall = 0
        self.store_errors = 0

    def ran(self, job: Job, outcome: Outcome, run_s: float) -> None:
        """Count one run of a handler and what became of it."""
        count = self._of(job.type, job.stream)
        count.run_s += run_s
        bucket = int(run_s * _MICROSECONDS).bit_length()
        count.runs[bucket if bucket < BUCKETS else BUCKETS - 1] += 1
        name = _NAMES[type(outcome)]
        count.outcomes[name] = count.outcomes.get(name, 0) + 1
        self.finished += 1

    def moved(self, type_name: bytes, stream: int, name: str, by: int = 1) -> None:
        """Count jobs that were moved without a run: `copy`, `parked`, `released`, `dead`, …"""
        outcomes = self._of(type_name, stream).outcomes
        outcomes[name] = outcomes.get(name, 0) + by

    def _of(self, type_name: bytes, stream: int) -> Count:
        count = self.counts.get((type_name, stream))
        if count is None:
            count = self.counts[type_name, stream] = Count()
        return count

    def rows(self) -> Iterator[tuple[str, str, Count]]:
        """Give type, priority and counts of all that was seen."""
        for (type_name, stream), count in list(self.counts.items()):
            yield type_name.decode(errors="replace"), STREAMS[stream], count


def outcome_name(outcome: Outcome) -> str:
    """Give the word for an outcome, as in metrics and statistics."""
    return _NAMES[type(outcome)]
