"""Enqueue: one, many, later. Imports no handler code. A lost reply never enqueues twice.

Sends of concurrent tasks share a round trip: whoever comes while one is under way goes with the next. A chunk carries a mark,
so a chunk that is sent again after a lost reply answers what it answered the first time. Sends of another durability go another
way: nobody waits for a disk or a replica that he did not ask for.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from random import random
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from runtime.backoff import Backoff, delay_s
from runtime.codec import JOB_ID, MAX_DATA_BYTES, MAX_KEY_BYTES, MAX_MS
from runtime.errors import BadPayload, ConfigError, NotDurable, QueueFull, StoreAway
from runtime.jobs import STREAMS, TYPE_NAME, Priority, contract_of, default_id
from runtime.outlet import Durability, Outlet, durability_of
from runtime.wire import without_password

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


class Packed(msgspec.Struct, frozen=True, gc=False):
    """A message as it goes over the wire; `due_ms` 0 = now."""

    stream: int
    due_ms: int
    id: str
    fields: tuple[str | bytes | int, ...]
    size_bytes: int


class _Waiting(msgspec.Struct):
    packed: list[Packed]
    done: asyncio.Future[list[Sent]]


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
        for way in self._ways.values():
            await way.close()
        self._ways.clear()

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
        under_way: asyncio.Task[list[Sent]] | None = None  # one chunk is stored while the next one is packed

        async def arrived() -> None:
            nonlocal under_way
            if under_way is not None:
                task, under_way = under_way, None
                sent.extend(await task)
                if progress is not None:
                    progress(len(sent))

        try:
            async for message in _each(messages):
                packed = self.pack(message)
                if chunk and (len(chunk) >= CHUNK_MESSAGES or size_bytes + packed.size_bytes > CHUNK_BYTES):
                    await arrived()
                    under_way = asyncio.create_task(way.send(chunk))
                    chunk, size_bytes = [], 0
                chunk.append(packed)
                size_bytes += packed.size_bytes
                if not len(chunk) % BREATH:
                    await asyncio.sleep(0)
        finally:
            await arrived()
        if chunk:
            under_way = asyncio.create_task(way.send(chunk))
            await arrived()
        return sent

    def pack(self, message: msgspec.Struct | Message) -> Packed:
        """Give a message in wire form.

        Raises:
            BadPayload: the payload is no contract's, is too large, or an option is out of its range.
        """
        if not isinstance(message, Message):
            message = Message(payload=message)
        try:
            contract = contract_of(type(message.payload))
        except ConfigError as error:
            raise BadPayload(str(error)) from None
        try:
            data = self._encode(message.payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadPayload(f"{contract.type}: the payload cannot be written as JSON: {error}") from None
        return self.pack_raw(contract.type, data, message, contract.version, message.priority or contract.priority)

    def pack_raw(self, type_name: str, data: bytes, message: Message, version: int, priority: Priority) -> Packed:
        """Give a message in wire form, whose payload is JSON already; `message.payload` is not looked at.

        Raises:
            BadPayload: as in `pack`.
        """
        if not TYPE_NAME.match(type_name.encode()):
            raise BadPayload(f"type {type_name!r}: 1 to 64 of [a-z0-9._-], beginning with a letter or digit")
        if len(data) > MAX_DATA_BYTES:
            reason = f"{type_name}: the payload has {len(data)} bytes, the limit is {MAX_DATA_BYTES}; send a reference to it"
            raise BadPayload(reason, "too-large")
        due_ms = _due_ms(message)
        job_id = message.id
        if job_id and not JOB_ID.match(job_id.encode()):
            raise BadPayload(f"id {job_id!r}: 1 to 128 of [A-Za-z0-9._:-]")
        if due_ms and not job_id:
            job_id = f"{STREAMS[priority - 1]}-{secrets.token_hex(8)}"
        fields: list[str | bytes | int] = ["type", type_name, "data", data]
        if job_id:
            fields += ("id", job_id)
        if version > 1:
            fields += ("v", version)
        if message.exp is not None:
            fields += ("exp", _ms(message.exp, "exp"))
        if message.key:
            fields += ("key", _bounded(message.key, "key"))
        if message.attempts < 0:
            raise BadPayload(f"attempts {message.attempts}: a whole number from 1")
        if message.attempts:
            fields += ("attempts", message.attempts)
        if message.group:
            fields += ("group", _bounded(message.group, "group"))
        if self._source:
            fields += ("src", _bounded(self._source, "source"))
        return Packed(priority - 1, due_ms, job_id, tuple(fields), len(data))

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

    async def send(self, packed: Sequence[Packed]) -> list[Sent]:
        """Go with the next chunk, and give what became of these."""
        waiting = _Waiting(list(packed), asyncio.get_running_loop().create_future())
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
            for waiting in taken:
                if not waiting.done.done():
                    waiting.done.set_exception(error)
        except BaseException:
            for waiting in taken:
                waiting.done.cancel()
            raise
        else:
            start = 0
            for waiting in taken:
                own = sent[start : start + len(waiting.packed)]
                start += len(waiting.packed)
                if waiting.done.done():
                    continue
                if doubt:
                    waiting.done.set_exception(NotDurable(doubt, own))
                else:
                    waiting.done.set_result(own)

    async def _deliver(self, messages: list[Packed]) -> tuple[list[Sent], str]:
        """Send one chunk until there is an answer, under one mark; give what was sent, and why it is not confirmed."""
        chunk: list[str | bytes | int] = [secrets.token_hex(8)]
        for message in messages:
            chunk += (message.stream + 1, message.due_ms or "", len(message.fields), *message.fields)
        end_s, failures = time.monotonic() + self._patience_s, 0
        while True:
            try:
                stored = await self._outlet.store(chunk, max(end_s - time.monotonic(), LEAST_WAIT_S))
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


def _sent(messages: Sequence[Packed], reply: Sequence[Any]) -> list[Sent]:
    """Work out each message's id: those without one are numbered on from the first entry of their stream."""
    next_ids = [bytes(first).decode() for first in reply[:4]]
    copies = set(reply[4:])
    sent: list[Sent] = []
    for position, message in enumerate(messages):
        if position in copies:
            sent.append(Sent(message.id, new=False))
            continue
        job_id = message.id
        if not message.due_ms:
            entry = next_ids[message.stream]
            job_id = job_id or default_id(STREAMS[message.stream], entry)
            stamp, _, number = entry.partition("-")
            next_ids[message.stream] = f"{stamp}-{int(number) + 1}"
        sent.append(Sent(job_id))
    return sent


async def _each(
    messages: Iterable[msgspec.Struct | Message] | AsyncIterable[msgspec.Struct | Message],
) -> AsyncIterable[msgspec.Struct | Message]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message


def _size(packed: Sequence[Packed]) -> int:
    return sum(message.size_bytes for message in packed)


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
