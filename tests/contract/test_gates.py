"""Gates at work: what is limited, by type and by group, at once and in a time, over several workers; and what it costs others."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest

from runtime import Dead, Job, Retry, Snooze, contract, handler
from runtime.jobs import SUSPECT
from runtime.store.base import GROUP
from tests.workers import until, working

KEY = "{jobs}:medium"


@contract("limited")
class Limited(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0
    for_s: float = 0.02


@contract("free")
class Free(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0


class Seen:
    """What has run, how many at once, and when each was granted."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.ended: list[int] = []
        self.running = Counter[bytes]()
        self.peaks = Counter[bytes]()
        self.granted_ms: list[int] = []
        self.attempts: list[int] = []

    async def run(self, message: Limited, job: Job) -> None:
        group = job.envelope.group
        self.granted_ms.append(job.fetched_ms)
        self.attempts.append(job.attempt)
        self.began.append(message.n)
        for name in {group, b""}:
            self.running[name] += 1
            self.peaks[name] = max(self.peaks[name], self.running[name])
        await asyncio.sleep(message.for_s)
        for name in {group, b""}:
            self.running[name] -= 1
        self.ended.append(message.n)


@pytest.fixture
def seen() -> Seen:
    return Seen()


def limited(seen: Seen, **limits: Any) -> Any:
    @handler(Limited, **limits)
    async def run(message: Limited, job: Job) -> None:
        await seen.run(message, job)

    return run


def send(raw: Any, *numbers: int, type_name: str = "limited", key: str = KEY, for_s: float = 0.02, **fields: str) -> list[str]:
    with raw.pipeline(transaction=False) as pipe:
        for n in numbers:
            data = f'{{"n":{n},"for_s":{for_s}}}' if type_name == "limited" else f'{{"n":{n}}}'
            pipe.xadd(key, {"type": type_name, "data": data, **fields})
        return list(pipe.execute())


def lots(raw: Any, key: str = KEY) -> list[str]:
    return [row["name"] for row in raw.xinfo_consumers(key, GROUP) if row["name"].startswith("~")]


def in_lot(raw: Any, lot: str = "~g:limited", key: str = KEY) -> list[int]:
    """Return how often each entry in a lot was delivered, in the eyes of the server."""
    return [row["times_delivered"] for row in raw.xpending_range(key, GROUP, "-", "+", 10_000, consumername=lot)]


async def nothing_left(raw: Any) -> None:
    """Wait until no job, no permit, no lot is left."""
    await until(lambda: raw.xlen(KEY) == 0, "all is done")
    await until(lambda: not raw.keys("{jobs}:permits:*"), "all permits are back")
    assert lots(raw) == []
    assert raw.xlen("{jobs}:dead") == 0


async def test_two_workers_run_no_more_at_once_than_the_limit(server, raw, seen):
    one = limited(seen, limit=2)
    async with working(server.url, one), working(server.url, one):
        send(raw, *range(40))
        await until(lambda: len(seen.ended) == 40, "all have run")
        await nothing_left(raw)
    assert seen.peaks[b""] == 2
    assert sorted(seen.began) == [*range(40)]
    assert set(seen.attempts) == {1}


async def test_what_waits_for_a_permit_holds_no_lane_and_keeps_its_place(server, raw, seen):
    done: list[int] = []

    @handler(Free)
    async def free(message: Free, job: Job) -> None:
        done.append(message.n)

    async with working(server.url, limited(seen, limit=1), free, concurrency=2):
        send(raw, *range(50), for_s=0.1)
        await until(lambda: len(in_lot(raw)) >= 25, "half of them wait")
        assert set(in_lot(raw)) == {0}, "and none of these deliveries counts"
        send(raw, *range(20), type_name="free")
        await until(lambda: len(done) == 20, "another type has the lane")
        assert len(seen.began) < 40
        await until(lambda: len(seen.ended) == 50, "all have run")
        await nothing_left(raw)
    assert seen.began == sorted(seen.began), "first come, first served"


async def test_a_full_group_keeps_no_other_group_waiting(server, raw, seen):
    async with working(server.url, limited(seen, group_limit=1), concurrency=10):
        send(raw, *range(1000), for_s=0.1, group="busy")
        await until(lambda: len(in_lot(raw, "~g:limited:busy")) > 900, "the group waits")
        send(raw, 5000, 5001, for_s=0.01, group="other")
        await until(lambda: {5000, 5001} <= {*seen.ended}, "the other group has run")
        assert len(seen.ended) < 500
    assert (seen.peaks[b"busy"], seen.peaks[b"other"]) == (1, 1)


async def test_jobs_without_a_group_are_bounded_by_the_type_alone(server, raw, seen):
    async with working(server.url, limited(seen, group_limit=1), concurrency=10):
        send(raw, *range(20), for_s=0.1)
        await until(lambda: len(seen.ended) == 20, "all have run")
        await nothing_left(raw)
    assert seen.peaks[b""] > 2


@pytest.mark.parametrize("bound", ["rate", "group_rate"])
async def test_no_second_sees_more_starts_than_the_rate_over_two_workers(server, raw, seen, bound):
    one = limited(seen, **{bound: "40/s"})
    async with working(server.url, one), working(server.url, one):
        send(raw, *range(100), for_s=0, group="g")
        await until(lambda: len(seen.ended) == 100, "all have run")
        await nothing_left(raw)
    granted = sorted(seen.granted_ms)
    assert max(sum(1 for at_ms in granted if begin <= at_ms < begin + 1000) for begin in granted) <= 40
    assert seen.began == sorted(seen.began) or len(set(seen.began)) == 100


async def test_a_type_may_have_a_limit_and_a_rate(server, raw, seen):
    async with working(server.url, limited(seen, limit=2, rate="100/s", group_limit=1)):
        for n in range(60):
            send(raw, n, for_s=0.01, group=str(n % 3))
        await until(lambda: len(seen.ended) == 60, "all have run")
        await nothing_left(raw)
    assert seen.peaks[b""] == 2
    assert max(seen.peaks[group] for group in (b"0", b"1", b"2")) == 1


async def test_a_failed_job_gives_its_permit_back_and_gets_another(server, raw):
    tries = Counter[int]()

    @handler(Limited, limit=1)
    async def fail_once(message: Limited, job: Job) -> None:
        tries[message.n] += 1
        if tries[message.n] == 1:
            raise Retry(0.01)
        if message.n == 3:
            raise Dead("of three")

    async with working(server.url, fail_once):
        send(raw, *range(6))
        await until(lambda: sum(tries.values()) == 12, "each has run twice")
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "one is dead")
        await until(lambda: not raw.keys("{jobs}:permits:*"), "all permits are back")


@pytest.mark.parametrize("word", [Retry, Snooze])
async def test_a_job_may_pause_its_type_and_none_of_the_others_burns_an_attempt(server, raw, word):
    ran: list[tuple[int, int]] = []

    @handler(Limited)
    async def busy(message: Limited, job: Job) -> None:
        if message.n >= 100:  # these pass quickly, so that many of the others are here when the first of them has its word
            return
        ran.append((message.n, job.attempt))
        if message.n == 0 and len(ran) == 1:
            raise word(delay_s=1.5, pause_type=True)

    async with working(server.url, busy, concurrency=1):
        send(raw, *range(100, 400), *range(10))
        await until(lambda: len(in_lot(raw)) == 9, "the others wait")
        assert set(in_lot(raw)) == {0}
        assert ran == [(0, 1)]
        assert raw.hget("{jobs}:control", "pause:limited"), "all workers are told"
        await until(lambda: len(ran) == 11, "it is over, and all have run")
        await nothing_left(raw)
    assert {attempt for n, attempt in ran if n > 0} == {1}


async def test_a_pause_that_a_job_asks_for_and_that_cannot_be_written_is_told_once_and_its_job_waits(server, raw, caplog):
    raw.set("{jobs}:audit", "x")
    ran: list[int] = []

    @handler(Limited)
    async def busy(message: Limited, job: Job) -> None:
        ran.append(job.attempt)
        if job.attempt < 4:
            raise Retry(delay_s=0.1, pause_type=True)

    async with working(server.url, busy):
        send(raw, 1)
        await until(lambda: ran == [1, 2, 3, 4], "it has run")
        await nothing_left(raw)
    told = [record.getMessage() for record in caplog.records if "asked to pause its type" in record.getMessage()]
    assert len(told) == 1
    assert "WRONGTYPE {jobs}:audit must be a stream" in told[0]


async def test_a_suspect_of_a_full_gate_runs_all_the_same_and_its_permit_counts(server, raw, seen):
    async with working(server.url, limited(seen, limit=1), suspect_s=0.1):
        (first,) = send(raw, 1, for_s=1.0)
        await until(lambda: seen.began == [1], "the gate is full")
        (second,) = send(raw, 2, for_s=1.5)
        await until(lambda: len(in_lot(raw)) == 1, "this one waits")
        raw.execute_command("XCLAIM", KEY, GROUP, SUSPECT, 0, second, "RETRYCOUNT", 2, "JUSTID")
        await until(lambda: seen.began == [1, 2], "it runs, though the gate is full")
        await until(lambda: raw.zscore("{jobs}:permits:limited", f"medium/{second}"), "it has a permit")
        send(raw, 3)
        await until(lambda: len(in_lot(raw)) == 1, "so that others wait for it")
        await until(lambda: seen.ended == [1, 2, 3], "all have run")
        assert first
        await nothing_left(raw)


async def test_a_server_without_other_work_lets_no_token_wait(server, raw, seen):
    """It looks `hz` times a second whose blocked read is over: the worker ends those for tokens itself."""
    raw.config_set("hz", 1)
    try:
        async with working(server.url, limited(seen, rate="20/s")):
            send(raw, *range(20), for_s=0)
            await until(lambda: len(in_lot(raw)) >= 15, "they wait")
            raw.config_resetstat()
            while len(seen.ended) < 20:
                await asyncio.sleep(0.1)  # nothing else is asked meanwhile, or the server would look
            asked = raw.info("commandstats")
    finally:
        raw.config_set("hz", 10)
    assert asked["cmdstat_client|unblock" if "cmdstat_client|unblock" in asked else "cmdstat_client"]["calls"] >= 10


async def test_what_expired_while_it_waited_costs_no_token(server, raw, seen):
    raw.hset("{jobs}:control", mapping={"pause:limited": "0 1 test", "v": "1"})
    async with working(server.url, limited(seen, rate="1/h")):
        ends_ms = int(raw.time()[0]) * 1000 + 2000
        send(raw, *range(150), exp=str(ends_ms))
        send(raw, 1000)
        await until(lambda: len(in_lot(raw)) == 151, "all wait")
        await until(lambda: raw.time()[0] * 1000 > ends_ms, "all but one have expired")
        raw.hdel("{jobs}:control", "pause:limited")
        raw.hincrby("{jobs}:control", "v", 1)
        await until(lambda: seen.ended == [1000], "the token is for the last")
        await until(lambda: raw.xlen("{jobs}:dead") == 150, "the others are dead")
        await until(lambda: lots(raw) == [], "no lot is left")


async def test_what_died_with_its_worker_before_it_had_a_permit_waits_for_one(server, raw, seen):
    async with working(server.url, limited(seen, limit=1), suspect_s=0.1):
        send(raw, 1, for_s=1.0)
        await until(lambda: seen.began == [1], "the gate is full")
        with raw.pipeline(transaction=True) as pipe:
            pipe.xadd(KEY, {"type": "limited", "data": '{"n":2}'}, id="9999999999999-1")
            pipe.xreadgroup(GROUP, SUSPECT, {KEY: ">"}, count=1)
            pipe.execute()
        await until(lambda: len(in_lot(raw)) == 1, "it is no suspect")
        await until(lambda: seen.ended == [1, 2], "both have run")
        await nothing_left(raw)
    assert (seen.peaks[b""], seen.attempts) == (1, [1, 1])


async def test_permits_of_jobs_that_no_worker_has_any_more_come_back(server, raw, seen):
    now_ms = raw.time()[0] * 1000
    places = {f"medium/{n}-0": now_ms - 5000 for n in range(30)} | {"medium/99-0": now_ms + 10**9, "no place": 0}
    raw.zadd("{jobs}:permits:limited", places)
    async with working(server.url, limited(seen, limit=3)):
        send(raw, *range(10))
        await until(lambda: len(seen.ended) == 10, "all have run")
        await nothing_left(raw)
    assert seen.peaks[b""] <= 3


async def test_a_rate_from_the_future_holds_for_no_longer_than_it_says(server, raw, seen):
    raw.set("{jobs}:rate:limited", str(4 * 10**15))
    async with working(server.url, limited(seen, rate="20/s")):
        send(raw, *range(5))
        await until(lambda: len(seen.ended) == 5, "all have run")


def failed_calls(raw) -> int:
    return raw.info("commandstats")["cmdstat_evalsha"]["failed_calls"]


async def test_what_cannot_be_read_shuts_its_own_gate_alone_and_is_told(server, raw, seen, caplog):
    done: list[int] = []

    @handler(Free, limit=2)
    async def free(message: Free, job: Job) -> None:
        done.append(message.n)

    raw.set("{jobs}:permits:limited", "no set")
    async with working(server.url, limited(seen, limit=2), free):
        send(raw, 1)
        send(raw, *range(10), type_name="free")
        await until(lambda: len(done) == 10, "the other gate is open")
        await until(lambda: "WRONGTYPE" in caplog.text, "it is told")
        asked = failed_calls(raw)
        await until(lambda: failed_calls(raw) > asked + 5, "it was asked some more times")
        assert caplog.text.count("does not give all that it could") == 1
        assert seen.began == []
        raw.delete("{jobs}:permits:limited")
        await until(lambda: seen.ended == [1], "it opens as soon as it can")


async def test_a_stop_leaves_no_permit_and_what_was_served_runs_elsewhere(server, raw, seen):
    one = limited(seen, limit=3)
    async with working(server.url, one):
        send(raw, *range(30), for_s=0.1)
        await until(lambda: len(seen.began) >= 3, "some run")
    assert not raw.keys("{jobs}:permits:*")
    async with working(server.url, one):
        await until(lambda: len(seen.ended) == 30, "all have run")
        await nothing_left(raw)
    assert seen.peaks[b""] == 3


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_what_flows_out_after_a_pause_leaves_others_their_part(server, raw, concurrency):
    order: list[str] = []

    @handler(Limited)
    async def was_paused(message: Limited, job: Job) -> None:
        await asyncio.sleep(0.01 * concurrency)
        order.append("paused")

    @handler(Free)
    async def free(message: Free, job: Job) -> None:
        order.append("free")

    raw.hset("{jobs}:control", mapping={"pause:limited": "0 1 ann", "v": "1"})
    async with working(server.url, was_paused, free, concurrency=concurrency):
        send(raw, *range(300))
        await until(lambda: len(in_lot(raw)) == 300, "all are parked")
        assert order == []
        raw.hset("{jobs}:control", "v", "2")
        raw.hdel("{jobs}:control", "pause:limited")
        await until(lambda: "paused" in order, "the pause is over")
        send(raw, *range(20), type_name="free")
        await until(lambda: order.count("free") == 20, "the others have run")
        assert order.count("paused") < 200
        await until(lambda: len(order) == 320, "all have run")
        await nothing_left(raw)


async def test_a_suspect_of_a_paused_type_waits_like_the_others(server, raw, seen):
    raw.hset("{jobs}:control", mapping={"pause:limited": "0 1 ann", "v": "1"})
    async with working(server.url, limited(seen), suspect_s=0.1) as worker:
        (entry,) = send(raw, 1)
        await until(lambda: len(in_lot(raw)) == 1, "it waits")
        raw.execute_command("XCLAIM", KEY, GROUP, SUSPECT, 0, entry, "RETRYCOUNT", 1, "JUSTID")
        worker.parked.has_suspects = True
        await until(lambda: worker._fetcher._isolation._ask_at_s > 0, "suspects were asked for")
        assert seen.began == []
        assert in_lot(raw, SUSPECT) == [1]
        raw.hset("{jobs}:control", "v", "2")
        raw.hdel("{jobs}:control", "pause:limited")
        await until(lambda: seen.ended == [1], "the pause is over")
        await nothing_left(raw)


async def test_a_limit_that_is_set_while_jobs_run_counts_them(server, raw, seen):
    async with working(server.url, limited(seen), concurrency=8) as worker:
        send(raw, *range(4), for_s=1.0)
        await until(lambda: len(seen.began) == 4, "four run")
        raw.hset("{jobs}:control", mapping={"limit:limited": '{"limit": 4}', "v": "1"})
        await until(lambda: worker.gates.closed, "it hears of the limit")
        send(raw, *range(4, 12), for_s=0.01)
        await until(lambda: len(seen.ended) == 12, "all have run")
        await nothing_left(raw)
    assert seen.peaks[b""] == 4
