"""Handlers' own spans, made by OpenTelemetry's SDK: they go to the collector the way of the jobs' spans.

Where the application has set a TracerProvider of its own, that one is left alone, and exports what handlers record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

from otel.otlp import Pairs, field
from otel.spans import has_provider


class HandlerSpans(SpanProcessor):
    """Passes each span that is recorded on to `sink` when it has ended, in whichever thread that was."""

    def __init__(self) -> None:
        self.sink: Callable[[ReadableSpan], None] | None = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Pass it on."""
        sink, context = self.sink, span.context
        if sink is not None and context is not None and context.trace_flags.sampled:
            sink(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return True: what has ended is on its way."""
        return True


_spans: Final = HandlerSpans()
_ours: TracerProvider | None = None  # a process sets its provider once


def receive_spans(sink: Callable[[ReadableSpan], None], resource: Pairs, ratio: float) -> bool:
    """Have what handlers record passed on to `sink`; return False where the application has set a provider of its own.

    `ratio`: of what begins outside of any job, from 0 to 1; what begins inside of one is recorded where the job is.
    """
    global _ours
    if _ours is None and not has_provider():
        root = TraceIdRatioBased(ratio) if ratio > 0 else ALWAYS_OFF
        provider = TracerProvider(sampler=ParentBased(root), resource=Resource(dict(resource)), shutdown_on_exit=False)
        provider.add_span_processor(_spans)
        trace.set_tracer_provider(provider)
        _ours = provider
    if trace.get_tracer_provider() is not _ours:
        return False
    _spans.sink = sink
    return True


def encode(span: ReadableSpan) -> bytes:
    """Return a span as a field of ResourceSpans, with the scope that it is of; nothing where it cannot be encoded."""
    try:
        (of_resource,) = encode_spans([span]).resource_spans
        return b"".join(field(2, scope.SerializeToString()) for scope in of_resource.scope_spans)
    except Exception:  # a text that is no UTF-8, a number that is too large
        return b""
