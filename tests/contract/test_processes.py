"""What the processes of a worker may do, who may read them, and that its children end with it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.process import hide_memory
from tests.faults.harness import ROOT
from tests.servers import Server, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for what Linux has")

NOBODY = 65534
JOBS = """
import ctypes, os, time
from pathlib import Path

import msgspec

from runtime import Job, contract, handler

os.cpu_count = lambda: 20  # as many children as there may be


@contract("look")
class Look(msgspec.Struct):
    note: str


@handler(Look)
async def look(message: Look, job: Job) -> None:
    Path(message.note).write_text(f"{ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)} {os.getppid()}")


@contract("hang")
class Hang(msgspec.Struct):
    note: str


@handler(Hang, runs="process")
def hang(message: Hang, job: Job) -> None:
    Path(message.note).write_text(f"{os.getpid()} {'SHOP_URL' in os.environ} {'SHOP_TOKEN' in os.environ}")
    time.sleep(60)
"""


@pytest.fixture
def begin(tmp_path: Path, valkey: Server) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start workers, which are killed in the end."""
    (tmp_path / "apart_jobs.py").write_text(JOBS)
    begun: list[subprocess.Popen[bytes]] = []

    def start(*more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runtime", "--redis", valkey.url, "--handlers", "apart_jobs", "--board", "off", *more]
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "SHOP_URL": "x", "SHOP_TOKEN": "x"}
        with (tmp_path / "log").open("ab") as log:
            begun.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def send(server: Server, type_name: str, note: Path) -> None:
    server.client().xadd("{jobs}:high", {"type": type_name, "data": f'{{"note": "{note}"}}'})


def told(note: Path) -> list[str]:
    return note.read_text().split() if note.exists() else []


@pytest.mark.parametrize(
    "flags", [[], ["--processes", "2"], ["--debuggable"], ["--debuggable", "--processes", "2"]], ids=" ".join
)
def test_nobody_reads_the_memory_of_a_worker_unless_it_is_debuggable(
    tmp_path: Path, valkey: Server, begin: Callable[..., subprocess.Popen[bytes]], flags: list[str]
) -> None:
    begin(*flags)
    send(valkey, "look", tmp_path / "note")
    wait_until(lambda: told(tmp_path / "note"), what="it has looked")
    assert told(tmp_path / "note")[0] == str(int("--debuggable" in flags))


def in_fork_as_nobody(do: Callable[[], str]) -> str:
    """Return what a function returns in a process of another user that hides its memory."""
    here, there = os.pipe()
    if not (pid := os.fork()):
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            hide_memory()
            os.write(there, do().encode())
        except BaseException as error:
            os.write(there, repr(error).encode())
        finally:
            os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_process_that_hides_its_memory_finds_of_itself_and_its_children_what_we_ask_for() -> None:
    def look() -> str:
        own = Path("/proc/self")
        assert int((own / "statm").read_text().split()[1]) > 0
        assert (own / "mounts").read_text()
        assert os.listdir("/proc/self/fd")
        os.readlink("/proc/self/fd/0")
        if not (child := os.fork()):
            signal.pause()
        try:
            assert int(Path(f"/proc/{child}/statm").read_text().split()[1]) > 0  # as a supervisor reads of its children
            with pytest.raises(PermissionError):
                Path(f"/proc/{child}/environ").read_bytes()
            with pytest.raises(PermissionError):
                os.open(f"/proc/{child}/mem", os.O_RDONLY)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return "all as it should be"

    assert in_fork_as_nobody(look) == "all as it should be"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_twenty_busy_children_end_with_their_worker(
    tmp_path: Path, valkey: Server, begin: Callable[..., subprocess.Popen[bytes]], by: signal.Signals
) -> None:
    worker = begin("--grace", "0", "--child-env", "SHOP_U*")
    notes = [tmp_path / f"{n}" for n in range(20)]
    for note in notes:
        send(valkey, "hang", note)
    wait_until(lambda: all(len(told(note)) == 3 for note in notes), what="all run")
    assert {tuple(told(note)[1:]) for note in notes} == {("True", "False")}
    pids = {int(told(note)[0]) for note in notes}
    assert len(pids) == 20
    worker.send_signal(by)
    assert worker.wait(30) == (0 if by == signal.SIGTERM else -by)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), what="all are gone")
