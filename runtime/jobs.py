"""The words of the runtime: what a job, its lease, its outcome, its contract and its handler are. No I/O, no clock."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Final, Generic, Protocol, TypeVar, overload
from weakref import WeakValueDictionary

import msgspec

from runtime.backoff import Backoff
from runtime.errors import BadMarks, ConfigError, Dead, Retry, Snooze
from runtime.limits import NO_LIMITS, Limits
from runtime.said import Said, progress_of

TYPE_NAME: Final = re.compile(rb"[a-z0-9][a-z0-9._-]{0,63}(?![\s\S])")  # a guess: longer than any name that people say
DEFAULT_TIMEOUT_S: Final = 600.0  # a guess: a handler that needs longer says so


class Priority(IntEnum):
    """How soon a job matters: 1 is CRITICAL, 4 is LOW. Each priority is a stream of its own."""

    CRITICAL = 1
    HIGH = 2
    MEDIUM = 3
    LOW = 4


STREAMS: Final = ("critical", "high", "medium", "low")
CRITICAL: Final = 0  # its stream


class Lease(msgspec.Struct, gc=False, eq=False):
    """The right to move one stream entry, as long as the pending list shows this worker's name and `count`.

    Compared by identity on purpose: the same entry may be leased twice, and a report about the first must not hit the second.
    `stream` is an index into STREAMS, `run_id` names the server (and group) that handed the entry out.
    """

    stream: int
    entry: bytes
    count: int
    run_id: str
    taken_s: float


class Envelope(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The optional fields of a message, parsed; `PLAIN` serves every message that has none of them."""

    id: str = ""
    version: int = 1
    at_ms: int = 0
    exp_ms: int = 0
    key: bytes = b""
    group: bytes = b""
    attempts: int = 0
    failed: int = 0
    first_ms: int = 0
    snoozed_ms: int = 0
    origin: str = ""
    is_msgpack: bool = False


PLAIN: Final = Envelope()


class Options(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a sender may say of a message beside its payload; `Producer.send` says what each option means."""

    priority: Priority | str | None = None
    delay_s: float | timedelta = 0.0
    at: float | datetime | None = None
    exp: float | datetime | None = None
    key: str = ""
    keep: str = ""
    id: str = ""
    attempts: int | None = None
    group: str = ""


class Head(msgspec.Struct, frozen=True, gc=False):
    """All of a message but its payload; `due_ms` is in ms since the epoch, 0 for now.

    `queue` is the one that its contract names; empty for that of whoever sends it.
    """

    stream: int
    due_ms: int
    id: str
    fields: tuple[bytes | str | int, ...]
    queue: str = ""


class Packed(msgspec.Struct, frozen=True, gc=False):
    """A message as it is sent."""

    head: Head
    data: bytes


class Extras(msgspec.Struct, eq=False):
    """What a run has beside its outcome. Most runs have none.

    `is_cut` says that the run was told to end; `followers` are jobs, by id, that are sent in the step in which this one leaves.
    `said` is how far it is, and its lines. Of a job that runs with others, `is_settled` says that its handler has settled it: it
    failed of `error`, or is done; `cut` is why it was told to end alone, and counts more.
    `result` is what the run has answered, as JSON, where the type has results.
    """

    is_cut: bool = False
    followers: dict[str, Packed] = {}
    said: Said = msgspec.field(default_factory=Said)
    is_settled: bool = False
    error: BaseException | None = None
    cut: BaseException | None = None
    result: bytes | None = None


class Above:
    """What methods of a job need of modules above this one, which put it here when they are imported, as with any handler."""

    follow: Callable[[Job, msgspec.Struct, str, Options], str]
    check_loop: Callable[[], None]  # that what is called here can be awaited here


ABOVE: Final = Above()


class Job(Lease, gc=False, eq=False):
    """One message on its way through this process. A handler reads `id`, `attempt`, `work`, `born` and `priority`.

    `fields` are all that it came with, names and values in turn; empty where they are `type` and `data` alone. `trace` is the
    sender's `traceparent` as it came, unchecked; `is_traced` says that this attempt is to be traced whatever becomes of it.
    `extras` is what this run has beside its outcome; None until `noted` is first called.
    """

    type: bytes
    data: bytes
    envelope: Envelope
    fetched_ms: int
    fields: Sequence[bytes] = ()
    trace: bytes = b""
    is_traced: bool = False
    extras: Extras | None = None

    def noted(self) -> Extras:
        """Return what this run has beside its outcome, to be added to."""
        extras = self.extras
        if extras is None:
            new = Extras()
            # One step of Python's own, which calls nothing: several threads of a handler may be here, and each is the first.
            extras = self.extras
            if extras is None:
                extras = self.extras = new
        return extras

    @property
    def followers(self) -> Sequence[Packed]:
        """The jobs that this run hands on, should it be done."""
        return list(self.extras.followers.values()) if self.extras is not None else ()

    def send(
        self,
        message: msgspec.Struct,
        *,
        suffix: str = "",
        priority: Priority | str | None = None,
        delay_s: float | timedelta = 0.0,
        at: float | datetime | None = None,
        exp: float | datetime | None = None,
        key: str = "",
        keep: str = "",
        group: str = "",
        attempts: int | None = None,
    ) -> str:
        """Hand on another job, and return its id: it is sent in the one step in which this one is done, and only then.

        A plain call from coroutines, threads and child processes. Where this run fails, is snoozed, or its lease is lost, nothing
        is sent; a later run sends what it says itself. At most 100, with 1 MiB of payloads together.

        Args:
            message: a struct of a class declared with `@contract`; packed at once.
            suffix: of its id, `<work>:<suffix>`: 1 to 100 of `[A-Za-z0-9._-]`; without one, a number, in the order of calls.
            priority: the stream it goes to, also by its name, such as `high`; None for the contract's.
            delay_s: not before so many seconds from this call, or a timedelta; ten years at most.
            at: not before this time, in seconds since the epoch, or a datetime with a time zone; wins over `delay_s`.
            exp: not after this time, as for `at`.
            key: as for `Producer.send`; this job's own key is free for it.
            keep: as for `Producer.send`.
            group: what limits per group count by.
            attempts: how often it is run at most, from 1; None for what its handler says.

        Raises:
            BadPayload: the payload or an option cannot be sent.
            ConfigError: this run has sent one with this suffix, or as many as it may, or is over: it goes on in a task or thread
                that nobody waits for.
        """
        options = Options(priority=priority, delay_s=delay_s, at=at, exp=exp, key=key, keep=keep, group=group, attempts=attempts)
        return ABOVE.follow(self, message, suffix, options)

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Say how far this run is: people see it in `jobs show` and `top`, about a second later. The last call counts.

        A plain call from coroutines, threads and child processes, which never waits and never fails.

        Args:
            done: how much is done, from 0; of bytes, rows, anything.
            total: how much there is to do; None where that is not known.
            text: what is being done, cut to 200 characters.
        """
        said = self.noted().said
        said.progress = progress_of(done, total, text)
        self._tell(said)

    def log(self, text: str) -> None:
        """Keep lines that say what this run does, for `jobs show`: the newest 200 of them, 8 KiB in all, also when it has ended.

        A plain call from coroutines, threads and child processes, which never waits and never fails.
        """
        said = self.noted().said
        said.add(text)
        self._tell(said)

    def _tell(self, said: Said) -> None:
        if said.tell is not None:
            said.tell(said)
        elif not said.is_heard:
            self.heard_by(LANE.get() or lane_of(self))

    def heard_by(self, lane: Running | None) -> None:
        """Let the lane know, once, that this run has said something."""
        said = self.noted().said
        if lane is not None and not said.is_heard:
            said.is_heard = True
            lane.hear(self)

    @property
    def marks(self) -> Marks:
        """What this run leaves for later attempts: a small value under `work`, for 7 days from the last write.

        Raises:
            ConfigError: in a child process, or in a thread without the handler's context variables.
        """
        store = MARKS.get()
        if store is None:
            raise ConfigError("job.marks: not in a child process, nor in a thread without the handler's context variables")
        return Marks(self.work, store)

    @property
    def cancelled(self) -> bool:
        """Whether this run was told to end: it was cancelled, is past its deadline, or its worker stops.

        On the loop such a run is cut by `CancelledError`, a child process is killed; a handler in a thread asks now and then.
        """
        return self.extras is not None and self.extras.is_cut

    def settle(self, error: BaseException | None = None) -> None:
        """Say what becomes of this job, of many that a handler was given together; the first word of a run counts.

        What is not settled when the handler returns is done; when it raises, that is what became of the unsettled ones.

        Args:
            error: what a handler of one job would raise: Retry, Snooze, Dead, or anything else, which is a failed attempt. None
                for a job that is done, whatever becomes of the others.

        Raises:
            TypeError: the error is no exception.
            RuntimeError: the handler was given this job alone.
        """
        if error is not None and not issubclass(type(error), BaseException):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"settle: must be given an exception or nothing, got {type(error).__name__}")
        running = JOB.get()  # a thread may outlive its job, and in a child process there is no lane
        if running is None and (lane := LANE.get() or lane_of(self)) is not None:
            running = lane.job
        if running is not None and type(running) is not Gathered:
            raise RuntimeError("settle is for handlers of many jobs: one of a single job returns, or raises")
        extras = self.noted()
        if not extras.is_settled:
            extras.is_settled, extras.error = True, error

    @property
    def id(self) -> str:
        """The message's id, or one made from its stream and entry; the same over all attempts, and not unique."""
        return self.envelope.id or default_id(STREAMS[self.stream], self.entry.decode())

    @property
    def attempt(self) -> int:
        """1 for the first run of the handler, one more after each failed one. A run that was cut by a stop does not count."""
        return self.envelope.failed + 1

    @property
    def priority(self) -> Priority:
        """The stream this job came from."""
        return Priority(self.stream + 1)

    @property
    def born(self) -> float:
        """When the job was first enqueued, in seconds since the epoch; the same in every attempt."""
        return self.born_ms / 1000

    @property
    def born_ms(self) -> int:
        """`born` in ms: what an earlier attempt noted, else the time in the entry's id, but never later than its fetch."""
        return self.envelope.first_ms or ms_of(self.entry, self.fetched_ms)

    @property
    def work(self) -> str:
        """An idempotency key: 26 characters of `[a-z2-7]`, the same over retries, crashes and an unedited replay.

        Made of the id and the payload, so that messages that share an id have different keys unless they say the same.
        """
        return work_of(self.envelope.origin or self.id, self.data)


class Gathered(Job, eq=False):
    """Many jobs of one type, which a lane runs together. Its own fields are those of the first; `taken_s` is the earliest of all,
    `stream` the first in the order of priorities.

    Not held: each of `jobs` has its own lease. Those that have left before the lane has begun are not among them.
    """

    jobs: list[Job] = []


def together(jobs: list[Job]) -> Gathered:
    """Return a batch of these jobs, one at least, of one type."""
    first, stream, taken_s = jobs[0], min([job.stream for job in jobs]), min([job.taken_s for job in jobs])
    place = (stream, first.entry, first.count, first.run_id, taken_s)
    return Gathered(*place, first.type, b"", first.envelope, first.fetched_ms, jobs=jobs)


def each_of(job: Job | None) -> Sequence[Job]:
    """Return the jobs that a lane runs as one."""
    if job is None:
        return ()
    return job.jobs if isinstance(job, Gathered) else (job,)


MAX_MARKS_BYTES: Final = 64 << 10  # a guess: a bit for each of half a million items; what is larger belongs into a database


class MarkStore(Protocol):
    """Where marks stand; each method raises StoreUnavailable where it has no answer, or an error."""

    def marks_of(self, work: str) -> Awaitable[bytes | None]:
        """Return what stands there, None for nothing."""
        ...

    def set_marks(self, work: str, value: bytes) -> Awaitable[None]:
        """Write."""
        ...

    def delete_marks(self, work: str) -> Awaitable[None]:
        """Remove what stands there."""
        ...


class Marks(msgspec.Struct, frozen=True, gc=False):
    """What the attempts at one piece of work remember: one value, which each of them reads and writes as a whole.

    Each method raises StoreUnavailable where Redis does not answer; a handler that lets it through is tried again. A plain call
    in a thread is a ConfigError: there it is `anyio.from_thread.run(job.marks.get)`.
    """

    work: str
    store: MarkStore

    def get(self) -> Awaitable[bytes | None]:
        """Return what was written last; None where that is nothing, or older than 7 days."""
        ABOVE.check_loop()
        return self.store.marks_of(self.work)

    def set(self, value: bytes | str) -> Awaitable[None]:
        """Write a value of up to 64 KiB, a text as UTF-8; it stays for 7 days.

        Raises:
            BadMarks: it is larger, or neither bytes nor a text that can be encoded.
        """
        marks = _marks_of(value)
        ABOVE.check_loop()
        return self.store.set_marks(self.work, marks)

    def delete(self) -> Awaitable[None]:
        """Remove it."""
        ABOVE.check_loop()
        return self.store.delete_marks(self.work)


def _marks_of(value: object) -> bytes:
    try:
        found = value.encode() if isinstance(value, str) else bytes(value) if isinstance(value, bytes | bytearray) else None
    except UnicodeEncodeError as error:
        raise BadMarks(f"marks must be bytes or a text that can be encoded: {error}") from None
    if found is None:
        raise BadMarks(f"marks must be bytes or a text, got {type(value).__name__}")
    if len(found) > MAX_MARKS_BYTES:
        raise BadMarks(f"marks must have at most {MAX_MARKS_BYTES:,} bytes, got {len(found):,}")
    return found


_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"
# Ten bits at a time: in Python, base64.b32encode of a whole digest takes 7 µs, and a job that hands on asks for it each time.
_PAIRS: Final = [first + second for first in _BASE32 for second in _BASE32]


def work_of(origin: str, data: bytes) -> str:
    """Return the key of the work that a job does: `origin` is its id, or the one that it had before a replay."""
    number = int.from_bytes(hashlib.sha256(origin.encode() + data).digest()[:17], "big") >> 6
    return "".join([_PAIRS[number >> at & 0x3FF] for at in range(120, -1, -10)])


def ms_of(entry: bytes, now_ms: int) -> int:
    """Return the time in an entry's id, at most now: a sender may choose the id, up to 2**64 - 1 ms."""
    at_ms = int(entry.partition(b"-")[0])
    return at_ms if at_ms < now_ms else now_ms


def default_id(stream: str, entry: str) -> str:
    """Return the id of a job whose message carries none."""
    return f"{stream}-{entry}"


class BadEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry that cannot be a job, and why."""

    lease: Lease
    code: str
    reason: str


# --- outcomes: what becomes of a job after a run; `Retry`, `Snooze` and `Dead` are those that a handler raises ----------------


class Done(msgspec.Struct, frozen=True):
    """The work is done."""


class Release(msgspec.Struct, frozen=True):
    """Not started, or cut off by a stop: back to where every worker may take it, no attempt burnt."""


class Park(msgspec.Struct, frozen=True, gc=False):
    """Cannot run here now: to the lot of its type."""

    lot: str


class Postpone(msgspec.Struct, frozen=True, gc=False):
    """Not before `at_ms`: to the delayed jobs."""

    at_ms: int


class Lost(msgspec.Struct, frozen=True):
    """Another worker's job now: nothing to write."""


DONE: Final = Done()
RELEASE: Final = Release()
LOST: Final = Lost()

Outcome = Done | Retry | Snooze | Dead | Release | Park | Postpone | Lost


# --- what a process asks the store to write -----------------------------------------------------------------------------------


class Deferral(msgspec.Struct, frozen=True, gc=False):
    """A held job to the delayed ones. `kind`: `retry` and `snooze` wait `when_ms` from now, `at` until `when_ms`.

    `tried` is the traceparent of the attempt that ended, if it is recorded, `tries` what its failed attempts left, with that one;
    empty where the message says already what there is to say.
    """

    lease: Job
    kind: str
    when_ms: int
    job_id: str
    failed: int
    tried: bytes = b""
    tries: bytes = b""


class Letter(msgspec.Struct, frozen=True, gc=False):
    """A held entry to the dead letters; `job_id` is empty where the entry cannot be read, `trace` where no span is recorded.

    Those who wait for a result of the job can read of its death for `result_ms`; 0 where its type has none. `tries` is what its
    failed attempts left, with the last one; empty where the message says already what there is to say.
    """

    lease: Lease
    code: str
    error: str
    stack: str
    attempts: int
    job_id: str
    trace: bytes = b""
    result_ms: int = 0
    tries: bytes = b""


class Kept(msgspec.Struct, frozen=True, gc=False):
    """What a job has answered, as JSON: kept for `life_ms` for those who wait for it."""

    job_id: str
    value: bytes
    life_ms: int


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A held job to be the one with its key; `at_ms` is the time before which it may not start, 0 for none."""

    lease: Lease
    key: bytes
    at_ms: int = 0


class Parking(msgspec.Struct, frozen=True, gc=False):
    """A held entry to a lot."""

    lease: Lease
    lot: str


class Batch(msgspec.Struct, gc=False):
    """What one flush writes. `done` has a list per stream, since most of it is one XACK and one XDEL of each. `pauses` says which
    types jobs have asked to pause, for how many ms. `results` are written before all that is done.
    """

    done: list[list[Job]]
    defer: list[Deferral]
    dead: list[Letter]
    park: list[Parking]
    pauses: dict[str, int] = {}
    results: list[Kept] = []

    def __len__(self) -> int:
        return sum(map(len, self.done)) + len(self.defer) + len(self.dead) + len(self.park)

    def put(self, move: Kept | Job | Deferral | Letter | Parking) -> None:
        """Add one result, job that is done, or move."""
        match move:
            case Kept():
                self.results.append(move)
            case Deferral():
                self.defer.append(move)
            case Letter():
                self.dead.append(move)
            case Parking():
                self.park.append(move)
            case Job():
                self.done[move.stream].append(move)

    def add(self, other: Batch) -> None:
        """Take over what another batch holds."""
        for ours, theirs in zip(self.done, other.done, strict=True):
            ours.extend(theirs)
        self.defer += other.defer
        self.dead += other.dead
        self.park += other.park
        self.results += other.results
        for name, for_ms in other.pauses.items():
            self.pauses[name] = max(for_ms, self.pauses.get(name, 0))


FREE: Final = "~free"
SUSPECT: Final = "~suspect"
UNKNOWN: Final = "~t:"
GATE: Final = "~g:"  # where jobs of a type that is paused or has limits wait, or those of a group of it
OVERFLOW: Final = "~o:"  # the same, for the groups of a type together, where there are too many


def lot_of(type_name: str, version: int) -> str:
    """Return the lot where jobs of this type and version wait for a worker that can run them."""
    return f"{UNKNOWN}{type_name}@{version}"


# --- contracts and handlers ----------------------------------------------------------------------------------------------

P = TypeVar("P", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Contract:
    """The payload type of a job: its wire name, version, default priority, and how older payloads are lifted.

    `queue` is where its messages go, whatever queue their producer has; empty for that one.
    """

    type: str
    payload: type[msgspec.Struct]
    version: int = 1
    priority: Priority = Priority.MEDIUM
    upcast: Callable[[int, Any], Any] | None = None
    queue: str = ""


Secret: Final = msgspec.Meta(extra_json_schema={"writeOnly": True})
"""Marks what is never to be shown: `token: Annotated[str, Secret]`. It stands in the JSON Schema as `writeOnly`."""


CONTRACT_ATTRIBUTE: Final = "__job_contract__"
# Names of classes by the module's file, wire name and version: a module that is loaded again, or by another name, declares
# the same ones.
_DECLARED: Final[dict[tuple[str, str, int], str]] = {}


def check_queue(queue: str) -> None:
    """Raise ConfigError where a queue cannot have this name, which becomes the hash tag of its keys."""
    if not isinstance(queue, str) or not queue or any(mark in queue for mark in "{}\r\n "):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"queue {queue!r}: must be a name without spaces and braces")


def contract(
    type: str,
    *,
    version: int = 1,
    priority: Priority = Priority.MEDIUM,
    upcast: Callable[[int, Any], Any] | None = None,
    queue: str = "",
) -> Callable[[type[P]], type[P]]:
    """Make a msgspec.Struct the payload of a job type.

    Args:
        type: the name that messages carry, 1 to 64 of `[a-z0-9._-]`.
        version: of the payload's shape, from 1; written to each message, and 1 where a message has none.
        priority: the stream of a message that names none.
        upcast: gets the version of an older payload, and the payload as plain dicts, lists, texts and numbers; returns it in
            today's shape, which is then checked. Without it, older payloads are read as they are.
        queue: where its messages go, and whose workers run them; without it, the queue of whoever sends.

    Raises:
        ConfigError: the name, the version, the queue or the class cannot be used, or its module has another class of this name.
    """
    if not isinstance(type, str):  # pyright: ignore[reportUnnecessaryIsInstance] -- `@contract` without brackets
        raise ConfigError(f"contract {getattr(type, '__name__', type)!s:.60}: needs its wire name; hint: @contract('its-type')")
    if not TYPE_NAME.match(type.encode()):
        raise ConfigError(f"contract {type!r}: must be 1 to 64 of [a-z0-9._-] and begin with a letter or digit")
    if version < 1:
        raise ConfigError(f"contract {type!r}: version must be a whole number from 1, got {version!r}")
    if queue:
        try:
            check_queue(queue)
        except ConfigError as error:
            raise ConfigError(f"contract {type!r}: {error}") from None

    def declare(payload: type[P]) -> type[P]:
        if not issubclass(payload, msgspec.Struct):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"contract {type!r}: {payload.__name__} must be a subclass of msgspec.Struct")
        _check_one(payload, type, version)
        setattr(payload, CONTRACT_ATTRIBUTE, Contract(type, payload, version, Priority(priority), upcast, queue))
        return payload

    return declare


def _check_one(payload: type[msgspec.Struct], type_name: str, version: int) -> None:
    """Raise ConfigError where the module of this class has declared another one for the same messages.

    Two modules may: a service's own copy, or tests; of two handlers of a type the worker's start complains. So may a function.
    """
    file = getattr(sys.modules.get(payload.__module__), "__file__", None)
    if file is None or "<locals>" in payload.__qualname__:
        return
    first = _DECLARED.setdefault((file, type_name, version), payload.__qualname__)
    if first != payload.__qualname__:
        what = f"{payload.__module__}:{payload.__qualname__}"
        hint = "hint: another name, or version=2 of the same"
        raise ConfigError(f"contract {type_name!r}: {what} must not be declared, {first} has this name and version; {hint}")


def contract_of(payload: type[msgspec.Struct]) -> Contract:
    """Return the contract that was declared on exactly this class.

    Raises:
        ConfigError: there is none; one of a base class does not count.
    """
    found = payload.__dict__.get(CONTRACT_ATTRIBUTE)
    if not isinstance(found, Contract):
        raise ConfigError(f"{payload.__name__} is not a contract: declare it with @contract('its-type')")
    return found


class ResultPolicy(msgspec.Struct, frozen=True):
    """How long the results of a type are kept, and what makes JSON of one, or raises BadResult."""

    life_ms: int
    encode: Callable[[object], bytes]


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How jobs of a type gather, to run together: `max_size` of them at most, and none waits for longer than `max_wait_s`."""

    max_size: int
    max_wait_s: float


class InChild(Protocol):
    """A function that runs in a child process."""

    @property
    def location(self) -> str:
        """Where it is defined: `module:name`."""
        ...


@dataclass(frozen=True, slots=True)
class Handler(Generic[P]):
    """A function that runs the jobs of one contract, with all that can be computed once, when it is declared.

    `run(payload, job)` is always a coroutine function: functions that block are wrapped. `decode(job)` returns the payload, or
    raises UnfitPayload. Where there is a `batch`, both take a `Gathered` too, and `run` raises AllRan at its end.
    `result` is None where what the function returns is thrown away. `children` are what it awaits in child processes.
    """

    contract: Contract
    run: Callable[[Any, Job], Awaitable[object]]
    decode: Callable[[Job], Any]
    function: Callable[..., object]
    timeout_s: float
    retry: Backoff
    runs: str
    limits: Limits = NO_LIMITS
    batch: BatchPolicy | None = None
    result: ResultPolicy | None = None
    children: Sequence[InChild] = ()

    @property
    def needs(self) -> str:
        """What its jobs need a place of: `thread`, `process`, or `loop` where they need none."""
        return "process" if self.children else self.runs

    @overload
    def __call__(self, payload: P, job: Job) -> object: ...

    @overload
    def __call__(self, payload: list[P], job: list[Job]) -> object: ...

    def __call__(self, payload: P | list[P], job: Job | list[Job]) -> object:
        """Return what the function itself returns, as if it were not declared a handler."""
        return self.function(payload, job)

    @property
    def location(self) -> str:
        """Where the function is defined: `module:name`."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    @property
    def line(self) -> str:
        """The file, with its folder, and the line at which the function is defined; `location` where that is not known."""
        try:
            code = inspect.unwrap(self.function).__code__
        except (AttributeError, ValueError):  # an object that is called, or what wraps itself
            return self.location
        return f"{'/'.join(code.co_filename.split(os.sep)[-2:])}:{code.co_firstlineno}"


Registry = Mapping[bytes, Handler[Any]]


class Carrier(Protocol):
    """Takes the trace of a lane's job into a child process, and back what is recorded there."""

    def carried(self, job: Job) -> tuple[str, tuple[Any, ...]]:
        """Return what traces a job in a child: the name of a class, `module:name`, and its arguments. Its objects have `begin`,
        called in the context of the handler, and `end`, which returns what was recorded.
        """
        ...

    def collect(self, recorded: Sequence[bytes]) -> None:
        """Take what `end` returned."""
        ...


class Running(Protocol):
    """A lane, as those see it whom a job calls: `job` is the one that it runs, None between jobs."""

    job: Job | None

    @property
    def started_s(self) -> float:
        """When the job that it runs began, by the monotonic clock."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it runs jobs, or will."""
        ...

    @property
    def watch(self) -> Carrier | None:
        """What watches the lane, if anything does."""
        ...

    @property
    def blocked(self) -> tuple[Job, float] | None:
        """Which job of the lane has blocked the loop last, and for how many ms."""
        ...

    def keep(self, result: Kept) -> None:
        """Have a result written before its job is: called by the run that answered it, in its last step."""
        ...

    def begin(self) -> None:
        """Count the time of the job from now on: called by work that had to wait for a thread or a child."""
        ...

    def hear(self, job: Job) -> None:
        """Hear that a job has said something for the first time; called in any thread."""
        ...


# Set once per lane, to itself; None where nothing is run by a lane. A task that outlives its job finds the lane's next one.
LANE: ContextVar[Running | None] = ContextVar("lane", default=None)
# All lanes of this process: a thread that a handler has started itself has none of its context variables.
LANES: Final[WeakValueDictionary[int, Running]] = WeakValueDictionary()
# Set where a job runs apart from its lane: in a thread, which may go on when the lane has another job, and in a child process.
JOB: ContextVar[Job | None] = ContextVar("job", default=None)

# Set where a worker runs jobs, for its lanes and the threads of their handlers.
MARKS: ContextVar[MarkStore | None] = ContextVar("marks", default=None)
# The same: the queue of that worker; empty where it is not known.
QUEUE: ContextVar[str] = ContextVar("queue", default="")


def lane_of(job: Job) -> Running | None:
    """Return the lane that runs this job now, alone or with others; None where none does. May be called in any thread."""
    lane = LANE.get()
    if lane is None or not _runs(lane, job):
        lane = next((other for other in _all_lanes() if _runs(other, job)), None)
    return lane


def is_over(job: Job) -> bool:
    """Return whether the run of this job has ended. What is called by hand, or in a child process, has no lane, and may go on."""
    return lane_of(job) is None and (LANE.get() is not None or any(lane.is_open for lane in _all_lanes()))


def _runs(lane: Running, job: Job) -> bool:
    running = lane.job
    return running is job or (isinstance(running, Gathered) and job in running.jobs)


def _all_lanes() -> list[Running]:
    # References in a list, which is one step of Python's own: lanes may come and go in the loop's thread meanwhile.
    return [lane for lane in (reference() for reference in LANES.valuerefs()) if lane is not None]


def running_job() -> Job | None:
    """Return the job whose code calls this, in plain code, in tasks and threads with its context; None outside of jobs, and where
    many run together.

    What outlives its job, other than a thread of a handler that is a plain function, finds the job that its lane runs by then.
    """
    job = JOB.get()
    if job is None:
        lane = LANE.get()
        job = lane.job if lane is not None else None
    return None if type(job) is Gathered else job
