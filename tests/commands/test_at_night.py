"""The eight questions of who is called at night: the trouble is made for real, and the first command that one types answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.calls import call
from tests.faults.harness import ROOT, Worker
from tests.servers import Server, wait_until

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text("utf-8")
LEASE_S = 8.0  # what another one left is looked for this often
LONG_LEASE_S = 600.0  # so that a worker is silent for minutes before its lease is over, on a slow machine too
QUICK = 200  # runs, so that one that hangs is not among the slowest 1 of 100


class Night:
    """A queue in which all is wrong at once, and another one in which a job kills its worker, on one server."""

    def __init__(self, server: Server, history: Path) -> None:
        self.server, self.history, self.raw = server, history, server.client()
        self.alive = Worker(server, history, lease_s=LEASE_S)
        self.supervisor = _supervised(server, history)
        self.alive.wait_ready()
        self.make_trouble()

    def make_trouble(self) -> None:
        add, go = self.raw.xadd, self.history / "go"
        self.entry = str(add("{jobs}:medium", {"type": "nosuch", "data": "{}"}))
        add("{jobs}:hgih", {"type": "scripted", "data": '{"n":1}', "id": "misspelt-1"})
        for n in range(20):
            add("{jobs}:medium", {"type": "scripted", "data": f'{{"n":{n},"failures":99}}', "id": f"boom-{n}"})
        go.touch()
        for n in range(QUICK):
            add("{jobs}:low", {"type": "held", "data": f'{{"n":{n}}}'})
        wait_until(lambda: not self.raw.xlen("{jobs}:low"), what="they are done")
        go.unlink()
        add("{jobs}:low", {"type": "held", "data": '{"n":1}', "id": "hung-1"})
        # What is counted in a second in which memory is full is lost: one of the tests fills it.
        ended = {"held low done": QUICK, "scripted medium dead": 20}
        wait_until(lambda: {name: self.counted(name) for name in ended} == ended, what="statistics are written")

    def counted(self, name: str) -> int:
        return sum(int(self.raw.hget(key, name) or 0) for key in self.raw.keys("{jobs}:stats:*"))

    def name_of(self, worker: Worker) -> str:
        return next((name for name in self.raw.hkeys("{jobs}:workers:rows") if f"-{worker.pid}-" in name), "")

    def asked(self, *command: str, pattern: str, queue: str = "jobs") -> subprocess.CompletedProcess[str]:
        """Return what a command says as soon as it says this; the page that people look it up on must say it too."""
        on_page = re.sub(r"[\w-]+-\d+-[0-9a-f]{8}", r"\\S+", pattern)
        assert command[0] != "doctor" or re.search(on_page, RUNBOOK, re.MULTILINE), f"not on the page: {on_page}"
        said: list[subprocess.CompletedProcess[str]] = []

        def has_answered() -> bool:
            said.append(call(*command, "--redis", self.server.url, "--queue", queue))
            return re.search(pattern, said[-1].stdout + said[-1].stderr, re.MULTILINE) is not None

        try:
            wait_until(has_answered)
        except AssertionError:
            pytest.fail(f"{pattern}: {said[-1]}")
        return said[-1]

    def end(self) -> None:
        self.supervisor.terminate()
        self.alive.kill()
        self.supervisor.wait(60)
        self.raw.close()


def _supervised(server: Server, history: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "runtime", "run", "--processes", "2", "--queue", "poison", "--redis", server.url]
    command += ["--handlers", "tests.faults.poison", "--board", "off", "--suspect", "0.5", "--grace", "0"]
    with (history / "supervisor.log").open("ab") as log:
        environment = {**os.environ, "FAULTS_HISTORY": str(history), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    server = Server("valkey", appendonly=True)
    opened = Night(server, tmp_path_factory.mktemp("night"))
    yield opened
    opened.end()
    server.stop()


def test_what_kills_my_workers(night: Night):
    """Also before the letter of the one that does it."""
    # It kills four workers before it is a letter, each after a while in which one can ask.
    night.raw.xadd("{poison}:medium", {"type": "deadly", "data": '{"n":1,"how":"kill","ms":3000}', "id": "poison-1"})
    told = r"[1-9] worker process(es)? died in 5 min \(newest [\d.]+ s ago\); suspects: poison-1 \(deadly\): \d deaths?"
    wait_until(lambda: night.raw.exists("{poison}:deaths"), what="its first worker is dead, and that is known")
    said = night.asked("doctor", pattern=told, queue="poison")
    assert "fix it: python -m runtime jobs show poison-1" in said.stdout
    assert night.raw.xlen("{poison}:dead") == 0 or "alone" in said.stdout


def test_how_many_workers_live(night: Night):
    """Of two one was killed, and nobody saw it: it is among those that live for less than two beats, here some of ten minutes."""
    dead = Worker(night.server, night.history, lease_s=LONG_LEASE_S)
    dead.wait_ready()
    wait_until(lambda: night.name_of(dead), what="it has beaten")
    name = night.name_of(dead)
    dead.kill()
    night.raw.zincrby("{jobs}:workers", -0.7 * LONG_LEASE_S * 1000, name)  # so long ago
    said = night.asked(
        "doctor", pattern=rf"worker {name} is silent for [\d.]+ (s|min), its jobs are taken back (now|in [\d.]+ (s|min))"
    )
    assert re.search(r"^ok +1 workers and 1 silent, ", said.stdout, re.MULTILINE)
    said = night.asked("workers", "list", pattern="^1 workers live, 1 silent$")
    assert re.search(rf"^{name}.*\n +silent for ", said.stdout, re.MULTILINE)
    night.asked("stats", pattern=r"1 workers \(1 more silent, ")


def test_where_did_my_message_go(night: Night):
    said = night.asked("doctor", pattern=r"^ERROR +1 message in \{jobs\}:hgih, where nobody reads: no such priority")
    assert said.returncode == 1


def test_what_dies_and_since_when(night: Night):
    said = night.asked(
        "doctor", pattern=r"20 dead letters of scripted \(attempts\) since \d\d:\d\d, the newest [\d.]+ (s|min) ago"
    )
    assert "fix it: python -m runtime dead list --type scripted" in said.stdout
    night.asked("stats", pattern=r"^scripted +medium +dead +20 \d\d:\d\d$")


def test_where_is_my_job(night: Night):
    """All that its producer has is what XADD answered."""
    said = night.asked(
        "jobs", "show", night.entry, pattern="no worker that lives knows nosuch: a dead letter unless one does by "
    )
    assert f"medium-{night.entry}" in said.stdout


def test_what_waits_for_a_deploy(night: Night):
    night.asked("doctor", pattern=r"1 jobs of medium wait for a worker that knows nosuch: dead letters from \d\d:\d\d on")


def test_is_redis_full(night: Night):
    used = int(night.raw.info("memory")["used_memory"])
    night.raw.config_set("maxmemory", used - 500_000)
    try:
        said = night.asked("doctor", pattern=r"^ERROR +sends are refused NOW: [\d.]+ MB of [\d.]+ MB used; ")
    finally:
        night.raw.config_set("maxmemory", 0)
    assert said.returncode == 1
    assert re.search(r"fix it: redis-cli -s \S+ CONFIG SET maxmemory \d+mb", said.stdout)


def test_what_hangs(night: Night):
    """Who runs for some seconds longer than others do is none: that takes a while. The others of its type took a moment."""
    told = rf"hung-1 of held runs for \d+ (s|min): [\d,]+ x its p99 of under \d+ ms \(on {night.name_of(night.alive)}\)"
    said = night.asked("doctor", pattern=told)
    assert "fix it: python -m runtime jobs show hung-1 (jobs cancel ends it)" in said.stdout
