"""`Control` on schedules: added, edited, paused, run, backfilled and removed in Python. Wrong arguments change nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from runtime import ConfigError, Control, Priority, Schedule, StoreUnavailable, contract
from runtime.schedules import Elsewhere, Row
from runtime.store.control import ChangedMeanwhile
from tests.proxy import Proxy
from tests.servers import Server

CRON, STATE = "{jobs}:cron", "{jobs}:cron:state"


@contract("tidy", priority=Priority.LOW)
class Tidy(msgspec.Struct, kw_only=True):
    root: str = "app"


@contract("tidy", version=2)
class Tidier(msgspec.Struct, kw_only=True):
    roots: list[str]


@contract("other")
class Other(msgspec.Struct):
    pass


CODE = Schedule("hourly", "15 * * * *", Tidy(), tz="Asia/Kathmandu")
NIGHTLY = Schedule("nightly", "0 3 * * *", Tidy(root="web"), expires_s=3600)


@pytest.fixture
async def control(server: Server) -> AsyncIterator[Control]:
    async with Control(server.url, by="ann@host", schedules=[CODE]) as opened:
        yield opened


async def settings_of(control: Control, name: str) -> Any:
    return (await control.schedules()).named(name).settings


async def test_one_is_added_edited_paused_resumed_and_removed(control, raw):
    assert await control.add_schedule(NIGHTLY, reason="why")
    known = await control.schedules()
    assert {name: one.source for name, one in known.in_force.items()} == {"hourly": "code", "nightly": "Redis"}
    assert known.named("nightly").settings == NIGHTLY.definition.settings
    assert not known.in_force["nightly"].is_ruling, "no worker has seen it yet"
    assert await control.edit_schedule("nightly", message=Tidy(root="api"), every_s=90, expires_s=None, priority="high")
    now = await settings_of(control, "nightly")
    assert (now.when, now.every_s, bytes(now.data), now.expires_s, now.priority) == ("", 90, b'{"root":"api"}', None, 2)
    assert await control.edit_schedule("nightly", when="@daily", priority=Priority.CRITICAL)
    assert not await control.edit_schedule("nightly", when="@daily")
    assert (await settings_of(control, "nightly")).every_s is None
    assert await control.pause_schedule("nightly")
    assert not await control.pause_schedule("nightly")
    assert (await settings_of(control, "nightly")).paused
    assert await control.resume_schedule("nightly")
    assert await control.remove_schedule("nightly")
    assert raw.exists(CRON) == 0
    assert [(change.by, change.reason, change.what) for change in await control.audit()][-1] == (
        "ann@host",
        "why",
        "put cron:nightly data,expires_s,priority,type,version,when",
    )


async def test_of_one_from_code_only_what_is_given_stands_in_redis(control, raw):
    assert await control.edit_schedule("hourly", cap=3)
    assert await control.pause_schedule("hourly")
    assert raw.hget(CRON, "hourly") == '2 {"cap":3,"paused":true}'
    known = await control.schedules()
    assert (known.in_force["hourly"].source, known.named("hourly").settings.tz) == ("code, overridden", "Asia/Kathmandu")
    assert await control.remove_schedule("hourly")
    known = await control.schedules()
    assert (known.in_force["hourly"].source, known.named("hourly").settings.cap) == ("code", 100)


async def test_a_payload_of_a_newer_contract_brings_its_version(control):
    await control.edit_schedule("hourly", message=Tidier(roots=["a"]))
    now = await settings_of(control, "hourly")
    assert (now.version, bytes(now.data)) == (2, b'{"roots":["a"]}')


async def test_its_job_is_sent_now_and_one_that_overlaps_with_none_once(control, raw):
    await control.add_schedule(Schedule("alone", "0 3 * * *", Tidy(), overlap="skip", expires_s=60))
    sent = await control.run_schedule("alone")
    assert sent.new
    assert sent.id.startswith("cron:alone:now-")
    [(_, fields)] = raw.xrange("{jobs}:low")
    assert (fields["id"], fields["key"], int(fields["exp"]) - int(sent.id.rpartition("-")[2])) == (sent.id, "cron:alone", 60_000)
    assert not (await control.run_schedule("alone")).new
    assert raw.exists(STATE) == 0


async def test_ticks_of_the_past_are_sent_with_their_ids_and_do_not_expire(control, raw):
    zone = ZoneInfo("Asia/Kathmandu")
    begin, end = datetime(2024, 11, 1, 0, 15), datetime(2024, 10, 31, 21, 30, tzinfo=UTC)
    ticks = await control.backfill_schedule("hourly", begin, end, is_dry_run=True)
    assert ticks == [datetime(2024, 11, 1, hour, 15, tzinfo=zone) for hour in range(3)]
    assert raw.exists("{jobs}:low") == 0
    assert await control.backfill_schedule("hourly", begin, end) == ticks
    sent = [fields for _, fields in raw.xrange("{jobs}:low")]
    assert [fields["id"] for fields in sent] == [f"cron:hourly:{round(tick.timestamp() * 1000)}" for tick in ticks]
    assert all("exp" not in fields and fields["first_at"] in fields["id"] for fields in sent)
    assert await control.backfill_schedule("hourly", end + timedelta(seconds=1), end + timedelta(minutes=1)) == []


async def test_what_cannot_be_read_is_told_and_removed_whatever_its_name(control, raw):
    raw.hset(CRON, mapping={"Bad\nname": "rubbish", "hourly": '3 {"cap":0}', "elsewhere": '3 {"cap":3}'})
    known = await control.schedules()
    assert set(known.unreadable) == {"Bad\nname", "hourly"}
    assert (known.in_force, known.elsewhere) == ({}, {"elsewhere": Elsewhere(False, None)})
    with pytest.raises(ConfigError, match=r"cap 0: must be between.*cron remove hourly"):
        await control.edit_schedule("hourly", cap=2)
    for name in ("Bad\nname", "hourly", "elsewhere"):
        assert await control.remove_schedule(name)
    assert set((await control.schedules()).in_force) == {"hourly"}


async def test_one_of_code_that_is_not_here_can_be_paused_and_resumed_and_no_more(control, raw):
    raw.hset(STATE, "far-away", "1000 ab cd 2000 - 1000f")
    row = Row(1000, 2000, "cd", ["1000f"])
    assert (await control.schedules()).elsewhere == {"far-away": Elsewhere(False, row)}
    assert await control.pause_schedule("far-away")
    assert not await control.pause_schedule("far-away")
    assert raw.hget(CRON, "far-away") == '1 {"paused":true}'
    assert (await control.schedules()).elsewhere["far-away"].is_paused
    assert await control.resume_schedule("far-away")
    assert not await control.resume_schedule("far-away")
    with pytest.raises(ConfigError, match="schedule 'far-away' is of code that is not here"):
        await control.edit_schedule("far-away", cap=3)
    with pytest.raises(ConfigError, match="there is a schedule 'far-away' already"):
        await control.add_schedule(Schedule("far-away", "@daily", Tidy()))


T = datetime(2024, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("verb", "given", "named", "text"),
    [
        ("add_schedule", ["nightly"], {}, "schedule must be a Schedule, got 'nightly'"),
        ("add_schedule", [CODE], {}, "there is a schedule 'hourly' already; hint: edit it, or remove it first"),
        ("add_schedule", [NIGHTLY], {"reason": "a\nb"}, "reason must be one line"),
        ("edit_schedule", ["hourly"], {}, "give at least one of message, when, every_s"),
        ("edit_schedule", ["nobody"], {"cap": 3}, "no schedule 'nobody'; there are hourly; hint: those of code"),
        ("edit_schedule", [None], {"cap": 3}, "name must be a text, got None"),
        ("edit_schedule", ["hourly"], {"when": ""}, "when, every_s: must be exactly one"),
        ("edit_schedule", ["hourly"], {"when": 5}, "when 5: expected `str`"),
        ("edit_schedule", ["hourly"], {"when": "0 3 * * *", "every_s": 5}, "when, every_s: must be exactly one"),
        ("edit_schedule", ["hourly"], {"every_s": float("nan")}, "every_s nan: must be a number of seconds"),
        ("edit_schedule", ["hourly"], {"jitter_s": float("nan")}, "jitter_s nan: must be between 0"),
        ("edit_schedule", ["hourly"], {"tz": "Mars"}, "tz 'Mars'"),
        ("edit_schedule", ["hourly"], {"missed": "never"}, "missed 'never': must be latest or skip or all"),
        ("edit_schedule", ["hourly"], {"overlap": True}, "overlap True: must be allow or skip"),
        ("edit_schedule", ["hourly"], {"cap": 101}, "cap 101: must be between 1 and 100"),
        ("edit_schedule", ["hourly"], {"expires_s": 0}, "expires_s 0.*: must be between 1"),
        ("edit_schedule", ["hourly"], {"priority": "urgent"}, "priority must be one of critical, high, medium, low"),
        ("edit_schedule", ["hourly"], {"message": Other()}, "message: must be a job of type 'tidy', got one of 'other'"),
        ("edit_schedule", ["hourly"], {"message": "x"}, "message: str is not a contract"),
        ("pause_schedule", ["nobody"], {}, "no schedule 'nobody'"),
        ("resume_schedule", ["hourly"], {"reason": None}, "reason must be"),
        ("remove_schedule", ["hourly"], {}, "no schedule 'hourly' in Redis; it is one of the code: pause it"),
        ("remove_schedule", ["nobody"], {}, "no schedule 'nobody' in Redis"),
        ("run_schedule", ["nobody"], {}, "no schedule 'nobody'"),
        ("run_schedule", [["hourly"]], {}, "name must be a text"),
        ("backfill_schedule", ["hourly", "today", T], {}, "begin must be a datetime, got 'today'"),
        ("backfill_schedule", ["hourly", T, None], {}, "end must be a datetime, got None"),
        ("backfill_schedule", ["hourly", T, T], {}, "begin, end .*: must be two times"),
        ("backfill_schedule", ["hourly", T, T.replace(year=2199)], {}, "neither may lie ahead"),
        ("backfill_schedule", ["hourly", T.replace(year=2020), T], {}, "more than 1,000 ticks"),
    ],
)
async def test_a_wrong_argument_is_refused_by_name_and_nothing_changes(control, raw, verb, given, named, text):
    with pytest.raises(ConfigError, match=text):
        await getattr(control, verb)(*given, **named)
    assert raw.keys() == []


@pytest.mark.parametrize("key", [CRON, STATE])
async def test_a_key_of_another_type_is_named(control, raw, key):
    raw.set(key, "x")
    with pytest.raises(StoreUnavailable, match=f"WRONGTYPE.*\\({key}\\)"):
        await control.schedules()


async def test_a_schedule_that_is_too_large_for_redis_is_refused_with_its_size(control, raw):
    with pytest.raises(ConfigError, match=r"schedule 'hourly': must be at most 16,384 bytes in Redis, got 20,0"):
        await control.edit_schedule("hourly", message=Tidy(root="x" * 20_000))
    assert raw.keys() == []


def test_two_schedules_of_the_code_have_two_names():
    with pytest.raises(ConfigError, match="two schedules have the name 'hourly'"):
        Control("redis://127.0.0.1:1", schedules=[CODE, CODE])


# --- others that change it at the same time -----------------------------------------------------------------------------


def meanwhile(control: Control, other: Control, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let another edit the schedule each time it was read, so many times."""
    read = control._store.schedules
    caps = iter(range(1, times + 1))

    async def read_and_be_late() -> Any:
        found = await read()
        for cap in caps:
            await other.edit_schedule("nightly", cap=cap)
            break
        return found

    monkeypatch.setattr(control._store, "schedules", read_and_be_late)


async def test_what_another_changes_meanwhile_is_kept(server, control, monkeypatch):
    await control.add_schedule(NIGHTLY)
    async with Control(server.url) as other:
        meanwhile(control, other, monkeypatch, 2)
        assert await control.edit_schedule("nightly", tz="Europe/Berlin")
        now = await settings_of(other, "nightly")
        assert (now.cap, now.tz) == (2, "Europe/Berlin")


async def test_who_is_late_again_and_again_is_told(server, control, monkeypatch):
    await control.add_schedule(NIGHTLY)
    async with Control(server.url) as other:
        meanwhile(control, other, monkeypatch, 9)
        with pytest.raises(ChangedMeanwhile, match="nightly was changed meanwhile"):
            await control.edit_schedule("nightly", tz="Europe/Berlin")
        assert (await settings_of(other, "nightly")).tz == "UTC"


@pytest.mark.parametrize("cut_at_bytes", [0, 3])
async def test_a_change_whose_answer_was_lost_is_made_once(server, raw, cut_at_bytes):
    async with Proxy(server.socket) as proxy, Control(proxy.url) as control:
        await control.add_schedule(NIGHTLY)
        await control.schedules()
        proxy.drop_next_reply(b"EVALSHA", cut_at_bytes)
        assert not await control.edit_schedule("nightly", cap=3), "it stands already"
        proxy.drop_next_reply(b"EVALSHA", cut_at_bytes)
        assert not await control.remove_schedule("nightly")
        assert proxy.dropped == 2
    assert raw.hget("{jobs}:control", "v") == "3"
    assert raw.exists(CRON) == 0


async def test_where_no_server_is_that_is_said():
    async with Control("redis://127.0.0.1:1") as control:
        with pytest.raises(StoreUnavailable):
            await control.schedules()
