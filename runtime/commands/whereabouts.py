"""What is said of a job by where it is: who has it and until when, what it waits for, and what will become of it."""

from __future__ import annotations

from typing import Final

from runtime.codec import MAX_DIGITS, MAX_MS, SNOOZED_AT
from runtime.commands.common import clean
from runtime.commands.readings import moment
from runtime.jobs import FREE, SUSPECT, UNKNOWN
from runtime.settle import MAX_SNOOZE_MS
from runtime.store.flow import span
from runtime.store.inspector import FoundJob
from runtime.store.unknown import kind_in_words

STRIKES_OUT: Final = 3  # as in isolate.lua
MAX_NAMES: Final = 5  # workers that are named; a guess: more than can have died of a job that ran alone


def holder_in_words(job: FoundJob, now_ms: int) -> list[str]:
    """Return what holds a job, or holds it back: a lot, in words, a worker that is silent, and workers that died of it."""
    lines: list[str] = []
    if job.where == FREE:
        lines.append("given back before it ended; goes to the next worker that has room")
    elif job.where == SUSPECT:
        lines.append("its worker died while it had it: it waits to be run apart, to find out whether that was its fault")
    elif job.where.startswith(UNKNOWN):
        lines.append(_unknown(job, now_ms))
    if job.silence:
        lines.append(f"its worker is {clean(job.silence)}")
    return [*lines, *_deaths(job)]


def _unknown(job: FoundJob, now_ms: int) -> str:
    kind = clean(kind_in_words(job.where), 80)
    if job.is_known:
        return f"waits for a worker that knows {kind}, and has a thread or child process free for it"
    dead = f": a dead letter unless one does by {moment(job.dead_from_ms, now_ms)}" if job.dead_from_ms else ""
    return f"no worker that lives knows {kind}{dead}"


def _deaths(job: FoundJob) -> list[str]:
    """Return how many workers died while they had a job. What a worker has now, it was given once more than that."""
    deaths = job.deliveries - (job.state == "running")
    if deaths < 1 and not job.strikes:
        return []
    died = "1 worker" if deaths == 1 else f"{max(deaths, len(job.strikes))} workers"
    if not job.strikes:
        return [f"{died} died while they had it, none while it ran alone: that alone counts against it"]
    names = clean(", ".join(job.strikes[:MAX_NAMES]), 400)
    alone = f"{len(job.strikes)} of them while it ran alone ({names}); of {STRIKES_OUT} such deaths it is a dead letter (poison)"
    return [f"{died} died while they had it, {alone}"]


def run_in_words(job: FoundJob, now_ms: int) -> list[str]:
    """Return since when a job runs, and when that ends at the latest; nothing of one that does not run."""
    if job.state != "running":
        return []
    if job.is_started is False:
        return ["has not started there yet, as far as its worker has told"]
    lines = [f"runs since {moment(_at(job.since_ms), now_ms)}"] if job.since_ms and job.progress is None else []
    if job.since_ms and job.timeout_ms:
        ends_ms = _at(job.since_ms + job.timeout_ms)
        over = "ends by" if ends_ms > now_ms else "should have ended by"
        lines.append(f"{over} {moment(ends_ms, now_ms)}, at the latest: its timeout is {span(job.timeout_ms)}")
    return lines


def snooze_in_words(job: FoundJob, now_ms: int) -> list[str]:
    """Return since when a job has snoozed, and for how long it may yet; nothing of one that has not."""
    since_ms = _snoozed_ms(job)
    if not since_ms:
        return []
    until = moment(_at(since_ms + MAX_SNOOZE_MS), now_ms)
    most = f"{MAX_SNOOZE_MS // 3_600_000} h in all"
    return [f"snoozed first {moment(since_ms, now_ms)}; {most}: a dead letter where it snoozes beyond {until}"]


def when_in_words(job: FoundJob, now_ms: int) -> str:
    """Return in short until when a job is delayed, and since when it has snoozed."""
    since_ms = _snoozed_ms(job)
    return f"{job.where}, snoozed first {span(max(0, now_ms - since_ms))} ago" if since_ms else job.where


def _snoozed_ms(job: FoundJob) -> int:
    text = job.message.get(SNOOZED_AT.decode(), "")
    is_time = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    return _at(int(text)) if is_time and job.state == "delayed" else 0


def _at(ms: int) -> int:
    return min(max(0, ms), MAX_MS)
