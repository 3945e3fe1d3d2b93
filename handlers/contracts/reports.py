"""The payloads and the results of `export-pdf` and `generate-reports`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.deliveries import Delivery, Page, ReportFile
from handlers.contracts.sources import Source
from handlers.contracts.types import Alias, Line, Params, RootPath, check_params, check_path
from handlers.contracts.windows import Window
from runtime import Priority, contract

MAX_TABLES: Final = 10
MAX_TITLE_CHARS: Final = 200

Language = Annotated[str, Meta(pattern=r"^[a-z]{2}(?:-[A-Z]{2})?(?![\s\S])", description="a language: `en`, `de-CH`")]


@contract("export-pdf", priority=Priority.HIGH)
class ExportPdf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fill in a document of the worker, and write it as a PDF file.

    Its values are `data`, or what stands in `data_file`, a JSON object; `tables` are rows of databases, by the names that the
    document knows them by. `lang` is noted in the file, and says how numbers are written.
    """

    document: Alias
    to: RootPath
    data: Params = {}
    data_file: RootPath | None = None
    tables: Annotated[dict[Alias, Source], Meta(max_length=MAX_TABLES)] = {}
    page: Page = "A4"
    title: Line = ""
    lang: Language = "en"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the paths, the values and the title.

        Raises:
            ValueError: a path is not in composed form (NFC), there are two sources of values, or they are too many, too deep or
                too large.
        """
        check_path(self.to, "to")
        if self.data_file is not None:
            check_path(self.data_file, "data_file")
            if self.data:
                raise ValueError("must have either `data` or `data_file`")
        check_params(self.data)
        if len(self.title) > MAX_TITLE_CHARS:
            raise ValueError(f"must have at most {MAX_TITLE_CHARS} characters - at `$.title`")


class PdfExported(msgspec.Struct, frozen=True, kw_only=True):
    """The file that was written. `missing_glyphs` counts the characters that its fonts do not have, drawn as U+FFFD."""

    path: str
    pages: int
    bytes: int
    sha256: str
    missing_glyphs: int


Format = Literal["pdf", "html", "csv", "json"]


def default_formats() -> list[Format]:
    """Return the formats of a report that names none."""
    return ["pdf", "html"]


@contract("generate-reports", priority=Priority.LOW)
class GenerateReports(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make a report of the worker about a stretch of time, in a folder of its own below the root `to`, and say so to people."""

    report: Alias
    window: Window
    to: Alias = "reports"
    formats: Annotated[list[Format], Meta(min_length=1, max_length=4)] = msgspec.field(default_factory=default_formats)
    params: Params = {}
    deliver: Delivery | None = None
    lang: Language = "en"
    page: Page = "A4"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: they are nested too deep, too many, too large, or hold control characters; or a format is named twice.
        """
        check_params(self.params)
        if len(set(self.formats)) < len(self.formats):
            raise ValueError("must name each format once - at `$.formats`")


class ReportsGenerated(msgspec.Struct, frozen=True, kw_only=True):
    """The report: its folder, with the root, and its files. `delivered` is the id of the job that tells people of it."""

    title: str
    folder: str
    files: list[ReportFile]
    rows: int
    delivered: str | None = None
