"""Rows as CSV text (RFC 4180): equal rows make equal bytes, and no cell is a formula to a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from runtime import Dead

CHUNK_CHARS: Final = 64 * 1024  # a guess: large enough for few writes, small enough that a stop is noticed within ms
BOM: Final = b"\xef\xbb\xbf"

# How a formula begins (OWASP, "CSV Injection"), with the full-width forms that spreadsheets take for the same. And U+FEFF: at the
# head of a file it would be taken for the byte order mark, and the cell would begin with what follows.
FORMULA: Final = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20\ufeff")


class CsvText:
    """Turns rows into chunks of CSV, one in memory at a time, and counts the rows and the texts that it escaped.

    Only texts are escaped: a number that the database knows as a number cannot be a formula, even if it is negative.
    """

    def __init__(self, *, delimiter: str, null: str, formulas: str, encoding: str) -> None:
        self.rows = 0
        self.escaped = 0
        self._delimiter = delimiter
        self._is_rejected = formulas == "reject"
        self._formula: frozenset[str] = frozenset() if formulas == "keep" else FORMULA
        self._null = null if null[:1] not in self._formula else f"'{null}"
        self._bom = BOM if encoding == "utf-8-sig" else b""

    def head(self, names: Sequence[str]) -> bytes:
        """Return the header line, after the byte order mark if the encoding has one."""
        buffer = io.StringIO(newline="")
        csv.writer(buffer, delimiter=self._delimiter, lineterminator="\r\n").writerow(self._cells(names))
        self.escaped = 0  # the count is of rows only
        return self._bom + buffer.getvalue().encode()

    def chunks(self, rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
        """Yield the lines of the rows, `CHUNK_CHARS` at a time.

        Raises:
            Dead: a text begins like a formula, and `formulas` is `reject`; `bad-rows`.
        """
        size_chars = 0
        buffer = io.StringIO(newline="")
        write = csv.writer(buffer, delimiter=self._delimiter, lineterminator="\r\n").writerow
        for row in rows:
            self.rows += 1
            size_chars += write(self._cells(row))
            if size_chars >= CHUNK_CHARS:
                yield buffer.getvalue().encode()
                buffer.seek(0)
                buffer.truncate()
                size_chars = 0
        yield buffer.getvalue().encode()

    def _cells(self, row: Sequence[Any]) -> list[Any]:
        """Return the cells for the values; texts, which are most of them, cost no call (`bench/export_csv.py`)."""
        formula, plain = self._formula, self._plain
        return [
            (cell if cell[:1] not in formula else self._escape(cell)) if cell.__class__ is str else plain(cell) for cell in row
        ]

    def _plain(self, cell: Any) -> Any:
        """Return what the CSV writer makes the text of; bytes and truths are written as PostgreSQL does, lists as JSON."""
        match cell:
            case None:
                return self._null
            case bool():
                return "true" if cell else "false"
            case bytes():
                return f"\\x{cell.hex()}"
            case list() | tuple():
                return msgspec.json.encode(cell, enc_hook=str).decode()
            case _:
                return cell

    def _escape(self, cell: str) -> str:
        if self._is_rejected:
            where = f"row {self.rows}" if self.rows else "the first line"
            raise Dead(f"a text in {where} begins like a formula", "bad-rows")
        self.escaped += 1
        return f"'{cell}"
