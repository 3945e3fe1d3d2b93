"""Records of a file of CSV or JSON lines, and where each ends: a reader that was killed goes on between two of them.

A record that cannot be read is given with the reason, and the ones after it are read. Places are those in the content: of a
compressed file, in what it unpacks to.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, Final, Literal, Protocol, cast

import msgspec

from handlers.kit.failures import BAD_PAYLOAD, missing_package
from handlers.kit.files import chunks_of
from handlers.kit.threads import Stop
from runtime import Dead

try:
    import zstandard
except ImportError:  # only a file that is compressed so needs it
    zstandard = None

MAX_RECORD_BYTES: Final = 2**20  # a guess: a hundred times what people call a row; a quote that is not closed ends there
MAX_RATIO: Final = 200  # a guess: CSV is packed to a fifth or a tenth, a bomb to a thousandth
SLACK_BYTES: Final = 2**20  # what small files may have beyond that
PIECE_BYTES: Final = 1024  # unpacked at a time: at most 32 MiB, as four bytes of zstd may stand for 128 KiB (RFC 8878)
WINDOW_BYTES: Final = 8 * 2**20  # what RFC 8878 asks of every reader; files that were packed with `--ultra` or `--long` need more

# A field may be as large as a record; the module's own limit is 128 KiB, and for the whole process.
csv.field_size_limit(max(MAX_RECORD_BYTES, csv.field_size_limit()))

Record = tuple[int, Sequence[Any], str]
"""The line it begins in, its values, and what is wrong with it, if anything: then there are none."""


def uncut(names: Sequence[str]) -> str:
    """Return a hint where the names of columns look like a line that was not cut where it should be."""
    return "; hint: `delimiter`" if len(names) == 1 and set(names[0]) & set(",;|\t") else ""


class Records:
    """The records of an open file. `start` yields them; `offset` and `line` say where the last one ended."""

    def __init__(
        self,
        file: int,
        names: Sequence[str],
        stop: Stop,
        *,
        layout: Literal["csv", "jsonl"],
        compress: Literal["none", "gzip", "zstd"],
        delimiter: str,
    ) -> None:
        """Read the first line, and the file's digest. Without `names`, the values of a CSV file are those of all its columns.

        Raises:
            Dead: the first line lacks a name or has it twice, `bad-payload`; it cannot be read, `bad-rows`.
            Snooze: zstandard is not installed; `extra-missing`.
        """
        if compress == "zstd" and zstandard is None:
            raise missing_package("zstandard")
        self.offset = 0
        self.line = 0
        self.size_bytes = os.fstat(file).st_size
        self._file = file
        self._stop = stop
        self.names = names
        self._compress = compress
        self._delimiter = delimiter
        self._is_csv = layout == "csv"
        self._fault = ""
        self._record_end = 0
        self.sha256 = self._digest()
        self._places, self._width = self._first_line() if self._is_csv else ([], 0)

    @property
    def read_bytes(self) -> int:
        """How much of the file was read."""
        return os.lseek(self._file, 0, os.SEEK_CUR)

    def start(self, offset: int, line: int) -> Iterator[Record]:
        """Yield the records from there on; both 0 for the first.

        Raises:
            Dead: a record is `too-large`, or the file cannot be unpacked, `bad-rows`.
            Stopped: the job was cancelled.
        """
        if not self._is_csv:
            self.offset, self.line = offset, line
            return self._objects()
        if offset:
            self.offset, self.line = offset, line
        return self._rows()

    def _digest(self) -> str:
        digest = hashlib.sha256()
        os.lseek(self._file, 0, os.SEEK_SET)
        for chunk in chunks_of(self._file, self._stop):
            digest.update(chunk)
        return digest.hexdigest()

    # --- CSV ---

    def _first_line(self) -> tuple[list[int], int]:
        header = next(self._cells(), None)
        if header is None or header[2]:
            raise Dead(f"the first line must have the names of the columns: {header[2] if header else 'it is empty'}", "bad-rows")
        cells = list(header[1])
        self.names = self.names or cells
        for name in self.names:
            if cells.count(name) != 1:
                raise Dead(f"the first line has {cells.count(name)} columns named {name!r}, not one{uncut(cells)}", BAD_PAYLOAD)
        return [cells.index(name) for name in self.names], len(cells)

    def _rows(self) -> Iterator[Record]:
        places, width = self._places, self._width
        for line, cells, reason in self._cells():
            if reason:
                yield line, (), reason
            elif len(cells) == width:
                yield line, [cells[place] for place in places], ""
            else:
                yield line, (), f"has {len(cells)} cells, and the first line has {width}"

    def _cells(self) -> Iterator[Record]:
        """Yield records with all their cells; empty lines are none."""
        reader = csv.reader(self._texts(), delimiter=self._delimiter, strict=True)
        while True:
            line, self._fault, self._record_end = self.line + 1, "", self.offset + MAX_RECORD_BYTES
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield line, (), "is not CSV (RFC 4180)"
                continue
            if self._fault:
                yield line, (), self._fault
            elif cells:
                yield line, cells, ""

    def _texts(self) -> Iterator[str]:
        for line in self._lines():
            if self.offset > self._record_end:
                raise Dead(f"line {self.line}: a record must have at most {MAX_RECORD_BYTES} bytes", "too-large")
            if b"\0" in line:
                self._fault = "has a NUL character"
            try:
                yield line.decode()
            except UnicodeDecodeError:
                self._fault = "is not UTF-8"
                yield line.decode(errors="replace")

    # --- JSON lines ---

    def _objects(self) -> Iterator[Record]:
        decode = msgspec.json.Decoder(float_hook=Decimal).decode
        names = self.names
        for line in self._lines():
            if line.isspace():
                continue
            try:
                found = decode(line)
            except (ValueError, RecursionError):
                yield self.line, (), "is not JSON"
                continue
            if found.__class__ is dict:
                get = cast("dict[str, Any]", found).get
                yield self.line, [get(name) for name in names], ""
            else:
                yield self.line, (), "is not a JSON object"

    # --- bytes ---

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines from `offset` on, with their ends, and move it and `line` behind each before it is yielded."""
        rest = b""
        for chunk in self._content():
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                yield self._moved(line + b"\n")
            if len(rest) > MAX_RECORD_BYTES:
                raise Dead(f"line {self.line + 1} must have at most {MAX_RECORD_BYTES} bytes", "too-large")
        if rest:
            yield self._moved(rest)

    def _moved(self, line: bytes) -> bytes:
        is_first = self.offset == 0
        self.offset += len(line)
        self.line += 1
        return line.removeprefix(codecs.BOM_UTF8) if is_first else line

    def _content(self) -> Iterator[bytes]:
        """Yield the content from `offset` on."""
        if self._compress == "none":
            os.lseek(self._file, self.offset, os.SEEK_SET)
            yield from chunks_of(self._file, self._stop)
            return
        os.lseek(self._file, 0, os.SEEK_SET)
        skip = self.offset
        for chunk in _unpacked(chunks_of(self._file, self._stop), self._compress, MAX_RATIO * self.size_bytes + SLACK_BYTES):
            if skip < len(chunk):
                yield chunk[skip:]
            skip = max(0, skip - len(chunk))


class _Unpacker(Protocol):
    """What both libraries give: it unpacks one stream, of which a file may hold several."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _unpacker(compress: str) -> _Unpacker:
    if compress == "gzip" or zstandard is None:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    return cast("_Unpacker", zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj())


def _unpacked(chunks: Iterator[bytes], compress: str, limit_bytes: int) -> Iterator[bytes]:
    """Yield what packed chunks hold.

    Raises:
        Dead: that is more than the limit, `too-large`; it is damaged, or ends too early, `bad-rows`.
    """
    unpacker, size_bytes = _unpacker(compress), 0
    is_between = False  # two streams
    for piece in (chunk[at : at + PIECE_BYTES] for chunk in chunks for at in range(0, len(chunk), PIECE_BYTES)):
        rest = piece
        while rest:
            if unpacker.eof:
                unpacker = _unpacker(compress)
            found = _checked(unpacker.decompress, rest, compress)
            rest, is_between = (unpacker.unused_data, True) if unpacker.eof else (b"", False)
            size_bytes += len(found)
            if size_bytes > limit_bytes:
                raise Dead(f"the file must unpack to at most {limit_bytes} bytes: {MAX_RATIO} times its own", "too-large")
            yield found
    if not is_between:
        raise Dead(f"the file ends within a stream of {compress}", "bad-rows")


def _checked(unpack: Callable[[bytes], bytes], data: bytes, compress: str) -> bytes:
    try:
        return unpack(data)
    except zlib.error:
        raise Dead(f"the file is not {compress}, or is damaged", "bad-rows") from None
    except Exception as error:
        if zstandard is None or not isinstance(error, zstandard.ZstdError):
            raise
        raise Dead(f"the file is not {compress}, is damaged, or needs more than {WINDOW_BYTES} bytes", "bad-rows") from None
