"""What the API is asked for and what it answers: the OpenAPI document and the types of the pages are made of these.

Times end in `_ms` and are milliseconds since the epoch by the server's clock where they say when, and milliseconds where they say
how long; rates end in `_s` and are a second's. What a message, a handler or a worker has written is text, and stays text. Each
member is there in each answer; None says that it is not known, or may not be seen.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Level = Literal["ok", "look", "act"]
Pri = Literal["critical", "high", "medium", "low"]
Right = Literal["view", "payload", "operate", "send"]
Range = Literal["1h", "24h"]
Said = list[str]  # a sentence in parts, plain and strong in turn, a plain one first (it may be empty)

MAX_PLACES = 1000  # of one action, as the page says
Limit = Annotated[int, Meta(ge=1, le=100)]
Name = Annotated[str, Meta(max_length=512)]  # an id, a place, a type, a worker, a group: as long as a message may have them
Query = Annotated[str, Meta(max_length=1000)]
Cursor = Annotated[str, Meta(max_length=2000)]
Reason = Annotated[str, Meta(max_length=500)]
Places = Annotated[list[Name], Meta(min_length=1, max_length=MAX_PLACES)]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What all of them have in common."""


class Ask(Shape, frozen=True, forbid_unknown_fields=True):
    """What a route is asked: the query of a GET, the body of a POST."""


class Nothing(Ask, frozen=True):
    """A route that needs no more than its path."""


# --- frame -------------------------------------------------------------------------------------------------------------------


class Failure(Shape, frozen=True):
    """The body of every answer that is an error: `now` says what is true of the job or letter now, where that is why."""

    code: str
    text: str
    now: str | None


class About(Shape, frozen=True):
    """What a page must know before it shows anything. `rights` is empty for one who has to log in first."""

    version: str
    queue: str
    label: str
    label_level: Level
    who: str
    rights: list[Right]
    must_login: bool
    is_guest: bool  # may log in for more rights than these
    trace_url: str | None  # a template with {trace_id}
    redis: str  # where it listens, without a password
    zone: str  # of the server, an IANA name or UTC
    features: list[str]


class Counts(Shape, frozen=True):
    """The figures beside the entries of the bar."""

    jobs: int
    dead: int
    types: int
    workers: int
    schedules: int
    findings: int
    operations: int


class Frame(Shape, frozen=True):
    """What every page shows: the figures of the bar, the worst level, and how old all of this is.

    `age_ms` is 0 while Redis answers; then `trouble` is None.
    """

    now_ms: int
    level: Level
    looks: int
    acts: int
    counts: Counts
    dead_level: Level
    system_level: Level
    workers_level: Level
    age_ms: int
    trouble: str | None


# --- overview ----------------------------------------------------------------------------------------------------------------


class Verdict(Shape, frozen=True):
    """The answer to one of the four questions of the first page, with the page that shows more."""

    question: Literal["stuck", "failing", "workers", "died"]
    level: Level
    said: Said
    href: str


class Trend(Shape, frozen=True):
    """How a backlog moves: `empty` in `empty_ms`, or `grows` by `grows_s` a second."""

    kind: Literal["steady", "empty", "grows"]
    empty_ms: int | None
    grows_s: float | None


class Priority(Shape, frozen=True):
    """One priority. Rates are of the last 10 s, waits and runs of the last 5 minutes, ≈ within a factor of 2; `depth` has what
    waited at the end of each of the last 60 minutes, the newest last.
    """

    name: Pri
    waiting: int
    claimed: int
    lots: int
    oldest_ms: int | None
    level: Level
    added_s: float | None
    done_s: float | None
    trend: Trend
    wait_p50_ms: float | None
    wait_p95_ms: float | None
    run_p95_ms: float | None
    failed_5m: int
    is_paused: bool
    depth: list[int | None]


class Mark(Shape, frozen=True):
    """What is noted above a chart, such as a version that was first seen."""

    at_ms: int
    text: str


class Series(Shape, frozen=True):
    """What happened over time, in steps of `step_ms` from `start_ms` on; the last step still runs. None is a gap: not known."""

    start_ms: int
    step_ms: int
    done: list[int | None]
    retried: list[int | None]
    dead: list[int | None]
    waits_p95_ms: dict[str, list[float | None]]  # by priority; of a type, under the empty name, how long its runs took
    marks: list[Mark]
    jobs_said: str
    waits_said: str
    is_complete: bool  # False while older steps are still being read


class TypeRow(Shape, frozen=True):
    """One type, in the last 5 minutes. `waiting` is ≈: of the oldest and newest of each priority. `dead` are its letters, of the
    newest 200,000; the overview counts neither.
    """

    type: str
    pri: Pri | None
    runs: int
    runs_s: float
    failed: int
    failed_part: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    claimed: int | None
    dead: int | None
    waiting: int | None
    runs_hour: list[int | None]
    failed_hour: list[int | None]
    is_known: bool  # by a worker that lives
    level: Level
    note: str


class Group(Shape, frozen=True):
    """Dead letters that died of the same. `hours` has how many died in each of the last 24 hours, the newest last."""

    fp: str
    type: str
    reason: str
    error: str  # the class, or the reason where there is none
    message: str | None
    frame: str
    count: int
    hours: list[int]
    first_ms: int
    last_ms: int
    last_hour: int
    grows: bool
    apps: list[str]
    trace: str | None


class Longest(Shape, frozen=True):
    """A job that has run for long."""

    type: str
    id: str
    place: str
    runs_ms: int


class WorkerRow(Shape, frozen=True):
    """One worker, as it last said."""

    name: str
    label: str  # host and pid
    host: str
    pid: int
    version: str
    app: str
    up_ms: int | None
    rss_bytes: int | None
    lag_ms: float | None
    lanes: int
    busy: int
    held: int
    longest: Longest | None
    stage: str
    order: str
    beat_ms: int  # since its last heartbeat
    is_alive: bool
    level: Level
    note: str


class Overview(Shape, frozen=True):
    """The first page. `hint` is a command that sends a first job, where the queue is fresh, else empty."""

    verdicts: list[Verdict]
    priorities: list[Priority]
    delayed: int
    next_due_ms: int | None
    series: Series
    types: list[TypeRow]
    groups: list[Group]
    all_groups: int
    is_grouped: bool
    workers: list[WorkerRow]
    hint: str


class OverviewAsk(Ask, frozen=True):
    """How far back its charts go."""

    range: Range = "1h"


class Tick(Shape, frozen=True):
    """One frame of the stream: absolute values, so a lost one is harmless. The overview where it was asked for."""

    frame: Frame
    overview: Overview | None


class EventsAsk(Ask, frozen=True):
    """What the stream shows beside the frame."""

    topics: Annotated[str, Meta(max_length=100)] = ""
    range: Range = "1h"


# --- jobs --------------------------------------------------------------------------------------------------------------------


class Note(Shape, frozen=True):
    """One short sentence about a row."""

    level: Level
    text: str


class Claim(Shape, frozen=True):
    """Who holds a job: `lease_ms` is what is left of the lease, below zero when it is over; `back_ms` in how long at most a live
    worker has it back, where its owner is gone, which has not beaten for `silent_ms`.
    """

    owner: str
    label: str
    is_alive: bool
    silent_ms: int | None
    runs_ms: int | None
    timeout_ms: int | None
    lease_ms: int
    deliveries: int
    is_started: bool | None
    is_suspect: bool
    back_ms: int | None
    said: Said


class End(Shape, frozen=True):
    """How a run ended."""

    outcome: str
    wait_ms: int | None
    run_ms: int | None
    worker: str
    app: str
    at_ms: int


class Progress(Shape, frozen=True):
    """How far a run says that it is."""

    done: float | None
    total: float | None
    text: str
    at_ms: int
    lines: list[str]


class JobRow(Shape, frozen=True):
    """A job where it is now. `args` is its payload, cut and redacted; None for who may not see it. `error` is of its last
    attempt: the class alone for who may not see messages.
    """

    place: str
    id: str
    type: str
    pri: Pri | None
    state: Literal["waiting", "claimed", "lot", "delayed", "finished", "dead"]
    attempt: int
    attempts: int | None
    args: str | None
    size: int
    age_ms: int | None
    source: str
    due_ms: int | None
    waits: str
    error: str
    note: Note | None
    claim: Claim | None
    end: End | None
    progress: Progress | None


class Facet(Shape, frozen=True):
    """A way to narrow a list, with how many rows it has."""

    name: str
    text: str
    count: int
    level: Level


class Jobs(Shape, frozen=True):
    """A part of a list. Of `of` jobs, `looked_at` were looked at: `said` tells so where that is not all; `found` of them fit."""

    rows: list[JobRow]
    facets: list[Facet]
    waiting: int
    claimed: int
    delayed: int
    looked_at: int
    of: int
    found: int
    said: str
    title: Said
    cursor: str | None


class JobsAsk(Ask, frozen=True):
    """Which list, what of it, and in which order."""

    state: Literal["waiting", "claimed", "delayed", "finished"] = "claimed"
    q: Query = ""
    facet: Name = "all"
    sort: Literal["oldest", "newest", "longest", "due"] | None = None
    cursor: Cursor = ""
    limit: Limit = 50


class Step(Shape, frozen=True):
    """A part of a job's life: `to_ms` is None where it still goes on. `same_as` is the attempt that failed of the same."""

    kind: Literal["waited", "attempt", "running", "backoff", "lost", "next"]
    attempt: int | None
    from_ms: int
    to_ms: int | None
    level: Level
    outcome: str
    worker: str
    app: str
    error: str
    message: str | None
    frame: str
    trace: str | None
    same_as: int | None
    lines: list[str]


class Fact(Shape, frozen=True):
    """A name and what is so; `is_code` where it is an id, a place or a field."""

    name: str
    text: str
    is_code: bool


class Job(Shape, frozen=True):
    """All that is known of one job. `can` has what may be done with it now: cancel, soon, replay, trash."""

    row: JobRow
    said: Said
    steps: list[Step]
    facts: list[Fact]
    result: str | None
    group: str | None
    can: list[Literal["cancel", "soon", "replay", "trash", "edit"]]
    now_ms: int


class JobAsk(Ask, frozen=True):
    """A job by its place, or by its id: the newest of that id."""

    place: Name = ""
    id: Name = ""


class Problem(Shape, frozen=True):
    """What a payload has wrong, at which line of its text (from 1; 0 for the whole)."""

    path: str
    line: int
    text: str


class Payload(Shape, frozen=True):
    """A payload as text, indented; redacted values are the placeholder. `fits` is None where no contract is known."""

    text: str
    is_cut: bool
    size: int
    version: int
    fits: bool | None
    problems: list[Problem]
    redacted: list[str]


class PlaceAsk(Ask, frozen=True):
    """One place."""

    place: Name


class PayloadAsk(PlaceAsk, frozen=True):
    """The payload at a place, as a file with `download`."""

    download: bool = False


class ActAsk(Ask, frozen=True):
    """What is to be done with these, and why."""

    places: Places
    reason: Reason = ""


class AllAsk(Ask, frozen=True):
    """What is to be done with all jobs of a list that fit, and why: what is meant is what is found now."""

    verb: Literal["cancel", "soon"]
    state: Literal["waiting", "claimed", "delayed"]
    q: Query = ""
    facet: Name = "all"
    reason: Reason = ""


class Acted(Shape, frozen=True):
    """What became of one: `text` says what is true now."""

    place: str
    is_done: bool
    answer: str
    text: str


class ActedAll(Shape, frozen=True):
    """What became of all of them, in their order."""

    results: list[Acted]
    done: int
    text: str


# --- dead letters ------------------------------------------------------------------------------------------------------------


class Groups(Shape, frozen=True):
    """The groups of what was looked at so far: `grouped` of `letters`."""

    groups: list[Group]
    letters: int
    grouped: int
    trash: int


class LettersAsk(Ask, frozen=True):
    """A group, or all; those that fit a search; or the trash."""

    group: Name = ""
    q: Query = ""
    trash: bool = False
    cursor: Cursor = ""
    limit: Limit = 50


class LetterRow(Shape, frozen=True):
    """One dead letter in a list."""

    place: str
    id: str
    type: str
    pri: Pri | None
    reason: str
    error: str
    args: str | None
    attempts: int
    died_ms: int


class Letters(Shape, frozen=True):
    """A part of a list of letters."""

    rows: list[LetterRow]
    of: int
    said: str
    cursor: str | None


class StackFrame(Shape, frozen=True):
    """One frame of a stack; `is_own` where it is neither the runtime's nor a library's."""

    function: str
    file: str
    line: int
    code: str
    is_own: bool


class Letter(Shape, frozen=True):
    """One letter: what it died of and where it comes from. `message` and `frames` are None for who may not see them."""

    row: LetterRow
    group: str
    message: str | None
    frames: list[StackFrame] | None
    stack: str | None
    facts: list[Fact]
    steps: list[Step]
    trace: str | None
    is_in_trash: bool
    deleted_ms: int | None  # when the trash forgets it


class Finding(Shape, frozen=True):
    """What a check found of a part of the letters."""

    kind: str
    level: Level
    count: int
    text: str
    why: str


class Check(Shape, frozen=True):
    """What would become of letters that were replayed now; nothing was written. `id` starts one replay, until `until_ms`."""

    id: str
    total: int
    looked_at: int
    would_run: int
    findings: list[Finding]
    until_ms: int


class CheckAsk(Ask, frozen=True):
    """A group, or some of its letters."""

    group: Name = ""
    places: Annotated[list[Name], Meta(max_length=MAX_PLACES)] = []


class ReplayAsk(Ask, frozen=True):
    """Start what was checked; `count` is what the person has seen, and is refused where it is another now."""

    check: Name
    count: Annotated[int, Meta(ge=1)]
    rate: Annotated[float, Meta(gt=0, le=100)] = 5.0
    has_brake: bool = True
    first: Annotated[int, Meta(ge=0, le=1000)] = 0  # only so many, as a trial; 0 for all
    reason: Reason = ""


class GroupAsk(Ask, frozen=True):
    """All letters of a group; `count` is how many the person has seen, and is refused where there are others now."""

    group: Name
    count: Annotated[int, Meta(ge=1)]
    reason: Reason = ""


class Operation(Shape, frozen=True):
    """An operation over many letters or jobs, as it stands."""

    id: str
    verb: str
    what: str
    state: str
    total: int | None
    looked: int
    done: int
    refused: dict[str, int]
    died: int
    rate_s: float
    who: str
    reason: str
    created_ms: int
    starts_ms: int | None
    ends_ms: int | None
    text: str
    can: list[Literal["stop", "resume"]]


class Operations(Shape, frozen=True):
    """The operations that are known, the newest first."""

    operations: list[Operation]


class OperationAsk(Ask, frozen=True):
    """One operation, and why it is to be stopped or to go on."""

    id: Name
    reason: Reason = ""


class ValidateAsk(Ask, frozen=True):
    """A payload that a person has written; `place` is the letter it was made of, whose redacted values it keeps."""

    type: Name
    text: Annotated[str, Meta(max_length=256 * 1024)]
    place: Name = ""


class Line(Shape, frozen=True):
    """A line of a comparison: `-` was, `+` is, a space stayed."""

    mark: Literal["-", "+", " "]
    text: str


class Validated(Shape, frozen=True):
    """What is wrong with a payload, and how it differs from the letter's. It is not checked where no worker knows the type."""

    problems: list[Problem]
    is_checked: bool
    checked_by: str
    diff: list[Line]


class SendAsk(Ask, frozen=True):
    """Send one job; `place` is the letter it was made of, which goes to the trash with `has_trash`."""

    type: Name
    text: Annotated[str, Meta(max_length=256 * 1024)]
    pri: Pri | None = None
    place: Name = ""
    has_trash: bool = False
    is_unchecked: bool = False
    reason: Reason = ""


class Sent(Shape, frozen=True):
    """The job that was sent."""

    id: str
    place: str
    is_new: bool


# --- the other pages ---------------------------------------------------------------------------------------------------------


class Types(Shape, frozen=True):
    """All types that were seen in a day, or that a worker knows."""

    types: list[TypeRow]


class TypeAsk(Ask, frozen=True):
    """One type."""

    type: Name
    range: Range = "1h"


class Type(Shape, frozen=True):
    """The page of one type. `schema` is its JSON schema as text, `example` a payload to begin with."""

    row: TypeRow
    series: Series
    groups: list[Group]
    policy: list[Fact]
    version: int | None
    schema: str | None
    example: str
    pri: Pri
    is_paused: bool


class Workers(Shape, frozen=True):
    """All workers: those that live, and those that are gone while they hold jobs."""

    workers: list[WorkerRow]
    said: Said


class WorkerAsk(Ask, frozen=True):
    """One worker."""

    name: Name


class Worker(Shape, frozen=True):
    """One worker with what it runs, the longest first."""

    row: WorkerRow
    jobs: list[JobRow]
    facts: list[Fact]
    blocked: list[Fact]


class OrderAsk(Ask, frozen=True):
    """Order workers to be quiet, to go on or to stop."""

    names: Annotated[list[Name], Meta(min_length=1, max_length=500)]
    verb: Literal["quiet", "resume", "stop"]
    reason: Reason = ""


class QueueRow(Shape, frozen=True):
    """What one stream holds; bytes are ≈."""

    name: Pri
    waiting: int
    claimed: int
    lots: int
    oldest_ms: int | None
    bytes_per_job: int | None
    bytes: int | None
    pause: str | None


class Lot(Shape, frozen=True):
    """Jobs that wait for something."""

    name: str
    pri: Pri
    count: int
    oldest_ms: int | None
    level: Level
    text: str


class Pause(Shape, frozen=True):
    """What is paused: a type, a priority, or the whole queue."""

    kind: Literal["all", "priority", "type"]
    name: str
    until_ms: int | None
    by: str
    reason: str


class Queue(Shape, frozen=True):
    """What the queue holds, and what is held back."""

    rows: list[QueueRow]
    lots: list[Lot]
    pauses: list[Pause]
    delayed: int
    delayed_bytes: int | None
    dead: int
    dead_bytes: int | None
    memory_bytes: int
    max_memory_bytes: int
    said: Said


class PauseAsk(Ask, frozen=True):
    """Pause, for a time or until it is resumed; exactly one of the three is named."""

    is_all: bool = False
    priority: Pri | None = None
    type: Name = ""
    for_s: Annotated[float, Meta(gt=0)] | None = None
    reason: Reason = ""


class Changed(Shape, frozen=True):
    """Whether that changed anything, and what is so now."""

    is_changed: bool
    text: str


class Trouble(Shape, frozen=True):
    """A finding of the doctor, with what mends it."""

    level: Level
    text: str
    fix: str


class Entry(Shape, frozen=True):
    """An entry of the audit."""

    at_ms: int
    who: str
    reason: str
    what: str


class System(Shape, frozen=True):
    """The server, what is wrong with it, and what this board costs."""

    said: Said
    troubles: list[Trouble]
    facts: list[Fact]
    cost: list[Fact]


class AuditAsk(Ask, frozen=True):
    """Older than a cursor."""

    cursor: Cursor = ""
    limit: Limit = 50


class Audit(Shape, frozen=True):
    """A part of the audit, the newest first."""

    entries: list[Entry]
    cursor: str | None


class ScheduleTick(Shape, frozen=True):
    """What became of one tick."""

    at_ms: int
    outcome: str


class ScheduleRow(Shape, frozen=True):
    """One schedule."""

    name: str
    type: str
    pri: Pri
    when: str
    words: str
    zone: str
    next_ms: list[int]
    last: list[ScheduleTick]
    is_paused: bool
    source: str
    level: Level
    note: str


class Schedules(Shape, frozen=True):
    """All schedules in force."""

    schedules: list[ScheduleRow]


class ScheduleAsk(Ask, frozen=True):
    """One schedule, and why something is done with it."""

    name: Name
    reason: Reason = ""


class LoginAsk(Ask, frozen=True):
    """A token."""

    token: Annotated[str, Meta(max_length=500)]
