"""Backoff: from failures to seconds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backoff import Backoff, ceiling_s, delay_s

FAILURES = st.integers(-10, 10**9)
JITTER = st.floats(0, 1, exclude_max=True)


@st.composite
def policies(draw: st.DrawFn) -> Backoff:
    base_s = draw(st.floats(1e-6, 1e6))
    return Backoff(base_s=base_s, cap_s=draw(st.floats(base_s, 1e8)), attempts=draw(st.integers(1, 1_000_000)))


@given(policies(), FAILURES, JITTER)
def test_a_delay_is_never_negative_and_never_above_the_cap(policy: Backoff, failures: int, roll: float) -> None:
    assert 0 <= delay_s(failures, policy, lambda: roll) <= policy.cap_s


@given(policies(), FAILURES)
def test_without_jitter_the_wait_never_shrinks(policy: Backoff, failures: int) -> None:
    assert ceiling_s(failures, policy) <= ceiling_s(failures + 1, policy)


@given(policies(), FAILURES)
def test_without_jitter_the_wait_is_at_least_the_base(policy: Backoff, failures: int) -> None:
    assert policy.base_s <= ceiling_s(failures, policy)


@pytest.mark.parametrize("failures", [63, 64, 1023, 1024, 1025, 10**6, 10**9])
def test_no_number_of_failures_overflows(failures: int) -> None:
    assert ceiling_s(failures, Backoff(base_s=1e-6, cap_s=1e8)) == 1e8


def test_the_wait_doubles_from_the_base_up_to_the_cap() -> None:
    policy = Backoff(base_s=3, cap_s=50)
    assert [ceiling_s(failures, policy) for failures in range(1, 8)] == [3, 6, 12, 24, 48, 50, 50]


def test_a_job_that_never_failed_counts_as_one_that_failed_once() -> None:
    policy = Backoff(base_s=3, cap_s=50)
    assert ceiling_s(0, policy) == ceiling_s(-5, policy) == 3


def test_the_jitter_spread_the_wait_over_the_whole_range() -> None:
    policy = Backoff(base_s=8, cap_s=100)
    assert [delay_s(2, policy, lambda roll=roll: roll) for roll in (0.0, 0.25, 0.5)] == [0, 4, 8]


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ({"base_s": 0}, "base_s"),
        ({"base_s": -1}, "base_s"),
        ({"base_s": float("nan")}, "base_s"),
        ({"base_s": 10, "cap_s": 9}, "cap_s"),
        ({"cap_s": 0}, "cap_s"),
        ({"cap_s": -600}, "cap_s"),
        ({"cap_s": float("nan")}, "cap_s"),
        ({"base_s": float("inf")}, "base_s"),
        ({"attempts": 0}, "attempts"),
        ({"attempts": -8}, "attempts"),
        ({"attempts": 1_000_001}, "attempts"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(numbers: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Backoff(**numbers)


def test_the_outermost_numbers_are_taken() -> None:
    assert Backoff(base_s=5, cap_s=5, attempts=1).attempts == 1
    assert Backoff(attempts=1_000_000).attempts == 1_000_000


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Backoff().attempts = 9
