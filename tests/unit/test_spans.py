"""The spans that handlers see, through OpenTelemetry's API."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanContext, TraceFlags

from otel.sampling import parse
from otel.spans import MAX_CHARS, MAX_ITEMS, MAX_SPAN_CHARS, JobSpan, LaneSpan, context_of, current_ids
from runtime.jobs import Job
from tests.unit.test_sampling import SAMPLED, SPAN, TRACE, UNSAMPLED, job, sampling


@dataclass
class FakeLane:
    job: Job | None = None
    watch: Any = None
    blocked: Any = None

    def begin(self) -> None:
        """Nothing runs here."""


def test_a_traced_attempt_is_in_the_trace_of_its_sender_under_an_id_of_its_own() -> None:
    span = JobSpan(parse(SAMPLED.encode()), "a=b")
    context = span.get_span_context()
    assert f"{context.trace_id:032x}" == TRACE
    assert f"{context.span_id:016x}" != SPAN
    assert context.trace_flags.sampled
    assert not context.is_remote
    assert context.trace_state.to_header() == "a=b"
    assert span.get_span_context() is context
    assert span.identify() == (context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big"))


def test_without_a_sender_it_has_a_trace_of_its_own() -> None:
    first, second = JobSpan(None).get_span_context(), JobSpan(None).get_span_context()
    assert first.is_valid
    assert first.trace_id != second.trace_id


def test_what_a_handler_adds_is_kept() -> None:
    span = JobSpan(None)
    assert not span.is_touched
    span.set_attribute("a", 1)
    span.set_attributes({"b": "x", "c": [1, 2]})
    span.add_event("began", {"n": 1}, 123)
    span.add_link(SpanContext(1, 2, True, TraceFlags(1)), {"why": "so"})
    assert span.attributes == {"a": 1, "b": "x", "c": [1, 2]}
    assert [(event.name, event.at_ns, event.pairs) for event in span.events] == [("began", 123, {"n": 1})]
    assert [(link.trace_id[-1], link.span_id[-1], link.pairs) for link in span.links] == [(1, 2, {"why": "so"})]
    assert JobSpan(None).attributes == {}  # nothing is shared


def test_an_error_that_a_handler_has_met_is_an_event_with_its_stack() -> None:
    span = JobSpan(None)
    try:
        raise ConnectionError("refused")
    except ConnectionError as error:
        span.record_exception(error, {"n": 1})
    (event,) = span.events
    assert event.name == "exception"
    assert event.pairs["exception.type"] == "ConnectionError"
    assert event.pairs["exception.message"] == "refused"
    assert "test_spans.py" in str(event.pairs["exception.stacktrace"])
    assert event.pairs["n"] == 1


@pytest.mark.parametrize(
    "value", [None, object(), {"a": 1}, [object()], [1, "a"]], ids=["none", "object", "dict", "odd", "mixed"]
)
def test_what_cannot_be_an_attribute_is_left_out(value: object) -> None:
    span = JobSpan(None)
    span.set_attribute("a", value)
    span.set_attribute(5, 1)  # pyright: ignore[reportArgumentType]
    assert span.attributes == {}


class Broken(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        raise ValueError

    def __iter__(self) -> Iterator[str]:
        yield "a"
        raise ValueError

    def __len__(self) -> int:
        raise ValueError


@pytest.mark.parametrize("is_sampled", [True, False])
@pytest.mark.parametrize("given", [None, 5, Broken()], ids=["none", "number", "broken"])
def test_no_call_of_a_handler_fails_by_what_it_is_given(given: Any, is_sampled: bool) -> None:
    span = JobSpan(None) if is_sampled else LaneSpan(FakeLane(), sampling())
    span.set_attributes(given)
    span.add_event("e", given)
    span.add_link(given)
    span.add_link(SpanContext(1, 2, True), given)
    span.record_exception(given)
    if isinstance(span, JobSpan):
        assert (span.attributes, [event.name for event in span.events], len(span.links)) == ({}, ["e"], 1)


def test_a_span_is_bounded_by_items_by_characters_of_each_and_of_all() -> None:
    span = JobSpan(None)
    for number in range(MAX_ITEMS + 5):
        span.set_attribute(f"a{number}", "x" * 5)
        span.add_event("e")
        span.add_link(SpanContext(1, 2, True))
    assert (len(span.attributes), len(span.events), len(span.links)) == (MAX_ITEMS,) * 3
    span.set_attribute("a0", "y" * 10 * MAX_CHARS)
    assert len(str(span.attributes["a0"])) == MAX_CHARS
    large = JobSpan(None)
    for number in range(MAX_ITEMS):
        large.set_attribute(f"a{number}", "x" * MAX_CHARS)
    assert sum(len(str(value)) for value in large.attributes.values()) <= MAX_SPAN_CHARS


def test_what_is_added_after_the_end_is_left_out() -> None:
    span = JobSpan(None)
    assert span.is_recording()
    span.is_over = True
    span.set_attribute("a", 1)
    span.add_event("late")
    assert not span.is_recording()
    assert (span.attributes, span.events) == ({}, [])


def test_the_outcome_alone_decides_name_status_and_end() -> None:
    span = JobSpan(None)
    span.update_name("mine")
    span.set_status(trace.StatusCode.ERROR, "mine")
    span.end()
    assert span.is_recording()
    assert not span.is_touched


def test_the_span_of_a_lane_has_the_ids_of_the_present_job_and_records_nothing() -> None:
    lane = FakeLane(job(traceparent=UNSAMPLED))
    span = LaneSpan(lane, sampling())
    first = span.get_span_context()
    assert f"{first.trace_id:032x}" == TRACE
    assert not first.trace_flags.sampled
    assert not span.is_recording()
    assert span.get_span_context() is first
    span.set_attribute("a", 1)
    span.add_event("e")
    span.record_exception(ValueError("no"))
    lane.job = job()
    second = span.get_span_context()
    assert second.is_valid
    assert second.trace_id != first.trace_id
    lane.job = None
    assert not span.get_span_context().is_valid


def test_an_attempt_that_was_recorded_at_its_end_lends_the_lane_its_ids() -> None:
    lane = FakeLane(job())
    span = LaneSpan(lane, sampling())
    assert lane.job is not None
    span.adopt(lane.job, (b"\x01" * 16, b"\x02" * 8))
    context = span.get_span_context()
    assert (context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")) == (b"\x01" * 16, b"\x02" * 8)
    assert context.trace_flags.sampled


def test_lines_of_the_log_have_the_ids_of_the_current_span() -> None:
    assert current_ids() is None
    span = JobSpan(parse(SAMPLED.encode()))
    with trace.use_span(span, end_on_exit=False):
        ids = current_ids()
    assert ids == (TRACE, span.identify()[1].hex(), "01")
    assert trace.get_current_span(context_of(span)) is span


def test_a_span_keeps_no_job_alive() -> None:
    class Payload:
        pass

    held = Payload()
    gone = weakref.ref(held)
    span = JobSpan(None)
    span.set_attribute("a", held)
    del held
    gc.collect()
    assert gone() is None
