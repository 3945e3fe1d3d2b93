"""A web service whose `POST /orders` sends a job: the request, the send and the job make one trace.

REDIS_URL=redis://127.0.0.1:6379 OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 uvicorn app:app
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from fastapi import FastAPI, HTTPException
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic import BaseModel, Field

from runtime import JobsError, Priority, Producer, contract


@contract("confirm-order", priority=Priority.HIGH)
class ConfirmOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker does for an order; `failures` attempts fail first, for a demo."""

    order: int
    to: str
    failures: int = 0


class Order(BaseModel):
    """What a client asks for."""

    order: int = Field(ge=1)
    to: str = Field(min_length=3, max_length=254)
    failures: int = Field(default=0, ge=0, le=10)


# host.name keeps Jaeger from taking each span for another machine's, whose clock may be wrong.
provider = TracerProvider(resource=Resource.create({"host.name": socket.gethostname()}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
producer = Producer.connect(os.environ["REDIS_URL"], queue=os.environ.get("RUNTIME_QUEUE", "jobs"), source="shop")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Send what spans there are, and close the connection, when the service ends."""
    yield
    await producer.close()
    provider.shutdown()


app = FastAPI(lifespan=lifespan)


@app.get("/healthz")
async def healthz() -> str:
    """Return that the service answers."""
    return "ok"


@app.post("/orders", status_code=202)
async def place(order: Order) -> dict[str, str]:
    """Send the order's job, and return its id; 503 where it may not have been stored."""
    try:
        sent = await producer.send(ConfirmOrder(order=order.order, to=order.to, failures=order.failures))
    except JobsError as error:
        raise HTTPException(503, str(error)) from error
    return {"job": sent.id}


# One span for a request, without those for each part of it that is received or sent.
FastAPIInstrumentor.instrument_app(app, excluded_urls="healthz", exclude_spans=["receive", "send"])
