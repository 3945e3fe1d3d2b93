"""Schedules: what is sent when. Declared in code, or kept in Redis, where people may also override fields of one from code.

No clock and no I/O: which ticks are due is worked out from the last one that was decided, and the server's time. A tick is a time
that the expression names; it fires `offset_ms` later, the same in all workers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import msgspec

from runtime import codec
from runtime.cron import Times, parse
from runtime.errors import ConfigError
from runtime.jobs import TYPE_NAME, Priority, contract_of

NAME: Final = re.compile(r"[a-z0-9._-]{1,64}(?![\s\S])")
ON_TIME_MS: Final = 60_000  # a guess: the workers of a deploy or the server are back within it, and nothing was missed
MAX_CAP: Final = 100  # of late ticks that one call sends: few enough that a script's call stays short
MAX_JITTER_S: Final = 86_400  # a guess: what is spread over more than a day has another expression
MAX_STORED_BYTES: Final = 16_384  # as control.lua has it
MAX_STORED: Final = 1000  # as many as may stand in Redis
MAX_EXPIRES_S: Final = 366 * 86_400  # a guess: a year


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All of a schedule but its name: in code the arguments of `Schedule`, in Redis a JSON object with these members.

    `data` is the payload as JSON. An object without `type` overrides members of a schedule from code.
    """

    type: str
    data: msgspec.Raw
    version: int = 1
    priority: int = Priority.MEDIUM.value
    when: str = ""
    tz: str = "UTC"
    every_s: float | None = None
    missed: Literal["latest", "skip", "all"] = "latest"
    cap: int = MAX_CAP
    overlap: Literal["allow", "skip"] = "allow"
    jitter_s: float = 0.0
    expires_s: float | None = None
    paused: bool = False


class Due(msgspec.Struct, frozen=True):
    """What a schedule is to do now: ticks to fire, how many late ones are left out, and up to when that decides all.

    More than 100 are counted in part: nobody asks for their number, and counting a year of them would take seconds.
    """

    ticks: list[int]
    missed: int
    last_ms: int


@dataclass(frozen=True)
class Definition:
    """A schedule as workers run it: checked, with its times, and with the two hashes by which the store tells definitions apart.

    `when_hash` is that of what says when it fires; `whole_hash` is that of all, and of the revision that stands in Redis (0 where
    nothing does). All workers that have the same definition fire the same ticks at the same time.
    """

    name: str
    settings: Settings
    revision: int
    times: Times
    offset_ms: int
    when_hash: str
    whole_hash: str

    def due(self, last_ms: int, now_ms: int) -> Due:
        """Return what is to be done about the ticks that fire later than `last_ms`, up to now.

        What is not older than a minute fires, whatever the policy. Of what is older: `skip` none; `latest` the newest, unless a
        newer one fires; `all` the newest `cap`. While the schedule is paused nothing fires, and nothing counts as missed.
        """
        last, now = last_ms - self.offset_ms, now_ms - self.offset_ms
        edge = max(last, now - ON_TIME_MS - 1)
        ticks = self.times.between(edge, now)
        if self.settings.paused:
            newest = ticks or self.times.newest(last, edge, 0)
            return Due([], 0, newest[-1] + self.offset_ms if newest else last_ms)
        cap = {"skip": 0, "latest": 0 if ticks else 1, "all": self.settings.cap}[self.settings.missed]
        late = self.times.newest(last, edge, MAX_CAP)
        fired = [*late[len(late) - min(cap, len(late)) :], *ticks]
        newest = ticks or late
        return Due(fired, len(late) + len(ticks) - len(fired), newest[-1] + self.offset_ms if newest else last_ms)

    def fires_after(self, start_ms: int, n: int = 1) -> list[int]:
        """Return the next `n` times later than a start at which it fires, in ms."""
        return [tick + self.offset_ms for tick in self.times.next(start_ms - self.offset_ms, n)]

    def expires_ms(self, tick: int) -> int | None:
        """Return until when the job of a tick may start; None for any time."""
        return None if self.settings.expires_s is None else tick + round(self.settings.expires_s * 1000)

    def fields(self) -> list[bytes]:
        """Return the fields that the messages of all ticks share, names and values in turn."""
        head = codec.header(self.settings.type, version=self.settings.version)
        return codec.entry_fields(head, bytes(self.settings.data))


def define(name: str, settings: Settings, revision: int = 0) -> Definition:
    """Return a schedule that has been checked.

    Raises:
        ConfigError: a member is out of its range; the text names it.
    """
    try:
        return _defined(name, settings, revision)
    except ConfigError as error:
        raise ConfigError(f"schedule {name!r}: {error}") from None


def _defined(name: str, settings: Settings, revision: int) -> Definition:
    if not NAME.match(name):
        raise ConfigError("name: must be 1 to 64 of [a-z0-9._-]")
    times = parse(settings.when, settings.tz, settings.every_s)
    if not TYPE_NAME.match(settings.type.encode(errors="replace")):
        raise ConfigError(f"type {settings.type!r}: must be 1 to 64 of [a-z0-9._-] and begin with a letter or digit")
    data = bytes(settings.data)
    if len(data) > codec.MAX_DATA_BYTES:
        raise ConfigError(f"message: must be at most {codec.MAX_DATA_BYTES} bytes of JSON, got {len(data)}")
    for member, low, high in _RANGES:
        given = getattr(settings, member)
        if given is not None and not low <= given <= high:
            raise ConfigError(f"{member} {given!r}: must be between {low} and {high}")
    jitter_ms = round(settings.jitter_s * 1000)
    offset_ms = int(_hash(name), 16) % jitter_ms if jitter_ms else 0
    when_hash = _hash(times.expression, times.zone, times.every_ms, offset_ms)
    whole_hash = _hash(msgspec.json.encode(settings).decode(errors="replace"), revision)
    return Definition(name, settings, revision, times, offset_ms, when_hash, whole_hash)


_RANGES: Final = (
    ("version", 1, codec.MAX_MS),
    ("priority", 1, len(Priority)),
    ("cap", 1, MAX_CAP),
    ("jitter_s", 0, MAX_JITTER_S),
    ("expires_s", 1, MAX_EXPIRES_S),
)


def _hash(*parts: object) -> str:
    """Return 16 hexadecimal digits, the same in every process and version: 64 bits tell a few definitions apart."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


# --- from code ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """A message that is sent again and again, once per tick over all workers; a worker finds it in its modules, like handlers.

    Args:
        name: 1 to 64 of `[a-z0-9._-]`; no other schedule of the queue has it.
        when: a cron expression of 5 fields, or of 6 with seconds first, or `@hourly`, `@daily`, `@midnight`, `@weekly`,
            `@monthly`, `@yearly`; empty with `every_s`.
        message: the payload of each job, a struct of a class declared with `@contract`.
        tz: the zone of the expression, as in `Europe/Berlin`.
        every_s: in place of `when`: seconds from 1 to a year, counted from the epoch.
        missed: what becomes of ticks more than a minute old, as after an outage: `latest` fires the newest, `all` the newest
            `cap`, `skip` none.
        cap: 1 to 100; for `missed="all"`.
        overlap: `skip` leaves a tick out while the job of one before lives.
        jitter_s: seconds from 0 to a day: it fires later by a part of it that is made from the name, the same in all workers.
        expires_s: seconds after its tick, from 1 to a year, after which a job is not started any more; None for any time.
        paused: whether nothing fires.
        priority: the stream of its jobs; None for the contract's.

    Raises:
        ConfigError: an argument cannot be used; the text names it.
    """

    name: str
    when: str
    message: msgspec.Struct
    tz: str = field(default="UTC", kw_only=True)
    every_s: float | None = field(default=None, kw_only=True)
    missed: Literal["latest", "skip", "all"] = field(default="latest", kw_only=True)
    cap: int = field(default=MAX_CAP, kw_only=True)
    overlap: Literal["allow", "skip"] = field(default="allow", kw_only=True)
    jitter_s: float = field(default=0.0, kw_only=True)
    expires_s: float | None = field(default=None, kw_only=True)
    paused: bool = field(default=False, kw_only=True)
    priority: Priority | None = field(default=None, kw_only=True)
    definition: Definition = field(init=False, repr=False, compare=False)

    @property
    def queue(self) -> str:
        """The queue that the contract of its message names; empty for any."""
        return contract_of(type(self.message)).queue

    def __post_init__(self) -> None:
        if type(self.name) is not str:  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigError(f"schedule: name {self.name!r}: must be 1 to 64 of [a-z0-9._-]")
        try:
            settings = self._settings()
        except ConfigError as error:
            raise ConfigError(f"schedule {self.name!r}: {error}") from None
        object.__setattr__(self, "definition", define(self.name, settings))

    def _settings(self) -> Settings:
        try:
            contract = contract_of(type(self.message))
        except ConfigError as error:
            raise ConfigError(f"message: {error}") from None
        members = {name: getattr(self, name) for name in _FROM_CODE}
        members["priority"] = contract.priority.value if self.priority is None else self.priority
        members |= {"type": contract.type, "version": contract.version, "data": _data_of(self.message)}
        return _converted(members)


_FROM_CODE: Final = ("when", "tz", "every_s", "missed", "cap", "overlap", "jitter_s", "expires_s", "paused")


def _data_of(message: msgspec.Struct) -> msgspec.Raw:
    """Return a payload as JSON that its own class can read."""
    try:
        data = msgspec.json.encode(message)
        msgspec.json.decode(data, type=type(message))
        if codec.holds_no_number(message):
            raise ValueError("it holds NaN or infinity")
    except Exception as error:  # a payload that JSON cannot say, or code of the contract
        raise ConfigError(f"message: cannot be written as JSON and read again: {error}") from None
    return msgspec.Raw(data)


def _converted(members: dict[str, Any]) -> Settings:
    try:
        return msgspec.convert(members, Settings)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`")
        given = f" {members[name]!r}" if name in members else ""
        rule = f"must be {' or '.join(_CHOICES[name])}" if name in _CHOICES else f"{what[0].lower()}{what[1:]}"
        raise ConfigError(f"{name or 'settings'}{given}: {rule}") from None


_CHOICES: Final = {"missed": ("latest", "skip", "all"), "overlap": ("allow", "skip")}


# --- from Redis ---------------------------------------------------------------------------------------------------------------


def as_stored(members: dict[str, Any] | Settings) -> str:
    """Return a whole schedule, or what overrides members of one from code, as JSON for Redis."""
    return msgspec.json.encode(members).decode()


def told_of_code(definitions: Mapping[str, Definition]) -> dict[str, str]:
    """Return schedules of code as they would stand in Redis, for those who do not have that code; no more than may stand so."""
    told = {name: f"0 {as_stored(one.settings)}" for name, one in list(definitions.items())[:MAX_STORED]}
    return {name: text for name, text in told.items() if len(text.encode()) <= MAX_STORED_BYTES}


def stored_members(text: str) -> tuple[int, dict[str, Any]]:
    """Return revision and members of what stands in Redis of a schedule; 0 and none of what cannot be read or is not there."""
    revision, _, json = text.partition(" ")
    try:
        members = cast("dict[str, Any]", msgspec.json.decode(json, type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        members = {}
    return int(revision) if _is_ms(revision) else 0, members


class Row(msgspec.Struct, frozen=True):
    """What stands of a schedule that has fired: up to when all is decided, when a worker last confirmed it, and its last ticks.

    A tick is `<ms>f` fired, `<ms>s` skipped, `<ms>m<n>` n were left out, `<ms>p` paused, the newest last. `whole_hash` is that of
    the definition that rules.
    """

    last_ms: int
    alive_ms: int
    whole_hash: str
    ticks: list[str]


def read_row(text: str) -> Row | None:
    """Return the row that a text of `cron:state` is; None where it is none."""
    match text.split():
        case [last, _, whole, alive, _, *ticks] if all(_is_ms(word) for word in (last, alive)):
            return Row(int(last), int(alive), whole, ticks)
        case _:
            return None


def _is_ms(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= codec.MAX_DIGITS


def merge(code: dict[str, Definition], stored: dict[str, str]) -> tuple[dict[str, Definition], dict[str, str]]:
    """Return the schedules in force by name, and what in Redis cannot be read, by name with the reason: it does not run.

    `stored` has `<revision> <JSON>` by name. What overrides a schedule that this code does not have is another's: left out.
    """
    found, unreadable = dict(code), dict[str, str]()
    for name, text in stored.items():
        try:
            definition = _merged(name, code.get(name), text)
        except ConfigError as error:
            found.pop(name, None)
            unreadable[name] = str(error)
        else:
            if definition is not None:
                found[name] = definition
    return found, unreadable


def _merged(name: str, code: Definition | None, text: str) -> Definition | None:
    revision, _, json = text.partition(" ")
    if not _is_ms(revision):
        raise ConfigError(f"schedule {name!r}: must be a revision, a space and a JSON object")
    try:
        members = cast("dict[str, Any]", msgspec.json.decode(json, type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise ConfigError(f"schedule {name!r}: is no JSON object: {error}") from None
    if "type" not in members:
        if code is None:
            return None
        members = msgspec.json.decode(msgspec.json.encode(code.settings), type=dict[str, msgspec.Raw]) | members
    try:
        settings = msgspec.json.decode(msgspec.json.encode(members), type=Settings)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"schedule {name!r}: {error}") from None
    return define(name, settings, int(revision))


# --- what people see of them, and change --------------------------------------------------------------------------------------


class InForce(msgspec.Struct, frozen=True):
    """A schedule that runs: `source` is `code`, `code, overridden` or `Redis`.

    `row` is what workers have decided about it; None before one of them has seen it.
    """

    definition: Definition
    source: Literal["code", "code, overridden", "Redis"]
    row: Row | None

    @property
    def is_ruling(self) -> bool:
        """Whether workers fire this definition: neither another one nor none yet."""
        return self.row is not None and self.row.whole_hash == self.definition.whole_hash


class Elsewhere(msgspec.Struct, frozen=True):
    """A schedule of code that is not here, of which only what stands in Redis is known; `row` as in `InForce`."""

    is_paused: bool
    row: Row | None


class Schedules(msgspec.Struct, frozen=True):
    """All that is known of schedules: those in force by name, and why others in Redis cannot be read; `now_ms` is the server's.

    `code` are those of the code without what overrides them; `stored` is what stands in Redis.
    """

    in_force: dict[str, InForce]
    unreadable: dict[str, str]
    elsewhere: dict[str, Elsewhere]
    code: dict[str, Definition]
    stored: dict[str, str]
    now_ms: int

    def named(self, name: str) -> Definition:
        """Return a schedule in force.

        Raises:
            ConfigError: there is none of this name, or it cannot be read.
        """
        if name in self.unreadable:
            raise ConfigError(f"{self.unreadable[name]}; hint: `cron remove {name}`")
        if name in self.elsewhere:
            hint = "hint: name the module that has it (--handlers)"
            raise ConfigError(f"schedule {name!r} is of code that is not here, and can only be paused and resumed; {hint}")
        if name not in self.in_force:
            known = ", ".join(sorted(self.in_force)) or "none"
            raise ConfigError(f"no schedule {name!r}; there are {known}; hint: those of code are known where its modules are")
        return self.in_force[name].definition

    def operation(self, name: str, members: dict[str, Any] | None) -> tuple[str, str, str]:
        """Return the operation that writes these members of a schedule in place of those that stand there; None for none.

        Of one from code an empty object stays: its revision makes a new definition of it, which rules at once.
        """
        revision, before = stored_members(self.stored.get(name, ""))
        if members is None and name not in self.code:
            return ("drop", f"cron:{name}", str(revision))
        text = as_stored(members or {})
        after = stored_members(f"0 {text}")[1]
        changed = sorted(member for member in {*after, *before} if _raw(after, member) != _raw(before, member))
        told = [f"paused={_raw(after, member).decode()}" if member == "paused" else member for member in changed]
        value = f"{revision} {','.join(told) or 'nothing'} {text}"
        if (size := len(value.encode())) > MAX_STORED_BYTES:
            most = f"must be at most {MAX_STORED_BYTES:,} bytes in Redis, got {size:,}"
            raise ConfigError(f"schedule {name!r}: {most}; hint: one in a module has no such bound")
        return ("put", f"cron:{name}", value)

    def paused(self, name: str, is_paused: bool) -> dict[str, Any]:
        """Return the members that stand in Redis of a schedule that is to be paused or resumed; none where it is so already.

        Raises:
            ConfigError: there is no such schedule.
        """
        is_elsewhere = name in self.elsewhere
        if is_paused == (self.elsewhere[name].is_paused if is_elsewhere else self.named(name).settings.paused):
            return {}
        return stored_members(self.stored.get(name, ""))[1] | {"paused": is_paused}

    def edited(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the members that stand in Redis with some that were given; `when` and `every_s` take each other's place.

        Raises:
            ConfigError: there is no such schedule, or with these members it could not run; the text names the member.
        """
        definition = self.named(name)
        if "when" in given and "every_s" not in given:
            given = {**given, "every_s": None}
        elif "every_s" in given and "when" not in given:
            given = {**given, "when": ""}
        try:
            settings = _converted(msgspec.structs.asdict(definition.settings) | given)
        except ConfigError as error:
            raise ConfigError(f"schedule {name!r}: {error}") from None
        define(name, settings)
        return stored_members(self.stored.get(name, ""))[1] | {member: getattr(settings, member) for member in given}


def schedules_in(code: dict[str, Definition], stored: dict[str, str], rows: dict[str, str], now_ms: int) -> Schedules:
    """Return what is known of the schedules of this code and of those that stand in Redis."""
    found, unreadable = merge(code, stored)
    in_force = {
        name: InForce(definition, _source(name, code, stored), read_row(rows.get(name, ""))) for name, definition in found.items()
    }
    others = sorted(name for name in {*stored, *rows} - set(found) - set(unreadable))
    elsewhere = {name: _elsewhere(stored.get(name, ""), rows.get(name, "")) for name in others}
    return Schedules(in_force, unreadable, elsewhere, code, stored, now_ms)


def message_members(definition: Definition, message: msgspec.Struct) -> dict[str, Any]:
    """Return the members that make a schedule send this payload.

    Raises:
        ConfigError: it is of another type than the schedule's, or cannot be written as JSON.
    """
    try:
        contract = contract_of(type(message))
    except ConfigError as error:
        raise ConfigError(f"message: {error}") from None
    if contract.type != definition.settings.type:
        raise ConfigError(f"message: must be a job of type {definition.settings.type!r}, got one of {contract.type!r}")
    version = {"version": contract.version} if contract.version != definition.settings.version else {}
    return {"data": _data_of(message), **version}


def whole_members(definition: Definition) -> dict[str, Any]:
    """Return the members of a schedule as one that stands in Redis alone: what is sent, and what differs from the defaults."""
    settings = msgspec.structs.asdict(definition.settings)
    defaults = msgspec.structs.asdict(Settings(type="", data=msgspec.Raw(b"")))
    kept = {"type", "data", "version", "priority"}
    return {member: value for member, value in settings.items() if member in kept or value != defaults[member]}


def _elsewhere(stored: str, row: str) -> Elsewhere:
    return Elsewhere(_raw(stored_members(stored)[1], "paused") == b"true", read_row(row))


def _source(name: str, code: dict[str, Definition], stored: dict[str, str]) -> Literal["code", "code, overridden", "Redis"]:
    members = stored_members(stored.get(name, ""))[1]
    return "Redis" if "type" in members or name not in code else "code, overridden" if members else "code"


def _raw(members: dict[str, Any], name: str) -> bytes:
    return bytes(members[name]) if name in members else b""
