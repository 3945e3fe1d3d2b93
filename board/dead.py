"""DeadPage answers for dead letters: their groups, lists of them, and one of them; also of those in the trash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

from board.api import Answerer, Refused
from board.fingerprint import cause_of, short_frame, split_error
from board.letters import MAX_GROUPS, Index
from board.redact import redact_json, redact_text, visible, visible_json
from board.shapes import Fact, Groups, Letter, LetterRow, Letters, LettersAsk, Nothing, PlaceAsk, Pri, Step
from board.stack import frames_of
from board.viewer import Viewer
from board.words import counted, figure
from runtime.codec import SOURCE, read_letter, tries_of
from runtime.jobs import STREAMS
from runtime.operations import DEAD
from runtime.store.inspector import is_letter
from runtime.store.letters import Head, LetterStore, Shelf
from runtime.tries import Try

ARGS_BYTES: Final = 400  # of a payload that are read for a row; of them ARGS_CHARS are shown, after redaction
ARGS_CHARS: Final = 200
TRASH: Final = "trash"
TRASH_LIFE_MS: Final = 7 * 24 * 3_600_000  # as trashing.lua has it
TRIES: Final = 3  # a guess: so often a page is filled up anew where letters of it are found to be gone
MAX_FACT: Final = 500  # characters; a guess
OWN_FIELD: Final = "x-"  # fields that senders add begin so


class Schemas(Protocol):
    """What is known of contracts."""

    async def schema(self, type_name: str, version: int) -> Any:
        """Return the JSON schema of a type's payload, None where no worker has told it."""
        ...


class DeadPage:
    """Answers for dead letters. The store and the index are its own, and closed with it."""

    def __init__(self, store: LetterStore, index: Index, schemas: Schemas) -> None:
        self._store = store
        self._index = index
        self._schemas = schemas

    async def close(self) -> None:
        """Stop reading, and close the connection."""
        await self._index.close()
        await self._store.close()

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
        await self._index.look()
        shown, more = await self._page(ask)
        pile = self._index.of(ask.group)
        rows = [await self._row(DEAD, head, viewer) for head in shown]
        return Letters(
            rows=rows,
            of=pile.count if pile else 0,
            said=self._said(),
            cursor=shown[-1].place if more and shown else None,
        )

    async def _page(self, ask: LettersAsk) -> tuple[list[Head], bool]:
        """Return the letters of a page as they are now, and whether there are more: those found to be gone are forgotten."""
        for left in reversed(range(TRIES)):
            wanted, more = self._chosen(ask)
            heads = await self._store.at(wanted, args_bytes=ARGS_BYTES)
            gone = set(wanted) - {head.place for head in heads}
            self._index.forget(list(gone))
            if not gone or not left:
                return heads, more
        raise AssertionError

    def _chosen(self, ask: LettersAsk) -> tuple[list[str], bool]:
        pile, found = self._index.of(ask.group), list[str]()
        before = _order(ask.cursor) if ask.cursor else None
        for letter in pile.newest() if pile else ():
            if before is not None and _order(letter.place) >= before:
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
            args = preview(head, await self._schemas.schema(head.type, head.version))
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


def preview(head: Head, schema: Any) -> str:
    """Return the beginning of a payload as it may be shown."""
    text = head.args.decode(errors="replace")
    if head.args[:1] not in b'{["-0123456789tfn ' or not head.args:
        return f"({figure(head.args_bytes)} bytes that are no JSON)" if head.args_bytes else ""
    told, _ = redact_json(text, schema, is_cut=head.args_bytes > len(head.args))
    told = visible_json(" ".join(told.split()))
    return told if len(told) <= ARGS_CHARS else told[: ARGS_CHARS - 1] + "…"


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
        steps=_steps(fields, viewer),
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


def _steps(fields: dict[bytes, bytes], viewer: Viewer) -> list[Step]:
    """Return the attempts of which a letter knows, with the waits between them; those of a life before a replay, too."""
    found: list[Step] = []
    ended_ms = 0
    for one in tries_of([word for pair in fields.items() for word in pair]):
        if one.is_replay:
            ended_ms = 0
            continue
        if ended_ms and one.at_ms > ended_ms:
            found.append(_step("backoff", ended_ms, one.at_ms, one, may_see=False))
        ended_ms = one.at_ms + one.run_ms
        found.append(_step("attempt", one.at_ms, ended_ms, one, may_see=viewer.can("payload")))
    return found


def _step(kind: Literal["attempt", "backoff"], from_ms: int, to_ms: int, one: Try, *, may_see: bool) -> Step:
    is_attempt = kind == "attempt"
    message = one.error.removeprefix(one.error_class).removeprefix(": ")
    return Step(
        kind=kind,
        attempt=one.attempt if is_attempt else None,
        from_ms=from_ms,
        to_ms=to_ms,
        level="act" if is_attempt else "ok",
        outcome="failed" if is_attempt else "",
        worker=one.by if is_attempt else "",
        app=one.app if is_attempt else "",
        error=one.error_class if is_attempt else "",
        message=visible(redact_text(message)) if is_attempt and may_see else None,
        frame=short_frame(one.frame) if is_attempt and may_see else "",
        trace=one.trace or None if is_attempt else None,
        same_as=None,
        lines=[],
    )
