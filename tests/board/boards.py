"""A board on a real socket, with answers of the tests' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse, ClientSession, web

from board import pages as board_pages
from board import shapes
from board.access import Access, Proxy
from board.alone import AloneBoard
from board.api import Answerer, Api
from board.assets import Assets
from board.auth import Auth
from board.guard import Limiter
from board.meta import MetaPage
from board.routes import ROUTES
from board.shapes import Counts, Frame, Range, Tick
from board.site import Site
from board.stream import Streams
from board.viewer import Viewer
from board.web import Web
from runtime.config import Config
from runtime.store.inspector import Inspector
from tests.board.test_access import TOKENS

ORIGIN = {"Sec-Fetch-Site": "same-origin"}


async def echo(ask: shapes.Ask, viewer: Viewer) -> shapes.Failure:
    """Answer with what was asked, and by whom."""
    return shapes.Failure(code=type(ask).__name__, text=msgspec.json.encode(ask).decode(), now=viewer.who)


def frame(number: int) -> Frame:
    counts = Counts(jobs=0, dead=0, types=0, workers=0, schedules=0, findings=0, operations=0)
    levels: dict[str, Any] = {"level": "ok", "dead_level": "ok", "system_level": "ok", "workers_level": "ok"}
    return Frame(now_ms=number, looks=0, acts=0, counts=counts, age_ms=0, trouble=None, **levels)


class Ticks:
    """A source whose ticks are the test's: each is given to all who look."""

    def __init__(self) -> None:
        self.asked: list[tuple[frozenset[str], Range, Viewer]] = []
        self.queues: list[asyncio.Queue[Tick]] = []

    def tick(self, number: int, trouble: str = "") -> None:
        for queue in self.queues:
            queue.put_nowait(Tick(frame=msgspec.structs.replace(frame(number), trouble=trouble or None), overview=None))

    @asynccontextmanager
    async def subscribe(self, topics: frozenset[str], range: Range, viewer: Viewer) -> AsyncGenerator[AsyncIterator[Tick]]:
        self.asked.append((topics, range, viewer))
        queue: asyncio.Queue[Tick] = asyncio.Queue()
        queue.put_nowait(Tick(frame=frame(0), overview=None))
        self.queues.append(queue)
        try:
            yield self._frames(queue)
        finally:
            self.queues.remove(queue)

    async def _frames(self, queue: asyncio.Queue[Tick]) -> AsyncIterator[Tick]:
        while True:
            yield await queue.get()


class Opened:
    """A board that listens, and a client of it without a cookie jar."""

    def __init__(self, site: Site, auth: Auth, ticks: Ticks, client: ClientSession) -> None:
        self.site, self.auth, self.ticks, self.client = site, auth, ticks, client

    @property
    def url(self) -> str:
        return self.site.url

    async def get(self, path: str, token: str = "", **headers: str) -> ClientResponse:
        return await self._ask("GET", path, token, None, headers)

    async def post(self, path: str, body: Any = None, token: str = "", **headers: str) -> ClientResponse:
        data = body if isinstance(body, bytes) else msgspec.json.encode({} if body is None else body)
        return await self._ask("POST", path, token, data, {"Content-Type": "application/json"} | ORIGIN | headers)

    async def _ask(self, verb: str, path: str, token: str, data: bytes | None, headers: Mapping[str, str]) -> ClientResponse:
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        given = {name.replace("_", "-"): value for name, value in headers.items()} | bearer
        answer = await self.client.request(verb, self.url + path, data=data, headers=given, allow_redirects=False)
        await answer.read()
        return answer


@asynccontextmanager
async def opened(
    *,
    tokens: Mapping[str, str] = TOKENS,
    proxy: Proxy | None = None,
    prefix: str = "",
    assets: Assets | None = None,
    limiter: Limiter | None = None,
    answerers: Mapping[str, Answerer] | None = None,
    hosts: tuple[str, ...] = (),
) -> AsyncGenerator[Opened]:
    """Open a board whose routes all answer `echo`, but for those of a session, which are the real ones."""
    is_open = not tokens and proxy is None
    access = Access(dict(tokens), proxy, False, is_open, prefix, hosts, "", "ok")
    limiter = limiter or NoLimit()
    auth, ticks = Auth(access, limiter=limiter), Ticks()
    functions: dict[str, Answerer] = {f"{route.verb} {route.path}": echo for route in ROUTES}
    functions |= MetaPage("redis://:secret@a/0", Config(), access, auth).routes() | dict(answerers or {})
    pages = Web(Api(functions), auth, access, Streams(ticks), "127.0.0.1", limiter)
    if assets is not None:
        pages._assets = assets  # pyright: ignore[reportPrivateUsage]

    async def small(request: web.Request) -> web.Response:
        return web.Response(text="small")

    async with (
        Site("127.0.0.1", 0, {"/": small, "/healthz": small}, pages) as site,
        ClientSession(auto_decompress=False) as client,
    ):
        yield Opened(site, auth, ticks, client)


class NoLimit(Limiter):
    """Counts only tries to log in: the tests ask faster than people."""

    def take(self, kind: Any, address: str) -> None:
        """Let it be."""


@asynccontextmanager
async def whole(url: str, folder: Path, **given: Any) -> AsyncGenerator[Site]:
    """Open the board of `python -m runtime board`, with all its pages on the queue of this server, and no limiter."""
    config = Config(redis=url, board="127.0.0.1:0", data_dir=str(folder), **given)
    async with AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(board_pages, "Limiter", NoLimit)
            yield await board_pages.open_board(
                stack, config, url, lambda web: AloneBoard(Inspector(url, config.queue, "board"), "127.0.0.1", 0, web)
            )
