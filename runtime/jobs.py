"""The nouns: what a job, its lease, its contract and its handler are."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

import msgspec

from runtime.backoff import Backoff
from runtime.errors import ConfigError, Dead, Retry, Snooze

TYPE_NAME = re.compile(rb"[a-z0-9][a-z0-9._-]{0,63}(?![\s\S])")
DEFAULT_TIMEOUT_S = 600.0


class Priority(IntEnum):
    """How soon a job matters; each priority is a stream of its own."""

    CRITICAL = 1
    HIGH = 2
    MEDIUM = 3
    LOW = 4


STREAMS: Final = ("critical", "high", "medium", "low")


class Lease(msgspec.Struct, gc=False, eq=False):
    """The right to move one stream entry, as long as the pending list shows our name and `count`.

    Compared by identity on purpose: the same entry may be leased twice, and a report about the first must not hit the second.
    `stream` is an index into STREAMS, `run_id` names the server (and group) that handed the entry out.
    """

    stream: int
    entry: bytes
    count: int
    run_id: str
    taken_s: float


class Envelope(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The optional fields of a message, parsed. `PLAIN` serves every message that has none of them."""

    id: str = ""
    version: int = 1
    at_ms: int = 0
    exp_ms: int = 0
    key: bytes = b""
    attempts: int = 0
    failed: int = 0
    first_ms: int = 0
    snoozed_ms: int = 0
    origin: str = ""
    is_msgpack: bool = False


PLAIN: Final = Envelope()


class Job(Lease, gc=False, eq=False):
    """One message on its way through this process. Handlers read `id`, `attempt`, `work`, `born`, `priority`.

    `fields` are all that it came with, names and values in turn; empty where they are `type` and `data` and nothing else.
    """

    type: bytes
    data: bytes
    envelope: Envelope
    fetched_ms: int
    fields: Sequence[bytes] = ()

    @property
    def id(self) -> str:
        """The job's id; the same over all its attempts."""
        return self.envelope.id or default_id(STREAMS[self.stream], self.entry.decode())

    @property
    def attempt(self) -> int:
        """1 for the first run of the handler, one more after each failure."""
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
        """`born` in ms: of a first attempt the time in its entry's id, unless that lies ahead, since senders may choose ids."""
        return self.envelope.first_ms or ms_of(self.entry, self.fetched_ms)

    @property
    def work(self) -> str:
        """An idempotency key: 26 characters that stay the same over retries, reclaims and an unedited replay."""
        digest = hashlib.sha256((self.envelope.origin or self.id).encode() + self.data).digest()
        return base64.b32encode(digest).decode()[:26].lower()


def ms_of(entry: bytes, now_ms: int) -> int:
    """Return the time in an entry's id, at most now: whoever sends may choose the id, up to 2**64 - 1 ms."""
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


# --- outcomes: what becomes of a job after a run. `Retry`, `Snooze` and `Dead` are the handler's words ---------------------


class Done(msgspec.Struct, frozen=True):
    """The work is done."""


class Release(msgspec.Struct, frozen=True):
    """Not started, or cut off by a stop: back to where anybody may take it, no attempt burnt."""


class Park(msgspec.Struct, frozen=True, gc=False):
    """May not run here now: to the lot of its type."""

    lot: str


class Postpone(msgspec.Struct, frozen=True, gc=False):
    """Not before `at_ms`: to the delayed jobs."""

    at_ms: int


class Lost(msgspec.Struct, frozen=True):
    """Somebody else's job now: nothing to write."""


DONE: Final = Done()
RELEASE: Final = Release()
LOST: Final = Lost()

Outcome = Done | Retry | Snooze | Dead | Release | Park | Postpone | Lost


# --- what a process asks the store to write -----------------------------------------------------------------------------------


class Deferral(msgspec.Struct, frozen=True, gc=False):
    """A held job to the delayed ones. `kind`: `retry` and `snooze` wait `when_ms` from now, `at` until `when_ms`."""

    lease: Job
    kind: str
    when_ms: int
    job_id: str
    failed: int


class Letter(msgspec.Struct, frozen=True, gc=False):
    """A held entry to the dead letters; `job_id` is empty where the entry cannot be read."""

    lease: Lease
    code: str
    error: str
    stack: str
    attempts: int
    job_id: str


class Parking(msgspec.Struct, frozen=True, gc=False):
    """A held entry to a lot."""

    lease: Lease
    lot: str


class Batch(msgspec.Struct, gc=False):
    """What one flush writes. `done` has a list per stream, since most of it is one XACK and one XDEL of each."""

    done: list[list[Job]]
    defer: list[Deferral]
    dead: list[Letter]
    park: list[Parking]

    def __len__(self) -> int:
        return sum(map(len, self.done)) + len(self.defer) + len(self.dead) + len(self.park)

    def add(self, other: Batch) -> None:
        """Take over what another batch holds."""
        for stream in range(4):
            self.done[stream] += other.done[stream]
        self.defer += other.defer
        self.dead += other.dead
        self.park += other.park


FREE: Final = "~free"
SUSPECT: Final = "~suspect"
UNKNOWN: Final = "~t:"


def lot_of(type_name: str, version: int) -> str:
    """Return the lot where jobs of this type and version wait for a worker that can run them."""
    return f"{UNKNOWN}{type_name}@{version}"


# --- contracts and handlers ----------------------------------------------------------------------------------------------

P = TypeVar("P", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Contract:
    """The payload type of a job: its wire name, version, default priority, and how older payloads are lifted."""

    type: str
    payload: type[msgspec.Struct]
    version: int = 1
    priority: Priority = Priority.MEDIUM
    upcast: Callable[[int, Any], Any] | None = None


CONTRACT_ATTRIBUTE = "__job_contract__"


def contract(
    type: str,
    *,
    version: int = 1,
    priority: Priority = Priority.MEDIUM,
    upcast: Callable[[int, Any], Any] | None = None,
) -> Callable[[type[P]], type[P]]:
    """Make a msgspec.Struct the contract of a job type.

    `upcast(version, payload)` gets an older payload as plain dicts and lists and gives it back in today's shape.

    Raises:
        ConfigError: the name, the version or the class cannot be used.
    """
    if not TYPE_NAME.match(type.encode()):
        raise ConfigError(f"contract {type!r}: a type is 1 to 64 of [a-z0-9._-] and begins with a letter or digit")
    if version < 1:
        raise ConfigError(f"contract {type!r}: the version is a whole number from 1")

    def declare(payload: type[P]) -> type[P]:
        if not issubclass(payload, msgspec.Struct):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"contract {type!r}: {payload.__name__} must be a msgspec.Struct")
        setattr(payload, CONTRACT_ATTRIBUTE, Contract(type, payload, version, Priority(priority), upcast))
        return payload

    return declare


def contract_of(payload: type[msgspec.Struct]) -> Contract:
    """Return the contract that was declared on exactly this class.

    Raises:
        ConfigError: there is none.
    """
    found = payload.__dict__.get(CONTRACT_ATTRIBUTE)
    if not isinstance(found, Contract):
        raise ConfigError(f"{payload.__name__} is no contract: declare it with @contract('its-type')")
    return found


@dataclass(frozen=True, slots=True)
class Handler(Generic[P]):
    """Code that runs the jobs of one contract, with everything computed that can be computed at declaration.

    `run(payload, job)` is always a coroutine function: functions that block are wrapped when they are declared.
    `decode(job)` gives the payload or raises BadPayload.
    """

    contract: Contract
    run: Callable[[Any, Job], Awaitable[object]]
    decode: Callable[[Job], Any]
    function: Callable[[P, Job], object]
    timeout_s: float
    retry: Backoff
    runs: str

    def __call__(self, payload: P, job: Job) -> object:
        """Call the function itself, as if it were not declared a handler."""
        return self.function(payload, job)

    @property
    def location(self) -> str:
        """Where the function stands, for people: `module:name`."""
        return f"{self.function.__module__}:{self.function.__qualname__}"


Registry = Mapping[bytes, Handler[Any]]


def _nobody_listens() -> None:
    """Outside of a lane."""


# Set once per lane: how work that had to wait for a thread or a child tells its lane that it begins only now.
BEGINS: ContextVar[Callable[[], None]] = ContextVar("begins", default=_nobody_listens)
