"""Renders the results as a table of text, as JSON and as a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.lab import commit, cpu_model
from bench.rows import Line, Row

WIDTHS: Final = (36, 33, 33, 14)  # of the columns: the longest label, and figures up to 9,999,999
RATES: Final = ("jobs_per_s", "attempts_per_s", "sent_per_s")
EXTRA: Final = "pip install matplotlib pyinstrument"


@dataclass(slots=True)
class Result:
    """The result of a row: each figure of each run, or why there is none."""

    row: Row
    figures: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    why_not: str = ""

    def add(self, figures: dict[str, float]) -> None:
        """Add the figures of one run."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    @property
    def medians(self) -> dict[str, float]:
        """The median of each figure."""
        return {name: median(values) for name, values in self.figures.items()}

    def is_met(self, line: Line) -> bool | None:
        """Return whether the median meets its target; None without a target or a figure."""
        values = self.figures.get(line.name)
        return line.target.is_met(median(values)) if values and line.target else None


def header(jobs: int, runs: int, server: str, load: Sequence[float], began: str) -> dict[str, Any]:
    """Return what the figures depend on; `load` is that before the first run."""
    return {
        "commit": commit(),
        "date": began,
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "load": [round(value, 2) for value in load],
        "server": server,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("redis", "hiredis", "uvloop", "msgspec")},
        "jobs": jobs,
        "runs": runs,
    }


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median, with the smallest and the largest value."""
    return f"{median(values):,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"


def text(head: dict[str, Any], results: Sequence[Result], notes: Sequence[str]) -> str:
    """Return the table."""
    packages = ", ".join(f"{name} {number}" for name, number in head["packages"].items())
    load = " ".join(f"{value:.2f}" for value in head["load"])
    lines = [
        f"commit {head['commit']}, {head['date']}",
        f"{head['cpu']}, {head['cpus']} CPUs, load average {load} before the first run",
        f"{head['server']} on loopback TCP; Python {head['python']}, {packages}",
        f"{head['jobs']:,} jobs, {head['runs']} runs: median [smallest, largest]; "
        "raw: a C client, batches of 500, or pipelines of 500",
        *notes,
        "",
        _columns("", "median", "raw", "target") + "met",
    ]
    for result in results:
        lines.append(f"{result.row.name}: {result.row.title}")
        lines += [f"  {result.why_not}"] if result.why_not else _lines(result)
    return "\n".join(lines) + "\n"


def _lines(result: Result) -> list[str]:
    lines: list[str] = []
    for line in result.row.lines:
        values = result.figures.get(line.name)
        if not values:
            continue
        raw = result.figures.get(line.raw)
        beside = spread(raw, line.digits) if raw else ""
        is_met = result.is_met(line)
        met = "" if is_met is None else "yes" if is_met else "no"
        lines.append((_columns(f"  {line.label}", spread(values, line.digits), beside, str(line.target or "")) + met).rstrip())
    remark = result.row.remark(result.medians) if result.figures else ""
    return [*lines, f"  {remark}"] if remark else lines


def _columns(*words: str) -> str:
    return "".join(f"{word:{width}}" for word, width in zip(words, WIDTHS, strict=True))


def as_json(head: dict[str, Any], results: Sequence[Result], notes: Sequence[str]) -> str:
    """Return every figure of every run, with the medians of the table and their targets."""
    rows = {
        result.row.name: {
            "title": result.row.title,
            "why_not": result.why_not,
            "runs": result.figures,
            "medians": result.medians,
            "targets": {
                line.name: {"target": str(line.target), "is_met": result.is_met(line)}
                for line in result.row.lines
                if line.target and line.name in result.figures
            },
        }
        for result in results
    }
    return json.dumps({**head, "notes": list(notes), "rows": rows}, indent=1) + "\n"


def _thousands(value: float, _: int) -> str:
    return f"{value:,.0f}"


def draw(path: Path, head: dict[str, Any], results: Sequence[Result]) -> str:
    """Draw the rates with their spread, raw figure and target; return why that is not possible, or nothing."""
    try:
        figures: Any = import_module("matplotlib.figure")  # by name: only `make bench` installs it, and types are checked without
    except ImportError:
        return f"no picture without matplotlib: {EXTRA}"
    drawn = [
        (result, line) for result in results for line in result.row.lines if line.name in RATES and line.name in result.figures
    ]
    if not drawn:
        return "no picture: none of these rows has a rate"
    figure = figures.Figure(figsize=(9, 1.4 + 0.45 * len(drawn)), layout="constrained")
    axes = figure.add_subplot()
    labelled: set[str] = set()

    def label(word: str) -> str:
        return "_" if word in labelled or labelled.add(word) else word

    for place, (result, line) in enumerate(drawn):
        values, raw = result.figures[line.name], result.figures.get(line.raw)
        middle = median(values)
        error = [[middle - min(values)], [max(values) - middle]]
        axes.barh(place, middle, xerr=error, height=0.6, color="#4878a8", ecolor="#222222", capsize=3, label=label("median"))
        if raw:
            axes.plot(median(raw), place, "D", color="#c05020", label=label("C client"))
        if line.target and line.target.at_least:
            limit = line.target.at_least
            axes.plot([limit, limit], [place - 0.4, place + 0.4], color="#208040", linewidth=2, label=label("target"))
    axes.set_yticks(range(len(drawn)), [result.row.name for result, _ in drawn])
    axes.invert_yaxis()
    axes.set_xlabel("per second; bars: median, whiskers: smallest and largest run")
    axes.xaxis.set_major_formatter(_thousands)
    axes.set_title(f"{head['commit']}, {head['server']}, Python {head['python']}\n{head['cpu']}, {head['date']}", fontsize=9)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120)
    return ""
