"""DeadPage answers for dead letters: their groups, lists of them, and one of them; also of those in the trash."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from board.api import Answerer, Refused
from board.contracts import Contracts
from board.fingerprint import cause_of, split_error
from board.letters import MAX_GROUPS, Index, Known
from board.life import Life, steps_of
from board.payloads import preview
from board.redact import redact_text, visible
from board.search import Search, Subject, Unreadable, parse
from board.shapes import Fact, Groups, Letter, LetterRow, Letters, LettersAsk, Nothing, PlaceAsk, Pri, Step
from board.stack import frames_of
from board.viewer import Viewer
from board.words import counted, figure
from runtime.codec import SOURCE, read_letter, summary, tries_of
from runtime.jobs import STREAMS
from runtime.operations import DEAD
from runtime.store.base import parse_int
from runtime.store.inspector import is_letter
from runtime.store.letters import Head, LetterStore, Shelf

ARGS_BYTES: Final = 400  # of a payload that are read for a row; fewer are shown, after redaction
TRASH: Final = "trash"
TRASH_LIFE_MS: Final = 7 * 24 * 3_600_000  # as trashing.lua has it
TRIES: Final = 3  # a guess: so often a page is filled up anew where letters of it are found to be gone
TURN: Final = 2000  # letters that are looked at before others have their turn; a guess: some milliseconds
MAX_FACT: Final = 500  # characters; a guess
NOT_KNOWN: Final = ("args", "owner", SOURCE.decode(), "group")  # of what one can search for, what the index does not hold
OWN_FIELD: Final = "x-"  # fields that senders add begin so


class DeadPage:
    """Answers for dead letters. Borrows the store, the index and the contracts."""

    def __init__(self, store: LetterStore, index: Index, contracts: Contracts) -> None:
        self._store = store
        self._index = index
        self._contracts = contracts

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {"GET dead/groups": self.groups, "GET dead": self.letters, "GET letter": self.letter}

    async def groups(self, ask: Nothing, viewer: Viewer) -> Groups:
        """Return what the letters that were looked at died of."""
        await self._index.look()
        return Groups(
            groups=self._index.newest(MAX_GROUPS + 1, has_messages=viewer.can("payload")),
            letters=self._index.total,
            grouped=self._index.all.count,
            trash=await self._store.count(TRASH),
        )

    async def letters(self, ask: LettersAsk, viewer: Viewer) -> Letters:
        """Return a part of a list of letters, the newest first."""
        if ask.cursor and not is_letter(ask.cursor):
            raise Refused(400, "asked", "cursor: not one of this list")
        if ask.trash:
            return await self._in_trash(ask, viewer)
        search = _search(ask.q, viewer)
        await self._index.look()
        shown, more = await self._page(ask, search)
        pile = self._index.of(ask.group)
        rows = [await self._row(DEAD, head, viewer) for head in shown]
        return Letters(
            rows=rows,
            of=pile.count if pile else 0,
            said=self._said(),
            cursor=shown[-1].place if more and shown else None,
        )

    async def _page(self, ask: LettersAsk, search: Search) -> tuple[list[Head], bool]:
        """Return the letters of a page as they are now, and whether there are more: those found to be gone are forgotten."""
        for left in reversed(range(TRIES)):
            wanted, more = await self._chosen(ask, search)
            heads = await self._store.at(wanted, args_bytes=ARGS_BYTES)
            gone = set(wanted) - {head.place for head in heads}
            self._index.forget(list(gone))
            if not gone or not left:
                return heads, more
        raise AssertionError

    async def _chosen(self, ask: LettersAsk, search: Search) -> tuple[list[str], bool]:
        pile, found = self._index.of(ask.group), list[str]()
        before = _order(ask.cursor) if ask.cursor else None
        now_ms = time.time_ns() // 1_000_000
        for at, letter in enumerate(list(pile.newest()) if pile else ()):
            if at % TURN == TURN - 1:
                await asyncio.sleep(0)
            if before is not None and _order(letter.place) >= before:
                continue
            if search.terms and not search.fits(_subject(letter, now_ms)):
                continue
            if len(found) == ask.limit:
                return found, True
            found.append(letter.place)
        return found, False

    async def _in_trash(self, ask: LettersAsk, viewer: Viewer) -> Letters:
        shown, at, is_end = list[Head](), ask.cursor or "+", False
        while not is_end and len(shown) <= ask.limit:
            heads, is_end = await self._store.older(at, TRASH, ARGS_BYTES)
            shown += heads
            at = heads[-1].place if heads else at
        rows = [await self._row(TRASH, head, viewer) for head in shown[: ask.limit]]
        more = len(shown) > ask.limit
        return Letters(rows=rows, of=await self._store.count(TRASH), said="", cursor=shown[ask.limit - 1].place if more else None)

    def _said(self) -> str:
        known, total = self._index.all.count, self._index.total
        return "" if known >= total else f"grouped {figure(known)} of {counted(total, 'letter')}, the newest first"

    async def _row(self, shelf: Shelf, head: Head, viewer: Viewer) -> LetterRow:
        args = None
        if viewer.can("payload"):
            contract = (await self._contracts.fresh()).of(head.type, head.version)
            is_cut = head.args_bytes > len(head.args)
            args = preview(head.args, contract and contract.schema, is_msgpack=head.is_msgpack, is_cut=is_cut)
        return row_of(shelf, head, args, viewer)

    async def letter(self, ask: PlaceAsk, viewer: Viewer) -> Letter:
        """Return one letter, dead or in the trash."""
        shelf, entry = shelf_of(ask.place)
        heads = await self._store.at([entry], shelf, ARGS_BYTES)
        fields = await self._store.whole(entry, shelf)
        if not heads or fields is None:
            self._index.forget([entry] if shelf == DEAD else [])
            raise Refused(404, "gone", "this letter is gone", "it was replayed, moved to the trash, restored or deleted")
        [head] = heads
        return _whole(shelf, head, fields, await self._row(shelf, head, viewer), viewer)


def _search(text: str, viewer: Viewer) -> Search:
    """Return what is searched for.

    Raises:
        Refused: it cannot be read, or looks at what the viewer may not see, or nobody has at hand.
    """
    try:
        search = parse(text)
    except Unreadable as error:
        raise Refused(400, "search", str(error)) from None
    if search.needs_payload and not viewer.can("payload"):
        raise Refused(403, "right", "to search in errors and for words needs the right payload: what they find holds values")
    unknown = [term.key for term in search.terms if term.key in NOT_KNOWN]
    if unknown:
        raise Refused(400, "search", f"{unknown[0]}: is not looked for among dead letters")
    return search


def _subject(letter: Known, now_ms: int) -> Subject:
    return Subject(
        type=letter.type,
        id=letter.id,
        attempt=letter.attempts,
        age_ms=now_ms - letter.at_ms,
        error=f"{letter.reason} {letter.error}",
    )


def shelf_of(place: str) -> tuple[Shelf, str]:
    """Return where a letter lies and its entry, out of a place such as `dead/12-0` or `trash/12-0`.

    Raises:
        Refused: it is no place of a letter.
    """
    name, _, entry = place.partition("/")
    if is_letter(entry):
        if name == DEAD:
            return "dead", entry
        if name == TRASH:
            return "trash", entry
    raise Refused(400, "asked", "place: must be that of a letter, such as dead/1732400000000-0")


def row_of(shelf: Shelf, head: Head, args: str | None, viewer: Viewer) -> LetterRow:
    """Return a letter as a row."""
    kind, _ = split_error(head.reason, head.error, has_stack=head.has_stack)
    return LetterRow(
        place=f"{shelf}/{head.place}",
        id=head.id,
        type=head.type,
        pri=_priority(head.priority),
        reason=head.reason,
        error=visible(redact_text(head.error)) if viewer.can("payload") else kind or head.reason,
        args=args,
        attempts=head.attempts,
        died_ms=head.at_ms,
    )


def _priority(name: str) -> Pri | None:
    return name if name in STREAMS else None  # pyright: ignore[reportReturnType]


def _order(place: str) -> tuple[int, int]:
    ms, _, seq = place.partition("-")
    return int(ms), int(seq)


# --- one letter --------------------------------------------------------------------------------------------------------------


def _whole(shelf: Shelf, head: Head, fields: dict[bytes, bytes], row: LetterRow, viewer: Viewer) -> Letter:
    death, message = read_letter([word for pair in fields.items() for word in pair])
    said = split_error(head.reason, death.error, has_stack=head.has_stack)[1]
    may_see = viewer.can("payload")
    stack = visible(redact_text(death.stack)) if may_see else None
    moved_ms = int(head.place.partition("-")[0]) if shelf == TRASH else None
    return Letter(
        row=row,
        group=cause_of(head.type, head.reason, head.error, head.frame, has_stack=head.has_stack).fp if shelf == DEAD else "",
        message=visible(redact_text(said)) if may_see else None,
        frames=frames_of(stack) if stack is not None else None,
        stack=stack,
        facts=_facts(shelf, head, message, viewer),
        steps=_steps(head, fields, viewer),
        trace=trace_id(head.trace),
        is_in_trash=shelf == TRASH,
        deleted_ms=None if moved_ms is None else moved_ms + TRASH_LIFE_MS,
    )


def trace_id(traceparent: str) -> str | None:
    """Return the id of a trace, 32 hex digits, out of a traceparent; None where there is none."""
    parts = traceparent.split("-")
    found = parts[1] if len(parts) >= 4 else ""
    return found if len(found) == 32 and all(digit in "0123456789abcdef" for digit in found) else None


def _facts(shelf: Shelf, head: Head, message: dict[str, str], viewer: Viewer) -> list[Fact]:
    """Return where a letter comes from. What a sender may put a value into is for those who may see payloads."""
    told: list[tuple[str, str, bool]] = [
        ("job", head.id, True),
        ("letter", head.place, True),
        ("reason", head.reason, True),
        ("attempts", figure(head.attempts), False),
        ("came from", _came_from(head), False),
        ("died on", head.by, True),
        ("version of the application", head.app, True),
        ("sent by", message.get(SOURCE.decode(), ""), False),
        ("version of the payload", str(head.version), False),
        ("size", f"{figure(head.size)} bytes", False),
        ("trace", trace_id(head.trace) or "", True),
    ]
    if viewer.can("payload"):
        told += _own_fields(head, message)
    return [Fact(name=name, text=visible(redact_text(text[:MAX_FACT])), is_code=is_code) for name, text, is_code in told if text]


def _came_from(head: Head) -> str:
    name, _, entry = head.stood.partition("/")
    return f"{name}, entry {entry}" if entry else name


def _own_fields(head: Head, message: dict[str, str]) -> Sequence[tuple[str, str, bool]]:
    owned = ", owned by a live job" if head.stays == "owned" else ", free"
    key = [("key", head.key + owned, True)] if head.key else []
    own = sorted((name[:64], text, True) for name, text in message.items() if name.startswith(OWN_FIELD))
    return [*key, *own[:20]]


def _steps(head: Head, fields: dict[bytes, bytes], viewer: Viewer) -> list[Step]:
    """Return the life of which a letter knows; those before a replay, too."""
    may_see = viewer.can("payload")
    flat = [word for pair in fields.items() for word in pair]
    tries, about = tries_of(flat), summary(flat)
    stood_ms = parse_int(head.stood.partition("/")[2].partition("-")[0])
    first_ms = tries[0].at_ms if tries else head.at_ms
    born_ms = min(about.first_ms or stood_ms or first_ms, first_ms)
    life = Life(state="dead", now_ms=head.at_ms, born_ms=born_ms, attempt=head.attempts, tries=tries)
    steps = steps_of(life, lambda text: visible(redact_text(text)) if may_see else None)
    return steps if may_see else [msgspec.structs.replace(step, frame="") for step in steps]
