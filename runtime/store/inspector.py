"""Reads for people: backlog, dead letters, counters, and the state of the server.

Plain values out; a worker's path never uses them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from runtime.codec import as_text, read_letter, read_record, summary
from runtime.errors import ConfigError
from runtime.jobs import STREAMS, default_id, ms_of
from runtime.store.base import GROUP, Store, WorkerRow, is_code, setting, workers_of
from runtime.store.connection import Connection
from runtime.store.resp import ServerError

OLDEST_SERVER: Final = (7, 0)
PAGE: Final = 1000  # entries a round trip: a millisecond of the server


class Depth(msgspec.Struct):
    """The queue at one moment. `waiting` and `running` by priority; `parked` waits in lots."""

    waiting: dict[str, int]
    running: dict[str, int]
    parked: int
    delayed: int
    due_now: int
    dead: int
    workers: int

    @property
    def backlog(self) -> int:
        """All that wants to run now: waiting, running, parked, and delayed jobs whose time has come."""
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


class Filter(msgspec.Struct, frozen=True):
    """Which dead letters are meant; empty means any."""

    type: str = ""
    reason: str = ""
    before: float = 0.0

    def fits(self, letter: DeadLetter) -> bool:
        """Return whether a letter is meant."""
        is_old = not self.before or letter.died_at <= self.before
        return is_old and self.type in ("", letter.type) and self.reason in ("", letter.reason)


class FoundJob(msgspec.Struct):
    """A job where it is now: `state` is waiting, running, parked, delayed or dead; `where` is its holder, lot or due time."""

    id: str
    type: str
    priority: str
    state: str
    where: str
    attempt: int
    place: str
    message: dict[str, str]


class Server(msgspec.Struct):
    """What matters of the server's settings."""

    name: str
    version: str
    policy: str
    appendonly: bool
    role: str


class Inspector(Store):
    """A person's verbs. Owns one connection."""

    def __init__(self, url: str, queue: str, name: str = "inspector") -> None:
        super().__init__(url, queue)
        self._connection = Connection(url, name)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def server(self) -> Server:
        """Return what the server is and how it is set.

        Raises:
            StoreUnavailable: no answer.
        """
        found = await self.info()
        policy, append = await self.ask(self._connection, ("CONFIG", "GET", "maxmemory-policy"), ("CONFIG", "GET", "appendonly"))
        name = "valkey" if "valkey_version" in found else "redis"
        return Server(
            name,
            found.get("valkey_version") or found.get("redis_version", ""),
            found.get("maxmemory_policy") or setting(policy),
            setting(append) == "yes" or found.get("aof_enabled") == "1",
            found.get("role", ""),
        )

    async def info(self, section: str = "default") -> dict[str, str]:
        """Return the server's INFO, or a section of it.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        text = bytes(await self.call_one(self._connection, ("INFO", section))).decode(errors="replace")
        return dict(re.findall(r"^([a-z_]+):(.*?)\r?$", text, re.MULTILINE))

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
            ("TIME",),
        )
        lengths = [self._size(answer) for answer in answers[:4]]
        running, parked = [0] * 4, [0] * 4
        for stream, pending in enumerate(answers[4:8]):
            if is_code(pending, "NOGROUP") or is_code(pending, "WRONGTYPE"):
                continue  # nobody has worked here yet, or nobody can
            for name, count in self.checked(pending)[3] or ():
                (parked if name.startswith(b"~") else running)[stream] += int(count)
        delayed, dead = map(self._size, answers[8:10])
        until, now = answers[10], self.checked(answers[11])
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        due_now = self._size((await self.ask(self._connection, ("ZCOUNT", keys.due, "-inf", now_ms)))[0])
        rows: list[bytes] = [] if is_code(until, "WRONGTYPE") else self.checked(until)
        alive = sum(1 for at, _ in workers_of(rows, []).values() if at > now_ms)
        waiting = [lengths[stream] - running[stream] - parked[stream] for stream in range(4)]
        return Depth(
            dict(zip(STREAMS, waiting, strict=True)),
            dict(zip(STREAMS, running, strict=True)),
            sum(parked),
            delayed,
            due_now,
            dead,
            alive,
        )

    def _size(self, answer: Any) -> int:
        return 0 if is_code(answer, "WRONGTYPE") else int(self.checked(answer))

    async def oldest_waiting_s(self) -> dict[str, float]:
        """Return for each priority how long its oldest job that nobody has fetched has waited; 0 where none waits.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        groups = await self.ask(self._connection, *[("XINFO", "GROUPS", key) for key in self.keys.streams], ("TIME",))
        now_ms = int(groups[-1][0]) * 1000 + int(groups[-1][1]) // 1000
        ages: dict[str, float] = {}
        for stream, found in enumerate(groups[:4]):
            rows = [] if isinstance(found, ServerError) else [flat_row(row) for row in found]  # no stream yet
            last = next((row["last-delivered-id"] for row in rows if row.get("name") == GROUP.encode()), None)
            start = "-" if last is None else f"({bytes(last).decode()}"
            oldest = await self.call_one(self._connection, ("XRANGE", self.keys.streams[stream], start, "+", "COUNT", 1))
            ages[STREAMS[stream]] = (now_ms - ms_of(bytes(oldest[0][0]), now_ms)) / 1000 if oldest else 0.0
        return ages

    async def workers(self) -> dict[str, tuple[int, WorkerRow]]:
        """Return the known workers: until when each lives (ms), and its row.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        until, rows = await self.ask(
            self._connection, ("ZRANGE", self.keys.workers, 0, -1, "WITHSCORES"), ("HGETALL", self.keys.rows)
        )
        return workers_of(self.checked(until), self.checked(rows))

    async def counters(self, minutes: int) -> dict[tuple[str, str, str], int]:
        """Return what all workers counted in the last minutes: (type, priority, outcome) → number.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        now = int(time.time() // 60)
        answers = await self.ask(self._connection, *[("HGETALL", self.keys.stats(now - ago)) for ago in range(minutes)])
        totals: dict[tuple[str, str, str], int] = {}
        for answer in answers:
            flat: list[bytes] = self.checked(answer)
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                type_name, priority, outcome = name.decode(errors="replace").rsplit(" ", 2)
                totals[type_name, priority, outcome] = totals.get((type_name, priority, outcome), 0) + int(value)
        return totals

    async def dead_letters(self, n: int, before: str = "+") -> list[DeadLetter]:
        """Return up to `n` dead letters, newest first; `before` is a letter to go on from.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        end = before if before == "+" else f"({before}"
        rows = await self.call_one(self._connection, ("XREVRANGE", self.keys.dead, end, "-", "COUNT", n))
        return [_letter(row) for row in rows]

    async def dead_letter(self, letter: str) -> DeadLetter | None:
        """Return one dead letter by its place, or None.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        rows = await self.call_one(self._connection, ("XRANGE", self.keys.dead, letter, letter))
        return _letter(rows[0]) if rows else None

    async def letters_page(self, after: str, n: int) -> list[DeadLetter]:
        """Return up to `n` dead letters after a place, oldest first; `-` begins.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        start = after if after == "-" else f"({after}"
        return [_letter(row) for row in await self.call_one(self._connection, ("XRANGE", self.keys.dead, start, "+", "COUNT", n))]

    async def purge(self, letters: Sequence[str]) -> int:
        """Delete dead letters by their places; gives how many were there.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return int(await self.call_one(self._connection, ("XDEL", self.keys.dead, *letters))) if letters else 0

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

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found: list[FoundJob] = []
        score = await self.call_one(self._connection, ("ZSCORE", self.keys.due, job_id))
        if score is not None:
            found += await self._delayed([job_id.encode(), score])
        for stream, key in enumerate(self.keys.streams):
            found += await self._placed(stream, await self._entries_of(key, job_id, n))
        for letter in await self.dead_letters(n):
            if letter.id == job_id:
                place = f"dead/{letter.letter}"
                found.append(
                    FoundJob(job_id, letter.type, letter.priority, "dead", letter.reason, letter.attempts, place, letter.message)
                )
        return found

    async def _entries_of(self, key: str, job_id: str, n: int) -> list[Any]:
        name, _, entry = job_id.partition("-")
        if key.endswith(f":{name}") and is_letter(entry):  # a default id says where it is
            rows = await self.call_one(self._connection, ("XRANGE", key, entry, entry))
            if rows:
                return rows
        found: list[Any] = []
        last, left, wanted = "+", n, job_id.encode()
        while left > 0:
            rows: list[Any] = await self.call_one(self._connection, ("XREVRANGE", key, last, "-", "COUNT", min(left, PAGE)))
            found += [row for row in rows if wanted in row[1][1::2]]
            if len(rows) < min(left, PAGE):
                break
            last, left = f"({bytes(rows[-1][0]).decode()}", left - len(rows)
        return [row for row in found if summary(row[1]).id == job_id]

    async def _placed(self, stream: int, rows: Sequence[Any]) -> list[FoundJob]:
        key = self.keys.streams[stream]
        held = await self.ask(self._connection, *[("XPENDING", key, GROUP, row[0], row[0], 1) for row in rows]) if rows else []
        found: list[FoundJob] = []
        for (entry, flat), pending in zip(rows, held, strict=True):
            about = summary(flat)
            consumer = pending[0][1].decode(errors="replace") if pending and not isinstance(pending, ServerError) else ""
            state = "parked" if consumer.startswith("~") else "running" if consumer else "waiting"
            place = bytes(entry).decode()
            found.append(
                FoundJob(
                    about.id or default_id(STREAMS[stream], place),
                    about.type_name,
                    STREAMS[stream],
                    state,
                    consumer,
                    about.attempt,
                    f"{STREAMS[stream]}/{place}",
                    as_text(flat),
                )
            )
        return found

    async def _delayed(self, members: Sequence[bytes]) -> list[FoundJob]:
        names = members[::2]
        if not names:
            return []
        records: list[bytes | None] = await self.call_one(self._connection, ("HMGET", self.keys.messages, *names))
        found: list[FoundJob] = []
        for name, score, record in zip(names, members[1::2], records, strict=True):
            stream, fields = read_record(record or b"")
            about = summary(fields)
            due = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(score) / 1000))
            member = name.decode(errors="replace")
            place, message = f"due/{member}", as_text(fields)
            job_id = about.id or member
            found.append(FoundJob(job_id, about.type_name, stream, "delayed", due, about.attempt, place, message))
        return found

    async def replay(self, letter: str) -> str:
        """Move a dead letter back to its stream: gives its new entry, or `gone`, `unreadable`, `left-out`, `owned`.

        Raises:
            QueueFull: memory is full; the letter is where it was.
            StoreUnavailable: no answer or an error.
        """
        return bytes(await self.call_one(self._connection, self.command("replay", letter))).decode()


def check_server(server: Server, redis_cli: str = "redis-cli") -> list[str]:
    """Say what a worker should warn of at its start; `redis_cli` reaches this server.

    Raises:
        ConfigError: jobs would be lost on this server; the text has the command that fixes it.
    """
    version = tuple(int(part) for part in server.version.split(".")[:2] if part.isdigit())
    if version < OLDEST_SERVER:
        raise ConfigError(f"{server.name} {server.version} is too old: 7.0 or newer is needed (apt-get install redis-server)")
    if server.policy.startswith("allkeys-"):
        raise ConfigError(
            f"maxmemory-policy is {server.policy}: the server may throw away streams with jobs. "
            f"Fix it: {redis_cli} CONFIG SET maxmemory-policy noeviction"
        )
    if server.role and server.role != "master":
        raise ConfigError(f"this server is a {server.role}: jobs are written to the master; give its URL")
    warnings: list[str] = []
    if server.policy.startswith("volatile-"):
        warnings.append(f"maxmemory-policy is {server.policy}: noeviction is what a queue needs")
    if not server.appendonly:
        fix = f"{redis_cli} CONFIG SET appendonly yes"
        warnings.append(f"append-only file is off: jobs are lost when the server ends. Fix it: {fix}")
    return warnings


def flat_row(flat: Any) -> dict[str, Any]:
    """Return a reply of names and values in turn as a dictionary."""
    return {bytes(name).decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _letter(row: Sequence[Any]) -> DeadLetter:
    about = summary(row[1])
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
        message=message,
        left_out=death.left_out,
    )


def is_letter(text: str) -> bool:
    """Return whether this may be the place of a dead letter."""
    return re.fullmatch(r"\d{1,20}-\d{1,20}", text) is not None
