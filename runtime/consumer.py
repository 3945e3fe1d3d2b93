"""The consumer is one worker: it owns every task of it in one task group, and stops it in named stages.

What happens when the process dies: before a fetch's reply, the sweep of another worker finds entries that are not renewed;
with jobs in the inbox or in lanes, the same; after a handler ended and before its flush, the job runs once more; during a
flush, the server did all of it or the sweep finds it. No await stands between reading and writing Inbox, Ledger, Held or Stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextvars import Context, copy_context
from enum import Enum
from functools import partial
from operator import attrgetter
from random import random
from typing import Any, Final, ParamSpec, TypeVar
from uuid import uuid4

import msgspec

from runtime import logs
from runtime.backoff import Backoff, delay_s
from runtime.children import CHILD_ENV, end_idle_children
from runtime.config import Config
from runtime.errors import Cancelled, Dead, LeaseLost, LifespanFailed, SelfCancelled, StoreError, StoreUnavailable, TimedOut
from runtime.hooks import Hook
from runtime.jobs import CRITICAL, MARKS, QUEUE, STREAMS, Gathered, Job, Lease, Park, Registry, each_of
from runtime.lifespans import LIFESPANS, Lifespan, Lifespans
from runtime.observer import Observer
from runtime.places import HANGS_S, PLACES, Hang, Places, make_places
from runtime.rules import Rules
from runtime.schedules import Schedule
from runtime.settle import CANCELLED_CODE
from runtime.stats import Stats
from runtime.store.base import TOLD_JOBS, WorkerRow
from runtime.streams import ANSWER_S, Streams
from runtime.worker.context import WorkerContext
from runtime.worker.fetcher import INBOX_BYTES, Fetcher
from runtime.worker.flusher import Flusher
from runtime.worker.forks import guard
from runtime.worker.gates import Gates
from runtime.worker.gathering import MAX_BESIDE, Gathering, gathering_of
from runtime.worker.heartbeat import SILENT_PART, Beat, Heartbeat, LeaseWatch
from runtime.worker.held import Held
from runtime.worker.hooks import Hooks
from runtime.worker.lanes import Inbox, Lane
from runtime.worker.ledger import Ledger
from runtime.worker.listener import Listener
from runtime.worker.log import ThrottledLog
from runtime.worker.loop_monitor import TICK_S, LoopMonitor, LoopState, stacks
from runtime.worker.maintenance import Maintenance
from runtime.worker.orders import Orders
from runtime.worker.parking import Parked
from runtime.worker.stepper import Stepper
from runtime.worker.ticker import Ticker

log: Final = logs.guarded("runtime.consumer")
P = ParamSpec("P")
T = TypeVar("T")

LATE_S: Final = 0.2  # a guess: a tick that comes so much later than it should: something has blocked the loop
RATE_TICKS: Final = 2  # a guess: read-ahead looks at what finished in the last 100 ms
MAX_READ_AHEAD: Final = 2000  # without a cap one beat would renew 15,500 leases: 130 ms of a blocked server
# Of the read-ahead: below that it is topped up. With half, a drain waits for its fetches: 65 to 70 % of a core busy, not 90 %.
TOP_UP_PART: Final = 0.75
UNSTARTED_S: Final = 1.0  # a guess: what waits here for so long would have run sooner elsewhere
CUT_S: Final = 2.0  # a guess: so long handlers may take to end when they are cut
FLUSH_S: Final = 2.0  # a guess: so long the last flush may take, and the goodbye
UNBLOCK_S: Final = 4.0  # a guess: so long the blocked read is woken again and again, before the fetcher is cancelled
CHILDREN_S: Final = 1.0  # a guess: so long idle child processes may take to close what they have open
LOST_S: Final = 0.5  # a guess: to give back what an answer brings that was still on its way
BLOCKERS: Final = 20  # a guess: so many types of those that blocked the loop are told in a worker's row
START_TRIES: Final = 5  # with START_BACKOFF some two seconds: a server that is started beside the worker comes up; a guess
AGAIN_TRIES: Final = 8  # some 5 s: a server that was there a moment ago is being started again; a guess
START_BACKOFF: Final = Backoff(base_s=0.2, cap_s=2.0)
LOADING: Final = "loading the dataset"  # as servers say it
POLL_S: Final = 0.01  # a guess: between two looks at a condition of stopping
CANCELLED: Final = "does a handler cancel what is not its own?"


class Stage(Enum):
    """From start to end, in this order."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    CUTTING = "cutting"
    FLUSHING = "flushing"
    CLOSED = "closed"


class Report(msgspec.Struct):
    """What a worker did, for the log at its end: runs finished, jobs given back, jobs left to their leases."""

    seconds: float
    finished: int
    released: int
    left: int

    def __str__(self) -> str:
        left = f", {self.left} left to their leases" if self.left else ""
        return f"stopped in {self.seconds:.1f} s: {self.finished} runs finished, {self.released} jobs given back{left}"


def consumer_name() -> str:
    """Return a name that no other start of a worker has: used twice, it would hide what the first one left."""
    host = "".join(char if char.isalnum() or char in "-._" else "-" for char in socket.gethostname()) or "host"
    return f"{host[:40]}-{os.getpid()}-{uuid4().hex[:8]}"


def streams_for(config: Config, url: str) -> Streams:
    """Return a worker's store with these settings, under a name of its own; it connects when it is first used."""
    fetch_s = max(SILENT_PART * config.lease_s, ANSWER_S)  # what comes later may be another worker's by then
    return Streams(url, config.queue, consumer_name(), ANSWER_S, fetch_s, config.max_data_bytes)


class Consumer:
    """Owns the parts of a worker, its Stage, and every task in it. Closes `streams` at its end.

    `leave` is called at the end of a stop when a handler could not be ended; it may end the process. `on_crash` hears of a crash
    when it happens, in whichever thread: `run` raises it only when all handlers have ended, which they may never do.
    `collect` is called at each tick of a worker that is not idle. `on_stop_order` is called once where people have ordered this
    worker to stop; without it, the worker stops by itself. `schedules`, `lifespans` and `hooks` are those of its modules.
    `observer` is told of jobs. `resident` returns the resident bytes of the process, in any thread; `version` is the runtime's.
    """

    def __init__(
        self,
        config: Config,
        streams: Streams,
        registry: Registry,
        *,
        leave: Callable[[Report], None] = lambda report: None,
        on_crash: Callable[[BaseException], None] = lambda error: None,
        collect: Callable[[], None] = lambda: None,
        on_stop_order: Callable[[], None] | None = None,
        schedules: Iterable[Schedule] = (),
        lifespans: Sequence[Lifespan[Any]] = (),
        hooks: Sequence[Hook] = (),
        observer: Observer | None = None,
        resident: Callable[[], int] = lambda: 0,
        version: str = "",
    ) -> None:
        self.config = config
        self.streams = streams
        self.registry = registry
        self.name: str = streams.consumer
        self.stage: Stage = Stage.STARTING
        self.lanes: list[Lane] = []
        self.places: dict[str, Places] = make_places(config.threads)
        self.stats: Stats = Stats(registry)
        self.held: Held = Held()
        self.log: ThrottledLog = ThrottledLog()
        self.ledger: Ledger = Ledger()
        self.inbox: Inbox = Inbox(gathering=gathering_of(registry, time.monotonic))
        self.leases: LeaseWatch = LeaseWatch(config.lease_s, time.monotonic)
        self.parked: Parked = Parked(registry, self.places)
        self.orders: Orders = Orders(streams)
        self.gates: Gates = Gates(registry)
        shared = (self.leases, self.parked, self.gates, self.inbox, self.ledger, self.held, self.stats, self.log, self.places)
        self._listener = Listener(self.held, self._in_lanes, self.name, config.app_version)
        self._hooks: Hooks | None = Hooks(hooks, self.log) if hooks else None
        self._on_failure = self.log.failure if self._hooks is None else self._hooks.failed
        ctx = WorkerContext(config, registry, streams, *shared, self.orders, observer, self._listener.drop, self._hooks)
        self._observer = self.ledger.observer = observer
        self._leave = leave
        self._on_crash = on_crash
        self._collect = collect
        self._on_stop_order = on_stop_order or self.stop
        self._has_stop_order = False
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self.maintenance: Maintenance = Maintenance(ctx)
        self.maintenance.schedules = {schedule.name: schedule.definition for schedule in schedules}
        self.ticker: Ticker = Ticker(streams, self.maintenance.schedules)
        self.stepper: Stepper = Stepper(streams)
        self._fetcher = Fetcher(ctx, self._capacity, self._beside, self._stop)
        after_flush = (self._fetcher.capacity_freed.set, self.maintenance.due_within, self._fetcher.serve_freed)
        self._flusher = Flusher(ctx, *after_flush)
        self._connect_parts()
        self._finished_before = [0] * RATE_TICKS
        warn_s = config.block_warn_ms / 1000
        self._loop_state = LoopState(time.monotonic(), threading.get_ident(), self._running_now, self.stats, warn_s)
        self._stopping_since_s = 0.0
        self._since_ms = int(time.time() * 1000)
        self._resident, self._version = resident, version
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heartbeat: Heartbeat | None = None
        self._may_loops_end = False
        self._failure: RuntimeError | None = None
        self._lifespans, self._for_children = Lifespans(lifespans, self._lifespan_broken), lifespans

    def _connect_parts(self) -> None:
        """Let the parts that hold jobs wake those that move them."""
        self.parked.on_new = self._fetcher.look_again
        for places in self.places.values():
            places.on_wanting = partial(self._fetcher.place_free, places)
        self.ledger.on_first, self.inbox.on_idle = self._flusher.wake, self._flusher.lanes_idle
        self.ledger.on_pause = self._pause_type
        self.ledger.by = self.name
        self.ledger.app = self.streams.app = self.config.app_version
        self.ledger.on_said, self.ledger.on_failed = self._listener.hear, self._listener.fail
        self.ledger.on_done = self._listener.done
        self.maintenance.listen, self.maintenance.row = self._listener.look, self._row
        kept = [(name, handler.result) for name, handler in self.registry.items()]
        self.ledger.results_ms = {name: policy.life_ms for name, policy in kept if policy is not None}
        self.inbox.may_start = self._may_start
        self.orders.on_look = self._apply

    def __repr__(self) -> str:
        return (
            f"<Consumer {self.name} {self.stage.value}: {self.inbox!r}, {self.running} running, {self.ledger!r}, {self.held!r}>"
        )

    @property
    def running(self) -> int:
        """How many handlers run now."""
        return sum(1 for lane in self.lanes if lane.job is not None and not (lane.task and lane.task.done()))

    @property
    def is_fetching(self) -> bool:
        """Whether the last fetch was answered."""
        return self._fetcher.is_fetching

    @property
    def broken(self) -> dict[str, str]:
        """The keys of streams that cannot be read, each with what Redis says of it."""
        return {self.streams.keys.streams[stream]: error for stream, error in self.streams.broken.items()}

    @property
    def is_ready(self) -> bool:
        """Whether the store answers, this worker fetches, and there is a place for each kind of handler."""
        return self.stage is Stage.RUNNING and self.is_fetching and not self.leases.is_silent and not self.hung

    @property
    def hung(self) -> str:
        """Which kind of handler cannot run here, all its places being lost to jobs that go on past their deadline; else empty."""
        now_s = time.monotonic()
        return "; ".join(self._loss_of(places) for places in self.places.values() if places.all_lost_s(now_s) > HANGS_S)

    def _loss_of(self, places: Places) -> str:
        who = ", ".join(sorted({self._handler_of(hang) for hang in places.lost.values()}))
        return f"all {places.total} places ({places.kind}) are lost to jobs that go on past their deadline, {who}"

    def _handler_of(self, hang: Hang) -> str:
        return f"handler {self.registry[hang.type].location}"

    @property
    def is_alive(self) -> bool:
        """Whether the loop moves. It says nothing about Redis, or one outage would restart all workers."""
        return time.monotonic() - self._loop_state.moved_s < self.config.max_block_s

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
            StoreUnavailable: Redis did not answer at the start.
            LifespanFailed: one could not begin.
            RuntimeError: all places for a kind of handler were lost to jobs that hang, or a lifespan has ended by itself; what is
                held is given back.
        """
        guard(self, "_crash")
        PLACES.set(self.places)  # for the lanes, which are tasks of this one
        MARKS.set(self.streams)
        QUEUE.set(self.config.queue)
        LIFESPANS.set(self._for_children)
        CHILD_ENV.set(self.config.child_env)
        try:
            await patiently(self.streams.start, AGAIN_TRIES, self._stop)
            if await self._lifespans.begin(self._stop):
                return await self._run()
        except _Stopped:
            pass
        finally:
            await self._lifespans.end()
            await self.streams.close()
        return Report(time.monotonic() - self._stopping_since_s, 0, 0, 0)

    async def _run(self) -> Report:
        loop = asyncio.get_running_loop()
        # Before the first fetch: a consumer that reads and dies without a row would have no row, and its name would stay.
        await patiently(lambda: self.streams.beat(self._row()), AGAIN_TRIES, self._stop)
        await patiently(self.orders.begin, AGAIN_TRIES, self._stop)
        self._loop_state.moved_s = time.monotonic()
        self.leases.begin()
        heartbeat = Heartbeat(
            self.streams,
            self.held,
            LoopMonitor(self._loop_state, self.config.max_block_s, self.registry),
            lease_s=self.config.lease_s,
            row=self._row,
            on_heartbeat=lambda beat: _tell(loop, self.on_heartbeat, beat),
            on_crash=self._on_crash,
        )
        heartbeat.start()
        self._heartbeat = heartbeat
        gc.callbacks.append(self._loop_state.garbage)
        try:
            async with asyncio.TaskGroup() as group:
                report = await self._run_in(group, heartbeat)
        finally:
            gc.callbacks.remove(self._loop_state.garbage)
            heartbeat.stop()
        return report

    async def _run_in(self, group: asyncio.TaskGroup, heartbeat: Heartbeat) -> Report:
        """Have everything run until told to stop, and stop it. From here on a crash is noticed where it happens."""
        try:
            fetcher = self._begin(group, self._fetcher.run)
            flusher = self._begin(group, self._flusher.run)
            loops = [self.maintenance.promote, self.maintenance.sweep, self.maintenance.count, self.ticker.run, self.stepper.run]
            aides = [self._begin(group, self._watch, group), *(self._begin(group, loop) for loop in loops)]
            for at in range(self.config.concurrency):
                self._open_lane(group, at < self.config.reserved_lanes)
            self.stage = Stage.RUNNING
            await self._stop.wait()
            return await self._wind_down(fetcher, flusher, aides, heartbeat)
        except asyncio.CancelledError:
            self._may_loops_end = True
            self._stop_lanes()
            raise
        except Exception as error:
            self._crash(error)
            raise

    def _begin(
        self, group: asyncio.TaskGroup, loop: Callable[P, Coroutine[Any, Any, None]], *given: P.args, **named: P.kwargs
    ) -> asyncio.Task[None]:
        """Start one of the worker's own loops. One that a handler cancels has crashed: else the worker would go on without it."""

        async def run() -> None:
            try:
                await loop(*given, **named)
            except asyncio.CancelledError:
                if self._may_loops_end:
                    raise
                raise RuntimeError(f"{loop.__qualname__} was cancelled: {CANCELLED}") from None

        task = group.create_task(run(), name=loop.__qualname__)
        task.add_done_callback(self._look_at_end)
        return task

    def _open_lane(self, group: asyncio.TaskGroup, is_reserved: bool) -> None:
        def open_task(coroutine: Coroutine[Any, Any, None], context: Context | None) -> asyncio.Task[Any]:
            task = group.create_task(coroutine, context=context)
            task.add_done_callback(self._look_at_end)
            return task

        parts = (self.inbox, self.ledger, self.stats, self.registry, time.monotonic, random, self._on_failure, open_task)
        lane = Lane(*parts, is_reserved=is_reserved, observer=self._observer)
        lane.start()
        self.lanes.append(lane)

    def _look_at_end(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._crash(error)

    def _crash(self, error: BaseException) -> None:
        """Let the leases expire, and tell: the task group ends the rest, as far as it lets itself be ended."""
        self._may_loops_end = True
        self._stop_lanes()
        if self._heartbeat is not None:
            self._heartbeat.fall_silent()
        self._on_crash(error)

    def _lifespan_broken(self, failure: LifespanFailed) -> None:
        """Stop, to be started again: what handlers use has ended under them. Called again when it is known what of."""
        is_first = self._failure is None
        if self._failure is None or type(self._failure.__cause__) is LifespanFailed:
            self._failure = RuntimeError(f"{failure}: this worker stops, to be started again")
            self._failure.__cause__ = failure
        if is_first:
            log.critical("%s", self._failure)
            self.stop()

    def _stop_lanes(self) -> None:
        """End all lanes. The task group's cancel alone would count as their handlers' own doing."""
        for lane in self.lanes:
            lane.stop()

    # --- capacity and leases -------------------------------------------------------------------------------------------------

    def _read_ahead(self) -> int:
        return min(self.stats.finished - self._finished_before[0], MAX_READ_AHEAD, self._fetcher.entries(INBOX_BYTES))

    def _capacity(self) -> tuple[int, int]:
        """Return how many jobs may be fetched now: lanes and read-ahead, less all that is held, and less what is CRITICAL's own;
        and how many of CRITICAL beside those.
        """
        if self.leases.is_silent:
            return 0, 0
        read_ahead, reserved, gathering = self._read_ahead(), self._reserved(), self.inbox.gathering
        # Less what is reserved: else fetches bring fewer, and a drain takes 1.5 % longer.
        if len(self.inbox) > max(0.0, TOP_UP_PART * read_ahead - reserved):
            return 0, reserved  # else what is read ahead of LOW would keep CRITICAL out
        beside = 0 if gathering is None else self._beside_lanes(gathering)
        return len(self.lanes) + read_ahead + beside - len(self.held) - reserved, reserved

    def _beside_lanes(self, gathering: Gathering) -> int:
        """Return how many more jobs may be held than there are lanes, since one lane runs a batch, and what gathers may grow.

        No more than may wait here by their size: they wait until their handler has them all.
        """
        many = sum(len(batch.jobs) - 1 for batch in self._batches()) + gathering.wanted
        return min(many, MAX_BESIDE, self._fetcher.entries(INBOX_BYTES))

    def _batches(self) -> list[Gathered]:
        """Return the batches that run, wait for a lane, or gather."""
        return [run for run in (*(lane.job for lane in self.lanes), *self.inbox.runs) if isinstance(run, Gathered)]

    def _reserved(self) -> int:
        """Return how many reserved lanes no job of CRITICAL is here for. One that runs in another lane needs none of them."""
        critical = self.held.critical
        if critical and self.config.reserved_lanes:
            if self.inbox.gathering is not None:  # a batch needs one lane
                critical -= sum(len(batch.jobs) - 1 for batch in self._batches() if batch.stream == CRITICAL)
            critical -= sum(1 for lane in self.lanes if not lane.is_reserved and lane.job and lane.job.stream == CRITICAL)
        return max(0, self.config.reserved_lanes - critical)

    def _beside(self) -> tuple[float, bool]:
        """Return for how long the youngest job here has run, 0 when one is about to, and whether no former suspect is here.

        What waits in the inbox of a busy worker is mostly none: else a suspect with a strike would find such a worker never.
        """
        runs = [(lane.started_s, lane.job.count) for lane in self.lanes if lane.job is not None]
        is_clean = all(count == 1 for _, count in runs) and all(job.count == 1 for job in self.inbox.jobs)
        if self.inbox.runs:
            return 0.0, is_clean
        return time.monotonic() - max(run[0] for run in runs) if runs else float("inf"), is_clean

    def _may_start(self, now_s: float) -> bool:
        """Return whether jobs of the inbox may start; if not, give them back."""
        if self.leases.is_silent:
            self._give_back_unstarted(now_s)
            return False
        return True

    def _apply(self, rules: Rules) -> None:
        """Obey what people have ordered. Called after each look at the rules, since pauses end by themselves."""
        self.ticker.saw(rules.version)
        self.stepper.saw(rules.version, rules.operations)
        paused = self.orders.paused
        if paused != self._fetcher.paused:
            log.info("nothing starts of: %s%s", names_of(paused) or "none", f" ({self.orders.mine})" if self.orders.mine else "")
            self._fetcher.paused = self.gates.paused = paused
            self._give_back_unstarted(time.monotonic())
        now_s = time.monotonic()
        changed = self.gates.apply(rules, self.orders.now_ms, now_s)
        self._cancel(self.orders.cancels.look(self.held, now_s))
        self._park_unstarted(changed.paused)
        self.gates.note(self.held.jobs_of(changed.limited))
        if changed.is_any:
            self._fetcher.look_again()
        if self.orders.mine == "stop" and not self._has_stop_order:
            self._has_stop_order = True
            log.info("ordered to stop")
            if not self._stop.is_set():
                self._on_stop_order()

    def _cancel(self, cancelled: Sequence[tuple[Lease, str]]) -> None:
        """End what people have cancelled: what runs is cut, what has not started is dead. What is on its way here is left to the
        next look, what is to be written to the script that moves it.
        """
        lanes = {id(job): lane for lane in self.lanes for job in each_of(lane.job)} if cancelled else {}
        for job, by in cancelled:
            who = by and f" by {by}"
            lane = lanes.get(id(job))
            if not isinstance(job, Job) or (job.extras is not None and job.extras.is_cut):
                continue
            if lane is not None:
                lane.end(job, Cancelled(f"cancelled{who}, while it ran"))
            elif self.inbox.remove(job):
                self.ledger.add(job, Dead(f"cancelled{who}, before it started", CANCELLED_CODE))
                self.stats.moved(job.type, job.stream, "dead")

    def _pause_type(self, type_name: bytes, wait_s: float) -> None:
        """Start nothing of a type for a while, as a job of it has asked for."""
        self.gates.pause(type_name, wait_s, time.monotonic())
        self._park_unstarted([type_name])

    def _park_unstarted(self, types: Collection[bytes]) -> None:
        """Put what waits here of these types into the lots of their gates."""
        for job in self.inbox.remove_types(types) if types else ():
            self.ledger.add(job, Park(self.gates.park(job)))

    def on_heartbeat(self, beat: Beat) -> None:
        """Take a confirmed heartbeat: what it refused, and is still ours by the same token, is lost."""
        self.leases.confirm(beat)
        self._fetcher.capacity_freed.set()
        if not beat.refused:
            return
        lanes = {id(job): lane for lane in self.lanes for job in each_of(lane.job)}
        for lease, count in beat.refused:
            is_same = lease.count == count and lease.taken_s < beat.sent_s and lease in self.held
            if is_same and isinstance(lease, Job):
                self._lose(lease, lanes.get(id(lease)))

    def _lose(self, job: Job, lane: Lane | None) -> None:
        if lane is not None:
            lane.end(job, LeaseLost("another worker holds this job now"))
        elif self.inbox.remove(job):
            self.stats.moved(job.type, job.stream, "lost")
        else:
            return  # its move waits in the ledger, and the fence of the script refuses it
        self.held.remove([job])
        self.log.warn("lost the lease of job %s (%s): another worker holds it now", job.id, job.type.decode(), about=job)

    def _row(self) -> WorkerRow:
        """Return what the table of workers says of this one; called by the heartbeat's thread, and in the loop's."""
        running = Counter([job.type for lane in self.lanes if (job := lane.job) is not None])
        blocked, blocked_ms, where = self._told_of_blocks()
        return WorkerRow(
            lease_ms=int(self.config.lease_s * 1000),
            host=socket.gethostname(),
            pid=os.getpid(),
            lanes=self.config.concurrency,
            held=len(self.held),
            running={name.decode(errors="replace"): count for name, count in running.items()},
            stage="quiet" if self.stage is Stage.RUNNING and self.orders.mine == "quiet" else self.stage.value,
            types=self.parked.types,
            reserved=self.config.reserved_lanes,
            limits=self.gates.told,
            schedules=self.ticker.next_ms,
            blocked=blocked,
            blocked_ms=blocked_ms,
            since=self._since_ms,
            version=self._version,
            app=self.config.app_version,
            rss=self._resident(),
            lag=int(self.stats.lag.longest_s(time.monotonic()) * 1000),
            where=where,
            jobs=self._longest_running(),
            unknown_s=math.ceil(self.config.unknown_after_s),
        )

    def _in_lanes(self) -> list[tuple[Job, float]]:
        return [(job, lane.started_s) for lane in self.lanes for job in each_of(lane.job)]

    def _longest_running(self) -> list[tuple[str, int, str]]:
        """Return the place, start and type of what has run for longest; called by the heartbeat's thread too."""
        busy = sorted([lane for lane in self.lanes if lane.job is not None], key=attrgetter("started_s"))
        runs = [(job, lane.started_s) for lane in busy[:TOLD_JOBS] for job in each_of(lane.job)]
        epoch_s = time.time() - time.monotonic()
        return [
            (f"{STREAMS[job.stream]}/{job.entry.decode()}", int((epoch_s + started_s) * 1000), job.type.decode(errors="replace"))
            for job, started_s in runs[:TOLD_JOBS]
        ]

    def _told_of_blocks(self) -> tuple[dict[str, int], dict[str, int], dict[str, str]]:
        """Return which types have blocked the loop how often, the longest in ms of each, and where; of many, those with most."""
        found = sorted(dict(self.stats.blocked).items(), key=lambda item: -item[1].count)[:BLOCKERS]
        named = [(name.decode(errors="replace"), blocks) for name, blocks in found]
        longest_ms = {name: int(blocks.longest_s * 1000) for name, blocks in named}
        where = {name: blocks.where for name, blocks in named if blocks.where}
        return {name: blocks.count for name, blocks in named}, longest_ms, where

    def _running_now(self) -> Lane | None:
        """Return the lane whose code holds the loop at this moment; called by the heartbeat's thread."""
        task = asyncio.current_task(self._loop) if self._loop else None
        return None if task is None else next((lane for lane in self.lanes if lane.task is task), None)

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        """Tick: interrupt what is overdue, give back what waits too long, replace lanes that a handler ended."""
        self._loop = asyncio.get_running_loop()
        was_late = False
        while True:
            before_s, now_s = self._loop_state.moved_s, time.monotonic()
            self._loop_state.tick(now_s)
            # A handler has blocked the loop: those that could have ended meanwhile have a turn before they count as overdue. Once
            # only, since a handler that blocks again and again must be cut all the same.
            was_late = now_s - before_s > LATE_S and not was_late
            if self._heartbeat is not None and self._heartbeat.error is not None:
                raise RuntimeError("the heartbeat thread crashed") from self._heartbeat.error
            if len(self.held):  # an idle worker has no lane to look at
                for lane in self.lanes:
                    if lane.deadline_s < now_s and not was_late:
                        self._interrupt(lane, now_s)
                self._give_back_unstarted(now_s)
                if self.stage is Stage.RUNNING:
                    for lane in self._settle_ended_lanes():
                        self._open_lane(group, lane.is_reserved)
                self._flusher.retry_apart(now_s)
                self.stats.fold()
            if self._observer is not None:
                self._observer.look(now_s)
            for places in self.places.values():
                places.tick(now_s)
                if places.lost:
                    self._look_at_lost(places, now_s)
            if len(self.held) or self.stats.finished != self._finished_before[-1]:
                self._collect()
            logs.wake()  # a job may configure logging
            self._finished_before = [*self._finished_before[1:], self.stats.finished]
            self._fetcher.capacity_freed.set()
            await asyncio.sleep(TICK_S)

    def _interrupt(self, lane: Lane, now_s: float) -> None:
        if lane.cut is not None and lane.job is not None:
            text = "job %s (%s) goes on %.0f s after its start, though it was cancelled: its handler swallows CancelledError"
            self.log.warn(text, lane.job.id, lane.job.type.decode(), now_s - lane.started_s, about=lane.job)
        for job in each_of(lane.job) if lane.cut is None else ():
            self.stats.timed_out(job)
        lane.interrupt(TimedOut(f"ran longer than {now_s - lane.started_s:.1f} s"))

    def _look_at_lost(self, places: Places, now_s: float) -> None:
        """Log which jobs keep a place long after their deadline; when all of a kind are lost, stop, to be started again."""
        for hang in places.hanging(now_s):
            if not hang.is_told:
                hang.is_told = True
                text = "the %s of job %s goes on in its %s though it was cut %.0f s ago: %d of %d places are left"
                said = (self._handler_of(hang), hang.job_id, places.kind, now_s - hang.since_s)
                self.log.warn(text, *said, places.total - len(places.lost), places.total, level=logging.ERROR)
        if self._failure is None and self.stage is Stage.RUNNING and places.all_lost_s(now_s) > self.config.max_block_s:
            self._failure = RuntimeError(f"{self._loss_of(places)}: this worker stops, to be started again")
            log.critical("%s\n%s", self._failure, stacks())
            self.stop()

    def _give_back_unstarted(self, now_s: float) -> None:
        """Release what has not started within a second, to run sooner elsewhere; all of it, when the leases may be lost; and what
        is paused, which came while the pause was not known here.
        """
        before_s, paused = float("inf") if self.leases.is_silent else now_s - UNSTARTED_S, self._fetcher.paused
        if paused or any(jobs and jobs[0].taken_s < before_s for jobs in self.inbox.queues):
            late = [job for job in self.inbox.jobs if job.taken_s < before_s or job.stream in paused]
            for job in late:
                self.inbox.remove(job)
            self.ledger.release(late)

    def _settle_ended_lanes(self) -> list[Lane]:
        """Settle the jobs of lanes that a handler has cancelled, as failures, and return the lanes that have ended so."""
        ended = [lane for lane in self.lanes if lane.task and lane.task.done()]
        for lane in ended:
            self.lanes.remove(lane)
            job = lane.job
            if job is not None:
                error = SelfCancelled("a handler cancelled the task of this one")
                # In a context of its own: what it leaves there is the lane's.
                if not copy_context().run(lane.settle, job, error, time.monotonic()):
                    self.ledger.release(each_of(job))
        return ended

    # --- stop ------------------------------------------------------------------------------------------------------------

    async def _wind_down(
        self,
        fetcher: asyncio.Task[None],
        flusher: asyncio.Task[None],
        aides: list[asyncio.Task[None]],
        heartbeat: Heartbeat,
    ) -> Report:
        log.info("stopping: %d jobs run, %d wait here", self.running, len(self.inbox.jobs))
        self.stage = Stage.DRAINING
        for places in self.places.values():
            places.close()
        self.ledger.release(self.inbox.clear())
        await self._end_fetching(fetcher)
        self.ledger.release(self.inbox.clear())
        await self._until(lambda: self.running == 0, self.config.grace_s, self._hurry)
        self._settle_ended_lanes()
        self.stage = Stage.CUTTING
        stubborn = await self._cut_lanes()
        self.stage = Stage.FLUSHING
        self._flusher.retry_apart(float("inf"))
        await self.maintenance.count_once(is_last=True)
        await self._until(lambda: len(self.held) <= len(stubborn), FLUSH_S)
        self._may_loops_end = True
        for task in (flusher, *aides):
            task.cancel()
        await asyncio.wait([flusher, *aides], timeout=FLUSH_S)  # what the flusher could not write goes back to the ledger
        heartbeat.stop()
        await self._say_goodbye(stubborn)
        if self._for_children:
            await end_idle_children(CHILDREN_S)
        if self._hooks is not None:
            await self._hooks.end()
        await self._lifespans.end()
        self.stage = Stage.CLOSED
        report = Report(time.monotonic() - self._stopping_since_s, self.stats.finished, self._flusher.released, len(self.held))
        if self._failure is not None:
            raise self._failure
        if stubborn:
            self._leave(report)  # the task group would wait for lanes that cannot be ended
        return report

    async def _end_fetching(self, fetcher: asyncio.Task[None]) -> None:
        """Wake the blocked read until the fetcher ends: cancelled, it would leave deliveries pending that are not held here."""
        self._fetcher.capacity_freed.set()
        is_away = False
        for _ in range(int(UNBLOCK_S / TICK_S)):
            try:
                await self.streams.unblock()
            except StoreUnavailable:
                is_away = True
                break
            done, _ = await asyncio.wait([fetcher], timeout=TICK_S)
            if done:
                return
        self._may_loops_end = True
        fetcher.cancel()
        if not is_away:
            await self._give_back_lost(fetcher)

    async def _give_back_lost(self, fetcher: asyncio.Task[None]) -> None:
        """Release what a late answer brings: left pending, it would become a suspect, though it never ran here."""
        await asyncio.wait([fetcher], timeout=TICK_S)
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(LOST_S):
                await self._fetcher.give_back_lost()

    async def _cut_lanes(self) -> list[Job]:
        """Cut what still runs, and note it to be given back; return the jobs of lanes that would not end."""
        self._stop_lanes()
        tasks = [lane.task for lane in self.lanes if lane.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CUT_S)
        stubborn = [lane for lane in self.lanes if lane.task is not None and not lane.task.done()]
        self.ledger.release([job for lane in self.lanes if lane not in stubborn for job in each_of(lane.job)])
        return [job for lane in stubborn for job in each_of(lane.job)]

    async def _say_goodbye(self, stubborn: list[Job]) -> None:
        """Release, as the last command of all, what could not be cut; then leave the list of workers if nothing is held."""
        try:
            async with asyncio.timeout(FLUSH_S):
                self.ledger.release(stubborn)
                await self._flusher.flush()
                await self.streams.forget(self.name)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("could not say goodbye to Redis, leases will expire: %s", error)

    async def _until(self, is_true: Callable[[], bool], wait_s: float, hurry: asyncio.Event | None = None) -> None:
        end_s = time.monotonic() + wait_s
        while not is_true() and time.monotonic() < end_s and not (hurry and hurry.is_set()):
            await asyncio.sleep(POLL_S)


class _Stopped(Exception):
    """The worker was told to stop before the store has answered."""


async def patiently(call: Callable[[], Awaitable[T]], tries: int, stop: asyncio.Event | None = None) -> T:
    """Return what the store answers at the start of a worker to a call that may be repeated.

    An outage of a few seconds is waited for, as that of an embedded server whose owner has just died, and a server that loads its
    data for as long as that takes.

    Raises:
        StoreUnavailable: no answer after so many `tries`.
        _Stopped: `stop` was set before.
    """
    failures = 0
    while True:
        try:
            return await call()
        except StoreUnavailable as error:
            is_loading = LOADING in str(error)
            failures += not is_loading
            if failures == tries or (stop is not None and isinstance(error, StoreError) and not is_loading):
                raise
            if failures == 1 and stop is not None:
                log.info("the store is away while this worker starts; trying on: %s", error)
            await _wait(delay_s(max(failures, 1), START_BACKOFF, random), stop)


async def _wait(wait_s: float, stop: asyncio.Event | None) -> None:
    if stop is None:
        await asyncio.sleep(wait_s)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await stop.wait()
            raise _Stopped


def names_of(streams: Collection[int]) -> str:
    """Return the names of priorities, for people."""
    return ", ".join(STREAMS[stream] for stream in sorted(streams))


def _tell(loop: asyncio.AbstractEventLoop, on_heartbeat: Callable[[Beat], None], beat: Beat) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(on_heartbeat, beat)
