"""The fetcher over the double: what it asks for and when, and that what a lost answer brought is given back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from runtime.errors import StoreUnavailable
from runtime.jobs import CRITICAL, DONE, FREE, SUSPECT
from runtime.worker.fetcher import Fetcher
from tests.cruelty import Fault
from tests.memory import Pending
from tests.unit.parts import HIGH, ME, end, make, rest, until

pytestmark = pytest.mark.usefixtures("_hurry")


LONG_MS = 60_000
LOW = 3


class Bench:
    """A fetcher for a worker that runs nothing until it is told to."""

    def __init__(self, *faults: tuple[str, int, Fault], limit: int = 10) -> None:
        self.parts = make(*faults)
        self.limit, self.reserved = limit, 0
        self.stop = asyncio.Event()
        self.fetcher = Fetcher(self.parts.ctx, self._capacity, lambda: (float("inf"), True), self.stop)
        self.parts.ctx.parked.on_new = self.fetcher.look_again

    def _capacity(self) -> tuple[int, int]:
        return self.limit - len(self.parts.ctx.held), self.reserved

    @property
    def ids(self) -> set[str]:
        """What may run here."""
        return {job.id for job in self.parts.ctx.inbox.jobs}

    async def finish(self) -> None:
        """Run and write all that is here, and let the fetcher know."""
        for job in self.parts.ctx.inbox.clear():
            self.parts.ctx.ledger.add(job, DONE)
        await self.parts.write()
        self.fetcher.capacity_freed.set()


@contextlib.asynccontextmanager
async def fetching(bench: Bench) -> AsyncIterator[asyncio.Task[None]]:
    """Let it fetch until the block ends."""
    running = asyncio.create_task(bench.fetcher.run())
    try:
        yield running
    finally:
        if not running.done():
            await end(running)


LOSING = {
    "fetch": lambda bench: bench.parts.add(id="j"),
    "wait_for_entry": lambda bench: asyncio.get_running_loop().call_later(0.01, lambda: bench.parts.add(id="j")),
    "take": lambda bench: (bench.parts.park("~t:part@1", id="j"), bench.parts.ctx.parked.saw({(HIGH, "~t:part@1"): 1}, [])),
    "isolate": lambda bench: (bench.parts.suspect(id="j"), setattr(bench.parts.ctx.parked, "has_suspects", True)),
}


@pytest.mark.parametrize("verb", LOSING)
@pytest.mark.parametrize("also", [None, Fault.REFUSED, Fault.LOST, Fault.ERROR], ids=["once", "unasked", "unheard", "an error"])
async def test_what_a_lost_answer_brought_is_given_back_in_the_next_round_and_comes_again(verb, also):
    bench = Bench((verb, 1, Fault.LOST))
    if also:
        bench.parts.plan.faults |= {("leased", nth): also for nth in (1, 2)}
    LOSING[verb](bench)
    async with fetching(bench):
        await until(lambda: len(bench.parts.ctx.ledger), "it is to be given back")
        bench.parts.check()
        assert bench.ids == set(), "it was never here: it does not run by a lease that others may have"
        [move] = bench.parts.ctx.ledger._batch.park
        assert move.lot == FREE
        assert bench.parts.plan.counts["leased"] == (3 if also else 1)
        assert bench.parts.ctx.stats._counts[b""][HIGH].outcomes["undelivered"] == 1
        await bench.finish()
        if verb == "isolate":
            assert bench.parts.pending(SUSPECT), "it is no less suspect"
            bench.parts.ctx.parked.has_suspects = True
        await until(lambda: bench.ids == {"j"}, "it comes again")
        bench.parts.check()


@pytest.mark.parametrize("verb", ["fetch", "wait_for_entry"])
async def test_a_cancel_while_an_answer_is_on_its_way_loses_nothing_that_is_asked_for_afterwards(verb):
    """The consumer cancels a fetcher that does not end, and asks what is pending with it."""
    bench = Bench((verb, 1, Fault.HELD))
    LOSING[verb](bench)
    async with fetching(bench) as running:
        await until(lambda: bench.parts.plan.held, "the answer is on its way")
        await end(running)
    bench.parts.check(is_lost=True)
    assert bench.parts.pending() != set()
    assert len(bench.parts.ctx.held) == 0
    await bench.fetcher.give_back_lost()
    bench.parts.check()
    await bench.parts.write()
    assert (len(bench.parts.pending()), len(bench.parts.pending(FREE))) == (0, 1)


async def test_what_is_held_is_not_given_back_with_what_was_lost():
    bench = Bench()
    bench.parts.add(id="held")
    async with fetching(bench):
        await until(lambda: bench.ids == {"held"}, "one is here")
    lost = bench.parts.add(id="lost")
    bench.parts.store.read(HIGH, ME, 1)
    await bench.fetcher.give_back_lost()
    assert [move.lease.entry for move in bench.parts.ctx.ledger._batch.park] == [lost]
    assert bench.ids == {"held"}
    bench.parts.check()


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.ERROR, Fault.FULL, Fault.RESTARTED])
@pytest.mark.parametrize("verb", ["fetch", "wait_for_entry"])
async def test_after_errors_it_fetches_on(verb, fault):
    bench = Bench(*[(verb, nth, fault) for nth in (1, 2, 3, 4)])
    log, was_fetching = bench.parts.ctx.log, list[bool]()
    tell = log.store_unavailable

    def told(error: StoreUnavailable, failures: int) -> None:
        was_fetching.append(bench.fetcher.is_fetching)
        tell(error, failures)

    log.store_unavailable = told
    async with fetching(bench):
        if fault is not Fault.RESTARTED:
            await until(lambda: len(was_fetching) >= 4, "it failed")
            assert not any(was_fetching)
        bench.parts.add(id="j")
        await until(lambda: bench.ids == {"j"}, "it fetches")
        bench.parts.check()


async def test_an_error_of_the_server_has_lost_nothing_and_asks_for_nothing():
    bench = Bench(("fetch", 1, Fault.ERROR))
    async with fetching(bench):
        await until(lambda: bench.parts.plan.counts["wait_for_entry"], "it fetches")
        assert bench.parts.plan.counts["leased"] == 0


async def test_one_stream_that_answers_with_an_error_costs_nobody_what_the_others_brought():
    bench = Bench()
    bench.parts.add(id="good")
    bench.parts.store.refusing[2] = "Redis answered: an error"
    async with fetching(bench):
        await until(
            lambda: bench.ids == {"good"} and bench.parts.ctx.stats.store_errors, "what came is here, and the error is told"
        )
        bench.parts.check()
        assert not bench.fetcher.is_fetching


async def test_it_never_asks_for_more_than_there_is_capacity_for_but_for_probes_of_dry_streams():
    bench = Bench(limit=4)
    for n in range(40):
        bench.parts.add(id=f"j{n}")
    seen: set[str] = set()
    async with fetching(bench):
        while len(seen) < 40:
            await until(lambda: bench.ids, "some are here")
            assert len(bench.parts.ctx.held) <= 4 + 3
            seen |= bench.ids
            await bench.finish()
    fetches = bench.parts.ctx.stats.fetches
    assert sum(fetches.times) == bench.parts.plan.counts["fetch"], "a wait for an entry takes as long as there is none"
    assert 20 < fetches.jobs <= 40, "those that a wait brought are not among them"


async def test_without_capacity_nothing_is_asked_and_the_end_of_a_job_wakes_it():
    bench = Bench(limit=1)
    for n in range(2):
        bench.parts.add(id=f"j{n}")
    async with fetching(bench):
        await until(lambda: bench.ids == {"j0"}, "one is here")
        asked = bench.parts.plan.counts.total()
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.parts.plan.counts.total() == asked
        await bench.finish()
        await until(lambda: bench.ids == {"j1"}, "the other one is here")


async def test_a_silent_worker_asks_for_nothing_until_a_beat_is_confirmed():
    bench = Bench()
    bench.parts.silence()
    bench.parts.add(id="j")
    async with fetching(bench):
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.parts.plan.counts.total() == 0
        bench.parts.confirm()
        bench.fetcher.capacity_freed.set()
        await until(lambda: bench.parts.plan.counts["fetch"], "it fetches")


async def test_a_stop_ends_a_wait_that_is_woken_and_gives_the_place_in_the_isolation_up():
    bench = Bench()
    bench.fetcher._longest_wait_ms = LONG_MS
    async with fetching(bench) as running:
        await until(lambda: bench.parts.store.waiting, "it waits")
        bench.stop.set()
        bench.fetcher._isolation._needed_s = 1.0
        bench.parts.store.isolations[ME] = (10**15, "")
        await bench.parts.streams.unblock()
        await running
    assert bench.parts.store.isolations == {}


async def test_a_stop_ends_the_pause_after_an_error():
    bench = Bench(("fetch", 0, Fault.REFUSED))
    async with fetching(bench) as running:
        await until(lambda: bench.parts.ctx.stats.store_errors, "it failed")
        bench.stop.set()
        await asyncio.wait([running], timeout=10)
        assert running.done()


@pytest.mark.parametrize("fault", [None, Fault.LOST])
async def test_what_was_parked_here_and_can_run_here_is_looked_for_at_once_though_the_wait_is_long(fault):
    """A lost answer to the wake-up has woken it all the same; one that failed is not tried again: the wait ends by itself."""
    bench = Bench(*([("unblock", 1, fault)] if fault else []))
    bench.fetcher._longest_wait_ms = LONG_MS
    async with fetching(bench):
        await until(lambda: bench.parts.store.waiting, "it waits")
        bench.parts.park("~t:part@1", id="j")
        bench.parts.ctx.parked.put([(HIGH, "~t:part@1")])
        await until(lambda: bench.ids == {"j"}, "it was woken")
        bench.parts.check()


async def test_what_stands_in_free_comes_with_its_stream():
    bench = Bench()
    bench.parts.park(FREE, id="free")
    async with fetching(bench):
        await until(lambda: bench.ids == {"free"}, "it is here")
        assert bench.parts.plan.counts["take"] == 0, "for no round trip of its own"
        bench.parts.check()


async def test_a_broken_stream_is_left_out_and_the_others_go_on():
    bench = Bench()
    bench.parts.store.broken[HIGH] = "WRONGTYPE"
    bench.parts.add(id="hidden")
    bench.parts.add(2, id="good")
    async with fetching(bench):
        await until(lambda: bench.ids == {"good"}, "the other is here")
        await bench.finish()
        bench.parts.store.broken.clear()
        await until(lambda: bench.ids == {"hidden"}, "it can be read again")


async def test_leases_that_nobody_here_knows_are_all_given_back_at_once():
    """Of any stream and any count: also of an isolation whose answer got lost."""
    bench = Bench()
    for stream in range(4):
        entry = bench.parts.add(stream, id=f"j{stream}")
        bench.parts.store.read(stream, ME, 1)
        bench.parts.store.pending[stream][entry] = Pending(ME, 1 + stream, 0)
    await bench.fetcher.give_back_lost()
    bench.parts.check()
    await bench.parts.write()
    assert [{row.consumer for row in held.values()} for held in bench.parts.store.pending] == [
        {FREE},
        {SUSPECT},
        {SUSPECT},
        {SUSPECT},
    ]


async def test_where_it_cannot_ask_what_was_lost_nothing_is_forgotten():
    bench = Bench(("leased", 1, Fault.REFUSED))
    bench.parts.add(id="j")
    bench.parts.store.read(HIGH, ME, 1)
    with pytest.raises(StoreUnavailable):
        await bench.fetcher.give_back_lost()
    bench.parts.check(is_lost=True)
    await bench.fetcher.give_back_lost()
    bench.parts.check()


async def test_a_fetcher_waits_again_when_a_lot_that_gave_all_is_gone_at_the_next_look() -> None:
    """Else it would fetch without a pause: the lot that had given all that it was asked for had nothing more."""
    parts = make(concurrency=1)
    fetcher = Fetcher(parts.ctx, lambda: (1, 0), lambda: (float("inf"), True), asyncio.Event())
    fetcher._longest_wait_ms = 20
    parts.park("~t:part@1")
    parts.ctx.parked.saw({(HIGH, "~t:part@1"): 1}, ())
    while not parts.ctx.inbox.jobs:  # what is due to the lot comes to an entry in its second round
        await fetcher._round(1, 0)
    parts.ctx.parked.saw({}, ())
    await fetcher._round(1, 0)
    assert parts.streams.plan.counts["wait_for_entry"] == 1


# --- what is reserved for CRITICAL, and what is paused -----------------------------------------------------------------------


def add_to(bench: Bench, stream: int, *ids: str) -> None:
    for name in ids:
        bench.parts.add(stream, id=name)


async def test_without_capacity_for_others_critical_alone_is_asked_and_never_by_a_wait():
    bench = Bench(limit=0)
    bench.reserved = 2
    add_to(bench, LOW, "low")
    async with fetching(bench):
        await until(lambda: bench.parts.plan.counts["fetch"] >= 3, "it asks again and again")
        add_to(bench, CRITICAL, "critical")
        await until(lambda: bench.ids == {"critical"}, "it comes")
        assert bench.parts.plan.counts["wait_for_entry"] == 0
        bench.limit = 10
        bench.fetcher.capacity_freed.set()
        await until(lambda: bench.ids == {"critical", "low"}, "there is capacity for all")


async def test_a_lane_that_becomes_free_while_critical_alone_is_asked_is_not_missed(monkeypatch):
    """What was freed during the round trip ends the wait that follows."""
    monkeypatch.setattr("runtime.worker.fetcher.CRITICAL_S", 3600.0)
    bench = Bench(("fetch", 1, Fault.HELD), limit=0)
    bench.reserved = 2
    add_to(bench, LOW, "low")
    async with fetching(bench):
        await until(lambda: bench.parts.plan.held, "the answer is on its way")
        bench.limit = 10
        bench.fetcher.capacity_freed.set()
        bench.parts.plan.let_go()
        await until(lambda: bench.ids == {"low"}, "it comes")


async def test_critical_alone_is_not_asked_again_before_it_is_due_however_often_something_is_freed():
    bench = Bench(limit=0)
    bench.reserved = 2
    async with fetching(bench):
        await until(lambda: bench.parts.plan.counts["fetch"], "it asks")
        bench.fetcher._ask_critical_s = float("inf")
        await rest()
        asked = bench.parts.plan.counts["fetch"]
        for _ in range(20):
            bench.fetcher.capacity_freed.set()
            await until(lambda: not bench.fetcher.capacity_freed.is_set(), "it looks")
        assert bench.parts.plan.counts["fetch"] <= asked + 1
        bench.fetcher._ask_critical_s = 0.0
        bench.fetcher.capacity_freed.set()
        await until(lambda: bench.parts.plan.counts["fetch"] > asked + 1, "it is due")


async def test_what_is_free_of_others_is_remembered_while_critical_alone_is_asked():
    bench = Bench(limit=1)
    bench.reserved = 2
    add_to(bench, LOW, "first")
    async with fetching(bench):
        await until(lambda: bench.ids == {"first"}, "no capacity for others is left")
        bench.parts.park(FREE, stream=LOW, id="free")
        bench.fetcher._free = {LOW}
        before = bench.parts.plan.counts["fetch"]
        await until(lambda: bench.parts.plan.counts["fetch"] > before + 2, "CRITICAL is asked")
        assert bench.fetcher._free == {LOW}
        assert bench.ids == {"first"}
        await bench.finish()
        await until(lambda: bench.ids == {"free"}, "it is taken")


async def test_a_lot_of_critical_is_taken_from_with_what_is_reserved_and_no_other_is():
    bench = Bench(limit=0)
    bench.reserved = 2
    for stream in (CRITICAL, LOW):
        bench.parts.park("~t:part@1", stream=stream, id=str(stream))
    bench.parts.ctx.parked.saw({(stream, "~t:part@1"): 1 for stream in (CRITICAL, LOW)}, ())
    async with fetching(bench):
        await until(lambda: bench.ids == {str(CRITICAL)}, "it comes")
        asked = bench.parts.plan.counts["fetch"]
        await until(lambda: bench.parts.plan.counts["fetch"] > asked + 2, "CRITICAL is asked again")
        assert bench.ids == {str(CRITICAL)}
        bench.limit = 10
        bench.fetcher.capacity_freed.set()
        await until(lambda: bench.ids == {str(CRITICAL), str(LOW)}, "there is capacity for all")


async def test_a_paused_critical_gets_nothing_of_what_is_reserved():
    bench = Bench(limit=0)
    bench.reserved = 2
    bench.fetcher.paused = frozenset({CRITICAL})
    add_to(bench, CRITICAL, "critical")
    async with fetching(bench):
        await until(lambda: not bench.fetcher.capacity_freed.is_set(), "it has looked")
        await rest()
        assert bench.parts.plan.counts["fetch"] == 0
        bench.fetcher.paused = frozenset()
        await until(lambda: bench.ids == {"critical"}, "it goes on")


async def test_what_is_said_again_of_paused_priorities_changes_nothing():
    bench = Bench()
    bench.fetcher.paused = frozenset({HIGH})
    bench.fetcher.capacity_freed.clear()
    bench.fetcher.paused = frozenset({HIGH})
    assert not bench.fetcher.capacity_freed.is_set()


async def test_a_wait_that_knew_of_a_pause_does_not_say_that_nothing_is_there_when_it_has_ended():
    bench = Bench()
    bench.fetcher._longest_wait_ms = 60_000
    bench.fetcher.paused = frozenset({HIGH})
    add_to(bench, HIGH, "paused")
    async with fetching(bench):
        await until(lambda: bench.fetcher._is_waiting and bench.parts.store.waiting, "it waits for the others")
        bench.fetcher.paused = frozenset({LOW})
        await until(lambda: bench.ids == {"paused"}, "it comes at once")
