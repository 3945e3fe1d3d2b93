"""taskiq, with the streams broker of taskiq-redis, as a peer."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager

import common
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(common.URL, consumer_id="0", xread_count=common.CONCURRENCY)


@broker.task(task_name="noop")
async def noop(payload: dict) -> None:
    common.ran(payload["n"])


@asynccontextmanager
async def connect():
    await broker.startup()
    yield lambda n: noop.kiq(common.payload(n)), None
    await broker.shutdown()


def work() -> None:
    command = [sys.executable, "-m", "taskiq", "worker", "taskiq_peer:broker", "--workers", "1", "--no-parse"]
    command += ["--max-async-tasks", str(common.CONCURRENCY), "--max-prefetch", str(common.CONCURRENCY)]
    os.execv(sys.executable, [*command, "--log-level", "ERROR"])


if __name__ == "__main__":
    common.main(connect, work)
