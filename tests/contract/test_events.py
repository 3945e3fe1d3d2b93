"""What workers write down for those who only look, and how it is read: how runs ended, and contracts."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from runtime import Backoff, Job, contract, handler
from runtime.control import Control
from runtime.ended import Ended, read_ended
from runtime.schema import MAX_CONTRACT_BYTES, declared
from runtime.store import events
from runtime.store.events import Events
from tests.servers import Server
from tests.workers import until, working

CONTRACTS = "{jobs}:contracts"
EVENTS = "{jobs}:events"
KEY = "{jobs}:high"


@contract("look")
class Look(msgspec.Struct, frozen=True):
    at: str = ""


@handler(Look)
async def look(message: Look, job: Job) -> None:
    """Look at it."""


@handler(Look, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2))
async def fail(message: Look, job: Job) -> None:
    await asyncio.sleep(0.02)
    raise ValueError(f"no {message.at}")


@handler(Look, max_size=10, max_wait_ms=1)
async def look_together(messages: list[Look], jobs: list[Job]) -> None:
    """Look at all of them."""


@handler(Look)
async def wait(message: Look, job: Job) -> None:
    await asyncio.sleep(60)


def send(raw: Any, at: str = "", **fields: str) -> str:
    return str(raw.xadd(KEY, {"type": "look", "data": json.dumps({"at": at}), **fields}))


@pytest.fixture
async def reader(server: Server) -> AsyncIterator[Events]:
    reader = Events(server.url, "jobs")
    yield reader
    await reader.close()


async def test_a_job_that_is_dropped_for_its_key_is_an_event_that_names_the_one_which_lives(
    server: Server, reader: Events, caplog: Any
):
    raw: Any = server.client()
    caplog.set_level(logging.DEBUG, "runtime")
    for job_id in ("order-1", "order-2"):
        raw.xadd("{jobs}:high", {"type": "look", "data": "{}", "id": job_id, "key": "k1"})
    async with working(server.url, wait) as consumer:
        await until(lambda: raw.xlen(EVENTS), "it is told of")
        [one] = await reader.events_of("order-2", 10)
    assert (one.outcome, one.type, one.by) == ("duplicate", "look", consumer.name)
    assert one.error == "dropped as a duplicate of order-1 (key k1)"
    [line] = [record for record in caplog.records if "duplicate of" in record.getMessage()]
    assert (line.levelname, line.getMessage()) == ("DEBUG", "job order-2 (look) is dropped as a duplicate of order-1 (key k1)")


async def test_each_failure_is_an_event_with_what_it_failed_of(server: Server, reader: Events):
    raw: Any = server.client()
    trace = "0af7651916cd43dd8448eb211c80319c"
    entry = send(raw, "money", id="j", traceparent=f"00-{trace}-b7ad6b7169203331-00")
    began_ms = int(time.time() * 1000)
    async with working(server.url, fail, app_version="1.4.2") as consumer:
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is dead")
    dead, retry = await reader.events_of("j", 10)
    assert (retry.outcome, retry.attempt, retry.place) == ("retry", 1, f"high/{entry}")
    assert (dead.outcome, dead.attempt) == ("dead", 2)
    for one in (dead, retry):
        assert (one.type, one.by, one.app, one.error) == ("look", consumer.name, "1.4.2", "ValueError: no money")
        assert one.frame.endswith(" fail")
        assert "test_events.py:" in one.frame
        assert 20 <= one.run_ms < 60_000
        assert began_ms - 60_000 < one.at_ms < time.time() * 1000 + 60_000
        assert 0 <= one.wait_ms < 60_000
    assert retry.trace == trace
    assert 0 < raw.pttl(EVENTS) <= 7 * 24 * 3_600_000


@pytest.mark.parametrize("looking", [look, look_together], ids=["alone", "together"])
async def test_a_few_of_the_successes_are_events(server: Server, reader: Events, looking: Any):
    raw: Any = server.client()
    async with working(server.url, looking, app_version="1.4.2") as consumer:
        for n in range(100):
            send(raw, id=f"j{n}")
        await until(lambda: consumer.stats.finished == 100, "all are done")
        await until(lambda: raw.xlen(EVENTS), "some are told of")
    found, _ = await reader.events(100)
    assert {(one.outcome, one.attempt, one.by, one.app, one.error) for one in found} == {("done", 1, consumer.name, "1.4.2", "")}
    assert all(one.id.startswith("j") and one.run_ms < 60_000 for one in found)
    assert len(found) < 100


async def test_a_run_that_was_cancelled_is_an_event(server: Server, reader: Events):
    raw: Any = server.client()
    place = f"high/{send(raw, id='j')}"
    async with working(server.url, wait) as consumer, Control(server.url, by="ann") as control:
        await until(lambda: consumer.running, "it runs")
        await control.cancel("j")
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is cancelled")
    assert [(one.outcome, one.place) for one in await reader.events_of("j", 10)] == [("cancelled", place)]


async def test_events_are_read_newest_first_in_pages_and_from_where_one_left(server: Server, reader: Events):
    raw: Any = server.client()
    assert await reader.events(10) == ([], "")
    for n in range(5):
        raw.xadd(EVENTS, {"id": f"j{n}", "outcome": "done"})
    newest, cursor = await reader.events(2)
    assert [one.id for one in newest] == ["j4", "j3"]
    rest, end = await reader.events(5, cursor)
    assert ([one.id for one in rest], end) == (["j2", "j1", "j0"], "")
    since, _ = await reader.events(5, after=newest[1].entry)
    assert [one.id for one in since] == ["j4"]


async def test_an_event_of_a_stranger_spoils_nothing(server: Server, reader: Events):
    raw: Any = server.client()
    raw.xadd(EVENTS, {"id": "j", "at": "9" * 400, "run": "-1", "wait": "\u0663", "type": "\x1b[2J" + "x" * 999, b"\xff": b"\xff"})
    raw.xadd(EVENTS, {"other": "j"})
    [one] = await reader.events_of("j", 10)
    assert (one.at_ms, one.run_ms, one.wait_ms) == (0, 0, 0)
    assert len(one.type) == 64
    assert "\x1b" not in one.type
    raw.delete(EVENTS)
    raw.set(EVENTS, "a text")
    assert (await reader.events(5), await reader.events_of("j", 5)) == (([], ""), [])
    send(raw)
    async with working(server.url, fail):
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "the worker goes on")


async def test_runs_of_a_job_are_looked_for_in_a_bounded_window(server: Server, reader: Events, monkeypatch: pytest.MonkeyPatch):
    raw: Any = server.client()
    monkeypatch.setattr(events, "EVENTS", 40)
    monkeypatch.setattr(events, "EVENTS_PAGE", 20)
    raw.xadd(EVENTS, {"id": "old"})
    raw.xadd(EVENTS, {"id": "new"})
    for _ in range(39):
        raw.xadd(EVENTS, {"id": "other"})
    assert [one.id for one in await reader.events_of("new", 5)] == ["new"]
    assert await reader.events_of("old", 5) == []


def test_an_event_is_read_as_it_was_written():
    one = Ended("j", "t", "high/1-0", "retry", 2, 17, 5, 6, "w", "v1", "E: ü", "a.py:1 f", "0" * 32, "7-0")
    words = list(map(str, one.fields()))
    assert read_ended("7-0", dict(zip(words[::2], words[1::2], strict=True))) == one
    assert read_ended("7-0", {}) == Ended(entry="7-0")


async def test_a_worker_writes_its_contracts_down(server: Server, reader: Events):
    raw: Any = server.client()
    assert await reader.contracts() == []
    async with working(server.url, look, app_version="1.4.2") as consumer:
        await until(lambda: raw.hlen(CONTRACTS), "they are written")
        [one] = await reader.contracts()
        assert one == declared(look, "1.4.2", consumer.name, one.at_ms)
        assert json.loads(one.schema)["$defs"]["Look"]["properties"]["at"]["type"] == "string"
    assert await reader.contracts() == [one], "and they stay"


async def test_a_server_that_lost_them_has_them_again(server: Server, reader: Events):
    async with working(server.url, look) as consumer:
        await consumer.maintenance.declare()
        server.client().delete(CONTRACTS)
        await consumer.maintenance.declare()
        assert [one.type for one in await reader.contracts()] == ["look"]


async def test_one_that_cannot_be_read_spoils_nothing(server: Server, reader: Events, monkeypatch: pytest.MonkeyPatch):
    raw: Any = server.client()
    good = '{"priority":"low"}'
    odd = {"a@1": good, "b@1": "{", "c": good, "a@2": good, b"\xff@1": good, "d@1": "x" * (MAX_CONTRACT_BYTES + 1)}
    raw.hset(CONTRACTS, mapping=odd)
    assert [one.field for one in await reader.contracts()] == ["a@2", "a@1"]
    monkeypatch.setattr(events, "MAX_CONTRACTS_BYTES", 3 * len(good))
    raw.hset(CONTRACTS, mapping={f"t{n}@1": good for n in range(300)})
    assert 0 < len(await reader.contracts()) <= 3, "all of them together are bounded"
    monkeypatch.setattr(events, "MAX_CONTRACTS", 2)
    assert len(await reader.contracts()) <= 2
    raw.delete(CONTRACTS)
    raw.set(CONTRACTS, "a text")
    assert await reader.contracts() == []


async def test_a_key_of_another_type_costs_a_worker_nothing(server: Server, caplog: pytest.LogCaptureFixture):
    raw: Any = server.client()
    raw.set(CONTRACTS, "a text")
    async with working(server.url, look) as consumer:
        await consumer.maintenance.declare()
    assert raw.get(CONTRACTS) == "a text"
