"""Errors by who must act, and the words a handler may raise to decide what becomes of its job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class JobsError(Exception):
    """Any error of this runtime that a caller may want to catch as one."""


# --- the store is away: wait and try again ---------------------------------------------------------------------------


class StoreUnavailable(JobsError):
    """Redis cannot be reached, or refuses for now (loading, read-only, disk full, …); nothing was lost."""


class StoreError(StoreUnavailable):
    """Redis answers, but with an error: it lives, and asking for less would not help."""


class QueueFull(StoreError):
    """Redis has reached its `maxmemory`: what was to be sent was not written."""


class PartlySent(StoreError):
    """Redis refused some of many messages, as where a key of another type stands in a stream's place.

    `sent` says what became of each one, in order: None was refused. What comes behind the last one was not sent.
    """

    def __init__(self, reason: str, sent: Sequence[Any] = ()) -> None:
        super().__init__(reason)
        self.sent = list(sent)


class NotDurable(JobsError):
    """Stored, but not confirmed in time as the send's durability asks; `sent` is what is stored.

    The job may run, and may be lost with the server's disk or at a failover. Sent again it is a second job, but for a `key`.
    """

    def __init__(self, reason: str, sent: Sequence[Any] = ()) -> None:
        super().__init__(reason)
        self.sent = list(sent)


# --- the message is bad: its producer must act ------------------------------------------------------------------------


class BadMessage(JobsError):
    """A message that can never run; `code` is its stable reason in the dead letters."""

    def __init__(self, reason: str, code: str = "unreadable") -> None:
        super().__init__(reason)
        self.code = code


class BadPayload(BadMessage):
    """A payload that does not fit its contract."""

    def __init__(self, reason: str, code: str = "bad-payload") -> None:
        super().__init__(reason, code)


class UnknownType(JobsError):
    """No handler or contract of that name is known here."""


# --- our own fault: the operator or the programmer must act -------------------------------------------------------------


class ConfigError(JobsError):
    """A setting, flag or handler module that cannot work; the text says what and how to fix it."""


# --- the words of a handler: raised by it, and outcomes themselves -------------------------------------------------------


class Retry(JobsError):
    """Run this job again after `delay_s` seconds; counts as a failed attempt."""

    def __init__(self, delay_s: float, reason: str = "") -> None:
        self.delay_s = float(delay_s)
        super().__init__(reason or f"retry in {delay_s:g} s")


class Snooze(JobsError):
    """Run this job again after `delay_s` seconds without counting an attempt (for 72 h in all)."""

    def __init__(self, delay_s: float, reason: str = "") -> None:
        self.delay_s = float(delay_s)
        super().__init__(reason or f"snooze for {delay_s:g} s")


class Dead(JobsError):
    """Put this job among the dead letters now; `code` is its reason there."""

    def __init__(self, reason: str, code: str = "handler", *, error: BaseException | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.error = error
        self.stack = ""  # what `decide` makes of it: plain text, since an exception would hold all that its frames hold
        self.is_failure = False


# --- why a running job was interrupted -----------------------------------------------------------------------------------


class TimedOut(JobsError):
    """The handler was still running at its deadline."""


class NotStarted(JobsError):
    """The job was cut while it waited for its turn to start: given back, no attempt burnt."""


class NoPlace(NotStarted):
    """It found no thread or child process in time: parked in the lot of its type, no attempt burnt."""


class LeaseLost(JobsError):
    """Another worker holds this job now; what this run still does cannot move it."""


class SelfCancelled(JobsError):
    """The handler was cancelled, but not by the runtime: it awaited something that somebody cancelled."""


# --- how else a run can fail -----------------------------------------------------------------------------------------------


class NeverRan(JobsError):
    """The handler returned something that has not run yet, and cannot be awaited."""


class ChildKilled(JobsError):
    """The child process of this job ended before the job did: a crash, a memory limit, or somebody's kill."""


class ChildFailed(JobsError):
    """The handler raised this in its child process; `stack` is the stack there."""

    def __init__(self, text: str, stack: str) -> None:
        super().__init__(text)
        self.stack = stack
