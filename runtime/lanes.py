"""Lanes run jobs one after another: the hot path. From an Inbox into a Ledger, without Redis.

Per job: one coroutine and its arguments; no task, timer, timeout object or lock. Cutting a lane's job is told from stopping
the lane by counting cancels. `interrupt` fires only while the handler runs, since before Python 3.13 `uncancel` does not clear
a pending cancel.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable
from typing import Any

from runtime.errors import NotStarted, SelfCancelled
from runtime.events import Tally
from runtime.jobs import BEGINS, DONE, Job, Outcome, Registry
from runtime.settle import Ledger, decide

NEVER = float("inf")
RECUT_S = 5.0  # a handler that swallows its cancel hears it again
FIRST_WAKE = 8
END_THE_PROCESS = (KeyboardInterrupt, GeneratorExit)
# Jobs started in one turn of the loop, by all lanes together: so that flush and fetch go on beside handlers that never suspend.
# Without it a whole fetch ran in one turn, and worker and server waited for each other.
BREATH = 256


class Inbox:
    """Owns the jobs that are fetched and not started, and the lanes that wait for one."""

    def __init__(self, on_idle: Callable[[], None] = lambda: None) -> None:
        self.jobs: deque[Job] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.on_idle = on_idle
        self._breath = BREATH
        self._is_winded = False

    def __repr__(self) -> str:
        return f"<Inbox {len(self.jobs)} jobs, {len(self._waiting)} lanes wait>"

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def idle(self) -> int:
        """How many lanes wait for a job."""
        return len(self._waiting)

    def put(self, jobs: list[Job]) -> None:
        """Add jobs and wake lanes for them."""
        self.jobs.extend(jobs)
        self._wake(FIRST_WAKE)

    def _wake(self, lanes: int) -> None:
        """Wake a few lanes, and twice as many in the next turn of the loop if jobs are left then.

        Handlers that never suspend need a lane per BREATH jobs, and waking one lane per job would be a sixth of their time.
        """
        if not self._breath:
            self._call_for_breath()
            return
        lanes = min(lanes, len(self.jobs), len(self._waiting), self._breath)
        for _ in range(lanes):
            turn = self._waiting.popleft()
            if not turn.done():  # a lane that was stopped this very moment
                turn.set_result(None)
        if lanes and self._waiting:
            asyncio.get_running_loop().call_soon(self._wake, 2 * lanes)

    def _call_for_breath(self) -> None:
        if not self._is_winded:
            self._is_winded = True
            asyncio.get_running_loop().call_soon(self._breathe)

    def _breathe(self) -> None:
        self._is_winded, self._breath = False, BREATH
        self._wake(FIRST_WAKE)

    def take(self) -> Job | None:
        """Give a job at once; None when there is none, or when it is time to let the loop breathe."""
        if self.jobs and self._breath:
            self._breath -= 1
            return self.jobs.popleft()
        return None

    async def wait(self) -> Job:
        """Give a job after the loop had a turn, whenever there is one."""
        while True:
            await self._join_the_waiting()
            job = self.take()
            if job is not None:
                return job

    def clear(self) -> list[Job]:
        """Take out all jobs that have not started."""
        jobs = list(self.jobs)
        self.jobs.clear()
        return jobs

    def remove(self, job: Job) -> bool:
        """Take one job out, if it has not started."""
        try:
            self.jobs.remove(job)  # compares by identity
        except ValueError:
            return False
        return True

    async def _join_the_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if self.jobs:
            self._call_for_breath()
        else:
            self.on_idle()
        try:
            await turn
        except CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            raise


class Lane:
    """Owns the one job it runs. `job` is None between jobs; a lane that a stop has cut off keeps it, to be released."""

    def __init__(
        self,
        inbox: Inbox,
        ledger: Ledger,
        tally: Tally,
        registry: Registry,
        clock: Callable[[], float],
        dice: Callable[[], float],
        on_failure: Callable[[Job, BaseException, object], None] = lambda job, error, outcome: None,
    ) -> None:
        self.inbox = inbox
        self.ledger = ledger
        self.tally = tally
        self.registry = registry
        self.clock = clock
        self.dice = dice
        self.on_failure = on_failure
        self.job: Job | None = None
        self.started_s = 0.0
        self.timeout_s = NEVER
        self.deadline_s = NEVER
        self.cut: BaseException | None = None
        self.cuts = 0
        self.task: asyncio.Task[Any] | None = None

    def __repr__(self) -> str:
        job = self.job
        return f"<Lane runs {job.type.decode(errors='replace')} {job.id}>" if job else "<Lane idle>"

    async def run(self) -> None:
        """Run jobs from the inbox one after another; end only when told to stop."""
        self.task = task = _this_task()
        BEGINS.set(self.begin)
        inbox, ledger, tally, registry, clock = self.inbox, self.ledger, self.tally, self.registry, self.clock
        now_s = clock()
        while not task.cancelling():  # a handler may swallow our cancel: leave all the same
            job = inbox.take()
            if job is None:
                job = await inbox.wait()
                now_s = clock()
            handler = registry[job.type]  # cannot miss: admit saw to it
            self.job = job
            self.timeout_s = handler.timeout_s
            self.started_s = now_s
            self.deadline_s = now_s + handler.timeout_s
            error: BaseException | None = None
            try:
                await handler.run(handler.decode(job), job)
            except BaseException as raised:  # the one place; SystemExit, and the panics of native libraries, are no Exception
                error = self._error_of(raised, task)
            self.deadline_s = NEVER  # from here nobody may interrupt this lane
            if self.cuts:
                self._heal(task)
            now_s = clock()  # the next job's start as well, when it is at hand
            outcome: Outcome = DONE
            if error is not None:
                if task.cancelling():
                    return  # debris of a stop, not a failure: released with the rest
                outcome = decide(handler, job, error, self.dice)
                self.on_failure(job, error, outcome)
            ledger.add(job, outcome)
            tally.ran(job, outcome, now_s - self.started_s)
            self.job = None

    def _error_of(self, raised: BaseException, task: asyncio.Task[Any]) -> BaseException:
        """Give what a run failed of; what ends the lane gets through: a stop leaves the job its lease until it is released."""
        if isinstance(raised, CancelledError):
            if task.cancelling() > self.cuts:
                self.deadline_s = NEVER
                raise raised
            return self.cut or SelfCancelled("cancelled by something the handler awaited")
        if isinstance(raised, END_THE_PROCESS):
            raise raised
        return raised if isinstance(raised, NotStarted) else self.cut or raised

    def _heal(self, task: asyncio.Task[Any]) -> None:
        self.cut = None
        while self.cuts:
            self.cuts -= 1
            task.uncancel()

    def begin(self) -> None:
        """Count the time of the job from now on. A task that outlives its job may still call this: it finds no job."""
        if self.job is None:
            return
        self.started_s = started_s = self.clock()
        self.deadline_s = started_s + self.timeout_s

    def interrupt(self, why: BaseException) -> None:
        """End the job now running, not the lane; no effect between jobs. A job that swallows it is cut again after a while."""
        if self.deadline_s < NEVER and self.task is not None:
            self.cut = self.cut or why
            self.cuts += 1
            self.deadline_s = self.clock() + RECUT_S
            self.task.cancel()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a lane runs as a task")
    return task
