"""Rows that several pages show: of a worker, and of a type. Pure."""

from __future__ import annotations

from typing import Final, cast, get_args

from board import words
from board.history import HOUR
from board.picture import Picture, Seen
from board.series import hour_of, run_ms, runs_of
from board.shapes import Level, Longest, Pri, TypeRow, WorkerRow
from board.verdicts import DEFAULTS, LEVELS, Limits, blocker, type_level

SWEEP_MS: Final = 5_000  # the longest time between two sweeps: so long after its end a lease is taken over at the latest
PRIORITIES: Final[tuple[Pri, ...]] = get_args(Pri)


def worker_row(one: Seen, now_ms: int, limits: Limits = DEFAULTS) -> WorkerRow:
    """Return the row of a worker."""
    level, note = _about(one, limits)
    row = one.row
    longest = min(row.jobs, key=lambda job: job[1], default=None)
    return WorkerRow(
        name=one.name,
        label=one.label,
        host=row.host,
        pid=row.pid,
        version=row.version,
        app=row.app,
        up_ms=max(0, now_ms - row.since) if row.since else None,
        rss_bytes=row.rss or None,
        lag_ms=float(row.lag) if one.is_alive and row.since else None,
        lanes=row.lanes,
        busy=one.busy,
        held=one.held,
        longest=None if longest is None else longest_of(longest, now_ms),
        stage=row.stage,
        order=one.order,
        beat_ms=one.beat_ms,
        is_alive=one.is_alive,
        level=level,
        note=note,
    )


def longest_of(job: tuple[str, int, str], now_ms: int) -> Longest:
    """Return what a worker's row says of a job that it runs; its id stands in its message alone."""
    place, start_ms, type_name = job
    return Longest(type=type_name, id="", place=place, runs_ms=max(0, now_ms - start_ms))


def _about(one: Seen, limits: Limits) -> tuple[Level, str]:
    """Return how it stands with a worker, and the worst that can be said of it."""
    if not one.is_alive:
        jobs = words.counted(one.held, "job")
        back_ms = one.row.lease_ms - one.beat_ms + SWEEP_MS
        when = f"within {words.duration(back_ms)}" if one.row.lease_ms and back_ms > 0 else "soon"
        return "act", f"gone, its {jobs} {'comes' if one.held == 1 else 'come'} back {when}"
    if one.row.lag >= limits.blocked_ms:
        by = blocker(one)
        return "act", f"its loop stood still for {words.duration(one.row.lag)}{f', by {by}' if by else ''}"
    if one.is_silent:
        return "look", f"has not beaten for {words.duration(one.beat_ms)}"
    if one.row.lag > limits.lag_ms:
        return "look", f"its loop stood still for {words.duration(one.row.lag)}"
    if one.order or one.row.stage not in ("", "running"):
        return "ok", f"ordered to {'be quiet' if one.order == 'quiet' else one.order}" if one.order else words.name(one.row.stage)
    return "ok", ""


def type_rows(picture: Picture, limits: Limits = DEFAULTS, most: int | None = None) -> list[TypeRow]:
    """Return the rows of all types that a living worker knows, or that ran in the last hour; what needs a look comes first."""
    names = picture.known | {name for ago in range(HOUR) for name in picture.types_of_minute(ago)}
    found = [
        (-LEVELS.index(type_level(picture, name, limits)), *(-n for n in reversed(picture.runs(name))), name) for name in names
    ]
    return [type_row(picture, name, limits) for *_, name in sorted(found)[:most]]


def type_row(picture: Picture, type_name: str, limits: Limits = DEFAULTS) -> TypeRow:
    """Return the row of a type, as it was in the last five minutes; what lists and letters know of it is left open."""
    runs, failed = picture.runs(type_name)
    times, hour = runs_of(picture.five, type_name), hour_of(picture.history, type_name)
    newest = next((one for one in reversed(hour) if one is not None and one.priority), None)
    return TypeRow(
        type=type_name,
        pri=None if newest is None else cast("Pri", newest.priority),
        runs=runs,
        runs_s=runs / picture.five_s,
        failed=failed,
        failed_part=failed / runs if runs else 0.0,
        p50_ms=run_ms(times, 0.5),
        p95_ms=run_ms(times, 0.95),
        p99_ms=run_ms(times, 0.99),
        claimed=sum(one.row.running.get(type_name, 0) for one in picture.living),
        dead=None,
        waiting=None,
        runs_hour=[None if one is None else one.ended for one in hour],
        failed_hour=[None if one is None else one.failed for one in hour],
        is_known=type_name in picture.known,
        level=type_level(picture, type_name, limits),
        note="" if type_name in picture.known or not picture.living else "no living worker knows it",
    )
