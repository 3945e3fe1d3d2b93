"""The payloads and the results of `export-csv` and `import-data`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.sources import MAX_COLUMNS, Source
from handlers.contracts.types import Alias, Compression, Delimiter, Ident, Line, RootPath, check_path
from runtime import Priority, contract

MAX_NULL_CHARS: Final = 20  # "not available" fits
MAX_BAD_ROWS: Final = 5_000  # a guess: more are no few bad rows; all are kept in one value of the database, of below 1 MiB


@contract("export-csv", priority=Priority.MEDIUM)
class ExportCsv(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Export rows of a database, as they are at one moment, into one CSV file.

    `headers` renames columns in the first line. `null` stands for a missing value. `overwrite` replaces what an earlier job wrote
    there, never a file that no job wrote.
    """

    source: Source
    to: RootPath
    delimiter: Delimiter = ","
    encoding: Literal["utf-8", "utf-8-sig"] = "utf-8"
    headers: Annotated[dict[Line, Line], Meta(max_length=MAX_COLUMNS)] = {}
    null: Line = ""
    compress: Compression = "none"
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


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column of the table. `from` is the name of its values in the first line of a CSV file, or in each JSON object.

    Without `from` that is the name of the column. `null_as` is how a CSV file writes a missing value; in JSON it is `null`.
    """

    to: Ident
    source: Line = msgspec.field(default="", name="from")
    type: Literal["text", "int", "float", "decimal", "bool", "date", "timestamp", "json", "uuid"] = "text"
    required: bool = False
    null_as: Line = ""

    def __post_init__(self) -> None:
        """Check the text for NULL.

        Raises:
            ValueError: it is too long.
        """
        if len(self.null_as) > MAX_NULL_CHARS:
            raise ValueError(f"`null_as` must have at most {MAX_NULL_CHARS} characters")


class BadRows(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many rows may be refused before the job is dead, and the file that says which they are."""

    max: Annotated[int, Meta(ge=0, le=MAX_BAD_ROWS)] = 0
    to: RootPath | None = None


@contract("import-data", priority=Priority.MEDIUM)
class ImportData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Load a file of CSV, with names in its first line, or of JSON lines, an object each, into a table.

    `insert` adds all rows; `upsert` adds those whose `key` is new and changes the others; `replace` empties the table first, and
    shows all or nothing of the file. A `dry_run` does the same, and takes all of it back.
    """

    file: RootPath
    format: Literal["csv", "jsonl"]
    compress: Compression = "none"
    delimiter: Delimiter = ","
    db: Alias
    table: Ident
    columns: Annotated[list[Column], Meta(min_length=1, max_length=MAX_COLUMNS)]
    key: Annotated[list[Ident], Meta(max_length=8)] = []
    mode: Literal["insert", "upsert", "replace"] = "insert"
    bad_rows: BadRows = BadRows()
    batch: Annotated[int, Meta(ge=1, le=50_000)] = 10_000
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Check the paths, and that columns and key go together.

        Raises:
            ValueError: they do not; or a path is not in composed form (NFC).
        """
        check_path(self.file, "file")
        if self.bad_rows.to is not None:
            check_path(self.bad_rows.to, "bad_rows.to")
        names = [column.to for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError("`columns` must name each column of the table once")
        if len(set(self.key)) < len(self.key) or not set(self.key) <= set(names):
            raise ValueError("`key` must name columns of `columns`, each once")
        if bool(self.key) != (self.mode == "upsert"):
            raise ValueError("`key` is for mode `upsert`, which needs one")


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the rows: `rows` is the sum of `inserted`, `updated`, `unchanged` and `rejected`.

    `unchanged` are those that were in the table as they are, and those of a batch that another one of the same key followed.
    `bytes` are those of the file, `sha256` is its digest. `resumed_from` is where the last run began in the content: 0, but for
    one that went on after a crash.
    """

    rows: int
    inserted: int
    updated: int
    unchanged: int
    rejected: int
    reject_file: str
    resumed_from: int
    bytes: int
    sha256: str
