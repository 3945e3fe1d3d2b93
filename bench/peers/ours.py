"""Ours, as a peer."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import common
import msgspec

from runtime import Job, Producer, Sent, contract, handler


@contract("noop")
class Noop(msgspec.Struct, frozen=True, kw_only=True):
    to: str
    subject: str
    n: int


@handler(Noop)
async def noop(message: Noop, job: Job) -> None:
    common.ran(message.n)


@asynccontextmanager
async def connect() -> AsyncGenerator[tuple[common.Send, common.SendMany]]:
    async with Producer.connect(common.URL, patience_s=30) as producer:

        async def send(n: int) -> Sent:
            return await producer.send(Noop(**common.payload(n)))

        async def send_many(numbers: Iterable[int]) -> list[Sent]:
            return await producer.send_many([Noop(**common.payload(n)) for n in numbers])

        yield send, send_many


def work() -> None:
    command = [sys.executable, "-m", "runtime", "--redis", common.URL, "--handlers", "ours", "--board", "off"]
    os.execv(sys.executable, [*command, "--concurrency", str(common.CONCURRENCY), "--log-level", "error"])


if __name__ == "__main__":
    common.main(connect, work)
