"""The life of one job, step by step, and what is true of it now in a sentence. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from board import words
from board.redact import visible
from board.shapes import Said, Step
from runtime.tries import Try

ORDINALS: Final = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
ENDED: Final = {"done": "It is done", "dead": "It died", "duplicate": "It was dropped for its key"}
State = Literal["waiting", "claimed", "lot", "delayed", "dead", "finished"]
Shown = Callable[[str], str | None]  # a message as the viewer may see it


class Lost(msgspec.Struct, frozen=True):
    """A delivery that was taken from a worker that was gone."""

    at_ms: int
    by: str
    app: str = ""


class Life(msgspec.Struct, frozen=True):
    """What is known of one job. `since_ms` is when the run began that goes on now, `lines` what attempts have logged."""

    state: State
    now_ms: int
    born_ms: int
    attempt: int
    attempts: int | None = None
    tries: Sequence[Try] = ()
    lost: Sequence[Lost] = ()
    due_ms: int = 0
    owner: str = ""
    app: str = ""
    since_ms: int | None = None
    is_alive: bool = True
    lines: Mapping[int, list[str]] = {}
    end: Step | None = None


def steps_of(life: Life, shown: Shown) -> list[Step]:
    """Return the steps of a life, the oldest first. Times are of several clocks: none goes back behind the one before."""
    told: list[Step] = []
    at_ms, known = life.born_ms, dict[tuple[str, str], int]()
    past = sorted([*life.tries, *life.lost], key=lambda one: one.at_ms)
    for one in past:
        start_ms = max(at_ms, one.at_ms)
        if isinstance(one, Try) and one.is_replay:
            told += _gap(told, at_ms, start_ms)
            at_ms, known = start_ms, {}
        elif isinstance(one, Try):
            told += _gap(told, at_ms, start_ms)
            at_ms = start_ms + one.run_ms
            told.append(_attempt(one, start_ms, at_ms, known, life.lines, shown))
            known[one.error, one.frame] = one.attempt
        else:
            told.append(_step("lost", at_ms, start_ms, level="look", outcome="lost", worker=one.by, app=one.app))
            at_ms = start_ms
    return [*told, *_present(life, told, at_ms)]


def _present(life: Life, told: Sequence[Step], at_ms: int) -> list[Step]:
    """Return what a job does now."""
    if life.state == "finished":
        return [*_gap(told, at_ms, max(at_ms, life.end.from_ms)), life.end] if life.end else []
    if life.state == "dead":
        return []
    if life.state == "delayed":
        return [_step("next", at_ms, max(at_ms, life.due_ms), attempt=life.attempt)]
    if life.state != "claimed" or life.since_ms is None:
        return [_step("waited" if _is_fresh(told) else "backoff", at_ms, None)]
    since_ms = max(at_ms, life.since_ms)
    level, lines = "ok" if life.is_alive else "look", life.lines.get(life.attempt, [])
    running = _step("running", since_ms, None, level=level, attempt=life.attempt, worker=life.owner, app=life.app, lines=lines)
    return [*_gap(told, at_ms, since_ms), running]


def _is_fresh(told: Sequence[Step]) -> bool:
    return not told or told[-1].kind != "attempt"


def _gap(told: Sequence[Step], from_ms: int, to_ms: int) -> list[Step]:
    """Return the time between two steps: what failed backs off, all else has waited."""
    return [_step("waited" if _is_fresh(told) else "backoff", from_ms, to_ms)] if to_ms > from_ms else []


def _attempt(
    one: Try, from_ms: int, to_ms: int, known: Mapping[tuple[str, str], int], lines: Mapping[int, list[str]], shown: Shown
) -> Step:
    message = one.error.partition(": ")[2] if one.error_class else one.error
    return _step(
        "attempt",
        from_ms,
        to_ms,
        level="act",
        outcome="failed",
        attempt=one.attempt,
        worker=one.by,
        app=one.app,
        error=one.error_class,
        message=shown(message),
        frame=one.frame,
        trace=one.trace or None,
        same_as=known.get((one.error, one.frame)),
        lines=lines.get(one.attempt, []),
    )


def _step(
    kind: Literal["waited", "attempt", "running", "backoff", "lost", "next"],
    from_ms: int,
    to_ms: int | None,
    *,
    level: Literal["ok", "look", "act"] = "ok",
    outcome: str = "",
    attempt: int | None = None,
    worker: str = "",
    app: str = "",
    error: str = "",
    message: str | None = None,
    frame: str = "",
    trace: str | None = None,
    same_as: int | None = None,
    lines: Sequence[str] = (),
) -> Step:
    return Step(
        kind=kind,
        attempt=attempt,
        from_ms=from_ms,
        to_ms=to_ms,
        level=level,
        outcome=outcome,
        worker=visible(worker),
        app=visible(app),
        error=visible(error),
        message=None if message is None else visible(message),
        frame=visible(frame),
        trace=trace,
        same_as=same_as,
        lines=list(lines),
    )


ended = _step  # the last step of a job that is over, for who knows how it ended


# --- in a sentence -----------------------------------------------------------------------------------------------------------


def ordinal(n: int) -> str:
    """Return which attempt it is: `third`, `11th`."""
    if 1 <= n <= len(ORDINALS):
        return ORDINALS[n - 1]
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th") if n % 100 not in (11, 12, 13) else "th"
    return f"{n:,}{ending}"


def said(life: Life, reason: str = "", waits: str = "") -> Said:
    """Return what is true of a job now.

    Args:
        reason: why a letter died.
        waits: what it waits for, where that is known.
    """
    last = life.tries[-1] if life.tries and not life.tries[-1].is_replay else None
    match life.state:
        case "delayed":
            return _delayed(life, last)
        case "dead":
            after = f" after {words.counted(life.attempt, 'attempt')}" if life.attempt else ""
            told = last.error_class or reason if last else reason
            return [f"It is dead{after}: ", words.name(told) or "nobody knows why", "."]
        case "claimed":
            return _claimed(life)
        case "finished":
            return _finished(life)
        case _:
            waited = words.duration(max(0, life.now_ms - (life.born_ms or life.now_ms)))
            why = f" It {visible(waits)}." if waits else ""
            again = (
                f"Its {ordinal(last.attempt)} attempt failed with {words.name(last.error_class or 'an error')}; " if last else ""
            )
            return [f"{again}{'it' if again else 'It'} has waited for ", waited, f".{why}"]


def _delayed(life: Life, last: Try | None) -> Said:
    left_ms = life.due_ms - life.now_ms
    when = f"in {words.duration(left_ms)}" if left_ms > 0 else "now"
    if last is None:
        return ["It is delayed, and runs ", when, "."]
    left = "" if life.attempts is None else f", with {words.counted(max(0, life.attempts - life.attempt + 1), 'attempt')} left"
    told = words.name(last.error_class or "an error")
    return [f"Its {ordinal(last.attempt)} attempt failed with ", told, f"; it runs again {when}{left}."]


def _claimed(life: Life) -> Said:
    if not life.is_alive:
        return ["", f"Worker {life.owner} is gone", ", while it held this job."]
    if life.since_ms is None:
        return ["It was handed to ", life.owner, ", and has not started there as far as is known."]
    ran = words.duration(max(0, life.now_ms - life.since_ms))
    return [f"Its {ordinal(life.attempt)} attempt has run for ", ran, f" on {life.owner}."]


def _finished(life: Life) -> Said:
    if life.end is None:
        return ["It is not here any more: it has ended, and nothing else is known of it."]
    ago = words.ago(life.now_ms - (life.end.to_ms or life.now_ms))
    how = ENDED.get(life.end.outcome, f"It ended as {words.name(life.end.outcome)}")
    where = f" on {life.end.worker}" if life.end.worker else ""
    ran_ms = (life.end.to_ms or life.end.from_ms) - life.end.from_ms
    return ["", how, f", {ago}{where}{f', and ran {words.duration(ran_ms)}' if ran_ms > 0 else ''}."]
