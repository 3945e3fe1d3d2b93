"""Jobs whose senders were traced or not, late or dead, as a real Jaeger shows them: in the right trace, and without a warning."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.jaeger import Jaeger, Span, Trace
from deploy.demo.worker import worker
from tests.servers import Server, wait_until

pytestmark = pytest.mark.jaeger

SENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def raw(valkey: Server, jaeger: Jaeger, tmp_path: Path) -> Generator[Any]:
    """A client of the queue of a worker whose traces go to Jaeger."""
    with worker(tmp_path, jaeger.otlp, "--redis", valkey.url), closing(valkey.client()) as client:
        yield client


def attempts(jaeger: Jaeger, raw: Any, number: int, *, failures: int = 0, **fields: str | int) -> list[Span]:
    """Send an order with these fields, and return its attempts, by their start, when there are so many."""
    order = {
        "type": "confirm-order",
        "data": json.dumps({"order": 1, "to": "x", "failures": failures}),
        "id": f"job-{time.time_ns()}",
    }
    raw.xadd("{jobs}:high", {**order, **fields})
    traces: list[Trace] = []

    def are_there() -> bool:
        traces[:] = sorted(jaeger.find("backend-jobs", messaging_message_id=order["id"]), key=lambda trace: trace[0].start_ns)
        return len(traces) == number and all(len(trace) == (1 if "job.forced" in trace[0].attributes else 6) for trace in traces)

    wait_until(are_there, what=f"{number} attempts are in Jaeger, with their steps where they were sampled")
    read = [jaeger.trace(trace[0].trace_id, warnings=True) for trace in traces]
    assert [span.warnings for trace in read for span in trace if span.warnings] == []
    return [trace[0] for trace in read]


def test_a_failure_whose_sender_was_not_sampled_is_a_root_in_the_sender_s_trace(jaeger: Jaeger, raw: Any) -> None:
    first, second = attempts(jaeger, raw, 2, failures=1, traceparent=f"00-{SENT[0]}-{SENT[1]}-00")
    assert (first.trace_id, first.parent, first.links) == (SENT[0], "", [])
    assert (first.attributes["job.forced"], first.attributes["job.outcome"], first.is_error) == (True, "retry", True)
    assert [(link.trace_id, link.span_id, link.attributes) for link in second.links] == [
        (first.trace_id, first.id, {"job.link": "previous_attempt"})
    ]
    assert second.trace_id != first.trace_id


def test_a_job_that_waits_on_purpose_has_a_trace_of_its_own_with_a_link_to_its_sender(jaeger: Jaeger, raw: Any) -> None:
    [job] = attempts(jaeger, raw, 1, traceparent=f"00-{SENT[0]}-{SENT[1]}-01", at=int(time.time() * 1000) + 300)
    assert job.trace_id != SENT[0]
    assert [(link.trace_id, link.span_id, link.attributes) for link in job.links] == [(*SENT, {"job.link": "producer"})]


def test_a_job_that_dies_says_why(jaeger: Jaeger, raw: Any) -> None:
    [job] = attempts(jaeger, raw, 1, failures=1, attempts=1, traceparent=f"00-{'c' * 32}-{'d' * 16}-00")
    assert (job.attributes["job.outcome"], job.attributes["job.dead_code"], job.is_error) == ("dead", "attempts", True)
    assert {event.name for event in job.events} == {"exception", "job.dead"}
    assert raw.xlen("{jobs}:dead") == 1
