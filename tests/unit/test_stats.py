"""Counts of runs and waits: those that are sorted in a batch at a time are those that were counted; none grows without bound."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.jobs import DONE, Job
from runtime.stats import STRANGE_TYPES, WINDOW_S, Calls, Lag, Stats
from tests.builders import NOW_MS, job

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


# --- waits -------------------------------------------------------------------------------------------------------------------


def delivery(types: list[str], wait_ms: int = 5) -> list[Job]:
    return [job(name, f"{NOW_MS - wait_ms}-{n}", stream=2) for n, name in enumerate(types)]


def waits_of(stats: Stats) -> dict[str, int]:
    return {name: sum(count.waits) for name, _, count in stats.rows()}


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=300), max_size=5))
def test_each_job_of_a_delivery_is_counted_once_among_the_waits(deliveries: list[list[str]]) -> None:
    stats = Stats()
    for types in deliveries:
        stats.waited(delivery(types), NOW_MS)
    assert sum(stats.waits(2)) == sum(waits_of(stats).values()) == sum(map(len, deliveries))
    assert stats.waits(2)[4:] == [0] * 60, "none has waited for 8 ms"


def test_a_wait_is_counted_below_the_next_power_of_two_ms_for_its_own_type_and_stream():
    stats = Stats()
    stats.waited([job("a", f"{NOW_MS - 4}-0", stream=2), job("b", f"{NOW_MS + 9}-0", stream=2)], NOW_MS)
    rows = {name: (priority, count) for name, priority, count in stats.rows()}
    assert (rows["a"][0], rows["a"][1].waits.index(1), rows["a"][1].wait_ms) == ("medium", 3, 4)
    assert (rows["b"][0], rows["b"][1].waits.index(1), rows["b"][1].wait_ms) == ("medium", 0, 0), "an id of the future"
    assert dict(stats.totals()) == {" medium wait0": 1, " medium wait3": 1}, "shared statistics know no wait by type"


def test_an_id_that_is_no_time_says_nothing_of_waits():
    stats = Stats()
    stats.waited([job("a", "5-3"), job("a", f"{NOW_MS - 1000}-0")], NOW_MS)
    assert waits_of(stats) == {"a": 1}


@pytest.mark.parametrize("pattern", ["ab", "aab", "abcd", "a" * 99 + "b"])
def test_in_large_deliveries_each_type_has_its_part_whatever_the_order(pattern: str):
    stats = Stats()
    types = list(pattern) * (600 // len(pattern))
    for _ in range(1000):
        stats.waited(delivery(types), NOW_MS)
    found = waits_of(stats)
    for name in set(pattern):
        assert found[name] == pytest.approx(1000 * types.count(name), rel=0.1), name


# --- bounds ------------------------------------------------------------------------------------------------------------------


def test_types_of_strangers_are_told_apart_up_to_a_bound_and_known_ones_always():
    known = [f"known-{n}".encode() for n in range(STRANGE_TYPES + 10)]
    stats = Stats(known)
    for n in range(3 * STRANGE_TYPES):
        stats.moved(f"strange-{n}".encode(), 0, "dead")
    for name in known:
        stats.moved(name, 0, "parked")
    names = Counter({name: sum(count.outcomes.values()) for name, _, count in stats.rows()})
    assert len(names) == STRANGE_TYPES + 1 + len(known)
    assert names[""] == 2 * STRANGE_TYPES, "the rest is counted together"
    assert {names[name.decode()] for name in known} == {1}


def test_a_call_of_the_store_is_counted_by_its_time_and_its_size():
    calls = Calls()
    calls.note(0.0015, 500)
    calls.note(0.0015, 512)
    calls.note(-1e-9, 0)  # a clock that the system corrects
    assert (calls.times[11], calls.sizes[9]) == (2, 2), "below 2.048 ms, up to 512 jobs"
    assert (calls.times[0], calls.sizes[0], calls.jobs) == (1, 1, 1012)
