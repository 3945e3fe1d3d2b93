"""What people are shown of a queue: depth and ages, counters, dead letters, each job where it is; also what strangers wrote."""

from __future__ import annotations

import time

import pytest
import redis

from runtime.errors import StoreError
from runtime.jobs import Deferral, Letter, Parking, work_of
from runtime.store.base import GROUP, WorkerRow
from runtime.store.flow import silence
from runtime.store.inspector import DeadLetter, Depth, FoundJob, is_letter
from runtime.tries import Try, pack_tries
from tests.contract.kit import ME, ServerKit, batch, leases

KEY, DEAD, DUE, MESSAGES, WORKERS = "{jobs}:high", "{jobs}:dead", "{jobs}:due", "{jobs}:msg", "{jobs}:workers"
NONE = {"critical": 0, "high": 0, "medium": 0, "low": 0}
EMPTY = Depth(waiting=NONE, running=NONE, parked=0, delayed=0, due_now=0, dead=0, workers=0)


@pytest.fixture
def kit(on_server: ServerKit) -> ServerKit:
    return on_server


def bury(raw: redis.Redis, n: int, **fields: str) -> list[str]:
    """Add dead letters; return their places."""
    notes = {"dead_reason": "attempts", "dead_error": "e", "dead_from": "low/1-1", "dead_at": "7000", "dead_attempts": "3"}
    return [str(raw.xadd(DEAD, {"type": "t", "data": "{}", "id": f"j{at}", **notes, **fields})) for at in range(n)]


def where(found: list[FoundJob]) -> list[tuple[str, str, str]]:
    return [(job.id, job.state, job.where) for job in found]


# --- depth and ages ----------------------------------------------------------------------------------------------------------


async def test_a_queue_in_which_no_worker_has_been_is_empty_or_waits(inspector, kit):
    assert await inspector.depth() == EMPTY
    kit.add()
    depth = await inspector.depth()
    assert (depth.waiting["high"], depth.backlog) == (1, 1)


async def test_each_job_is_counted_once_where_it_is(inspector, kit, store, raw):
    for _ in range(6):
        kit.add()
    kit.add(3)
    held = await leases(store, 5)
    await store.settle(
        batch(
            Parking(held[0], "~free"),
            Deferral(held[1], "retry", 60_000, "later", 1),
            Deferral(held[2], "at", 1, "due", 0),
            Letter(held[3], "handler", "e", "", 1, "dead"),
        )
    )
    await store.beat(WorkerRow(30_000))
    raw.zadd(WORKERS, {"gone": kit.now_ms() - 1000, "~last": kit.now_ms() + 60_000})
    depth = await inspector.depth()
    assert depth == Depth(
        waiting={**NONE, "high": 1, "low": 1},
        running={**NONE, "high": 1},
        parked=1,
        delayed=2,
        due_now=1,
        dead=1,
        workers=1,
        silent=1,
        backlog=4,
    )
    assert depth.unfinished == 5, "what runs, too"


async def test_a_worker_is_silent_when_two_beats_are_missing_and_counted_apart_wherever_workers_are(inspector, kit, raw):
    now_ms, lease_ms = kit.now_ms(), 600_000
    since_ms = {"fresh": 0, "due": 0.55 * lease_ms, "missing": 0.65 * lease_ms, "over": lease_ms + 5000}
    raw.zadd(WORKERS, {name: now_ms + lease_ms - ago_ms for name, ago_ms in since_ms.items()})
    row = WorkerRow(lease_ms, lanes=8, reserved=5, types={"t": 1})
    raw.hset(f"{WORKERS}:rows", mapping=dict.fromkeys(since_ms, str(row)))
    depth, flow = await inspector.depth(), await inspector.flow()
    assert (depth.workers, depth.silent) == (2, 2)
    assert (flow.workers, flow.reserved) == (2, 10), "what the silent ones have is not theirs to give"
    said = {name: silence(until_ms, row, now_ms) for name, (until_ms, row) in (await inspector.workers()).items()}
    assert said["fresh"] == said["due"] == ""
    assert said["missing"] == "silent for 6 min, its jobs are taken back in 4 min"
    assert said["over"] == "silent for 10 min, its jobs are taken back now"


async def test_of_a_worker_that_tells_no_lease_only_that_it_is_over_is_known(inspector, kit, raw):
    raw.zadd(WORKERS, {"new": kit.now_ms() + 50_000, "old": kit.now_ms() - 1000})
    depth = await inspector.depth()
    assert (depth.workers, depth.silent) == (1, 1)


@pytest.mark.parametrize("name", ["high", "due", "dead", "workers"])
async def test_what_is_of_another_type_counts_as_nothing_and_the_rest_is_counted(inspector, kit, store, raw, name):
    kit.add(3)
    raw.delete(f"{{jobs}}:{name}")
    raw.set(f"{{jobs}}:{name}", "a string")
    depth = await inspector.depth()
    assert depth == Depth(waiting={**NONE, "low": 1}, running=NONE, parked=0, delayed=0, due_now=0, dead=0, workers=0, backlog=1)


async def test_the_backlog_is_what_more_workers_would_work_off(inspector, kit, store, raw):
    """So that who scales by it has none left while two jobs wait for a deploy, one at a gate, and one runs."""
    lots = ("~t:new@1", "~t:known@2", "~g:known", "~o:known", "~t:known@1", "~free", "~suspect", "~of-a-later-release")
    for n in range(len(lots) + 1):
        kit.add(entry=f"1-{n + 1}")
    await leases(store)
    for n, lot in enumerate(lots):
        kit.claim(f"1-{n + 1}", lot, 0)
    await store.beat(WorkerRow(30_000, types={"known": 1}))
    assert (await inspector.depth()).backlog == 4, "what was given back, is suspect, waits for a thread, or is anybody's"
    for n in range(4, len(lots)):
        raw.xack(KEY, GROUP, f"1-{n + 1}")
        kit.delete(f"1-{n + 1}")
    depth = await inspector.depth()
    assert (depth.backlog, depth.parked, depth.unfinished) == (0, 4, 5)
    kit.add(3)
    assert (await inspector.depth()).backlog == 1
    raw.hset("{jobs}:control", "pause:low", f"0 {kit.now_ms() - 1000} ann@host ")
    assert (await inspector.depth()).backlog == 0, "nothing of it may start"


async def test_the_oldest_that_was_not_fetched_yet_says_how_long_a_priority_waits(inspector, kit, store, raw):
    now_ms = kit.now_ms()
    kit.add(entry=f"{now_ms - 90_000}-0")
    kit.add(entry=f"{now_ms - 30_000}-0")
    raw.xgroup_destroy("{jobs}:low", GROUP)
    kit.add(3, entry=f"{now_ms - 60_000}-0")
    ages = await inspector.oldest_waiting_s()
    assert (ages["critical"], ages["medium"]) == (0, 0)
    assert 90 <= ages["high"] < 120
    assert 60 <= ages["low"] < 90, "without a group nothing of it was fetched"
    await leases(store, 1)
    assert 30 <= (await inspector.oldest_waiting_s())["high"] < 60, "the first one is fetched, and runs"


async def test_each_part_of_the_queue_has_its_bytes_whatever_stands_in_its_place(inspector, kit, raw):
    assert await inspector.stored_bytes() == dict.fromkeys((*NONE, "delayed", "dead"), 0)
    for _ in range(100):
        kit.add(data="x" * 1000)
    raw.xadd("{jobs}:dead", {"error": "y" * 5000})
    raw.zadd("{jobs}:due", {"a": 1})
    raw.hset(inspector.keys.messages, "a", "z" * 3000)
    raw.set("{jobs}:low", "no stream")
    sizes = await inspector.stored_bytes()
    assert 100_000 < sizes["high"] < 200_000
    assert 5000 < sizes["dead"] < 20_000
    assert 3000 < sizes["delayed"] < 10_000
    assert 0 < sizes["low"] < 200
    assert sizes["critical"] == 0


async def test_where_the_bytes_are_not_told_there_are_none(inspector, raw):
    raw.execute_command("ACL", "SETUSER", "default", "-memory")
    try:
        assert await inspector.stored_bytes() == {}
    finally:
        raw.execute_command("ACL", "SETUSER", "default", "+memory")


async def test_an_id_of_the_future_waits_for_no_negative_time(inspector, kit):
    assert await inspector.oldest_waiting_s() == dict.fromkeys(NONE, 0.0)
    kit.add(entry=f"{2**63}-0")
    assert (await inspector.oldest_waiting_s())["high"] == 0


async def test_workers_are_those_that_said_so_with_their_rows(inspector, store, raw):
    row = WorkerRow(30_000, "host", 7, 8, 3, {"t": 1}, "running", {"t": 2})
    await store.beat(row)
    workers = await inspector.workers()
    assert {name: told for name, (_, told) in workers.items()} == {ME: row}
    assert workers[ME][0] == raw.zscore(WORKERS, ME)


# --- counters ----------------------------------------------------------------------------------------------------------------


async def test_counters_of_the_last_minutes_are_added_up_and_older_ones_are_not(inspector, raw, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 60_000 * 60.0 + 59)
    for minute, count in ((60_000, 1), (59_999, 2), (59_998, 4), (60_001, 8)):
        raw.hset(f"{{jobs}}:stats:{minute}", mapping={"t high done": count, "a type low dead": 1, " high depth": 9})
    assert await inspector.counters(2) == {("t", "high", "done"): 3, ("a type", "low", "dead"): 2}
    assert await inspector.counters(1) == {("t", "high", "done"): 1, ("a type", "low", "dead"): 1}


async def test_what_a_stranger_wrote_beside_the_counters_is_left_out(inspector, raw, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 60_000 * 60.0)
    odd = {"word": 1, "two words": 1, "t high dead": "many", "t high late": "-1", "t high lost": "9" * 400, b"\xff high \xff": 2}
    raw.hset("{jobs}:stats:60000", mapping={**odd, "t high done": 3})
    assert await inspector.counters(1) == {("t", "high", "done"): 3, ("\ufffd", "high", "\ufffd"): 2}


async def test_counters_of_another_type_are_an_error(inspector, raw):
    for ago in range(3):  # the minute may change meanwhile
        raw.set(f"{{jobs}}:stats:{int(time.time() // 60) + ago - 1}", "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await inspector.counters(1)


# --- dead letters --------------------------------------------------------------------------------------------------------------


async def test_a_dead_letter_has_its_notes_apart_from_its_message(inspector, raw):
    [place] = bury(raw, 1, dead_stack="a\nb", **{"x-tenant": "a", "dead_left_out": "data 300"})
    letter = DeadLetter(
        letter=place, type="t", id="j0", reason="attempts", error="e", attempts=3, priority="low", died_at=7.0, stack="a\nb",
        message={"type": "t", "data": "{}", "id": "j0", "x-tenant": "a"}, left_out="data 300",
    )  # fmt: skip
    assert await inspector.dead_letter(place) == letter
    assert await inspector.dead_letters(5) == [letter]
    assert await inspector.dead_letter("1-1") is None


async def test_dead_letters_are_paged_from_the_newest_without_a_gap_and_read_by_their_places(inspector, raw):
    places = bury(raw, 7)
    newest, before = [], "+"
    while page := await inspector.dead_letters(3, before):
        newest += [letter.letter for letter in page]
        before = page[-1].letter
    assert newest == places[::-1]
    assert [letter.letter for letter in await inspector.letters_at([*places[2:5], "1-1"])] == places[2:5]
    assert await inspector.letters_at([]) == []


async def test_letters_come_in_pages_that_are_short_enough_and_only_what_is_looked_for_is_kept(inspector, raw, monkeypatch):
    monkeypatch.setattr("runtime.store.inspector.LETTERS_PAGE", 3)
    places = bury(raw, 8)
    raw.config_resetstat()
    for n in (1, 3, 4, 7, 8, 9):
        assert [letter.letter for letter in await inspector.dead_letters(n)] == places[::-1][:n]
    calls = raw.info("commandstats")["cmdstat_xrevrange"]["calls"]
    assert calls == 1 + 1 + 2 + 3 + 3 + 3
    for n, states in ((8, ["dead"]), (6, [])):
        assert [job.state for job in await inspector.find_job("j0", n)] == states, "the oldest of all"


async def test_a_dead_letter_of_a_stranger_is_shown_whatever_bytes_it_has(server, inspector):
    client = redis.Redis(unix_socket_path=server.socket)
    client.xadd(DEAD, {b"\xff": b"\xfe", b"dead_at": b"soon", b"dead_attempts": b"-3", b"id": b"\xff", b"dead_from": b"\xff/1"})
    client.close()
    [letter] = await inspector.dead_letters(1)
    assert (letter.type, letter.id, letter.attempts, letter.died_at, letter.reason) == ("", "\\xff", 0, 0, "")
    assert letter.message == {"\ufffd": "\\xfe", "id": "\\xff"}


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("7-1", True), ("1" * 20 + "-0", True), ("1" * 21 + "-0", False), ("7", False), ("a-1", False), ("7-1\n", False)],
)
def test_the_place_of_a_letter_is_two_numbers(text, is_one):
    assert is_letter(text) is is_one


# --- jobs where they are -------------------------------------------------------------------------------------------------------


async def test_a_job_is_found_by_its_id_wherever_it_is(inspector, kit, store, raw):
    for name in ("running", "parked", "delayed", "dead"):
        kit.add(id=name)
    held = await leases(store)
    later, letter = Deferral(held[2], "retry", 60_000, "delayed", 2), Letter(held[3], "attempts", "e", "", 3, "dead")
    await store.settle(batch(Parking(held[1], "~t:t@9"), later, letter))
    kit.add(id="waiting", a="4")
    found = {name: await inspector.find_job(name, 100) for name in ("running", "parked", "delayed", "dead", "waiting")}
    assert {name: [(job.id, job.state, job.attempt) for job in jobs] for name, jobs in found.items()} == {
        "running": [("running", "running", 1)],
        "parked": [("parked", "parked", 1)],
        "delayed": [("delayed", "delayed", 3)],
        "dead": [("dead", "dead", 3)],
        "waiting": [("waiting", "waiting", 5)],
    }
    assert [found[name][0].where for name in ("running", "parked", "dead", "waiting")] == [ME, "~t:t@9", "attempts", ""]
    due = time.mktime(time.strptime(found["delayed"][0].where, "%Y-%m-%d %H:%M:%S"))
    assert abs(due * 1000 - raw.zscore(DUE, "delayed")) < 2000
    assert found["delayed"][0].due_ms == raw.zscore(DUE, "delayed")
    assert [found[name][0].priority for name in found] == ["high"] * 5
    entry = held[0].entry.decode()
    running = found["running"][0]
    assert running == FoundJob(
        *("running", "t", "high", "running", ME, 1, f"high/{entry}", {"type": "t", "data": "{}", "id": "running"}),
        born_ms=int(entry.partition("-")[0]),
        idle_ms=running.idle_ms,
        work=held[0].work,
        deliveries=1,
    )
    assert [job.work for job in (found["delayed"][0], found["waiting"][0])] == [
        work_of(name, b"{}") for name in ("delayed", "waiting")
    ]
    assert (found["dead"][0].error, found["delayed"][0].born_ms) == ("e", held[2].born_ms)
    assert found["delayed"][0].place == "due/delayed"
    assert found["dead"][0].place.startswith("dead/")


async def test_a_job_without_an_id_is_found_by_its_place_however_many_came_after_it(inspector, kit, raw):
    first = kit.add(3)
    for _ in range(5):
        kit.add(3)
    assert [job.place for job in await inspector.find_job(f"low-{first}", 1)] == [f"low/{first}"]
    raw.xdel("{jobs}:low", first)
    assert await inspector.find_job(f"low-{first}", 100) == []


async def test_a_job_is_looked_for_among_so_many_of_the_newest_over_all_their_pages(inspector, kit, raw, monkeypatch):
    monkeypatch.setattr("runtime.store.inspector.PAGE", 3)
    kit.add(id="wanted")
    for _ in range(6):
        kit.add()
    assert await inspector.find_job("wanted", 6) == []
    assert where(await inspector.find_job("wanted", 7)) == [("wanted", "waiting", "")]
    assert where(await inspector.find_job("wanted", 100)) == [("wanted", "waiting", "")], "once, and pages end with the stream"


async def test_all_jobs_with_an_id_are_found_and_none_that_only_carry_its_text(inspector, kit, raw):
    kit.add(id="twice")
    kit.add(2, id="twice")
    kit.add(key="twice")
    bury(raw, 1, id="twice")
    assert [job.priority for job in await inspector.find_job("twice", 100)] == ["high", "medium", "low"]


async def test_an_id_that_looks_like_a_place_is_no_place_unless_it_is_one(inspector, kit):
    kit.add(id="high-a-b")
    kit.add(id="high-1-1")
    assert where(await inspector.find_job("high-a-b", 100)) == [("high-a-b", "waiting", "")]
    assert where(await inspector.find_job("high-1-1", 100)) == [("high-1-1", "waiting", "")]


async def test_the_newest_of_each_stream_are_shown_and_the_next_of_the_delayed(inspector, kit, store, raw):
    assert await inspector.newest_jobs(2) == []
    entries = [kit.add(stream) for stream in (0, 3) for _ in range(3)]
    for at_ms in (9_000, 3_000, 6_000):
        raw.zadd(DUE, {f"at-{at_ms}": at_ms})
    found = await inspector.newest_jobs(2)
    assert [job.id for job in found[:4]] == [
        *(f"critical-{entry}" for entry in entries[2:0:-1]),
        *(f"low-{entry}" for entry in entries[5:3:-1]),
    ]
    assert [(job.id, job.state, job.type, job.message) for job in found[4:]] == [
        ("at-3000", "delayed", "", {}),
        ("at-6000", "delayed", "", {}),
    ], "also without their messages"


TRIES = [Try(1, 5000, 20, "w-1", "v1", "ValueError: no", "a.py:1 f"), Try(2, 9000, 30, "w-2", "v1", "OSError: away", "a.py:2 g")]


async def test_a_job_is_told_with_its_failed_attempts_and_what_the_last_of_them_failed_of_wherever_it_is(inspector, kit, store):
    e = pack_tries(TRIES).decode()
    for name in ("runs", "delayed", "dies"):
        kit.add(id=name, e=e, a="2")
    held = await leases(store)
    dies = Letter(held[2], "attempts", "OSError: away, in full", "", 2, "dies")
    await store.settle(batch(Deferral(held[1], "retry", 60_000, "delayed", 2), dies))
    kit.add(id="waits", e=e, a="2")
    kit.add(id="fresh")
    found = {job.id: job for job in await inspector.newest_jobs(9)}
    for name in ("runs", "delayed", "waits"):
        assert (found[name].tries, found[name].error) == (TRIES, "OSError: away")
        assert "e" not in found[name].message
    assert (found["fresh"].tries, found["fresh"].error) == ([], "")
    [job] = await inspector.find_job("dies", 10)
    assert (job.tries, job.error) == (TRIES, "OSError: away, in full")
    [letter] = await inspector.dead_letters(5)
    assert (letter.tries, letter.by, letter.app) == (TRIES, ME, "")
    assert "e" not in letter.message


@pytest.mark.parametrize("e", ["mine", "", "\n\n", "1\tx"])
async def test_a_field_that_tells_of_no_attempt_is_a_field_like_others(inspector, kit, e):
    kit.add(e=e)
    [job] = await inspector.newest_jobs(5)
    assert (job.tries, job.error, job.message["e"]) == ([], "", e)


async def test_of_a_job_that_was_sent_back_its_earlier_life_is_told_but_no_last_error(inspector, kit):
    kit.add(e=pack_tries([*TRIES, Try(0, 10_000)]).decode())
    [job] = await inspector.newest_jobs(5)
    assert (job.tries, job.error) == ([*TRIES, Try(0, 10_000)], "")


async def test_a_stream_without_a_group_is_shown_as_waiting(inspector, kit, raw):
    kit.add(id="a")
    assert where(await inspector.newest_jobs(5)) == [("a", "waiting", "")]


@pytest.mark.parametrize("score", [float("inf"), float("-inf"), 1e300, -1e300, 2.0**63, 253402300800_000.0])
async def test_a_delayed_job_of_a_stranger_is_shown_whatever_time_and_bytes_it_has(server, inspector, score):
    client = redis.Redis(unix_socket_path=server.socket)
    client.zadd(DUE, {b"\xff": score})
    client.hset(MESSAGES, b"\xff", b"\x94\xa6stream\xa1\xff\xa4type\xa1\xff")
    client.close()
    [job] = await inspector.newest_jobs(5)
    assert (job.id, job.priority, job.type, job.state, job.place) == ("\ufffd", "\ufffd", "\\xff", "delayed", "due/\ufffd")
    assert job.message == {"type": "\\xff"}


async def test_an_entry_and_a_consumer_of_a_stranger_are_shown_whatever_bytes_they_have(server, inspector, store):
    client = redis.Redis(unix_socket_path=server.socket)
    client.xadd(KEY, {b"\xff": b"\xfe", b"a": b"many", b"type": b"\xff"})
    client.xreadgroup(GROUP, b"\xff", {KEY: ">"})
    client.close()
    [job] = await inspector.newest_jobs(5)
    assert (job.type, job.state, job.where, job.attempt) == ("\\xff", "running", "\ufffd", 1)
    assert job.message == {"\ufffd": "\\xfe", "a": "many", "type": "\\xff"}


# --- the server ----------------------------------------------------------------------------------------------------------------


async def test_a_server_says_what_it_is_and_how_it_is_set(inspector, server, raw):
    raw.config_set("maxmemory", 200_000_000)
    raw.config_set("timeout", 77)
    try:
        found = await inspector.server()
    finally:
        raw.config_set("timeout", 0)
    assert found.name == ("valkey" if server.kind == "valkey" else "redis")
    assert int(found.version.split(".")[0]) >= 7
    assert (found.role, found.policy, found.appendonly, found.fsync) == ("master", "noeviction", False, "everysec")
    assert (found.max_memory_bytes, found.client_timeout_s) == (200_000_000, 77)
    assert 0 < found.memory_bytes < 200_000_000
    assert abs(found.now_ms - time.time() * 1000) < 10_000


async def test_counters_tell_since_when_there_are_any(inspector, raw):
    now = int(time.time() // 60)
    for ago, n in ((0, 2), (3, 5), (4, 0)):
        raw.hset(f"{{jobs}}:stats:{now - ago}", "boom low dead", n)
    assert (await inspector.counters_since(10))["boom", "low", "dead"] == (7, now - 3)
