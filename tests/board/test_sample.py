"""One look at a queue: the figures are those of Redis, strangers spoil nothing, and it costs the same however deep a queue is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import redis

from runtime.jobs import STREAMS
from runtime.rules import Pause
from runtime.store.base import GROUP, WorkerRow
from runtime.store.sample import MAX_TYPES, MINUTES_A_STEP, Minute, SampleStore, read_minute
from tests.servers import Server

ZERO = dict.fromkeys(STREAMS, 0)
ALL_MS = 10**12


def key(name: str) -> str:
    return f"{{jobs}}:{name}"


@pytest.fixture
async def store(server: Server) -> AsyncIterator[SampleStore]:
    opened = SampleStore(server.url, "jobs")
    yield opened
    await opened.close()


def fill(raw: redis.Redis, of: str, n: int, size: int = 2) -> None:
    pipeline = raw.pipeline(transaction=False)
    for _ in range(n):
        pipeline.xadd(key(of), {"type": "t", "data": "x" * size})
    pipeline.execute()


def start(raw: redis.Redis, *streams: str) -> None:
    for of in streams or STREAMS:
        raw.xgroup_create(key(of), GROUP, "0", mkstream=True)


async def test_an_empty_server_has_nothing(store: SampleStore) -> None:
    found = await store.sample()
    assert (found.waiting, found.claimed, found.lots, found.held) == (ZERO, ZERO, ZERO, {})
    assert (found.oldest_ms, found.delivered) == (dict.fromkeys(STREAMS), dict.fromkeys(STREAMS, ""))
    assert (found.delayed, found.next_due_ms, found.dead, found.until_ms, found.unreadable) == (0, None, 0, {}, ())
    assert abs(found.now_ms - time.time() * 1000) < 60_000


async def test_each_figure_is_what_stands_in_redis(store: SampleStore, raw: redis.Redis) -> None:
    start(raw, "high", "low")
    fill(raw, "high", 10)
    fill(raw, "medium", 2)  # no worker has been there yet
    raw.xreadgroup(GROUP, "w1", {key("high"): ">"}, count=6)
    ids = [row["message_id"] for row in raw.xpending_range(key("high"), GROUP, "-", "+", 10)]
    raw.xclaim(key("high"), GROUP, "~t:x@2", 0, cast("Any", ids[:2]))
    raw.zadd(key("due"), {"a": 5_000, "b": 9_000})
    raw.xadd(key("dead"), {"type": "t"})
    raw.zadd(key("workers"), {"w1": ALL_MS * 10, "w0": 5, "~guard": ALL_MS * 10})
    found = await store.sample()
    assert found.waiting == {**ZERO, "high": 4, "medium": 2}
    assert (found.claimed["high"], found.lots["high"]) == (4, 2)
    assert found.held == {("w1", "high"): 4, ("~t:x@2", "high"): 2}
    assert found.lengths == {**ZERO, "high": 10, "medium": 2}
    assert found.delivered["high"] == ids[-1]
    first = raw.xrange(key("high"), f"({ids[-1]}", count=1)[0][0]
    assert found.oldest_ms["high"] == found.now_ms - int(first.split("-")[0])
    assert found.oldest_ms["medium"] is not None
    assert found.oldest_ms["low"] is None
    assert (found.delayed, found.next_due_ms, found.dead) == (2, 5_000, 1)
    assert (found.until_ms["w0"], found.living) == (5, {"w1"})


@pytest.mark.parametrize("name", [*STREAMS, "due", "dead", "workers", "stats", "workers:rows", "control"])
async def test_a_key_of_another_type_spoils_its_own_figure_alone(store: SampleStore, raw: redis.Redis, name: str) -> None:
    start(raw, *(of for of in STREAMS if of != name))
    for of in STREAMS:
        if of != name:
            fill(raw, of, 1)
    names = [f"stats:{int(time.time()) // 60 + ago}" for ago in (-1, 0, 1)] if name == "stats" else [name]
    for one in names:
        raw.delete(key(one))
        raw.set(key(one), "a text")
    found, people = await store.sample(), await store.people()
    assert found.waiting == {of: int(of != name) for of in STREAMS}
    assert found.unreadable == ((key(name),) if name in (*STREAMS, "due", "dead", "workers") else ())
    assert people.rows == {}


async def test_what_a_stranger_writes_is_left_out(store: SampleStore, raw: redis.Redis) -> None:
    raw.zadd(key("workers"), {"odd": float("inf"), "odder": float("-inf")})
    raw.zadd(key("due"), {"odd": float("-inf")})
    raw.xadd(key("high"), {"type": "t"}, id="18446744073709551615-5")
    raw.hset(key("workers:rows"), mapping={"odd": "no row", "w1": str(WorkerRow(30_000, "h", lanes=5))})
    raw.hset(key("control"), mapping={"pause:low": "0 5 ada", "nonsense": "x"})
    found, people = await store.sample(), await store.people()
    assert (found.next_due_ms, found.oldest_ms["high"], found.until_ms["odder"]) == (0, 0, 0)
    assert people.rows == {"odd": WorkerRow(), "w1": WorkerRow(30_000, "h", lanes=5)}
    assert people.rules.pauses == {"low": Pause(0, 5, "ada")}


# --- minutes -------------------------------------------------------------------------------------------------------------------

COUNTERS = {
    "send-email high done": "40",
    "send-email high retry": "2",
    "send-email high run11": "30",
    " high wait4": "12",
    " high depth": "0",
    "an odd  name low dead": "1",
    " low dead": "3",
    "send-email nowhere done": "9",
    "send-email high done2": "no number",
    "send-email high run99": "5",
    "send-email high wait-1": "1",
    "x" * 300 + " high done": "1",
    "done": "1",
    "send-email low done": "9" * 30,
}


async def test_a_minute_is_what_was_counted_in_it(store: SampleStore, raw: redis.Redis) -> None:
    raw.hset(key("stats:7"), mapping=cast("Any", COUNTERS))
    found = await store.minutes([7, 8])
    email = ("send-email", "high")
    assert found[7] == Minute(
        {email: {"done": 40, "retry": 2, "wait-1": 1}, ("an odd  name", "low"): {"dead": 1}, ("", "low"): {"dead": 3}},
        {email: {11: 30}},
        {"high": {4: 12}},
        {"high": 0},
    )
    assert found[8] == Minute({}, {}, {}, {})
    assert found[7].count(("dead",)) == 4
    assert found[7].count(("done", "retry"), "send-email", "high") == 42


async def test_the_present_minute_is_read_with_each_look(store: SampleStore, raw: redis.Redis) -> None:
    now = int((await store.sample()).now_ms) // 60_000
    for number in (now, now + 1):
        raw.hset(key(f"stats:{number}"), "t low done", 5)
    found = await store.sample()
    assert found.minutes[found.minute].count(("done",)) == 5
    assert set(found.minutes) == {found.minute, found.minute - 1}


async def test_no_more_minutes_than_a_step_has_are_read_at_once(store: SampleStore) -> None:
    assert len(await store.minutes(range(100))) == MINUTES_A_STEP


def test_a_minute_tells_no_more_types_apart_than_there_may_be() -> None:
    flat = [word for at in range(MAX_TYPES + 5) for word in (f"t{at} low done".encode(), b"1")]
    assert len(read_minute(flat).outcomes) == MAX_TYPES


# --- what it costs -------------------------------------------------------------------------------------------------------------


class Cost:
    """What a server was asked, and what it answered."""

    def __init__(self, raw: redis.Redis) -> None:
        self.raw = raw
        raw.config_resetstat()

    def read(self) -> tuple[dict[str, int], int]:
        commands = cast("dict[str, dict[str, int]]", self.raw.info("commandstats"))
        sent = cast("dict[str, int]", self.raw.info("stats"))["total_net_output_bytes"]
        ours = ("cmdstat_info", "cmdstat_config|resetstat", "cmdstat_ping")
        return {name: row["calls"] for name, row in commands.items() if name not in ours}, sent


async def cost_of(store: SampleStore, raw: redis.Redis) -> tuple[dict[str, int], int]:
    await store.sample()
    _, idle = Cost(raw).read()
    cost = Cost(raw)
    await store.sample()
    commands, sent = cost.read()
    return commands, sent - idle


async def test_a_look_costs_the_same_however_deep_the_queue_is(store: SampleStore, raw: redis.Redis) -> None:
    start(raw)
    raw.zadd(key("workers"), {"w1": ALL_MS * 10})
    shallow, few = await cost_of(store, raw)
    for of in STREAMS:
        fill(raw, of, 2_000, 400)
    raw.xreadgroup(GROUP, "w1", {key(of): ">" for of in STREAMS}, count=500)
    raw.zadd(key("due"), {f"job-{at}": at for at in range(1, 2_000)})
    pipeline = raw.pipeline(transaction=False)
    for _ in range(500):
        pipeline.xadd(key("dead"), {"type": "t", "dead_error": "e" * 1000})
    pipeline.execute()
    deep, more = await cost_of(store, raw)
    assert shallow == deep
    assert sum(shallow.values()) < 32
    assert more - few < 600, "digits of figures, ids, and the name of who holds something"
