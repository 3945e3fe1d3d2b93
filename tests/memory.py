"""What a server would hold of one queue, in memory, and the small steps of its scripts: the ground of tests/double.py."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.codec import as_text
from runtime.errors import StoreError
from runtime.jobs import FREE, STREAMS, SUSPECT, Lease
from runtime.store.base import End, Step
from runtime.store.shapes import Duplicate

BEGAN_MS = 1_700_000_000_000
SUSPECT_MS = 60_000  # as in serve.lua
WHILE_HELD = "cancelled by ann@host, while a worker had it"  # as in common.lua
REPEAT_MS, MAX_RULES = 10_000, 2000  # as in control.lua
MOST_WAITS = 10  # as in folding.lua


@dataclass
class Pending:
    """Who has an entry, worker or lot, by which count and since when."""

    consumer: str
    count: int
    since_ms: float


def order(entry: bytes) -> tuple[int, int]:
    """Return where an entry stands in its stream."""
    ms, _, number = entry.partition(b"-")
    return int(ms), int(number)


def stands_at(stream: int, entry: bytes) -> str:
    """Return an entry's place as strikes and letters name it."""
    return f"{STREAMS[stream]}/{entry.decode()}"


def value(fields: Sequence[bytes], name: bytes) -> bytes | None:
    """Return the value of a field; the last one wins."""
    return dict(zip(fields[::2], fields[1::2], strict=False)).get(name)


def first_time(now_ms: int, *texts: bytes | None) -> int:
    """Return the first of these that is a time and not ahead of now; else now."""
    return next((int(text) for text in texts if text and text.isdigit() and int(text) <= now_ms), now_ms)


def has_begun(fields: Sequence[bytes]) -> bool:
    """Return whether these are the fields of a job that has had an attempt."""
    return bool(value(fields, b"a") or value(fields, b"snoozed_at"))


def pause_in(text: str | None) -> tuple[int, int, str]:
    """Return until when and since when a pause holds, and what else it says; -1 where it is none."""
    found = re.match(r"([0-9]+) ([0-9]+) (.*)", text or "", re.DOTALL)
    return (int(found[1]), int(found[2]), found[3]) if found else (-1, -1, "")


class MemoryStore:
    """Owns what a server would hold, and the time. Its methods are the steps that scripts make: none of them awaits.

    `now_ms` stands still, but for `advance` and for a `clock` (in seconds) that is given. `refusing` are streams that answer with
    an error, `errors` entries of which moves and claims are answered with one, `cron_errors` schedules of which ticks are;
    `is_full` says that nothing new can be stored.
    """

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.lock = threading.Lock()  # the heartbeat calls from a thread
        self.run_id = "run/1"
        self.entries: list[dict[bytes, list[bytes]]] = [{}, {}, {}, {}]
        self.pending: list[dict[bytes, Pending]] = [{}, {}, {}, {}]
        self.due: dict[str, float] = {}
        self.records: dict[str, list[bytes]] = {}
        self.dead: list[dict[str, str]] = []
        self.results: dict[str, bytes] = {}
        self.workers: dict[str, float] = {}
        self.rows: dict[str, str] = {}
        self.strikes: dict[str, str] = {}
        self.isolations: dict[str, tuple[float, str]] = {}
        self.marks: dict[bytes, str] = {}
        self.overs: dict[bytes, int] = {}
        self.cron: dict[str, str] = {}
        self.cron_state: dict[str, str] = {}
        self.permits: dict[str, dict[str, float]] = {}
        self.rates: dict[str, str] = {}
        self.cron_errors: dict[str, str] = {}
        self.steps: dict[str, list[Step]] = {}  # what a test has operations answer, in order
        self.stats = Counter[str]()
        self.contracts: dict[str, bytes] = {}
        self.cron_code: dict[str, str] = {}
        self.events: list[dict[str, str]] = []
        self.remembered: dict[str, bytes] = {}
        self.progress: dict[str, bytes] = {}
        self.logs: list[dict[str, str]] = []
        self.control: dict[str, str] = {}
        self.cancels: dict[str, float] = {}
        self.audit: list[dict[str, str]] = []
        self.broken: dict[int, str] = {}
        self.refusing: dict[int, str] = {}
        self.errors: dict[bytes, str] = {}
        self.is_full = False
        self.ends = [End(0, False)] * (len(STREAMS) + 1)
        self.waiting: set[asyncio.Event] = set()
        self._read: list[tuple[int, int]] = [(0, 0)] * len(STREAMS)
        self._newest: list[tuple[int, int]] = [(0, 0)] * len(STREAMS)
        self._clock, self._offset_ms = clock, BEGAN_MS

    @property
    def now_ms(self) -> int:
        """The server's time."""
        return self._offset_ms + int(self._clock() * 1000)

    def advance(self, by_ms: int) -> None:
        """Let time pass."""
        self._offset_ms += by_ms

    def restart(self) -> None:
        """Be another server process, with all that the one before had."""
        self.run_id = f"run/{int(self.run_id.partition('/')[2]) + 1}"
        for event in self.waiting:
            event.set()

    def lose_groups(self) -> None:
        """Have the groups made again: nobody holds anything, and everything is to be read once more."""
        for stream, held in enumerate(self.pending):
            held.clear()
            self._read[stream] = (0, 0)

    # --- entries ---------------------------------------------------------------------------------------------------------------

    def add(self, stream: int, fields: Sequence[bytes], entry: bytes = b"") -> bytes:
        """Add a message as a plain XADD does."""
        newest = self._newest[stream]
        if not entry:
            now_ms = self.now_ms
            at = (now_ms, 0) if now_ms > newest[0] else (newest[0], newest[1] + 1)
            entry = b"%d-%d" % at
        self._newest[stream] = order(entry)
        self.entries[stream][entry] = list(fields)
        for event in self.waiting:
            event.set()
        return entry

    def unread(self, stream: int) -> list[bytes]:
        """Return the entries that no worker was ever given."""
        return [entry for entry in self.entries[stream] if order(entry) > self._read[stream]]

    def read(self, stream: int, consumer: str, n: int) -> list[tuple[bytes, list[bytes]]]:
        """Lease new entries."""
        entries = self.unread(stream)[:n]
        for entry in entries:
            self._read[stream] = order(entry)
            self.pending[stream][entry] = Pending(consumer, 1, self.now_ms)
        return [(entry, self.entries[stream][entry]) for entry in entries]

    def held_by(self, stream: int, consumer: str) -> list[tuple[bytes, Pending]]:
        """Return what a worker or a lot holds, in the order of the stream."""
        held = [(entry, row) for entry, row in self.pending[stream].items() if row.consumer == consumer]
        return sorted(held, key=lambda item: order(item[0]))

    def holds(self, consumer: str, lease: Lease) -> bool:
        """The fence."""
        row = self.pending[lease.stream].get(lease.entry)
        return row is not None and (row.consumer, row.count) == (consumer, lease.count)

    def is_running(self, place: str) -> bool:
        """Return whether a worker has the entry that stands there, or will soon: one had it that died."""
        name, _, entry = place.partition("/")
        row = self.pending[STREAMS.index(name)].get(entry.encode()) if name in STREAMS else None
        if row is None or not row.consumer.startswith("~"):
            return row is not None
        return row.consumer == SUSPECT and self.now_ms - row.since_ms < SUSPECT_MS

    def remove(self, stream: int, entry: bytes, count: int) -> None:
        """Let an entry leave its stream, and its strikes with it."""
        self.pending[stream].pop(entry, None)
        self.entries[stream].pop(entry, None)
        if count > 1:
            self.strikes.pop(stands_at(stream, entry), None)

    def put(self, stream: int, entry: bytes, lot: str, count: int) -> None:
        """Put an entry into a lot, or bury it; what a dead worker had becomes a suspect wherever it is given back."""
        if stands_at(stream, entry) in self.cancels:
            self.bury(stream, entry, WHILE_HELD)
            return
        self.claim(stream, entry, SUSPECT if lot == FREE and count > 0 else lot, count)

    def claim(self, stream: int, entry: bytes, holder: str, count: int, idle_ms: float = 0) -> None:
        """Put an entry into other hands; one that was deleted leaves the list instead."""
        if entry in self.entries[stream]:
            self.pending[stream][entry] = Pending(holder, count, self.now_ms - idle_ms)
        else:
            self.pending[stream].pop(entry, None)

    # --- cancels ---------------------------------------------------------------------------------------------------------------

    def cancel(self, stream: int, entry: bytes) -> str:
        """Cancel a job that is on a stream, wherever it is; say what became of it."""
        if entry not in self.entries[stream]:
            return "gone"
        row, place = self.pending[stream].get(entry), stands_at(stream, entry)
        if row is None or row.consumer.startswith("~"):
            self.bury(stream, entry, "cancelled by ann@host")
            return "cancelled"
        if place not in self.cancels:
            self.cancels[place] = self.now_ms
            self.control["v"] = str(int(self.control.get("v", "0")) + 1)
        return f"asked {row.consumer}"

    def bury(self, stream: int, entry: bytes, why: str) -> bool:
        """Put a cancelled entry among the dead letters; say whether it was there."""
        fields, place = self.entries[stream].get(entry), stands_at(stream, entry)
        if fields is not None:
            failed = (value(fields, b"a") or b"0").decode()
            notes = {"reason": "cancelled", "error": why, "stack": "", "attempts": failed, "from": place, "at": str(self.now_ms)}
            own_id = {} if value(fields, b"id") else {"id": f"{STREAMS[stream]}-{entry.decode()}"}
            self.dead.append(as_text(fields) | own_id | {f"dead_{name}": note for name, note in notes.items()})
            self.move_key(value(fields, b"key"), f"{STREAMS[stream]} {entry.decode()}", "")
        self.remove(stream, entry, 2)
        self.cancels.pop(place, None)
        return fields is not None

    # --- keys and strikes ----------------------------------------------------------------------------------------------------

    def owner_of(self, key: bytes, but_at: str) -> Sequence[bytes]:
        """Return the fields of the job that owns a key, unless it is the one at a place."""
        owner = self.marks.get(key)
        if owner is None or owner == but_at:
            return ()
        where, _, ref = owner.partition(" ")
        if where == "due":
            fields: Sequence[bytes] = self.records.get(ref, ())
        else:
            fields = self.entries[STREAMS.index(where)].get(ref.encode(), ()) if where in STREAMS else ()
        return fields if value(fields, b"key") == key else ()

    def key_is_free(self, key: bytes, place: str) -> bool:
        """Return whether a job with this key may live at a place."""
        return not self.owner_of(key, place)

    def move_key(self, key: bytes | None, before: str, after: str) -> None:
        """Let the mark of a key follow its job; away, where it has ended."""
        if key and self.marks.get(key) == before:
            if after:
                self.marks[key] = after
            else:
                del self.marks[key]

    # --- delayed messages ----------------------------------------------------------------------------------------------------

    def puts_off(self, at_ms: int, fields: Sequence[bytes]) -> bool:
        """Return whether a keyed message puts off the job of its key that waits."""
        return at_ms > 0 and value(fields, b"keep") != b"first"

    def is_spare(self, stream: int, at_ms: int, fields: Sequence[bytes], key: bytes, place: str) -> Duplicate | None:
        """Return why a keyed message is no job of its own: a copy, or folded into the one that waits; None where it is one."""
        owner = self.owner_of(key, place)
        if not owner:
            return None
        of = (value(owner, b"id") or self.marks[key].removeprefix("due ").replace(" ", "-").encode()).decode(errors="replace")[
            :128
        ]
        if not self.puts_off(at_ms, fields) or value(owner, b"type") != value(fields, b"type"):
            return Duplicate("copy", of)
        where, _, member = self.marks[key].partition(" ")
        if where != "due" or has_begun(owner):
            self.overs[key] = self.now_ms
            return None
        first_ms, own_id = first_time(self.now_ms, value(owner, b"first_at")), value(owner, b"id")
        self.due[member] = min(at_ms, first_ms + MOST_WAITS * max(0, at_ms - self.now_ms))
        self.records[member] = _record(stream, fields, own_id, first_ms, {b"a", b"snoozed_at", b"tried", b"e", b"x-origin"})
        return Duplicate("folded", of)

    def goes_ahead(self, fields: Sequence[bytes], key: bytes) -> bool:
        """Return whether a job whose time has come runs, while the one that has taken its key waits."""
        owner = self.owner_of(key, "")
        is_free = bool(owner) and self.marks[key].startswith("due ") and not has_begun(owner)
        return is_free and value(fields, b"first_at") is not None and not has_begun(fields)

    def is_outrun(self, fields: Sequence[bytes], entry: bytes, key: bytes) -> bool:
        """Return whether a newer job has taken a key and ended since a job was born."""
        born_ms = first_time(self.now_ms, value(fields, b"first_at"), entry.partition(b"-")[0])
        return bool(fields) and born_ms <= self.overs.get(key, -1)

    def delay(self, stream: int, at_ms: int, fields: Sequence[bytes], own_id: str, first_ms: int, other: str) -> str:
        """Store a message until its time; return its place."""
        member = f"{own_id}#{other}" if own_id in self.records else own_id
        self.records[member] = _record(stream, fields, own_id.encode(), first_ms, set())
        self.due[member] = at_ms
        return f"due {member}"

    def acquit(self, stream: int, entry: bytes, name: str) -> None:
        """Strike a name off the strikes of an entry."""
        at = stands_at(stream, entry)
        rest = " ".join(one for one in self.strikes.get(at, "").split() if one != name)
        if rest:
            self.strikes[at] = rest
        else:
            self.strikes.pop(at, None)

    # --- rules ---------------------------------------------------------------------------------------------------------------

    def order(self, by: str, reason: str, operations: Sequence[tuple[str, str, str]]) -> list[int]:
        """Change rules; an order of which nothing changes writes nothing."""
        after, changed, what = dict(self.control), list[int](), list[str]()
        is_told = False
        for verb, field, text in operations:
            old = after.get(field)
            is_extension = False
            match verb:
                case "set":
                    after[field] = text
                case "del":
                    after.pop(field, None)
                case "merge":
                    merged = (json.loads(old) if old else {}) | json.loads(text)
                    told = {name: merged[name] for name in sorted(merged) if merged[name] is not False}
                    after[field] = json.dumps(told, separators=(",", ":"))
                    if not told:
                        del after[field]
                case _:
                    is_extension = verb == "later" and pause_in(old)[0] > 0 and pause_in(old)[0] > self.now_ms
                    after[field] = self._paused(old, int(text), f"{by} {reason}", verb == "later")
            changed.append(int(after.get(field) != old))
            if changed[-1]:
                what.append(" ".join(filter(None, (verb, field, text))))
                is_told = is_told or not is_extension
        version = int(self.control.get("v", "0"))
        if what:
            if len(after) > MAX_RULES and len(after) > len(self.control):
                raise StoreError(f"FULL {{jobs}}:control must have at most {MAX_RULES} fields")
            version += 1
            self.control = after | {"v": str(version)}
            if is_told:
                self.audit.append({"at": str(self.now_ms), "by": by, "reason": reason, "what": "\n".join(what)})
        return [version, *changed]

    def _paused(self, old: str | None, for_ms: int, said: str, is_later: bool) -> str:
        ends, since, rest = pause_in(old)
        if is_later:
            stays = ends == 0 or (for_ms and ends >= self.now_ms + for_ms)
        else:
            is_repeat = ends > self.now_ms and ends - since == for_ms and since > self.now_ms - REPEAT_MS
            stays = (is_repeat or ends == for_ms == 0) and rest == said
        return old if old and stays else f"{self.now_ms + for_ms if for_ms else 0} {self.now_ms} {said}"

    # --- life and death ------------------------------------------------------------------------------------------------------

    def until_ms(self, name: str) -> float:
        """Return until when a worker lives."""
        return self.workers.get(name, 0)

    def guarded_for_ms(self, lease_ms: int) -> float:
        """Return for how long the guard has been on, and put it on where no beat has come for long."""
        gap_ms = self.now_ms - self.until_ms("~last")
        if gap_ms > lease_ms / 2 or gap_ms < 0:
            self.workers["~since"] = self.now_ms
        return self.now_ms - self.until_ms("~since")


def _record(stream: int, fields: Sequence[bytes], own_id: bytes | None, first_ms: int, without: set[bytes]) -> list[bytes]:
    kept = [pair for pair in zip(fields[::2], fields[1::2], strict=True) if pair[0] not in {b"id", b"at", b"first_at", *without}]
    begin = [b"stream", STREAMS[stream].encode(), *([b"id", own_id] if own_id else [])]
    return [*begin, *[word for pair in kept for word in pair], b"first_at", b"%d" % first_ms]
