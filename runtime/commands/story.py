"""What `jobs show` tells of one job: where it is, how far, what its attempts have said, and what it has answered."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from runtime.codec import AT, EXP, FAILED, FIRST_AT, ID, MAX_DIGITS, MAX_MS, ORIGIN, SNOOZED_AT, TRIED, TYPE
from runtime.commands.common import clean, inspector
from runtime.commands.readings import how_far, moment, tries_in_words
from runtime.commands.whereabouts import holder_in_words, run_in_words, snooze_in_words
from runtime.ended import DUPLICATE, Ended
from runtime.results import parse
from runtime.said import MAX_LINES, Attempt, Report
from runtime.store.base import LOOK_AT
from runtime.store.finder import Finder
from runtime.store.flow import span, type_in
from runtime.store.inspector import FoundJob, Inspector

ATTEMPTS: Final = 5  # ended ones that are shown; a guess: two screens
VALUE: Final = 2000  # characters of a field or a result that are shown; a guess
AGAIN_S: Final = 2.0  # between two looks of `--follow`; a guess: one may read LOOK_AT entries of each stream
DEAD: Final = "dead"
LOST: Final = "lost"
RETRY: Final = "retry"
# Fields of a message that the lines above them say in words, and what the runtime has noted on it, in words.
SAID_ABOVE: Final = (ID, TYPE, FAILED)
TIMES: Final = (FIRST_AT, SNOOZED_AT, AT, EXP)
NOTES: Final = {
    FIRST_AT: "sent",
    SNOOZED_AT: "snoozed first",
    AT: "not before",
    EXP: "not after",
    TRIED: "trace of its last attempt",
    ORIGIN: "id before it was replayed",
}


class Story(msgspec.Struct):
    """What is known of a job: `attempts` are those that had lines or failed, the newest first, `result` what it has answered,
    `last` how the last of its runs ended that is written down, or that it was dropped without one.
    """

    id: str
    jobs: list[FoundJob]
    attempts: list[Attempt]
    result: str
    last: Ended | None = None

    @property
    def is_known(self) -> bool:
        """Whether anything was found."""
        return bool(self.jobs or self.attempts or self.result or self.last)

    @property
    def goes_on(self) -> bool:
        """Whether something may still become of it: it is in the queue, and no dead letter."""
        return any(job.state != DEAD for job in self.jobs)


async def read(found: Finder, wanted: str, key: str = "") -> Story:
    """Read what there is of a job: by its id, its place, or the entry that XADD answered; or of the one that has a key.

    Raises:
        StoreUnavailable: Redis gave no answer, or an error.
    """
    if key:
        owner = await found.owner_of(key)
        if owner is None:
            return Story(key, [], [], "")
        wanted = owner.id
    looked = await found.look(wanted, LOOK_AT)
    jobs = await with_reasons(found, looked.jobs)
    await found.note(jobs)
    running = [job for job in jobs if job.state == "running"]
    if running:
        reports = {report.place: report for told in (await found.progress()).values() for report in told}
        for job, by in zip(running, await found.cancels_of([job.place for job in running]), strict=True):
            job.progress = reports.get(job.place)
            job.waits = by and f"cancelled by {by}: its worker has been asked to end it"
    runs = await found.events_about(looked.ids, looked.places, ATTEMPTS)
    logs = await found.logs_about(looked.ids, looked.places, ATTEMPTS)
    results = [await found.result_of(job_id) for job_id in looked.ids]
    return Story(wanted, jobs, _attempts_of(runs, logs), next(filter(None, results), ""), runs[0] if runs else None)


def _attempts_of(runs: Sequence[Ended], logs: Sequence[Attempt]) -> list[Attempt]:
    """Return how attempts ended, the newest first: with the lines that each had, if it had any."""
    attempts: dict[tuple[str, int, int], Attempt] = {}
    ended = [
        Attempt(run.id, run.type, run.attempt, run.place, run.outcome, run.at_ms, "", error=run.error)
        for run in runs
        if run.outcome != DUPLICATE
    ]
    for one in [*logs, *ended]:
        # A run that is lost with its worker burns no attempt: others have the same number at the same place.
        attempts.setdefault((one.place, one.attempt, one.at_ms if one.outcome == LOST else 0), one)
    return sorted(attempts.values(), key=lambda one: -one.at_ms)[:ATTEMPTS]


async def with_reasons(found: Inspector, jobs: list[FoundJob]) -> list[FoundJob]:
    """Note why jobs wait that are at a gate, or paused."""
    waiting = [job for job in jobs if job.state == "waiting" or type_in(job.where)]
    if waiting:
        flow = await found.flow({(type_in(job.where), job.message.get("group", "")) for job in waiting})
        for job in waiting:
            job.waits = flow.waits(job.where, job.message.get("group", ""), job.priority)
    return jobs


def lines_of(story: Story) -> list[str]:
    """Return the story for a terminal, line by line."""
    now_ms = int(time.time() * 1000)
    lines = [line for job in story.jobs for line in _of_job(job, now_ms)]
    if story.is_known and not story.jobs:
        lines += [clean(story.id), f"  {_became(story.last, now_ms)}"]
    elif story.last is not None and story.last.outcome == DUPLICATE:
        lines += [f"  another one was {_became(story.last, now_ms)}"]
    has_tries = any(job.tries for job in story.jobs)
    # Of the others a message tells itself, in the lines above.
    for attempt in [one for one in story.attempts if one.text or one.outcome == LOST or not has_tries]:
        ended = f"attempt {attempt.attempt} ended {moment(_at(attempt.at_ms), now_ms)} ({clean(attempt.place)})"
        why = f": {clean(attempt.error, VALUE)}" if attempt.error else ""
        said = _said(attempt.text.splitlines()[-MAX_LINES:], attempt.before)
        lines += [f"  {ended}: {clean(attempt.outcome) or '-'}{why}", *said]
    return lines + ([_answered(story.result, now_ms)] if story.result else [])


def _became(last: Ended | None, now_ms: int) -> str:
    """Return in words what became of a job that is not in the queue, as far as it is written down."""
    gone = "not in the queue any more"
    if last is None or last.outcome in (LOST, RETRY):
        return f"{gone}, as far as was looked"
    when = f"{moment(_at(last.at_ms), now_ms)}{f', on {clean(last.by, 64)}' if last.by else ''}"
    if last.outcome == DUPLICATE:
        return f"{clean(last.error, VALUE) or 'dropped for its key'}, {when}: it never ran"
    letter = "; its letter was sent back, thrown away, or is older than those that were looked at" if last.outcome == DEAD else ""
    return f"{gone}: {clean(last.outcome)} {when}{letter}"


def _answered(text: str, now_ms: int) -> str:
    """Return in a line what a job has answered, or died of; as it stands where it is nothing that a worker wrote."""
    result = parse(text.encode())
    if result is None:
        return f"  result: {clean(text, VALUE)}"
    over = f"  {result.state} {moment(_at(result.at), now_ms)}"
    if result.state == DEAD:
        return f"{over}, attempts {result.attempts}: {clean(result.reason)}: {clean(result.error, VALUE)}"
    return f"{over}, result: {clean(bytes(result.value).decode(errors='replace'), VALUE)}"


def _of_job(job: FoundJob, now_ms: int) -> list[str]:
    born = f", born {moment(_at(job.born_ms), now_ms)}" if job.born_ms else ""
    renewed = f", its lease renewed {span(job.idle_ms)} ago" if job.state == "running" else ""
    where = moment(job.due_ms, now_ms) if job.state == "delayed" else clean(job.where) or "-"
    return [
        clean(job.id),
        f"  {job.state}: {where} ({clean(job.place)}){renewed}",
        *([f"  {clean(job.waits)}"] if job.waits else []),
        *[f"  {line}" for line in holder_in_words(job, now_ms)],
        *([f"  {clean(job.error, VALUE)}"] if job.error and job.state == DEAD else []),
        f"  type {clean(job.type)}, priority {job.priority}, attempt {job.attempt}{born}",
        *[f"  {line}" for line in (*tries_in_words(job.tries, now_ms), *snooze_in_words(job, now_ms))],
        *([] if job.progress is None else _of_run(job.progress, now_ms)),
        *[f"  {line}" for line in run_in_words(job, now_ms)],
        *([f"  work {job.work}: jobs that it sends have ids that begin so"] if job.work else []),
        *[_field(name, value, now_ms) for name, value in job.message.items() if not _is_said(job, name)],
    ]


def _is_said(job: FoundJob, name: str) -> bool:
    field = name.encode(errors="replace")
    return field in SAID_ABOVE or (field == FIRST_AT and job.born_ms > 0) or (field == SNOOZED_AT and job.state == "delayed")


def _field(name: str, value: str, now_ms: int) -> str:
    field = name.encode(errors="replace")
    if field in TIMES and value.isdecimal() and len(value) <= MAX_DIGITS:
        value = moment(_at(int(value)), now_ms)
    return f"  {clean(NOTES.get(field, name))}: {clean(value, VALUE)}"


def _of_run(report: Report, now_ms: int) -> list[str]:
    since, said = moment(_at(report.since_ms), now_ms), span(max(0, now_ms - _at(report.at_ms)))
    shown = how_far(report)
    return [
        *([f"  {shown}"] if shown else []),
        f"  runs since {since}; said something new {said} ago",
        *_said(report.lines, report.before),
    ]


def _said(lines: list[str], before: int) -> list[str]:
    more = [f"  | … {before:,} lines before"] if before > 0 else []
    return [*more, *[f"  | {clean(line, VALUE)}" for line in lines]]


def _at(ms: int) -> int:
    return min(max(0, ms), MAX_MS)


async def follow(url: str, queue: str, wanted: str, show: Callable[[Story], None]) -> Story:
    """Show a job's story whenever it has changed, until it goes on no more; return the last one."""
    story = Story(wanted, [], [], "")
    async with inspector(url, queue) as found:
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C
            while True:
                story, before = await read(found, wanted), story
                if msgspec.json.encode(story) != msgspec.json.encode(before):
                    show(story)
                if not story.goes_on:
                    break
                await asyncio.sleep(AGAIN_S)
    return story


def repaint(story: Story) -> None:
    """Print a story in the place of the one before, where this is a terminal; else below it."""
    print(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + "\n".join(lines_of(story)), flush=True)
