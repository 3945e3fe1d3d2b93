"""Reads for people: backlog, dead letters, counters, and the state of the server.

Plain values out; a worker's path never uses them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from runtime.errors import ConfigError, StoreAway
from runtime.jobs import STREAMS
from runtime.streams import GROUP, Door, is_code, workers_of
from runtime.wire import ServerError, Wire

OLDEST_SERVER: Final = (7, 0)
_NOTES: Final = ("dead_reason", "dead_error", "dead_stack", "dead_attempts", "dead_from", "dead_at")


class Depth(msgspec.Struct):
    """The queue at one moment. `waiting` and `running` by priority; `parked` waits in rooms."""

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


class Server(msgspec.Struct):
    """What matters of the server's settings."""

    name: str
    version: str
    policy: str
    appendonly: bool
    role: str


class Lookups(Door):
    """A person's verbs. Owns one connection."""

    def __init__(self, url: str, queue: str, name: str = "lookups") -> None:
        super().__init__(url, queue)
        self._wire = Wire(url, name)

    async def close(self) -> None:
        """Close the connection."""
        await self._wire.close()

    async def server(self) -> Server:
        """Give what the server is and how it is set.

        Raises:
            StoreAway: no answer.
        """
        info, policy, append = await self.ask(
            self._wire, ("INFO",), ("CONFIG", "GET", "maxmemory-policy"), ("CONFIG", "GET", "appendonly")
        )
        found = dict(re.findall(r"^([a-z_]+):(.*?)\r?$", bytes(self.sound(info)).decode(errors="replace"), re.MULTILINE))
        name = "valkey" if "valkey_version" in found else "redis"
        return Server(
            name,
            found.get("valkey_version") or found.get("redis_version", ""),
            found.get("maxmemory_policy") or _setting(policy),
            _setting(append) == "yes" or found.get("aof_enabled") == "1",
            found.get("role", ""),
        )

    async def depth(self) -> Depth:
        """Give the size of everything in the queue, in one round trip.

        Raises:
            StoreAway: no answer or an error.
        """
        keys = self.keys
        answers = await self.ask(
            self._wire,
            *[("XLEN", key) for key in keys.streams],
            *[("XPENDING", key, GROUP) for key in keys.streams],
            ("ZCARD", keys.due),
            ("XLEN", keys.dead),
            ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
            ("TIME",),
        )
        lengths = [self.sound(answer) for answer in answers[:4]]
        running, parked = [0] * 4, [0] * 4
        for stream, pending in enumerate(answers[4:8]):
            if is_code(pending, "NOGROUP"):
                continue  # nobody has worked here yet
            for name, count in self.sound(pending)[3] or ():
                (parked if name.startswith(b"~") else running)[stream] += int(count)
        delayed, dead, until, now = (self.sound(answer) for answer in answers[8:])
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        due_now = await self.one(self._wire, ("ZCOUNT", keys.due, "-inf", now_ms))
        alive = sum(1 for at, _ in workers_of(until, []).values() if at > now_ms)
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

    async def counters(self, minutes: int) -> dict[tuple[str, str, str], int]:
        """Give what all workers counted in the last minutes: (type, priority, outcome) → number.

        Raises:
            StoreAway: no answer or an error.
        """
        now = int(time.time() // 60)
        answers = await self.ask(self._wire, *[("HGETALL", self.keys.stats(now - ago)) for ago in range(minutes)])
        totals: dict[tuple[str, str, str], int] = {}
        for answer in answers:
            flat: list[bytes] = self.sound(answer)
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                type_name, priority, outcome = name.decode(errors="replace").rsplit(" ", 2)
                totals[type_name, priority, outcome] = totals.get((type_name, priority, outcome), 0) + int(value)
        return totals

    async def dead_letters(self, n: int, before: str = "+") -> list[DeadLetter]:
        """Give up to `n` dead letters, newest first; `before` is a letter to go on from.

        Raises:
            StoreAway: no answer or an error.
        """
        end = before if before == "+" else f"({before}"
        rows = await self.one(self._wire, ("XREVRANGE", self.keys.dead, end, "-", "COUNT", n))
        return [_letter(row) for row in rows]

    async def dead_letter(self, letter: str) -> DeadLetter | None:
        """Give one dead letter by its place, or None.

        Raises:
            StoreAway: no answer or an error.
        """
        rows = await self.one(self._wire, ("XRANGE", self.keys.dead, letter, letter))
        return _letter(rows[0]) if rows else None

    async def replay(self, letter: str) -> str:
        """Move a dead letter back to its stream: gives its new entry, or `gone`, `unreadable`, `owned`.

        Raises:
            QueueFull: memory is full; the letter is where it was.
            StoreAway: no answer or an error.
        """
        return bytes(await self.one(self._wire, self.command("replay", letter))).decode()


def check_server(server: Server) -> list[str]:
    """Say what a worker should warn of at its start.

    Raises:
        ConfigError: jobs would be lost on this server; the text has the command that mends it.
    """
    version = tuple(int(part) for part in server.version.split(".")[:2] if part.isdigit())
    if version < OLDEST_SERVER:
        raise ConfigError(f"{server.name} {server.version} is too old: 7.0 or newer is needed (apt-get install redis-server)")
    if server.policy.startswith("allkeys-"):
        raise ConfigError(
            f"maxmemory-policy is {server.policy}: the server may throw away streams with jobs. "
            "Mend it: redis-cli CONFIG SET maxmemory-policy noeviction"
        )
    if server.role and server.role != "master":
        raise ConfigError(f"this server is a {server.role}: jobs are written to the master; give its URL")
    warnings: list[str] = []
    if server.policy.startswith("volatile-"):
        warnings.append(f"maxmemory-policy is {server.policy}: noeviction is what a queue needs")
    if not server.appendonly:
        warnings.append(
            "append-only file is off: jobs are lost when the server ends. Mend it: redis-cli CONFIG SET appendonly yes"
        )
    return warnings


def _setting(answer: Any) -> str:
    if isinstance(answer, ServerError) or not answer:
        return ""  # not allowed to ask: INFO has told what it tells
    return bytes(cast("Sequence[bytes]", answer)[1]).decode()


def _letter(row: Sequence[Any]) -> DeadLetter:
    flat: list[bytes] = row[1]
    fields = {
        name.decode(errors="replace"): value.decode(errors="backslashreplace")
        for name, value in zip(flat[::2], flat[1::2], strict=True)
    }
    notes = {name: fields.pop(name, "") for name in _NOTES}
    return DeadLetter(
        letter=bytes(row[0]).decode(),
        type=fields.get("type", ""),
        id=fields.get("id", ""),
        reason=notes["dead_reason"],
        error=notes["dead_error"],
        attempts=int(notes["dead_attempts"]) if notes["dead_attempts"].isdigit() else 0,
        priority=notes["dead_from"].partition("/")[0],
        died_at=int(notes["dead_at"]) / 1000 if notes["dead_at"].isdigit() else 0.0,
        stack=notes["dead_stack"],
        message=fields,
    )


def is_letter(text: str) -> bool:
    """Say whether this may be the place of a dead letter."""
    return re.fullmatch(r"\d{1,20}-\d{1,20}", text) is not None


__all__ = ["DeadLetter", "Depth", "Lookups", "Server", "StoreAway", "check_server", "is_letter"]
