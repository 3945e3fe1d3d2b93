"""A real board under attack, without a browser: forged requests, strange names, broken HTTP, wrong tokens, any parameter."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from board.routes import ROUTES, Route
from tests.board.boards import whole
from tests.board.hostile import CORPUS, filled
from tests.board.test_access import TOKENS, secret_file
from tests.servers import Server

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

JSON: Final = {"Content-Type": "application/json"}
OURS: Final = JSON | {"Sec-Fetch-Site": "same-origin"}
MOST_BYTES: Final = 4 << 20  # of an answer; a guess: far below what the rows of a list may add up to
ANSWER_S: Final = 60.0  # a guess: a busy machine answers in far less; what waits for longer hangs
ACTS: Final = [route for route in ROUTES if route.verb == "POST"]


class Door:
    """A board that listens, and a client of it without a cookie jar."""

    def __init__(self, url: str, token: str, client: ClientSession) -> None:
        self.url, self.token, self.client = url, token, client

    async def ask(self, verb: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Return status and body of an answer, or fail where there is none in time."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with asyncio.timeout(ANSWER_S):
            async with self.client.request(verb, self.url + path, data=body, headers=given, allow_redirects=False) as answer:
                return answer.status, await answer.read()

    async def session(self) -> str:
        """Return the cookie of a new session that may do all."""
        body = json.dumps({"token": self.token}).encode()
        async with self.client.post(f"{self.url}/api/login", data=body, headers=OURS) as answer:
            assert answer.status == 200
            return answer.headers["Set-Cookie"].partition(";")[0]

    async def raw(self, sent: bytes) -> bytes:
        """Return all that is answered to these bytes, until the board closes."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.timeout(ANSWER_S):
                writer.write(sent)
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store() -> AsyncIterator[Server]:
    """A server with a queue in which strangers have written all they can."""
    with filled() as server:
        yield server


@asynccontextmanager
async def door(store: Server, folder: Path, token: str = "", **given: Any) -> AsyncGenerator[Door]:
    async with whole(store.url, folder, **given) as site, ClientSession(auto_decompress=False) as client:
        links = [path.read_text().strip().partition("#token=")[2] for path in folder.glob("board-*.link")]
        yield Door(site.url, token or links[0], client)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def board(store: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    """A board whose link lets do all."""
    async with door(store, tmp_path_factory.mktemp("open")) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(store: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    """A board with a token for each role."""
    folder = tmp_path_factory.mktemp("guarded")
    text = "".join(f'{role} = "{token}"\n' for role, token in TOKENS.items())
    async with door(store, folder, TOKENS["operate"], board_token_file=secret_file(folder, text)) as opened:
        yield opened


# --- who asks, and from where ------------------------------------------------------------------------------------------------

FORGED: Final = (
    *[
        {"Sec-Fetch-Site": site, "Origin": "OWN"}
        for site in ("cross-site", "same-site", "none", "", "SAME-ORIGIN", "x, same-origin")
    ],
    *[{"Origin": origin} for origin in ("http://evil.example", "null", "", "OWN.evil.example", "OWN@evil.example", "file://")],
    {},
    {"Referer": "OWN/"},
    {"X-Board": "1"},
    {"X-Board": "1", "X-Requested-With": "XMLHttpRequest"},
    {"X-Forwarded-Host": "evil.example", "Origin": "http://evil.example"},
)
KINDS: Final = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp", "")


@pytest.mark.parametrize("route", ACTS, ids=lambda route: route.path)
async def test_no_action_is_done_for_a_page_of_another_site(board: Door, route: Route) -> None:
    path, cookie = f"/api/{route.path}", await board.session()
    own = {"Origin": board.url, "Sec-Fetch-Site": "same-origin"}
    for forged in FORGED:
        given = {name: value.replace("OWN", board.url) for name, value in forged.items()}
        status, body = await board.ask("POST", path, b"{}", Cookie=cookie, **JSON | given)
        assert (status, json.loads(body)["code"]) == (403, "site"), forged
    for kind in KINDS:
        status, _ = await board.ask("POST", path, b"{}", Cookie=cookie, **own | {"Content-Type": kind, "X-Board": "1"})
        assert status == 415, kind
    for name, value in own.items():
        status, _ = await board.ask("POST", path, b"{}", Cookie=cookie, **JSON | {name: value})
        assert status not in (401, 403, 415, 500), name


HOSTS: Final = (
    *(b"evil.example", b"127.0.0.1.evil.example", b"localhost.evil.example", b"localhost.", b"xlocalhost", b"127.0.0.2"),
    *(b"127.0.0.1:80@evil.example", b"evil.example@127.0.0.1", b"127.0.0.1:80:80", b"localhost:http", b"localhost:-1"),
    *(b"2130706433", b"0x7f.1", b"127.1", b"0", b"0.0.0.0", b"[::]", b"[::1]evil", b"[::1", b"::1", b"localhost, evil.example"),
    *(b"", b"localhost%00", b"\xe2\x93\x9bocalhost", b"localhost/", b"http://localhost"),
)


async def test_under_a_name_that_is_not_its_own_a_board_shows_nothing(board: Door) -> None:
    script = b"/" + next(
        name for name in (await board.ask("GET", "/", Accept_Encoding="identity"))[1].split(b'"') if b"assets/index" in name
    ).lstrip(b"./")
    pages = (b"/", b"/jobs", script, b"/mark.svg", b"/api/meta", b"/api/openapi.json", b"/events", b"/none")
    for host, path in product(HOSTS, pages):
        answer = await board.raw(b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (path, host))
        assert answer[9:12] in (b"421", b"400"), (host, path)
        assert answer.count(b"HTTP/1.1 ") == 1
    for host in (b"LOCALHOST:1", b"127.0.0.1", b"[::1]:8080"):
        answer = await board.raw(b"GET /api/meta HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host)
        assert answer[9:12] == b"200", host
    assert (await board.raw(b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"))[9:12] == b"200"


@pytest.mark.parametrize("role", ["", *TOKENS])
async def test_the_real_pages_are_for_those_who_have_their_right(guarded: Door, role: str) -> None:
    rights = {"": [], "view": ["view"], "payload": ["view", "payload"], "operate": ["view", "payload", "operate"]}[role]
    shown = {"Authorization": f"Bearer {TOKENS[role]}"} if role else {}
    for route in ROUTES:
        status, _ = await guarded.ask(route.verb, f"/api/{route.path}", b"{}" if route.verb == "POST" else None, **OURS | shown)
        if route.right is None or route.right in rights:
            assert status in (200, 400), route.path
        else:
            assert status == (403 if role else 401), route.path


@pytest.mark.parametrize(
    "shown",
    [
        *(
            "Bearer",
            "Bearer ",
            "bearer TOKEN",
            "Bearer TOKEN TOKEN",
            "Bearer\tTOKEN",
            "Basic TOKEN",
            "TOKEN",
            "Bearer Bearer TOKEN",
        ),
        *("Bearer TOKEN,", "Bearer 'TOKEN'", "Token TOKEN", "Bearer " + "x" * 5000, "Bearer null", "Digest x"),
    ],
)
async def test_a_token_in_a_wrong_shape_is_none(guarded: Door, shown: str) -> None:
    status, body = await guarded.ask("GET", "/api/meta", Authorization=shown.replace("TOKEN", TOKENS["operate"]))
    assert status in (401, 429) or json.loads(body)["rights"] == []


async def test_a_token_counts_in_no_other_place(guarded: Door) -> None:
    token, port = TOKENS["operate"], guarded.url.rpartition(":")[2]
    for name in ("token", "access_token", "Authorization"):
        assert (await guarded.ask("GET", f"/api/jobs?{name}={token}"))[0] == 401
    for name in (f"board_{port}", "board", "token"):
        assert (await guarded.ask("GET", "/api/jobs", Cookie=f"{name}={token}"))[0] == 401
    for header in ("X_Board_Secret", "X_Board_Token", "X_Forwarded_User", "X_Remote_User", "Proxy_Authorization"):
        assert (await guarded.ask("GET", "/api/jobs", **{header: token}))[0] == 401


# --- what is no request ------------------------------------------------------------------------------------------------------

HEAD: Final = b"POST /api/cancel HTTP/1.1\r\nHost: 127.0.0.1\r\n"
# Each is read as one request by some and as two by others; what would be the second asks who one is.
SMUGGLED: Final[dict[str, bytes]] = {
    "two-lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 60\r\n\r\n",
    "two-equal-lengths": HEAD + b"Content-Length: 6, 6\r\n\r\n",
    "length-and-chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space-before-colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "unknown-coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked-twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-first": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "signed-length": HEAD + b"Content-Length: +0\r\n\r\n",
    "negative-length": HEAD + b"Content-Length: -1\r\n\r\n",
    "grouped-length": HEAD + b"Content-Length: 0_0\r\n\r\n",
    "hex-length": HEAD + b"Content-Length: 0x0\r\n\r\n",
    "long-length": HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "folded": HEAD + b"X-A: b\r\n Content-Length: 60\r\n\r\n",
    "no-colon": HEAD + b"Content-Length 0\r\n\r\n",
    "nul": HEAD + b"X-A: a\x00b\r\n\r\n",
    "bare-return": HEAD + b"X-A: b\rContent-Length: 60\r\n\r\n",
    "empty-name": HEAD + b": x\r\n\r\n",
    "no-host": b"GET /api/meta HTTP/1.1\r\n\r\n",
    "two-hosts": b"GET /api/meta HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
    "old-version": b"GET /api/meta HTTP/0.9\r\nHost: 127.0.0.1\r\n\r\n",
    "no-version": b"GET /api/meta\r\n\r\n",
    "other-protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "strange-verb": b"G\x01T / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "split-path": b"GET / x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "chunk-hex": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "chunk-negative": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "chunk-large": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 40 + b"\r\n",
    "chunk-too-long": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
}
AFTER: Final = b"GET /api/meta HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("shape", SMUGGLED)
async def test_what_can_be_read_in_two_ways_is_not_read_at_all(board: Door, shape: str) -> None:
    answer = await board.raw(SMUGGLED[shape] + AFTER)
    assert b'"rights"' not in answer, answer[:2000]
    assert len(re.findall(rb"^HTTP/1\.[01] \d{3} ", answer, re.MULTILINE)) <= 1
    assert (await board.raw(AFTER))[9:12] == b"200"


SECRETS: Final = (b"root:", b"[project]", b"def ", b"import ", b"BEGIN")


@pytest.mark.parametrize("end", ["pyproject.toml", "web.py", "etc/passwd", "index.html.gz"])
async def test_no_path_leads_out_of_what_is_served(board: Door, end: str) -> None:
    ups = (
        "../",
        "..%2f",
        "%2e%2e/",
        "%252e%252e%252f",
        "..\\",
        "..%5c",
        "%c0%ae%c0%ae/",
        "..;/",
        "....//",
        "./../",
        "%00../",
        "~/",
    )
    for base, up in product(("/", "/assets/", "/api/", "/events/", "//"), ups):
        for path in (base + up * 6 + end, base + up + end + "%00.js"):
            answer = await board.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            assert answer[9:12] in (b"404", b"400"), path
            assert not [secret for secret in SECRETS if secret in answer], path


# --- any parameter at all ----------------------------------------------------------------------------------------------------

TEXTS: Final = [text.decode(errors="replace") for text in CORPUS.values()]
JUNK: Final[list[Any]] = [
    *("", "-1", "0", "1e999", "nan", "NaN", "Infinity", "null", "true", "[]", "{}", "\u0661", "9" * 19, "0x10", "1_0", " 1"),
    *(
        "high/1-1",
        "high/-",
        "dead/",
        "due/",
        "trash/0-0",
        "low/18446744073709551615-18446744073709551615",
        "x/1-1",
        "dead/+",
        "/",
    ),
    *(None, True, False, 0, -1, 2**53, 2**63, 2**64, 10**400, 1.5, 1e308, -1e308, 5e-324, [], {}, [[]], {"a": {}}, ["a"] * 2000),
]
QUERIES: Final = (
    *(
        "type:t0",
        "type:*",
        "type:,,",
        "-",
        "id:",
        "owner:*",
        "age>1s",
        "age<",
        "attempt>-1",
        "attempt>" + "9" * 99,
        "args:a.b.c=1",
    ),
    *(
        "error:x -error:y",
        'args:"',
        "a,b,,c",
        "* * *",
        "-type:t*",
        "pri:high",
        "age>" + "9" * 40 + "d",
        "args:" + "a." * 300 + "=1",
    ),
)


NEEDED: Final = ("place", "places", "name", "names", "type", "text", "check", "count", "verb", "id", "group")
OF_LETTERS: Final = ("letter", "validate", "send", "dead/check", "dead/trash")
QUESTIONS: Final = [route for route in ROUTES if route.path not in ("login", "logout", "meta", "frame")]


class Asker:
    """Makes questions to all routes out of what is there, what strangers write, and what fits nowhere; the same for a seed."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._fit: dict[str, list[Any]] = {
            "state": ["waiting", "claimed", "delayed", "finished"],
            "facet": ["all", "gone", "suspect", "near", "again", "unstarted", "lots"],
            "sort": ["oldest", "newest", "longest", "due"],
            "range": ["1h", "24h"],
            "q": list(QUERIES),
            "type": ["t0", "t1", "t2"],
            "pri": ["high", "low"],
            "verb": ["quiet", "resume", "stop"],
            "limit": [1, 100],
            "count": [1, 2, 50],
            "rate": [0.1, 100],
            "first": [0, 5],
            "for_s": [1, 1e300, 1e15],
            "text": ["{}", '{"n":1}', "[" * 3000, '{"a":1,"a":2}', "\ud800", '{"n":1e999}', "[1,]"],
            "id": ["good-1", "j3", "op-1"],
            "name": ["every-minute", "s1", "c1"],
        }

    def learn(self, answer: Any) -> None:
        """Remember what an answer names, to ask for it."""
        for name, value in answer.items() if isinstance(answer, dict) else ():
            known = {"fp": "group", "owner": "name"}.get(name, name)
            if isinstance(value, str) and known in ("place", "group", "name", "id", "cursor", "check"):
                kept = self._fit.setdefault(known, [])
                kept.append(value)
                del kept[:-200]
            self.learn(value)
        for value in answer if isinstance(answer, list) else ():
            self.learn(value)

    def ask(self) -> tuple[Route, dict[str, Any]]:
        """Return a route, and what it is asked: mostly what fits, often with one member that does not."""
        route = self._dice.choice(QUESTIONS)
        names = [name for name in route.asks.__struct_fields__ if name in NEEDED or self._dice.random() < 0.6]
        asked = {name: self._fitting(route, name) for name in names}
        strange = self._dice.choice((0, 0, 0, 1, 1, len(names)))
        asked |= {name: self._dice.choice(self._dice.choice((TEXTS, JUNK))) for name in names[:strange]}
        if self._dice.random() < 0.03:
            asked[self._dice.choice(TEXTS)] = self._dice.choice(JUNK)
        return route, dict(self._dice.sample(list(asked.items()), len(asked)))

    def _fitting(self, route: Route, name: str) -> Any:
        if name in ("places", "names"):
            return [self._fitting(route, name[:-1]) for _ in range(self._dice.choice((1, 1, 2, 5)))]
        if name.startswith(("is_", "has_")) or name in ("trash", "download"):
            return self._dice.random() < 0.5
        if name == "place":
            shelves = ("trash/",) if "restore" in route.path else ("dead/", "trash/") if route.path in OF_LETTERS else ("",)
            return self._one([place for place in self._fit["place"] if place.startswith(shelves)])
        if name in ("q", "reason", "text") and self._dice.random() < 0.5:
            return self._dice.choice(TEXTS)[:400]
        if name == "cursor" and self._dice.random() < 0.5:
            return ""
        return self._one(self._fit.get({"check": "id", "priority": "pri"}.get(name, name), []))

    def _one(self, known: list[Any]) -> Any:
        return self._dice.choice(known or TEXTS)


async def asked(board: Door, route: Route, ask: dict[str, Any]) -> tuple[int, bytes]:
    bearer = {"Authorization": f"Bearer {board.token}"}
    if route.verb == "POST":
        return await board.ask("POST", f"/api/{route.path}", json.dumps(ask).encode("utf-8", "replace"), **JSON | bearer)
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in ask.items()}
    query = urlencode({name: text[:1500] for name, text in words.items()}, errors="replace")[:7000]
    return await board.ask("GET", f"/api/{route.path}?{query}", **bearer)


@pytest.mark.parametrize("seed", [1, 2, *[pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 20)]])
async def test_no_question_to_a_real_page_makes_a_defect(board: Door, seed: int) -> None:
    asker = Asker(seed)
    for path in ("jobs?state=waiting", "jobs?state=claimed", "dead/groups", "dead", "dead?trash=true", "workers", "operations"):
        _, body = await board.ask("GET", f"/api/{path}", Authorization=f"Bearer {board.token}")
        asker.learn(json.loads(body))
    for _ in range(400):
        route, ask = asker.ask()
        status, body = await asked(board, route, ask)
        assert status < 500, (route.path, ask, body)
        assert len(body) < MOST_BYTES, (route.path, ask)
        if status != 200 or b"attachment" not in body:
            asker.learn(json.loads(body) if body[:1] in (b"{", b"[") else None)
    assert (await board.ask("GET", "/healthz"))[0] == 200
