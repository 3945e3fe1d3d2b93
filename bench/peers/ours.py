"""Ours."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager

import common
import msgspec

from runtime import Job, Producer, contract, handler


@contract("noop")
class Noop(msgspec.Struct, frozen=True, kw_only=True):
    to: str
    subject: str
    n: int


@handler(Noop)
async def noop(message: Noop, job: Job) -> None:
    common.ran(message.n)


@asynccontextmanager
async def connect():
    async with Producer.connect(common.URL, patience_s=30) as producer:
        yield (
            lambda n: producer.send(Noop(**common.payload(n))),
            lambda numbers: producer.send_many([Noop(**common.payload(n)) for n in numbers]),
        )


def work() -> None:
    command = [sys.executable, "-m", "runtime", "--redis", common.URL, "--handlers", "ours", "--board", "off"]
    os.execv(sys.executable, [*command, "--concurrency", str(common.CONCURRENCY), "--log-level", "error"])


if __name__ == "__main__":
    common.main(connect, work)
