"""The producers in deploy/producers: what they send is a job, and the job's span belongs to the trace of the one who sent it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from deploy.demo.worker import worker
from tests.collector import Answer, Collector
from tests.deploy.producers import FOLDER, installed_fastapi, installed_node
from tests.faults.harness import leftovers
from tests.servers import Server, free_ports, wait_until

PRODUCER, CONSUMER, SERVER = Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_SERVER


@pytest.fixture
def tcp_server() -> Generator[Server]:
    """A server on a TCP port, since clients of other languages know no unix sockets by a URL."""
    server = Server("valkey", "--bind", "127.0.0.1", "--port", str(free_ports()))
    yield server
    server.stop()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def url(server: Server) -> str:
    client: Any = server.client()
    with contextlib.closing(client):
        return f"redis://127.0.0.1:{client.config_get('port')['port']}"


def messages(server: Server) -> list[dict[str, str]]:
    client: Any = server.client()
    with contextlib.closing(client):
        return [fields for _, fields in client.xrange("{jobs}:high")]


def told(server: Server, collector: Collector, service: str) -> dict[str, str]:
    return {"REDIS_URL": url(server), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_SERVICE_NAME": service}


def traceparent_of(span: Span) -> str:
    return f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"


def attributes_of(holder: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


def test_node_sends_jobs_that_carry_the_context_of_their_span(tcp_server: Server, collector: Collector) -> None:
    environment = {**installed_node(), **told(tcp_server, collector, "node-orders")}
    done = subprocess.run(
        ["node", "index.js", "2"], cwd=FOLDER / "node", env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = messages(tcp_server)
    assert set(first) == {"type", "data", "src", "traceparent"}
    assert (first["type"], first["src"], json.loads(first["data"])["order"]) == ("confirm-order", "node", 1)
    one, two = collector.spans
    assert (one.name, one.kind) == ("publish jobs", PRODUCER)
    assert [traceparent_of(one), traceparent_of(two)] == [first["traceparent"], second["traceparent"]]
    assert one.trace_id != two.trace_id
    id, other = done.stdout.split()
    assert re.fullmatch(r"high-\d+-\d+", id)
    assert attributes_of(one) == {
        "messaging.system": "redis",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "jobs",
        "messaging.message.id": id,
        "job.type": "confirm-order",
        "job.priority": "high",
    }
    assert attributes_of(two)["messaging.message.id"] == other
    resource = attributes_of(collector.requests[0].message.resource_spans[0].resource)
    assert (resource["service.name"], bool(resource["host.name"])) == ("node-orders", True)


def test_a_job_from_node_is_run_within_the_trace_of_its_sender(tcp_server: Server, collector: Collector, tmp_path: Path) -> None:
    environment = {**installed_node(), **told(tcp_server, collector, "node-orders")}
    with worker(tmp_path, collector.endpoint, "--redis", tcp_server.url):
        done = subprocess.run(
            ["node", "index.js", "1"], cwd=FOLDER / "node", env=environment, stdout=subprocess.PIPE, text=True, timeout=60
        )
        wait_until(lambda: not leftovers(tcp_server.client()), what="the job is settled")
    assert done.returncode == 0
    [publish] = [span for span in collector.spans if span.kind == PRODUCER]
    attempts = [span for span in collector.spans if span.kind == CONSUMER]
    assert attributes_of(attempts[0])["messaging.message.id"] == done.stdout.strip()
    assert (attempts[0].trace_id, attempts[0].parent_span_id) == (publish.trace_id, publish.span_id)


def test_node_sends_until_it_is_stopped_and_then_sends_its_spans(tcp_server: Server, collector: Collector) -> None:
    environment = {**installed_node(), **told(tcp_server, collector, "node-orders")}
    running = subprocess.Popen(["node", "index.js"], cwd=FOLDER / "node", env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: messages(tcp_server), what="an order is sent")
    finally:
        running.send_signal(signal.SIGTERM)
        out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert len(out.split()) == len(messages(tcp_server)) == len(collector.spans)


def test_node_s_orders_are_sent_whatever_the_collector_says(tcp_server: Server) -> None:
    with Collector(otherwise=Answer(status=400)) as collector:
        environment = {**installed_node(), **told(tcp_server, collector, "node-orders")}
        done = subprocess.run(
            ["node", "index.js", "1"], cwd=FOLDER / "node", env=environment, capture_output=True, text=True, timeout=60
        )
        assert collector.requests
    assert (done.returncode, done.stderr) == (0, "spans were not sent: Bad Request\n")
    assert len(messages(tcp_server)) == 1


@contextlib.contextmanager
def web_service(server: Server, collector: Collector, log: Path) -> Generator[str]:
    """Run the FastAPI producer, and yield its URL; it must end cleanly."""
    environment = {**installed_fastapi(), **told(server, collector, "shop")}
    port = free_ports()
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "app:app"]
    with log.open("wb") as out:
        running = subprocess.Popen(command, cwd=FOLDER / "fastapi", env=environment, stdout=out, stderr=out)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), what="the web service answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)
    assert "Traceback" not in log.read_text()


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address) as answer:
        return answer.status == 200
    return False


def post(address: str, order: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{address}/orders", json.dumps(order).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_job_from_fastapi_is_run_within_the_trace_of_its_request(
    tcp_server: Server, collector: Collector, tmp_path: Path
) -> None:
    with (
        web_service(tcp_server, collector, tmp_path / "log") as address,
        worker(tmp_path, collector.endpoint, "--redis", tcp_server.url),
    ):
        status, answer = post(address, {"order": 7, "to": "ada@example.com", "failures": 0})
        assert status == 202
        assert post(address, {"order": 0, "to": "ada@example.com"})[0] == 422
        wait_until(lambda: not leftovers(tcp_server.client()), what="the job is settled")
    [request, refused] = sorted(
        (span for span in collector.spans if span.kind == SERVER), key=lambda span: span.start_time_unix_nano
    )
    [publish] = [span for span in collector.spans if span.kind == PRODUCER]
    [attempt] = [span for span in collector.spans if span.kind == CONSUMER]
    assert request.name == refused.name == "POST /orders", "the health check has no span"
    assert request.trace_id == publish.trace_id == attempt.trace_id != refused.trace_id
    assert (request.parent_span_id, publish.parent_span_id, attempt.parent_span_id) == (b"", request.span_id, publish.span_id)
    assert attributes_of(publish)["messaging.message.id"] == attributes_of(attempt)["messaging.message.id"] == answer["job"]
    steps = [span.name for span in collector.spans if span.parent_span_id == attempt.span_id]
    assert sorted(steps) == sorted(["render", "upload", "upload", "sign in a thread", "deliver"])
