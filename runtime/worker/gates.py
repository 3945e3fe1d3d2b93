"""Gates: the types of which not every job may start at once, since they are paused or have limits, and where their jobs wait.

Pure: no I/O, and the clock is given. What may not start waits in a lot of its gate in the order of entries, and comes out through
`serve` alone, with its permit and its token. Redis has the truth; what is kept here only says whom to ask, and when.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec

from runtime.jobs import CRITICAL, GATE, OVERFLOW, STREAMS, Job, Lease, Registry
from runtime.limits import NO_LIMITS, Limits
from runtime.rules import NO_RULES, Rules
from runtime.store.shapes import EMPTY, SHORT, Serve, Served

Place = tuple[int, str]  # a stream, and the name of a lot on it

MAX_LOTS: Final = 4000  # measured: the list of so many takes 0.3 ms of Redis, each has 150 bytes; further groups share a lot
ASKED_LOTS: Final = 100  # of a gate at once: measured, 130 µs of Redis where all are shut
LOOK_S: Final = 0.25  # a guess: between two looks at a gate without permits; where they come free here, we look at once
OVERFLOW_S: Final = 1.0  # of such a lot each entry is looked at: measured, 2 ms of Redis where all groups are shut
TOKEN_S: Final = 0.01  # at most 100 looks a second for tokens: a rate of more than that has several at each
ERROR_S: Final = 1.0  # a guess: until a gate is asked again that was answered with an error
# A guess: a pause that a job here has asked for holds at once, until it is among the rules, where people can end it.
OWN_PAUSE_S: Final = 3.0
_OTHERS: Final = frozenset(range(len(STREAMS))) - {CRITICAL}


class Lot(msgspec.Struct):
    """What is known of a lot: the group of its jobs, how it stood, when to ask it next, in which turn something was put there."""

    group: str
    stands: int = 0
    next_s: float = 0.0
    turn: int = 0


class Gate:
    """Owns what is known of one type: its limits, its pause, its lots, and which permits are to be told to be free or in use."""

    def __init__(self, type_name: str) -> None:
        self.type = type_name
        self.limits: Limits = NO_LIMITS
        self.paused_until_s: float = 0.0
        self.own_pause_until_s: float = 0.0
        self.lots: dict[Place, Lot] = {}
        self.freed: list[tuple[str, str]] = []
        self.noted: list[tuple[str, str]] = []
        self.stands: int = 0
        self.next_s: float = 0.0
        self.turn: int = 0  # in which a permit came free
        self.told_s: float = -math.inf  # when trouble with it was last logged

    def __repr__(self) -> str:
        return f"<Gate {self.type}: {self.limits}, {len(self.lots)} lots>"

    def is_paused(self, now_s: float) -> bool:
        """Return whether nothing of this type may start."""
        return now_s < max(self.paused_until_s, self.own_pause_until_s)

    @property
    def has_permits(self) -> bool:
        """Whether jobs of this type hold a permit while they run."""
        return self.limits.limit is not None or self.limits.group_limit is not None

    def lot_of(self, group: str) -> str:
        """Return the name of the lot in which jobs wait, or those of a group where groups are bounded."""
        return f"{GATE}{self.type}:{group}" if group else f"{GATE}{self.type}"

    def lots_due(self, now_s: float, but_not: Collection[int]) -> list[Place]:
        """Return the lots to ask now, but for those of some streams; none while nothing can come out."""
        if now_s < self.next_s or self.is_paused(now_s):
            return []
        return [place for place, lot in self.lots.items() if lot.next_s <= now_s and place[0] not in but_not]

    def next_look_s(self, but_not: Collection[int]) -> float:
        """Return when to ask next for what waits on other streams than these; infinite where nothing does."""
        waits = min((lot.next_s for place, lot in self.lots.items() if place[0] not in but_not), default=float("inf"))
        return max(waits, self.next_s, self.paused_until_s, self.own_pause_until_s)


class Asked(msgspec.Struct, frozen=True):
    """What one gate is asked in a round trip, and in which turn."""

    gate: Gate
    serve: Serve
    turn: int


class Changed(msgspec.Struct, frozen=True):
    """What new rules have changed: types that are paused now, those whose running jobs hold permits from now on, and those that
    may give what they could not.
    """

    paused: list[bytes]
    limited: list[bytes]
    opened: list[bytes]

    @property
    def is_any(self) -> bool:
        """Whether anything has changed."""
        return bool(self.paused or self.limited or self.opened)


class Gates:
    """Owns the gates. `closed` has those that each job of their type must ask; other types pay for one look into it. `paused` are
    the streams of which nothing starts.

    Changed on the loop's thread only, without an await between reading and writing. Fetcher and flusher ask at the same time,
    down two connections: an answer says nothing of what was put into a lot, or came free, in a turn after it was asked for.
    """

    def __init__(self, registry: Registry) -> None:
        self.closed: dict[bytes, Gate] = {}
        self.paused: frozenset[int] = frozenset()
        self._code: dict[str, Limits] = {handler.contract.type: handler.limits for handler in registry.values()}
        # What other processes are told of the code's limits; never changed.
        self.told: Final = {name: limits.told for name, limits in self._code.items() if limits.has_any}
        self._limits: dict[str, Limits] = {}  # that hold now
        self._paused: set[str] = set()  # by the rules, also of types that do not run here
        self._gates: dict[str, Gate] = {}
        self._turn = 0
        self._shift = 0  # of the lots that are asked, where there are many
        self.apply(NO_RULES, 0, 0.0)

    def __repr__(self) -> str:
        return f"<Gates {[*self._gates.values()]}>"

    # --- what holds ------------------------------------------------------------------------------------------------------

    def apply(self, rules: Rules, now_ms: float, now_s: float) -> Changed:
        """Let new rules hold: limits of the code, and what was ordered in their place. `now_ms` is the server's time."""
        changed = Changed([], [], [])
        self._paused = {name for name in rules.pauses if rules.is_type_paused(name, now_ms)}
        for name, code in self._code.items():
            order = rules.limits.get(name)
            limits = self._limits[name] = order.over(code) if order is not None else code
            pause = rules.pauses[name] if name in self._paused else None
            if pause is None and not limits.has_any and name not in self._gates:
                continue
            had_permits = name in self._gates and self._gates[name].has_permits
            gate = self._gate(name)
            was_paused = gate.is_paused(now_s)
            if limits != gate.limits:
                changed.opened.append(name.encode())
                gate.limits, gate.next_s = limits, 0.0
                for lot in gate.lots.values():
                    lot.next_s = 0.0
            gate.paused_until_s = 0.0
            if pause is not None:
                gate.paused_until_s = now_s + (pause.until_ms - now_ms) / 1000 if pause.until_ms else float("inf")
                if not was_paused:
                    changed.paused.append(name.encode())
            elif was_paused and not gate.is_paused(now_s):
                changed.opened.append(name.encode())
            if gate.has_permits and not had_permits:
                changed.limited.append(name.encode())
        self._close(now_s)
        return changed

    def _gate(self, name: str) -> Gate:
        if name not in self._gates:
            self._gates[name] = gate = Gate(name)
            gate.limits = self._limits[name]
        return self._gates[name]

    def _close(self, now_s: float) -> None:
        """Close and open gates, as pauses begin and end."""
        self.closed = {
            name.encode(): gate for name, gate in self._gates.items() if gate.limits.has_any or gate.is_paused(now_s)
        }  # fmt: skip
        for name, gate in list(self._gates.items()):
            if name.encode() not in self.closed and not gate.lots:
                del self._gates[name]

    def pause(self, type_name: bytes, wait_s: float, now_s: float) -> None:
        """Pause a type here at once, as one of its jobs has asked for: what people read of it is on its way."""
        gate = self._gate(type_name.decode())
        gate.own_pause_until_s = max(gate.own_pause_until_s, now_s + min(wait_s, OWN_PAUSE_S))
        self._close(now_s)

    # --- what waits ------------------------------------------------------------------------------------------------------

    def park(self, job: Job) -> str:
        """Return the lot in which a job waits for its gate; from now on it is known that something is there.

        The gate may have been opened since the job was met: between the two its key was claimed. Then it flows out of there.
        """
        gate = self._gate(job.type.decode())
        group = job.envelope.group.decode() if gate.limits.by_group else ""
        name = gate.lot_of(group)
        if (job.stream, name) not in gate.lots and sum(len(one.lots) for one in self._gates.values()) >= MAX_LOTS:
            name, group = f"{OVERFLOW}{gate.type}", ""
        lot = gate.lots.setdefault((job.stream, name), Lot(group))
        lot.turn = self._turn = self._turn + 1
        return name

    def saw(self, found: Iterable[Place], now_s: float) -> None:
        """Note the lots that Redis lists, of the types that run here; those of a gate that is open here flow out."""
        for stream, name in found:
            if name.startswith((GATE, OVERFLOW)):
                type_name, _, group = name[len(GATE) :].partition(":")
                if type_name in self._code:
                    self._gate(type_name).lots.setdefault((stream, name), Lot(group))
        self._close(now_s)

    @property
    def limited(self) -> dict[str, tuple[bool, bool]]:
        """The types that run with permits: whether of the type, and of its groups."""
        gates = [gate for gate in self._gates.values() if gate.has_permits]
        return {gate.type: (gate.limits.limit is not None, gate.limits.group_limit is not None) for gate in gates}

    def is_type_paused(self, type_name: bytes, now_s: float) -> bool:
        """Return whether nothing of a type may start."""
        gate = self.closed.get(type_name)
        return gate is not None and gate.is_paused(now_s)

    def is_kept(self, lot: str) -> bool:
        """Return whether what waits in this lot waits for people: its type was paused, whoever knows it."""
        return lot.startswith((GATE, OVERFLOW)) and lot[len(GATE) :].partition(":")[0] in self._paused

    def note(self, jobs: Iterable[Job]) -> None:
        """Note that these run, whatever the limit: they hold a permit like others."""
        for job in jobs:
            gate = self.closed.get(job.type)
            if gate is not None and gate.has_permits:
                gate.noted.append((job.envelope.group.decode(), place_of(job)))

    def settled(self, leases: Iterable[Lease]) -> None:
        """Note that these run no more: their permits are free."""
        for lease in leases:
            gate = self.closed.get(lease.type) if isinstance(lease, Job) else None
            if gate is not None and gate.has_permits and isinstance(lease, Job):
                group = lease.envelope.group.decode()
                gate.freed.append((group, place_of(lease)))
                gate.turn = self._turn = self._turn + 1
                gate.next_s = 0.0 if gate.stands == SHORT else gate.next_s
                for stream in range(len(STREAMS)):
                    lot = gate.lots.get((stream, gate.lot_of(group if gate.limits.by_group else "")))
                    if lot is not None and lot.stands == SHORT:
                        lot.next_s = 0.0

    # --- whom to ask -----------------------------------------------------------------------------------------------------

    @property
    def is_any(self) -> bool:
        """Whether there is any gate, closed or with something that flows out."""
        return bool(self._gates)

    def due(self, now_s: float, *, critical_only: bool = False) -> list[Gate]:
        """Return the gates to be asked now, for jobs of any priority or for those of CRITICAL."""
        but_not = self.paused | _OTHERS if critical_only else self.paused
        return [gate for gate in self._gates.values() if gate.lots_due(now_s, but_not)]

    def next_look_s(self, now_s: float) -> float:
        """Return in how many seconds a gate is to be asked; infinite where nothing waits."""
        return min((gate.next_look_s(self.paused) for gate in self._gates.values()), default=float("inf")) - now_s

    def with_news(self) -> list[Gate]:
        """Return the gates of which permits are to be told to be free, or in use."""
        return [gate for gate in self._gates.values() if gate.freed or gate.noted]

    def ask(self, gate: Gate, now_s: float, n: int, n_others: int) -> Asked:
        """Return what to ask of a gate for up to `n` jobs: CRITICAL's lots first, then each in its turn."""
        lots = gate.lots_due(now_s, self.paused if n_others > 0 else self.paused | _OTHERS) if n > 0 else []
        lots.sort(key=lambda place: place[0] != CRITICAL)
        if len(lots) > ASKED_LOTS:
            first = min(sum(1 for place in lots if place[0] == CRITICAL), ASKED_LOTS - 1)
            shift = first + self._shift % (len(lots) - first)
            lots = [*lots[:first], *lots[shift:], *lots[first:shift]]
            self._shift += ASKED_LOTS - first
        asked = [(*place, gate.lots[place].group) for place in lots[:ASKED_LOTS]]
        freed, gate.freed = gate.freed, []
        noted, gate.noted = gate.noted, []
        self._turn += 1
        return Asked(gate, Serve(gate.type, gate.limits, n, n_others, asked, freed, noted), self._turn)

    def unanswered(self, asked: Sequence[Asked]) -> None:
        """Tell again, with the next question, what these have told: no answer came."""
        for ask in asked:
            ask.gate.freed += ask.serve.freed
            ask.gate.noted += ask.serve.noted

    def answered(self, ask: Asked, served: Served, now_s: float) -> None:
        """Note how it stands with a gate, and with its lots."""
        gate = ask.gate
        if served.error:
            gate.next_s = now_s + ERROR_S
            return
        if gate.turn < ask.turn and ask.serve.lots:
            gate.stands, gate.next_s = served.stands, _when(served.stands, now_s)
        for (stream, name, _), stands in zip(ask.serve.lots, served.lots, strict=True):
            lot = gate.lots.get((stream, name))
            if lot is None or lot.turn > ask.turn:
                continue
            if stands == EMPTY:
                del gate.lots[stream, name]
            elif gate.turn < ask.turn:
                lot.stands, lot.next_s = stands, _when(stands, now_s, name)


def place_of(lease: Lease) -> str:
    """Return where an entry stands, as permits name it."""
    return f"{STREAMS[lease.stream]}/{lease.entry.decode()}"


def _when(stands: int, now_s: float, lot: str = "") -> float:
    """Return when to ask again for what stands so."""
    if stands == 0:
        return 0.0
    if lot.startswith(OVERFLOW):
        return now_s + OVERFLOW_S
    return now_s + (LOOK_S if stands == SHORT else max(TOKEN_S, stands / 1000))
