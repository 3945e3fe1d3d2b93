"""The pages of workers, queue, system and schedules on a real server: their figures, their words, and what people order there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
import pytest
import redis

from board.api import Refused
from board.orders import Orders
from board.queue import QueuePage, lots_said, pauses_of
from board.sampler import Sampler
from board.schedules import SchedulesPage, ticks_of
from board.shapes import (
    AuditAsk,
    Jobs,
    JobsAsk,
    Nothing,
    OrderAsk,
    PauseAsk,
    ScheduleAsk,
    ScheduleTick,
    WorkerAsk,
)
from board.system import SystemPage, durability, trouble_of
from board.viewer import Viewer
from board.workers import WorkersPage
from runtime import Job, Schedule, contract, handler
from runtime.control import Control
from runtime.errors import ConfigError
from runtime.findings import Finding
from runtime.rules import Pause, Rules
from runtime.schedules import Row, told_of_code
from runtime.store.base import GROUP, WorkerRow
from runtime.store.inspector import Inspector
from tests.servers import Server
from tests.workers import until, working

ADA = Viewer("ada", frozenset({"view", "operate"}))
ALL = Nothing()
NOW_MS = int(time.time() * 1000)


@contract("greet-page")
class Greet(msgspec.Struct, frozen=True):
    name: str


@handler(Greet)
async def greet(message: Greet, job: Job) -> None: ...


@pytest.fixture
async def sampler(valkey: Server) -> AsyncIterator[Sampler]:
    opened = Sampler(valkey.url, "jobs")
    yield opened
    await opened.close()


@pytest.fixture
def orders(valkey: Server) -> Orders:
    return Orders(valkey.url, "jobs")


@pytest.fixture
async def queue_page(valkey: Server, sampler: Sampler, orders: Orders) -> AsyncIterator[QueuePage]:
    inspector = Inspector(valkey.url, "jobs")
    yield QueuePage(sampler, orders, inspector)
    await inspector.close()


def lives(raw: redis.Redis, name: str = "w1", *, beat_ms: int = 1_000, **row: Any) -> None:
    """Write a worker whose last heartbeat was so long ago; leases are of 30 s."""
    raw.zadd("{jobs}:workers", {name: int(time.time() * 1000) + 30_000 - beat_ms})
    told = {"host": f"host-{name}", "pid": 7, "lanes": 10, "stage": "running", **row}
    raw.hset("{jobs}:workers:rows", name, str(WorkerRow(30_000, **told)))


def give(raw: redis.Redis, name: str, n: int, of: str = "high") -> list[str]:
    """Let somebody hold so many jobs."""
    if not raw.exists(f"{{jobs}}:{of}"):
        raw.xgroup_create(f"{{jobs}}:{of}", GROUP, "0", mkstream=True)
    ids = [str(raw.xadd(f"{{jobs}}:{of}", {"type": "t", "data": "{}"})) for _ in range(n)]
    raw.xreadgroup(GROUP, name, {f"{{jobs}}:{of}": ">"})
    return ids


# --- workers -------------------------------------------------------------------------------------------------------------------


async def test_workers_are_told_as_they_last_said_and_those_that_are_gone_too(
    sampler: Sampler, orders: Orders, raw: redis.Redis
) -> None:
    now_ms = int(time.time() * 1000)
    longest = [("high/5-0", now_ms - 60_000, "t"), ("high/4-0", now_ms - 90_000, "u")]
    lives(
        raw,
        "a",
        running={"t": 3, "u": 1},
        since=now_ms - 7_200_000,
        rss=200 << 20,
        lag=4,
        app="1.4.2",
        version="0.1",
        jobs=longest,
    )
    lives(raw, "gone", beat_ms=34_000)
    lives(raw, "left", beat_ms=34_000)  # and holds nothing: it is no worker any more
    give(raw, "gone", 2)
    found = await WorkersPage(sampler, orders).workers(ALL, ADA)
    assert found.said == ["", "1 worker beats, 1 is gone", ". 4 of 10 lanes busy."]
    one, gone = found.workers
    assert (one.name, one.label, one.busy, one.lanes, one.level, one.note) == ("a", "host-a · 7", 4, 10, "ok", "")
    assert (one.rss_bytes, one.lag_ms, one.app, one.version) == (200 << 20, 4.0, "1.4.2", "0.1")
    assert one.longest is not None
    assert (one.longest.type, one.longest.place, one.longest.runs_ms // 1000) == ("u", "high/4-0", 90)
    assert (gone.name, gone.held, gone.is_alive, gone.level) == ("gone", 2, False, "act")
    assert gone.note.startswith("gone, its 2 jobs come back ")


async def test_one_worker_is_told_with_its_jobs_and_what_has_blocked_it(
    sampler: Sampler, orders: Orders, raw: redis.Redis
) -> None:
    lives(
        raw, "a b", blocked={"t": 3, "": 1}, blocked_ms={"t": 2_100, "": 140}, where={"t": "x.py:5"}, types={"t": 1}, reserved=1
    )
    asked: list[JobsAsk] = []

    async def jobs(ask: JobsAsk, viewer: Viewer) -> Jobs:
        asked.append(ask)
        return Jobs(
            rows=[], facets=[], waiting=0, claimed=0, delayed=0, looked_at=0, of=0, found=0, said="", title=[""], cursor=None
        )

    page = WorkersPage(sampler, orders, jobs)
    found = await page.worker(WorkerAsk(name="a b"), ADA)
    assert (found.row.name, found.jobs, [ask.sort for ask in asked]) == ("a b", [], ["longest"])
    assert [fact.text for fact in found.blocked] == ["3 times, the longest 2.1 s, in x.py:5", "1 time, the longest 140 ms"]
    assert {fact.name: fact.text for fact in found.facts}["lanes"] == "10, 1 of them for critical alone"
    with pytest.raises(Refused, match="no such worker") as refused:
        await page.worker(WorkerAsk(name="b"), ADA)
    assert refused.value.status == 404


async def test_a_worker_obeys_what_is_ordered_on_the_board_and_the_audit_has_it(
    valkey: Server, sampler: Sampler, orders: Orders, raw: redis.Redis
) -> None:
    page = WorkersPage(sampler, orders)
    async with working(valkey.url, greet, lease_s=0.9) as worker:
        name = worker.streams.consumer
        await until(lambda: raw.zscore("{jobs}:workers", name), "it beats")
        done = await page.order(OrderAsk(names=[name], verb="quiet", reason="a look"), ADA)
        assert (done.is_changed, done.text) == (True, f"{name} starts nothing new now")
        await until(lambda: '"stage":"quiet"' in raw.hget("{jobs}:workers:rows", name), "it is quiet")
        again = await page.order(OrderAsk(names=[name], verb="quiet"), ADA)
        assert (again.is_changed, again.text) == (False, f"{name} was ordered so before")
        assert (await page.order(OrderAsk(names=[name], verb="resume"), ADA)).text == f"{name} goes on"
        await until(lambda: '"stage":"running"' in raw.hget("{jobs}:workers:rows", name), "it goes on")
    with pytest.raises(ConfigError, match="no worker"):
        await page.order(OrderAsk(names=["nobody"], verb="stop"), ADA)
    audit = await SystemPage(sampler).audit(AuditAsk(), ADA)
    assert [(one.who, one.reason) for one in audit.entries] == [("ada@board", ""), ("ada@board", "a look")]


async def test_the_name_of_who_orders_is_one_word_in_the_audit(orders: Orders) -> None:
    async with orders.by(Viewer("Ada  Lovelace\n" + "x" * 200)) as control:
        assert control.by.startswith("Ada-Lovelace-xxx")
        assert control.by.endswith("@board")


# --- queue ---------------------------------------------------------------------------------------------------------------------


async def test_the_queue_is_told_by_priority_with_its_memory(queue_page: QueuePage, raw: redis.Redis) -> None:
    give(raw, "w1", 3)
    raw.xadd("{jobs}:high", {"type": "t", "data": "{}"})
    raw.zadd("{jobs}:due", {"a": 10**13})
    raw.hset("{jobs}:msg", "a", "x")
    raw.xadd("{jobs}:dead", {"type": "t"})
    raw.config_set("maxmemory", 10**9)
    found = await queue_page.queue(ALL, ADA)
    high = found.rows[1]
    assert (high.name, high.waiting, high.claimed, high.lots) == ("high", 1, 3, 0)
    assert high.bytes == raw.memory_usage("{jobs}:high", samples=5)
    assert high.bytes_per_job == round((high.bytes or 0) / 4)
    assert (found.rows[3].bytes, found.rows[3].bytes_per_job, found.rows[3].oldest_ms) == (None, None, None)
    assert (found.delayed, found.dead, found.max_memory_bytes) == (1, 1, 10**9)
    assert (found.delayed_bytes or 0) > 0
    assert (found.dead_bytes or 0) > 0
    assert found.memory_bytes > 10**5
    assert (found.lots, found.said) == ([], ["No job waits for anything but a free lane."])


LOTS = [
    ("~t:send-sms@2", "act", "wait for a worker that knows send-sms version 2; dead letters in about 14 m "),
    ("~free", "ok", "given back by a worker that stopped; anybody takes them first"),
    ("~suspect", "look", "ran when their worker died; run apart from the others, a few at a time"),
    ("~g:mail", "ok", "wait: mail is paused by ada@host (too many)"),
    ("~g:print:office", "ok", "wait for its turn at print"),
    ("~t:", "act", "wait for workers that know their types"),
    ("~new", "look", "of a newer version of the runtime; anybody takes them after a lease"),
]


@pytest.mark.parametrize(("lot", "level", "text"), LOTS, ids=[lot for lot, _, _ in LOTS])
async def test_what_a_lot_waits_for_is_told(
    queue_page: QueuePage, orders: Orders, raw: redis.Redis, lot: str, level: str, text: str
) -> None:
    raw.hset("{jobs}:control", "pause:mail", f"0 {NOW_MS} ada@host too many")
    ids = give(raw, "w1", 2)
    raw.xclaim("{jobs}:high", GROUP, lot, 0, cast("Any", ids), idle=30_000)
    found = await queue_page.queue(ALL, ADA)
    [one] = found.lots
    assert (one.name, one.pri, one.count, one.level) == (lot, "high", 2, level)
    assert one.text.startswith(text)
    assert 30_000 <= (one.oldest_ms or 0) < 90_000
    assert found.said == ["", "2 jobs", " wait for something other than a free lane."]


def test_lots_that_are_not_shown_are_counted() -> None:
    assert lots_said(1, 3) == ["", "1 job", " waits for something other than a free lane. 3 lots more are not shown."]


@pytest.mark.parametrize(
    ("ask", "told", "rule"),
    [
        (PauseAsk(priority="low"), "priority low", "low"),
        (PauseAsk(type="greet"), "greet", "greet"),
        (PauseAsk(is_all=True), "the whole queue", "*"),
    ],
)
async def test_what_is_paused_on_the_board_is_so_until_it_is_resumed(
    queue_page: QueuePage, raw: redis.Redis, ask: PauseAsk, told: str, rule: str
) -> None:
    found = await queue_page.pause(ask, ADA)
    assert (found.is_changed, found.text) == (True, f"{told} is paused until it is resumed")
    assert "ada@board" in str(raw.hget("{jobs}:control", f"pause:{rule}"))
    assert (await queue_page.pause(ask, ADA)).text == f"{told} was paused so before"
    page = await queue_page.queue(ALL, ADA)
    assert [(one.kind, one.by) for one in page.pauses] == [({"low": "priority", "greet": "type", "*": "all"}[rule], "ada@board")]
    assert [row.pause for row in page.rows] == [
        None if rule == "greet" or (rule == "low" and row.name != "low") else "ada@board" for row in page.rows
    ]
    assert (await queue_page.resume(ask, ADA)).text == f"{told} goes on"
    assert not raw.hexists("{jobs}:control", f"pause:{rule}")
    assert (await queue_page.resume(ask, ADA)).text == f"{told} was not paused"


async def test_a_pause_may_be_for_a_time(queue_page: QueuePage) -> None:
    assert (await queue_page.pause(PauseAsk(priority="low", for_s=90), ADA)).text == "priority low is paused for 1 m 30 s"


@pytest.mark.parametrize("ask", [PauseAsk(), PauseAsk(is_all=True, type="a"), PauseAsk(priority="low", type="a")])
async def test_exactly_one_thing_is_paused(queue_page: QueuePage, ask: PauseAsk) -> None:
    for act in (queue_page.pause, queue_page.resume):
        with pytest.raises(Refused, match="name one of"):
            await act(ask, ADA)


def test_a_pause_whose_time_is_up_is_none() -> None:
    rules = Rules(pauses={"low": Pause(NOW_MS - 1, 1, "ada"), "a": Pause(NOW_MS + 5, 1, "ben", "why")})
    assert [(one.name, one.until_ms, one.reason) for one in pauses_of(rules, NOW_MS)] == [("a", NOW_MS + 5, "why")]


# --- system --------------------------------------------------------------------------------------------------------------------


async def test_the_system_says_what_the_doctor_found_and_what_the_board_costs(
    valkey: Server, sampler: Sampler, raw: redis.Redis
) -> None:
    raw.xadd("{jobs}:high", {"type": "t", "data": "{}"})
    found = await SystemPage(sampler).system(ALL, ADA)
    assert found.troubles[0].level == "act"
    assert {trouble.level for trouble in found.troubles} >= {"act", "ok"}
    assert any(
        "no append-only file" in trouble.text and f"redis-cli -s {valkey.socket} CONFIG SET" in trouble.fix
        for trouble in found.troubles
    )
    facts = {fact.name: fact.text for fact in found.facts}
    assert facts["server"].startswith(f"valkey {raw.info('server')['valkey_version']}, master, up ")
    assert (facts["address"], facts["queue"]) == (valkey.url, "jobs")
    assert facts["memory"].count(", no limit") == 1
    assert {fact.name for fact in found.cost} == {"commands", "waits for Redis", "memory", "viewers", "history"}
    assert found.said == ["", "When the Redis server ends, all jobs are lost", ": it keeps no append-only file (no replica)."]
    assert (await sampler.frame()).counts.findings >= 1


async def test_the_doctor_is_asked_once_a_minute(sampler: Sampler) -> None:
    assert await sampler.examined() is await sampler.examined()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (
            {"aof_enabled": "1", "appendfsync": "always", "connected_slaves": "2"},
            "**Every accepted job is on disk** (appendfsync always, 2 replicas).",
        ),
        (
            {"aof_enabled": "1", "appendfsync": "everysec", "connected_slaves": "0"},
            "**A crash of the Redis host can lose up to about 2 s of accepted jobs** (appendfsync everysec, no replica)."
            ' Senders that must not may ask for durability="fsync".',
        ),
        (
            {"aof_enabled": "1", "appendfsync": "no"},
            "**A crash of the Redis host can lose about 30 s of accepted jobs** (appendfsync no, no replica)."
            ' Senders that must not may ask for durability="fsync".',
        ),
    ],
)
def test_what_a_crash_may_cost_is_said(host: dict[str, str], said: str) -> None:
    assert "".join(f"**{part}**" if at % 2 else part for at, part in enumerate(durability(host))) == said


def test_a_password_is_in_no_command_that_is_shown() -> None:
    url = "redis://ada:secret@example:6379"
    assert "secret" not in trouble_of(Finding("error", "x", "redis-cli CONFIG SET appendonly yes"), url).fix


async def test_the_audit_goes_on_behind_a_cursor(sampler: Sampler, orders: Orders, raw: redis.Redis) -> None:
    page = SystemPage(sampler)
    async with orders.by(ADA) as control:
        for n in range(5):
            await control.pause(type=f"t{n}", reason=f"r{n}")
    raw.xadd("{jobs}:audit", {"odd": "a stranger's"})
    first = await page.audit(AuditAsk(limit=4), ADA)
    assert [one.reason for one in first.entries] == ["", "r4", "r3", "r2"]
    assert first.cursor is not None
    rest = await page.audit(AuditAsk(limit=4, cursor=first.cursor), ADA)
    assert ([one.reason for one in rest.entries], rest.cursor) == (["r1", "r0"], None)
    assert rest.entries[0].what.startswith("pause")
    with pytest.raises(Refused, match="cursor"):
        await page.audit(AuditAsk(cursor="+ COUNT 5"), ADA)


# --- schedules -----------------------------------------------------------------------------------------------------------------


async def add(url: str, name: str, **settings: Any) -> None:
    async with Control(url, "jobs") as control:
        await control.add_schedule(Schedule(name, settings.pop("when", ""), Greet("x"), **settings))


async def test_schedules_are_told_in_words_with_what_comes_and_what_was(
    valkey: Server, sampler: Sampler, orders: Orders, raw: redis.Redis
) -> None:
    await add(valkey.url, "nightly", when="0 3 * * *", tz="Europe/Berlin")
    await add(valkey.url, "often", every_s=30)
    await add(valkey.url, "off", when="@hourly", paused=True)
    soon_ms = int(time.time() * 1000) + 5_000
    lives(raw, schedules={"often": soon_ms, "of-code": soon_ms + 1, "late": soon_ms - 300_000})
    raw.hset("{jobs}:cron", "broken", "no json")
    raw.hset("{jobs}:cron:state", "of-code", "900 aaaa bbbb 950 0 700s 800m3 900f")
    rows = {row.name: row for row in (await SchedulesPage(sampler, orders).schedules(ALL, ADA)).schedules}
    assert list(rows)[-2:] == ["broken", "off"]
    nightly, often, off = rows["nightly"], rows["often"], rows["off"]
    assert (nightly.type, nightly.pri, nightly.when, nightly.zone) == ("greet-page", "medium", "0 3 * * *", "Europe/Berlin")
    assert nightly.words == "at 03:00 every day"
    assert (len(nightly.next_ms), nightly.next_ms) == (5, sorted(nightly.next_ms))
    assert (nightly.level, nightly.note) == ("look", "no worker that lives fires it")
    assert (often.words, often.when, often.zone, often.level) == ("every 30 s", "every 30 s", "", "ok")
    assert (off.is_paused, off.next_ms, off.level, off.note) == (True, [], "ok", "paused")
    assert (rows["late"].level, rows["late"].note[:18]) == ("look", "should have fired ")
    assert rows["broken"].note.startswith("cannot be read, and does not run")
    assert rows["of-code"].last == [
        ScheduleTick(at_ms=700, outcome="skipped"),
        ScheduleTick(at_ms=800, outcome="missed"),
        ScheduleTick(at_ms=900, outcome="fired"),
    ]


async def test_a_schedule_is_run_paused_and_resumed_on_the_board(
    valkey: Server, sampler: Sampler, orders: Orders, raw: redis.Redis
) -> None:
    await add(valkey.url, "nightly", when="0 3 * * *", overlap="skip")
    page, ask = SchedulesPage(sampler, orders), ScheduleAsk(name="nightly", reason="a trial")
    sent = await page.run(ask, ADA)
    assert sent.text.startswith("sent cron:nightly:now-")
    assert raw.xlen("{jobs}:medium") == 1
    assert (await page.run(ask, ADA)).is_changed is False
    assert (await page.pause(ask, ADA)).text == "nightly is paused until it is resumed"
    assert (await page.pause(ask, ADA)).text == "nightly was paused before"
    assert [row.is_paused for row in (await page.schedules(ALL, ADA)).schedules] == [True]
    assert (await page.resume(ask, ADA)).text == "nightly fires again"
    assert (await page.resume(ask, ADA)).text == "nightly was not paused"
    with pytest.raises(ConfigError, match="no schedule"):
        await page.run(ScheduleAsk(name="none"), ADA)


@pytest.mark.parametrize("tick", ["", "f", "5", "5x", "9" * 40 + "f", "-5f"])
def test_what_is_no_tick_is_left_out(tick: str) -> None:
    assert ticks_of(Row(1, 1, "", [tick, "7f"])) == [ScheduleTick(at_ms=7, outcome="fired")]


async def test_schedules_of_code_are_told_and_run_where_that_code_is_not(
    valkey: Server, sampler: Sampler, orders: Orders, raw: redis.Redis
) -> None:
    schedule = Schedule("by-code", "0 3 * * *", Greet("x"), tz="Europe/Berlin")
    raw.hset("{jobs}:cron:code", mapping={"no-one's": raw_text(schedule), "odd": "no json", "large": "0 " + " " * 20_000})
    page = SchedulesPage(sampler, orders)
    async with working(valkey.url, greet, lease_s=0.9, schedules=[schedule]):
        await until(lambda: raw.hexists("{jobs}:cron:code", "by-code"), "it is written down")
        assert 0 < raw.pttl("{jobs}:cron:code") <= 7 * 24 * 3_600_000
        await until(lambda: '"by-code":1' in str(raw.hvals("{jobs}:workers:rows")), "a worker tells of it")
        await sampler.close()
        [row] = (await page.schedules(ALL, ADA)).schedules
        assert (row.name, row.words, row.zone, row.source, row.type) == (
            "by-code",
            "at 03:00 every day",
            "Europe/Berlin",
            "code",
            "greet-page",
        )
        assert len(row.next_ms) == 5
        assert (await page.run(ScheduleAsk(name="by-code"), ADA)).text.startswith("sent cron:by-code:now-")
        assert (await page.pause(ScheduleAsk(name="by-code"), ADA)).is_changed
        [paused] = (await page.schedules(ALL, ADA)).schedules
        assert (paused.is_paused, paused.source, paused.next_ms) == (True, "code, overridden", [])
    await sampler.close()


def raw_text(schedule: Schedule) -> str:
    return told_of_code({"x": schedule.definition})["x"]
