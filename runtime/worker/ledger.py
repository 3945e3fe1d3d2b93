"""The ledger: what became of jobs here, and is not yet written to Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from runtime.codec import noting_try
from runtime.errors import Dead, Retry, Snooze
from runtime.jobs import (
    DONE,
    FREE,
    STREAMS,
    BadEntry,
    Batch,
    Deferral,
    Done,
    Job,
    Kept,
    Lease,
    Letter,
    Lost,
    Outcome,
    Park,
    Parking,
    Postpone,
    Release,
)
from runtime.observer import Observer
from runtime.settle import MAX_CODE_CHARS, MAX_ERROR_CHARS, describe, plain
from runtime.stats import outcome_name
from runtime.tries import Try

FAILED: Final = (Retry, Dead)  # once: `Retry | Dead` would make a new type for each job


class Ledger:
    """Owns the outcomes that are not yet written. Lanes append, the flusher takes all at once.

    `on_pause` hears of each type that a job has asked to pause, and for how many seconds, `observer` of deaths without a run;
    `on_said`, in any thread, of each job whose run has said something for the first time; `on_failed` of each job that runs again
    or is dead, with the attempt that failed, if one did; `on_done` of a job that is done, where it is the first of a batch. `by`
    and `app` are the worker and the version of its application, as attempts tell them. `results_ms` has how long what is answered
    is kept, of types with results.
    """

    def __init__(self, on_first: Callable[[], None] = lambda: None) -> None:
        self._batch = empty_batch()
        self.on_first = on_first
        self.on_pause: Callable[[bytes, float], None] = lambda type_name, wait_s: None
        self.on_said: Callable[[Job], None] = lambda job: None
        self.on_failed: Callable[[Job, Retry | Dead, Try | None], None] = lambda job, outcome, failed: None
        self.on_done: Callable[[Job], None] = lambda job: None
        self.observer: Observer | None = None
        self.by = self.app = ""
        self.results_ms: dict[bytes, int] = {}
        self._is_empty = True

    def __repr__(self) -> str:
        return f"<Ledger {len(self)} outcomes to write>"

    def __len__(self) -> int:
        return len(self._batch)

    def add(self, job: Job, outcome: Outcome, tried: bytes = b"", failed: Try | None = None) -> None:
        """Note what is to be written for this job; `tried` is the traceparent of the attempt that ended, if it is recorded,
        `failed` that attempt, if it failed.
        """
        if outcome is DONE:
            self._batch.done[job.stream].append(job)
        else:
            self._add_move(job, outcome, tried, failed)
        if self._is_empty:
            self._is_empty = False
            self.on_first()
            if outcome is DONE:
                self.on_done(job)

    def keep(self, result: Kept) -> None:
        """Note a result that is written before the job is, which is noted next: in the same turn of the loop."""
        self._batch.results.append(result)

    def add_bad(self, bad: BadEntry) -> None:
        """Note that an entry cannot be a job: to the dead letters as it is."""
        reason = bad.reason[:MAX_ERROR_CHARS]
        trace = self._trace_of(bad.lease, b"", bad.code, reason)
        self._batch.dead.append(Letter(bad.lease, bad.code, reason, "", 0, "", trace))
        self._wake()

    def release(self, leases: Sequence[Lease]) -> None:
        """Note that these were not started, or cut off: back to `~free`, where any worker may take them."""
        self._batch.park += [Parking(lease, FREE) for lease in leases]
        if leases:
            self._wake()

    def take(self) -> Batch:
        """Return all that is noted, and begin anew."""
        batch, self._batch = self._batch, empty_batch()
        self._is_empty = True
        return batch

    def put_back(self, batch: Batch) -> None:
        """Note again what could not be written."""
        self._batch.add(batch)
        if len(self._batch):
            self._wake()

    def _wake(self) -> None:
        if self._is_empty:
            self._is_empty = False
            self.on_first()

    def _trace_of(self, lease: Lease, type_name: bytes, code: str, error: str) -> bytes:
        return b"" if self.observer is None else self.observer.died(lease, type_name, code, error)

    def _add_move(self, job: Job, outcome: Outcome, tried: bytes, failed: Try | None) -> None:
        batch = self._batch
        if job.extras is not None:
            job.extras.said.outcome = outcome_name(outcome)
        if isinstance(outcome, FAILED):
            self.on_failed(job, outcome, failed)
        match outcome:
            case Done():
                batch.done[job.stream].append(job)
            case Retry() | Snooze() if outcome.pause_type:
                name, wait_ms = job.type.decode(), int(outcome.delay_s * 1000)
                batch.pauses[name] = max(wait_ms, batch.pauses.get(name, 0))
                self.on_pause(job.type, outcome.delay_s)
                self._defer(job, outcome, tried, failed)
            case Retry() | Snooze():
                self._defer(job, outcome, tried, failed)
            case Postpone():
                batch.defer.append(Deferral(job, "at", outcome.at_ms, job.id, job.envelope.failed))
            case Dead():
                attempts = job.attempt if outcome.is_failure else job.envelope.failed
                code, text = plain(outcome.code, MAX_CODE_CHARS), describe(outcome)
                trace = tried or self._trace_of(job, job.type, code, text)
                result_ms = self.results_ms.get(job.type, 0)
                tries = b"" if failed is None else noting_try(job, failed)
                batch.dead.append(Letter(job, code, text, outcome.stack, attempts, job.id, trace, result_ms, tries))
            case Park():
                batch.park.append(Parking(job, outcome.lot))
            case Release():
                batch.park.append(Parking(job, FREE))
            case Lost():
                pass

    def _defer(self, job: Job, outcome: Retry | Snooze, tried: bytes, failed: Try | None) -> None:
        kind, attempts = ("retry", job.attempt) if isinstance(outcome, Retry) else ("snooze", job.envelope.failed)
        tries = b"" if failed is None else noting_try(job, failed)
        self._batch.defer.append(Deferral(job, kind, int(outcome.delay_s * 1000), job.id, attempts, tried, tries))


def empty_batch() -> Batch:
    """Return a batch with nothing in it."""
    return Batch([[] for _ in STREAMS], [], [], [], {})
