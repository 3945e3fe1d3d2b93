"""A worker inside the test's own loop, for handlers declared in the test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from runtime.consumer import Consumer
from runtime.jobs import Handler
from runtime.testing import until as ask_until
from runtime.testing import worker
from tests.servers import PATIENCE_S

__all__ = ["until", "working"]


async def until(is_true: Callable[[], object], what: str = "the condition", deadline_s: float = PATIENCE_S) -> None:
    """Return when it holds; fail the test when it does not in time."""
    await ask_until(is_true, what, deadline_s)


@contextlib.asynccontextmanager
async def working(url: str, *handlers: Handler[Any], concurrency: int = 10, **settings: Any) -> AsyncIterator[Consumer]:
    """Run a worker for these handlers until the block ends, and give its inside; it must stop cleanly."""
    async with worker(url, *handlers, concurrency=concurrency, **settings) as running:
        yield running.consumer
