"""Operations over many letters or jobs: what is meant, step by step, whoever steps and whoever dies."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis

from runtime import Backoff, Job, contract, handler
from runtime.control import Control
from runtime.errors import ConfigError, StoreError, StoreUnavailable
from runtime.operations import Filter, Operation
from runtime.store.base import Keys, script
from tests.servers import Server
from tests.workers import until, working

DEAD = "{jobs}:dead"
ZSET = "{jobs}:operations"
AT_ONCE: dict[str, Any] = {"hold_s": 0, "canary_s": 0, "rate": 0}


def hash_of(name: str) -> str:
    return f"{{jobs}}:operation:{name}"


@pytest.fixture
async def control(server: Server) -> AsyncIterator[Control]:
    async with Control(server.url, by="ann@host") as opened:
        yield opened


def bury(raw: redis.Redis, n: int, first: int = 0, **more: Any) -> list[str]:
    notes = {"dead_reason": "attempts", "dead_error": "e", "dead_from": "low/1-1", "dead_at": "7000", "dead_attempts": "3"}
    pipe = raw.pipeline(transaction=False)
    for at in range(first, first + n):
        pipe.xadd(DEAD, {"type": "t", "data": "{}", "id": f"j{at}", **notes, **more})
    return pipe.execute()


async def finish(control: Control, name: str, most: int = 1000) -> list[Any]:
    """Step until the operation rests; return the steps that acted."""
    steps: list[Any] = []
    for _ in range(most):
        step = await control.step_operation(name)
        if step.wait_ms < 0:
            return [*steps, step]
        if step.looked:
            steps.append(step)
    raise AssertionError(f"{name} has no end")


async def told(control: Control, name: str) -> Operation:
    found = await control.operation(name)
    assert found is not None
    return found


def due_now(raw: redis.Redis, name: str) -> None:
    """Let the time of its next step be past."""
    raw.zadd(ZSET, {name: 0})


# --- verbs, and what is meant -------------------------------------------------------------------------------------------------


async def test_letters_that_fit_are_sent_back_and_the_others_stay(control, raw):
    bury(raw, 120)
    bury(raw, 7, type="u")
    bury(raw, 5, dead_reason="timeout")
    made = await control.operate("replay", Filter(type="t", reason="attempts"), id="one", **AT_ONCE)
    assert (made.id, made.state, made.verb, made.by) == ("one", "held", "replay", "ann@host")
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.state, found.done, found.looked, found.refused) == ("done", 120, 132, {})
    assert raw.xlen("{jobs}:low") == 120
    assert {fields["x-op"] for _, fields in raw.xrange("{jobs}:low")} == {"one"}
    assert Counter(fields["type"] for _, fields in raw.xrange(DEAD)) == {"u": 7, "t": 5}


async def test_letters_are_deleted_by_what_is_asked(control, raw):
    bury(raw, 5, dead_at="100000")
    bury(raw, 6, dead_at="200000", group="g")
    bury(raw, 4, dead_at="200000", dead_error="no such host: a.example")
    bury(raw, 3, dead_at="200000", dead_from="high/1-1")
    assert await control.count_meant("purge", Filter()) == 18
    for which, n in (
        (Filter(before_ms=150_000), 5),
        (Filter(group="g"), 6),
        (Filter(text="no such host"), 4),
        (Filter(priority="high"), 3),
    ):
        assert await control.count_meant("purge", which) == n
        made = await control.operate("purge", which, total=n, **AT_ONCE)
        await finish(control, made.id)
        found = await told(control, made.id)
        assert (found.done, found.total, found.left, found.filter) == (n, n, 0, which)
    assert raw.xlen(DEAD) == 0


async def test_what_comes_later_is_not_meant(control, raw):
    bury(raw, 10)
    await control.operate("purge", Filter(), all=True, id="one", **AT_ONCE)
    later = bury(raw, 10)
    await finish(control, "one")
    assert [place for place, _ in raw.xrange(DEAD)] == later


async def test_a_letter_that_cannot_go_back_stays_and_is_counted_by_the_reason(control, raw):
    bury(raw, 3, key="k")
    bury(raw, 2, dead_from="nowhere/1-1")
    bury(raw, 1, dead_reason="too-large", dead_left_out="data 9")
    await control.operate("replay", Filter(), all=True, id="one", **AT_ONCE)
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.done, found.refused) == (1, {"owned": 2, "unreadable": 2, "left-out": 1})
    assert raw.xlen(DEAD) == 5


def delayed(raw: redis.Redis, *ids: str, type_name: str = "t", wait_s: float = 3600.0) -> None:
    """Put jobs where they wait for their time, as `send` does."""
    pack = "return redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack({unpack(ARGV, 2)}))"
    now_ms = raw.time()[0] * 1000
    for name in ids:
        record = ("stream", "medium", "type", type_name, "data", "{}", "id", name, "first_at", str(now_ms))
        raw.eval(pack, 1, "{jobs}:msg", name, *record)
        raw.zadd("{jobs}:due", {name: now_ms + wait_s * 1000})


def names(n: int, prefix: str = "d") -> list[str]:
    return [f"{prefix}{at}" for at in range(n)]


def waiting(raw: redis.Redis, n: int, stream: str = "low", **fields: Any) -> list[str]:
    return [str(raw.xadd(f"{{jobs}}:{stream}", {"type": "t", "data": "{}", **fields})) for _ in range(n)]


async def test_jobs_are_cancelled_wherever_they_wait_and_those_that_run_are_asked(control, raw):
    delayed(raw, *names(130))
    delayed(raw, *names(3, "u"), type_name="u")
    waiting(raw, 70)
    waiting(raw, 4, "critical", type="u")
    waiting(raw, 5, "critical", group="g")
    raw.xgroup_create("{jobs}:medium", "workers", id="0", mkstream=True)
    waiting(raw, 2, "medium")
    raw.xreadgroup("workers", "me", {"{jobs}:medium": ">"})
    assert await control.count_meant("cancel", Filter(type="t")) == 207
    assert await control.count_meant("cancel", Filter(group="g"), states=["waiting"]) == 5
    assert await control.count_meant("cancel", Filter(priority="low")) == 70
    await control.operate("cancel", Filter(type="t"), id="one", reason="a mistake", **AT_ONCE)
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.state, found.done, found.asked, found.refused) == ("done", 207, 2, {})
    assert Counter(fields["dead_reason"] for _, fields in raw.xrange(DEAD)) == {"cancelled": 205}
    assert {fields["dead_error"] for _, fields in raw.xrange(DEAD)} == {"cancelled by ann@host: a mistake"}
    assert (raw.xlen("{jobs}:critical"), raw.xlen("{jobs}:low"), raw.zcard("{jobs}:due"), raw.zcard("{jobs}:cancels")) == (
        4,
        0,
        3,
        2,
    )


async def in_each_state(raw) -> None:
    """Have a job that a worker has, one in a lot, one that nobody has fetched, and a delayed one."""
    raw.xgroup_create("{jobs}:low", "workers", id="0", mkstream=True)
    waiting(raw, 1, id="runs")
    [parked] = waiting(raw, 1, id="parked")
    raw.xreadgroup("workers", "me", {"{jobs}:low": ">"})
    raw.xclaim("{jobs}:low", "workers", "~t:t", 0, [parked], retrycount=0, justid=True)
    waiting(raw, 1, id="waits")
    delayed(raw, "later")


@pytest.mark.parametrize(
    ("states", "cancelled", "asked"),
    [
        (["waiting"], {"parked", "waits"}, 0),
        (["running"], set(), 1),
        (["delayed", "running"], {"later"}, 1),
        (["waiting", "delayed"], {"parked", "waits", "later"}, 0),
        (["waiting", "running", "delayed"], {"parked", "waits", "later"}, 1),
    ],
)
async def test_only_jobs_in_the_states_that_are_named_are_meant(control, raw, states, cancelled, asked):
    await in_each_state(raw)
    assert await control.count_meant("cancel", Filter(), states=states) == len(cancelled) + asked
    await control.operate("cancel", Filter(), all=True, id="one", states=states, **AT_ONCE)
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.done, found.asked, raw.exists("{jobs}:cancels")) == (len(cancelled) + asked, asked, asked)
    assert {fields["id"] for _, fields in raw.xrange(DEAD)} == cancelled


async def test_a_job_that_a_worker_has_is_not_meant_by_another_priority(control, raw):
    await in_each_state(raw)
    assert await control.count_meant("priority", Filter(), priority="high") == 3
    await control.operate("priority", Filter(), all=True, priority="high", id="one", **AT_ONCE)
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.only, found.done, found.refused) == ("waiting", 3, {})
    assert [fields["id"] for _, fields in raw.xrange("{jobs}:low")] == ["runs"]


async def test_an_operation_about_other_states_is_another_one(control, raw):
    await control.operate("cancel", Filter(), all=True, id="one", states=["waiting"])
    with pytest.raises(ConfigError, match="about something else"):
        await control.operate("cancel", Filter(), all=True, id="one", states=["waiting", "running"])


async def test_a_delayed_job_that_becomes_due_meanwhile_is_meant_and_a_new_one_is_not(control, raw):
    waiting(raw, 3, "high")
    born = raw.time()[0] * 1000
    await control.operate("cancel", Filter(), all=True, id="one", states=["waiting"], **AT_ONCE)
    waiting(raw, 1, "high", first_at=str(born - 60_000))
    [new] = waiting(raw, 1, "high")
    await finish(control, "one")
    assert (await told(control, "one")).done == 4
    assert [entry for entry, _ in raw.xrange("{jobs}:high")] == [new]


def field_of_delayed(raw: redis.Redis, member: str, name: str) -> str:
    """Return a field of the record of a delayed job."""
    record = raw.eval("return cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[1]))", 1, "{jobs}:msg", member)
    return dict(zip(record[::2], record[1::2], strict=True))[name]


async def test_delayed_jobs_start_now_and_those_of_another_type_at_their_time(control, raw):
    delayed(raw, *names(300))
    delayed(raw, *names(20, "u"), type_name="u")
    await control.operate("now", Filter(type="t"), id="one", **AT_ONCE)
    await finish(control, "one")
    now_ms = raw.time()[0] * 1000 + 1000
    soon = raw.zrangebyscore("{jobs}:due", 0, now_ms)
    assert ((await told(control, "one")).done, sorted(soon)) == (300, sorted(names(300)))


async def test_a_job_that_has_failed_before_its_stream_is_walked_is_cancelled(control, raw):
    waiting(raw, 150, "critical", type="u")
    [entry] = waiting(raw, 1, id="d0")
    assert await control.count_meant("cancel", Filter(type="t")) == 1
    await control.operate("cancel", Filter(type="t"), id="one", **AT_ONCE)
    await control.step_operation("one")
    raw.xdel("{jobs}:low", entry)
    pack = "return redis.call('HSET', KEYS[1], 'd0', cmsgpack.pack({unpack(ARGV)}))"
    raw.eval(pack, 1, "{jobs}:msg", "stream", "low", "type", "t", "data", "{}", "id", "d0", "a", "1", "first_at", "7000")
    raw.zadd("{jobs}:due", {"d0": raw.time()[0] * 1000 + 60_000})
    await finish(control, "one")
    assert ((await told(control, "one")).done, raw.zcard("{jobs}:due")) == (1, 0)


async def test_a_delayed_job_that_is_sent_later_is_not_meant(control, raw):
    delayed(raw, *names(3))
    await control.operate("cancel", Filter(), all=True, id="one", states=["delayed"], **AT_ONCE)
    created = raw.hget(hash_of("one"), "created")
    raw.hset(hash_of("one"), "created", int(created) - 60_000)
    await finish(control, "one")
    assert (raw.zcard("{jobs}:due"), (await told(control, "one")).done) == (3, 0)


async def test_jobs_are_given_another_priority_and_keep_their_order_and_key(control, raw):
    delayed(raw, *names(3))
    waiting(raw, 60, "low")
    waiting(raw, 2, "high")
    waiting(raw, 1, "low", key="k")
    await control.operate("priority", Filter(type="t"), priority="high", id="one", **AT_ONCE)
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.argument, found.sources, found.done) == ("high", ("due", "critical", "medium", "low"), 64)
    assert (raw.xlen("{jobs}:low"), raw.xlen("{jobs}:high")) == (0, 63)
    assert {field_of_delayed(raw, member, "stream") for member in raw.hkeys("{jobs}:msg")} == {"high"}


# --- steps --------------------------------------------------------------------------------------------------------------------


async def test_an_operation_is_held_before_its_first_step_so_that_undo_is_exact(control, raw):
    bury(raw, 10)
    await control.operate("purge", Filter(), all=True, id="one", rate=0)
    step = await control.step_operation("one")
    assert (step.state, step.looked) == ("held", 0)
    assert 8000 < step.wait_ms <= 10_000
    assert await control.stop_operation("one")
    assert (await control.step_operation("one")).state == "stopped"
    assert raw.xlen(DEAD) == 10
    assert (await told(control, "one")).done == 0


async def test_a_step_moves_no_more_than_20_and_looks_at_no_more_than_a_hundred(control, raw):
    bury(raw, 300, type="u")
    bury(raw, 120)
    await control.operate("purge", Filter(type="t"), id="one", **AT_ONCE)
    steps = await finish(control, "one")
    assert max(step.acted for step in steps) == 20
    assert max(step.looked for step in steps) == 100
    assert sum(step.acted for step in steps) == 120


async def test_large_payloads_make_steps_small_and_not_slow(control, raw):
    bury(raw, 12, data="x" * 200_000)
    await control.operate("replay", Filter(), all=True, id="one", **AT_ONCE)
    steps = await finish(control, "one")
    assert max(step.acted for step in steps) <= 5
    assert raw.xlen("{jobs}:low") == 12


async def test_steps_follow_the_rate_by_the_time_of_the_one_before(control, raw):
    """What a late stepper owes is made up for: at 100/s each step of 20 moves the time by 200 ms, whenever it was made."""
    bury(raw, 100)
    await control.operate("purge", Filter(), all=True, id="one", rate=100, hold_s=0)
    first = raw.zscore(ZSET, "one")
    assert (await control.step_operation("one")).acted == 20
    assert raw.zscore(ZSET, "one") == pytest.approx(first + 200, abs=0.01)
    raw.zadd(ZSET, {"one": first - 200})
    await control.step_operation("one")
    assert raw.zscore(ZSET, "one") == pytest.approx(first, abs=0.01)
    assert (await control.step_operation("one")).acted in (0, 20), "its time may have come"
    now_ms = raw.time()[0] * 1000
    raw.zadd(ZSET, {"one": now_ms - 3_600_000})
    await control.step_operation("one")
    assert raw.zscore(ZSET, "one") > now_ms - 2000, "an hour without a worker is not made up for"


async def test_two_that_step_at_once_move_each_letter_once(control, raw, server):
    bury(raw, 200)
    await control.operate("replay", Filter(), all=True, id="one", **AT_ONCE)
    async with Control(server.url) as other:
        states = ""
        while states != "done":
            first, second = await control.step_operation("one"), await other.step_operation("one")
            states = second.state if first.state != "done" else "done"
    assert sorted(fields["id"] for _, fields in raw.xrange("{jobs}:low")) == sorted(f"j{at}" for at in range(200))


async def test_a_repeated_order_makes_no_second_operation(control, raw):
    bury(raw, 10)
    await control.operate("purge", Filter(type="t"), id="one", **AT_ONCE)
    await finish(control, "one")
    bury(raw, 3)
    again = await control.operate("purge", Filter(type="t"), id="one", **AT_ONCE)
    assert (again.state, again.done) == ("done", 10)
    assert raw.xlen(DEAD) == 3
    assert len(raw.xrange("{jobs}:audit")) == 1


@pytest.mark.parametrize("other", [Filter(type="u"), Filter(type="t", key="k"), Filter(), Filter(type="t", before_ms=9)])
async def test_an_id_that_another_operation_has_is_refused(control, raw, other):
    await control.operate("purge", Filter(type="t"), id="one", total=5, **AT_ONCE)
    await control.set_operation_rate("one", 7)
    assert (await control.operate("purge", Filter(type="t"), id="one", **AT_ONCE)).rate == 7
    with pytest.raises(ConfigError, match="about something else"):
        await control.operate("purge", other, id="one", all=True, **AT_ONCE)
    with pytest.raises(ConfigError, match="about something else"):
        await control.operate("replay", Filter(type="t"), id="one", **AT_ONCE)
    assert len(await control.operations()) == 1


async def test_a_restart_of_the_server_leaves_out_no_delayed_job(control, raw, server):
    delayed(raw, *names(1000))
    await control.operate("now", Filter(), all=True, id="one", **AT_ONCE)
    for _ in range(12):
        due_now(raw, "one")
        await control.step_operation("one")
    raw.save()
    server.kill()
    server.start()
    raw.ping()
    with contextlib.suppress(StoreUnavailable):
        await control.operations()
    await finish(control, "one")
    assert raw.zcount("{jobs}:due", raw.time()[0] * 1000 + 60_000, "+inf") == 0
    assert (await told(control, "one")).done == 1000


async def test_workers_are_told_while_there_is_a_step_to_make(control, raw):
    bury(raw, 3)
    before = raw.hget("{jobs}:control", "v")
    await control.operate("purge", Filter(), all=True, id="one", rate=0, hold_s=0)
    assert (raw.hget("{jobs}:control", "op:one"), raw.hget("{jobs}:control", "v")) == ("purge", "1")
    assert (await control.rules()).operations == ("one",)
    assert (await control.rules()).unreadable == ()
    await finish(control, "one")
    assert before is None
    assert raw.hgetall("{jobs}:control") == {"v": "2"}


# --- the brake -----------------------------------------------------------------------------------------------------------------


def die_again(raw: redis.Redis, n: int) -> None:
    """Let jobs that were sent back die, as a worker does."""
    for entry, fields in raw.xrange("{jobs}:low", count=n):
        raw.xadd(DEAD, {**fields, "dead_reason": "attempts", "dead_from": f"low/{entry}", "dead_at": "8000"})
        raw.xdel("{jobs}:low", entry)


async def test_a_replay_sends_five_first_and_then_waits(control, raw):
    bury(raw, 100)
    await control.operate("replay", Filter(), all=True, id="one", rate=0, hold_s=0, canary_s=30)
    step = await control.step_operation("one")
    assert (step.acted, raw.xlen("{jobs}:low")) == (5, 5)
    assert 25_000 < step.wait_ms <= 30_000
    assert (await control.step_operation("one")).acted == 0
    due_now(raw, "one")
    assert (await control.step_operation("one")).acted == 20


async def test_a_replay_brakes_where_more_than_a_fifth_dies_again_and_goes_on_when_it_is_told(control, raw):
    bury(raw, 200)
    await control.operate("replay", Filter(), all=True, id="one", **AT_ONCE)
    await control.step_operation("one")
    due_now(raw, "one")
    await control.step_operation("one")
    die_again(raw, 5)
    due_now(raw, "one")
    await control.step_operation("one")
    assert (await told(control, "one")).state == "running", "5 of 25 are no more than a fifth"
    die_again(raw, 6)
    due_now(raw, "one")
    assert (await control.step_operation("one")).state == "braked"
    found = await told(control, "one")
    assert (found.state, found.again, found.done) == ("braked", 11, 45)
    assert not raw.hexists("{jobs}:control", "op:one")
    assert raw.xlen(DEAD) == 11 + 155
    assert await control.resume_operation("one")
    assert not await control.resume_operation("one")
    await finish(control, "one")
    assert (await told(control, "one")).done == 200
    assert raw.xlen(DEAD) == 11, "and what died again is not sent back again"


async def test_the_first_few_brake_a_replay_whose_cause_is_not_mended(control, raw):
    bury(raw, 1000)
    await control.operate("replay", Filter(), all=True, id="one", **AT_ONCE)
    await control.step_operation("one")
    die_again(raw, 5)
    due_now(raw, "one")
    assert (await control.step_operation("one")).state == "braked"
    assert (await told(control, "one")).done == 5


# --- stop, resume, rate, drop --------------------------------------------------------------------------------------------------


async def test_a_stop_leaves_the_rest_where_it_is_and_a_resume_goes_on_from_there(control, raw):
    bury(raw, 100)
    await control.operate("purge", Filter(), all=True, id="one", rate=40, hold_s=0)
    assert (await control.step_operation("one")).acted == 10
    assert await control.stop_operation("one", reason="wait")
    assert not await control.stop_operation("one")
    due_now(raw, "one")
    assert (await control.step_operation("one")).acted == 0
    assert raw.xlen(DEAD) == 90
    assert await control.set_operation_rate("one", 0)
    assert await control.resume_operation("one")
    await finish(control, "one")
    assert (await told(control, "one")).done == 100
    assert [row["what"].split("\n")[0] for _, row in raw.xrange("{jobs}:audit")] == [
        "operate purge one",
        "stop one",
        "rate one 20000",
        "resume one",
    ]


async def test_a_dropped_operation_is_gone_and_can_be_asked_for_by_nobody(control, raw):
    bury(raw, 10)
    await control.operate("purge", Filter(), all=True, id="one", hold_s=0)
    assert await control.drop_operation("one")
    assert await control.operations() == []
    assert (await control.step_operation("one")).state == "gone"
    with pytest.raises(ConfigError, match="no operation 'one'"):
        await control.stop_operation("one")
    assert raw.xlen(DEAD) == 10


async def test_a_hundred_are_known_and_the_one_done_for_longest_makes_place(control, raw):
    for at in range(100):
        await control.operate("purge", Filter(), all=True, id=f"o{at}", **AT_ONCE)
        if at in (3, 7):
            await finish(control, f"o{at}")
            raw.hset(hash_of(f"o{at}"), "ended", at)
    await control.operate("purge", Filter(), all=True, id="new", **AT_ONCE)
    assert (raw.exists(hash_of("o3")), raw.exists(hash_of("o7"))) == (0, 1)
    await control.operate("purge", Filter(), all=True, id="newer", **AT_ONCE)
    with pytest.raises(ConfigError, match="there are 100 operations"):
        await control.operate("purge", Filter(), all=True, id="newest", **AT_ONCE)
    raw.delete(hash_of("o50"))
    await control.operate("purge", Filter(), all=True, id="newest", **AT_ONCE)
    assert len(await control.operations()) == 100


# --- what strangers and clocks do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        {"verb": "explode"},
        {"source": "dead nowhere"},
        {"source": ""},
        {"rate": "nan"},
        {"rate": "-1"},
        {"rate": "0"},
        {"rate": "inf"},
        {"cursor": "nonsense"},
        {"until:dead": "never"},
        {"done": "many"},
        {"at": "0"},
        {"before": "soon"},
    ],
    ids=str,
)
async def test_an_operation_that_was_broken_stops_and_says_why(control, raw, broken):
    bury(raw, 10)
    await control.operate("purge", Filter(), all=True, id="one", **AT_ONCE)
    raw.hset(hash_of("one"), mapping=broken)
    assert (await control.step_operation("one")).state == "stopped"
    found = await told(control, "one")
    assert (found.state, found.error != "") == ("stopped", True)
    assert not raw.hexists("{jobs}:control", "op:one")
    assert raw.xlen(DEAD) == 10


async def test_a_hash_of_another_type_is_no_operation_and_is_left_alone(control, raw):
    await control.operate("purge", Filter(), all=True, id="one", **AT_ONCE)
    raw.delete(hash_of("one"))
    raw.set(hash_of("one"), "a stranger's")
    step = await control.step_operation("one")
    assert (step.state, step.wait_ms) == ("gone", -1)
    assert (raw.get(hash_of("one")), raw.hgetall("{jobs}:control")) == ("a stranger's", {"v": "2"})
    assert await control.operations() == []
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await control.operate("purge", Filter(), all=True, id="one", **AT_ONCE)


async def test_dead_letters_of_another_type_stop_it_and_it_can_go_on_later(control, raw):
    bury(raw, 10)
    await control.operate("purge", Filter(), all=True, id="one", **AT_ONCE)
    raw.rename(DEAD, "aside")
    raw.set(DEAD, "x")
    assert (await control.step_operation("one")).state == "stopped"
    assert "WRONGTYPE" in (await told(control, "one")).error
    raw.rename("aside", DEAD)
    await control.resume_operation("one")
    await finish(control, "one")
    assert (raw.xlen(DEAD), (await told(control, "one")).error) == (0, "")


@pytest.mark.parametrize("score", [None, 1e17, "inf"], ids=str)
async def test_a_time_that_is_lost_or_that_no_clock_has_is_now(control, raw, score):
    bury(raw, 100)
    await control.operate("purge", Filter(), all=True, id="one", rate=100, hold_s=0)
    await control.step_operation("one")
    raw.zrem(ZSET, "one") if score is None else raw.zadd(ZSET, {"one": score})
    assert (await control.step_operation("one")).acted == 20


async def test_one_that_is_held_stays_held_when_its_time_is_lost(control, raw):
    bury(raw, 10)
    await control.operate("purge", Filter(), all=True, id="one")
    raw.delete(ZSET)
    step = await control.step_operation("one")
    assert (step.state, step.acted) == ("held", 0)
    assert step.wait_ms > 8000


async def test_nothing_is_ordered_by_words_that_cannot_be_used(control, raw):
    bad: list[dict[str, Any]] = [
        {"rate": 1e6},
        {"rate": float("nan")},
        {"hold_s": -1},
        {"canary_s": 1e6},
        {"id": "A b"},
        {"reason": "a\nb"},
        {"priority": "high"},
    ]
    for words in bad:
        with pytest.raises(ConfigError):
            await control.operate("replay", Filter(), all=True, **words)
    for which in (Filter(type="x" * 600), Filter(priority="urgent"), Filter(before_ms=-1)):
        with pytest.raises(ConfigError):
            await control.operate("purge", which)
    with pytest.raises(ConfigError, match="no operation 'explode'"):
        await control.operate("explode", Filter(), all=True)
    with pytest.raises(ConfigError, match="words about dead letters"):
        await control.operate("cancel", Filter(reason="attempts"))
    with pytest.raises(ConfigError, match="states must be"):
        await control.operate("cancel", Filter(), all=True, states=["dead"])
    with pytest.raises(ConfigError, match="what a worker has is not moved"):
        await control.operate("priority", Filter(), all=True, priority="high", states=["running"])
    assert raw.keys() == []


async def test_the_script_refuses_what_no_caller_of_ours_sends(control, raw):
    keys = Keys("jobs").scripted
    raw.script_load(script("operate").text)
    for words in (
        ("create", "one", "ann", "", "-5", "verb", "purge", "source", "dead", "rate", "1"),
        ("create", "one", "ann", "", "0", "verb", "purge", "source", "low", "rate", "1"),
        ("create", "one", "ann", "", "0", "verb", "cancel", "source", "dead", "rate", "1"),
        ("create", "one", "ann", "", "0", "verb", "purge", "source", "dead", "rate", "1", "odd"),
        ("create", "o n e", "ann", "", "0", "verb", "purge", "source", "dead", "rate", "1"),
        ("create", "one", "a nn", "", "0", "verb", "purge", "source", "dead", "rate", "1"),
        ("explode", "one", "ann", ""),
        ("stop", "one", "ann", "x" * 5000),
    ):
        with pytest.raises(redis.ResponseError, match="BADORDER"):
            raw.evalsha(script("operate").sha, len(keys), *keys, *words)
    assert raw.keys() == []


# --- workers -------------------------------------------------------------------------------------------------------------------


@contract("frail")
class Frail(msgspec.Struct, frozen=True):
    n: int
    fails: bool = False


ran: list[int] = []


@handler(Frail, retry=Backoff(base_s=0.01, attempts=2))
async def frail(message: Frail, job: Job) -> None:
    ran.append(message.n)
    if message.fails:
        raise RuntimeError("fails")


def bury_frail(raw: redis.Redis, n: int, **more: Any) -> None:
    pipe = raw.pipeline(transaction=False)
    notes = {"dead_reason": "attempts", "dead_from": "low/1-1", "dead_at": "7000", "dead_attempts": "3"}
    for at in range(n):
        data = msgspec.json.encode(Frail(at, **more))
        pipe.xadd(DEAD, {"type": "frail", "data": data, "id": f"j{at}", **notes})
    pipe.execute()


async def test_workers_step_while_nobody_else_does_and_each_letter_runs_once(control, raw, server):
    ran.clear()
    bury_frail(raw, 300)
    async with working(server.url, frail), working(server.url, frail):
        await control.operate("replay", Filter(type="frail"), id="one", rate=2000, hold_s=0, canary_s=0)
        await until(lambda: len(ran) >= 300, "all have run")
        await until(lambda: raw.hget(hash_of("one"), "state") == "done", "it is done")
    assert sorted(ran) == list(range(300))
    assert raw.xlen(DEAD) == 0


async def test_a_letter_that_dies_again_after_its_retries_still_says_by_which_operation(control, raw, server):
    bury_frail(raw, 100, fails=True)
    async with working(server.url, frail, concurrency=5):
        await control.operate("replay", Filter(type="frail"), id="one", rate=50, hold_s=0, canary_s=2)
        await until(lambda: raw.hget(hash_of("one"), "state") == "braked", "it brakes")
        await until(lambda: raw.xlen("{jobs}:low") + raw.zcard("{jobs}:due") == 0, "all that were sent are dead again")
    found = await told(control, "one")
    assert (found.done, found.again) == (5, 5)
    assert sum(fields.get("x-op") == "one" for _, fields in raw.xrange(DEAD)) == 5


async def test_a_quiet_worker_steps(control, raw, server):
    bury(raw, 100)
    async with working(server.url, frail) as consumer:
        await control.quiet(consumer.name)
        await until(lambda: consumer.orders.mine == "quiet", "it is quiet")
        await control.operate("purge", Filter(), all=True, id="one", **AT_ONCE)
        await until(lambda: raw.xlen(DEAD) == 0, "all are deleted")


async def test_an_operation_that_chooses_nothing_is_refused_unless_all_are_meant(control):
    for verb in ("replay", "purge", "cancel", "now", "priority"):
        with pytest.raises(ConfigError, match=f"which would {verb} all there are; hint: .* all=True"):
            await control.operate(verb, Filter(), priority="high" if verb == "priority" else "")
    assert await control.operations() == []
    with pytest.raises(ConfigError, match=r"filter must be a Filter, got \{'type': 'x'\}; hint: Filter\(type="):
        await control.operate("purge", {"type": "x"})
    assert (await control.operate("purge", Filter(), all=True)).state == "held"
