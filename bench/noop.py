"""The handler of the benchmark: does nothing with a mail-like payload of 100 bytes."""

from __future__ import annotations

import msgspec

from runtime import Job, contract, handler


@contract("noop")
class Noop(msgspec.Struct, frozen=True, kw_only=True):
    """A small payload, decoded like any other."""

    to: str
    subject: str
    text: str


@handler(Noop)
async def noop(message: Noop, job: Job) -> None:
    """Do nothing."""
