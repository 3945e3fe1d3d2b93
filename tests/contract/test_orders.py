"""A worker on a real server obeys what is ordered from elsewhere, within a second or two, and goes on when it is taken back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from runtime import Job, contract, handler
from runtime.consumer import Consumer, Stage
from runtime.errors import StoreUnavailable
from runtime.jobs import STREAMS
from runtime.store.base import GROUP
from runtime.store.control import ControlStore
from tests.servers import KINDS, Server, binary_of
from tests.workers import until, working

CONTROL = "{jobs}:control"
HIGH, LOW = 1, 3


@contract("beck")
class Beck(msgspec.Struct, frozen=True):
    name: str
    is_long: bool = False


ran: list[str] = []
gate = asyncio.Event()


@handler(Beck)
async def beck(message: Beck, job: Job) -> None:
    ran.append(message.name)
    if message.is_long:
        await gate.wait()


@pytest.fixture(autouse=True)
def _anew():
    global gate
    ran.clear()
    gate = asyncio.Event()


@pytest.fixture
async def control(server: Server) -> AsyncIterator[ControlStore]:
    opened = ControlStore(server.url, "jobs")
    yield opened
    await opened.close()


def send(raw, stream: int, *names: str, is_long: bool = False) -> None:
    for name in names:
        raw.xadd(f"{{jobs}}:{STREAMS[stream]}", {"type": "beck", "data": msgspec.json.encode(Beck(name, is_long))})


async def order(control: ControlStore, *operations: tuple[str, str, str]) -> None:
    assert all(await control.order("ann@host", "a try", operations)), "something was to do"


def held_by_workers(raw, stream: int) -> int:
    rows = raw.xpending_range(f"{{jobs}}:{STREAMS[stream]}", GROUP, "-", "+", 100)
    return sum(1 for row in rows if not row["consumer"].startswith("~"))


async def obeyed(worker: Consumer, *paused: int) -> None:
    """Wait until the worker starts nothing of these streams."""
    await until(lambda: worker._fetcher.paused == set(paused), f"it hears of {paused}")


async def test_a_paused_priority_starts_nothing_and_the_others_go_on(server, raw, control):
    async with working(server.url, beck) as worker:
        await order(control, ("pause", "pause:high", "0"))
        await obeyed(worker, HIGH)
        send(raw, HIGH, "paused")
        send(raw, LOW, "low")
        await until(lambda: ran == ["low"], "the other priority goes on")
        await until(lambda: held_by_workers(raw, HIGH) == 0, "what a fetch that was under way has brought is given back")
        await order(control, ("del", "pause:high", ""))
        await until(lambda: ran == ["low", "paused"], "it goes on")


async def test_a_paused_queue_starts_nothing_at_all_and_the_worker_is_ready(server, raw, control):
    async with working(server.url, beck) as worker:
        await order(control, ("pause", "pause:*", "0"))
        await obeyed(worker, *range(4))
        for stream in range(4):
            send(raw, stream, str(stream))
        await until(lambda: worker.is_ready, "it is ready")
        version = worker.orders.rules.version
        await order(control, ("set", "worker:another", "quiet"))
        await until(lambda: worker.orders.rules.version != version, "a second later")
        assert ran == []
        await order(control, ("del", "pause:*", ""))
        await until(lambda: sorted(ran) == [*"0123"], "all run")


async def test_the_rules_are_read_before_the_first_fetch(server, raw, control):
    await order(control, ("pause", "pause:high", "0"))
    send(raw, HIGH, "paused")
    async with working(server.url, beck) as worker:
        assert worker._fetcher.paused == {HIGH}, "from its start"
        send(raw, LOW, "low")
        await until(lambda: ran == ["low"], "the other priority runs")
    assert raw.xlen("{jobs}:high") == 1


async def test_a_pause_ends_at_its_time_without_a_word_from_anybody(server, raw, control):
    async with working(server.url, beck) as worker:
        await order(control, ("pause", "pause:high", "2500"))
        await obeyed(worker, HIGH)
        send(raw, HIGH, "paused")
        await until(lambda: ran == ["paused"], "it goes on")
        seconds, micros = raw.time()
        assert seconds * 1000 + micros // 1000 >= int(raw.hget(CONTROL, "pause:high").split()[0]), "and no sooner"
        assert worker.orders.rules.version == "1"


async def test_a_pause_ends_by_the_servers_clock(server, raw, control, monkeypatch):
    """A worker whose clock is an hour ahead: by that, the pause would be over before it has begun."""
    real = time.time
    monkeypatch.setattr("runtime.worker.orders.time.time", lambda: real() + 3600)
    async with working(server.url, beck) as worker:
        await order(control, ("pause", "pause:high", "1800000"))
        await obeyed(worker, HIGH)


async def test_rules_of_a_restored_server_hold_though_it_counts_lower(server, raw, control):
    await order(control, ("pause", "pause:high", "0"))
    kept = raw.hgetall(CONTROL)
    await order(control, ("set", "worker:a", "quiet"))
    await order(control, ("del", "pause:high", ""))
    async with working(server.url, beck) as worker:
        assert (worker._fetcher.paused, worker.orders.rules.version) == (set(), "3")
        raw.delete(CONTROL)
        raw.hset(CONTROL, mapping=kept)
        await obeyed(worker, HIGH)


async def test_what_waits_here_when_its_priority_is_paused_is_given_back(server, raw, control, monkeypatch):
    monkeypatch.setattr("runtime.consumer.UNSTARTED_S", 600.0)  # it would be given back anyway

    def both_wait() -> bool:
        worker._finished_before = [-10, -10]  # as if ten had just ended: then it reads ahead
        return len(worker.inbox) == 2

    async with working(server.url, beck, concurrency=2, reserved=0) as worker:
        send(raw, HIGH, "a", "b", is_long=True)
        await until(lambda: len(ran) == 2, "all lanes run")
        send(raw, HIGH, "c", "d")
        await until(both_wait, "they wait here")
        await order(control, ("pause", "pause:high", "0"))
        await obeyed(worker, HIGH)
        await until(lambda: held_by_workers(raw, HIGH) == 2, "only what runs is still held")
        gate.set()
        await until(lambda: not len(worker.held), "that ends")
        assert (ran, raw.xlen("{jobs}:high")) == (["a", "b"], 2)
        await order(control, ("del", "pause:high", ""))
        await until(lambda: sorted(ran) == [*"abcd"], "the others run once it goes on")
    assert raw.xlen("{jobs}:dead") == 0


async def test_a_quiet_worker_starts_nothing_finishes_what_runs_and_says_so(server, raw, control):
    async with working(server.url, beck, lease_s=0.9) as worker:
        send(raw, HIGH, "long", is_long=True)
        await until(lambda: ran == ["long"], "it runs")
        await order(control, ("set", f"worker:{worker.name}", "quiet"))
        await obeyed(worker, *range(4))
        send(raw, HIGH, "later")
        raw.zadd("{jobs}:due", {"x": 1})
        await until(lambda: '"stage":"quiet"' in raw.hget("{jobs}:workers:rows", worker.name), "its row says so")
        await until(lambda: not raw.exists("{jobs}:due"), "it moves delayed jobs on")
        assert (ran, worker.is_ready, worker.stage) == (["long"], True, Stage.RUNNING)
        gate.set()
        await until(lambda: not len(worker.held), "what runs ends")
        assert raw.xlen("{jobs}:high") == 1
        await order(control, ("del", f"worker:{worker.name}", ""))
        await until(lambda: ran == ["long", "later"], "it goes on")


async def test_a_worker_that_is_ordered_to_stop_stops_as_at_a_signal_and_no_other(server, raw, control):
    async with working(server.url, beck, grace_s=60) as worker, working(server.url, beck) as other:
        send(raw, HIGH, "long", is_long=True)
        await until(lambda: ran == ["long"], "it runs")
        victim = worker if worker.running else other
        await order(control, ("set", f"worker:{victim.name}", "stop"))
        await until(lambda: victim.stage is Stage.DRAINING, "it stops")
        gate.set()
        await until(lambda: victim.stage is Stage.CLOSED, "its job ended within the grace")
        await until(lambda: raw.hkeys(CONTROL) == ["v"], "it took the order along")
        rest = other if victim is worker else worker
        assert rest.stage is Stage.RUNNING
        send(raw, HIGH, "more")
        await until(lambda: ran == ["long", "more"], "the other works")


async def test_what_cannot_be_read_is_told_once_and_the_rest_is_obeyed(server, raw, control, caplog, monkeypatch):
    monkeypatch.setattr("runtime.worker.orders.REREAD_S", 0.0)
    raw.hset(CONTROL, mapping={"pause:low": "soon", "strange": "\xff", "pause:high": "0 1 ann"})
    async with working(server.url, beck) as worker:
        assert worker._fetcher.paused == {HIGH}
        read: list[int] = []
        real = worker.streams.rules

        async def rules(since_ms: int):
            read.append(1)
            return await real(since_ms)

        worker.streams.rules = rules
        await until(lambda: len(read) >= 3, "they are read again and again")
    told = [record.getMessage() for record in caplog.records if "a rule cannot be read" in record.getMessage()]
    assert [line.partition("hold: ")[2].partition(":")[0] for line in told] == ["pause", "strange"]


async def test_rules_that_were_changed_by_hand_hold_after_a_while(server, raw, control, monkeypatch):
    monkeypatch.setattr("runtime.worker.orders.REREAD_S", 0.5)
    async with working(server.url, beck) as worker:
        raw.hset(CONTROL, "pause:high", "0 1 ann")
        await obeyed(worker, HIGH)


async def test_a_key_of_another_type_keeps_no_worker_from_its_jobs_and_is_told(server, raw, caplog):
    raw.set(CONTROL, "x")
    async with working(server.url, beck):
        send(raw, HIGH, "a")
        await until(lambda: ran == ["a"], "it works")
        told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert [text for text in told if text.startswith("rules cannot be read") and CONTROL in text]


async def test_rules_read_last_hold_where_the_key_becomes_one_of_another_type(server, raw, control, caplog):
    async with working(server.url, beck) as worker:
        await order(control, ("pause", "pause:high", "0"))
        await obeyed(worker, HIGH)
        raw.set(CONTROL, "x")
        told = "rules cannot be read, those read last hold: Redis answered: WRONGTYPE"
        await until(lambda: any(told in record.getMessage() for record in caplog.records), "it is told")
        assert worker._fetcher.paused == {HIGH}
        assert any(CONTROL in record.getMessage() for record in caplog.records)
        raw.delete(CONTROL)
        await obeyed(worker)


@pytest.mark.parametrize("kind", KINDS[:2])
async def test_a_pause_holds_while_the_server_is_away_and_when_it_is_back(kind):
    if not binary_of(kind):
        pytest.skip(f"no {kind}")
    server = Server(kind, "--appendfsync", "always", appendonly=True)
    control, raw = ControlStore(server.url, "jobs"), server.client()
    try:
        async with working(server.url, beck) as worker:
            await order(control, ("pause", "pause:high", "0"))
            await obeyed(worker, HIGH)
            send(raw, HIGH, "paused")
            version, looks = worker.orders.rules.version, list[str | None]()
            real = worker.orders.look

            async def look(version: str | None) -> None:
                await real(version)
                looks.append(version)

            worker.orders.look = look
            server.kill()
            await until(lambda: None in looks, "it has looked while it is away")
            assert worker._fetcher.paused == {HIGH}
            server.start()
            with contextlib.suppress(StoreUnavailable):
                await control.rules()  # its connection is the old one
            send(raw, LOW, "low")
            await until(lambda: ran == ["low"], "the others go on")
            await order(control, ("set", "worker:another", "quiet"))
            await until(lambda: worker.orders.rules.version != version, "the rules were read")
            assert (worker._fetcher.paused, ran) == ({HIGH}, ["low"])
            await order(control, ("del", "pause:high", ""))
            await until(lambda: ran == ["low", "paused"], "it goes on")
    finally:
        await control.close()
        raw.close()
        server.stop()


async def test_a_suspect_of_a_paused_priority_is_not_isolated(server, raw, control):
    send(raw, HIGH, "suspect")
    await order(control, ("pause", "pause:high", "0"))
    raw.xgroup_create("{jobs}:high", GROUP, "0")
    [(_, [(entry, _)])] = raw.xreadgroup(GROUP, "dead", {"{jobs}:high": ">"})
    raw.xclaim("{jobs}:high", GROUP, "~suspect", 0, [entry], retrycount=1, justid=True)
    async with working(server.url, beck, lease_s=0.9, suspect_s=0.01) as worker:
        await until(lambda: worker.parked.has_suspects or worker._fetcher._isolation._ask_at_s, "it has seen it")
        send(raw, LOW, "low")
        await until(lambda: ran == ["low"], "the others go on")
        await until(lambda: worker._fetcher._isolation._ask_at_s > time.monotonic() - 0.9, "it asked")
        assert ran == ["low"]
        await order(control, ("del", "pause:high", ""))
        await until(lambda: ran == ["low", "suspect"], "it runs when it goes on")
