"""The ledger: what became of jobs here, and is not yet written to Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    Lease,
    Letter,
    Lost,
    Outcome,
    Park,
    Parking,
    Postpone,
    Release,
)
from runtime.settle import MAX_CODE_CHARS, MAX_ERROR_CHARS, describe, plain


class Ledger:
    """Owns the outcomes that are not yet written. Lanes append, the flusher takes all at once.

    `on_pause` hears of each type that a job has asked to pause, and for how many seconds.
    """

    def __init__(self, on_first: Callable[[], None] = lambda: None) -> None:
        self._batch = empty_batch()
        self.on_first = on_first
        self.on_pause: Callable[[bytes, float], None] = lambda type_name, wait_s: None
        self._is_empty = True

    def __repr__(self) -> str:
        return f"<Ledger {len(self)} outcomes to write>"

    def __len__(self) -> int:
        return len(self._batch)

    def add(self, job: Job, outcome: Outcome) -> None:
        """Note what is to be written for this job."""
        if outcome is DONE:
            self._batch.done[job.stream].append(job)
        else:
            self._add_move(job, outcome)
        if self._is_empty:
            self._is_empty = False
            self.on_first()

    def add_bad(self, bad: BadEntry) -> None:
        """Note that an entry cannot be a job: to the dead letters as it is."""
        self._batch.dead.append(Letter(bad.lease, bad.code, bad.reason[:MAX_ERROR_CHARS], "", 0, ""))
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

    def _add_move(self, job: Job, outcome: Outcome) -> None:
        batch = self._batch
        match outcome:
            case Done():
                batch.done[job.stream].append(job)
            case Retry() | Snooze() if outcome.pause_type:
                name, wait_ms = job.type.decode(), int(outcome.delay_s * 1000)
                batch.pauses[name] = max(wait_ms, batch.pauses.get(name, 0))
                self.on_pause(job.type, outcome.delay_s)
                self._defer(job, outcome)
            case Retry() | Snooze():
                self._defer(job, outcome)
            case Postpone():
                batch.defer.append(Deferral(job, "at", outcome.at_ms, job.id, job.envelope.failed))
            case Dead():
                tried = job.attempt if outcome.is_failure else job.envelope.failed
                batch.dead.append(
                    Letter(job, plain(outcome.code, MAX_CODE_CHARS), describe(outcome), outcome.stack, tried, job.id)
                )
            case Park():
                batch.park.append(Parking(job, outcome.lot))
            case Release():
                batch.park.append(Parking(job, FREE))
            case Lost():
                pass

    def _defer(self, job: Job, outcome: Retry | Snooze) -> None:
        kind, failed = ("retry", job.attempt) if isinstance(outcome, Retry) else ("snooze", job.envelope.failed)
        self._batch.defer.append(Deferral(job, kind, int(outcome.delay_s * 1000), job.id, failed))


def empty_batch() -> Batch:
    """Return a batch with nothing in it."""
    return Batch([[] for _ in STREAMS], [], [], [], {})
