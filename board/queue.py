"""QueuePage answers for the queue: what each stream holds, the lots, what is paused; and pauses and resumes."""

from __future__ import annotations

from typing import Final

from board import words
from board.api import Answerer, Refused
from board.orders import Orders
from board.picture import Picture, gate_in, unknown_in
from board.rows import PRIORITIES
from board.sampler import Sampler
from board.shapes import Changed, Level, Lot, Nothing, Pause, PauseAsk, Pri, Queue, QueueRow, Said
from board.viewer import Viewer
from runtime.jobs import FREE, STREAMS, SUSPECT, UNKNOWN
from runtime.rules import ALL, Rules
from runtime.store.flow import Flow
from runtime.store.inspector import Inspector
from runtime.store.sample import MAX_LOTS, Key, Memory

KEPT_TICKS: Final = 5  # memory and lots are read at each fifth look at most, for all viewers
LEFT_OVER: Final = "of a newer version of the runtime; anybody takes them after a lease"


class Found:
    """What is read for this page beside the picture."""

    def __init__(self, memory: Memory, flow: Flow, idle_ms: dict[Key, int]) -> None:
        self.memory = memory
        self.flow = flow
        self.idle_ms = idle_ms


class QueuePage:
    """Answers for the queue. `unknown_after_s` is how long a job of an unknown type waits, as workers are set."""

    def __init__(self, sampler: Sampler, orders: Orders, inspector: Inspector, unknown_after_s: float = 900.0) -> None:
        self._sampler = sampler
        self._orders = orders
        self._inspector = inspector
        self._unknown_after_ms = unknown_after_s * 1000
        self._found: tuple[int, Found] | None = None

    def routes(self) -> dict[str, Answerer]:
        """Return which method answers what."""
        return {"GET queue": self.queue, "POST pause": self.pause, "POST resume": self.resume}

    async def queue(self, ask: Nothing, viewer: Viewer) -> Queue:
        """Return what the queue holds, and what is held back."""
        picture = await self._sampler.picture()
        found = await self._read(picture)
        lots = [self._lot(key, n, picture, found) for key, n in lots_of(picture)[:MAX_LOTS]]
        sizes, waiting = found.memory.sizes, sum(n for _, n in lots_of(picture))
        return Queue(
            rows=[_row(name, picture, found) for name in PRIORITIES],
            lots=lots,
            pauses=pauses_of(picture.people.rules, picture.sample.now_ms),
            delayed=picture.sample.delayed,
            delayed_bytes=sizes.get("delayed"),
            dead=picture.sample.dead,
            dead_bytes=sizes.get("dead"),
            memory_bytes=found.memory.used,
            max_memory_bytes=found.memory.most,
            said=lots_said(waiting, len(lots_of(picture)) - len(lots)),
        )

    async def _read(self, picture: Picture) -> Found:
        seq = self._sampler.seq
        if self._found is None or seq - self._found[0] >= KEPT_TICKS:
            lots = [key for key, _ in lots_of(picture)]
            store = self._sampler.store
            self._found = seq, Found(await store.memory(), await self._inspector.flow(), await store.idle_in(lots))
        return self._found[1]

    def _lot(self, key: Key, n: int, picture: Picture, found: Found) -> Lot:
        name, of = key
        level, text = self._why(key, picture, found)
        pri = PRIORITIES[STREAMS.index(of)]
        return Lot(name=words.name(name), pri=pri, count=n, oldest_ms=found.idle_ms.get(key), level=level, text=text)

    def _why(self, key: Key, picture: Picture, found: Found) -> tuple[Level, str]:
        """Return what the jobs of a lot wait for."""
        name, of = key
        kind, gate = unknown_in(name), gate_in(name)
        if kind is not None:
            type_name, version = kind
            what = f"{words.name(type_name)} version {words.name(version)}" if version else words.name(type_name)
            left_ms = self._unknown_after_ms - found.idle_ms.get(key, 0)
            when = f"in about {words.duration(left_ms)}" if left_ms > 0 else "soon"
            return "act", f"wait for a worker that knows {what}; dead letters {when}"
        if gate is not None:
            type_name, group = gate
            why = found.flow.waits(name, group, of) or f"waits for its turn at {type_name}"
            return "ok", why.replace("waits", "wait", 1)
        if name == FREE:
            return "ok", "given back by a worker that stopped; anybody takes them first"
        if name == SUSPECT:
            return "look", "ran when their worker died; run apart from the others, a few at a time"
        if name == UNKNOWN:
            return "act", "wait for workers that know their types"
        return "look", LEFT_OVER

    async def pause(self, ask: PauseAsk, viewer: Viewer) -> Changed:
        """Let nothing start of what is named."""
        _check(ask)
        async with self._orders.by(viewer) as control:
            changed = await control.pause(
                type=ask.type or (), priority=ask.priority or (), all=ask.is_all, for_s=ask.for_s, reason=ask.reason
            )
        until = "until it is resumed" if ask.for_s is None else f"for {words.duration(ask.for_s * 1000)}"
        return Changed(
            is_changed=bool(changed), text=f"{_told(ask)} is paused {until}" if changed else f"{_told(ask)} was paused so before"
        )

    async def resume(self, ask: PauseAsk, viewer: Viewer) -> Changed:
        """Take a pause back."""
        _check(ask)
        async with self._orders.by(viewer) as control:
            changed = await control.resume(type=ask.type or (), priority=ask.priority or (), all=ask.is_all, reason=ask.reason)
        return Changed(is_changed=bool(changed), text=f"{_told(ask)} goes on" if changed else f"{_told(ask)} was not paused")


def _check(ask: PauseAsk) -> None:
    """Check what is named.

    Raises:
        Refused: not exactly one of the three is.
    """
    if [ask.is_all, ask.priority is not None, bool(ask.type)].count(True) != 1:
        raise Refused(400, "asked", "name one of is_all, priority and type")


def _told(ask: PauseAsk) -> str:
    return "the whole queue" if ask.is_all else words.name(ask.type or f"priority {ask.priority}")


def lots_of(picture: Picture) -> list[tuple[Key, int]]:
    """Return the lots that hold something, the largest first."""
    found = [(key, n) for key, n in picture.sample.held.items() if key[0].startswith("~")]
    return sorted(found, key=lambda item: (-item[1], item[0]))


def lots_said(waiting: int, more: int) -> Said:
    """Return how many jobs wait for something else than a lane."""
    if not waiting:
        return ["No job waits for anything but a free lane."]
    wait = "waits" if waiting == 1 else "wait"
    also = f" {words.counted(more, 'lot')} more are not shown." if more > 0 else ""
    return ["", words.counted(waiting, "job"), f" {wait} for something other than a free lane.{also}"]


def pauses_of(rules: Rules, now_ms: int) -> list[Pause]:
    """Return what is paused; a pause whose time is up is none."""
    found: list[Pause] = []
    for name, pause in sorted(rules.pauses.items()):
        if not pause.is_over(now_ms):
            kind = "all" if name == ALL else "priority" if name in STREAMS else "type"
            until_ms = pause.until_ms or None
            found.append(Pause(kind=kind, name="" if name == ALL else name, until_ms=until_ms, by=pause.by, reason=pause.reason))
    return found


def _row(name: Pri, picture: Picture, found: Found) -> QueueRow:
    sample, n_bytes = picture.sample, found.memory.sizes.get(name)
    entries = sample.lengths[name]
    pause = picture.people.rules.pauses.get(name) or picture.people.rules.pauses.get(ALL)
    return QueueRow(
        name=name,
        waiting=sample.waiting[name],
        claimed=sample.claimed[name],
        lots=sample.lots[name],
        oldest_ms=sample.oldest_ms[name],
        bytes_per_job=round(n_bytes / entries) if n_bytes is not None and entries else None,
        bytes=n_bytes,
        pause=(pause.reason or pause.by) if pause is not None and not pause.is_over(sample.now_ms) else None,
    )
