"""Handlers that hold the loop, and workers that do not know what others know: the heartbeat's thread and the lots at work."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time

import msgspec
import pytest

from runtime import Backoff, Job, Producer, contract, handler
from tests.faults.harness import LEASE_S, count, events, hire
from tests.faults.store_kit import add, ended, is_settled, lines_of, second_runs, starts_of
from tests.servers import wait_until
from tests.workers import until, working

KEY = "{jobs}:medium"
MAX_BLOCK_S = 4.0
BOTH = ("--handlers", "tests.faults.jobs,tests.faults.store_kit")


def block(raw, n: int, seconds: float, **fields: str) -> None:
    raw.xadd(KEY, {"type": "blocking", "data": f'{{"n":{n},"ms":{seconds * 1000}}}', **fields})


@pytest.mark.parametrize(
    ("lease_s", "max_block_s", "blocks_s"),
    [
        pytest.param(LEASE_S, MAX_BLOCK_S, (2 * LEASE_S, 2.5 * LEASE_S), marks=pytest.mark.long),
        pytest.param(30, 60, (5, 40), marks=[pytest.mark.long, pytest.mark.timeout(240)]),
    ],
)
def test_a_loop_that_is_blocked_for_less_than_max_block_keeps_all_its_jobs(
    valkey, tmp_path, crew, lease_s, max_block_s, blocks_s
):
    raw = valkey.client()
    options = ("--max-block", str(max_block_s))
    for at, seconds in enumerate(blocks_s):
        first = 100 * at
        ours = hire(crew, valkey, tmp_path, *options, lease_s=lease_s)
        add(raw, 20, lambda n: 1000, first=first + 1)
        wait_until(lambda first=first: len(starts_of(tmp_path)) == first // 100 * 21 + 20, what="jobs run beside it")
        block(raw, first, seconds)
        wait_until(lambda first=first: first in starts_of(tmp_path), what="the loop is blocked")
        other = hire(crew, valkey, tmp_path, *options, lease_s=lease_s)
        wait_until(lambda first=first: first in ended(tmp_path), seconds + 20, "the blocker ends")
        wait_until(lambda: is_settled(raw), what="all is settled")
        assert second_runs(tmp_path) == 0
        assert "falls silent" not in ours.log
        assert "handler of blocking" in ours.log
        assert ours.stop() == 0
        assert other.stop() == 0
    raw.close()


@pytest.mark.parametrize(
    ("lease_s", "max_block_s"),
    [(0.9, 1.0), pytest.param(30, 60, marks=[pytest.mark.long, pytest.mark.timeout(400)])],
)
def test_a_loop_that_is_blocked_for_longer_loses_its_jobs_and_its_late_move_is_refused(
    valkey, tmp_path, crew, lease_s, max_block_s
):
    """The job fails on the loop that it has blocked, when another worker has run it: that must move and count nothing."""
    raw = valkey.client()
    ours = hire(crew, valkey, tmp_path, *BOTH, "--max-block", str(max_block_s), lease_s=lease_s)
    add(raw, 10, lambda n: (max_block_s + 2 * lease_s) * 1000, first=1, kind="patient")
    wait_until(lambda: count(tmp_path, "start") == 10, what="ten run beside it")
    raw.xadd(KEY, {"type": "stubborn", "data": '{"n":0}'})
    wait_until(lambda: 0 in starts_of(tmp_path), what="the loop is blocked")
    hire(crew, valkey, tmp_path, *BOTH, "--max-block", str(100 * max_block_s), lease_s=lease_s)
    wait_until(lambda: starts_of(tmp_path)[0] == 2, max_block_s + 4 * lease_s + 20, "another worker runs it")
    assert "the heartbeat falls silent" in ours.log
    dumped = ours.log[ours.log.index("falls silent") :]
    assert re.search(r'store_kit\.py", line \d+, in stubborn', dumped), "the stacks name the culprit"
    (tmp_path / "go").touch()
    wait_until(lambda: count(tmp_path, "fail") == 1, what="the late run fails")
    wait_until(lambda: held_by(raw, ours.process.pid) == 0, 2 * lease_s + 20, "its worker has let go of all")
    (tmp_path / "end").touch()
    wait_until(lambda: is_settled(raw), max_block_s + 4 * lease_s + 30, "all is settled")
    told = [(event.kind, event.pid == ours.process.pid, event.attempt) for event in events(tmp_path) if event.n == 0]
    assert sorted(told) == [("end", False, 1), ("fail", True, 1), ("start", False, 1), ("start", True, 1)], "no attempt is burnt"
    assert ended(tmp_path) == set(range(11))
    assert raw.xlen("{jobs}:dead") == 0
    raw.close()


def test_a_worker_that_was_stopped_blames_no_handler_for_it(valkey, tmp_path, crew):
    raw = valkey.client()
    worker = hire(crew, valkey, tmp_path, lease_s=30)
    add(raw, 10, lambda n: 3000)
    wait_until(lambda: count(tmp_path, "start") == 10, what="ten run")
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)  # the fault itself
    worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "the process stood still for 1." in worker.log, what="it says so")
    wait_until(lambda: ended(tmp_path) == set(range(10)), what="all end")
    assert worker.stop() == 0
    assert "by the handler of" not in worker.log
    raw.close()


def held_by(raw, pid: int) -> int:
    """How many leases a worker says it holds."""
    rows = [json.loads(row.partition(" ")[2]) for row in raw.hvals("{jobs}:workers:rows")]
    return next((row["held"] for row in rows if row["pid"] == pid), -1)


@contract("brief")
class Brief(msgspec.Struct, frozen=True, kw_only=True):
    """Sleep for `asleep_s`, block for `blocks_s`, `times` over."""

    asleep_s: float = 0
    blocks_s: float = 0
    times: int = 1


class Ran:
    """Runs with a deadline of half a second, and what became of them."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.cut = 0

        @handler(Brief, timeout_s=0.5, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2))
        async def run(message: Brief, job: Job) -> None:
            try:
                for _ in range(message.times):
                    await asyncio.sleep(message.asleep_s)
                    time.sleep(message.blocks_s)
            except asyncio.CancelledError:
                self.cut += 1
                raise
            self.ended.append(job.attempt)

        self.handler = run


async def test_jobs_beside_one_that_blocks_the_loop_past_their_deadline_have_a_turn_to_end(valkey):
    ran = Ran()
    async with working(valkey.url, ran.handler) as consumer, Producer.connect(valkey.url) as producer:
        await producer.send_many([*[Brief(asleep_s=0.1)] * 5, Brief(blocks_s=1)])
        await until(lambda: len(ran.ended) == 6, "all end")
        assert consumer.stats.finished == 6
    assert (ran.ended, ran.cut) == ([1] * 6, 0)


async def test_a_handler_that_blocks_the_loop_again_and_again_is_cut_all_the_same(valkey):
    ran = Ran()
    async with working(valkey.url, ran.handler) as consumer, Producer.connect(valkey.url) as producer:
        await producer.send(Brief(asleep_s=0.001, blocks_s=0.4, times=50), attempts=1)
        await until(lambda: consumer.stats.finished == 1, "it is cut")
    assert (ran.ended, ran.cut) == ([], 1)


# --- a worker that does not know a type -------------------------------------------------------------------------------------


def test_a_worker_that_does_not_know_a_type_leaves_all_of_it_to_one_that_does(valkey, tmp_path, crew):
    raw = valkey.client()
    ignorant = hire(crew, valkey, tmp_path, "--handlers", "tests.faults.store_kit")
    add(raw, 150, lambda n: 0)
    wait_until(lambda: parked(raw) == 150, what="the ignorant worker parks them")
    assert (raw.xlen(KEY), raw.xlen("{jobs}:dead")) == (150, 0)
    knowing = hire(crew, valkey, tmp_path)
    add(raw, 150, lambda n: 0, first=150)
    wait_until(lambda: is_settled(raw), what="all is settled")
    assert {event.pid for event in events(tmp_path)} == {knowing.process.pid}
    assert starts_of(tmp_path) == dict.fromkeys(range(300), 1)
    assert ended(tmp_path) == set(range(300))
    assert {event.rest[1] for event in events(tmp_path) if event.kind == "start"} == {"1"}, "parking counts as no delivery"
    assert ignorant.stop() == 0
    assert len(lines_of(crew)) <= 2 * 6, lines_of(crew)
    raw.close()


def parked(raw) -> int:
    if not raw.xlen(KEY) or not raw.xinfo_groups(KEY):
        return 0
    return sum(row["pending"] for row in raw.xinfo_consumers(KEY, "workers") if row["name"].startswith("~t:scripted@"))
