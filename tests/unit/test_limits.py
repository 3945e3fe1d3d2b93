"""Limits: what a rate is, what a bad one is told, and what an order at run time leaves of the code's."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ConfigError
from runtime.limits import MAX_PERIOD_MS, MAX_RATE, NO_LIMITS, Limits, Rate, limits_of, override_of, parse_rate

PERIODS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@pytest.mark.parametrize(
    ("text", "n", "period_ms"),
    [("100/m", 100, 60_000), ("10/s", 10, 1000), ("5/30s", 5, 30_000), ("1/d", 1, 86_400_000), ("7/2h", 7, 7_200_000)],
)
def test_a_rate_is_read_and_written(text, n, period_ms):
    assert parse_rate(text) == Rate(n, period_ms)
    assert str(parse_rate(text)) == text


@given(st.integers(1, MAX_RATE), st.sampled_from("smhd"), st.integers(1, 40))
def test_what_is_written_is_read_again(n, unit, times):
    rate = Rate(n, min(times * PERIODS[unit], MAX_PERIOD_MS))
    assert parse_rate(str(rate)) == rate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100",
        "/s",
        "100/",
        "1.5/s",
        "-1/s",
        "0/s",
        "100/w",
        "100/s ",
        "100/s\n",
        "10/0s",
        "1000001/s",
        "1/32d",
        5,
        None,
    ],
)
def test_what_is_no_rate_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="^group_rate must be "):
        parse_rate(text, "group_rate")


@given(st.integers(1, MAX_RATE), st.sampled_from([1000, 7000, 60_000, 3_600_000, MAX_PERIOD_MS]))
def test_no_period_sees_more_than_the_rate_and_a_loaded_gate_comes_to_95_percent_of_it(n, period_ms):
    rate = Rate(n, period_ms)
    # GCRA: within a period at most the burst and what the intervals in it add.
    assert rate.burst + (period_ms / rate.interval_ms - 1) <= n + 1e-6
    assert period_ms / rate.interval_ms >= 0.95 * n
    assert 1 <= rate.burst <= max(1, n // 20)


@pytest.mark.parametrize("name", ["limit", "group_limit"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True, 10**7])
def test_a_limit_out_of_its_range_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be a whole number between 1 and 1,000,000"):
        limits_of(**{name: value})


def test_limits_say_what_they_bound():
    assert not limits_of().has_any
    assert limits_of() == NO_LIMITS
    assert str(limits_of()) == "none"
    limits = limits_of(limit=5, group_rate="10/s")
    assert limits.has_any
    assert limits.by_group
    assert not limits_of(limit=5, rate="1/s").by_group
    assert str(limits) == "limit 5, group_rate 10/s"


def test_an_order_sets_some_takes_away_others_and_leaves_the_rest():
    code = limits_of(limit=5, rate="100/m", group_limit=2)
    order = override_of({"limit": 9, "rate": None})
    assert order.over(code) == Limits(9, None, 2, None)
    assert override_of(msgspec.json.decode(order.text())) == order


@pytest.mark.parametrize("told", [None, [], "5", {"limits": 5}, {1: 2}, {"limit": {}}, {"rate": 5}, {"rate": []}])
def test_what_is_no_order_is_refused(told):
    with pytest.raises(ConfigError, match="limit|rate"):
        override_of(told)


@given(st.integers(1, MAX_RATE), st.sampled_from([1000, 7000, 60_000, 3_600_000]), st.integers(-10_000_000, 10_000_000))
def test_the_wait_for_a_token_is_that_of_the_cell_rate_and_at_most_one_interval(n, period_ms, ahead_us):
    rate, now_us = Rate(n, period_ms), 1_700_000_000_000_000
    wait_ms, interval_us = rate.wait_ms(now_us + ahead_us, now_us), 1000 * rate.interval_ms
    tokens = (interval_us * rate.burst - ahead_us) / interval_us
    assert (wait_ms == 0) == (tokens >= 1)
    assert wait_ms <= math.ceil(rate.interval_ms)


def test_limits_are_told_as_people_write_them():
    assert limits_of(limit=5, group_rate="10/m").told == {"limit": 5, "group_rate": "10/m"}
    assert override_of({"limit": None, "rate": "1/s"}).told == {"limit": None, "rate": "1/s"}
