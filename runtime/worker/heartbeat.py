"""What this process holds, and the heartbeat that keeps it: a thread with a loop and a connection of its own.

The thread only reports; the main loop judges what is lost. It also watches the main loop: it names who blocks it, and falls
silent when the loop has not moved for `max_block_s`, so that others may take over what a dead loop holds.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from random import random
from types import FrameType
from typing import Final, TypeVar

import msgspec

from runtime import logs
from runtime.errors import StoreUnavailable
from runtime.jobs import Job, Lease
from runtime.store.base import WorkerRow
from runtime.streams import ANSWER_S, Streams
from runtime.worker.log import level_of

log = logs.guarded("runtime.worker.heartbeat")

TICK_S: Final = 0.05  # between two signs of life of the main loop
WATCH_S: Final = 0.1  # between two looks at it: each wakes a thread, which an idle worker pays for
BLOCKED_S: Final = 0.1  # a loop that stands still this long delays everybody's jobs
QUIET_S: Final = 5.0  # one report of a blocked loop in this time, except for each doubling of its length
STOP_S: Final = 2.0

L = TypeVar("L", bound=Lease)


class Held:
    """Owns every lease of this process: inbox, lanes and ledger. Changed per batch, under a lock shared with the heartbeat."""

    def __init__(self) -> None:
        self._leases: tuple[dict[bytes, Lease], ...] = ({}, {}, {}, {})
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Held {len(self)} leases>"

    def __len__(self) -> int:
        return sum(map(len, self._leases))

    def __contains__(self, lease: Lease) -> bool:
        return self._leases[lease.stream].get(lease.entry) is lease

    def has(self, stream: int, entry: bytes) -> bool:
        """Return whether this entry is held."""
        return entry in self._leases[stream]

    def add(self, stream: int, leases: list[L]) -> list[L]:
        """Hold these leases of one stream; give those that are new.

        One that is held already is adopted: its token is updated, it does not run again.
        """
        known = self._leases[stream]
        new = {lease.entry: lease for lease in leases}
        with self._lock:
            if known.keys().isdisjoint(new):
                known.update(new)
                return leases
            for entry in known.keys() & new.keys():
                ours, again = known[entry], new.pop(entry)
                ours.count, ours.run_id, ours.taken_s = again.count, again.run_id, again.taken_s
            known.update(new)
        return list(new.values())

    def remove(self, leases: Iterable[Lease]) -> None:
        """Hold these no longer: their move is confirmed, or they are somebody else's. What was lost and taken anew is another."""
        by_stream = self._leases
        with self._lock:
            for lease in leases:
                known = by_stream[lease.stream]
                if known.get(lease.entry) is lease:
                    del known[lease.entry]

    def older_than(self, age_s: float, now_s: float) -> list[tuple[Lease, int]]:
        """Return the leases taken longer than `age_s` ago, each with the count it has now."""
        before_s = now_s - age_s
        with self._lock:
            return [(lease, lease.count) for known in self._leases for lease in known.values() if lease.taken_s < before_s]


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat that the server confirmed:
    when it was sent, who heard it, which leases it refused (and the count asked for).
    """

    sent_s: float
    run_id: str
    refused: list[tuple[Lease, int]]


class LoopState(msgspec.Struct):
    """What the heartbeat may look at in the main loop's thread; written there, read here."""

    moved_s: float
    thread_id: int
    running: Callable[[], Job | None]


class Heartbeat(threading.Thread):
    """Renews what is held every third of a lease, from a thread, so that a handler that blocks the loop does not lose
    its leases.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        consumer: str,
        lease_s: float,
        max_block_s: float,
        held: Held,
        loop_state: LoopState,
        row: Callable[[], WorkerRow],
        report: Callable[[Beat], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._streams = (url, queue, consumer)
        self._lease_s = lease_s
        self._max_block_s = max_block_s
        self._held = held
        self._loop_state = loop_state
        self._row = row
        self._report = report
        self._crashed = crashed
        self._stopping = threading.Event()
        self.error: Exception | None = None
        self._dumped = False

    def run(self) -> None:
        """Beat and watch until stopped."""
        try:
            asyncio.run(self._live())
        except Exception as error:
            self.error = error  # the watchdog in the main loop ends the worker: it must not go on without leases
            self._crashed(error)  # and where the loop stands still, whoever hears this does

    def stop(self) -> None:
        """End the thread after the beat it is in."""
        self._stopping.set()
        self.join(STOP_S)

    def fall_silent(self) -> None:
        """Have the thread end, and do not wait for it: the leases shall expire."""
        self._stopping.set()

    async def _live(self) -> None:
        store = Streams(*self._streams, answer_s=min(ANSWER_S, self._lease_s / 4))  # a silent line must not cost the lease
        async with asyncio.TaskGroup() as group:
            beats = group.create_task(self._beats(store))
            await self._watch()
            beats.cancel()
        await store.close()

    async def _beats(self, store: Streams) -> None:
        failures = 0
        while True:
            wait_s = self._lease_s / 3 * (0.8 + 0.4 * random())  # noqa: S311 -- spreads beats, guards nothing
            if time.monotonic() - self._loop_state.moved_s <= self._max_block_s:
                try:
                    await self._beat(store)
                    failures = 0
                except StoreUnavailable as error:
                    failures += 1
                    log.log(level_of(error, failures), "no heartbeat, and nothing is fetched without one: %s", error)
                    wait_s /= 6  # the lease runs: try again well before the next beat would be due
            await asyncio.sleep(wait_s)

    async def _beat(self, store: Streams) -> None:
        sent_s = time.monotonic()
        leases = self._held.older_than(self._lease_s / 6, sent_s)
        refused = await store.renew([(lease.stream, lease.entry, count) for lease, count in leases])
        run_id = await store.beat(self._row())
        self._report(Beat(sent_s, run_id, [leases[position] for position in refused]))

    async def _watch(self) -> None:
        reported_s, next_s = 0.0, BLOCKED_S
        while not self._stopping.is_set():
            await asyncio.sleep(WATCH_S)
            now_s = time.monotonic()
            still_s = now_s - self._loop_state.moved_s - TICK_S
            if still_s < BLOCKED_S:
                next_s = BLOCKED_S
                self._dumped = False
            elif still_s >= next_s and (now_s - reported_s > QUIET_S or still_s > 2 * BLOCKED_S):
                self._name_the_blocker(still_s)
                reported_s, next_s = now_s, max(2 * still_s, 10 * BLOCKED_S)
            if still_s > self._max_block_s and not self._dumped:
                self._dumped = True
                log.critical("the loop has not moved for %.0f s: the heartbeat falls silent\n%s", still_s, stacks())

    def _name_the_blocker(self, still_s: float) -> None:
        job = self._loop_state.running()
        frame = _frames().get(self._loop_state.thread_id)
        where = place_of(frame) if frame is not None else "unknown place"
        who = f"handler of {job.type.decode(errors='replace')} (job {job.id})" if job else "code outside of handlers"
        log.warning("the event loop is blocked for %.0f ms by the %s at %s", still_s * 1000, who, where)


def _frames() -> dict[int, FrameType]:
    return sys._current_frames()  # pyright: ignore[reportPrivateUsage] -- the only way to see another thread's stack


def place_of(frame: FrameType) -> str:
    """Return file, line and function where a thread stands; beside a library's innermost line also the one that called it."""
    inner = traceback.extract_stack(frame)
    last = inner[-1]
    ours = next((at for at in reversed(inner) if not _is_library(at.filename)), last)
    text = f"{ours.filename}:{ours.lineno} in {ours.name}"
    return text if ours is last else f"{text}, now in {last.filename}:{last.lineno} {last.name}"


def _is_library(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith((sys.base_prefix, "<frozen"))


def stacks() -> str:
    """Return the stacks of all threads, for the log."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in _frames().items()
    )
