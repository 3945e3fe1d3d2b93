"""What becomes of a job: may it start, what its error means, and the ledger of what is to be written. Pure: no clock, no I/O."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from runtime.backoff import MAX_CAP_S, delay_s
from runtime.errors import BadMessage, Dead, JobsError, LeaseLost, NotStarted, Retry, Snooze, TimedOut
from runtime.jobs import (
    DONE,
    FREE,
    LOST,
    PLAIN,
    RELEASE,
    TYPE_NAME,
    BadEntry,
    Batch,
    Deferral,
    Done,
    Handler,
    Job,
    Lease,
    Letter,
    Lost,
    Outcome,
    Park,
    Parking,
    Postpone,
    Registry,
    Release,
    room_of,
)

MAX_SNOOZE_MS = 72 * 3600 * 1000  # in all, from the first snooze on: then somebody should look
MAX_CODE_CHARS = 64
MAX_ERROR_CHARS = 1000
MAX_STACK_CHARS = 8000


class Admitted(msgspec.Struct):
    """A batch, sorted: jobs that may start, jobs with a key to be claimed first, and what may not run here now."""

    ready: list[Job]
    keyed: list[Job]
    turned_away: list[tuple[Job, Outcome]]


def admit(jobs: Sequence[Job], registry: Registry, now_ms: int) -> Admitted:
    """Say which jobs may start. Order: expired, unknown type, key, not yet due."""
    ready: list[Job] = []
    admitted = Admitted(ready, [], [])
    for job in jobs:
        handler = registry.get(job.type)
        if handler is not None and job.envelope is PLAIN:
            ready.append(job)
            continue
        outcome = _turn_away(job, handler, now_ms)
        if outcome is not None:
            admitted.turned_away.append((job, outcome))
        elif job.envelope.key:
            admitted.keyed.append(job)
        else:
            _admit_by_time(admitted, job, now_ms)
    return admitted


def admit_keyed(admitted: Admitted, verdicts: Sequence[str], now_ms: int) -> list[Job]:
    """Sort the keyed jobs by what the door said of their keys; give those that are copies of a live job."""
    copies: list[Job] = []
    for job, verdict in zip(admitted.keyed, verdicts, strict=True):
        if verdict == "mine":
            _admit_by_time(admitted, job, now_ms)
        elif verdict == "copy":
            copies.append(job)
        elif verdict == "refused":
            admitted.turned_away.append((job, LOST))
        else:  # the server could not answer for this key: later, without burning an attempt
            admitted.turned_away.append((job, Snooze(5.0, verdict)))
    return copies


def _turn_away(job: Job, handler: Handler[Any] | None, now_ms: int) -> Outcome | None:
    envelope = job.envelope
    if not TYPE_NAME.match(job.type):
        return Dead("`type` is not 1 to 64 of [a-z0-9._-], beginning with a letter or digit", "unreadable")
    if envelope.exp_ms and envelope.exp_ms <= now_ms:
        return Dead(f"expired at {envelope.exp_ms}, met at {now_ms}", "expired")
    if handler is None or envelope.version > handler.contract.version:
        return Park(room_of(job.type.decode(), envelope.version))
    return None


def _admit_by_time(admitted: Admitted, job: Job, now_ms: int) -> None:
    if job.envelope.at_ms > now_ms:
        admitted.turned_away.append((job, Postpone(job.envelope.at_ms)))
    else:
        admitted.ready.append(job)


def decide(handler: Handler[Any], job: Job, error: BaseException | None, dice: Callable[[], float]) -> Outcome:
    """Say what becomes of a job after a run: nothing raised is Done, what a handler raised is its word, all else a failure."""
    if error is None:
        return DONE
    if not isinstance(error, JobsError):  # most are none of our words
        return _retry(handler, job, error, delay_s(job.attempt, handler.retry, dice))
    match error:
        case LeaseLost():
            return LOST
        case NotStarted():
            return RELEASE
        case Dead():
            error.error = error.error or error  # it ran: its letter counts this run, and has its stack
            return error
        case BadMessage():
            return Dead(describe(error), error.code, error=error)
        case Snooze():
            return _snooze(job, error)
        case Retry():
            return _retry(handler, job, error, clamp_s(error.delay_s))
        case _:
            return _retry(handler, job, error, delay_s(job.attempt, handler.retry, dice))


def _retry(handler: Handler[Any], job: Job, error: BaseException, wait_s: float) -> Outcome:
    if job.attempt >= (job.envelope.attempts or handler.retry.attempts):
        return Dead(describe(error), "timeout" if isinstance(error, TimedOut) else "attempts", error=error)
    return Retry(wait_s, describe(error))


def _snooze(job: Job, word: Snooze) -> Outcome:
    since_ms = job.envelope.snoozed_ms
    if since_ms and job.fetched_ms - since_ms > MAX_SNOOZE_MS:
        return Dead(f"snoozed for more than {MAX_SNOOZE_MS // 3_600_000} h: {describe(word)}", "gave-up-waiting", error=word)
    return Snooze(clamp_s(word.delay_s), describe(word))


def clamp_s(wait_s: float) -> float:
    """Give a wait that can be written: what a handler computed may be negative, infinite or no number."""
    if math.isnan(wait_s) or wait_s < 0:
        return 0.0
    return min(wait_s, MAX_CAP_S)


_SPEAK_FOR_THEMSELVES = (Dead, Snooze, Retry, BadMessage)


def describe(error: BaseException) -> str:
    """Give the error in one short text; survives an exception whose own message raises."""
    try:
        text = str(error)
    except Exception as second:
        text = f"(its message raised {type(second).__name__})"
    name = "" if isinstance(error, _SPEAK_FOR_THEMSELVES) else f"{type(error).__name__}: "
    return writable((name + text)[:MAX_ERROR_CHARS])


def writable(text: str) -> str:
    """Give text that can be written as UTF-8: names of files that are no UTF-8 reach Python as lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _code(code: object) -> str:
    """Give a reason as text, whatever the handler gave: a member of an enumeration speaks by its value."""
    return writable(str(getattr(code, "value", code))[:MAX_CODE_CHARS])


def stack_of(error: BaseException | None) -> str:
    """Give where the error came from, newest frames last, cut to what a dead letter should carry."""
    if error is None:
        return ""
    stack = "".join(traceback.format_tb(error.__traceback__)) or str(getattr(error, "stack", ""))
    return writable(stack[-MAX_STACK_CHARS:])


class Ledger:
    """Owns the outcomes that are not yet written. Lanes append, the flusher takes all at once."""

    def __init__(self, on_first: Callable[[], None] = lambda: None) -> None:
        self._batch = empty_batch()
        self.on_first = on_first
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
        """Note that these were not started, or cut off: back to where anybody may take them."""
        self._batch.park += [Parking(lease, FREE) for lease in leases]
        if leases:
            self._wake()

    def take(self) -> Batch:
        """Give all that is noted, and begin anew."""
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
            case Retry():
                batch.defer.append(Deferral(job, "retry", int(outcome.delay_s * 1000), job.id, job.attempt))
            case Snooze():
                batch.defer.append(Deferral(job, "snooze", int(outcome.delay_s * 1000), job.id, job.envelope.failed))
            case Postpone():
                batch.defer.append(Deferral(job, "at", outcome.at_ms, job.id, job.envelope.failed))
            case Dead():
                is_failure = outcome.error is not None and not isinstance(outcome.error, BadMessage | Snooze)
                tried = job.attempt if is_failure else job.envelope.failed
                error = outcome.error or outcome
                batch.dead.append(Letter(job, _code(outcome.code), describe(outcome), stack_of(error), tried, job.id))
            case Park():
                batch.park.append(Parking(job, outcome.room))
            case Release():
                batch.park.append(Parking(job, FREE))
            case Lost():
                pass


def empty_batch() -> Batch:
    """Give a batch with nothing in it."""
    return Batch([[], [], [], []], [], [], [])
