"""JSON as text: where each value stands in it, without making anything of it. Numbers stay the digits that they are. Pure.

What is shown, redacted or compared is cut out of the text that a sender wrote. One pass, whatever the text; no recursion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final, Literal

from runtime.bounds import MAX_DEPTH

Path = tuple[str | int, ...]
Event = tuple[Literal["open", "close", "value"], int, int]

_TOKEN: Final = re.compile(
    r'[ \t\n\r]*+("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+"|[\[\]{},:]'
    r"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?![\w.])|(?:true|false|null)(?!\w))"
)
# What may be left of a value where a text was cut.
_PART: Final = re.compile(
    r'[ \t\n\r]*+(?:"(?:[^"\\\x00-\x1f]|\\.)*+\\?|-?[0-9.eE+-]*+|t|tr|tru|f|fa|fal|fals|n|nu|nul)?\Z', re.DOTALL
)
_CLOSER: Final = {"{": "}", "[": "]"}
INDENT: Final = "  "


class NotJson(ValueError):
    """A text is no JSON, or nested deeper than a worker reads. `at` is where it stops to be."""

    def __init__(self, text: str, at: int) -> None:
        super().__init__(text)
        self.at = at


class Reader:
    """Walks through one text. While it yields, `path` says where the value is of which the event tells, and `key` is the text of
    that key as it stands, quotes and all.

    Args:
        text: the JSON.
        is_cut: the text may end anywhere; then it ends with its last whole value.
    """

    def __init__(self, text: str, *, is_cut: bool = False) -> None:
        self.text = text
        self.is_cut = is_cut
        self.path: list[str | int] = []
        self.ended_at = len(text)  # behind the last whole value of a text that was cut
        self._closers: list[str] = []

    def __iter__(self) -> Iterator[Event]:
        """Yield for each value one event, for each object and list two, in the order of the text.

        Raises:
            NotJson: it is none; what was yielded before stands.
        """
        at, wants, text = 0, "value", self.text
        while wants != "end":
            word, start, at = self._token(at)
            if word is None:
                self.ended_at = start
                return
            if wants in ("value", "first-item") and word[0] not in ",:]}":
                if word in _CLOSER:
                    yield "open", start, at
                    wants = self._open(word, start)
                else:
                    yield "value", start, at
                    wants = self._after()
            elif self._closers and word == self._closers[-1] and wants in ("more", "first-item", "first-key"):
                self._closers.pop()
                self.path.pop()
                yield "close", start, at
                wants = self._after()
            elif word == "," and wants == "more":
                wants = self._next()
            elif word[0] == '"' and wants in ("key", "first-key"):
                self.path[-1] = decoded(word)  # the member's name
                wants = "colon"
            elif word == ":" and wants == "colon":
                wants = "value"
            else:
                raise NotJson(f"{word[:20]!r} is not expected here", start)
        rest = at + len(text[at:]) - len(text[at:].lstrip(" \t\n\r"))
        if rest < len(text):
            raise NotJson("something follows behind its end", rest)

    def _token(self, at: int) -> tuple[str | None, int, int]:
        found = _TOKEN.match(self.text, at)
        if found is None:
            if self.is_cut and _PART.match(self.text, at):
                return None, at, at
            raise NotJson("ends too early" if not self.text[at:].strip() else "no JSON from here on", at)
        return found[1], found.start(1), found.end()

    def _open(self, word: str, at: int) -> str:
        if len(self._closers) >= MAX_DEPTH:
            raise NotJson(f"nested deeper than {MAX_DEPTH} levels", at)
        self._closers.append(_CLOSER[word])
        self.path.append("" if word == "{" else 0)
        return "first-key" if word == "{" else "first-item"

    def _after(self) -> str:
        return "more" if self._closers else "end"

    def _next(self) -> str:
        last = self.path[-1]
        if isinstance(last, int):
            self.path[-1] = last + 1
            return "value"
        return "key"


def decoded(word: str) -> str:
    """Return the text that a JSON string says; a half of a surrogate pair stays what it is."""
    return word[1:-1] if "\\" not in word else str(json.loads(word))


def encoded(text: str) -> str:
    """Return a text as a JSON string; halves of surrogate pairs as escapes, since nothing else could carry them."""
    return json.dumps(text, ensure_ascii=not _is_whole(text))


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def indented(text: str) -> str:
    """Return JSON with each member on a line of its own; as it is where it has lines already, or is no JSON."""
    if "\n" in text.strip() or not is_json(text):
        return text
    parts: list[str] = []
    depth, at, was = 0, 0, ""
    while (found := _TOKEN.match(text, at)) is not None:
        word, at = found[1], found.end()
        if word in "]}":
            depth -= 1
            parts.append(word if was in ("[", "{") else f"\n{INDENT * depth}{word}")
        else:
            parts.append(f"\n{INDENT * depth}{word}" if was in ("[", "{", ",") else word)
        if word in "[{":
            depth += 1
        elif word == ":":
            parts.append(" ")
        was = word
    return "".join(parts)


def compact(text: str) -> list[str]:
    """Return the tokens of JSON, of strings what they say: two texts of the same tokens say the same, with the same digits.

    Raises:
        NotJson: it is none.
    """
    for _ in Reader(text):
        pass
    return ["'" + decoded(word) if word[0] == '"' else word for word in _TOKEN.findall(text)]


def lines_by_path(text: str) -> dict[Path, int]:
    """Return at which line, from 1, each value of a text begins; as far as it is JSON."""
    found: dict[Path, int] = {}
    line, counted = 1, 0
    reader = Reader(text)
    try:
        for what, start, _ in reader:
            if what != "close":
                line, counted = line + text.count("\n", counted, start), start
                found[tuple(reader.path)] = line
    except NotJson:
        pass
    return found


def is_json(text: str) -> bool:
    """Return whether a text is JSON that a worker would read."""
    try:
        for _ in Reader(text):
            pass
    except NotJson:
        return False
    return True
