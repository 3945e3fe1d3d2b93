"""Lots: what is parked is found and taken again, whoever made the lot, and however much of it there is."""

from __future__ import annotations

import time
from itertools import count

import msgspec
import pytest

from runtime import Job, contract, handler
from runtime.store.base import GROUP
from runtime.store.shapes import Ask
from runtime.streams import Streams
from tests.workers import until, working

KEY = "{jobs}:medium"


@contract("work")
class Work(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0


@contract("grown", version=3)
class Grown(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0


ran: list[int] = []


@handler(Grown)
async def grown(message: Grown, job: Job) -> None:
    ran.append(message.n)


@handler(Work)
async def work(message: Work, job: Job) -> None:
    ran.append(message.n)


@pytest.fixture(autouse=True)
def _forget_runs():
    ran.clear()


serial = count(1000)  # beyond those of the same millisecond


def park(raw, lot: str, *numbers: int, type_name: str = "work", key: str = KEY) -> None:
    """Put jobs into a lot, as somebody else's worker would; in one step, so that no worker meets them before."""
    if not raw.exists(key):
        raw.xgroup_create(key, GROUP, "0", mkstream=True)
    seconds, micros = raw.time()
    entries = [f"{seconds * 1000 + micros // 1000}-{next(serial)}" for _ in numbers]
    with raw.pipeline(transaction=True) as pipe:
        for entry, n in zip(entries, numbers, strict=True):
            pipe.xadd(key, {"type": type_name, "data": f'{{"n":{n}}}'}, id=entry)
        pipe.xreadgroup(GROUP, lot, {key: ">"}, count=len(entries))
        pipe.execute_command("XCLAIM", key, GROUP, lot, 0, *entries, "RETRYCOUNT", 0, "JUSTID")
        pipe.execute()


async def test_lots_that_come_and_go_while_a_worker_looks_at_strange_ones_do_not_end_it(server, raw):
    for n in range(3):
        park(raw, f"~new-kind-{n}", n)
    async with working(server.url, work, lease_s=1.0) as worker:
        real, looks = worker.streams.waiting_longest, 0

        async def meanwhile(stream, lot, idle_ms, n):
            nonlocal looks
            looks += 1
            worker.parked.lot_for(f"~t:unheard-of-{looks}@1")  # as the fetcher does beside the sweep
            if looks == 1:
                worker.parked.seen.pop((2, "~new-kind-2"), None)
            return await real(stream, lot, idle_ms, n)

        worker.streams.waiting_longest = meanwhile
        await until(lambda: sorted(ran) == [0, 1, 2], "they are adopted, and run")
    assert looks >= 3


async def test_a_lot_that_gives_all_it_is_asked_for_is_asked_again_at_once(server, raw, monkeypatch):
    monkeypatch.setattr("runtime.worker.fetcher.LOTS_S", 1.0)
    park(raw, "~t:work@1", *range(300))
    async with working(server.url, work, concurrency=4):
        await until(lambda: len(ran) == 300, "all that was parked has run")
    assert ran == sorted(ran)


@pytest.mark.parametrize(("parked", "waiting"), [("low", "critical"), ("critical", "low")])
async def test_a_lot_and_the_streams_share_by_weight_and_neither_starves(server, raw, parked, waiting):
    at = {"critical": 1000, "low": 2000}
    park(raw, "~t:work@1", *range(at[parked], at[parked] + 400), key=f"{{jobs}}:{parked}")
    for n in range(at[waiting], at[waiting] + 400):
        raw.xadd(f"{{jobs}}:{waiting}", {"type": "work", "data": f'{{"n":{n}}}'})
    async with working(server.url, work, concurrency=4):
        await until(lambda: len(ran) == 800, "all have run")
    critical = sum(1 for n in ran[100:300] if n < 2000)
    assert 120 <= critical <= 195, ran


async def test_several_lots_of_one_stream_have_each_its_turn(server, raw):
    for v in range(3):
        park(raw, f"~t:grown@{v + 1}", *range(1000 * v, 1000 * v + 100), type_name="grown")
    async with working(server.url, grown, concurrency=1):
        await until(lambda: len(ran) == 300, "all have run")
    assert {n // 1000 for n in ran[30:60]} == {0, 1, 2}, ran


@pytest.mark.parametrize("every", [1, 2, 60])
async def test_a_take_brings_each_entry_with_its_own_fields_wherever_it_stands(server, raw, every):
    raw.xgroup_create(KEY, GROUP, "0", mkstream=True)
    entries = [raw.xadd(KEY, {"type": "work", "data": f'{{"n":{n}}}'}) for n in range(700)]
    raw.xreadgroup(GROUP, "somebody", {KEY: ">"}, count=700)
    ours = dict(enumerate(entries[::every]))
    raw.execute_command("XCLAIM", KEY, GROUP, "~t:work@1", 0, *ours.values(), "RETRYCOUNT", 0, "JUSTID")
    raw.xdel(KEY, ours.pop(1))
    store = Streams(server.url, "jobs", "taker")
    await store.start()
    try:
        fetched = await store.take(Ask(2, "~t:work@1", 701), Ask(3, "~t:none@1", 5))
    finally:
        await store.close()
    came = {bytes(entry).decode(): bytes(fields[3]).decode() for entry, fields in fetched.deliveries[0].rows}
    assert came == {entry: f'{{"n":{every * k}}}' for k, entry in ours.items()}
    assert set(fetched.deliveries[0].counts) == {1}
    assert fetched.deliveries[1].rows == []
    pending = raw.xpending_range(KEY, GROUP, "-", "+", 701, consumername="taker")
    assert {row["message_id"]: row["times_delivered"] for row in pending} == dict.fromkeys(ours.values(), 1)


async def test_a_lot_is_buried_only_when_nobody_has_known_its_type_for_long_however_old_it_is(server, raw):
    park(raw, "~t:later@1", 1, type_name="later")
    (row,) = raw.xpending_range(KEY, GROUP, "-", "+", 1)
    aged = ("XCLAIM", KEY, GROUP, "~t:later@1", 0, row["message_id"], "IDLE", 3_600_000, "RETRYCOUNT", 0, "JUSTID")
    raw.execute_command(*aged)
    async with working(server.url, work, unknown_after_s=900) as worker:
        await until(lambda: worker.parked.seen, "the sweep has seen it")
        await worker.maintenance._dead_letter_unknown([])
        assert raw.xlen("{jobs}:dead") == 0, "it may have waited for a thread, and its worker be starting"
        worker.maintenance._began_s -= 1000
        worker.maintenance._known_s["later", 1] = time.monotonic() - 800
        await worker.maintenance._dead_letter_unknown([])
        assert raw.xlen("{jobs}:dead") == 0, "a worker that knew it was there a while ago"
        worker.maintenance._known_s["later", 1] -= 200
        await worker.maintenance._dead_letter_unknown([])
        assert raw.xlen("{jobs}:dead") == 1
        assert "~t:later@1" not in [row["name"] for row in raw.xinfo_consumers(KEY, "workers")], "the lot is gone with it"


async def test_lots_that_hold_nothing_and_are_still_listed_are_forgotten(server, raw):
    for key in (KEY, "{jobs}:low"):
        raw.xgroup_create(key, GROUP, "0", mkstream=True)
        raw.xgroup_createconsumer(key, GROUP, "~g:work:gone")
        raw.xgroup_createconsumer(key, GROUP, "somebody")
    park(raw, "~t:elsewhere@1", 1, type_name="elsewhere")
    async with working(server.url, work) as worker:
        worker.maintenance._next_empty_s = 0.0
        await worker.maintenance.sweep_once()
        assert not [
            row["name"] for key in (KEY, "{jobs}:low") for row in raw.xinfo_consumers(key, GROUP) if "gone" in row["name"]
        ]
        assert {"somebody", "~t:elsewhere@1"} <= {row["name"] for row in raw.xinfo_consumers(KEY, GROUP)}


async def test_what_waits_in_a_gate_of_a_type_that_nobody_knows_is_buried_unless_it_is_paused(server, raw):
    park(raw, "~g:unheard-of:a", 1, type_name="unheard-of")
    (row,) = raw.xpending_range(KEY, GROUP, "-", "+", 1)
    aged = ("XCLAIM", KEY, GROUP, "~g:unheard-of:a", 0, row["message_id"], "IDLE", 3_600_000, "RETRYCOUNT", 0, "JUSTID")
    raw.execute_command(*aged)
    raw.hset("{jobs}:control", "pause:unheard-of", "0 1 ann")
    async with working(server.url, work, unknown_after_s=900) as worker:
        await until(lambda: worker.parked.seen, "the sweep has seen it")
        worker.maintenance._began_s -= 1000
        await worker.maintenance._dead_letter_unknown([])
        assert raw.xlen("{jobs}:dead") == 0, "it waits for people"
        raw.delete("{jobs}:control")
        await worker.orders._read()
        worker._apply(worker.orders.rules)
        await worker.maintenance._dead_letter_unknown([])
        assert raw.xlen("{jobs}:dead") == 1
