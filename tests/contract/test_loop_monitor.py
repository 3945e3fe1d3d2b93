"""Handlers that hold the loop of a real worker: those that do are named and counted, and no other."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import re
import time
from collections.abc import Callable

import msgspec
import pytest

from runtime import Job, Producer, contract, handler
from runtime.consumer import Consumer
from runtime.jobs import LANE, running_job
from tests.workers import until, working

LONG_S = 0.4  # four times what is reported
SHORT_S = 0.01
MANY = 40  # handlers that hold the loop so shortly, one after the other in one turn


@contract("hold")
class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the loop in some way."""

    how: str


@contract("wait")
class Wait(msgspec.Struct, frozen=True):
    """Wait, and hold nothing but for a moment."""


class Gate:
    """What waiting handlers wait for, and how many do; and what lanes were told at the end of a job that held the loop."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0
        self.blocked_ms: list[float] = []
        self.has_ended = False


gate = Gate()


@pytest.fixture(autouse=True)
def _gate() -> None:
    gate.__init__()


def computes(s: float) -> None:
    """Hold Python's lock for at least so long, in one call that computes."""
    end_s, n = time.monotonic() + s, 1_000_000
    while time.monotonic() < end_s:
        sum(range(n))
        n *= 4


@handler(Hold)
async def hold(message: Hold, job: Job) -> None:
    if message.how == "sleeps":
        time.sleep(LONG_S)
    elif message.how == "computes":
        computes(LONG_S)
    elif message.how == "loops":
        end_s = time.monotonic() + LONG_S
        while time.monotonic() < end_s:
            pass
    elif message.how == "keeps the lock":
        ctypes.PyDLL(None).usleep(int(LONG_S * 1_000_000))
    elif message.how == "in a task":
        await asyncio.create_task(sleeps())
    gate.blocked_ms.append(blocked_ms())
    gate.has_ended = True


async def sleeps() -> None:
    time.sleep(LONG_S)


def blocked_ms() -> float:
    """Return for how many ms this job has held the loop, by its lane."""
    lane, job = LANE.get(), running_job()
    blocked = getattr(lane, "blocked", None)
    return blocked[1] if blocked is not None and blocked[0] is job else 0.0


@handler(Wait)
async def wait(message: Wait, job: Job) -> None:
    gate.waiting += 1
    await gate.opened.wait()
    time.sleep(SHORT_S)


def counted(consumer: Consumer) -> dict[bytes, int]:
    """Return how often each type has blocked the loop, but for what nobody is blamed for: a busy machine blocks a loop, too."""
    return {name: blocks.count for name, blocks in consumer.stats.blocked.items() if name}


def reports(caplog: pytest.LogCaptureFixture, who: str) -> list[logging.LogRecord]:
    """Return the reports of a loop that is blocked so, oldest first."""
    return [record for record in caplog.records if f"ms by {who}" in record.getMessage()]


async def send_until(consumer: Consumer, producer: Producer, message: Hold, is_true: Callable[[], object], what: str) -> None:
    """Send until it holds: on a busy machine one block may be over, or excused, before it is seen for what it is."""
    for _ in range(40):  # longer than the monitor is quiet after a report
        gate.has_ended = False
        await producer.send(message)
        await until(lambda: gate.has_ended, "it has held the loop")
        ticks = sum(consumer.stats.lag.counts)
        await until(lambda ticks=ticks: sum(consumer.stats.lag.counts) > ticks, "the tick after it")
        if is_true():
            return
    pytest.fail(what)


@pytest.mark.parametrize("how", ["sleeps", "loops", "computes"])
async def test_a_handler_that_holds_the_loop_is_named_with_the_line_and_its_neighbours_are_not(valkey, caplog, how):
    async with working(valkey.url, hold, wait, concurrency=20) as consumer, Producer.connect(valkey.url) as producer:
        await producer.send_many([Wait()] * 10)
        await until(lambda: gate.waiting == 10, "ten wait beside it")
        # On a busy machine a first block may be told without a name, and then nothing is for a while.
        is_told = lambda: counted(consumer) and "by the handler of hold" in caplog.text  # noqa: E731
        await send_until(consumer, producer, Hold(how=how), is_told, "it is counted and told")
        assert set(counted(consumer)) == {b"hold"}
        blocks = consumer.stats.blocked[b"hold"]
        assert blocks.total_s >= blocks.longest_s > 0.1
        row = consumer._row()
        assert (row.blocked["hold"], row.blocked_ms["hold"]) == (blocks.count, int(blocks.longest_s * 1000))
        assert re.fullmatch(r"contract/test_loop_monitor\.py:\d+", row.where["hold"])
        gate.opened.set()
    line = reports(caplog, "the handler of hold")[0]
    assert re.search(r"hold, tests\.contract\.test_loop_monitor:hold \(job [^)]+\) at ", line.getMessage())
    assert f"{__file__}:" in line.getMessage()
    assert (line.__dict__["job_type"], line.__dict__["job_attempt"]) == ("hold", 1)
    assert line.exc_text is not None
    assert "in hold\n" in line.exc_text
    assert "lanes.py" not in line.exc_text, "the job's part of the stack alone"
    assert max(gate.blocked_ms) >= 100, "its lane knew at its end"


async def test_many_handlers_that_hold_the_loop_for_a_moment_each_are_not_blamed_for_it(valkey, caplog):
    async with working(valkey.url, wait, concurrency=2 * MANY) as consumer, Producer.connect(valkey.url) as producer:
        await producer.send_many([Wait()] * MANY)
        await until(lambda: gate.waiting == MANY, "all wait")
        gate.opened.set()
        await until(lambda: b"" in consumer.stats.blocked, "the turn is counted")
        await until(lambda: consumer.stats.finished == MANY, "all end")
    assert counted(consumer) == {}
    assert "by the handler of" not in caplog.text


async def test_a_task_that_a_handler_began_is_shown_by_its_stack_and_counted_without_a_name(valkey, caplog):
    async with working(valkey.url, hold) as consumer, Producer.connect(valkey.url) as producer:
        # On a busy machine other code may have held the loop, and be told first: nothing else is for a while then.
        is_told = lambda: any("in sleeps\n" in (each.exc_text or "") for each in reports(caplog, "code outside of handlers"))  # noqa: E731
        await send_until(consumer, producer, Hold(how="in a task"), is_told, "it is told")
    assert counted(consumer) == {}
    assert b"" in consumer.stats.blocked


async def test_a_library_that_keeps_the_lock_and_waits_looks_like_a_process_that_stands_still(valkey):
    async with working(valkey.url, hold) as consumer, Producer.connect(valkey.url) as producer:
        stalls = consumer.stats.stalls["process"]
        await send_until(consumer, producer, Hold(how="keeps the lock"), lambda: stalls.longest_s > LONG_S / 2, "it is counted")
    assert counted(consumer) == {}
