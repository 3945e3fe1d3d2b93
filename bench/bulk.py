"""A handler of many that does nothing, apart from the others: where no handler takes many, nothing gathers."""

from __future__ import annotations

from typing import Final

from bench.noop import Noop
from runtime import Job, contract, handler

BULK: Final = ("--handlers", "bench.noop,bench.bulk")


@contract("bulk")
class Bulk(Noop, frozen=True, kw_only=True):
    """Come with many others."""


@handler(Bulk, max_size=100)
async def bulk(messages: list[Bulk], jobs: list[Job]) -> None:
    """Do nothing, for up to a hundred at once."""
