"""Rows of jobs: what a list says of one, and who holds it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, cast, get_args

import msgspec

from board import words
from board.contracts import Contract
from board.payloads import preview
from board.redact import PLAIN, Rules, redact_text, visible
from board.shapes import Claim, End, JobRow, Note, Pri, Said
from runtime.codec import ATTEMPTS, CONTENT_TYPE, GROUP, SOURCE, as_text, payload_of, summary, tries_of
from runtime.ended import Ended
from runtime.jobs import default_id
from runtime.store.base import TOLD_JOBS, parse_int
from runtime.store.lists import DUE_STREAM, LIST_CUT, Held, Peek, Survey
from runtime.tries import Try

PRIORITIES: Final[tuple[Pri, ...]] = get_args(Pri)
SWEEP_MS: Final = 5_000  # the longest time between two sweeps: so long after its end a lease is taken over at the latest
LEASE_MS: Final = 30_000  # of a worker that has left no row: what is set where nothing else is
NEAR_PART: Final = 0.8  # of its timeout, from which on a run is near it; a guess: there is time left to look
State = Literal["waiting", "claimed", "lot", "delayed", "finished", "dead"]
Newest = Callable[[str, int], Contract | None]  # the contract of a type and version, of 0 the newest


class Eyes(msgspec.Struct, frozen=True):
    """What one viewer may see of messages, and what is redacted there."""

    can_see: bool
    rules: Rules = PLAIN


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """A claimed job with all that is known of its claim. `start_ms` is None where it is not known whether or when it started;
    `is_started` None where it is not known.
    """

    held: Held
    label: str
    is_alive: bool
    silent_ms: int | None
    lease_ms: int
    start_ms: int | None
    type: str
    is_started: bool | None
    timeout_ms: int | None
    is_suspect: bool
    runs_ms: int | None

    @property
    def is_near(self) -> bool:
        """Whether it runs for nearly as long as it may, or for longer."""
        return self.runs_ms is not None and self.timeout_ms is not None and self.runs_ms >= NEAR_PART * self.timeout_ms

    @property
    def back_ms(self) -> int | None:
        """In how long at most a live worker has it, where its owner is gone."""
        return None if self.is_alive else max(0, self.lease_ms) + SWEEP_MS


def claims_of(survey: Survey, held: Sequence[Held], contract_of: Newest) -> list[Claimed]:
    """Return what is known of each claim."""
    running = {
        (name, place): (start_ms, type_name)
        for name, (_, row) in survey.workers.items()
        for place, start_ms, type_name in row.jobs
    }
    whole = {name for name, (_, row) in survey.workers.items() if row.since and len(row.jobs) < TOLD_JOBS}
    labels = {name: label_of(name, survey) for name in {one.owner for one in held}}
    return [_claim_of(one, survey, running.get((one.owner, one.place)), whole, labels, contract_of) for one in held]


def _claim_of(
    one: Held,
    survey: Survey,
    run: tuple[int, str] | None,
    whole: set[str],
    labels: Mapping[str, str],
    contract_of: Newest,
) -> Claimed:
    is_alive = survey.is_alive(one.owner)
    until_ms, row = survey.workers.get(one.owner, (None, None))
    lease_ms = (row.lease_ms if row else 0) or LEASE_MS
    contract = contract_of(run[1], 0) if run else None
    return Claimed(
        held=one,
        label=labels[one.owner],
        is_alive=is_alive,
        silent_ms=None if until_ms is None or is_alive else max(0, survey.now_ms - (until_ms or survey.now_ms) + lease_ms),
        lease_ms=lease_ms - one.idle_ms,
        start_ms=run[0] if run else None,
        type=run[1] if run else "",
        is_started=True if run else False if one.owner in whole else None,
        timeout_ms=contract.timeout_ms if contract else None,
        is_suspect=one.deliveries > 1 and one.owner in survey.isolating,
        runs_ms=max(0, survey.now_ms - run[0]) if run and is_alive else None,
    )


def label_of(owner: str, survey: Survey) -> str:
    """Return a worker's host and process; its name where it has left no row."""
    row = survey.workers[owner][1] if owner in survey.workers else None
    return f"{words.name(row.host)} · {row.pid}" if row is not None and row.host else words.name(owner)


def claim(one: Claimed, has_others: bool) -> Claim:
    """Return who holds a job; `has_others` says that some worker lives."""
    return Claim(
        owner=one.held.owner,
        label=one.label,
        is_alive=one.is_alive,
        silent_ms=one.silent_ms,
        runs_ms=one.runs_ms,
        timeout_ms=one.timeout_ms,
        lease_ms=one.lease_ms,
        deliveries=one.held.deliveries,
        is_started=one.is_started,
        is_suspect=one.is_suspect,
        back_ms=one.back_ms if has_others else None,
        said=claim_said(one, has_others),
    )


def claim_said(one: Claimed, has_others: bool) -> Said:
    """Return in words how it stands with a claim; nothing where all is well."""
    if one.is_alive:
        if one.is_suspect:
            why = " So it runs apart from fresh work, until it is clear of which job it died."
            return ["", "A worker died while it held this job.", why]
        if one.is_near and one.runs_ms is not None and one.timeout_ms is not None:
            left_ms = one.timeout_ms - one.runs_ms
            when = f"in {words.duration(left_ms)}" if left_ms > 0 else "now"
            ran, timeout = words.duration(one.runs_ms), words.duration(one.timeout_ms)
            return ["", f"It has run for {ran}", f" and is interrupted {when}: its timeout is {timeout}."]
        return [""]
    silent = "" if one.silent_ms is None else f" {words.duration(one.silent_ms)} ago"
    lease = words.duration(abs(one.lease_ms))
    ends = f" Its lease ended {lease} ago." if one.lease_ms <= 0 else f" Its lease ends in {lease}."
    back = (
        f" Any live worker takes the job back within {words.duration(one.back_ms or 0)}; it then runs apart from fresh work, and"
    )
    back = (
        f"{back} the attempt is not burnt." if has_others else " No worker lives: the first one that starts takes the job back."
    )
    return ["", f"Worker {one.label} stopped beating{silent}, while it held this job.", ends + back]


def note_of(one: Claimed, has_others: bool, cancelled_by: str = "") -> Note | None:
    """Return the worst that can be said of a claim, in a few words."""
    if not one.is_alive:
        back = f", back in {words.duration(one.back_ms or 0)}" if has_others else ", no worker lives"
        return Note(level="act", text=f"owner gone{back}")
    if one.lease_ms <= 0:
        return Note(level="act", text=f"lease over by {words.duration(-one.lease_ms)}")
    if cancelled_by:
        return Note(level="look", text=f"cancelled by {visible(cancelled_by)[:60]}, asked to end")
    if one.is_suspect:
        return Note(level="look", text="suspect, runs apart")
    if one.is_near and one.runs_ms is not None and one.timeout_ms is not None:
        left_ms = one.timeout_ms - one.runs_ms
        return Note(level="look", text=f"timeout in {words.duration(left_ms)}" if left_ms > 0 else "past its timeout")
    return None


class Message(msgspec.Struct, frozen=True):
    """What a list needs of a message."""

    id: str
    type: str
    version: int
    attempt: int
    attempts: int | None
    source: str
    group: str
    first_ms: int
    tries: list[Try]
    data: bytes
    is_msgpack: bool
    is_cut: bool

    @property
    def last(self) -> Try | None:
        """The attempt that failed last; None where none has, or the job was sent back since."""
        return self.tries[-1] if self.tries and not self.tries[-1].is_replay else None

    @property
    def error(self) -> str:
        """What it failed of."""
        return self.last.error if self.last else ""

    @property
    def error_class(self) -> str:
        """The class of that."""
        return self.last.error_class if self.last else ""


def message_of(peek: Peek, cut: int = LIST_CUT) -> Message:
    """Return what a message says of itself."""
    about, told, tries = summary(peek.fields), as_text(peek.fields), tries_of(peek.fields)
    data = payload_of(peek.fields)
    born = about.first_ms or (0 if peek.stream == DUE_STREAM else parse_int(peek.entry.partition("-")[0]) or 0)
    return Message(
        id=about.id or (peek.entry if peek.stream == DUE_STREAM else default_id(peek.priority, peek.entry)),
        type=about.type_name,
        version=about.version,
        attempt=about.attempt,
        attempts=parse_int(told.get(ATTEMPTS.decode(), "")),
        source=told.get(SOURCE.decode(), ""),
        group=told.get(GROUP.decode(), ""),
        first_ms=born,
        tries=tries,
        data=data,
        is_msgpack=told.get(CONTENT_TYPE.decode(), "").endswith("msgpack"),
        is_cut=len(data) >= cut,
    )


def row_of(
    peek: Peek,
    message: Message,
    contract_of: Newest,
    eyes: Eyes,
    now_ms: int,
    *,
    state: str,
    waits: str = "",
    note: Note | None = None,
    held: Claim | None = None,
) -> JobRow:
    """Return the row of a job that is in the queue."""
    contract = contract_of(message.type, message.version) or contract_of(message.type, 0)
    schema = contract.schema if contract else None
    error = redact_text(message.error, eyes.rules) if eyes.can_see else message.error_class
    return JobRow(
        place=peek.place,
        id=visible(message.id),
        type=visible(message.type),
        pri=next((name for name in PRIORITIES if name == peek.priority), None),
        state=cast("State", state),
        attempt=message.attempt,
        attempts=message.attempts or (contract.attempts if contract else None),
        args=preview(message.data, schema, eyes.rules, is_msgpack=message.is_msgpack, is_cut=message.is_cut)
        if eyes.can_see
        else None,
        size=peek.size,
        age_ms=max(0, now_ms - message.first_ms) if message.first_ms else None,
        source=visible(message.source),
        due_ms=peek.due_ms if peek.stream == DUE_STREAM else None,
        waits=visible(waits),
        error=visible(error),
        note=note,
        claim=held,
        end=None,
        progress=None,
    )


def ended_row(run: Ended, eyes: Eyes, now_ms: int) -> JobRow:
    """Return the row of a run that has ended; the class of what it failed of for who may not see messages."""
    kind = Try(run.attempt, 0, error=run.error).error_class
    is_known = run.outcome != "lost"  # of a run that was lost nobody has seen the end
    return JobRow(
        place=visible(run.place),
        id=visible(run.id),
        type=visible(run.type),
        pri=next((name for name in PRIORITIES if name == run.place.partition("/")[0]), None),
        state="finished",
        attempt=run.attempt,
        attempts=None,
        args=None,
        size=0,
        age_ms=max(0, now_ms - run.at_ms) if run.at_ms else None,
        source="",
        due_ms=None,
        waits="",
        error=visible(redact_text(run.error, eyes.rules)) if eyes.can_see else kind,
        note=None,
        claim=None,
        end=End(
            outcome=visible(run.outcome),
            wait_ms=run.wait_ms if is_known else None,
            run_ms=run.run_ms if is_known else None,
            worker=visible(run.by),
            app=visible(run.app),
            at_ms=run.at_ms,
        ),
        progress=None,
    )
