"""Debounce: of the messages with one key that wait for a time, the last runs; sent by a Producer or by a plain XADD alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Job, Message, Priority, Producer, contract, handler
from runtime.jobs import Claim, Deferral
from runtime.store.shapes import MAX_KEY_TOLD, Duplicate
from runtime.streams import Streams
from runtime.testing import worker
from tests.contract.kit import HIGH, ME, MemoryKit, batch, leases, pending
from tests.servers import Server

FAR_MS = 3_600_000
LOW = 3
MOST_WAITS = 10  # as in folding.lua


async def admit_all(store: Streams, stream: int = HIGH) -> list[str]:
    held = await leases(store, stream=stream)
    return await store.admit([Claim(job, job.envelope.key, job.envelope.at_ms) for job in held])


def add(kit: Any, n: int, at_ms: int | None = None, **fields: Any) -> str:
    fields = {"data": f'{{"n":{n}}}', "key": "k", "at": str(kit.now_ms() + FAR_MS if at_ms is None else at_ms)} | fields
    return kit.add(fields.pop("to", HIGH), **{name: value for name, value in fields.items() if value})


# --- by hand: what a worker does with them -------------------------------------------------------------------------------------


async def test_of_messages_with_one_key_that_wait_for_a_time_the_last_stays_with_the_id_of_the_first(store, kit):
    at_ms = kit.now_ms() + FAR_MS
    first = add(kit, 1, at_ms, group="g")
    assert await admit_all(store) == ["delayed"]
    add(kit, 2, at_ms + 1, id="second", exp=str(at_ms + 5))
    assert await admit_all(store) == ["duplicate"]
    assert kit.due() == {f"high-{first}": at_ms + 1}
    record = kit.record(f"high-{first}")
    assert (record["id"], record["data"], record["exp"]) == (f"high-{first}", '{"n":2}', str(at_ms + 5))
    assert {"at", "group"} & record.keys() == set(), "what the first alone had is gone with it"
    assert record["first_at"] == first.partition("-")[0]
    assert (kit.messages(), pending(kit)) == ([], [])
    assert kit.marks() == {"k": f"due high-{first}"}


async def test_messages_of_one_fetch_are_folded_into_the_first_of_them(store, kit):
    for n in range(5):
        add(kit, n)
    assert await admit_all(store) == ["delayed", *["duplicate"] * 4]
    [member] = kit.due()
    assert kit.record(member)["data"] == '{"n":4}'
    assert len(kit.messages()) == 0


async def test_of_what_is_dropped_it_is_told_into_which_job_it_was_folded_and_which_has_its_key(store, kit):
    at_ms = kit.now_ms() + FAR_MS
    first = add(kit, 1, at_ms)
    await admit_all(store)
    add(kit, 2, at_ms + 1, id="second")
    kit.add(key="k", id="third")
    kit.add(key="l", id="owner")
    kit.add(key="l", id="fifth")
    folded, copy, _, other = await store.admit(
        [Claim(job, job.envelope.key, job.envelope.at_ms) for job in await leases(store, stream=HIGH)]
    )
    told = [
        verdict.told(key)
        for verdict, key in ((folded, b"k"), (copy, b"k"), (other, b"l" * 999))
        if isinstance(verdict, Duplicate)
    ]
    assert told == [
        f"folded into high-{first} (key k)",
        f"dropped as a duplicate of high-{first} (key k)",
        f"dropped as a duplicate of owner (key {'l' * MAX_KEY_TOLD})",
    ]


async def test_what_is_folded_runs_once_from_the_stream_of_the_last(store, kit):
    add(kit, 1)
    await admit_all(store)
    add(kit, 2, to=LOW)
    assert await admit_all(store, LOW) == ["duplicate"]
    [member] = kit.due()
    kit.set_due(member, 1)
    await store.promote(10, "0")
    assert kit.messages() == []
    [job] = await leases(store, stream=LOW)
    assert (job.data, job.id) == (b'{"n":2}', member)
    assert await store.admit([Claim(job, b"k")]) == ["mine"]


async def test_who_asks_again_and_again_puts_a_job_off_for_ten_times_its_wait_at_most(store, kit):
    now_ms = kit.now_ms()
    add(kit, 1, now_ms + 500_000, first_at=str(now_ms - 950_000), id="j")
    await admit_all(store)
    add(kit, 2, now_ms + 100_000)
    await admit_all(store)
    # Its wait counts from when it is met, so each ms till then takes ten off.
    assert now_ms + 20_000 <= kit.due()["j"] <= now_ms + 50_000, "a thousand seconds after it was first asked for"
    add(kit, 3, now_ms + 1000)
    await admit_all(store)
    assert kit.due()["j"] < now_ms, "at once"


async def test_a_time_of_birth_that_lies_ahead_is_none(store, kit):
    now_ms = kit.now_ms()
    add(kit, 1, first_at=str(now_ms + 10**9), id="j")
    await admit_all(store)
    assert now_ms <= int(kit.record("j")["first_at"]) + 1000 <= now_ms + 60_000


async def test_the_first_stays_where_a_message_asks_for_it(store, kit):
    first = add(kit, 1, keep="last")
    await admit_all(store)
    add(kit, 2, keep="first")
    assert await admit_all(store) == ["duplicate"]
    assert kit.record(f"high-{first}")["data"] == '{"n":1}'


async def test_a_message_without_a_time_changes_nothing_of_one_that_waits(store, kit):
    first = add(kit, 1)
    await admit_all(store)
    kit.add(key="k")
    assert await admit_all(store) == ["duplicate"]
    assert kit.record(f"high-{first}")["data"] == '{"n":1}'


async def test_a_message_that_comes_after_its_time_is_the_last_all_the_same_and_due_at_once(store, kit):
    first = add(kit, 1)
    await admit_all(store)
    kit.add(key="k", data='{"n":2}', at="1")
    assert await admit_all(store) == ["duplicate"]
    assert kit.record(f"high-{first}")["data"] == '{"n":2}'
    assert kit.due()[f"high-{first}"] <= kit.now_ms()


async def test_behind_a_job_that_runs_one_that_comes_after_its_time_is_not_lost(store, kit):
    kit.add(key="k")
    assert await admit_all(store) == ["mine"]
    late = kit.add(key="k", data='{"n":2}', at="1")
    assert await admit_all(store) == ["delayed"]
    assert kit.record(f"high-{late}")["data"] == '{"n":2}'
    assert kit.marks() == {"k": f"due high-{late}"}


async def test_one_that_comes_after_its_time_and_is_the_only_one_runs_at_once(store, kit):
    kit.add(key="k", at="1")
    assert await admit_all(store) == ["mine"]


@pytest.mark.parametrize("began", ["runs", "retries", "is snoozed"])
async def test_behind_a_job_that_has_begun_a_message_waits_as_one_of_its_own(store, kit, began):
    kit.add(key="k")
    [job] = await leases(store)
    assert await store.admit([Claim(job, b"k")]) == ["mine"]
    if began != "runs":
        await store.settle(batch(Deferral(job, "retry" if began == "retries" else "snooze", FAR_MS, "began", 1)))
    second = add(kit, 2)
    assert await admit_all(store) == ["delayed"]
    add(kit, 3)
    assert await admit_all(store) == ["duplicate"], "there is one that waits now"
    assert kit.record(f"high-{second}")["data"] == '{"n":3}'
    assert kit.due().keys() == {f"high-{second}"} | ({"began"} if began != "runs" else set())


def pass_time(kit: Any) -> None:
    """Wait until the clock has moved."""
    now_ms = kit.now_ms()
    while kit.now_ms() == now_ms:
        if isinstance(kit, MemoryKit):
            kit.store.advance(1)


async def delayed_before(store: Any, kit: Any) -> str:
    """Return the entry of a keyed job whose time has come, and that waits on its stream."""
    add(kit, 1)
    assert await admit_all(store) == ["delayed"]
    return await promoted(store, kit)


async def promoted(store: Any, kit: Any) -> str:
    """Let the time of the one delayed job come; return its entry."""
    before = set(kit.ids())
    [member] = kit.due()
    kit.set_due(member, 1)
    await store.promote(10, "0")
    [entry] = set(kit.ids()) - before
    return entry


async def held(store: Any, entry: str) -> Any:
    """Return one of the jobs that are leased now."""
    return next(job for job in await leases(store) if job.entry.decode() == entry)


async def test_where_changes_never_end_one_whose_time_has_come_runs_all_the_same(store, kit):
    """Where its stream is long, the next has taken its key each time it is met."""
    await delayed_before(store, kit)
    [first] = await leases(store)
    second = add(kit, 2)
    assert await admit_all(store) == ["delayed"]
    assert await store.admit([Claim(first, b"k")]) == ["mine"]
    assert kit.marks() == {"k": f"due high-{second}"}, "the last one has it"
    await store.settle(batch(done=[first]))
    assert kit.marks() == {"k": f"due high-{second}"}


async def test_a_job_that_is_met_after_a_newer_one_has_run_is_dropped(store, kit):
    """Run now, it would undo what changed last."""
    await delayed_before(store, kit)
    [first] = await leases(store)
    add(kit, 2)
    assert await admit_all(store) == ["delayed"]
    second = await held(store, await promoted(store, kit))
    assert await store.admit([Claim(second, b"k")]) == ["mine"]
    await store.settle(batch(done=[second]))
    assert kit.marks() == {}
    assert await store.admit([Claim(first, b"k")]) == ["duplicate"]
    pass_time(kit)
    kit.add(key="k")
    assert await admit_all(store) == ["mine"], "the next is newer than both"


async def failed_behind_a_newer_one(store: Any, kit: Any) -> None:
    """Let a keyed job fail, with the id `first`, when a newer one has taken its key, which waits."""
    kit.add(key="k")
    [first] = await leases(store)
    assert await store.admit([Claim(first, b"k")]) == ["mine"]
    add(kit, 2)
    assert await admit_all(store) == ["delayed"]
    await store.settle(batch(Deferral(first, "retry", FAR_MS, "first", 1)))


async def now_due(store: Any, kit: Any, member: str) -> Any:
    """Let the time of a delayed job come, and lease it."""
    kit.set_due(member, 1)
    await store.promote(10, "0")
    [job] = await leases(store)
    return job


async def test_a_retry_that_comes_after_a_newer_one_has_run_is_dropped(store, kit):
    await failed_behind_a_newer_one(store, kit)
    second = await now_due(store, kit, next(name for name in kit.due() if name != "first"))
    assert await store.admit([Claim(second, b"k")]) == ["mine"]
    await store.settle(batch(done=[second]))
    again = await now_due(store, kit, "first")
    assert await store.admit([Claim(again, b"k")]) == ["duplicate"]


async def test_what_a_stranger_has_put_in_the_place_of_a_key_is_no_owner(on_server):
    store = on_server.streams()
    await store.start()
    for name in ("seen:k:k", "seen:o:k"):
        on_server.raw.rpush("{jobs}:" + name, "x")
    on_server.add(key="k")
    assert await admit_all(store) == ["mine"]


async def test_a_retry_is_dropped_while_a_newer_one_waits(store, kit):
    await failed_behind_a_newer_one(store, kit)
    again = await now_due(store, kit, "first")
    assert await store.admit([Claim(again, b"k")]) == ["duplicate"]


async def test_a_job_of_another_type_with_the_same_key_is_left_as_it_is(store, kit):
    first = add(kit, 1)
    await admit_all(store)
    add(kit, 2, type="u")
    assert await admit_all(store) == ["duplicate"]
    assert kit.record(f"high-{first}")["data"] == '{"n":1}'


async def test_what_another_worker_has_by_now_is_neither_folded_nor_put_off(store, other, kit):
    add(kit, 1)
    [job] = await leases(store)
    kit.claim(job.entry, "~free", 0)
    assert await store.admit([Claim(job, b"k", job.envelope.at_ms)]) == ["refused"]
    assert (kit.due(), len(kit.messages())) == ({}, 1)


async def test_a_member_that_is_taken_is_left_to_the_job_that_has_it(store, kit):
    entry = add(kit, 1, id="j", key="")
    [job] = await leases(store)
    await store.settle(batch(Deferral(job, "at", job.envelope.at_ms, "j", 0)))
    other = add(kit, 2, id="j")
    assert await admit_all(store) == ["delayed"]
    assert kit.due().keys() == {"j", f"j#high/{other}"}
    assert kit.record("j")["data"] == '{"n":1}', entry


async def test_an_entry_that_was_deleted_by_hand_is_neither_folded_nor_put_off(store, kit):
    entry = add(kit, 1)
    [job] = await leases(store)
    kit.delete(entry)
    await store.admit([Claim(job, b"k", job.envelope.at_ms)])
    assert kit.due() == {}


# --- the rule of the times -----------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(waits_ms=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=1, max_size=12))
def test_no_job_is_put_off_beyond_what_its_last_wait_allows(waits_ms: list[tuple[int, int]]) -> None:
    """On the double, whose clock is moved: it runs at the last one's time or sooner, and sooner only where the cap says so."""

    async def scenario() -> None:
        kit = MemoryKit()
        store = kit.streams(ME)
        first_ms = None
        for gap_ms, wait_ms in waits_ms:
            kit.store.advance(gap_ms)
            await store.promote(10, "0")
            now_ms = kit.now_ms()
            is_new = not kit.due()
            if is_new:
                kit.store.entries[HIGH].clear()
                first_ms = now_ms
            add(kit, 1, now_ms + wait_ms)
            assert await admit_all(store) == (["delayed"] if is_new else ["duplicate"])
            assert first_ms is not None
            [due_ms] = kit.due().values()
            assert due_ms == min(now_ms + wait_ms, first_ms + MOST_WAITS * wait_ms)
        await kit.close()

    asyncio.run(scenario())


# --- by a producer -------------------------------------------------------------------------------------------------------------


@contract("tea", priority=Priority.HIGH)
class Tea(msgspec.Struct, frozen=True):
    n: int


@pytest.fixture
async def producer(on_server: Any) -> AsyncIterator[Producer]:
    async with Producer.connect(on_server.server.url) as opened:
        yield opened


async def test_a_second_send_replaces_the_first_and_says_that_it_is_not_new(producer, on_server):
    first = await producer.send(Tea(1), key="k", delay_s=3600)
    second = await producer.send(Tea(2), key="k", delay_s=7200, priority=Priority.LOW)
    assert (first.new, second.new) == (True, False)
    record = on_server.record(first.id)
    assert (record["stream"], record["data"], record["id"]) == ("low", '{"n":2}', first.id)
    assert on_server.due()[first.id] > on_server.now_ms() + 2 * FAR_MS - 60_000
    assert on_server.raw.ttl("{jobs}:seen:k:k") > 7 * 86400 + 7000


async def test_sends_of_one_call_are_folded_too_and_a_repeat_of_the_chunk_folds_nothing_twice(producer, on_server):
    sent = await producer.send_many([Message(payload=Tea(n), key="k", delay_s=3600) for n in range(5)])
    assert [one.new for one in sent] == [True, False, False, False, False]
    assert on_server.record(sent[0].id)["data"] == '{"n":4}'


async def test_a_message_by_hand_is_folded_into_one_of_a_producer(producer, on_server):
    sent = await producer.send(Tea(1), key="k", delay_s=3600)
    store = on_server.streams()
    await store.start()
    add(on_server, 2, type="tea")
    assert await admit_all(store) == ["duplicate"]
    assert on_server.record(sent.id)["data"] == '{"n":2}'


async def test_what_keeps_the_first_is_dropped_and_told_so(producer, on_server):
    first = await producer.send(Tea(1), key="k", delay_s=3600)
    assert not (await producer.send(Tea(2), key="k", delay_s=7200, keep="first")).new
    assert on_server.record(first.id)["data"] == '{"n":1}'


async def test_with_memory_full_a_worker_still_folds(on_server, producer):
    sent = await producer.send(Tea(1), key="k", delay_s=3600)
    store = on_server.streams()
    await store.start()
    add(on_server, 2, type="tea")
    held = await leases(store)
    on_server.raw.config_set("maxmemory", 1)
    try:
        assert await store.admit([Claim(job, b"k", job.envelope.at_ms) for job in held]) == ["duplicate"]
    finally:
        on_server.raw.config_set("maxmemory", 0)
    assert on_server.record(sent.id)["data"] == '{"n":2}'


async def test_a_job_that_was_put_off_runs_once_with_what_was_said_last(valkey: Server):
    ran: list[tuple[int, str]] = []

    @handler(Tea)
    async def brew(message: Tea, job: Job) -> None:
        ran.append((message.n, job.id))

    async with worker(valkey.url, brew) as running:
        sent = [await running.producer.send(Tea(n), key="k", delay_s=0.5) for n in range(4)]
        raw = valkey.client()
        now_s, now_us = raw.time()
        at_ms = now_s * 1000 + now_us // 1000 + 900
        raw.xadd("{jobs}:high", {"type": "tea", "data": '{"n":9}', "key": "k", "at": at_ms})
        raw.close()
        await running.settled(delayed=True)
    assert ran == [(9, sent[0].id)]
    assert [one.new for one in sent] == [True, False, False, False]
