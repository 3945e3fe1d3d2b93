"""Plain functions as coroutines: in a thread, or in a child process that is killed at its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
import anyio.to_process
import anyio.to_thread
from anyio import BrokenWorkerProcess, CapacityLimiter

from runtime.errors import ChildKilled, NotStarted
from runtime.jobs import Job, still_to_await
from runtime.places import PLACES, PROCESS, THREAD, Places
from runtime.settle import as_plain_words, raise_again

_BEHIND: Final = CapacityLimiter(float("inf"))  # anyio's own limiter lets go too early: at the cancel, not at the thread's end
PR_SET_PDEATHSIG: Final = 1
SAFE_PATH: Final = "PYTHONSAFEPATH"  # anyio starts its children by `python -m`, and gives them our path only later
OURS: Final = "child"


async def _open_safely(command: Any, **named: Any) -> anyio.abc.Process:
    return await anyio.open_process(command, env={**os.environ, SAFE_PATH: os.environ.get(SAFE_PATH) or OURS}, **named)


# The only way to start a child that does not import what lies in the current folder first.
anyio.to_process.open_process = _open_safely  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]


def in_thread(function: Callable[[Any, Job], object]) -> Callable[[Any, Job], Awaitable[object]]:
    """Give a coroutine function that runs `function` in a thread.

    A thread cannot be cut: past its deadline the job is counted as timed out, and the thread keeps its place until it ends, so
    that hanging handlers cannot pile up threads without bound.
    """

    async def run(payload: Any, job: Job) -> object:
        places = PLACES.get()[THREAD]
        await places.take()
        slot = object()
        loop = asyncio.get_running_loop()
        started = [slot]  # whoever pops it frees the slot: the thread at its end, or we, if it never began
        running = [slot]

        def work() -> object:
            try:
                started.pop()
            except IndexError:
                return None  # cut before it began
            try:
                return function(payload, job)
            finally:
                running.clear()
                _free_slot(loop, places, slot)

        try:
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_BEHIND)
        except BaseException as error:
            try:
                started.pop()
            except IndexError:
                if running:
                    places.lose(slot, job)
            else:
                places.give_back()
                if isinstance(error, RuntimeError):
                    raise NotStarted(f"no thread could be had: {error}") from error
            raise

    return run


def _free_slot(loop: asyncio.AbstractEventLoop, places: Places, slot: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(places.give_back, slot)


def in_process(
    function: Callable[[Any, Job], object], memory_bytes: int | None = None
) -> Callable[[Any, Job], Awaitable[object]]:
    """Give a coroutine function that runs the handler of this name in a child process, killed when the job is cut.

    The child imports the handler by the name that we declared ourselves, and gets the job as it came from the wire.
    """
    module, name = function.__module__, function.__qualname__

    async def run(payload: Any, job: Job) -> object:
        places = PLACES.get()[PROCESS]
        await places.take()
        call = (_in_child, os.getpid(), memory_bytes, module, name, job)
        try:
            kind, *words = await anyio.to_process.run_sync(*call, cancellable=True, limiter=_BEHIND)
        except OSError as error:  # what the handler raises comes back as words: no child could be started, or spoken with
            raise NotStarted(f"no child process could be had: {error}") from error
        except BrokenWorkerProcess as error:
            raise ChildKilled("the child process of this job was killed or crashed") from error
        finally:
            places.give_back()
        if kind != "done":
            raise_again(kind, *words)

    return run


def _in_child(parent: int, memory_bytes: int | None, module: str, name: str, job: Job) -> tuple[Any, ...]:
    """Run one job here, in the child; what it raised goes back as plain words, since not every exception can be sent."""
    die_with(parent)
    if os.environ.get(SAFE_PATH) == OURS:
        del os.environ[SAFE_PATH]  # what the handler starts has the path that it would have without us
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is the worker's to judge
    with _own_pipes(), _memory_bound(memory_bytes):
        return _run_in_child(module, name, job)


@contextlib.contextmanager
def _memory_bound(memory_bytes: int | None) -> Generator[None]:
    """Let this child take `memory_bytes` more than it has now; only the soft limit, so that the next job here has its own."""
    if memory_bytes is None or sys.platform != "linux":
        yield
        return
    own_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = own_bytes + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _own_pipes() -> Generator[None]:
    """Keep descriptors 0 and 1, over which the worker speaks with this child, out of the handler's reach while it runs."""
    kept = [os.dup(descriptor) for descriptor in (0, 1)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for descriptor in (0, 1):
            os.dup2(nothing, descriptor)
        yield
    finally:
        for descriptor, original in enumerate(kept):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(nothing)


def _run_in_child(module: str, name: str, job: Job) -> tuple[Any, ...]:
    try:
        handler: Any = importlib.import_module(module)
        for part in name.split("."):
            handler = getattr(handler, part)
        rest = still_to_await(handler.function(handler.decode(job), job))
        if rest is not None:
            asyncio.run(_finish(rest))
    except BaseException as error:  # also what would end this child, which the next job needs
        return as_plain_words(error)
    return ("done",)


async def _finish(rest: Awaitable[object] | None) -> None:
    while rest is not None:
        rest = still_to_await(await rest)


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process when the thread of `parent` that started it ends (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), by)
