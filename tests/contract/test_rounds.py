"""What a doctor finds at night, on each server: refused writes, suspects, what hangs, keys that are nobody's."""

from __future__ import annotations

import re
import shlex
import time

import pytest
import redis

from runtime.findings import Finding
from runtime.store.base import GROUP, Keys
from runtime.store.doctor import Doctor
from runtime.store.rounds import MOVE, STRAYS, _glob
from runtime.worker.log import log as worker_log
from tests.contract.kit import ServerKit
from tests.contract.test_doctor import HOUR_MS, KEY, add, at_work, doctor, found, knows, now_ms, only

__all__ = ["at_work", "doctor"]


async def about(doctor: Doctor, *words: str) -> Finding:
    """Return the one finding that has all these words."""
    findings = await doctor.examine(now_ms())
    [one] = [finding for finding in findings if all(word in finding.what for word in words)]
    return one


# --- memory ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(at_work: redis.Redis):
    for _ in range(200):
        at_work.xadd("{jobs}:dead", {"type": "t", "data": "x" * 1000})
    at_work.config_set("maxmemory", at_work.info("memory")["used_memory"] - 50_000)
    yield at_work
    at_work.config_set("maxmemory", 0)


async def test_writes_that_are_refused_for_memory_are_an_error_with_what_takes_the_room(doctor, full):
    finding = await about(doctor, "sends are refused NOW")
    assert finding.level == "error"
    assert re.search(r": [\d.]+ MB of [\d.]+ MB used; of this queue: dead letters 0\.\d MB", finding.what), finding.what
    assert re.match(r"redis-cli CONFIG SET maxmemory \d+mb ", finding.fix)
    full.config_set("maxmemory", "10gb")
    assert not any("refused" in row.what for row in await found(doctor))
    assert full.pttl("{jobs}:probe") <= 1000, "what was tried is gone by itself"


async def test_where_keys_are_evicted_nothing_is_tried_out(doctor, full):
    full.config_set("maxmemory-policy", "volatile-ttl")
    try:
        assert not any("NOW" in row.what for row in await doctor.examine(now_ms()))
        assert full.exists("{jobs}:probe") == 0
    finally:
        full.config_set("maxmemory-policy", "noeviction")


async def test_a_worker_hears_that_memory_is_full_and_that_it_is_no_more(on_server: ServerKit, full, caplog):
    streams = on_server.streams()
    assert (await streams.room()).is_full
    full.config_set("maxmemory", "10gb")
    room = await streams.room()
    assert not room.is_full
    assert room.most == 10 << 30
    assert worker_log


# --- suspects ----------------------------------------------------------------------------------------------------------------


async def test_suspects_are_named_with_how_many_workers_died_of_them_and_how_many_alone(doctor, at_work, on_server):
    kit = on_server
    knows(at_work, '{"types":{"t":1}}')
    kit.suspect(1, id="innocent")
    guilty = kit.suspect(4, id="poison-1", type="kill")
    kit.set_strikes(f"high/{guilty}", "w1 w2")
    finding = await about(doctor, "suspects")
    told = "no worker died of late; suspects: poison-1 (kill): 4 deaths, 2 alone; innocent (t): 1 death"
    assert (finding.level, finding.what) == ("warning", told)
    assert finding.fix == "python -m runtime jobs show poison-1"
    kit.set_isolation("me", now_ms() + 60_000, f"high/{guilty}")
    kit.claim(guilty, "me", 5)
    assert (await about(doctor, "suspects")).what == told, "also while it runs again"
    add(at_work)
    at_work.xreadgroup(GROUP, "me", {KEY: ">"})
    assert (await about(doctor, "suspects")).what == told, "what else runs there is none"


# --- what hangs --------------------------------------------------------------------------------------------------------------


async def test_a_job_that_runs_for_much_longer_than_others_is_named_with_its_worker(doctor, at_work):
    ids = [str(at_work.xadd(KEY, {"type": "make-pdf", "data": "{}", "id": name})) for name in ("hung-1", "fine-1", "new-1")]
    at_work.xreadgroup(GROUP, "me", {KEY: ">"})
    at_work.hset(f"{{jobs}}:stats:{now_ms() // 60_000}", mapping={"make-pdf high run26": 500, "make-pdf high done": 500})
    since = (2_400_000, 60_000)
    jobs = [f'["high/{entry}",{now_ms() - ago_ms},"make-pdf"]' for entry, ago_ms in zip(ids, since, strict=False)]
    jobs += [
        f'["high/{ids[2]}",{now_ms() - 2 * HOUR_MS},"new-type"]',
        '["elsewhere/1-1",5,"make-pdf"]',
        '["high/9-9",5,"make-pdf"]',
    ]
    knows(at_work, f'{{"types":{{"make-pdf":1}},"jobs":[{",".join(jobs)}]}}', "vm-8087")
    hung = [row.what for row in await found(doctor) if "runs for" in row.what]
    assert hung == [
        "new-1 of new-type runs for 2 h, and none of its type has ended within the last hour (on vm-8087)",
        "hung-1 of make-pdf runs for 40 min: 36 x its p99 of under 1 min (on vm-8087)",
    ]


async def test_letters_are_counted_by_type_since_when_they_began(doctor, at_work):
    at_work.hset(f"{{jobs}}:stats:{now_ms() // 60_000}", mapping={"boom low dead": 20, "odd": 1, "t low dead": "x"})
    at_work.xadd("{jobs}:dead", {"type": "boom", "dead_reason": "attempts", "dead_at": now_ms() - 2000})
    finding = await only(doctor)
    assert re.fullmatch(r"20 dead letters of boom \(attempts\) since \d\d:\d\d, the newest [\d.]+ s ago", finding.what)


# --- keys of strangers -------------------------------------------------------------------------------------------------------


async def test_messages_in_a_misspelt_stream_are_an_error_and_its_command_moves_them_to_where_they_are_read(doctor, at_work):
    for n in range(3):
        at_work.xadd("{jobs}:hgih", {"type": "t", "data": "{}", "id": f"lost-{n}"})
    finding = await only(doctor)
    assert finding.level == "error"
    assert finding.what == (
        "3 messages in {jobs}:hgih, where nobody reads: no such priority, there are critical, high, medium, low"
    )
    command = shlex.split(finding.fix.partition(" (moves")[0])
    assert command[:2] == ["redis-cli", "EVAL"]
    assert at_work.execute_command(*command[1:]) == 0
    assert [fields["id"] for _, fields in at_work.xrange(KEY)] == ["lost-0", "lost-1", "lost-2"]
    assert await found(doctor) == []


async def test_other_keys_that_are_nobodys_are_a_warning_and_only_some_of_many_are_named(doctor, at_work):
    at_work.set("{jobs}:x", "1")
    at_work.xadd("{jobs}:no-messages", {"a": "b"})
    assert [(row.level, row.what) for row in await found(doctor)] == [
        ("warning", "{jobs}:no-messages (stream) is no key of this queue"),
        ("warning", "{jobs}:x (string) is no key of this queue"),
    ]
    at_work.delete("{jobs}:no-messages", "{jobs}:x")
    # Somebody's own: one resembles no priority, of the other a group of consumers reads.
    at_work.xadd("{jobs}:notifications", {"type": "t", "data": "{}"})
    at_work.xadd("{jobs}:hight", {"type": "t", "data": "{}"})
    at_work.xgroup_create("{jobs}:hight", "app", "0")
    assert [(row.level, row.fix) for row in await found(doctor)] == [
        ("warning", "redis-cli TYPE '{jobs}:hight' (whose is it?)"),
        ("warning", "redis-cli TYPE '{jobs}:notifications' (whose is it?)"),
    ]
    with pytest.raises(redis.ResponseError, match="somebody reads it"):
        at_work.eval(MOVE, 2, "{jobs}:hight", KEY)
    assert at_work.xlen("{jobs}:hight") == 1
    at_work.delete("{jobs}:notifications", "{jobs}:hight")
    for n in range(22):
        at_work.set(f"{{jobs}}:x{n}", 1)
    findings = await found(doctor)
    assert len(findings) == STRAYS + 1
    assert findings[-1].what == f"… and {22 - STRAYS} more keys that are none of this queue"


async def test_what_the_runtime_writes_is_its_own(doctor, at_work):
    keys = Keys("jobs")
    assert all(map(keys.is_ours, (*keys.scripted, keys.layout, keys.deaths, keys.probe, keys.contracts, keys.cron_code)))
    made = [keys.permits("t"), keys.rate("t:g"), keys.result("j"), keys.progress("w"), keys.marks("w"), keys.stats(5)]
    made += [
        keys.operation("o"),
        keys.chosen("o", "t"),
        keys.asked_by(b"high/1-1").decode(),
        "{jobs}:seen:c:x",
        "{jobs}:seen:k:t:k",
    ]
    made += ["{jobs}:high:closed", "{jobs}:dead:closed:2", "{jobs}:due:was"]
    assert all(map(keys.is_ours, made))
    assert not any(map(keys.is_ours, ("{jobs}:hgih", "{jobs}:hgih:was", "{jobs}:hgih:closed", "{jobs}:highclosed", "{jobs}:")))


@pytest.mark.parametrize("queue", ["a*", "a[b]c", "a\\b", "a?", "[^a]"])
async def test_marks_of_patterns_in_the_name_of_a_queue_mean_themselves(server, raw, queue):
    raw.set(f"{{{queue}}}:x", 1)
    raw.set("{ab}:x", 1)
    raw.set("{abc}:x", 1)
    doctor = Doctor(server.url, queue)
    assert [row.what for row in await doctor.about_strays()] == [f"{{{queue}}}:x (string) is no key of this queue"]
    assert raw.keys(_glob(f"{{{queue}}}:") + "*") == [f"{{{queue}}}:x"]
    await doctor.close()


async def test_where_looking_is_not_allowed_there_are_none(doctor, at_work):
    at_work.set("{jobs}:x", 1)
    at_work.execute_command("ACL", "SETUSER", "default", "-scan")
    try:
        assert await doctor.about_strays() == []
    finally:
        at_work.execute_command("ACL", "SETUSER", "default", "+@all")


# --- lots of unknown types ----------------------------------------------------------------------------------------------------


async def test_what_waits_for_a_type_that_nobody_knows_is_told_with_from_when_on_it_is_dead(doctor, at_work):
    entries = add(at_work, 2)
    at_work.xreadgroup(GROUP, "me", {KEY: ">"})
    at_work.xclaim(KEY, GROUP, "~t:nosuch@1", 0, entries, idle=60_000, retrycount=0, justid=True)
    knows(at_work, f'{{"types":{{"t":1}},"since":{now_ms() - 2 * HOUR_MS},"unknown_s":900}}')
    dead_from = {time.strftime("%H:%M", time.localtime(time.time() + 840 + off)) for off in (-2, 2)}
    finding = await only(doctor)
    assert finding.what in {f"2 jobs of high wait for a worker that knows nosuch: dead letters from {at} on" for at in dead_from}
