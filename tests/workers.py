"""A worker inside the test's own loop, for handlers declared in the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from runtime.config import Config
from runtime.consumer import Consumer
from runtime.jobs import Handler


@contextlib.asynccontextmanager
async def working(url: str, *handlers: Handler[Any], concurrency: int = 10, **settings: Any) -> AsyncIterator[Consumer]:
    """Run a worker for these handlers until the block ends; it must stop cleanly."""
    config = Config(concurrency=concurrency, **{"lease_s": 2.0, "grace_s": 5.0, **settings})
    consumer = Consumer(config, url, {handler.contract.type.encode(): handler for handler in handlers})
    running = asyncio.create_task(consumer.run())
    try:
        await until(lambda: consumer.is_fetching or running.done(), "the worker fetches")
        yield consumer
    finally:
        consumer.stop()
        await asyncio.wait_for(running, 20)


async def until(is_true: Callable[[], Any], what: str = "the condition", deadline_s: float = 15.0) -> None:
    """Poll until it holds."""
    end_s = asyncio.get_running_loop().time() + deadline_s
    while not is_true():
        assert asyncio.get_running_loop().time() < end_s, f"{what} did not hold within {deadline_s} s"
        await asyncio.sleep(0.005)
