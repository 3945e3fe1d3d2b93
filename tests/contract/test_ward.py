"""The ward of a worker in this process: suspects and ordinary work both get their turn, whatever stands beside them."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from runtime import Job, contract, handler
from runtime.errors import StoreRefuses
from runtime.streams import GROUP
from tests.workers import until, working

KEY = "{jobs}:medium"


@contract("guarded")
class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0
    ms: float = 0


ran: list[int] = []


@handler(Guarded)
async def guarded(message: Guarded, job: Job) -> None:
    ran.append(message.n)
    await asyncio.sleep(message.ms / 1000)


@pytest.fixture(autouse=True)
def _forget_runs():
    ran.clear()


def add(raw, n: int, ms: float = 0, **fields: str) -> str:
    return str(raw.xadd(KEY, {"type": "guarded", "data": f'{{"n":{n},"ms":{ms}}}', **fields}))


def suspects(raw, numbers: range, ms: float = 0, kind: str = "guarded", **fields: str) -> None:
    """Put jobs where those of a dead worker are, in one step: no worker takes them on their way."""
    if not raw.exists(KEY):
        raw.xgroup_create(KEY, GROUP, "0", mkstream=True)
    pipeline = raw.pipeline()
    for n in numbers:
        pipeline.xadd(KEY, {"type": kind, "data": f'{{"n":{n},"ms":{ms}}}', **fields}, id=f"{n + 1}-0")
    pipeline.xreadgroup(GROUP, "dead", {KEY: ">"}, count=len(numbers))
    pipeline.xclaim(KEY, GROUP, "~suspect", 0, [f"{n + 1}-0" for n in numbers], retrycount=1, justid=True)
    pipeline.execute()


async def test_a_string_in_the_place_of_one_stream_keeps_no_suspects_of_the_others(server, raw):
    async with working(server.url, guarded):
        raw.delete("{jobs}:low")
        raw.set("{jobs}:low", "a string in the place of a stream")
        suspects(raw, range(1))
        await until(lambda: ran == [0], "the suspect runs")


async def test_where_suspects_cannot_be_had_ordinary_work_goes_on(server, raw):
    suspects(raw, range(1))
    async with working(server.url, guarded) as worker:

        async def refused(*_):
            raise StoreRefuses("Redis answered: an error")

        worker.streams.isolate = refused
        await until(lambda: worker.tally.store_errors > 0, "it was asked")
        add(raw, 7)
        await until(lambda: 7 in ran, "other work goes on")


async def test_a_worker_that_drains_gives_the_ward_up(server, raw):
    suspects(raw, range(1), 60_000)
    async with working(server.url, guarded, grace_s=4) as worker:
        await until(lambda: ran == [0] and raw.exists("{jobs}:ward"), "the suspect runs")
        worker.stop()
        await until(lambda: not raw.exists("{jobs}:ward"), "others can have the ward")
        assert worker.running == 1, "while it still runs here"


async def test_a_suspect_that_nobody_knows_makes_no_idle_worker_ask_in_haste(server, raw):
    suspects(raw, range(1), kind="nobody-knows")

    def bells() -> int:
        return int(raw.info("commandstats").get("cmdstat_xreadgroup", {}).get("calls", 0))

    async with working(server.url, guarded, lease_s=30.0) as worker:
        await until(lambda: worker.scheduler.has_suspects, "it was seen")
        await until(lambda: not worker.scheduler.has_suspects, "it cannot run here")
        await until(lambda: worker.scheduler.has_suspects, "it is seen again")
        before, began_s = bells(), time.monotonic()
        await until(lambda: time.monotonic() - began_s > 1.5, "a while")
        assert bells() - before <= 5


async def test_a_suspect_of_a_version_that_nobody_knows_dies_as_any_job_of_it(server, raw):
    suspects(raw, range(1), v="2")
    async with working(server.url, guarded, unknown_after_s=1):
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is dead")
    ((_, letter),) = raw.xrange("{jobs}:dead")
    assert (letter["dead_reason"], ran) == ("unknown-type", [])


async def test_a_string_in_the_place_of_critical_ends_no_walk(server, raw):
    async with working(server.url, guarded, unknown_after_s=1):
        raw.delete("{jobs}:critical")
        raw.set("{jobs}:critical", "a string in the place of a stream")
        suspects(raw, range(1), kind="nobody-knows")
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "what nobody knows is dead")


async def test_a_busy_worker_rests_for_each_group_of_suspects_and_does_not_give_the_ward_up_between(valkey):
    raw = valkey.client()
    suspects(raw, range(65), ms=300)

    async def keep_busy() -> None:
        for n in range(10_000, 20_000):
            add(raw, n, ms=200)
            await asyncio.sleep(0.02)

    async with working(valkey.url, guarded, concurrency=50, lease_s=30):
        await until(lambda: len(ran) >= 20, "the first group runs")
        busy = asyncio.create_task(keep_busy())
        try:  # a lease is 30 s: given up after the first group, the second would have to wait for it
            await until(lambda: set(range(65)) <= set(ran), "all groups run")
        finally:
            busy.cancel()
    raw.close()
