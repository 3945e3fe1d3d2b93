"""A worker inside the test's own loop, for handlers declared in the test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from runtime.consumer import Consumer
from runtime.jobs import Handler
from runtime.testing import until, worker

__all__ = ["until", "working"]


@contextlib.asynccontextmanager
async def working(url: str, *handlers: Handler[Any], concurrency: int = 10, **settings: Any) -> AsyncIterator[Consumer]:
    """Run a worker for these handlers until the block ends, and give its inside; it must stop cleanly."""
    async with worker(url, *handlers, concurrency=concurrency, **settings) as running:
        yield running.consumer
