"""Site listens on a socket for what a board shows: routes, headers that each answer carries, a limit of connections."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Self

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from otel.exposition import OPEN_METRICS, TEXT
from runtime.errors import ConfigError
from runtime.worker.log import ThrottledLog

SHUTDOWN_S: Final = 1.0  # for requests that are being answered at the end; a guess
MAX_CONNECTIONS: Final = 64  # a guess: many more than probes, scrapers and people need, few beside the 1,024 files of a process
HEAD_S: Final = 10.0  # from when a connection is made until its first request is read; a guess
KEEP_ALIVE_S: Final = 15.0  # between two requests of a connection; a guess: Prometheus asks every 15 s by default
WATCH_S: Final = 1.0  # between two looks for idle connections; a guess
MAX_LOGGED: Final = 200  # characters of an error in the log, which may have a client's request in it; a guess
PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>backend-jobs</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}</style>
<h1>backend-jobs</h1>"""
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Connection(msgspec.Struct, eq=False):
    """One connection: how many of its requests are being answered, since when that is so, and whether it has sent any.

    `is_made` once it was seen with a transport, which the loop gives it a turn after `accept`; `is_closing` if it is to be closed
    as soon as it has one.
    """

    protocol: RequestHandler
    since_s: float
    answering: int = 0
    has_asked: bool = False
    is_made: bool = False
    is_closing: bool = False


class _Connections:
    """Owns the list of connections: MAX_CONNECTIONS at most, and none that is idle for too long.

    A client that connects and sends nothing, or a head byte by byte, must not use up the file descriptors of a worker.
    """

    def __init__(self, server: web.Server) -> None:
        self._server = server
        self._connections: dict[asyncio.BaseProtocol, _Connection] = {}

    def __repr__(self) -> str:
        return f"<_Connections {len(self._connections)}>"

    def accept(self) -> RequestHandler:
        """Return the protocol of a connection that has been made; called by the loop. Over the limit, the oldest idle ends."""
        self._update()
        staying = [connection for connection in self._connections.values() if not connection.is_closing]
        if len(staying) >= MAX_CONNECTIONS:
            idle = [connection for connection in staying if not connection.answering]
            self._close(min(idle or staying, key=lambda connection: connection.since_s))
        protocol = self._server()
        self._connections[protocol] = _Connection(protocol, time.monotonic())
        return protocol

    def count_request(self, protocol: asyncio.BaseProtocol, change: int) -> None:
        """Note that a request of this connection has come (1), or has been answered (-1)."""
        connection = self._connections.get(protocol)
        if connection is not None:
            connection.answering += change
            connection.since_s, connection.has_asked = time.monotonic(), True

    async def close_idle(self) -> None:
        """Close connections that have been idle for too long, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._update()
            now_s = time.monotonic()
            for connection in list(self._connections.values()):
                limit_s = KEEP_ALIVE_S if connection.has_asked else HEAD_S
                if not connection.answering and now_s - connection.since_s > limit_s:
                    self._close(connection)

    def _close(self, connection: _Connection) -> None:
        transport = connection.protocol.transport
        if transport is None and not connection.is_made and not connection.is_closing:
            connection.is_closing = True  # `_update` closes it when it is made; one that is closed a second time never was
            return
        self._connections.pop(connection.protocol, None)
        if transport is not None:
            transport.abort()

    def _update(self) -> None:
        """Forget the connections that are lost. Without a transport are those, and those that the loop is only now making."""
        for protocol, connection in list(self._connections.items()):
            if connection.protocol.transport is not None:
                connection.is_made = True
                if connection.is_closing:
                    self._close(connection)
            elif connection.is_made or connection.has_asked:
                del self._connections[protocol]


class _Log:
    """The logger of aiohttp, which clients make it use: one line each without a stack, and not many a second."""

    def __init__(self) -> None:
        self._log = ThrottledLog()

    def debug(self, text: str, *args: object, **more: object) -> None:
        """Log nothing: this is what any client may do."""

    def exception(self, text: str, *args: object, exc_info: object = None, **more: object) -> None:
        """Log in one line what could not be answered, and where the error was raised."""
        error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
        frames = list(traceback.walk_tb(error.__traceback__)) if error is not None else []
        place = f" ({frames[-1][0].f_code.co_filename}:{frames[-1][1]})" if frames else ""
        self._log.warn("the board: %s: %s%s", text % args if args else text, ascii(error)[:MAX_LOGGED], place)

    warning = error = exception


def page(body: str) -> web.Response:
    """Return an HTML page with this body."""
    return web.Response(text=f"{PAGE}{body}</html>\n", content_type="text/html")


def as_metrics(body: bytes, *, is_open: bool) -> web.Response:
    """Return a page for Prometheus, in OpenMetrics or in its own text format."""
    return web.Response(body=body, headers={"Content-Type": OPEN_METRICS if is_open else TEXT})


class Site:
    """Owns the listening socket. An async context manager around the life of what it shows."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Answer]) -> None:
        self._host = host
        self._port = port
        self._routes = routes
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._connections: _Connections | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._counted, _with_headers])
        for path, answer in {"/favicon.ico": _no_icon, **self._routes}.items():
            app.router.add_get(path, answer)
        self._runner = web.AppRunner(
            app, access_log=None, logger=_Log(), shutdown_timeout=SHUTDOWN_S, keepalive_timeout=KEEP_ALIVE_S
        )
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("aiohttp has set up no server")
        self._connections = _Connections(server)
        try:
            self._listening = await asyncio.get_running_loop().create_server(self._connections.accept, self._host, self._port)
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"--board {self._host}:{self._port}: {error.strerror or error}; hint: take another port, or off"
            ) from None
        self._watch = asyncio.create_task(self._connections.close_idle(), name="board")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._listening is not None:
            self._listening.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where it listens; the real port, when 0 was asked for."""
        sockets = self._listening.sockets if self._listening is not None else ()
        port = sockets[0].getsockname()[1] if sockets else self._port
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}"

    @web.middleware
    async def _counted(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        connections, protocol = self._connections, request.protocol
        if connections is None:
            return await handler(request)
        connections.count_request(protocol, 1)
        try:
            return await handler(request)
        finally:
            connections.count_request(protocol, -1)


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
