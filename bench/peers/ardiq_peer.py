"""ardiq, as a peer."""

from __future__ import annotations

from contextlib import asynccontextmanager

import common
from ardiq import Ardiq

app = Ardiq(redis_url=common.URL, concurrency=common.CONCURRENCY, prefetch=common.CONCURRENCY, result_ttl_ms=0)


@app.task
async def noop(payload: dict) -> None:
    common.ran(payload["n"])


@asynccontextmanager
async def connect():
    yield (
        lambda n: noop.enqueue(common.payload(n)),
        lambda numbers: app.enqueue_many([noop.prepare(common.payload(n)) for n in numbers]),
    )


if __name__ == "__main__":
    common.main(connect, lambda: common.run(app.run()))
