"""A worker's log: failures within a budget, outages once, never a line per successful job."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Final

from runtime import logs
from runtime.errors import Dead, Retry, StoreError, StoreUnavailable
from runtime.jobs import Job
from runtime.settle import CANCELLED_CODE, raised_info
from runtime.store.base import Room

log: Final = logs.guarded("runtime")

MB: Final = 1 << 20  # as Redis counts one
LINES_S: Final = 20  # a guess: failures per second that get a line of their own
STACKS_S: Final = 5  # a guess: of these, how many dead jobs have their stack with them, of up to 8,000 characters
FIRST_TOLD: Final = 3  # a guess: failed calls in a row that make an outage worth a line
TOLD: Final = (Dead, Retry)  # outcomes that have a line in the log
TOLD_AGAIN: Final = 60  # a guess: and so many more: every few minutes, at the longest back-off


def level_of(error: StoreUnavailable, failures: int) -> int:
    """Return the level at which a background loop logs a failed call.

    An outage is logged by the fetcher; what a living Redis answers is logged here alone.
    """
    is_time = failures == FIRST_TOLD or failures % TOLD_AGAIN == 0
    return logging.ERROR if is_time and isinstance(error, StoreError) else logging.DEBUG


class ThrottledLog:
    """Owns the number of lines that may still be written this second, so that a broken type does not drown the log."""

    def __init__(self) -> None:
        self._second = 0
        self._spent = 0
        self._stacks = 0
        self._is_full = False

    def death(self, text: str, *args: object, about: Job | Mapping[str, object], reason: str) -> None:
        """Log a job that is dead without a run, as far as this second's budget goes."""
        fields = logs.job_fields(about) if isinstance(about, Job) else about
        self.warn(text, *args, level=logging.ERROR, about={**fields, "reason": reason})

    def warn(self, text: str, *args: object, level: int = logging.WARNING, about: Job | dict[str, object] | None = None) -> None:
        """Log a line, if this second's budget has one left; the others are counted, and logged as a number.

        What it is `about` gives it the fields of a job: one, or the fields themselves.
        """
        if self._may_log():
            log.log(level, text, *args, extra=logs.job_fields(about) if isinstance(about, Job) else about)

    def _may_log(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            if self._spent > LINES_S:
                log.warning("… and %d more lines like these in that second", self._spent - LINES_S)
            self._second, self._spent, self._stacks = second, 0, 0
        self._spent += 1
        return self._spent <= LINES_S

    def failure(self, job: Job, error: BaseException, outcome: object) -> None:
        """Log a run that failed, and what becomes of the job; nothing is worked out for a line that is not written.

        A death has its stack with it, of which there are fewer still; a job that runs again has one line.
        """
        if not isinstance(outcome, TOLD) or not self._may_log():
            return
        extra = logs.job_fields(job)
        if isinstance(outcome, Dead):
            self._stacks += 1
            # The stack as text, even an empty one, keeps formatters from asking the exception, which is the user's. Trackers of
            # errors do ask it.
            extra |= {"reason": outcome.code, "stack": outcome.stack if self._stacks <= STACKS_S else ""}
            is_ordered = outcome.code == CANCELLED_CODE and not outcome.is_failure  # by people: no error
            level, raised = (logging.WARNING, None) if is_ordered else (logging.ERROR, raised_info(error))
            text = "job %s (%s) is dead after attempt %d: %s"
            log.log(level, text, job.id, job.type.decode(), job.attempt, outcome, extra=extra, exc_info=raised)
        else:
            text = "job %s (%s) failed attempt %d, again in %.1f s: %s"
            log.warning(text, job.id, job.type.decode(), job.attempt, outcome.delay_s, outcome, extra=extra)

    def dropped(self, job: Job, why: str) -> None:
        """Log a job that was dropped for its key, for who looks for it: there may be thousands a second, and nothing is wrong."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug("job %s (%s) is %s", job.id, job.type.decode(), why, extra=logs.job_fields(job))

    def store_unavailable(self, error: StoreUnavailable, failures: int) -> None:
        """Log an outage: one line when it is one, then one every few minutes."""
        if failures == FIRST_TOLD or (failures > FIRST_TOLD and failures % TOLD_AGAIN == 0):
            log.error("the store is away, jobs wait and leases stay in mind; trying on: %s", error)

    def room(self, room: Room) -> None:
        """Log that memory is full, once, and that it no longer is."""
        if room.is_full and not self._is_full:
            text = "Redis is full, %.1f of %.1f MB: what is sent is refused, jobs run on; hint: python -m runtime doctor"
            log.error(text, room.used / MB, room.most / MB)
        elif self._is_full and not room.is_full:
            log.warning("Redis has room again, %.1f MB are used: what is sent is taken", room.used / MB)
        self._is_full = room.is_full

    def stream_broken(self, key: str, error: str) -> None:
        """Log that a stream cannot be read, and how to fix it."""
        fix = f"Fix it: redis-cli RENAME '{key}' '{key}:was'"
        log.error("%s cannot be read and is left out, the other priorities go on: %s. %s", key, error, fix)

    def stream_whole(self, key: str) -> None:
        """Log that a broken stream is read again."""
        log.warning("%s can be read again", key)

    def store_back(self, failures: int) -> None:
        """Log the end of an outage that was logged."""
        if failures >= FIRST_TOLD:
            log.warning("the store is back, after %d failed tries", failures)
