"""Minutes become series, percentiles lie within their power of two, and sentences say what a chart shows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from board.history import HOUR, History, Rates
from board.overview import trend_of
from board.series import depths, hour_of, jobs_said, percentile, run_ms, series, waits_said
from board.shapes import Mark
from runtime.store.base import WorkerRow
from runtime.store.sample import Minute
from tests.board.looks import MINUTE, NOW_MS, minute, picture, sample

# --- percentiles ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("powers", "part", "found"),
    [
        ({}, 0.5, None),
        ({3: 0}, 0.5, None),
        ({0: 10}, 0.5, 0.5),
        ({3: 10}, 0.5, 6.0),
        ({3: 10}, 1.0, 8.0),
        ({3: 50, 10: 50}, 0.5, 8.0),
        ({3: 95, 10: 5}, 0.95, 8.0),
        ({3: 94, 10: 6}, 0.95, 512 + 512 / 6),
    ],
)
def test_a_percentile_lies_evenly_within_its_power(powers: dict[int, int], part: float, found: float | None) -> None:
    assert percentile(powers, part) == (None if found is None else pytest.approx(found))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_percentile_is_within_a_factor_of_two_of_the_true_one(values: list[int], part: float) -> None:
    powers: dict[int, int] = {}
    for value in values:
        powers[value.bit_length()] = powers.get(value.bit_length(), 0) + 1
    true = sorted(values)[max(0, -(-len(values) * part // 1).__int__() - 1)]
    found = percentile(powers, part)
    assert found is not None
    assert 2 ** (true.bit_length() - 1) - 1 <= found <= 2 ** true.bit_length()


def test_a_run_time_is_said_in_ms() -> None:
    assert run_ms({11: 1}, 1.0) == 2.048


# --- series --------------------------------------------------------------------------------------------------------------------


def history_of(minutes: dict[int, Minute], at_ms: int = NOW_MS) -> History:
    """Return what was read: these minutes by how long ago they were, and no others."""
    history = History()
    one = sample(at_ms, minutes={at_ms // 60_000 - ago: minutes.get(ago, minute()) for ago in (0, 1)})
    history.look(one)
    history.note({one.minute - ago: found for ago, found in minutes.items() if ago > 1})
    return history


def test_the_last_hour_has_sixty_minutes_and_what_was_not_read_is_a_gap() -> None:
    waits = {"low": {4: 10}}
    found = series(history_of({0: minute(5), 1: minute(7, 2, 1), 59: minute(9, waits=waits), 60: minute(99)}), "1h")
    assert (found.start_ms, found.step_ms) == ((MINUTE - 59) * 60_000, 60_000)
    assert found.done == [9, *[None] * 57, 7, 5]
    assert (found.retried[-2:], found.dead[-2:]) == ([2, 0], [1, 0])
    assert found.waits_p95_ms["low"][:2] == [pytest.approx(15.6), None]
    assert not found.is_complete


def test_a_day_is_told_by_ten_minutes_the_last_of_which_still_runs() -> None:
    at_ms = (MINUTE // 10 * 10 + 12) * 60_000
    found = series(history_of({0: minute(1), 1: minute(2), 2: minute(4), 3: minute(8), 12: minute(16)}, at_ms), "24h")
    assert (len(found.done), found.step_ms) == (144, 600_000)
    assert found.start_ms + 144 * 600_000 == (MINUTE // 10 * 10 + 20) * 60_000
    assert found.done[-3:] == [None, 8 + 16, 1 + 2 + 4]


def test_all_that_was_read_makes_it_complete() -> None:
    none = dict.fromkeys(range(60 * 24 + 2), minute())
    history = history_of(none)
    assert series(history, "1h").is_complete
    assert series(history, "24h").is_complete
    assert history.missing() == []
    assert series(history, "24h").done == [0] * 144


def test_one_type_has_its_own_series_and_its_run_times() -> None:
    both = Minute({("a", "low"): {"done": 3}, ("b", "low"): {"done": 4, "dead": 1}}, {("b", "low"): {11: 4}}, {}, {})
    history = history_of({0: minute(), 2: both})
    found = series(history, "1h", "b")
    assert (found.done[-3], found.dead[-3]) == (4, 1)
    assert found.waits_p95_ms[""][-3] == pytest.approx(1.9968)
    assert [(one.ended, one.failed) for one in hour_of(history, "b")[-3:] if one] == [(5, 1), (0, 0), (0, 0)]
    assert hour_of(history, "b")[0] is None


def test_how_deep_it_was_ends_with_what_waits_now() -> None:
    history = history_of({0: minute(), 1: minute(depth={"low": 0}), 2: minute(depth={"low": 7})})
    assert depths(history, "low", 3)[-4:] == [None, 7, 0, 3]


def test_a_minute_is_counted_once_however_often_it_is_read() -> None:
    history = history_of({0: minute(), 5: minute(3)})
    history.note({MINUTE - 5: minute(3)})
    assert sum(n or 0 for n in series(history, "1h").done) == sum(n or 0 for n in series(history, "24h").done) == 3


def test_a_minute_that_is_not_closed_is_read_again_and_then_stays() -> None:
    history = history_of({0: minute(1), 1: minute(2)})
    history.note({MINUTE - 1: minute(50)})
    history.look(sample(NOW_MS + 120_000))
    assert MINUTE in history.missing()
    assert series(history, "1h").done[-4:] == [2, 1, 0, 0]
    history.note({MINUTE: minute(6)})
    assert MINUTE not in history.missing()
    assert series(history, "1h").done[-4:] == [2, 6, 0, 0]


def test_what_is_older_than_a_day_is_forgotten() -> None:
    history = history_of(dict.fromkeys(range(60 * 24 + 2), minute(1)))
    sizes = len(history.minutes), len(history.tens)
    for ago in range(1, 200):
        history.look(sample(NOW_MS + ago * 60_000))
        history.note({number: minute(1) for number in history.missing()})
    assert (len(history.minutes), len(history.tens)) == pytest.approx(sizes, abs=1)
    assert len(history.missing()) == 0


def test_versions_are_marked_where_they_were_first_seen() -> None:
    history = history_of({})
    history.saw([WorkerRow(app="1", since=NOW_MS - 10**9), WorkerRow(app="2", since=NOW_MS - 60_000)])
    history.saw([WorkerRow(app="2", since=NOW_MS - 30_000), WorkerRow(app="", since=5)])
    assert series(history, "1h").marks == [Mark(at_ms=NOW_MS - 60_000, text="2")]


def test_the_only_version_is_nothing_new() -> None:
    history = history_of({})
    history.saw([WorkerRow(app="2", since=NOW_MS - 60_000)])
    assert series(history, "1h").marks == []


# --- sentences -----------------------------------------------------------------------------------------------------------------

CALM = [100] * 60


@pytest.mark.parametrize(
    ("done", "failed", "step_ms", "said"),
    [
        ([None] * 60, [None] * 60, 60_000, "no run ended yet"),
        ([0] * 60, [0] * 60, 60_000, "no run ended yet"),
        ([*[None] * 59, 4], [*[None] * 59, 0], 60_000, "the first runs end"),
        ([8_800] * 60, [0] * 60, 60_000, "8,800 a minute"),
        ([*[0] * 58, 5, 0], [0] * 60, 60_000, "1.0 a minute"),
        ([1_000] * 144, [0] * 144, 600_000, "100 a minute"),
        (CALM, [*[1] * 50, *[9] * 10], 60_000, "109 a minute, failures have risen for 9 m"),
        (CALM, [*[1] * 50, *[2] * 10], 60_000, "102 a minute"),
        (CALM, [*[0] * 58, 4, 0], 60_000, "101 a minute"),
        (CALM, [9] * 60, 60_000, "109 a minute"),
        ([*[None] * 50, *[100] * 10], [*[None] * 50, *[9] * 10], 60_000, "109 a minute"),
    ],
)
def test_the_chart_of_jobs_is_told(done: list[int | None], failed: list[int | None], step_ms: int, said: str) -> None:
    assert jobs_said(done, failed, step_ms) == said


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        ({"low": [None] * 60}, "nothing has waited yet"),
        ({"low": [40.0] * 60, "high": [9.0] * 60}, "all start within 40 ms"),
        ({"low": [*[9.0] * 50, *[4e6] * 10], "high": [9.0] * 60}, "low passed 1 h 9 m ago"),
        ({"low": [4e6] * 60}, "low waits over 1 h"),
        ({"low": [*[None] * 59, 4e6]}, "low waits over 1 h"),
        ({"low": [*[4e6] * 40, *[None] * 20], "high": [*[5.0] * 60]}, "all start within 5 ms"),
    ],
)
def test_the_chart_of_waits_is_told(waits: dict[str, list[float | None]], said: str) -> None:
    assert waits_said(waits, 60_000) == said


# --- how fast ------------------------------------------------------------------------------------------------------------------


def look(at_s: float, waiting: int, done: int, **more: Any) -> Any:
    at_ms = int(NOW_MS + at_s * 1000)
    return sample(
        at_ms, waiting={"low": waiting}, minutes={at_ms // 60_000: minute(done, of="low"), at_ms // 60_000 - 1: minute()}, **more
    )


def test_rates_are_what_changed_between_two_looks() -> None:
    rates = Rates()
    for second in range(30):
        rates.note(look(second, 1_000 + 120 * second, 2 * second))
    pace = rates.pace("low")
    assert pace is not None
    assert (pace.added_s, pace.done_s, pace.grows_s, pace.over_ms) == (122, 2, 120, 10_000)


def test_too_short_a_time_has_no_rate() -> None:
    rates = Rates()
    assert rates.pace("low") is None
    rates.note(look(0, 5, 0))
    rates.note(look(1, 5, 0))
    assert rates.pace("low") is None


def test_rates_go_on_over_the_end_of_a_minute() -> None:
    rates = Rates()
    for second, minutes in [(25, (50, 7)), (29, (58, 7)), (31, (2, 60)), (34, (8, 60))]:
        at_ms = NOW_MS + second * 1000
        both = {at_ms // 60_000 - ago: minute(done, of="low") for ago, done in enumerate(minutes)}
        rates.note(sample(at_ms, waiting={"low": 5}, minutes=both))
    pace = rates.pace("low")
    assert pace is not None
    assert pace.done_s * pace.over_ms / 1000 == pytest.approx(8 + 2 + 2 + 6)


@pytest.mark.parametrize(
    "later", [look(200, 5, 0), look(3, 5, 1), look(-5, 5, 90)], ids=["a gap", "counters that are fewer", "a clock that went back"]
)
def test_after_what_cannot_be_compared_rates_begin_again(later: Any) -> None:
    rates = Rates()
    for second in range(3):
        rates.note(look(second, 5, 50 + second))
    rates.note(later)
    assert rates.pace("low") is None


@pytest.mark.parametrize(
    ("before", "now", "kind", "empty_ms", "grows_s"),
    [
        (500, 500, "steady", None, None),
        (500, 509, "steady", None, None),
        (500, 600, "grows", None, 10),
        (600, 500, "empty", 50_000, None),
        (50, 0, "steady", None, None),
    ],
)
def test_a_trend_is_more_than_chance(before: int, now: int, kind: str, empty_ms: int | None, grows_s: float | None) -> None:
    found = trend_of(picture(look(10, now, 0), before=look(0, before, 0)), "low")
    assert (found.kind, found.empty_ms, found.grows_s) == (kind, empty_ms, grows_s)


def test_what_comes_and_goes_fast_is_steady_while_it_stays_about_as_much() -> None:
    found = trend_of(picture(look(10, 540, 10_000), before=look(0, 500, 0)), "low")
    assert found.kind == "steady"


def test_the_hour_of_a_history_is_sixty_minutes() -> None:
    assert len(series(history_of({}), "1h").done) == HOUR
