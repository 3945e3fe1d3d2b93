"""Handlers as people write them who never read our docs: every style runs the same numbers, and must end as the plain one does.

Storms send to these beside `scripted`. A style whose words for a failure the runtime mistook would burn attempts, lose an error
or end its worker, and the checker of the storm would see it.
"""

from __future__ import annotations

import asyncio
import functools
import logging.config
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import msgspec

from runtime import Backoff, Dead, Job, Retry, contract, handler
from tests.faults.jobs import HISTORY, note

if HISTORY:  # in a worker; as in every tutorial, it disables all loggers that are there already, the worker's own among them
    logging.config.dictConfig(
        {
            "version": 1,
            "formatters": {"short": {"format": "%(levelname)s %(message)s"}},
            "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "short"}},
            "root": {"level": "INFO", "handlers": ["console"]},
        }
    )
log = logging.getLogger("shop.jobs")

TIMEOUT_S: Final = 30.0
RETRY: Final = Backoff(base_s=0.05, cap_s=0.3, attempts=3)  # as `scripted` has it: the sender counts on three attempts
POOL: Final = ThreadPoolExecutor(4, "shop-pool")
ORDER: ContextVar[int] = ContextVar("order", default=0)


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Number `n` runs for `ms`, and fails in its first `failures` attempts; `pad` makes it large."""

    n: int
    ms: float = 0
    failures: int = 0
    pad: str = ""


def begin(message: Told, job: Job) -> None:
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)


def must_fail(message: Told, job: Job) -> bool:
    """Write down how this run ends, and return whether it must fail."""
    fails = job.attempt <= message.failures
    note("fail" if fails else "end", message.n, job.attempt, time.monotonic())
    return fails


async def nap(message: Told, job: Job) -> None:
    try:
        await asyncio.sleep(message.ms / 1000)
    except asyncio.CancelledError:
        note("cut", message.n, job.attempt, time.monotonic())
        raise


# --- exceptions of their own ------------------------------------------------------------------------------------------------


class OutOfStock(Retry):
    """Forgets its base class."""

    def __init__(self, product: int) -> None:
        self.product = product


class Refused(Dead):
    """Forgets its base class too: it is no word, and a failure like any other."""

    def __init__(self, order: int) -> None:
        self.order = order


@dataclass
class PaymentFailed(Exception):
    """A dataclass, so that it has an __eq__ and no hash."""

    order: int
    reasons: list[str]


class Moody(Exception):
    """Cannot be shown."""

    def __str__(self) -> NoReturn:
        raise RuntimeError("no words")


@contract("own-words")
class OwnWords(Told):
    """Fails by exceptions of one's own."""


@handler(OwnWords, timeout_s=TIMEOUT_S, retry=RETRY)
async def own_words(message: OwnWords, job: Job) -> None:
    begin(message, job)
    await nap(message, job)
    if must_fail(message, job):
        raise (OutOfStock(7), Refused(message.n), PaymentFailed(message.n, ["card"]), Moody())[message.n % 4]


# --- task groups --------------------------------------------------------------------------------------------------------------


@contract("grouped")
class Grouped(Told):
    """Does its work in a task group, and handles the error of another one."""


@handler(Grouped, timeout_s=TIMEOUT_S, retry=RETRY)
async def grouped(message: Grouped, job: Job) -> None:
    begin(message, job)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_check(message.n))
            group.create_task(asyncio.sleep(60))
    except* ValueError:
        log.debug("number %d is odd", message.n)
    async with asyncio.TaskGroup() as group:
        group.create_task(nap(message, job))
        group.create_task(asyncio.sleep(0))
    if must_fail(message, job):
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            group.create_task(_fail(message.n))


async def _check(n: int) -> NoReturn:
    raise ValueError(n)


async def _fail(n: int) -> NoReturn:
    raise RuntimeError(f"part of {n} fails as it should")


# --- decorators, generators, context ------------------------------------------------------------------------------------------


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """An ordinary decorator: what it gives is no coroutine function."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        log.debug("%s begins", function.__name__)
        return function(*args, **kwargs)

    return wrapper


@contract("decorated")
class Decorated(Told):
    """Hides its coroutine function behind a decorator."""


@handler(Decorated, timeout_s=TIMEOUT_S, retry=RETRY)
@timed
async def decorated(message: Decorated, job: Job) -> None:
    begin(message, job)
    async for _ in _pages(message):
        break  # the generator is left open, for the loop to close
    await nap(message, job)
    if must_fail(message, job):
        raise RuntimeError("fails as it should")


async def _pages(message: Told) -> AsyncGenerator[int]:
    try:
        for page in range(3):
            yield page
    finally:
        await asyncio.sleep(0)


@contract("contextual")
class Contextual(Told):
    """Binds a context variable, as loggers and sessions do, and never takes it back."""


@handler(Contextual, timeout_s=TIMEOUT_S, retry=RETRY)
async def contextual(message: Contextual, job: Job) -> None:
    if ORDER.get():
        raise AssertionError(f"the order of another job is bound: {ORDER.get()}")
    ORDER.set(message.n + 1)
    begin(message, job)
    await nap(message, job)
    if must_fail(message, job):
        raise RuntimeError("fails as it should")


# --- the ends of a process, threads and children --------------------------------------------------------------------------------


@contract("exiting")
class Exiting(Told):
    """Leaves by sys.exit, as a script does."""


@handler(Exiting, timeout_s=TIMEOUT_S, retry=RETRY)
async def exiting(message: Exiting, job: Job) -> None:
    begin(message, job)
    await nap(message, job)
    if must_fail(message, job):
        sys.exit("it is enough")


@contract("pooled")
class Pooled(Told):
    """Has a pool of threads of its own."""


@handler(Pooled, timeout_s=TIMEOUT_S, retry=RETRY)
async def pooled(message: Pooled, job: Job) -> None:
    begin(message, job)
    await asyncio.get_running_loop().run_in_executor(POOL, time.sleep, min(message.ms, 50) / 1000)
    await nap(message, job)
    if must_fail(message, job):
        raise RuntimeError("fails as it should")


@contract("in-thread")
class InThread(Told):
    """Blocks, in a thread."""


@handler(InThread, timeout_s=TIMEOUT_S, retry=RETRY)
def in_thread(message: InThread, job: Job) -> None:
    begin(message, job)
    for _ in _steps(message):
        time.sleep(message.ms / 3000)
    if must_fail(message, job):
        raise KeyError(message.n)


def _steps(message: Told) -> Generator[int]:
    yield from range(3)


@contract("in-child")
class InChild(Told):
    """Blocks, in a child process, which writes in its worker's history."""


@handler(InChild, timeout_s=TIMEOUT_S, retry=RETRY, runs="process")
def in_child(message: InChild, job: Job) -> None:
    with open(os.path.join(HISTORY, f"{os.getppid()}.log"), "ab", buffering=0) as history:
        place = f"{job.entry.decode()} {job.count} {time.monotonic()} {job.stream}"
        history.write(f"start {message.n} {job.attempt} {place}\n".encode())
        time.sleep(message.ms / 1000)
        fails = job.attempt <= message.failures
        history.write(f"{'fail' if fails else 'end'} {message.n} {job.attempt} {time.monotonic()}\n".encode())
    if fails:
        sys.exit(3)


# How many in a hundred typed messages of a storm are of each style; the others are `scripted`. A child costs half a second of a
# core to start, on machines with two of them.
STYLES: Final[Mapping[type[Told], int]] = {
    OwnWords: 8,
    Grouped: 8,
    Decorated: 8,
    Contextual: 8,
    Exiting: 8,
    Pooled: 8,
    InThread: 10,
    InChild: 2,
}
