"""What people are shown of flow, as one reading of a queue has it: gates, pauses, and schedules. Pure: the answers are given.

A part of each is shown, with how many more there are: a type may have thousands of groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from runtime.codec import MAX_DIGITS, MAX_MS
from runtime.errors import ConfigError
from runtime.jobs import GATE, OVERFLOW, STREAMS
from runtime.limits import NO_LIMITS, Limits, Rate, override_of, parse_rate
from runtime.rules import ALL, Rules
from runtime.schedules import merge, read_row, stored_members
from runtime.store.base import SAID_DEAD, WorkerRow, silent_ms

MAX_GATES: Final = 100  # a guess: types; each is two commands more
MAX_GROUPS: Final = 5  # a guess: the groups of a type of which most wait; each is two commands more
BEHIND_MS: Final = 60_000  # older than this a tick is late, as schedules count
MAX_SCHEDULES: Final = 1000  # as many as may stand in Redis

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
_UNITS_MS: Final = {"days": DAY_MS, "h": HOUR_MS, "min": 60_000}

Name = tuple[str, str]  # of a gate: a type, and a group of it or nothing
Waiting = Counter[tuple[str, str | None]]  # at each gate; what further groups share is of the group None


class GroupReading(msgspec.Struct):
    """How it stands with a group of a gated type; '' are the jobs without one."""

    group: str
    waiting: int
    in_use: int = 0
    next_token_ms: int | None = None


class GateReading(msgspec.Struct):
    """How it stands with a type that is paused, has limits, or has something in its lots.

    `limits` are those that hold by the rules, and by what living workers have told of their code; `ordered` names those that
    people have set. `in_use` are its permits, some of which may be of workers that have died. `next_token_ms` is 0 where a job
    may start now, and None without a rate. `groups` are those of which most wait, `more_groups` how many others have something
    waiting, beside `shared` jobs of further groups, which are not told apart. `is_known` is whether a worker that lives runs the
    type.
    """

    type: str
    waiting: int
    limits: dict[str, int | str]
    ordered: list[str]
    is_paused: bool
    is_known: bool
    in_use: int = 0
    next_token_ms: int | None = None
    groups: list[GroupReading] = []
    more_groups: int = 0
    shared: int = 0

    @property
    def is_by_group(self) -> bool:
        """Whether its groups are bounded, each by itself."""
        return not self.limits.keys().isdisjoint(("group_limit", "group_rate"))


class PauseReading(msgspec.Struct):
    """What is paused: `kind` is `type`, `priority` or `all`; `until_ms` is 0 until it is resumed. Times are the server's."""

    kind: str
    name: str
    since_ms: int
    until_ms: int
    by: str
    reason: str
    waiting: int

    @property
    def words(self) -> str:
        """What is paused, in words."""
        return {"all": "the whole queue", "priority": f"priority {self.name}"}.get(self.kind, self.name)


class ScheduleReading(msgspec.Struct):
    """How it stands with a schedule, as the workers that live tell, and what they last did.

    `last` says what became of the tick `last_ms`: fired, skipped, missed or paused. `next_ms` is None where no worker that lives
    will fire it, and `is_behind` whether that is past. `is_stored` is whether all of it stands in Redis. `heard_ms` is when a
    worker last confirmed it, 0 where none has.
    """

    name: str
    last_ms: int | None
    last: str
    next_ms: int | None
    is_paused: bool
    is_behind: bool
    is_stored: bool
    heard_ms: int


class Flow(msgspec.Struct):
    """One reading of what holds jobs back, and of what sends them by itself.

    `unreadable_rules` and `unreadable_schedules` name what is left out, with the reason. `differing` are types of which living
    workers declare different limits. `workers` are those that live, `reserved` the lanes that they keep for CRITICAL, `quiet` how
    many of them were ordered to take nothing. `unreadable_keys` are keys of gates that are of another type than they should be:
    such a gate gives nothing.
    """

    now_ms: int
    pauses: list[PauseReading]
    gates: list[GateReading]
    more_gates: int
    schedules: list[ScheduleReading]
    unreadable_rules: dict[str, str]
    unreadable_schedules: dict[str, str]
    differing: list[str]
    workers: int
    reserved: int
    quiet: int
    unreadable_keys: list[str] = []

    def gate(self, type_name: str) -> GateReading | None:
        """Return how it stands with a type."""
        return next((gate for gate in self.gates if gate.type == type_name), None)

    def waits(self, lot: str, group: str, priority: str) -> str:
        """Return in words why a job waits: what it belongs to is paused, or it is in the lot of a gate. Nothing of any other."""
        name = type_in(lot)
        for of in (ALL, priority, name):
            pause = next((pause for pause in self.pauses if pause.name == of), None)
            if pause is not None:
                return f"waits: {pause.words} is paused by {pause.by}{f' ({pause.reason})' if pause.reason else ''}"
        gate = self.gate(name)
        if gate is None:
            return f"waits for its turn at {name}" if name else ""
        of_group = next((one for one in gate.groups if one.group == group), None) if gate.is_by_group and group else None
        lacks = _lacks(name, gate, gate.limits.get("limit"), gate.limits.get("rate"))
        if not lacks and of_group is not None:
            group_limits = gate.limits.get("group_limit"), gate.limits.get("group_rate")
            lacks = _lacks(f"{name}, group {group}", of_group, *group_limits)
        return f"waits for {lacks or f'its turn at {name}'}"


def _lacks(name: str, gate: GateReading | GroupReading, limit: int | str | None, rate: int | str | None) -> str:
    """Return in words what a gate has none of; nothing where a job may start."""
    if isinstance(limit, int) and gate.in_use >= limit:
        return f"a permit of {name} ({gate.in_use:,} of {limit:,} in use)"
    return f"a token of {name} ({rate}, the next in {span(gate.next_token_ms)})" if gate.next_token_ms else ""


class Parts(msgspec.Struct, frozen=True):
    """What a reading is made of: the rules, what waits in gates by type and group, the rows of living workers, what of schedules
    stands in Redis, and the server's time.
    """

    rules: Rules
    waiting: Waiting
    workers: Collection[WorkerRow]
    definitions: Mapping[str, str]
    states: Mapping[str, str]
    now_ms: int


def span(ms: int) -> str:
    """Return for people how long a time is."""
    for unit_ms, name in ((3 * DAY_MS, "days"), (2 * HOUR_MS, "h"), (60_000, "min")):
        if ms >= unit_ms:
            return f"{ms / _UNITS_MS[name]:,.0f} {name}"
    return f"{ms / 1000:.1f} s" if ms < 10_000 else f"{ms / 1000:.0f} s"


def silence(until_ms: int, row: WorkerRow, now_ms: int) -> str:
    """Return in words that a worker is silent or dead, and what becomes of its jobs; nothing where it beats. See `silent_ms`."""
    if until_ms == SAID_DEAD:
        return "dead, its jobs are taken back now"
    for_ms, left_ms = silent_ms(until_ms, row.lease_ms, now_ms), until_ms - now_ms
    if not for_ms:
        return ""
    return f"silent for {span(for_ms)}, its jobs are taken back {f'in {span(left_ms)}' if left_ms > 0 else 'now'}"


def type_in(lot: str) -> str:
    """Return the type of which a lot is a gate's; nothing where it is no gate's."""
    return lot[len(GATE) :].partition(":")[0] if lot.startswith((GATE, OVERFLOW)) else ""


def waiting_in(holders: Iterable[tuple[str, int]]) -> Waiting:
    """Return how many wait at each gate, by the lots of all streams."""
    waiting: Waiting = Counter()
    for lot, count in holders:
        if name := type_in(lot):
            waiting[name, None if lot.startswith(OVERFLOW) else lot[len(GATE) :].partition(":")[2]] += count
    return waiting


def reading(parts: Parts, waiting_by_priority: Mapping[str, int]) -> Flow:
    """Return what is known without asking each gate: see `asked_of`."""
    rules, now_ms = parts.rules, parts.now_ms
    unreadable = merge({}, dict(parts.definitions))[1]
    code, differing = _limits_of_code(parts.workers)
    paused = {name: pause for name, pause in rules.pauses.items() if not pause.is_over(now_ms)}
    by_type: Counter[str] = Counter()
    groups: dict[str, list[GroupReading]] = {}
    for (name, group), count in parts.waiting.items():
        by_type[name] += count
        if group is not None:
            groups.setdefault(name, []).append(GroupReading(group, count))
    known = {name for row in parts.workers for name in row.types}
    names = {*by_type, *code, *rules.limits, *(name for name in paused if name not in STREAMS and name != ALL)}
    shown = sorted(names, key=lambda name: (-by_type[name], name not in paused, name))
    gates: list[GateReading] = []
    for name in shown[:MAX_GATES]:
        order, limits = rules.limits.get(name), code.get(name, NO_LIMITS)
        limits = limits if order is None else order.over(limits)
        ordered = [] if order is None else list(order.told)
        gate = GateReading(name, by_type[name], limits.told, ordered, name in paused, name in known)
        gate.shared = parts.waiting[name, None]
        gates.append(_with_groups(gate, groups.get(name, [])))
    return Flow(
        now_ms=now_ms,
        pauses=[
            PauseReading(
                kind="all" if name == ALL else "priority" if name in STREAMS else "type",
                name=name,
                since_ms=pause.since_ms,
                until_ms=pause.until_ms,
                by=pause.by,
                reason=pause.reason,
                waiting=sum(waiting_by_priority.values()) if name == ALL else waiting_by_priority.get(name, by_type[name]),
            )
            for name, pause in sorted(paused.items())
        ],
        gates=gates,
        more_gates=len(names) - len(gates),
        schedules=_schedules(parts, unreadable),
        unreadable_rules={name: why for name, _, why in (text.partition(": ") for text in rules.unreadable)},
        unreadable_schedules=unreadable,
        differing=differing,
        workers=len(parts.workers),
        reserved=sum(row.reserved for row in parts.workers),
        quiet=sum(1 for row in parts.workers if row.stage == "quiet"),
    )


def _limits_of_code(workers: Iterable[WorkerRow]) -> tuple[dict[str, Limits], list[str]]:
    """Return the limits that most of the workers that know a type declare, and the types of which they declare different ones."""
    told: dict[str, Counter[Limits]] = {}
    for row in workers:
        for name in {*row.types, *row.limits}:
            try:
                limits = override_of(row.limits.get(name, {})).over(NO_LIMITS)
            except ConfigError:
                continue  # a newer release's, or a stranger's
            told.setdefault(name, Counter())[limits] += 1
    most = {name: max(counts, key=lambda limits: (counts[limits], str(limits))) for name, counts in told.items()}
    return {name: limits for name, limits in most.items() if limits.has_any}, sorted(n for n, c in told.items() if len(c) > 1)


def _with_groups(gate: GateReading, groups: list[GroupReading]) -> GateReading:
    if gate.is_by_group or any(one.group for one in groups):  # else all wait together
        groups.sort(key=lambda one: (-one.waiting, one.group))
        gate.groups, gate.more_groups = groups[:MAX_GROUPS], max(0, len(groups) - MAX_GROUPS)
    return gate


class Asked(msgspec.Struct):
    """A gate whose permits and time of the next token are to be read, and the reading that they belong to."""

    name: str
    reading: GateReading | GroupReading
    rate: Rate | None

    def note(self, in_use: int, tat_us: int, now_ms: int) -> None:
        """Note what stands in Redis: how many permits, and the TAT as `serve` keeps it."""
        self.reading.in_use = in_use
        if self.rate is not None:
            self.reading.next_token_ms = self.rate.wait_ms(tat_us, now_ms * 1000)


def asked_of(flow: Flow, also: Iterable[Name] = ()) -> list[Asked]:
    """Return the gates that are to be read; `also` are groups to be shown beside the largest."""
    for name, group in also:
        gate = flow.gate(name)
        if gate is not None and group and gate.is_by_group and all(one.group != group for one in gate.groups):
            gate.groups.append(GroupReading(group, 0))
    asked: list[Asked] = []
    for gate in flow.gates:
        asked.append(Asked(gate.type, gate, _rate(gate.limits.get("rate"))))
        group_rate = _rate(gate.limits.get("group_rate"))
        asked += [Asked(f"{gate.type}:{one.group}", one, group_rate) for one in gate.groups if one.group]
    return asked


def _rate(text: int | str | None) -> Rate | None:
    return parse_rate(text) if isinstance(text, str) else None


# --- schedules -----------------------------------------------------------------------------------------------------------------

_WORDS: Final = {"f": "fired", "s": "skipped", "m": "missed", "p": "paused"}


def _schedules(parts: Parts, unreadable: Collection[str]) -> list[ScheduleReading]:
    """Return the schedules that workers tell of, or that stand in Redis and can be read; those that fire next come first."""
    nexts: dict[str, int] = {}
    for row in parts.workers:
        nexts |= {name: max(at_ms, nexts.get(name, 0)) for name, at_ms in row.schedules.items() if 0 <= at_ms <= MAX_MS}
    # What a worker tells may be as old as its lease.
    behind_ms = parts.now_ms - BEHIND_MS - max((row.lease_ms for row in parts.workers), default=0)
    stored = {name: stored_members(text)[1] for name, text in parts.definitions.items()}
    whole = {name for name, members in stored.items() if "type" in members}
    found: list[ScheduleReading] = []
    for name in {*nexts, *parts.states, *whole}.difference(unreadable):
        next_ms = nexts.get(name)
        one = _schedule(name, next_ms, parts.states.get(name, ""))
        one.is_paused = next_ms == 0 or bytes(stored.get(name, {}).get("paused", b"")) == b"true"
        one.is_behind, one.is_stored = next_ms is not None and 0 < next_ms < behind_ms, name in whole
        found.append(one)
    found.sort(key=lambda one: (one.next_ms is None, one.next_ms or 0, one.name))
    return found[:MAX_SCHEDULES]


def _schedule(name: str, next_ms: int | None, state: str) -> ScheduleReading:
    row = read_row(state)
    tick = row.ticks[-1] if row and row.ticks else ""
    digits = tick[: len(tick) - len(tick.lstrip("0123456789"))]
    return ScheduleReading(
        name=name,
        last_ms=int(digits) if 0 < len(digits) <= MAX_DIGITS else None,
        last=_WORDS.get(tick[len(digits) : len(digits) + 1], ""),
        next_ms=next_ms or None,
        is_paused=False,
        is_behind=False,
        is_stored=False,
        heard_ms=row.alive_ms if row else 0,
    )
