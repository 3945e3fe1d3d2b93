"""Records of files: the same ones from wherever a reader goes on, however the file is packed and cut into chunks."""

from __future__ import annotations

import csv
import gzip
import io
import os
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from handlers.kit import files, records
from handlers.kit.records import Record, Records
from handlers.kit.threads import Stop

PACKS: dict[str, Any] = {"none": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r\ufeff"), max_size=6) | st.sampled_from(
    ["\n", "\r\n", '"', '","', "x" * 300, "ü\n" * 20]
)


class File:
    """A file in memory."""

    def __init__(self, content: bytes) -> None:
        self.file = os.memfd_create("records")
        os.write(self.file, content)

    def __enter__(self) -> int:
        return self.file

    def __exit__(self, *_: object) -> None:
        os.close(self.file)


def reader(file: int, **options: Any) -> Records:
    return Records(file, ["a", "b"], Stop(), **{"layout": "csv", "compress": "none", "delimiter": ",", **options})


def all_places(found: Records) -> tuple[list[Record], list[tuple[int, int]]]:
    """Return all records, and where each ended."""
    every, places = list[Record](), list[tuple[int, int]]()
    for record in found.start(0, 0):
        every.append(record)
        places.append((found.offset, found.line))
    return every, places


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, CELL), max_size=6),
    compress=st.sampled_from(["none", "gzip", "zstd"]),
    chunk_bytes=st.sampled_from([1, 3, 7, 64, 100_000]),
    has_mark=st.booleans(),
    is_ended=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_records_are_those_of_any_reader_from_every_place(
    rows: list[tuple[str, str]], compress: str, chunk_bytes: int, has_mark: bool, is_ended: bool, line_end: str
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows([("b", "a"), *rows])
    content = text.getvalue().encode()
    content = (b"\xef\xbb\xbf" if has_mark else b"") + (
        content if is_ended or not rows else content.removesuffix(line_end.encode())
    )
    with pytest.MonkeyPatch.context() as patch, File(PACKS[compress](content)) as file:
        patch.setattr(files, "CHUNK_BYTES", chunk_bytes)
        found = reader(file, compress=compress)
        every, places = all_places(found)
        assert [(list(values), reason) for _, values, reason in every] == [([a, b], "") for b, a in rows]
        assert len({line for line, _, _ in every}) == len(rows)
        for at, (offset, line) in enumerate(places):
            assert list(reader(file, compress=compress).start(offset, line)) == every[at + 1 :]
        assert found.offset == len(content) or not rows


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(-(2**70), 2**70) | st.text(max_size=5))),
    chunk_bytes=st.sampled_from([1, 5, 100_000]),
)
def test_objects_are_those_of_any_reader_from_every_place(values: list[dict[str, Any]], chunk_bytes: int) -> None:
    content = b"\r\n".join(msgspec.json.encode(value) for value in values)
    with pytest.MonkeyPatch.context() as patch, File(content) as file:
        patch.setattr(files, "CHUNK_BYTES", chunk_bytes)
        every, places = all_places(reader(file, layout="jsonl"))
        assert every == [(n, [value.get("a"), value.get("b")], "") for n, value in enumerate(values, 1)]
        for at, (offset, line) in enumerate(places):
            assert list(reader(file, layout="jsonl").start(offset, line)) == every[at + 1 :]


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl"]))
def test_no_bytes_break_the_reader_and_each_line_is_told_once(content: bytes, layout: Any) -> None:
    with File(b"a,b\n" * (layout == "csv") + content) as file:
        every, _ = all_places(reader(file, layout=layout))
    lines = [line for line, _, _ in every]
    assert lines == sorted(set(lines))
    assert all(reason or len(values) == 2 for _, values, reason in every)


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_what_is_unpacked_at_a_time_is_bounded(compress: str) -> None:
    """However much a piece of the file stands for: the reader gives up within one more piece."""
    packed = PACKS[compress](bytes(200_000_000))
    with File(packed) as file:
        os.lseek(file, 0, os.SEEK_SET)
        sizes = []
        with pytest.raises(records.Dead, match="must unpack to at most"):
            for chunk in records._unpacked(files.chunks_of(file, Stop()), compress, 10_000_000):
                sizes.append(len(chunk))
    assert sum(sizes) <= 10_000_000
    assert max(sizes, default=0) <= 32 * 2**20
