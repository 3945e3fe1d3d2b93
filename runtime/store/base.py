"""What all of the store shares: names of keys, the scripts, and `Store`, which runs them and makes vanished groups again."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final, cast

import msgspec

from runtime.codec import DEAD_FIELDS, MAX_DIGITS, MAX_FIELDS, MAX_MS, OWN_FIELDS
from runtime.errors import ConfigError, QueueFull, StoreError
from runtime.jobs import FREE, GATE, OVERFLOW, STREAMS, SUSPECT, check_queue
from runtime.rules import VERSION, Rules, parse
from runtime.store.connection import Connection
from runtime.store.resp import Command, ServerError, Tail
from runtime.store.urls import redis_cli

GROUP: Final = "workers"
# The newest entries of each stream, and letters, among which a job is looked for; a guess: well under a second.
LOOK_AT: Final = 10_000
MAX_EVENTS: Final = 20_000  # runs that have ended; a guess: an hour of a few workers, some 5 MB
EVENTS_LIFE_MS: Final = 7 * 24 * 3_600_000  # since the last was written; a guess: who looks later has the letters
MAX_DEATHS: Final = 500  # parts of what is told of workers that died; a guess: some 200 kB
DEPTH: Final = "depth"  # how many wait, among the counters of a minute; no count, but what a sweep has last seen
TOLD_JOBS: Final = 50  # of those that a worker runs, in its row; a guess: some 3 kB of a busy one
MAX_BY_BYTES: Final = 1000  # of who cancelled a job, and why; a guess: what is longer is a stranger's
BROKEN_S: Final = 3.0  # a guess: between two looks at a stream that cannot be read
AHEAD_MS: Final = 3_600_000  # an id so far ahead is no clock's: a sender chose it. Clocks that are off, are off by seconds
# Of a lease without a beat: then a worker is called silent. A beat is due each third of it, give or take a fifth: one that is
# well never is, and a dead one is within two beats.
SILENT_PART: Final = 0.6
SAID_DEAD: Final = 0  # until when a worker lives whose process was seen to end
MAX_LEASE_MS: Final = 3_600_000  # a guess: a row that claims a longer lease is a stranger's, or would keep a dead worker's jobs
# What this version knows of what stands in Redis; one more with each release that an older worker could not share a queue with.
LAYOUT: Final = 1
Operation = tuple[str, str, str]  # verb, field and value of a change of rules, as control.lua has them
KEY_LIFE_MS: Final = 7 * 24 * 3_600_000  # a guess: nothing that holds a key stands still for longer


# --- keys and scripts ------------------------------------------------------------------------------------------------------

# What scripts are given as KEYS behind the streams, in this order: the name by which they know a key, and its own.
_PLACES: Final = {
    "DUE": "due",
    "MSG": "msg",
    "DEAD": "dead",
    "WORKERS": "workers",
    "ROWS": "workers:rows",
    "STRIKES": "strikes",
    "ISOLATIONS": "wards",
    "CONTROL": "control",
    "AUDIT": "audit",
    "CRON": "cron",
    "CRON_STATE": "cron:state",
    "CANCELS": "cancels",
}


# How the names of keys begin of which there are many: each is made by a method of `Keys`, or in a script.
_FAMILIES: Final = (
    *("permits:", "rate:", "cancels:", "results:", "progress:", "marks:", "operation:", "stats:"),
    *("seen:k:", "seen:c:", "seen:o:"),
)


class Keys:
    """The names of a queue's keys; all share its hash tag, so that every script stays on one slot."""

    due: str
    messages: str
    dead: str
    workers: str
    rows: str
    strikes: str
    isolations: str
    control: str
    audit: str
    cron: str
    cron_state: str
    cancels: str

    def __init__(self, queue: str) -> None:
        check_queue(queue)
        self.queue: str = queue
        self.prefix: str = f"{{{queue}}}:"
        self.streams: tuple[str, ...] = tuple(self.prefix + name for name in STREAMS)
        places = tuple(self.prefix + name for name in _PLACES.values())
        self.due, self.messages, self.dead, self.workers, self.rows, self.strikes, self.isolations, *flow = places
        self.control, self.audit, self.cron, self.cron_state, self.cancels = flow
        self.scripted: tuple[str, ...] = (*self.streams, *places)
        self.layout: str = self.prefix + "layout"
        self.results: str = self.prefix + "results"
        self.logs: str = self.prefix + "logs"
        self.events: str = self.prefix + "events"
        self.deaths: str = self.prefix + "deaths"
        self.contracts: str = self.prefix + "contracts"
        self.cron_code: str = self.prefix + "cron:code"
        self.operations: str = self.prefix + "operations"
        self.trash: str = self.prefix + "trash"
        self.probe: str = self.prefix + "probe"
        self._all = {*self.scripted, *(key for key in vars(self).values() if isinstance(key, str))} - {self.prefix}

    def is_ours(self, name: str) -> bool:
        """Return whether a key that begins as this queue's do is one of them, or one of them that was set aside."""
        rest = name.removeprefix(self.prefix).removesuffix(":was")
        stream, _, closed = rest.partition(":closed")
        is_closed = stream in (*STREAMS, "dead") and (not closed or closed[0] == ":")
        return f"{self.prefix}{rest}" in self._all or rest.startswith(_FAMILIES) or is_closed

    def permits(self, gate: str) -> str:
        """Return the key of the permits in use of a gate: a type, or a type, a colon and a group."""
        return f"{self.prefix}permits:{gate}"

    def rate(self, gate: str) -> str:
        """Return the key of the time at which a gate gives its next token."""
        return f"{self.prefix}rate:{gate}"

    def asked_by(self, place: bytes) -> bytes:
        """Return the key of who cancelled the job at a place of a stream while a worker had it, and why."""
        return f"{self.prefix}cancels:".encode() + place

    def result(self, job_id: str) -> str:
        """Return the key of what a job has answered."""
        return f"{self.prefix}results:{job_id}"

    def progress(self, consumer: str) -> str:
        """Return the key of how far the jobs are that a worker runs."""
        return f"{self.prefix}progress:{consumer}"

    def key_mark(self, key: str) -> str:
        """Return the key of the place at which the job stands that has a key of its own."""
        return f"{self.prefix}seen:k:{key}"

    def marks(self, work: str) -> str:
        """Return the key of what the attempts of one piece of work remember."""
        return f"{self.prefix}marks:{work}"

    def operation(self, name: str) -> str:
        """Return the key of an operation over many jobs."""
        return f"{self.prefix}operation:{name}"

    def chosen(self, name: str, token: str) -> str:
        """Return the key of the places that an operation is about, where they were chosen one by one; `token` is unique."""
        return f"{self.prefix}operation:{name}:{token}"

    def stats(self, minute: int) -> str:
        """Return the key of the counters of one minute since the epoch."""
        return f"{self.prefix}stats:{minute}"


class Script(msgspec.Struct, frozen=True):
    """A script's text, and the name under which the server remembers it."""

    text: str
    sha: str


_LUA: Final = files("runtime.store") / "lua"
# What stands before a script beside `common`: functions that some scripts share, and no scripts themselves.
_SHARED: Final = {
    "beat": ("guard",),
    "reclaim": ("guard", "deaths"),
    "reap": ("deaths",),
    "forget": ("deaths",),
    "control": ("audit",),
    "steer": ("audit", "steering"),
    "send": ("folding",),
    "admit": ("folding",),
    "handoff": ("folding",),
    "replay": ("replaying",),
    "operate": ("audit", "operations"),
    "trash": ("audit", "trashing"),
    "amend": ("audit", "folding", "trashing"),
    "count": ("operations",),
    "step": ("operations", "replaying", "steering", "trashing"),
    "letters": ("replaying",),
}


_BARE: Final = ("keep",)  # sent as text: nothing stands before it, and no server need remember it


@cache
def constants() -> str:
    """Return the Lua that gives scripts the constants and names of keys that they share with Python."""
    words: dict[str, object] = {
        "GROUP": GROUP,
        "STREAMS": STREAMS,
        "FREE": FREE,
        "SUSPECT": SUSPECT,
        "GATE": GATE,
        "OVERFLOW": OVERFLOW,
        "NOTES": tuple(name.decode() for name in DEAD_FIELDS),
        "MAX_FIELDS": MAX_FIELDS + OWN_FIELDS,
        "MAX_LEASE_MS": MAX_LEASE_MS,
        "MAX_MS": MAX_MS,
        "KEY_LIFE_MS": KEY_LIFE_MS,
        "MAX_EVENTS": MAX_EVENTS,
        "MAX_DEATHS": MAX_DEATHS,
        "EVENTS_LIFE_MS": EVENTS_LIFE_MS,
    }
    lines = [f"local {name} = {_in_lua(value)}" for name, value in words.items()]
    lines += [f"local {name} = KEYS[{at}]" for at, name in enumerate(_PLACES, len(STREAMS) + 1)]
    lines.append(f"local PREFIX = string.sub(KEYS[1], 1, -{len(STREAMS[0]) + 1})")
    return "\n".join(lines)


def _in_lua(value: object) -> str:
    """Return a constant as Lua writes it; texts are names of ours, without quotes and backslashes."""
    if isinstance(value, tuple):
        return f"{{{', '.join(map(_in_lua, cast('tuple[object, ...]', value)))}}}"
    return str(value) if isinstance(value, int) else f"'{value}'"


@cache
def text_of(name: str) -> str:
    """Return a file of Lua as it is."""
    return (_LUA / f"{name}.lua").read_text("utf-8")


@cache
def script(name: str) -> Script:
    """Return the script of one verb: between its flags and its body stands what all scripts share."""
    flags, _, body = text_of(name).partition("\n")
    text = "\n".join([flags, constants(), *map(text_of, ("common", *_SHARED.get(name, ()))), body])
    return Script(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 -- the server's own naming, no secret


# --- the store -------------------------------------------------------------------------------------------------------------


class End(msgspec.Struct, frozen=True):
    """Where a stream ends: how far its last id lies ahead of the server's time, and whether jobs set aside wait to be moved."""

    ahead_ms: int
    is_aside: bool

    @property
    def is_closed(self) -> bool:
        """Return whether a sender's id far ahead has closed this stream: no later id is possible."""
        return self.ahead_ms > AHEAD_MS

    @property
    def troubles(self) -> list[str]:
        """What is wrong with it, for people; it may be closed again while there is something set aside."""
        found: list[str] = []
        if self.is_closed:
            days = self.ahead_ms / 86_400_000
            found.append(f"is closed by an id that lies {days:,.1f} days ahead: a sender chose it")
        if self.is_aside:
            found.append("has entries set aside that are not moved yet")
        return found


class Step(msgspec.Struct, frozen=True):
    """What became of a step of an operation: the state of that, in how many ms the next one is due (-1: none by itself), how many
    letters or jobs were looked at and how many acted on. Before its time a step does nothing.
    """

    state: str
    wait_ms: int
    looked: int = 0
    acted: int = 0


class Store:
    """Runs scripts and commands for one queue, and makes vanished groups again.

    Owns `broken`: the streams that cannot be read, since their key is of another type, with what they answered. They are left
    out, and looked at again every few seconds; the others go on.
    """

    def __init__(self, url: str, queue: str) -> None:
        self.url = url
        self.keys: Keys = Keys(queue)
        self.broken: dict[int, str] = {}
        self._groupless: set[int] = set()
        self._looked_s = 0.0
        self._must_heal = False

    def command(self, name: str, *args: str | bytes | int | float | Tail) -> Command:
        """Return the call of a script on this queue's keys."""
        return ("EVALSHA", script(name).sha, len(self.keys.scripted), *self.keys.scripted, *args)

    async def ask(self, connection: Connection, *commands: Command, wait_s: float = 0.0, run_id: str = "") -> list[Any]:
        """Call, and load scripts that the server has forgotten. Error answers stay among the answers.

        Raises:
            StoreUnavailable: no answer.
        """
        await self._heal(connection)
        answers = await connection.call(*commands, wait_s=wait_s, run_id=run_id)
        forgotten = [at for at, answer in enumerate(answers) if is_code(answer, "NOSCRIPT")]
        if forgotten:
            await self.load(connection)
            again = await connection.call(*[commands[at] for at in forgotten], wait_s=wait_s, run_id=run_id)
            for at, answer in zip(forgotten, again, strict=True):
                answers[at] = answer
        return answers

    async def call_one(self, connection: Connection, command: Command, key: str = "") -> Any:
        """Call one command and return its answer; an error names the key, where one is given.

        Raises:
            StoreUnavailable: no answer, or an error.
        """
        return self.checked((await self.ask(connection, command))[0], key)

    def checked(self, answer: Any, key: str = "") -> Any:
        """Return the answer, unless it is an error: then the store is as good as away, whatever the error says.

        Raises:
            QueueFull: memory is full.
            StoreError: any other error.
        """
        if not isinstance(answer, ServerError):
            return answer
        if answer.code == "NOGROUP" or "NOGROUP" in answer:
            self._must_heal = True
        if "OOM" in answer:
            raise QueueFull(f"Redis is full: {answer}")
        raise StoreError(f"Redis answered: {answer} ({key})" if key else f"Redis answered: {answer}")

    async def workers_on(self, connection: Connection) -> dict[str, tuple[int, WorkerRow]]:
        """Return the known workers: until when each lives (ms), and its row.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        rows = ("ZRANGE", self.keys.workers, 0, -1, "WITHSCORES"), ("HGETALL", self.keys.rows)
        until, told = await self.ask(connection, *rows)
        return workers_of(self.checked(until), self.checked(told))

    def order_command(self, by: str, reason: str, operations: Iterable[Operation]) -> Command:
        """Return the call that changes rules; see control.lua."""
        return self.command("control", by, reason, *[word for operation in operations for word in operation])

    def version_command(self) -> Command:
        """Return the call that reads how often the rules were changed."""
        return ("HGET", self.keys.control, VERSION)

    async def rules_on(self, connection: Connection) -> tuple[Rules, int]:
        """Return the rules that are in force, and the server's time in ms.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return self.rules_in(*await self.ask(connection, *self.rules_commands()))

    def rules_commands(self) -> tuple[Command, Command]:
        """Return the calls that read the rules, and the server's time."""
        return ("HGETALL", self.keys.control), ("TIME",)

    def rules_in(self, fields: Any, now: Any) -> tuple[Rules, int]:
        """Return what those calls have answered.

        Raises:
            StoreError: one of them with an error.
        """
        return parse(pairs(self.checked(fields, self.keys.control))), ms_in(self.checked(now))

    async def step_on(self, connection: Connection, operation: str) -> Step:
        """Make the next step of an operation over many jobs, where it is time for it.

        May be repeated, also by others: what a step has moved is not there any more, and where it stands is written with it.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        state, wait_ms, looked, acted = await self.call_one(connection, self.command("step", operation))
        return Step(bytes(state).decode(errors="replace"), wait_ms, looked, acted)

    async def ends_on(self, connection: Connection) -> list[End]:
        """Return where each stream ends; the dead letters last.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        _, *ends = await self.call_one(connection, self.command("ends"))
        return [End(int(ahead), bool(aside)) for ahead, aside in pairs(ends)]

    async def prepare(self, connection: Connection) -> None:
        """Make the consumer group on all streams, at 0: made at `$` it would skip what is there.

        With memory full the server refuses this even where the group exists. Then we go on: what exists can be worked off, and
        what does not is asked for again. A stream in whose place a key of another type stands is left out from then on.

        Raises:
            StoreUnavailable: no answer, or no stream can be read.
        """
        self._looked_s = time.monotonic()
        made = await connection.call(*[("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM") for key in self.keys.streams])
        broken: dict[int, str] = {}
        for stream, answer in enumerate(made):
            if is_code(answer, "WRONGTYPE") or (is_code(answer, "OOM") and stream in self._groupless | self.broken.keys()):
                broken[stream] = str(answer)
            elif not (is_code(answer, "BUSYGROUP") or is_code(answer, "OOM")):
                self.checked(answer)
        self.broken = broken
        self._groupless.clear()
        if len(broken) == len(self.keys.streams):
            raise StoreError(f"Redis answered: {broken[0]} ({', '.join(self.keys.streams)})")

    async def agree_on_layout(self, connection: Connection) -> None:
        """Write the layout version of the queue where it has none or a lower one, unless it is newer than this. May be repeated.

        Raises:
            ConfigError: a newer version wrote this queue, or what stands there is no version: then this one touches nothing.
            StoreUnavailable: no answer, or an error.
        """
        write, read = ("SET", self.keys.layout, LAYOUT, "NX"), ("GET", self.keys.layout)
        _, layout = await self.ask(connection, write, read)  # an error of the write (memory is full) is no matter: none is 1
        trouble = layout_trouble(self.keys.layout, layout)
        if trouble is not None:
            what, fix = trouble
            raise ConfigError(f"{what}; hint: {fix.replace('redis-cli', redis_cli(self.url))}")
        if isinstance(layout, bytes) and (parse_int(layout.decode()) or 0) < LAYOUT:
            await self.ask(connection, ("SET", self.keys.layout, LAYOUT))  # older releases never lower it
        if not is_code(layout, "NOPERM"):  # a user who may not ask: workers of releases before this one never did
            self.checked(layout)

    async def _heal(self, connection: Connection) -> None:
        """Make the groups again where an answer said that one is missing, and look again at what is broken."""
        if self._must_heal or (self.broken and time.monotonic() > self._looked_s + BROKEN_S):
            self._must_heal = False
            await self.prepare(connection)

    async def load(self, connection: Connection) -> None:
        """Load all scripts.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        parts = {"common", *_BARE}.union(*_SHARED.values())
        names = [path.name[:-4] for path in _LUA.iterdir() if path.name.endswith(".lua")]
        scripts = [script(name) for name in names if name not in parts]
        for answer in await connection.call(*[("SCRIPT", "LOAD", known.text) for known in scripts]):
            self.checked(answer)


# --- small shapes --------------------------------------------------------------------------------------------------------


def is_code(answer: Any, code: str) -> bool:
    """Return whether an answer is the error with this first word."""
    return isinstance(answer, ServerError) and answer.code == code


class WorkerRow(msgspec.Struct, frozen=True):
    """What a worker says of itself with each heartbeat; in `workers:rows` as its lease in ms, a space and a JSON object.

    A lease of 0 is one that the row does not say. `types` has the newest version of each type that the worker can run, `limits`
    those that its code declares, by type, and `schedules` when each fires next, in the server's ms, or 0 where it is paused.
    `blocked` has how often handlers of each type have blocked the loop since the worker's start, and under the empty name what is
    nobody's for certain; `blocked_ms` the longest of each, `where` the file and line at which one was last seen to do it.

    `since` is when the worker started, by its own clock, `version` the runtime's and `app` that of what it runs, `rss` its
    resident bytes, `lag` the longest turn of its loop in the last minute in ms. `jobs` are those that have run for longest, at
    most TOLD_JOBS: each its place, such as `high/12-0`, when it started by the worker's clock, and its type. `unknown_s` is for
    how long it lets jobs wait whose type no worker knows.
    """

    lease_ms: int = 0
    host: str = ""
    pid: int = 0
    lanes: int = 0
    held: int = 0
    running: dict[str, int] = {}
    stage: str = ""
    types: dict[str, int] = {}
    reserved: int = 0
    limits: dict[str, dict[str, int | str]] = {}
    schedules: dict[str, int] = {}
    blocked: dict[str, int] = {}
    blocked_ms: dict[str, int] = {}
    since: int = 0
    version: str = ""
    app: str = ""
    rss: int = 0
    lag: int = 0
    where: dict[str, str] = {}
    jobs: list[tuple[str, int, str]] = []
    unknown_s: int = 0

    @property
    def lease_s(self) -> float:
        """The lease in seconds."""
        return self.lease_ms / 1000

    def __str__(self) -> str:
        told = {name: getattr(self, name) for name in _TOLD}
        return f"{self.lease_ms} {json.dumps(told, separators=(',', ':'))}"

    @classmethod
    def parse(cls, text: str) -> WorkerRow:
        """Return the row that a text is; what of it cannot be read is as if it were not there: it may be a stranger's."""
        lease, _, details = text.partition(" ")
        try:
            found = json.loads(details or "{}")
        except (ValueError, RecursionError):
            found = None
        told = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        kept = {name: _as_kind(name, kind, told[name]) for name, kind in _TOLD.items() if type(told.get(name)) is kind}
        return cls(min(parse_int(lease) or 0, MAX_LEASE_MS), **kept)


# The members of the JSON object, and what each must be.
_TOLD: Final[dict[str, type]] = {
    "host": str,
    "pid": int,
    "lanes": int,
    "held": int,
    "running": dict,
    "stage": str,
    "types": dict,
    "reserved": int,
    "limits": dict,
    "schedules": dict,
    "blocked": dict,
    "blocked_ms": dict,
    "since": int,
    "version": str,
    "app": str,
    "rss": int,
    "lag": int,
    "where": dict,
    "jobs": list,
    "unknown_s": int,
}
_VALUES: Final = {"limits": dict, "where": str}  # what the values of tables are; those of others are numbers


def _as_kind(name: str, kind: type, value: Any) -> Any:
    """Return a member of a row; of a table those values that are of the kind that belongs there, of a list what tells of jobs."""
    if kind is int:
        return value if 0 <= value <= MAX_MS else 0
    if kind is list:
        return [tuple(told) for told in cast("list[Any]", value)[:TOLD_JOBS] if _is_told_job(told)]
    if kind is not dict:
        return value
    wanted = _VALUES.get(name, int)
    kept: dict[str, Any] = {of: told for of, told in value.items() if isinstance(told, wanted)}
    return kept


def _is_told_job(told: Any) -> bool:
    match told:
        case [str(), int() as since_ms, str()]:
            return 0 <= since_ms <= MAX_MS
        case _:
            return False


def workers_of(until: Sequence[bytes], rows: Sequence[bytes]) -> dict[str, tuple[int, WorkerRow]]:
    """Return until when each worker lives (ms) and its row, out of the raw ZRANGE WITHSCORES and HGETALL.

    Members that begin with `~` are the guard's own. `stands_until` of the scripts reads the times so too.
    """
    known = {name: row.decode(errors="replace") for name, row in pairs(rows)}
    return {
        name.decode(errors="replace"): (int(min(max(float(score), 0.0), float(MAX_MS))), WorkerRow.parse(known.get(name, "")))
        for name, score in pairs(until)
        if not name.startswith(b"~")
    }


def silent_ms(until_ms: int, lease_ms: int, now_ms: int) -> int:
    """Return for how long a worker has been silent, its last beat having said until when it lives; 0 while it beats.

    All are of the server's clock. Of a row that does not say its lease, only that it is over can be told.
    """
    ago_ms = now_ms - until_ms + lease_ms
    return ago_ms if ago_ms > SILENT_PART * lease_ms else 0


def by_life(workers: Mapping[str, tuple[int, WorkerRow]], now_ms: int) -> tuple[dict[str, WorkerRow], dict[str, WorkerRow]]:
    """Return the rows of the workers that beat, and of those that are silent."""
    told: tuple[dict[str, WorkerRow], dict[str, WorkerRow]] = {}, {}
    for name, (until_ms, row) in workers.items():
        told[silent_ms(until_ms, row.lease_ms, now_ms) > 0][name] = row
    return told


def layout_trouble(key: str, answer: Any) -> tuple[str, str] | None:
    """Return what is wrong with a queue's layout version, as GET answered it, and what fixes that; None where it is known.

    A queue without one was last used by a release that did not write it: that is layout 1.
    """
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else ""
    version = parse_int(text) or 0
    if answer is None or 1 <= version <= LAYOUT:
        return None
    if version > LAYOUT:
        what = f"this queue's layout is {version}, written by a newer version; this one knows layouts up to {LAYOUT}"
        return what, "upgrade backend-jobs where this worker is installed"
    fix = f"redis-cli RENAME '{key}' '{key}:was'"
    if is_code(answer, "WRONGTYPE"):
        return f"{key} must be a text, and is of another type", fix
    return (f"{key} must be a number of 1 or more, not {text[:40]!r}", fix) if isinstance(answer, bytes) else None


def facts_in(info: Any) -> dict[str, str]:
    """Return the names and values of an answer to INFO; none of an error."""
    text = bytes(info).decode(errors="replace") if isinstance(info, bytes) else ""
    return dict(re.findall(r"^([a-z_]+):(.*?)\r?$", text, re.MULTILINE))


UNCOUNTED: Final = "mem_not_counted_for_evict"  # in INFO: buffers of replicas and of the file, for which nothing is refused


class Room(msgspec.Struct, frozen=True):
    """How much memory the server uses, and may use at most: 0 for as much as there is. What it does not tell is 0."""

    used: int = 0
    most: int = 0
    evicts: bool = False

    @property
    def is_full(self) -> bool:
        """Whether writes that need memory are refused."""
        return 0 < self.most <= self.used and not self.evicts


def room_in(info: Any) -> Room:
    """Return what an answer to INFO says of memory."""
    told = facts_in(info)
    used, uncounted, most = (parse_int(told.get(name, "")) or 0 for name in ("used_memory", UNCOUNTED, "maxmemory"))
    return Room(used - uncounted, most, told.get("maxmemory_policy", "noeviction") != "noeviction")


def setting(answer: Any) -> str:
    """Return the value that CONFIG GET answered, or nothing where asking is not allowed."""
    if isinstance(answer, ServerError) or not answer:
        return ""  # not allowed to ask: INFO has told what it tells
    return bytes(cast("Sequence[bytes]", answer)[1]).decode()


def parse_int(text: str) -> int | None:
    """Return the whole number that a text is, up to `MAX_MS`, or None: what stands in Redis may be a stranger's."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None
    return None if number is None or number > MAX_MS else number


def texts(flat: Sequence[bytes]) -> dict[str, str]:
    """Return a hash as texts, out of the raw HGETALL."""
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in pairs(flat)}


def pairs(flat: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    """Return as pairs the names and values that stand in turn in an answer."""
    return zip(flat[::2], flat[1::2], strict=True)


def holders_in(summary: Sequence[Any]) -> list[tuple[bytes, int]]:
    """Return which consumers hold how many entries, out of XPENDING's answer for a whole group; a lot is a consumer too."""
    *_, holders = summary
    return [(name, int(count)) for name, count in holders or ()]


def ms_in(time: Sequence[bytes]) -> int:
    """Return the answer of TIME in ms."""
    seconds, micros = time
    return int(seconds) * 1000 + int(micros) // 1000
