"""The loop monitor: watches the worker's event loop from the heartbeat's thread, and names who blocks it."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Final

import msgspec

from runtime import logs
from runtime.jobs import Job

log: Final = logs.guarded("runtime.loop_monitor")

TICK_S: Final = 0.05  # a guess: between two signs of life of the loop; twenty a second cost an idle worker nothing that shows
WATCH_S: Final = 0.1  # a guess: between two looks at it: each wakes a thread, which an idle worker pays for
BLOCKED_S: Final = 0.1  # a guess: a loop that stands still this long delays everybody's jobs
QUIET_S: Final = 5.0  # a guess: one report of a blocked loop in this time, except for each doubling of its length


class LoopState(msgspec.Struct):
    """What the monitor may look at in the loop's thread; written there, read here.

    `moved_s` is when the loop last gave a sign of life, `running` returns the job whose code holds it at this moment.
    """

    moved_s: float
    thread_id: int
    running: Callable[[], Job | None]


class LoopMonitor:
    """Owns what was reported of the loop, and says whether it counts as dead."""

    def __init__(self, loop_state: LoopState, max_block_s: float) -> None:
        self._loop_state = loop_state
        self._max_block_s = max_block_s
        self._reported_s = 0.0
        self._next_s = BLOCKED_S
        self._is_dumped = False

    @property
    def is_dead(self) -> bool:
        """Whether the loop has not moved for longer than it may: then nothing is renewed for it any more."""
        return time.monotonic() - self._loop_state.moved_s > self._max_block_s

    async def run(self, stopping: threading.Event) -> None:
        """Look at the loop until told to stop."""
        while not stopping.is_set():
            await asyncio.sleep(WATCH_S)
            self.look(time.monotonic())

    def look(self, now_s: float) -> None:
        """Report a loop that stands still: at once, then at each doubling of the time; with all stacks when it counts as dead."""
        still_s = now_s - self._loop_state.moved_s - TICK_S
        if still_s < BLOCKED_S:
            self._next_s = BLOCKED_S
            self._is_dumped = False
        elif still_s >= self._next_s and (now_s - self._reported_s > QUIET_S or still_s > 2 * BLOCKED_S):
            self._name_the_blocker(still_s)
            self._reported_s, self._next_s = now_s, max(2 * still_s, 10 * BLOCKED_S)
        if still_s > self._max_block_s and not self._is_dumped:
            self._is_dumped = True
            log.critical("the loop has not moved for %.0f s: the heartbeat falls silent\n%s", still_s, stacks())

    def _name_the_blocker(self, still_s: float) -> None:
        job = self._loop_state.running()
        frame = _frames().get(self._loop_state.thread_id)
        where = location_of(frame) if frame is not None else "unknown place"
        who = f"handler of {job.type.decode(errors='replace')} (job {job.id})" if job else "code outside of handlers"
        log.warning("the event loop is blocked for %.0f ms by the %s at %s", still_s * 1000, who, where)


def _frames() -> dict[int, FrameType]:
    return sys._current_frames()  # pyright: ignore[reportPrivateUsage] -- the only way to see another thread's stack


def location_of(frame: FrameType) -> str:
    """Return file, line and function where a thread stands; beside a library's innermost line also the one that called it."""
    inner = traceback.extract_stack(frame)
    last = inner[-1]
    ours = next((at for at in reversed(inner) if not _is_library(at.filename)), last)
    text = f"{ours.filename}:{ours.lineno} in {ours.name}"
    return text if ours is last else f"{text}, now in {last.filename}:{last.lineno} {last.name}"


def _is_library(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith((sys.base_prefix, "<frozen"))


def stacks() -> str:
    """Return the stacks of all threads, for the log."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in _frames().items()
    )
