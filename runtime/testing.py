"""Tests of handlers: one run without Redis, a clock and jitter of one's own, and a worker inside of the test's loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import copy_context
from datetime import UTC, datetime
from itertools import cycle
from typing import Any, Final, cast, overload

import msgspec

from runtime import __version__
from runtime.config import Config
from runtime.consumer import Consumer, Report, Stage, streams_for
from runtime.errors import ConfigError, Dead, Retry, Snooze, TimedOut
from runtime.fake import FakeProducer, FakeSyncProducer
from runtime.hooks import Hook
from runtime.jobs import DONE, MARKS, QUEUE, Done, Handler, Job, Options, Outcome, P, Packed, Park, Priority, together
from runtime.lifespans import Lifespan, opened
from runtime.packing import Packer
from runtime.places import PLACES, make_places
from runtime.producer import Producer
from runtime.said import Progress
from runtime.schedules import Schedule
from runtime.sent import JobsSent, SentMessage, decoder_of, message_of, received
from runtime.stats import Stats
from runtime.store.inspector import DeadLetter, Inspector
from runtime.streams import Streams
from runtime.worker.admission import admit
from runtime.worker.lanes import Inbox, Lane
from runtime.worker.ledger import Ledger

__all__ = [
    "Answered",
    "Clock",
    "DeadLetter",
    "Done",
    "FakeProducer",
    "FakeSyncProducer",
    "Jitter",
    "JobsSent",
    "Notes",
    "Outcome",
    "Park",
    "Progress",
    "SentMessage",
    "Worker",
    "run",
    "until",
    "worker",
]

POLL_S: Final = 0.005  # a guess: soon enough for a test, and little work beside the worker's own
DEADLINE_S: Final = 15.0  # a guess: longer than anything a test waits for on a busy machine
STOP_S: Final = 15.0  # beyond the grace: the later stages of a stop have deadlines of their own, 10 s in all
LETTERS: Final = 1000  # a guess: more than a test looks at
PLAIN: Final = decoder_of(None)  # what a job has handed on may be of a contract that is not known here


class Clock:
    """A clock that stands still until it is told to jump. Call it for the time, in seconds since the epoch.

    Args:
        now_s: where it stands, in seconds since the epoch.
    """

    def __init__(self, now_s: float = 1_750_000_000.0) -> None:
        self.now_s: float = now_s

    def __repr__(self) -> str:
        return f"<Clock at {datetime.fromtimestamp(self.now_s, UTC):%Y-%m-%d %H:%M:%S.%f}>"

    def __call__(self) -> float:
        return self.now_s

    def jump(self, by_s: float) -> None:
        """Move the time on by so many seconds; below 0 moves it back."""
        self.now_s += by_s


class Jitter:
    """Jitter that you choose: each call returns the next of its values, over and over.

    Args:
        falls: numbers from 0, the shortest wait, to 1, the longest.

    Raises:
        ValueError: there are none, or one is not from 0 to 1.
    """

    def __init__(self, *falls: float) -> None:
        if not falls or not all(0 <= fall <= 1 for fall in falls):
            raise ValueError(f"Jitter must have numbers from 0 to 1, got {falls}")
        self.falls = falls
        self._next = cycle(falls)

    def __repr__(self) -> str:
        return f"<Jitter {', '.join(f'{fall:g}' for fall in self.falls)}>"

    def __call__(self) -> float:
        return next(self._next)


LONGEST: Final = Jitter(1.0)
id_of = id  # `run` has an argument of that name


class Notes:
    """What a run leaves beside its outcome, and its next attempt finds, where both are given the same `Notes`.

    `marks` is what `job.marks` holds, None for nothing. Of the last run, `progress` is what it said last, None where it said
    nothing, `lines` are those that it logged, and `sent` is what it handed on: nothing, unless it is done.

    Args:
        marks: what an earlier attempt has left.
    """

    def __init__(self, marks: bytes | None = None) -> None:
        self.marks: bytes | None = marks
        self.progress: Progress | None = None
        self.lines: list[str] = []
        self.sent: list[SentMessage] = []

    def __repr__(self) -> str:
        return f"<Notes: marks {self.marks!r}, {self.progress}, {len(self.lines)} lines>"

    async def marks_of(self, work: str) -> bytes | None:
        """Return the marks, as a worker does."""
        return self.marks

    async def set_marks(self, work: str, value: bytes) -> None:
        """Set the marks, as a worker does."""
        self.marks = value

    async def delete_marks(self, work: str) -> None:
        """Remove the marks, as a worker does."""
        self.marks = None


# --- one run, without Redis ------------------------------------------------------------------------------------------------


@overload
async def run(
    handler: Handler[P],
    message: P | bytes,
    *,
    attempt: int = ...,
    id: str = ...,
    key: str = ...,
    born: float | None = ...,
    priority: Priority | None = ...,
    attempts: int = ...,
    version: int = ...,
    timeout_s: float | None = ...,
    jitter: Callable[[], float] = ...,
    clock: Callable[[], float] = ...,
    notes: Notes | None = ...,
    lifespans: Sequence[Lifespan[Any]] = ...,
) -> Outcome: ...


@overload
async def run(
    handler: Handler[P],
    message: list[P | bytes] | list[P],
    *,
    attempt: int = ...,
    id: str = ...,
    key: str = ...,
    born: float | None = ...,
    priority: Priority | None = ...,
    attempts: int = ...,
    version: int = ...,
    timeout_s: float | None = ...,
    jitter: Callable[[], float] = ...,
    clock: Callable[[], float] = ...,
    notes: Notes | None = ...,
    lifespans: Sequence[Lifespan[Any]] = ...,
) -> list[Outcome]: ...


async def run(
    handler: Handler[P],
    message: P | bytes | list[P | bytes] | list[P],
    *,
    attempt: int = 1,
    id: str = "",
    key: str = "",
    born: float | None = None,
    priority: Priority | None = None,
    attempts: int = 0,
    version: int = 0,
    timeout_s: float | None = None,
    jitter: Callable[[], float] = LONGEST,
    clock: Callable[[], float] = time.time,
    notes: Notes | None = None,
    lifespans: Sequence[Lifespan[Any]] = (),
) -> Outcome | list[Outcome]:
    """Run a handler once, as a worker runs it, and return what would become of the job; its `__cause__` is what was raised.

    Where a type has results, a job that is done is `Answered`, with what `Producer.result` would return.

    A handler of many jobs is given one message, or a list, for which a list is returned. A message is packed as it is sent, and
    read by the contract's decoder. Nothing is stored.

    Args:
        handler: what `@handler` returned.
        message: a payload of its contract, or JSON as another language writes it; a list of them for a handler of many.
        attempt: the job's `attempt`, from 1.
        id: the job's `id`; without one, it is made from the time.
        key: the message's `key`.
        born: the job's `born`, in seconds since the epoch; without it, now.
        priority: the job's `priority`; without one, the contract's.
        attempts: how often the job is run at most; 0 for what the handler says.
        version: the contract version of a message given as JSON; 0 for the contract's own.
        timeout_s: the deadline in seconds, in place of the handler's; measured by `clock`.
        jitter: returns the jitter of the backoff, from 0 to 1; without it, always 1, the longest wait.
        clock: returns the time in seconds since the epoch.
        notes: has the marks that the handler finds, and afterwards what it has left.
        lifespans: what is open while it runs; those that are `replaced` are left as they are.

    Raises:
        BadPayload: the message cannot be sent.
        LifespanFailed: a lifespan could not begin.
        ConfigError: the message is another contract's, it is a list and the handler takes one, or `attempt` is below 1.
    """
    if attempt < 1:
        raise ConfigError(f"attempt must be a whole number from 1, got {attempt}")
    options = Options(priority=priority, key=key, id=id, attempts=attempts or None)
    if isinstance(message, list) and handler.batch is None:
        raise ConfigError(f"{handler.location}: takes one message, got a list; hint: @handler(…, max_size=100) is for many")
    messages: list[P | bytes] = [*message] if isinstance(message, list) else [message]
    now_s, jobs = clock(), list[Job]()
    for at, one in enumerate(messages):
        job = received(_pack(handler, one, version, options), now_s, at)
        job.envelope = msgspec.structs.replace(job.envelope, failed=attempt - 1, first_ms=round(born * 1000) if born else 0)
        jobs.append(job)
    if timeout_s is not None:
        handler = dataclasses.replace(handler, timeout_s=timeout_s)
    admitted = admit(jobs, {handler.contract.type.encode(): handler}, round(now_s * 1000))
    outcomes = {id_of(job): _shown(None, outcome) for job, outcome in admitted.turned_away}
    ready = [job for job in jobs if id_of(job) not in outcomes]
    if ready:
        async with opened(lifespans):
            outcomes |= await _run(handler, ready, jitter, clock, Notes() if notes is None else notes)
    told = [outcomes.get(id_of(job), DONE) for job in jobs]
    if notes is not None:
        done = [job for job, outcome in zip(jobs, told, strict=True) if isinstance(outcome, Done)]
        followers = [packed for job in done for packed in job.followers]
        notes.sent = [message_of(received(packed, now_s, 0), packed.head.due_ms, PLAIN) for packed in followers]
    return told if isinstance(message, list) else told[0]


def _pack(handler: Handler[P], message: P | bytes, version: int, options: Options) -> Packed:
    contract, packer = handler.contract, Packer(time.time)
    if isinstance(message, bytes):
        return packer.pack_raw(contract.type, message, options, version or contract.version, contract.priority)
    if type(message) is not contract.payload:
        raise ConfigError(f"{handler.location}: the message must be a {contract.payload.__name__}, got {type(message).__name__}")
    return packer.pack_with(message, options)


async def _run(
    handler: Handler[Any], jobs: list[Job], jitter: Callable[[], float], clock: Callable[[], float], notes: Notes
) -> dict[int, Outcome]:
    """Run one job, or many together, in a lane that ends with them, and watch its deadline, as a worker's watchdog does.

    Return what becomes of those that failed or answered.
    """
    failures: dict[int, Outcome] = {}

    def end() -> None:
        lane.stop()

    def note(job: Job, error: BaseException, outcome: object) -> None:
        failures[id_of(job)] = _shown(error, cast("Outcome", outcome))

    inbox, ledger = Inbox(), Ledger(end)
    run = jobs[0] if handler.batch is None else together(jobs)
    lane = Lane(inbox, ledger, Stats(), {run.type: handler}, clock, jitter, note, forget=lambda error: None)
    inbox.put([run])
    context = copy_context()
    context.run(PLACES.set, make_places())  # one's own: a thread that hangs in one test takes no place from the next
    context.run(MARKS.set, notes)
    context.run(QUEUE.set, handler.contract.queue or Config().queue)
    context.run(lane.start)
    running = cast("asyncio.Task[Any]", lane.task)
    try:
        while not running.done():
            await asyncio.wait([running], timeout=POLL_S)
            if lane.deadline_s < clock():
                lane.interrupt(TimedOut(f"ran longer than {handler.timeout_s:g} s"))
    finally:
        lane.stop()
        await asyncio.wait([running])
        said = [one.noted().said for one in jobs]
        notes.progress = next((one.progress for one in reversed(said) if one.progress), None)
        notes.lines = [line for one in said for line in one.newest()]
    if not running.cancelled():
        running.result()
    kept = ledger.take().results  # of one job: handlers of many keep none
    return {id_of(jobs[0]): Answered(msgspec.json.decode(one.value)) for one in kept} | failures


class Answered(Done, frozen=True):
    """The work is done, and `result` is what the handler has answered, as JSON has it: dicts, lists, texts and numbers."""

    result: Any = None


# The repr of an exception has its text alone, and a failed assertion should show all that it holds.


class _Retry(Retry):
    def __repr__(self) -> str:
        return f"Retry(delay_s={self.delay_s:g}, reason={str(self)!r}, asked={self.asked})"


class _Snooze(Snooze):
    def __repr__(self) -> str:
        return f"Snooze(delay_s={self.delay_s:g}, reason={str(self)!r}, asked={self.asked})"


class _Dead(Dead):
    def __repr__(self) -> str:
        return f"Dead(reason={str(self)!r}, code={self.code!r}, asked={self.asked})"


def _shown(cause: BaseException | None, outcome: Outcome) -> Outcome:
    """Return the same outcome with a repr that shows all that it holds, and with its cause."""
    match outcome:
        case Retry():
            shown = _Retry(outcome.delay_s, str(outcome), pause_type=outcome.pause_type)
        case Snooze():
            shown = _Snooze(outcome.delay_s, str(outcome), pause_type=outcome.pause_type)
        case Dead():
            shown = _Dead(str(outcome), outcome.code)
        case _:
            return outcome
    shown.asked = outcome.asked
    shown.__cause__ = cause
    return shown


# --- a worker on a real server -----------------------------------------------------------------------------------------------


class Worker:
    """A worker that runs in the test's loop; `producer` sends to its queue, with `check=True`; `consumer` is the worker."""

    def __init__(
        self, consumer: Consumer, running: asyncio.Task[Report], producer: Producer, inspector: Inspector, streams: Streams
    ) -> None:
        self.consumer = consumer
        self.producer = producer
        self._running = running
        self._inspector = inspector
        self._streams = streams

    def __repr__(self) -> str:
        return f"<Worker {self.consumer!r}>"

    async def settled(self, *, delayed: bool = False, deadline_s: float = DEADLINE_S) -> None:
        """Return when nothing is waiting, running or due now. A job of a type that this worker does not know is not waited for.

        Args:
            delayed: also wait for retries and delayed jobs that are due later.
            deadline_s: seconds to wait at most.

        Raises:
            AssertionError: something is left at the deadline, or the worker was stopped; the text says what.
            StoreUnavailable: Redis did not answer.
        """
        loop = asyncio.get_running_loop()
        end_s, finished_before = loop.time() + deadline_s, -1
        while True:
            if self._running.done():
                self._running.result()
            if self.consumer.stage is not Stage.RUNNING:
                raise AssertionError(f"the worker was stopped: {self.consumer!r}")
            finished = self.consumer.stats.finished
            left = await self._left(delayed)
            # One look takes several answers, and a job may move between them: it is found by the second, or was run meanwhile.
            if not left and finished == finished_before:
                return
            finished_before = -1 if left else finished
            if loop.time() > end_s:
                told = ", ".join(f"{count} {name}" for name, count in left.items()) or "jobs come and go"
                raise AssertionError(f"not settled within {deadline_s:g} s: {told}; {self.consumer!r}")
            await asyncio.sleep(POLL_S)

    async def _left(self, delayed: bool) -> dict[str, int]:
        depth = await self._inspector.depth()
        lots, _, _ = await self._streams.lots()
        left = {
            "waiting": sum(depth.waiting.values()),
            "running": sum(depth.running.values()),
            "given back": sum(count for (_, lot), count in lots.items() if self.consumer.parked.can_run(lot)),
            "delayed" if delayed else "due": depth.delayed if delayed else depth.due_now,
        }
        return {name: count for name, count in left.items() if count}

    async def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters in the order in which they died, the newest 1000 at most.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return (await self._inspector.dead_letters(LETTERS))[::-1]


@contextlib.asynccontextmanager
async def worker(
    url: str,
    *handlers: Handler[Any],
    concurrency: int = 10,
    lease_s: float = 2.0,
    grace_s: float = 5.0,
    schedules: Sequence[Schedule] = (),
    lifespans: Sequence[Lifespan[Any]] = (),
    hooks: Sequence[Hook] = (),
    **settings: Any,
) -> AsyncGenerator[Worker]:
    """Run a worker for these handlers until the block ends, in the current loop; the block begins when it has started.

    Args:
        url: of Redis.
        handlers: what it runs, one for each type.
        concurrency: how many jobs run at the same time.
        lease_s: seconds after which a worker that is silent is taken for dead.
        grace_s: seconds that running jobs have at the end of the block.
        schedules: what it fires.
        lifespans: what it opens before its first job; those that are `replaced` it leaves as they are.
        hooks: what was declared with `@on_error` and `@on_dead`.
        settings: further fields of Config, such as `queue`.

    Raises:
        ConfigError: two handlers run the same type, or the contract of one names another queue.
        LifespanFailed: a lifespan could not begin.
        StoreUnavailable: Redis did not answer at the start.
    """
    config = Config(concurrency=concurrency, lease_s=lease_s, grace_s=grace_s, **settings)
    registry = {handler.contract.type.encode(): handler for handler in handlers}
    if len(registry) < len(handlers):
        raise ConfigError(f"two handlers run the same type: {', '.join(handler.location for handler in handlers)}")
    for handler in handlers:
        if (queue := handler.contract.queue) not in ("", config.queue):
            what = f"{handler.contract.type} is of queue {queue}, and this worker of queue {config.queue}"
            raise ConfigError(f"{what}; hint: worker(…, queue={queue!r}), a worker for each queue")
    consumer = Consumer(
        config, streams_for(config, url), registry, schedules=schedules, lifespans=lifespans, hooks=hooks, version=__version__
    )
    inspector, streams = Inspector(url, config.queue, "test"), Streams(url, config.queue, "test")
    running = asyncio.create_task(consumer.run(), name="worker")
    try:
        # Not `is_fetching`: that is known only after the first wait at an empty queue, a second later.
        await until(lambda: consumer.stage is not Stage.STARTING or running.done(), "the worker's start")
        if running.done():
            running.result()
        async with Producer.connect(url, queue=config.queue, check=True) as producer:
            yield Worker(consumer, running, producer, inspector, streams)
    finally:
        consumer.stop()
        async with asyncio.timeout(grace_s + STOP_S):
            await running
        await inspector.close()
        await streams.close()


async def until(is_true: Callable[[], object], what: str = "the condition", deadline_s: float = DEADLINE_S) -> None:
    """Return when `is_true()` holds; it is called every 5 ms.

    Args:
        is_true: the condition; anything true counts.
        what: names it in the error.
        deadline_s: seconds to wait at most.

    Raises:
        AssertionError: it did not hold within `deadline_s`.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + deadline_s
    while not is_true():
        if loop.time() > end_s:
            raise AssertionError(f"{what} did not hold within {deadline_s:g} s")
        await asyncio.sleep(POLL_S)
