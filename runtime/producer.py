"""Enqueue: one, many, later. Imports no handler code. A lost reply never enqueues twice.

Sends of concurrent tasks share a round trip: whoever comes while one is under way goes with the next. A chunk carries a mark,
so a chunk that is sent again after a lost reply answers what it answered the first time. Sends of another durability go another
way: nobody waits for a disk or a replica that he did not ask for.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from itertools import groupby, islice
from random import random
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from runtime.backoff import Backoff, delay_s
from runtime.codec import JOB_ID, MAX_DATA_BYTES, MAX_KEY_BYTES, MAX_MS
from runtime.errors import BadPayload, ConfigError, NotDurable, QueueFull, StoreAway
from runtime.jobs import STREAMS, TYPE_NAME, Contract, Priority, contract_of, default_id
from runtime.outlet import Durability, Outlet, durability_of
from runtime.wire import Tail, packed_value, packed_words, without_password

CHUNK_MESSAGES: Final = 500
CHUNK_BYTES: Final = 1024 * 1024  # one chunk is one script call: bounded, so that others get their turn
RESEND: Final = Backoff(base_s=0.05, cap_s=2.0)
BREATH: Final = 50  # messages packed in one turn of the loop: the chunk before goes out, and the loop's other tasks get on
LEAST_WAIT_S: Final = 0.1  # for a confirmation, however long Redis was away before


class Sent(msgspec.Struct, frozen=True, gc=False):
    """A message that is stored: the job's id, and whether it is new (False: a live job owns its key, and it was dropped)."""

    id: str
    new: bool = True


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


class Head(msgspec.Struct, frozen=True, gc=False):
    """All of a message but its payload; `due_ms` 0 = now."""

    stream: int
    due_ms: int
    id: str
    fields: tuple[str | int, ...]


class Packed(msgspec.Struct, frozen=True, gc=False):
    """A message in wire form."""

    head: Head
    data: bytes


class _Waiting(msgspec.Struct):
    """Messages of one caller. `flow` is what they are part of, in order: where one part fails, those behind it are not sent."""

    packed: list[Packed]
    done: asyncio.Future[list[Sent]]
    flow: object


class Producer:
    """Owns a way to Redis for each durability in use. Use it as an async context manager, from as many tasks as you like.

    `patience_s` is how long a send is repeated while Redis is away, before StoreAway is raised, and how long it waits for its
    confirmation. `durability` is that of every send that names none: `local`, as the server's append-only file; `fsync`, on its
    disk; `replicas=1`, in the memory of so many replicas.
    """

    def __init__(
        self, url: str, *, queue: str = "jobs", source: str = "", patience_s: float = 5.0, durability: str = "local"
    ) -> None:
        self._url = url
        self._queue = queue
        self._source = source
        self._patience_s = patience_s
        self._durability = durability_of(durability)
        self._encode = msgspec.json.Encoder().encode
        self._heads: dict[type[msgspec.Struct], Head] = {}
        self._ways: dict[Durability, _Way] = {}
        self._is_open = False
        Outlet(url, queue)  # a bad name is said here

    @classmethod
    def connect(
        cls, url: str, *, queue: str = "jobs", source: str = "", patience_s: float = 5.0, durability: str = "local"
    ) -> Producer:
        """Give a producer for this Redis; it connects with its first send.

        Raises:
            ConfigError: the durability is none, or the queue's name cannot be one.
        """
        return cls(url, queue=queue, source=source, patience_s=patience_s, durability=durability)

    def __repr__(self) -> str:
        return f"<Producer to {without_password(self._url)}, {sum(map(len, self._ways.values()))} sends wait>"

    async def __aenter__(self) -> Self:
        self._is_open = True
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_open = False
        while self._ways:  # a send that comes meanwhile may add one
            _, way = self._ways.popitem()
            await way.close()

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
            ConfigError: the durability is none, or this server can never confirm it; nothing was written.
            NotDurable: it is stored, but was not confirmed in `patience_s`.
            QueueFull: Redis has no memory left; nothing was written.
            StoreAway: Redis did not answer for `patience_s`; it may have been stored, once.
        """
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
        return (await self._way(durability).send([self.pack(message)]))[0]

    async def send_many(
        self,
        messages: Iterable[msgspec.Struct | Message] | AsyncIterable[msgspec.Struct | Message],
        *,
        progress: Callable[[int], None] | None = None,
        durability: str = "",
    ) -> list[Sent]:
        """Store many messages, a chunk per round trip, in order; `progress` hears how many are stored so far.

        Raises:
            BadPayload: a message cannot be sent; all before its chunk are stored.
            ConfigError: as in `send`.
            NotDurable: a chunk is stored, but was not confirmed; the chunks before are confirmed.
            QueueFull: Redis has no memory left; the chunks before are stored.
            StoreAway: Redis did not answer for `patience_s`.
        """
        way = self._way(durability)
        sent: list[Sent] = []
        chunk: list[Packed] = []
        size_bytes = 0
        pack = self.pack
        under_way: deque[asyncio.Task[list[Sent]]] = deque()  # one chunk is stored, one waits behind it, the next one is packed

        async def arrived(left: int = 0) -> None:
            while len(under_way) > left:
                try:
                    sent.extend(await under_way.popleft())
                except BaseException:
                    # Where a chunk failed, those behind it are not sent; where we were cancelled, they still are: wait for them.
                    await asyncio.gather(*under_way, return_exceptions=True)
                    under_way.clear()
                    raise
                if progress is not None:
                    progress(len(sent))

        try:
            async for some in _breaths(messages):
                for message in some:
                    packed = pack(message)
                    if chunk and (len(chunk) >= CHUNK_MESSAGES or size_bytes + len(packed.data) > CHUNK_BYTES):
                        await arrived(1)
                        under_way.append(asyncio.create_task(way.send(chunk, under_way)))
                        chunk, size_bytes = [], 0
                    chunk.append(packed)
                    size_bytes += len(packed.data)
        finally:
            await arrived()
        if chunk:
            under_way.append(asyncio.create_task(way.send(chunk, under_way)))
            await arrived()
        return sent

    def pack(self, message: msgspec.Struct | Message) -> Packed:
        """Give a message in wire form.

        Raises:
            BadPayload: the payload is no contract's, is too large, or an option is out of its range.
        """
        if isinstance(message, Message):
            contract = self._contract_of(type(message.payload))
            data = self._data(message.payload)
            return self.pack_raw(contract.type, data, message, contract.version, message.priority or contract.priority)
        kind = type(message)
        if kind not in self._heads:  # without options, a message differs in nothing but its payload from others of its type
            contract = self._contract_of(kind)
            self._heads[kind] = self._head(contract.type, Message(payload=message), contract.version, contract.priority)
        data = self._data(message)
        if len(data) > MAX_DATA_BYTES:
            raise _too_large(contract_of(kind).type, data)
        return Packed(self._heads[kind], data)

    def pack_raw(self, type_name: str, data: bytes, message: Message, version: int, priority: Priority) -> Packed:
        """Give a message in wire form, whose payload is JSON already; `message.payload` is not looked at.

        Raises:
            BadPayload: as in `pack`.
        """
        if not TYPE_NAME.match(type_name.encode()):
            raise BadPayload(f"type {type_name!r}: 1 to 64 of [a-z0-9._-], beginning with a letter or digit")
        if len(data) > MAX_DATA_BYTES:
            raise _too_large(type_name, data)
        return Packed(self._head(type_name, message, version, priority), data)

    def _data(self, payload: msgspec.Struct) -> bytes:
        try:
            return self._encode(payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadPayload(f"{contract_of(type(payload)).type}: the payload cannot be written as JSON: {error}") from None

    def _contract_of(self, payload: type[msgspec.Struct]) -> Contract:
        try:
            return contract_of(payload)
        except ConfigError as error:
            raise BadPayload(str(error)) from None

    def _head(self, type_name: str, message: Message, version: int, priority: Priority) -> Head:
        due_ms = _due_ms(message)
        job_id = message.id
        if job_id and not JOB_ID.match(job_id.encode()):
            raise BadPayload(f"id {job_id!r}: 1 to 128 of [A-Za-z0-9._:-]")
        if due_ms and not job_id:
            job_id = f"{STREAMS[priority - 1]}-{secrets.token_hex(8)}"
        options: list[str | int] = []
        if job_id:
            options += ("id", job_id)
        if version > 1:
            options += ("v", version)
        if message.exp is not None:
            options += ("exp", _ms(message.exp, "exp"))
        if message.key:
            options += ("key", _bounded(message.key, "key"))
        if message.attempts < 0:
            raise BadPayload(f"attempts {message.attempts}: a whole number from 1")
        if message.attempts:
            options += ("attempts", message.attempts)
        if message.group:
            options += ("group", _bounded(message.group, "group"))
        if self._source:
            options += ("src", _bounded(self._source, "source"))
        return Head(priority - 1, due_ms, job_id, (*options, "type", type_name))

    async def send_packed(self, packed: Sequence[Packed], durability: str = "") -> list[Sent]:
        """Store up to CHUNK_MESSAGES messages in wire form; raises as `send`."""
        return await self._way(durability).send(packed)

    def _way(self, durability: str) -> _Way:
        if not self._is_open:
            raise ConfigError("a Producer is used as `async with Producer.connect(url) as producer:`")
        wanted = durability_of(durability) if durability else self._durability
        if wanted not in self._ways:
            self._ways[wanted] = _Way(Outlet(self._url, self._queue, wanted), self._patience_s)
        return self._ways[wanted]


class _Way:
    """Owns the sends of one durability: those that wait, the chunk under way, and its outlet."""

    def __init__(self, outlet: Outlet, patience_s: float) -> None:
        self._outlet = outlet
        self._patience_s = patience_s
        self._waiting: list[_Waiting] = []
        self._awake = asyncio.Event()
        self._sender = asyncio.create_task(self._send_for_ever(), name=f"producer {outlet.durability}")

    def __len__(self) -> int:
        return len(self._waiting)

    async def close(self) -> None:
        """End; whoever still waits is cancelled."""
        self._sender.cancel()
        await asyncio.wait([self._sender])
        for waiting in self._waiting:
            waiting.done.cancel()
        await self._outlet.close()

    async def send(self, packed: Sequence[Packed], flow: object = None) -> list[Sent]:
        """Go with the next chunk, and give what became of these. Those of one flow are stored in order, or not at all."""
        waiting = _Waiting(list(packed), asyncio.get_running_loop().create_future(), flow)
        self._waiting.append(waiting)
        self._awake.set()
        return await waiting.done

    async def _send_for_ever(self) -> None:
        while True:
            await self._awake.wait()
            await asyncio.sleep(0)  # whoever is about to send in this turn of the loop comes along
            while self._waiting:
                await self._send_one_chunk()
            self._awake.clear()

    async def _send_one_chunk(self) -> None:
        taken: list[_Waiting] = []
        messages: list[Packed] = []
        size = 0
        while self._waiting and len(messages) + len(self._waiting[0].packed) <= max(CHUNK_MESSAGES, len(self._waiting[0].packed)):
            size += _size(self._waiting[0].packed)
            if taken and size > CHUNK_BYTES:
                break
            waiting = self._waiting.pop(0)
            taken.append(waiting)
            messages += waiting.packed
        try:
            sent, doubt = await self._deliver(messages)
        except Exception as error:  # whatever it is, it concerns this chunk; the next one is sent all the same
            self._fail(taken, error)
        except BaseException:
            for waiting in taken:
                waiting.done.cancel()
            raise
        else:
            start = 0
            for waiting in taken:
                own = sent[start : start + len(waiting.packed)]
                start += len(waiting.packed)
                if doubt:
                    self._fail([waiting], NotDurable(doubt, own))
                elif not waiting.done.done():
                    waiting.done.set_result(own)

    def _fail(self, failed: Sequence[_Waiting], error: Exception) -> None:
        """Tell the callers, also of what would have come next of the same flows."""
        flows = {id(waiting.flow) for waiting in failed if waiting.flow is not None}
        behind = [waiting for waiting in self._waiting if id(waiting.flow) in flows]
        self._waiting = [waiting for waiting in self._waiting if id(waiting.flow) not in flows]
        for waiting in (*failed, *behind):
            if not waiting.done.done():
                waiting.done.set_exception(error)

    async def _deliver(self, messages: list[Packed]) -> tuple[list[Sent], str]:
        """Send one chunk until there is an answer, under one mark; give what was sent, and why it is not confirmed."""
        mark = secrets.token_hex(8)
        chunk = _chunk(messages)
        end_s, failures = time.monotonic() + self._patience_s, 0
        while True:
            try:
                stored = await self._outlet.store(mark, chunk, max(end_s - time.monotonic(), LEAST_WAIT_S))
                return _sent(messages, stored.reply), stored.doubt
            except StoreAway as error:
                if isinstance(error, QueueFull):
                    if not failures:
                        raise
                    raise StoreAway(f"{error}; an earlier try had no answer, and may have been stored") from error
                failures += 1
                wait_s = delay_s(failures, RESEND, random)
                if time.monotonic() + wait_s > end_s:
                    raise
                await asyncio.sleep(wait_s)


def _chunk(messages: Sequence[Packed]) -> Tail:
    """Give the arguments of send.lua; messages of one head, as those without options have, say it once."""
    size, parts = 0, list[bytes]()
    for _, alike in groupby(messages, lambda message: id(message.head)):
        run = list(alike)
        head = run[0].head
        words = (head.stream + 1, head.due_ms or "", len(head.fields), len(run), *head.fields)
        size += len(words) + len(run)
        parts.append(packed_words(words))
        parts += [packed_value(message.data) for message in run]
    return Tail(size, b"".join(parts))


def _sent(messages: Sequence[Packed], reply: Sequence[Any]) -> list[Sent]:
    """Work out each message's id: those without one are numbered on from the first entry of their stream."""
    stamps: list[str] = []
    numbers: list[int] = []
    for stream, first in enumerate(reply[:4]):
        stamp, _, number = bytes(first).decode().partition("-")
        stamps.append(default_id(STREAMS[stream], f"{stamp}-"))
        numbers.append(int(number or 0))
    copies = set(reply[4:])
    sent: list[Sent] = []
    for position, message in enumerate(messages):
        head = message.head
        if position in copies:
            sent.append(Sent(head.id, new=False))
        elif head.due_ms:
            sent.append(Sent(head.id))
        else:
            number = numbers[head.stream]
            numbers[head.stream] = number + 1
            sent.append(Sent(head.id or f"{stamps[head.stream]}{number}"))
    return sent


async def _breaths(
    messages: Iterable[msgspec.Struct | Message] | AsyncIterable[msgspec.Struct | Message],
) -> AsyncIterable[Iterable[msgspec.Struct | Message]]:
    """Give the messages a few at a time, with a turn of the loop between."""
    if isinstance(messages, AsyncIterable):
        several: list[msgspec.Struct | Message] = []
        async for message in messages:
            several.append(message)
            if len(several) == BREATH:
                yield several
                several = []
                await asyncio.sleep(0)
        yield several
        return
    rest = iter(messages)
    while some := list(islice(rest, BREATH)):
        yield some
        await asyncio.sleep(0)


def _too_large(type_name: str, data: bytes) -> BadPayload:
    text = f"{type_name}: the payload has {len(data)} bytes, the limit is {MAX_DATA_BYTES}; send a reference to it"
    return BadPayload(text, "too-large")


def _size(packed: Sequence[Packed]) -> int:
    return sum([len(message.data) for message in packed])


def _due_ms(message: Message) -> int:
    if message.at is not None:
        return _ms(message.at, "at")
    if message.delay_s < 0:
        raise BadPayload(f"delay_s {message.delay_s:g}: 0 or more")
    return _ms(time.time() + message.delay_s, "delay_s") if message.delay_s else 0


def _ms(seconds: float, name: str) -> int:
    if not 0 <= seconds * 1000 <= MAX_MS:
        raise BadPayload(f"{name} {seconds!r}: seconds since the epoch")
    return int(seconds * 1000)


def _bounded(text: str, name: str) -> str:
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise BadPayload(f"{name} {text!r} cannot be written as UTF-8") from None
    if size_bytes > MAX_KEY_BYTES:
        raise BadPayload(f"{name} of {size_bytes} bytes, the limit is {MAX_KEY_BYTES}")
    return text
