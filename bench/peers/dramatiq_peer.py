"""Dramatiq, as a peer."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager

import common
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries

dramatiq.set_broker(RedisBroker(url=common.URL, middleware=[Retries()]))


@dramatiq.actor
def noop(payload: dict) -> None:
    common.ran(payload["n"])


@asynccontextmanager
async def connect():
    async def send(n):
        noop.send(common.payload(n))

    yield send, None


def work() -> None:
    command = [sys.executable, "-m", "dramatiq", "dramatiq_peer", "--processes", "1", "--threads", str(common.CONCURRENCY)]
    os.execve(sys.executable, [*command, "--skip-logging"], {**os.environ, "dramatiq_queue_prefetch": "500"})


if __name__ == "__main__":
    common.main(connect, work)
