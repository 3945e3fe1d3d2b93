"""Workers that died: whose end was seen need no lease to end, and of each there is a record; on each server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime.errors import StoreUnavailable
from runtime.store.base import WorkerRow
from runtime.store.deaths import DEATHS, Reaper
from runtime.store.inspector import Inspector
from runtime.streams import Streams
from tests.contract.kit import HIGH, LEASE_MS, ME, OTHER, Kit, ServerKit, leases
from tests.servers import Server

LONG_LEASE_MS = 3_600_000


@pytest.fixture
async def reaper(server: Server) -> AsyncIterator[Reaper]:
    opened = Reaper(server.url, "jobs")
    yield opened
    await opened.close()


@pytest.fixture
async def me(on_server: ServerKit) -> Streams:
    """The store of a worker that lives; the guard holds, since its first beat is the first of the queue."""
    opened = on_server.streams(ME)
    await opened.start()
    await opened.beat(WorkerRow(LEASE_MS))
    return opened


async def working(kit: Kit, n: int, to: int = HIGH, name: str = OTHER) -> Streams:
    """Return the store of a worker that runs so many jobs, and has just beaten."""
    streams = kit.streams(name)
    for _ in range(n):
        kit.add(to)
    await leases(streams, n, stream=to)
    await streams.beat(WorkerRow(LONG_LEASE_MS))
    return streams


async def swept(streams: Streams) -> list[str]:
    """Let a worker sweep once; return what it took back."""
    return [job for stream in range(4) for job in (await streams.reclaim(stream, LEASE_MS, 100, {})).jobs]


async def test_what_is_held_by_a_worker_whose_end_was_seen_is_taken_back_at_the_next_sweep(store: Any, kit: Any):
    """Also while the guard holds: the first beat of a queue begins one, and it spares those that may live."""
    await working(kit, 2)
    await working(kit, 1, name="third")
    [entry] = [entry for entry, (name, _) in kit.holders().items() if name == "third"]
    kit.claim(entry, "third", idle_ms=2 * LONG_LEASE_MS)
    kit.set_until({OTHER: 0, "third": 5})
    found = await store.reclaim(HIGH, LEASE_MS, 100, {})
    assert (found.dead, found.undelivered, found.is_guarded) == (2, 0, True)
    assert sorted(kit.holders().values()) == [("third", 1), ("~suspect", 1), ("~suspect", 1)]


async def test_the_end_of_a_worker_is_said_once_and_then_it_is_forgotten(on_server, reaper, me, inspector):
    await working(on_server, 1)
    assert await swept(me) == []
    assert await reaper.reap(OTHER)
    assert not await reaper.reap(OTHER)
    assert (await me.workers())[OTHER][0] == 0
    assert not await me.forget(OTHER, 0), "while it holds something"
    assert [job.split(" ")[0] for job in await swept(me)] == ["t"]
    assert await me.forget(OTHER, 0)
    [death] = await inspector.deaths()
    assert (death.worker, death.held) == (OTHER, 1)


async def test_a_death_is_evidence_against_what_ran_alone_whoever_has_seen_it(on_server, reaper, me):
    await working(on_server, 1)
    [entry] = on_server.holders()
    on_server.set_isolation(OTHER, on_server.now_ms() + 60_000, alone=f"high/{entry}")
    await reaper.reap(OTHER)
    await swept(me)
    assert on_server.strikes() == {f"high/{entry}": OTHER}


async def test_a_beat_that_comes_later_takes_it_back_so_that_nobody_who_lives_is_robbed_again_and_again(on_server, reaper, me):
    alive = await working(on_server, 1)
    await reaper.reap(OTHER)
    await alive.beat(WorkerRow(LONG_LEASE_MS))
    assert await swept(me) == []
    assert (await me.workers())[OTHER][0] > on_server.now_ms()


async def test_of_one_that_has_left_in_peace_nothing_is_said(on_server, reaper, me, inspector):
    left = on_server.streams(OTHER)
    await left.beat(WorkerRow(LEASE_MS))
    assert await left.forget(OTHER)
    assert not await reaper.reap(OTHER)
    assert not await reaper.reap("nobody")
    assert set(await me.workers()) == {ME}
    assert await inspector.deaths() == []


async def test_each_death_has_one_record_with_how_much_was_held_and_what_first(on_server, reaper, me, inspector):
    await working(on_server, 7)
    await working(on_server, 2, 0)
    await reaper.reap(OTHER)
    await swept(me)
    await me.forget(OTHER, 0)
    [seen] = await inspector.deaths()
    assert (seen.worker, seen.held, len(seen.jobs)) == (OTHER, 9, 5)
    assert seen.jobs[0].startswith("t critical-")
    assert seen.jobs[-1].startswith("t high-")
    assert abs(seen.at_ms - on_server.now_ms()) < 60_000


async def test_a_death_that_nobody_saw_is_written_where_its_jobs_are_taken_back_or_it_is_forgotten(on_server, me, inspector):
    on_server.raw.zadd("{jobs}:workers", {"~since": 1})  # no guard
    for name, n in (("busy", 3), ("idle", 0)):
        streams = await working(on_server, n, name=name)
        await streams.close()
    until = {name: until_ms for name, (until_ms, _) in (await me.workers()).items()}
    assert (await me.reclaim(HIGH, LEASE_MS, 2, until)).dead == 2, "what is left is for the next call"
    await me.reclaim(HIGH, LEASE_MS, 100, until)
    for name in ("busy", "idle"):
        assert await me.forget(name, until[name])
    told = {death.worker: (death.held, len(death.jobs)) for death in await inspector.deaths()}
    assert told == {"busy": (3, 3), "idle": (0, 0)}


async def test_whatever_stands_in_the_record_it_is_read_and_what_is_not_a_record_is_none(on_server, me, inspector: Inspector):
    raw = on_server.raw
    raw.xadd("{jobs}:deaths", {"x": "y"})
    raw.xadd("{jobs}:deaths", {"by": b"\xff", "held": "9" * 400, "job": "[" * 1000})
    assert sorted((death.held, len(death.jobs)) for death in await inspector.deaths()) == [(0, 0), (0, 1)]
    raw.delete("{jobs}:deaths")
    raw.set("{jobs}:deaths", "a string")
    await working(on_server, 1)
    raw.zadd("{jobs}:workers", {OTHER: 0})
    assert len(await swept(me)) == 1, "the sweep goes on"
    assert await inspector.deaths() == []


async def test_the_record_is_bounded(on_server, reaper, inspector):
    for n in range(DEATHS + 200):
        on_server.raw.zadd("{jobs}:workers", {f"w{n}": 5})
        await reaper.reap(f"w{n}")
    assert on_server.raw.xlen("{jobs}:deaths") < DEATHS + 150
    assert on_server.raw.pttl("{jobs}:deaths") > 0
    assert (await inspector.deaths())[0].worker == f"w{DEATHS + 199}"


async def test_while_redis_is_away_it_is_tried_again_and_given_up_in_time():
    away = Reaper("redis://127.0.0.1:1", "jobs")
    with pytest.raises(StoreUnavailable):
        await away.reap(OTHER)
    assert not await away.reap_within(OTHER, 0.5)
    await away.close()
