"""A worker opens what its handlers share before its first job, and closes it after its last; in processes, with exit statuses."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import msgspec
import pytest

from runtime import Backoff, Job, LifespanFailed, contract, handler, lifespan
from runtime.testing import worker
from tests.faults.harness import ROOT
from tests.servers import Server, wait_until
from tests.unit.shared_in_child import ShareLarge, SharePlainly, large, shared, uses_large, uses_none
from tests.workers import until


@contract("share")
class Share(msgspec.Struct):
    pass


class Shared:
    """A lifespan, a handler that uses it, and what has happened."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.may_begin, self.is_broken = asyncio.Event(), asyncio.Event()

        @lifespan
        async def pool() -> AsyncGenerator[str]:
            await self.may_begin.wait()
            self.events.append("open")
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self.keep())
                yield "pool"
                keeper.cancel()
            self.events.append("closed")

        @handler(Share)
        async def share(message: Share, job: Job) -> None:
            self.events.append(f"runs with the {pool.value}")
            try:
                await asyncio.Event().wait()
            finally:
                self.events.append(f"is cut with the {pool.value}")

        self.pool, self.handler = pool, share

    async def keep(self) -> None:
        """Look after the pool until it breaks."""
        await self.is_broken.wait()
        raise ValueError("the pool is gone")


async def test_nothing_is_fetched_before_and_what_is_cut_at_a_stop_has_it_to_its_end(server: Server) -> None:
    shared, raw = Shared(), server.client()
    raw.xadd("{jobs}:high", {"type": "share", "data": "{}"})
    asyncio.get_running_loop().call_later(0.3, shared.may_begin.set)
    async with worker(server.url, shared.handler, lifespans=[shared.pool], grace_s=0.0):
        assert shared.events[0] == "open"
        await until(lambda: len(shared.events) == 2, "it runs")
    assert shared.events == ["open", "runs with the pool", "is cut with the pool", "closed"]
    assert raw.xlen("{jobs}:high") == 1, "given back"


async def test_a_worker_that_is_stopped_while_one_does_not_begin_has_fetched_nothing(valkey: Server) -> None:
    from runtime.config import Config
    from runtime.consumer import Consumer, streams_for

    shared, raw, config = Shared(), valkey.client(), Config()
    raw.xadd("{jobs}:high", {"type": "share", "data": "{}"})
    registry = {b"share": shared.handler}
    consumer = Consumer(config, streams_for(config, valkey.url), registry, lifespans=[shared.pool])
    running = asyncio.create_task(consumer.run())
    await until(lambda: raw.exists("{jobs}:layout"), "it starts")
    consumer.stop()
    report = await running
    assert (report.finished, report.left, shared.events) == (0, 0, [])
    assert raw.xpending("{jobs}:high", "workers")["pending"] == 0


async def test_a_worker_stops_to_be_started_again_where_one_ends_by_itself(valkey: Server) -> None:
    shared, raw = Shared(), valkey.client()
    raw.xadd("{jobs}:high", {"type": "share", "data": "{}"})
    shared.may_begin.set()
    told = "Shared.__init__.<locals>.pool has ended while the worker runs: .*: this worker stops, to be started again"
    with pytest.raises((RuntimeError, ExceptionGroup)) as caught:
        async with worker(valkey.url, shared.handler, lifespans=[shared.pool], grace_s=0.0) as running:
            await until(lambda: len(shared.events) == 2, "it runs")
            shared.is_broken.set()
            await until(lambda: running.consumer.stage.value == "closed" or running._running.done(), "it stops")
    with pytest.raises(RuntimeError, match=told):
        raise caught.value.exceptions[0] if isinstance(caught.value, ExceptionGroup) else caught.value
    assert raw.xpending("{jobs}:high", "workers")["pending"] in (0, 1)


@contract("read-value")
class ReadValue(msgspec.Struct):
    n: int


async def test_no_job_fails_for_a_lifespan_that_ends_by_itself_and_takes_long_to_close(valkey: Server) -> None:
    is_broken, may_close, closes = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def fails() -> None:
        await is_broken.wait()
        raise OSError("the connection is gone")

    @lifespan
    async def slow() -> AsyncGenerator[str]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            try:
                yield "open"
            finally:
                closes.set()
                await may_close.wait()

    @handler(ReadValue, retry=Backoff(attempts=1))
    async def reads(message: ReadValue, job: Job) -> None:
        assert slow.value == "open"
        await asyncio.sleep(0.001)

    with pytest.raises((RuntimeError, ExceptionGroup)):
        async with worker(valkey.url, reads, lifespans=[slow], concurrency=2) as running:
            await running.producer.send_many([ReadValue(n) for n in range(200)])
            await until(lambda: running.consumer.stats.finished > 20, "they run")
            is_broken.set()
            await until(closes.is_set, "it closes")
            for _ in range(20):  # so much the worker would start meanwhile
                await asyncio.sleep(0.005)
            may_close.set()
            await until(running._running.done, "the worker stops")
    assert valkey.client().xlen("{jobs}:dead") == 0


async def test_a_worker_of_a_test_says_which_one_could_not_begin(valkey: Server) -> None:
    @lifespan
    async def breaks() -> AsyncGenerator[None]:
        raise OSError("no host")
        yield

    with pytest.raises(LifespanFailed, match="breaks could not begin: OSError: no host"):
        async with worker(valkey.url, Shared().handler, lifespans=[breaks]):
            pass


async def test_what_an_idle_child_has_open_is_closed_when_the_worker_stops(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARED_FOLDER", str(tmp_path))
    async with worker(valkey.url, uses_none, lifespans=[shared], child_env="SHARED_FOLDER") as running:
        await running.producer.send(SharePlainly(str(tmp_path)))
        await running.settled()
    told = [line.split()[:2] for line in (tmp_path / "notes").read_text().splitlines()]
    ours = str(os.getpid())
    assert sorted(word for word, pid in told if pid == ours) == ["begin", "end"]
    assert [word for word, pid in told if pid != ours] == ["begin", "plain", "end"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
async def test_what_a_child_has_open_is_no_memory_of_its_jobs(valkey: Server) -> None:
    async with worker(valkey.url, uses_large, lifespans=[large]) as running:
        await running.producer.send(ShareLarge())
        await running.settled()
        assert await running.dead_letters() == []


# --- processes ---------------------------------------------------------------------------------------------------------------

JOBS = """
import asyncio, os, time
from collections.abc import AsyncGenerator

import msgspec

from runtime import Job, contract, handler, lifespan


@contract("share")
class Share(msgspec.Struct):
    pass


@handler(Share)
async def share(message: Share, job: Job) -> None: ...


@lifespan
async def database() -> AsyncGenerator[None]:
    how = os.environ["HOW"]
    if how == "raises":
        raise OSError("no host")
    if how == "hangs":
        print("it hangs", flush=True)
        await asyncio.Event().wait()
    print("it is open", flush=True)
    yield
    if how == "never ends":
        time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "shop_jobs.py").write_text(JOBS)
    yield tmp_path


def start(folder: Path, url: str, how: str, *more: str) -> subprocess.Popen[str]:
    """Start a worker whose lifespan does so."""
    command = [sys.executable, "-m", "runtime", "--redis", url, "--handlers", "shop_jobs", "--board", "off", "--log", "plain"]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HOW": how, "PYTHONUNBUFFERED": "1"}
    with (folder / "out").open("w") as out:
        return subprocess.Popen([*command, *more], cwd=folder, stdout=out, stderr=out, env=environment, text=True)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_process_whose_lifespan_raises_ends_with_status_1_and_says_which(folder: Path, valkey: Server, processes: str) -> None:
    assert start(folder, valkey.url, "raises", "--processes", processes).wait(60) == 1
    told = (folder / "out").read_text()
    text = "lifespan shop_jobs:database could not begin: OSError: no host"
    assert f"error    {text}\n    Traceback" in told
    assert ", in database\n" in told
    assert told.splitlines()[-1] == f"runtime: {text}"


def test_a_process_whose_lifespan_hangs_ends_at_a_signal(folder: Path, valkey: Server) -> None:
    process = start(folder, valkey.url, "hangs")
    try:
        wait_until(lambda: "it hangs" in (folder / "out").read_text(), what="it hangs")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert (folder / "out").read_text().splitlines()[-1].startswith("runtime: stopped in ")


def test_a_lifespan_that_holds_the_loop_at_its_end_holds_the_process_no_longer_than_its_hard_deadline(
    folder: Path, valkey: Server
) -> None:
    process = start(folder, valkey.url, "never ends", "--grace", "0")
    try:
        wait_until(lambda: "it is open" in (folder / "out").read_text(), what="it is open")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 4, "and not 60 s later"
    finally:
        process.kill()
