"""Search is what people write into the one box, read once, and whether a job fits it. Pure.

Terms stand beside each other and all hold: `type: id: owner: src: group: error: args: attempt> age>`. A comma means or, a `-` in
front not, and a `*` at the end that more may follow; all else is a word of the type, the id, the arguments or the error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from board.jsontext import NotJson, Reader, decoded
from runtime.codec import SOURCE

MAX_TERMS: Final = 20  # a guess: as MAX_VALUES, more than people write; each is looked at for each job
MAX_VALUES: Final = 50
SRC: Final = SOURCE.decode()
KEYS: Final = ("type", "id", "owner", SRC, "group", "error", "args")
NUMBERS: Final = ("attempt", "age")
MESSAGES: Final = ("error", "args", "")  # what these look at holds values of messages
_TERM: Final = re.compile(r'(?:[^\s"]|"[^"]*(?:"|\Z))+')
_COMPARED: Final = re.compile(r"(attempt|age)([<>])(.*)", re.DOTALL)
_AGE: Final = re.compile(r"([0-9]{1,12})(ms|s|m|min|h|d|)")
_UNITS_MS: Final = {"ms": 1, "s": 1000, "": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_PLAIN: Final = re.compile(r"[\w.:@-]+")  # what stands in JSON as it is


class Unreadable(ValueError):
    """A search cannot be read; the text says why."""


class Subject(msgspec.Struct, frozen=True):
    """What of a job is looked at. `names` are all by which its owner is known; `error` and `args` are None where they may not be
    seen.
    """

    type: str = ""
    id: str = ""
    names: tuple[str, ...] = ()
    src: str = ""
    group: str = ""
    attempt: int = 1
    age_ms: int = 0
    error: str | None = None
    args: str | None = None


class Term(msgspec.Struct, frozen=True):
    """One term: `key` is empty for a word. Of a number `sign` says how it compares with `number`."""

    key: str
    values: tuple[str, ...] = ()
    is_not: bool = False
    sign: Literal["<", ">", ""] = ""
    number: int = 0

    def fits(self, job: Subject) -> bool:
        """Return whether a job is as this says."""
        return self._is_so(job) is not self.is_not

    def _is_so(self, job: Subject) -> bool:
        if self.sign:
            has = job.attempt if self.key == "attempt" else job.age_ms
            return has > self.number if self.sign == ">" else has < self.number
        return any(_LOOKS[self.key](job, value) for value in self.values)


def _named(text: str, value: str) -> bool:
    return text.startswith(value[:-1]) if value.endswith("*") else text == value


def _has(text: str | None, value: str) -> bool:
    return text is not None and value.removesuffix("*").casefold() in text.casefold()


def _has_args(job: Subject, value: str) -> bool:
    path, sign, wanted = value.partition("=")
    if not sign or not path:
        return _has(job.args, value)
    return job.args is not None and any(_named(found, wanted) for found in at_path(job.args, path))


def _has_word(job: Subject, value: str) -> bool:
    return any(_has(text, value) for text in (job.type, job.id, job.args, job.error))


_LOOKS: Final[dict[str, Callable[[Subject, str], bool]]] = {
    "type": lambda job, value: _named(job.type, value),
    "id": lambda job, value: _named(job.id, value),
    "owner": lambda job, value: any(_named(name, value) for name in job.names),
    SRC: lambda job, value: _named(job.src, value),
    "group": lambda job, value: _named(job.group, value),
    "error": lambda job, value: _has(job.error, value),
    "args": _has_args,
    "": _has_word,
}


def at_path(text: str, path: str) -> list[str]:
    """Return what stands in JSON at a path such as `items.0.id`, as text: a string as what it says, a number as its digits."""
    words, found = path.split("."), list[str]()
    reader = Reader(text, is_cut=True)
    try:
        for what, start, end in reader:
            if what == "value" and len(reader.path) == len(words) and [*map(str, reader.path)] == words:
                token = text[start:end]
                found.append(decoded(token) if token[0] == '"' else token)
    except NotJson:
        pass
    return found


class Search(msgspec.Struct, frozen=True):
    """What was searched for."""

    terms: tuple[Term, ...] = ()

    @property
    def needs_payload(self) -> bool:
        """Whether it looks at values of messages, which not everybody may."""
        return any(not term.sign and term.key in MESSAGES for term in self.terms)

    def only(self, key: str) -> tuple[str, ...]:
        """Return the values of which one must be it, exactly; nothing where that is not so."""
        found = [term.values for term in self.terms if term.key == key and not term.is_not and not term.sign]
        return next((values for values in found if not any(value.endswith("*") for value in values)), ())

    def fits(self, job: Subject) -> bool:
        """Return whether a job is as all terms say."""
        return all(term.fits(job) for term in self.terms)

    def may_fit(self, job: Subject, raw: str) -> bool:
        """Return whether a job may fit, before anything is redacted in its arguments, which `raw` has as they stand: what is not
        in them as a whole is in no part of them.
        """
        for term in self.terms:
            if term.key in MESSAGES and not term.sign:
                if term.key == "args" and not term.is_not and not any(_may_be_in(raw, value) for value in term.values):
                    return False
            elif not term.fits(job):
                return False
        return True


def _may_be_in(raw: str, value: str) -> bool:
    wanted = value.partition("=")[2] or value
    plain = wanted.removesuffix("*")
    return "\\" in raw or not _PLAIN.fullmatch(plain) or plain.casefold() in raw.casefold()


def parse(text: str) -> Search:
    """Return what a text searches for; nothing for an empty one, which all jobs fit.

    Raises:
        Unreadable: it is too long, or has a number that is none.
    """
    words = _TERM.findall(text)
    if len(words) > MAX_TERMS:
        raise Unreadable(f"a search has up to {MAX_TERMS} terms, this one {len(words)}")
    return Search(tuple(term for word in words if (term := _term(word)) is not None))


def _term(word: str) -> Term | None:
    is_not = word.startswith("-") and len(word) > 1
    word = word[1:] if is_not else word
    compared = _COMPARED.fullmatch(word)
    if compared is not None:
        key, sign, value = compared.groups()
        return Term(key, is_not=is_not, sign=">" if sign == ">" else "<", number=_number(key, value))
    key, colon, value = word.partition(":")
    if not colon or key not in KEYS:
        key, value = "", word
    values = tuple(part for part in _parts(value) if part)
    if len(values) > MAX_VALUES:
        raise Unreadable(f"{key or 'a word'}: up to {MAX_VALUES} may stand side by side, not {len(values)}")
    return Term(key, values, is_not) if values else None


def _parts(value: str) -> list[str]:
    """Return what commas separate; what stands in quotes is one part, without them."""
    parts, is_quoted = [""], False
    for mark in value:
        if mark == '"':
            is_quoted = not is_quoted
        elif mark == "," and not is_quoted:
            parts.append("")
        else:
            parts[-1] += mark
    return parts


def _number(key: str, value: str) -> int:
    found = _AGE.fullmatch(value)
    if found is None or (key == "attempt" and found[2]):
        example = "attempt>3" if key == "attempt" else "age>5m"
        raise Unreadable(f"{value[:40]!r}: must be a number, such as {example}")
    return int(found[1]) if key == "attempt" else int(found[1]) * _UNITS_MS[found[2]]
