"""SchedulesPage answers for the schedules: when each fires next, in words too, and what became of its last ticks."""

from __future__ import annotations

from typing import Final

from board import words
from board.api import Answerer
from board.orders import Orders
from board.picture import Picture
from board.rows import PRIORITIES
from board.sampler import Sampler
from board.shapes import Changed, Level, Nothing, ScheduleAsk, ScheduleRow, Schedules, ScheduleTick
from board.viewer import Viewer
from runtime.codec import MAX_DIGITS
from runtime.control import Control
from runtime.schedules import Definition, Row
from runtime.schedules import Schedules as Known
from runtime.store.flow import BEHIND_MS

NEXT: Final = 5
LAST: Final = 20
MOST: Final = 1000  # as many as may stand in Redis
OUTCOMES: Final = {"f": "fired", "s": "skipped", "m": "missed", "p": "paused"}


class SchedulesPage:
    """Answers for the schedules."""

    def __init__(self, sampler: Sampler, orders: Orders) -> None:
        self._sampler = sampler
        self._orders = orders

    def routes(self) -> dict[str, Answerer]:
        """Return which method answers what."""
        return {
            "GET schedules": self.schedules,
            "POST schedules/run": self.run,
            "POST schedules/pause": self.pause,
            "POST schedules/resume": self.resume,
        }

    async def schedules(self, ask: Nothing, viewer: Viewer) -> Schedules:
        """Return all schedules in force; what fires next comes first."""
        picture = await self._sampler.picture()
        async with await self._control(viewer) as control:
            known = await control.schedules()
        return Schedules(schedules=rows_of(known, picture)[:MOST])

    async def _control(self, viewer: Viewer) -> Control:
        """Return a control that knows the schedules of code which a living worker tells of."""
        told = {name for one in (await self._sampler.picture()).living for name in one.row.schedules}
        code = await self._sampler.store.code_schedules()
        return self._orders.by(viewer, {name: definition for name, definition in code.items() if name in told})

    async def run(self, ask: ScheduleAsk, viewer: Viewer) -> Changed:
        """Send the job of a schedule now, beside its ticks."""
        async with await self._control(viewer) as control:
            sent = await control.run_schedule(ask.name)
        if not sent.new:
            return Changed(is_changed=False, text="a job of it lives, and it overlaps with none: nothing was sent")
        return Changed(is_changed=True, text=f"sent {sent.id}")

    async def pause(self, ask: ScheduleAsk, viewer: Viewer) -> Changed:
        """Let a schedule fire no more until it is resumed."""
        async with await self._control(viewer) as control:
            is_changed = await control.pause_schedule(ask.name, reason=ask.reason)
        name = words.name(ask.name)
        text = f"{name} is paused until it is resumed" if is_changed else f"{name} was paused before"
        return Changed(is_changed=is_changed, text=text)

    async def resume(self, ask: ScheduleAsk, viewer: Viewer) -> Changed:
        """Let a schedule fire again, from now on."""
        async with await self._control(viewer) as control:
            is_changed = await control.resume_schedule(ask.name, reason=ask.reason)
        name = words.name(ask.name)
        return Changed(is_changed=is_changed, text=f"{name} fires again" if is_changed else f"{name} was not paused")


def rows_of(known: Known, picture: Picture) -> list[ScheduleRow]:
    """Return the rows of all schedules: those that can be read, those of code that is not here, and what nobody can read."""
    told: dict[str, int] = {}
    for one in picture.living:
        told |= {name: max(at_ms, told.get(name, 0)) for name, at_ms in one.row.schedules.items()}
    rows = [_in_force(name, one.definition, one.row, one.source, told, known.now_ms) for name, one in known.in_force.items()]
    others = {*known.elsewhere, *told} - known.in_force.keys() - known.unreadable.keys()
    rows += [_elsewhere(name, known, told) for name in others]
    rows += [_unreadable(name, why) for name, why in known.unreadable.items()]
    return sorted(rows, key=lambda row: (not row.next_ms, row.next_ms[:1], row.name))


def _in_force(name: str, definition: Definition, row: Row | None, source: str, told: dict[str, int], now_ms: int) -> ScheduleRow:
    settings, times = definition.settings, definition.times
    level, note = _about(name, settings.paused, told, now_ms)
    return ScheduleRow(
        name=name,
        type=settings.type,
        pri=PRIORITIES[settings.priority - 1],
        when=settings.when or f"every {settings.every_s:g} s",
        words=times.words().removesuffix(f", {times.zone}"),
        zone="" if times.every_ms else times.zone,
        next_ms=[] if settings.paused else definition.fires_after(now_ms, NEXT),
        last=ticks_of(row),
        is_paused=settings.paused,
        source=source,
        level=level,
        note=note,
    )


def _elsewhere(name: str, known: Known, told: dict[str, int]) -> ScheduleRow:
    """Return the row of a schedule of which only its ticks are known: workers of an older release do not write down theirs."""
    one, next_ms = known.elsewhere.get(name), told.get(name, 0)
    is_paused = (one is not None and one.is_paused) or (name in told and not next_ms)
    level, note = _about(name, is_paused, told, known.now_ms)
    return ScheduleRow(
        name=name,
        type="",
        pri="medium",
        when="",
        words="as the workers' code says",
        zone="",
        next_ms=[next_ms] if next_ms and not is_paused else [],
        last=ticks_of(one.row if one else None),
        is_paused=is_paused,
        source="code",
        level=level,
        note=note,
    )


def _unreadable(name: str, why: str) -> ScheduleRow:
    return ScheduleRow(
        name=name,
        type="",
        pri="medium",
        when="",
        words="",
        zone="",
        next_ms=[],
        last=[],
        is_paused=False,
        source="Redis",
        level="act",
        note=f"cannot be read, and does not run: {why[:200]}",
    )


def _about(name: str, is_paused: bool, told: dict[str, int], now_ms: int) -> tuple[Level, str]:
    """Return how it stands with a schedule."""
    if is_paused:
        return "ok", "paused"
    if not told.get(name):
        return "look", "no worker that lives fires it"
    late_ms = now_ms - told[name]
    return ("look", f"should have fired {words.duration(late_ms)} ago") if late_ms > BEHIND_MS else ("ok", "")


def ticks_of(row: Row | None) -> list[ScheduleTick]:
    """Return the last ticks of a schedule, the newest last; what is none is left out."""
    found: list[ScheduleTick] = []
    for tick in row.ticks if row else ():
        digits = tick[: len(tick) - len(tick.lstrip("0123456789"))]
        outcome = OUTCOMES.get(tick[len(digits) : len(digits) + 1])
        if 0 < len(digits) <= MAX_DIGITS and outcome:
            found.append(ScheduleTick(at_ms=int(digits), outcome=outcome))
    return found[-LAST:]
