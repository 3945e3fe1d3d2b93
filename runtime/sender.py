"""Sender stores what the tasks of one event loop send: a chunk per round trip, repeated until it is answered, stored once.

A chunk carries a mark, which the server keeps with its answer: a chunk that is sent again after a lost reply is answered as it
was the first time, and stored no second time.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from itertools import groupby
from random import random
from typing import Any, Final, cast

import msgspec

from runtime.backoff import Backoff, delay_s
from runtime.errors import ConfigError, JobsError, NotDurable, PartlySent, QueueFull, StoreError, StoreUnavailable
from runtime.jobs import STREAMS, Packed, default_id
from runtime.store.resp import Tail, packed_value, packed_words
from runtime.store.sends import SendStore
from runtime.store.urls import without_password

# One chunk is one script call, during which the server does nothing else: 500 plain messages take it about a millisecond.
CHUNK_MESSAGES: Final = 500
CHUNK_BYTES: Final = 1024 * 1024  # a guess: a few milliseconds of the server
RESEND: Final = Backoff(base_s=0.05, cap_s=1.0)  # a guess: often enough that a short patience meets a Redis that came back
LEAST_WAIT_S: Final = 0.1  # a guess: for a confirmation, however long Redis was away before
CONFIRMED_S: Final = 0.5  # a guess, for the answer of a server that has waited for its disk or replicas to the end
MARK_MARGIN_S: Final = 60.0  # a guess: a chunk's mark outlives the last repeat by this much, for clocks and stalled hosts
MAYBE: Final = "may have been stored, once"
STOOD_STILL_S: Final = 0.25  # a guess: a timer that late means that the loop was blocked, and answers of Redis lie unread


class Sent(msgspec.Struct, frozen=True, gc=False):
    """What became of a message that was sent.

    `id` is the job's id. `new` is False where another job with its key lives, and then `id` is that one's: the message was
    dropped, or has replaced what that job will do. `queue` is the one that its contract names; empty for the producer's.
    """

    id: str
    new: bool = True
    queue: str = ""


class SentCount:
    """Counts what became of all messages that this process has sent, in whichever threads and loops; for metrics."""

    def __init__(self) -> None:
        self.renew()
        self._counts = {"stored": 0, "duplicate": 0, "refused": 0}

    def renew(self) -> None:
        """Begin with a lock of its own in a forked process: a thread of the parent may have had it then."""
        self._lock = threading.Lock()

    def note(self, messages: int, duplicates: int, refused: int) -> None:
        """Count one chunk that was answered."""
        with self._lock:
            for name, n in (("stored", messages - duplicates - refused), ("duplicate", duplicates), ("refused", refused)):
                self._counts[name] += n

    def read(self) -> dict[str, int]:
        """Return the counts."""
        with self._lock:
            return dict(self._counts)


SENT: Final = SentCount()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SENT.renew)


class Flow:
    """The chunks of one `send_many`, in order: where one of them fails, those behind it are not sent.

    Owns the tasks that wait for a chunk each, and `sent`: what became of the messages so far. The sender sets `error` as soon as
    a chunk has failed; `has_failed` says that the caller of `send_many` has been told.
    """

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self.sent: list[Sent] = []
        self.error: Exception | None = None
        self.has_failed: bool = False
        self._progress = progress
        self._under_way: deque[asyncio.Task[list[Sent]]] = deque()

    def __repr__(self) -> str:
        return f"<Flow {len(self.sent)} messages sent, {len(self._under_way)} chunks under way>"

    def send(self, chunk: Sequence[Packed], sender: Sender) -> None:
        """Hand over a chunk. One for another sender may be handed over when all before it have arrived."""
        self._under_way.append(asyncio.create_task(sender.send(chunk, self)))

    async def arrived(self, left: int = 0) -> None:
        """Wait until at most `left` chunks are under way.

        Raises:
            JobsError: one of them has failed; of a PartlySent, `sent` begins with the chunks before.
        """
        while len(self._under_way) > left:
            try:
                self.sent.extend(await self._under_way[0])
            except JobsError as error:
                self.has_failed = True
                if isinstance(error, PartlySent):
                    error.sent[:0] = self.sent
                raise
            self._under_way.popleft()
            if self._progress is not None:
                self._progress(len(self.sent))

    async def close(self) -> None:
        """Send nothing more: what is not written to the connection yet is taken back."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)


class _Waiting(msgspec.Struct, eq=False):
    """Messages of one caller, who waits until `end_s`."""

    packed: Sequence[Packed]
    done: asyncio.Future[list[Sent]]
    flow: Flow | None
    end_s: float


class _Chunk(msgspec.Struct, eq=False):
    """What is sent in one call, and repeated as it is, under its mark, until there is an answer.

    `is_doubtful`: it may have been stored. `stored` has an answer for each message, once Redis has answered.
    """

    mark: str
    taken: list[_Waiting]
    messages: list[Packed]
    tail: Tail | None = None
    is_doubtful: bool = False
    stored: list[Sent | JobsError] | None = None

    def is_awaited(self) -> bool:
        """Return whether any caller still waits for it."""
        return any(not waiting.done.done() for waiting in self.taken)


class Sender:
    """Owns the sends of one queue and durability in one loop: those that wait, the chunk being sent, its store, and its task.

    A caller is in `_waiting` or in the current chunk until it is told. Callers give up in the order in which they came, so one
    timer serves them all. `queue` is what `Sent` says of it.
    """

    def __init__(self, store: SendStore, patience_s: float, queue: str = "") -> None:
        self._store = store
        self._queue = queue
        self._patience_s = patience_s
        self._unsent = f": not sent within {patience_s:g} s"
        self._mark_ms = round((patience_s + MARK_MARGIN_S) * 1000)
        self._waiting: deque[_Waiting] = deque()
        self._current: _Chunk | None = None
        self._trouble: StoreUnavailable | None = None  # why nothing is stored, as far as is known
        self._timer: asyncio.TimerHandle | None = None
        self._awake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.is_over: bool = False
        # Not in the context of the task that happens to send first: it would be kept as long as this one.
        name = f"producer {store.durability}"
        self._task = self._loop.create_task(self._run(), name=name, context=Context())
        self._task.add_done_callback(self._ended)
        # It ends with its loop; asyncio would warn of it where a loop is closed by hand.
        self._task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        return len(self._waiting)

    def end(self) -> None:
        """End soon; each send that still waits raises. May be repeated."""
        self.is_over = True
        self._task.cancel()

    async def close(self) -> None:
        """End, and wait until the connection is closed."""
        self.end()
        await asyncio.wait([self._task])

    async def send(self, packed: Sequence[Packed], flow: Flow | None = None) -> list[Sent]:
        """Store these with the next chunk, and return what became of them. Those of one flow are stored in order, or not at all.

        Raises:
            ConfigError: the sender has ended; nothing was sent.
            NotDurable: they are stored, but were not confirmed in time.
            PartlySent: Redis refused some of several.
            StoreUnavailable: no answer in time, or an error; the text says whether they may have been stored.
        """
        if self.is_over:
            raise ConfigError("this Producer is closed, nothing was sent")
        if flow is not None and flow.error is not None:
            raise flow.error  # the chunk before has failed while this one was packed
        end_s = self._loop.time() + self._patience_s
        waiting = _Waiting(packed, self._loop.create_future(), flow, end_s)
        self._waiting.append(waiting)
        self._awake.set()
        if self._timer is None:
            self._timer = self._loop.call_at(end_s, self._expire, end_s)
        return await waiting.done

    # --- the task that sends -----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                await self._awake.wait()
                await asyncio.sleep(0)  # what is sent in this turn of the loop goes into the same chunk
                await self._send_all()
                self._awake.clear()
        except asyncio.CancelledError:
            await self._store.close()
            raise

    async def _send_all(self) -> None:
        """Send what waits, chunk by chunk, until all is stored or given up."""
        failures = 0
        while self._is_awaited():
            try:
                # First a connection, then a chunk: what is given up before there is a connection was never sent.
                await self._store.ready()
                if self._is_awaited():  # still: it may have taken seconds
                    await self._send_one_chunk()
                failures, self._trouble = 0, None
                continue
            except QueueFull as error:
                self._trouble = error
                self._refuse(error)
            except StoreUnavailable as error:
                self._trouble = error
            except Exception as error:  # this server can never confirm, or a bug of the runtime: the next ones are tried
                self._refuse(error)
                continue
            failures += 1
            await asyncio.sleep(min(delay_s(failures, RESEND, random), self._patience_s / 3))

    def _is_awaited(self) -> bool:
        """Return whether there is anything to do; a chunk that all have given up is none."""
        if self._current is not None and not self._current.is_awaited():
            self._current = None
        return self._current is not None or bool(self._waiting)

    async def _send_one_chunk(self) -> None:
        """Send the chunk that had no answer, or the next one, and tell its callers. To be called with an open connection.

        Nothing is awaited between the choice of the chunk and the write: what is cancelled before that is not sent.
        """
        chunk = self._current
        if chunk is not None and not chunk.is_doubtful and any(waiting.done.done() for waiting in chunk.taken):
            self._waiting.extendleft(reversed(chunk.taken))  # nothing of it was written: what was given up is left out
            self._current = chunk = None
        chunk = chunk or self._next_chunk()
        if chunk is None:
            return
        if chunk.tail is None:
            chunk.tail = _chunk(chunk.messages)
        was_doubtful, chunk.is_doubtful = chunk.is_doubtful, True  # from now on only its mark tells a repeat from a second one
        try:
            reply = await self._store.store(chunk.mark, self._mark_ms, chunk.tail)
        except StoreError:
            chunk.is_doubtful = was_doubtful  # nothing was written by this try
            raise
        chunk.stored = _sent(chunk.messages, reply, self._queue)
        *_, duplicates, refusals = reply
        SENT.note(len(chunk.messages), len(duplicates) // 2, len(refusals) // 2)
        end_s = max(waiting.end_s for waiting in chunk.taken)
        doubt = await self._store.confirm(max(end_s - self._loop.time(), LEAST_WAIT_S))
        self._answer(chunk, chunk.stored, doubt)
        self._current = None

    def _next_chunk(self) -> _Chunk | None:
        """Make a chunk of what comes next; what was given up is passed over, and of one flow a chunk takes one part.

        Whatever fails from here on, each caller stays in one of the two lists, so that it can be told.
        """
        chunk = self._current = _Chunk(secrets.token_hex(8), [], [])
        taken, messages = chunk.taken, chunk.messages
        flows: list[Flow] = []
        size_bytes = 0
        while self._waiting:
            waiting = self._waiting[0]
            if waiting.done.done():
                self._waiting.popleft()
                continue
            size_bytes += _size(waiting.packed)
            is_full = len(messages) + len(waiting.packed) > CHUNK_MESSAGES or size_bytes > CHUNK_BYTES
            if taken and (is_full or any(waiting.flow is flow for flow in flows)):
                break
            taken.append(self._waiting.popleft())
            messages += waiting.packed
            if waiting.flow is not None:
                flows.append(waiting.flow)
        if not taken:
            self._current = None
        return self._current

    def _refuse(self, error: Exception) -> None:
        """Raise an error that no repeat will fix to the callers of the current chunk; where there is none, to all that wait."""
        chunk, self._current = self._current, None
        refused = chunk.taken if chunk is not None else []
        if not refused:
            refused = list(self._waiting)
            self._waiting.clear()
        if chunk is not None and chunk.is_doubtful:
            error = StoreUnavailable(f"{error}; an earlier try had no answer: it {MAYBE}")
        for waiting in refused:
            self._fail(waiting, error)

    # --- what callers are told ---------------------------------------------------------------------------------------

    def _answer(self, chunk: _Chunk, stored: Sequence[Sent | JobsError], doubt: str, until_s: float = math.inf) -> None:
        """Answer the callers whose patience ends until then with what became of their messages."""
        start = 0
        for waiting in chunk.taken:
            own = stored[start : start + len(waiting.packed)]
            start += len(waiting.packed)
            if waiting.done.done() or waiting.end_s > until_s:
                continue
            error = _error_of(own, doubt)
            if error is None:
                waiting.done.set_result(cast("list[Sent]", own))
            else:
                self._fail(waiting, error)

    def _give_up(self, chunk: _Chunk, until_s: float) -> None:
        """Tell the callers whose patience ends until then that no answer came."""
        if chunk.stored is not None:
            self._answer(chunk, chunk.stored, f"stored, but not confirmed within {self._patience_s:g} s", until_s)
            return
        why = self._trouble or f"Redis at {without_password(self._store.url)} has not answered"
        over = f", and {self._patience_s:g} s are over: it {MAYBE}"
        for waiting in chunk.taken:
            if waiting.end_s <= until_s:
                self._fail(waiting, StoreUnavailable(f"{why}{over if chunk.is_doubtful else self._unsent}"))

    def _fail(self, waiting: _Waiting, error: Exception) -> None:
        """Raise to a caller, and to those that wait with what comes next of the same flow."""
        failed = [waiting]
        if waiting.flow is not None:
            waiting.flow.error = error
            failed += [behind for behind in self._waiting if behind.flow is waiting.flow]
        for one in failed:
            if not one.done.done():
                # One for each: an exception that many tasks raise keeps the frames of them all.
                one.done.set_exception(type(error)(*error.args) if type(error) in _ONE_TEXT else error)

    def _expire(self, due_s: float, has_waited: bool = False) -> None:
        """Raise to all callers whose patience is over, and set the timer for the next one."""
        chunk = self._current
        if not has_waited and self._loop.time() - due_s > STOOD_STILL_S:
            # The loop was blocked, not Redis: the sender's task reads first what was answered meanwhile, and sends what waits.
            self._timer = self._loop.call_later(self._patience_s / 3, self._expire, due_s, True)
            return
        now_s = self._loop.time()
        next_s = math.inf
        if chunk is not None:
            grace_s = 0.0 if chunk.stored is None else CONFIRMED_S
            self._give_up(chunk, now_s - grace_s)
            ends_s = [waiting.end_s + grace_s for waiting in chunk.taken]
            next_s = min((end_s for end_s in ends_s if end_s > now_s), default=math.inf)
        while self._waiting and (self._waiting[0].end_s <= now_s or self._waiting[0].done.done()):
            why = self._trouble or "its turn has not come"
            self._fail(self._waiting.popleft(), StoreUnavailable(f"{why}{self._unsent}"))
        if self._waiting:
            next_s = min(next_s, self._waiting[0].end_s)
        self._timer = self._loop.call_at(next_s, self._expire, next_s) if next_s < math.inf else None

    def _ended(self, _: asyncio.Task[None]) -> None:
        """Raise to all callers: the task is gone, by `end`, with its loop, or since all tasks were cancelled."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        closed, chunk = "this Producer was closed, or its task cancelled,", self._current
        if chunk is not None and chunk.stored is not None:
            self._answer(chunk, chunk.stored, f"stored, but not confirmed before {closed}")
        elif chunk is not None and chunk.is_doubtful:
            for waiting in chunk.taken:
                self._fail(waiting, StoreUnavailable(f"{closed} before Redis had answered: it {MAYBE}"))
        elif chunk is not None:
            self._waiting.extendleft(reversed(chunk.taken))
        while self._waiting:
            self._fail(self._waiting.popleft(), ConfigError(f"{closed} before this was sent"))


def _chunk(messages: Sequence[Packed]) -> Tail:
    """Return the arguments of send.lua; a head stands there once for the messages behind it that share it."""
    size, parts = 0, list[bytes]()
    for _, alike in groupby(messages, lambda message: id(message.head)):
        run = list(alike)
        head = run[0].head
        words = (head.stream + 1, head.due_ms or "", len(head.fields), len(run), *head.fields)
        size += len(words) + len(run)
        parts.append(packed_words(words))
        parts += [packed_value(message.data) for message in run]
    return Tail(size, b"".join(parts))


# Errors that go to many callers, and have nothing but their text.
_ONE_TEXT: Final = (StoreUnavailable, StoreError, QueueFull, ConfigError)


def _error_of(own: Sequence[Sent | JobsError], doubt: str) -> Exception | None:
    """Return the error of a caller whose messages these were, or None where all are stored as durably as asked."""
    refused = [one for one in own if isinstance(one, JobsError)]
    if not refused:
        return NotDurable(doubt, own) if doubt else None
    if len(own) == 1:
        return refused[0]
    kept = [one if isinstance(one, Sent) else None for one in own]
    but = f"; {doubt}" if doubt else ""
    return PartlySent(f"{len(refused)} messages were refused, the others up to there are stored{but}: {refused[0]}", kept)


def _sent(messages: Sequence[Packed], reply: Sequence[Any], queue: str = "") -> list[Sent | JobsError]:
    """Return what became of each message; ids that are not given are numbered on from the first entry of their stream."""
    stamps: list[str] = []
    numbers: list[int] = []
    *first_ids, copies, refusals = reply
    for stream, first in enumerate(first_ids):
        stamp, _, number = bytes(first).decode().partition("-")
        stamps.append(default_id(STREAMS[stream], f"{stamp}-"))
        numbers.append(int(number or -1))
    owners, refused = (dict(zip(some[::2], some[1::2], strict=True)) for some in (copies, refusals))
    sent: list[Sent | JobsError] = []
    for position, message in enumerate(messages):
        head = message.head
        if position in owners:
            sent.append(Sent(bytes(owners[position]).decode(errors="replace"), False, queue))
        elif position in refused:
            text = bytes(refused[position]).decode(errors="replace")
            sent.append(QueueFull(f"Redis is full: {text}") if "OOM" in text else StoreError(f"Redis refused it: {text}"))
        elif head.due_ms:
            sent.append(Sent(head.id, True, queue))
        else:
            number = numbers[head.stream]
            if number < 0:
                raise StoreUnavailable("Redis answered no entry id for what it stored")
            numbers[head.stream] = number + 1
            sent.append(Sent(head.id or f"{stamps[head.stream]}{number}", True, queue))
    return sent


def _size(packed: Sequence[Packed]) -> int:
    return sum([len(message.data) for message in packed])
