"""Traces as text: a tree of spans, with times, attributes, events, links and what Jaeger warns of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploy.demo.jaeger import Span, Trace

MOST_LETTERS = 100  # of one value: a stack has thousands


def tree(trace: Trace) -> str:
    """Return one trace as lines: each span below its parent, by its start; what has no parent here stands at the left."""
    return "\n".join(
        [f"trace {trace[0].trace_id}, {len(trace)} spans", *(line for root in roots(trace) for line in _lines(root, trace, 1))]
    )


def roots(trace: Trace) -> list[Span]:
    """Return the spans without a parent in this trace."""
    ids = {span.id for span in trace}
    return [span for span in trace if span.parent not in ids]


def children(span: Span, trace: Trace) -> list[Span]:
    """Return the spans below one, by their start."""
    return [one for one in trace if one.parent == span.id]


def milliseconds(ns: int) -> str:
    """Return a time as a person reads it."""
    return f"{ns / 1e6:,.1f} ms"


def _lines(span: Span, trace: Trace, depth: int) -> Iterator[str]:
    pad = "  " * depth
    since, takes = milliseconds(span.start_ns - trace[0].start_ns), milliseconds(span.end_ns - span.start_ns)
    failed = f"  FAILED: {_short(span.message)}" if span.is_error else ""
    yield f"{pad}{_short(span.name)}  [{span.kind}, {_short(span.service)}]  +{since}, takes {takes}{failed}"
    pad += "    "
    yield from (f"{pad}{_short(name)} = {_short(value)}" for name, value in sorted(span.attributes.items()))
    for event in span.events:
        about = ", ".join(f"{_short(name)}={_short(value)}" for name, value in event.attributes.items())
        yield f"{pad}* {_short(event.name)} +{milliseconds(event.time_ns - trace[0].start_ns)}  {about}".rstrip()
    for link in span.links:
        yield f"{pad}-> {_short(link.attributes.get('job.link', 'link'))}: trace {link.trace_id}, span {link.span_id}"
    yield from (f"{pad}! Jaeger warns: {_short(warning)}" for warning in span.warnings)
    for child in children(span, trace):
        yield from _lines(child, trace, depth + 1)


def _short(value: Any) -> str:
    """Return a value on one line, which a terminal can show."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    line = "".join(letter if letter.isprintable() else "?" for letter in text)
    return line if len(line) <= MOST_LETTERS else line[: MOST_LETTERS - 1] + "…"
