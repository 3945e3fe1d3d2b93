"""The handlers of the benchmark: do nothing, sleep, fail once, leave garbage, measure latency; payloads of about 100 bytes."""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import time
from array import array
from pathlib import Path
from typing import Final

import msgspec

from runtime import Backoff, Job, contract, handler

LATENCY_VARIABLE: Final = "BENCH_LATENCY_FILE"
TURNS_VARIABLE: Final = "BENCH_TURNS_FILE"
SLEEP_S: Final = 0.01  # a guess: a query of a database


@contract("noop")
class Noop(msgspec.Struct, frozen=True, kw_only=True):
    """A small payload, decoded like any other."""

    to: str
    subject: str
    text: str


@contract("nap")
class Nap(Noop, frozen=True, kw_only=True):
    """Sleep for 10 ms."""


@contract("handing")
class Handing(Noop, frozen=True, kw_only=True):
    """Hand on a job that does nothing."""


@contract("flaky")
class Flaky(Noop, frozen=True, kw_only=True):
    """Fail at the first attempt."""


@contract("timed")
class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """Tell when it was sent, by the clock of this machine."""

    sent_ns: int
    text: str


@handler(Noop)
async def noop(message: Noop, job: Job) -> None:
    """Do nothing."""


@contract("answer")
class Answer(Noop, frozen=True, kw_only=True):
    """Answer with a small result."""


@handler(Handing)
async def handing(message: Handing, job: Job) -> None:
    """Hand on the same as a job that does nothing."""
    job.send(Noop(to=message.to, subject=message.subject, text=message.text))


@handler(Answer, result_ttl_s=60)
async def answer(message: Answer, job: Job) -> dict[str, int]:
    """Do nothing, and say so."""
    return {"done": 1}


@handler(Nap)
async def nap(message: Nap, job: Job) -> None:
    """Wait, as for the answer of a database."""
    await asyncio.sleep(SLEEP_S)


@handler(Flaky, retry=Backoff(base_s=0.001, cap_s=0.001, attempts=3))
async def flaky(message: Flaky, job: Job) -> None:
    """Succeed at the second attempt."""
    if job.attempt == 1:
        raise ConnectionError("refused at the first attempt")


@contract("litter")
class Litter(Noop, frozen=True, kw_only=True):
    """Leave half a megabyte in a cycle."""


class Node:
    """An object in a cycle of references."""

    def __init__(self) -> None:
        self.me = self
        self.image = bytes(range(256)) * 2000


@handler(Litter)
async def litter(message: Litter, job: Job) -> None:
    """Leave garbage that only the collector finds."""
    Node()


@contract("slow")
class Slow(Noop, frozen=True, kw_only=True):
    """Hold a lane for a second, and tell when it began and ended."""


_turns_ns = array("q")


@handler(Slow)
async def slow(message: Slow, job: Job) -> None:
    """Sleep for half a second to one and a half: so that lanes become free one by one."""
    _turns_ns.append(time.time_ns())
    await asyncio.sleep(0.5 + random.random())
    _turns_ns.append(-time.time_ns())


_waits_ns = array("q")


@handler(Timed)
async def timed(message: Timed, job: Job) -> None:
    """Record the time from the send to here."""
    _waits_ns.append(time.time_ns() - message.sent_ns)


def _write(variable: str, times_ns: array[int]) -> None:
    Path(os.environ[variable]).write_bytes(times_ns.tobytes())


for name, found_ns in ((LATENCY_VARIABLE, _waits_ns), (TURNS_VARIABLE, _turns_ns)):
    if name in os.environ:
        atexit.register(_write, name, found_ns)
