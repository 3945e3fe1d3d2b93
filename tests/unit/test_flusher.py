"""The flusher over the double: each outcome is written once, and what could not be written goes back, whatever fails and when."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest

from runtime.errors import Dead, Retry, StoreUnavailable
from runtime.jobs import DONE, FREE, Job, Outcome, Park, Parking, Postpone
from runtime.store.shapes import Ask
from runtime.worker.flusher import Flusher
from tests.cruelty import Fault
from tests.unit.parts import HIGH, end, make, until

pytestmark = pytest.mark.usefixtures("_hurry")

OUTCOMES: Sequence[Outcome] = (DONE, Retry(60), Dead("no"), Park(FREE), Park("~t:part@1"), Postpone(10**14))


class Bench:
    """A flusher with one job of each outcome in its ledger, and what it told others."""

    def __init__(self, *faults: tuple[str, int, Fault]) -> None:
        self.parts = make(*faults)
        self.written = 0
        self.delayed_s: list[float] = []
        self.permits = 0
        self.flusher = Flusher(self.parts.ctx, self._on_written, self.delayed_s.append, self._on_permits)
        self.parts.ctx.ledger.on_first = self.flusher.wake
        self.jobs: list[Job] = []

    def _on_written(self) -> None:
        self.written += 1

    async def _on_permits(self) -> None:
        self.permits += 1

    async def fill(self, outcomes: Sequence[Outcome] = OUTCOMES) -> None:
        """Hold a job for each outcome, and note it."""
        for n in range(len(outcomes)):
            self.parts.add(id=f"j{n}")
        self.jobs = await self.parts.hold()
        for job, outcome in zip(self.jobs, outcomes, strict=True):
            self.parts.ctx.ledger.add(job, outcome)

    def check_in_place(self) -> None:
        """Check that each outcome is in its place, and in no other."""
        store = self.parts.store
        assert self.parts.places() == Counter([b"j1", b"j2", b"j3", b"j4", b"j5"]), "what is done is in none"
        assert [letter["id"] for letter in store.dead] == ["j2"]
        assert {*store.records} == {*store.due} == {"j1", "j5"}
        assert self.parts.pending(FREE) == {self.jobs[3].entry}
        assert self.parts.pending("~t:part@1") == {self.jobs[4].entry}


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.ERROR, Fault.FULL, Fault.RESTARTED])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_batch_is_written_once_whatever_the_first_answers_are(fault, times):
    bench = Bench(*[("settle", nth, fault) for nth in range(1, times + 1)])
    await bench.fill()
    running = asyncio.create_task(bench.flusher.run())
    await until(lambda: not len(bench.parts.ctx.held), "all is written")
    bench.check_in_place()
    bench.parts.check()
    stats = bench.parts.ctx.stats
    assert (stats.refused, stats.shortfall) == ((5, 1) if fault is Fault.LOST else (0, 0)), "what was done already is refused"
    assert stats.store_errors == (0 if fault is Fault.RESTARTED else times)
    assert bench.delayed_s == [60.0], "a time that a sender chose hurries nobody"
    assert bench.written == 1
    assert bench.parts.ctx.parked.seen == {(HIGH, "~t:part@1"): 0}, "it is taken from there again"
    await end(running)


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
async def test_a_death_leaves_each_job_in_one_place(fault):
    bench = Bench(("settle", 1, fault))
    await bench.fill()
    running = asyncio.create_task(bench.flusher.run())
    await until(lambda: bench.parts.plan.is_dead, "it dies")
    await end(running)
    if fault is Fault.KILLED_AFTER:
        bench.check_in_place()
    else:
        assert bench.parts.places() == Counter(job.id.encode() for job in bench.jobs)
        assert bench.parts.pending() == {job.entry for job in bench.jobs}


@pytest.mark.parametrize("fault", [None, Fault.HELD, Fault.REFUSED])
async def test_a_cancel_puts_back_what_is_not_confirmed_and_a_last_flush_writes_it(fault):
    """While it gathers, while the answer is on its way, while it waits after an error."""
    bench = Bench(*([("settle", 0, fault)] if fault else []))
    running = asyncio.create_task(bench.flusher.run())
    await asyncio.sleep(0)
    await bench.fill()
    if fault is Fault.HELD:
        await until(lambda: bench.parts.plan.held, "the answer is held back")
        assert len(bench.parts.ctx.ledger) == 0
    elif fault is Fault.REFUSED:
        await until(lambda: bench.parts.ctx.stats.store_errors, "it was refused")
    await end(running)
    bench.parts.plan.heal()
    bench.parts.check()
    assert len(bench.parts.ctx.held) == len(OUTCOMES)
    await bench.flusher.flush()
    bench.check_in_place()
    assert len(bench.parts.ctx.held) == 0


async def test_a_batch_in_parts_loses_none_where_one_of_them_fails():
    bench = Bench(("settle", 2, Fault.REFUSED))
    await bench.fill()
    bench.flusher._budget.bytes = 1
    with pytest.raises(Exception, match="no answer"):
        await bench.flusher.flush()
    written = {job.entry for job in bench.jobs} - bench.parts.known()
    assert len(written) == 2, "what is done, and one move"
    bench.parts.check()
    await bench.flusher.flush()
    bench.check_in_place()
    assert len(bench.parts.ctx.held) == 0


async def test_a_move_that_is_answered_with_an_error_waits_apart_and_holds_up_nobody():
    bench = Bench()
    await bench.fill()
    bench.parts.store.errors[bench.jobs[1].entry] = "WRONGTYPE"
    await bench.flusher.flush()
    assert bench.parts.known() == {bench.jobs[1].entry}
    bench.parts.check(bench.flusher._apart)
    assert len(bench.parts.ctx.ledger) == 0
    bench.flusher.retry_apart(0.0)
    assert len(bench.parts.ctx.ledger) == 0, "its time has not come"
    bench.flusher.retry_apart(float("inf"))
    bench.parts.check()
    await bench.flusher.flush()
    assert bench.parts.known() == {bench.jobs[1].entry}, "still an error"
    bench.parts.store.errors.clear()
    bench.flusher.retry_apart(float("inf"))
    await bench.flusher.flush()
    bench.check_in_place()
    assert len(bench.parts.ctx.held) == 0


async def test_what_was_given_back_and_taken_again_before_the_answer_was_read_is_given_back_again():
    """The flusher gave it back; the fetcher took it again before that answer was read: that lease is new, and nobody runs it."""
    bench = Bench(("settle", 1, Fault.HELD))
    await bench.fill([Park(FREE)])
    flushing = asyncio.create_task(bench.flusher.flush())
    await until(lambda: bench.parts.plan.held, "it is given back")
    held = bench.parts.ctx.held
    assert held.has(HIGH, bench.jobs[0].entry)
    taken = await bench.parts.streams.take(Ask(HIGH, FREE, 1))
    assert len(taken.deliveries[0].rows) == 1
    again = msgspec.structs.replace(bench.jobs[0], taken_s=bench.jobs[0].taken_s + 1)
    assert held.add(HIGH, [again]) == [], "it is known"
    bench.parts.plan.let_go()
    await flushing
    bench.parts.check()
    assert bench.parts.ctx.ledger._batch.park == [Parking(bench.jobs[0], FREE)]
    await bench.flusher.flush()
    assert (len(held), bench.parts.pending(FREE)) == (0, {bench.jobs[0].entry})


async def test_a_job_that_another_worker_has_by_now_is_held_no_longer_and_left_alone():
    bench = Bench()
    await bench.fill()
    for job in bench.jobs:
        bench.parts.store.pending[HIGH][job.entry].consumer = "other"
    await bench.flusher.flush()
    assert len(bench.parts.ctx.held) == 0
    assert bench.parts.pending("other") == {job.entry for job in bench.jobs[1:]}, "but for what is done: that needs no fence"
    assert (bench.parts.ctx.stats.refused, bench.parts.ctx.stats.shortfall) == (5, 0)


async def test_each_answered_part_of_a_flush_is_counted_with_its_moves():
    bench = Bench(("settle", 1, Fault.LOST))
    await bench.fill()
    with pytest.raises(StoreUnavailable):
        await bench.flusher.flush()
    flushes = bench.parts.ctx.stats.flushes
    assert (sum(flushes.times), flushes.jobs) == (0, 0), "what had no answer is none"
    await bench.flusher.flush()
    assert (sum(flushes.times), flushes.jobs) == (1, len(OUTCOMES))
