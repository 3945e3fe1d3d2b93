"""Priorities on a real server: lanes kept for CRITICAL, strict order, and priorities that are paused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from runtime import Job, contract, handler
from runtime.consumer import Consumer
from runtime.jobs import FREE, STREAMS
from runtime.store.base import GROUP
from tests.workers import until, working

CRITICAL, HIGH, MEDIUM, LOW = range(4)


@contract("turn")
class Turn(msgspec.Struct, frozen=True):
    name: str
    is_long: bool = False


ran: list[str] = []
ended: list[str] = []
gate = asyncio.Event()


@handler(Turn)
async def turn(message: Turn, job: Job) -> None:
    ran.append(message.name)
    if message.is_long:
        await gate.wait()
    ended.append(message.name)


@pytest.fixture(autouse=True)
def _anew():
    global gate
    ran.clear()
    ended.clear()
    gate = asyncio.Event()


def send(raw, stream: int, *names: str, is_long: bool = False) -> None:
    with raw.pipeline() as pipe:
        for name in names:
            data = msgspec.json.encode(Turn(name, is_long))
            pipe.xadd(f"{{jobs}}:{STREAMS[stream]}", {"type": "turn", "data": data})
        pipe.execute()


@contextlib.asynccontextmanager
async def busy(server, raw, *, is_low_waiting: bool = True) -> AsyncIterator[Consumer]:
    """Return a worker of ten lanes, two of them reserved, whose others run what ends when the gate opens."""
    async with working(server.url, turn, concurrency=10, reserved=2) as worker:
        send(raw, LOW, *[f"long {n}" for n in range(8)], is_long=True)
        await until(lambda: len(ran) == 8, "all lanes for LOW run")
        if is_low_waiting:
            send(raw, LOW, *[f"low {n}" for n in range(100)])
        try:
            yield worker
        finally:
            gate.set()
            await until(lambda: not len(worker.held), "all have ended")


async def test_critical_runs_at_once_while_all_other_lanes_are_busy_and_low_waits(server, raw):
    async with busy(server, raw) as worker:
        for n in range(20):
            send(raw, CRITICAL, f"critical {n}")
            await until(lambda n=n: f"critical {n}" in ended, "it runs, though nothing else ends")
        assert len(ran) == 8 + 20, "of LOW nothing has run meanwhile"
        assert sum(lane.is_reserved for lane in worker.lanes) == 2


async def test_as_many_of_critical_as_lanes_are_reserved_run_beside_long_jobs_and_no_more(server, raw):
    async with busy(server, raw) as worker:
        send(raw, CRITICAL, *"abc", is_long=True)
        await until(lambda: {*"ab"} <= {*ran}, "two run")
        await until(lambda: worker._fetcher._ask_critical_s == 0.0, "the answer said that there may be more")
        send(raw, CRITICAL, "d")
        assert raw.xinfo_consumers("{jobs}:critical", GROUP)[0]["pending"] == 2
        assert {*"cd"}.isdisjoint(ran)
        gate.set()
        await until(lambda: {*"cd"} <= {*ran}, "the others run when lanes are free")


async def test_where_no_lane_is_free_for_others_no_read_blocks(server, raw):
    """It would sleep on a lane that becomes free meanwhile: for that, nothing wakes it."""
    async with busy(server, raw) as worker:
        waits: list[int] = []
        real = worker.streams.wait_for_entry

        async def wait_for_entry(*given):
            waits.append(worker.running)
            return await real(*given)

        worker.streams.wait_for_entry = wait_for_entry
        send(raw, CRITICAL, "critical")
        await until(lambda: "critical" in ended, "it runs")
        asked = worker._fetcher._ask_critical_s
        await until(lambda: worker._fetcher._ask_critical_s > asked, "it is asked again")
        assert not waits
        gate.set()
        await until(lambda: len(ended) == 109, "and so does what waited")


async def test_a_reserved_lane_that_a_handler_ends_is_reserved_again(server, raw):
    async with working(server.url, turn, concurrency=3, reserved=1) as worker:
        for name in ("first", "second"):
            send(raw, LOW, f"{name} a", f"{name} b", is_long=True)
            await until(lambda name=name: {f"{name} a", f"{name} b"} <= {*ran}, "the others run LOW")
            [reserved] = [lane for lane in worker.lanes if lane.is_reserved]
            reserved.task.cancel()
            await until(lambda lane=reserved: lane not in worker.lanes and len(worker.lanes) == 3, "it is replaced")
            assert sum(lane.is_reserved for lane in worker.lanes) == 1
            send(raw, CRITICAL, name)
            await until(lambda name=name: name in ended, "and it runs CRITICAL")
            gate.set()
            await until(lambda: not len(worker.held), "all have ended")
            gate.clear()


async def test_in_strict_order_nothing_starts_while_something_of_a_higher_priority_waits(server, raw):
    for stream in (LOW, MEDIUM, HIGH):
        send(raw, stream, *[f"{STREAMS[stream]} {n}" for n in range(300)])
    async with working(server.url, turn, concurrency=10, reserved=0, strict=True):
        await until(lambda: len(ended) == 900, "all have run")
    order = [name.split()[0] for name in ran]
    # A probe of each stream comes before anything is known of it.
    assert order[:302].count("high") == 300
    assert order[:602].count("low") <= 2


async def test_weighted_nothing_starves(server, raw):
    for stream in (LOW, HIGH):
        send(raw, stream, *[f"{STREAMS[stream]} {n}" for n in range(500)])
    async with working(server.url, turn, concurrency=10, reserved=0):
        await until(lambda: len(ended) == 1000, "all have run")
    first = [name.split()[0] for name in ran[:400]]
    assert first.count("low") > 400 * 0.05, "twenty in a hundred are due to it"


@pytest.mark.parametrize("is_asleep", [False, True], ids=["paused from the start", "paused while it waits"])
async def test_a_paused_priority_starts_nothing_and_what_waited_runs_at_once_when_it_goes_on(is_asleep, server, raw):
    async with working(server.url, turn, concurrency=10, reserved=0) as worker:
        fetcher = worker._fetcher
        if is_asleep:
            await until(lambda: fetcher._is_waiting, "it waits in Redis")
        fetcher.paused = frozenset({HIGH})
        await until(lambda: fetcher._plan.closed == {HIGH}, "it knows")
        await until(lambda: fetcher._is_waiting, "it waits for the others")
        send(raw, HIGH, "paused")
        send(raw, LOW, "low")
        await until(lambda: ended == ["low"], "the others go on")
        await until(lambda: fetcher._is_quiet and fetcher._is_waiting, "there is nothing else")
        fetcher.paused = frozenset()
        await until(lambda: ended == ["low", "paused"], "it goes on")


async def test_nothing_is_taken_from_the_lots_of_a_paused_priority(server, raw):
    async with working(server.url, turn, concurrency=10, reserved=0) as worker:
        fetcher = worker._fetcher
        fetcher.paused = frozenset({HIGH})
        await until(lambda: fetcher._is_waiting and fetcher._plan.closed == {HIGH}, "it knows")
        for lot in (FREE, "~t:turn@1"):
            send(raw, HIGH, lot)
            [[_, [[entry, _]]]] = raw.xreadgroup(GROUP, lot, {"{jobs}:high": ">"})
            raw.xclaim("{jobs}:high", GROUP, lot, 0, [entry], retrycount=0, justid=True)  # it never started
            worker.parked.put([(HIGH, lot)])
        for n in range(20):
            send(raw, LOW, str(n))
            await until(lambda n=n: str(n) in ended, "the others go on")
        assert len(ran) == 20
        fetcher.paused = frozenset()
        await until(lambda: {FREE, "~t:turn@1"} <= {*ended}, "it goes on")


async def test_with_all_priorities_paused_nothing_is_asked_and_the_worker_is_ready(server, raw):
    async with working(server.url, turn, concurrency=10) as worker:
        fetcher = worker._fetcher
        await until(lambda: fetcher._is_waiting, "it waits in Redis")
        fetcher.paused = frozenset(range(4))
        await until(lambda: not fetcher._is_waiting and not fetcher.capacity_freed.is_set(), "it knows")
        asked: list[str] = []
        real = worker.streams.ask

        async def ask(connection, *commands, **more):
            asked.extend([str(command) for command in commands] if connection is worker.streams._reader else [])
            return await real(connection, *commands, **more)

        worker.streams.ask = ask
        for stream in range(4):
            send(raw, stream, str(stream))
        for _ in range(3):
            fetcher.capacity_freed.set()
            await until(lambda: not fetcher.capacity_freed.is_set(), "it looked")
        assert (asked, ran, worker.is_ready) == ([], [], True)
        fetcher.paused = frozenset()
        await until(lambda: {*ended} == {*"0123"}, "they run")
