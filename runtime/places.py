"""Places bounds how many handlers run in threads and child processes, queues jobs for them, and counts those that hang.

A lane is for a job that runs. So no more jobs wait for a place than have ended in the last second; the others wait in the lot of
their type, where every worker finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final

import msgspec

from runtime.errors import NoPlace, NotStarted
from runtime.jobs import LANE, Job

WAIT_S: Final = 1.0  # a guess: what finds no place within this time is parked, for workers that have one
SECOND_TICKS: Final = 20  # ticks of the watchdog, which come every 50 ms
SOON_TICKS: Final = 2  # a guess: 0.1 s, about as long as fetching a batch takes on a busy machine
HANGS_S: Final = 1.0  # a guess: a thread that ends so soon after its deadline is not worth a warning
THREADS: Final = 40  # copied from anyio: as many as its own limiter lets run
THREAD: Final = "thread"
PROCESS: Final = "process"


class Hang(msgspec.Struct):
    """A place whose job was cut and whose thread goes on: the job, since when, and whether it was logged."""

    type: bytes
    job_id: str
    since_s: float
    is_told: bool = False


class Places:
    """Owns the places of one kind, and the jobs that wait for one. Used on the loop's thread only."""

    def __init__(self, kind: str, total: int) -> None:
        self.kind = kind
        self.total = total
        self.taken: int = 0
        self.lost: dict[object, Hang] = {}
        self.on_wanting: Callable[[], None] = lambda: None
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._is_open = True
        self._ended = 0
        self._ended_at: deque[int] = deque([0] * SECOND_TICKS, SECOND_TICKS)

    def __repr__(self) -> str:
        return f"<Places: {self.taken} of {self.total} ({self.kind}) taken, {len(self._waiting)} wait, {len(self.lost)} lost>"

    @property
    def waiting(self) -> int:
        """How many jobs wait in lanes."""
        return len(self._waiting)

    async def take(self) -> None:
        """Wait for a place, and tell the lane that its job begins now.

        A job that is cut while it waits, or finds none in time, has not started: that burns no attempt.

        Raises:
            NoPlace: there was none in time.
            NotStarted: the worker stops, or may start nothing now.
        """
        if not self._is_open:
            raise NotStarted("the worker stops")
        if self._waiting or self.taken >= self.total:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiter = (time.monotonic(), turn)
            self._waiting.append(waiter)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    with contextlib.suppress(ValueError):  # `give_back` has passed it over meanwhile
                        self._waiting.remove(waiter)
                elif turn.exception() is None:  # it has its place already
                    self.give_back()
                raise NoPlace(f"it was cut while it waited for a {self.kind}") from None
        else:
            self.taken += 1
        lane = LANE.get()
        if lane is None:
            return
        try:
            lane.begin()
        except NotStarted:
            self.give_back()
            raise

    def give_back(self, slot: object = None) -> None:
        """Free a place, and give it to the job that has waited longest."""
        self.lost.pop(slot, None)
        self.taken -= 1
        self._ended += 1
        while self._waiting and self.taken < self.total:
            _, turn = self._waiting.popleft()
            if not turn.done():
                self.taken += 1
                turn.set_result(None)
        if self.is_wanting:
            self.on_wanting()

    def lose(self, slot: object, job: Job) -> None:
        """Note that a job was cut whose thread goes on; its place is given back when that ends."""
        self.lost[slot] = Hang(job.type, job.id, time.monotonic())

    # --- how many more may come --------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Count what has ended since the last tick, and turn away what has waited for longer than WAIT_S."""
        self._ended_at.append(self._ended)
        while self._waiting and self._waiting[0][0] < now_s - WAIT_S:
            self._turn_away(NoPlace(f"no {self.kind} became free within {WAIT_S:g} s"))

    def close(self) -> None:
        """Let nothing begin any more, and turn away all that waits. May be repeated."""
        self._is_open = False
        while self._waiting:
            self._turn_away(NotStarted("the worker stops"))

    def _turn_away(self, why: NotStarted) -> None:
        _, turn = self._waiting.popleft()
        if not turn.done():
            turn.set_exception(why)

    @property
    def is_wanting(self) -> bool:
        """Return whether places are empty, or soon will be: fewer jobs wait than half of what ends within SOON_TICKS."""
        return self.taken < self.total or 2 * len(self._waiting) < self._ended - self._ended_at[-SOON_TICKS]

    def capacity_soon(self, coming: int) -> int:
        """Return how many more would begin within SOON_TICKS, beside what waits and is `coming`; 0 where none is wanted yet."""
        return max(0, self._capacity(coming, self._ended - self._ended_at[-SOON_TICKS])) if self.is_wanting else 0

    def capacity_within_a_second(self, coming: int) -> int:
        """Return how many more would begin within a second, at the pace of the last, beside what waits and is `coming`."""
        return max(0, self._capacity(coming, self._ended - self._ended_at[0]))

    def _capacity(self, coming: int, ending: int) -> int:
        return self.total - self.taken - len(self._waiting) - coming + ending

    # --- what hangs --------------------------------------------------------------------------------------------------

    def hanging(self, now_s: float) -> list[Hang]:
        """Return the places lost to jobs that go on for longer than HANGS_S after they were cut, the newest last."""
        return [lost for lost in self.lost.values() if lost.since_s < now_s - HANGS_S]

    def all_lost_s(self, now_s: float) -> float:
        """Return for how long every place has been lost; 0 as long as there is another."""
        return now_s - max(lost.since_s for lost in self.lost.values()) if len(self.lost) >= self.total else 0.0


def make_places(threads: int = THREADS, processes: int | None = None) -> dict[str, Places]:
    """Return places for so many threads and child processes; None is one process for each core."""
    return {THREAD: Places(THREAD, threads), PROCESS: Places(PROCESS, processes or os.cpu_count() or 2)}


# Set by each worker for its lanes; handlers that are called elsewhere, as in a test, share these.
PLACES: ContextVar[Mapping[str, Places]] = ContextVar("places", default=make_places())  # noqa: B039 -- meant to be shared
