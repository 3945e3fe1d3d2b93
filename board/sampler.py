"""Sampler looks at the queue once a second while somebody looks at the board, for all of them, and never else."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from board.history import HOUR, History, Rates
from board.overview import Letters, NoLetters, levels_of, overview_of, waiting_jobs
from board.picture import Picture, errors_of
from board.shapes import Counts, Frame, Level, Overview, Range, Tick
from board.verdicts import DEFAULTS, Limits, type_level, verdicts, worst
from board.viewer import Viewer
from runtime import logs
from runtime.errors import StoreUnavailable
from runtime.findings import Finding
from runtime.store.doctor import Doctor
from runtime.store.events import Events
from runtime.store.sample import People, SampleStore

log: Final = logs.guarded("board.sampler")

TICK_S: Final = 1.0
PEOPLE_TICKS: Final = 2  # rows of workers and the rules are read at each second tick
LINGER_S: Final = 5.0  # so long after a page was asked for, somebody looks
FILL_S: Final = 0.1  # between two readings of older minutes: a guess, 2 ms of the server each
REST: Final = 4  # a guess: and a fifth of the time at most, where minutes have many counters
HOUR_STEPS: Final = 4  # readings that the first look waits for, so that it has the last hour
FINDINGS_S: Final = 60.0  # a guess: what a doctor looks at changes slowly, and it asks a thousand things
MOST_KEPT: Final = 4  # frames that wait for a slow viewer; the oldest is dropped
NEWEST_ENDED: Final = 500  # a guess: a page of them, a few hundred kB
ERRORS_S: Final = 5.0  # a guess: the newest failures are looked at so often, while too much fails
OVERVIEW: Final = "overview"  # the topic of a stream that shows the first page
NOBODY: Final = Viewer()
_T = TypeVar("_T")


class Sampler:
    """Owns what is known of one queue, and the looks at it. One for each process that serves a board.

    `letters` is the index of dead letters, `hint` the command that a fresh queue is shown with. `seq` counts the looks; what is
    made of one of them for all viewers is kept until the next.
    """

    def __init__(self, url: str, queue: str, *, limits: Limits = DEFAULTS, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url
        self.queue = queue
        self.limits = limits
        self.letters: Letters = NoLetters()
        self.hint: str = ""
        self.history: History = History()
        self.rates: Rates = Rates()
        self.store: SampleStore = SampleStore(url, queue)
        self.findings: list[Finding] = []
        self.findings_at_ms: int = 0
        self.trouble: str | None = None
        self.seq: int = 0
        self.cost: tuple[int, float] = (0, 0.0)  # commands of the last look, and how long they took in seconds
        self._doctor = Doctor(url, queue, "board")
        self._events = Events(url, queue, "board")
        self._clock = clock
        self._picture: Picture | None = None
        self._picture_s = 0.0
        self._people = People()
        self._errors: dict[str, tuple[str, float]] = {}
        self._asked_s = self._errors_s = self._findings_s = -1e9
        self._viewers: set[Subscription] = set()
        self._task: asyncio.Task[None] | None = None
        self._background: asyncio.Task[None] | None = None
        self._ticked = asyncio.Event()
        self._made: dict[Hashable, Any] = {}
        self._examining = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Sampler of {self.queue}, {len(self._viewers)} viewers, {self.seq} looks>"

    async def close(self) -> None:
        """End the looks and close the connections."""
        running = [task for task in (self._task, self._background) if task is not None]
        self._task = self._background = None
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.store.close()
        await self._doctor.close()
        await self._events.close()

    # --- for those who look ----------------------------------------------------------------------------------------------

    def subscribe(self, topics: frozenset[str], range: Range = "1h", viewer: Viewer = NOBODY) -> Subscription:
        """Return frames for one viewer, to be used with `async with`: a snapshot first, then one each second."""
        return Subscription(self, topics, range, has_messages=viewer.can("payload"))

    async def picture(self) -> Picture:
        """Return what is known of the queue, not older than a second while Redis answers; else as it was seen last.

        Raises:
            StoreUnavailable: Redis does not answer, and never did.
        """
        self._asked_s = self._clock()
        if self._picture is None or self._age_s > TICK_S:
            self._look()
            await self._ticked.wait()
        if self._picture is None:
            raise StoreUnavailable(self.trouble or "Redis does not answer")
        return self._picture

    async def overview(self, over: Range = "1h", *, has_messages: bool = False) -> Overview:
        """Return the first page, the same for all; raises as `picture`."""
        picture = await self.picture()
        return self._overview(picture, over, has_messages)

    async def frame(self) -> Frame:
        """Return the figures of the bar; raises as `picture`."""
        await self.picture()
        return self._frame()

    async def examined(self) -> list[Finding]:
        """Return what a doctor has found, not longer than a minute ago.

        Raises:
            StoreUnavailable: no answer.
        """
        async with self._examining:
            if self._clock() - self._findings_s >= FINDINGS_S:
                now_ms = int(time.time() * 1000)
                self.findings = await self._doctor.examine(now_ms)
                self._findings_s, self.findings_at_ms = self._clock(), now_ms
            return self.findings

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return len(self._viewers)

    def kept(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return what was made under a key since the last look, or make it: so it is made once for all viewers."""
        if key not in self._made:
            self._made[key] = make()
        return cast("_T", self._made[key])

    def tick(self, topics: frozenset[str], over: Range, has_messages: bool) -> Tick | None:
        """Return the frame of this moment; None before the first look."""
        picture = self._picture
        if picture is None and self.trouble is None:
            return None
        has_overview = picture is not None and OVERVIEW in topics
        return self.kept(
            ("tick", has_overview and over, has_messages and has_overview),
            lambda: Tick(
                frame=self._frame(),
                overview=self._overview(picture, over, has_messages) if picture is not None and has_overview else None,
            ),
        )

    def join(self, viewer: Subscription) -> None:
        """Begin to look for a viewer, with the picture of this moment where there is a fresh one."""
        self._viewers.add(viewer)
        if self._picture is not None and self._age_s <= TICK_S:
            viewer.put(self.tick(viewer.topics, viewer.over, viewer.has_messages))
        self._look()

    def leave(self, viewer: Subscription) -> None:
        """Look for this viewer no more."""
        self._viewers.discard(viewer)

    # --- looking ---------------------------------------------------------------------------------------------------------

    @property
    def _age_s(self) -> float:
        return self._clock() - self._picture_s

    @property
    def _is_watched(self) -> bool:
        return bool(self._viewers) or self._clock() - self._asked_s < LINGER_S

    def _look(self) -> None:
        """Begin to look, where nobody does."""
        if self._task is None or self._task.done():
            self._ticked.clear()
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._is_watched:
            begun_s = self._clock()
            self._ticked.clear()
            try:
                await self._tick()
            except Exception as error:  # a defect here must not end the looks: viewers would see an old picture as a fresh one
                log.exception("the board's look at the queue failed")
                self.trouble = f"the board failed: {type(error).__name__}"
            self._made.clear()
            self.seq += 1
            self._ticked.set()
            for viewer in tuple(self._viewers):
                viewer.put(self.tick(viewer.topics, viewer.over, viewer.has_messages))
            if self.trouble is None and (self._background is None or self._background.done()):
                self._background = asyncio.create_task(self._fill())
            await asyncio.sleep(max(0.0, begun_s + TICK_S - self._clock()))

    async def _tick(self) -> None:
        """Make a picture; without an answer the last one stays, and what is wrong is said."""
        asked, took_s = self.store.asked, self.store.took_s
        try:
            sample = await self.store.sample()
            self.cost = self.store.asked - asked, self.store.took_s - took_s
            if self.seq % PEOPLE_TICKS == 0 or self.trouble is not None or self._picture is None:
                self._people = await self.store.people()
            self.history.look(sample)
            steps = 0 if self.history.knows(HOUR) else HOUR_STEPS
            for _ in range(steps):
                await self._read_minutes(HOUR)
        except StoreUnavailable as error:
            self.trouble = str(error)
            return
        self.rates.note(sample)
        self.history.saw(row for name, row in self._people.rows.items() if name in sample.living)
        self._picture = Picture(sample, self._people, self.history, self.rates, self._errors)
        self._picture_s = self._clock()
        self.trouble = None

    async def _read_minutes(self, within: int) -> bool:
        """Read some of the newest minutes that are missing; return whether there were any."""
        missing = [number for number in self.history.missing() if number >= self.history.now - within]
        if missing:
            self.history.note(await self.store.minutes(missing))
        return bool(missing)

    async def _fill(self) -> None:
        """Read what takes longer, a part at a time, until there is no more or nobody looks."""
        try:
            await self._note_errors()
            await self.examined()
            begun_s = self._clock()
            while self._is_watched and await self._read_minutes(2 * 24 * HOUR):
                await asyncio.sleep(max(FILL_S, REST * (self._clock() - begun_s)))
                begun_s = self._clock()
        except StoreUnavailable as error:
            log.debug("the board could not read older minutes: %s", error)
        except Exception:
            log.exception("the board's look at older minutes failed")

    async def _note_errors(self) -> None:
        """Look what the newest failures were, while too much of some type fails."""
        picture = self._picture
        if picture is None or self._clock() - self._errors_s < ERRORS_S:
            return
        if any(type_level(picture, name, self.limits) != "ok" for name in picture.types):
            self._errors_s = self._clock()
            ended, _ = await self._events.events(NEWEST_ENDED)
            self._errors = errors_of((one.type, one.error) for one in ended)

    # --- what is shown ---------------------------------------------------------------------------------------------------

    def _overview(self, picture: Picture, over: Range, has_messages: bool) -> Overview:
        return self.kept(
            (OVERVIEW, over, has_messages),
            lambda: overview_of(picture, over, self.letters, has_messages=has_messages, hint=self.hint, limits=self.limits),
        )

    def _frame(self) -> Frame:
        return self.kept("frame", self._framed)

    def _framed(self) -> Frame:
        picture = self._picture
        if picture is None:
            return _blank(self.trouble or "Redis does not answer")
        answers = verdicts(picture, self.limits, self.letters.told())
        levels = levels_of(answers)
        found = Counter(finding.level for finding in self.findings)
        system: Level = "act" if found["error"] else "look" if found["warning"] else "ok"
        is_away = self.trouble is not None
        schedules = {name for one in picture.living for name in one.row.schedules}
        return Frame(
            now_ms=picture.sample.now_ms,
            level=worst(levels.values()),
            looks=sum(1 for level in levels.values() if level == "look"),
            acts=sum(1 for level in levels.values() if level == "act"),
            counts=Counts(
                jobs=waiting_jobs(picture),
                dead=picture.sample.dead,
                types=len(picture.known | picture.types.keys()),
                workers=len(picture.living),
                schedules=len(schedules),
                findings=found["error"] + found["warning"],
                operations=len(picture.people.rules.operations),
            ),
            dead_level=levels["died"],
            system_level=system,
            workers_level=levels["workers"],
            age_ms=int(self._age_s * 1000) if is_away else 0,
            trouble=self.trouble,
        )


def _blank(trouble: str) -> Frame:
    """Return what is shown while nothing was seen yet."""
    nothing = Counts(jobs=0, dead=0, types=0, workers=0, schedules=0, findings=0, operations=0)
    return Frame(
        now_ms=int(time.time() * 1000),
        level="act",
        looks=0,
        acts=1,
        counts=nothing,
        dead_level="ok",
        system_level="act",
        workers_level="ok",
        age_ms=0,
        trouble=trouble,
    )


class Subscription:
    """Frames for one viewer: an async context manager and iterator. A viewer that is slow misses the oldest."""

    def __init__(self, sampler: Sampler, topics: frozenset[str], over: Range, *, has_messages: bool) -> None:
        self.topics = topics
        self.over: Range = over
        self.has_messages = has_messages
        self._sampler = sampler
        self._frames: deque[Tick] = deque(maxlen=MOST_KEPT)
        self._has_one = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._sampler.join(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sampler.leave(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tick:
        while not self._frames:
            self._has_one.clear()
            await self._has_one.wait()
        return self._frames.popleft()

    def put(self, tick: Tick | None) -> None:
        """Take a frame, in place of the oldest where too many wait."""
        if tick is not None:
            self._frames.append(tick)
            self._has_one.set()
