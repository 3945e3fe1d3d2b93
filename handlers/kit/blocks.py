"""What a document is made of: blocks, and rows for some of them. `documents` fills them in, `pages` and `web` draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias
from runtime import Dead

# Guesses, far above what fits a page:
MAX_BLOCKS: Final = 500
MAX_COLUMNS: Final = 30
MAX_SERIES: Final = 6  # as many as there are colours that can be told apart
MAX_POINTS: Final = 400  # of a chart: about one per 0.4 mm
MAX_CELL_CHARS: Final = 2000  # the rest of a longer text is cut off, so that a row fits a page

SEPARATORS: Final = {
    "de": (".", ","),
    "fr": ("\xa0", ","),
    "es": (".", ","),
    "it": (".", ","),
    "nl": (".", ","),
    "pl": ("\xa0", ","),
}

Pairs = list[tuple[str, str]] | str
"""A label and its value, again and again; or the name of such a list in the data."""


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """A part of a document. It is left out where `when`, an expression, is not true."""

    when: str = ""


class Heading(Block, frozen=True, kw_only=True, tag="heading"):
    """A heading; level 1 is the largest."""

    text: str
    level: Literal[1, 2, 3] = 2


class Paragraph(Block, frozen=True, kw_only=True, tag="paragraph"):
    """A text in which `<b>`, `<i>` and `<br/>` count, where the definition has them; in data they are plain text."""

    text: str
    style: Literal["normal", "small", "lead"] = "normal"
    align: Literal["left", "right"] = "left"


class Values(Block, frozen=True, kw_only=True, tag="values"):
    """Labels with their values, one a line."""

    rows: Pairs
    align: Literal["left", "right"] = "left"


class Figures(Block, frozen=True, kw_only=True, tag="figures"):
    """A few numbers in large type, side by side."""

    rows: Pairs


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column of a table: that of the rows by this name, or for each row what `value`, an expression, makes of `row`.

    With `decimals` its numbers are grouped and rounded, and stand right.
    """

    name: str
    title: str | None = None
    value: str = ""
    decimals: Annotated[int, Meta(ge=0, le=9)] | None = None
    align: Literal["left", "right", ""] = ""

    @property
    def is_right(self) -> bool:
        """Whether its cells stand right."""
        return self.align == "right" or (not self.align and self.decimals is not None)


class Table(Block, frozen=True, kw_only=True, tag="table"):
    """Rows, by the name of a table or of a list in the data; without `columns`, with all that they have. `totals` stand below."""

    rows: str
    columns: Annotated[list[Column], Meta(max_length=MAX_COLUMNS)] = []
    totals: Pairs = []
    empty: str = "None."


class Image(Block, frozen=True, kw_only=True, tag="image"):
    """A PNG or JPEG file below a root; `path` is `root:relative/path`."""

    path: str
    width_mm: Annotated[float, Meta(ge=5, le=200)] = 40.0
    align: Literal["left", "right"] = "left"


class Chart(Block, frozen=True, kw_only=True, tag="chart"):
    """Numbers of a table as lines or bars: `label` is the column below the axis, `values` are drawn."""

    chart: Literal["line", "bar"]
    rows: str
    label: str
    values: Annotated[list[str], Meta(min_length=1, max_length=MAX_SERIES)]
    titles: list[str] = []
    height_mm: Annotated[float, Meta(ge=20, le=200)] = 60.0


class PageBreak(Block, frozen=True, kw_only=True, tag="page-break"):
    """The rest begins on a new page."""


class Columns(Block, frozen=True, kw_only=True, tag="columns"):
    """Blocks side by side, in parts of equal width; all of them must fit one page."""

    parts: Annotated[list[list[Heading | Paragraph | Values | Image]], Meta(min_length=2, max_length=3)]


AnyBlock = Heading | Paragraph | Values | Figures | Table | Image | Chart | PageBreak | Columns


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named query of a report; texts among its `params` are templates."""

    db: Alias
    query: Alias
    params: dict[str, Any] = {}


class Definition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A document as its author has written it, in which all texts are templates. One with `queries` is a report."""

    title: str
    blocks: Annotated[list[AnyBlock], Meta(max_length=MAX_BLOCKS)]
    queries: Annotated[dict[Alias, Query], Meta(max_length=10)] = {}


class Sheet:
    """Rows with the names of their columns. Templates may call the methods, too."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.columns = list(columns)
        self.rows = rows

    def __repr__(self) -> str:
        return f"<Sheet: {len(self.rows)} of {len(self.columns)} columns>"

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.rows)

    def at(self, name: str) -> int:
        """Return the place of a column.

        Raises:
            Dead: there is none of that name; `template-error`.
        """
        try:
            return self.columns.index(name)
        except ValueError:
            raise Dead(f"no column {name!r}", "template-error") from None

    def total(self, name: str) -> Any:
        """Return the sum of a column without its NULLs, exact for whole numbers and decimals."""
        place = self.at(name)
        numbers = [row[place] for row in self.rows if row[place] is not None]
        return math.fsum(numbers) if any(isinstance(number, float) for number in numbers) else sum(numbers)

    def first(self, name: str) -> Any:
        """Return the value of the first row; None if there is no row."""
        return self.rows[0][self.at(name)] if self.rows else None

    def last(self, name: str) -> Any:
        """Return the value of the last row; None if there is no row."""
        return self.rows[-1][self.at(name)] if self.rows else None


class Cells(msgspec.Struct, frozen=True):
    """A table as texts: its titles, which of the columns stand right, and its rows."""

    titles: list[str]
    is_right: list[bool]
    rows: list[list[str]]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A document that only has to be drawn: all its texts are final."""

    title: str
    blocks: Sequence[AnyBlock]
    tables: Mapping[int, Sheet]
    """The rows of tables and charts, by the place of their block."""
    page: Literal["A4", "letter"] = "A4"
    lang: str = "en"


def cells_of(block: Table, sheet: Sheet, lang: str) -> Cells:
    """Return the texts of a table.

    Raises:
        Dead: a column is missing, or there are more than fit a page; `template-error`.
    """
    columns = block.columns or [Column(name=name) for name in sheet.columns]
    if len(columns) > MAX_COLUMNS:
        raise Dead(f"a table must have at most {MAX_COLUMNS} columns; hint: name `columns`", "template-error")
    formats = [(sheet.at(column.name), column.decimals) for column in columns]
    return Cells(
        [column.name if column.title is None else column.title for column in columns],
        [column.is_right for column in columns],
        [[_cut(shown(row[place], lang, decimals)) for place, decimals in formats] for row in sheet.rows],
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CELL_CHARS else f"{text[:MAX_CELL_CHARS]}…"


def shown(value: Any, lang: str, decimals: int | None = None) -> str:
    """Return a value as people read it."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case bytes():
            return f"\\x{value.hex()}"
        case int() | float() | Decimal() if decimals is not None:
            # A whole number of any size is no float, but a decimal.
            return _grouped(f"{Decimal(value) if isinstance(value, int) else value:,.{decimals}f}", lang)
        case float():
            return f"{value:.15g}"
        case _:
            return str(value)


def _grouped(text: str, lang: str) -> str:
    thousands, point = SEPARATORS.get(lang.partition("-")[0], (",", "."))
    return text.translate({ord(","): thousands, ord("."): point, ord("-"): "\u2212"})
