"""Schedules: checked where they are made, merged with what stands in Redis, and what of them is due."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Priority, Schedule, contract
from runtime.errors import ConfigError
from runtime.schedules import Definition, Due, Row, as_stored, merge, read_row, stored_members

NOON = 1_800_014_400_000 // 86_400_000 * 86_400_000 + 43_200_000
MINUTE = 60_000
HOUR = 3_600_000
DAY = 86_400_000
OFFSET = int(hashlib.sha256(b"nightly").hexdigest()[:16], 16) % 120_000


@contract("clean", version=3, priority=Priority.LOW)
class Clean(msgspec.Struct):
    root: str = "logs"
    part: float | None = None


class Loose(msgspec.Struct):
    pass


def made(when: str = "* * * * *", **options: Any) -> Definition:
    return Schedule(options.pop("name", "nightly"), when, options.pop("message", Clean()), **options).definition


# --- made ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "Nightly"}, "schedule 'Nightly': name: must be 1 to 64 of [a-z0-9._-]"),
        ({"name": ""}, "schedule '': name"),
        ({"name": "a" * 65}, "name: must be"),
        ({"name": "a\n"}, "name: must be"),
        ({"name": 3}, "schedule: name 3: must be"),
        ({"when": "61 * * * *"}, "schedule 'nightly': when '61 * * * *': minute '61'"),
        ({"when": None}, "when None: "),
        ({"when": "", "every_s": 0}, "every_s 0.0: must be a number of seconds between"),
        ({"every_s": 5}, "when, every_s: must be exactly one of the two"),
        ({"when": "", "every_s": "5"}, "every_s '5': expected"),
        ({"tz": "Mars"}, "tz 'Mars': must be the name of a time zone"),
        ({"tz": 1}, "tz 1: expected `str`, got `int`"),
        ({"message": Loose()}, "message: Loose is not a contract"),
        ({"message": {"root": 1}}, "message: dict is not a contract"),
        ({"message": Clean(root=3)}, "message: cannot be written as JSON and read again: Expected `str`"),  # type: ignore[arg-type]
        ({"message": Clean(part=math.inf)}, "message: cannot be written as JSON and read again: it holds NaN or infinity"),
        ({"message": Clean(root="x" * 300_000)}, "message: must be at most 262144 bytes of JSON"),
        ({"missed": "never"}, "missed 'never': must be latest or skip or all"),
        ({"overlap": 1}, "overlap 1: must be allow or skip"),
        ({"cap": 0}, "cap 0: must be between 1 and 100"),
        ({"cap": 101}, "cap 101: must be between 1 and 100"),
        ({"cap": 1.5}, "cap 1.5: expected `int`"),
        ({"jitter_s": -1}, "jitter_s -1.0: must be between 0 and 86400"),
        ({"jitter_s": math.nan}, "jitter_s nan: must be between"),
        ({"expires_s": 0}, "expires_s 0.0: must be between 1 and"),
        ({"paused": "yes"}, "paused 'yes': expected `bool`"),
        ({"priority": 5}, "priority 5: must be between 1 and 4"),
    ],
)
def test_a_wrong_argument_is_named_where_the_schedule_is_made(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        made(**options)


def test_its_messages_are_those_of_the_contract() -> None:
    fields = made().fields()
    assert dict(zip(fields[::2], fields[1::2], strict=True)) == {
        b"type": b"clean",
        b"v": b"3",
        b"data": b'{"root":"logs","part":null}',
    }
    assert made().settings.priority == Priority.LOW
    assert made(priority=Priority.HIGH).settings.priority == Priority.HIGH


def test_the_offset_is_the_names_alone_and_less_than_the_jitter() -> None:
    offsets = {made(name=f"n{number}", jitter_s=120).offset_ms for number in range(100)}
    assert all(0 <= offset < 120_000 for offset in offsets)
    assert len(offsets) > 90
    assert made(jitter_s=120).offset_ms == made("0 0 * * *", jitter_s=120).offset_ms == OFFSET  # in every process and release
    assert made().offset_ms == 0


def test_one_hash_tells_of_other_times_and_one_of_anything_else() -> None:
    one = made()
    for other in (made("*/2 * * * *"), made(tz="Asia/Tokyo"), made("", every_s=60), made(jitter_s=1)):
        assert other.when_hash != one.when_hash
        assert other.whole_hash != one.whole_hash
    for other in (made(message=Clean("x")), made(missed="all"), made(paused=True), made(priority=1), made(expires_s=9)):
        assert other.when_hash == one.when_hash
        assert other.whole_hash != one.whole_hash
    assert made().whole_hash == one.whole_hash


# --- due ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "behind_ms", "ticks", "missed"),
    [
        ({}, MINUTE, 1, 0),
        ({"missed": "skip"}, MINUTE, 1, 0),
        ({"when": "0 * * * *"}, 5 * HOUR, 1, 4),  # the one on time is newer than those missed
        ({"when": "0 * * * *", "missed": "all"}, 5 * HOUR, 5, 0),
        ({"when": "0 * * * *", "missed": "all", "cap": 2}, 5 * HOUR, 3, 2),
        ({"when": "0 * * * *", "missed": "skip"}, 5 * HOUR, 1, 4),
        ({"when": "30 * * * *"}, 5 * HOUR, 1, 4),
        ({"when": "30 * * * *", "missed": "all"}, 5 * HOUR, 5, 0),
        ({"when": "30 * * * *", "missed": "all", "cap": 2}, 5 * HOUR, 2, 3),
        ({"when": "30 * * * *", "missed": "skip"}, 5 * HOUR, 0, 5),
        ({"when": "* * * * * *"}, 10_000, 10, 0),
        ({"when": "* * * * * *"}, 90_000, 61, 29),  # a minute old is on time
        ({"when": "30 * * * *", "paused": True}, 5 * HOUR, 0, 0),
    ],
)
def test_what_is_on_time_fires_and_what_is_late_as_the_policy_says(
    options: dict[str, Any], behind_ms: int, ticks: int, missed: int
) -> None:
    due = made(**options).due(NOON - behind_ms, NOON)
    assert (len(due.ticks), due.missed) == (ticks, missed)
    assert due.ticks == sorted(set(due.ticks))
    newest = NOON - 30 * MINUTE if options.get("when", "").startswith("30") else NOON
    assert due.last_ms == newest
    assert not ticks or due.ticks[-1] == newest


def test_where_no_tick_was_due_nothing_is_decided() -> None:
    assert made().due(NOON, NOON + 59_999) == Due([], 0, NOON)


def test_a_year_behind_the_newest_are_fired() -> None:
    due = made(missed="all", cap=100).due(NOON - 365 * DAY, NOON)
    assert due.ticks == [NOON - at * MINUTE for at in range(101, -1, -1)]  # two are on time
    assert due.missed > 0
    assert due.last_ms == NOON


def test_with_an_offset_a_tick_fires_later_and_keeps_its_time() -> None:
    schedule = made("0 * * * *", jitter_s=600)
    offset = schedule.offset_ms
    assert offset
    assert schedule.due(NOON - 1, NOON + offset - 1).ticks == []
    due = schedule.due(NOON - 1, NOON + offset)
    assert due.ticks == [NOON]
    assert due.last_ms == NOON + offset
    assert schedule.due(due.last_ms, NOON + HOUR).ticks == []
    assert schedule.fires_after(due.last_ms) == [NOON + HOUR + offset]
    assert schedule.fires_after(NOON) == [NOON + offset]


def test_a_tick_expires_as_long_after_as_it_says() -> None:
    assert made().expires_ms(NOON) is None
    assert made(expires_s=90).expires_ms(NOON) == NOON + 90_000


@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "13 5 * * *", "* * * * * *"]),
    st.sampled_from(["latest", "skip", "all"]),
    st.lists(st.integers(1, 3 * HOUR), min_size=1, max_size=12),
    st.integers(1, 100),
    st.sampled_from([0, 90]),
)
def test_however_often_it_is_asked_each_tick_is_decided_once(
    when: str, missed: str, steps: list[int], cap: int, jitter_s: int
) -> None:
    schedule = made(when, missed=missed, cap=cap, jitter_s=jitter_s)
    now = last = begin = NOON
    fired: list[int] = []
    for step in steps:
        now += step
        due = schedule.due(last, now)
        assert last <= due.last_ms <= now
        assert all(last < tick + schedule.offset_ms <= due.last_ms for tick in due.ticks)
        on_time = schedule.times.between(max(last, now - MINUTE - 1) - schedule.offset_ms, now - schedule.offset_ms)
        assert due.ticks[len(due.ticks) - len(on_time) :] == on_time
        assert len(due.ticks) - len(on_time) <= {"latest": 1, "skip": 0, "all": cap}[missed]
        fired += due.ticks
        last = due.last_ms
    assert fired == sorted(set(fired))
    assert set(fired) <= set(schedule.times.between(begin - schedule.offset_ms, now))


# --- merged -------------------------------------------------------------------------------------------------------------------

WHOLE = {"type": "clean", "when": "5 * * * *", "data": {"root": "tmp"}, "priority": 2}


def test_a_whole_schedule_comes_from_redis() -> None:
    found, unreadable = merge({}, {"hourly": f"7 {json.dumps(WHOLE)}"})
    assert not unreadable
    assert found["hourly"].revision == 7
    assert found["hourly"].times.expression == "5 * * * *"
    assert found["hourly"].fields() == [b"type", b"clean", b"data", b'{"root": "tmp"}']


def test_what_is_written_is_read_again() -> None:
    one = made("0 3 * * *", tz="Asia/Tokyo", missed="all", cap=7, overlap="skip", jitter_s=3, expires_s=60, paused=True)
    found, unreadable = merge({}, {"nightly": f"0 {as_stored(one.settings)}"})
    assert not unreadable
    assert found == {"nightly": one}
    assert found["nightly"].whole_hash == one.whole_hash


def test_one_from_code_is_overridden_member_by_member() -> None:
    code = {"nightly": made("0 3 * * *", missed="all")}
    found, unreadable = merge(code, {"nightly": '2 {"paused":true,"when":"","every_s":60}'})
    assert not unreadable
    assert found["nightly"].settings.paused
    assert found["nightly"].times.every_ms == 60_000
    assert found["nightly"].settings.missed == "all"
    assert found["nightly"].fields() == code["nightly"].fields()
    assert found["nightly"].whole_hash not in (
        code["nightly"].whole_hash,
        merge(code, {"nightly": "3 {}"})[0]["nightly"].whole_hash,
    )
    assert merge(code, {"nightly": "2 {}"})[0]["nightly"].when_hash == code["nightly"].when_hash


def test_a_whole_one_in_redis_wins_over_code() -> None:
    code = {"hourly": made(name="hourly", missed="all")}
    found, _ = merge(code, {"hourly": f"1 {json.dumps(WHOLE)}"})
    assert found["hourly"].settings.missed == "latest"


def test_what_overrides_a_schedule_of_other_code_is_left_out() -> None:
    assert merge({}, {"nightly": '2 {"paused":true}'}) == ({}, {})


@pytest.mark.parametrize(
    "text",
    ["", "1", "1 [", "1 []", "x {}", "-1 {}", "1 {\"type\":3}", '1 {"type":"clean"}', '1 {"paused":3}', '1 {"when":"61 * * * *"}',
     '1 {"cap":1000}', "1" * 30 + " {}", "1 " + "[" * 100_000, "\N{SUPERSCRIPT TWO} {}",
     '1 {"type":"","when":"* * * * *","data":1}'],
)  # fmt: skip
def test_what_cannot_be_read_is_told_and_does_not_run_and_the_others_go_on(text: str) -> None:
    code = {"nightly": made(), "other": made(name="other")}
    found, unreadable = merge(code, {"nightly": text, "hourly": f"1 {json.dumps(WHOLE)}"})
    assert found.keys() == {"other", "hourly"}
    assert list(unreadable) == ["nightly"]
    assert unreadable["nightly"].startswith("schedule 'nightly': ")


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=40) | st.just('1 {"type":"a","data":1,"when":"* * * * *"}')))
def test_whatever_stands_in_redis_reading_it_raises_nothing(stored: dict[str, str]) -> None:
    found, unreadable = merge({}, stored)
    assert not found.keys() & unreadable.keys()


@pytest.mark.parametrize("text", ["", "1 ab cd", "x ab cd 5 -", "1 ab cd x -", "1" * 30 + " ab cd 5 -"])
def test_what_is_no_row_is_none(text: str) -> None:
    assert read_row(text) is None


def test_a_row_is_read() -> None:
    assert read_row("7 ab cd 5 ef,gh 1f 2s") == Row(7, 5, "cd", ["1f", "2s"])


@pytest.mark.parametrize("text", ["", "rubbish", "1 [", "x {}"])
def test_what_cannot_be_read_has_no_members(text: str) -> None:
    assert stored_members(text) == (1 if text.startswith("1") else 0, {})
    assert stored_members('3 {"cap":1}') == (3, {"cap": msgspec.Raw(b"1")})
