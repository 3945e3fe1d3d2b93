"""What a worker says in its log: failures within a budget, outages once, never a line per successful job."""

from __future__ import annotations

import logging
import time
from typing import Final

from runtime.errors import Dead, Retry, StoreAway
from runtime.jobs import Job

log = logging.getLogger("runtime")

LINES_S: Final = 20  # failures per second that get a line of their own
FIRST_TOLD: Final = 3  # failed calls in a row that make an outage worth a line
TOLD: Final = (Dead, Retry)
TOLD_AGAIN: Final = 60  # and so many more: every few minutes, at the longest back-off


class Words:
    """Owns the number of lines that may still be written this second, so that a broken type does not drown the log."""

    def __init__(self) -> None:
        self._second = 0
        self._spent = 0

    def say(self, text: str, *args: object) -> None:
        """Write a line, if this second's budget has one left; what it has not is counted."""
        if self._may_say():
            log.warning(text, *args)

    def _may_say(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            if self._spent > LINES_S:
                log.warning("… and %d more lines like these in that second", self._spent - LINES_S)
            self._second, self._spent = second, 0
        self._spent += 1
        return self._spent <= LINES_S

    def failure(self, job: Job, error: BaseException, outcome: object) -> None:
        """Tell of a run that failed, and what becomes of the job; nothing is worked out for a line that will not be written."""
        if not isinstance(outcome, TOLD) or not self._may_say():
            return
        if isinstance(outcome, Dead):
            log.warning("job %s (%s) is dead after attempt %d: %s", job.id, job.type.decode(), job.attempt, outcome)
        else:
            text = "job %s (%s) failed attempt %d, again in %.1f s: %s"
            log.warning(text, job.id, job.type.decode(), job.attempt, outcome.delay_s, outcome)

    def store_away(self, error: StoreAway, failures: int) -> None:
        """Tell of an outage: one line when it is one, then one every few minutes."""
        if failures == FIRST_TOLD or (failures > FIRST_TOLD and failures % TOLD_AGAIN == 0):
            log.error("the store is away, jobs wait and leases stay in mind; trying on: %s", error)

    def store_back(self, failures: int) -> None:
        """Tell of the end of an outage that was told of."""
        if failures >= FIRST_TOLD:
            log.warning("the store is back, after %d failed tries", failures)
