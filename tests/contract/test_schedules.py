"""Schedules that people change: one script, all together or not at all; and a worker that obeys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis

from runtime import Job, Schedule, contract, handler
from runtime.errors import ConfigError, StoreError
from runtime.schedules import read_row
from runtime.store.control import ChangedMeanwhile, ControlStore
from tests.servers import Server
from tests.workers import until, working

CONTROL, AUDIT, CRON, STATE = (f"{{jobs}}:{name}" for name in ("control", "audit", "cron", "cron:state"))


@contract("tick")
class Tick(msgspec.Struct):
    pass


ran: list[str] = []


@handler(Tick)
async def tick(message: Tick, job: Job) -> None:
    ran.append(job.id)


@pytest.fixture(autouse=True)
def _forget_runs() -> None:
    ran.clear()


@pytest.fixture
async def store(server: Server) -> AsyncIterator[ControlStore]:
    opened = ControlStore(server.url, "jobs")
    yield opened
    await opened.close()


def put(name: str, json: str, revision: int = 0, what: str = "all") -> tuple[str, str, str]:
    return ("put", f"cron:{name}", f"{revision} {what} {json}")


async def test_a_schedule_has_the_version_of_the_rules_as_its_revision(store: ControlStore, raw: redis.Redis) -> None:
    assert await store.order("ann", "", [put("a", '{"cap":1}'), put("b", '{"cap":2}')]) == [True, True]
    assert raw.hgetall(CRON) == {"a": '1 {"cap":1}', "b": '1 {"cap":2}'}
    assert await store.order("ann", "", [put("a", '{"cap":3}', 1)]) == [True]
    assert raw.hgetall(CRON) == {"a": '2 {"cap":3}', "b": '1 {"cap":2}'}
    assert raw.hget(CONTROL, "v") == "2"
    definitions, state, now_ms = await store.schedules()
    assert (definitions, state) == (raw.hgetall(CRON), {})
    assert now_ms > 1_700_000_000_000


async def test_a_change_that_comes_again_after_a_lost_reply_changes_nothing(store: ControlStore, raw: redis.Redis) -> None:
    assert await store.order("ann", "", [put("a", "{}")]) == [True]
    assert await store.order("ann", "", [put("a", "{}")]) == [False]
    assert await store.order("ann", "", [("drop", "cron:a", "1")]) == [True]
    assert await store.order("ann", "", [("drop", "cron:a", "1")]) == [False]
    assert (raw.hget(CONTROL, "v"), raw.xlen(AUDIT)) == ("2", 2)


@pytest.mark.parametrize("change", [put("a", '{"cap":9}', 0), put("a", '{"cap":9}', 7), ("drop", "cron:a", "7")])
async def test_what_was_changed_meanwhile_is_not_overwritten(store: ControlStore, raw: redis.Redis, change: Any) -> None:
    await store.order("ann", "", [put("a", "{}")])
    with pytest.raises(ChangedMeanwhile, match="cron:a was changed meanwhile"):
        await store.order("bob", "", [("set", "worker:w", "quiet"), change])
    assert raw.hgetall(CRON) == {"a": "1 {}"}
    assert raw.hgetall(CONTROL) == {"v": "1"}


async def test_of_a_schedule_that_changes_no_tick_of_before_is_due(store: ControlStore, raw: redis.Redis) -> None:
    seconds, _ = raw.time()
    ahead = f"{int(seconds) * 1000 + 90_000} ab cd 5 -"
    raw.hset(STATE, mapping={"a": "1000 ab cd 5 - 7f", "b": "1000 ab cd 5 -", "c": ahead, "d": "rubbish"})
    await store.order("ann", "", [put(name, "{}") for name in "acd"])
    rows = raw.hgetall(STATE)
    row = read_row(rows["a"])
    assert row is not None
    assert row.last_ms >= int(seconds) * 1000
    assert (row.ticks, rows["b"], rows["c"], rows["d"]) == (["7f"], "1000 ab cd 5 -", ahead, "rubbish")
    await store.order("ann", "", [("drop", "cron:a", "1")])
    assert set(raw.hgetall(STATE)) == {"b", "c", "d"}


async def test_no_payload_goes_to_the_audit(store: ControlStore, raw: redis.Redis) -> None:
    await store.order("ann", "why", [put("a", '{"data":{"secret":1}}', 0, "data,when"), ("set", "worker:w", "quiet")])
    [(_, change)] = raw.xrange(AUDIT)
    assert (change["what"], change["by"], change["reason"]) == ("put cron:a data,when\nset worker:w quiet", "ann", "why")


@pytest.mark.parametrize(
    "operation",
    [
        ("put", "cron:", "0 all {}"),
        ("put", "pause:a", "0 all {}"),
        ("set", "cron:a", "{}"),
        ("del", "cron:a", ""),
        ("put", "cron:a", "{}"),
        ("put", "cron:a", "0 all []"),
        ("drop", "cron:a", ""),
        put("a", '{"data":"%s"}' % ("x" * 17_000)),
    ],
)
async def test_what_is_no_change_of_a_schedule_is_refused(store: ControlStore, raw: redis.Redis, operation: Any) -> None:
    with pytest.raises(ConfigError):
        await store.order("ann", "", [put("b", "{}"), operation])
    assert raw.keys("*") == []


async def test_a_thousand_schedules_are_kept(store: ControlStore, raw: redis.Redis) -> None:
    raw.hset(CRON, mapping={f"n{number}": "1 {}" for number in range(999)})
    await store.order("ann", "", [put("last", "{}")])
    with pytest.raises(ConfigError, match=r"\{jobs\}:cron must have at most 1000 fields"):
        await store.order("ann", "", [put("more", "{}")])
    await store.order("ann", "", [put("last", '{"cap":1}', 1), ("drop", "cron:n1", "1")])
    assert raw.hlen(CRON) == 999


@pytest.mark.parametrize("key", [CRON, STATE])
async def test_a_key_of_another_type_refuses_schedules_and_no_other_rule(store: ControlStore, raw: redis.Redis, key: str) -> None:
    raw.set(key, "a stranger's")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await store.order("ann", "", [put("a", "{}")])
    assert await store.order("ann", "", [("set", "worker:w", "quiet")]) == [True]


async def test_a_worker_fires_what_is_added_and_stops_what_is_paused(
    server: Server, store: ControlStore, raw: redis.Redis
) -> None:
    every = Schedule("code", "* * * * * *", Tick())
    async with working(server.url, tick, schedules=[every]):
        await until(lambda: sum(job.startswith("cron:code:") for job in ran) >= 2, "the code's schedule fires")
        await store.order("ann", "", [put("more", '{"type":"tick","data":{},"every_s":1}')])
        await until(lambda: sum(job.startswith("cron:more:") for job in ran) >= 2, "what was added fires")
        await store.order("ann", "", [put("code", '{"paused":true}')])
        await until(lambda: raw.hget(STATE, "code").endswith("p"), "the pause is noted")
        seen = sum(job.startswith("cron:code:") for job in ran)
        more = sum(job.startswith("cron:more:") for job in ran)
        await until(lambda: sum(job.startswith("cron:more:") for job in ran) >= more + 3, "the other fires on")
        assert sum(job.startswith("cron:code:") for job in ran) == seen
        revision = int(raw.hget(CRON, "code").partition(" ")[0])
        await store.order("ann", "", [put("code", "{}", revision)])
        await until(lambda: sum(job.startswith("cron:code:") for job in ran) >= seen + 2, "it fires again")
    assert len(ran) == len(set(ran)), "each once"
