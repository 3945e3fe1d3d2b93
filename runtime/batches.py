"""Batches run many jobs of a type by one call of a handler: payloads are read one by one, and each job is settled by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn, TypeAlias

from runtime.answers import finish
from runtime.errors import AllRan, Cancelled, ConfigError, LeaseLost, NotStarted
from runtime.jobs import BatchPolicy, Gathered, Job
from runtime.settle import describe, told_as

MAX_SIZE: Final = 1000  # a guess: a few milliseconds of decoding in one turn of the loop
MAX_WAIT_MS: Final = 500  # what waits here for a second is given back: half of that is left for a lane to become free
WAIT_MS: Final = 200  # a guess: nobody waits for what runs in bulk

_OURS: Final = (NotStarted, LeaseLost, Cancelled)

Read: TypeAlias = tuple[list[Any], list[Job]]


def policy_of(max_size: int | None, max_wait_ms: float | None) -> BatchPolicy | None:
    """Return how jobs gather; None where the handler takes one.

    Raises:
        ConfigError: a number is out of its range, or there is a wait without a size.
    """
    if max_size is None:
        if max_wait_ms is not None:
            raise ConfigError("max_wait_ms needs max_size: how many jobs a call gets at most")
        return None
    if type(max_size) is not int or not 1 <= max_size <= MAX_SIZE:
        raise ConfigError(f"max_size must be a whole number from 1 to {MAX_SIZE}, got {max_size!r}")
    wait_ms = WAIT_MS if max_wait_ms is None else max_wait_ms
    if not 0 <= wait_ms <= MAX_WAIT_MS:
        raise ConfigError(f"max_wait_ms must be from 0 to {MAX_WAIT_MS}, got {wait_ms:g}")
    return BatchPolicy(max_size, wait_ms / 1000)


def reading(decode: Callable[[Job], Any]) -> Callable[[Job], Any]:
    """Return a decoder that takes a batch as well: it returns the payloads that can be read with their jobs, and settles the
    others.
    """

    def read(job: Job) -> Any:
        if type(job) is not Gathered:
            return decode(job)
        payloads: list[Any] = []
        jobs: list[Job] = []
        for one in job.jobs:
            try:
                payload = decode(one)
            except BaseException as error:  # as of a job that runs alone: a panic in one payload is no failure of the others
                extras = one.noted()
                extras.is_settled, extras.error = True, error
            else:
                payloads.append(payload)
                jobs.append(one)
        return payloads, jobs

    return read


def spread(function: Callable[..., Any]) -> Callable[[Read, Job], Any]:
    """Return a function of what was read that calls this one with payloads and jobs."""
    return lambda read, gathered: function(*read)


def running(call: Callable[[Read, Job], Awaitable[object]]) -> Callable[[Read, Job], Awaitable[NoReturn]]:
    """Return what runs a batch that was read; `call` is not called where nothing of it can be. It ends by raising AllRan."""

    async def run(read: Read, gathered: Job) -> NoReturn:
        if read[1]:
            answer = await call(read, gathered)
            if answer is not None:
                await finish(answer)
        raise AllRan

    return run


def ends_of(batch: Gathered, raised: BaseException, is_cut_off: bool) -> list[tuple[Job, BaseException | None]]:
    """Return the jobs of a batch, each with what it failed of, None where it is done; `raised` is what the run has ended with.

    Where a stop has cut it, only those that were settled before; these leave the batch.
    """
    if not is_cut_off:
        return [(job, _error_of(job, raised)) for job in batch.jobs]
    # Each is asked once: a thread that goes on may settle it between two looks, and it would be in neither list.
    settled = {id(job): job for job in batch.jobs if _has_outcome(job)}
    batch.jobs = [job for job in batch.jobs if id(job) not in settled]
    return [(job, _error_of(job, raised)) for job in settled.values()]


def is_left(job: Job) -> bool:
    """Return whether a batch still has this job to do: it is neither settled, nor told to end."""
    return job.extras is None or not (job.extras.is_settled or job.extras.is_cut)


def _has_outcome(job: Job) -> bool:
    extras = job.extras
    return extras is not None and (extras.is_settled or extras.cut is not None)


def _error_of(job: Job, raised: BaseException) -> BaseException | None:
    """Return what a job of a batch failed of, where its handler has `raised` that; None for a job that is done.

    Asks for nothing but types: what a handler has settled a job with is the user's own.
    """
    extras = job.extras
    if extras is not None and extras.cut is not None:
        is_done = extras.is_settled and extras.error is None
        return None if is_done and type(extras.cut) is Cancelled else extras.cut
    if extras is None or not extras.is_settled:
        return None if type(raised) is AllRan else raised
    error = extras.error
    if error is not None and issubclass(type(error), _OURS):  # else its job would run again, without end
        return told_as(RuntimeError(f"the handler settled it with {describe(error)}: that is the runtime's own word"), error)
    return error
