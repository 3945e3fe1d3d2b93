"""Lifespans open what the handlers of a process share, such as a pool of connections, before its first job, and close it last.

Each has a task of its own from its begin to its end: the cancel scopes and task groups that it opens are closed in the task that
opened them, and context variables that it sets are no job's.

If this process dies before all have begun, it has fetched no job; if later, its sockets close, and nothing of it was stored. No
await stands between what a function yields and the value that handlers see.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextvars import ContextVar
from typing import Any, Final, Generic, TypeVar, cast

from runtime import logs
from runtime.errors import ConfigError, LifespanFailed
from runtime.settle import describe, raised_info

T = TypeVar("T")
R = TypeVar("R")

log: Final = logs.guarded("runtime")

TOLD_S: Final = 10.0  # between two lines on a lifespan that does not begin; a guess: no flood, and soon enough for who waits
END_S: Final = 2.0  # for all to end; a guess: half of what a stop has after the grace
CUT_S: Final = 0.2  # for those that were cut at that deadline; a guess: a cancel takes a turn of the loop


class Lifespan(Generic[T]):
    """What `@lifespan` makes of a function. Owns the values of those that are open in this process: one, but in tests."""

    def __init__(self, function: Callable[[], AsyncIterator[T]]) -> None:
        self.function = function
        self.location: str = f"{function.__module__}:{function.__qualname__}"
        self._open: dict[object, T] = {}
        self._replacements: list[T] = []

    def __repr__(self) -> str:
        return f"<Lifespan {self.location}, {'open' if self._open or self._replacements else 'not open'}>"

    @property
    def value(self) -> T:
        """What the function has yielded here, in any thread.

        Raises:
            ConfigError: it is not open: no worker runs in this process, or none that has found it.
        """
        if self._replacements:
            return self._replacements[-1]
        for value in reversed(self._open.values()):
            return value
        hint = "hint: a worker opens it before its first job; in a test, use `replaced`, or give it in `lifespans`"
        raise ConfigError(f"lifespan {self.location}: is not open here, and has no value; {hint}")

    @contextlib.contextmanager
    def replaced(self, value: T) -> Generator[None]:
        """Have another value in this block, for tests: workers that start in it do not run the function. Child processes of
        handlers have neither.
        """
        self._replacements.append(value)
        try:
            yield
        finally:
            self._replacements.remove(value)

    @property
    def is_replaced(self) -> bool:
        """Whether `replaced` has another value in its place."""
        return bool(self._replacements)

    def put(self, owner: object, value: T) -> None:
        """Have this value until `remove` is called with the same owner."""
        self._open[owner] = value

    def remove(self, owner: object) -> None:
        """Have this value no more."""
        self._open.pop(owner, None)


def lifespan(function: Callable[[], AsyncIterator[T]]) -> Lifespan[T]:
    """Make an async generator function that yields once a lifespan: what it yields is `value` in handlers.

    A worker runs it to its `yield` before it fetches a job, each process for itself, and on from there when its last job has
    ended. With `runs="process"`, a child does so before its first job. It is found as handlers are: by being in a module.

    Raises:
        ConfigError: the function is no async generator function, or takes arguments.
    """
    if isinstance(function, Lifespan):
        raise ConfigError(f"lifespan {function.location}: must be declared once")
    where = f"lifespan {getattr(function, '__module__', '')}:{getattr(function, '__qualname__', repr(function))}"
    if not inspect.isasyncgenfunction(function):
        raise ConfigError(f"{where}: must be an `async def` with one `yield`; hint: leave other decorators out")
    needed = [one for one in inspect.signature(function).parameters.values() if one.default is inspect.Parameter.empty]
    if any(one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in needed):
        raise ConfigError(f"{where}: must take no arguments, got {inspect.signature(function)}")
    return Lifespan(function)


class _Running:
    """One lifespan that begins, is open, or ends. Owns its task; `begun` is set when it is open, or has failed to begin.

    `on_broken` hears when it ends though nobody has asked for that: as soon as it does, and again when it has, and what of.
    """

    def __init__(self, lifespan: Lifespan[Any], on_broken: Callable[[LifespanFailed], None]) -> None:
        loop = asyncio.get_running_loop()
        self.lifespan = lifespan
        self.begun: asyncio.Future[None] = loop.create_future()
        self.failure: LifespanFailed | None = None
        self._on_broken = on_broken
        self._may_end = asyncio.Event()
        # Not by the loop, whose factory of tasks may be a handler's.
        self.task: asyncio.Task[None] = asyncio.Task(self._live(), loop=loop, name=lifespan.location)
        self.task.add_done_callback(self._look)

    def end(self) -> None:
        """Let it end; one that has not begun is cut."""
        self._may_end.set()
        if not self.begun.done():
            self.task.cancel()

    async def _live(self) -> None:
        generator = cast("AsyncGenerator[Any]", self.lifespan.function())
        try:
            value = await generator.__anext__()
        except GeneratorExit:  # the loop is gone
            raise
        except BaseException as error:  # whatever their code raises, or the cut of a stop
            self._fail("could not begin", error)
            return
        self.lifespan.put(self, value)
        self.begun.set_result(None)
        await self._last(generator)

    def _look(self, task: asyncio.Task[None]) -> None:
        if not self.begun.done():
            self.begun.set_result(None)
        if not task.cancelled() and task.exception() is not None and self.failure is None:
            self.failure = LifespanFailed(f"lifespan {self.lifespan.location}: raised {type(task.exception()).__name__}")

    async def _last(self, generator: AsyncGenerator[Any]) -> None:
        """Be open until the end, and end. A cancel before is of the lifespan's own doing: a task group of it that has failed.

        Then the worker is told at once, and the value stays until the end: while it closes, which may take long, jobs would
        start, and fail for nothing but that.
        """
        cut: BaseException | None = None
        try:
            await self._may_end.wait()
        except asyncio.CancelledError as error:
            cut = error
            self._on_broken(LifespanFailed(f"lifespan {self.lifespan.location} ends while the worker runs"))
        if cut is None:
            self.lifespan.remove(self)
        try:
            await (generator.__anext__() if cut is None else generator.athrow(cut))
            await generator.aclose()
            raise RuntimeError("it yields more than once")
        except StopAsyncIteration:
            pass
        except GeneratorExit:
            raise
        except BaseException as error:
            self._fail("could not end" if cut is None else "has ended while the worker runs", error)
        finally:
            self.lifespan.remove(self)
        if cut is not None:  # now it is known what of
            self._on_broken(self.failure or LifespanFailed(f"lifespan {self.lifespan.location} has ended while the worker runs"))

    def _fail(self, what: str, error: BaseException) -> None:
        """Note and log what its code has raised; a cut of ours is nothing to be told."""
        if isinstance(error, StopAsyncIteration):
            error = RuntimeError("it must yield once, and has not")
        self.failure = LifespanFailed(f"lifespan {self.lifespan.location} {what}: {describe(error)}")
        if not (self._may_end.is_set() and type(error) is asyncio.CancelledError):
            log.error("%s", self.failure, exc_info=raised_info(error))


def _nobody(failure: LifespanFailed) -> None:
    """Hear of a lifespan that has ended by itself, where it is in the log and that is enough."""


class Lifespans:
    """Owns the lifespans that are open in this loop, in the order in which they began."""

    def __init__(self, lifespans: Sequence[Lifespan[Any]], on_broken: Callable[[LifespanFailed], None] = _nobody) -> None:
        self._lifespans = lifespans
        self._on_broken = on_broken
        self._running: list[_Running] = []

    def __repr__(self) -> str:
        return f"<Lifespans: {len(self._running)} of {len(self._lifespans)} open>"

    async def begin(self, stop: asyncio.Event | None = None) -> bool:
        """Have all begin, one after another. Return whether they have: False where `stop` was set before.

        What has begun is to be ended by `end`, whatever comes out of this.

        Raises:
            LifespanFailed: one has raised.
        """
        stopped = asyncio.Task((stop or asyncio.Event()).wait(), loop=asyncio.get_running_loop())
        try:
            for one in list(self._lifespans):
                if one.is_replaced:
                    continue
                running = _Running(one, self._on_broken)
                self._running.append(running)
                with _waiting_for(one.location):
                    await asyncio.wait([running.begun, stopped], return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    return False
                if running.failure is not None:
                    raise running.failure
            return True
        finally:
            stopped.cancel()

    async def end(self, within_s: float = END_S) -> None:
        """End what has begun, the last one first, each within its part of the time; what does not end is cut. May be repeated."""
        running, self._running = self._running, []
        end_s = time.monotonic() + within_s
        for left, one in zip(range(len(running), 0, -1), reversed(running), strict=True):
            one.end()
            await asyncio.wait([one.task], timeout=max(0.0, end_s - time.monotonic()) / left)
            if not one.task.done():
                log.error("lifespan %s does not end: it is cut", one.lifespan.location)
                one.task.cancel()
                await asyncio.wait([one.task], timeout=CUT_S)


@contextlib.contextmanager
def _waiting_for(location: str) -> Generator[None]:
    """Log every TOLD_S that this lifespan has not begun; in a thread, since it may hold the loop."""
    has_begun, since_s = threading.Event(), time.monotonic()

    def tell() -> None:
        while not has_begun.wait(TOLD_S):
            waited_s = time.monotonic() - since_s
            log.warning("lifespan %s has not begun after %.0f s: no job starts before it has", location, waited_s)

    threading.Thread(target=tell, name=f"waits for {location}", daemon=True).start()
    try:
        yield
    finally:
        has_begun.set()


@contextlib.asynccontextmanager
async def opened(lifespans: Sequence[Lifespan[Any]]) -> AsyncGenerator[None]:
    """Have these open in the block.

    Raises:
        LifespanFailed: one could not begin.
    """
    here = Lifespans(lifespans)
    try:
        await here.begin()
        yield
    finally:
        await here.end()


# --- in child processes of handlers ----------------------------------------------------------------------------------------

# Set by each worker for its lanes: those that its children open, too.
LIFESPANS: ContextVar[Sequence[Lifespan[Any]]] = ContextVar("lifespans", default=())


def names_for_children() -> tuple[str, ...]:
    """Return the names of the lifespans that children of this worker open."""
    return tuple([one.location for one in LIFESPANS.get() if not one.is_replaced])


class ChildLoop:
    """Owns the event loop of a child process in which lifespans are open; its jobs run there too, one at a time.

    Between jobs it stands still. Without lifespans there is none, and each job has a loop of its own.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[str, Lifespans] = {}
        self._pid = 0

    def begin(self, names: Sequence[str]) -> None:
        """Open those of these lifespans whose modules are loaded here, if they are not yet: their handlers' modules load them.

        Raises:
            LifespanFailed: one has raised. It is tried again before the next job.
        """
        for name in names:
            found = _loaded(name) if name not in self._open else None
            if found is None:
                continue
            if self._loop is None:
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                atexit.register(self.end)
            self._open[name] = one = Lifespans([found])
            try:
                self.run(_begin(one))
            except BaseException:
                del self._open[name]
                raise

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Return what a coroutine returns. What an earlier job has left may stop the loop, or raise past it: it runs on."""
        loop = self._loop
        if loop is None:
            return asyncio.run(coroutine)
        task = asyncio.Task(coroutine, loop=loop)
        while True:
            try:
                return loop.run_until_complete(task)
            except BaseException:
                if task.done() or loop.is_closed():
                    raise

    def end(self) -> None:
        """End what is open, the last one first, where the child comes to its end by itself; not in a fork of it."""
        if self._loop is not None and os.getpid() == self._pid:
            for one in reversed(self._open.values()):
                self.run(one.end())
            self._loop.close()


async def _begin(one: Lifespans) -> None:
    try:
        await one.begin()
    except BaseException:
        await one.end()
        raise


def _loaded(name: str) -> Lifespan[Any] | None:
    """Return the lifespan of this name, if its module is loaded in this process."""
    module, _, path = name.partition(":")
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return cast("Lifespan[Any]", found) if isinstance(found, Lifespan) else None
