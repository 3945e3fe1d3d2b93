"""The payload and the result of `export-csv`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.sources import MAX_COLUMNS, Source
from handlers.contracts.types import Line, RootPath, check_path
from runtime import Priority, contract

MAX_NULL_CHARS: Final = 20  # "not available" fits


@contract("export-csv", priority=Priority.MEDIUM)
class ExportCsv(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Export rows of a database, as they are at one moment, into one CSV file.

    `headers` renames columns in the first line. `null` stands for a missing value. `overwrite` replaces what an earlier job wrote
    there, never a file that no job wrote.
    """

    source: Source
    to: RootPath
    delimiter: Literal[",", ";", "tab", "|"] = ","
    encoding: Literal["utf-8", "utf-8-sig"] = "utf-8"
    headers: Annotated[dict[Line, Line], Meta(max_length=MAX_COLUMNS)] = {}
    null: Line = ""
    compress: Literal["none", "gzip"] = "none"
    formulas: Literal["escape", "keep", "reject"] = "escape"
    max_rows: Annotated[int, Meta(ge=1, le=100_000_000)] = 10_000_000
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the path and the text for NULL.

        Raises:
            ValueError: the path is not in composed form (NFC), or the text is too long.
        """
        check_path(self.to, "to")
        if len(self.null) > MAX_NULL_CHARS:
            raise ValueError(f"must have at most {MAX_NULL_CHARS} characters - at `$.null`")


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """The file that was written: `bytes` and `sha256` are those of the file on disk, compressed or not."""

    path: str
    rows: int
    bytes: int
    sha256: str
    columns: int
    escaped: int
