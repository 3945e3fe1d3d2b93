"""Lanes: the table of handlers and interruptions, on asyncio and uvloop; the inbox; turns for others; counting.

Cut = `lane.interrupt`, which ends a job. Stop = `task.cancel`, which ends a lane. Whatever a handler does, a lane survives
cuts, ends on stops, never reports a stop as a failure, and runs its next job undisturbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import gc
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Context, DivisionByZero, getcontext
from itertools import starmap
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
import redis.asyncio
import uvloop

from runtime.backoff import Backoff
from runtime.errors import (
    Cancelled,
    Dead,
    LeaseLost,
    NeverRan,
    NoPlace,
    NotStarted,
    Retry,
    SelfCancelled,
    Snooze,
    TimedOut,
    UnfitPayload,
)
from runtime.jobs import CRITICAL, FREE, LANE, LOST, Handler, Job, Parking, contract, contract_of
from runtime.places import Places
from runtime.stats import BUCKETS, Stats
from runtime.tries import Try, pack_tries, read_tries
from runtime.worker.lanes import JOBS_PER_TURN, NEVER, RECUT_S, TURN_S, Inbox, Lane
from runtime.worker.ledger import Ledger
from tests.builders import job

Run = Callable[[Any, Job], Awaitable[object]]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def on_loop(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Return a function that runs a story on a loop of its own."""

    def run(story: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(story)

    return run


@contract("greet")
class Greet(msgspec.Struct):
    pass


def begin() -> None:
    """Do as work does that had to wait for a thread or a child."""
    lane = LANE.get()
    assert lane is not None
    lane.begin()


def handler(run: Run, decode: Callable[[Job], Any] = lambda job: None) -> Handler[Any]:
    return Handler(contract_of(Greet), run, decode, run, 30.0, Backoff(), "loop")


async def until(is_true: Callable[[], bool]) -> None:
    """Let the loop turn until a condition holds."""
    async with asyncio.timeout(60):
        while not is_true():
            await asyncio.sleep(0)


async def rest() -> None:
    """Let the loop turn so often that all which can happen without time has happened."""
    for _ in range(30):
        await asyncio.sleep(0)


@dataclass
class World:
    """One lane and all it touches. A handler hangs on `gate`, and says in `at` that it has begun."""

    clock_s: float = 1000.0
    at: list[str] = field(default_factory=list)
    failures: list[tuple[Job, BaseException, object]] = field(default_factory=list)
    handlers: dict[bytes, Handler[Any]] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    store: threading.Event = field(default_factory=threading.Event)
    inbox: Inbox = field(default_factory=Inbox)
    ledger: Ledger = field(default_factory=Ledger)
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        self.lane = self.another_lane()
        self.lane.start()

    @property
    def task(self) -> asyncio.Task[Any]:
        """The task as which the lane runs now."""
        assert self.lane.task is not None
        return self.lane.task

    def another_lane(self) -> Lane:
        return Lane(
            self.inbox, self.ledger, self.stats, self.handlers, lambda: self.clock_s, lambda: 0.5,
            lambda job, error, outcome: self.failures.append((job, error, outcome)),
        )  # fmt: skip

    def put(self, run: Run, name: str = "first", decode: Callable[[Job], Any] = lambda job: None) -> Job:
        """Put a job of this handler into the inbox."""
        self.handlers[name.encode()] = handler(run, decode)
        one = job(name)
        self.inbox.put([one])
        return one

    def done(self) -> list[Job]:
        """Return the jobs that are noted as done."""
        return [one for jobs in self.ledger._batch.done for one in jobs]

    def tries(self) -> list[list[Try]]:
        """Return what failed attempts leave on the jobs that are noted as retried, then on those that are dead."""
        batch = self.ledger._batch
        return [read_tries(move.tries) for move in (*batch.defer, *batch.dead)]

    async def hang(self) -> None:
        """Hang until the gate opens."""
        self.at.append("hanging")
        await self.gate.wait()

    async def end(self) -> None:
        """Let go of all that may still run."""
        self.gate.set()
        self.store.set()
        self.lane.stop()
        await asyncio.wait([self.task])


# --- the handlers of the table -----------------------------------------------------------------------------------------------

# Each is made with its world. Those that wait do so in `world.hang()`, from which a cut or a stop throws them.


def behaviour(body: Callable[[World, Job], Coroutine[Any, Any, object]]) -> Callable[[World], Run]:
    """Return a maker of handlers that behave so, each in a world of its own; it keeps the name for the tests' ids."""

    @functools.wraps(body)
    def maker(world: World) -> Run:
        async def run(payload: Any, job: Job) -> object:
            return await body(world, job)

        return run

    return maker


@behaviour
async def returns(world: World, job: Job) -> None:
    world.at.append("ran")


@behaviour
async def raises(world: World, job: Job) -> None:
    raise ValueError("no")


@behaviour
async def exits(world: World, job: Job) -> None:
    sys.exit(3)


@behaviour
async def cancels_itself(world: World, job: Job) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@behaviour
async def awaits_something_cancelled(world: World, job: Job) -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@behaviour
async def raises_cancelled_error(world: World, job: Job) -> None:
    raise asyncio.CancelledError


@behaviour
async def timeout_expires(world: World, job: Job) -> None:
    async with asyncio.timeout(0):
        await world.hang()


@behaviour
async def timeout_expires_and_is_handled(world: World, job: Job) -> None:
    try:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    except TimeoutError:
        await asyncio.sleep(0)


@behaviour
async def wait_for_expires(world: World, job: Job) -> None:
    await asyncio.wait_for(asyncio.Event().wait(), 0)


@behaviour
async def task_group_fails(world: World, job: Job) -> None:
    async def fail() -> None:
        raise ValueError("no")

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        await asyncio.Event().wait()


@behaviour
async def task_group_fails_at_its_end(world: World, job: Job) -> None:
    """Before Python 3.13 this leaves a cancel that nobody takes back."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())


@behaviour
async def task_group_fails_at_its_end_and_is_handled(world: World, job: Job) -> None:
    fails = task_group_fails_at_its_end(world)
    for _ in range(3):
        try:
            await fails(None, job)
        except* ValueError:
            await asyncio.sleep(0)


@behaviour
async def task_groups_fail_one_in_another(world: World, job: Job) -> None:
    fails = task_group_fails_at_its_end(world)
    async with asyncio.TaskGroup() as group:
        group.create_task(fails(None, job))  # pyright: ignore[reportArgumentType]


@behaviour
async def cancels_itself_and_returns(world: World, job: Job) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


@behaviour
async def uncancels_too_often(world: World, job: Job) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    for _ in range(3):
        task.uncancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


@behaviour
async def interrupts(world: World, job: Job) -> None:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


@behaviour
async def leaves_as_a_generator(world: World, job: Job) -> None:
    raise GeneratorExit


@behaviour
async def anyio_scope_expires(world: World, job: Job) -> None:
    with anyio.move_on_after(0):
        await anyio.sleep_forever()


@behaviour
async def anyio_deadline_expires(world: World, job: Job) -> None:
    with anyio.fail_after(0):
        await anyio.sleep_forever()


@behaviour
async def anyio_scope_is_cancelled(world: World, job: Job) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.sleep_forever()


@behaviour
async def anyio_group_is_cancelled(world: World, job: Job) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        group.cancel_scope.cancel()


@behaviour
async def anyio_group_fails(world: World, job: Job) -> None:
    async def fail() -> None:
        raise ValueError("no")

    async with anyio.create_task_group() as group:
        group.start_soon(fail)
        await anyio.sleep_forever()


@behaviour
async def anyio_thread_returns(world: World, job: Job) -> None:
    await anyio.to_thread.run_sync(lambda: None)


@behaviour
async def hangs(world: World, job: Job) -> None:
    await world.hang()


@behaviour
async def hangs_in_a_child_task(world: World, job: Job) -> None:
    await asyncio.create_task(world.hang())


@behaviour
async def hangs_in_a_timeout(world: World, job: Job) -> None:
    async with asyncio.timeout(60), asyncio.timeout(90):
        await world.hang()


@behaviour
async def hangs_in_wait_for(world: World, job: Job) -> None:
    await asyncio.wait_for(world.hang(), 60)


@behaviour
async def hangs_in_gather(world: World, job: Job) -> None:
    await asyncio.gather(world.hang(), world.hang())


@behaviour
async def hangs_in_a_task_group(world: World, job: Job) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(world.hang())
        group.create_task(world.hang())


@behaviour
async def hangs_in_an_anyio_scope(world: World, job: Job) -> None:
    with anyio.move_on_after(60), anyio.fail_after(90):
        await world.hang()


@behaviour
async def hangs_in_an_anyio_group(world: World, job: Job) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(world.hang)
        group.start_soon(world.hang)


@behaviour
async def hangs_in_an_anyio_thread(world: World, job: Job) -> None:
    def wait() -> None:
        world.at.append("hanging")
        world.store.wait(10)

    await anyio.to_thread.run_sync(wait, abandon_on_cancel=True)


@behaviour
async def tidies_up(world: World, job: Job) -> None:
    try:
        await world.hang()
    finally:
        await asyncio.sleep(0)
        world.at.append("tidy")


@behaviour
async def times_out_then_hangs(world: World, job: Job) -> None:
    expires = timeout_expires_and_is_handled(world)
    await expires(None, job)
    await world.hang()


@behaviour
async def answers_with_another_error(world: World, job: Job) -> None:
    try:
        await world.hang()
    except asyncio.CancelledError:
        raise ValueError("I was busy") from None


@behaviour
async def answers_with_a_word(world: World, job: Job) -> None:
    try:
        await world.hang()
    except asyncio.CancelledError:
        raise Dead("I was busy") from None


@behaviour
async def answers_by_leaving(world: World, job: Job) -> None:
    try:
        await world.hang()
    except asyncio.CancelledError:
        sys.exit(1)


@behaviour
async def swallows(world: World, job: Job) -> None:
    try:
        await world.hang()
    except asyncio.CancelledError:
        await asyncio.sleep(0)


# Rows: those that have ended before anybody can interrupt, by what becomes of them; `None` means done.
ENDED: dict[Callable[[World], Run], type[BaseException] | None] = {
    returns: None,
    raises: ValueError,
    exits: SystemExit,
    awaits_something_cancelled: SelfCancelled,
    raises_cancelled_error: SelfCancelled,
    cancels_itself: SelfCancelled,
    cancels_itself_and_returns: None,
    uncancels_too_often: None,
    task_group_fails_at_its_end: ExceptionGroup,
    task_group_fails_at_its_end_and_is_handled: None,
    task_groups_fail_one_in_another: ExceptionGroup,
    interrupts: KeyboardInterrupt,
    leaves_as_a_generator: GeneratorExit,
    timeout_expires: TimeoutError,
    timeout_expires_and_is_handled: None,
    wait_for_expires: TimeoutError,
    task_group_fails: ExceptionGroup,
    anyio_scope_expires: None,
    anyio_deadline_expires: TimeoutError,
    anyio_scope_is_cancelled: None,
    anyio_group_is_cancelled: None,
    anyio_group_fails: ExceptionGroup,
    anyio_thread_returns: None,
}
# Those that hang until they are interrupted, and let go.
HANGING = [
    hangs,
    hangs_in_a_child_task,
    hangs_in_a_timeout,
    hangs_in_wait_for,
    hangs_in_gather,
    hangs_in_a_task_group,
    hangs_in_an_anyio_scope,
    hangs_in_an_anyio_group,
    hangs_in_an_anyio_thread,
    tidies_up,
    times_out_then_hangs,
]
# Those that hang, and answer an interruption with something of their own.
ANSWERING = [answers_with_another_error, answers_by_leaving]
SWALLOWING = [swallows]

# Columns: the interruptions that only end a job, and those that end the lane.
CUT = TimedOut("too long")


def nobody(world: World) -> None:
    """Interrupt nothing."""


def cut(world: World) -> None:
    world.lane.interrupt(CUT)


def cut_twice(world: World) -> None:
    world.lane.interrupt(CUT)
    world.lane.interrupt(LeaseLost("the second cut says something else"))


def stop(world: World) -> None:
    world.lane.stop()


def cut_then_stop(world: World) -> None:
    cut(world)
    stop(world)


def stop_then_cut(world: World) -> None:
    stop(world)
    cut(world)


def stop_twice(world: World) -> None:
    stop(world)
    stop(world)


CUTS = [cut, cut_twice]
STOPS = [stop, cut_then_stop, stop_then_cut, stop_twice]
Interruption = Callable[[World], None]


def names(values: Any) -> list[str]:
    return [value.__name__ for value in values]


def rows(*makers: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", makers, ids=names(makers))


def columns(*interruptions: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("interrupt", interruptions, ids=names(interruptions))


async def next_job_runs_undisturbed(world: World) -> None:
    """Run one more job, in which nothing may be left of an earlier interruption."""
    seen: list[int] = []

    async def calm(payload: Any, job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(5):
            seen.append(task.cancelling())
            await asyncio.sleep(0)
        with anyio.CancelScope():
            await anyio.lowlevel.checkpoint()
        async with asyncio.timeout(60):
            await asyncio.sleep(0)

    one = world.put(calm, "calm")
    await until(lambda: world.task.done() or (world.lane.job is None and not world.inbox.jobs))
    assert not world.task.done()
    assert seen == [0] * 5
    assert world.done()[-1] is one
    assert world.lane.cut is None
    assert world.lane.deadline_s == NEVER


def lane_has_ended(world: World) -> None:
    assert world.task.done()
    assert world.task.cancelled() or world.task.exception() is None
    assert world.failures == []  # a stop is no failure


# --- the table ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "error"), ENDED.items(), ids=names(ENDED))
@columns(nobody, cut)
def test_what_a_handler_did_by_itself_is_told_and_a_late_cut_touches_nothing(
    make: Callable[[World], Run], error: type[BaseException] | None, interrupt: Interruption, on_loop: Any
) -> None:
    async def story() -> None:
        world = World()
        first = world.put(make(world))
        await until(lambda: world.stats.finished == 1)
        interrupt(world)
        await rest()
        if error is None:
            assert world.done() == [first]
            assert world.failures == []
        else:
            ((failed, told, outcome),) = world.failures
            assert failed is first
            assert isinstance(told, error)
            assert isinstance(outcome, Retry)
            assert world.ledger._batch.defer[0].lease is first
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


@rows(*ENDED)
@columns(stop, cut_then_stop, stop_then_cut)
def test_a_stop_ends_an_idle_lane(make: Callable[[World], Run], interrupt: Interruption, on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        world.put(make(world))
        await until(lambda: world.stats.finished == 1)
        world.failures.clear()
        interrupt(world)
        await until(world.task.done)
        lane_has_ended(world)
        assert world.lane.job is None
        assert world.inbox.idle == 0

    on_loop(story())


@rows(*HANGING, *ANSWERING, answers_with_a_word, *SWALLOWING)
def test_a_handler_that_nobody_interrupts_comes_to_its_end(make: Callable[[World], Run], on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        first = world.put(make(world))
        await until(lambda: "hanging" in world.at)
        await rest()
        assert world.lane.job is first
        world.gate.set()
        world.store.set()
        await until(lambda: world.lane.job is None)
        assert world.done() == [first]
        assert world.failures == []
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


@rows(*HANGING, *ANSWERING)
@columns(*CUTS)
def test_a_cut_ends_the_job_and_not_the_lane(make: Callable[[World], Run], interrupt: Interruption, on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        first = world.put(make(world))
        await until(lambda: "hanging" in world.at)
        interrupt(world)
        await until(lambda: world.task.done() or world.lane.job is None)
        ((failed, error, outcome),) = world.failures
        assert failed is first
        assert error is CUT
        assert isinstance(outcome, Retry)
        assert world.done() == []
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


@rows(*SWALLOWING)
@columns(*CUTS)
def test_who_swallows_a_cut_and_returns_is_done_and_the_lane_goes_on(
    make: Callable[[World], Run], interrupt: Interruption, on_loop: Any
) -> None:
    async def story() -> None:
        world = World()
        first = world.put(make(world))
        await until(lambda: "hanging" in world.at)
        interrupt(world)
        await until(lambda: world.task.done() or world.lane.job is None)
        assert world.done() == [first]
        assert world.failures == []
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


@rows(*HANGING, *ANSWERING, answers_with_a_word)
@columns(*STOPS)
def test_a_stop_ends_the_lane_which_keeps_its_job_to_be_released(
    make: Callable[[World], Run], interrupt: Interruption, on_loop: Any
) -> None:
    async def story() -> None:
        world = World()
        first = world.put(make(world))
        await until(lambda: "hanging" in world.at)
        world.inbox.put([job("first", "2-0")])
        interrupt(world)
        await until(world.task.done)
        lane_has_ended(world)
        assert world.lane.job is first
        assert len(world.ledger) == 0
        assert len(world.inbox) == 1
        await world.end()

    on_loop(story())


@rows(*SWALLOWING)
@columns(*STOPS)
def test_who_swallows_a_stop_and_returns_is_done_and_the_lane_ends_all_the_same(
    make: Callable[[World], Run], interrupt: Interruption, on_loop: Any
) -> None:
    async def story() -> None:
        world = World()
        first = world.put(make(world))
        await until(lambda: "hanging" in world.at)
        world.inbox.put([job("first", "2-0")])
        interrupt(world)
        await until(world.task.done)
        lane_has_ended(world)
        assert world.done() == [first]
        assert world.lane.job is None
        assert len(world.inbox) == 1

    on_loop(story())


@rows(*HANGING, *ANSWERING)
def test_two_jobs_in_a_row_can_be_cut(make: Callable[[World], Run], on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        for name in ("first", "second"):
            world.at.clear()
            world.put(make(world), name)
            await until(lambda: "hanging" in world.at)
            cut(world)
            await until(lambda: world.task.done() or world.lane.job is None)
        assert [error for _, error, _ in world.failures] == [CUT, CUT]
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


@rows(*HANGING, *ANSWERING)
def test_after_a_cut_a_stop_is_still_a_stop(make: Callable[[World], Run], on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        world.put(make(world))
        await until(lambda: "hanging" in world.at)
        cut(world)
        await until(lambda: world.task.done() or world.lane.job is None)
        world.failures.clear()
        world.at.clear()
        second = world.put(make(world), "second")
        await until(lambda: "hanging" in world.at)
        stop(world)
        await until(world.task.done)
        lane_has_ended(world)
        assert world.lane.job is second
        await world.end()

    on_loop(story())


def test_who_clears_a_cut_away_disturbs_nobody(on_loop: Any) -> None:
    async def story() -> None:
        world = World()

        async def uncancels(payload: Any, job: Job) -> None:
            try:
                await world.hang()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
                await asyncio.sleep(0)

        world.put(uncancels)
        await until(lambda: "hanging" in world.at)
        cut(world)
        await until(lambda: world.lane.job is None)
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


def test_who_swallows_a_cut_and_hangs_on_can_still_be_stopped(on_loop: Any) -> None:
    async def story() -> None:
        world = World()

        async def hangs_on(payload: Any, job: Job) -> None:
            try:
                await world.hang()
            except asyncio.CancelledError:
                await world.hang()

        first = world.put(hangs_on)
        await until(lambda: "hanging" in world.at)
        cut(world)
        await until(lambda: world.at == ["hanging", "hanging"])
        stop(world)
        await until(world.task.done)
        lane_has_ended(world)
        assert world.lane.job is first

    on_loop(story())


@pytest.mark.parametrize("times", [2, 5])
def test_who_swallows_a_cut_and_hangs_on_is_cut_again_for_the_same_reason(times: int, on_loop: Any) -> None:
    async def story() -> None:
        world = World()

        async def hangs_on(payload: Any, job: Job) -> None:
            for _ in range(times - 1):
                try:
                    await world.hang()
                except asyncio.CancelledError:
                    await asyncio.sleep(0)
            await world.hang()

        world.put(hangs_on)
        for turn in range(1, times + 1):
            await until(lambda turn=turn: len(world.at) == turn)
            world.clock_s += 100
            world.lane.interrupt(CUT if turn == 1 else LeaseLost("a later cut says something else"))
            assert world.lane.deadline_s == world.clock_s + RECUT_S
        await until(lambda: world.task.done() or world.lane.job is None)
        assert [error for _, error, _ in world.failures] == [CUT]
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


@columns(*STOPS)
def test_after_two_cuts_a_stop_is_still_a_stop(interrupt: Interruption, on_loop: Any) -> None:
    async def story() -> None:
        world = World()

        async def hangs_on(payload: Any, job: Job) -> None:
            for _ in range(2):
                with contextlib.suppress(asyncio.CancelledError):
                    await world.hang()
            await world.hang()

        first = world.put(hangs_on)
        for turn in (1, 2):
            await until(lambda turn=turn: len(world.at) == turn)
            cut(world)
        await until(lambda: len(world.at) == 3)
        interrupt(world)
        await until(world.task.done)
        lane_has_ended(world)
        assert world.lane.job is first

    on_loop(story())


def test_a_cut_and_the_end_of_the_wait_at_the_same_moment_are_a_cut(on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        world.put(hangs(world))
        await until(lambda: "hanging" in world.at)
        world.gate.set()  # the handler is about to go on, but has not yet
        cut(world)
        await until(lambda: world.task.done() or world.lane.job is None)
        assert [error for _, error, _ in world.failures] == [CUT]
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


def test_a_cut_and_a_timeout_of_the_handler_at_the_same_moment_are_a_cut(on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        scopes: list[asyncio.Timeout] = []

        async def waits(payload: Any, job: Job) -> None:
            async with asyncio.timeout(60) as scope:
                scopes.append(scope)
                await world.hang()

        world.put(waits)
        await until(lambda: "hanging" in world.at)
        scopes[0].reschedule(asyncio.get_running_loop().time() - 1)
        cut(world)
        await until(lambda: world.task.done() or world.lane.job is None)
        assert [error for _, error, _ in world.failures] == [CUT]
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


# --- one job -------------------------------------------------------------------------------------------------------------------


async def test_a_cut_between_jobs_has_no_effect() -> None:
    world = World()
    await until(lambda: world.inbox.idle == 1)
    cut(world)
    assert world.lane.cut is None
    await next_job_runs_undisturbed(world)
    await world.end()


async def test_a_cut_before_the_lane_began_has_no_effect() -> None:
    world = World()
    cut(world)
    await next_job_runs_undisturbed(world)
    await world.end()


async def test_a_running_job_has_a_deadline_and_an_idle_lane_has_none() -> None:
    world = World(clock_s=500.0)
    assert world.lane.deadline_s == NEVER
    world.put(hangs(world))
    await until(lambda: "hanging" in world.at)
    assert (world.lane.started_s, world.lane.deadline_s) == (500.0, 530.0)
    world.gate.set()
    await until(lambda: world.lane.job is None)
    assert world.lane.deadline_s == NEVER
    await world.end()


async def test_the_time_of_a_job_that_had_to_wait_for_its_turn_counts_from_its_beginning() -> None:
    world = World(clock_s=500.0)

    async def waits_for_its_turn(payload: Any, job: Job) -> None:
        world.clock_s += 20
        begin()
        await world.hang()
        world.clock_s += 1

    world.put(waits_for_its_turn)
    await until(lambda: "hanging" in world.at)
    assert (world.lane.started_s, world.lane.deadline_s) == (520.0, 550.0)
    world.gate.set()
    await until(lambda: world.lane.job is None)
    assert [count.run_s for _, _, count in world.stats.rows()] == [1.0]
    await world.end()


async def test_each_lane_hears_of_its_own_job_when_that_begins() -> None:
    world = World(clock_s=500.0)
    second = world.another_lane()
    second.start()
    await until(lambda: world.inbox.idle == 2)

    async def waits_for_its_turn(payload: Any, job: Job) -> None:
        world.at.append("waiting")
        await world.gate.wait()
        if job.entry == b"2-0":
            begin()
        await asyncio.Event().wait()

    world.put(waits_for_its_turn)
    world.inbox.put([job("first", "2-0")])
    await until(lambda: len(world.at) == 2)
    world.clock_s = 600.0
    world.gate.set()
    await rest()
    assert sorted(lane.started_s for lane in (world.lane, second)) == [500.0, 600.0]
    second.stop()
    await until(lambda: second.task is not None and second.task.done())
    await world.end()


async def test_a_task_that_a_job_left_behind_puts_no_deadline_on_an_idle_lane() -> None:
    world = World()
    left_behind: list[asyncio.Task[None]] = []

    async def begin_later() -> None:
        await world.gate.wait()
        begin()

    async def leaves_a_task_behind(payload: Any, job: Job) -> None:
        left_behind.append(asyncio.create_task(begin_later()))

    world.put(leaves_a_task_behind)
    await until(lambda: world.inbox.idle == 1 and world.stats.finished == 1)
    world.gate.set()
    await asyncio.wait(left_behind)
    assert world.lane.deadline_s == NEVER
    cut(world)
    await next_job_runs_undisturbed(world)
    await world.end()


@pytest.mark.parametrize("is_in_a_group", [False, True])
async def test_a_word_that_answers_the_deadline_is_heard_and_no_other_answer_is(is_in_a_group: bool) -> None:
    world = World()

    async def waits(payload: Any, job: Job) -> None:
        try:
            await world.hang()
        except asyncio.CancelledError:
            word = Dead("account closed", code="closed")
            raise ExceptionGroup("no", [ValueError("no"), word]) if is_in_a_group else word from None

    for why, code in ((CUT, "closed"), (LeaseLost("another worker holds it"), "")):
        world.at.clear()
        world.put(waits)
        await until(lambda: "hanging" in world.at)
        world.lane.interrupt(why)
        await until(lambda: world.lane.job is None)
        assert [letter.code for letter in world.ledger.take().dead] == ([code] if code else [])
    await next_job_runs_undisturbed(world)
    await world.end()


@pytest.mark.parametrize("closes", [False, True])
async def test_a_job_that_was_cut_before_it_began_is_given_back(closes: bool) -> None:
    world = World()
    places = Places("thread", 0)

    async def never_begins(payload: Any, job: Job) -> None:
        await places.take()

    first = world.put(never_begins)
    await until(lambda: places.waiting == 1)
    if closes:
        places.close()
    else:
        cut(world)
    await until(lambda: world.lane.job is None)
    assert world.ledger._batch.park == [Parking(first, FREE if closes else "~t:greet@1")]
    assert len(world.ledger) == 1
    await next_job_runs_undisturbed(world)
    await world.end()


@pytest.mark.parametrize("waits", [False, True])
async def test_a_job_that_has_its_place_when_nothing_may_start_is_given_back_and_so_is_the_place(waits: bool) -> None:
    world = World()
    places = Places("thread", 1)
    if waits:
        await places.take()

    async def begins(payload: Any, job: Job) -> None:
        await places.take()
        raise AssertionError("it began")

    frozen = False
    world.inbox.may_start = lambda now_s: not frozen
    first = world.put(begins)
    if waits:
        await until(lambda: places.waiting == 1)
        frozen = True
        places.give_back()
    else:
        world.inbox.may_start = lambda now_s: not world.lane.job  # it stands still after the job has left the inbox
    await until(lambda: len(world.ledger) == 1)
    assert world.ledger._batch.park == [Parking(first, FREE)]
    assert (places.taken, places.waiting) == (0, 0)
    world.inbox.may_start = lambda now_s: True
    await next_job_runs_undisturbed(world)
    await world.end()


@pytest.mark.parametrize("raised", [None, ValueError("no"), Retry(5), Snooze(5), Dead("mine"), NotStarted("mine"), SystemExit(1)])
async def test_what_people_cancel_is_dead_whatever_its_handler_raises_on_the_way(raised: BaseException | None) -> None:
    world = World()

    async def answers(payload: Any, job: Job) -> None:
        try:
            await world.hang()
        except asyncio.CancelledError:
            raise (raised or asyncio.CancelledError()) from None

    world.put(answers)
    await until(lambda: "hanging" in world.at)
    world.lane.interrupt(Cancelled("cancelled while it ran"))
    await until(lambda: world.lane.job is None)
    [letter] = world.ledger._batch.dead
    assert (letter.code, letter.error, letter.attempts) == ("cancelled", "cancelled while it ran", 0)
    await next_job_runs_undisturbed(world)
    await world.end()


@pytest.mark.parametrize("kind", [NotStarted, NoPlace, LeaseLost, Cancelled])
@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_handler_that_raises_the_runtime_s_own_word_has_failed(kind: type[Exception], is_cut: bool) -> None:
    world = World()

    async def says(payload: Any, job: Job) -> None:
        try:
            await world.hang()
        finally:
            raise kind("mine")

    world.put(says)
    await until(lambda: "hanging" in world.at)
    if is_cut:
        cut(world)
    world.gate.set()
    await until(lambda: world.lane.job is None)
    ((_, told, outcome),) = world.failures
    assert isinstance(outcome, Retry)
    assert told is CUT if is_cut else "mine" in str(told)
    await next_job_runs_undisturbed(world)
    await world.end()


class QuotaExceeded(asyncio.CancelledError):
    """A cancel of the handler's own."""


@pytest.mark.parametrize("kind", [asyncio.CancelledError, QuotaExceeded])
async def test_a_cancel_of_the_handler_s_own_is_told_with_its_text_and_its_stack(kind: type[asyncio.CancelledError]) -> None:
    world = World()

    async def refuses(payload: Any, job: Job) -> None:
        raise kind("300 of 200")

    world.handlers[b"first"] = dataclasses.replace(handler(refuses), retry=Backoff(attempts=1))
    world.inbox.put([job("first")])
    await until(lambda: world.stats.finished == 1)
    (letter,) = world.ledger._batch.dead
    assert letter.error.endswith(f"{kind.__name__}: 300 of 200")
    assert "in refuses" in letter.stack
    await world.end()


# --- what a handler gives back ------------------------------------------------------------------------------------------------


async def test_what_a_handler_returns_is_awaited_to_its_end() -> None:
    world = World()

    async def work() -> None:
        await asyncio.sleep(0)
        world.at.append("worked")

    async def gives_a_coroutine(payload: Any, job: Job) -> object:
        return work()

    async def gives_one_that_gives_one(payload: Any, job: Job) -> object:
        return gives_a_coroutine(payload, job)

    async def gives_a_task(payload: Any, job: Job) -> object:
        return asyncio.create_task(work())

    def gives_one_and_is_plain(payload: Any, job: Job) -> Any:
        return asyncio.gather(work(), work())

    for run in (gives_a_coroutine, gives_one_that_gives_one, gives_a_task, gives_one_and_is_plain):
        world.put(run, run.__name__)
    await until(lambda: world.stats.finished == 4)
    assert world.at == ["worked"] * 5
    assert len(world.done()) == 4
    await world.end()


async def test_an_error_in_what_a_handler_returns_is_an_error_of_the_job() -> None:
    world = World()

    async def fails() -> None:
        raise Dead("no such account")

    async def run(payload: Any, job: Job) -> object:
        return fails()

    world.put(run)
    await until(lambda: world.stats.finished == 1)
    assert isinstance(world.failures[0][2], Dead)
    await world.end()


async def test_a_coroutine_that_a_handler_returns_can_be_cut() -> None:
    world = World()

    async def run(payload: Any, job: Job) -> object:
        return world.hang()

    world.put(run)
    await until(lambda: "hanging" in world.at)
    cut(world)
    await until(lambda: world.lane.job is None)
    assert world.failures[0][1] is CUT
    await next_job_runs_undisturbed(world)
    await world.end()


async def numbers() -> AsyncIterator[int]:
    yield 1


class Chain:
    """What is awaited gives the next, without an end."""

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return Chain()


async def one() -> None:
    """Do nothing."""


@contextlib.contextmanager
def opened() -> Iterator[None]:
    yield


@contextlib.asynccontextmanager
async def opened_async() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    "make",
    [
        lambda: (n for n in "ab"), numbers, lambda: map(str, "ab"), lambda: filter(None, "ab"), lambda: starmap(str, ["ab"]),
        opened, opened_async, lambda: [one(), one()], lambda: (1, one()), Chain,
    ],
    ids=["generator", "async", "map", "filter", "starmap", "with", "async with", "coroutines", "among", "endless"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:coroutine 'one' was never awaited")
async def test_an_answer_that_would_still_have_to_run_is_a_failure(make: Callable[[], object]) -> None:
    world = World()

    async def run(payload: Any, job: Job) -> object:
        return make()

    world.put(run)
    await until(lambda: world.stats.finished == 1)
    assert isinstance(world.failures[0][1], NeverRan)
    assert world.done() == []
    await next_job_runs_undisturbed(world)
    await world.end()


class Itself:
    """A client that is ready for use when it was awaited, and its await gives itself: of Redis, say."""

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self


class Lazy:
    """A proxy that points nowhere outside of its request."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"working outside of the request: {name}")


class Mimic:
    """A stand-in for another kind of object, as mocks are."""

    @property
    def __class__(self) -> Any:
        return map


class Unhashable(type):
    """A class of classes that cannot be looked up."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Gone:
    """What is pointed at and is not there any more."""


OTHERS: dict[str, Callable[[], object]] = {
    "number": lambda: 0,
    "text": lambda: "text",
    "dict": lambda: {"a": 1},
    "class": lambda: [map],
    "object": object,
    "range": lambda: range(3),
    "iterator": lambda: iter([1]),
    "empty": list,
    "tuple": lambda: (None,),
    "itself": Itself,
    "client": redis.asyncio.Redis,
    "pipeline": lambda: redis.asyncio.Redis().pipeline(),
    "proxy": Lazy,
    "mimic": Mimic,
    "gone": lambda: weakref.proxy(Gone()),
    "odd": Unhashable("Odd", (), {}),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
async def test_any_other_answer_is_none_of_our_business(make: Callable[[], object]) -> None:
    world = World()

    async def run(payload: Any, job: Job) -> object:
        return make()

    first = world.put(run)
    await until(lambda: world.stats.finished == 1)
    assert world.done() == [first]
    await world.end()


async def test_what_an_executor_has_promised_is_waited_for() -> None:
    world = World()

    def fails() -> None:
        world.store.wait(20)
        raise Dead("no such account")

    async def run(payload: Any, job: Job) -> object:
        return pool.submit(fails)

    with ThreadPoolExecutor(1) as pool:
        world.put(run)
        await rest()
        assert world.stats.finished == 0
        world.store.set()
        await until(lambda: world.stats.finished == 1)
    assert isinstance(world.failures[0][2], Dead)
    await world.end()


# --- what a handler leaves behind ----------------------------------------------------------------------------------------------

USER: ContextVar[object] = ContextVar("user", default="nobody")


class Numpy:
    """Values that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise Panic("the truth value is ambiguous")

    __hash__ = None  # pyright: ignore[reportAssignmentType]


@pytest.mark.parametrize("values", [["alice"], ["alice", "nobody"], [Numpy(), Numpy()]], ids=["other", "default", "uncomparable"])
def test_a_context_variable_that_a_job_sets_is_not_seen_by_the_next(values: list[object], on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        seen: list[object] = []

        async def sets(payload: Any, job: Job) -> None:
            seen.append(USER.get())
            for value in values:
                USER.set(value)

        world.put(sets)
        world.inbox.put([job("first") for _ in range(4)])
        await until(lambda: world.stats.finished == 5)
        assert seen == ["nobody"] * 5
        await next_job_runs_undisturbed(world)
        await world.end()

    USER.get()
    on_loop(story())


def test_a_value_that_cannot_be_compared_leaks_nowhere_where_a_lane_began_with_one(on_loop: Any) -> None:
    async def story() -> None:
        at_first = Numpy()
        USER.set(at_first)
        world = World()
        seen: list[bool] = []

        async def sets(payload: Any, job: Job) -> None:
            seen.append(USER.get() is at_first)
            USER.set(Numpy())

        world.put(sets)
        world.put(sets)
        await until(lambda: world.stats.finished == 2)
        assert seen == [True, True]
        await world.end()

    on_loop(story())


def halves_up(context: Context) -> None:
    context.rounding = ROUND_HALF_UP


def traps_nothing(context: Context) -> None:
    context.traps[DivisionByZero] = False


def three_digits(context: Context) -> None:
    context.prec = 3


def small(context: Context) -> None:
    context.Emax = 3


@pytest.mark.parametrize("change", [three_digits, halves_up, traps_nothing, small])
@pytest.mark.parametrize("is_set_before", [True, False])
def test_the_settings_of_decimals_are_each_job_s_own(
    change: Callable[[Context], None], is_set_before: bool, on_loop: Any
) -> None:
    """Also where the lanes began with a decimal context, which jobs change in its place."""

    async def story() -> None:
        if is_set_before:
            getcontext().prec = 20
        world = World()
        seen: list[str] = []

        async def reckons(payload: Any, job: Job) -> None:
            seen.append(repr(getcontext()))
            change(getcontext())

        world.put(reckons)
        world.put(reckons)
        await until(lambda: world.stats.finished == 2)
        assert seen[0] == seen[1]
        assert ("prec=20" in seen[0]) == is_set_before
        await world.end()

    contextvars.Context().run(on_loop, story())


async def test_a_lane_goes_on_as_the_same_task_when_a_job_has_tidied_up() -> None:
    world = World()
    tasks: set[object] = set()

    async def tidy(payload: Any, job: Job) -> None:
        tasks.add(asyncio.current_task())
        token = USER.set("alice")
        await asyncio.sleep(0)
        USER.reset(token)

    world.put(tidy)
    world.put(tidy)
    await until(lambda: world.stats.finished == 2)
    assert len(tasks) == 1
    await world.end()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks are started eagerly from 3.12 on")
async def test_a_lane_goes_on_where_tasks_are_started_eagerly() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    world = World()
    depths: list[int] = []

    async def sets(payload: Any, job: Job) -> None:
        depths.append(len(traceback.extract_stack()))
        USER.set(job)

    world.put(sets)
    world.inbox.put([job("first") for _ in range(99)])
    await until(lambda: world.stats.finished == 100)
    assert len(set(depths[1:])) == 1
    await world.end()


async def test_who_swallows_a_stop_and_sets_a_variable_ends_the_lane_all_the_same() -> None:
    world = World()

    async def sets(payload: Any, job: Job) -> None:
        USER.set("alice")
        task = asyncio.current_task()
        assert task is not None
        with contextlib.suppress(asyncio.CancelledError):
            await world.hang()
        while task.uncancel():
            pass

    first = world.put(sets)
    await until(lambda: "hanging" in world.at)
    world.inbox.put([job("first", "2-0")])
    stop(world)
    await until(world.task.done)
    await rest()
    assert world.task.done()
    assert world.done() == [first]
    assert len(world.inbox) == 1


async def test_a_lane_whose_group_ends_while_it_goes_on_has_ended() -> None:
    world = World()

    def open_task(coroutine: Coroutine[Any, Any, None], context: Any) -> asyncio.Task[Any]:
        raise RuntimeError("the group is shutting down")

    world.lane.open_task = open_task

    async def sets(payload: Any, job: Job) -> None:
        USER.set("alice")

    first = world.put(sets)
    await until(world.task.done)
    assert world.task.exception() is None
    assert world.done() == [first]


async def test_a_lane_whose_loop_is_gone_starts_nothing_more() -> None:
    world = World()
    world.put(hangs(world))
    await until(lambda: "hanging" in world.at)
    world.put(returns(world), "second")
    running = world.task.get_coro()
    assert running is not None
    running.close()  # as the collector does when the loop is gone, and nothing holds the task
    assert len(world.inbox) == 1
    assert world.failures == []
    world.task.cancel()
    with pytest.raises(RuntimeError, match="reuse"):
        await world.task


@pytest.mark.parametrize("error", [Dead, ValueError, KeyboardInterrupt], ids=lambda error: error.__name__)
async def test_what_was_raised_is_let_go_with_all_that_its_frames_hold(error: type[BaseException]) -> None:
    world = World()
    world.lane.on_failure = lambda job, error, outcome: None
    seen: list[weakref.ref[Handler[Any]]] = []

    async def run(payload: Any, job: Job) -> None:
        held = handler(returns(world))
        held_too = Inbox()
        seen.append(weakref.ref(held_too))  # pyright: ignore[reportArgumentType]
        await asyncio.sleep(0)
        raise error(f"{held!r}")

    gc.collect()
    gc.disable()
    try:
        world.put(run)
        await until(lambda: world.stats.finished == 1 and world.inbox.idle == 1)
        assert seen[0]() is None
    finally:
        gc.enable()
    await world.end()


CONSTANT = Dead("gone")
OTHER = ValueError("no")


async def raises_a_constant(payload: Any, job: Job) -> None:
    raise CONSTANT


async def raises_one_constant_for_another(payload: Any, job: Job) -> None:
    try:
        raise OTHER
    except ValueError:
        raise CONSTANT from None


async def raises_a_group_of_constants(payload: Any, job: Job) -> None:
    try:
        raise OTHER
    except ValueError as error:
        raise ExceptionGroup("no", [CONSTANT]) from error


async def raises_a_constant_in_a_thread(payload: Any, job: Job) -> None:
    def fails() -> None:
        raise CONSTANT

    await asyncio.to_thread(fails)


async def raises_a_constant_when_cut(payload: Any, job: Job) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise OTHER from None


@rows(
    raises_a_constant,
    raises_one_constant_for_another,
    raises_a_group_of_constants,
    raises_a_constant_in_a_thread,
    raises_a_constant_when_cut,
)
async def test_an_error_that_is_raised_again_and_again_keeps_nothing_of_the_jobs_before(make: Run) -> None:
    world = World()
    for n in range(1, 4):
        world.put(make)
        await until(lambda: world.lane.job is not None or world.stats.finished == n)  # noqa: B023
        if make is raises_a_constant_when_cut:
            await rest()
            cut(world)
        await until(lambda: world.stats.finished == n)  # noqa: B023
        assert CONSTANT.__traceback__ is None
        assert OTHER.__traceback__ is None
    await world.end()


@pytest.mark.parametrize("factory", [lambda loop, coroutine: asyncio.Task(coroutine, loop=loop), lambda *given: None])
def test_a_lane_goes_on_whatever_makes_the_tasks_of_a_handler(factory: Any, on_loop: Any) -> None:
    async def story() -> None:
        world = World()

        async def sets(payload: Any, job: Job) -> None:
            asyncio.get_running_loop().set_task_factory(factory)
            USER.set(job)

        world.put(sets)
        await until(lambda: world.stats.finished == 1)
        await rest()
        assert asyncio.get_running_loop().get_task_factory() is factory, "it is the handlers' own"
        asyncio.get_running_loop().set_task_factory(None)
        await next_job_runs_undisturbed(world)
        await world.end()

    on_loop(story())


class Panic(BaseException):
    """What a native library raises, past all who catch Exception."""


@pytest.mark.parametrize("error", [Panic("no"), BaseExceptionGroup("no", [Panic("no")])], ids=["panic", "group"])
async def test_the_panic_of_a_library_is_a_failure_of_the_job_and_not_the_end_of_the_worker(error: BaseException) -> None:
    world = World()

    async def panics(payload: Any, job: Job) -> None:
        raise error

    world.put(panics)
    await until(lambda: world.task.done() or world.stats.finished == 1)
    ((_, told, outcome),) = world.failures
    assert told is error
    assert isinstance(outcome, Retry)
    await next_job_runs_undisturbed(world)
    await world.end()


async def test_a_handler_gets_its_payload_and_its_job() -> None:
    world = World()
    got: list[object] = []

    async def run(payload: Any, job: Job) -> None:
        got.extend([payload, job])

    one = world.put(run, decode=lambda job: ("payload of", job.type))
    await until(lambda: world.stats.finished == 1)
    assert got == [("payload of", b"first"), one]
    await world.end()


async def test_a_payload_that_cannot_be_read_is_dead_and_nothing_runs() -> None:
    world = World()

    def decode(job: Job) -> Any:
        raise UnfitPayload("$.name")

    world.put(returns(world), decode=decode)
    await until(lambda: world.stats.finished == 1)
    assert world.at == []
    assert world.ledger._batch.dead[0].code == "bad-payload"
    await next_job_runs_undisturbed(world)
    await world.end()


@pytest.mark.parametrize(("word", "kind"), [(Retry(5), Retry), (Snooze(5), Snooze), (Dead("no"), Dead)])
async def test_the_words_of_a_handler_become_its_outcome(word: Exception, kind: type) -> None:
    world = World()

    async def run(payload: Any, job: Job) -> None:
        raise word

    world.put(run)
    await until(lambda: world.stats.finished == 1)
    assert isinstance(world.failures[0][2], kind)
    assert len(world.ledger) == 1
    await world.end()


async def test_a_job_whose_lease_was_lost_leaves_nothing_to_write() -> None:
    world = World()
    world.put(hangs(world))
    await until(lambda: "hanging" in world.at)
    world.lane.interrupt(LeaseLost("another worker holds it"))
    await until(lambda: world.lane.job is None)
    assert world.failures[0][2] is LOST
    assert len(world.ledger) == 0
    await world.end()


async def test_a_lane_says_what_it_does() -> None:
    world = World()
    assert repr(world.lane) == "<Lane idle>"
    world.put(hangs(world))
    await until(lambda: "hanging" in world.at)
    assert repr(world.lane) == "<Lane runs first high-1700000000000-0>"
    await world.end()


# --- counting
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_s", "bucket"), [(0.0, 0), (0.000001, 1), (0.25, 18), (0.000003, 2), (1.0, 20), (4000.0, 32), (1e9, 50)]
)
async def test_the_time_of_a_run_is_counted(run_s: float, bucket: int) -> None:
    world = World(clock_s=0.0)

    async def run(payload: Any, job: Job) -> None:
        world.clock_s += run_s

    world.put(run)
    await until(lambda: world.stats.finished == 1)
    ((name, priority, count),) = world.stats.rows()
    assert (name, priority) == ("first", "high")
    assert count.runs == [int(at == bucket) for at in range(BUCKETS)]
    assert count.run_s == run_s
    await world.end()


async def test_outcomes_are_counted_by_type_and_name() -> None:
    world = World()
    errors: list[BaseException | None] = [None, ValueError("no"), Snooze(1), Dead("no"), None, LeaseLost("gone"), SystemExit(1)]

    async def run(payload: Any, job: Job) -> None:
        error = errors.pop(0)
        if error is not None:
            raise error

    world.put(run)
    world.inbox.put([job("first") for _ in range(6)])
    await until(lambda: world.stats.finished == 7)
    ((_, _, count),) = world.stats.rows()
    assert count.totals() == {"done": 2, "retry": 3, "snooze": 1, "dead": 1}
    assert sum(count.runs) == 7
    await world.end()


# --- what a failed attempt leaves ----------------------------------------------------------------------------------------------

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_a_failed_attempt_is_noted_with_when_it_began_how_long_it_ran_and_what_of() -> None:
    world = World(clock_s=1000.0)
    world.ledger.by, world.ledger.app = "w-1", "v1"
    errors: list[BaseException] = [ValueError("no"), Dead("no account"), Snooze(5), UnfitPayload("$.n")]

    async def run(payload: Any, job: Job) -> None:
        world.clock_s += 2.5
        raise errors.pop(0)

    world.handlers[b"first"] = handler(run)
    earlier = pack_tries([Try(1, 7, 8, "w-0", "v0", "OSError: away")])
    jobs = [job("first", fetched_ms=1_000_000, failed=1) for _ in errors]
    for one in jobs:
        one.taken_s, one.trace = 995.0, f"00-{TRACE}-b7ad6b7169203331-01".encode()
        one.fields = (b"type", b"first", b"e", earlier, b"data", b"{}")
    world.inbox.put(jobs)
    await until(lambda: world.stats.finished == 4)
    retried, snoozed, dead, unfit = world.tries()
    [_, retry], [_, death] = retried, dead
    frame = f"tests/unit/test_lanes.py:{run.__code__.co_firstlineno + 2} run"
    assert retry == Try(2, 1_005_000, 2500, "w-1", "v1", "ValueError: no", frame, TRACE)
    assert (death.attempt, death.at_ms, death.error, death.frame) == (2, 1_007_500, "Dead: no account", frame)
    assert retried[0] == dead[0] == Try(1, 7, 8, "w-0", "v0", "OSError: away")
    assert snoozed == unfit == [], "what they have stays as it is"
    await world.end()


async def test_what_is_too_large_with_its_attempts_is_retried_without() -> None:
    world = World()

    async def run(payload: Any, job: Job) -> None:
        raise ValueError("no")

    large = world.put(run)
    large.fields = (b"type", b"first", b"x-much", b"x" * (1 << 20), b"data", b"{}")
    await until(lambda: world.stats.finished == 1)
    assert world.tries() == [[]]
    await world.end()


async def test_what_a_stop_cut_off_is_not_counted() -> None:
    world = World()
    world.put(hangs(world))
    await until(lambda: "hanging" in world.at)
    stop(world)
    await until(world.task.done)
    assert world.stats.finished == 0
    assert list(world.stats.rows()) == []


def test_moves_without_a_run_are_counted_without_a_time() -> None:
    stats = Stats()
    stats.moved(b"greet", 3, "duplicate")
    stats.moved(b"greet", 3, "duplicate", 2)
    ((name, priority, count),) = stats.rows()
    assert (name, priority, count.totals(), sum(count.runs)) == ("greet", "low", {"duplicate": 3}, 0)


def test_a_type_is_counted_apart_on_each_stream() -> None:
    stats = Stats()
    for stream in (0, 3, 3):
        stats.moved(b"greet", stream, "parked")
    assert {priority: count.totals() for _, priority, count in stats.rows()} == {"critical": {"parked": 1}, "low": {"parked": 2}}


# --- many lanes
# --------------------------------------------------------------------------------------------------------------------


def test_handlers_that_never_suspend_let_the_loop_breathe(on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        world.put(returns(world))
        world.inbox.put([job("first") for _ in range(100 * JOBS_PER_TURN)])
        turns = 0
        while world.stats.finished < 100 * JOBS_PER_TURN:
            before = world.stats.finished
            await asyncio.sleep(0)
            turns += 1
            assert world.stats.finished - before <= JOBS_PER_TURN
        assert 100 <= turns <= 210
        await world.end()

    on_loop(story())


@pytest.mark.parametrize("lanes", [1, 20])
def test_handlers_that_block_let_the_loop_breathe_after_a_while(lanes: int, on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        others = [world.another_lane() for _ in range(lanes - 1)]
        for lane in others:
            lane.start()
        await until(lambda: world.inbox.idle == lanes)

        async def blocks(payload: Any, job: Job) -> None:
            world.clock_s += 0.02

        world.put(blocks)
        world.inbox.put([job("first") for _ in range(99)])
        while world.stats.finished < 100:
            before_s = world.clock_s
            await asyncio.sleep(0)
            assert world.clock_s - before_s < TURN_S + 0.02
        for lane in others:
            lane.stop()
        await rest()
        await world.end()

    on_loop(story())


async def test_a_job_that_comes_after_a_long_silence_is_taken_at_once() -> None:
    inbox = Inbox()
    _, [waiting] = await waiting_lanes(inbox, 1)
    inbox.put([job("first")])
    await waiting
    _, [waiting] = await waiting_lanes(inbox, 1)
    inbox.put([job("first"), job("first")])
    assert inbox.take(1e9) is not None
    waiting.cancel()


def test_many_lanes_on_one_inbox_let_the_loop_breathe(on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        tasks = [asyncio.create_task(world.another_lane().run()) for _ in range(20)]
        await until(lambda: world.inbox.idle == 21)
        world.put(returns(world))
        world.inbox.put([job("first") for _ in range(100 * JOBS_PER_TURN)])
        while world.stats.finished < 100 * JOBS_PER_TURN:
            before = world.stats.finished
            await asyncio.sleep(0)
            assert world.stats.finished - before <= JOBS_PER_TURN, "all lanes together"
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await world.end()

    on_loop(story())


@behaviour
async def suspends_once(world: World, job: Job) -> None:
    await asyncio.sleep(0)


@rows(returns, suspends_once)
def test_500_lanes_finish_10_000_jobs_each_once(make: Callable[[World], Run], on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        tasks = [asyncio.create_task(world.another_lane().run()) for _ in range(499)]
        world.put(make(world))
        for start in range(1, 10_000, 1111):
            world.inbox.put([job("first", f"{entry}-0") for entry in range(start, min(start + 1111, 10_000))])
            await asyncio.sleep(0)
        await until(lambda: not world.inbox.jobs and world.inbox.idle == 500)
        done = world.done()
        assert len(done) == len({id(one) for one in done}) == 10_000
        assert world.failures == []
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await world.end()

    on_loop(story())


def test_as_many_jobs_run_at_the_same_time_as_there_are_lanes(on_loop: Any) -> None:
    async def story() -> None:
        world = World()
        tasks = [asyncio.create_task(world.another_lane().run()) for _ in range(49)]
        await until(lambda: world.inbox.idle == 50)
        world.put(hangs(world))
        world.inbox.put([job("first") for _ in range(99)])
        await rest()
        assert len(world.at) == 50
        assert len(world.inbox) == 50
        world.gate.set()
        await until(lambda: world.inbox.idle == 50)
        assert len(world.done()) == 100
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await world.end()

    on_loop(story())


# --- the inbox
# -----------------------------------------------------------------------------------------------------------------------


async def waiting_lanes(inbox: Inbox, n: int) -> tuple[list[Job], list[asyncio.Task[None]]]:
    """Return the jobs that `n` waiting takers will get, and the takers."""
    got: list[Job] = []

    async def take() -> None:
        while (job := inbox.take(0.0)) is None:
            await inbox.wait()
        got.append(job)

    tasks = [asyncio.create_task(take()) for _ in range(n)]
    await rest()
    return got, tasks


async def test_an_inbox_wakes_a_lane_for_each_job_that_is_left() -> None:
    inbox = Inbox()
    got, tasks = await waiting_lanes(inbox, 5)
    assert inbox.idle == 5
    jobs = [job("first"), job("first")]
    inbox.put(jobs)
    assert inbox.idle == 3
    await rest()
    assert got == jobs
    inbox.put([job("first") for _ in range(10)])
    await asyncio.gather(*tasks)
    assert len(inbox) == 7


async def test_a_flood_of_jobs_wakes_all_lanes_within_a_few_turns() -> None:
    inbox = Inbox()
    got, tasks = await waiting_lanes(inbox, 500)
    inbox.put([job("first") for _ in range(499)])
    await rest()
    assert len(got) == 499
    assert inbox.idle == 1
    inbox.put([job("first")])
    await asyncio.gather(*tasks)


async def test_a_job_is_left_to_the_others_when_a_woken_lane_was_stopped() -> None:
    inbox = Inbox()
    got, tasks = await waiting_lanes(inbox, 2)
    inbox.put([job("first")])
    tasks[0].cancel()
    await rest()
    assert len(got) == 1
    assert tasks[1].done()


async def test_a_lane_that_comes_too_late_waits_on() -> None:
    inbox = Inbox()
    got, tasks = await waiting_lanes(inbox, 1)
    inbox.put([job("first")])
    assert inbox.take(0.0) is not None  # by a lane that was just looking
    await rest()
    assert got == []
    assert inbox.idle == 1
    second = job("first")
    inbox.put([second])
    await asyncio.gather(*tasks)
    assert got == [second]


async def test_a_lane_that_was_stopped_waits_no_longer() -> None:
    inbox = Inbox()
    got, tasks = await waiting_lanes(inbox, 3)
    tasks[1].cancel()
    await rest()
    assert inbox.idle == 2
    inbox.put([job("first"), job("first")])
    await asyncio.wait(tasks)
    assert len(got) == 2


async def test_a_lane_that_was_stopped_after_it_was_woken_takes_no_job_with_it() -> None:
    inbox = Inbox()
    got, tasks = await waiting_lanes(inbox, 1)
    inbox.put([job("first")])
    tasks[0].cancel()
    await asyncio.wait(tasks)
    assert got == []
    assert len(inbox) == 1


async def test_an_inbox_says_whenever_one_more_lane_is_idle() -> None:
    idle: list[int] = []
    inbox = Inbox(lambda: idle.append(inbox.idle))
    _, tasks = await waiting_lanes(inbox, 3)
    assert idle == [1, 2, 3]
    inbox.put([job("first") for _ in range(3)])
    await asyncio.gather(*tasks)


def test_what_may_not_start_stays_in_the_inbox() -> None:
    inbox = Inbox()
    inbox.put([job("first")])
    asked: list[float] = []
    inbox.may_start = lambda now_s: bool(asked.append(now_s))
    assert inbox.take(1.0) is None
    assert (asked, len(inbox)) == ([1.0], 1)


def test_jobs_leave_an_inbox_in_the_order_they_came() -> None:
    inbox = Inbox()
    jobs = [job("first") for _ in range(5)]
    inbox.put(jobs[:2])
    inbox.put(jobs[2:])
    assert [inbox.take(0.0) for _ in range(6)] == [*jobs, None]


def test_an_inbox_gives_back_what_has_not_started() -> None:
    inbox = Inbox()
    jobs = [job("first") for _ in range(3)]
    inbox.put(jobs)
    assert inbox.clear() == jobs
    assert len(inbox) == 0
    assert inbox.clear() == []


def test_one_job_can_be_taken_out_if_it_has_not_started() -> None:
    inbox = Inbox()
    one, twin = job("first"), job("first")
    inbox.put([one, twin])
    assert inbox.remove(twin)
    assert not inbox.remove(twin)
    assert inbox.clear() == [one]


def test_an_inbox_says_what_it_holds() -> None:
    inbox = Inbox()
    inbox.put([job("first")])
    assert repr(inbox) == "<Inbox 1 jobs, 0 lanes wait>"


# --- reserved lanes ----------------------------------------------------------------------------------------------------------


def critical(entry: str = "1-0") -> Job:
    return job("first", entry, stream=CRITICAL)


async def waiting_reserved(inbox: Inbox) -> tuple[list[Job], asyncio.Task[None]]:
    """Return the job that a waiting reserved lane will get, and that lane."""
    got: list[Job] = []

    async def take() -> None:
        while (job := inbox.take_critical(0.0)) is None:
            await inbox.wait(True)
        got.append(job)

    task = asyncio.create_task(take())
    await rest()
    return got, task


@pytest.mark.parametrize("is_reserved", [False, True])
async def test_what_a_fork_puts_in_the_place_of_take_holds_for_lanes_that_run(is_reserved: bool) -> None:
    world = World()
    world.task.cancel()
    lane = world.another_lane()
    lane.is_reserved = is_reserved
    lane.start()
    await rest()
    asked: list[float] = []
    world.inbox.take = asked.append
    world.inbox.put([critical()])
    await rest()
    assert (asked != [], lane.job, len(world.inbox)) == (True, None, 1)
    assert lane.task is not None
    lane.task.cancel()


async def test_every_lane_takes_critical_first_and_a_reserved_one_nothing_else() -> None:
    inbox = Inbox()
    low, first, second = job("first"), critical("1-0"), critical("2-0")
    inbox.put([low, first])
    inbox.put([second])
    assert (len(inbox), inbox.jobs) == (3, [first, second, low])
    assert inbox.take(0.0) is first
    assert inbox.take_critical(0.0) is second
    assert inbox.take_critical(0.0) is None
    assert inbox.take(0.0) is low


async def test_a_reserved_lane_is_woken_first_for_critical_and_for_nothing_else() -> None:
    inbox = Inbox()
    got, [lane] = await waiting_lanes(inbox, 1)
    got_reserved, reserved = await waiting_reserved(inbox)
    assert (inbox.idle, inbox.idle_reserved) == (1, 1)
    one, two, low = critical("1-0"), critical("2-0"), job("first")
    inbox.put([one])
    await rest()
    assert (got, got_reserved) == ([], [one])
    got_again, again = await waiting_reserved(inbox)
    inbox.put([low])
    await rest()
    assert (got, got_again) == ([low], [])
    inbox.put([two])
    await asyncio.wait([lane, reserved, again])
    assert got_again == [two]


async def test_more_of_critical_than_lanes_are_reserved_goes_to_the_others() -> None:
    inbox = Inbox()
    got, lanes = await waiting_lanes(inbox, 3)
    got_reserved, reserved = await waiting_reserved(inbox)
    inbox.put([critical(f"{n}-0") for n in range(4)])
    await asyncio.wait([*lanes, reserved])
    assert (len(got), len(got_reserved)) == (3, 1)


async def test_a_reserved_lane_that_is_stopped_waits_no_more() -> None:
    inbox = Inbox()
    _, reserved = await waiting_reserved(inbox)
    reserved.cancel()
    await asyncio.wait([reserved])
    assert inbox.idle_reserved == 0


async def test_a_job_is_found_in_its_queue_when_it_is_taken_out() -> None:
    inbox = Inbox()
    one, low = critical(), job("first")
    inbox.put([one, low])
    assert inbox.remove(one)
    assert not inbox.remove(one)
    assert inbox.remove(low)
    inbox.put([one, low])
    assert inbox.clear() == [one, low]
    assert len(inbox) == 0


async def test_reserved_lanes_end_a_turn_as_all_others_do() -> None:
    """A burst of CRITICAL that never suspends lets the loop breathe, and none is left behind."""
    inbox = Inbox()
    inbox.put([critical(f"{n}-0") for n in range(2 * JOBS_PER_TURN)])
    taken = 0
    while inbox.take_critical(0.0):
        taken += 1
    assert taken == JOBS_PER_TURN
    _, reserved = await waiting_reserved(inbox)
    await asyncio.wait([reserved])
    assert len(inbox) == JOBS_PER_TURN - 1
