"""Tables of documents: text in columns, of as many rows as there are, over as many pages as they need.

reportlab's own table measures and splits all that is left of it at each page; this one knows where each row stands, so that its
time grows with its rows alone (`bench/handlers_pdf.py`). Its cells are drawn as they are: they are never read as markup.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Final

import msgspec
from reportlab.lib.units import mm
from reportlab.platypus import Flowable

from handlers.kit.charts import INK, MUTED, RULE
from handlers.kit.fonts import BOLD, REGULAR, width_of

SIZE_PT: Final = 8.0
LEADING_PT: Final = 11.0
PAD_PT: Final = 3.5  # above and below a row
BETWEEN_PT: Final = 4 * mm  # columns
MAX_LINES: Final = 40  # of a cell; as many fit a page


class Look(msgspec.Struct, frozen=True):
    """The columns of a grid: widths, which of them stand right, and the lines of their titles."""

    widths: list[float]
    is_right: list[bool]
    titles: list[list[str]]

    @property
    def head_pt(self) -> float:
        """The height of the titles."""
        return max(map(len, self.titles)) * LEADING_PT + 2 * PAD_PT


class Grid(Flowable):
    """Rows `begin` to `end` of a table, below their titles; a page shows what fits of them."""

    def __init__(
        self, look: Look, rows: Sequence[Sequence[list[str]]], offsets: list[float], on_rows: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._look = look
        self._rows = rows
        self._offsets = offsets
        self._on_rows = on_rows
        self._begin, self._end = 0, len(rows)

    def wrap(self, aW: float, aH: float) -> tuple[float, float]:
        """Return the width and the height."""
        self.width = aW
        self.height = self._look.head_pt + self._offsets[self._end] - self._offsets[self._begin]
        return self.width, self.height

    def split(self, aW: float, aH: float) -> list[Flowable]:
        """Return what fits and what is left; nothing if not even one row fits."""
        room = aH - self._look.head_pt + self._offsets[self._begin]
        end = min(bisect_right(self._offsets, room + 1e-6) - 1, self._end)
        if end <= self._begin:
            return []
        return [self._part(self._begin, end), self._part(end, self._end)]

    def _part(self, begin: int, end: int) -> Grid:
        part = Grid(self._look, self._rows, self._offsets, self._on_rows)
        part._begin, part._end = begin, end
        return part

    def draw(self) -> None:
        """Draw the titles and the rows."""
        canvas: Any = self.canv
        look = self._look
        top = self.height
        canvas.setLineWidth(0.9)
        canvas.setStrokeColor(INK)
        canvas.setFillColor(MUTED)
        self._row(canvas, look.titles, top, BOLD)
        top -= look.head_pt
        canvas.line(0, top, self.width, top)
        canvas.setLineWidth(0.4)
        canvas.setStrokeColor(RULE)
        canvas.setFillColor(INK)
        for number in range(self._begin, self._end):
            self._row(canvas, self._rows[number], top, REGULAR)
            top -= self._offsets[number + 1] - self._offsets[number]
            canvas.line(0, top, self.width, top)
        self._on_rows(self._end - self._begin)

    def _row(self, canvas: Any, cells: Sequence[list[str]], top: float, font: str) -> None:
        canvas.setFont(font, SIZE_PT)
        x = 0.0
        for lines, width, is_right in zip(cells, self._look.widths, self._look.is_right, strict=True):
            y = top - PAD_PT - SIZE_PT
            for line in lines:
                if is_right:
                    canvas.drawRightString(x + width, y, line)
                else:
                    canvas.drawString(x, y, line)
                y -= LEADING_PT
            x += width + BETWEEN_PT


def grid(
    titles: Sequence[str], is_right: Sequence[bool], rows: Sequence[Sequence[str]], width: float, on_rows: Callable[[int], None]
) -> Grid:
    """Return a table of this width, with columns as wide as their texts need, and texts broken where they need too much."""
    widths = _widths(titles, rows, width - BETWEEN_PT * (len(titles) - 1))
    look = Look(widths, list(is_right), [wrapped(title, BOLD, room) for title, room in zip(titles, widths, strict=True)])
    broken = [[wrapped(cell, REGULAR, room) for cell, room in zip(row, widths, strict=True)] for row in rows]
    heights = (max(map(len, row)) * LEADING_PT + 2 * PAD_PT for row in broken)
    return Grid(look, broken, list(accumulate(heights, initial=0.0)), on_rows)


def _widths(titles: Sequence[str], rows: Sequence[Sequence[str]], width: float) -> list[float]:
    wanted = [width_of(title, BOLD, SIZE_PT) for title in titles]
    for row in rows:
        wanted = [max(want, width_of(cell, REGULAR, SIZE_PT)) for want, cell in zip(wanted, row, strict=True)]
    rest = width - sum(wanted)
    if rest >= 0:
        return [want + rest / len(wanted) for want in wanted]
    return [min(want, _cap(wanted, width)) for want in wanted]


def _cap(wanted: Sequence[float], width: float) -> float:
    """Return the most that a column may have so that all of them have `width`: narrow ones keep theirs."""
    for number, want in enumerate(sorted(wanted)):
        share = width / (len(wanted) - number)
        if want > share:
            return share
        width -= want
    return width


def wrapped(text: str, font: str, width: float) -> list[str]:
    """Return the lines of a text, each within the width; a word that is longer is broken anywhere."""
    if width_of(text, font, SIZE_PT) <= width:
        return [text]
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if width_of(longer, font, SIZE_PT) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        *full, line = _pieces(word, font, width)
        lines += full
    lines.append(line)
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], "…"]


def _pieces(word: str, font: str, width: float) -> list[str]:
    pieces = [""]
    used = 0.0
    for character in word:
        wide = width_of(character, font, SIZE_PT)
        if used + wide > width and pieces[-1]:
            pieces.append("")
            used = 0.0
        pieces[-1] += character
        used += wide
    return pieces


def fitting(text: str, font: str, size_pt: float, width: float) -> str:
    """Return a line that is cut where it would be too wide."""
    if width_of(text, font, size_pt) <= width:
        return text
    ends = list(accumulate(width_of(character, font, size_pt) for character in text))
    return f"{text[: bisect_right(ends, width - size_pt)]}…"
