"""Admission: which of the jobs that a fetch brought may start here now, and what becomes of the others.

Order: unreadable, held already, late, expired, unknown type, key, not yet due, no thread or child process. What is held here and
does not start goes to the ledger in the same step; a process that dies before, during or after each await leaves entries pending,
which the sweep of another worker takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from runtime.codec import decode_many
from runtime.errors import Dead, Snooze, StoreUnavailable
from runtime.jobs import (
    LOST,
    PLAIN,
    STREAMS,
    TYPE_NAME,
    BadEntry,
    Handler,
    Job,
    Lease,
    Lost,
    Outcome,
    Park,
    Postpone,
    Registry,
    lot_of,
    ms_of,
)
from runtime.places import Places
from runtime.stats import outcome_name
from runtime.streams import Delivery, Fetched
from runtime.worker.context import WorkerContext

# So fast a worker moves jobs that find no thread or child process out of the way of others. A guess: 2,000 a second are about 2 %
# of Redis' time, and ten workers pass a million of them at the head of a stream within a minute.
PARKED_PER_S: Final = 2000
KEY_UNKNOWN_S: Final = 5.0  # a guess: until a job is tried again of whose key the server could not say whose it is


class Admitted(msgspec.Struct):
    """A batch, sorted: jobs that may start, jobs with a key to be claimed first, and what may not run here now."""

    ready: list[Job]
    keyed: list[Job]
    turned_away: list[tuple[Job, Outcome]]


class Claimed(msgspec.Struct):
    """Keyed jobs, sorted by what the store said of their keys; `duplicates` are dropped, since a live job owns their key."""

    ready: list[Job]
    turned_away: list[tuple[Job, Outcome]]
    duplicates: list[Job]


def admit(jobs: Sequence[Job], registry: Registry, now_ms: int) -> Admitted:
    """Return which jobs may start. Order: expired, unknown type, key, not yet due."""
    ready: list[Job] = []
    admitted = Admitted(ready, [], [])
    for job in jobs:
        handler = registry.get(job.type)
        if handler is not None and job.envelope is PLAIN:
            ready.append(job)
            continue
        outcome = _turn_away(job, handler, now_ms)
        if outcome is not None:
            admitted.turned_away.append((job, outcome))
        elif job.envelope.key:
            admitted.keyed.append(job)
        else:
            _admit_by_time(job, now_ms, ready, admitted.turned_away)
    return admitted


def sort_claimed(keyed: Sequence[Job], verdicts: Sequence[str], now_ms: int) -> Claimed:
    """Return what becomes of keyed jobs, each with what the store said of its key."""
    claimed = Claimed([], [], [])
    for job, verdict in zip(keyed, verdicts, strict=True):
        match verdict:
            case "mine":
                _admit_by_time(job, now_ms, claimed.ready, claimed.turned_away)
            case "duplicate":
                claimed.duplicates.append(job)
            case "refused":
                claimed.turned_away.append((job, LOST))
            case error:  # the server could not answer for this key: later, without burning an attempt
                claimed.turned_away.append((job, Snooze(KEY_UNKNOWN_S, error)))
    return claimed


def _turn_away(job: Job, handler: Handler[Any] | None, now_ms: int) -> Outcome | None:
    envelope = job.envelope
    if not TYPE_NAME.match(job.type):
        return Dead("`type` is not 1 to 64 of [a-z0-9._-], beginning with a letter or digit", "unreadable")
    if envelope.exp_ms and envelope.exp_ms <= now_ms:
        return Dead(f"expired at {envelope.exp_ms}, met at {now_ms}", "expired")
    if handler is None or envelope.version > handler.contract.version:
        return Park(lot_of(job.type.decode(), envelope.version))
    return None


def _admit_by_time(job: Job, now_ms: int, ready: list[Job], turned_away: list[tuple[Job, Outcome]]) -> None:
    if job.envelope.at_ms > now_ms:
        turned_away.append((job, Postpone(job.envelope.at_ms)))
    else:
        ready.append(job)


class Admission:
    """Owns which streams rest: those whose jobs were parked for want of a thread or a child process."""

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        self._rests: dict[tuple[int, Places], float] = {}

    def __repr__(self) -> str:
        return f"<Admission {len(self._rests)} streams rest>"

    @property
    def has_resting(self) -> bool:
        """Whether any stream rests."""
        return bool(self._rests)

    async def receive(self, fetched: Fetched, asked_s: float, *, is_chosen: bool = False) -> None:
        """Decode, hold and admit what was asked for at `asked_s`; only late and keyed jobs wait for another answer.

        `is_chosen`: it was asked for one by one, so it is known that it finds a place.

        Raises:
            StoreUnavailable: no answer about late or keyed jobs: these are given back, the others have their way.
        """
        ctx = self._ctx
        held: list[Job] = []
        now_s = time.monotonic()
        for delivery in fetched.deliveries:
            held += self._hold(delivery, fetched, now_s)
        if held and ctx.leases.is_late(asked_s):
            held = await self._still_ours(held)
        admitted = admit(held, ctx.registry, fetched.now_ms)
        self._turn_away(admitted.turned_away)
        self._start(admitted.ready, is_chosen)
        if admitted.keyed:
            await self._claim_keys(admitted.keyed, fetched.now_ms, is_chosen)

    def _hold(self, delivery: Delivery, fetched: Fetched, now_s: float) -> list[Job]:
        """Hold what a stream brought, and return the jobs that are new here; what cannot be a job goes to the dead letters."""
        ctx = self._ctx
        stream, rows = delivery.stream, delivery.rows
        if rows:
            middle: bytes = rows[len(rows) // 2][0]
            ctx.stats.waited(stream, fetched.now_ms - ms_of(middle, fetched.now_ms), len(rows))
        jobs, bad = decode_many(stream, rows, delivery.counts, fetched.run_id, now_s, fetched.now_ms, ctx.config.max_data_bytes)
        for entry, count, size_bytes in delivery.oversized:
            reason = f"{size_bytes} bytes in all fields, the limit is {ctx.streams.max_entry_bytes}"
            bad.append(BadEntry(Lease(stream, entry, count, fetched.run_id, now_s), "too-large", reason))
        for entry in bad:
            if ctx.held.add(stream, [entry.lease]):
                ctx.ledger.add_bad(entry)
                ctx.stats.moved(b"", stream, "dead")
                ctx.log.warn("unreadable entry %s on %s: %s", entry.lease.entry.decode(), STREAMS[stream], entry.reason)
        return ctx.held.add(stream, jobs)

    async def _still_ours(self, jobs: list[Job]) -> list[Job]:
        """Renew what came so late that its lease could end before the next beat; return what was not taken back meanwhile.

        Nothing, where this answer is late too.
        """
        ctx = self._ctx
        asked_s = time.monotonic()
        try:
            refused = set(await ctx.streams.renew([(job.stream, job.entry, job.count) for job in jobs]))
        except (StoreUnavailable, asyncio.CancelledError):
            ctx.ledger.release(jobs)
            raise
        ctx.held.remove([jobs[position] for position in refused])
        ours = [job for position, job in enumerate(jobs) if position not in refused]
        if not ctx.leases.is_late(asked_s):
            return ours
        ctx.ledger.release(ours)
        return []

    async def _claim_keys(self, keyed: list[Job], now_ms: int, is_chosen: bool) -> None:
        """Claim the keys of a batch. Without an answer the jobs are given back: it is not known whose the keys are."""
        ctx = self._ctx
        asked_s = time.monotonic()
        try:
            verdicts = await ctx.streams.admit([(job, job.envelope.key) for job in keyed])
        except (StoreUnavailable, asyncio.CancelledError):
            ctx.ledger.release(keyed)
            raise
        claimed = sort_claimed(keyed, verdicts, now_ms)
        for job in claimed.duplicates:
            ctx.stats.moved(job.type, job.stream, "duplicate")
        ctx.held.remove(claimed.duplicates)
        self._turn_away(claimed.turned_away)
        # A beat may have refused these leases while the claim was on its way: then its report found the jobs neither in the inbox
        # nor in a lane, and dropped nothing.
        if ctx.leases.is_late(asked_s):
            ctx.ledger.release(claimed.ready)
        else:
            self._start(claimed.ready, is_chosen)

    def _start(self, jobs: list[Job], is_chosen: bool) -> None:
        """Let jobs run; without a confirmed beat they are given back."""
        ctx = self._ctx
        if ctx.leases.is_silent:
            ctx.ledger.release(jobs)
        elif is_chosen or not ctx.parked.needs_places or not ctx.parked.needs_any({job.type for job in jobs}):
            ctx.inbox.put(jobs)
        else:
            ctx.inbox.put(self._without_surplus(jobs))

    def _turn_away(self, turned_away: Sequence[tuple[Job, Outcome]]) -> None:
        ctx = self._ctx
        for job, outcome in turned_away:
            if isinstance(outcome, Lost):  # another worker's by now: nothing to write, nothing to hold
                ctx.held.remove([job])
                continue
            told = Park(ctx.parked.lot_for(outcome.lot)) if isinstance(outcome, Park) else outcome
            ctx.ledger.add(job, told)
            ctx.stats.moved(job.type if job.type in ctx.registry else b"", job.stream, outcome_name(told))
            if isinstance(told, Dead):
                ctx.log.warn("job %s is dead: %s", job.id, told)

    # --- threads and child processes ---------------------------------------------------------------------------------

    def coming(self, places: Places) -> int:
        """Return how many jobs here are on their way to a lane, where they will need a place of this kind."""
        return sum(1 for job in self._ctx.inbox.jobs if self._ctx.parked.places_of(job.type) is places)

    def resting(self) -> set[int]:
        """Return the streams that are not asked now: jobs from there were parked for want of a place, and lots have enough."""
        now_s = time.monotonic()
        for (stream, places), until_s in list(self._rests.items()):
            if until_s <= now_s or (self._fits(places) and not self._ctx.parked.waits_for(places)):
                del self._rests[stream, places]
        return {stream for stream, _ in self._rests}

    def _fits(self, places: Places) -> int:
        """Return how many more jobs of a stream would find a place of this kind within a second; beside a lot, at once."""
        coming = self.coming(places)
        return places.capacity_soon(coming) if self._ctx.parked.waits_for(places) else places.capacity_within_a_second(coming)

    def _without_surplus(self, jobs: list[Job]) -> list[Job]:
        """Park what would hold a lane while it waits for a thread or a child process; return the others."""
        fits: dict[Places, int] = {}
        kept: list[Job] = []
        for job in jobs:
            places = self._ctx.parked.places_of(job.type)
            if places is not None:
                if places not in fits:
                    fits[places] = self._fits(places)
                if not fits[places]:
                    self._park(job, places)
                    continue
                fits[places] -= 1
            kept.append(job)
        return kept

    def _park(self, job: Job, places: Places) -> None:
        parking = Park(lot_of(job.type.decode(), job.envelope.version))
        self._ctx.ledger.add(job, parking)
        self._ctx.stats.moved(job.type, job.stream, outcome_name(parking))
        now_s = time.monotonic()
        self._rests[job.stream, places] = max(self._rests.get((job.stream, places), now_s), now_s) + 1 / PARKED_PER_S
