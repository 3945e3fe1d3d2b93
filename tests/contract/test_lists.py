"""Lists of jobs read a part of a queue, however deep it is, and however large what stands in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from runtime.jobs import Deferral, Parking
from runtime.store.base import GROUP, WorkerRow
from runtime.store.lists import DUE_STREAM, LIST_CUT, JobLists
from tests.contract.kit import ME, ServerKit, batch, leases
from tests.servers import Server

KEY, DUE, MESSAGES = "{jobs}:high", "{jobs}:due", "{jobs}:msg"


@pytest.fixture
def kit(on_server: ServerKit) -> ServerKit:
    return on_server


@pytest.fixture
async def lists(server: Server) -> AsyncIterator[JobLists]:
    opened = JobLists(server.url, "jobs")
    yield opened
    await opened.close()


def add(raw: redis.Redis, n: int, size: int = 2) -> list[str]:
    return [str(raw.xadd(KEY, {"type": f"t{at}", "data": "x" * size})) for at in range(n)]


async def test_a_queue_of_which_nothing_is_there_is_empty(lists):
    survey = await lists.survey()
    assert (survey.unread, survey.claimed, survey.in_lots, survey.due) == ([0, 0, 0, 0], 0, 0, 0)
    assert await lists.claimed(survey) == []
    assert await lists.last_delivered() == ["-"] * 4
    assert await lists.unread(1, "-", 10) == []
    assert await lists.due_from(10) == []


async def test_each_job_is_counted_where_it_is(lists, kit, store):
    for _ in range(5):
        kit.add()
    held = await leases(store, 3)
    await store.settle(batch(Parking(held[0], "~free"), Deferral(held[1], "retry", 60_000, "later", 1)))
    await store.beat(WorkerRow(30_000))
    survey = await lists.survey()
    assert (survey.unread[1], survey.claimed, survey.in_lots, survey.due) == (2, 1, 1, 1)
    assert survey.is_alive(ME)
    [mine] = await lists.claimed(survey)
    assert (mine.owner, mine.deliveries, mine.stream) == (ME, 1, 1)
    assert [one.place for one in await lists.peek([(1, mine.entry)]) if one] == [mine.place]


async def test_what_those_hold_that_are_gone_comes_first(lists, kit, store):
    for _ in range(4):
        kit.add()
    await leases(store, 2)
    await store.beat(WorkerRow(30_000))
    raw = kit.raw
    raw.xreadgroup(GROUP, "gone", {KEY: ">"}, count=2)
    held = await lists.claimed(await lists.survey())
    assert [one.owner for one in held] == ["gone", "gone", ME, ME]


async def test_a_pending_list_is_read_page_by_page(lists, kit, store, raw):
    ids = add(raw, 1203)
    await store.start()
    raw.xreadgroup(GROUP, "w", {KEY: ">"}, count=1300)
    held = await lists.claimed(await lists.survey())
    assert [one.entry for one in held] == ids
    assert len(await lists.held_by([(1, b"w")], most=700)) == 700
    assert [one.entry for one in await lists.held_by([(1, b"w")], most=2, after=ids[5])] == ids[6:8]


@pytest.mark.parametrize("size", [2, 100_000])
async def test_waiting_jobs_come_oldest_or_newest_first_and_none_twice(lists, kit, store, raw, size):
    await store.start()
    ids = add(raw, 250 if size < 100 else 25, size)
    raw.xreadgroup(GROUP, "w", {KEY: ">"}, count=3)
    last = (await lists.last_delivered())[1]
    assert last == ids[2]
    oldest = await lists.unread(1, last, 1000)
    assert [one.entry for one in oldest] == ids[3:]
    assert all(one.size > size for one in oldest)
    newest = await lists.unread(1, last, 1000, is_newest=True)
    assert [one.entry for one in newest] == ids[:2:-1]
    page = await lists.unread(1, last, 5, is_newest=True)
    more = await lists.unread(1, last, 5, is_newest=True, beyond=page[-1].entry)
    assert [one.entry for one in page + more] == ids[-1:-11:-1]
    assert [one.entry for one in await lists.unread(1, last, 4, beyond=ids[6])] == ids[7:11]


async def test_what_is_long_is_cut_on_the_server(lists, kit, raw):
    add(raw, 1, 250_000)
    [one] = await lists.unread(1, "-", 10)
    assert one.size > 250_000
    assert max(map(len, one.fields)) == LIST_CUT


async def test_delayed_jobs_come_by_their_time(lists, kit, store, raw):
    for _ in range(6):
        kit.add()
    for at, lease in enumerate(await leases(store, 6)):
        await store.settle(batch(Deferral(lease, "retry", 60_000 * (at // 2 + 1), f"job-{at}", 1)))
    found = await lists.due_from(3)
    assert [one.place for one in found] == ["due/job-0", "due/job-1", "due/job-2"]
    assert found[0].priority == "high"
    assert b"type" in found[0].fields
    more = await lists.due_from(9, (found[-1].due_ms, found[-1].entry))
    assert [one.entry for one in more] == ["job-3", "job-4", "job-5"]
    raw.zrem(DUE, "job-2")  # it ran meanwhile: no other one of its time is left out
    assert [one.entry for one in await lists.due_from(9, (found[-1].due_ms, "job-2"))] == ["job-3", "job-4", "job-5"]


async def test_what_strangers_wrote_spoils_its_row_alone(lists, kit, raw):
    raw.zadd(DUE, {"no-record": 5, "bad-record": 1e300, "fine": 7})
    raw.hset(MESSAGES, "bad-record", b"\xc1\xff")
    raw.hset(MESSAGES, "fine", b"\x94\xa6stream\xa3low\xa4type\xa1t")
    found = {one.entry: one for one in await lists.due_from(10)}
    assert list(found) == ["no-record", "fine", "bad-record"]
    assert (found["no-record"].fields, found["bad-record"].fields) == ([], [])
    assert (found["fine"].priority, found["fine"].fields) == ("low", [b"type", b"t"])
    assert found["bad-record"].due_ms == 2**53


async def test_keys_of_another_type_are_as_if_they_were_not_there(lists, kit, raw):
    raw.set("{jobs}:high", "x")
    raw.set(DUE, "x")
    raw.set("{jobs}:wards", "x")
    entry = raw.xadd("{jobs}:low", {"type": "t", "data": ""})
    survey = await lists.survey()
    assert survey.unread == [0, 0, 0, 1]
    assert await lists.unread(1, "-", 5) == []
    assert await lists.due_from(5) == []
    there = await lists.peek([(1, "5-5"), (3, entry), (DUE_STREAM, "x")])
    assert [one and one.entry for one in there] == [None, entry, None]


async def test_a_place_where_nothing_is_has_nothing(lists, kit, raw):
    ids = add(raw, 230)
    places = [(1, one) for one in ids] + [(1, "1-1"), (DUE_STREAM, "gone")]
    found = await lists.peek(places)
    assert [one and one.entry for one in found] == [*ids, None, None]
