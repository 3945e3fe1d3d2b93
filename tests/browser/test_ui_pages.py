"""The pages of jobs and dead letters in a real browser, behind the board's real door: what they show, hold, ask and refuse."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from board.shapes import ActAsk, AllAsk, OperationAsk, ReplayAsk
from tests.board.canned import BIG, ROLES, Canned, job, serving, worker
from tests.browser.chromium import WAIT_MS, Watched, watched
from tests.browser.test_pages import violations

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE: Final = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'`\u202e${7*7}{{7*7}}javascript:alert(3)"


@pytest.fixture
def canned() -> Canned:
    return Canned()


@asynccontextmanager
async def browsing(running: Any, url: str, role: str, width: int = 1440) -> AsyncGenerator[Watched]:
    """Open a window in which somebody of a role has logged in."""
    expect.set_options(timeout=WAIT_MS)
    async with watched(running, url, width=width, height=800) as seen:
        headers = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
        entered = await seen.context.request.post(f"{url}/api/login", data={"token": ROLES[role]}, headers=headers)
        assert entered.ok, await entered.text()
        yield seen


@pytest_asyncio.fixture(loop_scope="module")
async def seen(canned: Canned, running: Any, tmp_path: Path) -> AsyncIterator[Watched]:
    async with serving(canned, tmp_path) as url, browsing(running, url, "operate") as found:
        yield found


async def show(seen: Watched, path: str) -> Page:
    """Open a page, and wait until it is drawn."""
    await seen.page.goto(f"{seen.origin}/{path}")
    await expect(seen.page.locator("main .panel:not(.skeleton):visible").first).to_be_visible()
    return seen.page


async def shows(page: Page, *jobs: str) -> None:
    for at, name in enumerate(jobs):
        await expect(page.locator("tbody td.job").nth(at)).to_contain_text(name)
    await expect(page.locator("tbody td.job")).to_have_count(len(jobs))


async def test_marked_rows_stay_in_their_places_and_new_ones_gather(seen: Watched, canned: Canned) -> None:
    page = await show(seen, "jobs?state=claimed")
    await shows(page, "1-0", "2-0", "3-0", "4-0")
    await page.keyboard.press("j")
    await page.keyboard.press("x")
    await expect(page.locator(".marks")).to_contain_text("1 marked")
    canned.jobs = [job("high/9-0"), *reversed(canned.jobs[1:])]
    await expect(page.locator("button.fresh")).to_contain_text("1 new")
    await shows(page, "1-0", "2-0", "3-0", "4-0")
    await expect(page.locator("tr.isgone")).to_have_count(1)
    await page.locator("button.fresh").click()
    await shows(page, "9-0", "4-0", "3-0", "2-0")
    assert seen.answer_for() == []


async def test_a_row_opens_by_the_keyboard_and_its_address_opens_it_again(seen: Watched) -> None:
    page = await show(seen, "jobs?state=claimed")
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await expect(page.locator("tr.under")).to_contain_text("It runs at web · 1.")
    await page.reload()
    await expect(page.locator("tr.under")).to_be_visible()
    await expect(page.locator("tr.open td.job")).to_contain_text("2-0")


async def test_what_was_refused_says_what_is_true_now_and_what_was_done_names_its_job(seen: Watched, canned: Canned) -> None:
    canned.moved = True
    page = await show(seen, "jobs?state=claimed&open=high%2F2-0")
    await page.get_by_role("button", name="Cancel …").click()
    await page.get_by_role("dialog").get_by_label("Reason").fill("ordered twice")
    await page.get_by_role("dialog").get_by_role("button", name="Cancel 1 job").click()
    await expect(page.locator(".refused")).to_contain_text("it had moved on: done 2 s ago")
    canned.moved = False
    await page.get_by_role("dialog").get_by_role("button", name="Cancel 1 job").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    assert canned.asked[-1] == ("POST cancel", ActAsk(places=["high/2-0"], reason="ordered twice"))


async def test_more_than_one_action_reaches_are_ordered_by_their_count_and_shown(seen: Watched, canned: Canned) -> None:
    canned.found = 12_345
    page = await show(seen, "jobs?state=claimed&q=type%3Agreet&facet=again")
    await page.keyboard.press("j")
    await page.keyboard.press("x")
    await page.get_by_role("button", name="Cancel all that fit …").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("to confirm").fill("10000")
    await dialog.get_by_label("Reason").fill("ordered twice")
    await dialog.get_by_role("button", name="Cancel the first 10,000 jobs").click()
    await expect(page.locator(".operations")).to_contain_text("ordered twice")
    await expect(page.locator(".marks")).to_have_count(0)
    asked = AllAsk(verb="cancel", state="claimed", q="type:greet", facet="again", reason="ordered twice")
    assert canned.asked[-1] == ("POST jobs/all", asked) and seen.answer_for() == []


async def test_a_replay_of_many_needs_their_count_and_is_undone_while_it_is_held(seen: Watched, canned: Canned) -> None:
    page = await show(seen, "dead?group=f1")
    await page.get_by_role("button", name="Replay 120 letters").click()
    dialog = page.get_by_role("dialog")
    go = dialog.get_by_role("button", name="Replay 120 letters")
    await expect(go).to_be_disabled()
    await dialog.get_by_label("to confirm").fill("119")
    await expect(go).to_be_disabled()
    await dialog.get_by_label("to confirm").fill("120")
    await go.click()
    await expect(page.locator(".operations")).to_contain_text("undo is exact")
    asked = next(ask for name, ask in canned.asked if name == "POST dead/replay")
    assert asked == ReplayAsk(check="c1", count=120, rate=5.0, has_brake=True, first=0, reason="")
    await page.reload()
    await page.get_by_role("button", name="Undo").click()
    await expect(page.locator(".operations")).to_contain_text("stopped")
    assert [ask for _, ask in canned.asked if isinstance(ask, OperationAsk)]


async def test_a_payload_keeps_its_numbers_and_has_its_problem_at_its_line(seen: Watched, canned: Canned) -> None:
    page = await show(seen, "letter?place=dead%2F7-0&edit=1")
    await expect(page.locator(".problems")).to_contain_text("line 3")
    send = page.get_by_role("button", name="Send as a new job")
    await expect(send).to_be_disabled()
    area = page.get_by_label("Payload, editable")
    await area.fill((await area.input_value()).replace("http:", "https:"))
    await expect(send).to_be_enabled()
    await expect(page.locator(".code .add")).to_contain_text("https://files")
    assert f'"order": {BIG}' in canned.asked[-1][1].text


async def test_who_may_only_view_sees_no_arguments_no_messages_and_no_buttons(
    canned: Canned, running: Any, tmp_path: Path
) -> None:
    async with serving(canned, tmp_path) as url, browsing(running, url, "view") as seen:
        for path in ("jobs?open=high%2F2-0", "job?place=high%2F2-0", "dead?group=f1", "letter?place=dead%2F7-0&edit=1"):
            page = await show(seen, path)
            await expect(page.locator("main")).to_contain_text("greet")
            text = await page.locator("main").inner_text()
            assert not [word for word in ("secret", "no such account", "Cancel", "Replay", "trash", "Edit", BIG) if word in text]
            assert await page.locator("main input[type=checkbox], main textarea").count() == 0
        assert seen.answer_for() == []
        assert canned.asked == []


async def test_what_strangers_wrote_is_text_in_every_place(canned: Canned, running: Any, tmp_path: Path) -> None:
    canned.message = HOSTILE
    canned.jobs = [job(f"high/{HOSTILE}", type=HOSTILE, args=HOSTILE, source=HOSTILE)]
    canned.letters = canned.letters[:1]
    async with serving(canned, tmp_path) as url, browsing(running, url, "operate") as seen:
        for path in ("jobs", "job?id=x", "dead?group=f1", "letter?place=dead%2F1-0"):
            page = await show(seen, path)
            await expect(page.locator("main")).to_contain_text("onerror=alert(1)")
            assert await page.locator("main img, main script").count() == 0
        assert seen.answer_for() == []


@pytest.mark.parametrize("width", [1440, 380])
async def test_pages_have_no_barrier_and_no_sideways_scroll(canned: Canned, running: Any, tmp_path: Path, width: int) -> None:
    note = "its loop stood still for 1.3 s, by greet in /srv/apps/shop/current/handlers/uploads/parse_and_store.py:97"
    canned.workers = [worker("w", level="act", note=note)]
    lists = ("jobs?open=high%2F2-0", "dead", "dead?group=f1", "workers")
    async with serving(canned, tmp_path) as url, browsing(running, url, "operate", width) as seen:
        for path in (*lists, "job?id=x", "letter?place=dead%2F7-0&edit=1", "worker?name=w"):
            page = await show(seen, path)
            await expect(page.locator("main")).to_contain_text("greet")
            assert await violations(page) == [], path
            assert await seen.is_wider() <= 0, path
