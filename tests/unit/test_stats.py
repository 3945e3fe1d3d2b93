"""Counts of runs: those that are sorted in a batch at a time are those that were counted."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from runtime.jobs import DONE
from runtime.stats import Stats
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
