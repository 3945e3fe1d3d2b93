"""A handler that keeps memory, as one with a leak does."""

from __future__ import annotations

import asyncio

import msgspec

from runtime import Job, contract, handler
from tests.faults.jobs import note

_KEPT: list[bytearray] = []


@contract("greedy")
class Greedy(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` keeps `mb` for ever."""

    n: int
    mb: int


@handler(Greedy)
async def greedy(message: Greedy, job: Job) -> None:
    """Keep the memory, each page of it touched."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count)
    _KEPT.append(bytearray(b"x") * (message.mb * 1024 * 1024))
    await asyncio.sleep(0.05)
    note("end", message.n, job.attempt)
