"""LoopMonitor: what it reports of a loop that stands still."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from runtime.worker.loop_monitor import BLOCKED_S, QUIET_S, TICK_S, LoopMonitor, LoopState

MAX_BLOCK_S = 60.0
ROUNDING_S = 1e-6


@pytest.fixture
def loop_state() -> LoopState:
    return LoopState(1000.0, threading.get_ident(), lambda: None)


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
