"""What is sent to a Jaeger is read back from it as it was sent."""

from __future__ import annotations

import socket
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import deploy.demo.jaeger
from deploy.demo.jaeger import HOW_TO_GET, Event, Jaeger, Link, binary, spans_of
from tests.servers import wait_until


def provider_to(jaeger: Jaeger, service: str) -> TracerProvider:
    provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{jaeger.otlp}/v1/traces")))
    return provider


@pytest.mark.jaeger
def test_a_span_is_read_back_with_all_that_it_was_sent_with(jaeger: Jaeger) -> None:
    provider = provider_to(jaeger, "read-back")
    tracer = provider.get_tracer("tests")
    attributes: Any = {"text": "x", "number": 3, "part": 0.5, "is": True, "list": ["a", "b"]}
    with tracer.start_as_current_span("other") as other:
        pass
    link = trace.Link(other.get_span_context(), {"job.link": "producer"})
    with (
        tracer.start_as_current_span("root", kind=trace.SpanKind.PRODUCER, attributes=attributes, links=[link]) as root,
        tracer.start_as_current_span("child") as child,
    ):
        child.add_event("it happened", {"n": 1}, timestamp=1_800_000_000_000_000_001)
        child.set_status(trace.StatusCode.ERROR, "it failed")
    provider.shutdown()
    ids = root.get_span_context()
    wait_until(lambda: len(jaeger.trace(f"{ids.trace_id:032x}")) == 2, what="both spans are there")
    first, second = jaeger.trace(f"{ids.trace_id:032x}", warnings=True)
    assert (first.name, first.kind, first.service, first.parent, first.is_error) == ("root", "producer", "read-back", "", False)
    assert first.attributes == attributes
    assert first.links == [
        Link(f"{other.get_span_context().trace_id:032x}", f"{other.get_span_context().span_id:016x}", {"job.link": "producer"})
    ]
    assert (second.name, second.kind, second.parent) == ("child", "internal", first.id)
    assert (second.is_error, second.message) == (True, "it failed")
    assert second.events == [Event("it happened", 1_800_000_000_000_000_001, {"n": 1})]
    assert first.start_ns <= second.start_ns <= second.end_ns <= first.end_ns
    assert first.warnings == second.warnings == []
    assert jaeger.find("read-back", number="3") == [[first, second]]
    assert jaeger.find("read-back", number="4") == []
    assert "read-back" in jaeger.services()


@pytest.mark.jaeger
def test_a_span_whose_parent_is_missing_has_jaeger_s_warning(jaeger: Jaeger) -> None:
    provider = provider_to(jaeger, "orphan")
    parent = trace.SpanContext(7, 9, is_remote=True, trace_flags=trace.TraceFlags(1))
    context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
    provider.get_tracer("tests").start_span("orphan", context).end()
    provider.shutdown()
    wait_until(lambda: jaeger.trace(f"{7:032x}"), what="the span is there")
    [span] = jaeger.trace(f"{7:032x}", warnings=True)
    assert span.parent == f"{9:016x}"
    assert "invalid parent span IDs=0000000000000009; skipping clock skew adjustment" in span.warnings
    assert jaeger.trace(f"{7:032x}", warnings=True)[0].warnings == span.warnings, "reading adds none"


@pytest.mark.jaeger
def test_who_looks_before_the_parent_is_there_causes_no_warning(jaeger: Jaeger) -> None:
    provider = provider_to(jaeger, "early")
    tracer = provider.get_tracer("tests")
    parent = tracer.start_span("parent")
    tracer.start_span("child", trace.set_span_in_context(parent)).end()
    trace_id = f"{parent.get_span_context().trace_id:032x}"
    wait_until(lambda: jaeger.trace(trace_id), what="the child is there")
    assert [span.name for found in jaeger.find("early") for span in found] == ["child"]
    parent.end()
    provider.shutdown()
    wait_until(lambda: len(jaeger.trace(trace_id)) == 2, what="its parent is there")
    assert [span.warnings for span in jaeger.trace(trace_id, warnings=True)] == [[], []]


@pytest.mark.jaeger
def test_a_trace_that_jaeger_does_not_have_has_no_spans(jaeger: Jaeger) -> None:
    assert jaeger.trace("f" * 32) == []
    assert jaeger.find("nobody") == []


@pytest.mark.jaeger
def test_jaeger_listens_on_loopback_alone_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    if binary() is None:
        pytest.skip(HOW_TO_GET)
    with Jaeger(tmp_path) as own:
        addresses = listening(own.process.pid)
        assert len(addresses) == 3
        assert {address for address, _ in addresses} == {"0100007F"}, "127.0.0.1, as Linux shows it"
        port = urllib.parse.urlsplit(own.url).port
    assert own.process.poll() is not None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def listening(pid: int) -> set[tuple[str, str]]:
    """Return address and port of each socket on which a process listens, as Linux shows them."""
    inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.readlink().name.startswith("socket:")}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return {
        (address, port)
        for row in rows
        if row[3] == "0A" and f"socket:[{row[9]}]" in inodes
        for address, port in [row[1].split(":")]
    }


@pytest.mark.jaeger
def test_a_port_that_somebody_takes_first_is_another_one_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if binary() is None:
        pytest.skip(HOW_TO_GET)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken, dealt = other.getsockname()[1], deploy.demo.jaeger.free_ports
        deals = iter([(taken, *dealt(0)[1:]), dealt(0)])
        monkeypatch.setattr(deploy.demo.jaeger, "free_ports", lambda wanted: next(deals))
        with Jaeger(tmp_path) as own:
            assert own.services() == []
            assert str(taken) not in own.url


def test_a_jaeger_that_does_not_start_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such flag: $1\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("JAEGER_BIN", str(broken))
    with pytest.raises(RuntimeError, match="Jaeger does not answer: no such flag: --config"):
        Jaeger(tmp_path)
    monkeypatch.setenv("JAEGER_BIN", str(tmp_path))
    with pytest.raises(RuntimeError, match="no Jaeger: make jaeger"):
        Jaeger(tmp_path)


def test_what_otlp_leaves_out_is_read_as_nothing() -> None:
    bare = {"traceId": "a", "spanId": "b", "name": "n", "startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    [span] = spans_of({"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [bare]}]}]}, {})
    assert (span.parent, span.kind, span.service, span.attributes, span.events, span.links) == ("", "unspecified", "", {}, [], [])
    assert not span.is_error
