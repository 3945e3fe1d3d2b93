"""Every page in both themes and three widths: none is wider than its window, none has errors, and axe finds nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote

import pytest
import pytest_asyncio
from axe_playwright_python.base import AXE_SCRIPT

from tests.browser.chromium import WAIT_MS, Watched, watched
from tests.browser.conftest import Demo

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

PLAIN: Final = (
    "/",
    "/jobs?state=waiting",
    "/jobs?state=claimed",
    "/jobs?state=delayed",
    "/jobs?state=finished",
    "/dead",
    "/trash",
    "/types",
    "/workers",
    "/schedules",
    "/queue",
    "/system",
)
MAIL: Final = '{"to":["ada@example.org"],"subject":"Later","text":"Hello"}'
RULES: Final = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
WINDOWS: Final = [(width, is_dark) for width in (1440, 768, 380) for is_dark in (False, True)]


async def violations(page: Any) -> list[str]:
    """Return what axe finds, each with the first place."""
    await page.evaluate(AXE_SCRIPT)
    found = await page.evaluate("rules => axe.run(document, rules)", RULES)
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:300]}" for one in found["violations"]]


async def ask(page: Any, path: str) -> Any:
    """Return what the API answers to the page's own session."""
    return await page.evaluate("async path => (await fetch('/api/' + path)).json()", path)


async def until(page: Any, path: str, is_there: Any, what: str) -> Any:
    """Return what the API answers once it is as it should be."""
    deadline = asyncio.get_running_loop().time() + 60
    while True:
        answer = await ask(page, path)
        if is_there(answer):
            return answer
        assert asyncio.get_running_loop().time() < deadline, f"{what}: {answer}"
        await asyncio.sleep(0.3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def paths(demo: Demo, running: Any) -> AsyncIterator[list[str]]:
    """The addresses of all pages, those of one job, letter, group, worker and type among them."""
    async with watched(running, demo.origin) as seen:
        await seen.page.goto(demo.link)
        await seen.page.wait_for_selector("main h2", timeout=WAIT_MS)
        groups = await until(seen.page, "dead/groups", lambda found: found["groups"], "a group of letters")
        letters = await until(seen.page, "dead", lambda found: found["rows"], "a letter")
        with demo.store() as store:  # one that stays where it is
            far_ms = int(time.time() * 1000) + 3_600_000
            store.xadd("{jobs}:high", {"type": "send-email", "data": MAIL, "id": "later-1", "at": str(far_ms)})
        await until(seen.page, "job?id=later-1", lambda found: found.get("row", {}).get("state") == "delayed", "a delayed job")
        workers = await until(seen.page, "workers", lambda found: found["workers"], "a worker")
        yield [
            *PLAIN,
            f"/dead?group={quote(groups['groups'][0]['fp'])}",
            f"/letter?place={quote(letters['rows'][0]['place'])}",
            "/job?id=later-1",
            f"/worker?name={quote(workers['workers'][0]['name'])}",
            "/type?type=send-email",
        ]


@pytest.mark.parametrize(("width", "is_dark"), [(1440, False), (380, True)], ids=["desk", "phone"])
async def test_every_page_is_sound(demo: Demo, running: Any, paths: list[str], width: int, is_dark: bool) -> None:
    assert await wrong_in(demo, running, paths, width, is_dark) == []


@pytest.mark.long
async def test_every_page_is_sound_in_every_window(demo: Demo, running: Any, paths: list[str]) -> None:
    found = {window: await wrong_in(demo, running, paths, *window) for window in WINDOWS}
    assert {window: wrong for window, wrong in found.items() if wrong} == {}


async def wrong_in(demo: Demo, running: Any, paths: list[str], width: int, is_dark: bool) -> list[str]:
    """Return what is wrong on the pages in such a window: errors, a width that scrolls, what axe finds."""
    async with watched(running, demo.origin, width=width, is_dark=is_dark) as seen:
        await enter(seen, demo)
        found: list[str] = []
        for path in paths:
            await seen.open(path)
            await seen.page.wait_for_load_state("load")
            wider = await seen.is_wider()
            found += [f"{path} is wider than its window by {wider} px"] if wider > 0 else []
            found += [f"{path}: {error}" for error in seen.answer_for()]
            found += [f"{path}: {one}" for one in await violations(seen.page)]
        return found


async def enter(seen: Watched, demo: Demo) -> None:
    """Log in by the link that the demo has printed."""
    await seen.page.goto(demo.link)
    await seen.page.wait_for_selector("main h2", timeout=WAIT_MS)
    seen.answer_for()
