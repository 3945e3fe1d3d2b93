"""Errors by who must act, and Retry, Snooze and Dead, which a handler raises to decide what becomes of its job."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, cast


class JobsError(Exception):
    """The base of all errors of this runtime."""


# --- the store does not answer or refuses: wait and try again --------------------------------------------------------


class StoreUnavailable(JobsError):
    """Redis cannot be reached, or refuses for now (loading, read-only, disk full, …); no job is lost by it."""


class StoreError(StoreUnavailable):
    """Redis answers, but with an error: it is alive, and asking for less would not help."""


class QueueFull(StoreError):
    """Redis has reached its `maxmemory`: what was to be sent was not written."""


class PartlySent(StoreError):
    """Redis refused some of many messages, as where a key of another type stands in a stream's place.

    `sent` has a `Sent` for each message in order, or None where it was refused. What comes behind the last one was not sent.
    """

    def __init__(self, reason: str, sent: Sequence[Any] = ()) -> None:
        super().__init__(reason)
        self.sent: list[Any] = list(sent)


class NotDurable(JobsError):
    """Stored, but not confirmed in time as the send's durability asks; `sent` has a `Sent` for each message.

    The job may run, and may be lost with the server's disk or at a failover. Sent again without a `key`, it is a second job.
    """

    def __init__(self, reason: str, sent: Sequence[Any] = ()) -> None:
        super().__init__(reason)
        self.sent: list[Any] = list(sent)


# --- the message is bad: its producer must act -----------------------------------------------------------------------


class BadMessage(JobsError):
    """A message that can never run; `code` is its reason in the dead letters, the same in every version."""

    def __init__(self, reason: str, code: str = "unreadable") -> None:
        super().__init__(reason)
        self.code = code


class BadPayload(BadMessage):
    """A payload that does not fit its contract."""

    def __init__(self, reason: str, code: str = "bad-payload") -> None:
        super().__init__(reason, code)


class UnfitPayload(BadPayload):
    """The payload of the very job that was to run: raised by its decoder alone. Any other BadPayload is a run that has failed."""


class UnknownType(JobsError):
    """No handler or contract of that name is known here."""


# --- a caller waits for what a job has answered -------------------------------------------------------------------------


class BadResult(JobsError):
    """A result that cannot be kept, or that is not of the type its reader asked for."""


class JobDead(JobsError):
    """The job that was waited for is a dead letter.

    Args:
        reason: the letter's reason, such as `attempts` or the code of a `Dead`.
        error: what it died of, as text.
        attempts: how often it ran.
    """

    def __init__(self, reason: str, error: str = "", attempts: int = 0) -> None:
        super().__init__(f"{reason}: {error}" if error else reason)
        self.reason = reason
        self.error = error
        self.attempts = attempts


class ResultTimeout(JobsError, TimeoutError):
    """No result in time; the text says what is known of the job now. It may still run, and be done."""


# --- the set-up is wrong: the operator or the programmer must act ----------------------------------------------------


class ConfigError(JobsError):
    """A setting, flag, contract or handler that cannot work; the text says what it must be."""


class LifespanFailed(JobsError):
    """A lifespan of the user's has raised: the worker does not start, or not go on."""


# --- raised by a handler, and outcomes themselves --------------------------------------------------------------------


class Decision(JobsError):
    """The base of Retry, Snooze and Dead, which a handler raises, and which are outcomes as well.

    Of an outcome, `asked` says that the handler has raised one of them; else its run has failed, or there was none.
    """

    asked: bool = False  # set by `decide`

    @cached_property  # a subclass may set it, or have one of its own
    def reason(self) -> str:
        """The text for people."""
        return str(self)


class Retry(Decision):
    """Raised by a handler: run this job again later; counts as a failed attempt.

    Args:
        delay_s: a number of seconds or a timedelta, in place of the handler's backoff; below 0 is 0, at most ten years. None for
            what the backoff says.
        reason: a text for the log.
        pause_type: nothing else of this type starts before then either, on any worker: for a dependency that says 429.

    Raises:
        TypeError: `delay_s` is no time to wait.
    """

    def __init__(self, delay_s: float | timedelta | None = None, reason: str = "", *, pause_type: bool = False) -> None:
        hint = "hint: Retry(reason=…) waits as the handler's backoff says"
        # None until `decide` has asked the backoff: each outcome has a number.
        self.delay_s: float = cast("float", None) if delay_s is None else _seconds(delay_s, "Retry", hint)
        self.pause_type = pause_type
        super().__init__(reason or ("retry" if delay_s is None else f"retry in {self.delay_s:g} s"))


class Snooze(Decision):
    """Raised by a handler: run this job again later without counting an attempt, for 72 hours in all.

    Args:
        delay_s: a number of seconds or a timedelta; below 0 is 0, at most ten years.
        reason: a text for the log.
        pause_type: nothing else of this type starts before then either, on any worker: for a dependency that says 429.

    Raises:
        TypeError: `delay_s` is no time to wait.
    """

    def __init__(self, delay_s: float | timedelta, reason: str = "", *, pause_type: bool = False) -> None:
        self.delay_s: float = _seconds(delay_s, "Snooze", "hint: Snooze(60, …) waits a minute")
        self.pause_type = pause_type
        super().__init__(reason or f"snooze for {self.delay_s:g} s")


class Dead(Decision):
    """Raised by a handler: no further attempt, this job is a dead letter now.

    Args:
        reason: a text for people, cut to 1,000 characters.
        code: what letters of the same kind have in common, such as `no-account`; cut to 64 characters.
        error: the exception behind it, whose stack the letter shows; without it, the stack of this one.
    """

    def __init__(self, reason: str, code: str = "handler", *, error: BaseException | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.error = error
        self.stack = ""  # set by `decide`: plain text, since an exception would hold all that its frames hold
        self.is_failure = False


def _seconds(delay_s: Any, name: str, hint: str) -> float:
    if isinstance(delay_s, timedelta):
        return delay_s.total_seconds()
    if not isinstance(delay_s, str | bytes | bool):  # which float() would take
        try:
            return float(delay_s)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(f"{name}: delay_s must be a number of seconds or a timedelta, got {delay_s!r:.80}; {hint}")


# --- why a running job was interrupted -------------------------------------------------------------------------------


class TimedOut(JobsError):
    """The handler was still running at its deadline."""


class NotStarted(JobsError):
    """The job was cut while it waited to start: given back, no attempt burnt."""


class NoPlace(NotStarted):
    """The job found no thread or child process in time: parked in the lot of its type, no attempt burnt."""


class LeaseLost(JobsError):
    """Another worker holds this job now; nothing that this run still does can settle it."""


class Cancelled(JobsError):
    """People have cancelled the job: it ends as a dead letter, whatever its handler raises on the way out."""


class SelfCancelled(JobsError):
    """The handler was cancelled, but not by the runtime: it awaited something that was cancelled."""


class AllRan(JobsError):
    """A handler of many jobs has returned: what it has not settled is done."""


# --- a handler asks for what cannot be ---------------------------------------------------------------------------------


class BadMarks(JobsError):
    """What a handler wants to leave for later attempts cannot be: too large, or neither bytes nor text."""


# --- how else a run can fail -----------------------------------------------------------------------------------------


class NeverRan(JobsError):
    """The handler returned something that has not run, and cannot be awaited."""


class ChildKilled(JobsError):
    """The child process of this job ended before the job did: a crash, a memory limit, or a kill from outside."""


class ChildFailed(JobsError):
    """The handler raised this in its child process; `stack` is the stack there, `name` the class of what was raised."""

    def __init__(self, text: str, stack: str, name: str = "") -> None:
        super().__init__(text)
        self.stack = stack
        self.name = name
