"""Documents as PDF and HTML: what is on the pages, that data stays data, and that equal documents make equal bytes."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image as Picture
from pypdf import PdfReader
from reportlab import rl_config
from reportlab.platypus import Paragraph as Raw

from handlers.kit import charts, grids, pages, web
from handlers.kit.blocks import (
    AnyBlock,
    Chart,
    Column,
    Columns,
    Document,
    Figures,
    Heading,
    Image,
    PageBreak,
    Paragraph,
    Sheet,
    Table,
    Values,
    shown,
)
from handlers.kit.fonts import REGULAR, Glyphs, width_of
from runtime import Dead
from tests.handlers.disks import ROOT

HOSTILE = [
    *(
        "<b>bold",
        "</b>",
        "<img src='http://127.0.0.1:9/x'/>",
        '<img src="/etc/passwd"/>',
        "<a href='javascript:x'>x</a>",
        "&lt;b&gt;",
    ),
    *(
        "&amp;",
        "&",
        "<",
        ">",
        "]]>",
        "<!--",
        "<script>alert(1)</script>",
        '"><script>alert(1)</script>',
        "{{ 7 * 7 }}",
        "{% raw %}",
    ),
    *(
        "<font size=99>",
        "<br/>",
        "<para>",
        "\\",
        "(",
        ")",
        "%PDF",
        "endstream",
        "\x00",
        "\t",
        "a\nb",
        "\u202e",
        "\ud7ff",
        "😀",
        "中文",
    ),
]


def document(*blocks: AnyBlock, tables: dict[int, Sheet] | None = None, **fields: Any) -> Document:
    return Document(title="Title", blocks=blocks, tables=tables or {}, **fields)


def picture(size: tuple[int, int] = (40, 20), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Picture.new("RGB", size, "red").save(out, kind)
    return out.getvalue()


def laid(*blocks: AnyBlock, image: bytes = b"", **fields: Any) -> pages.Laid:
    return pages.pdf(document(*blocks, **fields), lambda path: image, lambda rows: None)


def texts(*blocks: AnyBlock, **fields: Any) -> list[str]:
    """Return the text of each page, with single spaces."""
    reader = PdfReader(io.BytesIO(laid(*blocks, **fields).data))
    return [" ".join(page.extract_text().split()) for page in reader.pages]


def html_of(*blocks: AnyBlock, image: bytes = b"", **fields: Any) -> str:
    return web.page(document(*blocks, **fields), lambda path: image).decode()


class Tags(HTMLParser):
    """The elements of a page, and the texts between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def every_block(text: str) -> tuple[list[AnyBlock], dict[int, Sheet]]:
    """Return blocks of all kinds with this text as data in each of their places, and their rows."""
    sheet = Sheet([text, "n"], [[text, 1], [text, 2.5]])
    blocks: list[AnyBlock] = [
        Heading(text=text),
        Paragraph(text=str(web.Markup.escape(text))),  # as the templates of paragraphs do with data
        Values(rows=[(text, text)]),
        Figures(rows=[(text, text)]),
        Columns(parts=[[Heading(text=text)], [Values(rows=[(text, text)], align="right")]]),
        Table(rows="rows", totals=[(text, text)]),
        Table(rows="rows", columns=[Column(name=text, title=text), Column(name="n", decimals=2)]),
        Chart(chart="bar", rows="rows", label=text, values=["n", "n"], titles=[text, text]),
        Table(rows="rows", empty=text),
    ]
    return blocks, {5: sheet, 6: sheet, 7: sheet, 8: Sheet([], [])}


# --- what is on the pages --------------------------------------------------------------------------------------------------


def test_all_kinds_of_blocks_are_drawn() -> None:
    sheet = Sheet(["day", "orders"], [["Monday", 1234.5], ["Tuesday", None]])
    (first, second) = texts(
        Heading(text="The heading", level=1),
        Paragraph(text="Some <b>bold</b> and <i>italic</i><br/>text &amp; more"),
        Values(rows=[("Number", "4711")]),
        Figures(rows=[("Revenue", "99.50")]),
        Columns(parts=[[Paragraph(text="left")], [Image(path="x:y.png"), Paragraph(text="right", align="right")]]),
        Chart(chart="line", rows="days", label="day", values=["orders"]),
        PageBreak(),
        Table(
            rows="days",
            columns=[Column(name="day", title="Day"), Column(name="orders", title="Orders", decimals=2)],
            totals=[("Total", "1,234.50")],
        ),
        Table(rows="none", empty="Nothing at all."),
        image=picture(),
        tables={5: sheet, 7: sheet, 8: Sheet(["a"], [])},
    )
    for text in ("The heading", "Some bold and italic text & more", "Number 4711", "Revenue 99.50", "left", "right", "1 / 2"):
        assert text in first, first
    for text in ("Day Orders", "Monday 1,234.50", "Tuesday", "Total 1,234.50", "Nothing at all.", "2 / 2", "Title"):
        assert text in second, second


def test_a_long_table_shows_each_row_once_and_its_titles_on_each_page() -> None:
    sheet = Sheet(["n", "text"], [[f"row-{n}", "word " * (n % 40)] for n in range(500)])
    drawn: list[int] = []
    out = pages.pdf(document(Table(rows="t"), tables={0: sheet}), lambda path: b"", drawn.append)
    found = [page.extract_text() for page in PdfReader(io.BytesIO(out.data)).pages]
    assert out.pages == len(found) > 10
    assert sum(drawn) == 500
    assert all(page.split().count("text") == 1 for page in found), "a page without titles"
    assert [int(n) for n in re.findall(r"row-(\d+)", "\n".join(found))] == list(range(500))


def test_a_document_of_nothing_is_one_page() -> None:
    assert texts() == ["Title 1 / 1"]
    assert "<h1" not in html_of()


@pytest.mark.parametrize("page", ["A4", "letter"])
def test_the_page_has_its_size_and_the_file_its_language_and_title(page: Any) -> None:
    reader = PdfReader(io.BytesIO(laid(Heading(text="x"), page=page, lang="de").data))
    width, height = (595.3, 841.9) if page == "A4" else (612, 792)
    assert (round(float(reader.pages[0].mediabox.width), 1), round(float(reader.pages[0].mediabox.height), 1)) == (width, height)
    assert reader.metadata is not None and reader.metadata.title == "Title"
    assert reader.root_object["/Lang"] == "de"
    assert "/Names" not in reader.root_object and "/OpenAction" not in reader.root_object and not reader.attachments


def test_characters_that_no_font_has_are_counted() -> None:
    out = laid(
        Heading(text="a中b文"), Paragraph(text="<b>中</b>"), Table(rows="t"), tables={2: Sheet(["x"], [["ok ü ß Ł"], ["日"]])}
    )
    assert out.missing_glyphs == 4
    assert "a\ufffdb\ufffd" in PdfReader(io.BytesIO(out.data)).pages[0].extract_text()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_data_is_drawn_as_it_is(hostile: str) -> None:
    blocks, tables = every_block(hostile)
    out = laid(*blocks, tables=tables)
    reader = PdfReader(io.BytesIO(out.data))
    text = "".join("".join(page.extract_text().split()) for page in reader.pages)
    wanted = "".join(Glyphs().known(hostile).split())
    assert text.count(wanted) >= 14, text
    assert all("/Annots" not in page for page in reader.pages)
    assert out.data == laid(*blocks, tables=tables).data


@pytest.mark.parametrize("hostile", HOSTILE)
def test_data_is_inert_in_html(hostile: str) -> None:
    blocks, tables = every_block(hostile)
    plain = every_block("plain")
    page = html_of(*blocks, tables=tables)
    found = Tags(page)
    harmless = Tags(html_of(*plain[0], tables=plain[1]))
    assert found.tags == harmless.tags, "the data has made elements of its own"
    assert not {"script", "a", "iframe", "object", "link"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("href", "src", "xlink:href")]
    assert "default-src 'none'" in page


@pytest.mark.parametrize("text", ["<b>x", "x</b>", "<b><i>x</b></i>", "<i>", "</i><i>"])
def test_marks_that_are_not_closed_end_the_job(text: str) -> None:
    with pytest.raises(Dead) as caught:
        laid(Paragraph(text=text))
    assert caught.value.code == "template-error"


def test_reportlab_itself_would_open_nothing() -> None:
    """Our texts hold no `<img>`; should one come through, reportlab refuses it."""
    assert (rl_config.trustedSchemes, rl_config.trustedHosts) == ([], [])
    for source in ("http://127.0.0.1:9/x.png", "file:///etc/passwd", "data:image/png;base64,AAAA"):
        with pytest.raises(Exception, match="(?i)trusted|cannot|open"):
            Raw(f'<img src="{source}" width="10" height="10"/>').wrap(100, 100)


# --- equal bytes -------------------------------------------------------------------------------------------------------------

PROGRAM = """
import hashlib, sys
from tests.handlers.test_pages import every_block, html_of, laid
blocks, tables = every_block("Größe <1>")
print(hashlib.sha256(laid(*blocks, tables=tables).data).hexdigest())
print(hashlib.sha256(html_of(*blocks, tables=tables).encode()).hexdigest())
"""


def test_equal_documents_make_equal_bytes_in_every_process() -> None:
    said: set[str] = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        said.add(
            subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment).stdout
        )
    assert len(said) == 1 and len(said.pop()) == 130


# --- limits ------------------------------------------------------------------------------------------------------------------


def test_a_document_has_a_bounded_number_of_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_PAGES", 3)
    assert laid(*[PageBreak(), Heading(text="x")] * 2).pages == 3
    with pytest.raises(Dead) as caught:
        laid(*[Heading(text="x"), PageBreak()] * 3, Heading(text="x"))
    assert caught.value.code == "too-large"


@pytest.mark.parametrize("draw", [laid, html_of])
def test_images_are_small_and_of_two_kinds(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Image(path="x:y.png", width_mm=30)
    for kind in ("PNG", "JPEG"):
        assert draw(block, image=picture(kind=kind))
    for kind in ("GIF", "BMP", "TIFF"):
        with pytest.raises(Dead) as caught:
            draw(block, image=picture(kind=kind))
        assert caught.value.code == "template-error"
    for data in (b"", b"%!PS", picture()[:20]):
        with pytest.raises(Dead):
            draw(block, image=data)
    monkeypatch.setattr(pages, "MAX_PIXELS", 799)
    with pytest.raises(Dead) as caught:
        draw(block, image=picture())
    assert caught.value.code == "too-large"


def test_an_image_that_is_cut_off_ends_the_job() -> None:
    whole = picture((300, 300), "JPEG")
    with pytest.raises(Dead) as caught:
        laid(Image(path="x:y.jpg"), image=picture((300, 300))[:200])
    assert caught.value.code == "template-error"
    assert laid(Image(path="x:y.jpg"), image=whole)


def test_a_tall_image_is_made_to_fit() -> None:
    assert laid(Image(path="x:y.png", width_mm=200), image=picture((10, 4000))).pages >= 1


def test_what_does_not_fit_a_page_ends_the_job() -> None:
    with pytest.raises(Dead) as caught:
        laid(Columns(parts=[[Paragraph(text="word " * 5000)], []]))
    assert caught.value.code == "template-error"


def test_tables_and_charts_have_bounds() -> None:
    wide = Sheet([f"c{n}" for n in range(31)], [range(31)])
    for block, sheet, code in [
        (Table(rows="t"), wide, "template-error"),
        (Table(rows="t", columns=[Column(name="nothing")]), Sheet(["a"], [[1]]), "template-error"),
        (Chart(chart="bar", rows="t", label="a", values=["nothing"]), Sheet(["a"], [[1]]), "template-error"),
        (Chart(chart="bar", rows="t", label="a", values=["a"]), Sheet(["a"], [[1]] * 401), "too-large"),
    ]:
        for draw in (laid, html_of):
            with pytest.raises(Dead) as caught:
                draw(block, tables={0: sheet})
            assert caught.value.code == code


@pytest.mark.parametrize("cell", ["x" * 100_000, "word " * 20_000, "\n" * 5000, " " * 5000])
def test_a_long_cell_is_cut_so_that_its_row_fits_a_page(cell: str) -> None:
    out = laid(Table(rows="t"), tables={0: Sheet([f"c{n}" for n in range(12)], [[cell] * 12] * 3)})
    assert out.pages <= 4


# --- columns, lines, numbers ---------------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=80), width=st.floats(10, 200))
def test_lines_hold_all_of_the_text_and_none_is_too_wide(text: str, width: float) -> None:
    lines = grids.wrapped(text, REGULAR, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(width_of(line, REGULAR, grids.SIZE_PT) <= width + 1e-6 or len(line) == 1 for line in lines)


@given(wanted=st.lists(st.floats(0, 1000), min_size=1, max_size=30), width=st.floats(1, 400))
def test_columns_share_the_width(wanted: list[float], width: float) -> None:
    if sum(wanted) > width:
        cap = grids._cap(wanted, width)
        assert sum(min(want, cap) for want in wanted) == pytest.approx(width)


@given(low=st.floats(-1e14, 1e14), high=st.floats(-1e14, 1e14))
def test_ticks_are_few_round_and_around_the_numbers(low: float, high: float) -> None:
    low, high = sorted((round(low, 9), round(high, 9)))
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 8
    little = (found[1] - found[0]) * 1e-6
    assert found[0] <= min(low, 0) + little and found[-1] >= max(high, 0) - little
    assert any(abs(tick) < 1e-12 for tick in found)


@pytest.mark.parametrize("kind", ["line", "bar"])
@pytest.mark.parametrize(
    "values",
    [
        [],
        [0],
        [None],
        [1, None, 3],
        ["x", "1.5"],
        [float("nan"), float("inf"), 1e300, 2],
        [-5, 5],
        [1e-9, 2e-9],
        [0.1 + 0.2],
        [5e-324],
    ],
)
def test_a_chart_takes_whatever_is_there(kind: Any, values: list[Any]) -> None:
    block = Chart(chart=kind, rows="t", label="day", values=["n", "n"])
    sheet = Sheet(["day", "n"], [[f"day {place}", value] for place, value in enumerate(values)])
    assert laid(block, tables={0: sheet}).pages == 1
    assert "<svg" in html_of(block, tables={0: sheet})


@pytest.mark.parametrize(
    ("value", "lang", "decimals", "expected"),
    [
        (1234567.891, "en", 2, "1,234,567.89"),
        (-1234.5, "de-CH", 2, "\u22121.234,50"),
        (1234.5, "fr", 1, "1\xa0234,5"),
        (1234, "en", 0, "1,234"),
        (10**400, "en", 1, f"10{',000' * 133}.0"),
        (float("inf"), "en", 2, "inf"),
        (1234, "en", None, "1234"),
        (0.1 + 0.2, "en", None, "0.3"),
        (True, "en", 2, "yes"),
        (None, "en", 2, ""),
        ("x", "en", 2, "x"),
        (b"\x00\xff", "en", None, "\\x00ff"),
    ],
)
def test_values_are_written_for_people(value: Any, lang: str, decimals: int | None, expected: str) -> None:
    assert shown(value, lang, decimals) == expected


def test_blocks_can_be_read_from_a_definition() -> None:
    for block in every_block("x")[0]:
        assert msgspec.convert(msgspec.to_builtins(block), AnyBlock) == block
