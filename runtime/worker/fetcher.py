"""Fetch, decode, admit: from Redis into the Inbox, never more than there is capacity for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import random
from typing import Final

import msgspec

from runtime.backoff import delay_s
from runtime.codec import decode_many
from runtime.errors import Dead, StoreError, StoreUnavailable
from runtime.jobs import FREE, STREAMS, UNKNOWN, BadEntry, Job, Lease, Lost, Outcome, Park, lot_of, ms_of
from runtime.places import Places
from runtime.settle import admit, admit_keyed
from runtime.stats import outcome_name
from runtime.streams import Ask, Fetched
from runtime.worker.context import STORE_BACKOFF, WorkerContext
from runtime.worker.isolation import Isolation
from runtime.worker.plan import WEIGHTS, Budget, Plan, Sizes

BELL_MS: Final = 1000
BELL_PART: Final = 1 / 6  # of a lease, at most: what a bell brought must not be late
SUSPECTS_BELL_MS: Final = 20
LOTS_S: Final = 0.25
PAUSE_S: Final = 0.05
# An answer takes this part of a lease at most, as far as the line's speed is known: what comes late is given back unrun.
FETCH_PART: Final = 0.1
FETCH_S: Final = 1.0
INBOX_BYTES: Final = 32 << 20  # a guess: what may wait here unrun
UNBLOCK_S: Final = 0.02
# So fast a worker moves jobs that find no thread or child process out of the way of others. A guess: 2,000 a second are about 2 %
# of Redis' time, and ten workers pass a million of them at the head of a stream within a minute.
PARKED_PER_S: Final = 2000
ANY_NUMBER: Final = 1_000_000


class Fetcher:
    """Owns the plan, and what was seen waiting in lots. How much is asked for is learnt from what came.

    `capacity` returns how many jobs may be fetched now, `is_silent` whether nothing may start, and `is_late` whether what was
    asked for at a time must be renewed before it starts.
    """

    def __init__(
        self,
        ctx: WorkerContext,
        types: dict[str, int],
        capacity: Callable[[], int],
        beside: Callable[[], tuple[float, bool]],
        is_silent: Callable[[], bool],
        is_late: Callable[[float], bool],
        stop: asyncio.Event,
    ) -> None:
        self._ctx = ctx
        self._types = types
        self._kinds = {
            name: ctx.places[handler.runs] for name, handler in ctx.registry.items() if handler.runs in ctx.places
        }  # the types whose jobs need a thread or a child process
        self._rests: dict[tuple[int, Places], float] = {}
        self._awaited: set[Places] = set()  # those for which more waits in lots than was asked for
        self._is_waiting = False
        self._unblocking: asyncio.Task[None] | None = None
        self._capacity = capacity
        self._longest_bell_ms = min(BELL_MS, BELL_PART * ctx.config.lease_s * 1000)
        self._is_silent = is_silent
        self._is_late = is_late
        self._stop = stop
        self._plan = Plan()
        self._isolation = Isolation(ctx, beside, self._receive_chosen)
        self._takes: set[int] = set()
        self._is_quiet = False  # the bell has not rung: nothing can be there but what lots hold
        self._budget = Budget(min(FETCH_S, FETCH_PART * ctx.config.lease_s))
        self._sizes = Sizes()
        self._has_lost = False  # an answer: what it brought is pending with us, and nobody here knows it
        self._next_lots_s = 0.0
        self._told: dict[int, str] = {}
        self._lots_are_full = False  # one of them gave all that it was asked for, and has more
        self._owed = 0.0
        self._turn = 0
        self.capacity_freed = asyncio.Event()
        self.is_fetching = False

    def __repr__(self) -> str:
        return f"<Fetcher {'fetches' if self.is_fetching else 'waits for the store'}, {self._plan!r}>"

    async def run(self) -> None:
        """Fetch whenever there is capacity, until told to stop; never cancelled, since a cancelled read loses deliveries."""
        failures = 0
        while not self._stop.is_set():
            capacity = self._capacity()
            try:
                if self._is_silent() or await self._isolation.is_resting() or capacity < 1:
                    self.capacity_freed.clear()
                    await self.capacity_freed.wait()
                    continue
                if self._has_lost:
                    await self.give_back_lost()
                await self._fetch(capacity)
                self._tell_of_broken()
                self._ctx.log.store_back(failures)
                failures, self.is_fetching = 0, True
            except StoreUnavailable as error:
                failures += 1
                if not isinstance(error, StoreError):
                    self._budget.passed(*self._ctx.streams.came)  # as fast is the line, though this was too much
                    self._budget.failed()
                    self._has_lost = True
                self.is_fetching = self._is_quiet = False  # the bell may be what fails: it rings for all streams or none
                self._ctx.stats.store_errors += 1
                self._ctx.log.store_unavailable(error, failures)
                await self._pause(delay_s(failures, STORE_BACKOFF, random))
        await self._isolation.close()

    def entries(self, most_bytes: int) -> int:
        """Return how many entries weigh so much, by what came lately."""
        return self._sizes.entries(self._plan.parts(), most_bytes)

    async def give_back_lost(self) -> None:
        """Park what a lost answer brought, for anybody to take: out of a lot, large ones come in parts, those that are too large
        without their body.
        """
        lost = [lease for lease in await self._ctx.streams.leased() if not self._ctx.held.has(lease.stream, lease.entry)]
        self._has_lost = False
        for lease in lost:  # held until that is confirmed: taken again before, it would be given back while it runs
            self._ctx.held.add(lease.stream, [lease])
        self._ctx.ledger.release(lost)
        for lease in lost:
            self._ctx.stats.moved(b"", lease.stream, "undelivered")
        if lost:
            self._ctx.log.warn("%d jobs whose delivery got lost on the line are given back", len(lost))

    def _weigh(self, fetched: Fetched) -> None:
        """Learn from what came: how large entries are, and how fast the line is."""
        size, took_s = self._ctx.streams.came
        self._sizes.learn([(delivery.stream, delivery.rows) for delivery in fetched.deliveries], size)
        self._budget.passed(size, took_s)
        self._ctx.streams.budget_bytes = self._budget.bytes

    def _tell_of_broken(self) -> None:
        """Say once of each stream that it cannot be read, and that it can be again."""
        streams = self._ctx.streams
        if streams.broken == self._told:
            return
        for stream, error in streams.broken.items() - self._told.items():
            self._ctx.log.stream_broken(streams.keys.streams[stream], error)
        for stream in self._told.keys() - streams.broken.keys():
            self._ctx.log.stream_whole(streams.keys.streams[stream])
        self._told = dict(streams.broken)

    async def _fetch(self, capacity: int) -> None:
        """Use the capacity: from lots we may take from, else as planned, else wait for the bell."""
        capacity -= await self._take_from_lots(capacity)
        if capacity < 1:
            return
        resting = self._resting()
        can_wait = capacity >= min(4, self._ctx.config.concurrency)  # one entry per stream may come
        if not (self._is_quiet and can_wait and not self._takes) or self._lots_are_full:
            shares, takes = self._plan.shares(min(capacity, self.entries(self._budget.bytes))), self._takes
            shares = [0 if stream in resting else max(share, int(stream in takes)) for stream, share in enumerate(shares)]
            asked_s = time.monotonic()
            fetched = await self._ctx.streams.fetch(shares, takes)
            self._weigh(fetched)
            got = [0, 0, 0, 0]
            for delivery in fetched.deliveries:
                got[delivery.stream] = len(delivery.rows) + len(delivery.oversized)
            self._takes = fetched.free
            for stream in takes | fetched.free:
                got[stream] = max(got[stream], shares[stream])  # something waits there: by no means dry
            self._plan.learn(shares, got)
            self.is_fetching = not fetched.refused
            await self.receive(fetched, asked_s)
            if fetched.refused:
                raise StoreError(fetched.refused)
            is_more = any(delivery.rows for delivery in fetched.deliveries) or self._takes or self._lots_are_full
            if is_more or self._stop.is_set():
                return
        if len(resting | self._ctx.streams.broken.keys()) == len(STREAMS):
            await self._pause(PAUSE_S)
        elif can_wait:
            asked_s = time.monotonic()
            self._is_waiting = True
            try:
                rung = await self._ctx.streams.wait_for_entry(self._bell_ms(), resting)
            finally:
                self._is_waiting = False
            self._weigh(rung)
            self._takes, self._is_quiet = rung.free, not rung.deliveries and not resting
            if self._is_quiet:
                self._isolation.is_quiet()
            await self.receive(rung, asked_s)
            # What came starts first: while it waits in the inbox there is no capacity, and the next request would wait for the
            # flush. Measured at 200 jobs/s: a third less from XADD to the handler.
            await asyncio.sleep(0)
        else:
            await self._pause(PAUSE_S)

    def _bell_ms(self) -> int:
        """Lots ring no bell: where one is not empty, the blocked read must end soon."""
        must_look = self._rests or any(self._may_take(at) for at in self._ctx.maintenance.lots)
        lots_ms = LOTS_S * 1000 if must_look else self._longest_bell_ms
        return int(max(SUSPECTS_BELL_MS, min(lots_ms, self._isolation.next_ask_s * 1000)))

    def _may_take(self, at: tuple[int, str]) -> bool:
        return at[1] != FREE and self._ctx.maintenance.can_run(at[1])

    def look_again(self) -> None:
        """Look into lots at once, though the bell may be waited for: there is something new, or a place for it."""
        self._next_lots_s = 0.0
        self.capacity_freed.set()
        if self._is_waiting and (self._unblocking is None or self._unblocking.done()):
            # Past the factory of tasks that a handler may have set: uvloop asks each for a context, of which many know nothing.
            self._unblocking = asyncio.Task(self._unblock(), loop=asyncio.get_running_loop())

    def place_free(self, places: Places) -> None:
        """Look again if something waits in lots for a place of this kind."""
        if places in self._awaited:
            self.look_again()

    async def _unblock(self) -> None:
        with contextlib.suppress(StoreUnavailable):  # then the bell's own time ends the wait
            while self._is_waiting:
                await self._ctx.streams.unblock()
                await asyncio.sleep(UNBLOCK_S)

    # --- lots -------------------------------------------------------------------------------------------------------

    def _kind_of_lot(self, lot: str) -> Places | None:
        name, _, _ = lot[len(UNKNOWN) :].rpartition("@")
        return self._kinds.get(name.encode()) if lot.startswith(UNKNOWN) else None

    def _coming(self, places: Places) -> int:
        """Return how many jobs here are on their way to a lane, where they will need a place of this kind."""
        return sum(1 for job in self._ctx.inbox.jobs if self._kinds.get(job.type) is places)

    def _openings(self) -> list[Ask]:
        """Return the lots from which we may take now; for a thread or child, as many as will soon begin, each kind by itself."""
        self._awaited.clear()
        wanted: dict[Places | None, int] = {None: ANY_NUMBER}
        openings: list[Ask] = []
        for stream, lot in filter(self._may_take, self._ctx.maintenance.lots):
            kinds = {self._kinds.get(name.encode()) for name in self._types} if lot == UNKNOWN else {self._kind_of_lot(lot)}
            for places in kinds:
                if places is not None and places not in wanted:
                    wanted[places] = places.capacity_soon(self._coming(places))
                if places is not None:
                    self._awaited.add(places)
                if wanted[places]:
                    types = {name: newest for name, newest in self._types.items() if self._kinds.get(name.encode()) is places}
                    openings.append(Ask(stream, lot, wanted[places], types if lot == UNKNOWN else None))
        return openings

    async def _take_from_lots(self, capacity: int) -> int:
        """Take from lots of types that we can run, and return how many came: a quarter of a second after the last look, and only
        where something was seen; at once, as long as one of them gives all that it is asked for.
        """
        if not self._ctx.maintenance.lots:
            self._awaited.clear()
            return 0
        if time.monotonic() < self._next_lots_s and not self._lots_are_full:
            return 0
        openings = self._openings()
        asks = self._asks(openings, capacity)
        self._next_lots_s, self._lots_are_full = time.monotonic() + LOTS_S, bool(openings) and not asks
        if not asks:
            return 0
        asked_s = time.monotonic()
        fetched = await self._ctx.streams.take(*asks)
        self._weigh(fetched)
        for ask, delivery in zip(asks, fetched.deliveries, strict=True):
            if delivery.is_cut or len(delivery.rows) + len(delivery.oversized) == ask.n:
                self._lots_are_full = True
            elif ask.lot != UNKNOWN:
                self._owed = 0.0
                self._ctx.maintenance.lots.pop((ask.stream, ask.lot), None)
        await self.receive(fetched, asked_s, is_chosen=True)
        if fetched.refused:
            raise StoreError(fetched.refused)
        return sum(len(delivery.rows) for delivery in fetched.deliveries)

    def _asks(self, openings: Sequence[Ask], capacity: int) -> list[Ask]:
        """Divide among lots what is due to them of what may be fetched: by the weights of their streams, each the first in turn.

        None, where it comes to less than one entry: what is owed is kept, and soon will be one.
        """
        self._owed = min(capacity, self._owed + capacity * self._plan.part_beside({opening.stream for opening in openings}))
        left = most = int(self._owed)
        self._owed -= most
        of_stream = Counter(opening.stream for opening in openings)
        weights = [WEIGHTS[opening.stream] / of_stream[opening.stream] for opening in openings]
        wanted = {self._kind_of_ask(opening): opening.n for opening in openings}
        self._turn += 1
        asks: list[Ask] = []
        for at in range(len(openings)):
            opening, weight = openings[(at + self._turn) % len(openings)], weights[(at + self._turn) % len(openings)]
            places = self._kind_of_ask(opening)
            n = min(left, wanted[places], max(1, int(most * weight / sum(weights))))
            if n:
                asks.append(msgspec.structs.replace(opening, n=n))
                left -= n
                wanted[places] -= n
        return asks

    def _kind_of_ask(self, ask: Ask) -> Places | None:
        return self._kinds.get(next(iter(ask.types)).encode()) if ask.types else self._kind_of_lot(ask.lot)

    def _resting(self) -> set[int]:
        """Return the streams that are not asked now: jobs from there were parked for want of a place, and lots have enough."""
        now_s = time.monotonic()
        for (stream, places), until_s in list(self._rests.items()):
            if until_s <= now_s or (self._fits(places) and not self._waits_in_lots(places)):
                del self._rests[stream, places]
        return {stream for stream, _ in self._rests}

    def _waits_in_lots(self, places: Places) -> bool:
        return any(self._kind_of_lot(lot) is places for _, lot in self._ctx.maintenance.lots)

    def _fits(self, places: Places) -> int:
        """Return how many more jobs of a stream would find a place of this kind within a second; beside a lot, at once."""
        coming = self._coming(places)
        return places.capacity_soon(coming) if self._waits_in_lots(places) else places.capacity_within_a_second(coming)

    # --- from the answer to the lanes --------------------------------------------------------------------------------

    async def _receive_chosen(self, fetched: Fetched, asked_s: float) -> None:
        """Receive what was asked for one by one: it is known that it may start."""
        await self.receive(fetched, asked_s, is_chosen=True)

    async def receive(self, fetched: Fetched, asked_s: float, *, is_chosen: bool = False) -> None:
        """Decode, hold and admit what came; only late and keyed jobs wait for another answer."""
        held: list[Job] = []
        now_s = time.monotonic()
        for delivery in fetched.deliveries:
            if delivery.rows:
                middle: bytes = delivery.rows[len(delivery.rows) // 2][0]
                self._ctx.stats.waited(delivery.stream, fetched.now_ms - ms_of(middle, fetched.now_ms), len(delivery.rows))
            jobs, bad = decode_many(
                delivery.stream,
                delivery.rows,
                delivery.counts,
                fetched.run_id,
                now_s,
                fetched.now_ms,
                self._ctx.config.max_data_bytes,
            )
            bad += [self._too_large(delivery.stream, fetched.run_id, now_s, *found) for found in delivery.oversized]
            for entry in bad:
                if self._ctx.held.add(delivery.stream, [entry.lease]):
                    self._ctx.ledger.add_bad(entry)
                    self._ctx.stats.moved(b"", delivery.stream, "dead")
                    self._ctx.log.warn(
                        "unreadable entry %s on %s: %s", entry.lease.entry.decode(), STREAMS[delivery.stream], entry.reason
                    )
            held += self._ctx.held.add(delivery.stream, jobs)
        if held and self._is_late(asked_s):
            held = await self._still_ours(held)
        admitted = admit(held, self._ctx.registry, fetched.now_ms)
        self._turn_away(admitted.turned_away)
        self._start(admitted.ready, is_chosen)
        if admitted.keyed:
            await self._receive_keyed(admitted.keyed, fetched.now_ms, is_chosen)

    async def _still_ours(self, jobs: list[Job]) -> list[Job]:
        """Renew what came so late that its lease could end before the next beat; return what was not taken back meanwhile.

        Nothing, where this answer is late too.
        """
        asked_s = time.monotonic()
        try:
            refused = set(await self._ctx.streams.renew([(job.stream, job.entry, job.count) for job in jobs]))
        except (StoreUnavailable, asyncio.CancelledError):
            self._ctx.ledger.release(jobs)
            raise
        self._ctx.held.remove([jobs[position] for position in refused])
        ours = [job for position, job in enumerate(jobs) if position not in refused]
        if not self._is_late(asked_s):
            return ours
        self._ctx.ledger.release(ours)
        return []

    def _too_large(self, stream: int, run_id: str, taken_s: float, entry: bytes, count: int, size: int) -> BadEntry:
        most = self._ctx.streams.max_entry_bytes
        return BadEntry(
            Lease(stream, entry, count, run_id, taken_s), "too-large", f"{size} bytes in all fields, the limit is {most}"
        )

    async def _receive_keyed(self, keyed: list[Job], now_ms: int, is_chosen: bool) -> None:
        """Claim the keys of a batch. Without an answer the jobs are given back: nobody knows whose they are."""
        admitted = admit(keyed, self._ctx.registry, now_ms)
        asked_s = time.monotonic()
        try:
            verdicts = await self._ctx.streams.admit([(job, job.envelope.key) for job in keyed])
        except (StoreUnavailable, asyncio.CancelledError):
            self._ctx.ledger.release(keyed)
            raise
        copies = admit_keyed(admitted, verdicts, now_ms)
        for job in copies:
            self._ctx.stats.moved(job.type, job.stream, "duplicate")
        self._ctx.held.remove(copies)
        self._turn_away(admitted.turned_away)
        if self._is_late(asked_s):  # a beat may have said since that they are others', while nobody here had them at hand
            self._ctx.ledger.release(admitted.ready)
        else:
            self._start(admitted.ready, is_chosen)

    def _start(self, jobs: list[Job], is_chosen: bool) -> None:
        """Let jobs run; without a confirmed beat they are given back."""
        if self._is_silent():
            self._ctx.ledger.release(jobs)
        elif is_chosen or not self._kinds or self._kinds.keys().isdisjoint({job.type for job in jobs}):
            self._ctx.inbox.put(jobs)
        else:
            self._ctx.inbox.put(self._without_surplus(jobs))

    def _without_surplus(self, jobs: list[Job]) -> list[Job]:
        """Park what would hold a lane while it waits for a thread or a child; return the others."""
        fits: dict[Places, int] = {}
        kept: list[Job] = []
        for job in jobs:
            places = self._kinds.get(job.type)
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
        word = Park(lot_of(job.type.decode(), job.envelope.version))
        self._ctx.ledger.add(job, word)
        self._ctx.stats.moved(job.type, job.stream, outcome_name(word))
        now_s = time.monotonic()
        self._rests[job.stream, places] = max(self._rests.get((job.stream, places), now_s), now_s) + 1 / PARKED_PER_S

    def _turn_away(self, turned_away: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in turned_away:
            if isinstance(outcome, Lost):  # somebody else's by now: nothing to write, nothing to hold
                self._ctx.held.remove([job])
                continue
            word = Park(self._ctx.maintenance.lot_for(outcome.lot)) if isinstance(outcome, Park) else outcome
            self._ctx.ledger.add(job, word)
            self._ctx.stats.moved(job.type if job.type in self._ctx.registry else b"", job.stream, outcome_name(word))
            if isinstance(word, Dead):
                self._ctx.log.warn("job %s is dead: %s", job.id, word)

    async def _pause(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._stop.wait()
        except TimeoutError:
            return
