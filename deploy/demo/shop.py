"""The producer of the demo, a process of its own: an order comes in, and its job is sent; prints the trace's id and the job's.

`python -m deploy.demo.shop REDIS_URL ORDER FAILURES`, with OTEL_EXPORTER_OTLP_ENDPOINT.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import msgspec
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from redis import Redis

from deploy.demo.orders import ConfirmOrder

provider = TracerProvider(resource=Resource.create({"host.name": socket.gethostname()}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("shop")


def place_order(client: Any, order: int, failures: int) -> None:
    """Take one order: a request, within which a job is sent by plain XADD, with the context of the span of sending it."""
    data = msgspec.json.encode(ConfirmOrder(order=order, to="ada@example.com", failures=failures))
    with (
        tracer.start_as_current_span("POST /orders", kind=trace.SpanKind.SERVER) as request,
        tracer.start_as_current_span("publish jobs", kind=trace.SpanKind.PRODUCER) as publish,
    ):
        carried: dict[str, str] = {}
        propagate.inject(carried)
        entry = client.xadd("{jobs}:high", {"type": "confirm-order", "data": data, "traceparent": carried["traceparent"]})
        about = {"messaging.system": "redis", "messaging.operation.name": "publish", "messaging.operation.type": "send"}
        publish.set_attributes({**about, "messaging.destination.name": "jobs", "messaging.message.id": f"high-{entry}"})
    print(f"{request.get_span_context().trace_id:032x} high-{entry}")


with Redis.from_url(sys.argv[1], decode_responses=True) as connected:  # pyright: ignore[reportUnknownMemberType]
    place_order(connected, int(sys.argv[2]), int(sys.argv[3]))
provider.shutdown()
