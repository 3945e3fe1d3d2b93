"""Lists of jobs for people: who holds what, what waits and what is delayed, as bounded reads of a part of a queue of any depth.

What a list shows of a message is cut on the server: a list of a hundred large payloads is as small as one of small ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from runtime.jobs import STREAMS
from runtime.said import MAX_PROGRESS_BYTES, Report, read_reports
from runtime.store.base import GROUP, WorkerRow, holders_in, is_code, ms_in, pairs, workers_of
from runtime.store.inspector import Inspector, is_letter
from runtime.store.resp import ServerError

PENDING_PAGE: Final = 500  # entries of a pending list a command; measured: 0.2 ms of the server
MOST_PENDING: Final = 10_000  # of all lists together; more than anybody reads
PENDING_AT_ONCE: Final = 8  # commands in a round trip; a guess
LIST_CUT: Final = 2048  # bytes of a value that a list needs: a line of arguments, and what is noted of failures
SEARCH_CUT: Final = 16 << 10  # bytes of a value that a search looks at; a guess: nearly all payloads whole
WHOLE_CUT: Final = 2 << 20  # as much as a message may have
TYPE_CUT: Final = 256  # a guess: longer than names of types
PEEKS: Final = 50  # entries a call: measured, 0.4 ms of the server
DUE_STREAM: Final = -1


class Held(msgspec.Struct, frozen=True, gc=False):
    """An entry of a pending list: a worker's, or a lot's, whose name begins with `~`."""

    stream: int
    entry: str
    owner: str
    idle_ms: int
    deliveries: int

    @property
    def place(self) -> str:
        """Where the job stands."""
        return f"{STREAMS[self.stream]}/{self.entry}"


class Peek(msgspec.Struct, frozen=True, gc=False):
    """A job as it stands, each value cut: `size` are all its bytes. `stream` is DUE_STREAM for what is delayed, until `due_ms`;
    its fields are those that it will have.
    """

    stream: int
    entry: str
    size: int
    fields: Sequence[bytes]
    due_ms: int = 0
    priority: str = ""

    @property
    def place(self) -> str:
        """Where the job stands."""
        return f"due/{self.entry}" if self.stream == DUE_STREAM else f"{STREAMS[self.stream]}/{self.entry}"


class Survey(msgspec.Struct, frozen=True):
    """The sizes of what can be listed, and who lives, at one moment. `holders` are by stream: a name, and how many it holds."""

    now_ms: int
    lengths: list[int]
    holders: list[list[tuple[bytes, int]]]
    due: int
    workers: dict[str, tuple[int, WorkerRow]]
    isolating: frozenset[str]

    @property
    def unread(self) -> list[int]:
        """How many of each stream nobody has fetched yet."""
        return [max(0, n - sum(map(_count, held))) for n, held in zip(self.lengths, self.holders, strict=True)]

    @property
    def in_lots(self) -> int:
        """How many wait in lots."""
        return sum(count for held in self.holders for name, count in held if name.startswith(b"~"))

    @property
    def claimed(self) -> int:
        """How many workers hold."""
        return sum(count for held in self.holders for name, count in held if not name.startswith(b"~"))

    def is_alive(self, owner: str) -> bool:
        """Return whether a worker has a heartbeat that holds."""
        return owner in self.workers and self.workers[owner][0] > self.now_ms


def _count(holder: tuple[bytes, int]) -> int:
    return holder[1]


class JobLists(Inspector):
    """An Inspector that lists jobs."""

    def __init__(self, url: str, queue: str, name: str = "lists") -> None:
        super().__init__(url, queue, name)

    async def survey(self) -> Survey:
        """Return how much of everything there is, in one round trip; nothing of what is of another type than it should be.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        keys = self.keys
        answers = await self.ask(
            self._connection,
            *[("XLEN", key) for key in keys.streams],
            *[("XPENDING", key, GROUP) for key in keys.streams],
            ("ZCARD", keys.due),
            ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
            ("HGETALL", keys.rows),
            ("HKEYS", keys.isolations),
            ("TIME",),
        )
        n = len(keys.streams)
        held = [[] if _is_none(group) else holders_in(self.checked(group)) for group in answers[n : 2 * n]]
        due, until, rows, isolations, now = answers[2 * n :]
        return Survey(
            now_ms=ms_in(self.checked(now)),
            lengths=list(map(self._size, answers[:n])),
            holders=held,
            due=self._size(due),
            workers=workers_of(self._flat(until), self._flat(rows)),
            isolating=frozenset(bytes(name).decode(errors="replace") for name in self._flat(isolations)),
        )

    async def held_by(self, holders: Iterable[tuple[int, bytes]], most: int = MOST_PENDING, after: str = "-") -> list[Held]:
        """Return up to `most` entries of these holders' pending lists: of each the oldest first, behind the entry `after`.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found: list[Held] = []
        todo = [(stream, name, after if after == "-" else f"({after}") for stream, name in holders]
        while todo and len(found) < most:
            now, todo = todo[:PENDING_AT_ONCE], todo[PENDING_AT_ONCE:]
            n = min(PENDING_PAGE, most - len(found))
            reads = [("XPENDING", self.keys.streams[stream], GROUP, since, "+", n, name) for stream, name, since in now]
            for (stream, name, _), answer in zip(now, await self.ask(self._connection, *reads), strict=True):
                rows: list[Any] = [] if isinstance(answer, ServerError) else answer
                found += [_held(stream, row) for row in rows]
                if len(rows) == n:
                    todo.append((stream, name, f"({bytes(rows[-1][0]).decode()}"))
        return found[:most]

    async def claimed(self, survey: Survey) -> list[Held]:
        """Return what workers hold, MOST_PENDING at most; what those hold that are gone comes first.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        holders = [(stream, name) for stream, held in enumerate(survey.holders) for name, _ in held if not name.startswith(b"~")]
        return await self.held_by(sorted(holders, key=lambda one: survey.is_alive(one[1].decode(errors="replace"))))

    async def last_delivered(self) -> list[str]:
        """Return for each stream the entry behind which nobody has fetched anything yet; `-` where all of it is so.

        Raises:
            StoreUnavailable: no answer.
        """
        found: list[str] = []
        for answer in await self.ask(self._connection, *[("XINFO", "GROUPS", key) for key in self.keys.streams]):
            rows = [] if isinstance(answer, ServerError) else [dict(pairs(row)) for row in answer]
            last = next((row[b"last-delivered-id"] for row in rows if row.get(b"name") == GROUP.encode()), None)
            found.append("-" if last is None else bytes(last).decode())
        return found

    async def unread(
        self, stream: int, last: str, n: int, *, is_newest: bool = False, beyond: str = "", cut: int = LIST_CUT
    ) -> list[Peek]:
        """Return up to `n` jobs of a stream behind the entry `last`, the oldest or the newest first; in that order, those that
        come after the entry `beyond`.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        start, end = last if last == "-" else f"({last}", "+"
        found: list[Peek] = []
        while len(found) < n:
            if beyond:
                start, end = (start, f"({beyond}") if is_newest else (f"({beyond}", end)
            left = min(PEEKS, n - len(found))
            is_cut, *rows = await self._peek(cut, "range", stream + 1, start, end, left, int(is_newest))
            found += [_peek(stream, row) for row in rows]
            if not rows or (not is_cut and len(rows) < left):
                break
            beyond = found[-1].entry
        return found

    async def peek(self, places: Sequence[tuple[int, str]], cut: int = LIST_CUT) -> list[Peek | None]:
        """Return what stands at places, each a stream (or DUE_STREAM) and an entry or member, in their order; None where nothing
        is, or nothing that is a job.

        Raises:
            StoreUnavailable: no answer.
        """
        found: list[Peek | None] = []
        while len(found) < len(places):
            part = list(islice(places, len(found), len(found) + PEEKS))
            words = [word for stream, entry in part for word in (stream + 1, entry)]
            answer = (await self.ask(self._connection, self.command("peek", cut, "at", *words)))[0]
            if isinstance(answer, ServerError):  # a key of another type: the others are asked for one by one
                found += await self._peek_alone(part, cut) if len(part) > 1 else [None]
                continue
            _, *rows = answer
            found += [_peek_at(stream, row) for (stream, _), row in zip(part, rows, strict=False)]
        return found

    async def _peek_alone(self, places: Sequence[tuple[int, str]], cut: int) -> list[Peek | None]:
        return [one for place in places for one in await self.peek([place], cut)]

    async def _peek(self, *words: str | int) -> list[Any]:
        answer = (await self.ask(self._connection, self.command("peek", *words)))[0]
        return [0] if is_code(answer, "WRONGTYPE") else self.checked(answer)

    async def due_from(self, n: int, after: tuple[int, str] | None = None, cut: int = LIST_CUT) -> list[Peek]:
        """Return the next `n` delayed jobs by their time; `after` is the time and member to go on behind.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        rank = 0 if after is None else await self._rank_behind(*after)
        flat = self._flat((await self.ask(self._connection, ("ZRANGE", self.keys.due, rank, rank + n - 1)))[0])
        members = [(DUE_STREAM, bytes(member).decode(errors="replace")) for member in flat]
        return [one for one in await self.peek(members, cut) if one is not None]

    async def _rank_behind(self, due_ms: int, member: str) -> int:
        """Return the place in `due` behind a member; where it is gone by now, of the first that is due when it was."""
        asks = ("ZRANK", self.keys.due, member), ("ZCOUNT", self.keys.due, "-inf", f"({due_ms}")
        rank, before = await self.ask(self._connection, *asks)
        return rank + 1 if isinstance(rank, int) else self._size(before)

    async def holder_of(self, stream: int, entry: str) -> Held | None:
        """Return who holds an entry, a worker or a lot; None where nobody has fetched it, or it is gone.

        Raises:
            StoreUnavailable: no answer.
        """
        answer = (await self.ask(self._connection, ("XPENDING", self.keys.streams[stream], GROUP, entry, entry, 1)))[0]
        return None if isinstance(answer, ServerError) or not answer else _held(stream, answer[0])

    async def progress_of(self, worker: str) -> list[Report]:
        """Return what the jobs of one worker say that run now.

        Raises:
            StoreUnavailable: no answer.
        """
        answer = (await self.ask(self._connection, ("GETRANGE", self.keys.progress(worker), 0, 2 * MAX_PROGRESS_BYTES)))[0]
        return read_reports(answer)[0] if isinstance(answer, bytes) else []

    async def whole_at(self, place: str) -> Peek | None:
        """Return all of what stands at a place such as `high/12-0`, `due/order-1`, `dead/12-0` or `trash/12-0`, up to WHOLE_CUT
        bytes of each value; None where nothing does.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        name, _, entry = place.partition("/")
        shelf = {"dead": self.keys.dead, "trash": self.keys.trash}.get(name)
        if shelf is not None:
            if not is_letter(entry):
                return None
            rows = await self.call_one(self._connection, ("XRANGE", shelf, entry, entry), shelf)
            return Peek(DUE_STREAM, entry, sum(map(len, rows[0][1])), rows[0][1]) if rows else None
        where = place_of(place)
        return None if where is None else (await self.peek([where], WHOLE_CUT))[0]


def place_of(text: str) -> tuple[int, str] | None:
    """Return the stream, or DUE_STREAM, and the entry or member that a place names; None where it is no place of those."""
    name, _, entry = text.partition("/")
    if name == "due" and entry:
        return DUE_STREAM, entry
    return (STREAMS.index(name), entry) if name in STREAMS and is_letter(entry) else None


def _is_none(answer: Any) -> bool:
    return is_code(answer, "NOGROUP") or is_code(answer, "WRONGTYPE")


def _held(stream: int, row: Sequence[Any]) -> Held:
    entry, owner, idle_ms, deliveries = row
    return Held(stream, bytes(entry).decode(), bytes(owner).decode(errors="replace"), int(idle_ms), int(deliveries))


def _peek(stream: int, row: Sequence[Any]) -> Peek:
    entry, size, fields = row
    return Peek(stream, bytes(entry).decode(), int(size), fields, priority=STREAMS[stream])


def _peek_at(stream: int, row: Sequence[Any]) -> Peek | None:
    if int(row[1]) < 0:
        return None
    if stream != DUE_STREAM:
        return _peek(stream, row)
    member, size, due_ms, record = row
    priority = bytes(record[1]).decode(errors="replace") if len(record) > 1 else ""
    return Peek(stream, bytes(member).decode(errors="replace"), int(size), record[2:], int(due_ms), priority)
