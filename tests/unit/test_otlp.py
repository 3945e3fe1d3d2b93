"""Every byte that the encoder writes is read back equal by `opentelemetry-proto`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from otel import otlp
from otel.otlp import Event, Frame, Link, Shape, Span, as_value, encode

# Lone surrogates come of names of files that are no UTF-8.
texts = st.text(st.characters(), max_size=50) | st.sampled_from(["", "\udcff", "a\x00b", "ü" * 200])
values = st.recursive(
    texts | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
pairs = st.dictionaries(texts, values, max_size=5)
times = st.integers(0, 2**64 - 1)
trace_ids, span_ids = st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)
spans = st.builds(
    Span,
    name=texts,
    kind=st.sampled_from([otlp.PRODUCER, otlp.CONSUMER]),
    trace_id=trace_ids,
    span_id=span_ids,
    start_ns=times,
    end_ns=times,
    pairs=pairs,
    parent_id=st.just(b"") | span_ids,
    state=st.sampled_from(["", "a=b,ot=th:8"]),
    events=st.lists(st.builds(Event, texts, times, pairs), max_size=3),
    links=st.lists(
        st.builds(Link, trace_ids, span_ids, pairs, st.sampled_from(["", "x=y"]), st.integers(0, 2**32 - 1)), max_size=3
    ),
    error=st.none() | texts,
)


def as_utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def as_read(value: otlp.Value) -> object:
    """Return a value as a collector should see it."""
    if isinstance(value, str):
        return as_utf8(value)
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return str(value)
    return [as_read(one) for one in value] if isinstance(value, list) else value


def read_value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [read_value(one) for one in value.array_value.values]
    return getattr(value, kind or "")


def read_pairs(found: Sequence[KeyValue]) -> list[tuple[str, object]]:
    return [(pair.key, read_value(pair.value)) for pair in found]


def as_pairs(given: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [(as_utf8(name), as_read(value)) for name, value in given.items()]


def read_span(encoded: bytes) -> trace_pb2.Span:
    (span,) = trace_pb2.ScopeSpans.FromString(encoded).spans
    return span


@given(spans)
def test_each_field_of_a_span_is_read_back_equal(span: Span) -> None:
    read = read_span(encode(span))
    assert read.name == as_utf8(span.name)
    assert (read.kind, read.trace_id, read.span_id, read.parent_span_id) == (
        span.kind,
        span.trace_id,
        span.span_id,
        span.parent_id,
    )
    assert (read.start_time_unix_nano, read.end_time_unix_nano, read.trace_state) == (span.start_ns, span.end_ns, span.state)
    assert read.flags == (0x301 if span.parent_id else 0x101)
    assert read_pairs(read.attributes) == as_pairs(span.pairs)
    for event, found in zip(span.events, read.events, strict=True):
        assert (found.name, found.time_unix_nano) == (as_utf8(event.name), event.at_ns)
        assert read_pairs(found.attributes) == as_pairs(event.pairs)
    for link, seen in zip(span.links, read.links, strict=True):
        assert (seen.trace_id, seen.span_id, seen.trace_state, seen.flags) == (
            link.trace_id,
            link.span_id,
            link.state,
            link.flags,
        )
        assert read_pairs(seen.attributes) == as_pairs(link.pairs)
    status = (read.status.code, read.status.message)
    assert status == ((otlp.ERROR, as_utf8(span.error)) if span.error is not None else (0, ""))
    assert len(UnknownFieldSet(read)) == 0


job_ids = st.text("abcdefghijklmnopqrstuvwxyz0123456789._:-", max_size=otlp.MAX_ID)


@given(texts, pairs, trace_ids, span_ids, st.just(b"") | span_ids, times, times, st.floats(0, 1e9), job_ids)
@example("process x", {}, bytes(16), bytes(8), b"", 0, 0, 0.0, "")
@example("process x", {}, bytes(16), bytes(8), b"", 0, 0, 0.0, "x" * otlp.MAX_ID)
def test_a_shape_writes_the_same_span_as_the_slow_way(
    name: str,
    constant: dict[str, Any],
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes,
    start_ns: int,
    end_ns: int,
    wait: float,
    job_id: str,
) -> None:
    shape = Shape(
        name, otlp.CONSUMER, otlp.attributes(constant), "job.wait_s", "messaging.message.id", has_parent=bool(parent_id)
    )
    parts = shape.parts(trace_id, span_id, parent_id, start_ns, end_ns, wait, job_id.encode())
    slow = Span(
        name=name,
        kind=otlp.CONSUMER,
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        start_ns=start_ns,
        end_ns=end_ns,
        pairs={},
    )
    read, expected = read_span(b"".join(parts)), read_span(encode(slow))
    found = read_pairs(read.attributes)
    assert sorted(map(repr, found)) == sorted(
        map(repr, [("job.wait_s", wait), *as_pairs(constant), ("messaging.message.id", job_id)])
    )
    del read.attributes[:]
    assert read == expected


@given(pairs, st.lists(spans, max_size=3))
def test_requests_that_are_joined_are_one_request(resource: dict[str, Any], made: list[Span]) -> None:
    frame = Frame(resource, "scope", "1.2")
    encoded = [encode(span) for span in made]
    read = ExportTraceServiceRequest.FromString(frame.around(encoded) + frame.around(encoded))
    assert len(read.resource_spans) == 2
    for of_resource in read.resource_spans:
        assert read_pairs(of_resource.resource.attributes) == as_pairs(resource)
        (of_scope,) = of_resource.scope_spans
        assert (of_scope.scope.name, of_scope.scope.version) == ("scope", "1.2")
        assert [span.span_id for span in of_scope.spans] == [span.span_id for span in made]


class Text(str):
    __slots__ = ()

    def __getitem__(self, _: object) -> str:
        raise RuntimeError("not mine")


@pytest.mark.parametrize(
    ("given_value", "taken"),
    [
        ("abcdef", "abc"),
        (b"abcdef", b"abc"),
        (True, True),
        (7, 7),
        (0.5, 0.5),
        (["abcd", "b"], ["abc", "b"]),
        ((1, 2), [1, 2]),
        ([], []),
        (1 << 100, 1 << 100),
        (1 << 20_000, None),
        ([1, 1 << 20_000], None),
        ([1, "a"], None),
        ([1, True], None),
        ([[1]], None),
        (None, None),
        (..., None),
        ({"a": 1}, None),
        (Text("abc"), None),
        ([Text("abc")], None),
    ],
    ids=lambda value: "long" if isinstance(value, int) and value >> 64 else None,
)
def test_of_what_handlers_give_as_attributes_only_plain_values_are_taken(given_value: object, taken: object) -> None:
    assert as_value(given_value, 3) == taken
    assert type(as_value(given_value, 3)) is type(taken)
