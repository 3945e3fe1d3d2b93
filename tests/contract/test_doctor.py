"""What a doctor finds in a queue, on each server; its findings as people see them: tests/commands/test_on_call.py."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import redis

from runtime.errors import StoreUnavailable
from runtime.findings import Finding
from runtime.store.base import GROUP, LAYOUT
from runtime.store.control import REOPEN_IDS, ControlStore
from runtime.store.doctor import FIX_END, LOOK_AT, MAX_SHOWN, Doctor
from tests.servers import Server

KEY = "{jobs}:high"
HOUR_MS = 3_600_000


@pytest.fixture
async def doctor(server: Server) -> AsyncIterator[Doctor]:
    opened = Doctor(server.url, "jobs")
    yield opened
    await opened.close()


@pytest.fixture
def at_work(raw: redis.Redis) -> redis.Redis:
    """A queue on which a worker lives."""
    for name in ("critical", "high", "medium", "low"):
        raw.xgroup_create(f"{{jobs}}:{name}", GROUP, "0", mkstream=True)
    raw.zadd("{jobs}:workers", {"me": now_ms() + 60_000})
    return raw


def now_ms() -> int:
    return int(time.time() * 1000)


async def found(doctor: Doctor) -> list[Finding]:
    """Return what is wrong, but for the file that servers of tests do not have."""
    findings = await doctor.examine(now_ms())
    return [finding for finding in findings if finding.level != "ok" and "append-only" not in finding.what]


async def only(doctor: Doctor) -> Finding:
    [finding] = await found(doctor)
    assert finding.fix
    return finding


def add(raw: redis.Redis, n: int = 1) -> list[str]:
    return [str(raw.xadd(KEY, {"type": "t", "data": "{}"})) for _ in range(n)]


async def test_a_queue_without_faults_has_no_finding_but_its_size(doctor, at_work):
    assert await found(doctor) == []
    assert (await doctor.examine(now_ms()))[-1] == Finding("ok", "1 workers, backlog 0, delayed 0, dead 0")


async def test_a_queue_to_which_nothing_was_sent_yet_has_no_fault(doctor, raw):
    assert await found(doctor) == []


async def test_jobs_that_no_worker_fetches_are_an_error(doctor, at_work):
    at_work.delete("{jobs}:workers")
    add(at_work, 3)
    finding = await only(doctor)
    assert (finding.level, finding.what) == ("error", "3 jobs wait and no worker lives")


async def test_a_stream_without_its_group_is_an_error(doctor, at_work):
    at_work.xgroup_destroy(KEY, GROUP)
    at_work.xgroup_create(KEY, "others", "0")
    finding = await only(doctor)
    assert finding.what == f"{KEY} has no consumer group: nothing of it is fetched"
    assert f"redis-cli XGROUP CREATE '{KEY}' {GROUP} 0 MKSTREAM" in finding.fix


@pytest.mark.parametrize(("first", "before"), [("7-3", "7-2"), ("7-0", f"6-{2**64 - 1}")])
async def test_what_was_passed_over_is_fetched_after_the_command_that_fixes_it(doctor, at_work, first, before):
    at_work.xadd(KEY, {"type": "t", "data": "{}"}, id="1-1")
    at_work.xreadgroup(GROUP, "me", {KEY: ">"})
    for entry in (first, "8-1"):
        at_work.xadd(KEY, {"type": "t", "data": "{}"}, id=entry)
    at_work.xgroup_setid(KEY, GROUP, "$")
    finding = await only(doctor)
    assert finding.what.startswith(f"2 of the oldest 3 entries of {KEY} are delivered to no consumer")
    assert finding.fix == f"with all workers stopped: redis-cli XGROUP SETID '{KEY}' {GROUP} {before}"
    at_work.xgroup_setid(KEY, GROUP, before)
    [[_, entries]] = at_work.xreadgroup(GROUP, "me", {KEY: ">"})
    assert [entry for entry, _ in entries] == [first, "8-1"]


async def test_what_runs_and_what_is_parked_was_not_passed_over(doctor, at_work):
    entries = add(at_work, 3)
    at_work.xreadgroup(GROUP, "me", {KEY: ">"}, count=2)
    at_work.xclaim(KEY, GROUP, "~free", 0, entries[:1], justid=True)
    assert await found(doctor) == []


async def test_a_consumer_is_stale_when_it_has_no_row_and_has_held_jobs_for_an_hour(doctor, at_work):
    entries = add(at_work, 4)
    at_work.xreadgroup(GROUP, "vanished", {KEY: ">"})
    at_work.xclaim(KEY, GROUP, "vanished", 0, entries[:1], idle=HOUR_MS + 1000, justid=True)
    at_work.xclaim(KEY, GROUP, "me", 0, entries[1:2], idle=2 * HOUR_MS, justid=True)
    at_work.xclaim(KEY, GROUP, "~free", 0, entries[2:3], idle=2 * HOUR_MS, justid=True)
    at_work.xclaim(KEY, GROUP, "fresh", 0, entries[3:], idle=HOUR_MS - 60_000, justid=True)
    finding = await only(doctor)
    assert (finding.level, finding.what) == ("error", "consumer vanished holds jobs of high and has had no heartbeat for an hour")


async def test_lots_of_types_that_no_worker_knows_are_named_and_only_some_of_many(doctor, at_work):
    entries = add(at_work, MAX_SHOWN + 3)
    at_work.xreadgroup(GROUP, "me", {KEY: ">"})
    at_work.xclaim(KEY, GROUP, "~t:", 0, entries[:2], justid=True)
    for n, entry in enumerate(entries[2:]):
        at_work.xclaim(KEY, GROUP, f"~t:typo-{n:02}@1", 0, [entry], justid=True)
    findings = await found(doctor)
    assert [finding.level for finding in findings] == ["warning"] * MAX_SHOWN
    assert findings[0].what == "2 jobs of high wait for a worker that knows their types"
    assert findings[1].what == "1 jobs of high wait for a worker that knows typo-00"


async def test_messages_and_times_that_do_not_match_are_an_error_with_how_many_have_none(doctor, at_work):
    later_ms = now_ms() + HOUR_MS
    for n in range(5):
        at_work.hset("{jobs}:msg", f"m{n}", "record")
    at_work.zadd("{jobs}:due", {"m0": later_ms, "m1": later_ms})
    assert (await only(doctor)).what == "5 delayed messages and 2 times do not match (3 of 5 looked at have no time)"
    at_work.delete("{jobs}:msg")
    assert (await only(doctor)).what == "0 delayed messages and 2 times do not match (0 of 0 looked at have no time)"


async def test_delayed_jobs_that_nobody_moves_are_a_warning_after_a_minute(doctor, at_work):
    for ago_ms, is_late in ((30_000, False), (90_000, True)):
        at_work.hset("{jobs}:msg", "m", "record")
        at_work.zadd("{jobs}:due", {"m": now_ms() - ago_ms})
        findings = await found(doctor)
        assert bool(findings) is is_late
    assert findings[0].level == "warning"
    assert findings[0].what.startswith("a delayed job is overdue by 9")


@pytest.mark.parametrize("score", ["inf", "-inf", "1e300"])
async def test_a_time_that_no_clock_has_stops_no_doctor(doctor, at_work, score):
    at_work.hset("{jobs}:msg", "m", "record")
    at_work.zadd("{jobs}:due", {"m": float(score)})
    assert [finding.level for finding in await found(doctor)] == (["warning"] if score == "-inf" else [])


@pytest.mark.parametrize("name", ["high", "dead", "due", "msg", "workers", "workers:rows", "strikes", "wards"])
async def test_a_key_of_another_type_is_named_with_what_puts_it_aside_and_the_rest_is_looked_at(doctor, at_work, name):
    key = f"{{jobs}}:{name}"
    at_work.delete(key)
    at_work.set(key, "x")
    at_work.xgroup_destroy("{jobs}:low", GROUP)
    findings = await found(doctor)
    [wrong] = [finding for finding in findings if key + " has the type" in finding.what]
    assert (wrong.level, wrong.fix) == ("error", f"redis-cli RENAME '{key}' '{key}:was'")
    assert any("{jobs}:low has no consumer group" in finding.what for finding in findings) is (name != "workers")


@pytest.mark.parametrize("name", ["high", "dead"])
async def test_an_id_far_ahead_is_an_error_with_the_command_that_opens_the_stream(doctor, at_work, name):
    at_work.xadd(f"{{jobs}}:{name}", {"type": "t", "data": "{}"}, id=f"{now_ms() + 48 * HOUR_MS}-0")
    finding = await only(doctor)
    assert finding == Finding("error", f"{{jobs}}:{name} is closed by an id that lies 2.0 days ahead: a sender chose it", FIX_END)


async def test_what_was_set_aside_and_is_not_moved_yet_is_an_error_until_it_is(server, doctor, at_work):
    for n in range(REOPEN_IDS + 1):
        at_work.xadd(KEY, {"type": "t", "data": "{}"}, id=f"{now_ms() + 48 * HOUR_MS}-{n}")
    control = ControlStore(server.url, "jobs")
    assert await control.reopen(1) == (REOPEN_IDS, 1, True)
    assert await only(doctor) == Finding("error", f"{KEY} has entries set aside that are not moved yet", FIX_END)
    assert await control.reopen(1) == (1, 0, False)
    assert await found(doctor) == []
    await control.close()


@pytest.mark.parametrize(("layout", "words"), [(str(LAYOUT + 1), "written by a newer version"), ("one", "must be a number")])
async def test_a_layout_that_is_not_known_is_an_error(doctor, at_work, layout, words):
    at_work.set("{jobs}:layout", layout)
    assert words in (await only(doctor)).what


async def test_a_clock_is_compared_with_the_servers(doctor, at_work):
    off = [finding for finding in await doctor.examine(now_ms() - 20_000) if "clock" in finding.what]
    assert [finding.level for finding in off] == ["error"]


async def test_a_worker_that_is_silent_is_counted_apart_and_named_with_when_its_jobs_come_back(doctor, at_work):
    at_work.zadd("{jobs}:workers", {"web-9": now_ms() + 600_000 - 420_000})
    at_work.hset("{jobs}:workers:rows", "web-9", "600000 {}")
    finding = await only(doctor)
    assert (finding.level, finding.what) == ("warning", "worker web-9 is silent for 7 min, its jobs are taken back in 3 min")
    assert (await doctor.examine(now_ms()))[-1].what == "1 workers and 1 silent, backlog 0, delayed 0, dead 0"


async def test_of_each_structure_a_bounded_part_is_looked_at(doctor, at_work):
    add(at_work, LOOK_AT + 50)
    at_work.xgroup_setid(KEY, GROUP, "$")
    assert (await only(doctor)).what.startswith(f"{LOOK_AT} of the oldest {LOOK_AT} entries")


async def test_a_server_that_is_away_is_no_finding():
    doctor = Doctor("redis://127.0.0.1:1", "jobs")
    with pytest.raises(StoreUnavailable):
        await doctor.examine(now_ms())


# --- flow --------------------------------------------------------------------------------------------------------------------


def paused(raw: redis.Redis, name: str, for_ms: int, until_ms: int = 0) -> None:
    raw.hset("{jobs}:control", f"pause:{name}", f"{until_ms} {now_ms() - for_ms} ann@host down")


def at_gate(raw: redis.Redis, n: int = 1, lot: str = "~g:t") -> None:
    entries = add(raw, n)
    raw.xreadgroup(GROUP, "me", {KEY: ">"})
    raw.xclaim(KEY, GROUP, lot, 0, entries, retrycount=0, justid=True)


def knows(raw: redis.Redis, told: str, name: str = "me") -> None:
    raw.zadd("{jobs}:workers", {name: now_ms() + 60_000})
    raw.hset("{jobs}:workers:rows", name, f"30000 {told}")


@pytest.mark.parametrize(
    ("name", "fix"), [("t", "resume t"), ("high", "resume --priority high"), ("*", "resume --all")]
)  # fmt: skip
async def test_what_is_paused_for_long_with_jobs_waiting_is_a_warning_and_else_only_told(doctor, at_work, name, fix):
    knows(at_work, '{"types":{"t":1}}')
    paused(at_work, name, 2 * HOUR_MS)
    assert await found(doctor) == [], "nothing waits for it"
    at_gate(at_work, 3)
    finding = await only(doctor)
    assert (finding.level, finding.fix) == ("warning", f"python -m runtime {fix}")
    assert "has been paused for 2 h by ann@host (down): 3 jobs wait" in finding.what
    paused(at_work, name, HOUR_MS - 60_000)
    assert await found(doctor) == []
    assert any(row.level == "ok" and "paused for 59 min" in row.what for row in await doctor.examine(now_ms()))


async def test_jobs_at_the_gate_of_a_type_that_no_living_worker_knows_are_a_warning(doctor, at_work):
    at_gate(at_work, 2)
    knows(at_work, '{"types":{"other":1}}')
    finding = await only(doctor)
    assert finding.what == "2 jobs of t wait at their gate, and no worker that lives knows that type"
    knows(at_work, '{"types":{"t":1}}')
    assert await found(doctor) == []


async def test_rules_that_cannot_be_read_are_named_with_the_command_that_deletes_them(doctor, at_work):
    at_work.hset("{jobs}:control", mapping={"limit:mail": "{", "it's": "x"})
    findings = await found(doctor)
    assert [row.level for row in findings] == ["warning"] * 2
    assert findings[0].what.startswith("the rule limit:mail cannot be read and is left out: ")
    assert findings[0].fix == "redis-cli HDEL '{jobs}:control' limit:mail"
    assert findings[1].fix == """redis-cli HDEL '{jobs}:control' 'it'"'"'s'"""


async def test_keys_of_a_gate_that_are_of_another_type_are_errors_with_the_command_that_deletes_them(doctor, at_work):
    knows(at_work, '{"types":{"t":1},"limits":{"t":{"limit":5,"rate":"1/s"}}}')
    at_work.set("{jobs}:permits:t", "x")
    finding = await only(doctor)
    assert finding.level == "error"
    assert "{jobs}:permits:t is of another type" in finding.what
    assert finding.fix.startswith("redis-cli DEL '{jobs}:permits:t'")


async def test_limits_that_people_have_set_are_told(doctor, at_work):
    at_work.hset("{jobs}:control", "limit:t", '{"limit":5,"rate":null}')
    knows(at_work, '{"types":{"t":1}}')
    assert await found(doctor) == []
    told = [row.what for row in await doctor.examine(now_ms())]
    assert "people have set in place of the code of t: limit 5, rate none" in told


async def test_workers_that_declare_different_limits_are_a_warning(doctor, at_work):
    knows(at_work, '{"types":{"t":1},"limits":{"t":{"limit":5}}}')
    knows(at_work, '{"types":{"t":1}}', "older")
    assert (await only(doctor)).what.startswith("workers declare different limits of t: each applies its own")


async def test_schedules_that_nobody_fires_are_a_warning(doctor, at_work):
    def state(heard_ms: int) -> str:
        return f"{now_ms() - HOUR_MS} ab cd {heard_ms} - {now_ms() - HOUR_MS}f"

    late_ms = now_ms() - 10 * 60_000
    knows(at_work, f'{{"schedules":{{"stuck":{late_ms},"fine":{now_ms() + HOUR_MS},"off":0}}}}')
    rows = {"stuck": state(now_ms()), "fine": state(now_ms()), "off": state(now_ms()), "gone": state(now_ms() - 2 * HOUR_MS)}
    at_work.hset("{jobs}:cron:state", mapping={**rows, "left": state(now_ms() - 2 * HOUR_MS)})
    whole = '1 {"type":"t","data":{},"when":"@daily"}'
    at_work.hset("{jobs}:cron", mapping={"left": whole, "new": whole, "odd": "1 {"})
    assert {row.what.partition(":")[0]: row.level for row in await found(doctor)} == {
        "schedule 'odd'": "warning",
        "schedule stuck should have fired 10 min ago, and no worker has done it": "warning",
        "no worker that lives fires schedule left, for 2 h": "warning",
        "schedule new has been taken up by no worker yet": "warning",
    }
    assert any("schedule gone, for 2 h" in row.what and row.level == "ok" for row in await doctor.examine(now_ms()))
