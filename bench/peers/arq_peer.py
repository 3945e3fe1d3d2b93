"""arq, as a peer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import common
import uvloop
from arq import Worker, create_pool
from arq.connections import RedisSettings

SETTINGS = RedisSettings(host=common.HOST, port=common.PORT)


async def noop(ctx, payload: dict) -> None:
    common.ran(payload["n"])


@asynccontextmanager
async def connect():
    redis = await create_pool(SETTINGS)
    yield lambda n: redis.enqueue_job("noop", common.payload(n)), None
    await redis.aclose()


def work() -> None:
    asyncio.set_event_loop(uvloop.new_event_loop())
    limits = {"max_jobs": common.CONCURRENCY, "poll_delay": 0.01}
    Worker([noop], redis_settings=SETTINGS, keep_result=0, log_results=False, **limits).run()


if __name__ == "__main__":
    common.main(connect, work)
