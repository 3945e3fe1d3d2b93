"""A few threads for long blocking work, which stop soon after their job is cancelled.

Such a handler is a coroutine function that waits for its thread, not a plain function: a thread cannot be cancelled, but a
coroutine is, by a stop, a lost lease and a deadline alike, and passes it on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from runtime import JobsError, Snooze

# A thread that computes holds the interpreter, and the loop waits. Measured (`bench/export_csv.py --at-once`, two CPUs): the
# loop's lag is 10 ms (p99) with one thread, 11 ms with two, 27 ms with three.
THREADS: Final = 2
WAITING_THREADS: Final = 8  # a guess: for work that waits for a database server or a tool; each may hold a connection
TAKE_S: Final = 20.0  # a guess: waiting for a thread must not use up the timeout of a job that has not begun
BUSY_S: Final = 5.0  # a guess: a job that found no thread comes back soon, since others end at any time

T = TypeVar("T")

_threads = ThreadPoolExecutor(THREADS, "handlers")
_waiting = ThreadPoolExecutor(WAITING_THREADS, "handlers-waiting")


class Stopped(JobsError):
    """The work was told to stop. Its coroutine was cancelled before, so that this reaches only the thread."""


class Stop:
    """Whether the job was cancelled: set by the loop, read by the thread between two pieces of work, each far below a second."""

    __slots__ = ("is_set",)

    def __init__(self) -> None:
        self.is_set = False

    def check(self) -> None:
        """Return if the work may go on.

        Raises:
            Stopped: the job was cancelled.
        """
        if self.is_set:
            raise Stopped


async def in_thread(work: Callable[[Stop], T], *, waits: bool = False) -> T:
    """Run the work in a thread and return its result; a cancel returns at once, and tells the thread to stop.

    Args:
        work: what to run; it looks at its `Stop` several times a second.
        waits: whether it mostly waits for another program, and computes little: of such work more runs at a time.

    Raises:
        Snooze: no thread was free for `TAKE_S`; no attempt is spent.
    """
    stop = Stop()
    threads, count = (_waiting, WAITING_THREADS) if waits else (_threads, THREADS)
    call = threads.submit(work, stop)
    future = asyncio.wrap_future(call)
    try:
        done, _ = await asyncio.wait([future], timeout=TAKE_S)
        if not done and call.cancel():  # it can be cancelled only before it has begun
            raise Snooze(BUSY_S, f"all {count} threads for long work are busy")
        return await future
    except asyncio.CancelledError:
        stop.is_set = True
        future.cancel()
        raise
