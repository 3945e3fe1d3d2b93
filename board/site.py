"""What every board of ours is: a listening socket, routes, and the headers that each answer carries."""

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

from runtime.errors import ConfigError
from runtime.worker.log import ThrottledLog

SHUTDOWN_S: Final = 1.0
MAX_CONNECTIONS: Final = 64  # a guess: many more than probes, scrapers and people need, few beside the 1,024 files of a process
HEAD_S: Final = 10.0  # from when a connection is made until its first request is read
KEEP_ALIVE_S: Final = 15.0
WATCH_S: Final = 1.0
MAX_TOLD: Final = 200  # characters of an error in the log, which may have a stranger's request in it; a guess
METRICS: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Visitor(msgspec.Struct, eq=False):
    """One connection: how many of its requests are being answered, since when it is as it is, and whether it ever asked.

    `is_made` once it was seen with a transport, which a loop may give it a turn later; `leaves` if it is to end by then.
    """

    protocol: RequestHandler
    since_s: float
    answering: int = 0
    has_asked: bool = False
    is_made: bool = False
    leaves: bool = False


class _Porter:
    """Owns the list of connections: lets in MAX_CONNECTIONS, and sends off who is idle for too long, the oldest first.

    Nobody who connects and is silent, or says a head byte by byte, may use up the files of a process that has jobs to run.
    """

    def __init__(self, server: web.Server) -> None:
        self._server = server
        self._visitors: dict[asyncio.BaseProtocol, _Visitor] = {}

    def __repr__(self) -> str:
        return f"<_Porter {len(self._visitors)} connections>"

    def let_in(self) -> RequestHandler:
        """Return the protocol of a connection that has been made; called by the loop."""
        self._look()
        staying = [visitor for visitor in self._visitors.values() if not visitor.leaves]
        if len(staying) >= MAX_CONNECTIONS:
            idle = [visitor for visitor in staying if not visitor.answering]
            self._send_off(min(idle or staying, key=lambda visitor: visitor.since_s))
        protocol = self._server()
        self._visitors[protocol] = _Visitor(protocol, time.monotonic())
        return protocol

    def begins(self, protocol: asyncio.BaseProtocol, by: int) -> None:
        """Note that a request of this connection begins (1), or is answered (-1)."""
        visitor = self._visitors.get(protocol)
        if visitor is not None:
            visitor.answering += by
            visitor.since_s, visitor.has_asked = time.monotonic(), True

    async def watch(self) -> None:
        """Send off whoever is idle for too long, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._look()
            now_s = time.monotonic()
            for visitor in list(self._visitors.values()):
                if not visitor.answering and now_s - visitor.since_s > (KEEP_ALIVE_S if visitor.has_asked else HEAD_S):
                    self._send_off(visitor)

    def _send_off(self, visitor: _Visitor) -> None:
        transport = visitor.protocol.transport
        if transport is None and not visitor.is_made and not visitor.leaves:
            visitor.leaves = True  # when it is made; what is asked a second time never was
            return
        self._visitors.pop(visitor.protocol, None)
        if transport is not None:
            transport.abort()

    def _look(self) -> None:
        """A protocol whose connection is lost has no transport; nor have those that are only now being made, however many."""
        for protocol, visitor in list(self._visitors.items()):
            if visitor.protocol.transport is not None:
                visitor.is_made = True
                if visitor.leaves:
                    self._send_off(visitor)
            elif visitor.is_made or visitor.has_asked:
                del self._visitors[protocol]


class _Complaints:
    """What aiohttp has for a logger: strangers make it speak, so it is one line within a budget, and without a stack."""

    def __init__(self) -> None:
        self._log = ThrottledLog()

    def debug(self, text: str, *args: object, **more: object) -> None:
        """Say nothing of what any client may do."""

    def exception(self, text: str, *args: object, exc_info: object = None, **more: object) -> None:
        """Say in one line what could not be answered, and where it was raised."""
        error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
        frames = list(traceback.walk_tb(error.__traceback__)) if error is not None else []
        place = f" ({frames[-1][0].f_code.co_filename}:{frames[-1][1]})" if frames else ""
        self._log.warn("the board: %s: %s%s", text % args if args else text, ascii(error)[:MAX_TOLD], place)

    warning = error = exception


class Site:
    """Owns the listening socket. An async context manager around the life of what it shows."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Answer]) -> None:
        self._host = host
        self._port = port
        self._routes = routes
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._porter: _Porter | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._counted, _with_headers])
        for path, answer in {"/favicon.ico": _no_icon, **self._routes}.items():
            app.router.add_get(path, answer)
        self._runner = web.AppRunner(
            app, access_log=None, logger=_Complaints(), shutdown_timeout=SHUTDOWN_S, keepalive_timeout=KEEP_ALIVE_S
        )
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("a runner that is set up has a server")
        self._porter = _Porter(server)
        try:
            self._listening = await asyncio.get_running_loop().create_server(self._porter.let_in, self._host, self._port)
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"--board {self._host}:{self._port}: {error.strerror or error}; take another port, or off"
            ) from None
        self._watch = asyncio.create_task(self._porter.watch(), name="board")
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
        porter, protocol = self._porter, request.protocol
        if porter is None:
            return await handler(request)
        porter.begins(protocol, 1)
        try:
            return await handler(request)
        finally:
            porter.begins(protocol, -1)


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
