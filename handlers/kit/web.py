"""Documents as one HTML page that loads nothing: charts are SVG, images are within it, and its policy forbids scripts."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from jinja2 import Environment, Template
from markupsafe import Markup

from handlers.kit import blocks
from handlers.kit.blocks import Document, Sheet
from handlers.kit.charts import draw, svg
from handlers.kit.documents import SHIPPED
from handlers.kit.fonts import Glyphs
from handlers.kit.pages import marked, pixels

CHART_PT: Final = 640.0


def page(document: Document, pictures: Callable[[str], bytes]) -> bytes:
    """Return the document as an HTML page; `pictures` returns the bytes of an image by its path below a root.

    Raises:
        Dead: too many pixels or points, `too-large`; a column is missing, `template-error`.
    """
    glyphs = Glyphs()

    def chart(block: blocks.Chart, sheet: Sheet) -> Markup:
        return Markup(svg(draw(block, sheet, CHART_PT, document.lang, glyphs)))  # noqa: S704 -- made by reportlab, which escapes

    def table(block: blocks.Table, sheet: Sheet) -> dict[str, Any]:
        cells = blocks.cells_of(block, sheet, document.lang)
        sides = [Markup(' class="right"') if is_right else "" for is_right in cells.is_right]
        return {"titles": cells.titles, "sides": sides, "rows": cells.rows}

    def image(path: str) -> str:
        data = pictures(path)
        pixels(data)
        kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    text = _template().render(document=document, kind=_kind, marked=_marked, chart=chart, table=table, image=image)
    return text.encode("utf-8", "replace")


@cache
def _template() -> Template:
    """Return the page's template, which is ours, and no part of which comes from a payload or a definition."""
    return Environment(autoescape=True, trim_blocks=False).from_string((SHIPPED / "page.html").read_text("utf-8"))


def _kind(block: blocks.Block) -> str:
    tag = type(block).__struct_config__.tag
    return str(tag)


def _marked(text: str) -> Markup:
    return Markup(marked(text))  # noqa: S704 -- escaped there, but for three marks
