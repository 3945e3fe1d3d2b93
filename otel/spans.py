"""The spans that handlers see through OpenTelemetry's API: a job's own, if it is traced, else the lane's, which records nothing.

Nothing is made for a job that is not traced: a lane has one span for all of these, which makes ids when somebody asks for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from itertools import islice
from random import getrandbits
from typing import Any, Final, cast

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from otel.otlp import Event, Link, Pairs, Value, as_value
from otel.sampling import Parent, Sampling
from runtime.jobs import Job, Running
from runtime.settle import frames_of, message_of, name_of

MAX_ITEMS: Final = 128  # of attributes, events and links each: the default limits of OpenTelemetry's SDK
MAX_CHARS: Final = 1000  # of a value, a guess: as long as the error of a dead letter
MAX_SPAN_CHARS: Final = 64_000  # of all that a handler adds to a span, a guess: a request holds some ten of the longest

# The one public way to the key under which a context holds its span.
(_KEY,) = trace.set_span_in_context(trace.INVALID_SPAN, Context())
SPAN_KEY: Final[str] = _KEY
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSAMPLED: Final = TraceFlags(TraceFlags.DEFAULT)
_NO_STATE: Final = TraceState()


def _fast_attach() -> Callable[[Context], object]:
    """Return what makes a context the current one: setting the variable that OpenTelemetry keeps it in takes half as long."""
    probe = Context()
    token = attach(probe)
    variable = next((variable for variable, value in copy_context().items() if value is probe), None)
    detach(token)
    return attach if variable is None else variable.set


attach_fast: Final = _fast_attach()


def has_provider() -> bool:
    """Return whether this process has set a TracerProvider; of one that its environment names, whether that can be loaded."""
    try:
        return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    except Exception:  # which OpenTelemetry has logged
        return False


def context_of(span: trace.Span) -> Context:
    """Return a context that holds nothing but this span."""
    return Context({SPAN_KEY: span})


class _Named(trace.Span):
    """A span of the worker's: it is ended, and its status decided, by what becomes of its job."""

    def update_name(self, name: str) -> None:
        """Name nothing."""

    def set_status(self, status: Any, description: str | None = None) -> None:
        """Set nothing: the outcome of the job decides."""

    def end(self, end_time: int | None = None) -> None:
        """End nothing: the job does."""

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes, as `set_attribute` does."""
        for key, value in _pairs_of(attributes).items():
            self.set_attribute(key, value)

    def set_attribute(self, key: str, value: Any) -> None:
        """Add nothing."""

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """Add nothing."""

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Add nothing."""

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        """Add nothing."""


class JobSpan(_Named):
    """The span of a traced attempt. Ids are made when somebody asks for them, or when it is encoded.

    It holds what the sender sent and never the job: jobs are not seen by the garbage collector, and a cycle would stay. What is
    added after the attempt has ended is left out.
    """

    _context: SpanContext | None = None
    attributes: dict[str, Value] = {}  # noqa: RUF012 -- its own once it is touched
    events: list[Event] = []  # noqa: RUF012
    links: list[Link] = []  # noqa: RUF012
    is_touched: bool = False
    is_over: bool = False
    trace_id: bytes = b""
    span_id: bytes = b""

    _state: str = ""
    _chars: int = 0

    def __init__(self, parent: Parent | None, state: str = "") -> None:
        self.parent = parent
        if state:
            self._state = state

    def ids_of(self, job: Job) -> tuple[bytes, bytes]:
        """Return the ids of the job's attempt, which is the only one that sees this span."""
        return self.identify()

    def identify(self) -> tuple[bytes, bytes]:
        """Return the ids of trace and span, which stay as they are from now on."""
        if not self.span_id:
            self.trace_id = getrandbits(128).to_bytes(16, "big") if self.parent is None else self.parent[0]
            self.span_id = getrandbits(64).to_bytes(8, "big")
        return self.trace_id, self.span_id

    def get_span_context(self) -> SpanContext:
        """Return the ids, as those of a span that is recorded."""
        if self._context is None:
            trace_id, span_id = self.identify()
            state = TraceState.from_header([self._state]) if self._state else _NO_STATE
            self._context = SpanContext(int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), False, _SAMPLED, state)
        return self._context

    def is_recording(self) -> bool:
        """Return whether the attempt goes on."""
        return not self.is_over

    def set_attribute(self, key: str, value: Any) -> None:
        """Add an attribute, if it is one; nothing more once the span is large."""
        found = as_value(value, MAX_CHARS)
        if found is None or type(key) is not str or not self._has_space(len(key) + _chars_of(found)):
            return
        if len(self.attributes) < MAX_ITEMS or key in self.attributes:
            self.attributes[key[:MAX_CHARS]] = found

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Add an event, now or at a time in ns since the epoch."""
        self._add_event(name, _pairs_of(attributes), timestamp)

    def _add_event(self, name: str, pairs: Pairs, timestamp: int | None) -> None:
        if type(name) is not str or not self._has_space(len(name) + sum(len(key) + _chars_of(pairs[key]) for key in pairs)):
            return
        if len(self.events) < MAX_ITEMS:
            self.events.append(Event(name[:MAX_CHARS], _time_ns(timestamp), pairs))

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """Add a link to another span."""
        pairs = _pairs_of(attributes)
        if not _is(context, SpanContext) or not context.is_valid:
            return
        if not self._has_space(sum(len(key) + _chars_of(pairs[key]) for key in pairs)):
            return
        if len(self.links) < MAX_ITEMS:
            ids = context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")
            self.links.append(Link(*ids, pairs))

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        """Add an error that the handler has met."""
        if not _is(exception, BaseException):
            return
        pairs = {"exception.type": name_of(exception), "exception.message": message_of(exception)}
        stack = frames_of(exception)
        if self._has_space(len(stack)):
            pairs["exception.stacktrace"] = stack
        self._add_event("exception", {**pairs, **_pairs_of(attributes)}, timestamp)

    def _has_space(self, chars: int) -> bool:
        if not self.is_touched:
            self.is_touched, self.attributes, self.events, self.links = True, {}, [], []
        self._chars += chars
        return not self.is_over and self._chars <= MAX_SPAN_CHARS


class LaneSpan(_Named):
    """What handlers of jobs that are not traced see: ids of the lane's present job, made when somebody asks, and then kept."""

    def __init__(self, lane: Running, sampling: Sampling) -> None:
        self._lane = lane
        self._sampling = sampling
        self._job: Job | None = None
        self._ids = (b"", b"")
        self._flags = _UNSAMPLED
        self._context: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        """Return the ids of the job that runs, as those of a span that is not recorded; between jobs, none."""
        job = self._lane.job
        if job is None:
            return trace.INVALID_SPAN_CONTEXT
        trace_id, span_id = self.ids_of(job)
        if self._context is None:
            ids = int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big")
            self._context = SpanContext(*ids, False, self._flags, _NO_STATE)
        return self._context

    def ids_of(self, job: Job) -> tuple[bytes, bytes]:
        """Return the ids of the trace and of the span of a job's attempt."""
        if self._job is not job:
            parent = self._sampling.trace_of(job)
            trace_id = getrandbits(128).to_bytes(16, "big") if parent is None else parent[0]
            self._set(job, (trace_id, getrandbits(64).to_bytes(8, "big")), _UNSAMPLED)
        return self._ids

    def adopt(self, job: Job, ids: tuple[bytes, bytes]) -> None:
        """Have these ids of trace and span for a job from now on, as those of a span that is recorded."""
        self._set(job, ids, _SAMPLED)

    def _set(self, job: Job, ids: tuple[bytes, bytes], flags: TraceFlags) -> None:
        self._job, self._ids, self._flags, self._context = job, ids, flags, None

    def is_recording(self) -> bool:
        """Return False."""
        return False


def current_ids() -> tuple[str, str, str] | None:
    """Return the ids of trace and span, and the flags, that a line of the log has that is written here; None outside of spans."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{context.trace_flags:02x}"


def _is(given: object, kind: type) -> bool:
    """Return whether what a handler gave is of a kind, by its type: `isinstance` would ask it."""
    return issubclass(type(given), kind)


def _pairs_of(attributes: object) -> Pairs:
    found: dict[str, Value] = {}
    with suppress(Exception):  # what a handler gives may raise when it is read; a job must not fail of its being traced
        if isinstance(attributes, Mapping):
            for key, value in islice(cast("Mapping[object, object]", attributes).items(), MAX_ITEMS):
                one = as_value(value, MAX_CHARS)
                if type(key) is str and one is not None:
                    found[key[:MAX_CHARS]] = one
    return found


def _chars_of(value: Value) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return sum(map(_chars_of, value)) if isinstance(value, Sequence) else 8


def _time_ns(given: object) -> int:
    return given if type(given) is int and 0 <= given < 1 << 63 else time.time_ns()
