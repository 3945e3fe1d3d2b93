"""Enqueue: one, many, later. Imports no handler code. A lost reply never enqueues twice.

Sends of concurrent tasks share a round trip: whoever comes while one is under sender goes with the next. A chunk carries a mark,
so a chunk that is sent again after a lost reply answers what it answered the first time. Sends of another durability go another
sender: nobody waits for a disk or a replica that he did not ask for. Each event loop has senders of its own, which end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from itertools import chain, islice
from types import TracebackType
from typing import Any, Final, Self, cast

import msgspec
from msgspec import inspect

from runtime.codec import JOB_ID, MAX_DATA_BYTES, MAX_KEY_BYTES, MAX_MS
from runtime.errors import BadPayload, ConfigError, JobsError, PartlySent
from runtime.jobs import STREAMS, TYPE_NAME, Contract, Priority, contract_of
from runtime.sender import CHUNK_BYTES, CHUNK_MESSAGES, Flow, Head, Packed, Sender, Sent
from runtime.store.sends import Durability, SendStore, durability_of
from runtime.store.urls import without_password

SHOWN_CHARS: Final = 80  # of a wrong option, in its error
PACKED_PER_TURN: Final = (
    50  # messages packed in one turn of the loop: the chunk before goes out, and the loop's other tasks get on
)
LEAST_ANSWER_S: Final = 0.25  # a guess: a busy machine needs that long now and then, and a second line would be no faster


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A payload with its own options, for `send_many`; times as in `send`."""

    payload: msgspec.Struct
    priority: Priority | None = None
    delay_s: float = 0.0
    at: float | None = None
    exp: float | None = None
    key: str = ""
    id: str = ""
    attempts: int = 0
    group: str = ""


class Producer:
    """Sends messages, from as many tasks, threads and event loops as you like; make one, and keep it in a module.

    It connects with the first send of an event loop, once per durability in use, and these connections end with that loop, with
    `close` or with `async with`. A forked process gets connections of its own.

    `patience_s` is the longest that a send waits, from its call: while Redis is away, and for its confirmation. `durability` is
    that of every send that names none: `local`, as the server's append-only file; `fsync`, on its disk; `replicas=1`, in the
    memory of so many replicas.
    """

    def __init__(
        self, url: str, *, queue: str = "jobs", source: str = "", patience_s: float = 5.0, durability: str = "local"
    ) -> None:
        self._url = url
        self._queue = queue
        self._source = source
        self._patience_s = _patience(patience_s)
        self._durability = durability_of(durability)
        self._encode = msgspec.json.Encoder().encode
        self._heads: dict[type[msgspec.Struct], Head] = {}
        self._needles: dict[type[msgspec.Struct], tuple[bytes, ...]] = {}
        self._senders: dict[tuple[asyncio.AbstractEventLoop, Durability], Sender] = {}
        self._inherited: list[dict[tuple[asyncio.AbstractEventLoop, Durability], Sender]] = []
        self._pid = os.getpid()
        self._is_closed = False
        SendStore(url, queue)  # a bad name is said here

    @classmethod
    def connect(
        cls, url: str, *, queue: str = "jobs", source: str = "", patience_s: float = 5.0, durability: str = "local"
    ) -> Producer:
        """Return a producer for this Redis; it connects with its first send.

        Raises:
            ConfigError: the durability or the patience is none, or the queue's name cannot be one.
        """
        return cls(url, queue=queue, source=source, patience_s=patience_s, durability=durability)

    def __repr__(self) -> str:
        return f"<Producer to {without_password(self._url)}, {sum(map(len, self._senders.values()))} sends wait>"

    async def __aenter__(self) -> Self:
        self._is_closed = False
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Whoever still waits for a send, in any event loop, hears of it by an error."""
        self._is_closed = True
        here = asyncio.get_running_loop()
        senders, self._senders = self._senders, {}
        for (loop, _), sender in senders.items():
            if loop is here:
                await sender.close()
            else:
                _end_there(loop, sender)

    def __del__(self) -> None:
        # Made in a function and forgotten: without this its connections would stay open as long as their loop.
        if getattr(self, "_senders", None) and self._pid == os.getpid():
            for (loop, _), sender in self._senders.items():
                _end_there(loop, sender)

    async def send(
        self,
        payload: msgspec.Struct,
        *,
        priority: Priority | None = None,
        delay_s: float = 0.0,
        at: float | None = None,
        exp: float | None = None,
        key: str = "",
        id: str = "",
        attempts: int = 0,
        group: str = "",
        durability: str = "",
    ) -> Sent:
        """Store one message, and give its job id when Redis has it as durably as asked.

        `at` and `exp` are seconds since the epoch: not before, not after. `key`: dropped while another job with this key lives.

        Raises:
            BadPayload: the payload or an option cannot be sent.
            ConfigError: the durability is none, or this server can never confirm it, or the producer is closed; nothing was
                written.
            NotDurable: it is stored, but was not confirmed in `patience_s`.
            QueueFull: Redis has no memory left; nothing was written.
            StoreError: Redis cannot store this message, as where a key of another type stands in the stream's place.
            StoreUnavailable: Redis did not answer for `patience_s`; the text says whether it may have been stored, once.

        Cancelled before it is on the line, it is not sent.
        """
        options = (priority, delay_s, at, exp, key, id, attempts, group)
        if options == _NO_OPTIONS and not isinstance(payload, Message):
            return (await self._sender_for(durability).send([self.pack(payload)]))[0]
        message = Message(
            payload=payload,
            priority=priority,
            delay_s=delay_s,
            at=at,
            exp=exp,
            key=key,
            id=id,
            attempts=attempts,
            group=group,
        )
        return (await self._sender_for(durability).send([self.pack(message)]))[0]

    async def send_many(
        self,
        messages: Iterable[msgspec.Struct | Message] | AsyncIterable[msgspec.Struct | Message],
        *,
        progress: Callable[[int], None] | None = None,
        durability: str = "",
    ) -> list[Sent]:
        """Store many messages, a chunk per round trip, in order; `progress` hears how many are stored so far.

        Where a chunk fails, or the caller is cancelled, the chunks behind it are not sent. `patience_s` is for each chunk.

        Raises:
            BadPayload: a message cannot be sent; all before its chunk are stored.
            ConfigError: as in `send`.
            NotDurable: a chunk is stored, but was not confirmed; the chunks before are confirmed.
            PartlySent: Redis refused some messages; `sent` says what became of each one up to the end of their chunk.
            QueueFull: Redis has no memory left; the chunks before are stored.
            StoreUnavailable: Redis did not answer for `patience_s`.
        """
        sender = self._sender_for(durability)
        sent: list[Sent] = []
        chunk: list[Packed] = []
        size_bytes = 0
        pack = self.pack
        under_way: deque[asyncio.Task[list[Sent]]] = deque()  # one chunk is stored, one waits behind it, the next one is packed
        flow, has_failed = Flow(), False

        async def arrived(left: int = 0) -> None:
            nonlocal has_failed
            while len(under_way) > left:
                try:
                    sent.extend(await under_way[0])
                except JobsError as error:
                    has_failed = True
                    if isinstance(error, PartlySent):
                        error.sent[:0] = sent
                    raise
                under_way.popleft()
                if progress is not None:
                    progress(len(sent))

        try:
            async for some in _in_turns(messages):
                for message in some:
                    packed = pack(message)
                    if chunk and (len(chunk) >= CHUNK_MESSAGES or size_bytes + len(packed.data) > CHUNK_BYTES):
                        await arrived(1)
                        under_way.append(asyncio.create_task(sender.send(chunk, flow)))
                        chunk, size_bytes = [], 0
                    chunk.append(packed)
                    size_bytes += len(packed.data)
            if chunk:
                under_way.append(asyncio.create_task(sender.send(chunk, flow)))
            await arrived()
        except Exception:
            if not has_failed:  # the source of the messages failed, or one of them: what was handed over before is stored first
                await arrived()
            raise
        finally:
            for task in under_way:
                task.cancel()  # what is not on the line yet is not sent
            await asyncio.gather(*under_way, return_exceptions=True)
        return sent

    def pack(self, message: msgspec.Struct | Message) -> Packed:
        """Return a message in wire form.

        Raises:
            BadPayload: the payload is no contract's, is too large, or an option is out of its range.
        """
        if isinstance(message, Message):
            contract = self._contract_of(type(message.payload))
            data = self._data(message.payload)
            priority = contract.priority if message.priority is None else message.priority
            return self.pack_raw(contract.type, data, message, contract.version, priority)
        kind = type(message)
        if kind not in self._heads:  # without options, a message differs in nothing but its payload from others of its type
            contract = self._contract_of(kind)
            self._heads[kind] = self._head(contract.type, Message(payload=message), contract.version, contract.priority)
        data = self._data(message)
        if len(data) > MAX_DATA_BYTES:
            raise _too_large(contract_of(kind).type, data)
        return Packed(self._heads[kind], data)

    def pack_raw(self, type_name: str, data: bytes, message: Message, version: int, priority: Priority) -> Packed:
        """Return a message in wire form, whose payload is JSON already; `message.payload` is not looked at.

        Raises:
            BadPayload: as in `pack`.
        """
        if not TYPE_NAME.match(type_name.encode(errors="replace")):
            raise BadPayload(f"type {type_name!r}: 1 to 64 of [a-z0-9._-], beginning with a letter or digit")
        if type(data) is not bytes:
            raise BadPayload(f"{type_name}: the payload is {_shown(data)}, and must be bytes of JSON")
        if len(data) > MAX_DATA_BYTES:
            raise _too_large(type_name, data)
        return Packed(self._head(type_name, message, version, priority), data)

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
            if needle in data and _holds_no_number(payload):
                raise BadPayload(f"{contract_of(kind).type}: the payload holds NaN or infinity, which JSON cannot write")
        return data

    def _contract_of(self, payload: type[msgspec.Struct]) -> Contract:
        try:
            return contract_of(payload)
        except ConfigError as error:
            raise BadPayload(str(error)) from None

    def _head(self, type_name: str, message: Message, version: int, priority: Priority) -> Head:
        # All that others would trip over is found here: a chunk that cannot be packed is the end of many sends.
        if type(priority) not in _PRIORITIES or not 1 <= priority <= len(STREAMS):
            raise BadPayload(f"priority {_shown(priority)}: a Priority, from 1 to {len(STREAMS)}")
        due_ms = _due_ms(message)
        job_id = message.id
        if (type(job_id) is not str or job_id) and not JOB_ID.match(_bounded(job_id, "id").encode()):
            raise BadPayload(f"id {_shown(job_id)}: 1 to 128 of [A-Za-z0-9._:-]")
        if due_ms and not job_id:
            job_id = f"{STREAMS[priority - 1]}-{secrets.token_hex(8)}"
        options: list[str | int] = []
        if job_id:
            options += ("id", job_id)
        if version > 1:
            options += ("v", version)
        if message.exp is not None:
            options += ("exp", _ms(message.exp, "exp"))
        if type(message.key) is not str or message.key:  # what is empty and no text is a mistake, not an option that is not used
            options += ("key", _bounded(message.key, "key"))
        if type(message.attempts) is not int or not 0 <= message.attempts <= MAX_MS:
            raise BadPayload(f"attempts {_shown(message.attempts)}: a whole number from 1 to {MAX_MS}")
        if message.attempts:
            options += ("attempts", message.attempts)
        if type(message.group) is not str or message.group:
            options += ("group", _bounded(message.group, "group"))
        if type(self._source) is not str or self._source:
            options += ("src", _bounded(self._source, "source"))
        return Head(priority - 1, due_ms, job_id, (*options, "type", type_name))

    async def send_packed(self, packed: Sequence[Packed], durability: str = "") -> list[Sent]:
        """Store up to CHUNK_MESSAGES messages in wire form; raises as `send`."""
        return await self._sender_for(durability).send(packed)

    def _sender_for(self, durability: str) -> Sender:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(f"a Producer sends from a running event loop, and here is none{_FORKED}") from None
        wanted = durability_of(durability) if durability else self._durability
        sender = self._senders.get((loop, wanted))
        if sender is None or sender.is_over or self._is_closed or self._pid != os.getpid():
            sender = self._open(loop, wanted)
        return sender

    def _open(self, loop: asyncio.AbstractEventLoop, durability: Durability) -> Sender:
        if self._is_closed:
            raise ConfigError("this Producer is closed: `async with` opens it again")
        if self._pid != os.getpid():
            # Kept and never touched: closing them here would reach into the parent's connections and its event loop.
            self._inherited.append(self._senders)
            self._senders, self._pid = {}, os.getpid()
        if any(loop is known for known, _ in chain(*self._inherited)):
            raise ConfigError(f"this event loop was used before the fork, and belongs to the parent{_FORKED}")
        for key in [key for key in list(self._senders) if key[0].is_closed()]:
            self._senders.pop(key, None)
        sender = Sender(
            SendStore(self._url, self._queue, durability, max(self._patience_s / 3, LEAST_ANSWER_S)), self._patience_s
        )
        self._senders[loop, durability] = sender
        return sender


_FORKED: Final = ": a forked process runs a new one, as by asyncio.run"


def _end_there(loop: asyncio.AbstractEventLoop, sender: Sender) -> None:
    """End a sender from outside of its loop, or while nobody can wait for it."""
    with contextlib.suppress(RuntimeError):  # that loop is closed: its connections are gone, or go with it
        loop.call_soon_threadsafe(sender.end)


_PRIORITIES: Final = (Priority, int)  # and no bool
_NO_OPTIONS: Final = (None, 0.0, None, None, "", "", 0, "")  # of `send`: such messages share a head, and are packed as one run


async def _in_turns(
    messages: Iterable[msgspec.Struct | Message] | AsyncIterable[msgspec.Struct | Message],
) -> AsyncIterable[Iterable[msgspec.Struct | Message]]:
    """Return the messages a few at a time, with a turn of the loop between."""
    if isinstance(messages, AsyncIterable):
        several: list[msgspec.Struct | Message] = []
        async for message in messages:
            several.append(message)
            if len(several) == PACKED_PER_TURN:
                yield several
                several = []
                await asyncio.sleep(0)
        yield several
        return
    rest = iter(messages)
    while some := list(islice(rest, PACKED_PER_TURN)):
        yield some
        await asyncio.sleep(0)


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


def _holds_no_number(payload: msgspec.Struct) -> bool:
    """Return whether NaN or infinity stands anywhere in a payload, or as a key."""
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


def _too_large(type_name: str, data: bytes) -> BadPayload:
    text = f"{type_name}: the payload has {len(data)} bytes, the limit is {MAX_DATA_BYTES}; send a reference to it"
    return BadPayload(text, "too-large")


def _due_ms(message: Message) -> int:
    if message.at is None and type(message.delay_s) is float and not message.delay_s:
        return 0
    _ms(message.delay_s, "delay_s", "seconds from now")
    if message.at is not None:
        return _ms(message.at, "at")
    return _ms(time.time() + message.delay_s, "delay_s", "seconds from now") if message.delay_s else 0


def _ms(seconds: object, name: str, what: str = "seconds since the epoch") -> int:
    """Return a number of seconds in ms; a bool is none, nor is what only compares like one."""
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds <= MAX_MS / 1000:
        raise BadPayload(f"{name} {_shown(seconds)}: {what}, a number from 0 to {MAX_MS // 1000}")
    return int(seconds * 1000)


def _patience(patience_s: float) -> float:
    if type(patience_s) not in (int, float) or not 0 < patience_s <= MAX_MS / 1000:
        raise ConfigError(f"patience_s {_shown(patience_s)}: a number of seconds above 0")
    return patience_s


def _shown(value: object) -> str:
    """Return an option as its error shows it, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # a number of 5,000 digits has none, as may what others have made
        return f"of type {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def _bounded(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise BadPayload(f"{name} {_shown(text)}: a text")
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise BadPayload(f"{name} {text!r} cannot be written as UTF-8") from None
    if size_bytes > MAX_KEY_BYTES:
        raise BadPayload(f"{name} of {size_bytes} bytes, the limit is {MAX_KEY_BYTES}")
    return text
