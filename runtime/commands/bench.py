"""`bench`: measures what one worker does on this machine and this Redis, beside raw commands, in a queue of its own.

Every step has a limit, so that all of it takes less than half a minute, however slow the machine or far the server.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from statistics import quantiles
from typing import Any, Final

import msgspec

from runtime.commands.common import print_json, with_store
from runtime.commands.flags import add_settings, add_texts, check_between
from runtime.commands.run import loop_factory
from runtime.config import Config
from runtime.consumer import Consumer, Stage, streams_for
from runtime.errors import StoreUnavailable
from runtime.jobs import Handler, Job, Priority, contract
from runtime.producer import Producer
from runtime.registry import handler
from runtime.store.base import GROUP, Keys
from runtime.store.connection import Connection

MIN_JOBS: Final = 1_000  # a guess: fewer are over before the first tick
MAX_JOBS: Final = 1_000_000  # a guess: up to 300 MB in Redis
JOBS: Final = 300_000  # a guess: two to four seconds of each step at 50,000 to 150,000 jobs/s
BATCH: Final = 500  # entries of one raw call, as many as a producer sends with one
TICK_S: Final = 0.02  # between two looks at a worker; a guess: 0.3 % of the longest step
STEP_S: Final = 6.0  # sending, draining raw, draining by a worker: each ends then, with the rate until there; a guess
TIMED_JOBS: Final = 600  # single jobs; six above the 99th percentile
TIMED_EVERY_S: Final = 0.005  # 200 jobs/s: a worker that is idle in between, 3 s in all
BAR: Final = 30  # characters


@contract("bench-noop", priority=Priority.MEDIUM)
class Noop(msgspec.Struct, frozen=True):
    """A payload of about 100 bytes."""

    text: str = "x" * 88


@contract("bench-timed", priority=Priority.MEDIUM)
class Timed(msgspec.Struct, frozen=True):
    """When it was sent, by this process's clock."""

    sent_s: float


@handler(Noop)
async def noop(message: Noop, job: Job) -> None:
    """Do nothing."""


class Figures(msgspec.Struct):
    """Jobs per second that were sent, run by a worker, and read, acked and deleted by raw commands; and latencies.

    A latency is the time from a send to the handler's start, at 200 jobs/s.
    """

    jobs: int
    lanes: int
    sent_per_s: float
    drained_per_s: float
    raw_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float

    @property
    def ratio(self) -> float:
        """How much of the raw figure a worker reaches."""
        return self.drained_per_s / self.raw_per_s


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Measure what one worker does on this machine and this Redis, beside the raw commands: sending, running, latency. "
        "The jobs are in a queue of their own, which is removed again. It takes less than half a minute.",
        "python -m runtime bench --redis redis://127.0.0.1:6379 --json",
    )
    add_settings(parser, "redis", "concurrency")
    text = f"how many jobs ({MIN_JOBS} to {MAX_JOBS}; default {JOBS})"
    parser.add_argument("--jobs", type=int, default=JOBS, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Time single jobs, send many, drain one half raw and the other by a worker; print the figures."""
    check_between("--jobs", arguments.jobs, MIN_JOBS, MAX_JOBS)
    with tempfile.TemporaryDirectory(prefix="backend-jobs-bench-") as folder:  # what is measured here need not be kept
        config = msgspec.structs.replace(config, data_dir=folder)
        figures = with_store(config, lambda url: _measure(url, config, arguments.jobs), loop_factory=loop_factory())
    if arguments.json:
        print_json(figures)
        return 0
    print(f"{figures.jobs:,} jobs of 100 bytes, no-op handler, {figures.lanes} lanes, one process")
    print(f"  sent by a Producer        {figures.sent_per_s:>10,.0f} per second")
    print(f"  run by a worker           {figures.drained_per_s:>10,.0f} per second")
    print(f"  raw fetch, ack and delete {figures.raw_per_s:>10,.0f} per second (the worker reaches {figures.ratio:.0%})")
    print(
        f"  send to handler's start   {figures.latency_p50_ms:>10,.2f} ms, 99 % within {figures.latency_p99_ms:,.2f} ms, at 200/s"
    )
    return 0


async def _measure(url: str, config: Config, jobs: int) -> Figures:
    config = msgspec.structs.replace(config, queue=f"bench-{secrets.token_hex(4)}")
    keys, connection = Keys(config.queue), Connection(url, "bench")
    try:
        waits_ms = [wait_s * 1000 for wait_s in await _time_single_jobs(url, config)]
        parts = quantiles(waits_ms, n=100)
        sent, sent_s = await _fill(url, config.queue, jobs)
        raw, raw_s = await _drain_raw(connection, keys, sent // 2)
        drained, drained_s = await _drain(url, config, sent - raw)
        return Figures(sent, config.concurrency, sent / sent_s, drained / drained_s, raw / raw_s, parts[49], parts[98])
    finally:
        await _remove(connection, keys)
        await connection.close()
        _progress("", 0, 0)


async def _time_single_jobs(url: str, config: Config) -> list[float]:
    """Return the seconds from each send to its handler's start, for jobs that come to an idle worker one by one."""
    waits_s: list[float] = []

    @handler(Timed)
    async def timed(message: Timed, job: Job) -> None:
        waits_s.append(time.perf_counter() - message.sent_s)

    async with _worker(url, config, timed) as (_, running), Producer.connect(url, queue=config.queue) as producer:
        begin_s, sent = time.perf_counter(), 0
        while sent < TIMED_JOBS and time.perf_counter() - begin_s < STEP_S:
            await producer.send(Timed(time.perf_counter()))
            sent += 1
            _progress("timing", sent, TIMED_JOBS)
            await asyncio.sleep(begin_s + sent * TIMED_EVERY_S - time.perf_counter())
        while len(waits_s) < sent and time.perf_counter() - begin_s < 2 * STEP_S and not running.done():
            await asyncio.sleep(TICK_S)
    if len(waits_s) < 2:
        raise StoreUnavailable("bench: no job came back")
    return waits_s


async def _fill(url: str, queue: str, jobs: int) -> tuple[int, float]:
    began_s = time.perf_counter()

    def payloads() -> Iterator[Noop]:
        for n in range(jobs):
            if n % BATCH == 0 and time.perf_counter() - began_s > STEP_S:
                return
            yield Noop()

    async with Producer.connect(url, queue=queue) as producer:
        sent = await producer.send_many(payloads(), progress=lambda done: _progress("sending", done, jobs))
    return len(sent), time.perf_counter() - began_s


async def _drain_raw(connection: Connection, keys: Keys, jobs: int) -> tuple[int, float]:
    key = keys.streams[Priority.MEDIUM - 1]
    began_s, done, ids = time.perf_counter(), 0, list[bytes]()
    while True:
        is_over = done >= jobs or time.perf_counter() - began_s > STEP_S or (done > 0 and not ids)
        commands: list[tuple[Any, ...]] = [("XACK", key, GROUP, *ids), ("XDEL", key, *ids)] if ids else []
        if not is_over:
            commands.append(("XREADGROUP", "GROUP", GROUP, "raw", "COUNT", min(BATCH, jobs - done), "STREAMS", key, ">"))
        answers = await connection.call(*commands) if commands else []
        if is_over:
            return done, time.perf_counter() - began_s
        ids = [row[0] for row in answers[-1][0][1]] if answers[-1] else []
        done += len(ids)
        _progress("raw", done, jobs)


async def _drain(url: str, config: Config, jobs: int) -> tuple[int, float]:
    async with _worker(url, config, noop) as (consumer, running):
        began_s = time.perf_counter()
        while (consumer.stats.finished < jobs or consumer.held) and not running.done():
            if time.perf_counter() - began_s > STEP_S:
                break
            _progress("running", consumer.stats.finished, jobs)
            await asyncio.sleep(TICK_S)
        return consumer.stats.finished, time.perf_counter() - began_s


@asynccontextmanager
async def _worker(url: str, config: Config, run: Handler[Any]) -> AsyncGenerator[tuple[Consumer, asyncio.Task[Any]]]:
    """Return a worker that has begun to fetch, and end it with the block.

    Raises:
        StoreUnavailable: it could not begin, or ended on its own.
    """
    consumer = Consumer(config, streams_for(config, url), {run.contract.type.encode(): run})
    running = asyncio.create_task(consumer.run())
    try:
        while consumer.stage is Stage.STARTING and not running.done():
            await asyncio.sleep(0.001)
        if running.done():
            running.result()
        yield consumer, running
    finally:
        consumer.stop()
        await asyncio.wait([running])
        failure = running.exception()
    if failure is not None:
        raise failure


async def _remove(connection: Connection, keys: Keys) -> None:
    cursor = b"0"
    while True:
        [[cursor, names]] = await connection.call(("SCAN", cursor, "MATCH", f"{keys.prefix}*", "COUNT", 1000))
        if names:
            await connection.call(("UNLINK", *names))
        if cursor == b"0":
            return


def _progress(step: str, done: int, jobs: int) -> None:
    """Draw how far a step is, on a terminal; an empty step clears the line."""
    if sys.stderr.isatty():
        part = done / jobs if jobs else 0.0
        shown = f"\r{step:9}{'#' * round(part * BAR):{BAR}} {part:4.0%}" if step else "\r\x1b[K"
        print(shown, end="", file=sys.stderr, flush=True)
