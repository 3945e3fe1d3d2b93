"""The worker's HTTP: health for probes, metrics for Prometheus, a page that says where they are."""

from __future__ import annotations

import asyncio
import html
import time
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from board.site import METRICS, Site
from otel.metrics import Reading, render
from runtime.consumer import Consumer
from runtime.errors import StoreUnavailable
from runtime.store.inspector import Depth, Inspector

DEPTH_S: Final = 1.0  # scrapers and probes may ask as often as they like; Redis is asked once a second
WAY_OUT: Final = "the way out: python -m runtime jobs reopen"
PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>backend-jobs</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}</style>
<h1>backend-jobs</h1><p>This worker serves <a href="/healthz">/healthz</a> (the loop lives),
<a href="/readyz">/readyz</a> (Redis answers, jobs are fetched) and <a href="/metrics">/metrics</a> (Prometheus).</p></html>
"""


class Board:
    """Owns the listening socket and one connection to Redis. An async context manager around the life of a worker."""

    def __init__(self, consumer: Consumer, inspector: Inspector, host: str, port: int) -> None:
        self._consumer = consumer
        self._inspector = inspector
        self._depth: Depth | None = None
        self._depth_until_s = 0.0
        self._looking = asyncio.Lock()
        routes = {"/": self._index, "/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        self._site = Site(host, port, routes)

    async def __aenter__(self) -> Self:
        await self._site.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._site.__aexit__(kind, error, trace)
        await self._inspector.close()

    @property
    def url(self) -> str:
        """Where the board listens."""
        return self._site.url

    async def _index(self, request: web.Request) -> web.Response:
        troubles = "".join(
            f"<p><strong>{html.escape(text)}; {WAY_OUT}</strong></p>" for text in self._consumer.maintenance.troubles
        )
        return web.Response(text=PAGE.replace("</html>", f"{troubles}</html>"), content_type="text/html")

    async def _healthz(self, request: web.Request) -> web.Response:
        alive = self._consumer.is_alive
        return web.Response(text="alive\n" if alive else "the loop stands still\n", status=200 if alive else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        ready = self._consumer.is_ready
        stage = self._consumer.stage.value
        reason = (self._consumer.hung or "Redis does not answer") if stage == "running" else stage
        text = "ready\n" if ready else f"not ready: {reason}\n"
        text += "".join(f"left out, since it cannot be read: {key}: {error}\n" for key, error in self._consumer.broken.items())
        text += "".join(f"{trouble}; {WAY_OUT}\n" for trouble in self._consumer.maintenance.troubles)
        return web.Response(text=text, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        consumer = self._consumer
        reading = Reading(
            consumer.config.queue,
            consumer.stats,
            await self._look(),
            consumer.running,
            len(consumer.inbox),
            len(consumer.held),
            len(consumer.lanes),
            consumer.is_ready,
            set(consumer.broken),
            consumer.maintenance.ahead_s,
        )
        return web.Response(body=render(reading), headers=METRICS)

    async def _look(self) -> Depth | None:
        async with self._looking:
            if time.monotonic() >= self._depth_until_s:
                try:
                    self._depth = await self._inspector.depth()
                except StoreUnavailable:
                    self._depth = None
                self._depth_until_s = time.monotonic() + DEPTH_S
            return self._depth
