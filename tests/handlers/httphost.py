"""A real HTTP server on a loopback port, in a thread with a loop of its own, that answers as its script says."""

from __future__ import annotations

import asyncio
import ssl
import threading
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web

DROP = "drop the connection"
CUT = "end in the middle of the body"
HANG = "never answer"


@dataclass
class Reply:
    """An answer, or what happens in its place."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    instead: str = ""


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Httphost:
    """Owns the server. `script` are the replies in turn; the last one stays."""

    def __init__(self, use_tls: ssl.SSLContext | None = None) -> None:
        self.script: list[Reply] = [Reply()]
        self.seen: list[Seen] = []
        self.open_connections: set[Any] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._listen(use_tls), self._loop).result(5)
        self.url = f"{'https' if use_tls else 'http'}://127.0.0.1:{self.port}"

    async def _listen(self, use_tls: ssl.SSLContext | None) -> int:
        self._runner = web.ServerRunner(web.Server(self._take, access_log=None), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=use_tls)
        await site.start()
        return self._runner.addresses[0][1]

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        while len(cast("Any", self._loop)._selector.get_map()) > 1:  # its own pipe; a connection takes some turns to close
            await asyncio.sleep(0.002)

    async def _take(self, request: web.BaseRequest) -> web.StreamResponse:
        self.open_connections.add(request.transport)
        self.seen.append(Seen(request.method, request.path_qs, dict(request.headers), await request.read()))
        return await self._give(request, self.answer(self.seen[-1]))

    def answer(self, seen: Seen) -> Reply:
        """Return what to answer."""
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    async def _give(self, request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
        if reply.instead == HANG:
            await self._loop.create_future()
        if reply.instead == DROP:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if reply.instead == CUT:
            response = web.StreamResponse(status=reply.status, headers={"Content-Length": "1000", **reply.headers})
            await response.prepare(request)
            await response.write(b"{")
            assert request.transport is not None
            request.transport.close()
            return response
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)

    @property
    def is_left(self) -> bool:
        """Whether nobody is connected any more."""
        return all(transport is None or transport.is_closing() for transport in self.open_connections)
