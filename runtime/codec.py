"""Messages as they stand in Redis: fields to jobs and back, records of delayed jobs, dead letters, and payloads to contracts.

The one module in Python that knows the names of fields; the scripts spell those that they touch. Reading raises nothing, whatever
a sender wrote: what cannot be a job is returned with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

import msgspec

from runtime.bounds import MAX_DEPTH, TOO_DEEP, check_json, check_msgpack, freedom_of
from runtime.errors import BadMessage, UnfitPayload
from runtime.jobs import PLAIN, STREAMS, BadEntry, Contract, Deferral, Envelope, Job, Lease
from runtime.tries import MAX_TRIES_BYTES, Try, read_tries, with_try

# --- the names of fields -----------------------------------------------------------------------------------------------------

# What a sender may write; docs/produce.md says what each of them means.
TYPE: Final = b"type"
DATA: Final = b"data"
CONTENT_TYPE: Final = b"ct"
ID: Final = b"id"
VERSION: Final = b"v"
AT: Final = b"at"
EXP: Final = b"exp"
KEY: Final = b"key"
KEEP: Final = b"keep"
ATTEMPTS: Final = b"attempts"
GROUP: Final = b"group"
SOURCE: Final = b"src"
TRACE: Final = b"traceparent"  # this and the next: W3C Trace Context
TRACE_STATE: Final = b"tracestate"
SENT_FIELDS: Final = (TYPE, DATA, CONTENT_TYPE, ID, VERSION, AT, EXP, KEY, KEEP, ATTEMPTS, GROUP, SOURCE, TRACE, TRACE_STATE)
# What the runtime notes on a message: failed attempts, when it was born and first snoozed, the id it had before a replay, the
# traceparent of its last attempt that is recorded, and the attempts that failed (`runtime.tries`).
FAILED: Final = b"a"
FIRST_AT: Final = b"first_at"
SNOOZED_AT: Final = b"snoozed_at"
ORIGIN: Final = b"x-origin"
# What a message has that a person made of a dead letter: the place of that.
REPLAYED_FROM: Final = b"x-replayed-from"
TRIED: Final = b"tried"
TRIES: Final = b"e"
NOTED_FIELDS: Final = (FAILED, FIRST_AT, SNOOZED_AT, ORIGIN, TRIED, TRIES)
# What a dead letter has beside the fields of its message.
DEAD_REASON: Final = b"dead_reason"
DEAD_ERROR: Final = b"dead_error"
DEAD_STACK: Final = b"dead_stack"
DEAD_ATTEMPTS: Final = b"dead_attempts"
DEAD_FROM: Final = b"dead_from"
DEAD_AT: Final = b"dead_at"
DEAD_LEFT_OUT: Final = b"dead_left_out"
DEAD_TRACE: Final = b"dead_trace"
DEAD_BY: Final = b"dead_by"
DEAD_APP: Final = b"dead_app"
DEAD_FIELDS: Final = (
    *(DEAD_REASON, DEAD_ERROR, DEAD_STACK, DEAD_ATTEMPTS, DEAD_FROM, DEAD_AT, DEAD_LEFT_OUT, DEAD_TRACE, DEAD_BY, DEAD_APP),
)
# The first field of a delayed job's record: the stream that it goes to.
STREAM: Final = b"stream"

# --- limits ------------------------------------------------------------------------------------------------------------------

MAX_DATA_BYTES: Final = 256 * 1024  # a guess: what is larger is better kept elsewhere, and referred to
MAX_OTHERS_BYTES: Final = 1024 * 1024  # of all fields beside `data`, a guess: more than any header has
OWN_FIELDS: Final = 8  # what the runtime notes, with `id` and `x-op`: a retry must not make a message too large
MAX_FIELDS: Final = 512  # a script's `unpack` fails near 4,000 values: 512 pairs leave space for fields of the runtime's own
MAX_KEY_BYTES: Final = 512  # a guess: long enough for any natural key
KEPT: Final = (b"first", b"last")  # which of the messages with one key that wait for a time is the one that runs
MAX_GROUP_BYTES: Final = MAX_KEY_BYTES  # it becomes a part of names in Redis
MAX_MS: Final = 2**53  # times pass through Lua, whose numbers are doubles
MAX_DIGITS: Final = len(str(MAX_MS))
# Short enough for a log line, and without what a key's name or a URL would have to escape; 128 is a guess.
JOB_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}(?![\s\S])")
_RENEWED: Final = frozenset((ID, AT, FAILED, FIRST_AT, SNOOZED_AT))  # what a record says anew of its job

Row = tuple[bytes, Sequence[bytes]]  # entry id; fields and values in turn

# --- fields to jobs ----------------------------------------------------------------------------------------------------------


def decode_many(
    stream: int,
    rows: Sequence[Row],
    counts: Iterable[int],
    run_id: str,
    taken_s: float,
    fetched_ms: int,
    max_data_bytes: int = MAX_DATA_BYTES,
) -> tuple[list[Job], list[BadEntry]]:
    """Return the jobs of a batch, and beside them the entries that cannot be jobs, with the reason.

    `counts` has the delivery count of each row.
    """
    jobs: list[Job] = []
    bad: list[BadEntry] = []
    shapes = _SHAPES
    for (entry, fields), count in zip(rows, counts, strict=False):
        # What nearly every sender writes, `type` and `data` alone, without a dictionary per job: `bench`'s drain pays for it.
        if len(fields) == 4 and fields[0] == TYPE and fields[2] == DATA:
            type_name, data, envelope, others, trace = fields[1], fields[3], PLAIN, (), b""
        # The same with a `traceparent`, as other languages have it, and as a Producer does.
        elif (
            len(fields) == 6 and fields[4] == TRACE and fields[0] == TYPE and fields[2] == DATA and len(fields[5]) == _TRACE_BYTES
        ):
            type_name, data, envelope, others, trace = fields[1], fields[3], PLAIN, fields, fields[5]
        elif (
            len(fields) == 6 and fields[0] == TRACE and fields[2] == TYPE and fields[4] == DATA and len(fields[1]) == _TRACE_BYTES
        ):
            type_name, data, envelope, others, trace = fields[3], fields[5], PLAIN, fields, fields[1]
        else:
            others = fields
            names = tuple(fields[::2])
            shape = shapes.get(names) or _shape_of(names)
            if shape is not _ENVELOPED and not len(fields) % 2:
                type_at, data_at, trace_at = shape
                type_name, data, envelope = fields[type_at], fields[data_at], PLAIN
                trace = fields[trace_at] if trace_at else b""
            else:
                try:
                    type_name, data, envelope, trace = _envelope(fields, fetched_ms)
                except BadMessage as error:
                    bad.append(BadEntry(Lease(stream, entry, count, run_id, taken_s), error.code, str(error)))
                    continue
            if len(b"".join(fields)) > max_data_bytes + MAX_OTHERS_BYTES:  # a copy, and a third of what a sum of lengths takes
                reason = f"more than {max_data_bytes + MAX_OTHERS_BYTES} bytes in all fields"
                bad.append(BadEntry(Lease(stream, entry, count, run_id, taken_s), "too-large", reason))
                continue
        if len(data) > max_data_bytes:
            reason = f"data has {len(data)} bytes, the limit is {max_data_bytes}"
            bad.append(BadEntry(Lease(stream, entry, count, run_id, taken_s), "too-large", reason))
            continue
        jobs.append(Job(stream, entry, count, run_id, taken_s, type_name, data, envelope, fetched_ms, others, trace))
    return jobs, bad


# Names of fields, in their order, to the positions of the values of `type`, `data` and `traceparent` (0: none), for messages that
# say nothing which an envelope would hold: 0.6 µs less of each message of a sender that traces.
_Shape = tuple[int, int, int]
_TRACE_BYTES: Final = 55  # of a traceparent of version 00
_ENVELOPED: Final[_Shape] = (0, 0, 0)
_SHAPES: Final[dict[tuple[bytes, ...], _Shape]] = {}
_SHAPES_BYTES: Final = 64 * 1024  # of all names together, a guess: hundreds of shapes; more than senders have
_shapes_bytes = 0


def _shape_of(names: tuple[bytes, ...]) -> _Shape:
    """Return the shape of a message, and remember it as long as there is space: any sender may think up names."""
    global _shapes_bytes
    is_plain = TYPE in names and DATA in names and len(set(names)) == len(names) and _IN_ENVELOPE.isdisjoint(names)
    if not is_plain or len(names) > MAX_FIELDS:
        return _ENVELOPED
    shape = (2 * names.index(TYPE) + 1, 2 * names.index(DATA) + 1, 2 * names.index(TRACE) + 1 if TRACE in names else 0)
    size = sum(map(len, names))
    if _shapes_bytes + size <= _SHAPES_BYTES:
        _shapes_bytes += size
        _SHAPES[names] = shape
    return shape


_IN_ENVELOPE: Final = {ID, VERSION, AT, EXP, KEY, KEEP, ATTEMPTS, GROUP, CONTENT_TYPE, *NOTED_FIELDS}


def _envelope(fields: Sequence[bytes], fetched_ms: int) -> tuple[bytes, bytes, Envelope, bytes]:
    if len(fields) > 2 * (MAX_FIELDS + OWN_FIELDS):
        raise BadMessage(f"{len(fields) // 2} fields, the limit is {MAX_FIELDS}", "too-large")
    words = iter(fields)
    message = dict(zip(words, words, strict=False))
    type_name, data = message.get(TYPE), message.get(DATA)
    if type_name is None:
        raise BadMessage("no field `type`")
    if data is None:
        raise BadMessage("no field `data`")
    job_id = message.get(ID, b"")
    if ID in message and not JOB_ID.match(job_id):
        raise BadMessage("`id` is not 1 to 128 of [A-Za-z0-9._:-]")
    key = message.get(KEY, b"")
    if len(key) > MAX_KEY_BYTES:
        raise BadMessage(f"`key` has {len(key)} bytes, the limit is {MAX_KEY_BYTES}")
    if message.get(KEEP, b"last") not in KEPT:
        raise BadMessage("`keep` is neither first nor last")
    group = message.get(GROUP, b"")
    if len(group) > MAX_GROUP_BYTES:
        raise BadMessage(f"`group` has {len(group)} bytes, the limit is {MAX_GROUP_BYTES}")
    if group and not _is_text(group):
        raise BadMessage("`group` is not UTF-8")
    return (
        type_name,
        data,
        Envelope(
            id=job_id.decode(),
            version=_number(message, VERSION, 1) if VERSION in message else 1,
            at_ms=_number(message, AT) if AT in message else 0,
            exp_ms=_number(message, EXP) if EXP in message else 0,
            key=key,
            group=group,
            attempts=_number(message, ATTEMPTS, 1) if ATTEMPTS in message else 0,
            failed=_number(message, FAILED) if FAILED in message else 0,
            first_ms=_past(message, FIRST_AT, fetched_ms) if FIRST_AT in message else 0,
            snoozed_ms=_past(message, SNOOZED_AT, fetched_ms) if SNOOZED_AT in message else 0,
            origin=message[ORIGIN].decode(errors="replace") if ORIGIN in message else "",
            is_msgpack=CONTENT_TYPE in message and _is_msgpack(message[CONTENT_TYPE]),
        ),
        message.get(TRACE, b""),
    )


def _parse_int(text: bytes) -> int:
    """Return the whole number that a text is, up to MAX_MS, or -1."""
    number = int(text) if text.isdigit() and len(text) <= MAX_DIGITS else -1
    return number if number <= MAX_MS else -1


def _number(message: dict[bytes, bytes], name: bytes, least: int = 0) -> int:
    number = _parse_int(message[name])
    if not least <= number <= MAX_MS:
        raise BadMessage(f"`{name.decode()}` is not a whole number from {least} to {MAX_MS}")
    return number


def _past(message: dict[bytes, bytes], name: bytes, now_ms: int) -> int:
    """Return a time that the runtime noted, or 0 where it lies ahead or is no number: any sender may write such a field."""
    number = _parse_int(message[name])
    return number if 0 <= number <= now_ms else 0


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_msgpack(content_type: bytes) -> bool:
    if content_type == b"application/msgpack":
        return True
    if content_type == b"application/json":
        return False
    raise BadMessage("`ct` is neither application/json nor application/msgpack")


# --- fields of a message to send ---------------------------------------------------------------------------------------------


def header(
    type_name: str,
    *,
    id: str = "",
    version: int = 1,
    exp_ms: int | None = None,
    key: str = "",
    keep: str = "",
    attempts: int = 0,
    group: str = "",
    source: str = "",
    first_ms: int = 0,
) -> tuple[bytes | str | int, ...]:
    """Return the fields of a message but `data`, names and values in turn; what is empty is left out. The values are checked."""
    fields: list[bytes | str | int] = []
    if id:
        fields += (ID, id)
    if version > 1:
        fields += (VERSION, version)
    if exp_ms is not None:
        fields += (EXP, exp_ms)
    if key:
        fields += (KEY, key)
    if keep:
        fields += (KEEP, keep)
    if attempts:
        fields += (ATTEMPTS, attempts)
    if group:
        fields += (GROUP, group)
    if source:
        fields += (SOURCE, source)
    if first_ms:
        fields += (FIRST_AT, first_ms)
    return (*fields, TYPE, type_name)


def entry_fields(head: Sequence[bytes | str | int], data: bytes) -> list[bytes]:
    """Return the fields of an entry as a worker would read them: the header, and the payload behind it."""
    return [*[word if isinstance(word, bytes) else str(word).encode() for word in head], DATA, data]


def holds_no_number(payload: object) -> bool:
    """Return whether NaN or infinity stands anywhere in a payload or a result, or as a key."""
    todo: list[Any] = [msgspec.to_builtins(payload, enc_hook=_nothing)]
    while todo:
        value = todo.pop()
        if isinstance(value, float):
            if not math.isfinite(value):
                return True
        elif isinstance(value, dict):
            todo += cast("dict[Any, Any]", value)
            todo += cast("dict[Any, Any]", value).values()
        elif isinstance(value, list | tuple):
            todo += cast("list[Any]", value)
    return False


def _nothing(_: object) -> None:
    """What is JSON already, as `msgspec.Raw`, holds no such number."""


# --- what a message says of itself, whether or not it can be a job -----------------------------------------------------------


class Summary(msgspec.Struct, frozen=True, gc=False):
    """What a message says of itself, unchecked: what is missing, or is no number where one should be, has its default."""

    type: bytes
    id: str
    version: int
    failed: int
    first_ms: int = 0
    origin: str = ""

    @property
    def type_name(self) -> str:
        """`type` for people."""
        return self.type.decode(errors="backslashreplace")

    @property
    def attempt(self) -> int:
        """1 for the first run, one more after each failure."""
        return self.failed + 1


class Death(msgspec.Struct, frozen=True, gc=False):
    """What a dead letter notes of its job's end; `stood` says on which stream, or as which delayed job, `by` who wrote it."""

    reason: str
    error: str
    stack: str
    attempts: int
    stood: str
    at_ms: int
    left_out: str
    trace: str
    by: str
    app: str


def summary(fields: Sequence[bytes]) -> Summary:
    """Return what a message says of itself; of a name that stands twice among its fields, the last counts."""
    found = _by_name(fields)
    return Summary(
        type=found.get(TYPE, b""),
        id=found.get(ID, b"").decode(errors="backslashreplace"),
        version=max(_parse_int(found.get(VERSION, b"")), 1),
        failed=max(_parse_int(found.get(FAILED, b"")), 0),
        first_ms=max(_parse_int(found.get(FIRST_AT, b"")), 0),
        origin=found.get(ORIGIN, b"").decode(errors="backslashreplace"),
    )


def payload_of(fields: Sequence[bytes]) -> bytes:
    """Return the payload of a message as it stands; nothing where it has none."""
    return _by_name(fields).get(DATA, b"")


def as_text(fields: Sequence[bytes]) -> dict[str, str]:
    """Return fields and values for people."""
    return {
        name.decode(errors="replace"): value.decode(errors="backslashreplace")
        for name, value in zip(fields[::2], fields[1::2], strict=False)
    }


def tries_of(fields: Sequence[bytes]) -> list[Try]:
    """Return the failed attempts that a message remembers, oldest first."""
    return read_tries(_by_name(fields).get(TRIES, b"")) if TRIES in fields else []


def without_tries(message: dict[str, str]) -> dict[str, str]:
    """Return fields for people without that of the failed attempts: `tries_of` reads it."""
    return {name: value for name, value in message.items() if name != _TRIES_TEXT}


_TRIES_TEXT: Final = TRIES.decode()


def noting_try(job: Job, last: Try) -> bytes:
    """Return the failed attempts of a job with this one more; nothing where its message has no space for them."""
    fields = job.fields
    packed = with_try(_by_name(fields).get(TRIES, b"") if TRIES in fields else b"", last)
    # What is too large with it would be a dead letter at its next attempt.
    others = sum(map(len, fields)) - len(job.data) if fields else 0
    return packed if others <= MAX_OTHERS_BYTES - 2 * MAX_TRIES_BYTES else b""


def read_letter(fields: Sequence[bytes]) -> tuple[Death, dict[str, str]]:
    """Return the notes of a dead letter, and the fields of its message for people."""
    found, message = _by_name(fields), as_text(fields)
    notes = {name: message.pop(name.decode(), "") for name in DEAD_FIELDS}
    death = Death(
        reason=notes[DEAD_REASON],
        error=notes[DEAD_ERROR],
        stack=notes[DEAD_STACK],
        attempts=max(_parse_int(found.get(DEAD_ATTEMPTS, b"")), 0),
        stood=notes[DEAD_FROM],
        at_ms=max(_parse_int(found.get(DEAD_AT, b"")), 0),
        left_out=notes[DEAD_LEFT_OUT],
        trace=notes[DEAD_TRACE],
        by=notes[DEAD_BY],
        app=notes[DEAD_APP],
    )
    return death, message


def _by_name(fields: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(fields[::2], fields[1::2], strict=False))


# --- records of delayed jobs, MessagePack as the scripts write and read it: every text a `str`, whatever its bytes -----------


def _packed_text(text: bytes) -> bytes:
    size = len(text)
    if size < 0x20:
        return _SHORT[size] + text
    if size <= 0xFF:
        return b"\xd9%c%b" % (size, text)
    return (b"\xda" + size.to_bytes(2, "big") if size <= 0xFFFF else b"\xdb" + size.to_bytes(4, "big")) + text


_SHORT: Final = [bytes((0xA0 + size,)) for size in range(0x20)]
_BEGINNINGS: Final = [_packed_text(STREAM) + _packed_text(stream.encode()) + _packed_text(ID) for stream in STREAMS]
_PACKED_TYPE, _PACKED_DATA = map(_packed_text, (TYPE, DATA))
_PACKED_FAILED, _PACKED_FIRST_AT, _PACKED_SNOOZED_AT, _PACKED_TRIED, _PACKED_TRIES = map(
    _packed_text, (FAILED, FIRST_AT, SNOOZED_AT, TRIED, TRIES)
)


def pack_record(move: Deferral) -> bytes:
    """Return the record of a delayed job: the fields it came with, how often it failed, when it was born and first snoozed, the
    last attempt that is recorded, and what its failed attempts left.
    """
    job = move.lease
    envelope = job.envelope
    parts = [_BEGINNINGS[job.stream], _packed_text(move.job_id.encode())]
    if job.fields:
        pairs = zip(job.fields[::2], job.fields[1::2], strict=True)
        renewed = _RENEWED.union((TRIED,) if move.tried else (), (TRIES,) if move.tries else ())
        kept = [word for name, value in pairs if name not in renewed for word in (name, value)]
        parts += map(_packed_text, kept)
        size = 4 + len(kept)
    else:
        parts += (_PACKED_TYPE, _packed_text(job.type), _PACKED_DATA, _packed_text(job.data))
        size = 8
    notes = [_PACKED_FIRST_AT, _packed_text(b"%d" % job.born_ms)]
    if move.failed:
        notes += (_PACKED_FAILED, _packed_text(b"%d" % move.failed))
    snoozed_ms = envelope.snoozed_ms or (job.fetched_ms if move.kind == "snooze" else 0)
    if move.tried:
        notes += (_PACKED_TRIED, _packed_text(move.tried))
    if move.tries:
        notes += (_PACKED_TRIES, _packed_text(move.tries))
    if snoozed_ms:
        notes += (_PACKED_SNOOZED_AT, _packed_text(b"%d" % snoozed_ms))
    size += len(notes)
    head = bytes((0x90 + size,)) if size < 0x10 else b"\xdc" + size.to_bytes(2, "big")
    return b"".join((head, *parts, *notes))


def read_record(packed: bytes) -> tuple[str, list[bytes]]:
    """Return the stream that a delayed job goes to, and its fields; both are empty where the record is none."""
    flat = unpack_record(packed)
    return (flat[1].decode(errors="replace"), flat[2:]) if flat else ("", [])


def unpack_record(packed: bytes) -> list[bytes]:
    """Return a delayed job's record as names and values in turn; empty where it is no list of texts.

    By hand, since a decoder would insist on UTF-8.
    """
    found: list[bytes] = []
    size, at = _opening(packed, 0, 0x90, {0xDC: 2, 0xDD: 4})
    for _ in range(size):
        length, start = _opening(packed, at, 0xA0, {0xD9: 1, 0xDA: 2, 0xDB: 4})
        at = start + length
        if length < 0 or at > len(packed):
            return []
        found.append(packed[start:at])
    return found if len(found) >= 2 and len(found) % 2 == 0 else []


def _opening(packed: bytes, at: int, fixed: int, sized: dict[int, int]) -> tuple[int, int]:
    """Return the length that a MessagePack header says and where its content begins; a length of -1 when it is another type."""
    if at >= len(packed):
        return -1, at
    first = packed[at]
    if first in sized:
        end = at + 1 + sized[first]
        return int.from_bytes(packed[at + 1 : end], "big"), end
    short = first - fixed
    return (short, at + 1) if 0 <= short < (0x20 if fixed == 0xA0 else 0x10) else (-1, at)


# --- payloads ----------------------------------------------------------------------------------------------------------------


def payload_decoder(contract: Contract) -> Callable[[Job], Any]:
    """Return a function from a job to its payload; it raises UnfitPayload and nothing else.

    The decoders are made here, once per contract: what remains per job is one call of msgspec, straight into the contract's type.
    """
    is_first = contract.version == 1
    freedom = freedom_of(contract.payload)
    lifted = freedom.lifted
    looks_from_bytes = freedom.looks_from_bytes
    from_json = msgspec.json.Decoder(contract.payload).decode
    from_msgpack = msgspec.msgpack.Decoder(contract.payload).decode

    def decode(job: Job) -> Any:
        data, envelope = job.data, job.envelope
        try:
            is_rare = envelope is not PLAIN or not is_first
            if is_rare and (envelope.is_msgpack or envelope.version < contract.version):
                return decode_rare(data, envelope)
            # Proof at the speed of C for nearly every payload: too short, or not more openers than levels are allowed.
            size = len(data)
            if size > 2 * MAX_DEPTH and (size > looks_from_bytes or data.count(b"[") + data.count(b"{") > MAX_DEPTH):
                check_json(data, freedom)
            return from_json(data)
        except BadMessage as error:  # of the bounds, or of the contract's own code
            raise UnfitPayload(str(error), getattr(error, "code", "bad-payload")) from error
        except msgspec.ValidationError as error:
            raise UnfitPayload(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnfitPayload(str(error), "unreadable") from None
        except RecursionError:
            raise UnfitPayload(TOO_DEEP, "unreadable") from None
        except Exception as error:  # the contract's own code (`__post_init__`), given a payload of any sender
            raise UnfitPayload(f"{contract.payload.__name__} refused it: {error!r}") from error

    def decode_rare(data: bytes, envelope: Envelope) -> Any:
        upcast = contract.upcast if envelope.version < contract.version else None
        check = check_msgpack if envelope.is_msgpack else check_json
        check(data, freedom if upcast is None else lifted)
        if upcast is None:
            return from_msgpack(data) if envelope.is_msgpack else from_json(data)
        plain = msgspec.msgpack.decode(data) if envelope.is_msgpack else msgspec.json.decode(data)
        try:
            new = upcast(envelope.version, plain)
        except Exception as error:  # the contract's own code, given a payload of any sender
            raise UnfitPayload(f"version {envelope.version} could not be lifted: {error!r}") from error
        return msgspec.convert(new, contract.payload)

    return decode
