"""A worker: fetch, decode, admit, run, decide, settle. One task group owns it all, and stopping has named stages.

What happens when the process dies: before a fetch's reply, the walk of others finds entries that nobody renews; with jobs in the
inbox or in lanes, the same; after a handler ended and before its flush, the job runs once more; during a flush, the server did
all of it or the walk finds it. No await stands between reading and writing Inbox, Ledger, Held or Stage.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from random import random
from typing import Any, Final
from uuid import uuid4

import msgspec

from runtime.backoff import Backoff, delay_s
from runtime.codec import decode_many
from runtime.config import Config
from runtime.errors import LeaseLost, SelfCancelled, StoreAway, TimedOut
from runtime.events import Tally, outcome_name
from runtime.jobs import FREE, UNKNOWN, Batch, Dead, Job, Lease, Lost, Outcome, Park, Registry, Retry
from runtime.lanes import Inbox, Lane
from runtime.lease import Beat, Heartbeat, Held, Watched
from runtime.plan import Plan
from runtime.scheduler import MAX_UNKNOWN, Scheduler
from runtime.settle import Ledger, admit, admit_keyed, decide, empty_batch
from runtime.streams import MAX_IDS, Fetched, Settled, Streams

log = logging.getLogger("runtime.consumer")

STORE_BACKOFF: Final = Backoff(base_s=0.05, cap_s=5.0)
TICK_S: Final = 0.05
RATE_TICKS: Final = 2  # read-ahead looks at what finished in the last 100 ms
MAX_READ_AHEAD: Final = 2000  # without a cap one beat would renew 15,500 leases: 130 ms of a blocked server
UNSTARTED_S: Final = 1.0
BELL_MS: Final = 1000
ROOMS_S: Final = 0.25
FLUSH_AGE_S: Final = 0.0015
SILENT_PART: Final = 0.8  # of a lease without a heartbeat: then nothing new is started
CUT_S: Final = 2.0
FLUSH_S: Final = 2.0
UNRING_S: Final = 4.0
MAX_FETCH: Final = 1_000_000  # entries a fetch may ask for; halved each time that none comes through
LOG_LINES_S: Final = 20  # failures per second that get a line of their own


class Stage(Enum):
    """How far this worker is on its way."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    CUTTING = "cutting"
    FLUSHING = "flushing"
    CLOSED = "closed"


class Report(msgspec.Struct):
    """What a worker says at its end."""

    seconds: float
    finished: int
    released: int
    left: int

    def __str__(self) -> str:
        left = f", {self.left} left to their leases" if self.left else ""
        return f"stopped in {self.seconds:.1f} s: {self.finished} runs finished, {self.released} jobs given back{left}"


def consumer_name() -> str:
    """Give a name that no other boot has: a name used twice would hide what the first one left."""
    host = "".join(char if char.isalnum() or char in "-._" else "-" for char in socket.gethostname()) or "host"
    return f"{host[:40]}-{os.getpid()}-{uuid4().hex[:8]}"


class Consumer:
    """Owns Inbox, Ledger, Held, Stage, and every task of the worker.

    `leave` is called at the end of a stop when a handler could not be ended; it may end the process.
    """

    def __init__(
        self, config: Config, url: str, registry: Registry, leave: Callable[[Report], None] = lambda report: None
    ) -> None:
        self.config = config
        self._leave = leave
        self.registry = registry
        self.name = consumer_name()
        self.stage = Stage.STARTING
        self.tally = Tally()
        self.held = Held()
        self.ledger = Ledger(self._wake_flusher)
        self.inbox = Inbox(self._on_idle)
        self.streams = Streams(url, config.queue, self.name)
        self._url = url
        self._types = {handler.contract.type: handler.contract.version for handler in registry.values()}
        self.scheduler = Scheduler(
            self.streams, self.tally, self._types, config.lease_s, config.unknown_after_s, self._may_reclaim
        )
        self.lanes: list[Lane] = []
        self._most = MAX_FETCH
        self._plan = Plan()
        self._takes: set[int] = set()
        self._is_quiet = False  # the bell has not rung: nothing can be there but what rooms hold
        self._room_made = asyncio.Event()
        self._flush_now = asyncio.Event()
        self._to_flush = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._finished_before = [0] * RATE_TICKS
        self._confirmed_s = time.monotonic()
        self._own_guard_until_s = 0.0
        self._run_heard = ""
        self._next_rooms_s = 0.0
        self._watched = Watched(time.monotonic(), threading.get_ident(), self._running_now)
        self._log_budget = _Budget()
        self._apart = empty_batch()
        self._apart_failures = 0
        self._apart_until_s = 0.0
        self._released = 0
        self._stopping_since_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heartbeat: Heartbeat | None = None
        self.is_fetching = False

    def __repr__(self) -> str:
        return (
            f"<Consumer {self.name} {self.stage.value}: {self.inbox!r}, {self.running} running, {self.ledger!r}, {self.held!r}>"
        )

    @property
    def running(self) -> int:
        """How many handlers run now."""
        return sum(1 for lane in self.lanes if lane.job is not None and not (lane.task and lane.task.done()))

    @property
    def is_ready(self) -> bool:
        """Say whether the store answers and this worker fetches."""
        is_fresh = time.monotonic() - self._confirmed_s < SILENT_PART * self.config.lease_s
        return self.stage is Stage.RUNNING and self.is_fetching and is_fresh

    @property
    def is_alive(self) -> bool:
        """Say whether the loop moves; says nothing about Redis, or one outage would restart a whole fleet."""
        return time.monotonic() - self._watched.moved_s < self.config.max_block_s

    # --- from start to end ---------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begin to stop; a second call skips the grace."""
        if self._stop.is_set():
            self._hurry.set()
        else:
            self._stopping_since_s = time.monotonic()
            self._stop.set()

    async def run(self) -> Report:
        """Run jobs until told to stop; a background loop that crashes ends the worker with its traceback, and nothing is lost.

        Raises:
            StoreAway: Redis did not answer at the start.
        """
        loop = asyncio.get_running_loop()
        await self.streams.start()
        self._watched.moved_s = self._confirmed_s = time.monotonic()
        heartbeat = Heartbeat(
            self._url,
            self.config.queue,
            self.name,
            self.config.lease_s,
            self.config.max_block_s,
            self.held,
            self._watched,
            self._row,
            lambda beat: _tell(loop, self._judge, beat),
        )
        heartbeat.start()
        self._heartbeat = heartbeat
        try:
            async with asyncio.TaskGroup() as group:
                fetcher = group.create_task(self._fetch_for_ever())
                flusher = group.create_task(self._flush_for_ever())
                loops = [self._watch(group), self.scheduler.promote(), self.scheduler.walk(), self.scheduler.count()]
                aides = [group.create_task(loop) for loop in loops]
                for _ in range(self.config.concurrency):
                    self._open_lane(group)
                self.stage = Stage.RUNNING
                await self._stop.wait()
                report = await self._wind_down(fetcher, flusher, aides, heartbeat)
        finally:
            heartbeat.stop()
            await self.streams.close()
        return report

    def _open_lane(self, group: asyncio.TaskGroup) -> None:
        lane = Lane(self.inbox, self.ledger, self.tally, self.registry, time.monotonic, random, self._tell_failure)
        lane.task = group.create_task(lane.run())
        self.lanes.append(lane)

    # --- fetch -----------------------------------------------------------------------------------------------------------

    def _read_ahead(self) -> int:
        return min(self.tally.finished - self._finished_before[0], MAX_READ_AHEAD)

    def _room(self) -> int:
        """How many jobs may be fetched now: lanes and read-ahead, less all that is held. Topped up when below half."""
        read_ahead = self._read_ahead()
        if len(self.inbox) > read_ahead // 2 or self._is_silent():
            return 0
        return len(self.lanes) + read_ahead - len(self.held)

    def _is_silent(self) -> bool:
        return time.monotonic() - self._confirmed_s > SILENT_PART * self.config.lease_s

    async def _fetch_for_ever(self) -> None:
        failures = 0
        while self.stage in (Stage.STARTING, Stage.RUNNING):
            room = min(self._room(), self._most)
            if room < 1:
                self._room_made.clear()
                await self._room_made.wait()
                continue
            try:
                await self._fetch(room)
                failures, self.is_fetching = 0, True
                self._most = min(2 * self._most, MAX_FETCH)
            except StoreAway as error:
                failures += 1
                self._most = max(
                    1, min(room, self._most) // 2
                )  # large entries on a slow line: ask for less, or never get through
                self._tell_store_away(error, failures)
                await self._pause(delay_s(failures, STORE_BACKOFF, random))

    async def _fetch(self, room: int) -> None:
        """Fill the room: from rooms we may take from, else as planned, else wait for the bell."""
        if await self._take_from_rooms(room):
            return
        can_ring = room >= min(4, len(self.lanes))  # one entry per stream may come
        if not (self._is_quiet and can_ring and not self._takes):
            shares, takes = self._plan.shares(room), self._takes
            shares = [max(share, int(stream in takes)) for stream, share in enumerate(shares)]
            fetched = await self.streams.fetch(shares, takes)
            got = [0, 0, 0, 0]
            for haul in fetched.hauls:
                got[haul.stream] = len(haul.rows)
            self._takes = fetched.free
            for stream in takes | fetched.free:
                got[stream] = max(got[stream], shares[stream])  # something waits there: by no means dry
            self._plan.learn(shares, got)
            await self._receive(fetched)
            if any(haul.rows for haul in fetched.hauls) or self._takes or self.stage is not Stage.RUNNING:
                return
        if can_ring:
            rung = await self.streams.ring(self._bell_ms())
            self._takes, self._is_quiet = rung.free, not rung.hauls
            await self._receive(rung)
        else:
            await self._pause(TICK_S)

    def _bell_ms(self) -> int:
        """Rooms ring no bell: where one is not empty, the blocked read must end soon."""
        return int(ROOMS_S * 1000) if self._open_rooms() else BELL_MS

    def _open_rooms(self) -> list[tuple[int, str]]:
        return [at for at in self.scheduler.rooms if at[1] != FREE and self.scheduler.can_run(at[1])]

    async def _take_from_rooms(self, room: int) -> bool:
        """Take from rooms of types that we can run; every quarter of a second at most, and only where something was seen."""
        if not self.scheduler.rooms or time.monotonic() < self._next_rooms_s:
            return False
        self._next_rooms_s = time.monotonic() + ROOMS_S
        taken = False
        for stream, name in self._open_rooms():
            types = self._types if name == UNKNOWN else None
            fetched = await self.streams.take(stream, name, room, types)
            size = sum(len(haul.rows) for haul in fetched.hauls)
            if size < min(room, MAX_IDS) and name != UNKNOWN:
                self.scheduler.rooms.pop((stream, name), None)
            await self._receive(fetched)
            room -= size
            taken = taken or size > 0
            if room < 1:
                break
        return taken

    async def _receive(self, fetched: Fetched) -> None:
        """Decode, hold and admit what came; only keyed jobs wait for another answer."""
        keyed: list[Job] = []
        now_s = time.monotonic()
        for haul in fetched.hauls:
            if haul.rows:
                middle: bytes = haul.rows[len(haul.rows) // 2][0]
                self.tally.waited(haul.stream, fetched.now_ms - int(middle.partition(b"-")[0]), len(haul.rows))
            jobs, bad = decode_many(
                haul.stream, haul.rows, haul.counts, fetched.run, now_s, fetched.now_ms, self.config.max_data_bytes
            )
            for entry in bad:
                if self.held.add(haul.stream, [entry.lease]):
                    self.ledger.add_bad(entry)
                    self.tally.moved(b"", haul.stream, "dead")
                    self._say("unreadable entry %s on %s: %s", entry.lease.entry.decode(), haul.stream, entry.reason)
            admitted = admit(self.held.add(haul.stream, jobs), self.registry, fetched.now_ms)
            keyed += admitted.keyed
            self._turn_away(admitted.turned_away)
            self.inbox.put(admitted.ready)
        if keyed:
            await self._receive_keyed(keyed, fetched.now_ms)

    async def _receive_keyed(self, keyed: list[Job], now_ms: int) -> None:
        """Claim the keys of a batch. Without an answer the jobs are given back: nobody knows whose they are."""
        admitted = admit(keyed, self.registry, now_ms)
        try:
            verdicts = await self.streams.admit([(job, job.envelope.key) for job in keyed])
        except StoreAway:
            self.ledger.release(keyed)
            raise
        copies = admit_keyed(admitted, verdicts, now_ms)
        for job in copies:
            self.tally.moved(job.type, job.stream, "copy")
        self.held.remove(copies)
        self._turn_away(admitted.turned_away)
        self.inbox.put(admitted.ready)

    def _turn_away(self, turned_away: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in turned_away:
            if isinstance(outcome, Lost):  # somebody else's by now: nothing to write, nothing to hold
                self.held.remove([job])
                continue
            word = self._into_shared_room(outcome) if isinstance(outcome, Park) else outcome
            self.ledger.add(job, word)
            self.tally.moved(job.type if job.type in self.registry else b"", job.stream, outcome_name(word))
            if isinstance(word, Dead):
                self._say("job %s is dead: %s", job.id, word)

    def _into_shared_room(self, park: Park) -> Park:
        """Bound the number of rooms that producers can make by inventing names."""
        rooms = self.scheduler.rooms
        named = {name for _, name in rooms if name.startswith(UNKNOWN)}
        if park.room in named:
            return park
        if len(named) >= MAX_UNKNOWN:
            return Park(UNKNOWN)
        for stream in range(4):
            rooms.setdefault((stream, park.room), 0)
        return park

    # --- settle ----------------------------------------------------------------------------------------------------------

    def _wake_flusher(self) -> None:
        self._to_flush.set()

    def _on_idle(self) -> None:
        """The last lane has nothing to do: what is in the ledger need not wait for company, and the fetcher need not either."""
        if self.inbox.idle >= len(self.lanes):
            self._flush_now.set()

    async def _flush_for_ever(self) -> None:
        failures = 0
        while True:
            await self._to_flush.wait()
            await self._gather()
            self._to_flush.clear()
            try:
                await self._flush()
                failures = 0
            except StoreAway as error:
                failures += 1
                self._tell_store_away(error, failures)
                await asyncio.sleep(delay_s(failures, STORE_BACKOFF, random))

    async def _gather(self) -> None:
        """Wait until a flush is worth its round trip: all lanes idle, or the oldest outcome is old enough."""
        self._flush_now.clear()
        if self.inbox.idle >= len(self.lanes):
            return
        try:
            async with asyncio.timeout(FLUSH_AGE_S):
                await self._flush_now.wait()
        except TimeoutError:
            return

    async def _flush(self) -> None:
        """Write all that is in the ledger; without an answer it all goes back, to be asked again.

        A move that the server answers with an error concerns that move alone: it waits apart, and holds up nobody.
        """
        batch = self.ledger.take()
        if not len(batch):
            return
        parked_s = [move.lease.taken_s for move in batch.park]
        try:
            settled = await self.streams.settle(batch)
        except BaseException:
            self.ledger.put_back(batch)
            raise
        self._keep_apart(settled)
        kept = {id(lease) for lease in leases_of(settled.left)}
        # Given back and taken again by ourselves before the answer was read: that lease is new, and nobody runs it yet.
        again = [move.lease for move, taken_s in zip(batch.park, parked_s, strict=True) if move.lease.taken_s != taken_s]
        self.ledger.release(again)
        kept |= {id(lease) for lease in again}
        self.held.remove([lease for lease in leases_of(batch) if id(lease) not in kept] if kept else leases_of(batch))
        self.tally.refused += settled.refused
        self.tally.shortfall += settled.shortfall
        self._released += sum(1 for move in batch.park if move.room == FREE)
        for move in batch.defer:
            if move.kind != "at":
                self.scheduler.due_within(move.when_ms / 1000)
        self._room_made.set()

    def _keep_apart(self, settled: Settled) -> None:
        if not settled.error:
            if not len(self._apart):
                self._apart_failures = 0
            return
        self._apart.add(settled.left)
        self._apart_failures += 1
        self._apart_until_s = time.monotonic() + delay_s(self._apart_failures, STORE_BACKOFF, random)
        self.tally.store_errors += 1
        self._say("%d moves were answered with an error and will be tried again: %s", len(settled.left), settled.error)

    def _retry_apart(self) -> None:
        if len(self._apart):
            apart, self._apart = self._apart, empty_batch()
            self.ledger.put_back(apart)

    # --- leases ----------------------------------------------------------------------------------------------------------

    def _judge(self, beat: Beat) -> None:
        """Take a confirmed heartbeat: what it refused and is still ours by the same token is lost."""
        now_s = time.monotonic()
        if beat.run != self._run_heard or now_s - self._confirmed_s > self.config.lease_s / 2:
            if self._run_heard:
                self._own_guard_until_s = now_s + self.config.lease_s
            self._run_heard = beat.run
        self._confirmed_s = beat.sent_s
        self._room_made.set()
        if not beat.refused:
            return
        lanes = {id(lane.job): lane for lane in self.lanes if lane.job is not None}
        for lease, count in beat.refused:
            is_same = lease.count == count and lease.taken_s < beat.sent_s and lease in self.held
            if is_same and isinstance(lease, Job):
                self._lose(lease, lanes.get(id(lease)))

    def _lose(self, job: Job, lane: Lane | None) -> None:
        if lane is not None:
            lane.interrupt(LeaseLost("another worker holds this job now"))
        elif self.inbox.remove(job):
            self.tally.moved(job.type, job.stream, "lost")
        else:
            return  # its move waits in the ledger: the fence will say
        self.held.remove([job])
        self._say("lost the lease of job %s (%s): another worker holds it now", job.id, job.type.decode())

    def _may_reclaim(self) -> bool:
        return time.monotonic() > self._own_guard_until_s and not self._is_silent()

    def _row(self) -> str:
        """What the workers' table says of this one; called by the heartbeat's thread."""
        running: dict[str, int] = {}
        for job in [lane.job for lane in self.lanes]:
            if job is not None:
                name = job.type.decode(errors="replace")
                running[name] = running.get(name, 0) + 1
        row: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "lanes": self.config.concurrency,
            "held": len(self.held),
            "running": running,
            "stage": self.stage.value,
            "types": self._types,
        }
        return json.dumps(row, separators=(",", ":"))

    def _running_now(self) -> Job | None:
        """The job whose code holds the loop at this moment; called by the heartbeat's thread."""
        task = asyncio.current_task(self._loop) if self._loop else None
        return next((lane.job for lane in self.lanes if lane.task is task), None)

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        """Tick: interrupt what is overdue, give back what waits too long, replace lanes that a handler ended."""
        self._loop = asyncio.get_running_loop()
        while True:
            now_s = self._watched.moved_s = time.monotonic()
            if self._heartbeat is not None and self._heartbeat.error is not None:
                raise RuntimeError("the heartbeat thread crashed") from self._heartbeat.error
            for lane in self.lanes:
                if lane.deadline_s < now_s:
                    self._interrupt(lane, now_s)
            self._give_back_unstarted(now_s)
            if self.stage is Stage.RUNNING:
                for _ in range(self._settle_ended_lanes()):
                    self._open_lane(group)
            if len(self._apart) and self._apart_until_s < now_s:
                self._retry_apart()
            self._finished_before = [*self._finished_before[1:], self.tally.finished]
            self._room_made.set()
            await asyncio.sleep(TICK_S)

    def _interrupt(self, lane: Lane, now_s: float) -> None:
        if lane.cut is not None and lane.job is not None:
            text = "job %s (%s) goes on %.0f s after its start, though it was cancelled: its handler swallows CancelledError"
            self._say(text, lane.job.id, lane.job.type.decode(), now_s - lane.started_s)
        lane.interrupt(TimedOut(f"ran longer than {now_s - lane.started_s:.1f} s"))

    def _give_back_unstarted(self, now_s: float) -> None:
        """What has not started within a second runs sooner elsewhere; all of it, when the leases may be lost."""
        before_s = now_s - UNSTARTED_S
        if self.inbox.jobs and (self.inbox.jobs[0].taken_s < before_s or self._is_silent()):
            late = [job for job in self.inbox.jobs if job.taken_s < before_s or self._is_silent()]
            for job in late:
                self.inbox.remove(job)
            self.ledger.release(late)

    def _settle_ended_lanes(self) -> int:
        """A lane that ended was ended by its handler, which cancelled its own task: a failure of that job. Gives how many."""
        ended = [lane for lane in self.lanes if lane.task and lane.task.done()]
        for lane in ended:
            self.lanes.remove(lane)
            job = lane.job
            if job is not None:
                error = SelfCancelled("the handler cancelled its own task")
                outcome = decide(self.registry[job.type], job, error, random)
                self.ledger.add(job, outcome)
                self.tally.ran(job, outcome, time.monotonic() - lane.started_s)
                self._tell_failure(job, error, outcome)
        return len(ended)

    # --- stop ------------------------------------------------------------------------------------------------------------

    async def _wind_down(
        self,
        fetcher: asyncio.Task[None],
        flusher: asyncio.Task[None],
        aides: list[asyncio.Task[None]],
        heartbeat: Heartbeat,
    ) -> Report:
        log.info("stopping: %d jobs run, %d wait here", self.running, len(self.inbox))
        self.stage = Stage.DRAINING
        await self._end_fetching(fetcher)
        self.ledger.release(self.inbox.clear())
        await self._until(lambda: self.running == 0, self.config.grace_s, self._hurry)
        self._settle_ended_lanes()
        self.stage = Stage.CUTTING
        stubborn = await self._cut_lanes()
        self.stage = Stage.FLUSHING
        self._retry_apart()
        await self.scheduler.count_once()
        await self._until(lambda: len(self.held) <= len(stubborn), FLUSH_S)
        for task in (flusher, *aides):
            task.cancel()
        await asyncio.wait([flusher, *aides], timeout=FLUSH_S)  # what the flusher could not write goes back to the ledger
        heartbeat.stop()
        await self._last_words(stubborn)
        self.stage = Stage.CLOSED
        report = Report(time.monotonic() - self._stopping_since_s, self.tally.finished, self._released, len(self.held))
        if stubborn:
            self._leave(report)  # the task group would wait for lanes that nobody can end
        return report

    async def _end_fetching(self, fetcher: asyncio.Task[None]) -> None:
        """Wake the blocked read until the fetcher ends; a cancelled read would leave deliveries that nobody holds."""
        self._room_made.set()
        for _ in range(int(UNRING_S / TICK_S)):
            try:
                await self.streams.unring()
            except StoreAway:
                break
            done, _ = await asyncio.wait([fetcher], timeout=TICK_S)
            if done:
                return
        fetcher.cancel()

    async def _cut_lanes(self) -> list[Job]:
        """Cut what still runs, and note it to be given back; give the jobs of lanes that would not end."""
        tasks = [lane.task for lane in self.lanes if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CUT_S)
        stubborn = [lane for lane in self.lanes if lane.task is not None and not lane.task.done()]
        self.ledger.release([lane.job for lane in self.lanes if lane.job is not None and lane not in stubborn])
        return [lane.job for lane in stubborn if lane.job is not None]

    async def _last_words(self, stubborn: list[Job]) -> None:
        """Give back, as the very last command, what could not be cut; then leave the list of workers if nothing is held."""
        try:
            async with asyncio.timeout(FLUSH_S):
                self.ledger.release(stubborn)
                await self._flush()
                await self.streams.forget(self.name)
        except (StoreAway, TimeoutError) as error:
            log.warning("could not say goodbye to Redis, leases will expire: %s", error)

    async def _until(self, is_true: Callable[[], bool], wait_s: float, hurry: asyncio.Event | None = None) -> None:
        end_s = time.monotonic() + wait_s
        while not is_true() and time.monotonic() < end_s and not (hurry and hurry.is_set()):
            await asyncio.sleep(0.01)

    async def _pause(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._stop.wait()
        except TimeoutError:
            return

    # --- words -----------------------------------------------------------------------------------------------------------

    def _tell_failure(self, job: Job, error: BaseException, outcome: object) -> None:
        if isinstance(outcome, Dead):
            self._say("job %s (%s) is dead after attempt %d: %s", job.id, job.type.decode(), job.attempt, outcome)
        elif isinstance(outcome, Retry):
            text = "job %s (%s) failed attempt %d, again in %.1f s: %s"
            self._say(text, job.id, job.type.decode(), job.attempt, outcome.delay_s, outcome)

    def _tell_store_away(self, error: StoreAway, failures: int) -> None:
        self.is_fetching = False
        self.tally.store_errors += 1
        if failures == 3 or (failures > 3 and failures % 60 == 0):  # one line per outage, then one every few minutes
            log.error("the store is away, jobs wait and leases stay in mind: %s", error)

    def _say(self, text: str, *args: object) -> None:
        if self._log_budget.spend():
            log.warning(text, *args)


class _Budget:
    """Owns the number of lines that may still be written this second, so that a broken type does not drown the log."""

    def __init__(self) -> None:
        self._second = 0
        self._spent = 0

    def spend(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            if self._spent > LOG_LINES_S:
                log.warning("… and %d more lines like these in that second", self._spent - LOG_LINES_S)
            self._second, self._spent = second, 0
        self._spent += 1
        return self._spent <= LOG_LINES_S


def leases_of(batch: Batch) -> list[Lease]:
    """Give all leases of a batch."""
    leases = [lease for done in batch.done for lease in done]
    for moves in (batch.defer, batch.dead, batch.park):
        leases += [move.lease for move in moves]
    return leases


def _tell(loop: asyncio.AbstractEventLoop, hear: Callable[[Beat], None], beat: Beat) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(hear, beat)
