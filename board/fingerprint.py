"""Which dead letters died of the same: a letter's error without what differs from job to job. Pure.

It may improve without a migration: nothing of it is kept but in memory.
"""

from __future__ import annotations

import hashlib
import re
from http import HTTPStatus
from typing import Final

import msgspec

GAP: Final = "…"  # stands where something was taken out
MAX_CHARS: Final = 1000  # of an error that are looked at, as many as a letter keeps
MAX_TOLD: Final = (
    120  # characters of what is left; a guess: what is cut to 200 bytes is mostly as long as that, wherever it was cut
)
MAX_SEGMENT: Final = 32  # characters; a guess: longer parts of paths are ids
_CLASS: Final = re.compile(r"(_?[A-Z]\w{0,99})(?:: |\Z)")
RAISED: Final = ("attempts", "timeout")  # reasons of letters whose error begins with its class; others' texts are whole sentences
# A number that says which kind of error it is, and differs with the cause: the status of an answer.
_SAYS_STATUS: Final = r"status(?:[ _]code)?|HTTP(?:/\d(?:\.\d)?)?|error|code|response"
_PHRASES: Final = "|".join(f"{status.value} {re.escape(status.phrase)}" for status in HTTPStatus)  # such as 401 Unauthorized
_STATUS: Final = rf"(?P<status>\b(?:{_SAYS_STATUS})\W{{0,3}}[1-5]\d\d\b(?:[ ][A-Z][A-Za-z ]{{0,40}}\b)?|\b(?:{_PHRASES})\b)"
_URL: Final = r"(?P<url>\b[a-zA-Z][a-zA-Z0-9+.-]{0,20}://[^\s'\"<>`]{1,500})"
_EMAIL: Final = r"(?P<email>[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5})"
_QUOTED: Final = r"(?P<quoted>(?<!\w)'[^'\n]{0,500}(?:'(?!\w)|\Z)|(?<!\w)\"[^\"\n]{0,500}(?:\"|\Z))"
_PATH: Final = r"(?P<path>(?<![\w/:.])(?:~|\.{1,2})?/[\w.+@%=~-]+(?:/[\w.+@%=~-]*)*)"
_HEX: Final = r"(?P<hex>\b(?=[a-fA-F-]{0,64}\d)[0-9a-fA-F]{4,}(?:-[0-9a-fA-F]{2,}){0,7}\b)"
_WORD: Final = r"(?P<id>\b(?:\w*\d\w*(?:[-:.,+/@]\w+)*|[A-Za-z]+(?:[-_][A-Za-z]+){0,4}[-_]\d\w*(?:[-:.]\w+)*))"
_VARIABLE: Final = re.compile("|".join((_STATUS, _URL, _EMAIL, _QUOTED, _PATH, _HEX, _WORD)))
_RUN: Final = re.compile(rf"{GAP}(?:[\s,;:|/+-]{{0,2}}{GAP})+")
_FRAME: Final = re.compile(r"(.*):(\d{1,9}) (.*)", re.DOTALL)


class Cause(msgspec.Struct, frozen=True):
    """What a letter died of: `error` is the class, `told` the message without what differs, `frame` "file:line function"."""

    fp: str
    error: str
    told: str
    frame: str


def cause_of(type_name: str, reason: str, error: str, frame: str, *, has_stack: bool) -> Cause:
    """Return what a letter died of."""
    kind, message = split_error(reason, error, has_stack=has_stack)
    told, short = told_of(message), short_frame(frame)
    # The line moves with every change of the file, and would part what died before a deploy and after it.
    where = _FRAME.fullmatch(short)
    place = f"{where[1]} {where[3]}" if where else short
    words = "\0".join((type_name, reason, kind, told, place))
    return Cause(hashlib.blake2b(words.encode(errors="replace"), digest_size=8).hexdigest(), kind, told, short)


def split_error(reason: str, error: str, *, has_stack: bool) -> tuple[str, str]:
    """Return the class of an error and its message. It is known where a handler has raised it: it has a stack then."""
    found = _CLASS.match(error) if has_stack and reason in RAISED else None
    return (found[1], error[found.end() :]) if found else ("", error)


def told_of(message: str) -> str:
    """Return a message without numbers, ids, quoted texts and what else differs from job to job, on one line."""
    text = " ".join(message[:MAX_CHARS].split())
    told = _RUN.sub(GAP, _VARIABLE.sub(_replaced, text)).removeprefix(f"{GAP}: ")  # a code: it says nothing where it is gone
    return told if len(told) <= MAX_TOLD else told[: MAX_TOLD - 1] + GAP


def short_frame(frame: str) -> str:
    """Return a frame with the last two parts of its path: where an application is installed says nothing of an error."""
    found = _FRAME.fullmatch(frame[:MAX_CHARS])
    if not found:
        return frame[:MAX_CHARS]
    return f"{'/'.join(found[1].replace(chr(92), '/').split('/')[-2:])}:{found[2]} {found[3]}"


def _replaced(found: re.Match[str]) -> str:
    kind, text = found.lastgroup, found[0]
    match kind:
        case "status":
            return text
        case "url":
            return _url(text)
        case "path":
            return "/".join(map(_segment, text.split("/")))
        case "quoted":
            return _quoted(text)
        case _:
            return GAP


def _quoted(text: str) -> str:
    """Return a quoted text: a status stays, of what says where something is the fixed part does, all else is a value."""
    mark, inside = text[0], text[1:].rstrip(text[0])
    if _IS_STATUS.fullmatch(text):
        return text
    is_url, is_path = "://" in inside, inside.startswith("/") and " " not in inside
    kept = _url(inside) if is_url else "/".join(map(_segment, inside.split("/"))) if is_path else GAP
    return f"{mark}{kept}{mark}"


_IS_STATUS: Final = re.compile(r"(['\"])[1-5]\d\d [A-Z][A-Za-z' -]{1,40}\1")


def _segment(part: str) -> str:
    return GAP if (any(map(str.isdigit, part)) and not _IS_VERSION.fullmatch(part)) or len(part) > MAX_SEGMENT else part


_IS_VERSION: Final = re.compile(r"v\d{1,2}|python\d(?:\.\d{1,2})?")


def _url(text: str) -> str:
    """Return a URL without user, values of its query, fragment, and parts of its path and host that are ids."""
    scheme, _, rest = text.partition("://")
    rest, has_query, query = rest.partition("#")[0].partition("?")
    host, *parts = rest.rpartition("@")[2].split("/")
    path = "/".join((".".join(_segment(label) for label in host.partition(":")[0].split(".")), *map(_segment, parts)))
    names = "&".join(f"{_segment(one.partition('=')[0])}={GAP}" for one in query.split("&")[:8])
    return f"{scheme}://{path}{'?' + names if has_query else ''}"
