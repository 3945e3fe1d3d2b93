"""The worker's HTTP: health for probes, metrics for Prometheus, a page that says where they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from otel.metrics import Reading, render
from runtime.consumer import Consumer
from runtime.errors import ConfigError, StoreAway
from runtime.lookups import Depth, Lookups

DEPTH_S: Final = 1.0  # scrapers and probes may ask as often as they like; Redis is asked once a second
SHUTDOWN_S: Final = 1.0
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>backend-jobs</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}</style>
<h1>backend-jobs</h1><p>This worker serves <a href="/healthz">/healthz</a> (the loop lives),
<a href="/readyz">/readyz</a> (Redis answers, jobs are fetched) and <a href="/metrics">/metrics</a> (Prometheus).</p></html>
"""


class Board:
    """Owns the listening socket and one connection to Redis. An async context manager around the life of a worker."""

    def __init__(self, consumer: Consumer, lookups: Lookups, host: str, port: int) -> None:
        self._consumer = consumer
        self._lookups = lookups
        self._host = host
        self._port = port
        self._depth: Depth | None = None
        self._depth_until_s = 0.0
        self._looking = asyncio.Lock()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[_with_headers])
        app.router.add_get("/", self._index)
        app.router.add_get("/favicon.ico", _no_icon)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"--board {self._host}:{self._port}: {error.strerror or error}; take another port, or off"
            ) from None
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        await self._lookups.close()

    @property
    def url(self) -> str:
        """Where the board listens; the real port, when 0 was asked for."""
        addresses = self._runner.addresses if self._runner is not None else []
        port = addresses[0][1] if addresses else self._port
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}"

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def _healthz(self, request: web.Request) -> web.Response:
        alive = self._consumer.is_alive
        return web.Response(text="alive\n" if alive else "the loop stands still\n", status=200 if alive else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        ready = self._consumer.is_ready
        stage = self._consumer.stage.value
        text = "ready\n" if ready else f"not ready: {'Redis does not answer' if stage == 'running' else stage}\n"
        return web.Response(text=text, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        consumer = self._consumer
        reading = Reading(
            consumer.config.queue,
            consumer.tally,
            await self._look(),
            consumer.running,
            len(consumer.inbox),
            len(consumer.held),
            len(consumer.lanes),
            consumer.is_ready,
        )
        return web.Response(body=render(reading), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _look(self) -> Depth | None:
        async with self._looking:
            if time.monotonic() >= self._depth_until_s:
                try:
                    self._depth = await self._lookups.depth()
                except StoreAway:
                    self._depth = None
                self._depth_until_s = time.monotonic() + DEPTH_S
            return self._depth


@web.middleware
async def _with_headers(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    response.headers.update(HEADERS)
    return response


async def _no_icon(request: web.Request) -> web.Response:
    return web.Response(status=204)
