"""`bench`: what one worker does on this machine and this Redis, beside the raw figure; in a queue of its own, removed again."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from typing import Final

import msgspec

from runtime.commands.common import print_json, with_store
from runtime.config import Config
from runtime.consumer import Consumer
from runtime.errors import ConfigError
from runtime.jobs import Job, Priority, contract
from runtime.producer import Producer
from runtime.registry import handler
from runtime.streams import GROUP, Keys
from runtime.wire import Wire

MAX_JOBS: Final = 1_000_000
BATCH: Final = 500
TICK_S: Final = 0.02
DEADLINE_S: Final = 120.0


@contract("bench-noop", priority=Priority.MEDIUM)
class Noop(msgspec.Struct, frozen=True):
    """A payload of about 100 bytes."""

    text: str = "x" * 88


@handler(Noop)
async def noop(message: Noop, job: Job) -> None:
    """Do nothing."""


class Figures(msgspec.Struct):
    """Jobs per second: sent, drained by a worker, and read, acked and deleted by raw commands."""

    jobs: int
    sent_per_s: float
    drained_per_s: float
    raw_per_s: float

    @property
    def ratio(self) -> float:
        """How much of the raw figure a worker reaches."""
        return self.drained_per_s / self.raw_per_s


def act(config: Config, parsed: argparse.Namespace) -> int:
    """Send, drain raw, send again, drain by a worker; print the rates."""
    if not 1_000 <= parsed.jobs <= MAX_JOBS:
        raise ConfigError(f"--jobs {parsed.jobs}: from 1000 to {MAX_JOBS}, please")
    with tempfile.TemporaryDirectory(prefix="backend-jobs-bench-") as folder:  # what is measured here need not be kept
        config = msgspec.structs.replace(config, data_dir=folder)
        figures = with_store(config, lambda url: _measure(url, config, parsed.jobs))
    if parsed.json:
        print_json(figures)
        return 0
    print(f"{figures.jobs:,} jobs of 100 bytes, no-op handler, {config.concurrency} lanes, one process")
    print(f"  sent by a Producer        {figures.sent_per_s:>10,.0f} per second")
    print(f"  run by a worker           {figures.drained_per_s:>10,.0f} per second")
    print(f"  raw fetch, ack and delete {figures.raw_per_s:>10,.0f} per second (the worker reaches {figures.ratio:.0%})")
    return 0


async def _measure(url: str, config: Config, jobs: int) -> Figures:
    queue = f"bench-{secrets.token_hex(4)}"
    keys, wire = Keys(queue), Wire(url, "bench")
    try:
        sent_s = await _fill(url, queue, jobs, "sending")
        raw_s = await _drain_raw(wire, keys, jobs)
        await wire.call(*[("DEL", key) for key in keys.streams])
        await _fill(url, queue, jobs, "sending again")
        drained_s = await _drain(url, msgspec.structs.replace(config, queue=queue), wire, keys, jobs)
        return Figures(jobs, jobs / sent_s, jobs / drained_s, jobs / raw_s)
    finally:
        await _remove(wire, keys)
        await wire.close()
        _progress("", 0, 0)


async def _fill(url: str, queue: str, jobs: int, word: str) -> float:
    began_s = time.perf_counter()
    async with Producer.connect(url, queue=queue) as producer:
        await producer.send_many((Noop() for _ in range(jobs)), progress=lambda done: _progress(word, done, jobs))
    return time.perf_counter() - began_s


async def _drain_raw(wire: Wire, keys: Keys, jobs: int) -> float:
    key = keys.streams[Priority.MEDIUM - 1]
    await wire.call(("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM"))
    began_s, done, ids = time.perf_counter(), 0, list[bytes]()
    read = ("XREADGROUP", "GROUP", GROUP, "raw", "COUNT", BATCH, "STREAMS", key, ">")
    while True:
        settle = [("XACK", key, GROUP, *ids), ("XDEL", key, *ids)] if ids else []
        answers = await wire.call(read, *settle)
        ids = [row[0] for row in answers[0][0][1]] if answers[0] else []
        if not ids:
            return time.perf_counter() - began_s
        done += len(ids)
        _progress("raw", done, jobs)


async def _drain(url: str, config: Config, wire: Wire, keys: Keys, jobs: int) -> float:
    consumer = Consumer(config, url, {b"bench-noop": noop})
    began_s = time.perf_counter()
    running = asyncio.create_task(consumer.run())
    try:
        while consumer.tally.finished < jobs or len(consumer.held):
            if running.done() or time.perf_counter() - began_s > DEADLINE_S:
                raise ConfigError("bench: the worker did not drain the queue")
            _progress("running", consumer.tally.finished, jobs)
            await asyncio.sleep(TICK_S)
        return time.perf_counter() - began_s
    finally:
        consumer.stop()
        await asyncio.wait([running])


async def _remove(wire: Wire, keys: Keys) -> None:
    cursor = b"0"
    while True:
        [[cursor, names]] = await wire.call(("SCAN", cursor, "MATCH", f"{keys.prefix}*", "COUNT", 1000))
        if names:
            await wire.call(("UNLINK", *names))
        if cursor == b"0":
            return


def _progress(word: str, done: int, jobs: int) -> None:
    if sys.stderr.isatty():
        bar = "#" * (done * 30 // jobs) if jobs else ""
        print(f"\r{word:14}{bar:30}\r" if word else "\r\x1b[K", end="", file=sys.stderr, flush=True)
