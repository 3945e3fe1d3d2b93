"""A crash of the machinery: said at once, the process ends whatever runs in it, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.faults.harness import ROOT, count, hire
from tests.faults.store_kit import own_server
from tests.faults.worker import Worker
from tests.servers import Server, wait_until

KEY = "{jobs}:medium"
BOTH = ("--handlers", "tests.faults.jobs,tests.faults.saboteur")
DEADLINE_S = 20  # for a machine that is busy with other things; 5 s are promised
SLOW = [pytest.param(part, marks=pytest.mark.long) for part in ("promote", "sweep", "count")]  # they have long pauses
LOOPS = ("fetcher", "flusher", "watchdog", "heartbeat", "lane", *SLOW)


def add(raw: redis.Redis, kind: str, data: str) -> None:
    raw.xadd(KEY, {"type": kind, "data": data})


def ends(worker: Worker, cause: str) -> None:
    """See the worker end by itself, and say why."""
    assert worker.process.wait(DEADLINE_S) == 1, worker.log
    assert worker.log.count("Traceback (most recent call last)") >= 1
    assert cause in worker.log
    assert worker.log.count("the worker has crashed: leaving") == 1, "said once"


@pytest.mark.parametrize("part", LOOPS)
def test_a_loop_that_crashes_ends_the_process_with_its_traceback(valkey, tmp_path, crew, part):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH, concurrency=10, lease_s=0.6)
        add(raw, "scripted", '{"n":1,"ms":60000}')
        wait_until(lambda: count(tmp_path, "start") == 1, what="a job runs")
        add(raw, "sabotage", f'{{"part":"{part}"}}')
        ends(worker, f"sabotage of the {part}")
        assert raw.xlen(KEY) >= 1, "the job that ran is still there"


@pytest.mark.parametrize("part", ["flusher", "heartbeat", "lane"])
def test_a_crash_ends_the_process_beside_threads_that_hang_and_handlers_that_swallow_their_cancel(valkey, tmp_path, crew, part):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH, concurrency=10, lease_s=1.0)
        add(raw, "threaded", '{"n":1,"ms":3600000}')
        add(raw, "hinder", '{"n":2}')
        wait_until(lambda: count(tmp_path, "start") == 2, what="both run")
        add(raw, "sabotage", f'{{"part":"{part}"}}')
        ends(worker, f"sabotage of the {part}")
        assert "does not end by itself" in worker.log
        assert raw.xpending(KEY, "workers")["pending"] >= 2, "left to their leases"


def test_the_leases_of_a_process_that_has_crashed_expire_even_while_it_is_on_its_way_out(valkey, tmp_path, crew):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH, concurrency=10, lease_s=0.6)
        add(raw, "hinder", '{"n":1}')
        wait_until(lambda: count(tmp_path, "start") == 1, what="it runs")
        add(raw, "sabotage", '{"part":"count"}')
        hire(crew, valkey, tmp_path, *BOTH, concurrency=10, lease_s=0.6)
        wait_until(lambda: count(tmp_path, "start") == 3, what="another worker has both jobs")
        ends(worker, "sabotage of the count")


def test_a_hook_that_hangs_at_the_exit_does_not_keep_a_process_that_has_crashed(valkey, tmp_path, crew):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH)
        add(raw, "hook", '{"n":1}')
        wait_until(lambda: count(tmp_path, "start") == 1, what="it is there")
        add(raw, "sabotage", '{"part":"flusher"}')
        ends(worker, "sabotage of the flusher")


def test_a_crash_of_the_heartbeat_ends_the_process_while_a_handler_holds_the_loop(valkey, tmp_path, crew):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH, lease_s=0.6)
        add(raw, "sabotage", '{"part":"heartbeat","blocks_s":3600}')
        ends(worker, "sabotage of the heartbeat")


def test_a_crash_ends_the_process_when_nobody_reads_its_standard_error(valkey, tmp_path):
    command = [sys.executable, "-m", "runtime", "--redis", valkey.url, *BOTH, "--board", "off", "--log-level", "error"]
    unread, theirs = os.pipe()
    os.set_blocking(theirs, False)
    try:
        while True:
            os.write(theirs, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(theirs, True)  # the flag is shared with the worker
    environment = {**os.environ, "FAULTS_HISTORY": str(tmp_path), "RUNTIME_CHILD_ENV": "FAULTS_*", "PYTHONPATH": str(ROOT)}
    with valkey.client() as raw:
        add(raw, "sabotage", '{"part":"flusher"}')
        worker = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=theirs)
        try:
            assert worker.wait(DEADLINE_S) == 1
        finally:
            worker.kill()
            worker.wait()
            os.close(theirs)
            os.close(unread)


@pytest.mark.parametrize("name", ["", "Flusher", "promote"])
def test_a_handler_that_cancels_our_loops_ends_the_process_and_not_only_the_loop(valkey, tmp_path, crew, name):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH)
        add(raw, "cancel-all", f'{{"name":"{name}"}}')
        assert worker.process.wait(DEADLINE_S) == 1
        assert "does a handler cancel what is not its own?" in worker.log, worker.log
        assert worker.log.count("the worker has crashed: leaving") == 1


def test_a_task_of_a_handler_that_exits_is_a_failure_of_its_job_and_the_worker_goes_on(valkey, tmp_path, crew):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH)
        for how in ("exit", "interrupt"):
            add(raw, "exit-in-a-task", f'{{"how":"{how}"}}')
        wait_until(lambda: raw.xlen("{jobs}:dead") == 2, what="two letters")
        errors = {fields["dead_error"] for _, fields in raw.xrange("{jobs}:dead")}
        assert errors == {"SystemExit: 3", "KeyboardInterrupt"}
        assert "not the end of the worker" in worker.log
        worker.send(signal.SIGTERM)
        assert worker.process.wait(DEADLINE_S) == 0, worker.log


@pytest.mark.parametrize("what", ["a stopped loop", "a filter that raises", "a task factory", "another log"])
def test_the_worker_goes_on_with_what_a_handler_has_left_in_its_process(valkey, tmp_path, crew, what):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH, concurrency=1)
        for _ in range(2):
            add(raw, "leave-behind", f'{{"what":"{what}"}}')
        add(raw, "scripted", '{"n":1,"ms":200}')
        wait_until(lambda: count(tmp_path, "end") == 1, what="the next job has run")
        wait_until(lambda: raw.xlen(KEY) == 0, what="all is settled")
        assert raw.xlen("{jobs}:dead") == 0, raw.xrange("{jobs}:dead")
        if what == "another log":
            wait_until(lambda: "it is enabled again" in worker.log, what="the log speaks again")
        assert worker.stop() == 0, worker.log
        assert "stopped in" in worker.log.splitlines()[-1]


@pytest.mark.parametrize(
    "left",
    [
        ("a closed stderr", "a task that exits"),
        ("another stderr", "a hook"),
        ("a task that interrupts",),
        ("a stubborn task",),
        ("a generator", "a task factory"),
    ],
    ids=", ".join,
)
def test_an_orderly_stop_has_its_status_whatever_handlers_have_left_behind(valkey, tmp_path, crew, left):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH, "--grace", "3600", concurrency=1)
        for what in left:
            add(raw, "leave-behind", f'{{"what":"{what}"}}')
        wait_until(lambda: count(tmp_path, "start") == len(left), what="all is left behind")
        wait_until(lambda: raw.xlen(KEY) == 0, what="all is settled")
        assert worker.stop(DEADLINE_S) == 0, worker.log
        assert "runtime: stopped in" in worker.log


@pytest.mark.parametrize("what", ["a closed stderr", "another log", "a log that hangs"])
def test_a_crash_is_told_whatever_handlers_have_done_to_the_log(valkey, tmp_path, crew, what):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH, concurrency=1)
        add(raw, "leave-behind", f'{{"what":"{what}"}}')
        wait_until(lambda: raw.xlen(KEY) == 0, what="it is settled")
        add(raw, "sabotage", '{"part":"flusher"}')
        assert worker.process.wait(DEADLINE_S) == 1, worker.log
        assert "sabotage of the flusher" in worker.log


def test_a_crash_while_stopping_ends_the_process_with_its_traceback(valkey, tmp_path, crew):
    with valkey.client() as raw:
        worker = hire(crew, valkey, tmp_path, *BOTH, "--grace", "0.1")
        add(raw, "hinder", '{"n":1}')
        add(raw, "sabotage", '{"part":"stop"}')
        wait_until(lambda: count(tmp_path, "start") == 2, what="both have run")
        worker.send(signal.SIGTERM)
        ends(worker, "sabotage of the stop")


def test_a_crash_takes_the_embedded_server_along(tmp_path, crew):
    data = tmp_path / "data"
    with own_server("valkey") as server:
        worker = Worker(server, tmp_path, *BOTH, "--redis", "", "--data-dir", str(data))
        crew.append(worker)
        worker.wait_ready()
    raw = redis.Redis(unix_socket_path=str(data / "s.sock"), decode_responses=True)
    add(raw, "hinder", '{"n":1}')
    wait_until(lambda: count(tmp_path, "start") == 1, what="it runs")
    add(raw, "sabotage", '{"part":"flusher"}')
    ends(worker, "sabotage of the flusher")
    raw.close()

    def is_gone() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(data / "s.sock")) != 0

    wait_until(is_gone, what="the server has ended")


@pytest.mark.parametrize("part", ["flusher", "report"])
def test_a_supervisor_replaces_a_process_that_has_crashed_beside_what_keeps_it(valkey, tmp_path, part):
    log = tmp_path / "supervisor.log"
    command = [sys.executable, "-m", "runtime", "run", *BOTH, "--board", "off", "--log", "plain", "--redis", valkey.url]
    environment = {**os.environ, "FAULTS_HISTORY": str(tmp_path), "RUNTIME_CHILD_ENV": "FAULTS_*", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as out, valkey.client() as raw:
        options = ["--processes", "1", "--max-rss", "100000", "--lease", "1"]
        supervisor = subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stdout=out, stderr=out)
        try:
            wait_until(lambda: "all 1 processes are ready" in log.read_text(), what="it is ready")
            add(raw, "hinder", '{"n":1}')
            wait_until(lambda: count(tmp_path, "start") == 1, what="it runs")
            add(raw, "sabotage", f'{{"part":"{part}"}}')
            wait_until(lambda: re.search(r"process 0 \(pid \d+\) ended with status 1", log.read_text()), what="it is noticed")
            wait_until(lambda: len(re.findall(r"worker \S+: \d+ lanes", log.read_text())) == 2, what="another one has started")
            assert f"sabotage of the {part}" in log.read_text()
        finally:
            supervisor.terminate()
            try:
                supervisor.wait(60)
            finally:
                supervisor.kill()
                supervisor.wait()


def test_a_supervisor_that_crashes_ends_with_its_traceback_and_its_processes_follow(valkey, tmp_path):
    log = tmp_path / "supervisor.log"
    broken = "def broken(*given): raise RuntimeError('sabotage of the supervisor')"
    code = f"from runtime import cli, supervisor\n{broken}\nsupervisor.Supervisor._overgrown = broken\ncli.main()"
    options = ["--processes", "1", "--max-rss", "100000", "--grace", "0", "--board", "off", "--log", "plain"]
    command = [sys.executable, "-c", code, "run", *BOTH, "--redis", valkey.url, *options]
    environment = {**os.environ, "FAULTS_HISTORY": str(tmp_path), "RUNTIME_CHILD_ENV": "FAULTS_*", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as out:
        supervisor = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        try:
            assert supervisor.wait(DEADLINE_S) == 1
        finally:
            supervisor.kill()
            supervisor.wait()
    assert "sabotage of the supervisor" in log.read_text()
    with valkey.client() as raw:
        wait_until(lambda: not raw.exists("{jobs}:workers:rows"), what="no process works any more")


# --- an orderly stop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stop_is_orderly_when_handlers_have_ended_all_lanes(server: Server, raw, tmp_path: Path, crew, jobs):
    worker = hire(crew, server, tmp_path, *BOTH, concurrency=jobs)
    for n in range(jobs):
        add(raw, "self-cancel", f'{{"n":{n},"ms":500}}')
    wait_until(lambda: count(tmp_path, "start") == jobs, what="all lanes run")
    assert worker.stop() == 0, worker.log
    assert "Traceback" not in worker.log
    assert raw.xpending(KEY, "workers")["pending"] == 0, "their outcome is written"
    assert raw.zcard("{jobs}:due") + raw.xlen(KEY) == jobs, "each is to be tried again"
