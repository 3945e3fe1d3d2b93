"""Work that no job asked for, done by every worker without a leader, since the scripts arbitrate: delayed jobs to their streams,
the leases of the dead to whoever lives, lots, and the counters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from random import random
from typing import Final

from runtime import logs
from runtime.backoff import Backoff, delay_s
from runtime.errors import StoreUnavailable
from runtime.jobs import FREE, STREAMS, SUSPECT, UNKNOWN, Lease, Letter, default_id, lot_of
from runtime.stats import Stats
from runtime.store.base import End, WorkerRow, parse_int
from runtime.streams import Streams
from runtime.worker.log import level_of

log = logs.guarded("runtime.worker.maintenance")

STORE_BACKOFF: Final = Backoff(base_s=0.05, cap_s=5.0)
PROMOTE_IDS: Final = 500
PROMOTE_S: Final = 1.0  # what somebody else delays for less than this may come up to this late
SOON_S: Final = 0.005
STUCK_S: Final = 0.25  # something is due and cannot be moved: memory is full
RECLAIM_IDS: Final = 100
FAR: Final = 10**18  # a version that nobody knows
SWEEP_S: Final = (2.0, 5.0)
FORGET_ROWS: Final = 20
ENDS_S: Final = 20.0  # a guess: what closes a stream stays, and jobs go on running meanwhile
ENDS_TOLD_S: Final = 300.0
MAX_UNKNOWN: Final = 256  # lots of unknown names; a producer with a typo per message must not make a consumer each


def jitter_s(low_s: float, high_s: float) -> float:
    """Return a wait between the two, so that workers do not sweep in step."""
    return low_s + (high_s - low_s) * random()  # noqa: S311


class Maintenance:
    """Owns three loops: promote, sweep, count. `lots` is what the last sweep saw, for the fetcher to take from."""

    def __init__(
        self,
        streams: Streams,
        stats: Stats,
        types: dict[str, int],
        lease_s: float,
        unknown_after_s: float,
        may_reclaim: Callable[[], bool],
    ) -> None:
        self._streams = streams
        self._stats = stats
        self._types = types
        self._lease_s = lease_s
        self._unknown_after_s = unknown_after_s
        self._may_reclaim = may_reclaim
        self._seen_rows: dict[str, tuple[int, float]] = {}
        self._counted: dict[str, int] = {}
        self._adopted: set[str] = set()
        self._cursor = "0"
        self._began_s = time.monotonic()
        self._known_s: dict[tuple[str, int], float] = {}  # when a live worker was last seen that knows this type and version
        self._promote_now = asyncio.Event()
        self._new_lots: set[tuple[int, str]] = set()
        self.lots: dict[tuple[int, str], int] = {}
        self.unknown_lots: set[str] = set()
        self.has_suspects = False
        self._next_ends_s = self._tell_ends_s = 0.0
        self.ends: list[End] = []
        self.on_parked: Callable[[], None] = lambda: None

    # --- delayed jobs --------------------------------------------------------------------------------------------

    async def promote(self) -> None:
        """Move delayed jobs to their streams when their time has come, for ever."""
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
                log.warning("%d delayed records could not be read: they are among the dead letters", run.bad)
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
        """Look every few seconds for lots, for what the dead left, and for the dead themselves, for ever."""
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
        workers = await self._streams.workers()
        still = self._standing_still(workers)
        if not self._may_reclaim():
            return
        for stream in busy:
            while True:
                found = await self._streams.reclaim(stream, int(self._lease_s * 1000), RECLAIM_IDS, still)
                if found.is_guarded:
                    return
                if found.dead or found.undelivered:
                    self.has_suspects = self.has_suspects or found.dead > 0
                    self._stats.moved(b"", stream, "reclaimed", found.dead)
                    self._stats.moved(b"", stream, "undelivered", found.undelivered)
                    log.info("took back %d jobs of dead workers and %d lost deliveries", found.dead, found.undelivered)
                if found.dead + found.undelivered < RECLAIM_IDS:
                    break
        await self._dead_letter_unknown([row for name, (_, row) in workers.items() if name not in still])
        await self._forget_the_dead(workers)

    async def _look_at_ends(self) -> None:
        """See whether somebody's id has closed a stream, and say so."""
        now_s = time.monotonic()
        if now_s < self._next_ends_s:
            return
        self._next_ends_s = now_s + ENDS_S
        self.ends = await self._streams.ends()
        if self.troubles and now_s >= self._tell_ends_s:
            self._tell_ends_s = now_s + ENDS_TOLD_S
            for trouble in self.troubles:
                log.error("%s; the way out: python -m runtime jobs reopen", trouble)

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
        """Look what is parked; give the streams of which workers hold something, else one with a lot, to hear of the guard."""
        before, self._new_lots = self._new_lots, set()
        lots, busy = await self._streams.lots()
        # What was to be parked just now may not be written yet: its lot counts all the same.
        self.lots = {**dict.fromkeys(before | self._new_lots, 0), **lots}
        self.unknown_lots = {name for _, name in self.lots if name.startswith(UNKNOWN) and not self.can_run(name)}
        self.has_suspects = any(name == SUSPECT for _, name in lots)
        return busy or {stream for stream, _ in list(lots)[:1]}

    def lot_for(self, lot: str) -> str:
        """Return this lot of an unknown type, or the shared one where there are too many: producers can invent any name."""
        if lot not in self.unknown_lots:
            if len(self.unknown_lots) >= MAX_UNKNOWN:
                return UNKNOWN
            self.unknown_lots.add(lot)
            self._new_lots.update((stream, lot) for stream in range(4))
            self.lots.update(dict.fromkeys([(stream, lot) for stream in range(4)], 0))
        return lot

    def parked(self, places: Iterable[tuple[int, str]]) -> None:
        """Note lots, by stream and name, into which this worker has just put jobs: what it can run is taken from there again."""
        new = {at for at in places if at[1] != FREE and self.can_run(at[1])}
        self._new_lots |= new
        if new:
            self.lots = dict.fromkeys(new, 0) | self.lots
            self.on_parked()

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

    async def _forget_the_dead(self, workers: dict[str, tuple[int, WorkerRow]]) -> None:
        now_s = time.monotonic()
        dead = [
            name
            for name, (_, row) in workers.items()
            if name != self._streams.consumer and now_s - self._seen_rows[name][1] > 2 * max(self._lease_s, row.lease_s)
        ]
        for name in dead[:FORGET_ROWS]:
            if await self._streams.forget(name, workers[name][0]):
                log.info("forgot the dead worker %s", name)

    async def _adopt_strange_lots(self) -> None:
        """A `~` name that no rule of ours knows (a newer version made it) is anybody's once it has stood for a lease.

        Asked of the lots there are now: the next sweep meets one that comes meanwhile, and one that goes answers with nothing.
        """
        for stream, lot in list(self.lots):
            is_strange = lot not in (FREE, SUSPECT) and not lot.startswith(UNKNOWN)
            if is_strange and await self._streams.waiting_longest(stream, lot, int(self._lease_s * 1000), 1):
                self._adopted.add(lot)

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
        for (stream, lot), _ in list(self.lots.items()):
            is_shared = lot in (UNKNOWN, SUSPECT)
            if not is_shared and (not lot.startswith(UNKNOWN) or lot_is_known(lot, known)):
                continue
            letters: list[Letter] = []
            for entry, count, type_name, version in await self._streams.waiting_longest(stream, lot, idle_ms, RECLAIM_IDS):
                name = type_name.decode(errors="replace")
                if not is_shared or not lot_is_known(lot_of(name, version), known):
                    what = f"{name}@{version}" if is_shared else lot[len(UNKNOWN) :]
                    reason = f"no live worker has known {what} for {self._unknown_after_s:g} s"
                    lease = Lease(stream, entry, count, "", 0.0)
                    letters.append(Letter(lease, "unknown-type", reason, "", 0, default_id(STREAMS[stream], entry.decode())))
            if letters:
                moved = await self._streams.dead_letter(lot, letters)
                await self._streams.forget(lot)  # a lot that is empty now is seen by nobody any more
                self._stats.moved(b"", stream, "dead", moved)
                log.warning("%d jobs of unknown type are among the dead letters (%s)", moved, lot)

    def can_run(self, lot: str) -> bool:
        """Return whether this worker may take from a lot: its type and version, or the shared lot."""
        if lot in (FREE, UNKNOWN):
            return True
        if not lot.startswith(UNKNOWN):
            return lot in self._adopted
        name, _, version = lot[len(UNKNOWN) :].rpartition("@")
        return (parse_int(version) or FAR) <= self._types.get(name, 0)

    # --- counters ------------------------------------------------------------------------------------------------

    async def count(self) -> None:
        """Add what this process counted to the shared counters once a second, for ever."""
        while True:
            await asyncio.sleep(1.0)
            await self.count_once()

    async def count_once(self) -> None:
        """Write what was counted since the last time."""
        counts: list[tuple[str, int]] = []
        for name, total in self._stats.totals():
            if total != self._counted.get(name, 0):
                counts.append((name, total - self._counted.get(name, 0)))
                self._counted[name] = total
        if counts:
            try:
                await self._streams.count(int(time.time() // 60), counts)
            except StoreUnavailable as error:
                log.debug("a second of statistics is lost: %s", error)


def lot_is_known(lot: str, known: set[tuple[str, int]]) -> bool:
    """Return whether a live worker can run what waits in this lot of a type."""
    name, _, version = lot[len(UNKNOWN) :].rpartition("@")
    return any(name == known_name and (parse_int(version) or FAR) <= newest for known_name, newest in known)
