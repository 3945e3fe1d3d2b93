"""Board serves a worker's health for probes, its metrics for Prometheus, and a page with links to them."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

import msgspec
from aiohttp import web

from board.site import Site, as_metrics, page
from board.web import Web
from otel.metrics import Reading, TraceReading, is_open_metrics, render
from runtime.consumer import Consumer
from runtime.errors import StoreUnavailable
from runtime.sender import SENT
from runtime.store.flow import Flow
from runtime.store.inspector import Depth, Inspector

QUEUE_S: Final = 1.0  # scrapers may ask as often as they like, Redis is asked once in this time; a guess
HINT: Final = "hint: python -m runtime jobs reopen"
ABOUT: Final = """<p>This worker serves <a href="/healthz">/healthz</a> (the loop moves),
<a href="/readyz">/readyz</a> (Redis answers, jobs are fetched) and <a href="/metrics">/metrics</a> (Prometheus).</p>"""


class _Queue(msgspec.Struct):
    """The queue as it was read."""

    depth: Depth | None = None
    oldest_s: dict[str, float] = {}
    flow: Flow | None = None
    stored_bytes: dict[str, int] = {}
    is_full: bool = False


class Board(Site):
    """Owns the listening socket and a connection to Redis. An async context manager around the life of a worker."""

    def __init__(
        self,
        consumer: Consumer,
        inspector: Inspector,
        host: str,
        port: int,
        trace: Callable[[], TraceReading | None] = lambda: None,
        pages: Web | None = None,
    ) -> None:
        routes = {"/": self._index, "/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        super().__init__(host, port, routes, pages)
        self._consumer = consumer
        self._inspector = inspector
        self._trace = trace
        self._queue: _Queue | None = None
        self._queue_until_s = 0.0
        self._reading_queue = asyncio.Lock()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await super().__aexit__(kind, error, trace)
        await self._inspector.close()

    async def _index(self, request: web.Request) -> web.Response:
        troubles = self._consumer.maintenance.troubles
        return page(ABOUT + "".join(f"<p><strong>{html.escape(text)}; {HINT}</strong></p>" for text in troubles))

    async def _healthz(self, request: web.Request) -> web.Response:
        alive = self._consumer.is_alive
        return web.Response(text="alive\n" if alive else "the loop stands still\n", status=200 if alive else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        ready = self._consumer.is_ready
        stage = self._consumer.stage.value
        reason = (self._consumer.hung or "Redis does not answer") if stage == "running" else stage
        text = "ready\n" if ready else f"not ready: {reason}\n"
        text += "".join(f"left out, since it cannot be read: {key}: {error}\n" for key, error in self._consumer.broken.items())
        text += "".join(f"{trouble}; {HINT}\n" for trouble in self._consumer.maintenance.troubles)
        return web.Response(text=text, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        consumer, queue = self._consumer, await self._recent_queue() or _Queue()
        places = consumer.places.items()
        reading = Reading(
            queue=consumer.config.queue,
            stats=consumer.stats,
            depth=queue.depth,
            running=consumer.running,
            inbox=len(consumer.inbox),
            held=len(consumer.held),
            lanes=len(consumer.lanes),
            is_ready=consumer.is_ready,
            broken=set(consumer.broken),
            ahead_s=consumer.maintenance.ahead_s,
            reserved=consumer.config.reserved_lanes,
            oldest_s=queue.oldest_s,
            flow=queue.flow,
            stored_bytes=queue.stored_bytes,
            is_full=queue.is_full,
            known=consumer.registry,
            places={kind: (some.total, some.taken, len(some.lost)) for kind, some in places},
            reconnects=consumer.streams.reconnects,
            sent=SENT.read(),
            trace=self._trace(),
            now_s=time.monotonic(),
        )
        is_open = is_open_metrics(request.headers.get("Accept", ""))
        return as_metrics(render(reading, is_open=is_open), is_open=is_open)

    async def _recent_queue(self) -> _Queue | None:
        """Return what the queue holds, and holds back, read within the last QUEUE_S; None when Redis did not answer."""
        async with self._reading_queue:
            if time.monotonic() >= self._queue_until_s:
                found = self._inspector
                try:
                    parts = await found.depth(), await found.oldest_waiting_s(), await found.flow(), await found.stored_bytes()
                    self._queue = _Queue(*parts, (await found.room()).is_full)
                except StoreUnavailable:
                    self._queue = None
                self._queue_until_s = time.monotonic() + QUEUE_S
            return self._queue
