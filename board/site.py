"""Site listens on a socket for what a board shows: routes, headers that each answer carries, a limit of connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final, Self

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from board.guard import HEADERS
from board.stream import MAX_STREAMS
from board.web import Web
from otel.exposition import OPEN_METRICS, TEXT
from runtime.errors import ConfigError
from runtime.worker.log import ThrottledLog

SHUTDOWN_S: Final = 1.0  # for requests that are being answered at the end; a guess
MAX_CONNECTIONS: Final = 64  # a guess: many more than probes, scrapers and people need, few beside the 1,024 files of a process
HEAD_S: Final = 10.0  # from when a connection is made until its first request is read; a guess
KEEP_ALIVE_S: Final = 15.0  # between two requests of a connection; a guess: Prometheus asks every 15 s by default
WATCH_S: Final = 1.0  # between two looks for idle connections; a guess
MAX_LOGGED: Final = 200  # characters of an error in the log, which may have a client's request in it; a guess
PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>backend-jobs</title><h1>backend-jobs</h1>"""
MAX_HEADER_BYTES: Final = 8190  # of the first line of a request, and of each header; aiohttp's own
MAX_HEADERS: Final = 64  # lines; a guess: browsers send twenty, proxies add ten
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
    """Owns the list of connections: `most` of them, and none that is idle for too long.

    A client that connects and sends nothing, or a head byte by byte, must not use up the file descriptors of a worker.
    """

    def __init__(self, server: web.Server, most: int) -> None:
        self._server = server
        self._most = most
        self._connections: dict[asyncio.BaseProtocol, _Connection] = {}

    def __repr__(self) -> str:
        return f"<_Connections {len(self._connections)}>"

    def accept(self) -> RequestHandler:
        """Return the protocol of a connection that has been made; called by the loop. Over the limit, the oldest idle ends."""
        self._update()
        staying = [connection for connection in self._connections.values() if not connection.is_closing]
        if len(staying) >= self._most:
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
    """Owns the listening socket, and that of a proxy. An async context manager around the life of what it shows.

    That is `routes`, and the pages, where there are any.
    """

    def __init__(self, host: str, port: int, routes: Mapping[str, Answer], pages: Web | None = None) -> None:
        self._host = host
        self._port = port
        self._routes = {"/favicon.ico": _no_icon, **routes}
        self._pages = pages
        if pages is not None and pages.has_pages:
            self._routes = {path: answer for path, answer in routes.items() if path != "/"}
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._private: asyncio.Server | None = None
        self._connections: _Connections | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._counted, _with_headers])
        for path, answer in self._routes.items():
            app.router.add_get(path, answer)
        if self._pages is not None:
            app.router.add_route("*", "/{path:.*}", self._pages.answer)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_Log(),
            shutdown_timeout=SHUTDOWN_S,
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,  # a few bytes would become many
        )
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("aiohttp has set up no server")
        self._connections = _Connections(server, MAX_CONNECTIONS + (MAX_STREAMS if self._pages is not None else 0))
        try:
            self._listening = await self._listen(self._connections.accept)
            if self._pages is not None and self._pages.socket:
                self._private = await _listen_to_proxy(self._pages.socket, self._connections.accept)
        except ConfigError:
            await self.__aexit__(None, None, None)
            raise
        self._watch = asyncio.create_task(self._connections.close_idle(), name="board")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for server in (self._listening, self._private):
            if server is not None:
                server.close()
        if self._pages is not None:
            self._pages.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _listen(self, accept: Callable[[], RequestHandler]) -> asyncio.Server:
        try:
            return await asyncio.get_running_loop().create_server(accept, self._host, self._port)
        except OSError as error:
            raise ConfigError(
                f"--board {self._host}:{self._port}: {error.strerror or error}; hint: take another port, or off"
            ) from None

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
        _add_headers(error)
        raise
    if not response.prepared:
        _add_headers(response)
    return response


def _add_headers(response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


async def _listen_to_proxy(path: str, accept: Callable[[], RequestHandler]) -> asyncio.Server:
    """Listen on a socket that its owner and its group may open; one that a board has left behind is replaced.

    Raises:
        ConfigError: it cannot be made there.
    """
    try:
        _remove_socket(path)
        server = await asyncio.get_running_loop().create_unix_server(accept, path)
        os.chmod(path, 0o660)
    except OSError as error:
        raise ConfigError(f"--board-proxy: socket {path}: {error.strerror or error}") from None
    return server


def _remove_socket(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)


async def _no_icon(request: web.Request) -> web.Response:
    return web.Response(status=204)
