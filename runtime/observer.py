"""What may watch jobs run and be sent, such as traces: it is told of a few, and asked for nothing. Nothing watches by default."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

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


class Publishing(Protocol):
    """Watches one call that sends: `fields` go into its messages, names and values in turn."""

    fields: tuple[bytes | str, ...]

    def sent(self, ids: Sequence[str]) -> None:
        """Hear the ids of the jobs that were stored."""
        ...


# Called with the queue, the URL of the store, and whether the call sends many: a block around the call, which is told its error.
Publisher = Callable[[str, str, bool], AbstractContextManager[Publishing]]
TRACER: Final = "opentelemetry.trace"  # an application that traces has loaded it
PUBLISHER: Final = ("otel.publish", "publisher")


def publisher() -> Publisher | None:
    """Return what watches calls that send; None where the application traces nothing, which is seen in 0.1 µs."""
    if TRACER not in sys.modules:
        return None
    module, name = PUBLISHER
    return getattr(sys.modules.get(module) or importlib.import_module(module), name)()
