"""Handlers for the tests of `runs="process"`: a child imports them by name, so they stand in a module of their own."""

from __future__ import annotations

import asyncio
import decimal
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime import BadPayload, Dead, Job, Retry, Snooze, contract, handler


@contract("work")
class Work(msgspec.Struct):
    do: str
    note: str = ""


class Mute(Exception):
    """An error whose own message raises."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Unsendable(Exception):
    """An error that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("held back")
        self.hold = lambda: None


def say(message: Work, *words: object) -> None:
    Path(message.note).write_text(" ".join(map(str, words)), "utf-8")


@handler(Work, runs="process")
def work(message: Work, job: Job) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    match message.do:
        case "note":
            say(message, os.getpid(), job.id, job.attempt, job.work, job.born)
        case "retry":
            raise Retry(7.5, "rate limit")
        case "snooze":
            raise Snooze(3.5, "busy")
        case "dead":
            raise Dead("no account", code="no-account")
        case "error":
            raise ValueError("no such file")
        case "exit":
            sys.exit(3)
        case "mute":
            raise Mute
        case "unsendable":
            raise Unsendable
        case "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        case "abort":
            os.abort()
        case "leave":
            os._exit(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            say(message, os.getpid())
            time.sleep(60)
        case "print":
            print("from Python")
        case "write":
            os.write(1, b"from a library in C\n")
        case "command":
            subprocess.run(["echo", "from a command"], check=True)
        case other:
            raise AssertionError(other)


@dataclass
class Declined(Dead):
    """A dataclass, whose constructor calls no other."""

    account: str


class Unwritable(Exception):
    """An error whose every part raises, past all who catch Exception."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __reduce__ = __str__  # pyright: ignore[reportAssignmentType]


@handler(Work, runs="process")
def fail(message: Work, job: Job) -> object:
    match message.do:
        case "keyboard":
            raise KeyboardInterrupt
        case "generator-exit":
            raise GeneratorExit
        case "base":
            raise BaseExceptionGroup("no", [SystemExit(3)])
        case "declined":
            raise Declined("acc-1")
        case "group":
            raise ExceptionGroup("no", [ValueError("beside"), Dead("no account", code="no-account")])
        case "unwritable":
            raise Unwritable
        case "bad":
            raise BadPayload("no such field")
        case "yields":
            return (n for n in range(3))
        case "coroutine":
            return work_async.function(message, job)
        case "never-awaits":
            return asyncio.sleep(0, result=work_async.function(message, job))
        case other:
            raise AssertionError(other)


@handler(Work, runs="process")
async def writes(message: Work, job: Job) -> None:
    """Write lines to the log, and 1 MB to standard error with a command."""
    log = logging.getLogger("shop")
    log.warning("by the job")
    await asyncio.to_thread(log.warning, "by its thread")
    await asyncio.gather(*[_warn(log) for _ in range(2)])
    if message.do == "much":
        subprocess.run(["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x >&2"], check=True)


async def _warn(log: logging.Logger) -> None:
    log.warning("by a task of it")


USER: ContextVar[str] = ContextVar("user", default="nobody")


def _alarmed(*_: object) -> None:
    raise TimeoutError("an alarm that another job has set")


def _command_later(note: str) -> None:
    """Run a command while no job runs here, which writes to the standard output that it then has."""
    while os.path.samestat(os.fstat(1), os.stat(os.devnull)):
        time.sleep(0.001)
    subprocess.run(["sh", "-c", "echo 12345 12345; true"], check=True, stderr=subprocess.DEVNULL)
    Path(note).touch()


@handler(Work, runs="process")
def leaves(message: Work, job: Job) -> None:
    """Leave something behind, for jobs that run after it in the same child."""
    here = os.getpid()
    match message.do:
        case "fork-exits" | "fork-returns" | "fork-raises" if os.fork() == 0:
            if message.do == "fork-exits":
                sys.exit(3)
            if message.do == "fork-raises":
                raise ValueError("in the fork")
        case "fork-thread":
            thread = threading.Thread(target=os.fork)
            thread.start()
            thread.join()
        case "fork-process":
            process = multiprocessing.get_context("fork").Process(target=print)
            process.start()
            process.join()
        case "command":
            threading.Thread(target=_command_later, args=(message.note,), daemon=True).start()
        case "variable":
            USER.set("alice")
            decimal.getcontext().prec = 3
        case "alarm":
            signal.signal(signal.SIGALRM, _alarmed)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        case "signal":  # raises while no job runs here
            signal.signal(signal.SIGUSR1, _alarmed)
        case "sees":
            say(message, os.getpid(), USER.get(), decimal.Decimal(1) / 3, signal.getitimer(signal.ITIMER_REAL)[0])
        case _:
            pass
    if message.note and message.do.startswith("fork") and os.getpid() == here:
        say(message, os.getpid())


@handler(Work, runs="process")
async def forks_async(message: Work, job: Job) -> None:
    await asyncio.sleep(0)
    if os.fork() == 0 and message.do == "exits":
        sys.exit(0)


@handler(Work, runs="process")
async def work_async(message: Work, job: Job) -> None:
    say(message, os.getpid())


@handler(Work, runs="process")
def speaks(message: Work, job: Job) -> None:
    """Say how far it is, and then do what it is told."""
    job.progress(3, 7, "rows")
    job.log("one line")
    job.log(f"two lines\nof {os.getpid()}")
    match message.do:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            say(message, os.getpid())
            time.sleep(60)
        case "settle":
            job.settle(ValueError("no"))
        case "marks":
            _ = job.marks
        case "raise":
            raise ValueError("no")
        case "flood":
            begun_s = time.perf_counter()
            for n in range(100_000):
                job.progress(n, 100_000)
            say(message, time.perf_counter() - begun_s)


@handler(Work, runs="process")
async def speaks_async(message: Work, job: Job) -> None:
    await asyncio.to_thread(job.log, "from a thread in a child")


@contract("picky")
class Picky(msgspec.Struct):
    do: str

    def __post_init__(self) -> None:
        raise OSError("no such folder")


@handler(Picky, runs="process")
def unfit(message: Picky, job: Job) -> None:
    raise AssertionError("it never runs")


@contract("answer-in-child")
class Question(msgspec.Struct):
    text: str = ""


@handler(Question, runs="process")
def answer(message: Question, job: Job) -> str | None:
    return message.text or None
