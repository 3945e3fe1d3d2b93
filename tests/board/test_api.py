"""Each route has a function and a right, whoever asks; what is asked is decoded, or refused in one shape."""

from __future__ import annotations

import msgspec
import pytest

from board import shapes
from board.api import Answered, Answerer, Api, Refused, Reply
from board.routes import ROUTES, Route
from board.viewer import Viewer
from runtime.errors import BadPayload, StoreUnavailable

ROLES: dict[str, frozenset[shapes.Right]] = {
    "nobody": frozenset(),
    "view": frozenset({"view"}),
    "payload": frozenset({"view", "payload"}),
    "operate": frozenset({"view", "payload", "operate"}),
    "send": frozenset({"view", "payload", "operate", "send"}),
}
BY_NAME = {f"{route.verb} {route.path}": route for route in ROUTES}
ANY = Viewer(rights=ROLES["send"])


def api(answerer: Answerer) -> Api:
    return Api(dict.fromkeys(BY_NAME, answerer))


async def answered(found: Answerer, route: str = "GET types", asked: list[tuple[str, str]] | bytes = b"{}") -> Answered:
    return await api(found).answer(BY_NAME[route], [] if route.startswith("GET") and asked == b"{}" else asked, ANY)


def failure_of(found: Answered) -> shapes.Failure:
    return msgspec.json.decode(found.body, type=shapes.Failure)


async def nothing(ask: shapes.Ask, viewer: Viewer) -> shapes.Changed:
    raise Refused(418, "reached", "the function was called")


def test_a_board_with_a_route_that_nobody_answers_does_not_start() -> None:
    functions = dict.fromkeys(BY_NAME, nothing)
    Api(functions)
    del functions["GET jobs"]
    with pytest.raises(RuntimeError, match="GET jobs"):
        Api(functions)
    with pytest.raises(RuntimeError, match="GET secrets"):
        Api({**dict.fromkeys(BY_NAME, nothing), "GET secrets": nothing})


# Every route that is not named here is read with `view`, or acts with `operate`.
RIGHTS = {
    "GET meta": None,
    "POST login": None,
    "POST logout": None,
    "GET payload": "payload",
    "POST validate": "payload",
    "POST send": "send",
}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.verb} {route.path}")
def test_who_reads_may_see_and_who_acts_may_operate(route: Route) -> None:
    usual = "view" if route.verb == "GET" else "operate"
    assert route.right == RIGHTS.get(f"{route.verb} {route.path}", usual)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.verb} {route.path}")
async def test_a_route_is_answered_to_those_who_have_its_right(route: Route, role: str) -> None:
    viewer = Viewer(rights=ROLES[role])
    found = await api(nothing).answer(route, [] if route.verb == "GET" else b"{}", viewer)
    if route.right is None or route.right in viewer.rights:
        assert found.status in (418, 400)  # the function was reached, or would have been with what it asks for
    else:
        assert found.status == (401 if role == "nobody" else 403)
        assert failure_of(found).code == ("login" if role == "nobody" else "right")


async def test_the_right_is_asked_for_before_what_is_asked_is_read() -> None:
    found = await api(nothing).answer(BY_NAME["POST cancel"], b"\xff[[[", Viewer(rights=ROLES["view"]))
    assert found.status == 403


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        ("GET jobs", [("state", "nonsense")]),
        ("GET jobs", [("limit", "0")]),
        ("GET jobs", [("limit", "101")]),
        ("GET jobs", [("limit", "1e9")]),
        ("GET jobs", [("unheard", "of")]),
        ("GET jobs", [("q", "a"), ("q", "b")]),
        ("GET jobs", [("q", "x" * 1001)]),
        ("GET job", [("place", "x" * 513)]),
        ("POST cancel", b""),
        ("POST cancel", b"nonsense"),
        ("POST cancel", b"\xff\xfe"),
        ("POST cancel", b"[" * 600_000),
        ("POST cancel", b'{"places":[]}'),
        ("POST cancel", b'{"places":["a"],"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("POST cancel", msgspec.json.encode({"places": ["a"] * 1001})),
    ],
)
async def test_what_a_route_does_not_ask_for_is_refused(route: str, asked: list[tuple[str, str]] | bytes) -> None:
    found = await answered(nothing, route, asked)
    assert (found.status, failure_of(found).code) == (400, "asked")
    assert len(found.body) < 1000


@pytest.mark.parametrize(
    ("error", "status", "code", "text"),
    [
        (Refused(409, "moved", "it had moved on", "done"), 409, "moved", "it had moved on"),
        (StoreUnavailable("Redis is away"), 503, "redis", "Redis is away"),
        (BadPayload("no"), 400, "refused", "no"),
        (ValueError("a secret"), 500, "broken", "the board could not answer this; its log says why"),
        (RecursionError("deep"), 500, "broken", "the board could not answer this; its log says why"),
    ],
)
async def test_an_error_is_answered_in_one_shape_and_a_defect_tells_nothing(
    error: Exception, status: int, code: str, text: str
) -> None:
    async def raising(ask: shapes.Ask, viewer: Viewer) -> shapes.Changed:
        raise error

    found = await answered(raising)
    assert found.status == status
    assert failure_of(found) == shapes.Failure(code=code, text=text, now="done" if status == 409 else None)


async def test_an_answer_is_json_or_text_with_its_headers() -> None:
    async def shape(ask: shapes.Ask, viewer: Viewer) -> shapes.Nothing:
        return shapes.Nothing()

    async def text(ask: shapes.Ask, viewer: Viewer) -> Reply:
        return Reply("\ud800 as it was", {"X-Name": "a"})

    assert await answered(shape) == Answered(200, b"{}", "application/json")
    assert await answered(text) == Answered(200, b"? as it was", "text/plain; charset=utf-8", {"X-Name": "a"})
