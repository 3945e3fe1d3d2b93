"""What a job remembers of its attempts that failed: a field of its message, a line of text for each.

A line is number, start in ms, length in ms, worker, version of the application, error, frame and trace id, with tabs between;
`=` is what the line above says. A line of `0` and a time in ms is no attempt: the job was sent back from the dead letters then,
and its attempts began anew. `replaying.lua` writes such lines, all others are written here. Any sender may write the field: what
cannot be read is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

MAX_TRIES_BYTES: Final = 2048  # as in replaying.lua; a guess: what each move of a failing job may weigh more
FIRST: Final = 6  # that are kept, and as many of the last: a guess, how it began and how it goes
KEPT: Final = 2 * FIRST
MAX_ERROR_BYTES: Final = 200  # of these four: guesses, a line of a terminal
MAX_FRAME_BYTES: Final = 120
MAX_BY_BYTES: Final = 64
MAX_APP_BYTES: Final = 40
_READ_BYTES: Final = 2 * MAX_TRIES_BYTES  # of a stranger's field
_READ_LINES: Final = 4 * KEPT
_MAX_NUMBER: Final = 2**53  # as in the codec
_SHORTER_BYTES: Final = (150, 100, 70, 40, 20)  # to which errors are cut, until all attempts have space
_SAME: Final = "="
_NOTHING: Final[Sequence[str]] = ("",) * 5
TRACE_ID: Final = re.compile("[0-9a-f]{32}")
_CLASS: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?=:|\Z)")
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


class Try(msgspec.Struct, frozen=True, gc=False):
    """An attempt that failed: when it began, how long it ran, and what of; or, with `attempt` 0, that the job was replayed then.

    `by` is the worker, `app` the version of the application, `error` its class and message, `frame` the newest line of the
    application's own code, `trace` the id of its trace. What is not known is empty.
    """

    attempt: int
    at_ms: int
    run_ms: int = 0
    by: str = ""
    app: str = ""
    error: str = ""
    frame: str = ""
    trace: str = ""

    @property
    def is_replay(self) -> bool:
        """Whether this is no attempt: the job was sent back from the dead letters then."""
        return not self.attempt

    @property
    def error_class(self) -> str:
        """The class of the error, without its message, which may hold values; empty where none stands there."""
        found = _CLASS.match(self.error)
        return found[0] if found else ""


def pack_tries(tries: Sequence[Try]) -> bytes:
    """Return the field that says so, in MAX_TRIES_BYTES: the first and the last attempts, with shorter errors where need be."""
    kept = list(tries) if len(tries) <= KEPT else [*tries[:FIRST], *tries[-FIRST:]]
    packed = _pack(kept, MAX_ERROR_BYTES)
    for size in _SHORTER_BYTES:
        if len(packed) <= MAX_TRIES_BYTES:
            return packed
        packed = _pack(kept, size)
    while len(packed) > MAX_TRIES_BYTES:  # names and frames of strangers; ours are shorter
        del kept[len(kept) // 2]
        packed = _pack(kept, _SHORTER_BYTES[-1])
    return packed


def read_tries(packed: bytes) -> list[Try]:
    """Return what such a field says, oldest first; of what is none nothing. Raises nothing."""
    found: list[Try] = []
    above = _NOTHING
    for line in packed[:_READ_BYTES].decode(errors="replace").split("\n")[:_READ_LINES]:
        words = line.split("\t")
        numbers = [_number(word) for word in words[:3]]
        if len(numbers) < 2 or min(numbers) < 0:
            continue
        if not numbers[0]:
            found.append(Try(0, numbers[1]))
            continue
        texts = [before if word == _SAME else word for word, before in zip([*words[3:8], *_NOTHING], above, strict=False)]
        above = _fitting(texts, MAX_ERROR_BYTES)
        found.append(Try(numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else 0, *above))
    return found


def with_try(packed: bytes, last: Try) -> bytes:
    """Return the field with an attempt more."""
    if not packed:  # most: a job that fails once
        return _line(last, _fitting((last.by, last.app, last.error, last.frame, last.trace), MAX_ERROR_BYTES)).encode()
    return pack_tries([*read_tries(packed), last])


def _pack(tries: Iterable[Try], error_bytes: int) -> bytes:
    lines: list[str] = []
    above = _NOTHING
    for one in tries:
        if one.is_replay:
            lines.append(f"0\t{_bounded(one.at_ms)}")
            continue
        texts = _fitting((one.by, one.app, one.error, one.frame, one.trace), error_bytes)
        lines.append(_line(one, [_SAME if text and text == before else text for text, before in zip(texts, above, strict=True)]))
        above = texts
    return "\n".join(lines).encode()


def _line(one: Try, texts: Sequence[str]) -> str:
    by, app, error, frame, trace = texts
    numbers = f"{_bounded(one.attempt)}\t{_bounded(one.at_ms)}\t{_bounded(one.run_ms)}"
    return f"{numbers}\t{by}\t{app}\t{error}\t{frame}\t{trace}".rstrip("\t")


def _fitting(texts: Sequence[str], error_bytes: int) -> Sequence[str]:
    by, app, error, frame, trace = texts
    trace = trace if TRACE_ID.fullmatch(trace) else ""
    together = f"{by}{app}{error}{frame}"
    sizes_fit = (
        len(by) <= MAX_BY_BYTES and len(app) <= MAX_APP_BYTES and len(error) <= error_bytes and len(frame) <= MAX_FRAME_BYTES
    )
    if sizes_fit and together.isascii() and together.isprintable() and _SAME not in (by, app, error, frame):  # nearly all
        return by, app, error, frame, trace
    return (
        one_line(by, MAX_BY_BYTES),
        one_line(app, MAX_APP_BYTES),
        one_line(error, error_bytes),
        one_line(frame, MAX_FRAME_BYTES),
        trace,
    )


def one_line(text: str, most_bytes: int) -> str:
    """Return a text in one line without control characters, cut to so many bytes of UTF-8."""
    if not text.isprintable():
        text = _CONTROLS.sub("?", " ".join(text[: 2 * most_bytes].split()))
    if len(text) > most_bytes or not text.isascii():
        text = text.encode(errors="replace")[:most_bytes].decode(errors="ignore")
    text = text.strip()
    return "'='" if text == _SAME else text


def _number(word: str) -> int:
    """Return the whole number that a word is, or -1."""
    return _bounded(int(word)) if word.isascii() and word.isdigit() and len(word) <= 16 else -1


def _bounded(number: int) -> int:
    return number if 0 <= number <= _MAX_NUMBER else 0 if number < 0 else _MAX_NUMBER
