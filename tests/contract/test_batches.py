"""Handlers of many jobs on real servers: each job keeps its own lease, outcome and permit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from runtime import Backoff, Dead, Job, Retry, Snooze, contract, handler
from runtime.consumer import Consumer
from runtime.jobs import FREE
from runtime.stats import Count
from runtime.store.base import GROUP
from runtime.worker.heartbeat import Beat
from tests.contract.test_gates import in_lot
from tests.workers import until, working

KEY = "{jobs}:medium"


@contract("row")
class Row(msgspec.Struct, frozen=True):
    n: int = 0


@contract("plain")
class Plain(msgspec.Struct, frozen=True):
    n: int = 0


class Table:
    """What was inserted, batch by batch; a batch hangs while `holds` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.attempts: dict[int, list[int]] = {}
        self.cancelled: list[int] = []
        self.plain: list[int] = []
        self.done: list[int] = []
        self.running = self.peak = 0
        self.go = asyncio.Event()
        self.go.set()

    async def insert(self, rows: list[Row], jobs: list[Job]) -> None:
        self.batches.append([row.n for row in rows])
        self.running += len(rows)
        self.peak = max(self.peak, self.running)
        for row, job in zip(rows, jobs, strict=True):
            self.attempts.setdefault(row.n, []).append(job.attempt)
        try:
            await self.go.wait()
            self.cancelled += [row.n for row, job in zip(rows, jobs, strict=True) if job.cancelled]
        finally:
            self.running -= len(rows)
        self.done += [row.n for row in rows]

    @property
    def rows(self) -> list[int]:
        """All that the handler was called with, in order of number."""
        return sorted(n for batch in self.batches for n in batch)


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    yield made
    made.go.set()


def inserting(table: Table, max_size: int = 10, max_wait_ms: float = 100, **options: Any) -> Any:
    @handler(Row, max_size=max_size, max_wait_ms=max_wait_ms, retry=Backoff(base_s=0.01, cap_s=0.05), **options)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        await table.insert(rows, jobs)

    return insert


def plain(table: Table) -> Any:
    @handler(Plain)
    async def run(message: Plain, job: Job) -> None:
        table.plain.append(message.n)

    return run


def send(raw: Any, *numbers: int, kind: str = "row", key: str = KEY, **fields: str) -> list[str]:
    with raw.pipeline(transaction=True) as pipe:
        for n in numbers:
            pipe.xadd(key, {"type": kind, "data": f'{{"n":{n}}}', **fields})
        return [str(entry) for entry in pipe.execute()]


def counts(raw: Any, key: str = KEY) -> dict[str, list[int]]:
    """Return how often what each consumer holds was delivered."""
    found: dict[str, list[int]] = {}
    for row in raw.xpending_range(key, GROUP, "-", "+", 10_000):
        found.setdefault(row["consumer"], []).append(row["times_delivered"])
    return found


def counted(worker: Consumer) -> Count:
    """Return what a worker has counted of rows."""
    return next(count for name, priority, count in worker.stats.rows() if (name, priority) == ("row", "medium"))


async def nothing_left(raw: Any) -> None:
    await until(lambda: raw.xlen(KEY) == 0 and raw.zcard("{jobs}:due") == 0, "all is done")


# --- how they gather ---------------------------------------------------------------------------------------------------------


async def test_jobs_that_are_there_come_together_up_to_the_size(server, raw, table):
    send(raw, *range(35))
    async with working(server.url, inserting(table)):
        await nothing_left(raw)
    assert table.rows == list(range(35))
    assert sorted(map(len, table.batches), reverse=True)[:3] == [10, 10, 10]


async def test_a_worker_of_one_lane_gets_full_batches_too(server, raw, table):
    send(raw, *range(500))
    async with working(server.url, inserting(table, max_size=100, max_wait_ms=500), concurrency=1):
        await nothing_left(raw)
    assert table.rows == list(range(500))
    assert len(table.batches) <= 7


async def test_all_lanes_of_a_worker_get_full_batches_at_once(server, raw, table):
    table.go.clear()
    send(raw, *range(1200))
    async with working(server.url, inserting(table, max_size=100, max_wait_ms=500), concurrency=10):
        await until(lambda: len(table.batches) == 10, "ten lanes run")
        assert sum(map(len, table.batches)) >= 900
        table.go.set()
        await nothing_left(raw)
    assert table.rows == list(range(1200))


async def test_one_job_alone_waits_no_longer_than_it_may(server, raw, table):
    async with working(server.url, inserting(table, max_size=100, max_wait_ms=50), plain(table)) as worker:
        send(raw, 1)
        await until(lambda: table.batches == [[1]], "it runs, though nothing else comes")
        await until(lambda: not len(worker.held), "and is settled")


async def test_what_gathers_keeps_no_other_type_out(server, raw, table):
    async with working(server.url, inserting(table, max_size=1000, max_wait_ms=500), plain(table), concurrency=1):
        send(raw, 1)
        send(raw, *range(50), kind="plain")
        await until(lambda: len(table.plain) == 50, "the others run meanwhile")
        assert table.batches == []
        await nothing_left(raw)


async def test_a_batch_that_runs_in_the_only_lane_lets_no_more_come_than_one_by_one(server, raw, table):
    table.go.clear()
    async with working(server.url, inserting(table, max_size=10, max_wait_ms=0), concurrency=1) as worker:
        send(raw, *range(10))
        await until(lambda: len(table.batches) == 1, "it runs")
        send(raw, *range(10, 500))
        await asyncio.sleep(0.1)  # for what should not happen
        assert len(worker.held) <= 30
        table.go.set()
        await nothing_left(raw)


async def test_critical_jobs_run_apart(server, raw, table):
    send(raw, 1, 2)
    send(raw, 3, key="{jobs}:critical")
    async with working(server.url, inserting(table)):
        await until(lambda: len(table.rows) == 3, "all run")
        await until(lambda: not raw.xlen("{jobs}:critical"), "and are settled")
    assert sorted(map(sorted, table.batches)) == [[1, 2], [3]]


# --- what becomes of each ----------------------------------------------------------------------------------------------------


async def test_each_job_of_a_batch_has_an_outcome_of_its_own(server, raw):
    seen: list[tuple[int, int]] = []

    @handler(Row, max_size=10, max_wait_ms=100, retry=Backoff(base_s=0.01, cap_s=0.02, attempts=2))
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        seen.extend((row.n, job.attempt) for row, job in zip(rows, jobs, strict=True))
        for row, job in zip(rows, jobs, strict=True):
            match row.n:
                case 1:
                    job.settle(Dead("no such row", "no-row"))
                case 2 if job.attempt == 1:
                    job.settle(ValueError("fails once"))
                case 3:
                    job.settle(ValueError("fails always"))
                case 4 if seen.count((4, 1)) == 1:
                    job.settle(Snooze(0.01))
                case _:
                    pass

    with raw.pipeline() as pipe:
        for n in range(6):
            pipe.xadd(KEY, {"type": "row", "data": f'{{"n":{n}}}'})
        pipe.xadd(KEY, {"type": "row", "data": '{"n":"no number"}'})
        pipe.execute()
    async with working(server.url, insert) as worker:
        await nothing_left(raw)
        await until(lambda: not len(worker.held), "all is settled")
        assert counted(worker).totals() == {"done": 4, "dead": 3, "retry": 2, "snooze": 1}
    assert sorted(seen) == [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 1), (5, 1)]
    letters = {fields["data"]: fields["dead_reason"] for _, fields in raw.xrange("{jobs}:dead")}
    assert letters == {'{"n":1}': "no-row", '{"n":3}': "attempts", '{"n":"no number"}': "bad-payload"}


async def test_what_is_raised_fails_all_and_each_is_tried_again(server, raw):
    seen: list[tuple[int, int]] = []

    @handler(Row, max_size=10, max_wait_ms=100)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        seen.extend((row.n, job.attempt) for row, job in zip(rows, jobs, strict=True))
        if jobs[0].attempt == 1:
            raise Retry(0.01, "busy")

    send(raw, *range(10))
    async with working(server.url, insert):
        await until(lambda: len(seen) >= 20, "they run again")
        await nothing_left(raw)
    assert sorted(seen) == sorted((n, attempt) for n in range(10) for attempt in (1, 2))
    assert raw.xlen("{jobs}:dead") == 0


async def test_a_batch_past_its_deadline_fails_each_of_its_jobs_and_counts_each(server, raw, table):
    table.go.clear()
    async with working(server.url, inserting(table, timeout_s=0.1)) as worker:
        send(raw, *range(3))
        await until(lambda: len(table.rows) >= 6, "all run again")
        table.go.set()
        await nothing_left(raw)
        assert counted(worker).timeouts >= 3
    assert all(attempts[:2] == [1, 2] for attempts in table.attempts.values())


# --- what people order -------------------------------------------------------------------------------------------------------


async def test_a_limit_counts_jobs_and_not_batches(server, raw, table):
    send(raw, *range(12))
    async with working(server.url, inserting(table, max_size=10, max_wait_ms=20, limit=3)):
        await nothing_left(raw)
        await until(lambda: not raw.keys("{jobs}:permits:*"), "all permits are back")
    assert table.rows == list(range(12))
    assert table.peak <= 3


async def test_a_type_that_is_paused_while_it_gathers_is_parked_and_runs_later(server, raw, table):
    async with working(server.url, inserting(table, max_size=100, max_wait_ms=500)) as worker:
        send(raw, *range(5))
        await until(lambda: len(worker.inbox.jobs) == 5, "they gather")
        worker._pause_type(b"row", 0.3)
        assert worker.inbox.jobs == []
        await until(lambda: in_lot(raw, "~g:row") == [0] * 5, "they wait at their gate, and this delivery does not count")
        await nothing_left(raw)
    assert table.rows == list(range(5))
    assert set(map(tuple, table.attempts.values())) == {(1,)}


# --- stops and lost leases ---------------------------------------------------------------------------------------------------


async def test_what_gathers_at_a_stop_is_given_back_as_if_nothing_had_been(server, raw, table):
    async with working(server.url, inserting(table, max_size=100, max_wait_ms=500)) as worker:
        send(raw, *range(7))
        await until(lambda: len(worker.inbox.jobs) == 7, "they gather")
    assert counts(raw) == {FREE: [0] * 7}
    async with working(server.url, inserting(table)):
        await nothing_left(raw)
    assert set(map(tuple, table.attempts.values())) == {(1,)}


async def test_a_batch_that_runs_at_a_stop_may_end_within_the_grace(server, raw, table):
    table.go.clear()
    async with working(server.url, inserting(table)) as worker:
        send(raw, *range(7))
        await until(lambda: len(table.rows) == 7, "they run")
        worker.stop()
        table.go.set()
    assert raw.xlen(KEY) == 0


async def test_a_batch_that_a_stop_cuts_is_given_back_and_what_it_has_settled_is_written(server, raw):
    began = asyncio.Event()

    @handler(Row, max_size=10, max_wait_ms=100)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle()
        jobs[1].settle(Dead("gone"))
        began.set()
        await asyncio.sleep(60)

    async with working(server.url, insert, grace_s=0.1):
        send(raw, *range(5))
        await until(began.is_set, "it runs")
    assert counts(raw) == {FREE: [0] * 3}
    assert raw.xlen("{jobs}:dead") == 1


async def test_one_lease_that_is_lost_while_the_batch_runs_drops_this_outcome_alone(server, raw, table):
    table.go.clear()
    async with working(server.url, inserting(table)) as worker:
        entries = send(raw, *range(5))
        await until(lambda: len(table.rows) == 5, "they run")
        raw.xclaim(KEY, GROUP, "somebody-else", 0, [entries[2]])
        lost = next(lease for lease, _ in worker.held.older_than(-60, 1e9) if lease.entry == entries[2].encode())
        worker.on_heartbeat(Beat(lost.taken_s + 1, "", [(lost, lost.count)]))
        assert len(worker.held) == 4
        table.go.set()
        await until(lambda: not len(worker.held), "the others are settled")
        assert counts(raw) == {"somebody-else": [2]}
        assert table.cancelled == [2]
        assert counted(worker).totals() == {"done": 4, "lost": 1}
        raw.delete(KEY)


async def test_a_lease_that_is_lost_while_its_job_gathers_lets_the_others_run(server, raw, table):
    async with working(server.url, inserting(table, max_size=100, max_wait_ms=500)) as worker:
        entries = send(raw, *range(5))
        await until(lambda: len(worker.inbox.jobs) == 5, "they gather")
        raw.xclaim(KEY, GROUP, "somebody-else", 0, [entries[0]])
        lost = next(job for job in worker.inbox.jobs if job.entry == entries[0].encode())
        worker.on_heartbeat(Beat(lost.taken_s + 1, "", [(lost, lost.count)]))
        await until(lambda: table.rows == [1, 2, 3, 4], "the others run")
        await until(lambda: not len(worker.held), "and are settled")
        raw.delete(KEY)


async def test_what_gathers_is_given_back_when_the_leases_may_be_lost(server, raw, table, monkeypatch):
    async with working(server.url, inserting(table, max_size=100, max_wait_ms=500)) as worker:
        send(raw, *range(5))
        await until(lambda: len(worker.inbox.jobs) == 5, "they gather")
        with monkeypatch.context() as silent:
            silent.setattr(type(worker.leases), "is_silent", property(lambda watch: True))
            worker._give_back_unstarted(0.0)
        assert worker.inbox.jobs == []
        await nothing_left(raw)
    assert set(map(tuple, table.attempts.values())) == {(1,)}


async def test_suspects_run_alone_and_what_gathers_waits_for_them(server, raw, table):
    raw.xgroup_create(KEY, GROUP, "0", mkstream=True)
    entries = send(raw, *range(3))
    raw.xreadgroup(GROUP, "dead", {KEY: ">"})
    raw.execute_command("XCLAIM", KEY, GROUP, "~suspect", 0, *entries, "RETRYCOUNT", 1, "JUSTID")
    async with working(server.url, inserting(table), suspect_s=0.1):
        await nothing_left(raw)
    assert sorted(table.batches) == [[0], [1], [2]]
