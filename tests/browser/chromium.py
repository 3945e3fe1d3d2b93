"""The browser of the tests: Debian's Chromium, driven by Playwright, and what a page has to answer for.

`python -m tests.browser.chromium` ends with status 1 where there is none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

from playwright.async_api import Browser, BrowserContext, Page, async_playwright

HOW_TO_GET: Final = "no Chromium here: apt-get install chromium-headless-shell, or name one in RUNTIME_CHROMIUM"
# The first is the same engine without the browser around it: measured, three fifths of the processor's time.
NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# A container has no user namespace for its sandbox; its shared memory may be small; it speaks to nobody but the board.
FLAGS: Final = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run")
WAIT_MS: Final = 120_000  # a guess: a machine that is busy with other tests draws a page in far less


def binary() -> str | None:
    """Return the browser to be used, None where there is none."""
    return os.environ.get("RUNTIME_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Watched:
    """A page of a context of its own, and what it must not do: errors in its console, requests that fail or leave the board."""

    def __init__(self, context: BrowserContext, page: Page, origin: str) -> None:
        self.context = context
        self.page = page
        self.origin = origin
        self.errors: list[str] = []
        self.expected: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"raised: {error}"))
        page.on("dialog", lambda dialog: self.errors.append(f"a dialog: {dialog.message}"))
        page.on("request", self._on_request)
        page.on("response", self._on_response)

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"console: {message.text}")

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((self.origin, "data:", "blob:")):
            self.errors.append(f"a request to {request.url}")

    def _on_response(self, response: Any) -> None:
        if response.status >= 400:
            self.errors.append(f"{response.status} {response.request.method} {response.url}")

    async def open(self, path: str = "/") -> None:
        """Open a page of the board, and wait until it has drawn what it loaded."""
        await self.page.goto(self.origin + path)
        await self.page.wait_for_selector("main h2, main section, main table", state="attached", timeout=WAIT_MS)

    async def is_wider(self) -> int:
        """Return by how many pixels the page is wider than its window: it must not scroll sideways."""
        return int(await self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def answer_for(self) -> list[str]:
        """Return what happened that must not, but for what was expected; forget it."""
        found = [error for error in self.errors if not any(part in error for part in self.expected)]
        self.errors.clear()
        return found


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Run the browser."""
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=binary(), args=list(FLAGS))
        try:
            yield running
        finally:
            await running.close()


@contextlib.asynccontextmanager
async def watched(
    running: Browser, origin: str, *, width: int = 1440, height: int = 900, is_dark: bool = False, **more: Any
) -> AsyncIterator[Watched]:
    """Open a window of this size."""
    context = await running.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if is_dark else "light",
        locale="en-GB",
        timezone_id="UTC",
        **more,
    )
    context.set_default_timeout(WAIT_MS)
    try:
        yield Watched(context, await context.new_page(), origin)
    finally:
        await context.close()


if __name__ == "__main__":
    sys.exit(binary() is None)
