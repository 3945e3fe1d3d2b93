"""The loop monitor: watches the worker's event loop from the heartbeat's thread, and names who blocks it.

A tick of the loop, due each TICK_S, is a sign of life. One that comes late is counted on the loop, which alone knows how late it
came in the end; who holds the loop meanwhile, the monitor sees from its thread. So a block may be over before it was seen. It is
a handler's only if one job was seen each time; what may be another's doing is counted without a name.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import msgspec

from runtime import logs
from runtime.jobs import Job, Registry
from runtime.stats import Stats
from runtime.worker.lanes import Lane

log: Final = logs.guarded("runtime.loop_monitor")

TICK_S: Final = 0.05  # a guess: between two signs of life of the loop; twenty a second cost an idle worker nothing that shows
WATCH_S: Final = 0.1  # a guess: between two looks at it at most: each wakes a thread, which an idle worker pays for
FIRST_PART: Final = 1 / 2  # of what counts as blocked: then the first look is taken, so that a second one can tell the same
NEXT_PART: Final = 1 / 4  # of it: between two looks at a loop that stands still; who held it for so long can have held all of it
BUSY_PART: Final = 1 / 2  # a guess: a thread or process that had less of a core than this was not what computed
QUIET_S: Final = 5.0  # a guess: one report of a blocked loop in this time, but for one that is twice as long
STALL_TOLD_S: Final = 1.0  # a guess: a process that stands still for less, on a busy machine, is not worth a line
MOST_FRAMES: Final = 30  # of a stack in a report; a guess: a handler's own calls, down to a library's
MOST_CHARS: Final = 4000  # of it; a guess: half of what a dead letter has
MOST_PLACE_CHARS: Final = 100  # of a file and a line in a worker's row; a guess


class Cpu(msgspec.Struct, frozen=True):
    """Seconds of a core that were used up to a moment: by the loop's thread, and by all threads of the process."""

    at_s: float
    loop_s: float
    all_s: float


def cpu_of(thread_id: int) -> Callable[[float], Cpu]:
    """Return a function that reads both for a moment. Where the system has no clock of a thread, that of the process serves."""
    clock: int | None = None
    if hasattr(time, "pthread_getcpuclockid"):
        clock = time.pthread_getcpuclockid(thread_id)

    def read(at_s: float) -> Cpu:
        all_s = time.process_time()
        try:
            return Cpu(at_s, all_s if clock is None else time.clock_gettime(clock), all_s)
        except OSError:  # the thread has ended
            return Cpu(at_s, 0.0, all_s)

    return read


class Garbage:
    """Owns how long the collection of garbage has held the interpreter, whoever's code it interrupted. For `gc.callbacks`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total_s = 0.0
        self._since_s = 0.0

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        """Take note of the start or the end of a collection, in the thread that does it."""
        if phase == "start":
            self._since_s = self._clock()
        elif self._since_s:
            self._total_s, self._since_s = self._total_s + self._clock() - self._since_s, 0.0

    def so_far_s(self, now_s: float) -> float:
        """Return the sum, with what is under way."""
        since_s = self._since_s
        return self._total_s + (now_s - since_s if since_s else 0.0)


class Holder(msgspec.Struct):
    """Who was seen to hold the loop after the tick at `moved_s`, since when, and what of the processor was used by then.

    `is_sole` while each look saw the same. `is_known` once that is certain: then `job` has blocked the loop, and stood `where`.
    """

    moved_s: float
    lane: Lane | None
    job: Job | None
    since: Cpu
    is_sole: bool = True
    is_known: bool = False
    is_told: bool = False
    where: str = ""


class LoopState:
    """What the loop and its monitor know of each other. `tick` is called on the loop, all else is the monitor's to write.

    `moved_s` is when the loop last gave a sign of life; `running` returns the lane whose code holds it at this moment; for longer
    than `warn_s` it may not be held.
    """

    def __init__(
        self,
        moved_s: float,
        thread_id: int,
        running: Callable[[], Lane | None] = lambda: None,
        stats: Stats | None = None,
        warn_s: float = 0.1,
        cpu: Callable[[float], Cpu] | None = None,
    ) -> None:
        self.moved_s: float = moved_s
        self.thread_id = thread_id
        self.running = running
        self.stats: Stats = stats or Stats()
        self.warn_s = warn_s
        self.cpu: Callable[[float], Cpu] = cpu or cpu_of(thread_id)
        self.garbage: Garbage = Garbage()
        self.stalled_s: float = 0.0  # in all, as far as the monitor has seen it
        self.looked: Cpu = self.cpu(moved_s)
        self.holder: Holder | None = None
        self._excused_s = 0.0
        self._garbage_s = 0.0
        self._told_s = 0.0

    def excused_s(self, now_s: float) -> float:
        """Return for how long since the last tick garbage was collected, or the process stood still: no handler's doing."""
        return self.garbage.so_far_s(now_s) + self.stalled_s - self._excused_s

    def tick(self, now_s: float) -> None:
        """Give a sign of life, and count how late it comes. Where that is very late, count what has blocked the loop."""
        before_s, self.moved_s = self.moved_s, now_s
        late_s = max(0.0, now_s - before_s - TICK_S)
        self.stats.lag.add(now_s, late_s)
        excused_s, garbage_s = self.excused_s(now_s), self.garbage.so_far_s(now_s)
        collected_s = garbage_s - self._garbage_s
        self._excused_s, self._garbage_s = garbage_s + self.stalled_s, garbage_s
        if late_s <= self.warn_s:
            return
        if collected_s > self.warn_s:
            self.stats.stalls["gc"].add(collected_s)
        blocked_s = late_s - excused_s - self._unseen_s(now_s)
        if blocked_s > self.warn_s:
            self._count(before_s, now_s, blocked_s)

    def _unseen_s(self, now_s: float) -> float:
        """Return for how long the process stood still, if the loop goes on before the monitor, which will count it."""
        looked = self.looked
        gone_s = now_s - looked.at_s - WATCH_S
        return gone_s if gone_s > 0 and self.cpu(now_s).all_s - looked.all_s < BUSY_PART * gone_s else 0.0

    def _count(self, before_s: float, now_s: float, blocked_s: float) -> None:
        held = self.holder
        if held is None or held.moved_s != before_s:
            held = Holder(before_s, None, None, self.looked)  # it was over before it was seen
        self.stats.blocked_by(held.job.type if held.is_known and held.job is not None else b"", blocked_s, held.where)
        if not held.is_known and not held.is_told and now_s - self._told_s > QUIET_S:
            self._told_s = now_s
            log.warning("the event loop was blocked for %.0f ms; that was over before it was clear by what", blocked_s * 1000)
        if held.lane is not None and held.lane.job is not held.job:
            held.lane.blocked = None  # it was read at the job's end
        self.holder = None


class LoopMonitor:
    """Owns what was reported of the loop, and says whether it counts as dead."""

    def __init__(self, loop_state: LoopState, max_block_s: float, registry: Registry | None = None) -> None:
        self._loop_state = loop_state
        self._max_block_s = max_block_s
        self._registry: Registry = registry or {}
        self._warn_s = loop_state.warn_s
        self._reported_s = self._told_s = 0.0
        self._next_s = self._warn_s
        self._is_dumped = False

    @property
    def is_dead(self) -> bool:
        """Whether the loop has not moved for longer than it may: then nothing is renewed for it any more."""
        return time.monotonic() - self._loop_state.moved_s > self._max_block_s

    async def run(self, stopping: threading.Event) -> None:
        """Look at the loop until told to stop."""
        while not stopping.is_set():
            now_s = time.monotonic()
            due_s = now_s + self.wait_s(now_s)
            await asyncio.sleep(due_s - now_s)
            now_s = time.monotonic()
            self.look(now_s, max(0.0, now_s - due_s))

    def wait_s(self, now_s: float) -> float:
        """Return in how many seconds the loop is to be looked at: when its next tick would be so late that somebody holds it."""
        first_s = self._loop_state.moved_s + TICK_S + FIRST_PART * self._warn_s - now_s
        return min(WATCH_S, max(first_s, NEXT_PART * self._warn_s))

    def look(self, now_s: float, late_s: float = 0.0) -> None:
        """Note who holds a loop that stands still, and report it, at each doubling of the time; with all stacks when it counts as
        dead. `late_s` says how much later than it should this look comes.
        """
        state = self._loop_state
        moved_s = state.moved_s
        before, cpu = state.looked, state.cpu(now_s)
        if late_s > FIRST_PART * self._warn_s and cpu.all_s - before.all_s < BUSY_PART * late_s:
            self._stalled(late_s)
        state.looked = cpu
        still_s = now_s - moved_s - TICK_S
        if still_s < FIRST_PART * self._warn_s:
            self._next_s, self._is_dumped = self._warn_s, False
            return
        held_s = still_s - state.excused_s(now_s)
        if state.moved_s == moved_s and held_s >= FIRST_PART * self._warn_s:
            self._note(moved_s, before, cpu, late_s)
            self._report_if_due(now_s, held_s)
        if still_s > self._max_block_s and not self._is_dumped:
            self._is_dumped = True
            log.critical("the loop has not moved for %.0f s: the heartbeat falls silent\n%s", still_s, stacks())

    def _stalled(self, late_s: float) -> None:
        """Count that this thread came late, and nothing was computed meanwhile: the process was stopped, or had no processor."""
        state = self._loop_state
        state.stalled_s += late_s
        if late_s > self._warn_s:
            state.stats.stalls["process"].add(late_s)
        if late_s > STALL_TOLD_S:
            why = "it was stopped, had no processor, or waited in a library that keeps Python's lock"
            log.warning("the process stood still for %.1f s: %s", late_s, why)

    def _note(self, moved_s: float, before: Cpu, cpu: Cpu, late_s: float) -> None:
        """Note who holds the loop. What it takes to blame a job for it:

        - each look since the last tick has seen it, for a while, so that no other can have held the loop for most of the time;
        - its thread computed, or waited while no other did: beside threads that compute, it may just wait for Python's lock.

        A look that comes late, while the loop's thread computed all along, saw the end of one call that kept Python's lock.
        """
        state = self._loop_state
        lane = state.running()
        job = lane.job if lane is not None else None
        held = state.holder
        if held is None or held.moved_s != moved_s:
            has_kept_lock = late_s > 0 and cpu.loop_s - before.loop_s - (cpu.at_s - late_s - before.at_s) > BUSY_PART * late_s
            since = Cpu(cpu.at_s - late_s, before.loop_s, before.all_s) if has_kept_lock else cpu
            held = state.holder = Holder(moved_s, lane, job, since)
        elif held.lane is not lane or held.job is not job:
            held.is_sole = held.is_known = False
            held.lane, held.job, held.where = lane, job, ""
        if held.is_sole and job is not None:
            span_s = cpu.at_s - held.since.at_s
            loop_s, all_s = cpu.loop_s - held.since.loop_s, cpu.all_s - held.since.all_s
            has_held = loop_s >= BUSY_PART * span_s or all_s - loop_s < BUSY_PART * span_s
            held.is_known = has_held and span_s >= NEXT_PART * self._warn_s
            if held.is_known and not held.where:
                frame = _frames().get(state.thread_id)
                held.where = "" if frame is None or state.moved_s != moved_s else line_of(frame)

    def _report_if_due(self, now_s: float, still_s: float) -> None:
        held = self._loop_state.holder
        if held is None or still_s < self._warn_s:
            return
        if held.is_known and held.lane is not None and held.job is not None:
            held.lane.blocked = (held.job, still_s * 1000)
        is_clear = held.is_known or held.job is None or not held.is_sole or still_s >= 2 * self._warn_s
        is_news = now_s - self._reported_s > QUIET_S or still_s >= 2 * self._told_s
        if is_clear and still_s >= self._next_s and is_news:
            self._name_the_blocker(held, still_s)
            held.is_told = True
            self._reported_s, self._told_s, self._next_s = now_s, still_s, max(2 * still_s, 10 * self._warn_s)

    def _name_the_blocker(self, held: Holder, still_s: float) -> None:
        frame = _frames().get(self._loop_state.thread_id)
        where, stack = (location_of(frame), stack_of(frame)) if frame is not None else ("unknown place", "")
        job = held.job
        extra: dict[str, object] = {"stack": stack}
        if held.is_known and job is not None:
            handler = self._registry.get(job.type)
            called = f", {handler.location}" if handler is not None else ""
            who = f"by the handler of {job.type.decode(errors='replace')}{called} (job {job.id})"
            extra |= logs.job_fields(job)
        elif held.is_sole and job is None:
            who = "by code outside of handlers"
        else:
            who = "by several handlers in turn, or by threads that compute; it stands"
        log.log(logging.WARNING, "the event loop is blocked for %.0f ms %s at %s", still_s * 1000, who, where, extra=extra)


_LANE: Final[CodeType] = Lane.run.__code__


def _frames() -> dict[int, FrameType]:
    return sys._current_frames()  # pyright: ignore[reportPrivateUsage] -- the only way to see another thread's stack


def _walk(frame: FrameType, end: CodeType | None = None) -> list[tuple[FrameType, int]]:
    """Return the frames of a thread, the innermost first, up to that of this code: at most MOST_FRAMES.

    All at once, before their lines are read from disk: meanwhile that thread goes on, and CPython 3.11 may crash where a frame is
    asked for the one that called it, which has returned.
    """
    found: list[tuple[FrameType, int]] = []
    step: FrameType | None = frame
    while step is not None and step.f_code is not end and len(found) < MOST_FRAMES:
        found.append((step, step.f_lineno))
        step = step.f_back
    return found


def _summary(walked: list[tuple[FrameType, int]]) -> traceback.StackSummary:
    return traceback.StackSummary.extract(iter(reversed(walked)))


def stack_of(frame: FrameType) -> str:
    """Return the stack of a thread as Python prints it, the innermost last: of a job its own part, cut to what a report has."""
    return "".join(_summary(_walk(frame, _LANE)).format())[-MOST_CHARS:]


def location_of(frame: FrameType) -> str:
    """Return file, line and function where a thread stands; beside a library's innermost line also the one that called it."""
    inner = _summary(_walk(frame))
    last = inner[-1]
    ours = next((at for at in reversed(inner) if not _is_library(at.filename)), last)
    text = f"{ours.filename}:{ours.lineno} in {ours.name}"
    return text if ours is last else f"{text}, now in {last.filename}:{last.lineno} {last.name}"


def line_of(frame: FrameType) -> str:
    """Return file and line where a thread stands, in code that is no library's where there is any: the file with its folder."""
    walked = [(step.f_code.co_filename, line) for step, line in _walk(frame, _LANE)]
    filename, line = next((at for at in walked if not _is_library(at[0])), walked[0] if walked else ("", 0))
    return f"{'/'.join(Path(filename).parts[-2:])}:{line}"[-MOST_PLACE_CHARS:]


def _is_library(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith((sys.base_prefix, "<frozen"))


def stacks() -> str:
    """Return the stacks of all threads, for the log."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    walked = {ident: _walk(frame) for ident, frame in _frames().items()}
    return "\n".join(f"thread {names.get(ident, ident)}:\n{''.join(_summary(some).format())}" for ident, some in walked.items())
