"""The isolation of a worker in this process: suspects and ordinary work both get their turn, whatever stands beside them."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from runtime import Job, contract, handler
from runtime.errors import StoreError, StoreUnavailable
from runtime.store.base import GROUP
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
            raise StoreError("Redis answered: an error")

        worker.streams.isolate = refused
        await until(lambda: worker.stats.store_errors > 0, "it was asked")
        add(raw, 7)
        await until(lambda: 7 in ran, "other work goes on")


async def test_a_worker_that_drains_gives_the_isolation_up_and_its_death_is_no_evidence_from_then_on(server, raw):
    suspects(raw, range(1), 60_000)
    async with working(server.url, guarded, grace_s=4) as worker:
        await until(lambda: ran == [0] and raw.exists("{jobs}:wards"), "the suspect runs")
        worker.stop()
        await until(lambda: not raw.exists("{jobs}:wards"), "others may isolate")
        assert worker.running == 1, "while it still runs here"


def away(verb):
    """Return a verb whose reply is lost while the first word of the list is true, and the list."""
    is_away = [True]

    async def called(*arguments: object, **named: object) -> object:
        answer = await verb(*arguments, **named)
        if is_away[0]:
            raise StoreUnavailable("the reply was lost")
        return answer

    return called, is_away


async def test_nothing_starts_beside_what_outlived_its_isolation_before_the_store_has_confirmed_that(server, raw):
    suspects(raw, range(1), 60_000)
    async with working(server.url, guarded, suspect_s=0.1, lease_s=3.0, grace_s=0) as worker:
        worker.streams.acquit, is_away = away(worker.streams.acquit)
        await until(lambda: ran == [0], "the suspect runs")
        add(raw, 7)
        await until(lambda: worker.stats.store_errors >= 3, "the end of the isolation was told, in vain")
        assert ran == [0]
        is_away[0] = False
        await until(lambda: ran == [0, 7], "others run beside it")
        assert raw.exists("{jobs}:wards") == 0


async def test_a_suspect_that_was_handed_out_by_a_lost_reply_is_named_no_more_before_anything_else_starts(server, raw):
    async with working(server.url, guarded, lease_s=3.0) as worker:
        worker.streams.isolate, is_away = away(worker.streams.isolate)
        acquit = worker.streams.acquit

        async def refused(*_):
            raise StoreUnavailable("not there")

        worker.streams.acquit = refused
        suspects(raw, range(1))
        await until(lambda: worker.stats.store_errors >= 2, "a suspect was handed out, and nobody knows")
        assert raw.hvals("{jobs}:wards")[0].endswith("medium/1-0")
        add(raw, 7)
        await until(lambda: worker.stats.store_errors >= 4, "it could not say so")
        assert ran == []
        is_away[0], worker.streams.acquit = False, acquit
        await until(lambda: ran == [7], "ordinary work goes on")
        assert raw.exists("{jobs}:wards") == 0
        await until(lambda: ran == [7, 0], "the suspect was found and runs")


async def test_whose_isolation_is_over_runs_on_with_no_evidence_against_it(server, raw):
    suspects(raw, range(1), 60_000)
    raw.hset("{jobs}:strikes", "medium/1-0", "died")
    async with working(server.url, guarded, suspect_s=0.1, grace_s=0):
        await until(lambda: ran == [0], "the suspect runs")
        await until(lambda: not raw.exists("{jobs}:wards", "{jobs}:strikes"), "its isolation is over")


async def test_a_suspect_that_nobody_knows_makes_no_idle_worker_ask_in_haste(server, raw):
    suspects(raw, range(1), kind="nobody-knows")

    def bells() -> int:
        return int(raw.info("commandstats").get("cmdstat_xreadgroup", {}).get("calls", 0))

    async with working(server.url, guarded, lease_s=30.0) as worker:
        await until(lambda: worker.parked.has_suspects, "it was seen")
        await until(lambda: not worker.parked.has_suspects, "it cannot run here")
        await until(lambda: worker.parked.has_suspects, "it is seen again")
        before, began_s = bells(), time.monotonic()
        await until(lambda: time.monotonic() - began_s > 1.5, "a while")
        assert bells() - before <= 5


async def test_a_suspect_of_a_version_that_nobody_knows_dies_as_any_job_of_it(server, raw):
    suspects(raw, range(1), v="2")
    async with working(server.url, guarded, unknown_after_s=1):
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is dead")
    ((_, letter),) = raw.xrange("{jobs}:dead")
    assert (letter["dead_reason"], ran) == ("unknown-type", [])


async def test_a_string_in_the_place_of_critical_ends_no_sweep(server, raw):
    async with working(server.url, guarded, unknown_after_s=1):
        raw.delete("{jobs}:critical")
        raw.set("{jobs}:critical", "a string in the place of a stream")
        suspects(raw, range(1), kind="nobody-knows")
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "what nobody knows is dead")


async def test_a_busy_worker_rests_for_each_group_of_suspects(valkey):
    raw = valkey.client()
    suspects(raw, range(65), ms=300)

    async def keep_busy() -> None:
        for n in range(10_000, 20_000):
            add(raw, n, ms=200)
            await asyncio.sleep(0.02)

    async with working(valkey.url, guarded, concurrency=50, lease_s=30):
        await until(lambda: len(ran) >= 20, "the first group runs")
        busy = asyncio.create_task(keep_busy())
        try:  # a lease is 30 s: a worker that waited for one before it asks again would not do it in time
            await until(lambda: set(range(65)) <= set(ran), "all groups run")
        finally:
            busy.cancel()
    raw.close()


async def test_a_suspect_that_was_handed_out_and_did_not_run_keeps_its_strikes(server, raw):
    """Its key could not be claimed: that it is still here when nothing can be written speaks for nobody."""
    suspects(raw, range(1), key="k")
    raw.hset("{jobs}:strikes", "medium/1-0", "one two")
    raw.xclaim(KEY, GROUP, "~suspect", 0, ["1-0"], retrycount=5, justid=True)
    async with working(server.url, guarded) as worker:
        worker.streams.admit, is_away = away(worker.streams.admit)
        settle, acquit = worker.streams.settle, worker.streams.acquit
        acquitted: list[int] = []

        async def silent(batch):
            raise StoreUnavailable("not there")

        async def counted(alone):
            await acquit(alone)
            acquitted.append(len(raw.hgetall("{jobs}:strikes")))
            worker.streams.settle = settle
            is_away[0] = False

        worker.streams.settle, worker.streams.acquit = silent, counted
        await until(lambda: acquitted, "the isolation that never began is over")
        assert acquitted[0] == 1
        await until(lambda: ran == [0], "it runs")


async def test_a_silent_worker_asks_for_no_suspects(server, raw):
    async with working(server.url, guarded, lease_s=6) as worker:
        await until(lambda: worker._fetcher._is_quiet, "it waits for the bell")
        isolate = worker.streams.isolate
        asked: list[bool] = []

        async def noted(*arguments):
            asked.append(worker.leases.is_silent)
            return await isolate(*arguments)

        worker.streams.isolate = noted
        worker.leases._confirmed_s -= 6
        suspects(raw, range(1))
        worker.parked.has_suspects = True
        await until(lambda: ran == [0], "it runs after the next beat")
        assert not any(asked)
