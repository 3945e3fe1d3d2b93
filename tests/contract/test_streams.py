"""What only servers can be asked of a worker's verbs: memory, scripts, keys of other types, what strangers write.

Each verb's guarantee and every refusal stands in test_verbs.py, which runs on the double too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
import redis

from runtime.errors import ConfigError, QueueFull, StoreError, StoreUnavailable
from runtime.jobs import Batch, Claim, Deferral, Lease, Letter, Parking
from runtime.schedules import Due
from runtime.store.base import GROUP, LAYOUT, Store, WorkerRow, ms_in
from runtime.store.connection import Connection
from runtime.store.control import ControlStore
from runtime.store.inspector import Inspector
from runtime.store.shapes import Ask, TickAsk, Ticked
from runtime.streams import Streams
from tests.contract.kit import HIGH, ME, OTHER, VERBS, ServerKit, batch, leases, nightly, quiet_guard, row_of
from tests.contract.snapshot import snapshot
from tests.servers import Server

KEY = "{jobs}:high"


@pytest.fixture
def kit(on_server: ServerKit) -> ServerKit:
    return on_server


def add(raw: redis.Redis, entry: str = "*", to: str = KEY, **fields: str) -> str:
    return str(raw.xadd(to, {"type": "t", "data": "{}", **fields}, id=entry))


def pending_with(raw: redis.Redis, key: str = KEY) -> list[tuple[str, int]]:
    return sorted((row["consumer"], row["times_delivered"]) for row in raw.xpending_range(key, GROUP, "-", "+", 1000))


# --- fetch and take --------------------------------------------------------------------------------------------------------


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


async def test_connections_that_are_opened_again_are_counted(store, raw):
    await store.fetch([1] * 4, set())
    assert store.reconnects == 0
    for row in raw.client_list():
        if row["name"].endswith(":fetch"):
            raw.client_kill_filter(_id=row["id"])
    with contextlib.suppress(StoreUnavailable):  # where it was not seen yet that it is gone
        await store.fetch([1] * 4, set())
    await store.fetch([1] * 4, set())
    assert store.reconnects == 1


async def test_a_lot_that_was_left_empty_is_no_consumer_any_more(store, raw):
    add(raw)
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~free")))
    assert "~free" in {consumer["name"] for consumer in raw.xinfo_consumers(KEY, GROUP)}
    await store.take(Ask(HIGH, "~free", 1))
    assert "~free" not in {consumer["name"] for consumer in raw.xinfo_consumers(KEY, GROUP)}


# --- settle ----------------------------------------------------------------------------------------------------------------


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


async def test_an_entry_of_5000_fields_becomes_one_packed_field(store, raw):
    raw.xadd(KEY, {f"f{n}": str(n) for n in range(5000)})
    [lease] = await leases(store)
    settled = await store.settle(batch(Letter(lease, "too-large", "5000 fields", "", 0, "")))
    assert (settled.refused, settled.error) == (0, "")
    [(_, fields)] = raw.xrange("{jobs}:dead")
    assert set(fields) == {"raw", "dead_reason", "dead_error", "dead_stack", "dead_attempts", "dead_from", "dead_at", "dead_by"}
    assert "f4999" in fields["raw"]
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
    assert pending_with(raw) == [(ME, 1)]


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


async def test_a_row_with_an_enormous_lease_does_not_stop_the_sweep(store, other, kit, raw):
    add(raw)
    [lease] = await leases(other)
    quiet_guard(kit)
    raw.hset("{jobs}:workers:rows", "a stranger", "99999999999999999999 {}")
    raw.xclaim(KEY, GROUP, OTHER, 0, [lease.entry], idle=2 * 3_600_000, justid=True)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 1


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
    with pytest.raises(
        ConfigError,
        match=f"layout is {LAYOUT + 1}, written by a newer version; .* hint: upgrade backend-jobs where this worker is installed",
    ):
        await store.start()
    await store.close()
    assert raw.keys("*") == [LAYOUT_KEY], "not even a group was made"


async def test_a_worker_that_may_not_ask_for_the_layout_starts_as_one_of_an_older_release_does(server, raw):
    raw.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "+@all", "-get", "-set")
    streams = Streams(f"{server.url}?username=worker&password=secret", "jobs", "me")
    await streams.start()
    await streams.close()
    raw.execute_command("ACL", "DELUSER", "worker")
    assert raw.exists("{jobs}:high") == 1


async def test_a_later_layout_is_written_over_an_earlier_one(server, raw, monkeypatch):
    raw.set(LAYOUT_KEY, str(LAYOUT))
    monkeypatch.setattr("runtime.store.base.LAYOUT", LAYOUT + 1)
    streams = Streams(server.url, "jobs", "me")
    await streams.start()
    await streams.close()
    assert raw.get(LAYOUT_KEY) == str(LAYOUT + 1)


@pytest.mark.parametrize("layout", ["", "0", "one", "1.0", "-1", "9" * 400, "\u00b2", {"a": "hash"}])
async def test_what_is_no_layout_is_named_with_what_fixes_it(server, raw, layout):
    raw.hset(LAYOUT_KEY, mapping=layout) if isinstance(layout, dict) else raw.set(LAYOUT_KEY, layout)
    store = Streams(server.url, "jobs", ME)
    with pytest.raises(ConfigError, match=f"{LAYOUT_KEY} must be a .*; hint: redis-cli .* RENAME '{LAYOUT_KEY}'"):
        await store.start()
    raw.rename(LAYOUT_KEY, f"{LAYOUT_KEY}:was")
    await store.start()
    await store.close()


async def test_the_sweep_finds_idle_entries_behind_1200_fresh_ones_of_live_workers(store, other, kit, raw):
    for _ in range(1201):
        add(raw)
    held = await leases(store, 1200)
    [last] = await leases(other)
    await store.beat(WorkerRow(30_000))
    quiet_guard(kit)
    raw.xclaim(KEY, GROUP, OTHER, 0, [last.entry], idle=40_000, justid=True)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 1
    assert len(held) == 1200


async def test_a_string_in_the_place_of_one_stream_costs_nobody_the_leases_of_the_others(store, raw):
    add(raw)
    add(raw, to="{jobs}:low")
    held = [*await leases(store), *await leases(store, stream=3)]
    raw.xclaim("{jobs}:low", GROUP, ME, 0, [held[1].entry], idle=10**7, justid=True)
    raw.delete(KEY)
    raw.set(KEY, "a string")
    assert await store.renew([(lease.stream, lease.entry, 1) for lease in held]) == []
    assert raw.xpending_range("{jobs}:low", GROUP, "-", "+", 1)[0]["time_since_delivered"] < 10**6
    assert await store.lots() == ({}, {3}, {0: 0, 2: 0, 3: 0})


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


MARK = "{jobs}:seen:k:k"
DAY_MS = 24 * 3_600_000


async def test_the_mark_of_a_key_outlives_the_wait_of_its_job(store, raw):
    add(raw, key="k")
    [job] = await leases(store)
    await store.admit([Claim(job, b"k")])
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


# --- send and replay -------------------------------------------------------------------------------------------------------


async def test_replay_gives_the_job_its_id_and_a_fresh_count_of_attempts(store, raw, server):
    entry = add(raw, id="mine", a="7", exp="5", at="3", **{"x-a": "b"})
    [lease] = await leases(store)
    await store.settle(batch(Letter(lease, "attempts", "e", "", 8, "mine")))
    control = ControlStore(server.url, "jobs")
    [(letter, _)] = raw.xrange("{jobs}:dead")
    again = await control.replay(letter)
    [(found, fields)] = raw.xrange(KEY)
    assert found == again
    first_at = entry.split("-")[0]
    assert fields == {"type": "t", "data": "{}", "id": "mine", "x-a": "b", "x-origin": "mine", "first_at": first_at}
    assert await control.replay(letter) == "gone"
    assert raw.xlen(KEY) == 1
    await control.close()


@pytest.mark.parametrize(("trace", "tried"), [(b"died-here", "died-here"), (b"", "before")])
async def test_a_replayed_job_says_which_attempt_it_comes_after(store, raw, server, trace, tried):
    add(raw, tried="before")
    [lease] = await leases(store)
    await store.settle(batch(Letter(lease, "attempts", "e", "", 8, "i", trace)))
    control = ControlStore(server.url, "jobs")
    [(letter, fields)] = raw.xrange("{jobs}:dead")
    assert fields.get("dead_trace", "") == trace.decode()
    await control.replay(letter)
    [(_, again)] = raw.xrange(KEY)
    assert again["tried"] == tried
    assert "dead_trace" not in again
    await control.close()


@pytest.mark.parametrize(
    ("e", "again"),
    [
        ("1\t5\t3\tw", "1\t5\t3\tw\n0\t<now>"),
        ("x" * 2033, "x" * 2033),
        ("x" * 300_000, "x" * 300_000),
        ("", "\n0\t<now>"),
    ],
)
async def test_a_replayed_job_keeps_what_its_failed_attempts_left_and_says_when_it_was_sent_back(store, raw, server, e, again):
    add(raw, e=e, a="1")
    [lease] = await leases(store)
    await store.settle(batch(Letter(lease, "attempts", "e", "", 8, "i")))
    control = ControlStore(server.url, "jobs")
    [(letter, _)] = raw.xrange("{jobs}:dead")
    now_ms = ms_in(raw.execute_command("TIME"))
    await control.replay(letter)
    [(_, fields)] = raw.xrange(KEY)
    told_ms = int(fields["e"].rpartition("\t")[2]) if again.endswith("<now>") else now_ms
    assert now_ms <= told_ms <= ms_in(raw.execute_command("TIME"))
    assert fields["e"] == again.replace("<now>", str(told_ms))
    assert not [name for name in fields if name.startswith("dead_")]
    await control.close()


async def test_a_job_that_never_failed_is_sent_back_without_a_word_of_attempts(store, raw, server):
    add(raw)
    [lease] = await leases(store)
    await store.settle(batch(Letter(lease, "expired", "e", "", 0, "i")))
    control = ControlStore(server.url, "jobs")
    [(letter, _)] = raw.xrange("{jobs}:dead")
    await control.replay(letter)
    [(_, fields)] = raw.xrange(KEY)
    assert "e" not in fields
    await control.close()


async def test_replay_is_refused_while_another_live_job_owns_the_key(store, raw, server):
    add(raw, key="k")
    [first] = await leases(store)
    await store.admit([Claim(first, b"k")])
    await store.settle(batch(Letter(first, "handler", "e", "", 1, "i")))
    add(raw, key="k")
    await store.admit([Claim(lease, b"k") for lease in await leases(store)])
    control = ControlStore(server.url, "jobs")
    [(letter, _)] = raw.xrange("{jobs}:dead")
    assert await control.replay(letter) == "owned"
    assert raw.xlen("{jobs}:dead") == 1
    await control.close()


# --- each verb again, without memory and without scripts ---------------------------------------------------------------------


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "tick"])
async def test_a_verb_works_when_memory_is_full(store, kit, raw, verb):
    act = await VERBS[verb](store, kit)
    raw.config_set("maxmemory", 1)
    try:
        await act(store)
        full = snapshot(raw)
    finally:
        raw.config_set("maxmemory", 0)
    raw.flushall()
    await store.start()
    act = await VERBS[verb](store, kit)
    await act(store)
    assert full == snapshot(raw)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_works_when_the_server_has_forgotten_the_scripts(store, kit, raw, verb):
    act = await VERBS[verb](store, kit)
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


# --- schedules ---------------------------------------------------------------------------------------------------------------


async def test_a_tick_is_refused_when_memory_is_full_and_nothing_was_decided(store, kit, raw):
    act = await VERBS["tick"](store, kit)
    before = kit.cron_state()
    raw.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueFull):
            await act(store)
    finally:
        raw.config_set("maxmemory", 0)
    assert (kit.cron_state(), kit.messages()) == (before, [])
    _, [ticked] = await act(store)
    assert ticked.fired == 1


async def test_a_schedule_that_cannot_be_stored_says_why_and_the_others_fire(store, kit, raw):
    broken, well = nightly(name="broken", priority=1), nightly(name="well")
    raw.delete("{jobs}:critical")
    raw.set("{jobs}:critical", "a stranger's")
    for schedule in (broken, well):
        kit.set_cron_state(schedule.name, row_of(schedule, 1000, kit.now_ms()))
    before = kit.cron_state()["broken"]
    _, ticked = await store.tick([TickAsk(one, 1000, Due([2000], 0, 2000)) for one in (broken, well)], kit.now_ms())
    assert "WRONGTYPE" in ticked[0].word
    assert ticked[1] == Ticked("fired", 2000, 1, 0)
    assert kit.cron_state()["broken"] == before, "it is due as before"
    raw.delete("{jobs}:critical")
    await store.prepare(store._helper)
    _, [again] = await store.tick([TickAsk(broken, 1000, Due([2000], 0, 2000))], kit.now_ms())
    assert again.fired == 1


@pytest.mark.parametrize("key", ["{jobs}:cron", "{jobs}:cron:state"])
async def test_where_a_key_of_another_type_stands_in_the_place_of_schedules_nothing_fires(store, raw, key):
    raw.set(key, "a stranger's")
    _, [ticked] = await store.tick([TickAsk(nightly(), 1000, Due([2000], 0, 2000))], 2000, True)
    assert "WRONGTYPE" in ticked.word
    assert raw.xlen(KEY) == 0


# --- large entries ----------------------------------------------------------------------------------------------------


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
    control = ControlStore(server.url, "jobs")
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


# --- streams that cannot be read ---------------------------------------------------------------------------------------------

MEDIUM = "{jobs}:medium"


async def test_a_stream_of_another_type_is_left_out_and_named_and_the_others_are_fetched(store, raw):
    raw.delete(MEDIUM)
    raw.set(MEDIUM, "not a stream")
    add(raw)
    fetched = await store.fetch([1, 1, 1, 1], set())
    assert [(delivery.stream, len(delivery.rows)) for delivery in fetched.deliveries] == [(HIGH, 1)]
    assert "WRONGTYPE" in store.broken[2]
    add(raw, to="{jobs}:low")
    assert [delivery.stream for delivery in (await store.fetch([1, 1, 1, 1], set())).deliveries] == [3], (
        "no error among the answers"
    )
    add(raw)
    assert [delivery.stream for delivery in (await store.wait_for_entry(1000)).deliveries] == [HIGH], "others wake its wait"


async def test_a_stream_that_was_of_another_type_is_looked_at_again_and_read(store, raw, monkeypatch):
    monkeypatch.setattr("runtime.store.base.BROKEN_S", -1.0)
    raw.delete(MEDIUM)
    raw.set(MEDIUM, "not a stream")
    await store.fetch([1, 1, 1, 1], set())
    assert set(store.broken) == {2}
    await store.fetch([1, 1, 1, 1], set())
    assert set(store.broken) == {2}, "it still is"
    raw.delete(MEDIUM)
    add(raw, to=MEDIUM)
    assert [delivery.stream for delivery in (await store.fetch([1, 1, 1, 1], set())).deliveries] == [2]
    assert not store.broken


async def test_where_no_stream_can_be_read_all_keys_are_named(server, raw):
    streams = Streams(server.url, "jobs", ME)
    for name in ("critical", "high", "medium", "low"):
        raw.set(f"{{jobs}}:{name}", "not a stream")
    with pytest.raises(StoreError, match=MEDIUM):
        await streams.start()
    await streams.close()


async def test_an_error_of_one_stream_that_may_pass_is_told_beside_what_the_others_brought(store, raw):
    raw.xgroup_destroy(MEDIUM, GROUP)
    add(raw)
    fetched = await store.fetch([1, 1, 1, 1], set())
    assert [(delivery.stream, len(delivery.rows)) for delivery in fetched.deliveries] == [(HIGH, 1)]
    assert MEDIUM in fetched.refused
    assert not (await store.fetch([1, 1, 1, 1], set())).refused, "the group is made again"
    assert not store.broken


@pytest.fixture
async def barred(server: Server, raw: redis.Redis, store: Streams) -> AsyncIterator[Streams]:
    """A worker's store that may do nothing with the medium stream."""
    rights = ["+@all", "~{jobs}:[a-l]*", "~{jobs}:msg", "~{jobs}:workers*"]
    raw.execute_command("ACL", "SETUSER", "barred", "on", ">secret", *rights)
    opened = Streams(f"{server.url}?username=barred&password=secret", "jobs", OTHER)
    yield opened
    await opened.close()
    raw.acl_deluser("barred")


async def test_a_stream_that_may_not_be_read_is_told_and_not_taken_for_a_broken_one(barred, raw):
    add(raw)
    add(raw, to=MEDIUM)
    fetched = await barred.fetch([1, 1, 1, 1], set())
    assert [(delivery.stream, len(delivery.rows)) for delivery in fetched.deliveries] == [(HIGH, 1)]
    assert fetched.refused.startswith("Redis answered: NOPERM")
    assert fetched.refused.endswith(f"({MEDIUM})")
    with pytest.raises(StoreError, match="NOPERM"):
        await barred.fetch([1, 1, 1, 1], set())
    assert not barred.broken


async def test_lots_that_cannot_be_taken_from_are_told_beside_what_others_brought(store, raw):
    add(raw)
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~free")))
    raw.xgroup_destroy(MEDIUM, GROUP)
    taken = await store.take(Ask(2, "~free", 5), Ask(HIGH, "~free", 5))
    assert [len(delivery.rows) for delivery in taken.deliveries] == [0, 1]
    assert "NOGROUP" in taken.refused
    assert taken.refused.endswith(f"({MEDIUM})")
    raw.xgroup_destroy(MEDIUM, GROUP)
    taken = await store.take(Ask(2, "~free", 5))
    assert (taken.refused, [len(delivery.rows) for delivery in taken.deliveries]) == ("", [0]), "the group is made again"


async def test_a_lot_that_cannot_be_taken_from_is_an_error_where_nothing_else_was_asked(store, raw):
    raw.delete(MEDIUM)
    raw.set(MEDIUM, "not a stream")
    with pytest.raises(StoreError, match=f"WRONGTYPE.*{MEDIUM}"):
        await store.take(Ask(2, "~free", 5))


async def test_what_cannot_be_parked_for_now_is_given_back_to_be_parked_again(store, raw):
    add(raw)
    add(raw, to=MEDIUM)
    [high], [medium] = await leases(store), await leases(store, stream=2)
    raw.rename(MEDIUM, "{jobs}:aside")
    raw.set(MEDIUM, "not a stream")
    settled = await store.settle(batch(Parking(high, "~free"), Parking(medium, "~free")))
    assert "WRONGTYPE" in settled.error
    assert [move.lease for move in settled.left.park] == [medium]
    raw.rename("{jobs}:aside", MEDIUM)
    settled = await store.settle(settled.left)
    assert (settled.error, settled.refused) == ("", 0)
    assert [*pending_with(raw), *pending_with(raw, MEDIUM)] == [("~free", 0)] * 2


async def test_a_job_of_before_a_restart_that_cannot_be_settled_for_now_is_given_back(store, raw):
    """Of that one the fence asks, whose question is an error; done again, it leaves when the stream is back."""
    add(raw, to=MEDIUM)
    [lease] = await leases(store, stream=2)
    old = msgspec.structs.replace(lease, run_id="another server/0")
    raw.rename(MEDIUM, "{jobs}:aside")
    raw.set(MEDIUM, "not a stream")
    settled = await store.settle(batch(done=[old]))
    assert "WRONGTYPE" in settled.error
    assert settled.left.done[2] == [old]
    raw.rename("{jobs}:aside", MEDIUM)
    settled = await store.settle(settled.left)
    assert (settled.error, settled.refused, raw.xlen(MEDIUM)) == ("", 0, 0)
