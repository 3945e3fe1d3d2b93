"""Reads for a board: one look at a queue, the rows of its workers and its rules, and what was counted in minutes gone by.

Each look costs the same however deep the queue is: lengths, summaries, and one script that answers with ids alone. What a key of
another type, a row or a counter of a stranger's says is as if it were not there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from runtime.codec import MAX_DIGITS, MAX_MS, as_text
from runtime.jobs import STREAMS, ms_of
from runtime.rules import NO_RULES, Rules, parse
from runtime.schedules import MAX_STORED, MAX_STORED_BYTES, Definition, merge
from runtime.store.base import (
    DEPTH,
    GROUP,
    Store,
    WorkerRow,
    facts_in,
    holders_in,
    is_code,
    ms_in,
    pairs,
    parse_int,
    setting,
    texts,
    workers_of,
)
from runtime.store.connection import Connection
from runtime.store.control import Change, change_of
from runtime.store.inspector import is_letter
from runtime.store.resp import Command, ServerError

ANSWER_S: Final = 2.0  # a guess: longer, and a picture is called old
MOST_BYTES: Final = 64 << 20  # of one look's answers, a guess: many times what 1,000 workers and 1,000 types write
MINUTES_A_STEP: Final = 20  # keys; a guess: 2 ms of the server where a minute has 1,300 counters
COUNTERS_A_STEP: Final = 20_000  # a guess: the answer is read in some 10 ms
MAX_COUNTERS: Final = 50_000  # of a minute, a guess: what 100 strange types of each of 10 workers can make
MAX_TYPES: Final = 2_000  # of a minute, a guess: what is further is not told by type
BUCKETS: Final = 64  # powers of two, as processes count them
SAMPLES: Final = 5  # nodes of a key that the server looks at for its size, as it does by itself
MOST_SCHEDULES: Final = 5 * MAX_STORED  # a guess: of a few releases; more are a stranger's
MAX_LOTS: Final = 100  # a guess: more are not read by anybody
LOT_LOOK: Final = 20  # entries of a lot that are looked at for how long they have stood there
FAILED: Final = ("retry", "dead")  # outcomes of a run that failed
LEFT: Final = ("done", "dead", "retry", "snooze", "postponed", "duplicate")  # outcomes that take an entry out of its stream

Key = tuple[str, str]  # a type, which is empty where it is not known, and a priority
_K = TypeVar("_K")


class Minute(msgspec.Struct):
    """What all workers counted in a minute, or in several: outcomes by type and priority, run times and waits by powers of two.

    `runs[k]` counts runs of less than 2**k µs (and at least half of it), `waits[k]` waits of less than 2**k ms. `depth` has what
    waited, as a worker last wrote it in that minute.
    """

    outcomes: dict[Key, dict[str, int]] = {}
    runs: dict[Key, dict[int, int]] = {}
    waits: dict[str, dict[int, int]] = {}
    depth: dict[str, int] = {}

    def add(self, other: Minute, *, has_runs: bool = True) -> None:
        """Add what was counted in an earlier minute; a depth is no count: the one that is known stays."""
        for key, outcomes in other.outcomes.items():
            _add(self.outcomes.setdefault(key, {}), outcomes)
        for key, runs in other.runs.items() if has_runs else ():
            _add(self.runs.setdefault(key, {}), runs)
        for priority, waits in other.waits.items():
            _add(self.waits.setdefault(priority, {}), waits)
        self.depth = other.depth | self.depth

    def count(self, outcomes: Iterable[str], type_name: str | None = None, priority: str | None = None) -> int:
        """Return how many ended so, of a type or of all, of a priority or of all."""
        wanted = tuple(outcomes)
        return sum(
            counts.get(outcome, 0)
            for (of_type, of_priority), counts in self.outcomes.items()
            if type_name in (None, of_type) and priority in (None, of_priority)
            for outcome in wanted
        )


class Sample(msgspec.Struct, frozen=True):
    """A queue at one moment, by priority where it says so. Times are the server's.

    `waiting` was not fetched yet, `claimed` is with workers, `lots` waits for something; `held` has how many entries each holder
    has, worker or lot, by name and priority. `oldest_ms` is how long the first unread entry has waited, None where there is none;
    `delivered` is the id of the entry that was fetched last. `until_ms` is until when each worker lives by its last beat.
    `minutes` has the present minute and the one before. `unreadable` are keys of another type than they should be.
    """

    now_ms: int
    waiting: dict[str, int]
    claimed: dict[str, int]
    lots: dict[str, int]
    held: dict[Key, int]
    oldest_ms: dict[str, int | None]
    delivered: dict[str, str]
    delayed: int
    next_due_ms: int | None
    dead: int
    until_ms: dict[str, int]
    minutes: dict[int, Minute]
    unreadable: tuple[str, ...] = ()

    @property
    def minute(self) -> int:
        """The present minute since the epoch, as workers name their counters."""
        return max(self.minutes)

    @property
    def lengths(self) -> dict[str, int]:
        """How many entries each stream has."""
        return {name: self.waiting[name] + self.claimed[name] + self.lots[name] for name in self.waiting}

    @property
    def living(self) -> set[str]:
        """The workers whose last beat still holds."""
        return {name for name, until_ms in self.until_ms.items() if until_ms > self.now_ms}


class Memory(msgspec.Struct, frozen=True):
    """About how many bytes each stream takes, what is delayed, and what is dead; what the server uses, and may use at most (0 for
    as much as there is).
    """

    sizes: dict[str, int]
    used: int
    most: int


class People(msgspec.Struct, frozen=True):
    """The rows of all workers that are known, and the rules that people have set."""

    rows: dict[str, WorkerRow] = {}
    rules: Rules = NO_RULES


class SampleStore(Store):
    """A board's reads. Owns one connection; `asked` and `took_s` say how many commands it has sent and how long they took."""

    def __init__(self, url: str, queue: str) -> None:
        super().__init__(url, queue)
        self._connection = Connection(url, "board", ANSWER_S, most_bytes=MOST_BYTES)
        self._minutes_a_step = MINUTES_A_STEP
        self._ahead_ms = 0  # of the server's clock to ours
        self.asked: int = 0
        self.took_s: float = 0.0

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def sample(self) -> Sample:
        """Return what the queue is now, in one round trip.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        keys, minute = self.keys, int(time.time() * 1000 + self._ahead_ms) // 60_000
        lengths, groups, rest = _parts(
            await self._call(
                *[("XLEN", key) for key in keys.streams],
                *[("XPENDING", key, GROUP) for key in keys.streams],
                ("ZCARD", keys.due),
                ("ZRANGE", keys.due, 0, 0, "WITHSCORES"),
                ("XLEN", keys.dead),
                ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
                ("HGETALL", keys.stats(minute)),
                ("HGETALL", keys.stats(minute - 1)),
                self.command("oldest"),
                ("TIME",),
            ),
            len(keys.streams),
        )
        due, first, dead, until, present, before, oldest, now = rest
        now_ms = ms_in(self.checked(now))
        self._ahead_ms = now_ms - int(time.time() * 1000)
        held = {(name, of): n for of, group in zip(STREAMS, groups, strict=True) for name, n in self._holders(group)}
        claimed, lots = ({of: _held(held, of, is_lot) for of in STREAMS} for is_lot in (False, True))
        stands = dict(zip(STREAMS, pairs(self.checked(oldest)), strict=True))
        named = zip(
            (*keys.streams, *keys.streams, keys.due, keys.dead, keys.workers), (*lengths, *groups, due, dead, until), strict=False
        )
        return Sample(
            now_ms=now_ms,
            waiting={of: max(0, self._size(n) - claimed[of] - lots[of]) for of, n in zip(STREAMS, lengths, strict=True)},
            claimed=claimed,
            lots=lots,
            held=held,
            oldest_ms={of: _waited_ms(entry, now_ms) for of, (_, entry) in stands.items()},
            delivered={of: bytes(last).decode(errors="replace") for of, (last, _) in stands.items()},
            delayed=self._size(due),
            next_due_ms=_first_ms(self._flat(first)),
            dead=self._size(dead),
            until_ms={name: until_ms for name, (until_ms, _) in workers_of(self._flat(until), []).items()},
            minutes={minute: read_minute(self._flat(present)), minute - 1: read_minute(self._flat(before))},
            unreadable=tuple(dict.fromkeys(key for key, answer in named if is_code(answer, "WRONGTYPE"))),
        )

    async def people(self) -> People:
        """Return the rows of workers and the rules, in one round trip.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        rows, rules = await self._call(("HGETALL", self.keys.rows), ("HGETALL", self.keys.control))
        found = {
            name.decode(errors="replace"): WorkerRow.parse(row.decode(errors="replace")) for name, row in pairs(self._flat(rows))
        }
        return People(found, parse(pairs(self._flat(rules))))

    async def minutes(self, numbers: Sequence[int]) -> dict[int, Minute]:
        """Return what was counted in the first of these minutes since the epoch, in one round trip: in MINUTES_A_STEP of them, or
        in fewer where minutes have many counters.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        wanted = numbers[: self._minutes_a_step]
        answers = await self._call(*[("HGETALL", self.keys.stats(number)) for number in wanted])
        found: dict[int, Minute] = {}
        for number, answer in zip(wanted, answers, strict=True):
            found[number] = read_minute(self._flat(answer))
            await asyncio.sleep(0)  # a minute of many types takes some ms, and a worker's loop may be waiting
        fields = sum(len(self._flat(answer)) // 2 for answer in answers)
        self._minutes_a_step = max(1, min(MINUTES_A_STEP, COUNTERS_A_STEP * len(wanted) // max(1, fields)))
        return found

    async def memory(self) -> Memory:
        """Return about how many bytes each part of the queue takes, and what the server has, in one round trip.

        The server looks at a few nodes of each part, however large it is. What it does not tell is left out.

        Raises:
            StoreUnavailable: no answer.
        """
        keys = self.keys
        parts = [*zip(STREAMS, keys.streams, strict=True), ("delayed", keys.due), ("delayed", keys.messages), ("dead", keys.dead)]
        reads: list[Command] = [("MEMORY", "USAGE", key, "SAMPLES", SAMPLES) for _, key in parts]
        *answers, info = await self._call(*reads, ("INFO", "memory"))
        sizes: dict[str, int] = {}
        for (part, _), answer in zip(parts, answers, strict=True):
            if isinstance(answer, int):  # no error, as where an ACL does not allow it
                sizes[part] = sizes.get(part, 0) + answer
        told = facts_in(info)
        return Memory(sizes, parse_int(told.get("used_memory", "")) or 0, parse_int(told.get("maxmemory", "")) or 0)

    async def idle_in(self, holders: Sequence[Key]) -> dict[Key, int]:
        """Return how long the first entries of these holders have stood there, in ms: the longest of a few of each.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        wanted = list(holders[:MAX_LOTS])
        stream: dict[str, str] = dict(zip(STREAMS, self.keys.streams, strict=True))
        reads: list[Command] = [("XPENDING", stream[of], GROUP, "-", "+", LOT_LOOK, name) for name, of in wanted]
        found: dict[Key, list[Any]] = {}
        for key, answer in zip(wanted, await self._call(*reads) if reads else [], strict=True):
            found[key] = [] if isinstance(answer, ServerError) else answer
        return {key: max(row[2] for row in rows) for key, rows in found.items() if rows}

    async def host(self) -> dict[str, str]:
        """Return what the server says of itself, by INFO's names; `appendfsync` is among them, where it may be asked for.

        Raises:
            StoreUnavailable: no answer.
        """
        info, fsync = await self._call(("INFO",), ("CONFIG", "GET", "appendfsync"))
        return facts_in(info) | {"appendfsync": setting(fsync)}

    async def code_schedules(self) -> dict[str, Definition]:
        """Return the schedules of code that workers have written down, by name; what cannot be read is left out.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        length, *_ = await self._call(("HLEN", self.keys.cron_code))
        if not 0 < self._size(length) <= MOST_SCHEDULES:
            return {}
        told = texts(self._flat((await self._call(("HGETALL", self.keys.cron_code)))[0]))
        return merge({}, {name: text for name, text in told.items() if len(text) <= MAX_STORED_BYTES})[0]

    async def audit(self, n: int, before: str = "") -> list[tuple[str, Change]]:
        """Return up to `n` entries of the audit with their places, the newest first; `before` is a place to go on from.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        end = f"({before}" if is_letter(before) else "+"
        rows = self._flat((await self._call(("XREVRANGE", self.keys.audit, end, "-", "COUNT", n)))[0])
        return [(bytes(entry).decode(), change_of(as_text(fields or ()))) for entry, fields in rows]

    async def _call(self, *commands: Command) -> list[Any]:
        began_s = time.monotonic()
        answers = await self.ask(self._connection, *commands)
        self.asked += len(commands)
        self.took_s += time.monotonic() - began_s
        return answers

    def _holders(self, group: Any) -> list[tuple[str, int]]:
        if is_code(group, "NOGROUP") or is_code(group, "WRONGTYPE"):
            return []  # no worker has been here yet, or none can read it
        return [(name.decode(errors="replace"), n) for name, n in holders_in(self.checked(group))]

    def _size(self, answer: Any) -> int:
        return 0 if is_code(answer, "WRONGTYPE") else int(self.checked(answer))

    def _flat(self, answer: Any) -> list[Any]:
        return [] if is_code(answer, "WRONGTYPE") else self.checked(answer)


def _parts(answers: list[Any], n: int) -> tuple[list[Any], list[Any], list[Any]]:
    return answers[:n], answers[n : 2 * n], answers[2 * n :]


def _held(held: dict[Key, int], priority: str, is_lot: bool) -> int:
    return sum(n for (name, of), n in held.items() if of == priority and name.startswith("~") == is_lot)


def _waited_ms(entry: bytes, now_ms: int) -> int | None:
    return now_ms - ms_of(bytes(entry), now_ms) if entry else None


def _first_ms(flat: Sequence[bytes]) -> int | None:
    """Return the time of the first member of `due`; a sender may choose any number, also one that no clock shows."""
    return int(min(max(float(flat[1]), 0.0), float(MAX_MS))) if flat else None


# --- minutes -------------------------------------------------------------------------------------------------------------------


def read_minute(flat: Sequence[bytes]) -> Minute:
    """Return what the fields of a minute's hash say, out of the raw answer; what is no counter is left out."""
    minute = Minute({}, {}, {}, {})
    outcomes, runs, waits = minute.outcomes, minute.runs, minute.waits
    for name, value in pairs(flat[: 2 * MAX_COUNTERS]):
        field = _field(name)
        if field is None or not value.isdigit() or len(value) > MAX_DIGITS:
            continue
        key, kind, power = field
        if kind == "wait":
            waits.setdefault(key[1], {})[power] = int(value)
        elif kind == DEPTH:
            minute.depth[key[1]] = int(value)
        elif key in outcomes or len(outcomes) < MAX_TYPES:
            counts = outcomes.setdefault(key, {})
            if kind == "run":
                runs.setdefault(key, {})[power] = int(value)
            else:
                counts[kind] = int(value)
    return minute


@lru_cache(maxsize=50_000)  # a guess: the counters of a day are mostly the same ones
def _field(name: bytes) -> tuple[Key, str, int] | None:
    """Return whose counter a field is, and of what: an outcome, or a power of two of run times or waits."""
    words = name.decode(errors="replace").rsplit(" ", 2)
    if len(words) < 3 or words[1] not in STREAMS or len(name) > 200:  # types have up to 64 characters
        return None
    type_name, priority, what = words
    if not type_name and what == DEPTH:
        return ("", priority), what, 0
    for kind in ("run", "wait"):
        power = parse_int(what.removeprefix(kind)) if what.startswith(kind) else None
        if power is not None:
            return ((type_name, priority), kind, power) if power < BUCKETS else None
    return (type_name, priority), what, 0


def _add(total: dict[_K, int], more: dict[_K, int]) -> None:
    for key, n in more.items():
        total[key] = total.get(key, 0) + n
