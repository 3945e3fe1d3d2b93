"""The producer of the demo, a process of its own: an order comes in, and its job is sent; prints the trace's id and the job's.

`python -m deploy.demo.shop REDIS_URL ORDER FAILURES`, with OTEL_EXPORTER_OTLP_ENDPOINT.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from deploy.demo.orders import ConfirmOrder
from runtime import Producer

provider = TracerProvider(resource=Resource.create({"host.name": socket.gethostname()}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("shop")


async def main(url: str, order: int, failures: int) -> None:
    """Take one order."""
    async with Producer.connect(url, source="shop") as producer:
        with tracer.start_as_current_span("POST /orders", kind=trace.SpanKind.SERVER) as request:
            sent = await producer.send(ConfirmOrder(order=order, to="ada@example.com", failures=failures))
    print(f"{request.get_span_context().trace_id:032x} {sent.id}")


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
provider.shutdown()
