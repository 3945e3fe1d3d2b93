"""A producer's spans: one per call of `send` or `send_many`, whose context goes into the messages."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode

from otel import names
from otel.attempts import server_pairs
from otel.otlp import Value
from otel.spans import has_provider
from runtime import __version__
from runtime.codec import TRACE, TRACE_STATE
from runtime.observer import Publisher
from runtime.settle import describe, name_of

SCOPE: Final = "backend-jobs"


class Publishing:
    """One call that sends: its span, and the fields by which its messages tell of it."""

    def __init__(self, span: Span, is_batch: bool) -> None:
        self._span = span
        self._is_batch = is_batch
        context = span.get_span_context()
        self.fields: tuple[bytes | str, ...] = ()
        if context.is_valid:
            self.fields = (TRACE, f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 0xFF:02x}")
            state = context.trace_state.to_header()
            if state:
                self.fields += (TRACE_STATE, state)

    def sent(self, ids: Sequence[str]) -> None:
        """Note the ids of the jobs that were stored."""
        if self._is_batch:
            self._span.set_attribute(names.MESSAGE_COUNT, len(ids))
        elif ids:
            self._span.set_attribute(names.MESSAGE_ID, ids[0])


def publisher() -> Publisher | None:
    """Return what makes the spans; None where the application has set no TracerProvider."""
    return _publishing if has_provider() else None


@contextmanager
def _publishing(queue: str, url: str, is_batch: bool) -> Generator[Publishing]:
    pairs: dict[str, Value] = {
        names.SYSTEM: names.REDIS,
        names.OPERATION_NAME: "publish",
        names.OPERATION_TYPE: "send",
        names.DESTINATION: queue,
        **server_pairs(url),
    }
    tracer = trace.get_tracer(SCOPE, __version__)
    with tracer.start_as_current_span(
        f"publish {queue}",
        kind=SpanKind.PRODUCER,
        attributes=pairs,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield Publishing(span, is_batch)
        except BaseException as error:
            span.set_attribute(names.ERROR_TYPE, name_of(error))
            span.set_status(StatusCode.ERROR, describe(error))
            raise
