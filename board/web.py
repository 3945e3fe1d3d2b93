"""Web answers what people ask a board for: the pages, the API below `/api`, and the stream `/events`, in this order of checks:

the name it is asked for by, who asks, how often, where from; then the right, and then what is asked.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final, cast
from urllib.parse import parse_qsl

from aiohttp import web

from board import openapi
from board.access import Access
from board.api import Answered, Api, Refused, check_right, decoded, failure
from board.assets import Assets, packing_of
from board.auth import BEARER, SESSION_S, Auth
from board.guard import HEADERS, Hosts, Limiter, check_acting, check_reading
from board.routes import Route
from board.shapes import EventsAsk, Nothing
from board.stream import Streams
from board.viewer import Viewer
from runtime import logs

log: Final = logs.guarded("runtime")

MAX_BODY: Final = 64 * 1024  # bytes; 1,000 places are less
MAX_TEXT_BODY: Final = 600 * 1024  # bytes, of what has a payload of 256 KB in it: as JSON text it may be twice as long
TEXT_ROUTES: Final = frozenset({"validate", "send"})
BODY_S: Final = 10.0  # for a whole body; a guess, as HEAD_S
MAX_PARAMETERS: Final = 20  # of a URL; the route with the most has seven
EVENTS: Final = Route("GET", "events", "view", EventsAsk, Nothing, "the stream")
READING: Final = ("GET", "HEAD")


class Web:
    """Owns what is asked of each request before it is answered, and the streams."""

    def __init__(self, api: Api, auth: Auth, access: Access, streams: Streams, host: str, limiter: Limiter) -> None:
        self._api = api
        self._auth = auth
        self._access = access
        self._streams = streams
        self._hosts = Hosts(host, access.hosts)
        self._limiter = limiter
        self._assets = Assets()

    def __repr__(self) -> str:
        return f"<Web, {self._streams!r}>"

    @property
    def has_pages(self) -> bool:
        """Return whether the pages are built; else the API alone is served."""
        return self._assets.is_built

    @property
    def socket(self) -> str:
        """Return the path on which a proxy is listened to as well; empty for none."""
        return self._access.proxy.socket if self._access.proxy is not None else ""

    def close(self) -> None:
        """End the streams, which would be waited for else."""
        self._streams.close()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Return what a request is answered."""
        try:
            return await self._answer(request)
        except Refused as error:
            return _response(failure(error))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self._hosts.check(request.headers.get("Host", ""))
        viewer = self._known(request)
        prefix, path = self._access.prefix, request.rel_url.path
        if prefix and path == prefix:
            return web.Response(status=308, headers={"Location": f"{prefix}/"})
        if not path.startswith(f"{prefix}/"):
            raise Refused(404, "path", "there is no such page")
        path = path.removeprefix(f"{prefix}/")
        if path.startswith("api/"):
            return await self._api_answer(request, path.removeprefix("api/"), viewer)
        if request.method not in READING:
            raise Refused(405, "verb", "pages are only read")
        return await self._events(request, viewer) if path == "events" else self._asset(request, path)

    def _known(self, request: web.Request) -> Viewer:
        """Return who asks, and count that they do.

        Raises:
            Refused: they ask too often, or with a token that is none of ours.
        """
        address = request.remote or ""
        try:
            viewer = self._viewer(request)
        except Refused:
            self._limiter.take("requests", address)
            raise
        self._limiter.take("requests", viewer.address)
        return viewer

    def _viewer(self, request: web.Request) -> Viewer:
        is_proxied = request.transport is not None and isinstance(_own_address(request), str)
        return self._auth.viewer(request.headers, request.remote or "", _cookie_name(request), is_proxied=is_proxied)

    def _is_still(self, request: web.Request, viewer: Viewer) -> bool:
        """Return whether the one who asked then would be the same now: not after the session or the token has ended."""
        try:
            return self._viewer(request) == viewer
        except Refused:
            return False

    async def _api_answer(self, request: web.Request, path: str, viewer: Viewer) -> web.StreamResponse:
        check_reading(request.headers)
        if path == "openapi.json" and request.method in READING:
            return _response(Answered(200, openapi.text().encode()))
        route = self._api.route(request.method, path)
        if route is None:
            is_known = bool(self._api.verbs(path))
            raise Refused(
                405 if is_known else 404, "verb" if is_known else "path", "there is no such route: /api/openapi.json has all"
            )
        if route.verb != "POST":
            return _response(await self._api.answer(route, _parameters(request), viewer))
        is_bearer = request.headers.get("Authorization", "").startswith(BEARER)
        check_acting(request.headers, is_bearer=is_bearer)
        self._limiter.take("actions", viewer.address)
        check_right(route, viewer)  # before a body is read
        body = await _body(request, MAX_TEXT_BODY if path in TEXT_ROUTES else MAX_BODY)
        found = await self._api.answer(route, body, viewer)
        log.info("board: %s from %s: %s: %d", viewer.who, viewer.address or "a socket", path, found.status)
        response = _response(found)
        if found.session is not None:
            response.headers["Set-Cookie"] = self._cookie(request, found.session)
        return response

    def _cookie(self, request: web.Request, value: str) -> str:
        """Return the cookie of a session; without one, what ends it in the browser."""
        is_tls = request.headers.get("X-Forwarded-Proto", "").lower() == "https"
        age_s = int(SESSION_S) if value else 0
        ends = f"Max-Age={age_s}; Path={self._access.prefix or '/'}; HttpOnly; SameSite=Strict{'; Secure' if is_tls else ''}"
        return f"{_cookie_name(request)}={value}; {ends}"

    async def _events(self, request: web.Request, viewer: Viewer) -> web.StreamResponse:
        check_reading(request.headers)
        check_right(EVENTS, viewer)
        ask = cast("EventsAsk", decoded(EventsAsk, _parameters(request)))
        return await self._streams.serve(request, ask, viewer, partial(self._is_still, request, viewer), HEADERS)

    def _asset(self, request: web.Request, path: str) -> web.Response:
        asset = self._assets.find(path)
        if asset is None:
            raise Refused(404, "path", "there is no such page")
        packing = packing_of(asset, request.headers.get("Accept-Encoding", ""))
        packed = {"Content-Encoding": packing} if packing else {}
        return web.Response(body=asset.bodies[packing], headers=asset.headers | packed)


def _own_address(request: web.Request) -> Any:
    """Return where the connection has come in: host and port, or the path of a socket."""
    return request.transport.get_extra_info("sockname") if request.transport is not None else None


def _cookie_name(request: web.Request) -> str:
    """Return the name of our cookie: one for each port, since browsers keep those of a host apart by nothing else."""
    own = _own_address(request)
    return f"board_{own[1]}" if isinstance(own, tuple) else "board"


def _parameters(request: web.Request) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            request.rel_url.raw_query_string, keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="replace"
        )
    except ValueError:
        raise Refused(400, "asked", "too many parameters") from None


async def _body(request: web.Request, limit: int) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: it is too long, or comes too slowly.
    """
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            if (request.content_length or 0) <= limit:
                async for chunk in request.content.iter_any():
                    found += chunk
                    if len(found) > limit:
                        break
                else:
                    return bytes(found)
    except TimeoutError:
        raise Refused(408, "slow", f"a body must come within {BODY_S:g} s") from None
    raise Refused(413, "size", f"a body of this route has at most {limit:,} bytes")


def _response(found: Answered) -> web.Response:
    return web.Response(status=found.status, body=found.body, headers=found.headers | {"Content-Type": found.kind})
