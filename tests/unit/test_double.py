"""The double's cruelty: what each fault does at the call that it meets. Its verbs are tested in tests/contract/test_verbs.py."""

from __future__ import annotations

import asyncio

import pytest

from runtime.errors import QueueFull, StoreError, StoreUnavailable
from runtime.store.base import WorkerRow
from runtime.store.shapes import Fetched
from tests.cruelty import Fault, Plan
from tests.double import MemoryStreams
from tests.memory import MemoryStore

MESSAGE = [b"type", b"t", b"data", b"{}"]


def double(*faults: tuple[str, int, Fault]) -> MemoryStreams:
    store = MemoryStore()
    store.add(1, MESSAGE)
    return MemoryStreams(store, "me", Plan(*faults))


async def fetch(streams: MemoryStreams) -> Fetched:
    return await streams.fetch([0, 9, 0, 0], set())


@pytest.mark.parametrize(
    ("fault", "error", "is_done"),
    [
        (Fault.REFUSED, StoreUnavailable, False),
        (Fault.ERROR, StoreError, False),
        (Fault.FULL, QueueFull, False),
        (Fault.LOST, StoreUnavailable, True),
    ],
)
async def test_a_fault_raises_before_or_after_the_step_and_only_at_its_call(fault, error, is_done):
    streams = double(("fetch", 2, fault))
    await streams.fetch([9, 0, 0, 0], set())
    with pytest.raises(error):
        await fetch(streams)
    assert len(streams.store.pending[1]) == is_done
    await fetch(streams)
    assert len(streams.store.pending[1]) == 1
    assert (streams.plan.hits, streams.plan.counts["fetch"]) == (1, 3)


async def test_a_fault_without_a_number_meets_each_call():
    streams = double(("fetch", 0, Fault.REFUSED))
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await fetch(streams)
    streams.plan.heal()
    assert len((await fetch(streams)).deliveries) == 1


async def test_a_held_answer_comes_when_it_is_let_go_and_a_cancel_finds_the_step_done():
    streams = double(("fetch", 1, Fault.HELD), ("fetch", 2, Fault.HELD))
    first = asyncio.create_task(fetch(streams))
    while not streams.plan.held:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    assert len(await streams.leased()) == 1, "delivered, and nobody knows"
    second = asyncio.create_task(fetch(streams))
    while not streams.plan.held:
        await asyncio.sleep(0)
    assert not second.done()
    streams.plan.let_go()
    assert (await second).deliveries == []


@pytest.mark.parametrize(("fault", "is_done"), [(Fault.KILLED_BEFORE, False), (Fault.KILLED_AFTER, True)])
async def test_a_dead_process_gets_no_answer_and_does_nothing_any_more(fault, is_done):
    deaths: list[int] = []
    streams = double(("fetch", 1, fault))
    streams.plan.on_death = lambda: deaths.append(1)
    beating = streams.sibling(1.0)
    calls = [asyncio.create_task(call) for call in (fetch(streams), streams.leased(), beating.beat(WorkerRow(30_000)))]
    assert (await asyncio.wait(calls, timeout=0.01))[0] == set()
    assert deaths == [1]
    assert len(streams.store.pending[1]) == is_done
    calls.append(asyncio.create_task(beating.beat(WorkerRow(30_000))))
    await asyncio.wait(calls, timeout=0.01)
    assert streams.store.workers == {}
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_a_server_that_was_started_again_has_another_name_and_ends_what_is_blocked():
    streams = double(("fetch", 2, Fault.RESTARTED))
    before = (await fetch(streams)).run_id
    waiting = asyncio.create_task(streams.wait_for_entry(60_000))
    while not streams.store.waiting:
        await asyncio.sleep(0)
    assert (await fetch(streams)).run_id != before
    with pytest.raises(StoreUnavailable):
        await waiting
