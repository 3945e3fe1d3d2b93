"""The heartbeat keeps the leases of this process: a thread with a loop and a connection of its own, and the loop's half of it.

The thread only reports; `LeaseWatch`, in the worker's loop, says what follows. The thread renews also while a handler blocks the
loop, and falls silent when the loop counts as dead, so that others may take over what it holds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from random import random
from typing import Final

import msgspec

from runtime import logs
from runtime.errors import StoreUnavailable
from runtime.jobs import Lease
from runtime.store.base import WorkerRow
from runtime.streams import ANSWER_S, Streams
from runtime.worker.held import Held
from runtime.worker.log import level_of
from runtime.worker.loop_monitor import LoopMonitor

log: Final = logs.guarded("runtime.heartbeat")

STOP_S: Final = 2.0  # a guess: a beat that is under way ends sooner, unless Redis is silent
SILENT_PART: Final = 0.8  # of a lease without a confirmed heartbeat: then nothing new is started
# Of a lease: what comes so long after it was asked for may have waited as long. Beats leave it alone for another sixth, and come
# within two fifths: what comes later must be renewed at once, or others may take it while it runs. A blocked read ends before.
LATE_PART: Final = 1 / 6
ON_THE_WAY_S: Final = 0.2  # a guess: so much more, on a busy machine


class Beat(msgspec.Struct, frozen=True):
    """A heartbeat that the server confirmed: when it was sent, the server's run id, and the leases that it refused.

    With each refused lease stands the delivery count that was asked for.
    """

    sent_s: float
    run_id: str
    refused: list[tuple[Lease, int]]


class LeaseWatch:
    """Owns when the last heartbeat was confirmed, and says what follows for the leases. Pure: the clock is an argument.

    Used in the loop's thread only.
    """

    def __init__(self, lease_s: float, clock: Callable[[], float]) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._confirmed_s = clock()
        self._silent_before_s = 0.0
        self._guarded_until_s = 0.0
        self._run_id = ""

    def __repr__(self) -> str:
        return f"<LeaseWatch {'silent' if self.is_silent else 'confirmed'}, {self._clock() - self._confirmed_s:.1f} s ago>"

    def begin(self) -> None:
        """Count from now: the first beat is written."""
        self._confirmed_s = self._clock()

    @property
    def is_silent(self) -> bool:
        """Whether the leases may be lost: no beat was confirmed for so long that nothing may start any more."""
        return self._clock() - self._confirmed_s > SILENT_PART * self._lease_s

    def is_late(self, asked_s: float) -> bool:
        """Return whether what was asked for then may be another's by now, or soon: asked in silence, or answered late."""
        late_s = LATE_PART * self._lease_s
        return asked_s < self._silent_before_s or self._clock() - asked_s > late_s + min(late_s, ON_THE_WAY_S)

    def confirm(self, beat: Beat) -> None:
        """Take note of a confirmed heartbeat.

        After a silence, a fetch that is under way may still bring what was lost meanwhile. After a restart of the server, or a
        gap of half a lease, this worker reclaims nothing for one lease: the others' beats may have waited as long.
        """
        now_s = self._clock()
        if self.is_silent:
            self._silent_before_s = now_s
        if beat.run_id != self._run_id or now_s - self._confirmed_s > self._lease_s / 2:
            if self._run_id:
                self._guarded_until_s = now_s + self._lease_s
            self._run_id = beat.run_id
        self._confirmed_s = beat.sent_s

    @property
    def may_reclaim(self) -> bool:
        """Whether this worker may take what others do not renew."""
        return self._clock() > self._guarded_until_s and not self.is_silent


class Heartbeat(threading.Thread):
    """Renews what is held every third of a lease, from a thread, so that a handler that blocks the loop does not lose its leases.

    `streams` is the worker's store, of which the thread opens a sibling of its own. `row` returns what the workers' table says of
    this worker; `on_heartbeat` hears of each confirmed beat, `on_crash` of a crash of the thread. All three are called in it.
    """

    def __init__(
        self,
        streams: Streams,
        held: Held,
        monitor: LoopMonitor,
        *,
        lease_s: float,
        row: Callable[[], WorkerRow],
        on_heartbeat: Callable[[Beat], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._streams = streams
        self._held = held
        self._monitor = monitor
        self._lease_s = lease_s
        self._row = row
        self._on_heartbeat = on_heartbeat
        self._on_crash = on_crash
        self._stopping = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        """Beat and watch until stopped."""
        try:
            asyncio.run(self._live())
        except Exception as error:
            self.error = error  # the watchdog in the worker's loop ends the worker: it must not go on without leases
            self._on_crash(error)  # and where that loop stands still, the process ends all the same

    def stop(self) -> None:
        """End the thread after the beat it is in."""
        self._stopping.set()
        self.join(STOP_S)

    def fall_silent(self) -> None:
        """Have the thread end, and do not wait for it: the leases shall expire."""
        self._stopping.set()

    async def _live(self) -> None:
        store = self._streams.sibling(min(ANSWER_S, self._lease_s / 4))  # a silent connection must not cost the lease
        async with asyncio.TaskGroup() as group:
            beats = group.create_task(self._beats(store))
            await self._monitor.run(self._stopping)
            beats.cancel()
        await store.close()

    async def _beats(self, store: Streams) -> None:
        failures = 0
        while True:
            wait_s = self._lease_s / 3 * (0.8 + 0.4 * random())  # noqa: S311 -- spreads beats, guards nothing
            if not self._monitor.is_dead:
                try:
                    await self.beat_once(store)
                    failures = 0
                except StoreUnavailable as error:
                    failures += 1
                    log.log(level_of(error, failures), "no heartbeat, and nothing is fetched without one: %s", error)
                    wait_s /= 6  # the lease runs: try again well before the next beat would be due
            await asyncio.sleep(wait_s)

    async def beat_once(self, store: Streams) -> None:
        """Renew what has been held for a while, then say that this worker lives, and report both.

        Killed between the two: what was renewed keeps its lease, and the row ends as the beat before said.

        Raises:
            StoreUnavailable: no answer or an error; nothing is reported.
        """
        sent_s = time.monotonic()
        leases = self._held.older_than(self._lease_s / 6, sent_s)
        refused = await store.renew([(lease.stream, lease.entry, count) for lease, count in leases])
        run_id = await store.beat(self._row())
        self._on_heartbeat(Beat(sent_s, run_id, [leases[position] for position in refused]))
