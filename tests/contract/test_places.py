"""Threads and child processes: who finds no place leaves his lane and burns no attempt; who never ends is named."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading

import msgspec
import pytest

from runtime import Backoff, Job, contract, handler
from runtime.places import PROCESS, THREAD
from runtime.store.base import GROUP
from tests.contract.test_lots import KEY, park, ran, work
from tests.unit.asked_in_child import train
from tests.workers import until, working

CRITICAL = "{jobs}:critical"
LOT = "~t:hold@1"

let_go = threading.Event()
held: list[tuple[int, int]] = []  # number of the job, attempt


@contract("hold")
class Hold(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0


@handler(Hold, timeout_s=60)
def hold(message: Hold, job: Job) -> None:
    held.append((message.n, job.attempt))
    let_go.wait(30)


@handler(Hold, timeout_s=0.1, retry=Backoff(attempts=1))
def hang(message: Hold, job: Job) -> None:
    held.append((message.n, job.attempt))
    let_go.wait(30)


@pytest.fixture(autouse=True)
def _begin_anew():
    let_go.clear()
    held.clear()
    ran.clear()
    yield
    let_go.set()


def send(raw, *numbers: int) -> None:
    for n in numbers:
        raw.xadd(KEY, {"type": "hold", "data": f'{{"n":{n}}}'})


def in_lots(raw, lot: str = LOT) -> list[int]:
    """Return how often each entry in a lot was delivered, in the eyes of the server."""
    return [row["times_delivered"] for row in raw.xpending_range(KEY, GROUP, "-", "+", 100, consumername=lot)]


async def test_what_finds_no_thread_leaves_its_lane_and_another_worker_runs_it(server, raw, monkeypatch):
    monkeypatch.setattr("runtime.places.WAIT_S", 60.0)  # at once, and not when it has waited
    async with working(server.url, hold, work, concurrency=4, threads=1) as busy:
        send(raw, *range(8))
        await until(lambda: len(in_lots(raw)) == 7, "all but the one that runs are parked")
        assert set(in_lots(raw)) == {0}, "and none of these deliveries counts"
        await until(lambda: (busy.running, len(busy.held)) == (1, 1), "they hold no lane")
        raw.xadd(CRITICAL, {"type": "work", "data": "{}"})
        await until(lambda: ran == [0], "others have their lanes")
        async with working(server.url, hold, concurrency=8, threads=7):
            await until(lambda: len(held) == 8, "another worker has threads for them")
            let_go.set()
            await until(lambda: raw.xlen(KEY) == 0, "all are done")
    assert sorted(held) == [(n, 1) for n in range(8)]


async def test_a_flood_of_jobs_that_await_children_leaves_lanes_to_others(server, raw, tmp_path, monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    async with working(server.url, train, work, concurrency=4, lease_s=30) as busy:
        busy.places[PROCESS].total = 1
        data = json.dumps({"do": "hang", "note": str(tmp_path / "note")})
        for _ in range(20):
            raw.xadd(KEY, {"type": "train", "data": data})
        await until((tmp_path / "note").exists, "one has its child")
        await until(lambda: len(in_lots(raw, "~t:train@1")) == 19, "all others are parked")
        raw.xadd(KEY, {"type": "work", "data": "{}"})
        await until(lambda: ran == [0], "others have their lanes")
        assert busy.places[PROCESS].taken == 1


async def test_what_waits_in_a_lane_leaves_it_after_a_second(server, raw):
    async with working(server.url, hold, concurrency=4, threads=1) as worker:
        send(raw, 0)
        await until(lambda: len(held) == 1, "the thread is taken")
        worker.places[THREAD].capacity_within_a_second = lambda coming: 1  # as if they were short
        send(raw, 1)
        await until(lambda: in_lots(raw) == [0], "it is parked, though it was taken for short")
        let_go.set()
        await until(lambda: raw.xlen(KEY) == 0, "both are done")
    assert held == [(0, 1), (1, 1)]


async def test_a_worker_takes_from_lots_only_what_it_has_a_place_for(server, raw):
    async with working(server.url, hold, work, concurrency=8, threads=2, lease_s=0.5) as worker:
        send(raw, 0)
        await until(lambda: len(held) == 1, "one thread is taken")
        park(raw, LOT, *range(1, 6), type_name="hold")
        await until(lambda: len(held) == 2, "the other thread is taken too")
        real = worker.streams.take
        asked = []

        async def take(*asks):
            asked.extend(asks)
            return await real(*asks)

        worker.streams.take = take
        for n in range(50):
            raw.xadd(KEY, {"type": "work", "data": f'{{"n":{n}}}'})
            await until(lambda n=n: len(ran) == n + 1, "the worker fetches")
        await until(lambda: len(worker.held) == 2, "no more is held than runs")
        assert (len(in_lots(raw)), asked) == (4, [])
        let_go.set()
        await until(lambda: raw.xlen(KEY) == 0, "all are done")
    assert sorted(held) == [(n, 1) for n in range(6)]


async def test_a_place_that_becomes_free_is_filled_at_once_from_a_lot_though_no_bell_rings(server, raw, monkeypatch):
    monkeypatch.setattr("runtime.worker.fetcher.LOTS_S", 1000.0)
    async with working(server.url, hold, concurrency=4, threads=1) as worker:
        send(raw, 0)
        await until(lambda: len(held) == 1, "the thread is taken")
        send(raw, *range(1, 4))
        await until(lambda: len(in_lots(raw)) == 3 and worker.parked.seen, "the others are parked")
        let_go.set()
        await until(lambda: raw.xlen(KEY) == 0, "all are done")


async def test_what_waits_for_a_thread_at_a_stop_is_given_back_and_does_not_start(server, raw):
    async with working(server.url, hold, concurrency=4, threads=1) as worker:
        send(raw, 0)
        await until(lambda: len(held) == 1, "the thread is taken")
        worker.places[THREAD].capacity_within_a_second = lambda coming: 1  # as if they were short
        send(raw, 1)
        await until(lambda: worker.places[THREAD].waiting == 1, "the next one waits for it")
        worker.stop()
        await until(lambda: len(in_lots(raw, "~free")) == 1, "it is given back while the first one runs")
        let_go.set()
        await until(lambda: raw.xlen(KEY) == 1, "the first one may finish")
    assert held == [(0, 1)]


async def test_a_worker_whose_threads_all_hang_says_so_and_ends(valkey, caplog, monkeypatch):
    raw = valkey.client()
    monkeypatch.setattr("runtime.places.HANGS_S", 0.1)
    monkeypatch.setattr("runtime.consumer.HANGS_S", 0.1)
    stopped: list[str] = []
    with pytest.raises(ExceptionGroup, match="errors|exception") as ended, caplog.at_level(logging.ERROR):
        async with working(valkey.url, hang, work, concurrency=4, threads=2, max_block_s=0.5) as worker:
            await until(lambda: worker.is_ready, "it is ready")
            send(raw, 0)
            await until(lambda: "1 of 2 places are left" in caplog.text, "the log says which handler hangs")
            assert worker.is_ready
            send(raw, 1)
            await until(lambda: worker.hung, "there is no thread left")
            assert not worker.is_ready
            stopped.append(worker.hung)
            await until(lambda: worker.stage.value == "closed" or worker._failure, "it gives up")
    assert "all 2 places (thread) are lost" in stopped[0]
    assert "tests.contract.test_places:hang" in stopped[0]
    assert "goes on in its thread though it was cut" in caplog.text
    assert ended.group_contains(RuntimeError, match="this worker stops, to be started again")
    assert raw.xlen("{jobs}:dead") == 2
    raw.close()


async def test_threads_that_are_late_by_a_little_cost_a_worker_nothing(server, raw):
    async with working(server.url, hang, concurrency=4, threads=2, max_block_s=0.5) as worker:
        send(raw, 0, 1)
        await until(lambda: len(worker.places[THREAD].lost) == 2, "both are past their deadline")
        let_go.set()
        await until(lambda: not worker.places[THREAD].lost, "both have ended")
        await asyncio.sleep(0)
        assert worker.places[THREAD].taken == 0
        send(raw, 2)
        await until(lambda: len(held) == 3, "there is a thread again")


async def test_suspects_without_a_thread_keep_no_others_waiting(server, raw):
    """All threads are busy for long: who needs one is not handed out, or it would come back and be handed out again."""
    async with working(server.url, hold, work, concurrency=8, threads=1, suspect_s=5.0):
        send(raw, 1)
        await until(lambda: held == [(1, 1)], "the only thread is busy")
        ids = [f"9999999999999-{n}" for n in range(11)]
        with raw.pipeline() as at_once:
            for entry in ids[:10]:
                at_once.xadd(KEY, {"type": "hold", "data": '{"n":2}'}, id=entry)
            at_once.xadd(KEY, {"type": "work", "data": '{"n":7}'}, id=ids[10])
            at_once.xreadgroup(GROUP, "dead", {KEY: ">"}, count=20)
            at_once.xclaim(KEY, GROUP, "~suspect", 0, ids, retrycount=1, justid=True)
            at_once.execute()
        await until(lambda: ran == [7], "the other suspect runs")
        assert held == [(1, 1)]
        let_go.set()
        await until(lambda: len(held) == 11, "the others have their turn")
