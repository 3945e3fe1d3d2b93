"""Handlers of the storm over control: they note what they start and end, hand work on, answer, and die until they are mended."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from runtime import Backoff, Dead, Job, contract, handler
from tests.faults.jobs import HISTORY, note

MENDED = "mended"  # a file in the folder of histories: from then on what was dead can be done
SOON = Backoff(base_s=0.05, cap_s=0.3, attempts=3)


@contract("steered")
class Steered(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` runs for `ms`, after it has failed `failures` times."""

    n: int
    ms: float
    failures: int = 0


@handler(Steered, retry=SOON)
async def steered(message: Steered, job: Job) -> None:
    note("steer-start", message.n, time.monotonic(), job.attempt, job.count)
    await asyncio.sleep(message.ms / 1000)
    if job.attempt <= message.failures:
        raise RuntimeError("as it should")
    note("steer-end", message.n, time.monotonic())


@contract("parent")
class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` hands on to so many others, each of them `delay_s` later, after it has failed `failures` times; or dies."""

    n: int
    followers: int
    delay_s: float = 0.0
    failures: int = 0
    is_doomed: bool = False


@contract("follower")
class Follower(msgspec.Struct, frozen=True):
    """The one with this number of a parent's."""

    parent: int
    at: int


@handler(Parent, retry=SOON)
async def parent(message: Parent, job: Job) -> None:
    for at in range(message.followers):
        job.send(Follower(message.n, at), suffix=str(at), delay_s=message.delay_s)
    await asyncio.sleep(0.01)
    if job.attempt <= message.failures:
        raise RuntimeError("as it should")
    if message.is_doomed:
        raise Dead("as it should")
    note("parent-end", message.n)


@handler(Follower, retry=SOON)
async def follower(message: Follower, job: Job) -> None:
    note("follower", message.parent, message.at, job.entry.decode())


@contract("bounced")
class Bounced(msgspec.Struct, frozen=True):
    """The value that a key has by now."""

    key: str
    value: int


@handler(Bounced)
async def bounced(message: Bounced, job: Job) -> None:
    note("bounced", message.key, message.value)


@contract("asked")
class Asked(msgspec.Struct, frozen=True):
    """A question: twice this number. What cannot be divided by ten has an answer."""

    n: int


@handler(Asked, retry=SOON, result_ttl_s=600)
async def asked(message: Asked, job: Job) -> int:
    await asyncio.sleep(0.005)
    note("asked", message.n)
    if message.n % 10 == 0:
        raise Dead("no answer", code="no-answer")
    return 2 * message.n


@contract("doomed")
class Doomed(msgspec.Struct, frozen=True):
    """Dies until it is mended."""

    n: int


@handler(Doomed)
async def doomed(message: Doomed, job: Job) -> None:
    if not (Path(HISTORY) / MENDED).exists():
        raise Dead("not mended")
    note("doomed", message.n, job.entry.decode())
