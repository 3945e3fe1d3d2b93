"""AloneBoard serves the pages without a worker, from Redis alone: a board is needed most when workers crash."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from aiohttp import web

from board.site import Site, page
from board.web import Web
from runtime.errors import StoreUnavailable
from runtime.store.inspector import Inspector

ABOUT: Final = """<p>This board serves <a href="/healthz">/healthz</a> (it lives) and <a href="/readyz">/readyz</a> (Redis
answers). Its pages are not built: <code>make board</code> builds them.</p>"""


class AloneBoard(Site):
    """Owns the listening socket and a connection to Redis."""

    def __init__(self, inspector: Inspector, host: str, port: int, pages: Web | None = None) -> None:
        super().__init__(host, port, {"/": self._index, "/healthz": self._healthz, "/readyz": self._readyz}, pages)
        self._inspector = inspector

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await super().__aexit__(kind, error, trace)
        await self._inspector.close()

    async def _index(self, request: web.Request) -> web.Response:
        return page(ABOUT)

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        try:
            await self._inspector.server()
        except StoreUnavailable:
            return web.Response(text="not ready: Redis does not answer\n", status=503)
        return web.Response(text="ready\n")
