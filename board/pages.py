"""The pages of a board, wherever it runs: all of them work from Redis alone. A page has its line in `_answerers`."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, TypeVar

from board import access
from board.api import Answerer, Api
from board.auth import Auth
from board.guard import Limiter
from board.link import Link
from board.meta import MetaPage
from board.site import Site
from board.stream import Source, Streams
from board.web import Web
from runtime.config import Config, address_of

S = TypeVar("S", bound=Site)
OFF: Final = "off"


async def open_board(stack: AsyncExitStack, config: Config, url: str, make: Callable[[Web | None], S]) -> S:
    """Serve a site for as long as the stack lasts, and the pages with it unless they are off. `url` is that of Redis.

    Raises:
        ConfigError: the board would be open to the network, a file of its cannot be used, or it cannot listen.
    """
    if config.board_pages == OFF:
        return await stack.enter_async_context(make(None))
    allowed = access.read(config, os.environ)
    limiter = Limiter()
    auth = Auth(allowed, config.board_token_file, limiter)
    answerers, source = await _answerers(stack, url, config)
    answerers |= MetaPage(url, config, allowed, auth).routes()
    host, _ = address_of(config.board) or ("", 0)
    web = Web(Api(answerers), auth, allowed, Streams(source), host, limiter)
    site = await stack.enter_async_context(make(web))
    if auth.link_token:
        stack.enter_context(Link(site.url + allowed.prefix, auth.link_token, Path(config.data_dir)))
    return site


async def _answerers(stack: AsyncExitStack, url: str, config: Config) -> tuple[dict[str, Answerer], Source | None]:
    """Return what answers the routes, by route, and what makes the ticks; the stack closes the connections that they share."""
    return {}, None
