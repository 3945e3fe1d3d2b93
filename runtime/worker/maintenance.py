"""Maintenance moves due jobs to their streams, takes back what dead workers held, and writes the counters, every few seconds.

Every worker does it, without a leader: the scripts arbitrate, and what two workers do at once is done once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from random import random
from typing import Final

from runtime import logs
from runtime.backoff import delay_s
from runtime.codec import Summary
from runtime.errors import StoreUnavailable
from runtime.hooks import death_of
from runtime.jobs import FREE, GATE, OVERFLOW, STREAMS, SUSPECT, UNKNOWN, Lease, Letter, default_id, lot_of
from runtime.schedules import Definition, told_of_code
from runtime.schema import Declared, declared
from runtime.store.base import SAID_DEAD, End, WorkerRow
from runtime.store.unknown import kind_in_words, lot_is_known, type_and_version
from runtime.worker.context import STORE_BACKOFF, WorkerContext
from runtime.worker.listener import Told
from runtime.worker.log import level_of

log: Final = logs.guarded("runtime.maintenance")

PROMOTE_IDS: Final = 500  # a call: half a millisecond of the server at most
PROMOTE_S: Final = 1.0  # a guess: what another process delays for less than this may come up to this late
SOON_S: Final = 0.005  # a guess: between two looks for what this worker has just delayed
STUCK_S: Final = 0.25  # a guess: something is due and cannot be moved, since memory is full
RECLAIM_IDS: Final = 100  # a call: a fraction of a millisecond of the server
SWEEP_S: Final = (2.0, 5.0)  # a guess: a sweep costs a handful of calls; a third of a usual lease at most
EMPTY_LOTS_S: Final = 60.0  # a guess: nothing but memory depends on it
FORGET_LOTS: Final = 100  # a look; a guess: a few milliseconds of the server
FORGET_ROWS: Final = 20  # dead workers a sweep; a guess: many that died at once are gone within a minute
ENDS_S: Final = 20.0  # a guess: what closes a stream stays, and jobs go on running meanwhile
ROW_S: Final = 1.9  # of a second and another: the counters are written once a second
DECLARE_S: Final = 600.0  # a guess: people deploy more seldom than that, and servers lose what they had more seldom still
UNKNOWN_TOLD_S: Final = 60.0  # a guess: between two lines in the log of jobs of one type that no worker knows
MOST_UNKNOWN_TOLD: Final = 10  # types a sweep; a guess: a sender that invents names must not fill the log
DAY_S: Final = 86_400.0
ENDS_TOLD_S: Final = 300.0  # a guess: between two lines in the log of the same trouble


def clock_in(wait_s: float) -> str:
    """Return what this host's clock will show in so long; with its date where that is not soon."""
    return time.strftime("%H:%M" if wait_s < DAY_S / 2 else "%Y-%m-%d %H:%M", time.localtime(time.time() + max(0.0, wait_s)))


def jitter_s(low_s: float, high_s: float) -> float:
    """Return a wait between the two, so that workers do not sweep in step."""
    return low_s + (high_s - low_s) * random()  # noqa: S311


class Maintenance:
    """Owns three loops: promote, sweep, count. `ends` is what the last look at the ends of the streams found.

    `listen` is asked once a second what jobs here have said of themselves, `row` every ROW_S what this worker is.
    """

    def __init__(self, ctx: WorkerContext) -> None:
        self._ctx = ctx
        self._streams = ctx.streams
        self._lease_s = ctx.config.lease_s
        self._unknown_after_s = ctx.config.unknown_after_s
        self._seen_rows: dict[str, tuple[int, float]] = {}
        self._counted: dict[str, int] = {}
        self._cursor = "0"
        self._began_s = time.monotonic()
        self._known_s: dict[tuple[str, int], float] = {}  # when a live worker was last seen that knows this type and version
        self._strange: dict[str, tuple[float, float]] = {}  # lots that none knows: first seen when, and not to be told of before
        self._promote_now = asyncio.Event()
        self._next_ends_s = self._tell_ends_s = 0.0
        self._next_empty_s = time.monotonic() + jitter_s(0.0, EMPTY_LOTS_S)
        self.ends: list[End] = []
        self.schedules: Mapping[str, Definition] = {}
        self.listen: Callable[[bool], Told] = lambda is_last: Told()
        self.row: Callable[[], WorkerRow] = WorkerRow
        self._waiting: dict[int, int] = {}  # as the last look found it, until it is written
        self._next_row_s = 0.0
        self._has_news = False
        self._next_declare_s = 0.0

    def __repr__(self) -> str:
        return f"<Maintenance {len(self._seen_rows)} workers known>"

    # --- delayed jobs --------------------------------------------------------------------------------------------

    async def promote(self) -> None:
        """Move delayed jobs to their streams when their time has come, until cancelled."""
        failures = 0
        while True:
            try:
                run = await self._streams.promote(PROMOTE_IDS, self._cursor)
            except StoreUnavailable as error:
                failures += 1
                log.log(level_of(error, failures), "delayed jobs do not move: %s (`doctor` looks at them)", error)
                await asyncio.sleep(delay_s(failures, STORE_BACKOFF, random))
                continue
            failures, self._cursor = 0, run.cursor
            if run.bad:
                log.error("%d delayed records could not be read: they are among the dead letters", run.bad)
            if run.wait_ms == 0 and run.moved and not run.is_full:
                continue  # a full run is repeated at once, as long as it moves something
            await self._doze(PROMOTE_S if run.wait_ms < 0 else min(run.wait_ms / 1000 or STUCK_S, PROMOTE_S))

    def due_within(self, wait_s: float) -> None:
        """Note that we have just delayed a job for this long: look again in time."""
        if wait_s < PROMOTE_S:
            self._promote_now.set()

    async def _doze(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._promote_now.wait()
        except TimeoutError:
            return
        self._promote_now.clear()
        await asyncio.sleep(SOON_S)  # at most 200 looks a second, however many jobs are delayed

    # --- the sweep ------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Look every few seconds for lots, for what the dead left, and for the dead themselves, until cancelled."""
        failures = 0
        low_s, high_s = (min(bound_s, self._lease_s * part) for bound_s, part in zip(SWEEP_S, (0.2, 0.5), strict=True))
        while True:
            try:
                await self.sweep_once()
            except StoreUnavailable as error:
                failures += 1
                log.log(level_of(error, failures), "what dead workers left is not looked for: %s", error)
            else:
                failures = 0
            await asyncio.sleep(jitter_s(low_s, high_s))

    async def sweep_once(self) -> None:
        """Do one round of the sweep.

        Raises:
            StoreUnavailable: the store did not answer; the next round does what is left.
        """
        await self._look_at_ends()
        busy = await self._look_for_lots()
        await self._adopt_strange_lots()
        await self._forget_empty_lots()
        workers = await self._streams.workers()
        still = self._standing_still(workers)
        living = [row for name, (_, row) in workers.items() if name not in still]
        self._tell_unknown(living)
        if not self._ctx.leases.may_reclaim:
            return
        is_guarded = any([await self._reclaim(stream, still) for stream in busy])
        if not is_guarded:
            await self._dead_letter_unknown(living)
        await self._forget_the_dead(workers, is_guarded)

    async def _reclaim(self, stream: int, still: Mapping[str, int]) -> bool:
        """Take back what the dead held on a stream; return whether the guard holds."""
        while True:
            found = await self._streams.reclaim(stream, int(self._lease_s * 1000), RECLAIM_IDS, still)
            if found.dead or found.undelivered:
                self._ctx.parked.has_suspects = self._ctx.parked.has_suspects or found.dead > 0
                self._ctx.stats.moved(b"", stream, "reclaimed", found.dead)
                self._ctx.stats.moved(b"", stream, "undelivered", found.undelivered)
                told = f": {', '.join(found.jobs)}{', …' if found.dead > len(found.jobs) else ''}" if found.jobs else ""
                text = "took back %d jobs of dead workers and %d lost deliveries%s"
                log.info(text, found.dead, found.undelivered, told)
            if found.dead + found.undelivered < RECLAIM_IDS:
                return found.is_guarded

    async def _forget_empty_lots(self) -> None:
        """Forget lots whose last job was moved by another script than those that hand out: XPENDING does not list them."""
        now_s = time.monotonic()
        if now_s < self._next_empty_s:
            return
        self._next_empty_s = now_s + EMPTY_LOTS_S
        for lot in list(await self._streams.empty_lots())[:FORGET_LOTS]:
            await self._streams.forget(lot)

    async def _look_at_ends(self) -> None:
        """Look whether an id far ahead has closed a stream, or memory is full, and log it."""
        now_s = time.monotonic()
        if now_s < self._next_ends_s:
            return
        self._next_ends_s = now_s + ENDS_S
        self.ends = await self._streams.ends()
        self._ctx.log.room(await self._streams.room())
        if self.troubles and now_s >= self._tell_ends_s:
            self._tell_ends_s = now_s + ENDS_TOLD_S
            for trouble in self.troubles:
                log.error("%s; hint: python -m runtime jobs reopen", trouble)

    @property
    def troubles(self) -> list[str]:
        """What the last look at the ends of the streams found, for people."""
        at_end = zip((*STREAMS, "dead"), self.ends, strict=False)
        return [f"the stream {name} {trouble}" for name, end in at_end for trouble in end.troubles]

    @property
    def ahead_s(self) -> dict[str, float]:
        """How far the last id of each stream lay ahead when we last looked."""
        return {name: end.ahead_ms / 1000 for name, end in zip((*STREAMS, "dead"), self.ends, strict=False)}

    async def _look_for_lots(self) -> set[int]:
        """Look what is parked; return the streams of which workers hold something, else one with a lot, to hear of the guard."""
        before = self._ctx.parked.begin_look()
        lots, busy, self._waiting = await self._streams.lots()
        self._ctx.parked.saw(lots, before)
        self._ctx.gates.saw(lots, time.monotonic())
        return busy or {stream for stream, _ in list(lots)[:1]}

    def _standing_still(self, workers: dict[str, tuple[int, WorkerRow]]) -> dict[str, int]:
        """Return the workers whose row has not moved for two of their leases by our own clock, and where it stands:
        dead, whatever the server's clock says.
        """
        now_s = time.monotonic()
        seen = {name: self._seen_rows.get(name, (0, 0.0)) for name in workers}
        for name, (until_ms, _) in workers.items():
            if seen[name][0] != until_ms:
                seen[name] = (until_ms, now_s)
        self._seen_rows = seen
        return {
            name: until_ms
            for name, (until_ms, since_s) in seen.items()
            if name != self._streams.consumer and now_s - since_s > 2 * max(self._lease_s, workers[name][1].lease_s)
        }

    def _stood_s(self, name: str, now_s: float) -> float:
        return now_s - self._seen_rows[name][1]

    async def _forget_the_dead(self, workers: dict[str, tuple[int, WorkerRow]], is_guarded: bool) -> None:
        """Forget workers that were said to be dead, and unless the guard holds those whose row has stood still for long."""
        now_s = time.monotonic()
        dead = [
            name
            for name, (until_ms, row) in workers.items()
            if name != self._streams.consumer
            and (until_ms == SAID_DEAD or (not is_guarded and self._stood_s(name, now_s) > 2 * max(self._lease_s, row.lease_s)))
        ]
        for name in dead[:FORGET_ROWS]:
            if await self._streams.forget(name, workers[name][0]):
                log.info("forgot the dead worker %s", name)

    async def _adopt_strange_lots(self) -> None:
        """A `~` name that no rule of ours knows (a newer version made it) is anybody's once it has stood for a lease.

        Asked of the lots there are now: the next sweep meets one that comes meanwhile, and one that goes answers with nothing.
        """
        for stream, lot in list(self._ctx.parked.seen):
            is_strange = lot not in (FREE, SUSPECT) and not lot.startswith((UNKNOWN, GATE, OVERFLOW))
            if is_strange and await self._streams.waiting_longest(stream, lot, int(self._lease_s * 1000), 1):
                self._ctx.parked.adopt(lot)

    def _tell_unknown(self, live_rows: list[WorkerRow]) -> None:
        """Log what waits for a worker that knows it, and until when; of each type once a minute."""
        now_s, waiting = time.monotonic(), Counter[str]()
        living = [kind for row in live_rows for kind in row.types.items()]
        for (_, lot), count in self._ctx.parked.seen.items():
            if lot.startswith(UNKNOWN) and count and not self._ctx.parked.can_run(lot):
                waiting[lot] += count
        before, told = self._strange, 0
        self._strange = {lot: before.get(lot, (now_s, now_s)) for lot in waiting}
        for lot, (since_s, tell_s) in self._strange.items():
            if tell_s > now_s or told == MOST_UNKNOWN_TOLD or lot_is_known(lot, living):
                continue
            told += 1
            self._strange[lot] = since_s, now_s + UNKNOWN_TOLD_S
            seen_s = [at_s for kind, at_s in self._known_s.items() if lot_is_known(lot, [kind])]
            dead_s = max(since_s, self._began_s, *seen_s) + self._unknown_after_s
            wait = "1 job waits" if waiting[lot] == 1 else f"{waiting[lot]} jobs wait"
            text = "%s: %s, and no worker that lives knows it; dead letters from %s on unless one does; hint: %s"
            hint = "start a worker that has its handler; `jobs list --state parked` shows the jobs"
            log.warning(text, kind_in_words(lot), wait, clock_in(dead_s - now_s), hint)

    async def _dead_letter_unknown(self, live_rows: list[WorkerRow]) -> None:
        """Bury what no live worker has known for long.

        How long a job has stood in its lot does not tell: it may have waited for a thread, and its workers be starting again. So
        each worker counts from when it last saw one that knows it, or from its own start.
        """
        known = set[tuple[str, int]]().union(*[row.types.items() for row in live_rows])
        now_s = time.monotonic()
        since_s = now_s - self._unknown_after_s
        self._known_s = {kind: seen_s for kind, seen_s in self._known_s.items() if seen_s > since_s} | dict.fromkeys(known, now_s)
        known = set(self._known_s)
        if now_s < self._began_s + self._unknown_after_s:
            return
        idle_ms = int(self._unknown_after_s * 1000)
        for stream, lot in list(self._ctx.parked.seen):
            is_shared = lot in (UNKNOWN, SUSPECT) or (lot.startswith((GATE, OVERFLOW)) and not self._ctx.gates.is_kept(lot))
            if not is_shared and (not lot.startswith(UNKNOWN) or lot_is_known(lot, known)):
                continue
            letters: list[Letter] = []
            abouts: dict[int, Summary] = {}
            for entry, count, about in await self._streams.waiting_longest(stream, lot, idle_ms, RECLAIM_IDS):
                name = about.type.decode(errors="replace")
                if not is_shared or not lot_is_known(lot_of(name, about.version), known):
                    what = f"{name}@{about.version}" if is_shared else lot[len(UNKNOWN) :]
                    reason = f"no live worker has known {what} for {self._unknown_after_s:g} s"
                    lease = Lease(stream, entry, count, "", 0.0)
                    trace = self._ctx.died(lease, about.type, "unknown-type", reason)
                    job_id = default_id(STREAMS[stream], entry.decode())
                    letters.append(Letter(lease, "unknown-type", reason, "", 0, job_id, trace))
                    abouts[id(letters[-1])] = about
            if letters:
                moved = await self._streams.dead_letter(lot, letters)
                await self._streams.forget(lot)  # a lot that is empty now is listed no more
                self._ctx.stats.moved(b"" if is_shared else type_and_version(lot)[0].encode(), stream, "dead", len(moved))
                extra = {"reason": "unknown-type"}
                log.error("%d jobs of unknown type are among the dead letters (%s)", len(moved), lot, extra=extra)
                if self._ctx.hooks is not None:
                    told = [(letter, abouts[id(letter)]) for letter in moved]
                    self._ctx.hooks.died([death_of(letter, about.type, about.id) for letter, about in told])

    # --- counters ------------------------------------------------------------------------------------------------

    async def count(self) -> None:
        """Add what this process counted to the shared counters once a second, and hear of new rules, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            await self._ctx.orders.look(await self.count_once())
            if time.monotonic() >= self._next_declare_s:
                self._next_declare_s = time.monotonic() + DECLARE_S
                await self.declare()

    async def declare(self) -> None:
        """Write down which contracts, handlers and schedules this worker has.

        Again now and then, or a server that lost them has none.
        """
        config, now_ms = self._ctx.config, int(time.time() * 1000)
        contracts: list[Declared] = []
        for handler in list(self._ctx.registry.values()):
            contracts.append(declared(handler, config.app_version, self._streams.consumer, now_ms))
            await asyncio.sleep(0)  # a schema takes up to a millisecond
        try:
            await self._streams.declare(contracts, told_of_code(self.schedules))
        except StoreUnavailable as error:
            log.debug("contracts are not written down: %s", error)

    async def count_once(self, *, is_last: bool = False) -> str | None:
        """Write what was counted since the last time, and what jobs say; return how often the rules were changed.

        None without an answer. With `is_last`, all jobs have ended.
        """
        counts: list[tuple[str, int]] = []
        for name, total in self._ctx.stats.totals():
            if total != self._counted.get(name, 0):
                counts.append((name, total - self._counted.get(name, 0)))
                self._counted[name] = total
        told = self.listen(is_last)
        if told.left_out:
            self._ctx.log.warn("lines of %d runs are left out: too many ended within a second", told.left_out)
        depths, self._waiting = self._waiting, {}
        row = None if is_last else self._row_if_due()
        minute = int(time.time() // 60)
        try:
            return await self._streams.count(
                minute, counts, told.progress, told.ended, events=told.events, depths=depths, row=row
            )
        except StoreUnavailable as error:
            log.debug("a second of statistics is lost: %s", error)
            return None

    def _row_if_due(self) -> WorkerRow | None:
        """Return what this worker is, where there is news and it is time: beats tell it seldom. An idle one has no news."""
        now_s, is_busy = time.monotonic(), len(self._ctx.held) > 0
        self._has_news = self._has_news or is_busy
        if not self._has_news or now_s < self._next_row_s:
            return None
        self._has_news, self._next_row_s = is_busy, now_s + ROW_S
        return self.row()
