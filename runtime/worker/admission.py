"""Admission: which of the jobs that a fetch brought may start here now, and what becomes of the others.

Order: unreadable, held already, late, expired, unknown type, key, not yet due, no thread or child process, its type's gate. What
is held here and does not start goes to the ledger in the same step; a process that dies before, during or after each await leaves
entries pending, which the sweep of another worker takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

import msgspec

from runtime.codec import decode_many
from runtime.errors import Dead, Snooze, StoreUnavailable
from runtime.jobs import (
    CRITICAL,
    LOST,
    PLAIN,
    STREAMS,
    TYPE_NAME,
    UNKNOWN,
    BadEntry,
    Claim,
    Handler,
    Job,
    Lease,
    Lost,
    Outcome,
    Park,
    Postpone,
    Registry,
    default_id,
    lot_of,
)
from runtime.places import Places
from runtime.stats import outcome_name
from runtime.store.shapes import Delivery, Duplicate, Fetched
from runtime.worker.context import WorkerContext
from runtime.worker.gates import Asked

# So fast a worker moves jobs that find no thread or child process out of the way of others. A guess: 2,000 a second are about 2 %
# of Redis' time, and ten workers pass a million of them at the head of a stream within a minute.
PARKED_PER_S: Final = 2000
KEY_UNKNOWN_S: Final = 5.0  # a guess: until a job is tried again of whose key the server could not say whose it is


class From(Enum):
    """Where jobs come from. What was taken from lots was asked for one by one, so it is known that it finds a place; what a gate
    has served has its permit and its token; a suspect has its turn, and starts over any limit.
    """

    STREAM = "stream"
    LOT = "lot"
    GATE = "gate"
    ISOLATION = "isolation"


class Admitted(msgspec.Struct):
    """A batch, sorted: jobs that may start, jobs with a key to be claimed first, and what may not run here now."""

    ready: list[Job]
    keyed: list[Job]
    turned_away: list[tuple[Job, Outcome]]


class Claimed(msgspec.Struct):
    """Keyed jobs, sorted by what the store said of their keys; `duplicates` are dropped, each with the reason: a live job owns
    its key; and `delayed` ones moved already to where they wait for their time.
    """

    ready: list[Job]
    turned_away: list[tuple[Job, Outcome]]
    duplicates: list[tuple[Job, Duplicate]]
    delayed: list[Job]


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
    claimed = Claimed([], [], [], [])
    for job, verdict in zip(keyed, verdicts, strict=True):
        match verdict:
            case "mine":
                _admit_by_time(job, now_ms, claimed.ready, claimed.turned_away)
            case Duplicate():
                claimed.duplicates.append((job, verdict))
            case "delayed":
                claimed.delayed.append(job)
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


TOLD_S: Final = 60.0  # a guess: a gate in trouble is asked several times a second, and told of once a minute
_ASK: Final = (From.STREAM, From.LOT)  # who has come through a gate, or need not, is not asked again


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

    async def receive(self, fetched: Fetched, asked_s: float, came: From = From.STREAM, *, by_writer: bool = False) -> None:
        """Decode, hold and admit what was asked for at `asked_s`; only late, keyed and gated jobs wait for another answer.

        `by_writer`: that is asked for down the connection that settles, since the other one may be waiting.

        Raises:
            StoreUnavailable: no answer about late, keyed or gated jobs: these are given back, the others have their way.
        """
        ctx = self._ctx
        held: list[Job] = []
        now_s = time.monotonic()
        for delivery in fetched.deliveries:
            new = self._hold(delivery, fetched, now_s)
            held += new
            if came is not From.GATE:
                ctx.stats.waited(new, fetched.now_ms)
        if held and ctx.leases.is_late(asked_s):
            held = await self._still_ours(held)
        admitted = admit(held, ctx.registry, fetched.now_ms)
        self._turn_away(admitted.turned_away)
        gated = self._start(admitted.ready, came)
        if admitted.keyed:
            try:
                gated += await self._claim_keys(admitted.keyed, fetched.now_ms, came, by_writer)
            except (StoreUnavailable, asyncio.CancelledError):
                ctx.ledger.release(gated)
                raise
        if gated:
            await self._ask_gates(gated)
        if came is From.ISOLATION:
            await self.tell_gates()

    def _hold(self, delivery: Delivery, fetched: Fetched, now_s: float) -> list[Job]:
        """Hold what a stream brought, and return the jobs that are new here; what cannot be a job goes to the dead letters."""
        ctx = self._ctx
        stream, rows = delivery.stream, delivery.rows
        jobs, bad = decode_many(stream, rows, delivery.counts, fetched.run_id, now_s, fetched.now_ms, ctx.config.max_data_bytes)
        for entry, count, size_bytes in delivery.oversized:
            reason = f"{size_bytes} bytes in all fields, the limit is {ctx.streams.max_entry_bytes}"
            bad.append(BadEntry(Lease(stream, entry, count, fetched.run_id, now_s), "too-large", reason))
        for entry in bad:
            if ctx.held.add(stream, [entry.lease]):
                ctx.ledger.add_bad(entry)
                ctx.stats.moved(b"", stream, "dead")
                place = entry.lease.entry.decode()
                about = {"job_id": default_id(STREAMS[stream], place)}
                ctx.log.death(
                    "unreadable entry %s on %s: %s", place, STREAMS[stream], entry.reason, about=about, reason=entry.code
                )
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

    async def _claim_keys(self, keyed: list[Job], now_ms: int, came: From, by_writer: bool) -> list[Job]:
        """Claim the keys of a batch, let start what may, and return the jobs that must ask a gate first. Without an answer they
        are given back: it is not known whose the keys are.
        """
        ctx = self._ctx
        asked_s = time.monotonic()
        try:
            verdicts = await ctx.streams.admit(
                [Claim(job, job.envelope.key, job.envelope.at_ms) for job in keyed], by_writer=by_writer
            )
        except (StoreUnavailable, asyncio.CancelledError):
            ctx.ledger.release(keyed)
            raise
        claimed = sort_claimed(keyed, verdicts, now_ms)
        for job, duplicate in claimed.duplicates:
            why = duplicate.told(job.envelope.key)
            ctx.stats.moved(job.type, job.stream, "duplicate")
            ctx.on_dropped(job, why)
            ctx.log.dropped(job, why)
        for job in claimed.delayed:
            ctx.stats.moved(job.type, job.stream, outcome_name(Postpone(job.envelope.at_ms)))
        ctx.held.remove([job for job, _ in claimed.duplicates] + claimed.delayed)
        self._turn_away(claimed.turned_away)
        # A beat may have refused these leases while the claim was on its way: then its report found the jobs neither in the inbox
        # nor in a lane, and dropped nothing.
        if ctx.leases.is_late(asked_s):
            ctx.ledger.release(claimed.ready)
            return []
        return self._start(claimed.ready, came)

    def _start(self, jobs: list[Job], came: From) -> list[Job]:
        """Let jobs run, and return those that must ask a gate first; without a confirmed beat all are given back."""
        ctx = self._ctx
        if ctx.leases.is_silent:
            ctx.ledger.release(jobs)
            return []
        if ctx.gates.paused and came is not From.ISOLATION:  # what was on its way when its priority was paused
            ctx.ledger.release([job for job in jobs if job.stream in ctx.gates.paused])
            jobs = [job for job in jobs if job.stream not in ctx.gates.paused]
        if came is From.STREAM and ctx.parked.needs_places and ctx.parked.needs_any({job.type for job in jobs}):
            jobs = self._without_surplus(jobs)
        closed, gated = ctx.gates.closed, list[Job]()
        if closed and came in _ASK:
            gated = [job for job in jobs if job.type in closed]
            if gated:
                jobs = [job for job in jobs if job.type not in closed]
        elif closed and came is From.ISOLATION:
            ctx.gates.note(jobs)
        if jobs:
            if ctx.observer is not None:
                ctx.observer.choose(jobs)
            ctx.inbox.put(jobs)
        return gated

    # --- gates ---------------------------------------------------------------------------------------------------------

    async def _ask_gates(self, jobs: list[Job]) -> None:
        """Put jobs into the lots of their gates, and ask these gates for as many as came.

        They are held no more before they are put there: what the flusher asks may bring one back before the answer to this is
        read, and a job that is held already does not run again. Without an answer they are given back, as far as they are ours.
        """
        ctx = self._ctx
        ctx.held.remove(jobs)
        parks = [(job, ctx.gates.park(job)) for job in jobs]
        now_s = time.monotonic()
        came = Counter(job.type.decode() for job in jobs)
        critical = Counter(job.type.decode() for job in jobs if job.stream == CRITICAL)
        due = [gate for gate in ctx.gates.due(now_s) if gate.type in came]
        asked = [ctx.gates.ask(gate, now_s, came[gate.type], came[gate.type] - critical[gate.type]) for gate in due]
        try:
            await self.serve(asked, parks)
        except (StoreUnavailable, asyncio.CancelledError):
            for job in jobs:
                ctx.ledger.release(ctx.held.add(job.stream, [job]))
            raise

    async def tell_gates(self) -> None:
        """Tell gates which permits are free and which are in use; without an answer, they are told the next time."""
        gates, now_s = self._ctx.gates, time.monotonic()
        with contextlib.suppress(StoreUnavailable):
            await self.serve([gates.ask(gate, now_s, 0, 0) for gate in gates.with_news()])

    async def serve(
        self, asked: Sequence[Asked], parks: Sequence[tuple[Job, str]] = (), *, by_writer: bool = False
    ) -> tuple[int, int]:
        """Ask gates, after jobs were put into their lots, and let start what comes out; return how many came: of CRITICAL, and
        others.

        Raises:
            StoreUnavailable: no answer: what came out meanwhile is pending with us, and not held.
        """
        if not asked and not parks:
            return 0, 0
        ctx = self._ctx
        asked_s = time.monotonic()
        try:
            refused, served = await ctx.streams.serve(parks, [ask.serve for ask in asked], by_writer=by_writer)
        except (StoreUnavailable, asyncio.CancelledError):
            ctx.gates.unanswered(asked)
            raise
        ctx.stats.refused += refused
        now_s = time.monotonic()
        for ask, answer in zip(asked, served, strict=True):
            ctx.gates.answered(ask, answer, now_s)
            trouble = answer.error or answer.fetched.refused
            if trouble and now_s >= ask.gate.told_s + TOLD_S:
                ask.gate.told_s = now_s
                ctx.log.warn("the gate of %s does not give all that it could: %s", ask.gate.type, trouble)
        lost: StoreUnavailable | None = None
        for answer in served:  # all of them: what one of them brought is not given back by the failure of another
            try:
                if answer.size:
                    await self.receive(answer.fetched, asked_s, From.GATE, by_writer=by_writer)
            except StoreUnavailable as error:
                lost = error
        if lost is not None:
            raise lost
        came = [(delivery.stream, len(delivery.rows)) for answer in served for delivery in answer.fetched.deliveries]
        critical = sum(size for stream, size in came if stream == CRITICAL)
        return critical, sum(size for _, size in came) - critical

    def _turn_away(self, turned_away: Sequence[tuple[Job, Outcome]]) -> None:
        ctx = self._ctx
        for job, outcome in turned_away:
            if isinstance(outcome, Lost):  # another worker's by now: nothing to write, nothing to hold
                ctx.held.remove([job])
                continue
            told = Park(ctx.parked.lot_for(outcome.lot)) if isinstance(outcome, Park) else outcome
            ctx.ledger.add(job, told)
            has_name = job.type in ctx.registry or (isinstance(told, Park) and told.lot != UNKNOWN)
            ctx.stats.moved(job.type if has_name else b"", job.stream, outcome_name(told))
            if isinstance(told, Dead):
                ctx.log.death("job %s is dead: %s", job.id, told, about=job, reason=told.code)

    # --- threads and child processes ---------------------------------------------------------------------------------

    def coming(self, places: Places) -> int:
        """Return how many runs are on their way to a lane, where they will need a place of this kind."""
        return sum(1 for job in self._ctx.inbox.runs if self._ctx.parked.places_of(job.type) is places)

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
        fits: dict[Places, float] = {}
        kept: list[Job] = []
        for job in jobs:
            places = self._ctx.parked.places_of(job.type)
            if places is not None:
                if places not in fits:
                    fits[places] = self._fits(places)
                part = self._ctx.parked.part_of(job.type)
                if fits[places] < part / 2:  # parts may add up to a little more than one
                    self._park(job, places)
                    continue
                fits[places] -= part
            kept.append(job)
        return kept

    def _park(self, job: Job, places: Places) -> None:
        parking = Park(lot_of(job.type.decode(), job.envelope.version))
        self._ctx.ledger.add(job, parking)
        self._ctx.stats.moved(job.type, job.stream, outcome_name(parking))
        now_s = time.monotonic()
        self._rests[job.stream, places] = max(self._rests.get((job.stream, places), now_s), now_s) + 1 / PARKED_PER_S
