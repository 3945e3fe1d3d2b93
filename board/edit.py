"""EditPage checks payloads that people write, and sends them: as a job of their own, made of a dead letter or of nothing."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Final

from board.api import Answerer, Refused
from board.contracts import Contract, Contracts
from board.dead import shelf_of
from board.fits import is_checked_whole, problems_of
from board.jsontext import NotJson, Reader, indented
from board.payloads import shown_json, text_of
from board.redact import HIDDEN, CannotKeep, restore_redacted
from board.shapes import Line, Problem, SendAsk, Sent, ValidateAsk, Validated
from board.viewer import Viewer
from runtime.codec import DATA
from runtime.control import Control
from runtime.jobs import STREAMS
from runtime.store.control import ChangedMeanwhile
from runtime.store.inspector import is_letter
from runtime.store.letters import Head, LetterStore

MAX_PAIRS: Final = 250_000  # of lines that are compared with each other: measured, under 0.1 s; beyond, all of both are shown
MAX_LINES: Final = 1000  # of a comparison; a guess: more than anybody reads
MAX_LINE: Final = 2000  # characters of one
CONTEXT: Final = 3  # lines around a change


class EditPage:
    """Answers for payloads that are written by people. Borrows the store and the contracts."""

    def __init__(self, url: str, queue: str, store: LetterStore, contracts: Contracts) -> None:
        self._url = url
        self._queue = queue
        self._store = store
        self._contracts = contracts

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {"POST validate": self.validate, "POST send": self.send}

    async def validate(self, ask: ValidateAsk, viewer: Viewer) -> Validated:
        """Return what is wrong with a payload, and how it differs from the letter's."""
        head, original = await self._letter(ask.place)
        contract = await self._contract(ask.type, head)
        schema = contract.schema if contract else None
        shown = "" if original is None else indented(shown_json(original, schema)[0])
        return Validated(
            problems=_problems(ask.text, original, contract),
            is_checked=schema is not None,
            checked_by=_checked_by(contract),
            diff=[] if original is None else compare(shown, ask.text),
        )

    async def send(self, ask: SendAsk, viewer: Viewer) -> Sent:
        """Send one job; where that is asked for, in the place of the letter that it was made of, which goes to the trash."""
        if ask.has_trash and not (ask.place and viewer.can("operate")):
            raise Refused(403, "right", "to move a letter to the trash needs the right operate, and the letter")
        head, original = await self._letter(ask.place)
        contract = await self._contract(ask.type, head)
        if (contract is None or contract.schema is None) and not ask.is_unchecked:
            raise Refused(409, "unchecked", f"no worker has told the contract of {ask.type}: this payload is not checked")
        problems = _problems(ask.text, original, contract)
        if problems:
            [first, *_] = problems
            where = f"line {first.line}: " if first.line else ""
            raise Refused(400, "unfit", f"{where}{first.path}{' ' if first.path else ''}{first.text}")
        schema = contract.schema if contract else None
        data = ask.text if original is None else restore_redacted(ask.text, original, schema)
        version = head.version if head else contract.version if contract else 1
        async with Control(self._url, self._queue, by=viewer.by) as control:
            try:
                sent = await control.send_text(
                    ask.type,
                    data.encode(),
                    version=version,
                    priority=ask.pri or (head.priority if head else "") or (contract.priority if contract else "") or "medium",
                    key=head.key if head else "",
                    replayed_from=ask.place,
                    trash=ask.has_trash,
                    reason=ask.reason,
                )
            except ChangedMeanwhile:
                raise _gone() from None
        return Sent(id=sent.id, place=place_of(sent.id), is_new=sent.new)

    async def _letter(self, place: str) -> tuple[Head | None, str | None]:
        """Return a letter and its payload as text; neither where none is named.

        Raises:
            Refused: it is gone, or its payload cannot be shown as text.
        """
        if not place:
            return None, None
        shelf, entry = shelf_of(place)
        heads, fields = await self._store.at([entry], shelf), await self._store.whole(entry, shelf)
        if not heads or fields is None:
            raise _gone()
        text = text_of(fields.get(DATA, b""), is_msgpack=heads[0].is_msgpack)
        if text is None:
            raise Refused(400, "unreadable", "the letter's payload cannot be shown as text, and so not be edited")
        return heads[0], text

    async def _contract(self, type_name: str, head: Head | None) -> Contract | None:
        known = await self._contracts.fresh()
        return known.of(type_name, head.version if head and head.type == type_name else 0)


def _gone() -> Refused:
    return Refused(409, "gone", "the letter is gone", "it was replayed, moved to the trash, restored or deleted")


def _problems(text: str, original: str | None, contract: Contract | None) -> list[Problem]:
    """Return what is wrong with a text as it would be sent, by its own lines."""
    schema = contract.schema if contract else None
    try:
        whole = text if original is None else restore_redacted(text, original, schema)
    except CannotKeep as error:
        return [Problem(path="", line=_line_of(text, HIDDEN), text=str(error))]
    if original is None and HIDDEN in text:
        return [Problem(path="", line=_line_of(text, HIDDEN), text="a placeholder stands for nothing here: write a value")]
    if schema is not None:
        return problems_of(whole, schema, text)
    try:
        for _ in Reader(text):
            pass
    except NotJson as error:
        return [Problem(path="", line=text.count("\n", 0, error.at) + 1, text=f"no JSON: {error}")]
    return []


def _line_of(text: str, part: str) -> int:
    return text.count("\n", 0, max(0, text.find(part))) + 1


def _checked_by(contract: Contract | None) -> str:
    if contract is None or contract.schema is None:
        return ""
    told = f"its contract, version {contract.version}"
    return told if is_checked_whole(contract.schema) else f"{told}, without patterns"


def compare(before: str, after: str) -> list[Line]:
    """Return how lines differ, with some around each change."""
    old, new = before.splitlines(), after.splitlines()
    if len(old) * len(new) > MAX_PAIRS:
        groups = [[("delete", 0, len(old), 0, 0), ("insert", 0, 0, 0, len(new))]]
    else:
        groups = list(SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(CONTEXT))
    told: list[Line] = []
    for kind, at, to, new_at, new_to in (part for group in groups for part in group):
        if kind == "equal":
            told += [_line(" ", text) for text in old[at:to]]
            continue
        told += [_line("-", text) for text in old[at:to]]
        told += [_line("+", text) for text in new[new_at:new_to]]
    return told[:MAX_LINES]


def _line(mark: str, text: str) -> Line:
    return Line(mark=mark, text=text[:MAX_LINE])  # pyright: ignore[reportArgumentType]


def place_of(job_id: str) -> str:
    """Return the place that an id of the runtime's own says, such as `low-12-0`; nothing of any other."""
    name, _, entry = job_id.partition("-")
    return f"{name}/{entry}" if name in STREAMS and is_letter(entry) else ""
