"""The four questions of the first page: is anything stuck, why do jobs fail, what do workers do, what died? Pure.

Each looks for what a person should act on, then for what they should look at, and says the worst of it first. Where nothing is
found, it says what is so, in figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from board import words
from board.picture import Picture, Seen, unknown_in
from board.shapes import Level, Said, Verdict
from runtime.jobs import STREAMS

MOST_TOLD: Final = 2  # sentences of one answer; a guess: more is not read
LEVELS: Final[tuple[Level, ...]] = ("ok", "look", "act")
Question = Literal["stuck", "failing", "workers", "died"]


def _oldest() -> dict[str, int]:
    return {"critical": 5_000, "high": 30_000, "medium": 600_000, "low": 7_200_000}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """From when on something is worth a look, or has to be acted on. Guesses all of them: every team has its own."""

    oldest_ms: dict[str, int] = msgspec.field(default_factory=_oldest)
    grew_minutes: int = 5
    idle_ms: int = 10_000  # nothing was fetched for so long, while something waits and a lane is free
    late_ms: int = 5_000  # a delayed job is due for so long
    few_runs: int = 20  # of fewer runs no part is told
    failed_look: float = 0.05
    failed_times: float = 3.0  # as much as in the last day
    failed_act: float = 0.5
    lag_ms: int = 100
    blocked_ms: int = 1_000
    versions_ms: int = 1_800_000  # two versions for longer are no deploy any more
    died_act: float = 0.01
    died_minutes: int = 15


class Found(msgspec.Struct, frozen=True):
    """One thing found."""

    level: Level
    said: Said
    href: str


class Dead(msgspec.Struct, frozen=True):
    """What is known of letters by what they died of: how many groups there are, how many grow, and the first that does."""

    groups: int = 0
    growing: int = 0
    first: str = ""


DEFAULTS: Final = Limits()
NO_GROUPS: Final = Dead()


def verdicts(picture: Picture, limits: Limits = DEFAULTS, dead: Dead = NO_GROUPS) -> list[Verdict]:
    """Return the answers to the four questions, in their order."""
    return [
        _verdict("stuck", _stuck(picture, limits), lambda: _moves(picture), "/jobs?state=waiting"),
        _verdict("failing", _failing(picture, limits), lambda: _succeeds(picture), "/types"),
        _verdict("workers", _troubled(picture, limits), lambda: _works(picture), "/workers"),
        _verdict("died", _died(picture, limits, dead), lambda: _lives(picture), "/dead"),
    ]


def worst(levels: Iterable[Level]) -> Level:
    """Return the worst of some levels; ok of none."""
    return LEVELS[max(map(LEVELS.index, levels), default=0)]


def _verdict(question: Question, found: Iterator[Found], otherwise: Callable[[], Said], href: str) -> Verdict:
    told = sorted(found, key=lambda one: -LEVELS.index(one.level))  # a stable sort: the first of a level stays the first
    if not told:
        return Verdict(question=question, level="ok", said=otherwise(), href=href)
    level = told[0].level
    shown = [one.said for one in told][:MOST_TOLD]
    more = len(told) - len(shown)
    if more:
        shown.append([f"And {more} more."])
    return Verdict(question=question, level=level, said=words.joined(*shown), href=told[0].href)


# --- is anything stuck? --------------------------------------------------------------------------------------------------------


def _stuck(picture: Picture, limits: Limits) -> Iterator[Found]:
    yield from _unserved(picture)
    yield from _unknown(picture)
    yield from _not_fetched(picture, limits)
    yield from _left_behind(picture)
    yield from _late(picture, limits)
    for priority in STREAMS:
        yield from _old(picture, limits, priority)


def _unserved(picture: Picture) -> Iterator[Found]:
    waiting = sum(picture.sample.waiting.values()) + sum(picture.sample.lots.values())
    if waiting and not picture.living:
        wait = "waits" if waiting == 1 else "wait"
        yield Found("act", ["", words.counted(waiting, "job"), f" {wait} and no worker lives."], "/workers")


def _unknown(picture: Picture) -> Iterator[Found]:
    found: dict[tuple[str, str], int] = {}
    for (lot, _), n in picture.sample.held.items():
        kind = unknown_in(lot)
        if kind is not None:
            found[kind] = found.get(kind, 0) + n
    for (name, version), n in sorted(found.items(), key=lambda item: -item[1]):
        is_known = name in picture.known
        kind = f"{words.name(name)} version {words.name(version)}" if is_known and version else words.name(name)
        wait = "waits" if n == 1 else "wait"
        said = [f"{words.counted(n, 'job')} {wait} for a worker that knows ", kind, "; none that lives does."]
        yield Found("look" if is_known else "act", said, "/queue")


def _not_fetched(picture: Picture, limits: Limits) -> Iterator[Found]:
    """Find that nothing is fetched though a lane is free: lanes that all run something are busy, and not stuck."""
    rates, waiting = picture.rates, picture.sample.waiting
    able = [one for one in picture.living if one.order != "quiet" and one.row.stage in ("", "running")]
    free = sum(one.row.lanes - one.row.reserved - one.busy for one in able)
    n = sum(waiting[of] for of in STREAMS if not picture.is_paused(of))
    if n and free > 0 and rates.over_ms >= limits.idle_ms and not rates.has_fetched:
        since = words.duration(rates.over_ms)
        said: Said = ["Nothing was fetched for ", since, f", while {words.counted(n, 'job')} wait and lanes are free."]
        yield Found("act", said, "/workers")


def _left_behind(picture: Picture) -> Iterator[Found]:
    """Find claims whose owner is gone for so long that others should have taken them back by now: two leases."""
    gone = [one for one in picture.gone if one.beat_ms == 0 or one.beat_ms > 2 * one.row.lease_ms]
    n = sum(one.held for one in gone)
    if n and picture.living:
        whose = gone[0].label if len(gone) == 1 else words.counted(len(gone), "worker")
        said = ["", words.counted(n, "job"), f" of {words.name(whose)}, which is gone, should have come back by now."]
        yield Found("act", said, "/jobs?state=claimed&facet=gone")


def _late(picture: Picture, limits: Limits) -> Iterator[Found]:
    due_ms = picture.sample.next_due_ms
    late_ms = picture.sample.now_ms - due_ms if due_ms is not None else 0
    if late_ms > limits.late_ms:
        yield Found("act", ["A delayed job is ", words.duration(late_ms), " late: nobody moves it."], "/jobs?state=delayed")


def _old(picture: Picture, limits: Limits, priority: str) -> Iterator[Found]:
    """Find that the oldest of a priority has waited for too long, or that more waits after each of the last minutes."""
    sample, limit_ms = picture.sample, limits.oldest_ms.get(priority, 0)
    waited_ms, n = sample.oldest_ms.get(priority), sample.waiting[priority]
    if waited_ms is None or picture.is_paused(priority):
        return
    href, pace = f"/jobs?state=waiting&q={quote('pri:' + priority)}", picture.rates.pace(priority)
    grows: Said = [f"The backlog grows by {words.rate(pace.grows_s)} a second."] if pace and pace.grows_s >= 1 else [""]
    if limit_ms and waited_ms > limit_ms:
        of = "it" if n == 1 else f"the oldest of {words.counted(n, 'job')}"
        said: Said = ["", priority, f": {of} has waited ", words.duration(waited_ms), f", limit {words.duration(limit_ms)}."]
        yield Found("look", words.joined(said, grows) if grows[0] else said, href)
    elif _grew(picture, priority, limits.grew_minutes):
        said = [
            "",
            priority,
            f": more waits after each of the last {limits.grew_minutes} minutes, {words.counted(n, 'job')} now.",
        ]
        yield Found("look", words.joined(said, grows) if grows[0] else said, href)


def _grew(picture: Picture, priority: str, minutes: int) -> bool:
    history = picture.history
    depths = [
        history.minutes[at].depth.get(priority) for at in range(history.now - minutes, history.now) if at in history.minutes
    ]
    known = [depth for depth in [*depths, picture.sample.waiting[priority]] if depth is not None]
    return len(known) == minutes + 1 and all(before < after for before, after in pairwise(known))


def _moves(picture: Picture) -> Said:
    sample = picture.sample
    waiting, oldest = sum(sample.waiting.values()), [ms for ms in sample.oldest_ms.values() if ms is not None]
    paused = words.listed([of for of in STREAMS if picture.is_paused(of)])
    also: Said = [f"Paused: {paused}."] if paused else [""]
    if not waiting or not oldest:
        said: Said = ["Nothing waits."]
    elif waiting == 1:
        said = ["One job waits, for ", words.duration(max(oldest)), "."]
    else:
        said = [f"{words.counted(waiting, 'job')} wait, the oldest for ", words.duration(max(oldest)), "."]
    return words.joined(said, also) if paused else said


# --- why do jobs fail? ---------------------------------------------------------------------------------------------------------


def _failing(picture: Picture, limits: Limits) -> Iterator[Found]:
    for name, one in sorted(picture.types.items(), key=lambda item: (-item[1].failed / item[1].ended, item[0])):
        level, runs, failed = type_level(picture, name, limits), one.ended, one.failed
        if level == "ok":
            continue
        all_runs, all_failed = picture.history.day(name)
        over = f", {words.percent(all_failed / all_runs)} over {_hours(picture)}" if all_runs > runs else ""
        part = words.percent(failed / runs)
        said: Said = ["", words.name(name), f": {part} of {words.counted(runs, 'run')} failed in 5 min{over}."]
        href = f"/type?type={quote(name, safe='')}"
        yield Found(level, words.joined(said, _mostly(picture, name)) if name in picture.errors else said, href)


def type_level(picture: Picture, type_name: str, limits: Limits = DEFAULTS) -> Level:
    """Return whether so much of a type fails that somebody should look, or act: more than is allowed, and than is usual."""
    runs, failed = picture.runs(type_name)
    if runs < limits.few_runs or failed <= limits.failed_look * runs:
        return "ok"
    if failed > limits.failed_act * runs:
        return "act"
    all_runs, all_failed = picture.history.day(type_name)
    usual = all_failed / all_runs if all_runs else 0.0
    return "look" if failed / runs > limits.failed_times * usual else "ok"


def _hours(picture: Picture) -> str:
    hours = picture.history.hours_known
    return f"{hours} h" if hours else "the last hour"


def _mostly(picture: Picture, type_name: str) -> Said:
    error, part = picture.errors[type_name]
    how = "All" if part >= 1 else "Nearly all" if part > 0.9 else "Most" if part > 0.5 else "Many"
    return [f"{how} ", words.name(error), "."]


def _succeeds(picture: Picture) -> Said:
    runs, failed = (sum(one.ended for one in picture.types.values()), sum(one.failed for one in picture.types.values()))
    if not runs:
        return ["No run ended in 5 min."]
    if not failed:
        return [f"None of {words.counted(runs, 'run')} failed in 5 min."]
    return ["", words.percent(failed / runs), f" of {words.counted(runs, 'run')} failed in 5 min, no type stands out."]


# --- what do workers do? -------------------------------------------------------------------------------------------------------


def _troubled(picture: Picture, limits: Limits) -> Iterator[Found]:
    if not (picture.living or picture.silent):
        yield Found("act", ["No worker beats."], "/workers")
    for one in picture.gone:
        its = "its job comes" if one.held == 1 else f"its {words.counted(one.held, 'job')} come"
        back = f"; {its} back soon." if picture.living else f" with {words.counted(one.held, 'job')}."
        yield Found("act", ["", words.name(one.label), f" is gone{back}"], _worker_href(one))
    for one in (*picture.living, *picture.silent):
        yield from _slow(one, limits)
    versions = _versions(picture, limits)
    if len(versions) > 1:
        over = words.duration(limits.versions_ms)
        said: Said = [f"{len(versions)} versions have run for over {over}: ", words.listed(versions), "."]
        yield Found("look", said, "/workers")


def _slow(one: Seen, limits: Limits) -> Iterator[Found]:
    href = _worker_href(one)
    if one.is_silent:
        yield Found("look", ["", words.name(one.label), f" has not beaten for {words.duration(one.beat_ms)}."], href)
    if one.row.lag > limits.lag_ms:
        what = blocker(one) if one.row.lag >= limits.blocked_ms else ""
        by = f", by {what}" if what else ""
        said = ["The loop of ", words.name(one.label), f" stood still for {words.duration(one.row.lag)} in the last minute{by}."]
        yield Found("act" if one.row.lag >= limits.blocked_ms else "look", said, href)


def blocker(one: Seen) -> str:
    """Return which handler has blocked a worker's loop for longest, and where; nothing where none is blamed."""
    named = {name: ms for name, ms in one.row.blocked_ms.items() if name}
    if not named:
        return ""
    name = max(named, key=lambda of: named[of])
    where = one.row.where.get(name, "")
    return f"{words.name(name)} in {words.name(where)}" if where else words.name(name)


def _versions(picture: Picture, limits: Limits) -> list[str]:
    """Return the versions that have each run for long, as one worker of each says."""
    now_ms, since = picture.sample.now_ms, dict[str, int]()
    for one in picture.living:
        if one.app and one.row.since:
            since[one.app] = min(one.row.since, since.get(one.app, one.row.since))
    return sorted(words.name(app) for app, at_ms in since.items() if now_ms - at_ms > limits.versions_ms)


def _worker_href(one: Seen) -> str:
    return f"/worker?name={quote(one.name, safe='')}"


def _works(picture: Picture) -> Said:
    living = picture.living
    lanes, busy = sum(one.row.lanes for one in living), sum(one.busy for one in living)
    versions = len({one.app for one in living})
    of = "one version" if versions == 1 else f"{versions} versions"
    beat = " beats." if len(living) == 1 else " beat."
    rest = f" {words.figure(busy)} of {words.counted(lanes, 'lane')} busy, no loop blocked, {of}."
    return ["", f"{len(living)} of {len(living)}", beat + rest]


# --- what died? ----------------------------------------------------------------------------------------------------------------


def _died(picture: Picture, limits: Limits, dead: Dead) -> Iterator[Found]:
    done, retried, died = picture.history.ended(limits.died_minutes)
    runs, (_, _, all_of_hour) = done + retried + died, picture.history.ended(60)
    if not all_of_hour and not dead.growing:
        return
    # More may have died than are kept: some were replayed or moved to the trash since.
    kept = words.counted(picture.sample.dead, "letter")
    said: Said = ["", words.figure(all_of_hour), f" died in the last hour, {kept} {_are(picture.sample.dead)} kept."]
    if dead.growing:
        grow = " still grows." if dead.growing == 1 else " still grow."
        said = words.joined(said, ["", words.counted(dead.growing, "group"), grow])
    level: Level = "act" if runs >= limits.few_runs and died > limits.died_act * runs else "look"
    yield Found(level, said, f"/dead?group={quote(dead.first, safe='')}" if dead.first else "/dead")


def _lives(picture: Picture) -> Said:
    kept = picture.sample.dead
    return [f"None died in the last hour, {words.counted(kept, 'letter')} {_are(kept)} kept."] if kept else ["Nothing died."]


def _are(n: int) -> str:
    return "is" if n == 1 else "are"
