"""Sending one mail after another to many recipients, and remembering of each what became of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from typing import Final

from handlers.kit.failures import TemporaryFailure
from handlers.kit.letters import Letter
from handlers.kit.mail import MaybeSent, Pool, check_receipt
from handlers.kit.points import point
from handlers.kit.rates import Pace, give_back, reserve
from handlers.kit.recipients import Batch, Row
from handlers.kit.sections import Sender
from runtime import Dead, Job, Snooze, StoreUnavailable

SHARE_S: Final = 0.01  # a guess: how long a write waits for others to join it, so there are at most 100 a second
PATIENCE_S: Final = 600.0  # a guess: for a connection, beside other jobs of the same server; far below the job's hour
LOST_IN_A_ROW: Final = 5  # a guess: one lost connection is an accident, five are a server that is down
DEFERRED_IN_A_ROW: Final = 5  # a guess, the same: then there is a pause, and after each five more one twice as long
FIRST_PAUSE_S: Final = 0.05  # a guess: a greylisting server still sees all of 10,000 recipients within minutes
MAX_PAUSE_S: Final = 1.0  # a guess: 8 connections send to 10,000 recipients within 21 minutes
RUN_S: Final = 2700.0  # a guess: with `PATIENCE_S` below the job's hour, so that a slow campaign spends no attempts
LEAVING_S: Final = 2.0  # a guess: for one write to Redis, while the worker waits to stop
GO_ON_S: Final = 1.0  # a guess: soon, and time for others of the list
DIGEST_BYTES: Final = 32  # SHA-256


class State(IntEnum):
    """What is known of a recipient, in two bits."""

    NONE = 0
    SENDING = 1
    ACCEPTED = 2
    REFUSED = 3


class States:
    """Owns the state of each recipient of a slice, and its copy in the job's marks: the digest of the input, two bits for each.

    Who saves waits until the marks hold what was set before; those who save at the same time share one write.
    """

    def __init__(self, job: Job, batch: Batch) -> None:
        self._job = job
        self._digest = batch.digest
        self._bits = bytearray(-(-batch.count // 4))
        self._writing = asyncio.Lock()
        self._asked = 0
        self._saved = 0

    async def load(self) -> None:
        """Read what earlier attempts have left.

        Raises:
            Dead: they were about another input; `input-changed`.
            StoreUnavailable: Redis does not answer.
        """
        marks = await self._job.marks.get()
        if not marks:
            return
        if marks[:DIGEST_BYTES] != self._digest:
            raise Dead("the recipients were changed since the job began", "input-changed")
        self._bits[:] = marks[DIGEST_BYTES:]

    def __getitem__(self, at: int) -> State:
        return State(self._bits[at // 4] >> at % 4 * 2 & 3)

    def __setitem__(self, at: int, state: State) -> None:
        shift = at % 4 * 2
        self._bits[at // 4] = self._bits[at // 4] & ~(3 << shift) | state << shift

    async def save(self) -> None:
        """Return when the marks hold all that is set now.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        self._asked += 1
        wanted = self._asked
        async with self._writing:
            if self._saved >= wanted:
                return
            await asyncio.sleep(SHARE_S)
            written = self._asked
            await self._job.marks.set(self._digest + self._bits)
            self._saved = written


class Delivery:
    """Sends the mails of a slice, as many at once as the server has connections for us.

    A recipient is `SENDING` in the marks before its mail begins, and what came of it is there before the next mail over the same
    connection begins: after a crash at most one recipient of each connection is unknown, after a cancel one to whom the
    content was being sent.
    """

    def __init__(
        self,
        job: Job,
        batch: Batch,
        pool: Pool,
        sender: tuple[str, Sender],
        letter: Callable[[Row], Letter],
        *,
        per_second: float | None,
        resend: bool,
    ) -> None:
        self.states = States(job, batch)
        self._job = job
        self._pool = pool
        self._alias, self._sender = sender
        self._letter = letter
        self._pace = Pace(per_second)
        self._unsure = State.NONE if resend else State.SENDING
        self._open = (State.NONE, State.SENDING) if resend else (State.NONE,)
        self._batch = batch
        self._begun = set[int]()
        self._fault: Exception | None = None
        self._end_s = time.monotonic() + RUN_S
        self._lost = 0
        self._deferred = 0
        self._pause_s = 0.0
        self._done = 0

    async def run(self) -> None:
        """Return when there is a last word on every recipient, but for those that stay unknown.

        Raises:
            Dead: the recipients are not those of an earlier attempt; `input-changed`.
            Snooze: the server refuses us, or the settings must be fixed, or more is sent than is allowed, or `RUN_S` is over.
            StoreUnavailable: Redis does not answer; nothing more was sent.
            TemporaryFailure: some are put off, or the server was lost again and again.
        """
        await self.states.load()
        states = self.states
        todo = [row for row in self._batch.rows if states[row.at] in self._open]
        self._done = len(self._batch.rows) - len(todo)
        rows = iter(todo)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._pool.smtp.connections):
                    group.create_task(self._send_all(rows))
        except asyncio.CancelledError:
            await self._leave(todo)
            raise
        if not isinstance(self._fault, StoreUnavailable):
            await states.save()
            point("saved")
        if self._fault is not None:
            raise self._fault
        left = sum(states[row.at] is State.NONE for row in todo)
        if left:
            raise TemporaryFailure(f"smtp-4xx: put off for {left} of {len(todo)}")

    async def _leave(self, todo: list[Row]) -> None:
        """Write what is known when the run is cancelled: only mails whose content was begun stay unknown."""
        for row in todo:
            if self.states[row.at] is State.SENDING and row.at not in self._begun:
                self.states[row.at] = State.NONE
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(LEAVING_S):
                await self.states.save()

    async def _send_all(self, rows: Iterator[Row]) -> None:
        """Send one mail after another, until there are none, or there is a fault, which ends the others after their mail."""
        for row in rows:
            if time.monotonic() > self._end_s:
                self._fault = self._fault or Snooze(GO_ON_S, "rate-limited: this run has taken its time; the next one goes on")
            if self._fault is not None:
                return
            try:
                self.states[row.at] = await self._send(row)
            except (Snooze, StoreUnavailable, TemporaryFailure) as error:
                self.states[row.at] = State.NONE
                self._fault = self._fault or error
                return
            self._done += 1
            self._job.progress(self._done, len(self._batch.rows), "recipients")
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    async def _send(self, row: Row) -> State:
        """Return what became of one mail.

        Raises:
            Snooze, StoreUnavailable: this mail was not sent, and no other can be.
            TemporaryFailure: the server was lost again and again.
        """
        try:
            letter = self._letter(row)
            if not self._sender.may_write_to(letter.recipients[0]):
                return State.REFUSED
        except Dead:
            return State.REFUSED
        reserve(self._alias, self._sender, 1, time.monotonic())
        state = State.NONE
        try:
            await self._pace.turn(PATIENCE_S, "per_second")
            self.states[row.at] = State.SENDING
            await self.states.save()
            point("sending")
            state = await self._converse(letter, row)
            point("sent")
            return state
        finally:
            if state is not State.ACCEPTED:
                give_back(self._alias, 1)

    async def _converse(self, letter: Letter, row: Row) -> State:
        try:
            receipt = await self._pool.send(letter, PATIENCE_S, begins=partial(self._begun.add, row.at))
        except TemporaryFailure as error:
            self._lost += 1
            if self._lost >= LOST_IN_A_ROW:
                self._fault = self._fault or error
            return self._unsure if isinstance(error, MaybeSent) else State.NONE
        self._lost = 0
        try:
            check_receipt(receipt, self._pool.alias)
        except Dead:
            return self._settled(State.REFUSED)
        except TemporaryFailure:
            self._slow_down()
            return State.NONE
        return self._settled(State.ACCEPTED if all(reply.is_ok for reply in receipt.recipients.values()) else State.REFUSED)

    def _settled(self, state: State) -> State:
        self._deferred, self._pause_s = 0, 0.0
        return state

    def _slow_down(self) -> None:
        self._deferred += 1
        if self._deferred % DEFERRED_IN_A_ROW == 0:
            self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), MAX_PAUSE_S)


def unsubscribe_token(key: str, list_id: str, address: str) -> str:
    """Return what stands for a recipient of a list in a link: who knows the key can make it, and nobody learns the address."""
    digest = hmac.new(key.encode(), f"{list_id}\n{address}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
