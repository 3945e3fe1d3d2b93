"""What may watch jobs run, such as traces: the runtime tells it of a few, and asks nothing of it. No observer is the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from runtime.jobs import Carrier, Job, Lease, Outcome, Running


class LaneObserver(Carrier, Protocol):
    """Watches one lane, in its task."""

    def begin(self, job: Job) -> None:
        """Hear that the handler of a job that `is_traced` is called next, in this task."""
        ...

    def ended(self, job: Job, outcome: Outcome, error: BaseException | None, started_s: float, ended_s: float) -> bytes:
        """Hear what became of an attempt that is traced, failed, or ran for longer than `told_s`.

        Return its traceparent if it is recorded, else nothing. `error` is what the handler raised, and is not kept; times are
        of the monotonic clock.
        """
        ...


class Observer(Protocol):
    """Watches the jobs of one worker, on its loop. Nothing that it does may raise."""

    told_s: float

    def open_lane(self, lane: Running) -> LaneObserver:
        """Return what watches a lane; called in each task that the lane runs as, before its first job."""
        ...

    def choose(self, jobs: Sequence[Job]) -> None:
        """Set `is_traced` of those that are traced from their beginning; called with all that are about to start here."""
        ...

    def died(self, lease: Lease, type_name: bytes, code: str, error: str) -> bytes:
        """Hear of a death without a run; return the traceparent of the span that tells of it. The type is empty where unknown."""
        ...

    def look(self, now_s: float) -> None:
        """Write down what ended; called after each flush of the ledger, and at each tick of a worker that is not idle."""
        ...
