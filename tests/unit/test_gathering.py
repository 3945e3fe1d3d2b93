"""Gathering by a clock of one's own: no batch is too large, none waits too long, nothing is lost or comes twice."""

from __future__ import annotations

import asyncio

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from runtime.backoff import Backoff
from runtime.jobs import CRITICAL, BatchPolicy, Gathered, Handler, Job, contract, contract_of, each_of
from runtime.worker.gathering import Gathering, gathering_of
from runtime.worker.lanes import Inbox
from tests.builders import job

MAX_SIZE, MAX_WAIT_S = 4, 0.2


@contract("many")
class Many(msgspec.Struct):
    pass


async def nothing(message: object, job: Job) -> None:
    pass


def handler(batch: BatchPolicy | None) -> Handler[Many]:
    return Handler(contract_of(Many), nothing, lambda job: None, nothing, 30.0, Backoff(), "loop", batch=batch)


REGISTRY = {
    b"many": handler(BatchPolicy(MAX_SIZE, MAX_WAIT_S)),
    b"other": handler(BatchPolicy(MAX_SIZE, MAX_WAIT_S / 2)),
    b"single": handler(BatchPolicy(1, MAX_WAIT_S)),
    b"plain": handler(None),
}


class World:
    """Where jobs gather, and its time."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.gathering = Gathering(REGISTRY, lambda: self.now_s)

    def come(self, *names: str, stream: int = 1, count: int = 1) -> list[Job]:
        """Let jobs come now, and return what may start."""
        jobs = [job(name, stream=stream, count=count) for name in names]
        for one in jobs:
            one.taken_s = self.now_s
        return self.gathering.add(jobs)


def sizes(ready: list[Job]) -> list[int]:
    return [len(each_of(run)) for run in ready]


# --- rules -------------------------------------------------------------------------------------------------------------------


def test_a_batch_begins_when_it_is_full():
    world = World()
    assert world.come("many", "many", "many") == []
    assert sizes(world.come("many", "many")) == [MAX_SIZE]
    assert sizes(world.gathering.open) == [1]


def test_a_batch_begins_when_its_first_job_has_waited_for_long_enough():
    world = World()
    world.come("many")
    world.now_s += 0.15
    world.come("many")
    world.now_s = 1000 + MAX_WAIT_S - 0.001
    assert world.gathering.take_due() == []
    assert world.gathering.due_s == 1000 + MAX_WAIT_S
    world.now_s = 1000 + MAX_WAIT_S
    assert sizes(world.gathering.take_due()) == [2]
    assert world.gathering.due_s == float("inf")


def test_what_comes_later_brings_along_what_is_due_by_then():
    world = World()
    world.come("other")
    world.now_s += MAX_WAIT_S / 2
    assert sizes(world.come("many")) == [1]


def test_critical_jobs_and_others_gather_apart_and_the_others_together():
    world = World()
    world.come("many", "many", stream=3)
    world.come("many", stream=1)
    world.come("many", stream=CRITICAL)
    others, critical = world.gathering.open
    assert (others.stream, len(others.jobs)) == (1, 3)
    assert (critical.stream, len(critical.jobs)) == (CRITICAL, 1)


def test_what_was_delivered_before_starts_alone_and_at_once():
    world = World()
    world.come("many")
    [suspect] = world.come("many", count=2)
    assert isinstance(suspect, Gathered)
    assert (suspect.count, len(suspect.jobs)) == (2, 1)
    assert sizes(world.gathering.open) == [1]


def test_a_type_that_does_not_gather_passes_through():
    world = World()
    [plain, single] = world.come("plain", "single")
    assert type(plain) is Job
    assert isinstance(single, Gathered)
    assert world.gathering.open == []


def test_as_many_more_are_wanted_as_have_come_until_the_batch_is_full():
    world = World()
    wanted = [world.gathering.wanted]
    for _ in range(MAX_SIZE - 1):
        world.come("many")
        wanted.append(world.gathering.wanted)
    assert wanted == [0, 1, 2, 1]
    world.come("other")
    assert world.gathering.wanted == 1 + 1


def test_where_each_handler_takes_one_job_nothing_gathers():
    assert gathering_of({b"plain": REGISTRY[b"plain"]}, lambda: 0.0) is None
    assert gathering_of(REGISTRY, lambda: 0.0) is not None


# --- whatever comes, in any order --------------------------------------------------------------------------------------------

arrivals = st.lists(
    st.tuples(
        st.sampled_from(["many", "other", "single", "plain"]),
        st.integers(0, 3),  # stream
        st.integers(1, 2),  # deliveries
        st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.3]),  # seconds until then
    ),
    max_size=60,
)


@given(arrivals)
def test_each_job_starts_once_in_no_batch_too_large_and_none_waits_too_long(
    arrivals: list[tuple[str, int, int, float]],
):
    world, started, sent = World(), list[Job](), list[Job]()

    def start(ready: list[Job]) -> None:
        for run in ready:
            jobs = each_of(run)
            policy = REGISTRY[run.type].batch
            assert (type(run) is Gathered) == (policy is not None)
            if policy is not None:
                assert 1 <= len(jobs) <= policy.max_size
                assert {one.type for one in jobs} == {run.type}
                assert len({one.stream == CRITICAL for one in jobs}) == 1
                assert run.stream == min(one.stream for one in jobs)
                assert len(jobs) == 1 or all(one.count == 1 for one in jobs)
                assert all(world.now_s - one.taken_s <= policy.max_wait_s + 1e-9 for one in jobs)
            started.extend(jobs)

    for name, stream, count, after_s in arrivals:
        end_s = world.now_s + after_s
        while world.gathering.due_s <= end_s:  # as the inbox does
            world.now_s = max(world.now_s, world.gathering.due_s)
            start(world.gathering.take_due())
        world.now_s = end_s
        one = job(name, stream=stream, count=count)
        one.taken_s = world.now_s
        sent.append(one)
        start(world.gathering.add([one]))
    while world.gathering.open:
        world.now_s = world.gathering.due_s
        start(world.gathering.take_due())
    assert sorted(map(id, started)) == sorted(map(id, sent))


# --- in the inbox ------------------------------------------------------------------------------------------------------------


def filled(*names: str) -> tuple[Inbox, list[Job]]:
    inbox = Inbox(gathering=Gathering(REGISTRY, lambda: 0.0))
    jobs = [job(name, f"{n}-0") for n, name in enumerate(names)]
    inbox.put(jobs)
    return inbox, jobs


async def test_the_inbox_counts_a_full_batch_as_one_and_what_gathers_not_at_all():
    inbox, jobs = filled(*["many"] * 5, "plain")
    assert len(inbox) == 2
    assert sorted(map(id, inbox.jobs)) == sorted(map(id, jobs))


async def test_all_jobs_leave_the_inbox_one_by_one_at_a_stop():
    inbox, jobs = filled(*["many"] * 5, "plain")
    assert sorted(map(id, inbox.clear())) == sorted(map(id, jobs))
    assert (len(inbox), inbox.jobs) == (0, [])


async def test_a_type_leaves_the_inbox_from_full_batches_and_from_those_that_gather():
    inbox, jobs = filled(*["many"] * 5, "plain", "other")
    assert sorted(map(id, inbox.remove_types([b"many"]))) == sorted(map(id, jobs[:5]))
    assert sorted(map(id, inbox.jobs)) == sorted(map(id, jobs[5:]))


async def test_one_job_leaves_a_batch_and_the_last_one_takes_the_batch_along():
    inbox, jobs = filled(*["many"] * 5)
    assert all(inbox.remove(one) for one in jobs)
    assert (len(inbox), inbox.runs) == (0, [])
    assert not inbox.remove(jobs[0])


async def test_what_has_waited_for_long_enough_comes_into_the_queue_by_itself():
    loop = asyncio.get_running_loop()
    inbox = Inbox(gathering=Gathering({b"many": handler(BatchPolicy(4, 0.01))}, loop.time))
    for n in range(2):
        one = job("many", f"{n}-0")
        one.taken_s = loop.time()
        inbox.put([one])
    assert len(inbox) == 0
    async with asyncio.timeout(10):
        while not len(inbox):
            await asyncio.sleep(0.001)
    assert sizes(list(inbox.others)) == [2]
