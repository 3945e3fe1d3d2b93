"""Documents as PDF. Equal documents make equal bytes; nothing in one is fetched from anywhere, followed or run."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

import msgspec
from PIL import Image as Picture
from reportlab import rl_config
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4, letter
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, CondPageBreak, Flowable, Frame, PageTemplate, Paragraph, Spacer
from reportlab.platypus import Image as Pictured
from reportlab.platypus import PageBreak as NewPage
from reportlab.platypus import Table as Parts
from reportlab.platypus.doctemplate import LayoutError

from handlers.kit import blocks
from handlers.kit.blocks import Document, Sheet
from handlers.kit.charts import INK, MUTED, RULE, draw
from handlers.kit.fonts import BOLD, REGULAR, Glyphs, width_of
from handlers.kit.grids import fitting, grid
from runtime import Dead

MAX_PAGES: Final = 5000
MAX_PIXELS: Final = 20_000_000
MARGIN: Final = 20 * mm
FOOT: Final = 11 * mm  # where the line at the foot of a page stands
GAP: Final = 4.5 * mm  # below a block
KEPT: Final = 30 * mm  # a heading with less below it goes to the next page
FOOT_PT: Final = 7
FOOT_WIDTH: Final = 8 * mm  # for how many pages there are
TOTAL: Final = "total"  # the form that says how many pages there are, which is known when the last one is drawn
TALLEST: Final = 200 * mm  # an image: it fits a page with what is around it
SIZES: Final = {"A4": A4, "letter": letter}

# reportlab opens what an <img src="…"> of a paragraph names, by any scheme. No such mark reaches it; this is the second lock.
rl_config.trustedSchemes = []
rl_config.trustedHosts = []

_MARK: Final = re.compile(r"(</?[bi]>|<br ?/?>)")

BODY: Final = ParagraphStyle("body", fontName=REGULAR, fontSize=9.2, leading=13.6, textColor=INK, splitLongWords=1)
STYLES: Final = {
    "normal": BODY,
    "small": ParagraphStyle("small", BODY, fontSize=7.6, leading=11, textColor=MUTED),
    "lead": ParagraphStyle("lead", BODY, fontSize=10.5, leading=16, textColor=MUTED),
}
HEADINGS: Final = (
    ParagraphStyle("h1", BODY, fontName=BOLD, fontSize=19, leading=24),
    ParagraphStyle("h2", BODY, fontName=BOLD, fontSize=12, leading=16, spaceBefore=3 * mm),
    ParagraphStyle("h3", BODY, fontName=BOLD, fontSize=9.6, leading=13.6),
)
LABEL: Final = ParagraphStyle("label", BODY, fontSize=7.6, textColor=MUTED)
FIGURE: Final = ParagraphStyle("figure", BODY, fontName=BOLD, fontSize=15, leading=20)

Pictures = Callable[[str], bytes]


class Laid(msgspec.Struct, frozen=True):
    """A PDF, and what was counted on the way."""

    data: bytes
    pages: int
    missing_glyphs: int


def pdf(document: Document, pictures: Pictures, on_rows: Callable[[int], None]) -> Laid:
    """Return the document as PDF.

    Args:
        document: what to draw.
        pictures: returns the bytes of an image by its path below a root.
        on_rows: told how many rows of tables are drawn.

    Raises:
        Dead: too many pages, pixels or points, `too-large`; a block that does not fit a page, or a column that is missing,
            `template-error`.
    """
    drawn = _Drawn(document, pictures, on_rows)
    out = io.BytesIO()
    template = _Template(out, document, drawn.glyphs)
    story = drawn.story()
    try:
        template.build(story, canvasmaker=_Canvas)
    except Exception as error:
        raise _plain(error) from None
    return Laid(out.getvalue(), template.page, drawn.glyphs.missing)


class _TooLong(Exception):
    """There are more pages than there may be."""


def _plain(error: Exception) -> Exception:
    """Return what to raise for what went wrong in reportlab, which adds texts of the document to each error."""
    match error:
        case _TooLong():
            return Dead(f"a document must have at most {MAX_PAGES} pages", "too-large")
        case LayoutError():
            return Dead("a block does not fit a page", "template-error")
        case MemoryError():
            return MemoryError("a document takes too much memory")
        case _:
            return RuntimeError(f"a document cannot be laid out: {type(error).__name__}")


class _Canvas(Canvas):
    """Adds, when all pages are drawn, the form that says how many there are."""

    def save(self) -> None:
        form: Any = self  # its forms have no types
        pages = self.getPageNumber() - 1
        form.beginForm(TOTAL)
        self.setFont(REGULAR, FOOT_PT)
        self.setFillColor(MUTED)
        self.drawString(form._pagesize[0] - MARGIN - FOOT_WIDTH, FOOT, f" / {pages}")
        form.endForm()
        super().save()


class _Template(BaseDocTemplate):
    """The page: one column between margins, and at its foot the title and which page it is."""

    def __init__(self, out: io.BytesIO, document: Document, glyphs: Glyphs) -> None:
        size = SIZES[document.page]
        self._title = glyphs.known(document.title)
        super().__init__(
            out, pagesize=size, title=self._title, lang=document.lang, invariant=1, pageCompression=1, creator="", producer=""
        )
        frame = Frame(MARGIN, MARGIN, size[0] - 2 * MARGIN, size[1] - 2 * MARGIN, 0, 0, 0, 0)
        self.addPageTemplates(PageTemplate("page", [frame], onPage=self._foot, pagesize=size))

    def _foot(self, canvas: Any, _: BaseDocTemplate) -> None:
        if self.page > MAX_PAGES:
            raise _TooLong
        width = self.pagesize[0] - 2 * MARGIN - FOOT_WIDTH
        canvas.saveState()
        canvas.setFont(REGULAR, FOOT_PT)
        canvas.setFillColor(MUTED)
        canvas.drawString(MARGIN, FOOT, fitting(self._title, REGULAR, FOOT_PT, width - 20 * mm))
        canvas.drawRightString(MARGIN + width, FOOT, str(self.page))
        canvas.doForm(TOTAL)
        canvas.restoreState()


class _Drawn:
    """The blocks of one document as what reportlab lays out."""

    def __init__(self, document: Document, pictures: Pictures, on_rows: Callable[[int], None]) -> None:
        self.glyphs = Glyphs()
        self._document = document
        self._pictures = pictures
        self._on_rows = on_rows
        self._width = SIZES[document.page][0] - 2 * MARGIN

    def story(self) -> list[Flowable]:
        """Return all of it; a document without blocks has one empty page."""
        found: list[Flowable] = [Spacer(0, 0.1)]
        for place, block in enumerate(self._document.blocks):
            found += self._block(block, place)
        return found

    def _block(self, block: blocks.AnyBlock, place: int) -> list[Flowable]:
        match block:
            case blocks.Table():
                return self._table(block, self._document.tables[place])
            case blocks.Chart():
                chart = draw(block, self._document.tables[place], self._width, self._document.lang, self.glyphs)
                return [chart, Spacer(0, GAP)]
            case blocks.Figures():
                return self._figures(_pairs(block.rows))
            case blocks.Columns():
                return self._columns(block)
            case blocks.PageBreak():
                return [NewPage()]
            case blocks.Heading():
                return [CondPageBreak(KEPT), *self._simple(block, self._width)]
            case _:
                return self._simple(block, self._width)

    def _simple(self, block: blocks.Heading | blocks.Paragraph | blocks.Values | blocks.Image, width: float) -> list[Flowable]:
        """Return what a part of a page may hold as well."""
        match block:
            case blocks.Heading():
                style = HEADINGS[block.level - 1]
                return [self._paragraph(escape(block.text), style), Spacer(0, style.leading / 3)]
            case blocks.Paragraph():
                style = STYLES[block.style]
                if block.align == "right":
                    style = ParagraphStyle("right", style, alignment=TA_RIGHT)
                return [self._paragraph(block.text, style), Spacer(0, GAP / 2)]
            case blocks.Values():
                return [self._values(block, width), Spacer(0, GAP)]
            case blocks.Image():
                return [self._picture(block, width), Spacer(0, GAP)]

    def _paragraph(self, text: str, style: ParagraphStyle) -> Paragraph:
        return Paragraph(marked(text, self.glyphs.known), style)

    def _values(self, block: blocks.Values, width: float) -> Flowable:
        pairs = [(self.glyphs.known(label), self.glyphs.known(value)) for label, value in _pairs(block.rows)]
        if not pairs:
            return Spacer(0, 0)
        labels = min(max(width_of(label, REGULAR, LABEL.fontSize) for label, _ in pairs) + 5 * mm, width / 2)
        values = width - labels
        if block.align == "right":
            values = min(max(width_of(value, REGULAR, BODY.fontSize) for _, value in pairs) + 2, values)
        cells = [["", self._paragraph(escape(label), LABEL), self._paragraph(escape(value), BODY)] for label, value in pairs]
        table = Parts(cells, [width - labels - values, labels, values])
        table.setStyle([*_BARE, ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5)])
        return table

    def _figures(self, pairs: Sequence[tuple[str, str]]) -> list[Flowable]:
        """Return the numbers side by side, three or four in a line."""
        found: list[Flowable] = []
        across = 4 if len(pairs) > 3 else 3
        for begin in range(0, len(pairs), across):
            line = pairs[begin : begin + across]
            cells = [[self._paragraph(escape(label), LABEL), self._paragraph(escape(value), FIGURE)] for label, value in line]
            table = Parts([cells + [""] * (across - len(cells))], [self._width / across] * across)
            table.setStyle([*_BARE, *_TILES])
            found += [table, Spacer(0, GAP)]
        return found

    def _columns(self, block: blocks.Columns) -> list[Flowable]:
        width = (self._width - GAP * (len(block.parts) - 1)) / len(block.parts)
        parts = [[flowable for each in part for flowable in self._simple(each, width)] for part in block.parts]
        table = Parts([parts], [width + GAP] * (len(parts) - 1) + [width])
        table.setStyle(_BARE)
        return [table, Spacer(0, GAP)]

    def _table(self, block: blocks.Table, sheet: Sheet) -> list[Flowable]:
        if not sheet.count:
            return [self._paragraph(escape(block.empty), STYLES["small"]), Spacer(0, GAP)]
        known, cells = self.glyphs.known, blocks.cells_of(block, sheet, self._document.lang)
        titles = [known(title) for title in cells.titles]
        rows = [[known(cell) for cell in row] for row in cells.rows]
        drawn = grid(titles, cells.is_right, rows, self._width, self._on_rows)
        return [drawn, *self._totals(_pairs(block.totals)), Spacer(0, GAP)]

    def _totals(self, pairs: Sequence[tuple[str, str]]) -> list[Flowable]:
        if not pairs:
            return []
        rows = [[self.glyphs.known(text) for text in pair] for pair in pairs]
        table = Parts(rows, [self._width * 0.8, self._width * 0.2])
        table.setStyle(
            [
                *_BARE,
                ("FONT", (0, 0), (-1, -2), REGULAR, 8, 11),
                ("FONT", (0, -1), (-1, -1), BOLD, 9.2, 12),
                ("TEXTCOLOR", (0, 0), (-1, -1), INK),
                ("ALIGN", (0, 0), (-1, -1), "RIGHT"),
                ("TOPPADDING", (0, 0), (-1, -1), 4),
                ("LINEABOVE", (1, -1), (1, -1), 0.9, INK),
            ]
        )
        return [Spacer(0, 2), table]

    def _picture(self, block: blocks.Image, width: float) -> Flowable:
        data = self._pictures(block.path)
        across, down = pixels(data)
        wide = min(block.width_mm * mm, width, TALLEST * across / down)
        table = Parts([[Pictured(io.BytesIO(data), wide, wide * down / across)]], [width])
        table.setStyle([*_BARE, ("ALIGN", (0, 0), (0, 0), block.align.upper())])
        return table


_BARE: Final = [
    ("LEFTPADDING", (0, 0), (-1, -1), 0),
    ("RIGHTPADDING", (0, 0), (-1, -1), 0),
    ("TOPPADDING", (0, 0), (-1, -1), 0),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 0),
    ("VALIGN", (0, 0), (-1, -1), "TOP"),
]
_TILES: Final = [
    ("LINEABOVE", (0, 0), (-1, 0), 0.9, INK),
    ("LINEBELOW", (0, 0), (-1, 0), 0.4, RULE),
    ("TOPPADDING", (0, 0), (-1, -1), 5),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 7),
    ("RIGHTPADDING", (0, 0), (-1, -1), 8),
]


def _pairs(rows: blocks.Pairs) -> Sequence[tuple[str, str]]:
    return [] if isinstance(rows, str) else rows


def marked(text: str, known: Callable[[str], str] = str) -> str:
    """Return a text in which only `<b>`, `<i>` and `<br/>` are marks, each closed in its turn; all else is escaped.

    Raises:
        Dead: a mark is not closed, or closes another; `template-error`.
    """
    parts: list[str] = []
    opened: list[str] = []
    for part in _MARK.split(text):
        match part:
            case "<b>" | "<i>":
                opened.append(part[1])
                parts.append(part)
            case "</b>" | "</i>":
                if not opened or opened.pop() != part[2]:
                    raise Dead(f"{part} closes nothing", "template-error")
                parts.append(part)
            case _ if _MARK.fullmatch(part):
                parts.append("<br/>")
            case _:
                parts.append(escape(known(html.unescape(part))))
    if opened:
        raise Dead(f"<{opened[-1]}> is not closed", "template-error")
    return "".join(parts)


def pixels(data: bytes) -> tuple[int, int]:
    """Return how many pixels an image has across and down; only one that is not too large is read as a whole.

    Raises:
        Dead: it is no PNG or JPEG, `template-error`; or it has too many, `too-large`.
    """
    try:
        with Picture.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            across, down = picture.size
            if across * down > MAX_PIXELS:
                raise Dead(f"an image must have at most {MAX_PIXELS} pixels", "too-large")
            picture.load()
    except (OSError, ValueError, SyntaxError, Picture.DecompressionBombError):
        raise Dead("an image is no PNG or JPEG file", "template-error") from None
    return across, down
