"""Counts of runs: those that are sorted in a batch at a time are those that were counted."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from runtime.jobs import DONE
from runtime.stats import WINDOW_S, Lag, Stats
from tests.builders import job

RUNS_S = st.lists(st.one_of(st.floats(0, 100_000), st.integers(0, 40).map(lambda power: 2**power / 1_000_000)), max_size=50)


@given(st.lists(RUNS_S, max_size=3))
def test_a_run_is_counted_below_the_next_power_of_two_microseconds(batches: list[list[float]]) -> None:
    stats = Stats()
    one = job("note", stream=2)
    for batch in batches:
        for run_s in batch:
            stats.ran(one, DONE, run_s)
        stats.fold()
    runs_s = [run_s for batch in batches for run_s in batch]
    counts = [count for _, _, count in stats.rows()]
    assert sum(count.done for count in counts) == len(runs_s)
    for count in counts:
        assert math.isclose(count.run_s, sum(runs_s), rel_tol=1e-9, abs_tol=1e-9)
        for power in range(64):
            assert sum(count.runs[: power + 1]) == sum(run_s < 2**power / 1_000_000 for run_s in runs_s)


@given(st.lists(st.floats(0, 100_000), max_size=50))
def test_a_late_tick_is_counted_below_the_next_power_of_two_microseconds(late_s: list[float]) -> None:
    lag = Lag()
    for one_s in late_s:
        lag.add(1000.0, one_s)
    assert math.isclose(lag.total_s, sum(late_s), rel_tol=1e-9)
    assert lag.last_s == (late_s or [0.0])[-1]
    for power in range(64):
        assert sum(lag.counts[: power + 1]) == sum(int(one_s * 1_000_000) < 2**power for one_s in late_s)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=1, max_size=30), st.floats(0, 200))
def test_the_longest_turn_is_one_of_the_last_minute_or_two(ticks: list[tuple[float, float]], after_s: float) -> None:
    lag, now_s = Lag(), 1000.0
    seen: list[tuple[float, float]] = []
    for wait_s, late_s in ticks:
        now_s += wait_s
        lag.add(now_s, late_s)
        seen.append((now_s, late_s))
    now_s += after_s
    longest_s = lag.longest_s(now_s)
    assert longest_s >= max((late_s for at_s, late_s in seen if at_s > now_s - WINDOW_S), default=0.0)
    assert longest_s <= max((late_s for at_s, late_s in seen if at_s > now_s - 2 * WINDOW_S), default=0.0)


def test_the_longest_turn_may_be_asked_for_again_and_again() -> None:
    lag = Lag()
    lag.add(10.0, 0.5)
    lag.add(70.0, 0.1)
    longest_s = [lag.longest_s(now_s) for now_s in (70.0, 70.0, 119.0, 130.0, 130.0, 500.0, 500.0)]
    assert longest_s == [0.5, 0.5, 0.5, 0.1, 0.1, 0.0, 0.0]


def test_what_blocks_the_loop_is_counted_by_type_with_the_longest() -> None:
    stats = Stats()
    for still_s in (0.25, 0.5, 0.125):
        stats.blocked_by(b"note", still_s)
    stats.blocked_by(b"", 1.0)
    told = {name: (blocks.count, blocks.total_s, blocks.longest_s) for name, blocks in stats.blocked.items()}
    assert told == {b"note": (3, 0.875, 0.5), b"": (1, 1.0, 1.0)}
