"""Handlers that write down what they do: one line per event and one write each, so that the history survives kill -9."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import msgspec

from runtime import Backoff, Job, contract, handler
from runtime.jobs import Batch
from runtime.store.shapes import Settled
from runtime.streams import Streams
from runtime.worker.flusher import leases_of
from tests.faults.ledger import STARVED_S, WATCH_S

HISTORY = os.environ.get("FAULTS_HISTORY", "")
_FILE = os.open(Path(HISTORY) / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) if HISTORY else -1


def note(*words: object) -> None:
    """Append one event to this process's history."""
    if _FILE >= 0:
        os.write(_FILE, (" ".join(map(str, words)) + "\n").encode())


def note_settles() -> None:
    """Have this process write down each answered flush: what it asked for, what was refused, what was gone already."""
    write = Streams.settle

    async def settle(self: Streams, batch: Batch) -> Settled:
        moves = [("done", lease) for leases in batch.done for lease in leases]
        for verb, held in (("defer", batch.defer), ("dead", batch.dead), ("park", batch.park)):
            moves += [(verb, move.lease) for move in held]
        settled = await write(self, batch)
        left = {id(lease) for lease in leases_of(settled.left)}
        places = [f"{verb}:{lease.stream}/{lease.entry.decode()}" for verb, lease in moves if id(lease) not in left]
        note("settle", time.monotonic(), settled.refused, settled.shortfall, *places)
        return settled

    Streams.settle = settle


def note_starvation() -> None:
    """Have this process write down when it got no time of a core: a beat that is late for that is no fault of the runtime's."""

    def watch() -> None:
        while True:
            from_s = time.monotonic()
            time.sleep(WATCH_S)
            if time.monotonic() - from_s >= STARVED_S:
                note("starved", from_s, time.monotonic())

    threading.Thread(target=watch, name="starvation", daemon=True).start()


if _FILE >= 0:
    note_settles()
    note_starvation()


@contract("scripted")
class Scripted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Number `n` runs for `ms`, and fails in its first `failures` attempts; `pad` makes it large."""

    n: int
    ms: float = 0
    failures: int = 0
    pad: str = ""


@handler(Scripted, timeout_s=30, retry=Backoff(base_s=0.05, cap_s=0.3, attempts=3))
async def scripted(message: Scripted, job: Job) -> None:
    """Run as the message says."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)
    try:
        await asyncio.sleep(message.ms / 1000)
    except asyncio.CancelledError:
        note("cut", message.n, job.attempt, time.monotonic())
        raise
    if job.attempt <= message.failures:
        note("fail", message.n, job.attempt, time.monotonic())
        raise RuntimeError(f"attempt {job.attempt} of {message.n} fails as it should")
    note("end", message.n, job.attempt, time.monotonic())


@contract("held")
class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` runs until there is a file `go`, and fails in its first `failures` attempts."""

    n: int
    failures: int = 0


@handler(Held, timeout_s=120, retry=Backoff(base_s=0.05, cap_s=0.3, attempts=3))
async def held(message: Held, job: Job) -> None:
    """Wait for the test's word."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)
    try:
        while not Path(HISTORY, "go").exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        note("cut", message.n, job.attempt, time.monotonic())
        raise
    if job.attempt <= message.failures:
        note("fail", message.n, job.attempt, time.monotonic())
        raise RuntimeError(f"attempt {job.attempt} of {message.n} fails as it should")
    note("end", message.n, job.attempt, time.monotonic())


@contract("blocking")
class Blocking(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` holds the loop for `ms`."""

    n: int
    ms: float


@handler(Blocking, timeout_s=120)
async def blocking(message: Blocking, job: Job) -> None:
    """Block the loop, as a handler should not."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)
    time.sleep(message.ms / 1000)
    note("end", message.n, job.attempt)


@contract("threaded")
class Threaded(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` sleeps in a thread, where nobody can cut it."""

    n: int
    ms: float


@handler(Threaded, timeout_s=120)
def threaded(message: Threaded, job: Job) -> None:
    """Sleep in a thread."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)
    time.sleep(message.ms / 1000)
    note("end", message.n, job.attempt)
