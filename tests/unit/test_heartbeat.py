"""The heartbeat over the double: what is renewed and reported, and what is not where a call fails, hangs, or the thread dies."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from runtime.errors import StoreUnavailable
from runtime.jobs import Job
from runtime.store.base import WorkerRow
from runtime.worker.heartbeat import Beat, Heartbeat
from runtime.worker.loop_monitor import LoopMonitor, LoopState
from tests.cruelty import Fault
from tests.unit.parts import HIGH, ME, Parts, make, row, until

pytestmark = pytest.mark.usefixtures("_hurry")

LEASE_S = 30.0
OTHER = "other"


class Bench:
    """A heartbeat over the double, and what it told."""

    def __init__(self, *faults: tuple[str, int, Fault], lease_s: float = LEASE_S, of: Callable[[], WorkerRow] = row) -> None:
        self.parts: Parts = make(*faults)
        self.told: list[Beat] = []
        self.crashes: list[BaseException] = []
        self.loop_state = LoopState(time.monotonic(), threading.get_ident(), lambda: None)
        self.heartbeat = Heartbeat(
            cast("Any", self.parts.streams),
            self.parts.ctx.held,
            LoopMonitor(self.loop_state, 60.0),
            lease_s=lease_s,
            row=of,
            on_heartbeat=self.told.append,
            on_crash=self.crashes.append,
        )

    async def once(self) -> None:
        """Beat once, in this loop."""
        await self.heartbeat.beat_once(cast("Any", self.parts.streams))

    async def hold(self, n: int, age_s: float) -> list[Job]:
        """Hold jobs that were taken a while ago."""
        for _ in range(n):
            self.parts.add()
        jobs = await self.parts.hold()
        for job in jobs:
            job.taken_s -= age_s
        return jobs

    def idle_ms(self) -> list[float]:
        """Return for how long each lease was not renewed."""
        return [self.parts.store.now_ms - row.since_ms for row in self.parts.store.pending[HIGH].values()]


@contextlib.contextmanager
def beating(bench: Bench) -> Iterator[None]:
    """Run the thread until the block ends."""
    bench.heartbeat.start()
    try:
        yield
    finally:
        bench.heartbeat.stop()
        assert not bench.heartbeat.is_alive()


# --- one beat ----------------------------------------------------------------------------------------------------------------


async def test_a_beat_renews_what_is_held_for_a_while_and_says_that_its_worker_lives():
    bench = Bench()
    await bench.hold(1, LEASE_S / 6 + 1)
    await bench.hold(1, 0)
    bench.parts.store.advance(9_000)
    await bench.once()
    assert bench.idle_ms() == [0, 9_000], "what has just come has its whole lease"
    assert bench.parts.store.workers[ME] == bench.parts.store.now_ms + LEASE_S * 1000
    [beat] = bench.told
    assert (beat.run_id, beat.refused) == (bench.parts.store.run_id, [])


async def test_what_is_refused_is_reported_with_the_count_that_was_asked_for():
    """An adopted lease has another count by the time of the answer: the report must not hit it."""
    bench = Bench(("renew", 1, Fault.HELD))
    mine, lost = await bench.hold(2, LEASE_S)
    bench.parts.store.pending[HIGH][lost.entry].consumer = OTHER
    asked = asyncio.create_task(bench.once())
    await until(lambda: bench.parts.plan.held, "it is asked")
    lost.count = 2
    bench.parts.plan.let_go()
    await asked
    assert bench.told[0].refused == [(lost, 1)]
    assert mine in bench.parts.ctx.held
    assert lost in bench.parts.ctx.held, "the loop's half lets go of it"


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.ERROR, Fault.FULL])
@pytest.mark.parametrize("verb", ["renew", "beat"])
async def test_a_beat_that_is_not_confirmed_reports_nothing(verb, fault):
    bench = Bench((verb, 1, fault))
    [lost] = await bench.hold(1, LEASE_S)
    bench.parts.store.pending[HIGH][lost.entry].consumer = OTHER
    with pytest.raises(StoreUnavailable):
        await bench.once()
    assert bench.told == []
    is_alive = ME in bench.parts.store.workers
    assert is_alive == (verb == "beat" and fault is Fault.LOST), "leases are renewed before the row: never the row alone"
    await bench.once()
    assert bench.told[0].refused == [(lost, 1)], "what was refused is asked again"


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
async def test_of_a_worker_that_dies_in_a_beat_the_row_ends_no_later_than_its_leases_were_renewed(fault):
    bench = Bench(("renew", 1, fault))
    await bench.hold(1, LEASE_S)
    bench.parts.store.advance(20_000)
    dying = asyncio.create_task(bench.once())
    await until(lambda: bench.parts.plan.is_dead, "it dies")
    assert bench.idle_ms() == [20_000 if fault is Fault.KILLED_BEFORE else 0]
    assert bench.parts.store.workers == {}
    dying.cancel()
    await asyncio.wait([dying])
    assert bench.told == []


# --- the thread --------------------------------------------------------------------------------------------------------------


async def test_the_thread_beats_at_once_again_and_again_and_closes_its_store_at_the_end():
    bench = Bench(lease_s=0.03)
    opened = []
    sibling = bench.parts.streams.sibling
    bench.parts.streams.sibling = lambda answer_s: opened.append((answer_s, sibling(answer_s))) or opened[-1][1]
    with beating(bench):
        await until(lambda: len(bench.told) >= 3, "it beats")
    [(answer_s, store)] = opened
    assert store.is_closed
    assert answer_s == 0.03 / 4, "a silent connection must not cost the lease"
    assert not bench.parts.streams.is_closed
    assert bench.crashes == []


class Hasty:
    """asyncio as the heartbeat sees it, where what it waits for is noted, and takes a moment."""

    def __init__(self) -> None:
        self.waited_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, wait_s: float) -> None:
        self.waited_s.append(wait_s)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.ERROR, Fault.FULL])
@pytest.mark.parametrize("verb", ["renew", "beat"])
async def test_the_thread_goes_on_after_errors_and_tries_again_long_before_the_next_beat(monkeypatch, verb, fault):
    hasty = Hasty()
    monkeypatch.setattr("runtime.worker.heartbeat.asyncio", hasty)
    bench = Bench((verb, 1, fault), (verb, 2, fault))
    with beating(bench):
        await until(lambda: len(hasty.waited_s) > 2, "it is confirmed")
    assert bench.told
    assert bench.crashes == []
    assert all(0.8 * LEASE_S / 18 <= wait_s <= 1.2 * LEASE_S / 18 for wait_s in hasty.waited_s[:2])
    assert 0.8 * LEASE_S / 3 <= hasty.waited_s[2] <= 1.2 * LEASE_S / 3


async def test_a_loop_that_counts_as_dead_gets_no_beats_until_it_moves_again():
    bench = Bench(lease_s=0.03)
    bench.loop_state.moved_s -= 3600
    with beating(bench):
        await asyncio.sleep(0.05)
        assert bench.parts.plan.counts["beat"] == 0
        bench.loop_state.moved_s = time.monotonic()
        await until(lambda: bench.told, "it beats")


@pytest.mark.parametrize("verb", ["renew", "beat"])
async def test_a_stop_does_not_wait_for_an_answer_that_does_not_come(verb):
    bench = Bench((verb, 1, Fault.HELD))
    with beating(bench):
        await until(lambda: bench.parts.plan.held, "the answer is held back")
    assert bench.told == []


async def test_a_thread_that_is_told_to_fall_silent_ends_by_itself_and_is_not_waited_for():
    bench = Bench(lease_s=0.03)
    bench.heartbeat.start()
    await until(lambda: bench.told, "it beats")
    bench.heartbeat.fall_silent()
    await until(lambda: not bench.heartbeat.is_alive(), "it ends")


async def test_a_crash_of_the_thread_is_told_and_kept():
    def broken() -> WorkerRow:
        raise RuntimeError("no row")

    bench = Bench(of=broken)
    bench.heartbeat.start()
    await until(lambda: not bench.heartbeat.is_alive(), "it ends")
    [crash] = bench.crashes
    assert isinstance(crash, ExceptionGroup)
    assert bench.heartbeat.error is crash
