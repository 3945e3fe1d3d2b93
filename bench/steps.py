"""`python -m bench.steps`: measures what each step of a worker costs per job, by calling its functions on batches, without Redis.

In a drain the sum is larger by what is left out here: sockets, the loop's turns, and Redis on the other half of the same core.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import sys
import time
import timeit
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import copy_context
from itertools import repeat
from random import random
from statistics import median
from typing import Final

import uvloop
from hiredis import Reader

from bench.lab import PAYLOAD
from runtime import registry
from runtime.codec import Row, decode_many
from runtime.jobs import Job
from runtime.rubbish import THRESHOLDS
from runtime.stats import Stats
from runtime.store.resp import pack, packed_value, tail_of
from runtime.worker.admission import admit
from runtime.worker.held import Held
from runtime.worker.lanes import Inbox, Lane
from runtime.worker.ledger import Ledger

BATCH: Final = 500  # what a busy worker with 500 lanes fetches at least
LANES: Final = 500  # those of `bench.measures`
BLOCK_S: Final = 0.02  # a guess: a handler that blocks noticeably
NOW_MS: Final = 1_790_000_000_000  # any time: a day of 2026


class Steps:
    """Owns the seconds that each step took, one number per batch."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        """Measure the block."""
        began_s = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - began_s)

    def per_job_us(self) -> dict[str, float]:
        """Return the median of each step in µs per job."""
        return {name: median(seconds) / BATCH * 1e6 for name, seconds in self.seconds.items()}


async def measure(batches: int) -> Steps:
    """Take batches through the steps of a worker, one after the other."""
    steps, found, held, ledger, inbox, stats = Steps(), registry.find(["bench.noop"]).registry, Held(), Ledger(), Inbox(), Stats()
    lanes = [Lane(inbox, ledger, stats, found, time.monotonic, random) for _ in range(LANES)]
    running = [asyncio.create_task(lane.run()) for lane in lanes]
    reader = Reader()
    for batch in range(batches):
        reply = _reply(batch * BATCH)
        with steps.step("parse the reply"):
            reader.feed(reply)
            rows = reader.gets()[0][1]
        with steps.step("decode the envelope"):
            jobs, _ = decode_many(2, rows, repeat(1), "run", time.monotonic(), NOW_MS)
        with steps.step("hold the lease"):
            held.add(2, jobs)
        with steps.step("count what waited"):
            stats.waited(jobs, NOW_MS)
        with steps.step("admit"):
            ready = admit(jobs, found, NOW_MS).ready
        with steps.step("run: decode, call, count, note"):
            inbox.put(ready)
            while stats.finished < (batch + 1) * BATCH:
                await asyncio.sleep(0)
            stats.fold()
        done = ledger.take().done[2]
        with steps.step("pack XACK and XDEL"):
            ids = tail_of([job.entry for job in done])
            pack([("XACK", "{jobs}:medium", "workers", ids), ("XDEL", "{jobs}:medium", ids)])
        with steps.step("let go of the lease"):
            held.remove(done)
        kept: list[object] = [rows, jobs, ready, done]
        with steps.step("free the memory"):
            del rows, jobs, ready, done, ids
            kept.clear()
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    return steps


async def longest_turn_ms(jobs: int = 100) -> float:
    """Return the longest turn of the loop in ms, beside handlers that block it for `BLOCK_S`."""
    inbox, ledger, stats, longest_s = Inbox(), Ledger(), Stats(), 0.0

    async def block(payload: object, job: Job) -> None:
        time.sleep(BLOCK_S)

    noop = next(iter(registry.find(["bench.noop"]).registry.values()))
    blocking = {noop.contract.type.encode(): dataclasses.replace(noop, run=block)}
    lanes = [Lane(inbox, ledger, stats, blocking, time.monotonic, random) for _ in range(LANES)]
    for lane in lanes:
        lane.start()
    await asyncio.sleep(0)
    found, _ = decode_many(2, _rows(jobs), repeat(1), "run", time.monotonic(), NOW_MS)
    inbox.put(found)
    while stats.finished < jobs:
        began_s = time.perf_counter()
        await asyncio.sleep(0)
        longest_s = max(longest_s, time.perf_counter() - began_s)
    for lane in lanes:
        lane.stop()
    await asyncio.sleep(0)
    return longest_s * 1000


def context_us() -> float:
    """Return what it costs a lane, in µs per job, to check that the handler set no context variable."""
    first = copy_context()
    best_s = min(timeit.repeat(lambda: copy_context() == first, number=100_000, repeat=7))
    return (best_s - min(timeit.repeat(lambda: first, number=100_000, repeat=7))) / 100_000 * 1e6


def _rows(count: int) -> list[Row]:
    reader = Reader()
    reader.feed(_reply(0))
    return reader.gets()[0][1][:count]


def _reply(first: int) -> bytes:
    """Return the answer of Redis to XREADGROUP, with a batch from this number on."""
    rows = [
        b"*2\r\n%b*4\r\n%b" % (packed_value(b"%d-%d" % (NOW_MS, first + n)), b"".join(map(packed_value, words)))
        for n, words in enumerate([(b"type", b"noop", b"data", PAYLOAD)] * BATCH)
    ]
    return b"*1\r\n*2\r\n%b*%d\r\n%b" % (packed_value(b"{jobs}:medium"), BATCH, b"".join(rows))


def main() -> int:
    """Measure, and print the costs."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.steps", description="Measure what each step of a worker costs per job, without Redis."
    )
    parser.add_argument("--batches", type=int, default=300, metavar="N", help=f"batches of {BATCH} jobs; default 300")
    parsed = parser.parse_args()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    per_job_us = uvloop.run(measure(parsed.batches)).per_job_us()
    print(f"µs per job, medians of {parsed.batches} batches of {BATCH}")
    for name, us in per_job_us.items():
        print(f"{us:7.2f}  {name}")
    print(f"{sum(per_job_us.values()):7.2f}  in all")
    print(f"{context_us():7.2f}  of it to check that a job has set no context variable")
    longest_ms = uvloop.run(longest_turn_ms())
    print(f"{longest_ms:7.1f}  ms is the longest turn of the loop, with handlers that block it for {BLOCK_S * 1000:g} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
