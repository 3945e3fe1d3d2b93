"""What a run says of itself: any value from a handler is read under a guard, and nothing grows without bound."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from runtime.said import (
    MAX_LINE_CHARS,
    MAX_LINES,
    MAX_LINES_BYTES,
    MAX_PROGRESS_BYTES,
    MAX_TEXT_CHARS,
    Attempt,
    Progress,
    Report,
    Said,
    pack_reports,
    progress_of,
    read_attempt,
    read_reports,
)
from tests.builders import job


class Mute:
    """What cannot be read in any way."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    def __float__(self) -> float:
        raise RuntimeError("no number")


class Shouting(str):
    """A text that lies of itself."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    def __getitem__(self, at: Any) -> str:
        raise RuntimeError("no characters")

    def splitlines(self, keepends: bool = False) -> list[str]:
        raise RuntimeError("no lines")


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [
        (3, 10, (3, 10)),
        (0.5, None, (0.5, None)),
        (0, 0, (0, None)),
        (-1, -5, (0, None)),
        (float("nan"), float("nan"), (0, None)),
        (float("inf"), float("-inf"), (0, None)),
        (10**400, 2**54, (0, None)),
        ("12", "x", (12.0, None)),
        (None, Mute(), (0, None)),
        (Mute(), Mute(), (0, None)),
        (True, [], (1.0, None)),
    ],
)
def test_what_is_no_number_of_things_is_none_done_and_no_total(done: Any, total: Any, expected: tuple[Any, Any]):
    assert progress_of(done, total) == Progress(*expected, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("half of it", "half of it"),
        ("two\nlines\x1b[31m", "two lines\x1b[31m"),
        (Mute(), "(unreadable)"),
        (Shouting("loud"), "loud"),
        (b"bytes", None),
        ("\ud800", "\\ud800"),
        ("é" * 10_000_000, "é" * MAX_TEXT_CHARS),
        (17, "17"),
    ],
    ids=["plain", "lines", "mute", "shouting", "bytes", "surrogate", "10 MB", "number"],
)
def test_a_text_is_one_line_that_can_be_written_whatever_was_given(text: Any, expected: str | None):
    found = progress_of(1, 2, text).text
    assert type(found) is str
    assert len(found) <= MAX_TEXT_CHARS
    assert found.encode()
    assert expected in (None, found)


@pytest.mark.parametrize("text", [Mute(), Shouting("a\nb"), "\ud800", "\x1b[2J\r\n\x00", "x" * 10_000_000, None, b"\xff"])
def test_a_job_never_fails_of_what_it_says(text: Any):
    one: Any = job()
    one.log(text)
    one.progress(text, text, text)
    said = one.extras.said
    assert said.lines
    assert all(type(line) is str and len(line) <= MAX_LINE_CHARS and "\n" not in line for line in said.lines)
    assert msgspec.json.encode([said.lines, said.progress])


def test_of_many_lines_the_newest_are_kept_within_both_bounds():
    said = Said()
    for n in range(1000):
        said.add(f"line {n}")
    assert len(said.lines) == MAX_LINES
    assert (said.lines[0], said.lines[-1], said.said) == ("line 800", "line 999", 1000)
    for n in range(1000):
        said.add("ü" * 300 + f" {n}")
    assert said.size == sum(len(line.encode()) + 1 for line in said.lines) <= MAX_LINES_BYTES
    assert said.lines[-1].endswith(" 999")
    said.add("\n".join(f"one of many {n}" for n in range(1000)))
    assert len(said.lines) <= MAX_LINES, "one text may bring more than there is room for"


def test_one_line_stays_however_long_it_is():
    said = Said()
    said.add("\N{GRINNING FACE}" * 10_000)
    assert said.lines == ["\N{GRINNING FACE}" * MAX_LINE_CHARS]
    assert said.newest(20) == said.lines
    assert said.newest(20, 100) == []


def test_threads_that_speak_at_once_lose_no_line_and_break_nothing():
    said = Said()

    def speak(name: str) -> None:
        for n in range(2000):
            said.add(f"{name} {n}")

    threads = [threading.Thread(target=speak, args=(str(at),)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert MAX_LINES - 4 <= len(said.lines) <= MAX_LINES
    assert sum(len(line) + 1 for line in said.newest()) <= MAX_LINES_BYTES


def test_a_size_that_threads_have_got_wrong_is_right_again_after_a_few_lines():
    said = Said()
    said.size = 2 * MAX_LINES_BYTES  # what two threads that subtract at once leave behind, in the end
    for n in range(200):
        said.add(f"line {n}")
    assert said.size == sum(len(line) + 1 for line in said.lines)
    assert len(said.lines) > 64


def test_what_a_run_has_said_is_taken_over_as_plain_values():
    one, other = Said(), Said()
    one.progress = progress_of(3, 7, "rows")
    one.add("a\nb")
    other.take_over(*one.told())
    assert (other.progress, other.lines, other.said, other.size) == (one.progress, ["a", "b"], 2, 4)


# --- what stands in Redis ----------------------------------------------------------------------------------------------------


def report(n: int = 0, **fields: Any) -> Report:
    return Report(**{"place": f"high/{n}-0", "id": f"j{n}", "type": "t", "attempt": 1, "since_ms": 1, "at_ms": n} | fields)


def test_reports_are_read_as_they_were_written_the_newest_first():
    reports = [report(1, done=3, total=7.5, text="rows"), report(2, lines=["a", "b"], before=5)]
    assert read_reports(pack_reports(reports)) == (reports[::-1], 0)


def test_of_too_many_reports_the_newest_are_written_and_the_others_counted():
    packed = pack_reports(report(n, lines=["x" * 400] * 20) for n in range(100))
    assert len(packed) < MAX_PROGRESS_BYTES + 100
    found, left_out = read_reports(packed)
    assert len(found) + left_out == 100
    assert [one.at_ms for one in found] == list(range(99, left_out - 1, -1))


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b'{"jobs":7}', b'{"jobs":' + b"[" * 100_000, b'{"jobs":[' + b'{"a":' * 100_000, b"9" * 10_000],
    ids=range(8),
)
def test_what_a_stranger_wrote_in_the_place_of_reports_is_none(data: bytes):
    assert read_reports(data) == ([], 0)


def test_a_report_that_cannot_be_read_hides_no_other():
    assert read_reports(b'{"jobs":[{"id":7},' + msgspec.json.encode(report(1)) + b"]}") == ([report(1)], 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"attempt": -1},
        {"attempt": 10**30},
        {"since_ms": "x"},
        {"at_ms": 2**60},
        {"before": -1},
        {"lines": 7},
        {"lines": [7]},
        {"text": None},
        {"done": "x"},
        {"place": 1},
    ],
)
def test_a_report_with_what_no_worker_writes_is_none(fields: dict[str, Any]):
    data = msgspec.json.encode({"jobs": [msgspec.structs.asdict(report()) | fields]})
    assert read_reports(data) == ([], 0)


def test_numbers_and_lines_of_a_stranger_s_report_are_bounded():
    written = msgspec.structs.asdict(report()) | {"done": 1e300, "total": 1e400, "lines": ["x"] * 10_000, "text": "y" * 10_000}
    data = msgspec.json.encode({"jobs": [written]}).replace(b'"total":null', b'"total":' + b"9" * 400)
    [found], _ = read_reports(data)
    assert (found.done, found.total, len(found.lines), len(found.text)) == (0, None, 20, 200)


def test_an_attempt_is_read_as_it_was_written_and_a_stranger_s_as_far_as_it_goes():
    one = Attempt("j", "t", 2, "high/1-0", "retry", 17, "a\nb", 3, "E: no")
    words = one.fields()
    assert words[:2] == ["id", "j"]
    assert read_attempt(dict(zip(map(str, words[::2]), map(str, words[1::2]), strict=True))) == one
    assert read_attempt({"attempt": "-1", "at": "9" * 400, "before": "٣"}) == Attempt("", "", 0, "", "", 0, "")
