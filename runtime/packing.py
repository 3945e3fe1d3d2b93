"""Packer makes messages as they are sent: a payload as JSON behind the fields that say what it is. Each option is checked here.

Needs no event loop and no connection: what is wrong with a message is raised at the line that makes it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, cast

import msgspec
from msgspec import inspect

from runtime.codec import JOB_ID, MAX_DATA_BYTES, MAX_KEY_BYTES, MAX_MS, header, holds_no_number, payload_decoder
from runtime.errors import BadMessage, BadPayload, ConfigError
from runtime.jobs import PLAIN, STREAMS, TYPE_NAME, Contract, Envelope, Head, Job, Options, Packed, Priority, contract_of

SHOWN_CHARS: Final = 80  # of a wrong option, in its error; a guess: a line of a log
MAX_AHEAD_S: Final = 10 * 366 * 86_400.0  # ten years, a guess: what is later is a mistake, such as milliseconds
MAX_PAST_S: Final = 86_400.0  # a guess: what expired since may have waited in an outbox; it becomes a dead letter `expired`
NO_OPTIONS: Final = Options()  # a message without any differs from others of its type in nothing but the payload


class Packer:
    """Packs payloads; make one, and keep it: what can be known of a class of payloads is found out once.

    `source` is written to each message as `src`; `clock` returns the time in seconds since the epoch. With `check`, each payload
    is read back as its handler would.
    """

    def __init__(self, clock: Callable[[], float], source: str = "", *, check: bool = False) -> None:
        self._clock = clock
        self._readers: dict[type[msgspec.Struct], Callable[[Job], object]] | None = {} if check else None
        self._source = source
        self._encode = msgspec.json.Encoder().encode
        self._heads: dict[type[msgspec.Struct], Head] = {}
        self._needles: dict[type[msgspec.Struct], tuple[bytes, ...]] = {}

    def pack(self, payload: msgspec.Struct) -> Packed:
        """Return a payload without options, as it is sent.

        Raises:
            BadPayload: the payload is no contract's, or is too large.
        """
        kind = type(payload)
        head = self._heads.get(kind)
        if head is None:
            contract = self._contract_of(payload)
            head = self._heads[kind] = self._head(contract.type, NO_OPTIONS, contract.version, contract.priority, contract.queue)
        data = self._data(payload)
        if len(data) > MAX_DATA_BYTES:
            raise _too_large(contract_of(kind).type, data)
        return Packed(head, data)

    def pack_with(self, payload: msgspec.Struct, options: Options) -> Packed:
        """Return a payload with its options, as it is sent.

        Raises:
            BadPayload: as in `pack`, or an option is out of its range.
        """
        contract = self._contract_of(payload)
        data = self._data(payload)
        return self.pack_raw(contract.type, data, options, contract.version, contract.priority, contract.queue)

    def pack_raw(
        self, type_name: str, data: bytes, options: Options, version: int, priority: Priority, queue: str = ""
    ) -> Packed:
        """Return a message whose payload is JSON already, as it is sent; `priority` is that of a message whose options name none.

        `queue` is where it goes; empty for the queue of whoever sends it.

        Raises:
            BadPayload: as in `pack_with`.
        """
        if not TYPE_NAME.match(type_name.encode(errors="replace")):
            raise BadPayload(f"type must be 1 to 64 of [a-z0-9._-] and begin with a letter or digit, got {shown(type_name)}")
        if type(data) is not bytes:
            raise BadPayload(f"{type_name}: the payload must be bytes of JSON, got {shown(data)}")
        if len(data) > MAX_DATA_BYTES:
            raise _too_large(type_name, data)
        return Packed(self._head(type_name, options, version, priority, queue), data)

    def _data(self, payload: msgspec.Struct) -> bytes:
        try:
            data = self._encode(payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadPayload(f"{contract_of(type(payload)).type}: the payload cannot be written as JSON: {error}") from None
        kind = type(payload)
        needles = self._needles.get(kind)
        if needles is None:
            needles = self._needles[kind] = _needles_of(kind)
        for needle in needles:
            if needle in data and holds_no_number(payload):
                raise BadPayload(f"{contract_of(kind).type}: the payload holds NaN or infinity, which JSON cannot write")
        if self._readers is not None:
            self._check(self._readers, kind, data)
        return data

    def _check(
        self, readers: dict[type[msgspec.Struct], Callable[[Job], object]], kind: type[msgspec.Struct], data: bytes
    ) -> None:
        """Raise BadPayload where a handler could not read this: msgspec looks at no field when an object is made."""
        contract = contract_of(kind)
        reader = readers.get(kind)
        if reader is None:
            reader = readers[kind] = payload_decoder(contract)
        try:
            reader(as_fetched(contract, data))
        except BadMessage as error:
            raise BadPayload(f"{contract.type}: {error}") from None

    def _contract_of(self, payload: msgspec.Struct) -> Contract:
        if isinstance(payload, type):
            raise BadPayload(f"a message must be an instance, got the class {payload.__name__}; hint: {payload.__name__}(…)")
        try:
            return contract_of(type(payload))
        except ConfigError as error:
            raise BadPayload(str(error)) from None

    def _head(self, type_name: str, options: Options, version: int, priority: Priority, queue: str) -> Head:
        # Each option is checked here: a chunk that cannot be packed would fail the sends of many callers.
        stream = _stream(priority if options.priority is None else options.priority)
        attempts = options.attempts
        if attempts is not None and (type(attempts) is not int or not 1 <= attempts <= MAX_MS):
            raise BadPayload(f"attempts must be a whole number from 1 to {MAX_MS}, got {shown(attempts)}")
        due_ms, exp_ms = _times(options, self._clock)
        job_id = _checked_text(options.id, "id")
        if job_id and not JOB_ID.match(job_id.encode()):
            raise BadPayload(f"id must be 1 to 128 of [A-Za-z0-9._:-], got {shown(job_id)}")
        if due_ms and not job_id:
            job_id = f"{STREAMS[stream]}-{secrets.token_hex(8)}"
        fields = header(
            type_name,
            id=job_id,
            version=version,
            exp_ms=exp_ms,
            key=_checked_text(options.key, "key"),
            keep=_kept(options),
            attempts=attempts or 0,
            group=_checked_text(options.group, "group"),
            source=_checked_text(self._source, "source"),
        )
        return Head(stream, due_ms, job_id, fields, queue)


def as_fetched(contract: Contract, data: bytes) -> Job:
    """Return a job with a payload of today's version, as far as what reads it looks at it."""
    envelope = PLAIN if contract.version == 1 else Envelope(version=contract.version)
    return Job(0, b"0-0", 1, "", 0.0, contract.type.encode(), data, envelope, 0)


_PRIORITIES: Final = (Priority, int)  # and no bool
_NUMBERS: Final = (inspect.FloatType, inspect.AnyType, inspect.CustomType)


def _needles_of(kind: type[msgspec.Struct]) -> tuple[bytes, ...]:
    """Return what the JSON of a payload holds where NaN or infinity stands in it: null, or a word where it is a key.

    Nothing where its type has no place for a float: the search costs as much as the encoding.
    """
    try:
        todo: list[object] = [inspect.type_info(kind)]
    except Exception:  # annotations that exist for type checkers only
        return (b"null", *_KEYS)
    needles: set[bytes] = set()
    seen: set[int] = set()
    while todo:
        found = todo.pop()
        if isinstance(found, _NUMBERS):
            needles.add(b"null")
        if isinstance(found, inspect.AnyType | inspect.CustomType):
            needles.update(_KEYS)
        if isinstance(found, inspect.DictType) and isinstance(found.key_type, (*_NUMBERS, inspect.UnionType)):
            needles.update(_KEYS)
        if isinstance(found, list | tuple):
            todo += cast("list[object]", found)
        elif isinstance(found, inspect.Type | inspect.Field) and id(found) not in seen:  # a type may hold itself
            seen.add(id(found))
            todo += [getattr(found, name) for name in found.__struct_fields__ if name not in ("default", "default_factory")]
    return tuple(needles)


_KEYS: Final = (b'"nan":', b'"inf":', b'"-inf":')


def _stream(priority: object) -> int:
    """Return the stream of a priority, which may be given by its name."""
    if type(priority) is str and priority in STREAMS:
        return STREAMS.index(priority)
    if type(priority) not in _PRIORITIES or not 1 <= (number := cast("int", priority)) <= len(STREAMS):
        raise BadPayload(f"priority must be a Priority, or one of {', '.join(STREAMS)}, got {shown(priority)}")
    return number - 1


def _kept(options: Options) -> str:
    keep = options.keep
    if type(keep) is not str or keep not in ("", "first", "last"):
        raise BadPayload(f"keep must be first or last, got {shown(keep)}")
    if keep and not options.key:
        raise BadPayload(f"keep={keep!r} needs a key: it says which of the messages with one key runs")
    return keep


def _too_large(type_name: str, data: bytes) -> BadPayload:
    text = f"{type_name}: the payload has {len(data)} bytes, the limit is {MAX_DATA_BYTES}; hint: send a reference to it"
    return BadPayload(text, "too-large")


def _times(options: Options, clock: Callable[[], float]) -> tuple[int, int | None]:
    """Return when a message is due, 0 for now, and until when it may start, None for any time; both in ms since the epoch."""
    if options.at is options.exp is None and type(options.delay_s) is float and not options.delay_s:
        return 0, None  # most: the checks below cost 1 µs
    now_s, wait_s = clock(), _wait_s(options.delay_s)
    due_s = _epoch_s(options.at, "at", now_s) if options.at is not None else now_s + wait_s if wait_s else 0.0
    due_ms = int(due_s * 1000)
    if options.exp is None:
        return due_ms, None
    exp_s = _epoch_s(options.exp, "exp", now_s)
    if exp_s < now_s - MAX_PAST_S:
        raise BadPayload(f"exp has passed, got {shown(options.exp)}; hint: it is no time from now, but time.time() + seconds")
    if (exp_ms := int(exp_s * 1000)) < due_ms:
        raise BadPayload(f"exp must not be before the job may start, got {shown(options.exp)}: it could never run")
    return due_ms, exp_ms


def _wait_s(wait: object) -> float:
    seconds = wait.total_seconds() if isinstance(wait, timedelta) else wait
    if not _is_number(seconds) or not 0 <= (number := cast("float", seconds)) <= MAX_AHEAD_S:
        raise BadPayload(f"delay_s must be seconds from now, a number or a timedelta, at most ten years, got {shown(wait)}")
    return number


def _epoch_s(moment: object, name: str, now_s: float) -> float:
    """Return a time in seconds since the epoch."""
    seconds = _stamp(moment, name) if isinstance(moment, datetime) else moment
    if not _is_number(seconds):
        raise BadPayload(f"{name} must be seconds since the epoch, a number, or a datetime, got {shown(moment)}")
    number = cast("float", seconds)
    if not 0 <= number <= now_s + MAX_AHEAD_S:
        is_ms = (now_s - MAX_AHEAD_S) * 1000 <= number <= (now_s + MAX_AHEAD_S) * 1000
        meant = ": milliseconds?" if is_ms else ""
        raise BadPayload(f"{name} must be seconds since the epoch, at most ten years from now, got {shown(moment)}{meant}")
    return number


def _stamp(moment: datetime, name: str) -> float:
    try:
        if moment.utcoffset() is not None:
            return moment.timestamp()
    except Exception as error:  # a time zone is code of others
        raise BadPayload(f"{name} must be a datetime that says its time: {type(error).__name__}") from None
    raise BadPayload(f"{name}: a datetime must have a time zone, got {shown(moment)}; hint: datetime.now(UTC)")


def _is_number(value: object) -> bool:
    """Return whether it is a number; a bool is none, nor is what only compares like one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: object) -> str:
    """Return an option as its error shows it, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # a number of 5,000 digits has none, as may what others have made
        return f"something of type {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def _checked_text(text: object, name: str) -> str:
    """Return an option that is a text; what is empty and no text is a mistake, not an option that is not used."""
    if not isinstance(text, str):
        raise BadPayload(f"{name} must be a text, got {shown(text)}")
    if not text:
        return ""
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise BadPayload(f"{name} must be a text that UTF-8 can write, got {shown(text)}") from None
    if size_bytes > MAX_KEY_BYTES:
        raise BadPayload(f"{name} must be at most {MAX_KEY_BYTES} bytes, got {size_bytes}")
    return text
