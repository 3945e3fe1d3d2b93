"""What a run says of itself while it runs, how far it is and in lines: read under a guard, bounded, and as JSON. Pure.

Handlers say it from coroutines, threads and child processes, with whatever values they have; the worker looks once a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

import msgspec

MAX_TEXT_CHARS: Final = 200  # a guess: one line of a terminal
MAX_LINE_CHARS: Final = 500  # a guess: longer than a line that people read; with MAX_LINES, what a run's lines take at most
MAX_LINES: Final = 200  # of a run, and MAX_LINES_BYTES: guesses, more than somebody reads of an attempt that failed
MAX_LINES_BYTES: Final = 8 << 10
RECKON_LINES: Final = 64  # a guess: a third of a microsecond of each line
SHOWN_LINES: Final = 20  # of a run that goes on; a guess: a part of a screen
MAX_NUMBER: Final = 2**53  # what every reader of JSON tells apart
MAX_PROGRESS_BYTES: Final = 256 << 10  # of all runs of a worker; a guess: 500 runs with a short text and three lines each
UNREADABLE: Final = "(unreadable)"


class Progress(msgspec.Struct, frozen=True, gc=False):
    """How far a run is: None where it is not known."""

    done: int | float | None
    total: int | float | None
    text: str


class Said(msgspec.Struct, eq=False):
    """What one run has said. Changed by whichever thread the handler says it in, read by the worker's loop; each step is one of
    Python's own, so that neither needs a lock.

    `lines` are the newest, `said` counts all there were, `size` the bytes of those that are kept. `outcome` is what became of
    the run, empty where it is not known or all went well; `error` what it failed of, in one line. `tell` is called after each
    change; `is_heard` says that the worker knows of this run.
    """

    progress: Progress | None = None
    lines: list[str] = []
    said: int = 0
    size: int = 0
    outcome: str = ""
    error: str = ""
    is_heard: bool = False
    tell: Callable[[Said], None] | None = None

    def add(self, text: object) -> None:
        """Add the lines of a text; the oldest make room for them."""
        new = _lines_of(text)
        self.lines += new
        self.said += len(new)
        self.size += sum(map(_size, new))
        if self.said % RECKON_LINES < len(new):
            self.size = sum(map(_size, self.lines))  # threads that add at once lose a part of the sum now and then
        while (self.size > MAX_LINES_BYTES and len(self.lines) > 1) or len(self.lines) > MAX_LINES:
            self.size -= sum(map(_size, self.lines[:1]))
            del self.lines[:1]

    def newest(self, most: int = MAX_LINES, most_bytes: int = MAX_LINES_BYTES) -> list[str]:
        """Return a copy of the newest lines, within both bounds."""
        lines = self.lines[-most:]
        room = most_bytes
        for at in range(len(lines) - 1, -1, -1):
            room -= _size(lines[at])
            if room < 0:
                return lines[at + 1 :]
        return lines

    def told(self) -> tuple[Any, ...]:
        """Return all of it as plain values, which `take_over` takes in another process."""
        progress = self.progress
        how_far = None if progress is None else (progress.done, progress.total, progress.text)
        return how_far, self.newest(), self.said

    def take_over(self, how_far: Any, lines: Any, said: Any) -> None:
        """Take what `told` returned in another process.

        Raises:
            Exception: of any kind, where it is not that; then nothing is taken.
        """
        progress = None if how_far is None else progress_of(*how_far)
        kept = [line for one in list(lines)[-MAX_LINES:] for line in _lines_of(one)[:1]]
        said = max(len(kept), int(said))
        self.progress, self.lines, self.said, self.size = progress, kept, said, sum(map(_size, kept))


def progress_of(done: object, total: object = None, text: object = "") -> Progress:
    """Return how far a run is, whatever it has given: what is no number from 0 to 2**53 is 0, and no total."""
    return Progress(_number(done) or 0, _number(total) or None, " ".join(_text(text, MAX_TEXT_CHARS).split()))


def _number(value: Any) -> int | float | None:
    try:
        number = value if type(value) is int or type(value) is float else float(value)
        return number if 0 <= number <= MAX_NUMBER else None
    except Exception:
        return None


def _text(value: Any, chars: int) -> str:
    """Return a text of exactly the type `str`, which can be written as UTF-8. A subclass of it is asked for nothing."""
    try:
        text = str.__getitem__(value if issubclass(type(value), str) else str(value), slice(chars))
        return text if text.isascii() else str.encode(text, errors="backslashreplace").decode()[:chars]
    except Exception:
        return UNREADABLE


def _lines_of(text: object) -> list[str]:
    return [line[:MAX_LINE_CHARS] for line in _text(text, MAX_LINES_BYTES).splitlines()] or [""]


def _size(line: str) -> int:
    return (len(line) if line.isascii() else len(line.encode())) + 1


# --- what stands in Redis ----------------------------------------------------------------------------------------------------


Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]  # a stranger may have written any


class Report(msgspec.Struct, omit_defaults=True):
    """What a run that goes on has said: where its job stands, since when it runs, when it last said something new, how far it is,
    its newest lines and how many there were before those. Times are ms since the epoch, by the worker's clock.
    """

    place: str
    id: str
    type: str
    attempt: Count
    since_ms: Count
    at_ms: Count
    done: int | float | None = None
    total: int | float | None = None
    text: str = ""
    lines: list[str] = []
    before: Count = 0


class _Reports(msgspec.Struct):
    jobs: list[msgspec.Raw]
    left_out: Count = 0


def pack_reports(reports: Iterable[Report]) -> bytes:
    """Return one JSON object of what runs have said, the newest first; what is beyond MAX_PROGRESS_BYTES is counted."""
    packed: list[bytes] = []
    room, left_out = MAX_PROGRESS_BYTES, 0
    for report in sorted(reports, key=lambda report: -report.at_ms):
        one = msgspec.json.encode(report)
        room -= len(one) + 1
        if room >= 0:
            packed.append(one)
        else:
            left_out += 1
    return b'{"jobs":[' + b",".join(packed) + b'],"left_out":%d}' % left_out


def read_reports(data: bytes) -> tuple[list[Report], int]:
    """Return what `pack_reports` was given, and how many it left out; what cannot be read is as if it were not there."""
    try:
        found = msgspec.json.decode(data, type=_Reports)
    except (ValueError, RecursionError):
        return [], 0
    return [report for one in found.jobs for report in _read(one)], found.left_out


def _read(one: msgspec.Raw) -> list[Report]:
    try:
        report = msgspec.json.decode(one, type=Report)
    except (ValueError, RecursionError):
        return []
    report.lines = report.lines[-SHOWN_LINES:]
    if report.done is not None:
        progress = progress_of(report.done, report.total, report.text)
        report.done, report.total, report.text = progress.done, progress.total, progress.text
    return [report]


class Attempt(msgspec.Struct, omit_defaults=True):
    """A run that has ended: what became of it, its lines, how many there were `before` those, and the `error` it failed of."""

    id: str
    type: str
    attempt: int
    place: str
    outcome: str
    at_ms: int
    text: str
    before: int = 0
    error: str = ""

    def fields(self) -> list[str | int]:
        """Return names and values in turn, as they stand in Redis."""
        named = msgspec.structs.asdict(self)
        return [word for name, value in named.items() for word in ("at" if name == "at_ms" else name, value)]


def read_attempt(fields: dict[str, str]) -> Attempt:
    """Return the run of which these fields tell; what is missing or no number is empty or 0: a stranger may have written them."""
    texts = {name: fields.get(name, "") for name in ("id", "type", "place", "outcome", "text", "error")}
    return Attempt(**texts, attempt=_count(fields, "attempt"), at_ms=_count(fields, "at"), before=_count(fields, "before"))


def _count(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_NUMBER)) else 0
