"""The fonts of documents: DejaVu Sans, and what becomes of characters that it does not have."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from reportlab.pdfbase import pdfmetrics, ttfonts

FOLDER: Final = Path(__file__).parents[1] / "fonts"
REGULAR: Final = "DejaVuSans"
BOLD: Final = "DejaVuSans-Bold"
ITALIC: Final = "DejaVuSans-Oblique"
UNKNOWN: Final = "\ufffd"
_SPACES: Final = {ord(space): " " for space in "\t\n\r\x0b\x0c"}


@cache
def load_fonts() -> frozenset[int]:
    """Make the fonts known to reportlab, and return the characters that all of them have."""
    metrics: Any = pdfmetrics  # it has no types
    fonts: list[Any] = [ttfonts.TTFont(name, str(FOLDER / f"{name}.ttf")) for name in (REGULAR, BOLD, ITALIC)]
    for font in fonts:
        metrics.registerFont(font)
    metrics.registerFontFamily(REGULAR, normal=REGULAR, bold=BOLD, italic=ITALIC, boldItalic=BOLD)
    known = set(range(32, 0x10000))  # what is above, reportlab draws, but so that nobody can search for it or copy it
    for font in fonts:
        known &= set(font.face.charToGlyph)
    return frozenset(known)


def width_of(text: str, font: str, size_pt: float) -> float:
    """Return how wide a line is, in points."""
    return pdfmetrics.stringWidth(text, font, size_pt)


class Glyphs:
    """Replaces the characters of one document that the fonts do not have, and counts them."""

    def __init__(self) -> None:
        self.missing = 0
        self._known = load_fonts()

    def known(self, text: str) -> str:
        """Return a line of text with U+FFFD for each character that cannot be drawn."""
        line = text.translate(_SPACES)
        strange = {character for character in set(line) if ord(character) not in self._known}
        if strange:
            self.missing += sum(line.count(character) for character in strange)
            line = line.translate({ord(character): UNKNOWN for character in strange})
        return line
