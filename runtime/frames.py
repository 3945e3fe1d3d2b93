"""Frames carry a call into a child process and its answer back: a head, which is MessagePack of one of these structs, and a body.

The body is MessagePack of a struct of the user's. Both are preceded by their lengths, and bounded. What comes from a child is
decoded by type and nothing else: a child in which a handler runs amok can break its own job, and no more.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec.structs import fields

from runtime.followers import MAX_FOLLOWERS
from runtime.jobs import PLAIN, Envelope, Extras, Head, Job, Packed
from runtime.said import MAX_LINES

READY: Final = b"\1"  # what a child sends when it can be asked
HEADER: Final = struct.Struct(">IQ")  # how many bytes the head has, and the body
MAX_ANSWER_BYTES: Final = 16 << 20  # of its head, a guess: jobs and spans that it hands on have 1 MiB each, lines and stacks less
MAX_BODY_BYTES: Final = 1 << 30  # a guess: larger than the models that people train in a job
# Of an answer, beside its fields of many bytes: what becomes objects on the loop; a guess: 20 ms.
MAX_BESIDE_BYTES: Final = 1 << 20
BIN_32: Final = 0xC6  # of MessagePack
MAX_RECORDED: Final = 20_000  # spans of a job, a guess: 1 MiB of the shortest
MAPPED_BYTES: Final = 1 << 20  # a guess: from here on, memory that the kernel fills with zeros only where it is read or written
APART_BYTES: Final = 64 << 10  # a guess: from here on, a field is sent from where it lies

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap


class NoFrame(Exception):
    """What has come is no frame."""


class Fetched(msgspec.Struct, frozen=True, array_like=True):
    """A job as it was fetched; `envelope` is None where its message has nothing to say."""

    stream: int
    entry: bytes
    count: int
    run_id: str
    taken_s: float
    type: bytes
    data: bytes
    envelope: Envelope | None
    fetched_ms: int
    fields: list[bytes]
    trace: bytes
    is_traced: bool

    def job(self) -> Job:
        """Return it, as the worker has it."""
        place = (self.stream, self.entry, self.count, self.run_id, self.taken_s)
        told = (PLAIN if self.envelope is None else self.envelope, self.fetched_ms, self.fields, self.trace, self.is_traced)
        return Job(*place, self.type, self.data, *told)


def fetched(job: Job) -> Fetched:
    """Return a job for a child; what its run has noted goes apart."""
    place = (job.stream, job.entry, job.count, job.run_id, job.taken_s)
    told = (None if job.envelope is PLAIN else job.envelope, job.fetched_ms, list(job.fields), job.trace, job.is_traced)
    return Fetched(*place, job.type, job.data, *told)


class Follower(msgspec.Struct, frozen=True, array_like=True):
    """A job that is handed on: its head and its data."""

    stream: int
    due_ms: int
    id: str
    fields: tuple[Any, ...]
    queue: str
    data: bytes

    def __post_init__(self) -> None:
        """Refuse fields of other types: msgspec does not know how to tell three from others."""
        if not all(type(field) in (bytes, str, int) for field in self.fields):
            raise ValueError("fields must be bytes, texts or whole numbers")

    def packed(self) -> Packed:
        """Return it as it is sent."""
        return Packed(Head(self.stream, self.due_ms, self.id, self.fields, self.queue), self.data)


class Noted(msgspec.Struct, frozen=True, array_like=True):
    """What a run has noted: the jobs that it hands on, what it has said as `Said.told` has it, and its result."""

    followers: Annotated[list[Follower], msgspec.Meta(max_length=MAX_FOLLOWERS)]
    said: tuple[tuple[int | float, int | float | None, str] | None, Annotated[list[str], msgspec.Meta(max_length=MAX_LINES)], int]
    result: bytes | None = None


def noted_of(job: Job) -> Noted | None:
    """Return what the run of this job has noted; None for nothing."""
    extras = job.extras
    if extras is None:
        return None
    said = extras.said
    if not extras.followers and extras.result is None and not said.said and said.progress is None:
        return None
    return Noted([_follower(packed) for packed in list(extras.followers.values())], said.told(), extras.result)


def _follower(packed: Packed) -> Follower:
    head = packed.head
    return Follower(head.stream, head.due_ms, head.id, head.fields, head.queue, packed.data)


def take_over(extras: Extras, noted: Noted) -> None:
    """Note what the run of a job has noted in another process."""
    extras.followers.update({one.id: one.packed() for one in noted.followers})
    extras.said.take_over(*noted.said)
    extras.result = noted.result


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What a child is to run: what is declared as `name` in a module, for this job.

    `number` is what its answer repeats. `log` are the settings of the worker's log, `trace_ids` those in the lines of this job,
    `carried` is what traces it here, `channel` the end of the channel for what it says, `lifespans` are the worker's.
    """

    number: int
    parent: int
    module: str
    name: str
    memory_bytes: int | None
    log: tuple[str, str] | None
    trace_ids: tuple[str, str, str] | None
    carried: tuple[str, tuple[Any, ...]] | None
    channel: tuple[int, int]
    lifespans: tuple[str, ...]
    job: Fetched
    noted: Noted | None


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """It has returned, and maybe something."""

    has_answer: bool


# The others are those of `settle.as_plain_words`, in the same order.


class SaysDead(msgspec.Struct, frozen=True, array_like=True, tag="dead"):
    """It has raised Dead."""

    text: str
    code: str
    stack: str


class SaysSnooze(msgspec.Struct, frozen=True, array_like=True, tag="snooze"):
    """It has raised Snooze."""

    text: str
    delay_s: float
    pause_type: bool


class SaysRetry(msgspec.Struct, frozen=True, array_like=True, tag="retry"):
    """It has raised Retry."""

    text: str
    delay_s: float | None
    pause_type: bool
    stack: str


class Unfit(msgspec.Struct, frozen=True, array_like=True, tag="bad"):
    """The payload did not fit."""

    text: str
    code: str
    stack: str


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="error"):
    """It has raised anything else."""

    text: str
    stack: str
    name: str


Raised: TypeAlias = SaysDead | SaysSnooze | SaysRetry | Unfit | Failed


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What became of the call of this number, what was recorded of it, and what its run has noted."""

    number: int
    recorded: Annotated[list[bytes], msgspec.Meta(max_length=MAX_RECORDED)]
    noted: Noted | None
    end: Done | Raised


_CALL: Final = msgspec.msgpack.Decoder(Call)
# More than any struct has; what is no struct might have millions.
_RAW_FIELDS: Final = msgspec.msgpack.Decoder(Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=1000)])
_ANSWER: Final = msgspec.msgpack.Decoder(Answer)


def call_in(head: Buffer) -> Call:
    """Return the call that this is."""
    return _CALL.decode(head)


def answer_in(head: Buffer) -> Answer:
    """Return the answer that this is.

    Raises:
        NoFrame: it is none.
    """
    try:
        return _ANSWER.decode(head)
    except (ValueError, RecursionError):
        raise NoFrame("what it has sent is no answer") from None


def frame(head: msgspec.Struct, body: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return what is to be sent, one after the other; each has bytes, so that one that cannot be sent was waited for."""
    packed = msgspec.msgpack.encode(head)
    return [HEADER.pack(len(packed), sum(map(_size, body))) + packed, *filter(_size, body)]


def lengths(header: Buffer, most_head_bytes: int, most_body_bytes: int) -> tuple[int, int]:
    """Return how many bytes of head and of body follow.

    Raises:
        NoFrame: more than there may be.
    """
    head, body = HEADER.unpack(header)
    if not 0 < head <= most_head_bytes or body > most_body_bytes:
        raise NoFrame(f"what it has sent is no answer, or has more than {most_head_bytes:,} and {most_body_bytes:,} bytes")
    return head, body


def room(size: int) -> bytearray | mmap.mmap:
    """Return memory for so many bytes, which costs nothing before it is filled."""
    return mmap.mmap(-1, size) if size >= MAPPED_BYTES else bytearray(size)


def parts_of(value: msgspec.Struct | None, most_beside_bytes: int = MAX_BODY_BYTES) -> list[Buffer]:
    """Return MessagePack of a struct in parts: its fields of many bytes are not copied.

    Raises:
        ValueError: it has more than MAX_BODY_BYTES, or `most_beside_bytes` beside such fields.
        Exception: of any kind, where it cannot be encoded.
    """
    parts = _apart(value) if isinstance(value, msgspec.Struct) else None
    parts = parts or [msgspec.msgpack.encode(value)]
    size = sum(map(_size, parts))
    if size > MAX_BODY_BYTES:
        raise ValueError(f"{type(value).__name__}: must have at most {MAX_BODY_BYTES:,} bytes, got {size:,}")
    beside = sum(len(part) for part in parts if isinstance(part, bytes))
    if beside > most_beside_bytes:
        hint = "hint: fields of `bytes` or `memoryview`, or a file"
        raise ValueError(
            f"{type(value).__name__}: must have at most {most_beside_bytes:,} bytes beside large ones, got {beside:,}; {hint}"
        )
    return parts


def beside_bytes(body: Buffer) -> int:
    """Return how much MessagePack of a struct has beside its fields of many bytes; nothing becomes an object, where it is much.

    Raises:
        ValueError, RecursionError: it is none.
    """
    if _size(body) <= MAX_BESIDE_BYTES:
        return _size(body)
    views = map(memoryview, _RAW_FIELDS.decode(body).values())
    return _size(body) - sum(view.nbytes for view in views if view.nbytes > APART_BYTES and view[0] == BIN_32)


def _apart(value: msgspec.Struct) -> list[Buffer] | None:
    """Return a map of its fields, where one of them has many bytes; None where none has, or the struct is written otherwise."""
    config = value.__struct_config__
    found = [(field.encode_name, getattr(value, field.name)) for field in fields(value)]
    if config.array_like or config.tag is not None or not any(map(_is_large, found)):
        return None
    parts: list[Buffer] = []
    small = bytearray(b"\xdf" + len(found).to_bytes(4, "big"))  # map 32
    for name, one in found:
        small += msgspec.msgpack.encode(name)
        if _is_large((name, one)):
            small += BIN_32.to_bytes() + _size(one).to_bytes(4, "big")
            parts += [bytes(small), memoryview(one).cast("B")]
            small.clear()
        else:
            small += msgspec.msgpack.encode(one)
    return [*parts, bytes(small)]


def _is_large(found: tuple[str, Any]) -> bool:
    _, one = found
    return type(one) in (bytes, bytearray, memoryview) and _size(one) >= APART_BYTES


def _size(one: Buffer) -> int:
    return one.nbytes if isinstance(one, memoryview) else len(one)
