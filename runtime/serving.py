"""Serving runs one call after another in a child process, and answers each over the socket on which it came.

What the handler raises is its answer. What is raised beside it, as by a signal handler that a job has left, ends the child:
nobody knows what it would say next.
"""

from __future__ import annotations

import contextlib
import decimal
import importlib
import os
import resource
import runpy
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from contextvars import copy_context
from functools import cache
from types import ModuleType
from typing import Any, Final, Protocol, TypeGuard

import msgspec

from runtime import logs
from runtime.answers import finish, is_to_do
from runtime.channel import Sender
from runtime.frames import (
    HEADER,
    MAX_BESIDE_BYTES,
    MAX_BODY_BYTES,
    MAX_RECORDED,
    READY,
    Answer,
    Buffer,
    Call,
    call_in,
    frame,
    lengths,
    noted_of,
    parts_of,
    room,
    take_over,
)
from runtime.jobs import JOB, Job
from runtime.lifespans import ChildLoop
from runtime.process import die_with, end_fork, give_up_privileges, memory_bytes
from runtime.settle import as_plain_words

TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
# A guess: what jobs have left behind, beyond what handlers and lifespans need; a new child is better.
GROWN_BYTES: Final = 1 << 30


class Asked(Protocol):
    """What `@in_child` makes of a function."""

    def run_here(self, body: Buffer, job: Job) -> msgspec.Struct | None:
        """Return what it returns for this request."""
        ...


def serve(connection: socket.socket, main_file: str) -> None:
    """Run what comes, until the other end is closed, or this process has grown or has no descriptor left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it is for the worker to act on
    give_up_privileges()
    os.register_at_fork(after_in_child=connection.close)  # what a handler forks would keep it open, and the worker waiting
    end = os.fstat(connection.fileno())
    try:
        with contextlib.suppress(OSError):  # the worker has ended, or jobs have left no descriptor for the next one
            connection.sendall(READY)
            while _serve_one(connection, end, main_file) and not _GROWTH.is_large:
                os.close(os.dup(connection.fileno()))
    finally:  # not when the process ends, for which a thread may take its time: a call that is sent here would wait for it
        connection.close()


def _serve_one(connection: socket.socket, end: os.stat_result, main_file: str) -> bool:
    """Run one call; return whether there was one. When it returns, nothing holds what came and went."""
    header = _read(connection, HEADER.size)
    if header is None:
        return False
    head_bytes, body_bytes = lengths(header, 1 << 32, MAX_BODY_BYTES)
    head = _read(connection, head_bytes)
    body = _read(connection, body_bytes) if body_bytes else b""
    if head is None or body is None:
        return False
    call = call_in(head)
    parts = _run(call, body, main_file)
    if not os.path.samestat(os.fstat(connection.fileno()), end):  # the handler has closed it, and has a file of that number
        os._exit(1)
    for part in parts:
        connection.sendall(part)
    return True


def _read(connection: socket.socket, size: int) -> Buffer | None:
    """Return so many bytes; None where the other end is closed."""
    view, at = memoryview(room(size)), 0
    while at < size:
        received = connection.recv_into(view[at:])
        if not received:
            return None
        at += received
    return view


# --- one call ------------------------------------------------------------------------------------------------------------------


def _run(call: Call, body: Buffer, main_file: str) -> list[Buffer]:
    """Run one call, and return the frame of its answer; what it raised goes back as plain words."""
    die_with(call.parent)
    job = call.job.job()
    if call.noted is not None:
        take_over(job.noted(), call.noted)
    job.noted().said.tell = Sender(call.number, call.channel)
    _log_as_worker(call.log)
    logs.trace_ids = lambda: call.trace_ids
    try:
        # Before the bound: what children share, a model say, is no job's memory.
        declared, words = _prepared(call, main_file)
        if declared is None:
            return _framed(call.number, [], job, words)
        with _memory_bound(call.memory_bytes):
            trace = _trace_of(call.carried)
            words, answer = _run_declared(declared, job, trace, body)
            return _framed(call.number, _recorded(trace), job, words, answer)
    except OSError as error:  # of the bound: an earlier job has left no descriptor to read
        return _framed(call.number, [], job, as_plain_words(error))
    finally:
        for timer in TIMERS:  # an alarm that one job has set would hit another
            signal.setitimer(timer, 0)


def _framed(number: int, recorded: list[bytes], job: Job, words: tuple[Any, ...], body: Sequence[Buffer] = ()) -> list[Buffer]:
    end: Any = words  # what `frames` has a struct for, which is written alike
    try:
        return frame(Answer(number, recorded, noted_of(job), end), body)
    except Exception as error:  # a number that is too large, a text that is none
        end = as_plain_words(error)
        return frame(Answer(number, [], None, end))


@cache
def _log_as_worker(settings: tuple[str, str] | None) -> None:
    """Log as the worker does. Done once: a module of handlers may change it."""
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115 -- stays open
    if settings is not None:
        logs.setup(*settings)


@contextlib.contextmanager
def _memory_bound(most_bytes: int | None) -> Generator[None]:
    """Let this child take so much more than it has now; only the soft limit, so that the next job here has its own."""
    if most_bytes is None or sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = memory_bytes()[0] + most_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _trace_of(carried: tuple[str, tuple[Any, ...]] | None) -> Any:
    """Return what traces a job here, as the worker said; None where that is nothing, or fails: the job runs all the same."""
    if carried is None:
        return None
    (module, _, name), arguments = carried[0].partition(":"), carried[1]
    try:
        return getattr(importlib.import_module(module), name)(*arguments)
    except Exception:
        return None


def _recorded(trace: Any) -> list[bytes]:
    try:
        return [] if trace is None else trace.end()[:MAX_RECORDED]
    except Exception:
        return []


# --- what a call names -------------------------------------------------------------------------------------------------------

_HERE: Final = ChildLoop()


class _Growth:
    """How large this process is beyond what its handlers and lifespans needed when they were loaded."""

    def __init__(self) -> None:
        self._loaded = set[tuple[str, ...]]()
        self._own_bytes = 0

    def note(self, *names: str) -> None:
        """Note that these are loaded: what this process has now is their own, if it is the first time."""
        if names not in self._loaded:
            self._loaded.add(names)
            self._own_bytes = max(self._own_bytes, memory_bytes()[1])

    @property
    def is_large(self) -> bool:
        """Whether it has grown by more than GROWN_BYTES."""
        most_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # ever: a fifth of the time that a look takes
        return most_kib << 10 > GROWN_BYTES and memory_bytes()[1] > self._own_bytes + GROWN_BYTES


_GROWTH: Final = _Growth()


def _prepared(call: Call, main_file: str) -> tuple[Any, tuple[Any, ...]]:
    """Return what is declared by this name, with its lifespans open; where that fails, what was raised as plain words."""
    here = os.getpid()
    try:
        declared: Any = _main(main_file) if call.module == "__main__" else importlib.import_module(call.module)
        for part in call.name.split("."):
            declared = getattr(declared, part)
        _HERE.begin(call.lifespans)
        _GROWTH.note(call.module, call.name, *call.lifespans)
    except BaseException as error:  # also what would end this child
        end_fork(here, error)
        return None, as_plain_words(error)
    end_fork(here)
    return declared, ()


@cache
def _main(file: str) -> ModuleType:
    """Return the worker's main module, loaded under the name that `multiprocessing` gives it, so that it starts no worker."""
    main = ModuleType("__mp_main__")
    main.__dict__.update(runpy.run_path(file, run_name="__mp_main__"))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    return main


def _is_asked(declared: object) -> TypeGuard[Asked]:
    return hasattr(declared, "run_here")


def _run_declared(declared: Any, job: Job, trace: Any, body: Buffer) -> tuple[tuple[Any, ...], list[Buffer]]:
    here = os.getpid()
    try:
        has_answer, answer = copy_context().run(_run_alone, declared, job, here, trace, body)
    except BaseException as error:  # also what would end this child, which the next job needs
        end_fork(here, error)
        return as_plain_words(error), []
    end_fork(here)
    return ("done", has_answer), answer


def _run_alone(declared: Any, job: Job, here: int, trace: Any, body: Buffer) -> tuple[bool, list[Buffer]]:
    """Run one job in a copy of this child's first context: variables and decimals that it sets are gone with it.

    Return whether it has answered anything, and that where somebody awaits it.
    """
    if trace is not None:
        with contextlib.suppress(Exception):
            trace.begin()
    decimal.setcontext(decimal.getcontext().copy())
    JOB.set(job)
    if _is_asked(declared):
        return True, parts_of(declared.run_here(body, job), MAX_BESIDE_BYTES)
    answer = declared.function(declared.decode(job), job)
    if is_to_do(answer):
        answer = _HERE.run(_finish(answer, here))
    if declared.result is not None:
        job.noted().result = declared.result.encode(answer)
    return answer is not None, []


async def _finish(answer: object, here: int) -> object:
    try:
        final = await finish(answer)
    except BaseException as error:
        end_fork(here, error)  # before it closes the loop, parts of which it shares with its parent
        raise
    end_fork(here)
    return final
