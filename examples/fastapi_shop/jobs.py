"""The jobs of the shop: the application imports the contract, a worker runs the handler."""

from __future__ import annotations

import msgspec

from runtime import Job, contract, handler


@contract("send-receipt")
class SendReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt for an order."""

    order: int
    to: str


@handler(SendReceipt, result_ttl_s=600)
async def send_receipt(message: SendReceipt, job: Job) -> str:
    """Send it; a job may run twice, and `job.work` is the same then."""
    return f"receipt for order {message.order} to {message.to}"
