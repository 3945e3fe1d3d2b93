"""A whole worker's traces, as a collector gets them; and what Redis keeps of them between attempts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from runtime.errors import BadPayload, StoreUnavailable
from runtime.producer import Message, Producer
from tests.collector import Collector
from tests.contract.traced_jobs import Mail, Plain
from tests.servers import Server, wait_until
from tests.unit.test_sampling import SAMPLED, SPAN, TRACE, UNSAMPLED
from tests.unit.test_tracing import events, links, values

STEPS = {"render", "first", "second", "sign"}


class Working:
    """A worker process, its collector, and its log."""

    def __init__(self, server: Server, collector: Collector, log: Path, *options: str, **variables: str) -> None:
        self.collector = collector
        self.raw: redis.Redis = server.client()
        self.url = server.url
        self._log = log
        command = [sys.executable, "-m", "runtime", "run", "--redis", server.url, "--handlers", "tests.contract.traced_jobs"]
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}"}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, "--board", "off", "--log", "json", *options], env={**os.environ, **endpoint, **variables}, stderr=file
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None:
            self.process.kill()
        self.stop()

    def send(self, type_name: str, data: str = "{}", **fields: str) -> str:
        """Send a job, and return its id."""
        return f"high-{self.raw.xadd('{jobs}:high', {'type': type_name, 'data': data, **fields})}"

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def spans(self, number: int, **attributes: object) -> list[Span]:
        """Wait for so many spans of attempts that have these attributes, and return them in the order of their ends."""

        def found() -> list[Span]:
            of_jobs = [span for span in self.collector.spans if span.name.startswith("process")]
            return [span for span in of_jobs if attributes.items() <= values(span).items()]

        self.collector.wait_for(lambda _: len(found()) >= number)
        return sorted(found(), key=lambda span: span.end_time_unix_nano)

    def children(self, of: Span, number: int) -> list[Span]:
        def found() -> list[Span]:
            return [span for span in self.collector.spans if span.trace_id == of.trace_id and span.name in STEPS]

        self.collector.wait_for(lambda _: len(found()) >= number)
        return found()

    def stop(self) -> None:
        """Stop it, and check that it stops cleanly, unless it was killed."""
        self.raw.close()
        if self.process.poll() is None:
            wait_until(lambda: self.process.poll() is not None or "lanes" in self._log.read_text(), what="it begins")
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) in (0, -signal.SIGKILL), self._log.read_text()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as one:
        yield one


@pytest.fixture
def working(server: Server, collector: Collector, tmp_path: Path) -> Iterator[Working]:
    """A worker that samples what its senders do."""
    variables = {"OTEL_TRACES_SAMPLER": "parentbased_always_off", "OTEL_SERVICE_NAME": "mail"}
    with Working(server, collector, tmp_path / "log", **variables) as one:
        yield one


def test_a_job_that_fails_twice_leaves_three_attempts_that_lead_back(working: Working) -> None:
    job_id = working.send("mail", '{"fails":2}', traceparent=SAMPLED)
    first, second, third = working.spans(3, **{"messaging.message.id": job_id})
    assert (first.trace_id.hex(), first.parent_span_id.hex(), links(first)) == (TRACE, SPAN, [])
    for number, (before, attempt) in enumerate(((first, second), (second, third)), 2):
        assert attempt.parent_span_id == b""
        assert values(attempt)["job.attempt"] == number
        assert links(attempt) == [
            (before.trace_id.hex(), before.span_id.hex(), "previous_attempt"),
            (TRACE, SPAN, "producer"),
        ]
    for attempt in (first, second, third):
        steps = working.children(attempt, 4)
        assert {span.name for span in steps} == STEPS
        by_name = {span.name: span for span in steps}
        assert by_name["render"].parent_span_id == by_name["sign"].parent_span_id == attempt.span_id
        assert by_name["first"].parent_span_id == by_name["second"].parent_span_id == by_name["render"].span_id
        assert values(attempt)["mail.domain"] == "example.com"
    assert len({span.trace_id for span in (first, second, third)}) == 3
    assert [values(span)["job.outcome"] for span in (first, second, third)] == ["retry", "retry", "done"]
    of_resource = working.collector.requests[0].message.resource_spans[0].resource
    resource = {pair.key: pair.value.string_value for pair in of_resource.attributes}
    assert resource["service.name"] == "mail"
    assert resource["host.name"]


def test_whatever_the_sampling_a_dead_letter_leads_to_its_trace_and_so_do_the_lines_of_its_log(working: Working) -> None:
    job_id = working.send("mail", '{"is_dead":true}')
    (span,) = working.spans(1, **{"messaging.message.id": job_id})
    wait_until(lambda: working.raw.xlen("{jobs}:dead") == 1, what="the letter")
    [(place, letter)] = working.raw.xrange("{jobs}:dead")
    ids = (span.trace_id.hex(), span.span_id.hex())
    assert letter["dead_trace"] == f"00-{ids[0]}-{ids[1]}-01"
    assert values(span)["job.forced"] is True
    environment = {**os.environ, "RUNTIME_TRACE_URL": "http://jaeger.example/trace/{trace_id}"}
    command = [sys.executable, "-m", "runtime", "dead", "show", place, "--redis", working.url]
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert f"http://jaeger.example/trace/{ids[0]}" in shown.stdout
    lines = [line for line in working.lines() if line.get("job_id") == job_id]
    assert {line["message"].split(":")[0] for line in lines} >= {"mail begins", "signed"}
    assert any("is dead" in line["message"] for line in lines)
    assert {line["trace_id"] for line in lines} == {ids[0]}
    assert {line["span_id"] for line in lines if line["message"] != "signed"} == {ids[1]}, "the other is in a step of its own"


def test_a_letter_that_is_sent_back_is_a_trace_that_leads_to_its_death(working: Working) -> None:
    job_id = working.send("mail", '{"is_dead":true}', id="mine")
    (death,) = working.spans(1)
    wait_until(lambda: working.raw.xlen("{jobs}:dead") == 1, what="the letter")
    command = [sys.executable, "-m", "runtime", "dead", "replay", "--all", "--now", "--redis", working.url]
    subprocess.run(command, check=True, capture_output=True)
    _, again = working.spans(2)
    assert job_id
    assert links(again) == [(death.trace_id.hex(), death.span_id.hex(), "previous_attempt")]
    assert again.trace_id != death.trace_id
    assert (values(again)["job.origin"], values(again)["job.attempt"]) == ("mine", 1)
    assert len(working.children(again, 4)) == 4, "sampled from its beginning, whatever the sampling"


@pytest.mark.parametrize("type_name", ["plain", "child"])
def test_what_handlers_record_in_threads_and_child_processes_goes_the_same_way(working: Working, type_name: str) -> None:
    working.send(type_name, traceparent=SAMPLED)
    (span,) = working.spans(1)
    (step,) = working.children(span, 1)
    assert (step.name, step.parent_span_id, step.trace_id.hex()) == ("sign", span.span_id, TRACE)


def test_an_error_in_a_child_process_is_told_as_what_it_was(working: Working) -> None:
    working.send("child", '{"fails":true}', traceparent=SAMPLED)
    (span,) = working.spans(1)
    assert values(span)["error.type"] == "LookupError"
    assert "in child" in events(span)["exception"]["exception.stacktrace"]
    assert len(working.children(span, 1)) == 1


@pytest.mark.parametrize("traceparent", ["nonsense", "00-" + "0" * 32 + f"-{SPAN}-01", "\x00\xff", SAMPLED.upper(), "-" * 55])
def test_a_malformed_traceparent_loses_no_job(valkey: Server, collector: Collector, tmp_path: Path, traceparent: str) -> None:
    with Working(valkey, collector, tmp_path / "log") as working:
        working.send("plain", traceparent=traceparent, tracestate="ü" * 600)
        (span,) = working.spans(1)
    assert (values(span)["job.outcome"], span.parent_span_id, span.trace_state) == ("done", b"", "")


def test_nothing_is_exported_without_an_endpoint_and_messages_run_all_the_same(
    valkey: Server, collector: Collector, tmp_path: Path
) -> None:
    with Working(valkey, collector, tmp_path / "log", OTEL_SDK_DISABLED="true") as working:
        working.send("mail", '{"fails":1}', traceparent=SAMPLED)
        wait_until(lambda: not (working.raw.xlen("{jobs}:high") or working.raw.zcard("{jobs}:due")), what="it has run")
    assert collector.requests == []


def test_a_limit_that_the_sdk_cannot_take_is_a_wrong_setting(valkey: Server) -> None:
    command = [
        sys.executable,
        "-m",
        "runtime",
        "run",
        "--redis",
        valkey.url,
        "--handlers",
        "tests.contract.traced_jobs",
        "--board",
        "off",
    ]
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}
    ended = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be" in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_delayed_job_and_a_snoozed_one_keep_what_leads_back(working: Working) -> None:
    working.send("mail", '{"fails":1}', traceparent=UNSAMPLED, tracestate="a=b", src="web")
    first, second = working.spans(2)
    assert links(second) == [(first.trace_id.hex(), first.span_id.hex(), "previous_attempt")], "its sender is not recorded"


# --- producers -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What an application exports that has set a provider, which a process can do only once."""
    provider, kept = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return kept


def traceparents(raw: redis.Redis) -> list[str]:
    found = [fields["traceparent"] for _, fields in raw.xrange("{jobs}:medium")]
    assert all(traceparent[-2:] in ("01", "03") for traceparent in found)  # sampled; 2 is for an id that was drawn at random
    return [traceparent[:52] for traceparent in found]


async def test_a_send_has_a_span_whose_context_goes_into_the_message(
    server: Server, raw: redis.Redis, exported: InMemorySpanExporter
) -> None:
    async with Producer(server.url) as producer:
        with trace.get_tracer("web").start_as_current_span("POST /orders"):
            sent = await producer.send(Mail())
    publish, request = exported.get_finished_spans()
    assert publish.context and publish.parent and request.context and publish.attributes
    assert (publish.name, publish.kind, publish.parent.span_id) == ("publish jobs", SpanKind.PRODUCER, request.context.span_id)
    assert traceparents(raw) == [f"00-{publish.context.trace_id:032x}-{publish.context.span_id:016x}"]
    assert publish.attributes["messaging.message.id"] == sent.id
    assert publish.attributes["messaging.destination.name"] == "jobs"
    assert (publish.attributes["messaging.operation.name"], publish.attributes["messaging.operation.type"]) == ("publish", "send")


async def test_many_sent_at_once_have_one_span_between_them(
    server: Server, raw: redis.Redis, exported: InMemorySpanExporter
) -> None:
    async with Producer(server.url) as producer:
        await producer.send_many([*[Mail() for _ in range(600)], Message(payload=Plain(), id="mine")])
    (publish,) = exported.get_finished_spans()
    assert publish.context and publish.attributes
    assert publish.attributes["messaging.batch.message_count"] == 601
    assert set(traceparents(raw)) == {f"00-{publish.context.trace_id:032x}-{publish.context.span_id:016x}"}
    assert len(traceparents(raw)) == 601


async def test_a_send_that_fails_has_a_span_that_says_why(exported: InMemorySpanExporter) -> None:
    async with Producer("redis://127.0.0.1:1", patience_s=0.1) as producer:
        with pytest.raises(StoreUnavailable):
            await producer.send(Mail())
        with pytest.raises(BadPayload):
            await producer.send(Mail(), id="not allowed")
    for span, name in zip(exported.get_finished_spans(), ("StoreUnavailable", "BadPayload"), strict=True):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes
        assert span.attributes["error.type"] == f"runtime.errors.{name}"


async def test_without_a_provider_nothing_is_added(server: Server, raw: redis.Redis) -> None:
    async with Producer(server.url) as producer:
        await producer.send(Mail())
    [(_, fields)] = raw.xrange("{jobs}:medium")
    assert "traceparent" not in fields


async def test_what_a_producer_sends_is_the_parent_of_what_runs(
    server: Server, working: Working, exported: InMemorySpanExporter
) -> None:
    async with Producer(server.url) as producer:
        await producer.send(Mail())
    (publish,) = exported.get_finished_spans()
    (span,) = working.spans(1)
    assert publish.context
    assert (span.trace_id, span.parent_span_id) == (
        publish.context.trace_id.to_bytes(16, "big"),
        publish.context.span_id.to_bytes(8, "big"),
    )
