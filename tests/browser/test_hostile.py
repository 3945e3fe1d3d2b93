"""What strangers write is text on every page and in every dialog: nothing of it runs, loads or leads away."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec
import pytest
import pytest_asyncio

from tests.board.boards import whole
from tests.board.hostile import CORPUS, filled
from tests.board.test_access import secret_file
from tests.browser.chromium import Watched, watched
from tests.servers import Server

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

EYES: Final = Path(__file__).with_name("eyes.js")
TRACES: Final = "https://traces.example/t/{trace_id}"
LISTS: Final = (
    *(
        "/jobs?state=waiting",
        "/jobs?state=claimed",
        "/jobs?state=delayed",
        "/jobs?state=finished",
        "/jobs?state=waiting&facet=lots",
    ),
    *("/dead", "/trash", "/types", "/workers", "/schedules", "/queue", "/system"),
)
TEXTS: Final = {name: text.decode(errors="replace") for name, text in CORPUS.items()}
REFUSED: Final = ("400 GET", "404 GET", "status of 400", "status of 404")  # what an address of no meaning is answered


@pytest.fixture(scope="module")
def hostile_store() -> Iterator[Server]:
    """A server with a queue in which strangers have written all they can."""
    with filled() as server:
        yield server


class Hostile(msgspec.Struct, frozen=True):
    """A board on a queue in which strangers have written all they can."""

    origin: str
    link: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile(hostile_store: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hostile]:
    folder = tmp_path_factory.mktemp("hostile")
    async with whole(hostile_store.url, folder, trace_url=TRACES) as site:
        yield Hostile(site.url, next(folder.glob("board-*.link")).read_text().strip())


@asynccontextmanager
async def looking(running: Any, hostile: Hostile, **more: Any) -> AsyncGenerator[Watched]:
    """Open a window in which somebody may do everything, and eyes see all that happens."""
    async with watched(running, hostile.origin, **more) as seen:
        await seen.context.add_init_script(path=EYES)
        await seen.page.goto(hostile.link)
        await seen.page.wait_for_selector("#main")
        await seen.page.evaluate("goTo('jobs')")
        assert (await asked(seen, "meta"))["rights"] == ["view", "payload", "operate", "send"], "the link has begun a session"
        assert seen.answer_for() == []
        yield seen


async def wrong_on(seen: Watched, path: str, most_dialogs: int = 0) -> list[str]:
    """Return what is wrong with a page, and with its dialogs."""
    await seen.page.evaluate("path => goTo(path)", path)
    wrong = await seen.page.evaluate("look()")
    if most_dialogs:
        wrong += (await seen.page.evaluate("most => openAll(most)", most_dialogs))["wrong"]
    return [f"{path}: {text}" for text in (*wrong, *seen.answer_for())]


async def asked(seen: Watched, path: str) -> Any:
    """Return what the API answers to the page's own session."""
    return await seen.page.evaluate("async path => (await fetch('/api/' + path)).json()", path)


# --- what would be seen ------------------------------------------------------------------------------------------------------


async def test_what_must_not_be_would_be_seen(hostile: Hostile, running: Any) -> None:
    async with looking(running, hostile) as seen:
        await seen.page.evaluate(
            """() => {
                const add = (name, given) => document.body.append(Object.assign(document.createElement(name), given));
                add("iframe", {}); add("img", {src: "https://evil.example/x"}); add("a", {href: "javascript:alert(1)"});
                add("a", {href: "//evil.example"}); add("p", {textContent: "gnp\\u202e", title: "\\u0007"});
                add("a", {href: "https://traces.example/t/" + "a".repeat(31)});
                document.body.setAttribute("ping", "//evil.example");
                Object.prototype.taught = 1;
            }"""
        )
        found = "\n".join(await seen.page.evaluate("drawn().then(look)"))
        for part in ("<iframe", "<img", "javascript:", "//evil.example", "raw signs in <p>", "in title", "has ping", "taught"):
            assert part in found, part
        assert "has href=https://traces.example" in found
        assert "refused: " in found, "the policy of the board has let a picture of elsewhere through"
        assert [error for error in seen.answer_for() if "Content Security Policy" in error]


# --- what messages, handlers, workers and people have written ----------------------------------------------------------------


@pytest.mark.parametrize("width", [1440, 380])
async def test_every_list_and_its_dialogs_show_text(hostile: Hostile, running: Any, width: int) -> None:
    async with looking(running, hostile, width=width) as seen:
        wrong = list[str]()
        for path in LISTS:
            wrong += await wrong_on(seen, path, 4)
            text = await seen.page.evaluate("document.querySelector('#main').textContent")
            wrong += [] if "alert(1)" in text else [f"{path} shows nothing of a stranger"]
        await seen.page.goto(f"{hostile.origin}/")
        await seen.page.wait_for_selector("main .priorities")
        wrong += await seen.page.evaluate("look()")
        await seen.page.keyboard.press("?")
        wrong += await seen.page.evaluate("look()")
        assert wrong + seen.answer_for() == []


async def test_a_job_that_has_ended_is_found_again_by_its_id(hostile: Hostile, running: Any) -> None:
    async with looking(running, hostile) as seen:
        await seen.page.evaluate("goTo('jobs?state=finished&q=id:j3')")
        await seen.page.locator("tr", has=seen.page.get_by_text("j3", exact=True)).locator("button.opens").click()
        await seen.page.get_by_role("link", name="Open job").click()
        await seen.page.locator("h1", has_text="j3").wait_for()
        await seen.page.get_by_role("heading", name="Facts").wait_for()
        assert "place=high%2F3-2&id=j3" in seen.page.url


async def one_of_each(seen: Watched) -> list[str]:
    """Return the addresses of all single things: jobs in every state, letters, groups, workers, types."""
    found: list[str] = []
    for state in ("waiting", "claimed", "delayed", "finished"):
        rows = (await asked(seen, f"jobs?state={state}&limit=100"))["rows"]
        found += [f"/job?{urlencode({'place': row['place']})}" for row in rows]
        found += [f"/jobs?{urlencode({'state': state, 'open': row['place']})}" for row in rows]
    for shelf in ("false", "true"):
        rows = (await asked(seen, f"dead?trash={shelf}&limit=100"))["rows"]
        found += [f"/letter?{urlencode({'place': row['place'], 'edit': at % 2})}" for at, row in enumerate(rows)]
    found += [f"/dead?group={quote(group['fp'])}" for group in (await asked(seen, "dead/groups"))["groups"]]
    found += [f"/worker?{urlencode({'name': row['name']})}" for row in (await asked(seen, "workers"))["workers"]]
    found += [f"/type?{urlencode({'type': row['type']})}" for row in (await asked(seen, "types"))["types"]]
    return found + [f"/job?{urlencode({'id': f'j{at}'})}" for at in range(len(CORPUS))]


async def test_single_things_and_their_dialogs_show_text(hostile: Hostile, running: Any) -> None:
    async with looking(running, hostile) as seen:
        seen.expected += REFUSED
        paths = await one_of_each(seen)
        assert [text for path in paths[::61] for text in await wrong_on(seen, path, 3)] == []


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
async def test_all_single_things_and_their_dialogs_show_text(hostile: Hostile, running: Any, part: int) -> None:
    async with looking(running, hostile) as seen:
        seen.expected += REFUSED
        paths = await one_of_each(seen)
        assert len(paths) > 8 * len(CORPUS)
        assert [text for path in paths[part::4] for text in await wrong_on(seen, path, 3)] == []


# --- what stands in an address -----------------------------------------------------------------------------------------------

PARAMETERS: Final = {
    "jobs": ("state", "q", "facet", "sort", "open"),
    "job": ("place", "id"),
    "dead": ("group", "q"),
    "trash": ("q",),
    "letter": ("place", "edit"),
    "types": ("sort",),
    "type": ("type", "range"),
    "worker": ("name",),
    "schedules": ("__proto__",),
}


def addresses(step: int) -> list[str]:
    """Return addresses with each parameter in turn holding what strangers write; with a step, some of them for each."""
    pairs = [(page, name) for page, names in PARAMETERS.items() for name in names]
    texts = list(TEXTS.values())
    return [f"/{page}?{urlencode({name: text})}" for at, (page, name) in enumerate(pairs) for text in texts[at % step :: step]]


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.long)])
async def test_an_address_of_any_kind_shows_text_and_leaves_the_page_working(hostile: Hostile, running: Any, step: int) -> None:
    async with looking(running, hostile) as seen:
        seen.expected += REFUSED
        assert [text for path in addresses(step) for text in await wrong_on(seen, path)] == []
        await seen.page.evaluate("goTo('jobs?state=waiting')")
        assert "good-1" in await seen.page.evaluate("document.querySelector('#main').textContent")


NAMES_OF_OBJECTS: Final = ("__proto__", "constructor", "toString", "hasOwnProperty")


async def test_a_name_that_every_object_has_is_no_order_no_state_and_no_page(hostile: Hostile, running: Any) -> None:
    async with looking(running, hostile) as seen:
        seen.expected += REFUSED
        for name in NAMES_OF_OBJECTS:
            assert await wrong_on(seen, f"/types?sort={name}") == []
            assert await seen.page.locator("main tbody tr").count() > 10
            assert await wrong_on(seen, f"/jobs?state=waiting&sort={name}") == []
            assert await seen.page.locator("main tbody tr").count() > 10
            assert await wrong_on(seen, f"/{name}") == []
            assert "No page has this address" in await seen.page.locator("main").inner_text()


# --- who looks ---------------------------------------------------------------------------------------------------------------

AFTER_LOGIN: Final = (
    *("javascript:alert(1)", "data:text/html,x", "//evil.example", "https://evil.example", "/\\evil.example"),
    *("constructor", "jobs?state=waiting"),
)


async def test_a_login_leads_nowhere_but_to_a_page_of_the_board(hostile: Hostile, running: Any) -> None:
    token = hostile.link.partition("#token=")[2]
    for after in AFTER_LOGIN:
        async with watched(running, hostile.origin) as seen:
            await seen.page.goto(f"{hostile.origin}/login?{urlencode({'next': after})}")
            await seen.page.get_by_label("Token").fill(token)
            await seen.page.get_by_role("button", name="Log in").click()
            await seen.page.wait_for_selector("#main h2, #main p")
            assert seen.page.url.startswith(f"{hostile.origin}/")
            assert seen.answer_for() == [], after


async def test_what_a_viewer_writes_is_text_too(hostile: Hostile, running: Any) -> None:
    """A reason goes into the audit, a search into the box, the page and the address."""
    async with looking(running, hostile) as seen:
        reason = "".join(text[:20] for text in TEXTS.values() if text.isprintable())[:400]
        await seen.page.evaluate("goTo('queue')")
        await seen.page.get_by_role("button", name="Pause all …").click()
        await seen.page.get_by_label("Reason").fill(reason)
        assert await seen.page.evaluate("look()") == []
        await seen.page.get_by_role("dialog").get_by_role("button", name="Pause", exact=False).last.click()
        await seen.page.locator(".notice p").wait_for()
        assert await seen.page.evaluate("drawn().then(look)") == []
        await seen.page.evaluate("goTo('system')")
        assert reason[:20] in await seen.page.evaluate("document.querySelector('#main').textContent")
        assert await seen.page.evaluate("look()") == []
        for text in list(TEXTS.values())[::12]:
            await seen.page.locator("header input").first.fill(text)
            await seen.page.keyboard.press("Enter")
            assert await seen.page.evaluate("drawn().then(look)") == []
        seen.expected += REFUSED
        assert seen.answer_for() == []


async def test_a_name_that_a_proxy_tells_and_a_label_are_text(hostile_store: Server, running: Any, tmp_path: Path) -> None:
    label, name = TEXTS["script"], TEXTS["script"] + TEXTS["quoted"]
    secret = "0123456789abcdef-secret"
    proxy = secret_file(tmp_path, f'secret = "{secret}"\n[roles]\noperate = [{json.dumps(name)}]\n')
    async with whole(hostile_store.url, tmp_path, board_proxy=proxy, board_label=label) as site:
        headers = {"X-Board-Secret": secret, "X-Forwarded-User": name}
        async with watched(running, site.url, extra_http_headers=headers) as seen:
            await seen.context.add_init_script(path=EYES)
            await seen.page.goto(f"{site.url}/queue")
            await seen.page.locator(".foot", has_text="<script>").wait_for()
            await seen.page.locator(".env", has_text="<script>").wait_for()
            assert await seen.page.evaluate("drawn().then(look)") == []
            assert seen.answer_for() == []
