"""Index holds in memory what dead letters say of themselves in short, by what they died of.

They are read in the background, the newest first, and not while nobody looks. All of it can be read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from board.fingerprint import Cause, cause_of
from board.redact import redact_text, visible
from board.shapes import Group
from board.verdicts import Dead
from runtime.errors import StoreUnavailable
from runtime.store.letters import Head, LetterStore
from runtime.worker.log import ThrottledLog

K = TypeVar("K")
MAX_LETTERS: Final = 200_000  # as the page says: 100 MB, measured at 500 bytes each
STEP_WAIT_S: Final = 0.04  # between two steps of up to a millisecond of the server: 25 ms of it a second, while letters are read
LOOKED_S: Final = 10.0  # a guess: so long after the last look reading goes on
FRESH_S: Final = 1.0  # a guess: what was read within this time is new enough for all viewers
MAX_GROUPS: Final = 500  # a guess: more than people read; what died of yet another cause is in one group
MOST_STEPS: Final = 10  # of new letters in one look, a guess: what is left comes with the next one
FAR_BEHIND: Final = 5_000  # a guess: where more died since the last look, it is quicker to begin anew
REST_S: Final = 5.0  # a guess: between two walks, where letters go all the time
BUCKET_MS: Final = 300_000  # a twelfth of an hour: "in the last hour" is true within 5 minutes
HOURS: Final = 24
REST: Final = Cause("rest", "", f"all that died of yet another cause than those {MAX_GROUPS}", "")
_TEXTS: Final = ("type", "reason", "error", "app", "priority")
_PER_HOUR: Final = 3_600_000 // BUCKET_MS
GROWS: Final = 5  # letters in an hour; a guess: fewer are no trend


class Known(msgspec.Struct, gc=False):
    """A letter in the index."""

    place: str
    id: str
    type: str
    reason: str
    error: str
    cause: Cause
    app: str
    attempts: int
    at_ms: int
    priority: str
    size: int
    is_here: bool = True


class Pile:
    """Letters that have something in common, the oldest first. Those that went are marked, and leave when half of it is gone."""

    def __init__(self) -> None:
        self.count = 0
        self.apps: Counter[str] = Counter()
        self.trace = ""
        self._letters: deque[Known] = deque()
        self._buckets: Counter[int] = Counter()

    def add(self, letter: Known, *, is_newest: bool) -> None:
        """Put a letter at one of the ends."""
        (self._letters.append if is_newest else self._letters.appendleft)(letter)
        self.count += 1
        self.apps[letter.app] += 1
        self._buckets[letter.at_ms // BUCKET_MS] += 1

    def drop(self, letter: Known) -> None:
        """Forget a letter of it, which is marked already."""
        self.count -= 1
        _less(self.apps, letter.app)
        _less(self._buckets, letter.at_ms // BUCKET_MS)
        if self.count < len(self._letters) // 2:
            self._letters = deque(one for one in self._letters if one.is_here)

    def newest(self) -> Iterator[Known]:
        """Yield its letters, the newest first. Nothing may be added meanwhile."""
        return (one for one in reversed(self._letters) if one.is_here)

    def ends(self) -> tuple[Known, Known]:
        """Return the oldest and the newest; there must be one."""
        while not self._letters[0].is_here:
            self._letters.popleft()
        while not self._letters[-1].is_here:
            self._letters.pop()
        return self._letters[0], self._letters[-1]

    def hours(self, now_ms: int) -> list[int]:
        """Return how many died in each of the last 24 hours, the newest last."""
        last, found = now_ms // BUCKET_MS, [0] * HOURS
        few = self._buckets if len(self._buckets) < HOURS * _PER_HOUR else range(last - HOURS * _PER_HOUR + 1, last + 1)
        for bucket in few:
            ago = max(0, last - bucket) // _PER_HOUR
            if ago < HOURS:
                found[HOURS - 1 - ago] += self._buckets[bucket]
        return found


class Index:
    """Owns what is known of the dead letters of one queue, and the task that reads them while somebody looks."""

    def __init__(self, store: LetterStore, step_wait_s: float = STEP_WAIT_S) -> None:
        self.total = 0  # letters that there are, as last counted
        self.all = Pile()
        self.piles: dict[str, Pile] = {}
        self.is_complete = False
        self._letters: dict[str, Known] = {}
        self._of_type: Counter[str] = Counter()
        self._store = store
        self._step_wait_s = step_wait_s
        self._newest = ""
        self._beyond = 0  # letters that are older than MAX_LETTERS others
        self._lock = asyncio.Lock()
        self._fresh_s = self._looked_s = self._walked_s = -1e9
        self._walk: asyncio.Task[None] | None = None
        self._glance: asyncio.Task[None] | None = None
        self._changes = 0
        self._groups: list[Group] = []
        self._groups_of = (-1, 0)
        self._log = ThrottledLog()

    async def close(self) -> None:
        """Stop reading."""
        running = [task for task in (self._glance, self._walk) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def get(self, place: str) -> Known | None:
        """Return a letter that is known."""
        return self._letters.get(place)

    def of(self, fp: str) -> Pile | None:
        """Return the letters of a group; all where no group is named."""
        return self.piles.get(fp) if fp else self.all

    def groups(self, now_ms: int) -> list[Group]:
        """Return what the letters that were looked at died of: that of which one died last comes first."""
        if self._groups_of != (self._changes, now_ms // BUCKET_MS):
            found = [_group(fp, pile, now_ms) for fp, pile in self.piles.items()]
            self._groups = sorted(found, key=lambda group: -group.last_ms)
            self._groups_of = self._changes, now_ms // BUCKET_MS
        return self._groups

    def newest(self, n: int, *, has_messages: bool) -> list[Group]:
        """Return the groups in which something died last."""
        return [for_reader(group, has_messages=has_messages) for group in self.groups(_now_ms())[:n]]

    def told(self) -> Dead:
        """Return how many groups there are, and how many grow. Who asks looks: what is new is read for the next time."""
        self._glance_at_it()
        groups = self.groups(_now_ms())
        growing = [group for group in groups if group.grows]
        return Dead(len(groups), len(growing), growing[0].fp if growing else "")

    def by_type(self) -> Mapping[str, int] | None:
        """Return how many there are of each type; None until all were looked at. Who asks looks, as with `told`."""
        self._glance_at_it()
        return self._of_type if self.is_complete else None

    @property
    def is_grouped(self) -> bool:
        """Whether all letters were looked at."""
        return self.all.count >= self.total

    def _glance_at_it(self) -> None:
        if self._glance is None or self._glance.done():
            self._glance = asyncio.create_task(self._look_quietly(), name="letters")

    async def _look_quietly(self) -> None:
        with contextlib.suppress(StoreUnavailable):  # the page says that Redis is away; what is known stays
            await self.look()

    async def look(self) -> None:
        """Read what came since the last look, and let the rest be read in the background. Costs the same whoever else looks.

        Raises:
            StoreUnavailable: no answer or an error; what is known stays.
        """
        self._looked_s = time.monotonic()
        async with self._lock:
            if time.monotonic() < self._fresh_s:
                return
            await self._read_new()
            self._fresh_s = time.monotonic() + FRESH_S
        is_idle = self._walk is None or self._walk.done()
        if is_idle and not self.is_right and time.monotonic() - self._walked_s >= REST_S:
            self._walk = asyncio.create_task(self._read_all(), name="letters")

    @property
    def is_right(self) -> bool:
        """Whether as many letters are known as there are: none went that is still held for there."""
        return self.is_complete and self.total == self.all.count + self._beyond

    def forget(self, places: Sequence[str]) -> None:
        """Drop letters that were found to be gone."""
        for place in places:
            letter = self._letters.pop(place, None)
            if letter:
                self._changes += 1
                letter.is_here = False
                self.all.drop(letter)
                _less(self._of_type, letter.type)
                pile = self.piles[letter.cause.fp]
                pile.drop(letter)
                if not pile.count:
                    del self.piles[letter.cause.fp]

    async def _read_new(self) -> None:
        self.total = await self._store.count()
        if self.is_complete and self.total - self.all.count - self._beyond > FAR_BEHIND:
            self._begin_anew()
        for _ in range(MOST_STEPS if self._newest else 0):
            heads, is_end = await self._store.newer(self._newest)
            for head in heads:
                self._add(head, is_newest=True)
                self._newest = head.place
            if is_end:
                break
        while self.all.count > MAX_LETTERS:
            self.forget([self.all.ends()[0].place])
            self._beyond += 1

    def _begin_anew(self) -> None:
        self._letters, self.all, self.piles, self._newest, self.is_complete = {}, Pile(), {}, "", False
        self._of_type.clear()

    async def _read_all(self) -> None:
        """Walk through all letters, the newest first: those that are not known are added, those that are not met are gone."""
        try:
            await self._walk_through()
        except StoreUnavailable:  # whoever looks next begins again
            pass
        except Exception as error:
            self._log.warn("the board: reading dead letters: %s", ascii(error)[:300])
        self._walked_s = time.monotonic()

    async def _walk_through(self) -> None:
        known, at = list(self.all.newest()), 0
        cursor, seen, is_end = "+", 0, False
        while not is_end and seen < MAX_LETTERS:
            if time.monotonic() - self._looked_s > LOOKED_S:
                return
            heads, is_end = await self._store.older(cursor)
            if not self._newest and cursor != "+":
                return  # begun anew meanwhile
            async with self._lock:
                for head in heads:
                    self._newest = self._newest or head.place
                    if _order(head.place) <= _order(self._newest):  # later ones came meanwhile: the next look reads them
                        self._add(head, is_newest=False)
                at = self._drop_unmet(known, at, {head.place for head in heads}, heads[-1].place if heads and not is_end else "")
            seen += len(heads)
            cursor = heads[-1].place if heads else cursor
            await asyncio.sleep(self._step_wait_s)
        self.total = await self._store.count()
        self._beyond = 0 if is_end else max(0, self.total - self.all.count)
        self.is_complete = True

    def _drop_unmet(self, known: list[Known], at: int, met: set[str], last: str) -> int:
        """Drop those letters down to the place `last` that were not met, all where there is none; return where to go on."""
        until = _order(last) if last else (0, 0)
        gone: list[str] = []
        while at < len(known) and _order(known[at].place) >= until:
            if known[at].place not in met:
                gone.append(known[at].place)
            at += 1
        self.forget(gone)
        return at

    def _add(self, head: Head, *, is_newest: bool) -> None:
        if head.place in self._letters:
            return
        cause, pile = self._pile_of(head)
        like = pile.ends()[1] if pile.count else None
        letter = _known(head, like.cause if like else cause, like)
        self._changes += 1
        self._letters[letter.place] = letter
        self.all.add(letter, is_newest=is_newest)
        self._of_type[letter.type] += 1
        pile.add(letter, is_newest=is_newest)
        if head.trace and (is_newest or not pile.trace):
            pile.trace = head.trace

    def _pile_of(self, head: Head) -> tuple[Cause, Pile]:
        cause = cause_of(head.type, head.reason, head.error, head.frame, has_stack=head.has_stack)
        if cause.fp not in self.piles and len(self.piles) >= MAX_GROUPS:
            cause = REST
        return cause, self.piles.setdefault(cause.fp, Pile())


def _known(head: Head, cause: Cause, like: Known | None) -> Known:
    """Return a letter as it is kept; of texts that it has in common with another one of its group there is one."""
    texts = {name: getattr(head, name) for name in _TEXTS}
    texts["error"] = redact_text(head.error)  # what is searched is what may be shown
    if like:
        texts = {name: getattr(like, name) if getattr(like, name) == text else text for name, text in texts.items()}
    return Known(place=head.place, id=head.id, cause=cause, attempts=head.attempts, at_ms=head.at_ms, size=head.size, **texts)


def _less(counts: Counter[K], of: K) -> None:
    counts[of] -= 1
    if not counts[of]:
        del counts[of]


def _order(place: str) -> tuple[int, int]:
    """Return where a letter stands among others."""
    ms, _, seq = place.partition("-")
    return int(ms), int(seq or 0)


def _group(fp: str, pile: Pile, now_ms: int) -> Group:
    first, last = pile.ends()
    hours, cause = pile.hours(now_ms), last.cause
    is_rest = cause is REST
    return Group(
        fp=fp,
        type="" if is_rest else last.type,
        reason="" if is_rest else last.reason,
        error=cause.error or ("all else" if is_rest else last.reason),
        message=cause.told,
        frame=cause.frame,
        count=pile.count,
        hours=hours,
        first_ms=first.at_ms,
        last_ms=last.at_ms,
        last_hour=hours[-1],
        grows=hours[-1] >= GROWS and hours[-1] > hours[-2],
        apps=sorted(app for app in pile.apps if app),
        trace=pile.trace or None,
    )


def for_reader(group: Group, *, has_messages: bool) -> Group:
    """Return a group as somebody may see it: who may see no payloads sees no messages and frames either."""
    message = visible(redact_text(group.message or "")) if has_messages else None
    return msgspec.structs.replace(group, message=message, frame=visible(group.frame) if has_messages else "")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
