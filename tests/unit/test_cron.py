"""Cron: which times an expression names, against an oracle that looks at every minute; late ticks, words, notes, errors."""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cron import ALIASES, MAX_EVERY_S, Times, parse
from runtime.errors import ConfigError
from tests.cron_oracle import Wall, ticks

# Changes of an hour in either half of the year; of half an hour (Lord Howe) and two hours (Troll); at midnight (Havana); for a
# month of fasting, by another calendar (Casablanca); none, with an odd offset (Kathmandu); a day left out (Apia, in 2011).
ZONES = [
    ("Europe/Berlin", 2020),
    ("America/New_York", 2020),
    ("Australia/Lord_Howe", 2020),
    ("Antarctica/Troll", 2020),
    ("America/Havana", 2020),
    ("Africa/Casablanca", 2020),
    ("Asia/Kathmandu", 2020),
    ("Pacific/Apia", 2008),
]
EXPRESSIONS = (
    "30 2 * * *",
    "0 0 * * *",
    "15,45 1,2,3 * * *",
    "0 12 * * MON-FRI",
    "5 0 1,15 * SUN",
    "0-40/20 0-4/2 * * *",
    "0 3 L * *",
    "10 2 * MAR-APR,9-11 SUN#1",
    "0 * * * *",
    "*/15 * * * *",
    "30 */2 * * *",
    "0 */6 * * *",
    "*/7 1-3 * * *",
    "0 0 2 * * *",
    "0 0 0 * * *",
    "0,30 45 1 * * *",
    "*/20 30 * * * *",
)
SHORT = "30 2 * * *", "15,45 1,2,3 * * *", "0 * * * *", "30 */2 * * *", "0 0 0 * * *", "*/20 30 * * * *"
MINUTE_MS = 60_000
DAY_MS = 86_400_000


def ms(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp() * 1000)  # type: ignore[arg-type, misc]


def check_years(zone: str, first_year: int, years: int, expressions: Sequence[str]) -> None:
    wall = Wall(zone, first_year, years)
    for expression in expressions:
        wanted = ticks(expression, wall)
        found = parse(expression, zone).between(wanted[0] - 1, wanted[-1])
        assert found == wanted, (expression, sorted(set(found) ^ set(wanted))[:5])


def check_restarts(zone: str, first_year: int, years: int, expressions: Sequence[str], restarts: int) -> None:
    wall = Wall(zone, first_year, years)
    begin, end = wall.begin * MINUTE_MS + 3 * DAY_MS, wall.end * MINUTE_MS - 40 * DAY_MS
    wanted = {expression: ticks(expression, wall) for expression in expressions}
    times = {expression: parse(expression, zone) for expression in expressions}
    chance = random.Random(f"{zone} {first_year}")
    for change in [at * MINUTE_MS for at in wall.changes] or [begin]:
        for _ in range(restarts):
            start = max(begin, change + chance.randrange(-30 * 3600_000, 30 * 3600_000))
            expression = chance.choice(expressions)
            at = bisect_right(wanted[expression], start)
            if start < end and at + 3 <= len(wanted[expression]):
                assert times[expression].next(start, 3) == wanted[expression][at : at + 3], (expression, start)


@pytest.mark.parametrize(("zone", "first_year"), ZONES)
def test_a_year_of_ticks_is_that_of_the_oracle(zone: str, first_year: int) -> None:
    year = 2011 if first_year == 2008 else 2026
    check_years(zone, year, years=1, expressions=SHORT)
    check_restarts(zone, year, years=1, expressions=SHORT, restarts=50)


def test_where_the_clock_changes_by_half_an_hour_no_tick_is_lost() -> None:
    """Cronsim, given the zone, leaves out the midnight after either change, and what it should have run in the hour of it."""
    nightly = parse("0 0 0 * * *", "Australia/Lord_Howe")
    assert len(nightly.between(ms(2026, 1, 1), ms(2027, 1, 1))) == 365


def test_started_in_an_hour_that_comes_twice_no_tick_lies_before_the_start() -> None:
    nightly = parse("30 2 * * *", "Europe/Berlin")
    start = ms(2026, 10, 25, 1, 10)  # 02:10, the second time; 02:30 was at 00:30 of UTC
    assert nightly.next(start, 2) == [ms(2026, 10, 26, 1, 30), ms(2026, 10, 27, 1, 30)]


# --- late ticks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("cap", [1, 7, 100])
def test_the_newest_of_the_late_ticks_are_found_without_a_walk_through_all(expression: str, cap: int) -> None:
    times = parse(expression, "Europe/Berlin")
    chance = random.Random(expression)
    for _ in range(30):
        now = ms(2026, 11, 1) - chance.randrange(300 * DAY_MS)
        last = now - chance.choice([0, 500, MINUTE_MS, DAY_MS, 20 * DAY_MS])
        every = times.between(last, now) if now - last < 2 * DAY_MS or cap == 7 else None
        found = times.newest(last, now, cap)
        if every is not None:
            assert found == every or (len(found) > cap and found == every[-len(found) :])
        assert all(last < tick <= now for tick in found)


def test_a_year_behind_not_all_of_it_is_looked_at() -> None:
    now = ms(2026, 11, 1)
    assert 100 < len(parse("* * * * *").newest(now - 365 * DAY_MS, now, 100)) <= 400
    assert 100 < len(parse("", every_s=1).newest(now - 365 * DAY_MS, now, 100)) <= 400


@given(st.integers(1, MAX_EVERY_S), st.integers(0, 2**45))
def test_an_interval_counts_from_the_epoch(every_s: int, start: int) -> None:
    first, second = parse("", every_s=every_s).next(start, 2)
    assert first % (every_s * 1000) == 0
    assert start < first <= start + every_s * 1000
    assert second == first + every_s * 1000


def test_an_interval_may_have_a_fraction_of_a_second() -> None:
    assert parse("", every_s=1.5).next(0, 3) == [1500, 3000, 4500]


# --- words and notes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 3 * * *", "at 03:00 every day, Europe/Berlin"),
        ("*/5 * * * *", "every fifth minute of every hour, Europe/Berlin"),
        ("@weekly", "at 00:00 on Sunday, Europe/Berlin"),
        ("* * * * * *", "every second, Europe/Berlin"),
    ],
)
def test_an_expression_in_words(expression: str, words: str) -> None:
    assert parse(expression, "Europe/Berlin").words() == words


@pytest.mark.parametrize(
    ("every_s", "words"),
    [(1.5, "every 1.5 s"), (90, "every 90 s"), (900, "every 15 min"), (7200, "every 2 h"), (86_400, "every 1 d")],
)
def test_an_interval_in_words(every_s: float, words: str) -> None:
    assert parse("", every_s=every_s).words() == words


SPRING, AUTUMN = ms(2027, 3, 26), ms(2026, 10, 23)


@pytest.mark.parametrize(
    ("expression", "start", "notes"),
    [
        ("30 2 * * *", SPRING, ["02:30 does not exist on 2027-03-28: runs at 03:00"]),
        ("30 2 * * *", AUTUMN, ["02:30 comes twice on 2026-10-25: runs once, the first time"]),
        ("0 30 2 * * *", SPRING, ["02:30 does not exist on 2027-03-28: does not run"]),
        ("30 30 2 * * *", AUTUMN, ["02:30:30 comes twice on 2026-10-25: runs both times"]),
        ("*/20 * * * *", ms(2027, 3, 28, 0, 30), ["each time from 02:00 to 02:40 does not exist on 2027-03-28: does not run"]),
        ("30 2 * * *", ms(2026, 6, 1), []),
        ("0 4 * * *", SPRING, []),
    ],
)
def test_a_note_says_what_a_change_of_the_clock_does(expression: str, start: int, notes: list[str]) -> None:
    times = parse(expression, "Europe/Berlin")
    assert times.notes(start, 5) == notes
    told = {note[-5:] for note in notes if "runs at" in note}
    for tick in times.next(start, 5):  # what a note says is what happens
        shown = datetime.fromtimestamp(tick / 1000, times._zone)
        assert f"{shown:%H:%M}" in told | {"02:30", "04:00"} or "*/20" in expression


def test_a_note_names_the_day_where_it_is_another() -> None:
    nightly = parse("0 3 * * *", "Pacific/Apia")
    assert nightly.notes(ms(2011, 12, 28), 5) == ["03:00 does not exist on 2011-12-30: runs at 2011-12-31 00:00"]


def test_neither_an_interval_nor_utc_has_notes() -> None:
    assert parse("", "Europe/Berlin", 60).notes(SPRING, 5) == []
    assert parse("30 2 * * *").notes(SPRING, 5) == []


# --- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("61 * * * *",), "when '61 * * * *': minute '61': must be of 0-59"),
        (("1 60 * * * *",), "when '1 60 * * * *': minute '60'"),
        (("0 0 * * FRI-SUN",), "day-of-week 'FRI-SUN': must be of 0-7 or SUN-SAT"),
        (("* * * *",), "when '* * * *': must have 5 fields"),
        (("* * * * * * *",), "must have 5 fields"),
        (("0 0 31 2 *",), "day-of-month '31'"),
        (("0 0 */31 * MON#5",), "names no day that there is in 50 years"),
        (("@reboot",), "@annually; hint: it names no time"),
        (("@never",), "when '@never': must be one of @hourly"),
        (("0 " * 200,), "must be at most 256 characters of ASCII"),
        (("\N{SUPERSCRIPT TWO} * * * *",), "ASCII"),
        (("* * * * *", "Europa/Berlin"), "tz 'Europa/Berlin': must be the name of a time zone"),
        (("* * * * *", "Europe"), "tz 'Europe'"),
        (("* * * * *", "../zone"), "tz '../zone'"),
        (("* * * * *", ""), "tz ''"),
        (("* * * * *", 3), "tz '3'"),
        (("* * * * *", "localtime"), "tz 'localtime'"),
        (("", "UTC"), "when, every_s: must be exactly one of the two"),
        ((None, "UTC"), "when, every_s"),
        (("* * * * *", "UTC", 60), "when, every_s"),
        (("", "UTC", 0.5), "every_s 0.5: must be a number of seconds between 1 and 31622400"),
        (("", "UTC", float("nan")), "every_s nan"),
        (("", "UTC", True), "every_s True"),
        (("", "UTC", "60"), "every_s '60'"),
    ],
)
def test_what_cannot_be_used_is_named(arguments: tuple[str, str, float], error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        parse(*arguments)


def test_the_short_names_are_those_of_debian() -> None:
    assert {parse(name) for name in ALIASES} == {Times(expression, "UTC", 0) for expression in ALIASES.values()}
    assert parse(" @Daily ") == parse("0  0 * * *")


@pytest.mark.parametrize("hour", ["0", "*"])
def test_where_there_is_no_time_within_fifty_years_there_is_none(hour: str) -> None:
    assert Times(f"0 {hour} */31 * MON#5", "Europe/Berlin", 0).next(AUTUMN, 3) == []


FIELD = st.text("0123456789*/-,LWASUNMOFRIDECJ#", min_size=1, max_size=8)


@given(st.lists(FIELD, min_size=4, max_size=7).map(" ".join) | st.text(max_size=300))
def test_whatever_is_given_it_is_refused_or_has_ticks_words_and_notes(expression: str) -> None:
    try:
        times = parse(expression, "Australia/Lord_Howe")
    except ConfigError as error:
        assert str(error).startswith("when")
    else:
        assert times.next(AUTUMN, 3) == sorted(set(times.next(AUTUMN, 3)))
        assert times.words()
        times.notes(AUTUMN, 5)
