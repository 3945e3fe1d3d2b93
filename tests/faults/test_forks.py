"""Handlers that fork, in workers of their own: what they fork is no second worker, and leaves the first one alone."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from weakref import WeakKeyDictionary

import msgspec
import pytest

from runtime import Backoff, Job, Producer, contract, handler
from runtime.worker.forks import guard
from tests.faults.harness import hire
from tests.faults.jobs import HISTORY
from tests.faults.store_kit import add, ended, is_settled, second_runs
from tests.servers import wait_until

KEY = "{jobs}:medium"


@contract("forks")
class Forks(msgspec.Struct, frozen=True, kw_only=True):
    n: int
    how: str
    url: str = ""


@contract("forks-in-thread")
class ForksInThread(Forks, frozen=True, kw_only=True):
    pass


def note(word: object) -> None:
    with Path(HISTORY, "forks").open("a") as file:
        file.write(f"{word}\n")


def end(how: str) -> None:
    match how:
        case "exits" | "task":
            sys.exit(0)
        case "raises":
            raise ValueError("in the fork")
        case "hangs":
            time.sleep(60)
        case _:
            pass


async def send(url: str) -> None:
    async with Producer.connect(url) as producer:
        await producer.send(Forks(n=0, how="nothing"))


def in_process(url: str) -> None:
    asyncio.run(send(url))
    time.sleep(60)


def work(message: Forks) -> None:
    """Fork in some way, and note who was forked."""
    if message.how == "nothing":
        note("sent")
    elif message.how == "process":
        process = multiprocessing.get_context("fork").Process(target=in_process, args=(message.url,))
        process.start()
        note(process.pid)
    elif pid := os.fork():
        note(pid)
    else:
        end(message.how)


async def in_task(message: Forks) -> None:
    await asyncio.sleep(0)
    work(message)


@handler(Forks, retry=Backoff(attempts=1))
async def forks(message: Forks, job: Job) -> None:
    here = os.getpid()
    if message.how == "task":
        async with asyncio.TaskGroup() as group:
            group.create_task(in_task(message))
        return
    work(message)
    while message.how == "awaits" and os.getpid() != here:
        await Turn()


@handler(ForksInThread, retry=Backoff(attempts=1))
def forks_in_thread(message: ForksInThread, job: Job) -> None:
    work(message)


class Turn:
    """Let the loop have a turn, without asking it for one."""

    def __await__(self):
        yield


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def noted(history: Path) -> list[str]:
    return (history / "forks").read_text().split() if (history / "forks").exists() else []


def forked(history: Path) -> list[int]:
    return [int(word) for word in noted(history) if word.isdigit()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["forks", "forks-in-thread"])
def test_what_a_handler_forks_is_no_second_worker(valkey, tmp_path, crew, kind):
    raw = valkey.client()
    worker = hire(crew, valkey, tmp_path, "--handlers", "tests.faults.jobs,tests.faults.test_forks", lease_s=30)
    ways = ["exits", "raises", "returns", "hangs", "process", *(["awaits", "task"] if kind == "forks" else [])]
    for at, how in enumerate(ways):
        add(raw, 30, lambda n: 5, first=100 * at)
        raw.xadd(KEY, {"type": kind, "data": json.dumps({"n": at, "how": how, "url": valkey.url})})
        add(raw, 30, lambda n: 5, first=100 * at + 30)
        wait_until(lambda at=at: len(forked(tmp_path)) == at + 1, what=f"one is forked that {how} ({worker.log})")
        pid = forked(tmp_path)[-1]
        if how == "process":
            wait_until(lambda: "sent" in noted(tmp_path), what="a process that was forked may send jobs of its own")
        if how in ("hangs", "process"):
            assert is_running(pid)
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: not is_running(pid), what=f"the one that {how} has ended")
        wait_until(lambda at=at: len(ended(tmp_path)) == 60 * (at + 1), what=f"all jobs beside it are done ({worker.log})")
    wait_until(lambda: is_settled(raw), what="all is settled")
    assert raw.xlen("{jobs}:dead") == 0, "no fork has failed a job"
    assert second_runs(tmp_path) == 0
    assert worker.stop() == 0
    assert "crashed" not in worker.log
    assert "raised SystemExit" not in worker.log
    assert worker.log.count("stopping: ") == 1
    raw.close()


def test_a_fork_leaves_the_signals_of_its_parent_as_they_were(monkeypatch):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for _ in range(2):  # registered twice, where the first worker of this process is gone
        monkeypatch.setattr("runtime.worker.forks._guarded", WeakKeyDictionary())
        guard(lambda: None)
    if not (pid := os.fork()):
        os.kill(os.getpid(), signal.SIGTERM)  # what comes after the fork ends it
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
