"""The built pages run under the headers that they are served with: in a real browser, on a real worker's queue."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.board.test_board_command import HANDLERS, board
from tests.servers import Server, wait_until

CHROMIUM = os.environ.get("RUNTIME_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PAGES = ("", "jobs", "dead", "types", "workers", "schedules", "queue", "system")


def test_every_page_opens_and_nothing_of_it_is_refused(valkey: Server, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium, or RUNTIME_CHROMIUM=path")
    arguments = ("--redis", valkey.url, *HANDLERS, "--board", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"))
    with board(tmp_path, "run", *arguments) as process, sync_api.sync_playwright() as playwright:
        wait_until(lambda: process.get("/readyz")[0] == 200, what="the worker is ready")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        link = next((tmp_path / "data").glob("board-*.link")).read_text().strip()
        page.goto(link)
        page.wait_for_function("!location.hash.includes('token')")
        for name in PAGES:
            page.goto(f"{process.url}/{name}")
            page.wait_for_selector("h1")
        meta = page.evaluate("fetch('api/meta').then(answer => answer.json())")
        assert meta["rights"] == ["view", "payload", "operate", "send"], "the link has begun a session"
        browser.close()
        assert wrong == []
        assert process.stop() == 0
