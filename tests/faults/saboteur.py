"""Handlers that break the machinery around them, and what may keep a process that has crashed."""

from __future__ import annotations

import asyncio
import atexit
import logging
import logging.config
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any

import msgspec

from runtime import Backoff, Job, contract, handler
from runtime.consumer import Consumer
from runtime.stats import Stats
from runtime.streams import Streams
from runtime.supervisor import Tether
from runtime.worker.fetcher import Fetcher
from runtime.worker.flusher import Flusher
from runtime.worker.maintenance import Maintenance
from tests.faults.jobs import note

PARTS: dict[str, tuple[type[Any], str]] = {
    "fetcher": (Fetcher, "_round"),
    "flusher": (Flusher, "flush"),
    "watchdog": (Stats, "fold"),
    "promote": (Streams, "promote"),
    "sweep": (Maintenance, "sweep_once"),
    "count": (Maintenance, "count_once"),
    "heartbeat": (Streams, "renew"),
    "lane": (Stats, "ran"),
    "report": (Tether, "send"),
    "stop": (Consumer, "_cut_lanes"),
}


@contract("sabotage")
class Sabotage(msgspec.Struct, frozen=True, kw_only=True):
    """Let a part of the worker raise from now on; after that hold the loop for `blocks_s`."""

    part: str
    blocks_s: float = 0


@handler(Sabotage)
async def sabotage(message: Sabotage, job: Job) -> None:
    """Break it."""
    owner, name = PARTS[message.part]

    def broken(*given: object, **named: object) -> None:
        raise RuntimeError(f"sabotage of the {message.part}")

    setattr(owner, name, broken)
    note("start", 0, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)
    time.sleep(message.blocks_s)


@contract("hinder")
class Hinder(msgspec.Struct, frozen=True, kw_only=True):
    """Do number `n` what keeps a process: in the loop, in threads, at the exit."""

    n: int


@handler(Hinder)
async def hinder(message: Hinder, job: Job) -> None:
    """Swallow every cancel, beside a thread that ends the exit never, and a hook that does not either."""
    threading.Thread(target=time.sleep, args=(3600,)).start()
    atexit.register(time.sleep, 3600)
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            note("cut", message.n, job.attempt, time.monotonic())


@contract("hook")
class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """Leave a hook behind that hangs at the exit."""

    n: int


@handler(Hook)
async def hook(message: Hook, job: Job) -> None:
    """Leave it behind."""
    atexit.register(time.sleep, 3600)
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)


@contract("leave-behind")
class LeaveBehind(msgspec.Struct, frozen=True, kw_only=True):
    """Leave something behind in the process that the worker must live with, or end in spite of."""

    what: str


@handler(LeaveBehind, retry=Backoff(attempts=1))
async def leave_behind(message: LeaveBehind, job: Job) -> None:
    """Leave it behind."""
    LEFT_BEHIND[message.what]()
    await asyncio.sleep(0)  # a task begins
    note("start", 0, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)


KEPT: list[object] = []


def stop_the_loop() -> None:
    asyncio.get_running_loop().stop()


def break_the_log() -> None:
    """Have a filter raise where the log hears of a callback that fails."""

    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError("a filter that fails")

    log = logging.getLogger("asyncio")
    log.addFilter(refuse)
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: 1 / 0)
    loop.call_later(0.1, log.removeFilter, refuse)


def make_tasks_by_hand() -> None:
    """Set a factory of tasks as libraries wrote them before tasks had a context to begin in."""
    asyncio.get_running_loop().set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))  # pyright: ignore[reportArgumentType]
    VARIABLE.set("set")


def configure_logging() -> None:
    logging.config.dictConfig({"version": 1})


class Hanging(logging.Handler):
    """Never comes to an end with a line."""

    def emit(self, record: logging.LogRecord) -> None:
        time.sleep(3600)


def hang_the_log() -> None:
    logging.getLogger("runtime").addHandler(Hanging(logging.CRITICAL))


def close_stderr() -> None:
    sys.stderr.close()


def replace_stderr() -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr.close()


def hang_at_the_exit() -> None:
    atexit.register(time.sleep, 3600)


def keep_a_task(on_cancel: Callable[[], None]) -> None:
    async def stay() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                on_cancel()

    KEPT.append(asyncio.create_task(stay()))


def keep_a_generator() -> None:
    async def numbers() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(3600)

    async def take_one() -> None:
        one = numbers()
        KEPT.append(one)
        await anext(one)

    KEPT.append(asyncio.create_task(take_one()))


def interrupt() -> None:
    raise KeyboardInterrupt


LEFT_BEHIND: dict[str, Callable[[], None]] = {
    "a stopped loop": stop_the_loop,
    "a filter that raises": break_the_log,
    "a task factory": make_tasks_by_hand,
    "another log": configure_logging,
    "a log that hangs": hang_the_log,
    "a closed stderr": close_stderr,
    "another stderr": replace_stderr,
    "a hook": hang_at_the_exit,
    "a stubborn task": lambda: keep_a_task(lambda: None),
    "a task that exits": lambda: keep_a_task(lambda: sys.exit(7)),
    "a task that interrupts": lambda: keep_a_task(interrupt),
    "a generator": keep_a_generator,
}
VARIABLE: ContextVar[str] = ContextVar("variable", default="")


@contract("exit-in-a-task")
class ExitInATask(msgspec.Struct, frozen=True, kw_only=True):
    """Exit in a task of the handler's own, by `how`."""

    how: str


@handler(ExitInATask, retry=Backoff(base_s=0.05, cap_s=0.05, attempts=2))
async def exit_in_a_task(message: ExitInATask, job: Job) -> None:
    """Await a task that exits."""

    async def leave() -> None:
        await asyncio.sleep(0)
        if message.how == "exit":
            sys.exit(3)
        raise KeyboardInterrupt

    await asyncio.gather(leave())


@contract("cancel-all")
class CancelAll(msgspec.Struct, frozen=True, kw_only=True):
    """Cancel every task of the loop that is of a kind, `name` being a part of its name; all for an empty one."""

    name: str = ""


@handler(CancelAll)
async def cancel_all(message: CancelAll, job: Job) -> None:
    """Cancel what belongs to others."""
    for task in asyncio.all_tasks():
        if message.name in task.get_name():
            task.cancel()


@contract("self-cancel")
class SelfCancel(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` sleeps for `ms`, then cancels its own task."""

    n: int
    ms: float


@handler(SelfCancel)
async def self_cancel(message: SelfCancel, job: Job) -> None:
    """End the lane."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic(), job.stream)
    await asyncio.sleep(message.ms / 1000)
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
