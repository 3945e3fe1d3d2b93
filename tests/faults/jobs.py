"""Handlers that write down what they do: one line per event and one write each, so that the history survives kill -9."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec

from runtime import Backoff, Job, contract, handler

HISTORY = os.environ.get("FAULTS_HISTORY", "")
_FILE = os.open(Path(HISTORY) / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) if HISTORY else -1


def note(*words: object) -> None:
    """Append one event to this process's history."""
    if _FILE >= 0:
        os.write(_FILE, (" ".join(map(str, words)) + "\n").encode())


@contract("scripted")
class Scripted(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` runs for `ms`, and fails in its first `failures` attempts."""

    n: int
    ms: float = 0
    failures: int = 0


@handler(Scripted, timeout_s=30, retry=Backoff(base_s=0.05, cap_s=0.3, attempts=3))
async def scripted(message: Scripted, job: Job) -> None:
    """Run as the message says."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic())
    await asyncio.sleep(message.ms / 1000)
    if job.attempt <= message.failures:
        note("fail", message.n, job.attempt)
        raise RuntimeError(f"attempt {job.attempt} of {message.n} fails as it should")
    note("end", message.n, job.attempt)


@contract("blocking")
class Blocking(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` holds the loop for `ms`."""

    n: int
    ms: float


@handler(Blocking, timeout_s=120)
async def blocking(message: Blocking, job: Job) -> None:
    """Block the loop, as a handler should not."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic())
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
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic())
    time.sleep(message.ms / 1000)
    note("end", message.n, job.attempt)
