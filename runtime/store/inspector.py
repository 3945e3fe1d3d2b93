"""Reads for people: backlog, dead letters, counters, and the state of the server.

Plain values out; a worker's path never uses them.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from runtime.codec import (
    MAX_DIGITS,
    MAX_MS,
    Summary,
    as_text,
    payload_of,
    read_letter,
    read_record,
    summary,
    tries_of,
    without_tries,
)
from runtime.errors import StoreError
from runtime.jobs import GATE, OVERFLOW, STREAMS, UNKNOWN, default_id, ms_of, work_of
from runtime.rules import parse
from runtime.said import MAX_PROGRESS_BYTES, Attempt, Report, read_attempt, read_reports
from runtime.store.base import (
    DEPTH,
    GROUP,
    MAX_BY_BYTES,
    Room,
    WorkerRow,
    by_life,
    facts_in,
    holders_in,
    is_code,
    ms_in,
    pairs,
    parse_int,
    room_in,
    setting,
    texts,
    workers_of,
)
from runtime.store.events import Events
from runtime.store.flow import Flow, Name, Parts, asked_of, reading, waiting_in
from runtime.store.resp import Command, ServerError
from runtime.store.unknown import lot_is_known
from runtime.tries import Try

LETTERS_PAGE: Final = 50  # letters a round trip; a guess: some 15 MB where each is as large as it may be
PAGE: Final = 1000  # entries a round trip: measured, a millisecond of the server
PROGRESS_PAGE: Final = 50  # workers a round trip; a guess: 13 MB at most
LOGS: Final = 10_000  # attempts that are looked at for those of a job, and how many in a round trip: guesses, a few MB at most
LOGS_PAGE: Final = 500
RESULT_BYTES: Final = 128 << 10  # a guess: more than any result and what is kept beside it


class Depth(msgspec.Struct):
    """The queue at one moment. `waiting` and `running` by priority; `parked` waits in lots. `workers` are those that beat,
    `silent` those that should have, and are not forgotten yet.

    `backlog` is what more workers would work off: what waits to be fetched, unless its priority is paused, delayed jobs whose
    time has come, and what of the lots was given back, is suspect, or waits for a thread or process of a type that a worker
    knows. It is not what runs, what is at a gate, nor what waits for a type that no worker knows.
    """

    waiting: dict[str, int]
    running: dict[str, int]
    parked: int
    delayed: int
    due_now: int
    dead: int
    workers: int
    silent: int = 0
    backlog: int = 0

    @property
    def unfinished(self) -> int:
        """All that is due and has not ended: waiting, running, parked, and delayed jobs whose time has come."""
        return sum(self.waiting.values()) + sum(self.running.values()) + self.parked + self.due_now


class DeadLetter(msgspec.Struct):
    """A dead letter: its place in the dead letters, the notes of its death, and the message's own fields."""

    letter: str
    type: str
    id: str
    reason: str
    error: str
    attempts: int
    priority: str
    died_at: float
    stack: str
    message: dict[str, str]
    left_out: str = ""  # fields that were too large to be kept, with their bytes
    born_ms: int = 0
    work: str = ""
    trace: str = ""  # traceparent of the span that tells of this death
    tries: list[Try] = []  # that failed, also of lives before a replay, the oldest first
    by: str = ""  # the worker that wrote it, and the version of the application there
    app: str = ""


class FoundJob(msgspec.Struct):
    """A job where it is now: `state` is waiting, running, parked, delayed or dead; `where` is its holder, lot or due time.

    `waits` says in words why it waits, where it is paused or at a gate, or who has asked its worker to end it; `error` of what
    it died, or its last attempt failed; `tries` are the attempts that failed, as far as they are kept, the oldest first. `due_ms`
    is 0 where it is not delayed, `born_ms` where that is not known, `idle_ms` how long ago its lease was renewed, `progress` what
    the run says that goes on, and `work` its `job.work`. `deliveries` is how often it was given to a worker, less those times
    that it was given back.

    What only a look at the workers tells, as `Finder.note` does: `since_ms` is when its run began, by its worker's clock, and
    `timeout_ms` how long that may take; 0 where it is not known. `is_started` is None where its worker does not tell, and
    `silence` says in words that its worker is silent, or gone. `strikes` are the workers that died while it ran alone; `is_known`
    says whether any worker that lives knows the type of one that is parked for that; if none does, `dead_from_ms` is from when on
    it is a dead letter, where that is known.
    """

    id: str
    type: str
    priority: str
    state: str
    where: str
    attempt: int
    place: str
    message: dict[str, str]
    waits: str = ""
    error: str = ""
    born_ms: int = 0
    idle_ms: int = 0
    work: str = ""
    progress: Report | None = None
    due_ms: int = 0
    tries: list[Try] = []
    deliveries: int = 0
    since_ms: int = 0
    timeout_ms: int = 0
    is_started: bool | None = None
    silence: str = ""
    strikes: list[str] = []
    is_known: bool | None = None
    dead_from_ms: int = 0


class Server(msgspec.Struct):
    """What matters of the server's settings and state. A text is empty and a number 0 where the server does not tell."""

    name: str
    version: str
    policy: str
    appendonly: bool
    role: str
    fsync: str
    memory_bytes: int
    max_memory_bytes: int
    client_timeout_s: int
    now_ms: int
    system_bytes: int = 0


class Inspector(Events):
    """A person's verbs that change nothing. Owns one connection."""

    def __init__(self, url: str, queue: str, name: str = "inspector") -> None:
        super().__init__(url, queue, name)

    async def server(self) -> Server:
        """Return what the server is, how it is set, and what time it has.

        Raises:
            StoreUnavailable: no answer.
        """
        info, policy, append, fsync, timeout, now = await self.ask(
            self._connection,
            ("INFO",),
            ("CONFIG", "GET", "maxmemory-policy"),
            ("CONFIG", "GET", "appendonly"),
            ("CONFIG", "GET", "appendfsync"),
            ("CONFIG", "GET", "timeout"),
            ("TIME",),
        )
        found = facts_in(self.checked(info))
        return Server(
            name="valkey" if "valkey_version" in found else "redis",
            version=found.get("valkey_version") or found.get("redis_version", ""),
            policy=found.get("maxmemory_policy") or setting(policy),
            appendonly=setting(append) == "yes" or found.get("aof_enabled") == "1",
            role=found.get("role", ""),
            fsync=setting(fsync),
            memory_bytes=parse_int(found.get("used_memory", "")) or 0,
            max_memory_bytes=parse_int(found.get("maxmemory", "")) or 0,
            client_timeout_s=parse_int(setting(timeout)) or 0,
            now_ms=ms_in(self.checked(now)),
            system_bytes=parse_int(found.get("total_system_memory", "")) or 0,
        )

    async def depth(self) -> Depth:
        """Return the size of everything in the queue, in one round trip; nothing of what is of another type than it should be.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        keys = self.keys
        answers = await self.ask(
            self._connection,
            *[("XLEN", key) for key in keys.streams],
            *[("XPENDING", key, GROUP) for key in keys.streams],
            ("ZCARD", keys.due),
            ("XLEN", keys.dead),
            ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
            ("HGETALL", keys.rows),
            ("HGETALL", keys.control),
            ("TIME",),
        )
        *by_stream, due, dead, until, rows, control, now = answers
        lengths, pending = by_stream[: len(keys.streams)], by_stream[len(keys.streams) :]
        waiting, running, lots = list(map(self._size, lengths)), [0] * len(lengths), Counter[str]()
        for stream, group in enumerate(pending):
            if is_code(group, "NOGROUP") or is_code(group, "WRONGTYPE"):
                continue  # no worker has been here yet, or none can read it
            for name, count in holders_in(self.checked(group)):
                waiting[stream] -= count
                if name.startswith(b"~"):
                    lots[name.decode(errors="replace")] += count
                else:
                    running[stream] += count
        now_ms = ms_in(self.checked(now))
        due_now = (await self.ask(self._connection, ("ZCOUNT", keys.due, "-inf", now_ms)))[0]
        beating, silent = by_life(workers_of(self._flat(until), self._flat(rows)), now_ms)
        paused = parse(pairs(self._flat(control))).paused_streams(now_ms)
        known = {kind for row in beating.values() for kind in row.types.items()}
        could_run = sum(n for stream, n in enumerate(waiting) if stream not in paused)
        could_run += sum(n for lot, n in lots.items() if _could_run(lot, known)) + self._size(due_now)
        return Depth(
            waiting=dict(zip(STREAMS, waiting, strict=True)),
            running=dict(zip(STREAMS, running, strict=True)),
            parked=lots.total(),
            delayed=self._size(due),
            due_now=self._size(due_now),
            dead=self._size(dead),
            workers=len(beating),
            silent=len(silent),
            backlog=could_run,
        )

    async def stored_bytes(self) -> dict[str, int]:
        """Return about how much memory of the server each stream takes, what is delayed, and what is dead: the server looks at a
        few nodes of each. What it does not tell is left out.

        Raises:
            StoreUnavailable: no answer.
        """
        keys = self.keys
        parts = [*zip(STREAMS, keys.streams, strict=True), ("delayed", keys.due), ("delayed", keys.messages), ("dead", keys.dead)]
        answers = await self.ask(self._connection, *[("MEMORY", "USAGE", key) for _, key in parts])
        sizes: dict[str, int] = {}
        for (part, _), answer in zip(parts, answers, strict=True):
            if not isinstance(answer, ServerError):  # as where an ACL does not allow it
                sizes[part] = sizes.get(part, 0) + int(answer or 0)
        return sizes

    async def room(self) -> Room:
        """Return how much memory the server uses and has.

        Raises:
            StoreUnavailable: no answer.
        """
        return room_in((await self.ask(self._connection, ("INFO", "memory")))[0])

    def _size(self, answer: Any) -> int:
        return 0 if is_code(answer, "WRONGTYPE") else int(self.checked(answer))

    async def oldest_waiting_s(self) -> dict[str, float]:
        """Return for each priority how long the oldest of its jobs that were not fetched yet has waited; 0 where none waits.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        *groups, now = await self.ask(self._connection, *[("XINFO", "GROUPS", key) for key in self.keys.streams], ("TIME",))
        now_ms = ms_in(self.checked(now))
        reads: list[Command] = []
        for key, found in zip(self.keys.streams, groups, strict=True):
            rows = [] if isinstance(found, ServerError) else [dict(pairs(row)) for row in found]  # an error: no stream yet
            last = next((row[b"last-delivered-id"] for row in rows if row.get(b"name") == GROUP.encode()), None)
            reads.append(("XRANGE", key, "-" if last is None else f"({bytes(last).decode()}", "+", "COUNT", 1))
        oldest = map(self._flat, await self.ask(self._connection, *reads))
        return {
            name: (now_ms - ms_of(bytes(rows[0][0]), now_ms)) / 1000 if rows else 0.0
            for name, rows in zip(STREAMS, oldest, strict=True)
        }

    async def flow(self, also: Iterable[Name] = ()) -> Flow:
        """Return what holds jobs back, gates and pauses, and the schedules, in two round trips; `also` are groups to be shown
        beside the largest. What is of another type than it should be is as if it were not there.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        keys = self.keys
        hashes = [("HGETALL", key) for key in (keys.control, keys.cron, keys.cron_state, keys.rows)]
        answers = await self.ask(
            self._connection,
            *hashes,
            ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
            ("TIME",),
            *[("XPENDING", key, GROUP) for key in keys.streams],
            *[("XLEN", key) for key in keys.streams],
        )
        control, definitions, states, rows, until = map(self._flat, answers[:5])
        now_ms = ms_in(self.checked(answers[5]))
        pending, lengths = answers[6 : 6 + len(keys.streams)], answers[6 + len(keys.streams) :]
        holders: list[tuple[str, int]] = []
        waiting: dict[str, int] = {}
        for name, group, length in zip(STREAMS, pending, lengths, strict=True):
            is_bare = is_code(group, "NOGROUP") or is_code(group, "WRONGTYPE")
            held = [] if is_bare else [(holder.decode(errors="replace"), n) for holder, n in holders_in(self.checked(group))]
            waiting[name] = self._size(length) - sum(n for holder, n in held if not holder.startswith("~"))
            holders += held
        workers = by_life(workers_of(until, rows), now_ms)[0].values()
        parts = Parts(parse(pairs(control)), waiting_in(holders), workers, texts(definitions), texts(states), now_ms)
        flow = reading(parts, waiting)
        asked = asked_of(flow, also)
        reads = [read for one in asked for read in (("ZCARD", keys.permits(one.name)), ("GET", keys.rate(one.name)))]
        found = await self.ask(self._connection, *reads) if reads else []
        flow.unreadable_keys = [key for (_, key), answer in zip(reads, found, strict=True) if is_code(answer, "WRONGTYPE")]
        for one, (in_use, tat_us) in zip(asked, pairs(found), strict=True):
            one.note(self._size(in_use), 0 if is_code(tat_us, "WRONGTYPE") else _tat_us(self.checked(tat_us)), now_ms)
        return flow

    def _flat(self, answer: Any) -> list[Any]:
        return [] if is_code(answer, "WRONGTYPE") else self.checked(answer)

    async def workers(self) -> dict[str, tuple[int, WorkerRow]]:
        """Return the known workers: until when each lives (ms), and its row.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self.workers_on(self._connection)

    async def counters(self, minutes: int) -> dict[tuple[str, str, str], int]:
        """Return what all workers counted in the last minutes: (type, priority, outcome) → number. What is no count is left out.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return {name: count for name, (count, _) in (await self.counters_since(minutes)).items()}

    async def counters_since(self, minutes: int) -> dict[tuple[str, str, str], tuple[int, int]]:
        """Return the same, and beside each number the first of these minutes, since the epoch, in which there was one.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        now = int(time.time() // 60)
        answers = await self.ask(self._connection, *[("HGETALL", self.keys.stats(now - ago)) for ago in range(minutes)])
        found: dict[tuple[str, str, str], tuple[int, int]] = {}
        for ago, answer in enumerate(answers):
            for name, value in pairs(self.checked(answer)):
                words, count = name.decode(errors="replace").rsplit(" ", 2), parse_int(value.decode(errors="replace"))
                if len(words) == 3 and count is not None and words[2] != DEPTH:
                    type_name, priority, outcome = words
                    total, since = found.get((type_name, priority, outcome), (0, now))
                    found[type_name, priority, outcome] = total + count, now - ago if count else since
        return found

    async def dead_letters(self, n: int, before: str = "+", *, is_trash: bool = False) -> list[DeadLetter]:
        """Return up to `n` dead letters, newest first, or those in the trash; `before` is a letter to go on from.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        key, found = self.keys.trash if is_trash else self.keys.dead, list[DeadLetter]()
        while len(found) < n:
            asked, end = min(n - len(found), LETTERS_PAGE), before if before == "+" else f"({before}"
            rows = await self.call_one(self._connection, ("XREVRANGE", key, end, "-", "COUNT", asked), key)
            found += map(_letter, rows)
            if len(rows) < asked:
                break
            before = found[-1].letter
        return found

    async def dead_letter(self, letter: str) -> DeadLetter | None:
        """Return one dead letter by its place, or None.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        rows = await self.call_one(self._connection, ("XRANGE", self.keys.dead, letter, letter))
        return _letter(rows[0]) if rows else None

    async def letters_at(self, places: Sequence[str]) -> list[DeadLetter]:
        """Return the dead letters at these places; those that are gone are left out.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        reads = [("XRANGE", self.keys.dead, place, place) for place in places]
        found = await self.ask(self._connection, *reads) if reads else []
        return [_letter(row) for rows in found for row in self.checked(rows)]

    async def newest_jobs(self, n: int) -> list[FoundJob]:
        """Return the newest `n` jobs of each stream and the next `n` delayed ones; never reads a whole structure.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found: list[FoundJob] = []
        for stream, key in enumerate(self.keys.streams):
            rows = await self.call_one(self._connection, ("XREVRANGE", key, "+", "-", "COUNT", n))
            found += await self._placed(stream, rows)
        members = await self.call_one(self._connection, ("ZRANGE", self.keys.due, 0, n - 1, "WITHSCORES"))
        return found + await self._delayed(members)

    async def find_job(self, job_id: str, n: int) -> list[FoundJob]:
        """Return all jobs with this id among the delayed ones, the newest `n` of each stream, and the newest `n` dead letters.

        Where a key is no place of jobs, it is where else it may be that counts.

        Raises:
            StoreUnavailable: no answer or an error; it is nowhere else, and may be where a key is of a wrong type.
        """
        return await self.find_jobs((job_id,), n)

    async def find_jobs(self, ids: Collection[str], n: int) -> list[FoundJob]:
        """Return all jobs with one of these ids; see `find_job`.

        Raises:
            StoreUnavailable: as there.
        """
        found: list[FoundJob] = []
        trouble: list[StoreError] = []
        streams = [partial(self._find_in, stream) for stream in range(len(STREAMS))]
        for look in (self._find_delayed, *streams, self._find_dead):
            try:
                found += await look(ids, n)
            except StoreError as error:
                trouble.append(error)
        if trouble and not found:
            raise trouble[0]
        return found

    async def _find_delayed(self, ids: Collection[str], n: int) -> list[FoundJob]:
        scores = await self.ask(self._connection, *[("ZSCORE", self.keys.due, job_id) for job_id in ids])
        known = [(job_id, self.checked(score, self.keys.due)) for job_id, score in zip(ids, scores, strict=True)]
        return await self._delayed([word for job_id, score in known if score is not None for word in (job_id.encode(), score)])

    async def _find_in(self, stream: int, ids: Collection[str], n: int) -> list[FoundJob]:
        return await self._placed(stream, await self._entries_of(self.keys.streams[stream], ids, n))

    async def _find_dead(self, ids: Collection[str], n: int) -> list[FoundJob]:
        found: list[FoundJob] = []
        before, left = "+", n
        while left > 0:  # only what is found is kept: all letters together may be larger than any memory
            page = await self.dead_letters(min(left, LETTERS_PAGE), before)
            found += [_dead(letter) for letter in page if letter.id in ids]
            if len(page) < min(left, LETTERS_PAGE):
                break
            before, left = page[-1].letter, left - len(page)
        return found

    async def job_at(self, place: str) -> FoundJob | None:
        """Return the job at a place such as `high/12-0`, `due/order-1` or `dead/12-0`; None where none is there.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        name, _, entry = place.partition("/")
        if name == "dead":
            letter = await self.dead_letter(entry)
            return _dead(letter) if letter else None
        found = await self.jobs_at([place])
        return found[0] if found else None

    async def jobs_at(self, places: Sequence[str]) -> list[FoundJob]:
        """Return the jobs at these places in streams and `due`, by where they are; those that are gone are left out.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found: list[FoundJob] = []
        split = [place.partition("/") for place in places]
        for stream, (name, key) in enumerate(zip(STREAMS, self.keys.streams, strict=True)):
            reads = [("XRANGE", key, entry, entry) for where, _, entry in split if where == name]
            answers = await self.ask(self._connection, *reads) if reads else []
            found += await self._placed(stream, [row for answer in answers for row in self.checked(answer, key)])
        members = [member for where, _, member in split if where == "due"]
        verbs = (("HEXISTS", self.keys.messages), ("ZSCORE", self.keys.due))
        reads = [(verb, key, member) for member in members for verb, key in verbs]
        answers = [self.checked(answer) for answer in await self.ask(self._connection, *reads)] if reads else []
        told = zip(members, pairs(answers), strict=True)
        return found + await self._delayed(
            [word for member, (known, score) in told if known for word in (member.encode(), score or b"0")]
        )

    async def progress(self) -> dict[str, list[Report]]:
        """Return what jobs say that run now, by the names of their workers; of those that do not say anything nothing.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        names = list(await self.workers())
        found: dict[str, list[Report]] = {}
        for start in range(0, len(names), PROGRESS_PAGE):
            part = names[start : start + PROGRESS_PAGE]
            # No GET: what stands there may be anybody's, of any size.
            reads = [("GETRANGE", self.keys.progress(name), 0, 2 * MAX_PROGRESS_BYTES) for name in part]
            for name, answer in zip(part, await self.ask(self._connection, *reads), strict=True):
                reports = read_reports(answer)[0] if isinstance(answer, bytes) else []
                found |= {name: reports} if reports else {}
        return found

    async def logs_of(self, job_id: str, n: int) -> list[Attempt]:
        """Return the newest `n` ended attempts of a job that are among the newest LOGS of all, the newest first.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self.logs_about((job_id,), (), n)

    async def logs_about(self, ids: Collection[str], places: Collection[str], n: int) -> list[Attempt]:
        """Return the newest `n` ended attempts of jobs with one of these ids, or that stood at one of these places.

        Raises:
            StoreUnavailable: as there.
        """
        found: list[Attempt] = []
        last, left, wanted = "+", LOGS, {name.encode() for name in (*ids, *places)}
        while left > 0 and len(found) < n:
            answers = await self.ask(self._connection, ("XREVRANGE", self.keys.logs, last, "-", "COUNT", LOGS_PAGE))
            rows = self._flat(answers[0])
            attempts = [read_attempt(as_text(row[1])) for row in rows if not wanted.isdisjoint(row[1][1::2])]
            found += [attempt for attempt in attempts if attempt.id in ids or attempt.place in places]
            if len(rows) < LOGS_PAGE:
                break
            last, left = f"({bytes(rows[-1][0]).decode()}", left - len(rows)
        return found[:n]

    async def cancels_of(self, places: Sequence[str]) -> list[str]:
        """Return by whom, and why, jobs at these places of streams were cancelled while a worker has them; else nothing.

        Raises:
            StoreUnavailable: no answer.
        """
        asks: list[Command] = [("GETRANGE", self.keys.asked_by(place.encode()), 0, MAX_BY_BYTES) for place in places]
        answers = await self.ask(self._connection, *asks) if asks else []
        return [answer.decode(errors="replace") if isinstance(answer, bytes) else "" for answer in answers]

    async def result_of(self, job_id: str) -> str:
        """Return what a job has answered as it stands, cut to RESULT_BYTES; nothing where none is kept.

        Raises:
            StoreUnavailable: no answer.
        """
        answer = (await self.ask(self._connection, ("GETRANGE", self.keys.result(job_id), 0, RESULT_BYTES)))[0]
        return answer.decode(errors="replace") if isinstance(answer, bytes) else ""

    async def _entries_of(self, key: str, ids: Collection[str], n: int) -> list[Any]:
        for name, _, entry in [job_id.partition("-") for job_id in ids]:
            if key.endswith(f":{name}") and is_letter(entry):  # a default id says where it is
                rows = await self.call_one(self._connection, ("XRANGE", key, entry, entry), key)
                if rows:
                    return rows
        found: list[Any] = []
        last, left, wanted = "+", n, {job_id.encode() for job_id in ids}
        while left > 0:
            command = ("XREVRANGE", key, last, "-", "COUNT", min(left, PAGE))
            rows: list[Any] = await self.call_one(self._connection, command, key)
            found += [row for row in rows if not wanted.isdisjoint(row[1][1::2])]
            if len(rows) < min(left, PAGE):
                break
            last, left = f"({bytes(rows[-1][0]).decode()}", left - len(rows)
        return [row for row in found if summary(row[1]).id in ids]

    async def _placed(self, stream: int, rows: Sequence[Any]) -> list[FoundJob]:
        key, priority = self.keys.streams[stream], STREAMS[stream]
        held = await self.ask(self._connection, *[("XPENDING", key, GROUP, row[0], row[0], 1) for row in rows]) if rows else []
        found: list[FoundJob] = []
        for (entry, flat), pending in zip(rows, held, strict=True):
            about, place, holder, idle_ms, deliveries = summary(flat), bytes(entry).decode(), "", 0, 0
            if pending and not isinstance(pending, ServerError):
                [[_, name, idle_ms, deliveries]] = pending
                holder = name.decode(errors="replace")
            tries, message = _remembered(flat)
            found.append(
                FoundJob(
                    id=about.id or default_id(priority, place),
                    type=about.type_name,
                    priority=priority,
                    state="parked" if holder.startswith("~") else "running" if holder else "waiting",
                    where=holder,
                    attempt=about.attempt,
                    place=f"{priority}/{place}",
                    message=message,
                    error=_error_in(tries),
                    tries=tries,
                    born_ms=about.first_ms or int(place.partition("-")[0]),
                    idle_ms=idle_ms,
                    work=_work(about, flat, default_id(priority, place)),
                    deliveries=deliveries,
                )
            )
        return found

    async def _delayed(self, flat: Sequence[bytes]) -> list[FoundJob]:
        """Return the delayed jobs of a ZRANGE WITHSCORES."""
        members = list(pairs(flat))
        if not members:
            return []
        records: list[bytes | None] = await self.call_one(
            self._connection, ("HMGET", self.keys.messages, *[member for member, _ in members])
        )
        found: list[FoundJob] = []
        for (name, score), record in zip(members, records, strict=True):
            priority, fields = read_record(record or b"")
            about, member = summary(fields), str(name, errors="replace")
            tries, message = _remembered(fields)
            found.append(
                FoundJob(
                    id=about.id or member,
                    type=about.type_name,
                    priority=priority,
                    state="delayed",
                    where=local_time(score),
                    attempt=about.attempt,
                    place=f"due/{member}",
                    message=message,
                    error=_error_in(tries),
                    tries=tries,
                    born_ms=about.first_ms,
                    work=_work(about, fields, member),
                    due_ms=_due_ms(score),
                )
            )
        return found


def _could_run(lot: str, known: Collection[tuple[str, int]]) -> bool:
    """Return whether a worker with a free lane would run what waits in a lot, these types being known."""
    return lot_is_known(lot, known) if lot.startswith(UNKNOWN) else not lot.startswith((GATE, OVERFLOW))


def _tat_us(text: bytes | None) -> int:
    """Return the time of a rate, which is larger than other numbers; 0 where it is none."""
    return int(text) if text is not None and text.isdigit() and len(text) <= MAX_DIGITS + 3 else 0


def local_time(due_ms: bytes) -> str:
    """Return a due time for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_due_ms(due_ms) / 1000))


def _due_ms(score: bytes) -> int:
    """Return a due time with which clocks can reckon: a sender may choose any number, and the calendar ends before them."""
    return int(min(max(float(score), 0.0), float(MAX_MS)))


def _remembered(fields: Sequence[bytes]) -> tuple[list[Try], dict[str, str]]:
    """Return the failed attempts of a message, and its other fields for people; what is nothing of that kind is a field."""
    tries, message = tries_of(fields), as_text(fields)
    return tries, without_tries(message) if tries else message


def _error_in(tries: Sequence[Try]) -> str:
    """Return what the last attempt failed of; nothing where the job was sent back since."""
    return tries[-1].error if tries else ""


def _letter(row: Sequence[Any]) -> DeadLetter:
    about, tries = summary(row[1]), tries_of(row[1])
    death, message = read_letter(row[1])
    return DeadLetter(
        letter=bytes(row[0]).decode(),
        type=about.type_name,
        id=about.id,
        reason=death.reason,
        error=death.error,
        attempts=death.attempts,
        priority=death.stood.partition("/")[0],
        died_at=death.at_ms / 1000,
        stack=death.stack,
        message=without_tries(message) if tries else message,
        left_out=death.left_out,
        trace=death.trace,
        tries=tries,
        by=death.by,
        app=death.app,
    )


def _dead(letter: DeadLetter) -> FoundJob:
    return FoundJob(
        id=letter.id,
        type=letter.type,
        priority=letter.priority,
        state="dead",
        where=letter.reason,
        attempt=letter.attempts,
        place=f"dead/{letter.letter}",
        message=letter.message,
        error=letter.error,
        tries=letter.tries,
    )


def _work(about: Summary, fields: Sequence[bytes], default: str) -> str:
    return work_of(about.origin or about.id or default, payload_of(fields))


def is_letter(text: str) -> bool:
    """Return whether this may be the place of a dead letter."""
    return re.fullmatch(r"\d{1,20}-\d{1,20}", text) is not None
