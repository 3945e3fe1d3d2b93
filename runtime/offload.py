"""Offload makes coroutine functions of what blocks: in a thread, or in a child process that is killed at its deadline."""

from __future__ import annotations

import asyncio
import inspect
import os
import typing
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any, Final, Generic, TypeVar, cast, overload

import anyio.to_thread
import msgspec
from anyio import CapacityLimiter
from msgspec import structs

from runtime import logs
from runtime.answers import finish, is_to_do
from runtime.channel import channel
from runtime.children import NotTaken, ask, children
from runtime.declared import check_call, check_takes
from runtime.errors import ChildFailed, ChildKilled, ConfigError, NotStarted
from runtime.followers import check_queue_of
from runtime.frames import (
    MAX_BESIDE_BYTES,
    MAX_BODY_BYTES,
    Answer,
    Buffer,
    Call,
    Done,
    NoFrame,
    Noted,
    answer_in,
    beside_bytes,
    fetched,
    frame,
    noted_of,
    parts_of,
)
from runtime.jobs import JOB, LANE, Job, Running
from runtime.lifespans import names_for_children
from runtime.places import PLACES, PROCESS, THREAD, Places
from runtime.process import end_fork
from runtime.settle import describe, raise_again

_BEHIND: Final = CapacityLimiter(float("inf"))  # anyio's own limiter lets go too early: at the cancel, not at the thread's end
Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A")

MIN_MEMORY_BYTES: Final = 1024 * 1024  # a guess: below it, hardly any import works; it catches numbers meant as megabytes

_numbers: Final = count(1)  # one for each call of a child, which its answer repeats


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
        try:
            answered, _ = await _ask(module, name, memory_bytes, job)
        finally:
            places.give_back()
        return answered or None  # whether it has answered anything: what that was stays in the child

    return run


async def _ask(module: str, name: str, memory_bytes: int | None, job: Job, body: Sequence[Buffer] = ()) -> tuple[bool, Buffer]:
    """Run what is declared by this name in a child process; the caller has a place for it.

    Return whether it has answered anything, and that as MessagePack where it was given a `body`.

    Raises:
        NotStarted: no child could be started.
        ChildKilled: the child ended before it had answered.
        ChildFailed, Dead, Retry, Snooze, UnfitPayload: what the function has raised there.
    """
    number, lane = next(_numbers), LANE.get()
    watch = lane.watch if lane is not None else None
    carried = watch.carried(job) if watch is not None else None
    try:
        said_here = channel()
    except OSError as error:
        raise NotStarted(f"no child process could be started: {error}") from error
    with said_here.hearing(number, partial(_hear, job, lane)) as end:
        said = (logs.settings(), logs.trace_ids(), carried, end, names_for_children())
        call = Call(number, os.getpid(), module, name, memory_bytes, *said, fetched(job), noted_of(job))
        answer, found = await _answer_to(frame(call, body), number, MAX_BODY_BYTES if body else 0)
    extras_in(job, answer.noted)
    if answer.recorded and watch is not None:
        watch.collect(answer.recorded)
    if not isinstance(answer.end, Done):
        raise_again(str(answer.end.__struct_config__.tag), *structs.astuple(answer.end))
    return answer.end.has_answer, found


async def _answer_to(call: Sequence[Buffer], number: int, most_body_bytes: int) -> tuple[Answer, Buffer]:
    """Return what a child answers to this call, and the body of it."""
    while True:
        try:
            with children().taken() as child:
                head, body = await ask(child, call, most_body_bytes)
                answer = answer_in(head)
                if answer.number != number:
                    raise NoFrame("it has answered for another job than this")
                return answer, body
        except NotTaken:  # it died of something else; at the next turn there is one idle child less
            continue
        except NoFrame as error:
            raise ChildFailed(f"the child process was killed: {error}", "") from None
        except (EOFError, OSError) as error:
            raise ChildKilled("the child process of this job was killed or crashed") from error


class Seat:
    """The place of a job whose handler awaits functions in child processes: one of them runs at a time, in `task`."""

    __slots__ = ("children", "is_over", "task", "turn")

    def __init__(self, children: Sequence[InChild[Any, Any]]) -> None:
        self.children: Sequence[InChild[Any, Any]] = children
        self.turn: asyncio.Lock = asyncio.Lock()
        self.is_over: bool = False
        self.task: asyncio.Task[Any] | None = None

    def end(self) -> None:
        """Start nothing more, and kill the child of a task that goes on though its job has ended: the place is another's now."""
        self.is_over = True
        if self.task is not None:
            self.task.cancel()


_SEAT: Final = ContextVar[Seat | None]("seat", default=None)


def seated(
    function: Callable[[Any, Job], Awaitable[object]], children: Sequence[InChild[Any, Any]]
) -> Callable[[Any, Job], Awaitable[object]]:
    """Return a coroutine function that runs `function` with a place for its child processes, kept from its begin to its end.

    So jobs wait for children before they begin, and where other types do not wait behind them.
    """

    async def run(payload: Any, job: Job) -> object:
        places = PLACES.get()[PROCESS]
        await places.take()
        seat = Seat(children)
        token = _SEAT.set(seat)
        try:
            answer = await function(payload, job)
            return await finish(answer) if is_to_do(answer) else answer
        finally:
            seat.end()
            _SEAT.reset(token)
            places.give_back()

    return run


class InChild(Generic[Q, A]):
    """What `@in_child` makes of a function: `await function(request, job)` runs it in a child process."""

    def __init__(
        self, function: Callable[[Q, Job], A], request: type[Q], answer: type[A] | None, memory_bytes: int | None
    ) -> None:
        self.function = function
        self.memory_bytes = memory_bytes
        self.location: str = f"{function.__module__}:{function.__qualname__}"
        self._request = msgspec.msgpack.Decoder(request)
        self._answer: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(answer)

    def __repr__(self) -> str:
        return f"<InChild {self.location}>"

    async def __call__(self, request: Q, job: Job) -> A:
        """Return what the function returns for this request, in a child process that is killed when the job is cut.

        Raises:
            Dead, Retry, Snooze: what the function has raised there.
            ChildFailed: anything else that it has raised, or an answer that is not of its type.
            ChildKilled: the child ended before it had answered.
            NotStarted: no child could be started.
            ConfigError: the handler of the job does not name this function in `child`.
        """
        seat = _SEAT.get()
        if seat is None and LANE.get() is None:  # called by hand, as in a test
            places = PLACES.get()[PROCESS]
            await places.take()
            try:
                return await self._ask(request, job)
            finally:
                places.give_back()
        if seat is None or self not in seat.children:
            raise ConfigError(f"{self.location}: a job's handler must name it; hint: @handler(…, child={self.function.__name__})")
        async with seat.turn:
            if seat.is_over:
                raise ConfigError(f"{self.location}: this run is over; hint: await all tasks in the handler")
            seat.task = asyncio.current_task()
            try:
                return await self._ask(request, job)
            finally:
                seat.task = None

    async def _ask(self, request: Q, job: Job) -> A:
        body = parts_of(request)
        _, answer = await _ask(self.function.__module__, self.function.__qualname__, self.memory_bytes, job, body)
        try:
            if beside_bytes(answer) > MAX_BESIDE_BYTES:  # it would hold the loop; the child has let it pass all the same
                raise ChildFailed(f"{self.location}: returned more than {MAX_BESIDE_BYTES:,} bytes beside large ones", "")
            return self._answer.decode(answer)
        except (ValueError, RecursionError) as error:
            _, _, where = str(error).rpartition(" - ")  # without what it was, which may be a value
            raise ChildFailed(f"{self.location}: returned what is not of its type, {where}", "") from None

    def run_here(self, body: Buffer, job: Job) -> A:
        """Return what the function returns for this request, in this process, which is a child."""
        return self.function(self._request.decode(body), job)


@overload
def in_child(function: Callable[[Q, Job], A], /) -> InChild[Q, A]: ...


@overload
def in_child(*, memory_bytes: int | None = ...) -> Callable[[Callable[[Q, Job], A]], InChild[Q, A]]: ...


def in_child(function: Callable[..., Any] | None = None, /, *, memory_bytes: int | None = None) -> Any:
    """Make a plain function `(request, job)` one that coroutine handlers await, and that runs in a child process of the worker.

    For handlers with something to do in the worker before or after; one that can be whole in a child has `runs="process"`. The
    handler names the function: `@handler(…, child=fit)`. Request and answer are structs of msgspec, and all that passes between
    the two processes; a field for many bytes is best a `memoryview`, which is not copied. In the child, `job` says and sends as
    elsewhere, lifespans are open, and what is raised comes back. The child is killed when the job is cut.

    Args:
        function: a function of a module, with annotations: the request and what it returns, a msgspec.Struct or None.
        memory_bytes: at least 1 MiB: what a call may take beyond what an idle child has (Linux).

    Raises:
        ConfigError: the function cannot be run so, or an option is out of its range.
    """
    if function is None:
        return partial(_in_child_of, memory_bytes)
    return _in_child_of(memory_bytes, function)


def _in_child_of(memory_bytes: int | None, function: Callable[..., Any]) -> InChild[Any, Any]:
    name = getattr(function, "__qualname__", repr(function))
    where = f"in_child {getattr(function, '__module__', '')}:{name}"
    if isinstance(function, InChild) or not inspect.isfunction(function) or "<" in name:
        raise ConfigError(f"{where}: must be a function of a module, which a child can import by its name")
    check_call(function, where)
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{where}: must be a plain function; hint: leave the `async` out, it may block in its child")
    if memory_bytes is not None and memory_bytes < MIN_MEMORY_BYTES:
        raise ConfigError(f"{where}: memory_bytes must be at least {MIN_MEMORY_BYTES}")
    wanted = "(request: ItsStruct, job: Job) -> ItsAnswer, both of them structs of msgspec"
    check_takes(function, where, wanted, 2)
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # it runs what is written there
        raise ConfigError(f"{where}: an annotation cannot be resolved: {describe(error)}") from None
    request, answer = hints.get(next(iter(inspect.signature(function).parameters))), hints.get("return", ...)
    is_told = _is_struct(request) and (_is_struct(answer) or answer is type(None))
    if not is_told or hints.get("job", Job) is not Job:
        raise ConfigError(f"{where}: must be annotated as {wanted}")
    return InChild(function, cast("type[msgspec.Struct]", request), answer, memory_bytes)


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _hear(job: Job, lane: Running | None, *told: Any) -> None:
    job.noted().said.take_over(*told)
    job.heard_by(lane)


def extras_in(job: Job, noted: Noted | None) -> None:
    """Note, in the worker, what the run of this job has noted in a child process.

    Raises:
        ConfigError: it hands on what it may not, or another job of an id that this run has sent here meanwhile.
    """
    if noted is None:
        return
    extras = job.noted()
    for packed in [one.packed() for one in noted.followers]:
        check_queue_of(packed)
        if extras.followers.setdefault(packed.head.id, packed) != packed:
            raise ConfigError(f"job.send: {packed.head.id} was sent by this run already; hint: give suffixes where both send")
    extras.said.take_over(*noted.said)
    if extras.said.said or extras.said.progress:
        job.heard_by(LANE.get())
    extras.result = noted.result
