"""Stream fields to jobs, a batch at a time; payloads to contracts. Nothing in here raises on what a stranger wrote.

The one Python lot that knows the field names of the wire contract.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from runtime.bounds import MAX_DEPTH, TOO_DEEP, check_json, check_msgpack, freedom_of
from runtime.errors import BadMessage, BadPayload
from runtime.jobs import PLAIN, STREAMS, BadEntry, Contract, Deferral, Envelope, Job, Lease

MAX_DATA_BYTES = 256 * 1024
MAX_OTHERS_BYTES = 1024 * 1024  # of all fields beside `data`, a guess: more than any header has
OWN_FIELDS = 8  # what retries add must not make a message too large
MAX_FIELDS = 512  # a script's `unpack` dies near 4,000 values; 512 pairs leave space for our own fields
MAX_KEY_BYTES = 512  # a guess: long enough for any natural key
MAX_MS = 2**53  # times pass through Lua, whose numbers are doubles
MAX_DIGITS = 16
JOB_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}(?![\s\S])")
_NOTED = (b"id", b"at", b"a", b"first_at", b"snoozed_at")  # what a record says anew of its job
Row = tuple[bytes, Sequence[bytes]]  # entry id; fields and values in turn


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
    for (entry, fields), count in zip(rows, counts, strict=False):
        # The message nearly every producer writes: `type` and `data`, nothing else. Saves a dictionary per job.
        if len(fields) == 4 and fields[0] == b"type" and fields[2] == b"data":
            type_name, data, envelope, others = fields[1], fields[3], PLAIN, ()
        else:
            others = fields
            try:
                type_name, data, envelope = _envelope(fields, fetched_ms)
            except BadMessage as error:
                bad.append(BadEntry(Lease(stream, entry, count, run_id, taken_s), error.code, str(error)))
                continue
            if sum(map(len, fields)) > max_data_bytes + MAX_OTHERS_BYTES:
                reason = f"more than {max_data_bytes + MAX_OTHERS_BYTES} bytes in all fields"
                bad.append(BadEntry(Lease(stream, entry, count, run_id, taken_s), "too-large", reason))
                continue
        if len(data) > max_data_bytes:
            reason = f"data has {len(data)} bytes, the limit is {max_data_bytes}"
            bad.append(BadEntry(Lease(stream, entry, count, run_id, taken_s), "too-large", reason))
            continue
        jobs.append(Job(stream, entry, count, run_id, taken_s, type_name, data, envelope, fetched_ms, others))
    return jobs, bad


def _envelope(fields: Sequence[bytes], fetched_ms: int) -> tuple[bytes, bytes, Envelope]:
    if len(fields) > 2 * (MAX_FIELDS + OWN_FIELDS):
        raise BadMessage(f"{len(fields) // 2} fields, the limit is {MAX_FIELDS}", "too-large")
    words = iter(fields)
    message = dict(zip(words, words, strict=False))
    type_name, data = message.get(b"type"), message.get(b"data")
    if type_name is None:
        raise BadMessage("no field `type`")
    if data is None:
        raise BadMessage("no field `data`")
    job_id = message.get(b"id", b"")
    if b"id" in message and not JOB_ID.match(job_id):
        raise BadMessage("`id` is not 1 to 128 of [A-Za-z0-9._:-]")
    key = message.get(b"key", b"")
    if len(key) > MAX_KEY_BYTES:
        raise BadMessage(f"`key` has {len(key)} bytes, the limit is {MAX_KEY_BYTES}")
    return (
        type_name,
        data,
        Envelope(
            id=job_id.decode(),
            version=_number(message, b"v", 1) if b"v" in message else 1,
            at_ms=_number(message, b"at") if b"at" in message else 0,
            exp_ms=_number(message, b"exp") if b"exp" in message else 0,
            key=key,
            attempts=_number(message, b"attempts", 1) if b"attempts" in message else 0,
            failed=_number(message, b"a") if b"a" in message else 0,
            first_ms=_past(message, b"first_at", fetched_ms) if b"first_at" in message else 0,
            snoozed_ms=_past(message, b"snoozed_at", fetched_ms) if b"snoozed_at" in message else 0,
            origin=message[b"x-origin"].decode(errors="replace") if b"x-origin" in message else "",
            is_msgpack=b"ct" in message and _is_msgpack(message[b"ct"]),
        ),
    )


def _number(message: dict[bytes, bytes], name: bytes, least: int = 0) -> int:
    text = message[name]
    number = int(text) if text.isdigit() and len(text) <= MAX_DIGITS else -1
    if not least <= number <= MAX_MS:
        raise BadMessage(f"`{name.decode()}` is not a whole number from {least} to {MAX_MS}")
    return number


def _past(message: dict[bytes, bytes], name: bytes, now_ms: int) -> int:
    """Return a time that we noted ourselves, or 0 where it lies ahead or is no number: a stranger may have set it."""
    text = message[name]
    number = int(text) if text.isdigit() and len(text) <= MAX_DIGITS else 0
    return number if number <= now_ms else 0


def _is_msgpack(content_type: bytes) -> bool:
    if content_type == b"application/msgpack":
        return True
    if content_type == b"application/json":
        return False
    raise BadMessage("`ct` is neither application/json nor application/msgpack")


# --- records of delayed jobs, MessagePack as the scripts write and read it: every text a `str`, whatever its bytes -----------


def _packed_text(text: bytes) -> bytes:
    size = len(text)
    if size < 0x20:
        return _SHORT[size] + text
    if size <= 0xFF:
        return b"\xd9%c%b" % (size, text)
    return (b"\xda" + size.to_bytes(2, "big") if size <= 0xFFFF else b"\xdb" + size.to_bytes(4, "big")) + text


_SHORT = [bytes((0xA0 + size,)) for size in range(0x20)]
_BEGINNINGS = [_packed_text(b"stream") + _packed_text(stream.encode()) + _packed_text(b"id") for stream in STREAMS]
_TYPE, _DATA, _FAILED, _FIRST_AT, _SNOOZED_AT = map(_packed_text, (b"type", b"data", b"a", b"first_at", b"snoozed_at"))


def pack_record(move: Deferral) -> bytes:
    """Return the record of a delayed job: every field it came with, and what became of it."""
    job = move.lease
    envelope = job.envelope
    parts = [_BEGINNINGS[job.stream], _packed_text(move.job_id.encode())]
    if job.fields:
        pairs = zip(job.fields[::2], job.fields[1::2], strict=True)
        kept = [word for name, value in pairs if name not in _NOTED for word in (name, value)]
        parts += map(_packed_text, kept)
        size = 4 + len(kept)
    else:
        parts += (_TYPE, _packed_text(job.type), _DATA, _packed_text(job.data))
        size = 8
    notes = [_FIRST_AT, _packed_text(b"%d" % job.born_ms)]
    if move.failed:
        notes += (_FAILED, _packed_text(b"%d" % move.failed))
    snoozed_ms = envelope.snoozed_ms or (job.fetched_ms if move.kind == "snooze" else 0)
    if snoozed_ms:
        notes += (_SNOOZED_AT, _packed_text(b"%d" % snoozed_ms))
    size += len(notes)
    head = bytes((0x90 + size,)) if size < 0x10 else b"\xdc" + size.to_bytes(2, "big")
    return b"".join((head, *parts, *notes))


def unpack_record(packed: bytes) -> list[bytes]:
    """Return the flat list of a delayed job's record; empty when it is no such list. By hand: a decoder would insist on UTF-8."""
    found: list[bytes] = []
    size, at = _header(packed, 0, 0x90, {0xDC: 2, 0xDD: 4})
    for _ in range(size):
        length, start = _header(packed, at, 0xA0, {0xD9: 1, 0xDA: 2, 0xDB: 4})
        at = start + length
        if length < 0 or at > len(packed):
            return []
        found.append(packed[start:at])
    return found if len(found) >= 2 and len(found) % 2 == 0 else []


def _header(packed: bytes, at: int, fixed: int, sized: dict[int, int]) -> tuple[int, int]:
    """Return the length that a MessagePack header says and where its content begins; a length of -1 when it is another type."""
    if at >= len(packed):
        return -1, at
    first = packed[at]
    if first in sized:
        end = at + 1 + sized[first]
        return int.from_bytes(packed[at + 1 : end], "big"), end
    short = first - fixed
    return (short, at + 1) if 0 <= short < (0x20 if fixed == 0xA0 else 0x10) else (-1, at)


# --- payloads ------------------------------------------------------------------------------------------------------------


def payload_decoder(contract: Contract) -> Callable[[Job], Any]:
    """Return a function from a job to its payload; it raises BadPayload and nothing else.

    The decoders are made once, here: per job remains one call of msgspec straight into the contract's type.
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
            # C-speed proof for nearly every payload: it is too short, or has not more openers than levels are allowed.
            size = len(data)
            if size > 2 * MAX_DEPTH and (size > looks_from_bytes or data.count(b"[") + data.count(b"{") > MAX_DEPTH):
                check_json(data, freedom)
            return from_json(data)
        except BadMessage:
            raise
        except msgspec.ValidationError as error:
            raise BadPayload(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadPayload(str(error), "unreadable") from None
        except RecursionError:
            raise BadPayload(TOO_DEEP, "unreadable") from None
        except Exception as error:  # the contract's own code (`__post_init__`), fed with a stranger's payload
            raise BadPayload(f"{contract.payload.__name__} refused it: {error!r}") from error

    def decode_rare(data: bytes, envelope: Envelope) -> Any:
        upcast = contract.upcast if envelope.version < contract.version else None
        check = check_msgpack if envelope.is_msgpack else check_json
        check(data, freedom if upcast is None else lifted)
        if upcast is None:
            return from_msgpack(data) if envelope.is_msgpack else from_json(data)
        plain = msgspec.msgpack.decode(data) if envelope.is_msgpack else msgspec.json.decode(data)
        try:
            new = upcast(envelope.version, plain)
        except Exception as error:  # the contract's own code, fed with a stranger's payload
            raise BadPayload(f"version {envelope.version} could not be lifted: {error!r}") from error
        return msgspec.convert(new, contract.payload)

    return decode
