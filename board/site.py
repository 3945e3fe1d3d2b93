"""What every board of ours is: a listening socket, routes, and the headers that each answer carries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from runtime.errors import ConfigError

SHUTDOWN_S: Final = 1.0
METRICS: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """Owns the listening socket. An async context manager around the life of what it shows."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Answer]) -> None:
        self._host = host
        self._port = port
        self._routes = routes
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[_with_headers])
        for path, answer in {"/favicon.ico": _no_icon, **self._routes}.items():
            app.router.add_get(path, answer)
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

    @property
    def url(self) -> str:
        """Where it listens; the real port, when 0 was asked for."""
        addresses = self._runner.addresses if self._runner is not None else []
        port = addresses[0][1] if addresses else self._port
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}"


@web.middleware
async def _with_headers(request: web.Request, handler: Answer) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    response.headers.update(HEADERS)
    return response


async def _no_icon(request: web.Request) -> web.Response:
    return web.Response(status=204)
