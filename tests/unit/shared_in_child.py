"""A lifespan and handlers for the tests of child processes, which import them by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from runtime import Backoff, Dead, Death, Job, Retry, contract, handler, lifespan, on_dead, on_error


@contract("share")
class Share(msgspec.Struct):
    folder: str


@contract("share-plainly")
class SharePlainly(msgspec.Struct):
    folder: str


def note(folder: Path, *words: object) -> None:
    """Add a line to what has happened."""
    with (folder / "notes").open("a") as notes:
        notes.write(" ".join(map(str, words)) + "\n")


@lifespan
async def shared() -> AsyncGenerator[asyncio.AbstractEventLoop]:
    """Note its begin and its end in the folder that the environment names; fail while there is a file `broken`."""
    folder = Path(os.environ["SHARED_FOLDER"])
    if (folder / "broken").exists():
        raise OSError("it is broken")
    note(folder, "begin", os.getpid())
    yield asyncio.get_running_loop()
    note(folder, "end", os.getpid())


@handler(Share, runs="process")
async def uses(message: Share, job: Job) -> None:
    note(Path(message.folder), "uses", os.getpid(), shared.value is asyncio.get_running_loop())
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), 0)
    asyncio.get_running_loop().create_task(exits())


async def exits() -> None:
    """Outlive its job, and raise past the next one."""
    await asyncio.sleep(0)
    raise SystemExit(3)


@handler(SharePlainly, runs="process")
def uses_none(message: SharePlainly, job: Job) -> None:
    note(Path(message.folder), "plain", os.getpid(), shared)


@on_error
def hear(job: Job, error: BaseException, outcome: Retry | Dead) -> None:
    """Hear nothing."""


@on_dead
def bury(death: Death) -> str:
    """Return whose death it is."""
    return death.job_id


@contract("share-large")
class ShareLarge(msgspec.Struct):
    pass


LARGE_BYTES = 300 << 20


@lifespan
async def large() -> AsyncGenerator[bytearray]:
    """Take more memory than a job that uses it may."""
    yield bytearray(LARGE_BYTES)


@handler(ShareLarge, runs="process", memory_bytes=LARGE_BYTES // 3, retry=Backoff(attempts=1))
def uses_large(message: ShareLarge, job: Job) -> None:
    assert len(large.value) == LARGE_BYTES
