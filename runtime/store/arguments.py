"""What a worker's scripts take: which job goes with which, in parts that are short enough for a call."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from runtime.codec import DATA, pack_record
from runtime.jobs import PLAIN, Deferral, Job, Lease, Letter, Parking
from runtime.limits import Rate
from runtime.results import dead_text
from runtime.store.shapes import TickAsk

T = TypeVar("T")

MAX_IDS: Final = 500  # per script call: measured, half a millisecond of the server at most
MAX_SCHEDULES: Final = 100  # per call, a guess: some 40 µs of the server for each that fires
MAX_CALL_BYTES: Final = 1 << 20  # of payloads per call, a guess: as in a chunk that is sent


def parts_of(items: Sequence[T]) -> list[Sequence[T]]:
    """Return the items in parts of which each is short enough for a call."""
    return [items[start : start + MAX_IDS] for start in range(0, len(items), MAX_IDS)]


def token(lease: Lease) -> tuple[int, bytes, int]:
    """Return what a script tells a lease by: its stream, its entry, and how often that was delivered."""
    return lease.stream + 1, lease.entry, lease.count


def bounds_of(limit: int | None, rate: Rate | None) -> tuple[int | float, ...]:
    """Return limit, interval in µs and burst, as a script takes them; 0 is no bound."""
    return (limit or 0, rate.interval_ms * 1000, rate.burst) if rate else (limit or 0, 0, 0)


def move_words(move: Deferral | Letter | Parking) -> tuple[str | bytes | int, ...]:
    """Return what the script of a move takes: defer, dead or park."""
    if isinstance(move, Deferral):
        return (*token(move.lease), move.kind, move.when_ms, move.job_id, move.lease.envelope.key, pack_record(move))
    if isinstance(move, Letter):
        told = dead_text(move.code, move.error, move.attempts, time.time_ns() // 1_000_000) if move.result_ms else b""
        return (
            *(*token(move.lease), move.code, move.error, move.stack, move.attempts, move.job_id, move.trace),
            *(move.result_ms, told, move.tries),
        )
    return (*token(move.lease), move.lot)


def tick_parts(asks: Sequence[TickAsk]) -> Iterable[list[TickAsk]]:
    """Return the asks in parts of which each is short enough for a call: by schedules, by messages, and by bytes of payloads."""
    part, messages, size = list[TickAsk](), 0, 0
    for ask in asks:
        own = len(ask.definition.settings.data) if ask.due.ticks else 0
        messages, size = messages + len(ask.due.ticks), size + own
        if part and (len(part) >= MAX_SCHEDULES or messages > MAX_IDS or size > MAX_CALL_BYTES):
            yield part
            part, messages, size = [], len(ask.due.ticks), own
        part.append(ask)
    if part:
        yield part


def tick_words(ask: TickAsk) -> Iterable[str | bytes | int]:
    """Return what tick takes of a schedule."""
    definition, due = ask.definition, ask.due
    settings = definition.settings
    fields = definition.fields() if due.ticks else []
    yield from (definition.name, definition.when_hash, definition.whole_hash, definition.revision)
    yield from ("" if ask.known_ms is None else ask.known_ms, due.last_ms, due.missed)
    yield from ("paused" if settings.paused else settings.overlap, settings.priority, len(fields), *fields, len(due.ticks))
    for tick in due.ticks:
        expires_ms = definition.expires_ms(tick)
        yield from (tick, "" if expires_ms is None else expires_ms)


def handoff_parts(jobs: Sequence[Job]) -> Iterable[list[Job]]:
    """Return jobs that hand on others in parts that are short enough for a call: by messages, and by bytes of payloads."""
    part, messages, size = list[Job](), 0, 0
    for job in jobs:
        followers = job.followers
        own, own_bytes = len(followers), sum([len(packed.data) for packed in followers])
        messages, size = messages + own, size + own_bytes
        if part and (messages > MAX_IDS or size > MAX_CALL_BYTES):
            yield part
            part, messages, size = [], own, own_bytes
        part.append(job)
    if part:
        yield part


def handoff_words(job: Job) -> Iterable[str | bytes | int]:
    """Return what handoff takes of a job that hands on others."""
    followers = job.followers
    yield from (*token(job), job.envelope.key, len(followers))
    for packed in followers:
        head = packed.head
        yield from (head.stream + 1, head.due_ms or "", len(head.fields) + 2, *head.fields, DATA, packed.data)


def by_kind(done: Sequence[Sequence[Job]], run_id: str) -> tuple[list[Sequence[Job]], list[Job], list[Job], list[Job]]:
    """Return what goes in one transaction, what takes strikes or a key's mark along, what was fetched before a restart, and what
    hands on others, whenever that was fetched.
    """
    plain: list[Sequence[Job]] = []
    again: list[Job] = []
    old: list[Job] = []
    handing: list[Job] = []
    for all_jobs in done:
        jobs = all_jobs
        # All that is out of the ordinary, in one look: it is taken at each job.
        if not [
            job for job in jobs if job.run_id != run_id or job.count != 1 or job.envelope is not PLAIN or job.extras is not None
        ]:
            plain.append(jobs)
            continue
        # Each is asked once: a task that outlives its job may hand on one more meanwhile, and it would be in neither list.
        if some := {id(job): job for job in jobs if job.followers}:
            handing += some.values()
            jobs = [job for job in jobs if id(job) not in some]
        ours = [job for job in jobs if job.run_id == run_id]
        plain.append([job for job in ours if job.count == 1 and not job.envelope.key])
        again += [job for job in ours if job.count != 1 or job.envelope.key]
        old += [job for job in jobs if job.run_id != run_id]
    return plain, again, old, handing
