"""A lane runs jobs one after another, from the inbox into the ledger: the hot path, without Redis.

Per job: one coroutine and its arguments; no task, timer, timeout object or lock. A lane is a task as long as its jobs leave
nothing behind in it. What a job did leave, a cancel that was not taken back or a context variable, stays with the old task: the
lane runs on as a new one, in the context in which it began.
"""

from __future__ import annotations

import asyncio
import decimal
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextvars import Context, copy_context
from typing import Any, Final

from runtime.answers import finish, note_lost
from runtime.batches import ends_of, is_left
from runtime.errors import AllRan, Cancelled, Dead, LeaseLost, NotStarted, Retry, SelfCancelled, TimedOut
from runtime.jobs import CRITICAL, DONE, LANE, LANES, RELEASE, Extras, Gathered, Job, Kept, Outcome, Registry, each_of
from runtime.observer import LaneObserver, Observer
from runtime.settle import decide, describe, forget_stack, frame_of, has_word, line_of, module_of, told_as
from runtime.stats import Stats
from runtime.tries import Try
from runtime.worker.gathering import Gathering
from runtime.worker.ledger import Ledger

NEVER = float("inf")
RECUT_S = 5.0  # a guess: a handler that swallows its cancel is cancelled again after this time
FIRST_WAKE = 8  # lanes; twice as many in each turn of the loop while jobs are left: waking all at once cost a sixth of a no-op
# Jobs started in one turn of the loop, by all lanes together: so that flush and fetch go on beside handlers that never suspend.
# Without it a whole fetch ran in one turn, and worker and server waited for each other.
JOBS_PER_TURN = 256
# For so long at most; else 256 handlers that block for 20 ms each would hold the loop for 5 s. A guess: half of what the watchdog
# calls a blocked loop.
TURN_S: Final = 0.05
_NOT_BEGUN: Final = float("-inf")
# What may be the runtime's or the loop's doing, and is a handler's failure only at a second look.
_LOOKED_AT: Final = (GeneratorExit, CancelledError, NotStarted, LeaseLost, Cancelled)


class Inbox:
    """Owns the jobs that are fetched and not started, and the lanes that wait for one. `may_start` is asked with the time, once a
    turn of the loop and of each job that waited for a thread or a child: a process may have stood still since its jobs came.

    CRITICAL has a queue of its own: every lane looks there first, and a reserved one nowhere else. What is `gathering` is in no
    queue yet; a batch in a queue counts as one job, since one lane runs it.
    """

    def __init__(self, on_idle: Callable[[], None] = lambda: None, gathering: Gathering | None = None) -> None:
        self.critical: deque[Job] = deque()
        self.others: deque[Job] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._waiting_reserved: deque[asyncio.Future[None]] = deque()
        self.on_idle = on_idle
        self.gathering = gathering
        self._looks_at_s = NEVER  # then what gathers is looked at
        self.may_start: Callable[[float], bool] = lambda now_s: True
        self._turn = JOBS_PER_TURN
        self._turn_ends_s = _NOT_BEGUN  # known with the first job of a turn: it brings the time along
        self._is_winded = False

    def __repr__(self) -> str:
        return f"<Inbox {len(self)} jobs, {self.idle + self.idle_reserved} lanes wait>"

    def __len__(self) -> int:
        return len(self.critical) + len(self.others)

    @property
    def queues(self) -> tuple[Sequence[Job], ...]:
        """Where jobs wait for a lane, the oldest of each first; and the batches that gather."""
        return (self.critical, self.others) if self.gathering is None else (self.critical, self.others, self.gathering.open)

    @property
    def runs(self) -> list[Job]:
        """What lanes will run, in the order in which they take it; behind it the batches that gather."""
        queued = [*self.critical, *self.others]
        return queued if self.gathering is None else [*queued, *self.gathering.open]

    @property
    def jobs(self) -> list[Job]:
        """All jobs that have not started."""
        return self.runs if self.gathering is None else _each(self.runs)

    @property
    def idle(self) -> int:
        """How many lanes wait for a job of any priority."""
        return len(self._waiting)

    @property
    def idle_reserved(self) -> int:
        """How many reserved lanes wait for a job of CRITICAL."""
        return len(self._waiting_reserved)

    def put(self, jobs: list[Job]) -> None:
        """Add jobs and wake lanes for them."""
        if self.gathering is not None:
            jobs = self.gathering.add(jobs)
            self._await_due(self.gathering)
        self._queue(jobs)

    def _queue(self, jobs: list[Job]) -> None:
        others = [job for job in jobs if job.stream != CRITICAL]
        if len(others) != len(jobs):
            self.critical.extend([job for job in jobs if job.stream == CRITICAL])
        self.others.extend(others)
        self._wake(FIRST_WAKE)

    def _await_due(self, gathering: Gathering) -> None:
        """Have a timer for the first batch that is due: one for all of them, since most are full before."""
        due_s = gathering.due_s
        if due_s < self._looks_at_s:
            self._looks_at_s = due_s
            asyncio.get_running_loop().call_later(max(0.0, due_s - gathering.clock()), self._start_due, gathering)

    def _start_due(self, gathering: Gathering) -> None:
        self._looks_at_s = NEVER
        self._queue(gathering.take_due())
        self._await_due(gathering)

    def _wake(self, lanes: int) -> None:
        """Wake a few lanes, and twice as many in the next turn of the loop if jobs are left then.

        Handlers that never suspend need a lane per JOBS_PER_TURN jobs; waking one lane per job would be a sixth of their time.
        """
        if not self._turn:
            self._call_for_turn()
            return
        lanes = min(lanes, self._turn)
        # Reserved lanes first: what CRITICAL needs of the others, it takes from the other priorities.
        reserved = min(lanes, len(self.critical), len(self._waiting_reserved))
        others = min(lanes - reserved, len(self) - reserved, len(self._waiting))
        for waiting, number in ((self._waiting_reserved, reserved), (self._waiting, others)):
            for _ in range(number):
                turn = waiting.popleft()
                if not turn.done():  # a lane that was stopped this very moment
                    turn.set_result(None)
        if reserved + others and (self._waiting or (self._waiting_reserved and self.critical)):
            asyncio.get_running_loop().call_soon(self._wake, 2 * (reserved + others))

    def _call_for_turn(self) -> None:
        if not self._is_winded:
            self._is_winded = True
            asyncio.get_running_loop().call_soon(self._give_turn)

    def _give_turn(self) -> None:
        self._is_winded, self._turn, self._turn_ends_s = False, JOBS_PER_TURN, _NOT_BEGUN
        self._wake(FIRST_WAKE)

    def take(self, now_s: float) -> Job | None:
        """Return a job at once; None when there is none, or when it is time to let the loop breathe."""
        jobs = self.critical or self.others
        if jobs and self._turn:
            if now_s >= self._turn_ends_s and not self._begin_turn(now_s):
                return None
            self._turn -= 1
            return jobs.popleft()
        return None

    def spend(self, jobs: int) -> None:
        """Count so many jobs more in this turn of the loop: those that ran together with one that was taken."""
        self._turn = max(0, self._turn - jobs)

    def take_critical(self, now_s: float) -> Job | None:
        """Return a job of CRITICAL as `take` does."""
        return self.take(now_s) if self.critical else None

    def _begin_turn(self, now_s: float) -> bool:
        """Return whether this is the first job since the loop has breathed, and may start; else the turn is over."""
        if self._turn_ends_s != _NOT_BEGUN:
            self._turn = 0
            return False
        if not self.may_start(now_s):
            return False
        self._turn_ends_s = now_s + TURN_S
        return True

    def clear(self) -> list[Job]:
        """Take out all jobs that have not started."""
        jobs = self.jobs
        self.critical.clear()
        self.others.clear()
        if self.gathering is not None:
            self.gathering.clear()
        return jobs

    def remove_types(self, types: Collection[bytes]) -> list[Job]:
        """Take all jobs of these types out, and return them."""
        found: list[Job] = []
        for queue in (self.critical, self.others):
            found += [job for job in queue if job.type in types]
            kept = [job for job in queue if job.type not in types]
            queue.clear()
            queue.extend(kept)
        if self.gathering is None:
            return found
        return _each([*found, *self.gathering.take_types(types)])

    def remove(self, job: Job) -> bool:
        """Take one job out, if it has not started."""
        try:
            (self.critical if job.stream == CRITICAL else self.others).remove(job)  # compares by identity
        except ValueError:
            return self.gathering is not None and self._remove_from_batch(job, self.gathering)
        return True

    def _remove_from_batch(self, job: Job, gathering: Gathering) -> bool:
        batch = next((run for run in self.runs if isinstance(run, Gathered) and job in run.jobs), None)
        if batch is None:
            return False
        batch.jobs.remove(job)
        if not batch.jobs:
            gathering.drop(batch)
            for queue in (self.critical, self.others):
                if batch in queue:
                    queue.remove(batch)
        return True

    async def wait(self, is_reserved: bool = False) -> None:
        """Return after the loop had a turn, when there may be a job; another lane may have taken it meanwhile."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        waiting = self._waiting_reserved if is_reserved else self._waiting
        waiting.append(turn)
        if self.critical or (self.others and not is_reserved):
            self._call_for_turn()
        elif not self.others:
            self._turn_ends_s = _NOT_BEGUN  # what comes next comes in another turn
            self.on_idle()
        try:
            await turn
        except CancelledError:
            if turn in waiting:
                waiting.remove(turn)
            raise


def _each(runs: list[Job]) -> list[Job]:
    return [job for run in runs for job in each_of(run)]


def _open_task(coroutine: Coroutine[Any, Any, None], context: Context | None) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coroutine, context=context)


class Lane:
    """Owns the one job it runs. `job` is None between jobs; a lane that was stopped in the midst of one keeps it, to be released.

    `open_task` makes a task of a coroutine, in a context. `on_failure` hears of each run that failed; then `forget` lets go of
    what was raised: the same may be raised again by each job. One that `is_reserved` runs jobs of CRITICAL only. `watch` is what
    an observer has this lane watched by.
    """

    def __init__(
        self,
        inbox: Inbox,
        ledger: Ledger,
        stats: Stats,
        registry: Registry,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        on_failure: Callable[[Job, BaseException, object], None] = lambda job, error, outcome: None,
        open_task: Callable[[Coroutine[Any, Any, None], Context | None], asyncio.Task[Any]] = _open_task,
        forget: Callable[[BaseException], None] = forget_stack,
        is_reserved: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.inbox = inbox
        self.ledger = ledger
        self.stats = stats
        self.registry = registry
        self.clock = clock
        self.jitter = jitter
        self.on_failure = on_failure
        self.open_task = open_task
        self.forget = forget
        self.is_reserved = is_reserved
        self.observer = observer
        self.watch: LaneObserver | None = None
        self.job: Job | None = None
        self.started_s: float = 0.0
        self.timeout_s: float = NEVER
        self.deadline_s: float = NEVER
        self.cut: BaseException | None = None
        self.blocked: tuple[Job, float] | None = None  # by the loop's monitor: which job of this lane blocked it, for how many ms
        self.is_stopped: bool = False
        self.is_disturbed: bool = False  # by a cut or a stop: one look per job for both
        self.task: asyncio.Task[Any] | None = None
        self._origin: Context | None = None

    def __repr__(self) -> str:
        job = self.job
        return f"<Lane runs {job.type.decode(errors='replace')} {job.id}>" if job else "<Lane idle>"

    @property
    def is_open(self) -> bool:
        """Whether it runs jobs, or will."""
        return self.task is not None and not self.task.done()

    def start(self) -> None:
        """Begin to run, as a task."""
        LANES[id(self)] = self
        self._open(self.run(), None)

    def _open(self, coroutine: Coroutine[Any, Any, None], context: Context | None) -> None:
        """Begin a task, past the factory of tasks that a handler may have set: many know nothing of contexts."""
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        loop.set_task_factory(None)
        try:
            self.task = self.open_task(coroutine, context)
        finally:
            loop.set_task_factory(factory)

    def stop(self) -> None:
        """End the lane, and the job that runs, if it lets itself be ended; may be repeated."""
        self.is_stopped = self.is_disturbed = True
        self._tell_cut()
        if self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        """Run jobs from the inbox one after another; end only when told to stop, or to go on as another task."""
        self.task = task = _this_task()
        if self._origin is None:
            self._origin = copy_context()
        else:
            await asyncio.sleep(0)  # the task before this one comes to its end first, also where tasks are started eagerly
        LANE.set(self)
        watch, told_s = self._open_watch()
        decimals, first = _Decimals.of_this_task(), copy_context()
        inbox, ledger, stats, registry, clock = self.inbox, self.ledger, self.stats, self.registry, self.clock
        is_reserved, now_s = self.is_reserved, clock()
        error: BaseException | None = None
        while True:
            # Asked of the inbox for each job: in a fork of this process, `forks` has put something else in the place of `take`.
            job = inbox.take_critical(now_s) if is_reserved else inbox.take(now_s)
            while job is None:
                await inbox.wait(is_reserved)
                now_s = clock()
                job = inbox.take_critical(now_s) if is_reserved else inbox.take(now_s)
            handler = registry[job.type]  # cannot miss: admission has parked what is not here
            self.job, self.timeout_s = job, handler.timeout_s
            self.started_s, self.deadline_s = now_s, now_s + handler.timeout_s
            if job.is_traced and watch is not None:
                watch.begin(job)
            try:
                answer = await handler.run(handler.decode(job), job)
                if answer is not None:
                    note_lost(handler, await finish(answer))
                    answer = None
            except (
                BaseException
            ) as raised:  # the one place; KeyboardInterrupt, and the panics of native libraries, are no Exception
                error, answer = self._error_of(raised, task), None
            self.deadline_s = NEVER  # from here on `interrupt` has no effect
            now_s = clock()  # the next job's start as well, when it is at hand
            if error is None:
                run_s = now_s - self.started_s
                if (job.is_traced or run_s >= told_s) and watch is not None:
                    watch.ended(job, DONE, None, self.started_s, now_s)
                ledger.add(job, DONE)
                stats.ran(job, DONE, run_s)
            elif not self.settle(job, error, now_s):
                return  # debris of a stop, not a failure: released with the rest
            error = None  # a traceback that ends in this frame would hold itself, and all that its frames hold
            self.job = None
            try:
                # Contexts in which no variable was set share one root: that is seen at once, in 0.05 µs.
                is_as_first = (present := copy_context()) == first
                first = present
            except BaseException:  # values that are not the same are compared, and may raise anything
                is_as_first = False
            if not is_as_first or self.is_disturbed or task.cancelling() or (decimals is not None and decimals.is_changed):
                self._run_on(self._origin)
                return

    def _open_watch(self) -> tuple[LaneObserver | None, float]:
        """Return what watches this task, and from how many seconds on it is told of a run that nothing else is to be told of."""
        if self.observer is None:
            return None, NEVER
        self.watch = self.observer.open_lane(self)
        return self.watch, self.observer.told_s

    def settle(self, job: Job, error: BaseException, now_s: float) -> bool:
        """Decide what becomes of a job that failed, note it in the ledger, and tell of it; of a batch, of each job by itself.

        Return False where a stop has cut it: it is to be released, or what is left of a batch then.
        """
        if isinstance(job, Gathered):
            return self._settle_each(job, error, now_s)
        if self.is_stopped:
            if self.watch is not None and job.is_traced:
                self.watch.ended(job, RELEASE, None, self.started_s, now_s)
            return False
        self._note(job, decide(self.registry[job.type], job, error, self.jitter), error, now_s, now_s - self.started_s)
        self.forget(error)
        return True

    def _settle_each(self, batch: Gathered, error: BaseException, now_s: float) -> bool:
        is_cut_off = self.is_stopped and type(error) is not AllRan
        run_s = (now_s - self.started_s) / max(1, len(batch.jobs))  # its part: sums say for how long lanes were busy
        is_slow = self.observer is not None and now_s - self.started_s >= self.observer.told_s
        handler, ends = self.registry[batch.type], ends_of(batch, error, is_cut_off)
        self.inbox.spend(len(ends) - 1)
        for job, failed_of in ends:
            if failed_of is None and not (job.is_traced or is_slow):  # most
                self.ledger.add(job, DONE)
                self.stats.ran(job, DONE, run_s)
            else:
                self._note(job, decide(handler, job, failed_of, self.jitter), failed_of, now_s, run_s)
        for job, failed_of in ends:  # at the end: many have failed of the same
            if failed_of is not None:
                self.forget(failed_of)
            if job.extras is not None:
                self._close(job.extras)
        return not is_cut_off

    def _close(self, extras: Extras) -> None:
        """Take no further word on a job that has left, and let go of the one it has: a job is not seen by the garbage collector,
        and would keep the frames of an error, which hold the job, for ever.
        """
        error, extras.is_settled, extras.error = extras.error, True, None
        if error is not None:
            self.forget(error)

    def _note(self, job: Job, outcome: Outcome, error: BaseException | None, now_s: float, run_s: float) -> None:
        tried = b""
        if self.watch is not None:
            if job.is_traced and job is not self.job:  # one of many: its handler has seen no span of its own
                self.watch.begin(job)
            tried = self.watch.ended(job, outcome, error, self.started_s, now_s)
        if error is not None:
            self.on_failure(job, error, outcome)
        failed = None
        if error is not None and (isinstance(outcome, Retry) or (isinstance(outcome, Dead) and outcome.is_failure)):
            failed = self._failed(job, outcome, error, now_s, tried)
        self.ledger.add(job, outcome, tried, failed)
        self.stats.ran(job, outcome, run_s)

    def _failed(self, job: Job, outcome: Retry | Dead, error: BaseException, now_s: float, tried: bytes) -> Try:
        """Return the attempt that has ended so. Its start is by the server's clock, as the fetch told it."""
        ledger = self.ledger
        at_ms = job.fetched_ms + int((self.started_s - job.taken_s) * 1000)
        trace = (tried or job.trace)[3:35].decode(errors="replace")
        run_ms = int((now_s - self.started_s) * 1000)
        return Try(job.attempt, at_ms, run_ms, ledger.by, ledger.app, line_of(error, outcome), frame_of(error), trace)

    def _error_of(self, raised: BaseException, task: asyncio.Task[Any]) -> BaseException:
        """Return what a run failed of. Asks for nothing but types: the rest of what was raised is the user's own."""
        kind = type(raised)
        if kind is AllRan:
            return raised
        if self.cut is None and not issubclass(kind, _LOOKED_AT):  # most
            return raised
        if issubclass(kind, GeneratorExit) and not _is_running(task):
            raise raised  # the loop is gone, and with it all tasks: nothing may start here any more
        is_turned_away = issubclass(kind, NotStarted)
        if is_turned_away and module_of(raised).startswith("runtime."):
            return raised
        if self.cut is not None and not (type(self.cut) is TimedOut and has_word(raised)):
            told = self.cut
        elif issubclass(kind, CancelledError):
            own = describe(raised)
            why = "by itself, or by something that it awaited" if own == CancelledError.__name__ else own
            told = told_as(SelfCancelled(f"cancelled, but not by the runtime: {why}"), raised)
        elif is_turned_away or issubclass(
            kind, (LeaseLost, Cancelled)
        ):  # raised by a handler, its job would be kept, or run again, without end; or be dead as if people had cancelled it
            told = told_as(RuntimeError(f"the handler raised {describe(raised)}: that is the runtime's own word"), raised)
        else:
            return raised
        self.forget(raised)
        return told

    def _run_on(self, origin: Context) -> None:
        """Leave to the old task what the last job left in it, and go on as a new one."""
        self.cut = None
        if self.is_stopped:
            return
        self.is_disturbed = False
        coroutine = self.run()
        try:
            self._open(coroutine, origin.copy())
        except RuntimeError:  # the group of all tasks is about to end
            coroutine.close()

    def keep(self, result: Kept) -> None:
        """Have a result written before its job is: called by the run that answered it, in its last step."""
        self.ledger.keep(result)

    def begin(self) -> None:
        """Count the time of the job from now on. A task that outlives its job may still call this: it finds no job.

        Raises:
            NotStarted: nothing may start now: the process may have stood still while the job waited here.
        """
        if self.job is None:
            return
        self.started_s = started_s = self.clock()
        if not self.inbox.may_start(started_s):
            raise NotStarted("its lease may be another worker's by now")
        self.deadline_s = started_s + self.timeout_s

    def hear(self, job: Job) -> None:
        """Hear that a job has said something for the first time; called in any thread."""
        self.ledger.on_said(job)

    def interrupt(self, why: BaseException) -> None:
        """End the job now running, not the lane; no effect between jobs. A job that swallows it is cut again after a while."""
        if self.deadline_s < NEVER and self.task is not None:
            self.cut = self.cut or why
            self.is_disturbed = True
            self._tell_cut()
            self.deadline_s = self.clock() + RECUT_S
            self.task.cancel()

    def end(self, job: Job, why: BaseException) -> None:
        """End the job that runs here; one of many is told so, and settled by this, and the others go on, if any are left."""
        if job is not self.job:
            extras = job.noted()
            extras.is_cut, extras.cut = True, why
        if job is self.job or not any(map(is_left, each_of(self.job))):
            self.interrupt(why)

    def _tell_cut(self) -> None:
        """Let each job know that it is to end: a handler in a thread cannot be told otherwise."""
        for job in each_of(self.job):
            job.noted().is_cut = True


class _Decimals:
    """Owns the decimal context of one task: the one kind of value that jobs change in its place.

    Where one was made before the lanes began, at an import say, all tasks would share it. Where none was, the first job that
    reckons makes one, which is seen like any variable that is set.
    """

    def __init__(self) -> None:
        self._own = decimal.getcontext().copy()
        self._first = self._own.copy()
        decimal.setcontext(self._own)

    @classmethod
    def of_this_task(cls) -> _Decimals | None:
        """Return None where there is none yet."""
        return cls() if any(type(value) is decimal.Context for value in copy_context().values()) else None

    @property
    def is_changed(self) -> bool:
        """Return whether a job has set anything but the flags, which each operation sets."""
        own, first = self._own, self._first
        return not (
            own.prec == first.prec
            and own.rounding == first.rounding
            and own.traps == first.traps
            and (own.Emin, own.Emax, own.capitals, own.clamp) == (first.Emin, first.Emax, first.capitals, first.clamp)
        )


def _is_running(task: asyncio.Task[Any]) -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:
        return False


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a lane runs as a task")
    return task
