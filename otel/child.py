"""A job's trace in the child process that runs it: what its handler records there goes back to the worker with its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.context import attach
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel.sampling import parse
from otel.spans import context_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

MAX_BYTES: Final = 1 << 20  # of what one job records, a guess: what a request has at most; more is left out


class ChildTrace:
    """Owns what one job has recorded in a child process.

    Args:
        traceparent: of the span of the job's attempt, in the worker.
    """

    def __init__(self, traceparent: str) -> None:
        self._parent = parse(traceparent.encode())
        self._recorded: list[bytes] = []
        self._bytes = 0

    def begin(self) -> None:
        """Let the handler see its job's span, in the context that this is called in."""
        parent = self._parent
        if parent is None:
            return
        trace_id, span_id, is_sampled = parent
        if is_sampled:
            from otel.provider import receive_spans  # with the SDK, which a child that records nothing does without

            receive_spans(self._keep, {}, 0.0)
        flags = TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT)
        ids = (int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"))
        attach(context_of(NonRecordingSpan(SpanContext(*ids, True, flags))))

    def _keep(self, span: ReadableSpan) -> None:
        from otel.provider import encode

        if self._bytes <= MAX_BYTES:
            encoded = encode(span)
            if len(encoded) <= MAX_BYTES - self._bytes:
                self._recorded.append(encoded)
                self._bytes += len(encoded)

    def end(self) -> list[bytes]:
        """Return what was recorded, a span each, and record no more: a thread may go on."""
        self._bytes = MAX_BYTES + 1
        return self._recorded.copy()
