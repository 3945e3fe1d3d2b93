"""Timelines of traces as an SVG picture, light or dark as its reader is: `python -m deploy.demo.timeline FILE.json`."""

from __future__ import annotations

import html
import math
import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from deploy.demo.jaeger import Span, Trace
from deploy.demo.trees import children, milliseconds, roots

# All in pixels. The widths suit a page of a repository, which is some 850 wide; the rest is chosen by eye.
WIDTH: Final = 860
NAMES: Final = 252  # the column of names
GUTTER: Final = 84  # at the right, for links
PLOT: Final = WIDTH - NAMES - GUTTER
PAD: Final = 20
ROW: Final = 24
BAR: Final = 12
HEAD: Final = 46
GAP: Final = 18
LABEL: Final = 64  # behind the longest bar, for its length in words
TICKS: Final = 5

STYLE: Final = """
  svg { --page: #ffffff; --card: #f6f8fa; --edge: #d8dee4; --grid: #e6eaee; --ink: #1f2328; --dim: #656d76;
        --server: #0a7ea4; --producer: #0f9d77; --consumer: #5b5bd6; --internal: #a9a9ee; --error: #d1383d; --link: #bf6a02; }
  @media (prefers-color-scheme: dark) {
    svg { --page: #0d1117; --card: #151b23; --edge: #30363d; --grid: #21262d; --ink: #e6edf3; --dim: #9198a1;
          --server: #4cc2e6; --producer: #3ecf9e; --consumer: #8f8ff5; --internal: #4b4b8f; --error: #ff6b6b; --link: #f0a848; }
  }
  text { font: 11px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: var(--ink); }
  .title { font-size: 13px; font-weight: 600; } .dim { fill: var(--dim); } .mono { font-family: ui-monospace, monospace; }
  .page { fill: var(--page); } .card { fill: var(--card); stroke: var(--edge); } .grid { stroke: var(--grid); }
  .server { fill: var(--server); } .producer { fill: var(--producer); } .client, .consumer { fill: var(--consumer); }
  .internal, .unspecified { fill: var(--internal); } .error { fill: var(--error); } text.error { font-weight: 600; }
  .event { fill: var(--page); stroke: var(--error); stroke-width: 1.5; }
  .link { fill: none; stroke: var(--link); stroke-width: 1.4; } .dashed { stroke-dasharray: 3 3; }
"""

LEGEND: Final = "".join(
    f'<text class="dim" x="{x + 26}" y="{PAD + 6}">{text}</text>{mark.format(x=x, y=PAD + 2)}'
    for x, text, mark in (
        (WIDTH - 420, "failed", '<rect class="error" x="{x}" y="{y}" width="20" height="6" rx="2" transform="translate(0 -3)"/>'),
        (WIDTH - 338, "link to the attempt before", '<path class="link" d="M{x} {y} h20"/>'),
        (WIDTH - 132, "link to the producer", '<path class="link dashed" d="M{x} {y} h20"/>'),
    )
)


_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Row(NamedTuple):
    """A span, how deep it stands in its tree, and the middle of its bar."""

    span: Span
    depth: int
    y: float


def draw(traces: list[Trace], title: str = "") -> str:
    """Return the picture: a panel for each trace, from its own start and on the same scale; links stand at the right."""
    longest_ns = max(max(span.end_ns for span in trace) - trace[0].start_ns for trace in traces)
    step_ms = _step(longest_ns / 1e6)
    scale = (PLOT - LABEL) / max(longest_ns, 1)
    parts: list[str] = []
    rows: dict[tuple[str, str], Row] = {}
    top = PAD + (26 if title else 0)
    for trace in traces:
        placed = list(_placed(trace, top + HEAD))
        rows |= {(row.span.trace_id, row.span.id): row for row in placed}
        bottom = top + HEAD + len(placed) * ROW + 6
        parts += _panel(trace, top, bottom, step_ms, scale)
        parts += [part for row in placed for part in _bar(row, trace[0].start_ns, scale)]
        top = bottom + GAP
    parts += _links(rows)
    height = top - GAP + PAD
    head = f'<text class="title" x="{PAD}" y="{PAD + 6}">{_escape(title)}</text>{LEGEND}' if title else ""
    width = WIDTH + 2 * PAD
    box = f'width="{width}" height="{height:.0f}" viewBox="0 0 {width} {height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">\n'
        f"<title>{_escape(title or 'Traces')}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="page" width="100%" height="100%" rx="8"/>\n{head}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _placed(trace: Trace, top: float) -> list[Row]:
    rows: list[Row] = []

    def place(span: Span, depth: int) -> None:
        rows.append(Row(span, depth, top + len(rows) * ROW + ROW / 2))
        for child in children(span, trace):
            place(child, depth + 1)

    for root in roots(trace):
        place(root, 0)
    return rows


def _panel(trace: Trace, top: float, bottom: float, step_ms: float, scale: float) -> list[str]:
    """Return a panel's frame, heading and grid."""
    job = next((span for span in trace if "job.attempt" in span.attributes), trace[0])
    attempt, outcome = job.attributes.get("job.attempt"), job.attributes.get("job.outcome")
    heading = f"attempt {attempt}: {outcome}" if attempt else trace[0].name
    parts = [
        f'<rect class="card" x="{PAD}" y="{top}" width="{WIDTH}" height="{bottom - top}" rx="6"/>',
        f'<text class="title{" error" if job.is_error else ""}" x="{PAD + 12}" y="{top + 20}">{_escape(heading)}</text>',
        f'<text class="dim mono" x="{PAD + 12}" y="{top + 36}">trace {trace[0].trace_id[:16]}…</text>',
    ]
    left, at_ms = PAD + NAMES, 0.0
    while at_ms * 1e6 * scale <= PLOT:
        x = left + at_ms * 1e6 * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top + HEAD - 4}" x2="{x:.1f}" y2="{bottom - 6}"/>')
        parts.append(f'<text class="dim" x="{x:.1f}" y="{top + 36}" text-anchor="middle">{at_ms:g} ms</text>')
        at_ms += step_ms
    return parts


def _bar(row: Row, start_ns: int, scale: float) -> list[str]:
    """Return a span's name, its bar, its length in ms, and a mark for each event."""
    span = row.span
    x = PAD + NAMES + (span.start_ns - start_ns) * scale
    width = max((span.end_ns - span.start_ns) * scale, 2.0)
    about = _escape(_about(span))
    kind = "error" if span.is_error else span.kind
    parts = [
        f'<text x="{PAD + 12 + row.depth * 14}" y="{row.y + 4}">{_escape(span.name)}<title>{about}</title></text>',
        f'<rect class="{kind}" x="{x:.1f}" y="{row.y - BAR / 2}" width="{width:.1f}" height="{BAR}" rx="2"/>',
        f'<text class="dim" x="{x + width + 6:.1f}" y="{row.y + 4}">{milliseconds(span.end_ns - span.start_ns)}</text>',
    ]
    for event in span.events:
        at = PAD + NAMES + (event.time_ns - start_ns) * scale
        parts.append(f'<circle class="event" cx="{at:.1f}" cy="{row.y}" r="3.5"><title>{_escape(event.name)}</title></circle>')
    return parts


def _about(span: Span) -> str:
    return "\n".join([f"{span.service}, {span.kind}", *(f"{name} = {value}" for name, value in sorted(span.attributes.items()))])


def _links(rows: dict[tuple[str, str], Row]) -> list[str]:
    """Return a curve from each span to those that it links to, as far as they are in the picture."""
    parts = [
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" style="fill: var(--link)"/></marker></defs>'
    ]
    right = PAD + NAMES + PLOT + 4
    for row in rows.values():
        for link in row.span.links:
            target = rows.get((link.trace_id, link.span_id))
            if target is None:
                continue
            is_producer = link.attributes.get("job.link") == "producer"
            bow = right + (92 if is_producer else 40)
            begin, end = row.y + (4 if is_producer else -4), target.y + (4 if is_producer else 0)
            curve = f"M{right} {begin} C{bow} {begin} {bow} {end} {right} {end}"
            parts.append(f'<path class="link{" dashed" if is_producer else ""}" d="{curve}" marker-end="url(#tip)"/>')
    return parts


def _escape(text: str) -> str:
    """Return a text as it stands in XML, which has no way to write some control characters."""
    return html.escape(_NOT_XML.sub("�", text))


def _step(longest_ms: float) -> float:
    """Return the distance of two lines of the grid: 1, 2 or 5 times a power of ten."""
    least = max(longest_ms, 1e-6) / TICKS  # 1 ns at least
    power = 10.0 ** math.floor(math.log10(least))
    return next((step * power for step in (1, 2, 5) if step * power >= least), 10 * power)


def main() -> None:
    """Print the picture of the traces in a file."""
    print(draw(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[Trace])), end="")


if __name__ == "__main__":
    main()
