"""Charts as drawings, which a PDF takes as they are and an HTML page as SVG. Equal numbers make equal drawings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from reportlab.graphics import renderSVG
from reportlab.graphics.shapes import Drawing, Line, PolyLine, Rect, String
from reportlab.lib.colors import Color, HexColor
from reportlab.lib.units import mm

from handlers.kit.blocks import MAX_POINTS, Chart, Sheet, shown
from handlers.kit.fonts import REGULAR, Glyphs, width_of
from runtime import Dead

# Chosen to differ in lightness as well, for those who see no colours, and for printers without them.
PALETTE: Final = tuple(map(HexColor, ("#1f5f8b", "#e08e2b", "#5aa3a0", "#8c4a6b", "#9bb8cd", "#5f6b38")))
INK: Final = HexColor("#1f2933")
MUTED: Final = HexColor("#66727f")
RULE: Final = HexColor("#dfe4e8")
TEXT_PT: Final = 7.5
TICKS: Final = 5  # a guess: lines that a chart of a few centimetres bears
LARGEST: Final = 1e15  # up to here, all digits of a float are right
SMALLEST: Final = 9  # decimals: a guess
LEGEND_PT: Final = 18.0
AXIS_PT: Final = 16.0


def draw(chart: Chart, table: Sheet, width_pt: float, lang: str, glyphs: Glyphs) -> Drawing:
    """Return the chart; what is no number has no mark.

    Raises:
        Dead: it has more points than can be told apart, `too-large`; a column is missing, `template-error`.
    """
    if table.count > MAX_POINTS:
        raise Dead(f"a chart must have at most {MAX_POINTS} points, and has {table.count}; hint: group them", "too-large")
    return _Chart(chart, table, width_pt, lang, glyphs).drawing


def svg(drawing: Drawing) -> str:
    """Return the drawing as an SVG element, without what stands before it in a file of its own."""
    render: Any = renderSVG  # it has no types
    text: str = render.drawToString(drawing)
    return text[text.index("<svg") :].strip()


class _Chart:
    """Owns one drawing while it is made: axis and grid first, then the marks."""

    def __init__(self, chart: Chart, table: Sheet, width_pt: float, lang: str, glyphs: Glyphs) -> None:
        self.drawing = Drawing(width_pt, chart.height_mm * mm)
        self._lang = lang
        self._glyphs = glyphs
        place = table.at(chart.label)
        self._labels = [glyphs.known(shown(row[place], lang)) for row in table.rows]
        self._series = [[_number(row[at]) for row in table.rows] for at in map(table.at, chart.values)]
        known = [number for series in self._series for number in series if number is not None]
        self._ticks = ticks(min(known, default=0.0), max(known, default=0.0))
        step = self._ticks[1] - self._ticks[0]
        decimals = next((places for places in range(SMALLEST) if abs(round(step, places) - step) < step * 1e-6), SMALLEST)
        names = [shown(tick, lang, decimals) for tick in self._ticks]
        self._left = max(width_of(name, REGULAR, TEXT_PT) for name in names) + 6
        self._top = self.drawing.height - (LEGEND_PT if len(self._series) > 1 else 6)
        self._legend(chart.titles or chart.values)
        for tick, name in zip(self._ticks, names, strict=True):
            self._line(self._left, self._y(tick), width_pt, self._y(tick), MUTED if tick == 0 else RULE)
            self._text(self._left - 6, self._y(tick) - 2.6, name, "end")
        self._name_points()
        (self._bars if chart.chart == "bar" else self._lines)()

    def _y(self, value: float) -> float:
        low, high = self._ticks[0], self._ticks[-1]
        return AXIS_PT + (value - low) / (high - low) * (self._top - AXIS_PT)

    def _x(self, point: float) -> float:
        """Return the middle of the place of a point, the first of which is 0."""
        return self._left + (point + 0.5) * (self.drawing.width - self._left) / max(len(self._labels), 1)

    def _line(self, x1: float, y1: float, x2: float, y2: float, color: Color) -> None:
        self.drawing.add(Line(x1, y1, x2, y2, strokeColor=color, strokeWidth=0.5))

    def _rect(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        rect: Any = Rect(x, y, width, height)
        rect.fillColor, rect.strokeColor = color, None
        self.drawing.add(rect)

    def _text(self, x: float, y: float, text: str, anchor: Literal["start", "middle", "end"]) -> None:
        self.drawing.add(String(x, y, text, fontName=REGULAR, fontSize=TEXT_PT, fillColor=MUTED, textAnchor=anchor))

    def _legend(self, titles: Sequence[str]) -> None:
        if len(self._series) < 2:
            return
        x, y = self._left, self.drawing.height - 8
        for title, color in zip(titles, PALETTE, strict=False):
            name = self._glyphs.known(title)
            self._rect(x, y, 7, 7, color)
            self._text(x + 11, y + 0.8, name, "start")
            x += width_of(name, REGULAR, TEXT_PT) + 26

    def _name_points(self) -> None:
        """Write as many labels below the axis as fit beside each other."""
        widest = max((width_of(label, REGULAR, TEXT_PT) for label in self._labels), default=0.0) + 10
        every = math.ceil(widest / max(self._x(1) - self._x(0), 1e-6))
        for point in range(0, len(self._labels), max(every, 1)):
            self._text(self._x(point), 3, self._labels[point], "middle")

    def _bars(self) -> None:
        step = (self._x(1) - self._x(0)) * 0.72  # the rest is the gap between two points
        width = step / len(self._series)
        for number, (series, color) in enumerate(zip(self._series, PALETTE, strict=False)):
            for point, value in enumerate(series):
                if value is not None:
                    x, y = self._x(point) - step / 2 + number * width, self._y(0)
                    self._rect(x, min(y, self._y(value)), width * 0.94, abs(self._y(value) - y), color)

    def _lines(self) -> None:
        for series, color in zip(self._series, PALETTE, strict=False):
            for run in _runs(series):
                points = [part for point, value in run for part in (self._x(point), self._y(value))]
                if len(run) == 1:
                    self._rect(points[0] - 1.5, points[1] - 1.5, 3, 3, color)
                else:
                    self.drawing.add(PolyLine(points, strokeColor=color, strokeWidth=1.5, strokeLineJoin=1))


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers, equally far apart, from at most `low` and 0 to at least `high` and 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = 1.0
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return round(number, SMALLEST) if abs(number) < LARGEST else None


def _runs(series: Sequence[float | None]) -> Iterator[list[tuple[int, float]]]:
    """Yield the stretches of a line between its gaps."""
    run: list[tuple[int, float]] = []
    for point, value in enumerate(series):
        if value is None:
            if run:
                yield run
            run = []
        else:
            run.append((point, value))
    if run:
        yield run
