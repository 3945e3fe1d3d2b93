"""Calls users' hooks, guarded: whatever they do, no outcome changes and nothing waits for them.

`on_error` is called in the step that decides what becomes of a job: if the process dies before that is written, the job runs
again, and the hook hears of it again. `on_dead` is called when the letter is written: if the process dies between, or no answer
came to a write that was done, nobody is called. What waits to be called is bounded in bytes, and what runs by its number.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextvars import copy_context
from typing import Any, Final, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

from runtime.answers import finish
from runtime.errors import Dead, Retry
from runtime.hooks import DeadHook, Death, ErrorHook, Hook
from runtime.jobs import JOB, Job
from runtime.settle import copied, describe, forget_own_stack, frame_of
from runtime.worker.log import ThrottledLog

H = TypeVar("H", bound=Hook)

CALL_S: Final = 10.0  # a guess: longer than a chat or a tracker takes to answer; then it is cut
MAX_CALLS: Final = 10  # a guess: enough for a page of deaths a second, too few to disturb jobs or the one that is called
MAX_WAITING_BYTES: Final = 16 << 20  # a guess: thousands of deaths with their stacks
END_S: Final = 1.0  # for calls at a stop; a guess: a part of what it has after the grace
CUT_S: Final = 0.2  # for those that were cut then; a guess: a cancel takes a turn of the loop


class Hooks:
    """Owns the calls of `on_dead` that run and that wait."""

    def __init__(self, hooks: Sequence[Hook], log: ThrottledLog) -> None:
        self._on_error = _of(hooks, ErrorHook)
        self._on_dead = _of(hooks, DeadHook)
        self._log = log
        self._waiting: deque[tuple[DeadHook, Death]] = deque()
        self._waiting_bytes = 0
        self._calls: dict[asyncio.Task[None], str] = {}
        self._threads = CapacityLimiter(MAX_CALLS)

    def __repr__(self) -> str:
        return f"<Hooks: {len(self._calls)} calls run, {len(self._waiting)} wait>"

    # --- on_error ----------------------------------------------------------------------------------------------------------

    def failed(self, job: Job, error: BaseException, outcome: object) -> None:
        """Tell of a failed attempt: the log, and then whoever wants to hear of it. Raises nothing."""
        self._log.failure(job, error, outcome)
        if isinstance(outcome, Retry) or (isinstance(outcome, Dead) and outcome.is_failure):
            for hook in self._on_error:
                copy_context().run(self._tell, hook, job, error, outcome)

    def _tell(self, hook: ErrorHook, job: Job, error: BaseException, outcome: Retry | Dead) -> None:
        """Call one, in a context of its own: what it sets there is no job's."""
        JOB.set(job)
        try:
            hook.function(job, error, copied(outcome))
        except BaseException as raised:  # whatever they raise
            self._failed(hook, raised, job)
            if raised is not error:
                forget_own_stack(raised)

    def _failed(self, hook: Hook, raised: BaseException, about: Job | dict[str, object]) -> None:
        text, told = "hook %s has raised: %s (%s)", (hook.location, describe(raised), frame_of(raised))
        self._log.warn(text, *told, level=logging.ERROR, about=about)

    # --- on_dead -----------------------------------------------------------------------------------------------------------

    def died(self, deaths: Sequence[Death]) -> None:
        """Have each of these told, soon. Awaits nothing."""
        for death in deaths:
            for hook in self._on_dead:
                if self._waiting_bytes + death.size_bytes > MAX_WAITING_BYTES:
                    text = "hook %s does not hear of the death of job %s: what it is to hear of waits, and takes %d MB"
                    told = (hook.location, death.job_id, MAX_WAITING_BYTES >> 20)
                    self._log.warn(text, *told, level=logging.ERROR, about=_fields(death))
                    continue
                self._waiting.append((hook, death))
                self._waiting_bytes += death.size_bytes
        self._call_next()

    def _call_next(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._calls) < MAX_CALLS:
            hook, death = self._waiting.popleft()
            self._waiting_bytes -= death.size_bytes
            # Not by the loop, whose factory of tasks may be a handler's.
            task = asyncio.Task(self._call(hook, death), loop=loop, name=f"on_dead {hook.location}")
            self._calls[task] = hook.location
            timer = loop.call_later(CALL_S, self._cut, task, hook, death)
            task.add_done_callback(functools.partial(self._ended, timer))

    def _ended(self, timer: asyncio.TimerHandle, task: asyncio.Task[None]) -> None:
        timer.cancel()
        self._calls.pop(task, None)
        if not task.cancelled():
            task.exception()  # none but GeneratorExit, where the loop is gone
        self._call_next()

    def _cut(self, task: asyncio.Task[None], hook: DeadHook, death: Death) -> None:
        """End a call that takes too long. One that swallows that, or is in a thread, keeps its place until it ends."""
        goes_on = "it is cut" if hook.is_async else "it goes on in its thread"
        text = "hook %s takes longer than %.0f s to hear of the death of job %s: %s"
        self._log.warn(text, hook.location, CALL_S, death.job_id, goes_on, level=logging.ERROR, about=_fields(death))
        if hook.is_async:
            task.cancel()

    async def _call(self, hook: DeadHook, death: Death) -> None:
        try:
            if hook.is_async:
                answer = hook.function(death)
            else:
                call = functools.partial(_answer, hook, death)
                answer, raised = await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
                if raised is not None:
                    self._failed(hook, raised, _fields(death))
            await finish(answer)
        except (GeneratorExit, asyncio.CancelledError):  # the loop is gone, or the call is cut
            raise
        except BaseException as error:  # whatever they raise
            self._failed(hook, error, _fields(death))

    async def end(self, within_s: float = END_S) -> None:
        """Let what runs and waits come to its end; what does not in this time is given up, and counted. May be repeated."""
        end_s = time.monotonic() + within_s
        while self._calls and (left_s := end_s - time.monotonic()) > 0:
            await asyncio.wait(list(self._calls), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        left = len(self._calls) + len(self._waiting)
        if not left:
            return
        self._log.warn("%d calls of on_dead hooks are given up at the stop: %s", left, ", ".join({*self._calls.values()}))
        self._waiting.clear()
        self._waiting_bytes = 0
        calls = list(self._calls)
        for task in calls:
            task.cancel()
        await asyncio.wait(calls, timeout=CUT_S)


def _of(hooks: Sequence[Hook], kind: type[H]) -> list[H]:
    return [hook for hook in hooks if isinstance(hook, kind)]


def _answer(hook: DeadHook, death: Death) -> tuple[object, BaseException | None]:
    """Call a plain function, in a thread. What it raises is returned: it may be what no future takes."""
    try:
        return hook.function(death), None
    except BaseException as error:  # whatever they raise
        return None, error


def _fields(death: Death) -> dict[str, Any]:
    return {"job_id": death.job_id, "job_type": death.type, "job_attempt": death.attempts}
