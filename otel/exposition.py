"""Prometheus' two text formats, written by hand: the client library takes 7 µs a line, which is 0.1 s of the loop at 100 types.

Pure. Whatever stands in a label, the page can be parsed: tests hold it to the client library's parsers and to promtool.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from runtime.stats import BUCKETS

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# What ends a page for Prometheus (NUL), or cannot be written as UTF-8. The other control characters go with them.
_UNFIT: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")
_ESCAPED: Final = re.compile(r'[\\"\n]')
MAX_LABEL_CHARS: Final = 200  # a guess: longer than any name that people give, and short enough for a thousand of them
_SUFFIXED: Final = ("seconds", "bytes")  # units that stand at the end of a name, as OpenMetrics asks for


class Family(NamedTuple):
    """What is said of a metric: its full name, kind, unit, help, and the names of its labels in the order of their values."""

    name: str
    kind: Literal["gauge", "counter", "histogram", "summary"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()


# A run that a trace shows: trace id and span id as hexadecimal digits, its seconds, and when it ended, in s since the epoch.
Exemplar = tuple[str, str, float, float]
# Of a histogram: labels, counts by powers of two, their sum, and exemplars by power.
Row = tuple[Sequence[str], Sequence[int], float, Mapping[int, Exemplar]]


class Buckets(NamedTuple):
    """The shown buckets of counts by powers of two, their upper bounds, and which of them each power falls into."""

    powers: tuple[int, ...]
    bounds: tuple[str, ...]
    places: tuple[int, ...]


def buckets(powers: Iterable[int], per_unit: float) -> Buckets:
    """Return the buckets below these powers of two, of which `per_unit` make up the unit of the metric."""
    shown = tuple(powers)
    places = tuple(bisect_left(shown, power) for power in range(BUCKETS))
    return Buckets(shown, tuple(repr(2**power / per_unit) for power in shown), places)


class Page:
    """Owns the lines of one page, a family at a time. `is_open`: in OpenMetrics, which alone has exemplars."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.is_open = is_open
        self._lines: list[str] = []

    def add(self, family: Family, values: Mapping[tuple[str, ...], float] | float | None) -> None:
        """Add a gauge or a counter, with a value for each set of labels; a number alone has none, and None has no sample."""
        self._head(family)
        if values is None:
            return
        rows = values if isinstance(values, Mapping) else {(): values}
        seen = {labels_of(family, of): value for of, value in rows.items()}  # two may be one, once they are escaped and cut
        is_bare = not family.labels
        self._lines += [f"{family.name}{'' if is_bare else f'{{{labels}}}'} {_number(value)}\n" for labels, value in seen.items()]

    def summary(self, family: Family, count: int, total: float) -> None:
        """Add a summary without labels, of a number and a sum."""
        self._head(family)
        self._lines.append(f"{family.name}_count {count}\n{family.name}_sum {_number(total)}\n")

    def histograms(self, family: Family, shown: Buckets, rows: Iterable[Row]) -> None:
        """Add a histogram that has labels, with a row for each set of them; exemplars are for OpenMetrics alone."""
        self._head(family)
        lines, name = self._lines, family.name
        for of, counts, total, exemplars in rows:
            labels = labels_of(family, of)
            prefix = f'{name}_bucket{{{labels},le="'
            below = list(accumulate(counts))
            if exemplars:
                marks = _marks(shown, exemplars)
                for bound, power, mark in zip(shown.bounds, shown.powers, marks, strict=False):
                    lines.append(f'{prefix}{bound}"}} {below[power]}{mark}\n')
                lines.append(f'{prefix}+Inf"}} {below[-1]}{marks[-1]}\n')
            else:
                lines += [f'{prefix}{bound}"}} {below[power]}\n' for bound, power in zip(shown.bounds, shown.powers, strict=True)]
                lines.append(f'{prefix}+Inf"}} {below[-1]}\n')
            lines.append(f"{name}_count{{{labels}}} {below[-1]}\n{name}_sum{{{labels}}} {_number(total)}\n")

    def _head(self, family: Family) -> None:
        name = family.name
        if self.is_open:
            name = name.removesuffix("_total") if family.kind == "counter" else name
            if family.unit in _SUFFIXED:
                self._lines.append(f"# UNIT {name} {family.unit}\n")
        self._lines.append(f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n")

    def body(self) -> bytes:
        """Return the page."""
        return "".join([*self._lines, "# EOF\n"] if self.is_open else self._lines).encode()


def labels_of(family: Family, values: Sequence[str]) -> str:
    """Return labels as they stand between the braces."""
    return ",".join([f'{name}="{escaped(value)}"' for name, value in zip(family.labels, values, strict=True)])


@lru_cache(maxsize=1024)  # as many as types, outcomes and priorities are, and some more: a third of the time of a page
def escaped(value: str) -> str:
    """Return the value of a label as it is written: cut, without what a page cannot have, and escaped."""
    return _ESCAPED.sub(lambda mark: "\\n" if mark[0] == "\n" else f"\\{mark[0]}", _UNFIT.sub("�", value[:MAX_LABEL_CHARS]))


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))  # of a bool as well
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _marks(shown: Buckets, exemplars: Mapping[int, Exemplar]) -> list[str]:
    """Return what stands behind each shown bucket, and behind the one without a bound: the newest exemplar that falls into it."""
    newest: list[Exemplar | None] = [None] * (len(shown.powers) + 1)
    for power, exemplar in exemplars.items():
        at = shown.places[power]
        known = newest[at]
        if known is None or known[3] < exemplar[3]:
            newest[at] = exemplar
    return ["" if one is None else f' # {{trace_id="{one[0]}",span_id="{one[1]}"}} {one[2]!r} {one[3]:.3f}' for one in newest]


# --- several pages as one ----------------------------------------------------------------------------------------------------


def merged(pages: Mapping[int, str], label: str, beside: str, known: tuple[str, ...]) -> str:
    """Return several pages of one format and `beside`, each family once; what is from a page carries its number in a label.

    A page with a line that begins with none of the `known` beginnings of names is not one of ours, and is left out.
    """
    families: dict[str, list[str]] = {}
    for number, text in pages.items():
        lines = text.split("\n")
        if all(line.startswith(("# ", *known)) for line in lines if line):
            _sort_in(families, lines, f'{label}="{number}"')
    is_open = any(text.endswith("# EOF\n") for text in [beside, *pages.values()])
    _sort_in(families, beside.split("\n"), "")
    return "".join(f"{line}\n" for lines in families.values() for line in lines) + ("# EOF\n" if is_open else "")


def _sort_in(families: dict[str, list[str]], lines: Iterable[str], mark: str) -> None:
    """Put lines behind those of the same family; `mark` is a label more for each sample."""
    family, name, is_new = list[str](), "", True
    for line in lines:
        if line.startswith("# "):
            words = line.split(" ", 3)
            if len(words) < 4:
                continue  # the end
            if words[2] != name:
                name, is_new = words[2], words[2] not in families
                family = families.setdefault(name, [])
            if is_new:
                family.append(line)
        elif line and mark:
            brace, space = line.find("{"), line.find(" ")
            has_labels = 0 < brace < space
            at = brace + 1 if has_labels else space
            more = f"{mark}," if has_labels else f"{{{mark}}}"
            family.append(f"{line[:at]}{more}{line[at:]}")
        elif line:
            family.append(line)
