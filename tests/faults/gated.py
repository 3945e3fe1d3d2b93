"""Handlers with limits, for the storm of gates: each writes down of which gate it is, and when the server let it start."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from runtime import Backoff, Job, contract, handler
from tests.faults.jobs import Scripted, note

LIMIT: Final = 3
RATE: Final = 30  # in a second
TYPE_LIMIT, GROUP_LIMIT, GROUPS = 4, 2, ("", "a", "b", "c")
RETRY: Final = Backoff(base_s=0.05, cap_s=0.3, attempts=3)  # as `scripted` has it: the sender counts on three attempts


@contract("capped")
class Capped(Scripted, frozen=True, kw_only=True, omit_defaults=True):
    """One of LIMIT at once."""


@contract("paced")
class Paced(Scripted, frozen=True, kw_only=True, omit_defaults=True):
    """One of RATE in a second."""


@contract("grouped")
class Grouped(Scripted, frozen=True, kw_only=True, omit_defaults=True):
    """One of GROUP_LIMIT at once of its group, and of TYPE_LIMIT in all."""


async def _run(message: Scripted, job: Job) -> None:
    gate = (job.type.decode(), job.envelope.group.decode() or "-", job.fetched_ms)
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream, *gate)
    try:
        await asyncio.sleep(message.ms / 1000)
    except asyncio.CancelledError:
        note("cut", message.n, job.attempt, time.monotonic())
        raise
    fails = job.attempt <= message.failures
    note("fail" if fails else "end", message.n, job.attempt, time.monotonic())
    if fails:
        raise RuntimeError(f"attempt {job.attempt} of {message.n} fails as it should")


@handler(Capped, limit=LIMIT, timeout_s=30, retry=RETRY)
async def capped(message: Capped, job: Job) -> None:
    """Run as the message says."""
    await _run(message, job)


@handler(Paced, rate=f"{RATE}/s", timeout_s=30, retry=RETRY)
async def paced(message: Paced, job: Job) -> None:
    """Run as the message says."""
    await _run(message, job)


@handler(Grouped, limit=TYPE_LIMIT, group_limit=GROUP_LIMIT, timeout_s=30, retry=RETRY)
async def grouped(message: Grouped, job: Job) -> None:
    """Run as the message says."""
    await _run(message, job)
