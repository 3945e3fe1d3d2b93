"""`make screenshots`: pictures of every page of the board, taken of the demo once it has something of everything.

Each page is taken light and dark at 1440 px, and light at 380 px, as WebP without loss, for docs/board.md and README.md.
Nothing is masked or made up: two runs differ in what the demo did. `--link` takes a board that runs already, as of `make run`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from PIL import Image  # which the measurements' figures bring: `make screenshots` installs them
from playwright.async_api import Browser, Page

from tests.browser import chromium
from tests.browser.chromium import Watched, watched
from tests.browser.conftest import ROOT, started

MINUTES: Final = 15  # a guess: enough of an hour's chart, and each kind of trouble has come a few times
LEAST_GROUPS: Final = 5
LEAST_LETTERS: Final = 5  # of a group: with more than these there is a trial of a replay
PATIENCE_S: Final = 180  # a guess: the rarest kind of job of the demo comes once in a minute or two
SETTLED_MS: Final = 1500  # a tick and a half: figures that come with the second tick are there
FAILS: Final = "demo-sync-contacts"  # a type of the demo whose jobs fail, are tried again, and die of the same

Act = Callable[[Page], Awaitable[None]]
WINDOWS: Final = {"light": (1440, 900, False), "dark": (1440, 900, True), "phone": (380, 800, False)}


# --- what the API says ---------------------------------------------------------------------------------------------------


async def ask(page: Page, path: str) -> Any:
    """Return what the API answers to the page's session."""
    return await page.evaluate("async path => (await fetch('/api/' + path)).json()", path)


async def post(page: Page, path: str, body: Mapping[str, Any]) -> Any:
    """Return what the API answers to an action."""
    script = """async ([path, body]) => (await fetch('/api/' + path, {
        method: 'POST', headers: {'content-type': 'application/json'}, body: JSON.stringify(body)})).json()"""
    return await page.evaluate(script, [path, body])


async def until(page: Page, path: str, find: Callable[[Any], Any], what: str) -> Any:
    """Return what `find` finds in an answer of the API, as soon as it finds something.

    Raises:
        TimeoutError: it did not within `PATIENCE_S`.
    """
    answer: Any = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = await ask(page, path)
                if "code" not in answer and (found := find(answer)):  # else it was refused: Redis was away for a moment
                    return found
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise TimeoutError(f"{what}: {str(answer)[:500]}") from None


def _history(overview: Any) -> int:
    return sum(bool(value) for value in overview["series"]["done"])  # a minute before the demo has none, which is 0 as well


async def prepare(page: Page) -> None:
    """Wait for each kind of thing that a page shows, and do what only people do: a trial of a replay, a move to the trash."""
    await until(page, "dead/groups", lambda answer: len(answer["groups"]) >= LEAST_GROUPS, "groups of letters")
    await until(page, "schedules", lambda answer: answer["schedules"], "schedules")
    group = await until(page, "dead/groups", _failing, "a group of letters that can be replayed")
    for letter in await until(page, f"dead?group={quote(group)}&limit=20", lambda answer: answer["rows"][8:10], "letters"):
        await post(page, "dead/trash", {"places": [letter["place"]], "reason": "two accounts that are closed"})
    check = await post(page, "dead/check", {"group": group})
    about = {"rate": 5, "has_brake": True, "first": 5, "reason": "a trial, before the key is renewed"}
    await post(page, "dead/replay", {"check": check["id"], "count": check["would_run"], **about})


def _failing(groups: Any) -> str | None:
    found = [group for group in groups["groups"] if group["type"] == FAILS and group["count"] > LEAST_LETTERS]
    return max(found, key=lambda group: group["count"])["fp"] if found else None


# --- the pages -----------------------------------------------------------------------------------------------------------


async def pages(page: Page) -> AsyncIterator[tuple[str, str, Act | None]]:
    """Yield the name of each picture, its address, and what is done there before it is taken."""
    await until(page, "overview", lambda answer: all(each["level"] != "ok" for each in answer["verdicts"][1:]), "trouble")
    yield "overview", "/", None
    yield "waiting", "/jobs?state=waiting&facet=lots", None
    claimed = await until(page, "jobs?state=claimed&q=type:demo-import-catalog", lambda answer: answer["rows"], "an import")
    yield "claimed", f"/jobs?state=claimed&q=type:demo-import-catalog&open={quote(claimed[0]['place'])}", None
    yield "delayed", "/jobs?state=delayed", None
    yield "finished", "/jobs?state=finished", None
    retried = await until(page, "jobs?state=delayed&limit=100", _latest, "a job that waits for a third attempt")
    yield "job", f"/job?place={quote(retried)}", None
    yield "dead", "/dead", None
    group = await until(page, "dead/groups", _failing, "a group")
    yield "group", f"/dead?group={quote(group)}", None
    [letter] = await until(page, f"dead?group={quote(group)}&limit=1", lambda answer: answer["rows"], "a letter")
    yield "letter", f"/letter?place={quote(letter['place'])}", None
    yield "edit", f"/letter?place={quote(letter['place'])}&edit=1", _edit
    yield "replay", f"/dead?group={quote(group)}", _ask_to_replay
    yield "trash", "/trash", None
    yield "types", "/types", None
    yield "type", f"/type?type={FAILS}", None
    yield "send", "/type?type=send-email", _send_one
    yield "workers", "/workers", None
    [worker] = await until(page, "workers", lambda answer: answer["workers"][:1], "a worker")
    yield "worker", f"/worker?name={quote(worker['name'])}", None
    yield "schedules", "/schedules", None
    yield "queue", "/queue", None
    yield "system", "/system", None


def _latest(delayed: Any) -> str | None:
    rows = [row for row in delayed["rows"] if row["attempt"] >= 3]
    return max(rows, key=lambda row: row["due_ms"])["place"] if rows else None


async def _edit(page: Page) -> None:
    area = page.get_by_label("Payload, editable")
    text = await area.input_value()
    await area.fill(text.replace("false", "true", 1))
    await page.locator(".code .add").first.wait_for()


async def _ask_to_replay(page: Page) -> None:
    await page.get_by_role("button", name="Replay").first.click()
    await page.get_by_role("dialog").wait_for()


async def _send_one(page: Page) -> None:
    await page.get_by_role("button", name="Send one").click()
    await page.get_by_role("dialog").get_by_label("Payload").wait_for()


async def take(seen: Watched, act: Act | None, height: int) -> bytes:
    """Return a picture of the whole page that is open, as PNG.

    What is as high as the window grows with it: the picture has the bar at its foot once, and no seam.
    """
    page = seen.page
    await page.wait_for_timeout(SETTLED_MS)
    await page.wait_for_selector(".skeleton", state="detached")
    if act is not None:
        await act(page)
        await page.wait_for_timeout(SETTLED_MS)
    elif (whole := int(await page.evaluate("document.documentElement.scrollHeight"))) > height:
        await page.set_viewport_size({"width": await page.evaluate("innerWidth"), "height": whole})
        await page.wait_for_timeout(SETTLED_MS)
    return await page.screenshot(animations="disabled", caret="hide")


# --- all of it -----------------------------------------------------------------------------------------------------------


async def take_all(browser: Browser, link: str, folder: Path, only: str, least: int) -> int:
    """Take all pictures; return how many bytes they have."""
    origin, total = link.partition("/#")[0], 0
    async with watched(browser, origin) as first:
        await first.page.goto(link)
        print(f"waiting for {least} minutes of history")
        while _history(await ask(first.page, "overview")) < least:
            await asyncio.sleep(5)
        await prepare(first.page)
        for name, (width, height, is_dark) in WINDOWS.items():
            async with watched(browser, origin, width=width, height=height, is_dark=is_dark) as seen:
                await seen.page.goto(link)
                await seen.page.wait_for_selector("main h2")
                async for what, address, act in pages(first.page):
                    if only and not {what, name, f"{what}-{name}"} & set(only.split(",")):
                        continue
                    await seen.page.set_viewport_size({"width": width, "height": height})
                    await seen.open(address)
                    path = folder / f"{what}-{name}.webp"
                    Image.open(io.BytesIO(await take(seen, act, height))).convert("RGB").save(path, lossless=True)
                    total += path.stat().st_size
                    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB", *seen.answer_for())
    return total


async def main(link: str | None, folder: Path, only: str, least: int) -> None:
    """Start the demo unless there is a board, and take all pictures of it."""
    with contextlib.ExitStack() as stack:
        if link is None:
            link = stack.enter_context(started(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobs-"))))).link
        async with chromium.browser() as browser:
            print(f"{await take_all(browser, link, folder, only, least) / 1024 / 1024:.1f} MB in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "docs" / "images", help="where they are written; default docs/images"
    )
    parser.add_argument("--minutes", type=int, default=MINUTES, help=f"of history that there must be; default {MINUTES}")
    parser.add_argument("--only", default="", help="names of pages or windows, such as job,phone,type-dark; default all")
    parser.add_argument("--link", help="of a board that runs, with its login; default: the demo is started")
    arguments = parser.parse_args()
    if chromium.binary() is None:
        sys.exit(chromium.HOW_TO_GET)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(arguments.link, arguments.folder, arguments.only, arguments.minutes))
