"""Windows of time: which day, week or month it is, where clocks change, and what a payload may not say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from handlers.contracts.windows import Span, Window

# Clocks change at midnight in the first four, by half an hour in Lord Howe; Apia left out a whole day.
ZONES = [
    *("America/Sao_Paulo", "America/Havana", "Africa/Cairo", "Asia/Beirut"),
    *("Australia/Lord_Howe", "Pacific/Apia", "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"),
]
BORN = st.integers(946_684_800, 4_102_444_800)  # the years 2000 to 2099


def window(**fields: Any) -> Window:
    return msgspec.convert(fields, Window)


def at(born: str, **fields: Any) -> Span:
    return window(**fields).at(datetime.fromisoformat(born).timestamp())


def utc(span: Span) -> tuple[str, str]:
    return f"{span.begin.astimezone(UTC):%Y-%m-%dT%H:%MZ}", f"{span.end.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


@pytest.mark.parametrize(
    ("born", "period", "tz", "expected", "name"),
    [
        ("2026-11-28T10:00:00Z", "yesterday", "UTC", ("2026-11-27T00:00Z", "2026-11-28T00:00Z"), "2026-11-27"),
        ("2026-11-28T00:00:00Z", "yesterday", "UTC", ("2026-11-27T00:00Z", "2026-11-28T00:00Z"), "2026-11-27"),
        ("2026-11-27T23:30:00Z", "yesterday", "Europe/Berlin", ("2026-11-26T23:00Z", "2026-11-27T23:00Z"), "2026-11-27"),
        ("2026-03-30T05:00:00Z", "yesterday", "Europe/Berlin", ("2026-03-28T23:00Z", "2026-03-29T22:00Z"), "2026-03-29"),
        ("2026-10-26T05:00:00Z", "yesterday", "Europe/Berlin", ("2026-10-24T22:00Z", "2026-10-25T23:00Z"), "2026-10-25"),
        ("2018-11-05T12:00:00Z", "yesterday", "America/Sao_Paulo", ("2018-11-04T03:00Z", "2018-11-05T02:00Z"), "2018-11-04"),
        ("2026-11-30T05:00:00Z", "last-week", "UTC", ("2026-11-23T00:00Z", "2026-11-30T00:00Z"), "2026-W48"),
        ("2026-11-29T23:59:59Z", "last-week", "UTC", ("2026-11-16T00:00Z", "2026-11-23T00:00Z"), "2026-W47"),
        ("2027-01-05T00:00:00Z", "last-week", "UTC", ("2026-12-28T00:00Z", "2027-01-04T00:00Z"), "2026-W53"),
        ("2026-03-01T00:00:00Z", "last-month", "UTC", ("2026-02-01T00:00Z", "2026-03-01T00:00Z"), "2026-02"),
        ("2024-03-31T23:00:00Z", "last-month", "UTC", ("2024-02-01T00:00Z", "2024-03-01T00:00Z"), "2024-02"),
        ("2026-01-01T00:30:00Z", "last-month", "America/New_York", ("2025-11-01T04:00Z", "2025-12-01T05:00Z"), "2025-11"),
    ],
)
def test_a_period_is_by_the_calendar_of_its_zone(born: str, period: str, tz: str, expected: Any, name: str) -> None:
    span = at(born, period=period, tz=tz)
    assert (utc(span), span.name) == (expected, name)


def test_a_day_whose_midnight_was_left_out_begins_when_the_clock_has_jumped() -> None:
    span = at("2018-11-05T12:00:00Z", period="yesterday", tz="America/Sao_Paulo")
    assert (span.begin.isoformat(), span.end.isoformat()) == ("2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00")


@hypothesis_settings(max_examples=300, deadline=None)
@given(born_s=BORN, zone=st.sampled_from(ZONES))
def test_days_lie_end_to_end(born_s: int, zone: str) -> None:
    """Yesterday ends at or before now, within a day and the change of a clock; the day before it ends where it begins."""
    span = window(period="yesterday", tz=zone).at(born_s)
    born = datetime.fromtimestamp(born_s, UTC)
    assert span.end <= born < span.end + timedelta(days=1, hours=2)
    hours = (span.end.timestamp() - span.begin.timestamp()) / 3600
    assert 22.5 <= hours <= 25.5 or (zone == "Pacific/Apia" and hours == 0)
    assert window(period="yesterday", tz=zone).at(span.end.timestamp()).end <= span.end
    if hours:
        before = window(period="yesterday", tz=zone).at(span.end.timestamp() - 1)
        assert before.end.timestamp() == span.begin.timestamp()
        assert before.name < span.name


@hypothesis_settings(max_examples=200, deadline=None)
@given(born_s=BORN, zone=st.sampled_from(ZONES), period=st.sampled_from(["last-week", "last-month"]))
def test_weeks_and_months_are_whole(born_s: int, zone: str, period: str) -> None:
    span = window(period=period, tz=zone).at(born_s)
    again = window(period=period, tz=zone).at(span.end.timestamp())
    assert again == span, "all of the next week or month means the same"
    days = (span.end.replace(tzinfo=None) - span.begin.replace(tzinfo=None)) / timedelta(1)
    assert round(days) in ((7,) if period == "last-week" else range(28, 32))
    first = span.begin.astimezone(ZoneInfo(zone))
    assert first.weekday() == 0 if period == "last-week" else first.day == 1
    assert span.end.timestamp() <= born_s


@given(born_s=BORN, length=st.integers(5, 500_000))
def test_the_last_minutes_end_when_the_job_was_born(born_s: int, length: int) -> None:
    span = window(last=f"{length}m").at(born_s + 0.5)
    assert (span.end - span.begin, span.end.timestamp()) == (timedelta(minutes=length), born_s)
    assert all(character.isalnum() or character == "-" for character in span.name)


def test_two_times_are_what_they_say() -> None:
    fields = {"from": "2026-01-01T00:00:00+01:00", "to": "2026-01-02T00:00:00.5Z", "tz": "Europe/Berlin"}
    span = window(**fields).at(0)
    assert span.begin.isoformat() == "2026-01-01T00:00:00+01:00"
    assert span.end.isoformat() == "2026-01-02T01:00:00.500000+01:00"
    assert span.name == "20251231T230000Z-20260102T000000500000Z"
    assert msgspec.json.decode(msgspec.json.encode(window(**fields)), type=Window) == window(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tz": "UTC"},
        {"last": "24h", "period": "yesterday"},
        {"from": "2026-01-01T00:00:00Z"},
        {"to": "2026-01-01T00:00:00Z"},
        {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "last": "24h"},
        {"from": "2026-01-02T00:00:00Z", "to": "2026-01-02T00:00:00Z"},
        {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
        {"from": "2024-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
        {"from": "2026-01-01T00:00:00", "to": "2026-01-02T00:00:00"},
        {"from": "2026-13-01T00:00:00Z", "to": "2026-12-02T00:00:00Z"},
        {"from": "2026-02-30T00:00:00Z", "to": "2026-03-02T00:00:00Z"},
        {"from": "2026-01-01T25:00:00Z", "to": "2026-01-02T00:00:00Z"},
        {"from": "2026-01-01T00:00:00Z\n", "to": "2026-01-02T00:00:00Z"},
        {"from": "0001-01-01T00:00:00+14:00", "to": "0001-01-02T00:00:00Z"},
        {"last": "4m"},
        {"last": "0d"},
        {"last": "401d"},
        {"last": "1w"},
        {"last": "5m\n"},
        {"last": "-5m"},
        {"period": "today"},
        {"period": "yesterday", "tz": "Mars/Olympus"},
        {"period": "yesterday", "tz": "/etc/localtime"},
        {"period": "yesterday", "tz": "../UTC"},
        {"period": "yesterday", "tz": "America"},
        {"period": "yesterday", "tz": "UTC\n"},
        {"period": "yesterday", "day": 1},
    ],
)
def test_what_is_no_window_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        window(**fields)
