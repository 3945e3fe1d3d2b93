"""The listener knows which runs have said something, and how they end, and makes of it once a second what is written for people.

Nothing is done per job: a run makes itself heard when it first says something, or fails; of those that are done, the first of a
batch that is to be written tells for all, now and then. If the process dies, what was heard since the last look is lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from runtime.ended import DUPLICATE, Ended
from runtime.errors import Dead, Retry
from runtime.jobs import LANE, STREAMS, Job, each_of, ms_of
from runtime.said import MAX_LINE_CHARS, SHOWN_LINES, Attempt, Progress, Report, pack_reports
from runtime.settle import CANCELLED_CODE, describe
from runtime.stats import MAX_WAIT_MS, outcome_name
from runtime.tries import MAX_ERROR_BYTES, MAX_FRAME_BYTES, TRACE_ID, Try, one_line
from runtime.worker.held import Held

MAX_ENDED_S: Final = 100  # runs a second that are told of; a guess: some 20 kB a second of a flood of failures
MAX_DROPPED_S: Final = 20  # jobs dropped for their keys that are told of; a guess, as of those that were done
DONE_S: Final = 0.05  # a guess: between two that were done, and are told of: 20 a second
MAX_NEW: Final = 5000  # runs that made themselves heard since the last look; a guess: what is beyond has no lines
AGAIN_S: Final = 10.0  # a third of the life of what is written: so often it is, also where nothing changes
FAILURES: Final = ("dead", "retry", "lost")  # which go first
_NOTHING: Final = b""


class Heard(msgspec.Struct, eq=False):
    """A run that has said something: `progress` and `lines` as they were at the last look, and when they last changed."""

    job: Job
    since_ms: int
    at_ms: int
    progress: Progress | None = None
    lines: int = 0


class Told(msgspec.Struct):
    """What is to be written: `progress` is None where nothing changed and empty where no run says anything any more; `ended` are
    runs that have ended and had lines, `events` those that failed, and a few that were done or dropped. `left_out` counts those
    with lines for which there was no room.
    """

    progress: bytes | None = None
    ended: list[Attempt] = []
    events: list[Ended] = []
    left_out: int = 0


class Listener:
    """Owns the runs that have said something, from then until a look finds that they have ended, and how others ended.

    `running` returns the jobs in lanes, each with its start by the monotonic clock.
    """

    def __init__(self, held: Held, running: Callable[[], Iterable[tuple[Job, float]]], by: str = "", app: str = "") -> None:
        self._held = held
        self._running = running
        self._by = by
        self._app = app
        self._new: deque[Job] = deque(maxlen=MAX_NEW)
        self._heard: dict[int, Heard] = {}
        self._events: list[Ended] = []  # without their jobs, whose payloads would fill the memory
        self._failures = 0  # among them: of a flood the first
        self._dropped = 0  # the same
        self._next_done_s = 0.0
        self._is_written = False
        self._written_s = 0.0

    def __repr__(self) -> str:
        return f"<Listener hears {len(self._heard) + len(self._new)} runs, and of {len(self._events)} that ended>"

    def hear(self, job: Job) -> None:
        """Hear that a job has said something for the first time; called in any thread."""
        self._new.append(job)

    def fail(self, job: Job, outcome: Retry | Dead, failed: Try | None = None) -> None:
        """Hear that a job runs again or is dead; of the attempts that failed, MAX_ENDED_S until the next look are told of."""
        name = outcome_name(outcome)
        is_cancelled = isinstance(outcome, Dead) and outcome.code == CANCELLED_CODE
        is_heard = job.extras is not None and job.extras.said.is_heard
        is_run = failed is not None or is_cancelled  # else it is dead without a run, of which its letter tells
        if is_run or is_heard:
            said = job.noted().said
            said.outcome, said.error = name, " ".join(describe(outcome)[:MAX_LINE_CHARS].split())
        if not is_run or self._failures >= MAX_ENDED_S:
            return
        self._failures += 1
        at_ms, run_ms = (int(time.time() * 1000), 0) if failed is None else (failed.at_ms + failed.run_ms, failed.run_ms)
        one = self._ended(job, "cancelled" if is_cancelled else name, at_ms, run_ms)
        if failed is not None:
            error, frame = one_line(failed.error, MAX_ERROR_BYTES), one_line(failed.frame, MAX_FRAME_BYTES)
            one = msgspec.structs.replace(one, error=error, frame=frame, trace=failed.trace)
        self._events.append(one)

    def drop(self, job: Job, why: str) -> None:
        """Hear that a job was dropped for its key; MAX_DROPPED_S until the next look are told of."""
        if self._dropped >= MAX_DROPPED_S:
            return
        self._dropped += 1
        one = self._ended(job, DUPLICATE, int(time.time() * 1000), 0)
        self._events.append(msgspec.structs.replace(one, error=one_line(why, MAX_ERROR_BYTES)))

    def done(self, job: Job) -> None:
        """Hear that a job is done, from the lane that ran it; of many, one each DONE_S is told of."""
        now_s, lane = time.monotonic(), LANE.get()
        if now_s < self._next_done_s or lane is None or job not in each_of(lane.job):
            return
        self._next_done_s = now_s + DONE_S
        at_ms = job.fetched_ms + int((now_s - job.taken_s) * 1000)
        self._events.append(self._ended(job, "done", at_ms, int((now_s - lane.started_s) * 1000)))

    def _ended(self, job: Job, outcome: str, at_ms: int, run_ms: int) -> Ended:
        place, job_id, type_name, attempt = _about(job)
        wait_ms = max(0, at_ms - run_ms - ms_of(job.entry, at_ms))
        wait_ms = wait_ms if wait_ms <= MAX_WAIT_MS else 0
        trace = job.trace[3:35].decode(errors="replace") if job.trace else ""
        return Ended(
            id=job_id,
            type=type_name,
            place=place,
            outcome=outcome,
            attempt=attempt,
            at_ms=at_ms,
            wait_ms=wait_ms,
            run_ms=run_ms,
            by=self._by,
            app=self._app,
            trace=trace if TRACE_ID.fullmatch(trace) else "",
        )

    def look(self, is_last: bool = False) -> Told:
        """Return what is to be written now. The last look of a worker takes every run for ended."""
        now_ms, now_s = int(time.time() * 1000), time.monotonic()
        starts = self._starts(now_ms, now_s)
        while self._new:  # a thread may add to it meanwhile
            self._begin(self._new.popleft(), starts, now_ms)
        ended = [one for one in self._heard.values() if is_last or one.job not in self._held]
        for one in ended:
            del self._heard[id(one.job)]
        spoke = [one.job for one in ended if one.job.noted().said.lines]
        told = _told_of([_attempt(job, _outcome_of(job, starts, is_last), now_ms) for job in spoke])
        told.events, self._events, self._failures, self._dropped = self._events, [], 0, 0
        has_changed = [_note(one, now_ms) for one in self._heard.values()]
        if any(has_changed) or (ended and self._is_written) or (self._heard and now_s >= self._written_s + AGAIN_S):
            told.progress = pack_reports(map(_report, self._heard.values())) if self._heard else _NOTHING
            self._is_written, self._written_s = bool(self._heard), now_s
        return told

    def _starts(self, now_ms: int, now_s: float) -> dict[int, int]:
        """Return when the runs in lanes began, in ms since the epoch; hear those whose code was called outside of its context."""
        starts: dict[int, int] = {}
        for job, started_s in self._running():
            starts[id(job)] = now_ms - int((now_s - started_s) * 1000)
            said = None if job.extras is None else job.extras.said
            if said is not None and not said.is_heard and (said.lines or said.progress):
                said.is_heard = True
                self._new.append(job)
        return starts

    def _begin(self, job: Job, starts: dict[int, int], now_ms: int) -> None:
        self._heard[id(job)] = Heard(job, starts.get(id(job), now_ms), now_ms)


def _note(one: Heard, now_ms: int) -> bool:
    """Return whether a run has said something since the last look."""
    said = one.job.noted().said
    if one.progress is said.progress and one.lines == said.said:
        return False
    one.progress, one.lines, one.at_ms = said.progress, said.said, now_ms
    return True


def _report(one: Heard) -> Report:
    job, progress = one.job, one.progress or Progress(None, None, "")
    said = job.noted().said
    lines = said.newest(SHOWN_LINES)
    how_far = (progress.done, progress.total, progress.text)
    return Report(*_about(job), one.since_ms, one.at_ms, *how_far, lines, said.said - len(lines))


def _outcome_of(job: Job, starts: dict[int, int], is_last: bool) -> str:
    # One that is in its lane yet, without an outcome: its lease was lost, or this worker ends.
    return job.noted().said.outcome or ("done" if id(job) not in starts else "released" if is_last else "lost")


def _attempt(job: Job, outcome: str, at_ms: int) -> Attempt:
    said = job.noted().said
    lines = said.newest()
    place, job_id, type_name, attempt = _about(job)
    return Attempt(job_id, type_name, attempt, place, outcome, at_ms, "\n".join(lines), said.said - len(lines), said.error)


def _about(job: Job) -> tuple[str, str, str, int]:
    return f"{STREAMS[job.stream]}/{job.entry.decode()}", job.id, job.type.decode(errors="replace"), job.attempt


def _told_of(ended: list[Attempt]) -> Told:
    """Return the ended runs for which there is room: those that failed go first."""
    ended.sort(key=lambda attempt: attempt.outcome not in FAILURES)
    return Told(None, ended[:MAX_ENDED_S], left_out=len(ended[MAX_ENDED_S:]))
