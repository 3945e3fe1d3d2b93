"""What charts show: minutes made into series, percentiles out of powers of two, and the sentences above. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from board import words
from board.history import DAY, HOUR, NOTHING, TEN, History, Step, TypeStep
from board.shapes import Mark, Range, Series
from runtime.jobs import STREAMS
from runtime.store.sample import FAILED, Minute

MINUTE_MS: Final = 60_000
MOST_MARKS: Final = 20  # a guess: more versions in a day than a line above a chart can show
RISE: Final = 2.0  # a guess: so many times what was usual
LEAST_FAILED: Final = 5  # a guess: fewer failures in the newest steps are no rise
NEWEST: Final = 5  # steps that are compared with those before
STEPS_OF_DAY: Final = DAY // TEN
_Counts = tuple[int | None, int | None, int | None]  # done, retried, dead


def percentile(powers: Mapping[int, int], part: float) -> float | None:
    """Return below what so large a part of the values lies, within a factor of 2; None where there are no values.

    Those of `powers[k]` are less than 2**k, and at least half of it: they are taken to lie evenly there.
    """
    total = sum(powers.values())
    if total <= 0:
        return None
    wanted, seen = part * total, 0
    top = max(power for power, n in powers.items() if n)
    for power in sorted(powers):
        n = powers[power]
        if n and (seen + n >= wanted or power == top):
            low = 2.0 ** (power - 1) if power else 0.0
            return low + (2.0**power - low) * min(1.0, max(0.0, (wanted - seen) / n))
        seen += n
    return None


def run_ms(powers: Mapping[int, int], part: float) -> float | None:
    """Return a percentile of run times, whose powers are of µs, in ms."""
    found = percentile(powers, part)
    return None if found is None else found / 1000


def runs_of(minute: Minute, type_name: str | None = None, priority: str | None = None) -> dict[int, int]:
    """Return the run times of a type, or of all, of a priority, or of all, by powers of two."""
    total: dict[int, int] = {}
    for (of_type, of_priority), powers in minute.runs.items():
        if type_name in (None, of_type) and priority in (None, of_priority):
            for power, n in powers.items():
                total[power] = total.get(power, 0) + n
    return total


def series(history: History, over: Range, type_name: str | None = None) -> Series:
    """Return what happened in the last hour by minutes, or in the last day by ten minutes; of one type or of all.

    How long jobs waited is counted by priority and not by type: of a type, the line of `waits_p95_ms` is how long its runs took,
    in the last hour.
    """
    span, numbers = _numbers(history, over)
    steps, step_ms, start_ms = [history.step(span, number) for number in numbers], span * MINUTE_MS, numbers[0] * span * MINUTE_MS
    if type_name is None:
        done, retried, dead = zip(*[_all_of(step) for step in steps], strict=True)
        waits = _waits(steps)
    else:
        minutes = [history.minutes.get(at) if span == 1 else history.tens.get(at) for at in numbers]
        done, retried, dead = zip(*[_type_of(minute, type_name) for minute in minutes], strict=True)
        waits = {"": [_run_p95(minute, type_name) for minute in minutes]}
    failed = [None if some is None or died is None else some + died for some, died in zip(retried, dead, strict=True)]
    return Series(
        start_ms=start_ms,
        step_ms=step_ms,
        done=list(done),
        retried=list(retried),
        dead=list(dead),
        waits_p95_ms=waits,
        marks=_marks(history.apps, start_ms),
        jobs_said=jobs_said(done, failed, step_ms),
        waits_said="" if type_name is not None else waits_said(waits, step_ms),
        is_complete=history.knows(HOUR if over == "1h" else DAY),
    )


def hour_of(history: History, type_name: str) -> list[TypeStep | None]:
    """Return how a type ran in each of the last 60 minutes, the newest last; None where that is not known."""
    steps = [history.step(1, at) for at in _hour(history)]
    return [None if step is None else step.types.get(type_name, NOTHING) for step in steps]


def depths(history: History, priority: str, now: int) -> list[int | None]:
    """Return what of a priority waited at the end of each of the last 60 minutes, the newest last: that is what waits now."""
    minutes = [history.minutes.get(at) for at in _hour(history)[:-1]]
    return [*[None if minute is None else minute.depth.get(priority) for minute in minutes], now]


def _hour(history: History) -> range:
    return range(history.now - HOUR + 1, history.now + 1)


def _numbers(history: History, over: Range) -> tuple[int, range]:
    if over == "1h":
        return 1, _hour(history)
    newest = history.now // TEN
    return TEN, range(newest - STEPS_OF_DAY + 1, newest + 1)


def _all_of(step: Step | None) -> _Counts:
    return (None, None, None) if step is None else (step.done, step.retried, step.dead)


def _type_of(minute: Minute | None, type_name: str) -> _Counts:
    if minute is None:
        return None, None, None
    done, retried, dead = (minute.count((outcome,), type_name) for outcome in ("done", *FAILED))
    return done, retried, dead


def _waits(steps: Sequence[Step | None]) -> dict[str, list[float | None]]:
    return {of: [None if step is None else percentile(step.waits.get(of, {}), 0.95) for step in steps] for of in STREAMS}


def _run_p95(minute: Minute | None, type_name: str) -> float | None:
    return None if minute is None else run_ms(runs_of(minute, type_name), 0.95)


def _marks(apps: Mapping[str, int], start_ms: int) -> list[Mark]:
    """Return the versions that were first seen since then; the only one that is known is nothing new."""
    if len(apps) < 2:
        return []
    found = [Mark(at_ms=at_ms, text=words.name(app)) for app, at_ms in apps.items() if at_ms >= start_ms]
    return sorted(found, key=lambda mark: mark.at_ms)[-MOST_MARKS:]


# --- the sentences above the charts --------------------------------------------------------------------------------------------


def jobs_said(done: Sequence[int | None], failed: Sequence[int | None], step_ms: int) -> str:
    """Return how much is done, and since when more fails than was usual. The newest step still runs, and does not count."""
    ended = [(ok or 0) + (bad or 0) for ok, bad in zip(done, failed, strict=True)][:-1]
    known = [at for at, ok in enumerate(done[:-1]) if ok is not None]
    if not known or not sum(ended):
        return "no run ended yet" if not (done and done[-1]) else "the first runs end"
    newest = known[-NEWEST:]
    a_minute = sum(ended[at] for at in newest) / len(newest) * MINUTE_MS / step_ms
    told = f"{words.figure(round(a_minute))} a minute" if a_minute >= 10 or not a_minute else f"{words.rate(a_minute)} a minute"
    since = _risen_since([failed[at] or 0 for at in known])
    return told if not since else f"{told}, failures have risen for {words.duration(since * step_ms)}"


def _risen_since(failed: Sequence[int]) -> int:
    """Return for how many steps more has failed than was usual before; 0 where that is not so now."""
    newest, before = failed[-NEWEST:], failed[:-NEWEST]
    usual = median(before) if before else 0
    if len(before) < NEWEST or sum(newest) < LEAST_FAILED or sum(newest) <= RISE * usual * len(newest):
        return 0
    steps = 0
    for n in reversed(failed):
        if n <= RISE * usual:
            break
        steps += 1
    return steps if steps < len(failed) else 0


PASSED_MS: Final = (3_600_000, 600_000, 60_000, 10_000)  # what a wait has passed is told of the largest


def waits_said(waits: Mapping[str, Sequence[float | None]], step_ms: int) -> str:
    """Return which priority waits longest now, and since when it has waited for so long."""
    newest = {of: found for of, line in waits.items() for found in [_newest(line)] if found is not None}
    if not newest:
        return "nothing has waited yet"
    slowest = max(newest, key=lambda of: newest[of])
    bound_ms = next((bound for bound in PASSED_MS if newest[slowest] >= bound), None)
    if bound_ms is None:
        return f"all start within {words.duration(newest[slowest])}"
    steps = 0
    for at in reversed(waits[slowest][:-1]):
        if at is not None and at < bound_ms:
            break
        steps += 1
    bound, for_so_long = words.duration(bound_ms), words.duration(max(1, steps) * step_ms)
    if steps >= len(waits[slowest]) - 1:
        return f"{slowest} waits over {bound}"
    return f"{slowest} passed {bound} {for_so_long} ago"


def _newest(line: Sequence[float | None]) -> float | None:
    """Return the last value that is known, of the newest steps; the running one has few jobs, and counts where no other does."""
    known = [found for found in line[-NEWEST - 1 : -1] if found is not None]
    return known[-1] if known else line[-1] if line else None
