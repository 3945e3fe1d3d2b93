"""Hand-off: what a job sends on is sent in the one step in which it is done, and only then; on each server, and on the double."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from runtime import Backoff, Job, Priority, Retry, contract, handler
from runtime.jobs import Claim, Deferral, Letter, Parking
from runtime.testing import until, worker
from tests.contract.kit import HIGH, ME, batch, leases, pending
from tests.servers import Server

LOW = 3


@contract("next")
class Next(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 1
    text: str = ""


async def held(store: Any, kit: Any, **fields: str) -> Job:
    """Return a job that this worker has."""
    kit.add(**fields)
    [job] = await leases(store)
    return job


def numbers(kit: Any, stream: int = HIGH) -> list[int]:
    """Return the numbers of what was handed on and stands on a stream."""
    return [msgspec.json.decode(fields["data"])["n"] for fields in kit.messages(stream) if fields["type"] == "next"]


async def test_a_done_job_leaves_and_what_it_hands_on_is_there(store, kit):
    job = await held(store, kit)
    first = job.send(Next(n=1), priority=Priority.HIGH, group="g", attempts=2)
    second = job.send(Next(n=2), suffix="two", priority=Priority.LOW)
    later = job.send(Next(n=3), delay_s=3600)
    assert (first, second, later) == (f"{job.work}:1", f"{job.work}:two", f"{job.work}:3")
    settled = await store.settle(batch(done=[job]))
    assert (settled.refused, settled.shortfall, settled.error) == (0, 0, "")
    [message] = kit.messages()
    assert message == {"id": first, "attempts": "2", "group": "g", "type": "next", "data": '{"n":1,"text":""}'}
    assert numbers(kit, LOW) == [2]
    assert kit.due().keys() == {later}
    assert kit.record(later)["stream"] == "medium"
    assert pending(kit) == []


async def test_the_second_time_nothing_is_sent(store, kit):
    job = await held(store, kit)
    job.send(Next(), priority=Priority.LOW)
    await store.settle(batch(done=[job]))
    settled = await store.settle(batch(done=[job]))
    assert settled.shortfall == 1
    assert numbers(kit, LOW) == [1]


@pytest.mark.parametrize("cut_at_bytes", [0, 3])
async def test_after_a_lost_reply_the_repeat_sends_nothing_more(store, kit, cut_at_bytes):
    job = await held(store, kit)
    job.send(Next(), priority=Priority.LOW)
    async with kit.losing("handoff", cut_at_bytes) as unlucky:
        with pytest.raises(Exception, match=r"."):
            await unlucky.settle(batch(done=[job]))
        await unlucky.settle(batch(done=[job]))
    assert numbers(kit, LOW) == [1]
    assert pending(kit) == []


@pytest.mark.parametrize("gone", ["done by another", "deleted by hand"])
async def test_a_job_that_has_left_before_hands_on_nothing(store, kit, gone):
    job = await held(store, kit, entry="7-1")
    job.send(Next(), priority=Priority.LOW)
    if gone.startswith("done"):
        await store.settle(batch(done=[msgspec.structs.replace(job, extras=None)]))
    else:
        kit.delete("7-1")
    assert (await store.settle(batch(done=[job]))).shortfall == 1
    assert numbers(kit, LOW) == []


async def test_done_is_done_whoever_has_the_job_meanwhile_and_hands_on_once(store, other, kit):
    job = await held(store, kit)
    job.send(Next(), priority=Priority.LOW)
    kit.claim(job.entry, "other", 2)
    await store.settle(batch(done=[job]))
    again = msgspec.structs.replace(job, count=2, extras=None)
    again.send(Next(n=2), priority=Priority.LOW)
    assert (await other.settle(batch(done=[again]))).shortfall == 1
    assert numbers(kit, LOW) == [1]


async def test_after_a_restart_of_the_server_only_who_holds_the_job_hands_on(store, kit):
    job = await held(store, kit)
    job.send(Next(), priority=Priority.LOW)
    job.run_id = "another server/0"
    kit.claim(job.entry, "other", 1)
    assert (await store.settle(batch(done=[job]))).refused == 1
    kit.claim(job.entry, ME, 1)
    assert numbers(kit, LOW) == []
    assert (await store.settle(batch(done=[job]))).refused == 0
    assert (numbers(kit, LOW), pending(kit)) == ([1], [])


@pytest.mark.parametrize("how", ["retry", "snooze", "dead", "release"])
async def test_what_is_not_done_hands_on_nothing(store, kit, how):
    job = await held(store, kit)
    job.send(Next(), priority=Priority.LOW)
    moves = {
        "retry": Deferral(job, "retry", 0, "j", 1),
        "snooze": Deferral(job, "snooze", 0, "j", 0),
        "dead": Letter(job, "handler", "e", "", 1, "j"),
        "release": Parking(job, "~free"),
    }
    assert (await store.settle(batch(moves[how]))).error == ""
    assert numbers(kit, LOW) == []


async def test_a_former_suspect_and_a_keyed_job_take_their_strikes_and_marks_along(store, kit):
    job = await held(store, kit, key="k")
    await store.admit([Claim(job, b"k")])
    kit.claim(job.entry, ME, 2)
    job.count = 2
    kit.set_strikes(f"high/{job.entry.decode()}", "x")
    job.send(Next(), priority=Priority.LOW)
    await store.settle(batch(done=[job]))
    assert (kit.marks(), kit.strikes()) == ({}, {})
    assert numbers(kit, LOW) == [1]


@pytest.mark.parametrize("delay_s", [0.0, 3600.0])
async def test_a_job_may_hand_on_one_with_its_own_key(store, kit, delay_s):
    job = await held(store, kit, key="k")
    await store.admit([Claim(job, b"k")])
    job.send(Next(), key="k", priority=Priority.LOW, delay_s=delay_s)
    await store.settle(batch(done=[job]))
    if delay_s:
        assert kit.marks() == {"k": f"due {job.work}:1"}
    else:
        assert kit.messages(LOW)[0]["id"] == f"{job.work}:1"
        assert kit.marks()["k"].startswith("low ")


async def test_what_is_handed_on_with_the_key_of_another_is_dropped_or_folded_as_a_send_is(store, kit):
    owner = await held(store, kit, type="next", key="k", id="owner", at=str(kit.now_ms() + 10_000))
    await store.admit([Claim(owner, b"k", owner.envelope.at_ms)])
    job = await held(store, kit)
    job.send(Next(n=5), key="k")
    job.send(Next(n=6), key="k", delay_s=3600)
    await store.settle(batch(done=[job]))
    assert kit.due().keys() == {"owner"}
    assert msgspec.json.decode(kit.record("owner")["data"])["n"] == 6
    assert [kit.messages(stream) for stream in range(4)] == [[], [], [], []]


async def test_a_member_that_is_taken_makes_another_one(store, kit):
    job = await held(store, kit)
    later = job.send(Next(), delay_s=3600)
    waiting = await held(store, kit)
    await store.settle(batch(Deferral(waiting, "retry", 9_000_000, later, 1)))
    await store.settle(batch(done=[job]))
    assert kit.due().keys() == {later, f"{later}#high/{job.entry.decode()}"}


async def test_many_jobs_hand_on_in_one_flush_each_its_own(store, kit):
    for _ in range(700):
        kit.add()
    jobs = await leases(store, 1000)
    for n, job in enumerate(jobs):
        if n % 7:
            job.send(Next(n=n), priority=Priority.LOW)
    settled = await store.settle(batch(done=jobs))
    assert (settled.refused, settled.shortfall, settled.error) == (0, 0, "")
    assert sorted(numbers(kit, LOW)) == [n for n in range(700) if n % 7]
    assert (kit.messages(), pending(kit)) == ([], [])


# --- what only servers can be asked ------------------------------------------------------------------------------------------


@pytest.fixture
async def on(on_server: Any) -> Any:
    return on_server


async def opened(kit: Any) -> Any:
    store = kit.streams(ME)
    await store.start()
    return store


async def test_with_memory_full_a_job_that_hands_on_waits_and_the_others_leave(on):
    store = await opened(on)
    for _ in range(3):
        on.add()
    plain, handing, keyed = await leases(store)
    handing.send(Next(), priority=Priority.LOW)
    keyed.count = 2
    on.claim(keyed.entry, ME, 2)
    on.raw.config_set("maxmemory", 1)
    try:
        settled = await store.settle(batch(done=[plain, handing, keyed]))
    finally:
        on.raw.config_set("maxmemory", 0)
    assert settled.left.done[HIGH] == [handing]
    assert "OOM" in settled.error
    assert on.holders() == {handing.entry.decode(): (ME, 1)}
    assert (await store.settle(settled.left)).error == ""
    assert (numbers(on, LOW), pending(on)) == ([1], [])


async def test_of_what_one_job_hands_on_all_is_stored_or_nothing(on):
    """The last of them cannot be stored: its stream is a key of another type."""
    store = await opened(on)
    job = await held(store, on)
    for options in ({"priority": Priority.HIGH, "key": "k"}, {"delay_s": 3600}, {"priority": Priority.LOW}):
        job.send(Next(), **options)
    beside = await held(store, on)
    beside.send(Next(n=2), priority=Priority.HIGH)
    on.raw.delete("{jobs}:low")
    on.raw.set("{jobs}:low", "x")
    for _ in range(3):
        settled = await store.settle(batch(done=[job]))
        assert (settled.left.done[HIGH], "WRONGTYPE" in settled.error) == ([job], True)
    assert (await store.settle(batch(done=[beside]))).error == ""
    assert numbers(on) == [2], "nothing of the other"
    assert (on.due(), on.records()) == ({}, set())
    assert on.holders() == {job.entry.decode(): (ME, 1)}
    on.raw.delete("{jobs}:low")
    assert (await store.settle(batch(done=[job]))).error == ""
    assert (numbers(on), numbers(on, LOW), len(on.due())) == ([2, 1], [1], 1)


async def test_a_job_whose_followers_cannot_be_stored_keeps_its_key(on):
    store = await opened(on)
    job = await held(store, on, key="k")
    await store.admit([Claim(job, b"k")])
    job.send(Next(), key="k", priority=Priority.HIGH)
    job.send(Next(), priority=Priority.LOW)
    on.raw.delete("{jobs}:low")
    on.raw.set("{jobs}:low", "x")
    assert "WRONGTYPE" in (await store.settle(batch(done=[job]))).error
    assert on.marks() == {"k": f"high {job.entry.decode()}"}


async def test_what_is_not_handed_on_takes_no_key(on):
    store = await opened(on)
    owner = await held(store, on, key="k", type="next")
    assert await store.admit([Claim(owner, b"k")]) == ["mine"]
    job = await held(store, on)
    job.send(Next(), key="k", delay_s=3600)
    job.send(Next(), priority=Priority.LOW)
    on.raw.delete("{jobs}:low")
    on.raw.set("{jobs}:low", "x")
    assert "WRONGTYPE" in (await store.settle(batch(done=[job]))).error
    assert on.marks() == {"k": f"high {owner.entry.decode()}"}
    assert await store.admit([Claim(owner, b"k")]) == ["mine"], "a redelivery"
    assert not on.raw.exists("{jobs}:seen:o:k")


async def test_what_a_stranger_has_put_in_the_place_of_a_key_keeps_no_job(on):
    store = await opened(on)
    job = await held(store, on)
    on.raw.rpush("{jobs}:seen:k:k", "x")
    on.raw.rpush("{jobs}:seen:k:l", "x")
    job.send(Next(n=1), key="k", priority=Priority.LOW)
    job.send(Next(n=2), key="l", delay_s=3600)
    assert (await store.settle(batch(done=[job]))).error == ""
    assert (numbers(on, LOW), len(on.due()), pending(on)) == ([1], 1, [])


async def test_what_is_handed_on_goes_in_calls_that_are_short_enough(on):
    store = await opened(on)
    for _ in range(5):
        on.add()
    jobs = await leases(store)
    for job in jobs:
        for _ in range(4):
            job.send(Next(text="x" * 200_000), priority=Priority.LOW)
    longest = 0
    execute = store.command

    def counted(name: str, *args: Any) -> Any:
        nonlocal longest
        longest = max(longest, sum(len(word) for word in args if isinstance(word, bytes)))
        return execute(name, *args)

    store.command = counted
    await store.settle(batch(done=jobs))
    assert on.raw.xlen("{jobs}:low") == 20
    assert 800_000 < longest < (1 << 20) + 10_000


# --- in a worker ---------------------------------------------------------------------------------------------------------------


@contract("step")
class Step(msgspec.Struct, frozen=True):
    n: int


@handler(Step, runs="process")
def in_child(message: Step, job: Job) -> None:
    job.send(Next(n=message.n), suffix="a")
    job.send(Next(n=message.n + 1))


@handler(Step)
def in_thread(message: Step, job: Job) -> None:
    job.send(Next(n=message.n), suffix="a")
    job.send(Next(n=message.n + 1))


@handler(Step)
async def on_loop(message: Step, job: Job) -> None:
    job.send(Next(n=message.n), suffix="a")
    await asyncio.sleep(0)
    job.send(Next(n=message.n + 1))


@pytest.mark.parametrize("first", [in_child, in_thread, on_loop])
async def test_handlers_hand_on_wherever_they_run(valkey: Server, first: Any):
    ran: list[tuple[int, str]] = []

    @handler(Next)
    async def last(message: Next, job: Job) -> None:
        ran.append((message.n, job.id.partition(":")[2]))

    async with worker(valkey.url, first, last) as running:
        for n in range(0, 6, 2):
            await running.producer.send(Step(n))
        await running.settled()
        assert await running.dead_letters() == []
    assert sorted(ran) == [(0, "a"), (1, "2"), (2, "a"), (3, "2"), (4, "a"), (5, "2")]


async def test_of_several_attempts_only_the_one_that_is_done_hands_on(valkey: Server):
    ran: list[str] = []

    @handler(Step, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=5))
    async def again(message: Step, job: Job) -> None:
        job.send(Next(text=f"attempt {job.attempt}"))
        if job.attempt == 1:
            raise ValueError("no")
        if job.attempt == 2:
            raise Retry(0.01)

    @handler(Next)
    async def last(message: Next, job: Job) -> None:
        ran.append(message.text)

    async with worker(valkey.url, again, last) as running:
        await running.producer.send(Step(1))
        await running.settled(delayed=True)
    assert ran == ["attempt 3"]


async def test_what_is_cut_by_a_stop_hands_on_nothing(valkey: Server):
    started = asyncio.Event()

    @handler(Step)
    async def slow(message: Step, job: Job) -> None:
        job.send(Next())
        started.set()
        await asyncio.sleep(60)

    async with worker(valkey.url, slow, grace_s=0.05) as running:
        await running.producer.send(Step(1), priority=Priority.HIGH)
        await until(started.is_set)
    raw = valkey.client()
    assert [raw.xlen(f"{{jobs}}:{name}") for name in ("critical", "high", "medium", "low")] == [0, 1, 0, 0]
    raw.close()
