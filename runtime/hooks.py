"""Hooks are users' functions that hear of what goes wrong: of failed attempts, and of jobs that are dead letters."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from runtime.declared import check_call, check_takes, is_kind
from runtime.errors import ConfigError, Dead, Retry
from runtime.jobs import STREAMS, Job, Lease, Letter, Priority, default_id

DEATH_BYTES: Final = 500  # a guess: of a death, beside its texts


class Death(msgspec.Struct, frozen=True):
    """A job that is a dead letter now.

    Args:
        job_id: of a message that names none, and of one that cannot be read, `priority-entry`.
        type: empty where the message cannot be read.
        priority: the stream that it came from.
        attempts: how many of its attempts have failed, with the last one.
        reason: the code of the letter, such as `attempts`, `timeout`, `expired` or that of a `Dead`.
        error: what it died of, as text.
        stack: where that was raised, newest frame last; empty for a job that did not run.
    """

    job_id: str
    type: str
    priority: Priority
    attempts: int
    reason: str
    error: str
    stack: str

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return DEATH_BYTES + len(self.job_id) + len(self.type) + len(self.error) + len(self.stack)


def death_of(letter: Letter, type_name: bytes, job_id: str) -> Death:
    """Return a letter as hooks see it. A message that is no job has no type, and may name no id."""
    lease: Lease = letter.lease
    return Death(
        job_id or default_id(STREAMS[lease.stream], lease.entry.decode()),
        type_name.decode(errors="replace"),
        Priority(lease.stream + 1),
        letter.attempts,
        letter.code,
        letter.error,
        letter.stack,
    )


class Hook:
    """A function that was declared with `@on_error` or `@on_dead`; it can be called as before."""

    def __init__(self, function: Callable[..., object], where: str) -> None:
        self.function = function
        self.location = where

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.location}>"

    def __call__(self, *given: Any, **named: Any) -> object:
        return self.function(*given, **named)


class ErrorHook(Hook):
    """Hears of each attempt that failed."""


class DeadHook(Hook):
    """Hears of each dead letter."""

    @property
    def is_async(self) -> bool:
        """Whether it runs on the loop, and not in a thread."""
        return is_kind(self.function, inspect.iscoroutinefunction)


def on_error(function: Callable[[Job, BaseException, Retry | Dead], object]) -> ErrorHook:
    """Make a plain function `(job, error, outcome)` hear of each attempt that failed, at once, while the traceback is there.

    It holds the loop while it runs: it is for a client that sends in a thread of its own, or for a line in a log. `outcome` is
    what becomes of the job, a `Retry` with its `delay_s` or a `Dead` with its `code`; its `asked` says whether the handler
    has raised it. Nothing that the function does changes it. Snoozed jobs and those given back have not failed.

    Raises:
        ConfigError: the function takes other arguments, or is a coroutine function.
    """
    where = _where("on_error", function)
    check_call(function, where)
    if is_kind(function, inspect.iscoroutinefunction):
        raise ConfigError(f"{where}: must be a plain function, which is called at once; hint: @on_dead may be an `async def`")
    check_takes(function, where, "(job, error, outcome)", 3)
    return ErrorHook(function, where.partition(" ")[2])


def on_dead(function: Callable[[Death], Awaitable[object] | object]) -> DeadHook:
    """Make a function `(death)` hear of each job that this worker has made a dead letter, when that is written.

    An `async def` runs on the loop, a plain function in a thread; it has 10 s. At most once: a worker that is killed before
    calls nobody, nor does one that has more to tell than fits in 16 MB.

    Raises:
        ConfigError: the function takes other arguments.
    """
    where = _where("on_dead", function)
    check_call(function, where)
    check_takes(function, where, "(death)", 1)
    return DeadHook(function, where.partition(" ")[2])


def _where(what: str, function: object) -> str:
    if isinstance(function, Hook):
        raise ConfigError(f"{what} {function.location}: must be declared once; hint: declare two functions")
    name = getattr(function, "__qualname__", None)
    if not callable(function) or name is None:
        raise ConfigError(f"{what}: {function!r:.80} is not a function with a name; hint: wrap it in a def")
    return f"{what} {getattr(function, '__module__', '')}:{name}"
