"""The handlers of the benchmark, each with a payload of about 100 bytes: nothing, a short sleep, one failure, a stop-watch."""

from __future__ import annotations

import asyncio
import atexit
import os
import time
from array import array
from pathlib import Path
from typing import Final

import msgspec

from runtime import Backoff, Job, contract, handler

LATENCY_VARIABLE: Final = "BENCH_LATENCY_FILE"
SLEEP_S: Final = 0.01


@contract("noop")
class Noop(msgspec.Struct, frozen=True, kw_only=True):
    """A small payload, decoded like any other."""

    to: str
    subject: str
    text: str


@contract("nap")
class Nap(Noop, frozen=True, kw_only=True):
    """Sleep for 10 ms."""


@contract("flaky")
class Flaky(Noop, frozen=True, kw_only=True):
    """Fail at the first attempt."""


@contract("timed")
class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """When it was sent, by the clock of this machine."""

    sent_ns: int
    text: str


@handler(Noop)
async def noop(message: Noop, job: Job) -> None:
    """Do nothing."""


@handler(Nap)
async def nap(message: Nap, job: Job) -> None:
    """Wait as for a quick answer from somewhere else."""
    await asyncio.sleep(SLEEP_S)


@handler(Flaky, retry=Backoff(base_s=0.001, cap_s=0.001, attempts=3))
async def flaky(message: Flaky, job: Job) -> None:
    """Succeed at the second attempt."""
    if job.attempt == 1:
        raise ConnectionError("the other side is not there yet")


@contract("litter")
class Litter(Noop, frozen=True, kw_only=True):
    """Leave half a megabyte in a cycle."""


class Node:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.me = self
        self.image = bytes(range(256)) * 2000


@handler(Litter)
async def litter(message: Litter, job: Job) -> None:
    """Leave rubbish that only the collector finds."""
    Node()


_waits_ns = array("q")


@handler(Timed)
async def timed(message: Timed, job: Job) -> None:
    """Note how long it took from the send to here."""
    _waits_ns.append(time.time_ns() - message.sent_ns)


def _tell() -> None:
    Path(os.environ[LATENCY_VARIABLE]).write_bytes(_waits_ns.tobytes())


if LATENCY_VARIABLE in os.environ:
    atexit.register(_tell)
