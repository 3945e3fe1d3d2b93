"""Producer sends jobs: one, many or later, each stored once however often a lost reply makes it be repeated.

Sends of concurrent tasks share round trips: what is sent while one is under way goes with the next. Sends of another durability
have a connection of their own, so that none waits for a disk or a replica that it did not ask for. Loads no handler code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

import msgspec

from runtime.codec import JOB_ID, MAX_MS
from runtime.errors import ConfigError, JobDead, ResultTimeout
from runtime.jobs import Head, Options, Packed, Priority, contract_of
from runtime.observer import Publishing, publisher
from runtime.packing import NO_OPTIONS, Packer, shown
from runtime.results import DEAD, reader_of
from runtime.sender import CHUNK_BYTES, CHUNK_MESSAGES, Flow, Sender, Sent
from runtime.store.results import ResultStore
from runtime.store.sends import Durability, SendStore, durability_of
from runtime.store.urls import without_password
from runtime.waiter import Waiter

T = TypeVar("T")

# Messages packed in one turn of the loop, 0.1 ms of it (a guess): the chunk before goes out, and other tasks get on.
PACKED_PER_TURN: Final = 50
LEAST_ANSWER_S: Final = 0.25  # a guess: a busy machine needs that long now and then, and another connection would be no faster


class Message(Options, frozen=True, kw_only=True, gc=True):
    """A payload with options of its own, for `Producer.send_many`; each option as in `Producer.send`.

    `payload` is a struct of a class declared with `@contract`.
    """

    payload: msgspec.Struct


class Producer:
    """Sends jobs from as many tasks, threads and event loops as you like; make one, and keep it in a module.

    It connects with the first send of an event loop, once per durability in use. These connections end with that loop, with
    `close`, or at the end of `async with`. A forked process gets connections of its own.

    Args:
        url: of Redis: `redis://`, `rediss://`, `unix://` or `sentinel://`.
        queue: where jobs go whose contract names no queue.
        source: written to each message as `src`, up to 512 bytes; for people, and kept through retries and dead letters.
        patience_s: the longest that a send waits, in seconds from its call: while Redis is away, and for its confirmation.
        durability: what a send waits for, unless it says so itself: `local`, that Redis has the message; `fsync`, that it is on
            Redis' disk; `replicas=1`, that so many replicas have it in memory.
        check: whether each payload is read back as its handler will: msgspec looks at no field when an object is made, and a text
            in the place of a number would be a dead letter. It costs as much as writing it, 1 µs of a small one.

    Raises:
        ConfigError: the queue's name, the patience or the durability cannot be used. Of a URL the first send says so.
    """

    def __init__(
        self,
        url: str,
        *,
        queue: str = "jobs",
        source: str = "",
        patience_s: float = 5.0,
        durability: str = "local",
        check: bool = False,
    ) -> None:
        self._url = url
        self._queue = queue
        self._patience_s = _patience(patience_s)
        self._durability = durability_of(durability)
        self._packer = Packer(time.time, source, check=check)
        self._senders: dict[tuple[asyncio.AbstractEventLoop, str, Durability], Sender] = {}
        self._waiters: dict[tuple[asyncio.AbstractEventLoop, str], Waiter] = {}
        self._inherited: list[tuple[object, ...]] = []
        self._loops_inherited: set[asyncio.AbstractEventLoop] = set()
        self._pid = os.getpid()
        self._is_closed = False
        SendStore(url, queue)  # raises what is wrong with the queue's name here, not at the first send

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        queue: str = "jobs",
        source: str = "",
        patience_s: float = 5.0,
        durability: str = "local",
        check: bool = False,
    ) -> Producer:
        """Return `Producer(url, …)`: it connects with its first send, so neither Redis nor an event loop is needed yet.

        Raises:
            ConfigError: as the class.
        """
        return cls(url, queue=queue, source=source, patience_s=patience_s, durability=durability, check=check)

    def __repr__(self) -> str:
        return f"<Producer to {without_password(self._url)}, {sum(map(len, self._senders.values()))} sends wait>"

    def reopen(self) -> None:
        """Take sends again after `close`, as `async with` does."""
        self._is_closed = False

    def check_open(self) -> None:
        """Raise ConfigError after `close`."""
        if self._is_closed:
            raise ConfigError("this Producer is closed; hint: `with` opens it again")

    async def __aenter__(self) -> Self:
        self.reopen()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; each send that still waits, in any event loop, raises. May be repeated."""
        self._is_closed = True
        here = asyncio.get_running_loop()
        opened = self._opened()
        self._senders, self._waiters = {}, {}
        for loop, one in opened:
            if loop is here:
                await one.close()
            else:
                _end_there(loop, one)

    def __del__(self) -> None:
        # Made in a function and forgotten: without this its connections would stay open as long as their loop.
        if hasattr(self, "_pid") and self._pid == os.getpid():
            for loop, one in self._opened():
                _end_there(loop, one)

    def _opened(self) -> list[tuple[asyncio.AbstractEventLoop, Sender | Waiter]]:
        senders = [(loop, sender) for (loop, *_), sender in self._senders.items()]
        return [*senders, *((loop, waiter) for (loop, _), waiter in self._waiters.items())]

    async def send(
        self,
        payload: msgspec.Struct,
        *,
        priority: Priority | str | None = None,
        delay_s: float | timedelta = 0.0,
        at: float | datetime | None = None,
        exp: float | datetime | None = None,
        key: str = "",
        keep: str = "",
        id: str = "",
        attempts: int | None = None,
        group: str = "",
        durability: str = "",
    ) -> Sent:
        """Store one job, and return its id when Redis has it as durably as asked.

        Args:
            payload: a struct of a class declared with `@contract`; written as JSON, up to 256 KiB.
            priority: the stream it goes to, also by its name, such as `high`; None for the contract's.
            delay_s: not before so many seconds from now, or a timedelta; ten years at most.
            at: not before this time, in seconds since the epoch, or a datetime with a time zone; wins over `delay_s`.
            exp: not after this time, as for `at`: then it is a dead letter `expired`.
            key: up to 512 bytes; while another job with this key lives, this one is dropped, and `Sent.new` is False. One that is
                not to start before a time replaces what waits with its key (debounce), unless `keep` is `first`.
            keep: with a `key`, which of the messages that wait for a time is the one that runs: `last`, also where empty, or
                `first`.
            id: the job's id, 1 to 128 of `[A-Za-z0-9._:-]`; need not be unique. Without one it is made from stream and entry.
            attempts: how often it is run at most, from 1; None for what its handler says.
            group: up to 512 bytes; a handler may bound how many of a group run at once, or start in a time.
            durability: `local`, `fsync` or `replicas=N`; empty for the producer's.

        The message is stored once, however often it is repeated for a lost reply. Cancelled before it was written to the
        connection, it is not sent; later, it may have been stored, once.

        Raises:
            BadPayload: the payload or an option cannot be sent.
            ConfigError: the durability is none, or this server can never confirm it, or the producer is closed; nothing was
                written.
            NotDurable: it is stored, but was not confirmed in `patience_s`.
            QueueFull: Redis has no memory left; nothing was written.
            StoreError: Redis cannot store this message, as where a key of another type stands in the stream's place.
            StoreUnavailable: Redis did not answer for `patience_s`; the text says whether it may have been stored, once.
        """
        options = Options(
            priority=priority, delay_s=delay_s, at=at, exp=exp, key=key, keep=keep, id=id, attempts=attempts, group=group
        )
        publish, is_plain, pack = publisher(), options == NO_OPTIONS, self._packer.pack
        if publish is None:
            packed = pack(payload) if is_plain else self._packer.pack_with(payload, options)
            return (await self._sender_for(durability, packed.head.queue).send([packed]))[0]
        with publish(self._queue_of(payload), self._url, False) as told:
            packed = pack(payload) if is_plain else self._packer.pack_with(payload, options)
            sender = self._sender_for(durability, packed.head.queue)
            [sent] = await sender.send([Packed(_told(packed.head, told), packed.data)])
            told.sent([sent.id])
            return sent

    async def send_many(
        self,
        messages: Iterable[msgspec.Struct | Message] | AsyncIterable[msgspec.Struct | Message],
        *,
        progress: Callable[[int], None] | None = None,
        durability: str = "",
    ) -> list[Sent]:
        """Store many jobs in order, a chunk of 500 messages or a megabyte per round trip, and return what became of each.

        Where a chunk fails, or the caller is cancelled, the chunks behind it are not sent. A message for another queue than the
        one before it begins a chunk, which waits until all before it are stored.

        Args:
            messages: payloads, or `Message(payload=…, …)` for those with options; taken as they are needed, at most three
                chunks ahead.
            progress: called after each chunk with how many messages are stored so far.
            durability: as in `send`; `patience_s` is for each chunk.

        Raises:
            BadPayload: a message cannot be sent; all before its chunk are stored.
            ConfigError: as in `send`.
            NotDurable: a chunk is stored, but was not confirmed; the chunks before are confirmed.
            PartlySent: Redis refused some messages; `sent` says what became of each one up to the end of their chunk.
            QueueFull: Redis has no memory left; the chunks before are stored.
            StoreUnavailable: Redis did not answer for `patience_s`; the chunks before are stored.
        """
        self._sender_for(durability)  # which says what is wrong with it, and with the loop, before a message is made
        flow, publish = Flow(progress), publisher()
        if publish is None:
            return await self._send_all(flow, messages, self._pack, durability)
        with publish(self._queue, self._url, True) as told:
            heads: dict[type[msgspec.Struct], Head] = {}  # messages that share one go as one run

            def pack(message: msgspec.Struct | Message) -> Packed:
                packed, kind = self._pack(message), type(message)
                if isinstance(message, Message):
                    return Packed(_told(packed.head, told), packed.data)
                return Packed(heads.get(kind) or heads.setdefault(kind, _told(packed.head, told)), packed.data)

            sent = await self._send_all(flow, messages, pack, durability)
            told.sent([one.id for one in sent])
            return sent

    async def _send_all(
        self,
        flow: Flow,
        messages: Iterable[msgspec.Struct | Message] | AsyncIterable[msgspec.Struct | Message],
        pack: Callable[[msgspec.Struct | Message], Packed],
        durability: str,
    ) -> list[Sent]:
        chunk: list[Packed] = []
        size_bytes = 0
        queue = ""  # of the chunk
        try:
            async for some in _in_turns(messages):
                for message in some:
                    packed = pack(message)
                    is_elsewhere = packed.head.queue != queue
                    if chunk and (is_elsewhere or len(chunk) >= CHUNK_MESSAGES or size_bytes + len(packed.data) > CHUNK_BYTES):
                        await flow.arrived(left=1)  # one chunk is stored, one waits behind it, the next one is packed
                        flow.send(chunk, self._sender_for(durability, queue))
                        chunk, size_bytes = [], 0
                    if is_elsewhere:
                        await flow.arrived()
                        queue = packed.head.queue
                    chunk.append(packed)
                    size_bytes += len(packed.data)
            if chunk:
                flow.send(chunk, self._sender_for(durability, queue))
            await flow.arrived()
        except Exception:
            if not flow.has_failed:  # the source of the messages failed, or one of them: what was handed over is stored first
                await flow.arrived()
            raise
        finally:
            await flow.close()
        return flow.sent

    @overload
    async def result(self, job: str | Sent, timeout_s: float = ...) -> Any: ...

    @overload
    async def result(self, job: str | Sent, timeout_s: float = ..., *, type: type[T]) -> T: ...

    async def result(self, job: str | Sent, timeout_s: float = 30.0, *, type: Any = Any) -> Any:
        """Return what a job has answered, as soon as it is done; its handler's type must keep results (`result_ttl_s`).

        A job whose id was used before may be answered with the result of the one before, as long as that is kept. Cancelled, it
        leaves nothing behind; the job runs on.

        Args:
            job: what `send` returned, or the id of a job in this producer's queue.
            timeout_s: seconds to wait, from 0, which looks once; then it takes the time to find out where the job is.
            type: of the value; without it dicts, lists, texts and numbers, as JSON has them.

        Raises:
            JobDead: the job is a dead letter.
            ResultTimeout: no result came in time; the text says where the job is, or that it is gone without one.
            BadResult: the value is of another type.
            ConfigError: the id, the timeout or the type cannot be used, or the producer is closed, before or while this waited.
            StoreUnavailable: no result came in time, and Redis did not answer what is known of the job.
        """
        if not _is_time(timeout_s):
            raise ConfigError(f"timeout_s must be a number of seconds from 0, got {shown(timeout_s)}")
        read = reader_of(type)
        job_id, queue = (job.id, job.queue) if isinstance(job, Sent) else (job, "")
        # Of any other there is no job; and one that cannot be written would end the wait of all who share the connection.
        if not isinstance(job_id, str) or not JOB_ID.match(job_id.encode(errors="replace")):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"job must be what `send` returned, or an id, 1 to 128 of [A-Za-z0-9._:-], got {shown(job_id)}")
        found = await self._waiter(queue).result(job_id, timeout_s)
        if isinstance(found, str):
            raise ResultTimeout(f"no result of {shown(job_id)} in {timeout_s:g} s: {found}")
        if found.state == DEAD:
            raise JobDead(found.reason, found.error, found.attempts)
        return read(found.value)

    def _pack(self, message: msgspec.Struct | Message) -> Packed:
        return self._packer.pack_with(message.payload, message) if isinstance(message, Message) else self._packer.pack(message)

    async def send_packed(self, packed: Sequence[Packed], durability: str = "") -> list[Sent]:
        """Store up to CHUNK_MESSAGES packed messages of one queue in one round trip; raises as `send`."""
        return await self._sender_for(durability, packed[0].head.queue if packed else "").send(packed)

    def _queue_of(self, payload: msgspec.Struct) -> str:
        """Return the queue that a payload goes to; this producer's for what cannot be sent."""
        try:
            return contract_of(type(payload)).queue or self._queue
        except ConfigError:
            return self._queue

    def _sender_for(self, durability: str, queue: str = "") -> Sender:
        """Return what sends to a queue that a contract names; empty for this producer's."""
        loop = self._loop()
        wanted = durability_of(durability) if durability else self._durability
        sender = self._senders.get((loop, queue, wanted))
        if sender is None or sender.is_over or self._is_closed or self._pid != os.getpid():
            self._prepare(loop)
            sender = self._senders[loop, queue, wanted] = self._open_sender(wanted, queue)
        return sender

    def _open_sender(self, durability: Durability, queue: str) -> Sender:
        return Sender(SendStore(self._url, queue or self._queue, durability, self._answer_s), self._patience_s, queue)

    def _waiter(self, queue: str) -> Waiter:
        loop = self._loop()
        waiter = self._waiters.get((loop, queue))
        if waiter is None or waiter.is_over or self._is_closed or self._pid != os.getpid():
            self._prepare(loop)
            waiter = self._waiters[loop, queue] = self._open_waiter(queue)
        return waiter

    def _open_waiter(self, queue: str) -> Waiter:
        return Waiter(ResultStore(self._url, queue or self._queue, self._answer_s))

    @property
    def _answer_s(self) -> float:
        return max(self._patience_s / 3, LEAST_ANSWER_S)

    def _loop(self) -> asyncio.AbstractEventLoop:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(f"a Producer sends from a running event loop, and there is none here; {_PLAIN}") from None

    def _prepare(self, loop: asyncio.AbstractEventLoop) -> None:
        """Check that something may be opened in this loop; forget what belongs to a fork's parent or to closed loops."""
        self.check_open()
        if self._pid != os.getpid():
            # Kept and never touched: closing them here would reach into the parent's connections and its event loop.
            self._loops_inherited |= {known for known, _ in self._opened()}
            self._inherited.append((self._senders, self._waiters))
            self._senders, self._waiters, self._pid = {}, {}, os.getpid()
        if loop in self._loops_inherited:
            raise ConfigError(f"this event loop was used before the fork, and belongs to the parent; {_FORKED}")
        for key in [key for key in list(self._senders) if key[0].is_closed()]:
            self._senders.pop(key, None)
        for known in [known for known in list(self._waiters) if known[0].is_closed()]:
            self._waiters.pop(known, None)


def _is_time(seconds: Any) -> bool:
    return isinstance(seconds, int | float) and seconds >= 0


def _told(head: Head, told: Publishing) -> Head:
    """Return the head of a message that tells of the call which sends it."""
    return Head(head.stream, head.due_ms, head.id, (*told.fields, *head.fields), head.queue) if told.fields else head


_PLAIN: Final = "hint: SyncProducer sends from plain code; a forked process runs a new loop, as by asyncio.run"
_FORKED: Final = "hint: a forked process runs a new one, as by asyncio.run"


def _end_there(loop: asyncio.AbstractEventLoop, one: Sender | Waiter) -> None:
    """End a sender or a waiter from outside of its loop, or where its end cannot be awaited."""
    with contextlib.suppress(RuntimeError):  # that loop is closed: its connections are gone, or go with it
        loop.call_soon_threadsafe(one.end)


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


def _patience(patience_s: float) -> float:
    if type(patience_s) not in (int, float) or not 0 < patience_s <= MAX_MS / 1000:
        raise ConfigError(f"patience_s must be a number of seconds above 0, got {shown(patience_s)}")
    return patience_s
