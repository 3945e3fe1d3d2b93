"""A handler of many that writes down each job that it starts and ends, and may take its process along."""

from __future__ import annotations

import asyncio
import ctypes
import time

import msgspec

from runtime import Backoff, Job, contract, handler
from tests.faults.jobs import note


@contract("batched")
class Batched(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` runs for `ms` with those it came with, and then ends the process if it `kills`."""

    n: int
    ms: float = 0
    kills: bool = False


@handler(Batched, max_size=20, max_wait_ms=100, timeout_s=120, retry=Backoff(base_s=0.05, cap_s=0.3, attempts=3))
async def batched(messages: list[Batched], jobs: list[Job]) -> None:
    """Run for as long as the longest of them."""
    for message, job in zip(messages, jobs, strict=True):
        note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic())
    await asyncio.sleep(max(message.ms for message in messages) / 1000)
    if any(message.kills for message in messages):
        ctypes.string_at(0)
    for message, job in zip(messages, jobs, strict=True):
        note("end", message.n, job.attempt, time.monotonic())
