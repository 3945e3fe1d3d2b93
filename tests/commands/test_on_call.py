"""What a person on call has at hand, through the real process: doctor, top, jobs, dead replay and purge, schema, bench."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest
import redis

from runtime.store.base import GROUP
from runtime.store.inspector import Inspector
from runtime.streams import Streams
from tests.commands.calls import call, call_anew, one_line
from tests.commands.test_commands import SCRIPTED
from tests.contract.test_streams import batch, leases
from tests.servers import Server

KEY = "{jobs}:high"
HOUR_MS = 3_600_000


@pytest.fixture
def sick() -> Iterator[Server]:
    """A server of its own, to be set wrongly."""
    server = Server("valkey", appendonly=True)
    yield server
    server.stop()


def findings(server: Server, *options: str) -> tuple[int, list[dict[str, str]]]:
    result = call("doctor", "--json", "--redis", server.url, *options)
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines()]


def found(server: Server, *words: str) -> dict[str, str]:
    """Return the one error that speaks of all these words."""
    status, all_of_them = findings(server)
    assert status == 1
    [one] = [row for row in all_of_them if row["level"] == "error" and all(word in row["what"] for word in words)]
    assert one["fix"]
    return one


def work_here(raw: redis.Redis) -> None:
    for name in ("critical", "high", "medium", "low"):
        raw.xgroup_create(f"{{jobs}}:{name}", GROUP, "0", mkstream=True)


def test_a_healthy_server_has_no_errors(sick):
    work_here(sick.client())
    status, all_of_them = findings(sick)
    assert status == 0
    assert {row["level"] for row in all_of_them} == {"ok"}
    assert any("durability" in row["what"] for row in all_of_them)


MINE = """
import asyncio, msgspec
from runtime import Finding, contract, handler
@contract("mine")
class Mine(msgspec.Struct):
    pass
@handler(Mine)
async def mine(message, job):
    pass
"""
CHECKS = """
async def CHECKS():
    await asyncio.sleep(0)
    return [Finding("ok", "partner answers"), Finding("error", "no key of partner", "put one into partner.key")]
"""


def test_doctor_asks_handlers_what_they_need_only_when_told_to(sick, tmp_path):
    work_here(sick.client())
    (tmp_path / "checked.py").write_text(MINE + CHECKS)
    (tmp_path / "failing.py").write_text(MINE + "def CHECKS():\n    raise KeyError('key')\n")
    (tmp_path / "odd.py").write_text(MINE + "def CHECKS():\n    return ['fine']\n")
    given = ("doctor", "--redis", sick.url)
    assert call(*given, cwd=tmp_path, RUNTIME_HANDLERS="checked").returncode == 0
    asked = call(*given, "--handlers", "checked", cwd=tmp_path)
    assert asked.returncode == 1
    assert asked.stdout.startswith(
        "ok       partner answers\nERROR    no key of partner\n         fix it: put one into partner.key\n"
    )
    assert "durability" in asked.stdout
    assert call(*given, "--handlers", cwd=tmp_path, RUNTIME_HANDLERS="checked").stdout == asked.stdout
    for name, said in [("failing", "KeyError: 'key'"), ("odd", "must return a Finding")]:
        failed = call(*given, "--handlers", name, cwd=tmp_path)
        assert failed.returncode == 1
        assert f"{name}: its checks failed: " in failed.stdout
        assert said in failed.stdout
        assert "durability" in failed.stdout


def test_doctor_finds_an_eviction_policy_that_can_evict_jobs(sick):
    sick.client().config_set("maxmemory-policy", "allkeys-lru")
    assert "maxmemory-policy noeviction" in found(sick, "allkeys-lru")["fix"]


def test_doctor_finds_a_missing_append_only_file(sick):
    sick.client().config_set("appendonly", "no")
    assert "CONFIG SET appendonly yes" in found(sick, "append-only")["fix"]


def test_doctor_finds_a_group_made_at_the_end_and_its_command_fixes_it(sick):
    raw = sick.client()
    work_here(raw)
    raw.xgroup_destroy(KEY, GROUP)
    for _ in range(3):
        raw.xadd(KEY, {"type": "scripted", "data": '{"n":1}'})
    raw.xgroup_create(KEY, GROUP, "$")
    fix = found(sick, KEY, "delivered to no consumer")["fix"].split(f"redis-cli -s {sick.socket} ")[1].replace("'", "")
    raw.execute_command(*fix.split(" "))
    assert findings(sick)[1][-1]["what"].startswith("3 jobs wait and no worker lives")
    [[_, entries]] = raw.xreadgroup(GROUP, "me", {KEY: ">"})
    assert len(entries) == 3


def test_doctor_finds_a_consumer_that_holds_jobs_and_has_not_beaten_for_an_hour(sick):
    raw = sick.client()
    work_here(raw)
    entry = raw.xadd(KEY, {"type": "scripted", "data": '{"n":1}'})
    raw.xreadgroup(GROUP, "vanished-worker", {KEY: ">"})
    raw.xclaim(KEY, GROUP, "vanished-worker", 0, [entry], idle=2 * 3_600_000, justid=True)
    found(sick, "vanished-worker", "an hour")


def test_doctor_finds_a_message_without_a_time(sick):
    raw = sick.client()
    work_here(raw)
    raw.hset("{jobs}:msg", "lost", "record")
    found(sick, "1 delayed messages and 0 times")


def test_doctor_names_the_types_that_no_worker_knows(sick):
    raw = sick.client()
    work_here(raw)
    entry = raw.xadd(KEY, {"type": "send-recipt", "data": "{}"})
    raw.xreadgroup(GROUP, "me", {KEY: ">"})
    raw.xclaim(KEY, GROUP, "~t:send-recipt@1", 0, [entry], retrycount=0, justid=True)
    assert any(row["level"] == "warning" and "knows send-recipt" in row["what"] for row in findings(sick)[1])


def test_doctor_finds_a_key_of_the_wrong_type(sick):
    work_here(sick.client())
    sick.client().set("{jobs}:due", "x")
    found(sick, "{jobs}:due", "string")


@pytest.mark.parametrize("key", ["high", "dead", "workers", "workers:rows", "strikes"])
def test_doctor_names_what_is_of_another_type_and_looks_at_the_rest(sick, key):
    raw = sick.client()
    work_here(raw)
    raw.delete(f"{{jobs}}:{key}")
    raw.set(f"{{jobs}}:{key}", "x")
    raw.hset("{jobs}:msg", "lost", "a message without a time")
    what = [row["what"] for row in findings(sick)[1]]
    assert any(f"{{jobs}}:{key}" in line and "string" in line for line in what), what
    assert any("delayed messages" in line for line in what), what


@pytest.mark.parametrize(
    ("layout", "fix"), [("7", "upgrade backend-jobs where this worker is installed"), ("seven", "RENAME '{jobs}:layout'")]
)
def test_doctor_finds_a_layout_that_it_does_not_know_and_no_worker_starts_on_it(sick, layout, fix):
    work_here(sick.client())
    sick.client().set("{jobs}:layout", layout)
    assert fix in found(sick, "layout")["fix"]
    result = call_anew("run", "--redis", sick.url, *SCRIPTED, "--board", "off")
    assert (result.returncode, fix in result.stderr.splitlines()[-1]) == (2, True)


def test_doctor_finds_an_id_far_ahead_that_closes_a_stream(sick):
    raw = sick.client()
    work_here(raw)
    raw.xadd(KEY, {"type": "t", "data": "{}"}, id=f"{int(time.time() * 1000) + 10 * 86_400_000}-0")
    found(sick, KEY, "days ahead")


def test_doctor_without_redis_is_one_line_and_status_3():
    result = call("doctor", "--redis", "redis://127.0.0.1:1")
    assert result.returncode == 3
    one_line(result)


@pytest.fixture
async def store(server: Server):
    opened = Streams(server.url, "jobs", "worker-1")
    await opened.start()
    yield opened
    await opened.close()


def jobs(server: Server, *arguments: str) -> list[dict[str, object]]:
    result = call("jobs", *arguments, "--json", "--redis", server.url)
    assert result.returncode in (0, 1), result
    assert "looked at" in result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


async def test_jobs_are_shown_where_they_are(server, raw, store):
    from runtime.jobs import Deferral, Letter, Parking

    ids = ("running", "parked", "delayed", "dead", "waiting")
    for name in ids[:4]:
        raw.xadd(KEY, {"type": "scripted", "data": '{"n":1}', "id": name})
    held = await leases(store)
    await store.settle(
        batch(
            Parking(held[1], "~t:scripted@9"),
            Deferral(held[2], "retry", 60_000, "delayed", 2),
            Letter(held[3], "attempts", "e", "", 3, "dead"),
        )
    )
    raw.xadd(KEY, {"type": "scripted", "data": '{"n":1}', "id": "waiting"})
    states = {row["id"]: (row["state"], row["attempt"]) for row in jobs(server, "list")}
    assert states == {"running": ("running", 1), "parked": ("parked", 1), "delayed": ("delayed", 3), "waiting": ("waiting", 1)}
    assert [row["id"] for row in jobs(server, "list", "--state", "parked")] == ["parked"]
    for name in ids:
        assert [row["state"] for row in jobs(server, "show", name)] == [name]
    [row] = jobs(server, "show", "running")
    assert (row["where"], row["waits"]) == ("worker-1", "")
    assert call("jobs", "cancel", "running", "--reason", "ordered twice", "--redis", server.url).returncode == 0
    [row] = jobs(server, "show", "running")
    assert re.fullmatch(r"cancelled by \S+: ordered twice: its worker has been asked to end it", row["waits"])
    entry = raw.xadd(KEY, {"type": "scripted", "data": '{"n":1}'})
    assert [row["place"] for row in jobs(server, "show", f"high-{entry}")] == [f"high/{entry}"]
    assert call("jobs", "show", "nobody", "--redis", server.url).returncode == 1


@pytest.fixture
def gated(raw: redis.Redis) -> redis.Redis:
    """A queue with a worker, a full gate by group, a type and a priority that are paused, a schedule, a stranger's rule."""
    work_here(raw)
    now_ms = int(time.time() * 1000)
    for lot, group in (("~g:mail:ada", "ada"), ("~g:mail:bob", "bob"), ("~g:off", "")):
        entry = raw.xadd(KEY, {"type": lot.split(":")[1], "data": "{}", "group": group, "id": f"at-{lot.split(':')[-1]}"})
        raw.xreadgroup(GROUP, "me", {KEY: ">"})
        raw.xclaim(KEY, GROUP, lot, 0, [entry], retrycount=0, justid=True)
    raw.xadd("{jobs}:low", {"type": "mail", "data": "{}", "id": "low-one"})
    raw.zadd("{jobs}:permits:mail", {"high/1-1": 1, "high/2-1": 2})
    raw.hset("{jobs}:control", mapping={
        "pause:off": f"{now_ms + 5 * HOUR_MS} {now_ms - 4 * HOUR_MS} ann@host the disk is full",
        "pause:low": f"0 {now_ms - 4 * HOUR_MS} bob@host ",
        "limit:mail": '{"limit":2}',
        "limit:x": "{",
    })  # fmt: skip
    raw.hset("{jobs}:cron:state", "nightly", f"{now_ms} ab cd {now_ms} - {now_ms - 4 * HOUR_MS}f")
    raw.zadd("{jobs}:workers", {"me": now_ms + 60_000})
    told = {"types": {"mail": 1}, "limits": {"mail": {"limit": 9, "group_rate": "10/m"}}, "reserved": 5, "lanes": 100}
    raw.hset("{jobs}:workers:rows", "me", f"30000 {json.dumps({**told, 'schedules': {'nightly': now_ms + 5 * HOUR_MS}})}")
    return raw


def test_stats_shows_gates_pauses_schedules_and_what_cannot_be_read(server, gated):
    lines = call("stats", "--redis", server.url).stdout.splitlines()
    assert lines[0] == "queue jobs: backlog 0, 1 workers (5 lanes kept for CRITICAL)"
    assert "parked 3 (3 at gates)" in lines[6]

    def line(*words: str) -> str:
        [found] = [line for line in lines if all(word in line for word in words)]
        return found

    line("off", " 1 ", "4 h ago", "in 5 h", "ann@host: the disk is full")
    line("priority low", " 1 ", "4 h ago", "resumed", "bob@host")
    line("mail", " 2 ", "2 of 2", "limit 2, group rate 10/m (set by people: limit)")
    line("  ada", " 1 ", "now")
    line("off", "paused", "none; no worker that lives knows it")
    line("nightly", "4 h ago", "fired", "in 5 h")
    line("limit:x: no JSON")


def test_stats_tells_programs_all_of_it(server, gated):
    told = json.loads(call("stats", "--json", "--redis", server.url).stdout)["flow"]
    assert [(pause["name"], pause["by"], pause["waiting"]) for pause in told["pauses"]] == [
        ("low", "bob@host", 1),
        ("off", "ann@host", 1),
    ]  # fmt: skip
    assert [(gate["type"], gate["in_use"], gate["limits"]) for gate in told["gates"]] == [
        ("mail", 2, {"limit": 2, "group_rate": "10/m"}),
        ("off", 0, {}),
    ]
    assert [one["name"] for one in told["schedules"]] == ["nightly"]
    assert list(told["unreadable_rules"]) == ["limit:x"]


def test_top_shows_gates_pauses_and_schedules(server, gated):
    shown = call("top", "--once", "--redis", server.url, COLUMNS="160").stdout
    for words in (
        "priority low",
        "2 of 2",
        "ann@host: the disk is full",
        "nightly",
        "100 (5 kept)",
        "1 rules or schedules cannot",
    ):
        assert words in shown, (words, shown)


def test_a_job_says_why_it_waits(server, gated):
    waits = {row["id"]: row["waits"] for row in jobs(server, "list")}
    assert waits == {
        "at-ada": "waits for a permit of mail (2 of 2 in use)",
        "at-bob": "waits for a permit of mail (2 of 2 in use)",
        "at-off": "waits: off is paused by ann@host (the disk is full)",
        "low-one": "waits: priority low is paused by bob@host",
    }
    assert "waits for a permit of mail (2 of 2 in use)" in call("jobs", "list", "--redis", server.url).stdout
    assert "  waits: priority low is paused by bob@host" in call("jobs", "show", "low-one", "--redis", server.url).stdout


def bury(raw: redis.Redis, n: int, type_name: str = "scripted", reason: str = "attempts", hours_ago: float = 0) -> list[str]:
    died = str(int((time.time() - hours_ago * 3600) * 1000))
    pipe = raw.pipeline(transaction=False)
    for at in range(n):
        fields = {"type": type_name, "data": f'{{"n":{at}}}', "id": f"j{at}", "dead_reason": reason}
        pipe.xadd("{jobs}:dead", {**fields, "dead_error": "e", "dead_from": "high/1-1", "dead_at": died, "dead_attempts": "3"})
    return pipe.execute()


AT_ONCE = ("--now", "--canary", "0")


def test_dead_letters_are_replayed_by_what_they_have_in_common(server, raw):
    bury(raw, 30)
    bury(raw, 5, type_name="blocking")
    bury(raw, 4, reason="timeout")
    redis_flag = ("--redis", server.url)
    dry = call("dead", "replay", "--type", "scripted", "--reason", "attempts", "--dry-run", *redis_flag)
    assert (dry.returncode, len(dry.stdout.splitlines())) == (0, 30)
    assert "30 would be replayed" in dry.stderr
    assert raw.xlen("{jobs}:dead") == 39
    began_s = time.monotonic()
    result = call("dead", "replay", "--type", "scripted", "--reason", "attempts", "--rate", "60", *AT_ONCE, *redis_flag)
    assert (result.returncode, "30 replayed" in result.stderr) == (0, True)
    # Steps of 5 (the canary), 15 and 10: the last is made when the 20 before it have had their time.
    assert time.monotonic() - began_s > 20 / 60 - 0.002, "no faster than asked"
    assert (raw.xlen("{jobs}:dead"), raw.xlen(KEY)) == (9, 30)
    both = call("dead", "replay", "1-1", "--all", *redis_flag)
    assert both.returncode == 2
    one_line(both)
    assert call("dead", "replay", *redis_flag).returncode == 2


def test_dead_letters_are_purged_by_age_and_never_without_a_choice(server, raw):
    bury(raw, 3, hours_ago=50)
    young = bury(raw, 2)
    redis_flag = ("--redis", server.url)
    assert call("dead", "purge", *redis_flag).returncode == 2
    assert raw.xlen("{jobs}:dead") == 5
    result = call("dead", "purge", "--older-than", "24", "--now", *redis_flag)
    assert "3 deleted" in result.stderr
    assert raw.xlen("{jobs}:dead") == 2
    assert call("dead", "purge", young[0], "5-5", *redis_flag).returncode == 1, "one of them was not there"
    assert raw.xlen("{jobs}:dead") == 1
    call("dead", "purge", "--all", "--now", *redis_flag)
    assert raw.xlen("{jobs}:dead") == 0


def test_top_shows_priorities_types_workers_and_the_newest_failures(server, raw):
    bury(raw, 1)
    raw.xadd(KEY, {"type": "scripted", "data": '{"n":1}'})
    minute = int(time.time() // 60)
    raw.hset(f"{{jobs}}:stats:{minute}", mapping={"scripted high done": 60, "scripted high run14": 60, " high wait3": 60})
    raw.zadd("{jobs}:workers", {"worker-7": int(time.time() * 1000) + 60_000})
    raw.zadd("{jobs}:workers", {"a stranger": int(time.time() * 1000) + 60_000})
    raw.hset("{jobs}:workers:rows", "a stranger", "30000 " + "[" * 100_000)
    raw.hset("{jobs}:workers:rows", "worker-7", '30000 {"lanes":8,"held":3,"running":{"scripted":3}}')
    result = call("top", "--once", "--redis", server.url, COLUMNS="160")
    assert result.returncode == 0, result
    for words in ("critical", "backlog 1", "dead 1", "worker-7", "3 scripted", "attempts", "<8 ms", "<16.4 ms"):
        assert words in result.stdout, (words, result.stdout)


def test_schema_prints_the_contracts_as_json_schema_and_needs_no_redis():
    document = json.loads(call("schema", "--format", "json", *SCRIPTED).stdout)
    assert document["jobs"]["scripted"]["version"] == 1
    assert document["$defs"]["Scripted"]["properties"]["n"] == {"type": "integer"}
    assert call("schema", "--format", "xml").returncode == 2


def test_bench_measures_and_leaves_nothing_behind(server, raw):
    result = call("bench", "--jobs", "2000", "--json", "--redis", server.url)
    figures = json.loads(result.stdout)
    assert result.returncode == 0
    assert figures["jobs"] == 2000
    assert min(figures["sent_per_s"], figures["drained_per_s"], figures["raw_per_s"]) > 0
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"]
    assert raw.keys("*") == []


@pytest.mark.parametrize(
    "command", [("top", "--once"), ("jobs", "list"), ("dead", "purge", "--all"), ("bench", "--jobs", "1000")]
)
def test_every_command_says_in_one_line_that_redis_is_away(command):
    result = call(*command, "--redis", "redis://127.0.0.1:1")
    assert result.returncode == 3, result
    assert "127.0.0.1:1" in one_line(result)


async def test_lists_never_sweep_a_whole_structure(valkey):
    """With 200,000 waiting and 20,000 dead, what the server works for a list does not grow with them."""
    raw = valkey.client()
    pipe = raw.pipeline(transaction=False)
    for n in range(200_000):
        pipe.execute_command("XADD", KEY, "*", "type", "scripted", "data", "{}")
        if n % 10_000 == 9_999:
            pipe.execute()
    bury(raw, 20_000)
    inspector = Inspector(valkey.url, "jobs")
    raw.config_resetstat()
    assert len(await inspector.newest_jobs(20)) == 20
    assert len(await inspector.dead_letters(20)) == 20
    usec = sum(row["usec"] for name, row in raw.info("commandstats").items() if name.split("_")[1] in ("xrevrange", "zrange"))
    await inspector.close()
    raw.close()
    assert usec < 50_000
