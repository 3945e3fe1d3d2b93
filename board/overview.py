"""OverviewPage answers the first page: the four questions, priorities, charts, types, groups and workers; and the frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from board.api import Answerer
from board.picture import Picture
from board.rows import PRIORITIES, type_rows, worker_row
from board.series import depths, percentile, run_ms, runs_of, series
from board.shapes import Frame, Group, Level, Nothing, Overview, OverviewAsk, Pri, Priority, Range, Trend, Verdict
from board.verdicts import DEFAULTS, NO_GROUPS, Dead, Limits, verdicts
from board.viewer import Viewer
from runtime.jobs import STREAMS
from runtime.store.sample import FAILED

SHOWN = 5  # types and groups, as the page has room for
STEADY_JOBS = 10  # a guess: a change of fewer jobs in ten seconds is no trend
STEADY_PART = 0.05  # a guess: nor is one of so small a part of what comes and goes


class Letters(Protocol):
    """What an index of dead letters says to the first page."""

    def newest(self, n: int, *, has_messages: bool) -> list[Group]:
        """Return the groups in which something died last."""
        ...

    def told(self) -> Dead:
        """Return how many groups there are, and how many grow."""
        ...

    def by_type(self) -> Mapping[str, int] | None:
        """Return how many there are of each type; None until all were looked at."""
        ...

    @property
    def is_grouped(self) -> bool:
        """Whether all letters were looked at."""
        ...


class NoLetters:
    """An index of which nothing is known."""

    is_grouped: bool = False

    def newest(self, n: int, *, has_messages: bool) -> list[Group]:
        """Return no groups."""
        return []

    def told(self) -> Dead:
        """Return that nothing is known."""
        return NO_GROUPS

    def by_type(self) -> Mapping[str, int] | None:
        """Return that nothing is known."""
        return None


class Source(Protocol):
    """What makes overviews out of looks at Redis."""

    async def overview(self, over: Range, *, has_messages: bool) -> Overview:
        """Return the first page, not older than a second where Redis answers."""
        ...

    async def frame(self) -> Frame:
        """Return the figures of the bar."""
        ...


class OverviewPage:
    """Answers for the first page."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def routes(self) -> dict[str, Answerer]:
        """Return which method answers what."""
        return {"GET overview": self.overview, "GET frame": self.frame}

    async def overview(self, ask: OverviewAsk, viewer: Viewer) -> Overview:
        """Return the first page."""
        return await self._source.overview(ask.range, has_messages=viewer.can("payload"))

    async def frame(self, ask: Nothing, viewer: Viewer) -> Frame:
        """Return the figures of the bar."""
        return await self._source.frame()


def overview_of(
    picture: Picture, over: Range, letters: Letters, *, has_messages: bool, hint: str = "", limits: Limits = DEFAULTS
) -> Overview:
    """Return the first page of a picture."""
    sample, dead = picture.sample, letters.told()
    return Overview(
        verdicts=verdicts(picture, limits, dead),
        priorities=[priority_of(picture, name, limits) for name in PRIORITIES],
        delayed=sample.delayed,
        next_due_ms=sample.next_due_ms,
        series=series(picture.history, over),
        types=type_rows(picture, limits, SHOWN),
        groups=letters.newest(SHOWN, has_messages=has_messages),
        all_groups=dead.groups,
        is_grouped=letters.is_grouped,
        workers=[worker_row(one, sample.now_ms, limits) for one in picture.workers],
        hint=hint if is_fresh(picture) else "",
    )


def is_fresh(picture: Picture) -> bool:
    """Return whether no job has come yet, as far as is known."""
    sample, counted = picture.sample, picture.history.tens.values()
    is_empty = not (any(sample.lengths.values()) or sample.delayed or sample.dead)
    return is_empty and not any(minute.outcomes for minute in (*counted, *sample.minutes.values()))


def priority_of(picture: Picture, name: Pri, limits: Limits = DEFAULTS) -> Priority:
    """Return how one priority stands."""
    sample, five = picture.sample, picture.five
    pace, waits, oldest_ms = picture.rates.pace(name), five.waits.get(name, {}), sample.oldest_ms.get(name)
    is_paused, limit_ms = picture.is_paused(name), limits.oldest_ms.get(name, 0)
    level: Level = "look" if limit_ms and (oldest_ms or 0) > limit_ms and not is_paused else "ok"
    return Priority(
        name=name,
        waiting=sample.waiting[name],
        claimed=sample.claimed[name],
        lots=sample.lots[name],
        oldest_ms=oldest_ms,
        level=level,
        added_s=None if pace is None else pace.added_s,
        done_s=None if pace is None else pace.done_s,
        trend=trend_of(picture, name),
        wait_p50_ms=percentile(waits, 0.5),
        wait_p95_ms=percentile(waits, 0.95),
        run_p95_ms=run_ms(runs_of(five, priority=name), 0.95),
        failed_5m=five.count(FAILED, priority=name),
        is_paused=is_paused,
        depth=depths(picture.history, name, sample.waiting[name]),
    )


def trend_of(picture: Picture, name: str) -> Trend:
    """Return how the backlog of a priority moves: what comes and goes by chance is steady."""
    pace, waiting = picture.rates.pace(name), picture.sample.waiting[name]
    steady = Trend(kind="steady", empty_ms=None, grows_s=None)
    if pace is None:
        return steady
    moved = abs(pace.grows_s) * pace.over_ms / 1000
    if moved < STEADY_JOBS or abs(pace.grows_s) < STEADY_PART * max(pace.added_s, pace.done_s):
        return steady
    if pace.grows_s > 0:
        return Trend(kind="grows", empty_ms=None, grows_s=pace.grows_s)
    return Trend(kind="empty", empty_ms=int(waiting / -pace.grows_s * 1000), grows_s=None) if waiting else steady


def levels_of(answers: list[Verdict]) -> dict[str, Level]:
    """Return the level of each question."""
    return {answer.question: answer.level for answer in answers}


def waiting_jobs(picture: Picture) -> int:
    """Return how many jobs there are that are not settled."""
    return sum(picture.sample.lengths[of] for of in STREAMS) + picture.sample.delayed
