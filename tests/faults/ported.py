"""Handlers of a storm of two releases: this file is laid into the last one too, so it knows the public names only.

Which of the two runs it, the environment says: the last release knows a contract less, and of another one an older version.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

import runtime
from runtime import Backoff, Job, contract, handler

IS_LAST_RELEASE: Final = os.environ.get("FAULTS_RELEASE") == "last"
HISTORY: Final = os.environ.get("FAULTS_HISTORY", "")
CODE: Final = ".code"  # of the file in which a worker says where its runtime lies

TIMEOUT_S: Final = 30.0
RETRY: Final = Backoff(base_s=0.05, cap_s=0.3, attempts=3)  # the sender counts on three attempts
SECOND_LIFE: Final = 10_000_000  # a number that was replayed goes on as this and itself: it has a fresh count of attempts
OLD: Final = 1_000_000  # the first number that the last release sends
KEYED_EVERY: Final = 6  # of the numbers that would have no key
KEYS: Final = 4  # so few that many are dropped as duplicates, of the own release and of the other one


class Ported(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Number `n` runs for `ms`, and fails in its first `failures` attempts until somebody fixes it; `pad` makes it large."""

    n: int
    ms: float = 0
    failures: int = 0
    pad: str = ""


class Diary:
    """Writes one run down, in the history of the worker with this process number."""

    def __init__(self, message: Ported, job: Job, pid: int) -> None:
        self._job = job
        self._is_fixed = fixed(HISTORY, message.n).exists()
        self._n = message.n + SECOND_LIFE * self._is_fixed
        self._failures = message.failures
        self._file = os.open(Path(HISTORY, f"{pid}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._note("start", f"{job.entry.decode()} {job.count} {time.monotonic()} {job.stream}")

    def _note(self, kind: str, rest: object) -> None:
        os.write(self._file, f"{kind} {self._n} {self._job.attempt} {rest}\n".encode())

    def cut(self) -> None:
        self._close("cut")

    def close(self) -> None:
        """Write down how it ends, and raise where it must fail."""
        fails = self._job.attempt <= self._failures and not self._is_fixed
        self._close("fail" if fails else "end")
        if fails:
            raise RuntimeError(f"attempt {self._job.attempt} of {self._n} fails as it should")

    def _close(self, kind: str) -> None:
        self._note(kind, time.monotonic())
        os.close(self._file)


def fixed(history: str | Path, n: int) -> Path:
    """Return the file that says that what made number `n` fail is fixed."""
    return Path(history, f"fixed-{n}")


def fate_of(n: int, fate: str) -> str:
    """Return the fate of a number: more of them have a key than elsewhere."""
    return "keyed" if fate == "ok" and n % KEYED_EVERY == 0 else fate


def key_of(n: int) -> str:
    """Return the key of a number that has one."""
    return f"key-{n // KEYED_EVERY % KEYS}"


@contract("ported")
class InLoop(Ported):
    """Both releases know it alike."""


@handler(InLoop, timeout_s=TIMEOUT_S, retry=RETRY)
async def in_loop(message: InLoop, job: Job) -> None:
    await run(message, job)


async def run(message: Ported, job: Job) -> None:
    diary = Diary(message, job, os.getpid())
    try:
        await asyncio.sleep(message.ms / 1000)
    except asyncio.CancelledError:
        diary.cut()
        raise
    diary.close()


@contract("ported-thread")
class InThread(Ported):
    """Blocks, in a thread."""


@handler(InThread, timeout_s=TIMEOUT_S, retry=RETRY)
def in_thread(message: InThread, job: Job) -> None:
    diary = Diary(message, job, os.getpid())
    time.sleep(message.ms / 1000)
    diary.close()


@contract("ported-child")
class InChild(Ported):
    """Blocks, in a child process, which writes in its worker's history."""


@handler(InChild, timeout_s=TIMEOUT_S, retry=RETRY, runs="process")
def in_child(message: InChild, job: Job) -> None:
    diary = Diary(message, job, os.getppid())
    time.sleep(message.ms / 1000)
    diary.close()


def lift(version: int, payload: dict[str, Any]) -> dict[str, Any]:
    """Return a payload of the first version as one of the second: nothing has changed but the number."""
    assert version == 1, version
    return payload


@contract("ported-lifted", version=1 if IS_LAST_RELEASE else 2, upcast=None if IS_LAST_RELEASE else lift)
class Lifted(Ported):
    """Each release sends its own version; the older workers must leave the newer one to the newer workers."""


@handler(Lifted, timeout_s=TIMEOUT_S, retry=RETRY)
async def lifted(message: Lifted, job: Job) -> None:
    await run(message, job)


@contract("ported-new")
class New(Ported):
    """The last release does not know it."""


if not IS_LAST_RELEASE:

    @handler(New, timeout_s=TIMEOUT_S, retry=RETRY)
    async def new(message: New, job: Job) -> None:
        await run(message, job)


# How many in a hundred typed messages are of each style; the others are the plain one of each release. A child costs half a
# second of a core to start, on machines with two of them.
BOTH_KNOW: Final[Mapping[type[Ported], int]] = {InLoop: 30, InThread: 12, InChild: 2, Lifted: 10}
STYLES: Final[Mapping[type[Ported], int]] = BOTH_KNOW if IS_LAST_RELEASE else {**BOTH_KNOW, New: 8}
TYPE_OF: Final[Mapping[type[Ported], str]] = {
    InLoop: "ported",
    InThread: "ported-thread",
    InChild: "ported-child",
    Lifted: "ported-lifted",
    New: "ported-new",
}
MENDABLE: Final = tuple(TYPE_OF.values())


if HISTORY:
    Path(HISTORY, f"{os.getpid()}{CODE}").write_text(str(Path(runtime.__file__).parent))
