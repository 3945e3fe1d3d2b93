"""The suite of the store:
every verb, every refusal, on both servers; each verb again after a lost reply, without memory, without scripts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import redis

from runtime.codec import decode_many
from runtime.errors import ConfigError, QueueFull, StoreUnavailable
from runtime.jobs import Batch, Deferral, Lease, Letter, Parking
from runtime.store.base import GROUP, LAYOUT, Store, WorkerRow
from runtime.store.connection import Connection
from runtime.store.control import Control
from runtime.store.inspector import Inspector
from runtime.streams import Ask, Fetched, Streams
from tests.contract.snapshot import snapshot
from tests.proxy import Proxy
from tests.servers import Server

HIGH = 1
KEY = "{jobs}:high"
ME, OTHER = "me", "other"


@pytest.fixture
async def store(server: Server) -> AsyncIterator[Streams]:
    opened = Streams(server.url, "jobs", ME)
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def other(server: Server) -> AsyncIterator[Streams]:
    opened = Streams(server.url, "jobs", OTHER)
    yield opened
    await opened.close()


def batch(*moves: Deferral | Letter | Parking, done: list[Lease] | None = None) -> Batch:
    lists: list[list[Lease]] = [[], [], [], []]
    for lease in done or []:
        lists[lease.stream].append(lease)
    return Batch(
        lists,
        [move for move in moves if isinstance(move, Deferral)],
        [move for move in moves if isinstance(move, Letter)],
        [move for move in moves if isinstance(move, Parking)],
    )


def add(raw: redis.Redis, entry: str = "*", to: str = KEY, **fields: str) -> str:
    return str(raw.xadd(to, {"type": "t", "data": "{}", **fields}, id=entry))


async def leases(store: Streams, n: int = 100, stream: int = HIGH) -> list[Any]:
    """Fetch from one stream, as a worker does."""
    shares = [0, 0, 0, 0]
    shares[stream] = n
    return jobs_of(await store.fetch(shares, set()))


def jobs_of(fetched: Fetched) -> list[Any]:
    """Return what was fetched: jobs, or bare leases of what cannot be read."""
    found: list[Any] = []
    for delivery in fetched.deliveries:
        for row, count in zip(delivery.rows, delivery.counts, strict=False):
            jobs, bad = decode_many(delivery.stream, [row], [count], fetched.run_id, time.monotonic(), fetched.now_ms)
            found += jobs or [entry.lease for entry in bad]
    return found


def pending(raw: redis.Redis, key: str = KEY) -> list[tuple[str, int]]:
    return sorted((row["consumer"], row["times_delivered"]) for row in raw.xpending_range(key, GROUP, "-", "+", 1000))


# --- isolation -----------------------------------------------------------------------------------------------------------------

TYPES = {"t": (1, 30_000)}


def suspect(raw: redis.Redis, count: int = 1, to: str = KEY, **fields: str) -> str:
    """Add a job that some worker held when it died."""
    entry = add(raw, to=to, **fields)
    raw.xreadgroup(GROUP, "dead", {to: ">"})
    raw.xclaim(to, GROUP, "~suspect", 0, [entry], retrycount=count, justid=True)
    return entry


async def isolate(store: Streams, calm_ms: int = -1, n: int = 20) -> tuple[str, int, list[int]]:
    found = await store.isolate(30_000, calm_ms, 10_000, n, TYPES)
    return found.word, found.for_ms, [count for delivery in found.fetched.deliveries for count in delivery.counts]


def isolation_of(raw: redis.Redis, name: str = ME) -> str | None:
    """Return what runs alone in the isolation of a worker ('' for several or none yet), None where it has no place."""
    isolation: str | None = raw.hget("{jobs}:wards", name)
    return isolation.partition(" ")[2] if isolation is not None else None


async def test_first_suspects_run_together_and_later_ones_alone_the_least_suspect_first(store, raw):
    for _ in range(3):
        suspect(raw)
    later = [suspect(raw, 2, type="t"), suspect(raw, 3), suspect(raw, 100)]
    assert await isolate(store, n=2) == ("run", 10_000, [2, 2])
    assert isolation_of(raw) == "", "of two, a death says of neither that it was the one"
    assert await isolate(store) == ("run", 10_000, [2])
    assert isolation_of(raw), "alone, also at its first time"
    assert await isolate(store) == ("run", 20_000, [3])
    assert isolation_of(raw) == f"high/{later[0]}"
    assert await isolate(store) == ("run", 30_000, [4]), "40 s, but no longer than its timeout"
    assert await isolate(store) == ("run", 30_000, [101])
    assert (await isolate(store))[0] == "none"
    assert raw.exists("{jobs}:wards") == 0
    assert raw.exists("{jobs}:strikes") == 0, "nobody has died"


async def test_isolation_doubles_up_to_the_timeout_whatever_that_is(store, raw):
    suspect(raw, 6)
    found = await store.isolate(30_000, -1, 10_000, 20, {"t": (1, 600_000)})
    assert (found.word, found.for_ms) == ("run", 320_000)


async def test_who_has_a_place_in_the_isolation_has_it_for_as_long_as_it_lives_and_said(store, other, raw):
    for _ in range(4):
        suspect(raw)
    await other.beat(WorkerRow(30_000))
    assert await isolate(other, n=1) == ("run", 10_000, [2])
    word, wait_ms, _ = await isolate(store, n=1)
    assert (word, 0 < wait_ms <= 10_000) == ("busy", True), "until that isolation is over"
    raw.zadd("{jobs}:workers", {OTHER: 1})
    assert await isolate(store, n=1) == ("run", 10_000, [2]), "who is dead keeps no place"
    await other.beat(WorkerRow(30_000))
    assert (await isolate(store, n=1))[0] == "busy"
    raw.hset("{jobs}:wards", OTHER, "1 ")
    assert await isolate(store, n=1) == ("run", 10_000, [2]), "nor who said that it would be over by now"
    assert (await other.isolate(0, 0, 0, -1, {})).word == "none"
    await store.acquit([])
    assert raw.exists("{jobs}:wards") == 0


async def test_half_of_the_workers_that_live_may_isolate_at_a_time(store, raw):
    now_ms = int(raw.time()[0]) * 1000
    raw.zadd("{jobs}:workers", {f"w{n}": now_ms + 30_000 for n in range(5)} | {"~last": now_ms, "~since": 1, "dead": now_ms - 1})
    for _ in range(3):
        suspect(raw)
    raw.hset("{jobs}:wards", mapping={"w0": f"{now_ms + 20_000} ", "dead": f"{now_ms + 20_000} high/1-1"})
    assert await isolate(store, n=1) == ("run", 10_000, [2]), "two of five"
    await store.acquit([])
    raw.hset("{jobs}:wards", "w1", f"{now_ms + 15_000} ")
    word, wait_ms, _ = await isolate(store, n=1)
    assert (word, 0 < wait_ms <= 15_000) == ("busy", True)
    raw.zadd("{jobs}:workers", {"w5": now_ms + 30_000})
    assert await isolate(store, n=1) == ("run", 10_000, [2]), "three of six"


async def test_who_dies_again_runs_in_groups_of_the_root_of_all_that_wait_twice_and_then_alone(store, raw):
    for count, number in ((2, 20), (3, 10), (4, 9)):
        for _ in range(number):
            suspect(raw, count, to="{jobs}:low" if count == 2 else KEY)
    groups = [len((await isolate(store, n=500))[2]) for _ in range(6)]
    assert groups == [6, 5, 5, 4, 4, 3], "of 39, 33, 28, 23, 19 and 15; each of one count"
    while 5 not in (group := (await isolate(store, n=500))[2]):
        pass
    assert group == [5], "though nine wait"


async def test_an_answer_of_large_suspects_is_bounded_by_their_bytes(store, raw):
    for _ in range(12):
        suspect(raw, data='{"x":"' + 250_000 * "x" + '"}')
    assert [len((await isolate(store, n=500))[2]) for _ in range(2)] == [8, 4]


async def test_a_worker_that_can_run_none_of_the_suspects_asks_again_after_a_lease_and_else_when_one_is_seen(store, raw):
    assert await isolate(store) == ("none", 0, [])
    suspect(raw, type="other")
    assert await isolate(store) == ("none", 30_000, [])


async def test_beside_a_suspect_runs_only_what_has_run_as_long_as_the_isolation(store, raw):
    suspect(raw)
    assert await isolate(store, calm_ms=9_999) == ("wait", 10_000, [])
    assert await isolate(store, n=0) == ("wait", 10_000, []), "no free lane"
    assert isolation_of(raw) == ""
    assert await isolate(store, calm_ms=10_000) == ("run", 10_000, [2])


async def test_nobody_asks_for_the_isolation_who_cannot_run_what_is_there(store, raw):
    entry = suspect(raw, type="other")
    suspect(raw, v="2")
    assert (await isolate(store))[0] == "none"
    assert raw.exists("{jobs}:wards") == 0
    raw.xdel(KEY, entry)
    await isolate(store)
    assert pending(raw) == [("~suspect", 1)], "what was deleted leaves the list"


async def test_a_suspect_that_is_no_message_goes_to_whoever_asks_to_be_dead_lettered(store, raw):
    raw.xadd(KEY, {"foo": "bar"})
    raw.xreadgroup(GROUP, "dead", {KEY: ">"})
    [row] = raw.xpending_range(KEY, GROUP, "-", "+", 1)
    raw.xclaim(KEY, GROUP, "~suspect", 0, [row["message_id"]], retrycount=1, justid=True)
    assert await isolate(store) == ("run", 0, [2])


async def test_an_ordinary_take_moves_a_suspect_on_and_takes_the_innocent(store, raw):
    for count in (1, 0):
        entry = suspect(raw, count)
        raw.xclaim(KEY, GROUP, "~free", 0, [entry], retrycount=count, justid=True)
    taken = await store.take(Ask(HIGH, "~free", 10))
    assert [len(delivery.rows) for delivery in taken.deliveries] == [1]
    assert pending(raw) == [(ME, 1), ("~suspect", 1)]


async def alone(store: Streams, raw: redis.Redis, strikes: str = "") -> Any:
    """Return a suspect that runs alone, with these names as its strikes."""
    entry = suspect(raw, 2)
    if strikes:
        raw.hset("{jobs}:strikes", f"high/{entry}", strikes)
    await store.beat(WorkerRow(30_000))
    found = await store.isolate(30_000, -1, 10_000, 20, TYPES)
    assert isolation_of(raw) == f"high/{entry}"
    (job,) = jobs_of(found.fetched)
    assert job.count == 3
    return job


async def reclaim_from_the_dead(store: Streams, raw: redis.Redis, lease: Lease) -> None:
    """Let the worker of this store be dead, and its job be found."""
    await quiet_guard(raw)
    raw.zadd("{jobs}:workers", {ME: 1})
    raw.xclaim(KEY, GROUP, ME, 0, [lease.entry], idle=40_000, justid=True)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 1
    assert pending(raw) == [("~suspect", 3)]


async def test_a_death_in_isolation_alone_is_evidence_and_counts_once_for_each_worker(store, other, raw):
    lease = await alone(store, raw, "died")
    await reclaim_from_the_dead(other, raw, lease)
    assert raw.hvals("{jobs}:strikes") == [f"died {ME}"]
    raw.xclaim(KEY, GROUP, ME, 0, [lease.entry], retrycount=3, justid=True)  # it was cut off, and is cut off again
    await reclaim_from_the_dead(other, raw, lease)
    assert raw.hvals("{jobs}:strikes") == [f"died {ME}"]


async def test_a_death_after_the_isolation_is_no_evidence(store, other, raw):
    lease = await alone(store, raw)
    await store.acquit([(HIGH, lease.entry)])
    assert isolation_of(raw) is None
    await reclaim_from_the_dead(other, raw, lease)
    assert raw.exists("{jobs}:strikes") == 0


async def test_a_death_beside_other_suspects_is_evidence_against_none(store, other, raw):
    entry = suspect(raw)
    suspect(raw)
    await store.isolate(30_000, -1, 10_000, 20, TYPES)
    raw.xclaim(KEY, GROUP, ME, 0, [entry], idle=40_000, justid=True)
    await store.beat(WorkerRow(30_000))
    await quiet_guard(raw)
    raw.zadd("{jobs}:workers", {ME: 1})
    assert (await other.reclaim(HIGH, 30_000, 100, {})).dead == 1
    assert raw.exists("{jobs}:strikes") == 0


async def test_who_outlives_its_isolation_has_no_strikes_any_more(store, raw):
    """A job that kills would have done it again in a time twice as long."""
    lease = await alone(store, raw, "died also-died")
    await store.acquit([(HIGH, lease.entry)])
    assert raw.exists("{jobs}:strikes", "{jobs}:wards") == 0


async def test_who_lost_what_it_isolated_takes_off_its_own_name_alone(store, raw):
    lease = await alone(store, raw, f"died {ME}")
    raw.xclaim(KEY, GROUP, OTHER, 0, [lease.entry])
    await store.acquit([(HIGH, lease.entry)])
    assert raw.hvals("{jobs}:strikes") == ["died"]


async def test_of_whom_a_worker_died_runs_first_where_no_other_former_suspect_does_and_else_not_at_all(store, raw):
    suspect(raw)
    struck = suspect(raw, 4)
    raw.hset("{jobs}:strikes", f"high/{struck}", "died")
    found = await store.isolate(30_000, 60_000, 10_000, 20, TYPES, is_clean=False)
    assert [count for delivery in found.fetched.deliveries for count in delivery.counts] == [2]
    found = await store.isolate(30_000, 60_000, 10_000, 20, TYPES, is_clean=False)
    assert found.word == "none"
    suspect(raw)
    assert await isolate(store) == ("run", 30_000, [5])
    assert isolation_of(raw) == f"high/{struck}"


async def test_a_suspect_that_is_given_back_stays_one_and_our_name_leaves_its_strikes(store, raw):
    lease = await alone(store, raw)
    raw.hset("{jobs}:strikes", f"high/{lease.entry.decode()}", f"died {ME} also-died")
    await store.settle(batch(Parking(lease, "~free")))
    assert pending(raw) == [("~suspect", 2)]
    assert raw.hvals("{jobs}:strikes") == ["died also-died"]


@pytest.mark.parametrize("how", ["done", "retry", "dead"])
async def test_strikes_leave_with_their_entry(store, raw, how):
    lease = await alone(store, raw, "died")
    moves = {"retry": [Deferral(lease, "retry", 10, "j", 1)], "dead": [Letter(lease, "attempts", "e", "", 1, "j")], "done": []}
    settled = await store.settle(batch(*moves[how], done=[lease] if how == "done" else []))
    assert (settled.refused, settled.error) == (0, "")
    assert pending(raw) == []
    assert raw.xlen(KEY) == 0
    assert raw.hgetall("{jobs}:strikes") == {}


async def test_a_process_that_learns_that_its_lease_is_lost_is_no_witness(store, raw):
    lease = await alone(store, raw, ME)
    raw.xclaim(KEY, GROUP, OTHER, 0, [lease.entry])
    assert await store.renew([(HIGH, lease.entry, 3)]) == [0]
    assert raw.hgetall("{jobs}:strikes") == {}


async def test_a_suspect_whose_reply_was_lost_is_no_evidence_either(store, raw):
    lease = await alone(store, raw, ME)
    await quiet_guard(raw)
    raw.xclaim(KEY, GROUP, ME, 0, [lease.entry], idle=40_000, justid=True)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).undelivered == 1
    assert pending(raw) == [("~suspect", 2)]
    assert raw.hgetall("{jobs}:strikes") == {}


async def test_three_strikes_are_handed_out_to_be_dead_lettered_without_calm(store, raw):
    entry = suspect(raw, 4)
    raw.hset("{jobs}:strikes", f"high/{entry}", "a b")
    assert await isolate(store) == ("run", 30_000, [5])
    raw.hset("{jobs}:strikes", f"high/{entry}", "a b c")
    raw.xclaim(KEY, GROUP, "~suspect", 0, [entry], retrycount=5, justid=True)
    found = await store.isolate(30_000, 0, 10_000, 20, TYPES)
    assert (found.word, found.names) == ("dead", ["a", "b", "c"])
    assert raw.hget("{jobs}:strikes", f"high/{entry}") == "a b c"


async def test_strikes_without_an_entry_and_isolations_without_a_worker_are_swept(store, raw):
    await store.beat(WorkerRow(30_000))
    raw.hset("{jobs}:strikes", mapping={"high/1-1": "a", "junk": "b", "nowhere/1-1": "c"})
    raw.hset("{jobs}:wards", mapping={ME: "1 ", "gone": "1 high/1-1", "junk": ""})
    assert (await isolate(store))[0] == "none"
    assert raw.exists("{jobs}:strikes", "{jobs}:wards") == 0


async def test_a_worker_that_leaves_gives_up_the_isolation(store, raw):
    suspect(raw)
    await isolate(store, n=0)
    await store.forget(ME)
    assert raw.exists("{jobs}:wards") == 0


# --- fetch and take --------------------------------------------------------------------------------------------------------


async def test_a_fetch_takes_no_more_than_each_share_and_asks_no_stream_with_a_share_of_zero(store, raw):
    for name in ("critical", "high", "low"):
        for _ in range(5):
            add(raw, to=f"{{jobs}}:{name}")
    fetched = await store.fetch([2, 0, 3, 1], set())
    assert {delivery.stream: len(delivery.rows) for delivery in fetched.deliveries} == {0: 2, 3: 1}
    assert pending(raw) == []
    assert abs(fetched.now_ms - time.time() * 1000) < 60_000


async def test_the_bell_rings_for_one_entry_of_a_stream_and_answers_empty_when_it_is_unrung(store, raw):
    ringing = asyncio.create_task(store.wait_for_entry(5000))
    while not raw.info("clients")["blocked_clients"]:
        await asyncio.sleep(0.005)
    add(raw)
    rung = await ringing
    assert [(delivery.stream, len(delivery.rows)) for delivery in rung.deliveries] == [(HIGH, 1)]
    ringing = asyncio.create_task(store.wait_for_entry(5000))
    while not ringing.done():
        await store.unblock()
        await asyncio.sleep(0.005)
    assert ringing.result().deliveries == []


async def test_a_server_that_holds_writes_back_survives_that_the_bell_is_unrung(store, raw):
    """As at a failover. The reader waits for the end of the pause, and not at the bell."""
    raw.client_pause(300, all=False)
    ringing = asyncio.create_task(store.wait_for_entry(60_000))
    while not raw.info("clients")["blocked_clients"]:
        await asyncio.sleep(0.005)
    while not ringing.done():
        await store.unblock()
        await asyncio.sleep(0.005)
    assert ringing.result().deliveries == []
    assert raw.ping()


async def test_a_released_job_comes_back_through_take_with_the_count_it_had(store, raw):
    add(raw)
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~free")))
    assert pending(raw) == [("~free", 0)]
    peeked = await store.fetch([0, 1, 0, 0], set())
    assert peeked.free == {HIGH}
    taken = await store.fetch([0, 1, 0, 0], {HIGH})
    assert list(taken.deliveries[0].counts) == [1]
    assert pending(raw) == [(ME, 1)]
    assert "~free" not in {consumer["name"] for consumer in raw.xinfo_consumers(KEY, GROUP)}, "an empty lot is forgotten"


async def test_two_takers_share_a_lot_and_never_an_entry(store, other, raw):
    for _ in range(50):
        add(raw)
    held = await leases(store)
    await store.settle(batch(*[Parking(lease, "~free") for lease in held]))
    deliveries = await asyncio.gather(*[taker.take(Ask(HIGH, "~free", 10)) for taker in (store, other) * 5])
    ids = [row[0] for fetched in deliveries for delivery in fetched.deliveries for row in delivery.rows]
    assert len(ids) == 50 == len(set(ids))


async def test_the_shared_lot_gives_only_what_can_be_run_even_behind_much_that_cannot(store, raw):
    for _ in range(600):
        raw.xadd(KEY, {"type": "strange", "data": "{}"})
    raw.xadd(KEY, {"type": "known", "data": "{}", "v": "3"})
    raw.xadd(KEY, {"type": "known", "data": "{}", "v": "2"})
    held = await leases(store, 700)
    await store.settle(batch(*[Parking(lease, "~t:") for lease in held]))
    fetched = await store.take(Ask(HIGH, "~t:", 10, {"known": 2, "other": 1}))
    assert [dict(zip(row[1][::2], row[1][1::2], strict=True))[b"v"] for row in fetched.deliveries[0].rows] == [b"2"]
    assert pending(raw).count(("~t:", 0)) == 601


async def test_an_entry_deleted_under_our_feet_is_simply_gone(store, raw):
    entry = add(raw)
    [lease] = await leases(store)
    raw.xdel(KEY, entry)
    settled = await store.settle(batch(Deferral(lease, "retry", 0, "x", 1)))
    assert settled.refused == 1
    assert pending(raw) == []


# --- settle ----------------------------------------------------------------------------------------------------------------


async def test_done_leaves_neither_entry_nor_pending(store, raw):
    for _ in range(1200):
        add(raw)
    held = await leases(store, 1200)
    settled = await store.settle(batch(done=held))
    assert (settled.refused, settled.shortfall) == (0, 0)
    assert raw.xlen(KEY) == 0
    assert pending(raw) == []


async def test_a_finished_job_that_is_gone_already_is_counted(store, raw):
    add(raw)
    held = await leases(store)
    await store.settle(batch(done=held))
    assert (await store.settle(batch(done=held))).shortfall == 1


async def test_a_retry_keeps_every_field_and_counts_the_failure(store, raw):
    entry = add(raw, **{"x-tenant": "7", "traceparent": "00-a-b-01", "attempts": "5"})
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 0, f"high-{entry}", 3)))
    assert raw.xlen(KEY) == 0
    run = await store.promote(10, "0")
    assert (run.moved, run.bad, run.wait_ms) == (1, 0, -1)
    [(_, fields)] = raw.xrange(KEY)
    assert fields.pop("first_at") == entry.split("-")[0]
    assert fields == {
        "type": "t",
        "data": "{}",
        "id": f"high-{entry}",
        "a": "3",
        "x-tenant": "7",
        "traceparent": "00-a-b-01",
        "attempts": "5",
    }


async def test_binary_payloads_survive_the_way_through_the_delayed_jobs(store, server):
    client = redis.Redis(unix_socket_path=server.socket)
    body = bytes(range(256)) * 8
    client.xadd(KEY, {"type": "t", "data": body, "ct": "application/msgpack"})
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 0, "i", 1)))
    await store.promote(10, "0")
    [(_, fields)] = client.xrange(KEY)
    client.close()
    assert fields[b"data"] == body


async def test_a_snooze_burns_no_attempt_and_remembers_the_first_one(store, raw):
    add(raw, a="2")
    for _ in range(2):
        [lease] = await leases(store)
        await store.settle(batch(Deferral(lease, "snooze", 0, "i", 2)))
        await store.promote(10, "0")
    [(_, fields)] = raw.xrange(KEY)
    assert fields["a"] == "2"
    assert abs(int(fields["snoozed_at"]) - time.time() * 1000) < 60_000


async def test_a_job_for_later_waits_until_its_time(store, raw):
    add(raw, at="99999999999999")
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "at", 99999999999999, "i", 0)))
    assert raw.zscore("{jobs}:due", "i") == 99999999999999
    run = await store.promote(10, "0")
    assert run.moved == 0
    assert run.wait_ms > 10**12


async def test_two_messages_with_one_id_are_two_jobs(store, raw):
    for data in ("1", "2"):
        raw.xadd(KEY, {"type": "t", "data": data, "id": "same"})
    held = await leases(store)
    await store.settle(batch(*[Deferral(lease, "retry", 0, "same", 1) for lease in held]))
    assert raw.zcard("{jobs}:due") == raw.hlen("{jobs}:msg") == 2
    await store.promote(10, "0")
    assert sorted(fields["data"] for _, fields in raw.xrange(KEY)) == ["1", "2"]
    assert {fields["id"] for _, fields in raw.xrange(KEY)} == {"same"}


async def test_a_dead_letter_has_every_field_and_the_notes_of_its_death(store, raw):
    entry = add(raw, **{"x-a": "b"})
    [lease] = await leases(store)
    await store.settle(batch(Letter(lease, "no-account", "gone", "stack", 4, "my-id")))
    [(_, fields)] = raw.xrange("{jobs}:dead")
    assert abs(int(fields.pop("dead_at")) - time.time() * 1000) < 60_000
    assert fields == {
        "type": "t",
        "data": "{}",
        "x-a": "b",
        "id": "my-id",
        "dead_reason": "no-account",
        "dead_error": "gone",
        "dead_stack": "stack",
        "dead_attempts": "4",
        "dead_from": f"high/{entry}",
    }
    assert raw.xlen(KEY) == 0


async def test_an_entry_of_5000_fields_becomes_one_packed_field(store, raw):
    raw.xadd(KEY, {f"f{n}": str(n) for n in range(5000)})
    [lease] = await leases(store)
    settled = await store.settle(batch(Letter(lease, "too-large", "5000 fields", "", 0, "")))
    assert (settled.refused, settled.error) == (0, "")
    [(_, fields)] = raw.xrange("{jobs}:dead")
    assert set(fields) == {"raw", "dead_reason", "dead_error", "dead_stack", "dead_attempts", "dead_from", "dead_at"}
    assert "f4999" in fields["raw"]
    assert raw.xlen(KEY) == 0


@pytest.mark.parametrize("verb", ["retry", "dead", "release"])
async def test_a_move_without_the_lease_is_refused_and_writes_nothing(store, other, raw, verb):
    add(raw)
    [mine] = await leases(store)
    raw.xclaim(KEY, GROUP, OTHER, 0, [mine.entry])
    before = snapshot(raw)
    move = {
        "retry": Deferral(mine, "retry", 0, "i", 1),
        "dead": Letter(mine, "attempts", "e", "", 1, "i"),
        "release": Parking(mine, "~free"),
    }[verb]
    assert (await store.settle(batch(move))).refused == 1
    assert snapshot(raw) == before


@pytest.mark.parametrize("verb", ["retry", "dead", "release"])
async def test_the_delivery_count_is_part_of_the_fence(store, raw, verb):
    add(raw)
    [mine] = await leases(store)
    raw.xclaim(KEY, GROUP, ME, 0, [mine.entry])  # the same worker holds it again, by a later delivery
    before = snapshot(raw)
    move = {
        "retry": Deferral(mine, "retry", 0, "i", 1),
        "dead": Letter(mine, "attempts", "e", "", 1, "i"),
        "release": Parking(mine, "~free"),
    }[verb]
    assert (await store.settle(batch(move))).refused == 1
    assert snapshot(raw) == before


@pytest.mark.parametrize("verb", ["retry", "dead", "release"])
async def test_the_fence_is_the_same_for_many_at_once(store, raw, verb):
    """Many are looked up in one go, from the oldest lease on: here some are stolen, some handed out again, some far behind."""
    for n in range(200):
        add(raw, n=str(n))
    held = await leases(store, 200)
    stolen, again = [lease.entry for lease in held[100:120]], [lease.entry for lease in held[130:150]]
    raw.xclaim(KEY, GROUP, OTHER, 0, stolen, retrycount=1, justid=True)
    raw.xclaim(KEY, GROUP, ME, 0, again)
    make = {
        "retry": lambda lease: Deferral(lease, "retry", 60_000, "i-" + lease.entry.decode(), 1),
        "dead": lambda lease: Letter(lease, "attempts", "e", "", 1, "i-" + lease.entry.decode()),
        "release": lambda lease: Parking(lease, "~free"),
    }[verb]
    for chosen, refused in ((held[100:160], 40), (held[:60], 0), (held[190:], 0), (held[:60], 60)):
        assert (await store.settle(batch(*map(make, chosen)))).refused == refused
    left = {row["message_id"].encode(): row["consumer"] for row in raw.xpending_range(KEY, GROUP, "-", "+", 1000)}
    moved = [lease.entry for lease in (*held[:60], *held[100:160], *held[190:]) if lease.entry not in (*stolen, *again)]
    assert {left.get(entry, "~free") for entry in moved} == {"~free"}
    assert {left[entry] for entry in stolen} == {OTHER}
    assert {left[entry] for entry in again} == {ME}


async def test_two_moves_of_one_lease_are_one(store, raw):
    for _ in range(20):
        add(raw)
    held = await leases(store)
    settled = await store.settle(batch(*[Deferral(lease, "retry", 60_000, "same", 1) for lease in (*held, *held)]))
    assert settled.refused == 20
    assert raw.zcard("{jobs}:due") == raw.hlen("{jobs}:msg") == 20, "each under a name of its own"
    assert raw.xlen(KEY) == 0


async def test_an_error_concerns_one_move_and_the_rest_is_written(store, raw):
    add(raw)
    add(raw)
    held = await leases(store)
    raw.set("{jobs}:due", "a string in its place")
    settled = await store.settle(batch(Deferral(held[0], "retry", 0, "a", 1), Letter(held[1], "handler", "e", "", 1, "b")))
    assert "WRONGTYPE" in settled.error
    assert [move.job_id for move in settled.left.defer] == ["a"]
    assert raw.xlen("{jobs}:dead") == 1
    assert pending(raw) == [(ME, 1)]


async def test_done_after_a_server_restart_is_fenced_since_entry_ids_can_recur(store, raw):
    raw.xadd(KEY, {"type": "t", "data": "{}"}, id="5-1")
    [old] = await leases(store)
    raw.delete(KEY)
    await store.start()
    raw.xadd(KEY, {"type": "t", "data": "another job"}, id="5-1")
    stranger = msgspec.structs.replace(old, run_id="another server/0")
    assert (await store.settle(batch(done=[stranger]))).refused == 1
    assert raw.xlen(KEY) == 1
    await store.settle(batch(done=[old]))  # by its own server's name it needs no fence
    assert raw.xlen(KEY) == 0


# --- leases ----------------------------------------------------------------------------------------------------------------


async def test_a_renewal_keeps_the_count_and_resets_the_idle_time(store, raw):
    add(raw)
    [lease] = await leases(store)
    raw.xclaim(KEY, GROUP, ME, 0, [lease.entry], idle=60_000, justid=True)
    assert await store.renew([(lease.stream, lease.entry, lease.count)]) == []
    [row] = raw.xpending_range(KEY, GROUP, "-", "+", 10)
    assert row["times_delivered"] == 1
    assert row["time_since_delivered"] < 30_000


async def test_a_late_renewal_does_not_steal_the_job_back(store, raw):
    add(raw)
    [lease] = await leases(store)
    raw.xclaim(KEY, GROUP, OTHER, 0, [lease.entry])
    assert await store.renew([(lease.stream, lease.entry, lease.count)]) == [0]
    assert pending(raw) == [(OTHER, 2)]


async def quiet_guard(raw: redis.Redis) -> None:
    """Workers that have beaten all along: the guard of the store is off."""
    now = int(time.time() * 1000)
    raw.zadd("{jobs}:workers", {"~last": now, "~since": now - 10**7})


async def test_what_a_dead_worker_held_is_suspect_and_keeps_its_count(store, other, raw):
    add(raw)
    [lease] = await leases(other)
    await quiet_guard(raw)
    raw.xclaim(KEY, GROUP, OTHER, 0, [lease.entry], idle=40_000, justid=True)
    found = await store.reclaim(HIGH, 30_000, 100, {})
    assert (found.dead, found.undelivered, found.is_guarded) == (1, 0, False)
    assert pending(raw) == [("~suspect", 1)]


async def test_a_delivery_that_a_live_worker_never_saw_does_not_count(store, other, raw):
    add(raw)
    [lease] = await leases(other)
    await other.beat(WorkerRow(30_000))
    await quiet_guard(raw)
    raw.xclaim(KEY, GROUP, OTHER, 0, [lease.entry], idle=40_000, justid=True)
    found = await store.reclaim(HIGH, 30_000, 100, {})
    assert (found.dead, found.undelivered) == (0, 1)
    assert pending(raw) == [("~free", 0)]


async def test_a_row_with_an_enormous_lease_does_not_stop_the_sweep(store, other, raw):
    add(raw)
    [lease] = await leases(other)
    await quiet_guard(raw)
    raw.hset("{jobs}:workers:rows", "a stranger", "99999999999999999999 {}")
    raw.xclaim(KEY, GROUP, OTHER, 0, [lease.entry], idle=2 * 3_600_000, justid=True)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 1


async def test_a_lease_whose_group_was_made_again_is_not_lost_but_one_that_was_settled_is(store, raw):
    add(raw)
    gone = add(raw)
    held = await leases(store)
    raw.xgroup_destroy(KEY, GROUP)
    raw.xgroup_create(KEY, GROUP, "0")
    raw.xdel(KEY, gone)
    assert await store.renew([(lease.stream, lease.entry, lease.count) for lease in held]) == [1]


@pytest.mark.parametrize("row", ["\u00b2 {}", "9" * 400 + " {}", "30000 " + "[" * 100_000, "", "{}", "30000 []"])
async def test_whatever_stands_in_a_row_the_sweep_goes_on(store, raw, row):
    raw.zadd("{jobs}:workers", {"a stranger": float("inf"), "another": 1e300})
    raw.hset("{jobs}:workers:rows", "a stranger", row)
    workers = await store.workers()
    assert set(workers) == {"a stranger", "another"}
    assert workers["a stranger"][1].lease_s <= 3600
    assert workers["a stranger"][1].types == {}


async def test_a_worker_can_start_when_memory_is_full(server, raw):
    store = Streams(server.url, "jobs", ME)
    await store.start()
    raw.delete(LAYOUT_KEY)
    raw.config_set("maxmemory", 1)
    await store.start()
    await store.close()
    raw.config_set("maxmemory", 0)


# --- the layout version --------------------------------------------------------------------------------------------------------

LAYOUT_KEY = "{jobs}:layout"


async def test_a_workers_start_writes_the_layout_once_and_a_known_one_stays(store, raw):
    assert raw.get(LAYOUT_KEY) == str(LAYOUT)
    await store.start()
    assert (raw.get(LAYOUT_KEY), raw.ttl(LAYOUT_KEY)) == (str(LAYOUT), -1)


async def test_a_queue_of_a_newer_layout_is_left_alone_and_its_worker_told_to_be_upgraded(server, raw):
    raw.set(LAYOUT_KEY, LAYOUT + 1)
    store = Streams(server.url, "jobs", ME)
    with pytest.raises(ConfigError, match=f"layout is {LAYOUT + 1}, written by a newer version; .* hint: upgrade this worker"):
        await store.start()
    await store.close()
    assert raw.keys("*") == [LAYOUT_KEY], "not even a group was made"


@pytest.mark.parametrize("layout", ["", "0", "one", "1.0", "-1", "9" * 400, "\u00b2", {"a": "hash"}])
async def test_what_is_no_layout_is_named_with_what_fixes_it(server, raw, layout):
    raw.hset(LAYOUT_KEY, mapping=layout) if isinstance(layout, dict) else raw.set(LAYOUT_KEY, layout)
    store = Streams(server.url, "jobs", ME)
    with pytest.raises(ConfigError, match=f"{LAYOUT_KEY} must be a .*; hint: redis-cli .* RENAME '{LAYOUT_KEY}'"):
        await store.start()
    raw.rename(LAYOUT_KEY, f"{LAYOUT_KEY}:was")
    await store.start()
    await store.close()


async def test_what_is_renewed_in_time_is_left_alone(store, other, raw):
    add(raw)
    await leases(other)
    await quiet_guard(raw)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 0
    assert pending(raw) == [(OTHER, 1)]


@pytest.mark.parametrize(
    ("lease_ms", "idle_ms", "is_over"),
    [(120_000, 60_000, False), (30_000, 30_500, True)],
    ids=["within a lease longer than the sweeper's", "a moment after a lease"],
)
async def test_what_a_live_worker_holds_is_no_lost_delivery_within_its_own_lease_and_a_moment(
    store, other, raw, lease_ms, idle_ms, is_over
):
    """A beat renews first: of a worker that dies after it, the leases end a moment before its row does."""
    add(raw)
    [lease] = await leases(other)
    await other.beat(WorkerRow(lease_ms))
    await quiet_guard(raw)
    raw.xclaim(KEY, GROUP, OTHER, 0, [lease.entry], idle=idle_ms, justid=True)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).undelivered == 0
    raw.zadd("{jobs}:workers", {OTHER: 1})
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == is_over, "once it is dead, its own lease counts"


async def test_after_a_gap_in_all_beats_nobody_is_robbed_for_one_lease(store, other, raw):
    add(raw)
    [lease] = await leases(other)
    raw.xclaim(KEY, GROUP, OTHER, 0, [lease.entry], idle=10**8, justid=True)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).is_guarded
    await store.beat(WorkerRow(30_000))
    assert (await store.reclaim(HIGH, 30_000, 100, {})).is_guarded
    since = raw.zscore("{jobs}:workers", "~since")
    raw.zadd("{jobs}:workers", {"~since": since - 31_000})
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 1


async def test_a_row_that_stands_still_is_dead_whatever_the_idle_time_says(store, other, raw):
    add(raw)
    await leases(other)
    await other.beat(WorkerRow(30_000))
    await quiet_guard(raw)
    [until_ms] = [until_ms for until_ms, _ in (await store.workers()).values()]
    assert (await store.reclaim(HIGH, 30_000, 100, {OTHER: until_ms - 1})).dead == 0, "it has moved since: it is back"
    assert (await store.reclaim(HIGH, 30_000, 100, {OTHER: until_ms})).dead == 1


async def test_the_sweep_finds_idle_entries_behind_1200_fresh_ones_of_live_workers(store, other, raw):
    for _ in range(1201):
        add(raw)
    held = await leases(store, 1200)
    [last] = await leases(other)
    await store.beat(WorkerRow(30_000))
    await quiet_guard(raw)
    raw.xclaim(KEY, GROUP, OTHER, 0, [last.entry], idle=40_000, justid=True)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 1
    assert len(held) == 1200


async def test_lots_are_nobodys_lease(store, raw):
    add(raw)
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~t:x@1")))
    raw.xclaim(KEY, GROUP, "~t:x@1", 0, [lease.entry], idle=10**8, justid=True, retrycount=0)
    await quiet_guard(raw)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 0
    assert await store.lots() == ({(HIGH, "~t:x@1"): 1}, set())


async def test_a_string_in_the_place_of_one_stream_costs_nobody_the_leases_of_the_others(store, raw):
    add(raw)
    add(raw, to="{jobs}:low")
    held = [*await leases(store), *await leases(store, stream=3)]
    raw.xclaim("{jobs}:low", GROUP, ME, 0, [held[1].entry], idle=10**7, justid=True)
    raw.delete(KEY)
    raw.set(KEY, "a string")
    assert await store.renew([(lease.stream, lease.entry, 1) for lease in held]) == []
    assert raw.xpending_range("{jobs}:low", GROUP, "-", "+", 1)[0]["time_since_delivered"] < 10**6
    assert await store.lots() == ({}, {3})


async def test_a_consumer_that_holds_something_is_not_forgotten(store, other, raw):
    add(raw)
    [lease] = await leases(other)
    await other.beat(WorkerRow(30_000))
    assert not await store.forget(OTHER)
    assert pending(raw) == [(OTHER, 1)]
    assert OTHER in await store.workers()
    await other.settle(batch(done=[lease]))
    [until_ms] = [until_ms for name, (until_ms, _) in (await store.workers()).items() if name == OTHER] or [0]
    assert not await store.forget(OTHER, until_ms - 1), "it has moved since it was seen: it is back"
    assert await store.forget(OTHER, until_ms)
    assert OTHER not in await store.workers()


async def test_an_unknown_type_is_dead_lettered_only_while_it_sits_in_its_lot(store, raw):
    add(raw)
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~t:t@1")))
    raw.xclaim(KEY, GROUP, "~t:t@1", 0, [lease.entry], idle=10**6, justid=True, retrycount=0)
    [(entry, count, type_name, version)] = await store.waiting_longest(HIGH, "~t:t@1", 900_000, 10)
    assert (count, type_name, version) == (0, b"t", 1)
    letter = Letter(Lease(HIGH, entry, count, "", 0), "unknown-type", "e", "", 0, "i")
    await store.take(Ask(HIGH, "~t:t@1", 1))
    assert await store.dead_letter("~t:t@1", [letter]) == 0
    assert raw.xlen("{jobs}:dead") == 0


# --- delayed jobs ----------------------------------------------------------------------------------------------------------


async def test_a_bad_record_goes_to_the_dead_letters_and_blocks_nobody(store, raw, server):
    client = redis.Redis(unix_socket_path=server.socket)
    for member, record in {"a": b"\xc1nonsense", "b": b"\x93\x01\x02\x03", "c": b"\x82\xa1x\xa1y\xa1z\xa1w", "d": b""}.items():
        client.hset("{jobs}:msg", member, record)
        client.zadd("{jobs}:due", {member: 1})
    client.zadd("{jobs}:due", {"without a message": 1})
    add(raw)
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 0, "good", 1)))
    run = await store.promote(100, "0")
    assert (run.moved, run.bad) == (1, 5)
    assert client.xlen("{jobs}:dead") == 4
    assert client.zcard("{jobs}:due") == client.hlen("{jobs}:msg") == 0
    client.close()


async def test_a_message_without_a_time_is_found_again(store, raw):
    add(raw)
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 60_000, "lost", 1)))
    raw.zrem("{jobs}:due", "lost")
    cursor, moved = "0", 0
    for _ in range(5):
        run = await store.promote(100, cursor)
        cursor, moved = run.cursor, moved + run.moved
    assert moved == 1
    assert raw.hlen("{jobs}:msg") == 0


async def test_a_full_run_promotes_no_more_than_asked_and_says_that_more_is_due(store, raw):
    for _ in range(30):
        add(raw)
    held = await leases(store)
    await store.settle(batch(*[Deferral(lease, "retry", 0, f"j{n}", 1) for n, lease in enumerate(held)]))
    run = await store.promote(20, "0")
    assert (run.moved, run.wait_ms) == (20, 0)
    assert (await store.promote(20, "0")).moved == 10


async def test_a_job_whose_stream_cannot_be_written_stays_among_the_delayed(store, raw):
    add(raw, to="{jobs}:low")
    add(raw)
    [low] = await leases(store, stream=3)
    [high] = await leases(store)
    await store.settle(batch(Deferral(low, "retry", 0, "low", 1), Deferral(high, "retry", 1, "high", 1)))
    raw.delete("{jobs}:low")
    raw.set("{jobs}:low", "a string in its place")
    await asyncio.sleep(0.005)
    run = await store.promote(10, "0")
    assert run.moved == 1, "the other one is not held up"
    assert raw.hkeys("{jobs}:msg") == ["low"]
    assert raw.zscore("{jobs}:due", "low") > time.time() * 1000 + 30_000, "a minute later, again"


# --- keys ------------------------------------------------------------------------------------------------------------------


async def admit_all(store: Streams, held: list[Lease], key: bytes = b"k") -> list[str]:
    return await store.admit([(lease, key) for lease in held])


async def test_a_second_job_with_the_key_of_a_live_one_is_dropped(store, raw):
    add(raw, key="k")
    add(raw, key="k")
    assert await admit_all(store, await leases(store)) == ["mine", "duplicate"]
    assert raw.xlen(KEY) == 1
    assert pending(raw) == [(ME, 1)]


async def test_a_redelivery_of_the_owner_is_never_taken_for_a_copy(store, raw):
    add(raw, key="k")
    [lease] = await leases(store)
    assert await admit_all(store, [lease]) == ["mine"]
    await store.settle(batch(Parking(lease, "~free")))
    taken = await store.take(Ask(HIGH, "~free", 1))
    again = Lease(HIGH, taken.deliveries[0].rows[0][0], 1, taken.run_id, 0)
    assert await admit_all(store, [again]) == ["mine"]


@pytest.mark.parametrize("way_out", ["done", "dead"])
async def test_a_key_is_free_again_when_its_job_has_ended(store, raw, way_out):
    add(raw, key="k")
    [first] = await leases(store)
    await admit_all(store, [first])
    if way_out == "done":
        await store.settle(batch(done=[first]))
    else:
        await store.settle(batch(Letter(first, "handler", "e", "", 1, "i")))
    add(raw, key="k")
    assert await admit_all(store, await leases(store)) == ["mine"]


MARK = "{jobs}:seen:k:k"
DAY_MS = 24 * 3_600_000


@pytest.mark.parametrize("way_out", ["done", "done as a former suspect", "done after a restart", "dead"])
async def test_the_mark_of_a_key_goes_with_its_job(store, raw, way_out):
    add(raw, key="k")
    add(raw)
    [job, other] = await leases(store)
    await admit_all(store, [job])
    assert raw.exists(MARK)
    if way_out == "done as a former suspect":
        raw.xclaim(KEY, GROUP, ME, 0, [job.entry], retrycount=2, justid=True)
        job.count = 2
    if way_out == "done after a restart":
        job.run_id = "another server/0"
    moves = (Letter(job, "attempts", "e", "", 1, "i"),) if way_out == "dead" else ()
    settled = await store.settle(batch(*moves, done=[other] if moves else [job, other]))
    assert (settled.refused, settled.shortfall, settled.error) == (0, 0, "")
    assert raw.xlen(KEY) == 0
    assert not raw.exists(MARK)


async def test_the_mark_of_a_key_stays_with_whom_it_names(store, raw):
    add(raw, key="k")
    [job] = await leases(store)
    await admit_all(store, [job])
    raw.set(MARK, "due somebody-else")
    await store.settle(batch(done=[job]))
    assert raw.get(MARK) == "due somebody-else"


async def test_the_mark_of_a_key_outlives_the_wait_of_its_job(store, raw):
    add(raw, key="k")
    [job] = await leases(store)
    await admit_all(store, [job])
    assert 6 * DAY_MS < raw.pttl(MARK) <= 7 * DAY_MS
    month_ms = int(time.time() * 1000) + 30 * DAY_MS
    await store.settle(batch(Deferral(job, "at", month_ms, "j", 0)))
    assert 36 * DAY_MS < raw.pttl(MARK) <= 37 * DAY_MS
    raw.zadd("{jobs}:due", {"j": 1})
    await store.promote(10, "0")
    assert 6 * DAY_MS < raw.pttl(MARK) <= 7 * DAY_MS
    [job] = await leases(store)
    await store.settle(batch(Deferral(job, "retry", 10 * DAY_MS, "j", 1)))
    assert 16 * DAY_MS < raw.pttl(MARK) <= 17 * DAY_MS


async def test_a_key_follows_its_job_through_the_delayed_jobs_and_back(store, raw):
    add(raw, key="k")
    [first] = await leases(store)
    await admit_all(store, [first])
    await store.settle(batch(Deferral(first, "retry", 60_000, "j", 1)))
    add(raw, key="k")
    assert await admit_all(store, await leases(store)) == ["duplicate"], "the owner waits for its retry"
    raw.zadd("{jobs}:due", {"j": 1})
    await store.promote(10, "0")
    add(raw, key="k")
    assert sorted(await admit_all(store, await leases(store))) == ["duplicate", "mine"]


async def test_a_mark_whose_place_holds_another_job_is_void(store, raw):
    raw.set("{jobs}:seen:k:k", "high 1-1")
    add(raw, key="other", entry="1-1")
    add(raw, key="k")
    held = await leases(store)
    assert await store.admit([(held[1], b"k")]) == ["mine"]


# --- send and replay -------------------------------------------------------------------------------------------------------


async def test_replay_gives_the_job_its_id_and_a_fresh_count_of_attempts(store, raw, server):
    entry = add(raw, id="mine", a="7", exp="5", at="3", **{"x-a": "b"})
    [lease] = await leases(store)
    await store.settle(batch(Letter(lease, "attempts", "e", "", 8, "mine")))
    control = Control(server.url, "jobs")
    [(letter, _)] = raw.xrange("{jobs}:dead")
    again = await control.replay(letter)
    [(found, fields)] = raw.xrange(KEY)
    assert found == again
    first_at = entry.split("-")[0]
    assert fields == {"type": "t", "data": "{}", "id": "mine", "x-a": "b", "x-origin": "mine", "first_at": first_at}
    assert await control.replay(letter) == "gone"
    assert raw.xlen(KEY) == 1
    await control.close()


async def test_replay_is_refused_while_another_live_job_owns_the_key(store, raw, server):
    add(raw, key="k")
    [first] = await leases(store)
    await admit_all(store, [first])
    await store.settle(batch(Letter(first, "handler", "e", "", 1, "i")))
    add(raw, key="k")
    await admit_all(store, await leases(store))
    control = Control(server.url, "jobs")
    [(letter, _)] = raw.xrange("{jobs}:dead")
    assert await control.replay(letter) == "owned"
    assert raw.xlen("{jobs}:dead") == 1
    await control.close()


# --- each verb again: after a lost reply, without memory, without scripts ----------------------------------------------------

Act = Callable[[Streams], Awaitable[Any]]


def with_lease(
    act: Callable[[Streams, Lease], Awaitable[Any]], key: str = "k"
) -> Callable[[Streams, redis.Redis], Awaitable[Act]]:
    async def prepare(store: Streams, raw: redis.Redis) -> Act:
        add(raw, "7-1", **({"key": key} if key else {}))
        [lease] = await leases(store)
        return lambda which: act(which, lease)

    return prepare


async def prepare_take(store: Streams, raw: redis.Redis) -> Act:
    add(raw, "7-1")
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~free")))
    return lambda which: which.take(Ask(HIGH, "~free", 5))


async def prepare_promote(store: Streams, raw: redis.Redis) -> Act:
    add(raw, "7-1")
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 0, "j", 1)))
    return lambda which: which.promote(5, "0")


async def prepare_reclaim(store: Streams, raw: redis.Redis) -> Act:
    add(raw, "7-1")
    [lease] = await leases(store)
    await quiet_guard(raw)
    raw.xclaim(KEY, GROUP, ME, 0, [lease.entry], idle=40_000, justid=True)
    return lambda which: which.reclaim(HIGH, 30_000, 100, {})


async def prepare_beat(store: Streams, raw: redis.Redis) -> Act:
    return lambda which: which.beat(WorkerRow(30_000))


async def prepare_forget(store: Streams, raw: redis.Redis) -> Act:
    await store.beat(WorkerRow(30_000))
    return lambda which: which.forget(ME)


VERBS = {
    "done": with_lease(lambda store, lease: store.settle(batch(done=[lease])), key=""),
    "done with a key": with_lease(lambda store, lease: store.settle(batch(done=[lease]))),
    "retry": with_lease(lambda store, lease: store.settle(batch(Deferral(lease, "retry", 0, "j", 1)))),
    "snooze": with_lease(lambda store, lease: store.settle(batch(Deferral(lease, "snooze", 0, "j", 0)))),
    "at": with_lease(lambda store, lease: store.settle(batch(Deferral(lease, "at", 5, "j", 0)))),
    "dead": with_lease(lambda store, lease: store.settle(batch(Letter(lease, "handler", "e", "s", 1, "j")))),
    "release": with_lease(lambda store, lease: store.settle(batch(Parking(lease, "~free")))),
    "admit": with_lease(lambda store, lease: store.admit([(lease, b"k")])),
    "renew": with_lease(lambda store, lease: store.renew([(lease.stream, lease.entry, lease.count)])),
    "take": prepare_take,
    "promote": prepare_promote,
    "reclaim": prepare_reclaim,
    "beat": prepare_beat,
    "forget": prepare_forget,
}


@pytest.mark.parametrize("cut_at_bytes", [0, 3])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_repeated_after_a_lost_reply_has_one_effect(store, raw, server, verb, cut_at_bytes):
    act = await VERBS[verb](store, raw)
    await act(store)
    once = snapshot(raw)
    raw.flushall()
    await store.start()
    act = await VERBS[verb](store, raw)
    async with Proxy(server.socket) as proxy:
        unlucky = Streams(proxy.url, "jobs", ME)
        proxy.drop_next_reply(b"EVALSHA" if verb != "done" else b"XACK", cut_at_bytes)
        with pytest.raises(StoreUnavailable):
            await act(unlucky)
        assert proxy.dropped == 1
        await act(unlucky)
        await unlucky.close()
    assert snapshot(raw) == once


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_works_when_memory_is_full(store, raw, verb):
    act = await VERBS[verb](store, raw)
    raw.config_set("maxmemory", 1)
    try:
        await act(store)
        full = snapshot(raw)
    finally:
        raw.config_set("maxmemory", 0)
    raw.flushall()
    await store.start()
    act = await VERBS[verb](store, raw)
    await act(store)
    assert full == snapshot(raw)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_works_when_the_server_has_forgotten_the_scripts(store, raw, verb):
    act = await VERBS[verb](store, raw)
    raw.script_flush()
    await act(store)


async def test_the_group_is_made_again_at_the_beginning_and_what_was_there_is_delivered(store, raw):
    add(raw)
    raw.xgroup_destroy(KEY, GROUP)
    with pytest.raises(StoreUnavailable):
        await leases(store)
    assert len(await leases(store)) == 1


async def test_send_is_refused_when_memory_is_full_and_nothing_was_written(server, raw):
    sender, connection = Store(server.url, "jobs"), Connection(server.url, "sender")
    raw.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueFull):
            await sender.call_one(connection, sender.command("send", "chunk", 60_000, 2, "", 2, 1, "type", "t", "{}"))
    finally:
        raw.config_set("maxmemory", 0)
    assert raw.keys("*") == []
    await sender.call_one(connection, sender.command("send", "chunk", 60_000, 2, "", 2, 1, "type", "t", "{}"))
    assert raw.xlen(KEY) == 1
    await connection.close()


# --- large entries ----------------------------------------------------------------------------------------------------


async def parked_entries(streams: Streams, raw, *sizes: int) -> list[bytes]:
    await streams.start()
    entries = [raw.xadd(KEY, {"type": "t", "data": "x" * size}) for size in sizes]
    raw.xreadgroup(GROUP, "gone", {KEY: ">"})
    raw.xclaim(KEY, GROUP, "~free", 0, entries, retrycount=0, justid=True)
    return [entry.encode() for entry in entries]


async def test_a_take_brings_as_many_bytes_as_are_asked_for_and_says_that_there_is_more(server, raw):
    streams = Streams(server.url, "jobs", "me")
    entries = await parked_entries(streams, raw, *[100_000] * 120)
    streams.budget_bytes = 1_000_000
    seen: list[bytes] = []
    while len(seen) < len(entries):
        [delivery] = (await streams.take(Ask(HIGH, "~free", 500))).deliveries
        assert 0 < sum(len(fields[3]) for _, fields in delivery.rows) <= 1_200_000
        seen += [entry for entry, _ in delivery.rows]
        assert delivery.is_cut == (len(seen) < len(entries))
    assert seen == entries, "each once, and in order"
    await streams.close()


async def test_a_take_brings_one_entry_at_least(server, raw):
    streams = Streams(server.url, "jobs", "me")
    entries = await parked_entries(streams, raw, 100_000, 100)
    streams.budget_bytes = 1
    [delivery] = (await streams.take(Ask(HIGH, "~free", 500))).deliveries
    assert [entry for entry, _ in delivery.rows] == entries[:1]
    await streams.close()


async def test_a_take_brings_of_an_entry_that_is_too_large_its_size_alone(server, raw):
    streams = Streams(server.url, "jobs", "me", max_data_bytes=1000)
    small, large, after = await parked_entries(streams, raw, 10, streams.max_entry_bytes + 1, 20)
    [delivery] = (await streams.take(Ask(HIGH, "~free", 500))).deliveries
    assert [entry for entry, _ in delivery.rows] == [small, after]
    assert delivery.oversized == [(large, 1, streams.max_entry_bytes + 1 + len("typetdata"))]
    assert {row["consumer"] for row in raw.xpending_range(KEY, GROUP, "-", "+", 9)} == {"me"}, "it is leased all the same"
    await streams.close()


async def test_a_letter_of_what_is_too_large_names_what_it_left_out_and_cannot_be_replayed(server, raw):
    streams, inspector = Streams(server.url, "jobs", "me"), Inspector(server.url, "jobs")
    await streams.start()
    for size in (300_000, 3_000_000):
        raw.xadd(KEY, {"type": "t", "data": "x" * size, "x-note": "short"})
    [delivery] = (await streams.fetch([0, 9, 0, 0], set())).deliveries
    letters = [Letter(Lease(1, entry, 1, "", 0.0), "too-large", "so large", "", 0, "") for entry, _ in delivery.rows]
    await streams.settle(Batch([[], [], [], []], [], letters, []))
    large, small = await inspector.dead_letters(9)
    assert (len(small.message["data"]), small.left_out) == (300_000, "")
    assert (large.message, large.left_out) == ({"type": "t", "x-note": "short"}, "data 3000000")
    control = Control(server.url, "jobs")
    assert await control.replay(large.letter) == "left-out"
    assert "-" in await control.replay(small.letter)
    for opened in (streams, inspector, control):
        await opened.close()


async def test_what_is_pending_with_us_is_found_however_much_it_is(server, raw, monkeypatch):
    monkeypatch.setattr("runtime.streams.PENDING_PAGE", 7)
    streams = Streams(server.url, "jobs", "me")
    await streams.start()
    for n in range(20):
        raw.xadd(KEY, {"type": "t", "data": str(n)})
    await streams.fetch([0, 14, 0, 0], set())
    assert len(await streams.leased()) == 14
    await streams.fetch([0, 6, 0, 0], set())
    leases = await streams.leased()
    assert [lease.entry.decode() for lease in leases] == [entry for entry, _ in raw.xrange(KEY)]
    assert {(lease.stream, lease.count) for lease in leases} == {(1, 1)}
    await streams.close()
