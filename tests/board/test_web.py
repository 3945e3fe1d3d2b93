"""The board's door on a real socket: what each request is checked for, and what each answer carries."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from board import web as pages
from board.access import Proxy
from board.assets import FOREVER, Assets
from board.guard import ACTIONS_S, HEADERS, REQUESTS_S, Limiter
from board.routes import ROUTES
from board.web import MAX_BODY, MAX_TEXT_BODY
from tests.board.boards import Opened, opened
from tests.board.test_access import SECRET, TOKENS
from tests.board.test_guard import Clock

BUILT = {
    "index.html": b"<!doctype html>the page",
    "assets/index-a1b2c3d4.js": b"x" * 100,
    "assets/index-a1b2c3d4.js.br": b"br",
    "assets/index-a1b2c3d4.js.gz": b"gz",
    "mark.svg": b"<svg/>",
}


@pytest.fixture
def assets(tmp_path: Path) -> Assets:
    for name, body in BUILT.items():
        path = tmp_path / "static" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    (tmp_path / "secret.txt").write_text("secret")
    return Assets(tmp_path / "static")


def cookie_of(answer: Any) -> str:
    return answer.headers["Set-Cookie"].partition(";")[0]


# --- headers, names, methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/jobs", "/none", "/api/meta", "/api/none", "/api/jobs", "/events", "/api/openapi.json", "/mark.svg"],
)
async def test_every_answer_carries_the_headers_and_none_lets_another_site_in(path: str, assets: Assets) -> None:
    async with opened(assets=assets) as board:
        for answer in (await board.get(path), await board.get(path, Origin="http://evil.example"), await board.post(path)):
            assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.1.2.3", ""])
async def test_under_a_strange_name_there_is_nothing_but_the_probes(host: str, assets: Assets) -> None:
    async with opened(assets=assets, hosts=("jobs.example",)) as board:
        for path in ("/", "/jobs", "/api/meta", "/events", "/api/login"):
            assert (await board.get(path, Host=host)).status == 421
            assert (await board.post(path, Host=host)).status == 421
        assert (await board.get("/healthz", Host=host)).status == 200
        assert (await board.get("/api/meta", Host="jobs.example:443")).status == 200


@pytest.mark.parametrize("verb", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_what_is_neither_read_nor_posted_is_refused(verb: str) -> None:
    async with opened() as board:
        for path in ("/", "/api/jobs", "/events", "/healthz"):
            async with board.client.request(verb, board.url + path) as answer:
                assert answer.status == 405


async def test_a_route_has_one_verb() -> None:
    async with opened() as board:
        assert (await board.post("/api/jobs", token=TOKENS["view"])).status == 405
        assert (await board.get("/api/cancel", token=TOKENS["operate"])).status == 405
        assert (await board.get("/api/nonsense", token=TOKENS["operate"])).status == 404


# --- rights ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["", *TOKENS])
async def test_every_route_asks_for_its_right(role: str) -> None:
    async with opened() as board:
        rights = {"": set[str](), "view": {"view"}, "payload": {"view", "payload"}, "operate": {"view", "payload", "operate"}}[
            role
        ]
        for route in ROUTES:
            if route.path in ("login", "logout"):
                continue
            path = f"/api/{route.path}"
            answer = await (board.get if route.verb == "GET" else board.post)(path, token=TOKENS[role] if role else "")
            if route.right is None or route.right in rights:
                assert answer.status in (200, 400), path
            else:
                assert answer.status == (403 if role else 401), path
                assert (await answer.json())["code"] == ("right" if role else "login")
        assert (
            await board.get("/events?topics=%ff%00", token=TOKENS["view"] if role else "", Sec_Fetch_Site="cross-site")
        ).status == 403
        if not role:
            async with asyncio.timeout(20):
                assert (await board.get("/events")).status == 401


async def test_a_body_is_not_read_for_one_who_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as board:
        answer = await board.post("/api/cancel", b"x" * (MAX_BODY * 2), token=TOKENS["view"])
        assert answer.status == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 400),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "URL"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "text/plain"}, 415),
    ],
)
async def test_a_session_acts_only_by_our_own_page(headers: dict[str, str], status: int) -> None:
    async with opened() as board:
        cookie = cookie_of(await board.post("/api/login", {"token": TOKENS["operate"]}))
        given = {"Content-Type": "application/json", "Cookie": cookie} | headers
        given = {name: board.url if value == "URL" else value for name, value in given.items()}
        async with board.client.post(f"{board.url}/api/cancel", data=b"{}", headers=given) as answer:
            assert answer.status == status


# --- sessions ----------------------------------------------------------------------------------------------------------------


async def test_a_session_begins_and_ends() -> None:
    async with opened() as board:
        answer = await board.post("/api/login", {"token": TOKENS["payload"]})
        assert (await answer.json())["rights"] == ["view", "payload"]
        port = board.url.rpartition(":")[2]
        assert re.fullmatch(
            rf"board_{port}=[\w-]{{32}}; Max-Age=43200; Path=/; HttpOnly; SameSite=Strict", answer.headers["Set-Cookie"]
        )
        cookie = cookie_of(answer)
        assert (await (await board.get("/api/meta", Cookie=cookie)).json())["who"] == "payload"
        again = await board.post("/api/login", {"token": TOKENS["view"]}, Cookie=cookie)
        assert (await board.get("/api/jobs", Cookie=cookie)).status == 401, "the session before it has ended"
        left = await board.post("/api/logout", Cookie=cookie_of(again))
        assert "Max-Age=0" in left.headers["Set-Cookie"]
        assert (await left.json())["must_login"]
        assert (await board.get("/api/jobs", Cookie=cookie_of(again))).status == 401


async def test_a_cookie_is_for_tls_alone_where_the_proxy_has_it_and_for_the_prefix() -> None:
    async with opened(prefix="/jobs") as board:
        answer = await board.post("/jobs/api/login", {"token": TOKENS["view"]}, X_Forwarded_Proto="https")
        assert answer.headers["Set-Cookie"].endswith("Path=/jobs; HttpOnly; SameSite=Strict; Secure")


async def test_a_stranger_is_told_little() -> None:
    async with opened() as board:
        about = await (await board.get("/api/meta")).json()
        assert (about["must_login"], about["rights"], about["queue"], about["redis"], about["features"]) == (True, [], "", "", [])
        known = await (await board.get("/api/meta", token=TOKENS["view"])).json()
        assert (known["must_login"], known["is_guest"], known["redis"]) == (False, False, "redis://***@a/0")


async def test_the_link_of_a_board_without_tokens_lets_do_everything() -> None:
    async with opened(tokens={}) as board:
        guest = await (await board.get("/api/meta")).json()
        assert (guest["who"], guest["rights"], guest["is_guest"]) == ("guest", ["view"], True)
        assert (await board.post("/api/cancel", {"places": ["a"]})).status == 403
        answer = await board.post("/api/login", {"token": board.auth.link_token})
        assert (await answer.json())["rights"] == ["view", "payload", "operate", "send"]
        assert (await board.post("/api/cancel", {"places": ["a"]}, Cookie=cookie_of(answer))).status == 200


async def test_five_tries_to_log_in_are_enough() -> None:
    async with opened() as board:
        answers = [(await board.post("/api/login", {"token": "wrong"})).status for _ in range(6)]
        assert answers == [401] * 5 + [429]
        assert (await board.post("/api/login", {"token": TOKENS["view"]})).status == 429
        assert (await board.get("/api/meta")).status == 200


async def test_a_bearer_token_that_is_none_is_refused_wherever_it_is_shown(assets: Assets) -> None:
    async with opened(assets=assets) as board:
        answers = [(await board.get(path, token="wrong")).status for path in ("/", "/api/meta", "/events", "/none")]
        assert answers == [401] * 4


# --- proxies -----------------------------------------------------------------------------------------------------------------


async def test_a_forged_user_is_nobody_and_the_proxys_is_who_it_says(tmp_path: Path) -> None:
    proxy = Proxy(secret=SECRET, socket=str(tmp_path / "p.sock"), roles={"operate": ["ada"]})
    async with opened(tokens={}, proxy=proxy) as board:
        forged = {"X_Forwarded_User": "ada", "X_Forwarded_For": "127.0.0.1", "X_Board_Secret": "0" * 24}
        assert (await (await board.get("/api/meta", **forged)).json())["rights"] == []
        real = {"X_Forwarded_User": "ada", "X_Board_Secret": SECRET}
        assert (await (await board.get("/api/meta", **real)).json())["who"] == "ada"
        assert (await board.post("/api/cancel", {"places": ["a"]}, **real)).status == 200
        assert (await board.post("/api/cancel", {"places": ["a"]}, **real | {"Sec_Fetch_Site": "cross-site"})).status == 403
        reader, writer = await asyncio.open_unix_connection(proxy.socket)
        writer.write(b"GET /api/meta HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-User: ada\r\nConnection: close\r\n\r\n")
        assert b'"who":"ada"' in await reader.read()
        writer.close()
        assert Path(proxy.socket).stat().st_mode & 0o777 == 0o660


async def test_what_stands_in_the_place_of_the_proxys_socket_stays_if_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    path.write_text("mine")
    from runtime.errors import ConfigError

    with pytest.raises(ConfigError, match="--board-proxy: socket"):
        async with opened(tokens={}, proxy=Proxy(socket=str(path), roles={"view": ["a"]})):
            pass
    assert path.read_text() == "mine"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with opened(tokens={}, proxy=Proxy(socket=str(path), roles={"view": ["a"]})):
        pass


# --- how much, how long ------------------------------------------------------------------------------------------------------


async def test_one_address_asks_and_acts_so_often_and_probes_are_not_counted() -> None:
    async with opened(limiter=Limiter(Clock())) as board:
        cookie = cookie_of(await board.post("/api/login", {"token": TOKENS["operate"]}))
        acts = [(await board.post("/api/cancel", {"places": ["a"]}, Cookie=cookie)).status for _ in range(int(ACTIONS_S))]
        assert acts == [200] * (int(ACTIONS_S) - 1) + [429], "to log in is an action, too"
        reads = [(await board.get("/api/meta")).status for _ in range(int(REQUESTS_S))]
        assert reads.count(200) == REQUESTS_S - ACTIONS_S - 1
        assert (await board.get("/api/jobs", token=TOKENS["view"])).status == 429
        assert (await board.get("/healthz")).status == 200


@pytest.mark.parametrize(("route", "most"), [("cancel", MAX_BODY), ("validate", MAX_TEXT_BODY)])
async def test_a_body_is_bounded_whether_its_length_is_told_or_not(route: str, most: int) -> None:
    async with opened() as board:
        token = TOKENS["operate"]
        assert (await board.post(f"/api/{route}", b" " * (most - 2) + b"{}", token=token)).status == 400
        assert (await board.post(f"/api/{route}", b" " * (most + 1), token=token)).status == 413

        async def chunks():
            for _ in range(most // 1000 + 2):
                yield b" " * 1000

        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        async with board.client.post(f"{board.url}/api/{route}", data=chunks(), headers=headers) as answer:
            assert answer.status == 413


async def test_a_body_that_comes_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "BODY_S", 0.2)
    async with opened() as board:
        host, _, port = board.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/cancel HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
        writer.write(f"{head}Authorization: Bearer {TOKENS['operate']}\r\n\r\n{{".encode())
        assert b" 408 " in await reader.readline()
        writer.transport.abort()


async def test_what_is_packed_is_not_unpacked() -> None:
    async with opened() as board:
        answer = await board.post("/api/cancel", b"\x1f\x8b", token=TOKENS["operate"], Content_Encoding="gzip")
        assert answer.status == 415


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET http://127.0.0.1/api/meta HTTP/1.1\r\nHost: evil\r\n\r\n",
        b"POST /api/cancel HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/cancel HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"x: y\r\n" * 100 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: " + b"a" * 9000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_request_of_ours_is_refused_and_the_next_is_answered(head: bytes) -> None:
    async with opened() as board:
        host, _, port = board.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head)
        line = await reader.readline()
        assert line[9:12] in (b"400", b"421", b"")
        writer.transport.abort()
        assert (await board.get("/api/meta")).status == 200


# --- what is asked: anything -------------------------------------------------------------------------------------------------

ROUTE = some.sampled_from([route for route in ROUTES if route.path not in ("login", "logout")])
VALUE = some.one_of(
    some.text(max_size=20),
    some.sampled_from(
        ["", "-1", "1e999", "nan", "null", "true", "[]", "{}", "\x00", "\u0661", "9" * 400, "high/1-1", "../..", "%"]
    ),
)


@pytest.fixture(scope="module")
def loop_board() -> Iterator[tuple[asyncio.AbstractEventLoop, Opened]]:
    """A board for many examples, whose loop is run example by example."""
    loop = asyncio.new_event_loop()
    context = opened()
    yield loop, loop.run_until_complete(context.__aenter__())
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


@given(
    route=ROUTE,
    extra=some.dictionaries(some.sampled_from(["place", "q", "limit", "cursor", "range", "x"]), VALUE),
    data=some.data(),
)
@settings(max_examples=150)
def test_no_parameter_makes_a_defect(
    loop_board: tuple[asyncio.AbstractEventLoop, Opened], route: Any, extra: dict[str, str], data: some.DataObject
) -> None:
    loop, board = loop_board
    members = {name: data.draw(VALUE) for name in data.draw(some.sets(some.sampled_from(route.asks.__struct_fields__ or ("x",))))}
    asked = members | extra
    if route.verb == "GET":
        from urllib.parse import urlencode

        text = urlencode(asked, errors="surrogatepass")
        answer = loop.run_until_complete(board.get(f"/api/{route.path}?{text}", token=TOKENS["operate"]))
    else:
        body = json.dumps(asked).encode()
        answer = loop.run_until_complete(board.post(f"/api/{route.path}", body, token=TOKENS["operate"]))
    assert answer.status < 500
    json.loads(loop.run_until_complete(answer.read()))


@given(body=some.binary(max_size=200), query=some.binary(max_size=60))
@settings(max_examples=100)
def test_no_bytes_make_a_defect(loop_board: tuple[asyncio.AbstractEventLoop, Opened], body: bytes, query: bytes) -> None:
    loop, board = loop_board
    quoted = "".join(f"%{byte:02x}" for byte in query)
    for path in (
        f"/api/jobs?{quoted}",
        f"/api/job?id={quoted}",
        f"/{quoted}",
        f"/api/{quoted}",
        f"/events?topics={quoted}&range=x",
    ):
        assert loop.run_until_complete(board.get(path, token=TOKENS["view"])).status in (200, 400, 404)
    assert loop.run_until_complete(board.post("/api/cancel", body, token=TOKENS["operate"])).status == 400


# --- the built pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *(("/", "index.html"), ("/jobs", "index.html"), ("/job?place=high/1-1", "index.html"), ("/login", "index.html")),
        *(("/mark.svg", "mark.svg"), ("/assets/index-a1b2c3d4.js", "assets/index-a1b2c3d4.js")),
    ],
)
async def test_pages_and_files_are_served_to_anybody(path: str, name: str, assets: Assets) -> None:
    async with opened(assets=assets) as board:
        answer = await board.get(path, Accept_Encoding="identity")
        assert (answer.status, await answer.read()) == (200, BUILT[name])
        is_hashed = "a1b2c3d4" in name
        assert answer.headers["Cache-Control"] == (FOREVER if is_hashed else "no-store")
        async with board.client.head(board.url + path) as head:
            assert (head.status, await head.read()) == (200, b"")


@pytest.mark.parametrize(
    ("accepted", "packing"),
    [("gzip, deflate, br", "br"), ("gzip", "gzip"), ("br;q=0, gzip;q=0.5", "gzip"), ("identity", ""), ("", ""), ("GZIP", "")],
)
async def test_a_file_is_sent_as_the_browser_can_take_it(accepted: str, packing: str, assets: Assets) -> None:
    async with opened(assets=assets) as board:
        answer = await board.get("/assets/index-a1b2c3d4.js", Accept_Encoding=accepted)
        assert answer.headers.get("Content-Encoding", "") == packing
        end = {"br": ".br", "gzip": ".gz", "": ""}[packing]
        assert await answer.read() == BUILT[f"assets/index-a1b2c3d4.js{end}"]
        assert answer.headers["Vary"] == "Accept-Encoding"


async def test_a_text_that_was_not_packed_is_packed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(b"<p>many words" * 1000)
    (tmp_path / "a-a1b2c3d4.woff2").write_bytes(b"packed already" * 1000)
    async with opened(assets=Assets(tmp_path)) as board:
        answer = await board.get("/", Accept_Encoding="gzip")
        assert gzip.decompress(await answer.read()) == b"<p>many words" * 1000
        assert "Content-Encoding" not in (await board.get("/a-a1b2c3d4.woff2", Accept_Encoding="gzip")).headers


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/assets/../../secret.txt", "/assets/..%5c..%5csecret.txt"),
        *(
            "//etc/passwd",
            "/%2fetc/passwd",
            "/etc/passwd",
            "/assets",
            "/assets/",
            "/index.html/",
            "/jobs/1",
            "/jobs.php",
            "/none",
        ),
        *("/.git/config", "/assets/index-a1b2c3d4.js.br", "/%00", "/index.html%00.svg", "/api", "/API/meta", "/events/"),
    ],
)
async def test_what_is_no_page_is_not_there(path: str, assets: Assets) -> None:
    async with opened(assets=assets) as board:
        host, _, port = board.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())  # a client would tidy the path
        answer = await reader.read()
        assert b" 404 " in answer.splitlines()[0]
        assert b"secret" not in answer.lower()
        writer.close()


async def test_without_built_pages_there_is_a_small_one(tmp_path: Path) -> None:
    async with opened(assets=Assets(tmp_path)) as board:
        assert await (await board.get("/")).text() == "small"
        assert (await board.get("/jobs")).status == 404
        assert (await board.get("/api/meta")).status == 200


async def test_below_a_prefix_there_are_the_pages_and_beside_it_the_probes(assets: Assets) -> None:
    async with opened(prefix="/team/jobs", assets=assets) as board:
        answer = await board.get("/team/jobs")
        assert (answer.status, answer.headers["Location"]) == (308, "/team/jobs/")
        for path in ("/team/jobs/", "/team/jobs/dead", "/team/jobs/mark.svg", "/team/jobs/api/meta", "/healthz"):
            assert (await board.get(path)).status == 200, path
        for path in ("/", "/jobs", "/api/meta", "/team/jobsmark.svg", "/team/mark.svg", "/team/jobs/healthz"):
            assert (await board.get(path)).status == 404, path


# --- the audit's line --------------------------------------------------------------------------------------------------------


async def test_each_action_is_a_line_in_the_log_and_reading_is_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "runtime")
    async with opened() as board:
        await board.post("/api/cancel", {"places": ["high/1-1"]}, token=TOKENS["operate"])
        await board.post("/api/cancel", {"places": []}, token=TOKENS["operate"])
        await board.post("/api/cancel", {"places": ["high/1-1"]}, token=TOKENS["view"])
        await board.get("/api/jobs", token=TOKENS["view"])
    assert [line for line in caplog.messages if line.startswith("board:")] == [
        "board: operate from 127.0.0.1: cancel: 200",
        "board: operate from 127.0.0.1: cancel: 400",
    ]


async def test_no_token_stands_in_the_log_or_in_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as board:
        answers = [
            await board.post("/api/login", {"token": "wrong-0123456789"}),
            await board.get("/api/meta", token="wrong-0123456789"),
        ]
        texts = [await answer.text() for answer in answers] + [json.dumps(caplog.messages)]
        assert not [text for text in texts if "wrong-0123456789" in text or TOKENS["view"] in text]
