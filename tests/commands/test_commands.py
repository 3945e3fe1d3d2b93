"""The commands through the real process: arguments in; text, JSON and exit status out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from runtime.cli import COMMANDS
from tests.commands.calls import call, call_anew, one_line
from tests.faults.harness import ROOT, leftovers
from tests.servers import Server, wait_until

SCRIPTED = ("--handlers", "tests.faults.jobs")
INSIDE = "runtime.commands."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--concurrency", "many"), ("--concurrency", "whole number")),
        (("--concurrency", "0"), ("--concurrency 0: must be between 1 and 100000",)),
        (("--lease", "-1"), ("--lease",)),
        (("--board", "nowhere"), ("HOST:PORT", "off")),
        (("--redis", "http://x"), ("Redis URL",)),
        (("--no-such-flag",), ("no-such-flag", "--help")),
        (("enqeue", "x"), ("enqueue",)),
        (("--handlers", "no.such.module"), ("no module named no.such.module",)),
        (("--handlers", "runtime.backoff"), ("no handler",)),
        (("--log", "loud"), ("auto, plain, json",)),
        (("enqueue", "scriptd", "{}", *SCRIPTED), ("did you mean scripted",)),
        (("enqueue", "scripted", '{"n":"x"}', *SCRIPTED), ("Expected `int`", "$.n")),
        (("enqueue", "scripted", "{", *SCRIPTED), ("JSON",)),
        (("enqueue", "scripted", '{"n":1}', "--id", "a b", *SCRIPTED), ("id",)),
        (("enqueue", "scripted", '{"n":1}', "--at", "2030-01-01T08:00", *SCRIPTED), ("at: a datetime must have a time zone",)),
        (("enqueue", "scripted", '{"n":1}', "--at", "soon", *SCRIPTED), ("--at: must be seconds since 1970, or a time",)),
        (
            ("enqueue", "scripted", '{"n":1}', "--wait", "nan", *SCRIPTED),
            ("--wait: must be a number of seconds from 0, got nan",),
        ),
        (
            ("enqueue", "scripted", "--wait", '{"n":1}', *SCRIPTED),
            ("--wait: must be a number of", "right behind the type"),
        ),
        (("enqueue", "scripted", "{}", "--id", "x", "{}", *SCRIPTED), ("unrecognized arguments: {}",)),
        (("enqueue", "scripted", "--id", "x", "{}", "{}", *SCRIPTED), ("unrecognized arguments: {} {}",)),
        (("enqueue", "scripted", "--id", "x", "--nonsense", *SCRIPTED), ("unrecognized arguments: --nonsense",)),
        (("enqueue", "scripted", '{"n":1}', "--wait", "1", *SCRIPTED), ("no results of scripted are kept", "result_ttl_s")),
        (("dead", "list", "-n", "0"), ("-n 0: must be between 1 and 10000",)),
        (("dead", "show", "se ven"), ("dead list",)),
        (("stats", "--minutes", "0"), ("--minutes 0: must be between 1 and 1440",)),
        (("bench", "--jobs", "0"), ("--jobs 0: must be between 1000 and 1000000",)),
        (("jobs", "list", "-n", "0"), ("-n 0: must be between 1 and 1000",)),
    ],
)
def test_bad_usage_is_one_line_that_says_what_and_how_and_status_2(arguments, words):
    result = call(*arguments)
    assert result.returncode == 2, result
    line = one_line(result)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("arguments", [("run", *SCRIPTED, "--board", "off", "--log", "plain"), ("stats",), ("dead", "list")])
def test_redis_away_is_one_line_and_status_3(arguments):
    result = call(*arguments, "--redis", "redis://user:secret@127.0.0.1:1")
    assert result.returncode == 3
    assert "127.0.0.1:1" in one_line(result)
    assert "secret" not in result.stderr


def test_looking_where_no_queue_is_says_so_and_makes_none(tmp_path):
    for command in (("stats",), ("dead", "list"), ("jobs", "list"), ("top", "--once"), ("doctor",)):
        result = call(*command, "--data-dir", str(tmp_path / "nowhere"))
        assert result.returncode == 2
        assert "--data-dir" in one_line(result)
    assert not (tmp_path / "nowhere").exists()


def test_help_needs_no_redis_and_names_every_setting():
    result = call("--help")
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("enqueue", "dead", "stats", "types", "exit codes"))
    settings = call("run", "--help").stdout
    assert all(word in settings for word in ("--concurrency", "RUNTIME_CONCURRENCY", "REDIS_URL", "--lease", "SECONDS"))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_help_and_is_loaded_without_the_others(name):
    told = call(name, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert f"usage: python -m runtime {name} " in told.stdout
    assert "\n\noptions:\n" in told.stdout or "\n\npositional arguments:\n" in told.stdout
    code = "import sys; from runtime import cli; cli.parser(sys.argv[1]); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code, name], cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
    loaded = {module.removeprefix(INSIDE) for module in modules.split() if module.startswith(INSIDE)} & set(COMMANDS)
    assert loaded == ({"bench", "run"} if name == "bench" else {name}), "bench runs workers on the loop that run makes"


def test_types_needs_no_redis():
    result = call("types", "--json", *SCRIPTED)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0
    runs = {row["type"]: row["runs"] for row in rows}
    assert runs == {"scripted": "loop", "held": "loop", "blocking": "loop", "threaded": "thread"}
    assert "scripted" in call("types", *SCRIPTED).stdout


ANSWERS = """
import msgspec
from runtime import Job, contract, handler

@contract("answer")
class Ask(msgspec.Struct):
    n: int = 0

@handler(Ask, result_ttl_s=60, limit=3, rate="5/m")
def answer(message: Ask, job: Job) -> int:
    return message.n
"""


def test_types_tell_what_is_declared_beside_retries(tmp_path):
    (tmp_path / "answers_jobs.py").write_text(ANSWERS)
    told = call("types", "--handlers", "answers_jobs", cwd=tmp_path).stdout
    assert ", limit 3, rate 5/m, results kept for 60 s  answers_jobs:answer" in told
    row = json.loads(call("types", "--json", "--handlers", "answers_jobs", cwd=tmp_path).stdout)
    assert (row["result_ttl_s"], row["limits"]) == (60, {"limit": 3, "rate": "5/m"})


def test_a_payload_may_stand_behind_flags(server, raw):
    redis = ("--redis", server.url)
    assert call("enqueue", "scripted", "--priority", "high", '{"n":1}', *redis, *SCRIPTED).returncode == 0
    assert call("enqueue", "scripted", "--priority", "high", "-", *redis, *SCRIPTED, stdin='{"n":2}').returncode == 0
    assert [fields["data"] for _, fields in raw.xrange("{jobs}:high")] == ['{"n":1}', '{"n":2}']


def test_a_message_that_is_no_job_of_its_own_is_told_by_what_became_of_it(server, raw, tmp_path):
    (tmp_path / "answers_jobs.py").write_text(ANSWERS)
    flags = ("--redis", server.url, "--handlers", "answers_jobs")

    def send(*words: str):
        return call("enqueue", "answer", "{}", *words, *flags, cwd=tmp_path)

    late = send("--wait", "0", "--id", "mine")
    assert (late.returncode, late.stdout, late.stderr.splitlines()[0]) == (1, "", "job mine: waiting for its result, up to 0 s")
    later = ("--key", "k", "--delay", "900")
    sent = send(*later)
    owner = sent.stdout.strip()
    again = send(*later)
    assert (again.returncode, again.stdout) == (0, "")
    assert f"job {owner} has this key: this message has replaced its message" in one_line(again)
    first = send(*later, "--keep", "first")
    assert (first.returncode, one_line(first)) == (0, f"job {owner} lives and has this key: the message was dropped")
    waits = send("--key", "k", "--wait", "1")
    assert (waits.returncode, waits.stderr.splitlines()[1][:46]) == (1, "runtime: --wait: no job of its own was sent; h")


def test_settings_come_from_flag_environment_and_file_in_that_order(tmp_path):
    (tmp_path / "runtime.toml").write_text('handlers = "no.such.file_module"\n')
    assert "file_module" in call("types", cwd=tmp_path).stderr
    assert "env_module" in call("types", cwd=tmp_path, RUNTIME_HANDLERS="no.such.env_module").stderr
    result = call("types", *SCRIPTED, cwd=tmp_path, RUNTIME_HANDLERS="no.such.env_module")
    assert result.returncode == 0
    (tmp_path / "runtime.toml").write_text("concurency = 5\n")
    assert "unknown key 'concurency'" in one_line(call("types", cwd=tmp_path))


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_so_many_letters_are_listed_over_all_pages_the_newest_first_and_those_of_a_type_or_reason(server, raw, form):
    for n in range(120):
        about = {"type": f"t{n % 2}", "data": "{}", "id": f"j{n}", "dead_reason": f"r{n % 3}", "dead_error": f"no {n}."}
        raw.xadd(
            "{jobs}:dead", {**about, "dead_from": "low/1-1", "dead_at": "7000", "dead_attempts": "3", "dead_stack": "x" * 3000}
        )

    def listed(*more: str) -> tuple[list[int], str]:
        result = call("dead", "list", "--redis", server.url, *form, *more)
        return [int(found) for found in re.findall(r"no (\d+)\.", result.stdout)], result.stderr.strip()

    assert listed("-n", "110") == (list(range(119, 9, -1)), "110 shown, the newest 110 looked at")
    assert listed("-n", "500") == (list(range(119, -1, -1)), "120 shown, the newest 120 looked at")
    some = [n for n in range(119, 59, -1) if n % 2 == 1 and n % 3 == 2]
    assert listed("-n", "60", "--type", "t1", "--reason", "r2") == (some, f"{len(some)} shown, the newest 60 looked at")


def test_a_message_is_enqueued_found_dead_shown_and_replayed(server, raw):
    redis = ("--redis", server.url)
    result = call("enqueue", "scripted", '{"n":1,"failures":9}', "--id", "job-1", "--attempts", "1", *redis, *SCRIPTED)
    assert (result.returncode, result.stdout.strip()) == (0, "job-1")
    oldest_s = json.loads(call("stats", "--json", *redis).stdout)["oldest_waiting_s"]
    assert [priority for priority, waited_s in oldest_s.items() if waited_s > 0] == ["medium"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "runtime", *redis, *SCRIPTED, "--board", "off"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: raw.xlen("{jobs}:dead") == 1, what="it dies")
        listed = call("dead", "list", "--json", *redis)
        [letter] = [json.loads(line) for line in listed.stdout.splitlines()]
        assert (letter["id"], letter["reason"], letter["attempts"]) == ("job-1", "attempts", 1)
        assert "attempt 1 of 1 fails" in call("dead", "list", *redis).stdout
        assert call("dead", "list", "--type", "else", *redis).stdout == ""
        shown = call("dead", "show", "job-1", *redis)
        assert "RuntimeError" in shown.stdout
        assert "jobs.py" in shown.stdout
        replayed = call("dead", "replay", "job-1", "--json", *redis)
        assert (replayed.returncode, json.loads(replayed.stdout)["replayed"]) == (0, True)
        wait_until(lambda: raw.xlen("{jobs}:dead") == 1 and not leftovers(raw), what="it dies again")
        assert call("dead", "replay", letter["letter"], *redis).returncode == 1, "that letter is gone"
        both = {"type": "scripted", "priority": "medium", "outcome": "dead", "count": 2}
        wait_until(lambda: both in json.loads(call("stats", "--json", *redis).stdout)["outcomes"], what="statistics are written")
        assert json.loads(call("stats", "--json", *redis).stdout)["depth"]["dead"] == 1
        assert "backlog 0" in call("stats", *redis).stdout
    finally:
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=120)
    assert worker.returncode == 0
    lines = log.strip().splitlines()
    assert "stopped in" in lines[-1]
    assert all(json.loads(line)["level"] for line in lines[:-1]), "not a terminal: JSON"


def test_json_lines_are_enqueued_from_standard_input(server, raw):
    lines = "".join(f'{{"n":{n}}}\n' for n in range(1200))
    result = call("enqueue", "scripted", "-", "--redis", server.url, *SCRIPTED, stdin=lines)
    assert (result.returncode, result.stdout.strip()) == (0, "1200 sent")
    assert raw.xlen("{jobs}:medium") == 1200
    bad = call("enqueue", "scripted", "-", "--redis", server.url, *SCRIPTED, stdin='{"n":1}\n{"n":"x"}\n')
    assert bad.returncode == 2
    assert "line 2" in one_line(bad)
    raw.delete("{jobs}:medium")
    raw.set("{jobs}:medium", "a string in a stream's place")
    refused = call("enqueue", "scripted", "-", "--redis", server.url, *SCRIPTED, stdin=lines)
    assert (refused.returncode, refused.stdout.strip()) == (3, "0 sent"), "and no second chunk is tried"
    assert "500 messages were refused" in refused.stderr


def test_a_server_that_can_evict_jobs_is_refused_with_the_command_that_fixes_it(server, raw):
    raw.config_set("maxmemory-policy", "allkeys-lru")
    try:
        result = call_anew("run", "--redis", server.url, *SCRIPTED, "--board", "off")
    finally:
        raw.config_set("maxmemory-policy", "noeviction")
    assert result.returncode == 2
    assert "CONFIG SET maxmemory-policy noeviction" in one_line(result)


@pytest.fixture
def own_valkey() -> Iterator[Server]:
    server = Server("valkey")
    yield server
    server.stop()


def get(url: str) -> tuple[int, str]:
    try:
        with urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_health_readiness_and_metrics(own_valkey, tmp_path):
    log = tmp_path / "log"
    with log.open("ab") as out:
        command = [sys.executable, "-m", "runtime", "--redis", own_valkey.url, *SCRIPTED]
        command += ["--board", "127.0.0.1:0", "--log", "plain", "--lease", "1.5"]
        worker = subprocess.Popen(command, cwd=ROOT, stderr=out)
    raw = own_valkey.client()
    try:
        wait_until(lambda: "board at " in log.read_text(), what="the board listens")
        url = log.read_text().split("board at ")[1].split()[0]
        wait_until(lambda: get(f"{url}/readyz")[0] == 200, what="ready")
        raw.xadd("{jobs}:high", {"type": "scripted", "data": '{"n":1,"failures":9}', "attempts": "1"})
        raw.xadd("{jobs}:high", {"type": "scripted", "data": '{"n":2}'})
        wait_until(lambda: 'outcome="done"' in get(f"{url}/metrics")[1], what="counted")
        for line in (
            'runtime_outcomes_total{outcome="dead",priority="high",queue="jobs",type="scripted"} 1',
            'runtime_run_seconds_count{priority="high",queue="jobs",type="scripted"} 2',
            'runtime_wait_seconds_count{priority="high",queue="jobs",type="scripted"} 2',
            'runtime_backlog{queue="jobs"} 0',
        ):
            wait_until(lambda line=line: line in get(f"{url}/metrics")[1], what=line)
        raw.delete("{jobs}:low")
        raw.set("{jobs}:low", "not a stream")
        wait_until(lambda: "{jobs}:low: WRONGTYPE" in get(f"{url}/readyz")[1], what="a stream that cannot be read is named")
        wait_until(lambda: get(f"{url}/readyz")[0] == 200, what="the others are fetched")
        for line in ('runtime_stream_broken{queue="jobs",stream="{jobs}:low"} 1', 'runtime_backlog{queue="jobs"} 0'):
            wait_until(lambda line=line: line in get(f"{url}/metrics")[1], what=f"the others are counted: {line}")
        raw.delete("{jobs}:low")
        assert get(f"{url}/")[0] == 200
        assert get(f"{url}/no-such-page")[0] == 404
        busy = call_anew("run", "--redis", own_valkey.url, *SCRIPTED, "--board", url.removeprefix("http://"), "--log", "plain")
        assert busy.returncode == 2
        assert "take another port" in busy.stderr.splitlines()[-1]
        own_valkey.kill()
        wait_until(lambda: get(f"{url}/readyz")[0] == 503, what="not ready while the store is away")
        assert get(f"{url}/healthz")[0] == 200, "an outage of Redis is no reason to restart all workers"
        own_valkey.start()
        wait_until(lambda: get(f"{url}/readyz")[0] == 200, what="ready again")
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        raw.close()


def test_a_module_that_configures_logging_does_not_silence_the_worker(tmp_path: Path) -> None:
    configures = 'import logging.config\nlogging.config.dictConfig({"version": 1, "root": {"level": "INFO"}})\n'
    (tmp_path / "shop_jobs.py").write_text(configures + "from tests.faults.jobs import scripted\n")
    told = call("types", "--handlers", "shop_jobs", cwd=tmp_path)
    assert told.returncode == 0
    assert "scripted" in told.stdout
    assert "disabled the worker's own log: it is enabled again" in told.stderr


STUCK = """
import time
import msgspec
from runtime import Backoff, Job, contract, handler

@contract("stuck")
class Stuck(msgspec.Struct):
    n: int = 0

@handler(Stuck, timeout_s=1, retry=Backoff(attempts=1))
def stuck(message: Stuck, job: Job) -> None:
    time.sleep(1000)
"""


def test_a_worker_whose_threads_all_hang_is_not_ready_and_ends_with_status_1(own_valkey, tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    log = tmp_path / "log"
    with log.open("ab") as out:
        command = [sys.executable, "-m", "runtime", "--redis", own_valkey.url, "--handlers", "stuck", "--threads", "1"]
        command += ["--board", "127.0.0.1:0", "--log", "plain", "--max-block", "5", "--grace", "1"]
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        worker = subprocess.Popen(command, cwd=tmp_path, stderr=out, env=environment)
    raw = own_valkey.client()
    try:
        wait_until(lambda: "board at " in log.read_text(), what="the board listens")
        url = log.read_text().split("board at ")[1].split()[0]
        wait_until(lambda: get(f"{url}/readyz")[0] == 200, what="ready")
        raw.xadd("{jobs}:high", {"type": "stuck", "data": "{}"})
        told = (503, "not ready: all 1 places (thread) are lost to jobs that go on past their deadline, handler stuck:stuck\n")
        wait_until(lambda: get(f"{url}/readyz") == told, what="it says what is wrong")
        assert get(f"{url}/healthz")[0] == 200, "its loop moves"
        wait_until(lambda: worker.poll() is not None, what="it ends, though the thread does not")
        assert worker.returncode == 1
        assert "this worker stops, to be started again" in log.read_text()
    finally:
        worker.kill()
        worker.wait()
        raw.close()


def test_a_terminal_of_one_column_is_no_trouble() -> None:
    assert call("schema", "--help", COLUMNS="1").returncode == 0
