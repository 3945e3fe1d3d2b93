"""Long blocking work, in a few threads of its own, which stop soon after their job is cut.

Such a handler is a coroutine function that waits for its thread, not a plain function: a thread cannot be cut, but a coroutine is
told of a stop, a lost lease and a deadline alike, and passes it on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from runtime import JobsError, Snooze

# Each that computes keeps the loop waiting for the interpreter. Measured (`bench/export_csv.py --at-once`, two shared CPUs): the
# loop's lag is 10 ms (p99) with one thread, 11 ms with two, 27 ms with three.
THREADS: Final = 2
TAKE_S: Final = 20.0  # waiting for a thread must not use up the time of a job that has not begun
BUSY_S: Final = 5.0

T = TypeVar("T")

_threads = ThreadPoolExecutor(THREADS, "handlers")


class Stopped(JobsError):
    """The work was told to stop; its job is nobody's any more, and nobody sees this."""


class Stop:
    """Whether the job is cut: set by the loop, read by the thread between two pieces of work, each far shorter than a second."""

    __slots__ = ("is_set",)

    def __init__(self) -> None:
        self.is_set = False

    def check(self) -> None:
        """Return while the work may go on.

        Raises:
            Stopped: it must not.
        """
        if self.is_set:
            raise Stopped


async def in_thread(work: Callable[[Stop], T]) -> T:
    """Return what the work gives in its thread; a cancel returns at once, and tells the thread to stop.

    Raises:
        Snooze: no thread was free for a while; no attempt is burnt.
    """
    stop = Stop()
    call = _threads.submit(work, stop)
    future = asyncio.wrap_future(call)
    try:
        done, _ = await asyncio.wait([future], timeout=TAKE_S)
        if not done and call.cancel():  # which it only lets happen before it has begun
            raise Snooze(BUSY_S, f"all {THREADS} threads for long work are busy")
        return await future
    except asyncio.CancelledError:
        stop.is_set = True
        future.cancel()
        raise
