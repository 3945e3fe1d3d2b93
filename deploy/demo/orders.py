"""The handlers of the demo: an order is confirmed in four steps, and its first attempts fail as often as its message says."""

from __future__ import annotations

import asyncio
import time

import msgspec
from opentelemetry import trace

from runtime import Backoff, Job, Priority, contract, handler

tracer = trace.get_tracer("shop")


@contract("confirm-order", priority=Priority.HIGH)
class ConfirmOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Send a mail with the invoice to a customer; `failures` attempts fail first."""

    order: int
    to: str
    failures: int = 0


# Waits that a person does not notice, and long enough to be told apart in a picture of the traces.
@handler(ConfirmOrder, timeout_s=10, retry=Backoff(base_s=0.1, cap_s=0.4, attempts=5))
async def confirm_order(message: ConfirmOrder, job: Job) -> None:
    """Render the mail, upload two files at the same time, sign in a thread, and deliver: each step is a span below the job's."""
    trace.get_current_span().set_attribute("order.number", message.order)
    with tracer.start_as_current_span("render"):
        await asyncio.sleep(0.004)
    await asyncio.gather(_upload("invoice.pdf", 0.009), _upload("terms.pdf", 0.006))
    await asyncio.to_thread(_sign)
    with tracer.start_as_current_span("deliver", attributes={"mail.attempt": job.attempt}):
        await asyncio.sleep(0.003)
        if job.attempt <= message.failures:
            raise ConnectionError("mail.example.com: connection refused")


async def _upload(name: str, takes_s: float) -> None:
    with tracer.start_as_current_span("upload", attributes={"file.name": name}):
        await asyncio.sleep(takes_s)


def _sign() -> None:
    with tracer.start_as_current_span("sign in a thread"):
        time.sleep(0.003)
