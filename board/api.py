"""Api answers what is asked below `/api`: it finds the route, checks the right, decodes the ask, and gives errors one shape.

It knows nothing of HTTP but its verbs and statuses: what is asked comes in as text or bytes, what is answered leaves as bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from board.routes import ROUTES, Route
from board.shapes import Ask, Failure, Shape
from board.viewer import Viewer
from runtime.errors import JobsError, StoreUnavailable
from runtime.worker.log import ThrottledLog

MAX_TEXT: Final = 300  # characters of an error's text, which may repeat what was asked; a guess
JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"


class Refused(Exception):
    """What an answerer raises where it does not do what it is asked. `now` says what is true now, where that is why."""

    def __init__(self, status: int, code: str, text: str, now: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.now = now


class Reply(msgspec.Struct, frozen=True):
    """What an answerer may return in place of a shape: one with headers, or text as it is, such as a download.

    `session` is what the browser is to hold as its session from now on, empty for none; None leaves it as it is.
    """

    body: Shape | str
    headers: dict[str, str] = {}
    session: str | None = None


class Answered(msgspec.Struct, frozen=True):
    """An answer as it is sent."""

    status: int
    body: bytes
    kind: str = JSON
    headers: dict[str, str] = {}
    session: str | None = None


Answerer = Callable[[Any, Viewer], Awaitable[Shape | Reply]]  # its first argument is what the route asks for


class Api:
    """Owns which function answers which route: each route of the table has exactly one."""

    def __init__(self, answerers: Mapping[str, Answerer]) -> None:
        """Check that the table and the functions fit.

        Raises:
            RuntimeError: a route has no function, or a function no route.
        """
        self._routes = {f"{route.verb} {route.path}": route for route in ROUTES}
        missing = sorted(set(self._routes) - set(answerers))
        unknown = sorted(set(answerers) - set(self._routes))
        if missing or unknown:
            raise RuntimeError(f"the board's routes: without a function {missing}, not in the table {unknown}")
        self._answerers = dict(answerers)
        self._log = ThrottledLog()

    def route(self, verb: str, path: str) -> Route | None:
        """Return a route of the table."""
        return self._routes.get(f"{verb} {path}")

    def verbs(self, path: str) -> list[str]:
        """Return by which verbs a path may be asked for."""
        return [route.verb for route in self._routes.values() if route.path == path]

    async def answer(self, route: Route, asked: Sequence[tuple[str, str]] | bytes, viewer: Viewer) -> Answered:
        """Return what is answered, to one who has the right; `asked` are the parameters of a GET, or the body of a POST."""
        try:
            check_right(route, viewer)
            ask = decoded(route.asks, asked)
            return _answered(await self._answerers[f"{route.verb} {route.path}"](ask, viewer))
        except Refused as error:
            return failure(error)
        except StoreUnavailable as error:
            return failure(Refused(503, "redis", str(error)))
        except JobsError as error:
            return failure(Refused(400, "refused", str(error)))
        except Exception as error:  # a defect of one page is one answer, and tells nobody of itself
            self._log.warn("the board: %s %s: %s", route.verb, route.path, ascii(error)[:MAX_TEXT])
            return failure(Refused(500, "broken", "the board could not answer this; its log says why"))


def check_right(route: Route, viewer: Viewer) -> None:
    """Return where a viewer may ask for this.

    Raises:
        Refused: they may not: 401 for one who has no right at all, else 403.
    """
    if route.right is None or viewer.can(route.right):
        return
    if not viewer.rights:
        raise Refused(401, "login", "log in first")
    raise Refused(403, "right", f"this needs the right {route.right}; {viewer.who} has {', '.join(sorted(viewer.rights))}")


def decoded(kind: type[Ask], asked: Sequence[tuple[str, str]] | bytes) -> Ask:
    """Return what is asked: out of the parameters of a URL, or out of JSON.

    Raises:
        Refused: it is not what the route asks for.
    """
    try:
        if isinstance(asked, bytes):
            return msgspec.json.decode(asked or b"{}", type=kind)
        members = dict(asked)
        if len(members) < len(asked):
            raise Refused(400, "asked", "a parameter was given twice")
        return msgspec.convert(members, kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # ValidationError is a DecodeError
        raise Refused(400, "asked", str(error)) from None


def failure(error: Refused) -> Answered:
    """Return an error as it is sent."""
    return Answered(error.status, msgspec.json.encode(Failure(code=error.code, text=error.text[:MAX_TEXT], now=error.now)))


def _answered(found: Shape | Reply) -> Answered:
    reply = found if isinstance(found, Reply) else Reply(found)
    if isinstance(reply.body, str):
        return Answered(200, reply.body.encode("utf-8", "replace"), TEXT, reply.headers, reply.session)
    return Answered(200, msgspec.json.encode(reply.body), JSON, reply.headers, reply.session)
