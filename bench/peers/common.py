"""Shared by all Python peers: the mark that a handler leaves, and the command line that `python -m bench.peers` calls.

This file runs in the environment of each peer, which all have uvloop and nothing else of ours.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

import uvloop

HOST, PORT = "127.0.0.1", int(os.environ["PEERS_PORT"])
URL = f"redis://{HOST}:{PORT}/0"
CONCURRENCY = int(os.environ["PEERS_CONCURRENCY"])
JOBS = int(os.environ["PEERS_JOBS"])  # of the drain; numbers from here on are the latency's
SENDERS = 100  # a guess: a busy web process
CHUNK = 1000  # jobs per call, where a peer can send many; a guess

Send = Callable[[int], Awaitable[Any]]
SendMany = Callable[[Iterable[int]], Awaitable[Any]]
Connect = Callable[[], AbstractAsyncContextManager[tuple[Send, SendMany | None]]]

# The runner reads the same memory: one byte per job of the drain, then one clock reading per job of the latency.
with open(os.environ["PEERS_MARKS"], "r+b") as _file:
    _marks = memoryview(mmap.mmap(_file.fileno(), 0))
_counts, _starts = _marks[:JOBS], _marks[-(-JOBS // 8) * 8 :].cast("q")


def payload(n: int) -> dict[str, Any]:
    """Return the payload of job `n`."""
    return {"to": "a@b.c", "subject": "hi", "n": n}


def ran(n: int) -> None:
    """Mark job `n` as run; a handler does nothing else."""
    if n < JOBS:
        _counts[n] += 1
    else:
        _starts[n - JOBS] = time.monotonic_ns()


async def one_by_one(send: Send, numbers: range) -> None:
    """Send from `SENDERS` tasks, each of which waits for its answer. Where a client blocks, they run one after another."""
    left = iter(numbers)

    async def sender() -> None:
        for n in left:
            await send(n)

    await asyncio.gather(*(sender() for _ in range(SENDERS)))


async def many(send_many: SendMany, numbers: range) -> None:
    """Send `CHUNK` jobs per call."""
    for first in range(0, len(numbers), CHUNK):
        await send_many(numbers[first : first + CHUNK])


async def paced(send: Send, numbers: range, per_s: float) -> list[int]:
    """Send at a steady rate; return the time before each send."""
    began_s = time.monotonic()
    sent_ns: list[int] = []
    for position, n in enumerate(numbers):
        await asyncio.sleep(max(0.0, began_s + position / per_s - time.monotonic()))
        sent_ns.append(time.monotonic_ns())
        await send(n)
    return sent_ns


def main(connect: Connect, work: Callable[[], Any]) -> None:
    """Run `work`, or `one|bulk FIRST END`, or `latency FIRST END PER_S`, and print the result as JSON."""
    role, *numbers = sys.argv[1:]
    if role == "work":
        work()
        return

    async def produce() -> Any:
        jobs = range(int(numbers[0]), int(numbers[1]))
        async with connect() as (send, send_many):
            if role == "latency":
                return await paced(send, jobs, float(numbers[2]))
            began_s = time.perf_counter()
            if role == "one":
                await one_by_one(send, jobs)
            elif send_many is not None:
                await many(send_many, jobs)
            return time.perf_counter() - began_s

    print(json.dumps(run(produce())))


def run(main_coroutine: Any) -> Any:
    """Run on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main_coroutine)
