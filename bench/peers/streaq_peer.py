"""streaq, as a peer."""

from __future__ import annotations

from contextlib import asynccontextmanager

import common
from streaq import Worker

worker = Worker(redis_url=common.URL, concurrency=common.CONCURRENCY, anyio_backend="asyncio", anyio_kwargs={"use_uvloop": True})


@worker.task(ttl=0, silent=True)
async def noop(payload: dict) -> None:
    common.ran(payload["n"])


@asynccontextmanager
async def connect():
    async def send(n):
        await noop.enqueue(common.payload(n))

    async with worker:
        yield send, lambda numbers: worker.enqueue_many([noop.enqueue(common.payload(n)) for n in numbers])


if __name__ == "__main__":
    common.main(connect, worker.run_sync)
