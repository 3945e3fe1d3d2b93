"""What was sent, as tests see it: messages as they stand in a queue, or as a producer has packed them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from runtime.codec import MAX_MS, decode_many, entry_fields, payload_decoder
from runtime.errors import BadMessage
from runtime.jobs import STREAMS, Job, P, Packed, Priority, contract_of
from runtime.store.sent import SentReader, Stored

NOWHERE: Final = "nowhere"  # the run id of the server that a message came from which no server has


class SentMessage(msgspec.Struct, frozen=True):
    """A job as it was sent.

    `payload` is what its JSON, `data`, says: an object of the contract's class where that is known, else plain dicts, lists,
    texts and numbers; `at` when it is due, in seconds since the epoch, 0 for now; `queue` where it went, empty for a job that was
    handed on within its queue. The others are what `send` was given.
    """

    type: str
    payload: Any
    data: bytes
    id: str
    priority: Priority
    at: float = 0.0
    exp: float = 0.0
    key: str = ""
    group: str = ""
    attempts: int = 0
    queue: str = ""


class JobsSent:
    """What was sent to a queue and is still in it: what waits, what a worker has fetched and not yet done, and what is delayed.

    Call it with a contract for the payloads of that type, in the order in which they were sent. Only what is of another priority,
    or is not to start before a time, stands apart: the highest priority comes first, and behind the lowest what is delayed.

    Args:
        url: of Redis.
        queue: the one that is looked at, unless a call names another, or the contract does.
    """

    def __init__(self, url: str, queue: str = "jobs") -> None:
        self._url = url
        self._queue = queue

    def __repr__(self) -> str:
        return f"<JobsSent to {self._queue}>"

    def __call__(self, payload: type[P], *, queue: str = "") -> list[P]:
        """Return the payloads of this contract, as a handler would get them.

        Raises:
            AssertionError: a message in the queue could never run, or one of this type does not fit the contract.
            StoreUnavailable: Redis did not answer, or the queue has over 10,000 messages.
        """
        return [message.payload for message in self.messages(payload, queue=queue)]

    def messages(self, payload: type[msgspec.Struct] | None = None, *, queue: str = "") -> list[SentMessage]:
        """Return the messages of this contract with all that was said of them, or those of all types, with plain payloads.

        Raises:
            AssertionError, StoreUnavailable: as above.
        """
        contract = contract_of(payload) if payload is not None else None
        queue = queue or (contract.queue if contract is not None else "") or self._queue
        jobs = [(one.due_ms, _job_in(one)) for one in _read(self._url, queue)]
        if contract is not None:
            jobs = [(due_ms, job) for due_ms, job in jobs if job.type == contract.type.encode()]
        decode = decoder_of(payload)
        # Not by time alone: of what was sent in one millisecond nothing says which of two streams was first. The sort is stable.
        jobs.sort(key=lambda one: one[1].born_ms if one[0] else 0)
        return [message_of(job, due_ms, decode, queue) for due_ms, job in jobs]


def _read(url: str, queue: str) -> list[Stored]:
    """Read the queue in a thread with a loop of its own: the caller may stand in a loop, and is no coroutine."""

    async def read() -> list[Stored]:
        reader = SentReader(url, queue, "sent")
        try:
            return await reader.stored()
        finally:
            await reader.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, read()).result()


def _job_in(stored: Stored) -> Job:
    jobs, bad = decode_many(stored.stream, [(stored.entry or b"0-0", stored.fields)], [1], NOWHERE, 0.0, MAX_MS)
    if bad:
        place = f"{STREAMS[stored.stream]}/{stored.entry.decode()}" if stored.entry else "a delayed one"
        raise AssertionError(f"a message was sent that can never run, {place}: {bad[0].reason}")
    return jobs[0]


def decoder_of(payload: type[msgspec.Struct] | None) -> Callable[[Job], Any]:
    """Return what reads the payload of a job: as a handler of this contract gets it, or as its JSON has it."""
    return payload_decoder(contract_of(payload)) if payload is not None else _plain


def _plain(job: Job) -> Any:
    try:
        return msgspec.msgpack.decode(job.data) if job.envelope.is_msgpack else msgspec.json.decode(job.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(str(error)) from None


def received(packed: Packed, now_s: float, at: int) -> Job:
    """Return the job that a worker would make of this message, were it fetched now, as the entry of this number."""
    now_ms = round(now_s * 1000)
    fields = entry_fields(packed.head.fields, packed.data)
    [job], _ = decode_many(packed.head.stream, [(f"{now_ms}-{at}".encode(), fields)], [1], NOWHERE, now_s, now_ms)
    return job


def message_of(job: Job, due_ms: int, decode: Callable[[Job], Any], queue: str = "") -> SentMessage:
    """Return a job as it was sent.

    Raises:
        AssertionError: its payload cannot be read.
    """
    envelope, name = job.envelope, job.type.decode(errors="backslashreplace")
    try:
        payload = decode(job)
    except BadMessage as error:
        raise AssertionError(f"a {name} was sent that no handler can read, {job.id}: {error}") from None
    return SentMessage(
        type=name,
        payload=payload,
        data=job.data,
        id=job.id,
        priority=job.priority,
        at=(due_ms or envelope.at_ms) / 1000,
        exp=envelope.exp_ms / 1000,
        key=envelope.key.decode(errors="backslashreplace"),
        group=envelope.group.decode(),
        attempts=envelope.attempts,
        queue=queue,
    )
