"""Handlers that take their process along, and innocents beside them; all write down that they started and ended."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time

import msgspec

from runtime import Backoff, Job, contract, handler
from tests.faults.jobs import note


@contract("deadly")
class Deadly(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` ends its process after `ms`: by `segfault`, `abort`, `kill` (as the kernel does when memory is out), or it
    `spins` and never gives the loop back.
    """

    n: int
    how: str
    ms: float = 0


@handler(Deadly, timeout_s=120, retry=Backoff(base_s=0.05, cap_s=0.3, attempts=3))
async def deadly(message: Deadly, job: Job) -> None:
    """Die as told."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic())
    await asyncio.sleep(message.ms / 1000)
    match message.how:
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            while True:
                pass


@contract("lasting")
class Lasting(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` runs for `ms`, however long that is."""

    n: int
    ms: float


@handler(Lasting, timeout_s=600)
async def lasting(message: Lasting, job: Job) -> None:
    """Sleep, beside whatever else there is."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic())
    await asyncio.sleep(message.ms / 1000)
    note("end", message.n, job.attempt, time.monotonic())


@contract("contained")
class Contained(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` does the same in a child process, or takes `bytes` of memory there."""

    n: int
    how: str
    bytes: int = 0


@handler(Contained, runs="process", memory_bytes=200_000_000, timeout_s=60, retry=Backoff(base_s=0.05, cap_s=0.3, attempts=2))
def contained(message: Contained, job: Job) -> None:
    """Die as told, in a child."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic())
    match message.how:
        case "segfault":
            ctypes.string_at(0)
        case "memory":
            bytearray(message.bytes)
        case _:
            pass
    note("end", message.n, job.attempt)
