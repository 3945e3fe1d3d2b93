"""Handlers with limits; each writes when its jobs began, when Redis granted them and when they ended, across all processes."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from pathlib import Path
from typing import Final

from bench.noop import Noop
from runtime import Job, contract, handler

RUNS_VARIABLE: Final = "BENCH_RUNS_FILE"
LIMIT: Final = 5
RATE: Final = 100  # in a second
JOB_S: Final = 0.1
HELD_S: Final = 30.0  # a guess: longer than a measurement
# When it began and ended, by this machine's clock in ns; when it was granted, by the server's in ms; the number of its group.
RECORD: Final = struct.Struct("qqqq")

_file = os.open(os.environ[RUNS_VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if RUNS_VARIABLE in os.environ else -1


@contract("capped")
class Capped(Noop, frozen=True, kw_only=True):
    """Five at once, for a tenth of a second each."""


@contract("paced")
class Paced(Noop, frozen=True, kw_only=True):
    """A hundred in a second."""


@contract("grouped")
class Grouped(Noop, frozen=True, kw_only=True):
    """One of each group at once, for a tenth of a second."""


@contract("shut")
class Shut(Noop, frozen=True, kw_only=True):
    """The first keeps the gate shut."""


def runs_in(path: Path) -> list[tuple[int, ...]]:
    """Return what was written of each run."""
    return list(RECORD.iter_unpack(path.read_bytes()))


async def _run(job: Job, for_s: float) -> None:
    began_ns = time.time_ns()
    await asyncio.sleep(for_s)
    if _file >= 0:
        os.write(_file, RECORD.pack(began_ns, time.time_ns(), job.fetched_ms, int(job.envelope.group or 0)))


@handler(Capped, limit=LIMIT)
async def capped(message: Capped, job: Job) -> None:
    """Run for a tenth of a second."""
    await _run(job, JOB_S)


@handler(Paced, rate=f"{RATE}/s")
async def paced(message: Paced, job: Job) -> None:
    """Only tell that it ran."""
    await _run(job, 0)


@handler(Grouped, group_limit=1)
async def grouped(message: Grouped, job: Job) -> None:
    """Run for a tenth of a second."""
    await _run(job, JOB_S)


@handler(Shut, limit=1)
async def shut(message: Shut, job: Job) -> None:
    """Run for as long as anybody looks."""
    await asyncio.sleep(HELD_S)
