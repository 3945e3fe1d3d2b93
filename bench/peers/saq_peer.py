"""SAQ, as a peer."""

from __future__ import annotations

from contextlib import asynccontextmanager

import common
from saq import Queue, Worker


async def noop(ctx, *, payload: dict) -> None:
    common.ran(payload["n"])


@asynccontextmanager
async def connect():
    queue = Queue.from_url(common.URL, max_concurrent_ops=common.SENDERS)
    yield lambda n: queue.enqueue("noop", payload=common.payload(n), ttl=-1, timeout=0), None
    await queue.disconnect()


def work() -> None:
    async def start() -> None:
        queue = Queue.from_url(common.URL, max_concurrent_ops=common.CONCURRENCY)
        await Worker(queue, [noop], concurrency=common.CONCURRENCY).start()

    common.run(start())


if __name__ == "__main__":
    common.main(connect, work)
