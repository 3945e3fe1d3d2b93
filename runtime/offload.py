"""Offload makes coroutine functions of handlers that block: in a thread, or in a child process that is killed at its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import decimal
import importlib
import os
import re
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextvars import copy_context
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any, Final, NoReturn, Self

import anyio
import anyio.abc
import anyio.to_process
import anyio.to_thread
from anyio import BrokenWorkerProcess, CapacityLimiter
from msgspec import structs

from runtime import logs
from runtime.answers import finish, is_to_do
from runtime.channel import Sender, channel
from runtime.errors import ChildFailed, ChildKilled, ConfigError, NotStarted
from runtime.followers import check_queue_of
from runtime.jobs import JOB, LANE, Head, Job, Packed, Running
from runtime.lifespans import ChildLoop, names_for_children
from runtime.places import PLACES, PROCESS, THREAD, Places
from runtime.settle import as_plain_words, describe, raise_again, stack_of

_BEHIND: Final = CapacityLimiter(float("inf"))  # anyio's own limiter lets go too early: at the cancel, not at the thread's end
PR_SET_PDEATHSIG: Final = 1  # from linux/prctl.h
SAFE_PATH: Final = "PYTHONSAFEPATH"  # anyio starts its children by `python -m`, and gives them the worker's path only later
OURS: Final = "child"  # the value by which a child knows that it was not the user who set it
HEADERS: Final = re.compile("OTEL_EXPORTER_OTLP_(.+_)?HEADERS")
TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)

_numbers: Final = count(1)  # one for each call of a child, which its answer repeats


async def _open_safely(command: Any, **named: Any) -> anyio.abc.Process:
    # The headers by which the worker sends its traces may be a password; it sends them itself, children have no use for it.
    kept = {name: value for name, value in os.environ.items() if not HEADERS.fullmatch(name)}
    env = {**kept, SAFE_PATH: os.environ.get(SAFE_PATH) or OURS}
    process: Any = await anyio.open_process(command, env=env, stderr=None, pass_fds=(channel().there,), **named)
    process._stderr = _NoPipe()
    return process


class _NoPipe:
    """Stands where a child's pipe of standard error would: when a loop ends, anyio 4 closes that of each child without a look,
    which was an error in the log, and none of them was killed. Everywhere else it looks first, and finds nothing.
    """

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Self:  # `_stream`, and its `_transport`
        return self

    def close(self) -> None:
        """Do nothing."""


# The only way to start a child that does not import what lies in the current folder first, and whose standard error is the
# worker's: anyio would make a pipe that nothing reads, and commands that write much to it would hang.
anyio.to_process.open_process = _open_safely  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]


def in_thread(function: Callable[[Any, Job], object]) -> Callable[[Any, Job], Awaitable[object]]:
    """Return a coroutine function that runs `function` in a thread.

    A thread cannot be cut: past its deadline the job is counted as timed out, and the thread keeps its place until it ends, so
    that hanging handlers cannot pile up threads without bound.
    """

    async def run(payload: Any, job: Job) -> object:
        places = PLACES.get()[THREAD]
        await places.take()
        job.noted()
        call = _ThreadCall(function, payload, job, places)
        try:
            answer, raised = await anyio.to_thread.run_sync(call.work, abandon_on_cancel=True, limiter=_BEHIND)
        except BaseException as error:
            call.abandon(error)
            raise
        try:
            if raised is not None:
                if issubclass(type(raised), StopIteration):  # a coroutine cannot raise it
                    raise RuntimeError(f"the handler raised {describe(raised)}").with_traceback(raised.__traceback__) from raised
                raise raised
            return answer
        finally:
            del raised  # its traceback ends in this frame

    return run


def check_loop() -> None:
    """Refuse to return what is to be awaited to a thread that cannot: nothing would be done.

    Raises:
        ConfigError: no event loop runs in this thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigError("job.marks: a thread cannot await it; hint: anyio.from_thread.run(job.marks.get)") from None


class _ThreadCall:
    """One job that runs in a thread. Owns its place, and frees it once: the thread at its end, or the loop if it never began."""

    __slots__ = ("_function", "_is_running", "_job", "_loop", "_payload", "_places", "_unclaimed")

    def __init__(self, function: Callable[[Any, Job], object], payload: Any, job: Job, places: Places) -> None:
        self._function = function
        self._payload = payload
        self._job = job
        self._places = places
        self._loop = asyncio.get_running_loop()
        self._unclaimed = [True]  # the thread and the loop may pop at the same time: one of them gets it
        self._is_running = True

    def work(self) -> tuple[object, BaseException | None]:
        """Call the function, in the thread, and return what it returned and what it raised.

        What was raised is the user's own, and whatever carries it to the loop as an exception would ask it what it is.
        """
        if not self._claim():
            return None, None  # cut before it began
        here = os.getpid()
        JOB.set(self._job)  # in the context of this call alone
        try:
            answer = self._function(self._payload, self._job)
            end_fork(here)
            return answer, None
        except BaseException as error:
            end_fork(here, error)
            return None, error
        finally:
            self._is_running = False
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._places.give_back, self)

    def abandon(self, error: BaseException) -> None:
        """Note, on the loop, that nothing waits for the thread any more.

        Raises:
            NotStarted: there is no thread, since none could be started.
        """
        if not self._claim():
            if self._is_running:
                self._places.lose(self, self._job)
            return
        self._places.give_back()
        if isinstance(error, RuntimeError):
            raise NotStarted(f"no thread could be started: {error}") from error

    def _claim(self) -> bool:
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False


def in_process(
    function: Callable[[Any, Job], object], memory_bytes: int | None = None
) -> Callable[[Any, Job], Awaitable[object]]:
    """Return a coroutine function that runs the handler of this name in a child process, killed when the job is cut.

    The child imports the handler by module and name, never by what a message says, and gets the job as it was fetched.
    """
    module, name = function.__module__, function.__qualname__

    async def run(payload: Any, job: Job) -> object:
        places = PLACES.get()[PROCESS]
        await places.take()
        number, lane = next(_numbers), LANE.get()
        watch = lane.watch if lane is not None else None
        carried = watch.carried(job) if watch is not None else None
        try:
            with channel().hearing(number, partial(_hear, job, lane)) as end:
                said = (logs.settings(), logs.trace_ids(), carried, end, names_for_children())
                call = (_in_child, number, os.getpid(), memory_bytes, said, module, name, job)
                answer = await anyio.to_process.run_sync(*call, cancellable=True, limiter=_BEHIND)
        except BrokenWorkerProcess as error:
            raise ChildKilled("the child process of this job was killed or crashed") from error
        except BaseException as error:  # nothing that the handler raises comes this way: it is returned as plain words
            if isinstance(error, asyncio.CancelledError):
                raise
            await _forget_last_child()
            if isinstance(error, OSError):  # no child could be started, or written to
                raise NotStarted(f"no child process could be started: {error}") from error
            raise ChildFailed(f"the child process did not run this job: {describe(error)}", stack_of(error)) from error
        finally:
            places.give_back()
        match answer:
            case (int() as answered, [*recorded], noted, str() as kind, *words) if answered == number:
                extras_in(job, noted)
                if recorded and watch is not None:
                    watch.collect(recorded)
                if kind != "done":
                    raise_again(kind, *words)
                return any(words) or None  # whether it has answered anything: what that was stays in the child
            case _:
                await _forget_last_child()
                raise ChildFailed("the child process answered for another job than this, and was killed", "")

    return run


def _hear(job: Job, lane: Running | None, *told: Any) -> None:
    job.noted().said.take_over(*told)
    job.heard_by(lane)


def extras_out(job: Job) -> dict[str, Any]:
    """Return as plain values, in a child process, what the run of this job has noted there."""
    extras = job.extras
    if extras is None:
        return {}
    followers = [(*structs.astuple(packed.head), packed.data) for packed in list(extras.followers.values())]
    return {"followers": followers, "said": extras.said.told(), "result": extras.result}


def extras_in(job: Job, noted: dict[str, Any]) -> None:
    """Note, in the worker, what the run of this job has noted in a child process."""
    if not noted:
        return
    extras = job.noted()
    for *head, data in noted["followers"]:
        packed = Packed(Head(*head), data)
        check_queue_of(packed)
        extras.followers[packed.head.id] = packed
    extras.said.take_over(*noted["said"])
    if extras.said.said or extras.said.progress:
        job.heard_by(LANE.get())
    extras.result = noted["result"]


async def _forget_last_child() -> None:
    """Kill the child that has just answered: it answers for another job, and each answer to come would be taken for the next."""
    try:
        idle = anyio.to_process._process_pool_idle_workers.get()  # pyright: ignore[reportPrivateUsage]
        process, _ = idle.pop()  # the newest is the last one: nothing else had a turn since
    except LookupError:  # there was none yet
        return
    anyio.to_process._process_pool_workers.get().discard(process)  # pyright: ignore[reportPrivateUsage]
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.aclose()


async def end_idle_children(within_s: float) -> None:
    """Let the children that run nothing come to an end of their own, with what they have open, by reading of no more jobs; those
    that do not in this time, anyio kills, as it would kill all of them.
    """
    try:
        idle = anyio.to_process._process_pool_idle_workers.get()  # pyright: ignore[reportPrivateUsage]
    except LookupError:  # there was none yet
        return
    children = [process for process, _ in idle]
    idle.clear()
    ends = [asyncio.ensure_future(_end_child(child)) for child in children]
    if ends:
        await asyncio.wait(ends, timeout=within_s)


async def _end_child(child: anyio.abc.Process) -> None:
    with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        if child.stdin is not None:
            await child.stdin.aclose()
        await child.wait()


@cache
def _log_as_worker(settings: tuple[str, str] | None) -> None:
    """Log as the worker does, to its standard error, which anyio took away. Done once: a module of handlers may change it."""
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115 -- stays open
    if settings is not None:
        logs.setup(*settings)


def _in_child(
    number: int, parent: int, memory_bytes: int | None, said: tuple[Any, ...], module: str, name: str, job: Job
) -> tuple[Any, ...]:
    """Run one job here, in the child; what it raised goes back as plain words, since not every exception can be sent.

    Before them goes what was recorded of it, and what its run has noted. `said` are the settings of the worker's log, the ids of
    the job's span in its lines, what traces the job here, the end of the channel for what it says, and the worker's lifespans.
    """
    die_with(parent)
    job.noted().said.tell = Sender(number, said[3])
    _log_as_worker(said[0])
    logs.trace_ids = lambda: said[1]
    if os.environ.get(SAFE_PATH) == OURS:
        del os.environ[SAFE_PATH]  # what the handler starts has the path that it would have without us
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the worker to act on
    with _own_pipes():
        try:
            # Before the bound: what children share, a model say, is no job's memory.
            handler, words = _prepared(module, name, said[4])
            if words:
                return number, [], extras_out(job), *words
            with _memory_bound(memory_bytes):
                trace = _trace_of(said[2])
                words = _run_in_child(handler, job, trace)
                return number, _recorded(trace), extras_out(job), *words
        finally:
            for timer in TIMERS:  # an alarm that one job has set would hit another
                signal.setitimer(timer, 0)


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
    """Keep descriptors 0 and 1, the child's connection to its worker, out of the handler's reach while it runs."""
    kept = [os.dup(descriptor) for descriptor in (0, 1)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for descriptor in (0, 1):
            os.dup2(nothing, descriptor)
        yield
    finally:
        for descriptor, original in enumerate(kept):
            os.dup2(original, descriptor, inheritable=False)  # a command of a thread that goes on must not write to the worker
            os.close(original)
        os.close(nothing)


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
        return [] if trace is None else trace.end()
    except Exception:
        return []


_HERE: Final = ChildLoop()


def _prepared(module: str, name: str, lifespans: Sequence[str]) -> tuple[Any, tuple[Any, ...]]:
    """Return the handler of this name, with its lifespans open; where that fails, what was raised as plain words."""
    here = os.getpid()
    try:
        handler: Any = importlib.import_module(module)
        for part in name.split("."):
            handler = getattr(handler, part)
        _HERE.begin(lifespans)
    except BaseException as error:  # also what would end this child
        end_fork(here, error)
        return None, as_plain_words(error)
    end_fork(here)
    return handler, ()


def _run_in_child(handler: Any, job: Job, trace: Any) -> tuple[Any, ...]:
    here = os.getpid()
    try:
        has_answer = copy_context().run(_run_alone, handler, job, here, trace)
    except BaseException as error:  # also what would end this child, which the next job needs
        end_fork(here, error)
        return as_plain_words(error)
    end_fork(here)
    return "done", has_answer


def _run_alone(handler: Any, job: Job, here: int, trace: Any) -> bool:
    """Run one job in a copy of this child's first context: variables and decimals that it sets are gone with it.

    Return whether it has answered anything.
    """
    if trace is not None:
        with contextlib.suppress(Exception):
            trace.begin()
    decimal.setcontext(decimal.getcontext().copy())
    JOB.set(job)
    answer = handler.function(handler.decode(job), job)
    if is_to_do(answer):
        answer = _HERE.run(_finish(answer, here))
    if handler.result is not None:
        job.noted().result = handler.result.encode(answer)
    return answer is not None


async def _finish(answer: object, here: int) -> object:
    try:
        final = await finish(answer)
    except BaseException as error:
        end_fork(here, error)  # before it closes the loop, parts of which it shares with its parent
        raise
    end_fork(here)
    return final


def end_fork(here: int, error: BaseException | None = None) -> None:
    """End this process at once if it is not `here`, but one that a handler has forked: what comes next is its parent's to do."""
    if os.getpid() != here:
        leave(error)


def leave(error: BaseException | None) -> NoReturn:
    """End this process without any clean-up, with the status that Python gives one in which this was raised."""
    status = 0
    if error is not None:
        code = error.code if type(error) is SystemExit else 1
        status = code & 0xFF if isinstance(code, int) else int(code is not None)
    os._exit(status)


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process when the thread of `parent` that started it ends (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), by)
