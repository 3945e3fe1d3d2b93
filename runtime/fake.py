"""FakeProducer takes what an application sends, for tests without Redis: checked as by the real one, kept, and never run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from runtime.codec import KEEP, TYPE
from runtime.errors import BadMessage, BadPayload, JobDead
from runtime.jobs import Job, Options, Packed, contract_of
from runtime.packing import Packer
from runtime.producer import Producer
from runtime.results import DEAD, DONE, Result
from runtime.sender import Flow, Sender, Sent
from runtime.sent import SentMessage, decoder_of, message_of, received
from runtime.store.sends import Durability
from runtime.sync_producer import SyncProducer
from runtime.waiter import Waiter

URL: Final = "redis://nowhere"  # which nothing is opened to


class FakeProducer(Producer):
    """A Producer that keeps what it is given, in a list, and needs no Redis.

    A message is packed and checked as the real one does it, and read back by its contract, so that a field of another type is
    BadPayload here, where it would be a dead letter there. While a message with a key is kept, others with it are dropped, or
    replace what it holds where both wait for a time: it stands for a job that lives.

    `error` is raised by each send, where a test sets it, such as `StoreUnavailable("away")`: what a service does then.

    Args:
        queue: name of the queue.
        source: as of the real one.
        clock: returns the time in seconds since the epoch.
    """

    def __init__(self, *, queue: str = "jobs", source: str = "", clock: Callable[[], float] = time.time) -> None:
        super().__init__(URL, queue=queue, source=source)
        self._packer = self._checking = _CheckingPacker(clock, source)
        self._clock = clock
        self.error: Exception | None = None
        self.clear()

    def __repr__(self) -> str:
        return f"<FakeProducer of {len(self.messages)} messages>"

    @property
    def sent(self) -> list[Any]:
        """The payloads that were sent, in order."""
        return [message.payload for message in self.messages]

    def clear(self) -> None:
        """Forget what was sent, as if all of it were done: its keys are free. Answers are forgotten, too."""
        self.messages: list[SentMessage] = []
        self._at: dict[tuple[str, str], int] = {}  # by queue and key: where its message stands
        self._answers: dict[str, Result] = {}
        self._answers_of: dict[str, Result] = {}

    def answer(self, job: Sent | str | type[msgspec.Struct], value: object) -> None:
        """Have `result` return this value for a job, for the job of this id, or for each of a contract that has no other.

        A `JobDead` is raised. Without an answer, `result` raises ResultTimeout at once.
        """
        if isinstance(value, JobDead):
            found = Result(DEAD, reason=value.reason, error=value.error, attempts=value.attempts)
        else:
            found = Result(DONE, value=msgspec.Raw(msgspec.json.encode(value)))
        if isinstance(job, type):
            self._answers_of[contract_of(job).type] = found
        else:
            self._answers[job.id if isinstance(job, Sent) else job] = found

    def _open_sender(self, durability: Durability, queue: str) -> Sender:
        return _FakeSender(self._keep)

    def _open_waiter(self, queue: str) -> Waiter:
        return _FakeWaiter(self._answer_to)

    def _keep(self, packed: Packed) -> Sent:
        if self.error is not None:
            raise self.error
        job = received(packed, self._clock(), len(self.messages))
        queue = packed.head.queue or self._queue
        message = message_of(job, packed.head.due_ms, self._checking.decoders[job.type.decode()], queue)
        owner = (queue, message.key)
        at = self._at.get(owner) if message.key else None
        live = None if at is None else self.messages[at]
        if at is None or live is None or (_puts_off(packed, live) and not live.at):  # behind one that does not wait, it waits
            self._at[owner] = len(self.messages)
            self.messages.append(message)
            return Sent(message.id, queue=packed.head.queue)
        if _puts_off(packed, live):
            self.messages[at] = msgspec.structs.replace(message, id=live.id)
        return Sent(live.id, new=False, queue=packed.head.queue)

    def _answer_to(self, job_id: str) -> Result | str:
        kinds = [message.type for message in self.messages if message.id == job_id]
        found = self._answers.get(job_id) or next((self._answers_of[kind] for kind in kinds if kind in self._answers_of), None)
        return found or "a FakeProducer has been told none; hint: producer.answer(sent, value)"


class FakeSyncProducer(SyncProducer):
    """A SyncProducer around a FakeProducer, `fake`: `producer.fake.sent` is what was sent.

    Args:
        queue, source, clock: as of FakeProducer.
    """

    def __init__(self, *, queue: str = "jobs", source: str = "", clock: Callable[[], float] = time.time) -> None:
        super().__init__(URL, queue=queue, source=source)
        self.fake: FakeProducer = FakeProducer(queue=queue, source=source, clock=clock)
        self._producer = self.fake

    def __repr__(self) -> str:
        return f"<FakeSyncProducer of {len(self.fake.messages)} messages>"


class _CheckingPacker(Packer):
    """A Packer that reads each payload back by its contract. Owns what reads those of each type."""

    def __init__(self, clock: Callable[[], float], source: str) -> None:
        super().__init__(clock, source)
        self.decoders: dict[str, Callable[[Job], Any]] = {}

    def pack(self, payload: msgspec.Struct) -> Packed:
        """Return a payload as it is sent; BadPayload where no handler could read it."""
        return self._checked(payload, super().pack(payload))

    def pack_with(self, payload: msgspec.Struct, options: Options) -> Packed:
        """The same, with its options."""
        return self._checked(payload, super().pack_with(payload, options))

    def _checked(self, payload: msgspec.Struct, packed: Packed) -> Packed:
        name = contract_of(type(payload)).type
        if name not in self.decoders:
            self.decoders[name] = decoder_of(type(payload))
        try:
            self.decoders[name](received(packed, 0.0, 0))
        except BadMessage as error:
            raise BadPayload(f"{name}: no handler could read this payload: {error}") from None
        return packed


class _FakeSender(Sender):
    """Owns nothing, and opens nothing."""

    def __init__(self, keep: Callable[[Packed], Sent]) -> None:
        self.keep = keep
        self.is_over = False

    def __len__(self) -> int:
        return 0

    def end(self) -> None:
        """End at once."""
        self.is_over = True

    async def close(self) -> None:
        """End at once."""
        self.end()

    async def send(self, packed: Sequence[Packed], flow: Flow | None = None) -> list[Sent]:
        """Keep the messages."""
        await asyncio.sleep(0)  # as one that suspends its caller
        return [self.keep(one) for one in packed]


class _FakeWaiter(Waiter):
    """Owns nothing, and waits for nothing."""

    def __init__(self, answer_to: Callable[[str], Result | str]) -> None:
        self.answer_to = answer_to
        self.is_over = False

    def __len__(self) -> int:
        return 0

    def end(self) -> None:
        """End at once."""
        self.is_over = True

    async def close(self) -> None:
        """End at once."""
        self.end()

    async def result(self, job_id: str, timeout_s: float) -> Result | str:
        """Return the answer that a test has set."""
        await asyncio.sleep(0)
        return self.answer_to(job_id)


def _puts_off(packed: Packed, live: SentMessage) -> bool:
    """Return whether a message is to run in the place of one with its key: as the server's script has it."""
    fields = dict(zip(packed.head.fields[::2], packed.head.fields[1::2], strict=True))
    return packed.head.due_ms > 0 and fields.get(KEEP) != "first" and fields[TYPE] == live.type
