"""ReplayPage checks what a replay of dead letters would do, starts it, and moves letters to the trash and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final
from uuid import uuid4

import msgspec

from board.api import Answerer, Refused
from board.checks import Looked, Team, find
from board.contracts import Contract, Contracts
from board.dead import shelf_of
from board.fits import problems_of
from board.letters import Index
from board.operations import shown
from board.payloads import text_of
from board.shapes import ActAsk, Acted, ActedAll, Check, CheckAsk, GroupAsk, Operation, ReplayAsk
from board.viewer import Viewer
from board.words import counted
from runtime.control import Control
from runtime.operations import CANARY_S, HOLD_S
from runtime.store.control import ControlStore
from runtime.store.letters import STEP, Head, LetterStore

MOST: Final = 1000  # letters of a check that are looked at, as the page says
MOST_BYTES: Final = 8 << 20  # of payloads that a check reads; a guess: a tenth of a second of the server's line
MOST_S: Final = 2.0  # a guess: longer nobody waits for an answer; what was looked at by then is told
PAYLOAD_BYTES: Final = 256 * 1024  # of a payload: all of what a worker takes
VALID_S: Final = 300.0  # as the page says
CHECKS: Final = 200  # that are kept; a guess: more than viewers look at in five minutes
TRASH_RATE: Final = 1000.0  # letters of a group a second; a guess: 2 % of a server's time


class _Fixed(msgspec.Struct):
    """What a check fixed: the letters that would go back, the oldest first, and until when it may start a replay."""

    places: list[str]
    until_s: float


class ReplayPage:
    """Answers for what is done with dead letters. Owns the checks that may still start a replay, in memory alone."""

    def __init__(self, url: str, queue: str, store: LetterStore, index: Index, contracts: Contracts) -> None:
        self._url = url
        self._queue = queue
        self._store = store
        self._index = index
        self._contracts = contracts
        self._checks: dict[str, _Fixed] = {}
        self._reader = ControlStore(url, queue, "board")

    async def close(self) -> None:
        """Close the connection."""
        await self._reader.close()

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {
            "POST dead/check": self.check,
            "POST dead/replay": self.replay,
            "POST dead/trash": self.trash,
            "POST dead/trash/group": self.trash_group,
            "POST dead/restore": self.restore,
        }

    async def check(self, ask: CheckAsk, viewer: Viewer) -> Check:
        """Look at letters one by one; nothing is written. What is meant is fixed by this."""
        places = await self._meant(ask)
        looked, gone = await self._look_at(places[:MOST])
        rules, now_ms = await self._reader.rules()
        workers = (await self._reader.workers()).values()
        teams = [Team(row.types, row.app) for until_ms, row in workers if until_ms > now_ms]
        paused = [name for name, pause in rules.pauses.items() if not pause.is_over(now_ms)]
        if not viewer.can("payload"):
            looked = [msgspec.structs.replace(one, problem="") for one in looked]
        findings = find(looked, len(gone), teams, paused, now_ms)
        blocked = gone | {one.head.place for one in looked if one.head.stays}
        going = [place for place in reversed(places) if place not in blocked]
        name = uuid4().hex
        self._keep(name, going)
        return Check(
            id=name,
            total=len(places),
            looked_at=len(looked) + len(gone),
            would_run=len(going),
            findings=findings,
            until_ms=now_ms + int(VALID_S * 1000),
        )

    async def _meant(self, ask: CheckAsk) -> list[str]:
        """Return the places of the letters that are meant, the newest first."""
        if bool(ask.group) == bool(ask.places):
            raise Refused(400, "asked", "name a group, or letters by their places, not both")
        if ask.places:
            return [_entry(place) for place in dict.fromkeys(ask.places)]
        await self._index.look()
        pile = self._index.piles.get(ask.group)
        if pile is None:
            raise Refused(404, "gone", "this group is gone: none of its letters is left")
        return [letter.place for letter in pile.newest()]

    async def _look_at(self, places: Sequence[str]) -> tuple[list[Looked], set[str]]:
        looked, met, size = list[Looked](), set[str](), 0
        contracts, until_s = await self._contracts.fresh(), time.monotonic() + MOST_S
        async for part, heads in self._read(places):
            met |= set(part)
            for head in heads:
                looked.append(_looked(head, contracts.of(head.type, head.version)))
                size += head.size
            if size > MOST_BYTES or time.monotonic() > until_s:
                break
        return looked, met - {one.head.place for one in looked}

    async def _read(self, places: Sequence[str]) -> AsyncIterator[tuple[Sequence[str], list[Head]]]:
        for start in range(0, len(places), STEP):
            part = places[start : start + STEP]
            yield part, await self._store.at(part, args_bytes=PAYLOAD_BYTES)
            await asyncio.sleep(0)

    def _keep(self, name: str, places: list[str]) -> None:
        now_s = time.monotonic()
        self._checks = {one: fixed for one, fixed in self._checks.items() if fixed.until_s > now_s}
        while len(self._checks) >= CHECKS:
            del self._checks[next(iter(self._checks))]
        self._checks[name] = _Fixed(places, now_s + VALID_S)

    async def replay(self, ask: ReplayAsk, viewer: Viewer) -> Operation:
        """Start the replay of what was checked: held first, so that a stop undoes all of it."""
        if not ask.has_brake:
            raise Refused(400, "asked", "has_brake: the brake cannot be turned off")
        fixed = self._checks.get(ask.check)
        if fixed is None or fixed.until_s <= time.monotonic():
            raise Refused(409, "stale", "this check is over, or has started its replay already: check again")
        if ask.count != len(fixed.places):
            now = f"{counted(len(fixed.places), 'letter')} would go back"
            raise Refused(409, "count", f"{ask.count:,} is not how many were checked", now)
        del self._checks[ask.check]
        places = fixed.places[: ask.first] if ask.first else fixed.places
        async with Control(self._url, self._queue, by=viewer.by) as control:
            try:
                made = await control.operate_on(
                    "replay",
                    [f"dead/{place}" for place in places],
                    rate=ask.rate,
                    hold_s=HOLD_S,
                    canary_s=CANARY_S,
                    id=f"replay-{ask.check[:8]}",
                    reason=ask.reason,
                )
            except Exception:
                self._checks[ask.check] = fixed  # nothing was started that is known of: a repeat makes the same operation
                raise
        return shown(made)

    async def trash_group(self, ask: GroupAsk, viewer: Viewer) -> Operation:
        """Move all letters of a group to the trash, as an operation that is held first."""
        pile = self._index.piles.get(ask.group)
        if pile is None or pile.count != ask.count:
            now = f"{counted(pile.count, 'letter')} are in it" if pile else "none of its letters is left"
            raise Refused(409, "count", f"{ask.count:,} is not how many letters are in this group", now)
        places = [f"dead/{letter.place}" for letter in pile.newest()]
        async with Control(self._url, self._queue, by=viewer.by) as control:
            return shown(await control.operate_on("trash", places, rate=TRASH_RATE, reason=ask.reason))

    async def trash(self, ask: ActAsk, viewer: Viewer) -> ActedAll:
        """Move letters to the trash, where they are kept for a week."""
        async with Control(self._url, self._queue, by=viewer.by) as control:
            acted = await _moved(control.trash, ask, "dead", "moved to the trash")
        self._index.forget([_entry(one.place) for one in acted.results])
        return acted

    async def restore(self, ask: ActAsk, viewer: Viewer) -> ActedAll:
        """Take letters out of the trash: they are dead letters again."""
        async with Control(self._url, self._queue, by=viewer.by) as control:
            return await _moved(control.restore, ask, "trash", "a dead letter again")


def _looked(head: Head, contract: Contract | None) -> Looked:
    """Return a letter with what its contract says of its payload, which is not kept."""
    short = msgspec.structs.replace(head, args=b"")
    text = text_of(head.args, is_msgpack=head.is_msgpack)
    if head.stays or contract is None or contract.schema is None or text is None:
        return Looked(short)
    problems = problems_of(text, contract.schema)
    first = next(iter(problems), None)
    return Looked(short, not problems, f"{first.path}: {first.text}" if first and first.path else first.text if first else "")


def _entry(place: str, shelf: str = "dead") -> str:
    where, entry = shelf_of(place)
    if where != shelf:
        raise Refused(400, "asked", f"place: must be that of a letter in {shelf}, got {place[:60]!r}")
    return entry


async def _moved(move: Callable[..., Awaitable[list[str]]], ask: ActAsk, shelf: str, done: str) -> ActedAll:
    places = list(dict.fromkeys(ask.places))
    for place in places:
        _entry(place, shelf)
    answers = await move(*places, reason=ask.reason)
    gone = "it was gone: replayed, moved or deleted by somebody else"
    results = [
        Acted(
            place=place,
            is_done=word == "moved",
            answer=word,
            text=done if word == "moved" else gone if word == "gone" else answer,
        )
        for place, answer in zip(places, answers, strict=True)
        for word in [answer.partition(" ")[0]]
    ]
    n = sum(one.is_done for one in results)
    rest = f", {counted(len(results) - n, 'other')} could not be" if n < len(results) else ""
    return ActedAll(
        results=results, done=n, text=f"{counted(n, 'letter')} {done}{rest}" if n else "none of them was there any more"
    )
