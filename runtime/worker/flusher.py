"""The flusher writes the ledger to Redis, a batch per round trip."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from random import random
from typing import Final

from runtime.backoff import delay_s
from runtime.errors import StoreError, StoreUnavailable
from runtime.hooks import Death, death_of
from runtime.jobs import FREE, Batch, Deferral, Job, Kept, Lease, Letter, Parking
from runtime.store.shapes import Settled
from runtime.worker.context import STORE_BACKOFF, WorkerContext
from runtime.worker.hooks import Hooks
from runtime.worker.ledger import empty_batch
from runtime.worker.log import TOLD_AGAIN
from runtime.worker.plan import Budget

FLUSH_AGE_S: Final = 0.0015  # a guess: a few round trips on loopback, and under the time that latency is promised in
PART_S: Final = 1.0  # a guess: what a part of a flush takes, as far as the connection's speed is known; what ends meanwhile waits
PART_BYTES: Final = 4 << 20  # a guess: milliseconds of the server
MOVE_BYTES: Final = 200  # a guess: of a move, beside the message and the texts in it


class Flusher:
    """Owns the moves that the server answered with an error, which wait apart, and the moment of the next flush.

    `on_permits` is awaited after each write that may have left a permit free, before anything else is written.
    """

    def __init__(
        self,
        ctx: WorkerContext,
        on_written: Callable[[], None],
        on_delayed: Callable[[float], None],
        on_permits: Callable[[], Awaitable[None]],
    ) -> None:
        self._ctx = ctx
        self._on_written = on_written
        self._on_delayed = on_delayed
        self._on_permits = on_permits
        self._to_flush = asyncio.Event()
        self._flush_now = asyncio.Event()
        self._apart = empty_batch()
        self._apart_failures = 0
        self._unpaused = self._unkept = 0
        self._apart_until_s = 0.0
        self._budget = Budget(PART_S, PART_BYTES)
        self.released: int = 0

    def __repr__(self) -> str:
        return f"<Flusher {self._ctx.ledger!r}, {len(self._apart)} moves apart>"

    def wake(self) -> None:
        """Note that something is in the ledger."""
        self._to_flush.set()

    def lanes_idle(self) -> None:
        """Note that a lane has nothing to do; when all are idle, what is in the ledger waits for no more."""
        if self._are_all_idle():
            self._flush_now.set()

    def _are_all_idle(self) -> bool:
        inbox = self._ctx.inbox
        return inbox.idle + inbox.idle_reserved >= self._ctx.config.concurrency

    async def run(self) -> None:
        """Write the ledger whenever something is in it, until cancelled."""
        failures = 0
        while True:
            await self._to_flush.wait()
            await self._gather()
            self._to_flush.clear()
            try:
                await self.flush()
                failures = 0
            except StoreUnavailable as error:
                failures += 1
                self._ctx.stats.store_errors += 1
                self._ctx.log.store_unavailable(error, failures)
                await asyncio.sleep(delay_s(failures, STORE_BACKOFF, random))

    async def _gather(self) -> None:
        """Wait until a flush is worth its round trip: all lanes idle, or the oldest outcome is old enough."""
        self._flush_now.clear()
        if not len(self._ctx.inbox) and self._are_all_idle():
            return
        try:
            async with asyncio.timeout(FLUSH_AGE_S):
                await self._flush_now.wait()
        except TimeoutError:
            return

    async def flush(self) -> None:
        """Write all that is in the ledger, in parts that the connection carries.

        Without an answer a part and the rest go back, and may be written again: the second time nothing moves. A move that the
        server answers with an error waits apart, and the others go on.

        Raises:
            StoreUnavailable: no answer to a part.
        """
        batch = self._ctx.ledger.take()
        if not len(batch):
            return
        parts = deque(parts_of(batch, self._budget.bytes))
        try:
            while parts:
                await self._write(*parts[0])
                parts.popleft()
        except StoreUnavailable as error:
            if not isinstance(error, StoreError):
                self._budget.failed()
            raise
        finally:
            for _, part in parts:
                self._ctx.ledger.put_back(part)

    async def _write(self, size: int, batch: Batch) -> None:
        parked_s = [move.lease.taken_s for move in batch.park]
        began_s = time.monotonic()
        settled = await self._ctx.streams.settle(batch)
        took_s = time.monotonic() - began_s
        self._budget.passed(size, took_s)
        self._ctx.stats.flushes.note(took_s, len(batch))
        self._keep_apart(settled)
        self._tell_unpaused(settled.unpaused)
        self._tell_unkept(*settled.unkept)
        kept = {id(lease) for lease in leases_of(settled.left)}
        # The flusher gave this back; the fetcher took it again before that answer was read: the lease is new, and not started.
        again = [move.lease for move, taken_s in zip(batch.park, parked_s, strict=True) if move.lease.taken_s != taken_s]
        self._ctx.ledger.release(again)
        kept |= {id(lease) for lease in again}
        settled_here = [lease for lease in leases_of(batch) if id(lease) not in kept] if kept else leases_of(batch)
        self._ctx.held.remove(settled_here)
        self._ctx.stats.refused += settled.refused
        self._ctx.stats.shortfall += settled.shortfall
        self.released += sum(1 for move in batch.park if move.lot == FREE)
        self._ctx.parked.put([(move.lease.stream, move.lot) for move in batch.park])
        for move in batch.defer:
            if move.kind != "at":
                self._on_delayed(move.when_ms / 1000)
        if batch.dead and self._ctx.hooks is not None:
            self._tell_dead(batch.dead, settled, self._ctx.hooks)
        if self._ctx.gates.closed:
            self._ctx.gates.settled(settled_here)
            await self._on_permits()
        self._on_written()
        if self._ctx.observer is not None:
            self._ctx.observer.look(time.monotonic())

    def _tell_dead(self, letters: Sequence[Letter], settled: Settled, hooks: Hooks) -> None:
        """Tell of the letters that this flush has written, not of those that another worker has, or that wait apart."""
        unwritten = {id(letter) for letter in (*settled.left.dead, *settled.undead)}
        hooks.died([letter_told(letter) for letter in letters if id(letter) not in unwritten])

    def _keep_apart(self, settled: Settled) -> None:
        if not settled.error:
            if not len(self._apart):
                self._apart_failures = 0
            return
        self._apart.add(settled.left)
        self._apart_failures += 1
        self._apart_until_s = time.monotonic() + delay_s(self._apart_failures, STORE_BACKOFF, random)
        self._ctx.stats.store_errors += 1
        if self._apart_failures == 1 or self._apart_failures % TOLD_AGAIN == 0:
            text = "%d moves were answered with an error and will be tried again: %s"
            self._ctx.log.warn(text, len(settled.left), settled.error)

    def _tell_unpaused(self, error: str) -> None:
        if error and self._unpaused % TOLD_AGAIN == 0:
            self._ctx.log.warn("a job asked to pause its type, which cannot be written: %s", error)
        self._unpaused += bool(error)

    def _tell_unkept(self, lost: int, error: str) -> None:
        if error and self._unkept % TOLD_AGAIN == 0:
            what = (
                f"{lost} results could not be written, and their jobs are done" if lost else "who waits for results was not told"
            )
            self._ctx.log.warn("%s: %s", what, error)
        self._unkept += bool(error)
        self._ctx.stats.unkept += lost

    def retry_apart(self, now_s: float) -> None:
        """Note again the moves that wait apart, when their time has come."""
        if len(self._apart) and self._apart_until_s < now_s:
            apart, self._apart = self._apart, empty_batch()
            self._ctx.ledger.put_back(apart)


def parts_of(batch: Batch, most_bytes: int) -> list[tuple[int, Batch]]:
    """Return the batch in parts of at most `most_bytes`, at least a move in each, with the bytes of each; in one part, mostly."""
    handing = [job for jobs in batch.done for job in jobs if job.extras is not None and job.extras.followers]
    sizes = [_size_of(move) for moves in (batch.results, handing, batch.defer, batch.dead) for move in moves]
    whole = sum(sizes) + MOVE_BYTES * len(batch.park)
    if whole <= most_bytes:
        return [(whole, batch)]
    part = empty_batch()
    parts, size = [(0, part)], 0
    # Results first: none of their jobs is written before them.
    for moves in (batch.results, handing, batch.defer, batch.dead, batch.park):
        for move in moves:
            more = _size_of(move)
            if size and size + more > most_bytes:
                part, size = empty_batch(), 0
                parts.append((0, part))
            part.put(move)
            size += more
            parts[-1] = (size, part)
        if moves is batch.results:  # a few words each: they never weigh, but for those that hand on others
            apart = set(map(id, handing))  # as they were found: who goes on when its job is done may hand on one more meanwhile
            part.done, part.pauses = [[job for job in jobs if id(job) not in apart] for jobs in batch.done], batch.pauses
    return parts


def _size_of(move: Kept | Job | Deferral | Letter | Parking) -> int:
    if isinstance(move, Kept):
        return MOVE_BYTES + len(move.value)
    if isinstance(move, Job):
        return MOVE_BYTES + sum(MOVE_BYTES + len(packed.data) for packed in move.followers)
    if isinstance(move, Deferral):
        job = move.lease
        return MOVE_BYTES + len(job.data) + sum(map(len, job.fields)) + len(move.tries)
    return MOVE_BYTES + (len(move.error) + len(move.stack) + len(move.tries) if isinstance(move, Letter) else 0)


def letter_told(letter: Letter) -> Death:
    """Return a letter of what was held here as hooks see it."""
    return death_of(letter, letter.lease.type if isinstance(letter.lease, Job) else b"", letter.job_id)


def leases_of(batch: Batch) -> list[Lease]:
    """Return all leases of a batch."""
    leases = [lease for done in batch.done for lease in done]
    for moves in (batch.defer, batch.dead, batch.park):
        leases += [move.lease for move in moves]
    return leases
