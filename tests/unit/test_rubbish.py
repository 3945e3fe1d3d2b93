"""Garbage in cycles: found by number while it is young, by growth of memory later, and never against the handlers' word."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.rubbish import GROWTH_BYTES, THRESHOLDS, Rubbish, resident_reader
from tests.faults.worker import ROOT
from tests.servers import wait_until

MB = 1024 * 1024


class Node:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def collector() -> Iterator[None]:
    """Python's collector as it was before, when the test is over."""
    thresholds, is_enabled = gc.get_threshold(), gc.isenabled()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    gc.enable() if is_enabled else gc.disable()


class Process:
    """What a Rubbish is told: the time, and the memory of the process."""

    def __init__(self) -> None:
        self.now_s, self.resident_bytes = 0.0, 100 * MB
        self.rubbish = Rubbish(lambda: self.now_s, lambda: self.resident_bytes)


def old_cycle() -> weakref.ref[Node]:
    """Return a cycle that is garbage, and has survived so long that only a collection of everything finds it."""
    node = Node()
    for _ in range(3):
        gc.collect()
    return weakref.ref(node)


@pytest.mark.usefixtures("collector")
def test_everything_is_collected_when_memory_has_grown_and_not_before():
    process = Process()
    process.rubbish.begin()
    assert gc.get_threshold() == THRESHOLDS
    gc.set_threshold(0)  # none but ours
    left = old_cycle()
    process.resident_bytes += GROWTH_BYTES
    process.rubbish.look()
    assert left() is not None, "it has not grown enough"
    process.resident_bytes += 50 * MB
    process.rubbish.look()
    assert left() is None


@pytest.mark.usefixtures("collector")
def test_growth_counts_from_what_is_left_and_from_the_least_since():
    process = Process()
    process.rubbish.begin()
    gc.set_threshold(0)
    process.resident_bytes = 500 * MB  # what grew is in use
    process.rubbish.look()
    left = old_cycle()
    process.rubbish.look()
    assert left() is not None, "it has not grown since"
    process.resident_bytes = 50 * MB
    process.rubbish.look()
    process.resident_bytes = 200 * MB
    process.rubbish.look()
    assert left() is None


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("how", ["thresholds", "off", "off later"])
def test_what_a_module_has_said_about_the_collector_holds(how):
    if how == "thresholds":
        gc.set_threshold(123, 4, 5)
    elif how == "off":
        gc.disable()
    process = Process()
    process.rubbish.begin()
    if how == "off later":
        gc.disable()
    else:
        assert gc.get_threshold() == ((123, 4, 5) if how == "thresholds" else gc.get_threshold())
        assert gc.get_threshold() != THRESHOLDS
    left = old_cycle()
    process.resident_bytes *= 10
    process.rubbish.look()
    assert left() is not None
    assert gc.isenabled() == (how == "thresholds")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_memory_of_this_process_is_read():
    read = resident_reader()
    before_bytes = read()
    held = bytes(range(256)) * (200 * MB // 256)
    assert read() - before_bytes > 150 * MB
    del held


HANDLERS = """
import gc
import json
import msgspec
from runtime import Job, contract, handler

class Node:
    alive = most = 0

    def __init__(self):
        self.me = self
        Node.alive += 1
        Node.most = max(Node.most, Node.alive)

    def __del__(self):
        Node.alive -= 1

@contract("litter")
class Litter(msgspec.Struct, frozen=True):
    n: int

@handler(Litter)
async def litter(message: Litter, job: Job) -> None:
    for _ in range(message.n):
        Node()

@contract("tell")
class Tell(msgspec.Struct, frozen=True):
    path: str

@handler(Tell)
async def tell(message: Tell, job: Job) -> None:
    with open(message.path, "w") as out:
        json.dump([Node.most, gc.get_threshold()], out)
"""


@pytest.mark.parametrize("options", [(), ("--processes", "2")])
def test_a_worker_whose_handlers_leave_cycles_holds_no_more_of_them_than_python_does_by_itself(valkey, tmp_path, options):
    """Counted in objects, since their size is nothing to the collector; in jobs, and in one job that holds the loop."""
    (tmp_path / "littering.py").write_text(HANDLERS)
    command = [
        sys.executable,
        "-m",
        "runtime",
        "run",
        "--handlers",
        "littering",
        "--redis",
        valkey.url,
        "--board",
        "off",
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    answer = tmp_path / "answer"
    with valkey.client() as raw, (tmp_path / "log").open("ab") as log:
        for n in [*[1] * 6000, 6000]:
            raw.xadd("{jobs}:medium", {"type": "litter", "data": json.dumps({"n": n})})
        worker = subprocess.Popen([*command, *options], cwd=tmp_path, env=environment, stderr=log)
        try:
            wait_until(lambda: raw.xlen("{jobs}:medium") == 0, what="all is done")
            raw.xadd("{jobs}:medium", {"type": "tell", "data": json.dumps({"path": str(answer)})})
            wait_until(lambda: Path(answer).exists() and answer.read_text().endswith("]]"), what="it tells")
        finally:
            worker.terminate()
            worker.wait(60)
    most, thresholds = json.loads(answer.read_text())
    assert most <= 3000, "of 12000"
    assert tuple(thresholds) == THRESHOLDS


def test_a_handler_that_closes_all_files_costs_the_reading_alone(monkeypatch: pytest.MonkeyPatch):
    read = resident_reader()
    for answer in (OSError("closed"), b"", b"no number"):

        def pread(*of: object, answer: bytes | OSError = answer) -> bytes:
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(os, "pread", pread)
        assert read() == 0
