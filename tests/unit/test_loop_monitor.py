"""LoopMonitor: what it reports of a loop that stands still, and whom it blames for it."""

from __future__ import annotations

import gc
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from runtime.jobs import Job
from runtime.worker.loop_monitor import (
    MOST_FRAMES,
    QUIET_S,
    STALL_TOLD_S,
    TICK_S,
    WATCH_S,
    Cpu,
    Garbage,
    LoopMonitor,
    LoopState,
    stack_of,
)
from tests.builders import job

MAX_BLOCK_S = 60.0
ROUNDING_S = 1e-6
BLOCKED_S = 0.1


@pytest.fixture
def loop_state() -> LoopState:
    return LoopState(1000.0, threading.get_ident(), warn_s=BLOCKED_S)


@pytest.fixture
def monitor(loop_state: LoopState, caplog: pytest.LogCaptureFixture) -> LoopMonitor:
    caplog.set_level(logging.INFO, "runtime")
    return LoopMonitor(loop_state, MAX_BLOCK_S)


def look(monitor: LoopMonitor, caplog: pytest.LogCaptureFixture, still_s: float) -> list[str]:
    """Return the levels of what is logged when the loop has stood still for so long."""
    caplog.clear()
    monitor.look(1000.0 + TICK_S + still_s + ROUNDING_S)
    return [record.levelname for record in caplog.records]


def test_a_loop_that_moves_is_no_news(monitor: LoopMonitor, caplog: pytest.LogCaptureFixture) -> None:
    assert look(monitor, caplog, BLOCKED_S - 0.01) == []


def test_a_blocked_loop_is_reported_at_once_and_then_at_each_doubling(
    monitor: LoopMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    assert look(monitor, caplog, BLOCKED_S) == ["WARNING"]
    assert look(monitor, caplog, 9 * BLOCKED_S) == []
    assert look(monitor, caplog, 10 * BLOCKED_S) == ["WARNING"]
    assert look(monitor, caplog, 19 * BLOCKED_S) == []
    assert look(monitor, caplog, 21 * BLOCKED_S) == ["WARNING"]


def test_short_blocks_in_a_row_are_reported_once_in_a_while(
    monitor: LoopMonitor, loop_state: LoopState, caplog: pytest.LogCaptureFixture
) -> None:
    assert look(monitor, caplog, BLOCKED_S) == ["WARNING"]
    assert look(monitor, caplog, 0.0) == []
    assert look(monitor, caplog, BLOCKED_S) == []
    assert look(monitor, caplog, 0.0) == []
    assert look(monitor, caplog, 2.1 * BLOCKED_S) == ["WARNING"], "twice as long"
    assert look(monitor, caplog, 0.0) == []
    assert look(monitor, caplog, 3 * BLOCKED_S) == []
    loop_state.moved_s += 2 * QUIET_S
    assert look(monitor, caplog, BLOCKED_S + 2 * QUIET_S) == ["WARNING"]


def test_the_report_says_where_the_loop_stands(
    monitor: LoopMonitor, loop_state: LoopState, caplog: pytest.LogCaptureFixture
) -> None:
    is_there, may_end = threading.Event(), threading.Event()

    def stand_still() -> None:
        is_there.set()
        may_end.wait()

    thread = threading.Thread(target=stand_still)
    thread.start()
    is_there.wait()
    loop_state.thread_id = thread.ident or 0
    look(monitor, caplog, BLOCKED_S)
    may_end.set()
    thread.join()
    assert "code outside of handlers" in caplog.text
    assert f"{__file__}:" in caplog.text
    assert "stand_still" in caplog.text


def test_a_loop_that_counts_as_dead_is_told_once_with_all_stacks(monitor: LoopMonitor, caplog: pytest.LogCaptureFixture) -> None:
    assert look(monitor, caplog, MAX_BLOCK_S + 1) == ["WARNING", "CRITICAL"]
    assert "thread MainThread" in caplog.text
    assert look(monitor, caplog, MAX_BLOCK_S + 2) == []


def test_a_loop_is_dead_when_it_has_not_moved_for_longer_than_it_may(loop_state: LoopState) -> None:
    monitor = LoopMonitor(loop_state, MAX_BLOCK_S)
    loop_state.moved_s = time.monotonic()
    assert not monitor.is_dead
    loop_state.moved_s -= MAX_BLOCK_S + 1
    assert monitor.is_dead


# --- whom it blames ------------------------------------------------------------------------------------------------------------


@dataclass
class OnLane:
    """A lane, as far as the monitor sees one."""

    job: Job | None
    blocked: tuple[Job, float] | None = None


@dataclass
class World:
    """A loop and its monitor, with a clock, processor times and lanes of the test's own."""

    now_s: float = 1000.0
    loop_s: float = 0.0
    others_s: float = 0.0
    lane: OnLane | None = None
    state: LoopState = field(init=False)
    monitor: LoopMonitor = field(init=False)

    def __post_init__(self) -> None:
        def cpu(at_s: float) -> Cpu:
            return Cpu(at_s, self.loop_s, self.loop_s + self.others_s)

        running = cast("Any", lambda: self.lane)
        self.state = LoopState(self.now_s, threading.get_ident(), running, warn_s=BLOCKED_S, cpu=cpu)
        self.state.garbage = Garbage(lambda: self.now_s)
        self.monitor = LoopMonitor(self.state, MAX_BLOCK_S)

    def go(self, s: float, loop: float = 0.0, others: float = 0.0) -> None:
        """Let time go by, in which the loop's thread and all others use these parts of a core."""
        self.now_s += s
        self.loop_s += s * loop
        self.others_s += s * others

    def look(self, late_s: float = 0.0) -> None:
        """Let the monitor look."""
        self.monitor.look(self.now_s, late_s)

    def looks(self, s: float, loop: float = 0.0, others: float = 0.0) -> None:
        """Let time go by, with a look each 25 ms, as in a loop that stands still."""
        for _ in range(round(s / 0.025)):
            self.go(0.025, loop, others)
            self.look()

    def tick(self) -> dict[bytes, float]:
        """Let the loop go on, and return what is counted for how long."""
        self.state.tick(self.now_s)
        return {name: round(blocks.total_s, 3) for name, blocks in self.state.stats.blocked.items()}


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    caplog.set_level(logging.INFO, "runtime")
    return World()


HELD_S = 0.5
MAIL, PDF = b"mail", b"pdf"
BEFORE_S = TICK_S + BLOCKED_S / 2  # after the tick: then the first look is due


@pytest.mark.parametrize(("loop", "others"), [(1.0, 0.0), (0.0, 0.0), (1.0, 3.0), (0.1, 0.1)])
def test_a_job_that_each_look_has_seen_is_blamed_whether_it_computes_or_waits(world: World, loop: float, others: float) -> None:
    world.lane = OnLane(one := job("mail"))
    world.looks(TICK_S + HELD_S, loop, others)
    assert world.lane.blocked is not None
    assert world.lane.blocked[0] is one
    assert round(world.lane.blocked[1]) == HELD_S * 1000
    assert world.tick() == {MAIL: HELD_S}


def test_a_job_beside_threads_that_compute_may_only_wait_for_pythons_lock(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.lane = OnLane(job("mail"))
    world.looks(TICK_S + HELD_S, 0.1, 0.9)
    assert world.lane.blocked is None
    assert world.tick() == {b"": HELD_S}
    assert "by the handler" not in caplog.text
    assert "threads that compute" in caplog.text


def test_jobs_that_hold_the_loop_in_turn_are_not_blamed_for_each_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("mail", "pdf", "mail", "pdf"):
        world.lane = OnLane(job(name))
        world.looks(0.125, 1.0)
        assert world.lane.blocked is None
    assert set(world.tick()) == {b""}
    assert "by the handler" not in caplog.text
    assert "several handlers in turn" in caplog.text


def test_the_next_job_of_the_same_lane_is_another(world: World) -> None:
    world.lane = OnLane(job("mail"))
    world.looks(0.2, 1.0)
    world.lane.job = job("pdf")
    world.looks(0.2, 1.0)
    assert set(world.tick()) == {b""}


def test_one_look_is_no_proof(world: World) -> None:
    world.lane = OnLane(job("mail"))
    world.go(TICK_S + BLOCKED_S, 1.0)
    world.look()
    world.go(0.01, 1.0)
    assert set(world.tick()) == {b""}


def test_a_look_that_came_late_while_the_loops_thread_computed_is(world: World) -> None:
    world.go(0.04)
    world.look()
    world.lane = OnLane(job("mail"))
    world.go(HELD_S, 1.0)  # in one call of a library, which keeps Python's lock
    world.look(late_s=HELD_S - 0.05)
    assert world.tick() == {MAIL: round(HELD_S - 0.01, 3)}


def test_what_was_over_before_it_was_seen_is_counted_and_told_without_a_name(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.go(0.02)
    world.look()
    world.go(0.2, 1.0)
    assert world.tick() == {b"": 0.17}
    assert "was blocked for 170 ms; that was over before it was clear by what" in caplog.text
    caplog.clear()
    world.go(0.2, 1.0)
    assert world.tick() == {b"": 0.32}
    assert caplog.text == "", "not so soon again"


def test_who_held_the_loop_in_an_earlier_block_is_not_blamed_for_the_next(world: World) -> None:
    world.lane = OnLane(job("mail"))
    for step_s in (TICK_S + 0.06, 0.03):
        world.go(step_s)
        world.look()
    assert world.state.holder is not None
    assert world.state.holder.is_known
    assert world.tick() == {}, "too short"
    world.lane = None
    world.go(0.2, 1.0)
    assert set(world.tick()) == {b""}


def test_a_job_that_has_ended_is_let_go(world: World) -> None:
    world.lane = OnLane(job("mail"))
    world.looks(TICK_S + HELD_S)
    world.lane.job = None
    assert world.tick() == {MAIL: HELD_S}
    assert (world.lane.blocked, world.state.holder) == (None, None)


@pytest.mark.parametrize("is_loop_first", [True, False])
def test_a_process_that_stood_still_is_no_handlers_doing(
    world: World, caplog: pytest.LogCaptureFixture, is_loop_first: bool
) -> None:
    world.lane = OnLane(job("mail"))
    world.go(0.04)
    world.look()
    world.go(10.0)  # stopped, by SIGSTOP
    if is_loop_first:
        assert world.tick() == {}
    world.look(late_s=9.95)
    world.go(0.025)
    world.look()
    assert world.tick() == {}
    stalls = world.state.stats.stalls["process"]
    assert (stalls.count, round(stalls.total_s, 2)) == (1, 9.95)
    assert "the process stood still for 9.9" in caplog.text or "the process stood still for 10.0" in caplog.text
    assert "blocked" not in caplog.text
    world.go(TICK_S)
    world.looks(HELD_S)
    assert set(world.tick()) == {MAIL}, "what comes later is blamed as ever"


def test_a_process_that_is_stopped_while_a_job_holds_the_loop_is_blamed_for_the_rest_alone(world: World) -> None:
    world.lane = OnLane(job("mail"))
    world.looks(TICK_S + 0.2)
    world.go(5.0)
    world.look(late_s=4.95)
    world.looks(0.2)
    assert world.tick() == {MAIL: 0.45}


def test_short_stalls_have_no_line_and_the_lag_counts_them_all(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.go(0.02)
    world.look()
    world.go(0.9)
    world.look(late_s=STALL_TOLD_S - 0.2)
    world.tick()
    assert caplog.text == ""
    assert world.state.stats.stalls["process"].count == 1
    assert round(world.state.stats.lag.last_s, 3) == 0.87


@pytest.mark.parametrize("has_ended", [True, False])
def test_a_collection_of_garbage_is_not_blamed_on_the_job_that_it_interrupts(
    world: World, caplog: pytest.LogCaptureFixture, has_ended: bool
) -> None:
    """The monitor may look before the end is noted: the first thing that runs then is what notes it."""
    world.lane = OnLane(job("mail"))
    world.looks(TICK_S, 1.0)
    world.state.garbage("start", {})
    world.go(HELD_S, 1.0)
    if has_ended:
        world.state.garbage("stop", {})
    world.look(late_s=HELD_S - 0.05)
    if not has_ended:
        world.state.garbage("stop", {})
    assert world.tick() == {}
    assert world.lane.blocked is None
    assert "blocked" not in caplog.text
    stalls = world.state.stats.stalls["gc"]
    assert (stalls.count, round(stalls.total_s, 3)) == (1, HELD_S)
    world.go(0.2, 1.0)
    assert set(world.tick()) == {b""}, "what comes later is counted"


def test_the_collection_of_garbage_is_timed() -> None:
    garbage = Garbage()
    gc.callbacks.append(garbage)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(garbage)
    assert 0 < garbage.so_far_s(time.monotonic()) == garbage.so_far_s(time.monotonic() + 10)


def test_what_is_reported_has_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    frames: list[str] = []

    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        else:
            frames.append(stack_of(cast("Any", __import__("sys"))._getframe()))

    deep(200)
    assert frames[0].count("in deep") <= MOST_FRAMES
    assert frames[0].rstrip().endswith("_getframe()))"), "the innermost last"


def test_a_look_comes_when_the_next_tick_would_be_late_by_half_of_what_is_told(world: World) -> None:
    assert round(world.monitor.wait_s(1000.0), 3) == round(min(WATCH_S, BEFORE_S), 3)
    assert round(world.monitor.wait_s(1000.06), 3) == 0.04
    assert round(world.monitor.wait_s(1000.2), 3) == 0.025, "and sooner again while it stands still"
    assert LoopMonitor(LoopState(1000.0, threading.get_ident(), warn_s=60.0), MAX_BLOCK_S).wait_s(1000.0) == WATCH_S
