"""The fetcher brings jobs from Redis to admission, never more than there is capacity for."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from random import random
from typing import Final

from runtime.backoff import delay_s
from runtime.errors import StoreError, StoreUnavailable
from runtime.jobs import CRITICAL, STREAMS, UNKNOWN
from runtime.places import Places
from runtime.store.arguments import MAX_IDS
from runtime.store.shapes import Ask, Fetched
from runtime.worker.admission import Admission, From
from runtime.worker.context import STORE_BACKOFF, WorkerContext
from runtime.worker.gates import TOKEN_S, Asked, Gate
from runtime.worker.isolation import Isolation
from runtime.worker.parking import Shares
from runtime.worker.plan import AwaitCapacity, Budget, Fetch, Pause, Plan, ServeGates, Sizes, TakeParked, View, Wait, next_step

LONGEST_WAIT_MS: Final = 1100  # an idle worker sees a stop or a lot no later; with 1,000 it sends more than ten commands a second
WAIT_PART: Final = 1 / 6  # of a lease, at most: what a wait brought must not be late
SHORTEST_WAIT_MS: Final = 20  # a guess: while suspects are to be asked for, a wait only tells whether ordinary work is there
LOTS_S: Final = 0.25  # a guess: between two looks into lots that gave less than they were asked for
CRITICAL_S: Final = 0.01  # a guess, of CRITICAL's p99 of 20 ms: between two questions for it alone, each 150 µs of a worker
GATES_PART: Final = 0.5  # of what may be fetched, a guess: after a pause, what waits at gates is no reason to stop all else
PAUSE_S: Final = 0.05  # a guess: until a few lanes more are free, or a stream rests no longer
# An answer takes this part of a lease at most, as far as the connection's speed is known: what comes late is given back unrun.
FETCH_PART: Final = 0.1
FETCH_S: Final = 1.0  # a guess: and no longer than this, whatever the lease
INBOX_BYTES: Final = 32 << 20  # a guess: what may wait here unrun
# A server that has nothing else to do looks ten times a second whose wait is over (`hz`): we end shorter waits for tokens.
SERVER_TICK_S: Final = 0.1
LATE_S: Final = 0.001  # a guess: a server that has other work ends them in time, and we need not
UNBLOCK_S: Final = 0.02  # a guess: until the blocked read is woken once more; the first try may come before it is blocked


class Fetcher:
    """Owns the plan, and what the last answers have told. How much is asked for is learnt from what came.

    `capacity` returns how many jobs may be fetched now, of any priority and of CRITICAL beside those; `beside` what `Isolation`
    needs to know of the jobs that run here.
    """

    def __init__(
        self,
        ctx: WorkerContext,
        capacity: Callable[[], tuple[int, int]],
        beside: Callable[[], tuple[float, bool]],
        stop: asyncio.Event,
    ) -> None:
        self._ctx = ctx
        self._capacity = capacity
        self._stop = stop
        self._admission = Admission(ctx)
        self._isolation = Isolation(ctx, beside, self._admission)
        self._plan = Plan(is_strict=ctx.config.strict)
        self._paused: frozenset[int] = frozenset()
        self._lot_shares = Shares()
        self._owed_to_gates = 0.0  # of what could be fetched
        self._budget = Budget(min(FETCH_S, FETCH_PART * ctx.config.lease_s))
        self._sizes = Sizes()
        self._longest_wait_ms = min(LONGEST_WAIT_MS, WAIT_PART * ctx.config.lease_s * 1000)
        self._asks: list[Ask] = []  # of lots, in this round
        self._next_lots_s = 0.0
        self._are_lots_full = False  # one of them gave all that it was asked for, and has more
        self._free: set[int] = set()  # streams in whose `~free` something waits
        self._ask_critical_s = 0.0  # then CRITICAL is due, which gave less than it was asked for
        self._is_quiet = False  # the last wait brought nothing: nothing can be there but what lots hold
        self._is_waiting = False
        self._unblocking: asyncio.Task[None] | None = None
        self._has_lost = False  # an answer: what it brought is pending with us, and is not known here
        self._logged_broken: dict[int, str] = {}
        self.capacity_freed: asyncio.Event = asyncio.Event()
        self.is_fetching: bool = False

    def __repr__(self) -> str:
        return f"<Fetcher {'fetches' if self.is_fetching else 'waits for the store'}, {self._plan!r}>"

    async def run(self) -> None:
        """Fetch whenever there is capacity, until told to stop; never cancelled, since a cancelled read loses deliveries."""
        failures = 0
        while not self._stop.is_set():
            self.capacity_freed.clear()  # before it is counted: what becomes free from here on begins another round
            capacity, reserved = self._limits()
            try:
                if self._ctx.leases.is_silent or await self._isolation.is_resting() or (capacity < 1 and reserved < 1):
                    await self.capacity_freed.wait()
                    continue
                if self._has_lost:
                    await self.give_back_lost()
                await self._round(capacity, reserved)
                self._log_broken()
                self._ctx.log.store_back(failures)
                failures, self.is_fetching = 0, True
            except StoreUnavailable as error:
                failures += 1
                if not isinstance(error, StoreError):
                    self._budget.passed(*self._ctx.streams.came)  # so fast is the connection, though this was too much
                    self._budget.failed()
                    self._has_lost = True
                self.is_fetching = self._is_quiet = False  # the wait may be what fails: it is for all streams or none
                self._ctx.stats.store_errors += 1
                self._ctx.log.store_unavailable(error, failures)
                await self._pause(delay_s(failures, STORE_BACKOFF, random))
        await self._isolation.close()

    @property
    def paused(self) -> frozenset[int]:
        """The streams whose priority is paused: nothing is asked of them, nor taken from their lots."""
        return self._paused

    @paused.setter
    def paused(self, streams: frozenset[int]) -> None:
        """Fetch so from now on: a wait that knows others ends."""
        if streams != self._paused:
            self._paused = self._isolation.paused = streams
            self._is_quiet = False  # that was said of others
            self.look_again()

    def _limits(self) -> tuple[int, int]:
        """Return how many jobs may be fetched now of any priority, and of CRITICAL beside those, as far as it may be asked."""
        if len(self._paused) == len(STREAMS):
            self.is_fetching = True  # as far as it is to fetch
            return 0, 0
        capacity, reserved = self._capacity()
        is_open = CRITICAL not in self._closed() | self._ctx.streams.broken.keys()
        return capacity, reserved if is_open else 0

    def _closed(self) -> frozenset[int]:
        return self._paused | self._admission.resting()

    def entries(self, most_bytes: int) -> int:
        """Return how many entries weigh so much, by what came lately."""
        return self._sizes.entries(self._plan.parts(), most_bytes)

    async def give_back_lost(self) -> None:
        """Release what a lost answer brought: out of `~free`, large ones come in parts, too large ones without their body.

        Raises:
            StoreUnavailable: no answer; it stays pending with us, to be asked for again.
        """
        lost = [lease for lease in await self._ctx.streams.leased() if not self._ctx.held.has(lease.stream, lease.entry)]
        self._has_lost = False
        for lease in lost:  # held until that is written: taken again by ourselves before, it would be given back while it runs
            self._ctx.held.add(lease.stream, [lease])
        self._ctx.ledger.release(lost)
        for lease in lost:
            self._ctx.stats.moved(b"", lease.stream, "undelivered")
        if lost:
            self._ctx.log.warn("%d jobs whose delivery got lost on the way are given back", len(lost))

    def look_again(self) -> None:
        """Look into lots at once, though the first entry may be waited for: there is something new, or a place for it."""
        self._next_lots_s = 0.0
        self.capacity_freed.set()
        self._end_wait()

    def _end_wait(self) -> None:
        if self._is_waiting and (self._unblocking is None or self._unblocking.done()):
            # Past the factory of tasks that a handler may have set: uvloop asks each for a context, of which many know nothing.
            self._unblocking = asyncio.Task(self._unblock(), loop=asyncio.get_running_loop())

    def place_free(self, places: Places) -> None:
        """Look again if something waits in lots for a place of this kind."""
        if places in self._ctx.parked.awaited:
            self.look_again()

    async def _unblock(self) -> None:
        with contextlib.suppress(StoreUnavailable):  # then the time of the wait itself ends it
            while self._is_waiting:
                await self._ctx.streams.unblock()
                await asyncio.sleep(UNBLOCK_S)

    # --- a round: lots, streams, or a wait -------------------------------------------------------------------------------

    async def _round(self, capacity: int, reserved: int) -> None:
        """Use the capacity, step by step, as `next_step` says."""
        self._plan.closed = self._closed()
        self._asks = self._asks_of_lots(capacity, reserved)
        has_served = has_taken = has_fetched = has_found = are_gates_open = False
        while True:
            self._plan.closed = closed = self._closed()
            view = View(
                capacity=capacity,
                reserved=reserved,
                is_critical_due=time.monotonic() >= self._ask_critical_s,
                are_gates_due=not has_served and bool(self._gates_due(capacity)),
                has_served=has_served,
                are_gates_open=are_gates_open,
                has_asks=bool(self._asks),
                has_taken=has_taken,
                has_fetched=has_fetched,
                has_found=has_found,
                is_quiet=self._is_quiet,
                is_free_left=bool(self._free & self._asked(capacity)),
                are_lots_full=self._are_lots_full,
                is_stopping=self._stop.is_set(),
                is_deaf=len(closed | self._ctx.streams.broken.keys()) == len(STREAMS),
                wait_from=min(len(STREAMS), self._ctx.config.concurrency - self._ctx.config.reserved_lanes),
            )
            match next_step(view):
                case None:
                    return None
                case ServeGates():
                    came = await self._serve_gates(capacity, reserved)
                    capacity, reserved = _less(capacity, reserved, came)
                    has_served, are_gates_open = True, sum(came) > 0 and bool(self._gates_due(capacity))
                case TakeParked():
                    capacity, reserved = _less(capacity, reserved, await self._take_parked())
                    has_taken = True
                case Fetch():
                    has_found = await self._fetch(capacity, reserved)
                    has_fetched = True
                case Wait():
                    return await self._wait(closed)
                case AwaitCapacity():
                    return await self._await_capacity()
                case Pause():
                    return await self._pause(PAUSE_S)

    def _gates_due(self, capacity: int) -> list[Gate]:
        gates = self._ctx.gates
        return gates.due(time.monotonic(), critical_only=capacity < 1) if gates.is_any else []

    async def _serve_gates(self, capacity: int, reserved: int) -> tuple[int, int]:
        """Ask gates for as many as are due to them beside the streams, by weight, half of all at most; return how many came: of
        CRITICAL, and others.
        """
        now_s, due = time.monotonic(), self._gates_due(capacity)
        part = min(GATES_PART, self._plan.part_beside({stream for gate in due for stream, _ in gate.lots}))
        self._owed_to_gates = min(capacity, self._owed_to_gates + max(0, capacity) * part)
        others = max(0, int(self._owed_to_gates))
        self._owed_to_gates -= others
        asked: list[Asked] = []
        for gate in due:
            places = self._ctx.parked.places_of(gate.type.encode())
            most = others + reserved if places is None else places.capacity_soon(self._admission.coming(places))
            n, n_others = min(most, -(-(others + reserved) // len(due))), -(-others // len(due))
            # So many in a call at most; those of a gate that is open come by the thousand after a pause.
            parts = [(min(n - at, MAX_IDS), max(0, n_others - at)) for at in range(0, n, MAX_IDS)]
            asked += [self._ctx.gates.ask(gate, now_s, *part) for part in parts]
        return await self._admission.serve(asked)

    async def serve_freed(self) -> None:
        """Tell gates which permits are free, and let start what waits for these; at a stop, tell only."""
        gates, now_s = self._ctx.gates, time.monotonic()
        capacity, reserved = (0, 0) if self._stop.is_set() else self._limits()
        asked: list[Asked] = []
        for gate in gates.with_news():
            others = max(0, min(len(gate.freed), capacity))
            asked.append(gates.ask(gate, now_s, others + min(len(gate.freed) - others, reserved), others))
        try:
            await self._admission.serve(asked, by_writer=True)
        except StoreUnavailable:
            self._has_lost = True  # what came out, if anything did

    def _asked(self, capacity: int) -> set[int]:
        """Return the streams of which something may be asked; without a capacity for all, CRITICAL's."""
        return self._plan.asked if capacity > 0 else self._plan.asked & {CRITICAL}

    def _asks_of_lots(self, capacity: int, reserved: int) -> list[Ask]:
        """Return what to ask of lots now: a while after the last look, and only where something was seen.

        At once, as long as one of them gives all that it is asked for.
        """
        parked = self._ctx.parked
        if not parked.seen:
            parked.awaited.clear()
            self._are_lots_full = False  # the last one gave all that it had: gone, it holds no more
            return []
        if time.monotonic() < self._next_lots_s and not self._are_lots_full:
            return []
        asked = self._asked(capacity)
        openings = [opening for opening in parked.openings(self._admission.coming) if opening.stream in asked]
        if capacity < 1 and not openings:
            return []  # what is known of the others' lots holds until there is capacity for them
        part = self._plan.part_beside({opening.stream for opening in openings})
        asks = self._lot_shares.divide(openings, capacity if capacity > 0 else reserved, part, parked.places_of_ask)
        self._next_lots_s, self._are_lots_full = time.monotonic() + LOTS_S, bool(openings) and not asks
        return asks

    async def _take_parked(self) -> tuple[int, int]:
        """Take from lots, and return how many jobs came: of CRITICAL, and others."""
        asked_s = time.monotonic()
        fetched = await self._ctx.streams.take(*self._asks)
        self._weigh(fetched, asked_s)
        for ask, delivery in zip(self._asks, fetched.deliveries, strict=True):
            if delivery.is_cut or len(delivery.rows) + len(delivery.oversized) == ask.n:
                self._are_lots_full = True
            elif ask.lot != UNKNOWN:
                self._lot_shares.forgive()
                self._ctx.parked.emptied(ask.stream, ask.lot)
        await self._admission.receive(fetched, asked_s, From.LOT)
        if fetched.refused:
            raise StoreError(fetched.refused)
        critical = sum(len(delivery.rows) for delivery in fetched.deliveries if delivery.stream == CRITICAL)
        return critical, sum(len(delivery.rows) for delivery in fetched.deliveries) - critical

    async def _fetch(self, capacity: int, reserved: int) -> bool:
        """Fetch from the streams as planned, and return whether anything came."""
        most = self.entries(self._budget.bytes)
        shares, takes = self._plan.shares(min(capacity, most), min(reserved, most)), self._free
        asked_s = time.monotonic()
        fetched = await self._ctx.streams.fetch(shares, takes)
        self._weigh(fetched, asked_s)
        got = [0] * len(shares)
        for delivery in fetched.deliveries:
            got[delivery.stream] = len(delivery.rows) + len(delivery.oversized)
        self._free = fetched.free | {stream for stream in takes if not shares[stream]}
        for stream in takes | fetched.free:
            got[stream] = max(got[stream], shares[stream])  # something waits there: by no means dry
        self._plan.learn(shares, got)
        self._ask_critical_s = asked_s + CRITICAL_S if got[CRITICAL] < shares[CRITICAL] else 0.0
        self.is_fetching = not fetched.refused
        await self._admission.receive(fetched, asked_s)
        if fetched.refused:
            raise StoreError(fetched.refused)
        return any(delivery.rows for delivery in fetched.deliveries)

    async def _wait(self, closed: frozenset[int]) -> None:
        """Wait in Redis for the first entry of any stream that may be asked."""
        asked_s, paused, wait_ms = time.monotonic(), self._paused, self._wait_ms()
        ending = None
        if self._ctx.gates.is_any and wait_ms < SERVER_TICK_S * 1000:
            ending = asyncio.get_running_loop().call_later(wait_ms / 1000 + LATE_S, self._end_wait)
        self._is_waiting = True
        try:
            fetched = await self._ctx.streams.wait_for_entry(wait_ms, closed)
        finally:
            self._is_waiting = False
            if ending is not None:
                ending.cancel()
        self._weigh(fetched)
        self._free = fetched.free | (self._free & closed)
        self._is_quiet = not fetched.deliveries and closed == paused == self._paused
        if self._is_quiet:
            self._isolation.is_quiet()
        await self._admission.receive(fetched, asked_s)
        # What came starts first: while it waits in the inbox there is no capacity, and the next request would wait for the flush.
        # Measured at 200 jobs/s: a third less from XADD to the handler.
        await asyncio.sleep(0)

    def _wait_ms(self) -> int:
        """Return for how long to wait: nothing wakes the wait for what is put into a lot by another worker."""
        must_look = self._admission.has_resting or self._ctx.parked.is_any_to_take
        lots_ms = LOTS_S * 1000 if must_look else self._longest_wait_ms
        wait_ms = max(SHORTEST_WAIT_MS, min(lots_ms, self._isolation.next_ask_s * 1000))
        # Not a part of a millisecond too short: it would be for nothing, and another TOKEN_S would follow.
        return math.ceil(min(wait_ms, max(TOKEN_S, self._ctx.gates.next_look_s(time.monotonic())) * 1000))

    async def _await_capacity(self) -> None:
        """Wait until a lane is free, or until CRITICAL is due. If the process dies meanwhile, nothing is on its way to it."""
        timer = asyncio.get_running_loop().call_later(self._ask_critical_s - time.monotonic(), self.capacity_freed.set)
        try:
            await self.capacity_freed.wait()
        finally:
            timer.cancel()

    def _weigh(self, fetched: Fetched, asked_s: float | None = None) -> None:
        """Learn from what came: how large entries are, how fast the connection is, and what an answer took that did not wait."""
        if asked_s is not None:
            jobs = sum(len(delivery.rows) for delivery in fetched.deliveries)
            self._ctx.stats.fetches.note(time.monotonic() - asked_s, jobs)
        size_bytes, took_s = self._ctx.streams.came
        self._sizes.learn([(delivery.stream, delivery.rows) for delivery in fetched.deliveries], size_bytes)
        self._budget.passed(size_bytes, took_s)
        self._ctx.streams.budget_bytes = self._budget.bytes

    def _log_broken(self) -> None:
        """Log once of each stream that it cannot be read, and that it can be again."""
        streams = self._ctx.streams
        if streams.broken == self._logged_broken:
            return
        for stream, error in streams.broken.items() - self._logged_broken.items():
            self._ctx.log.stream_broken(streams.keys.streams[stream], error)
        for stream in self._logged_broken.keys() - streams.broken.keys():
            self._ctx.log.stream_whole(streams.keys.streams[stream])
        self._logged_broken = dict(streams.broken)

    async def _pause(self, wait_s: float) -> None:
        """Wait, but not for longer than until the stop."""
        try:
            async with asyncio.timeout(wait_s):
                await self._stop.wait()
        except TimeoutError:
            return


def _less(capacity: int, reserved: int, came: tuple[int, int]) -> tuple[int, int]:
    """Return what is left of both capacities after so many of CRITICAL, and so many others."""
    critical, others = came
    beside = min(critical, reserved)
    return capacity - (critical + others - beside), reserved - beside
