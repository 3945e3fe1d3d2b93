"""The stream of a tab, in a real browser: a hidden one holds none, and one that was cut off heals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from tests.board.canned import ROLES, Canned, serving
from tests.browser.chromium import watched
from tests.workers import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
# A window without a screen is never hidden: what the browser would tell the page is told it.
HIDE = """isHidden => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => isHidden });
  Object.defineProperty(document, "visibilityState", { configurable: true, get: () => (isHidden ? "hidden" : "visible") });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


class Counted(Canned):
    """A source that counts who listens."""

    def __init__(self) -> None:
        super().__init__()
        self.listening = self.begun = 0

    @contextlib.asynccontextmanager
    async def subscribe(self, *asked: Any) -> AsyncIterator[Any]:
        self.listening, self.begun = self.listening + 1, self.begun + 1
        try:
            async with super().subscribe(*asked) as ticks:
                yield ticks
        finally:
            self.listening -= 1


class Wire:
    """A line between browser and board that can be cut, at once and for all that comes after."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.removeprefix("http://").partition(":")
        self._port = int(port)
        self._writers: list[asyncio.StreamWriter] = []
        self.is_cut = False

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Break all lines that are open; while `is_cut`, new ones break too."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            return writer.transport.abort()
        upstream_reader, upstream = await asyncio.open_connection(self._host, self._port)
        self._writers += (writer, upstream)
        await asyncio.gather(_pump(reader, upstream), _pump(upstream_reader, writer))
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def enter(seen: Any) -> None:
    """Log in as one who operates, and open the first page."""
    headers = {"Origin": seen.origin, "Sec-Fetch-Site": "same-origin"}
    entered = await seen.context.request.post(f"{seen.origin}/api/login", data={"token": ROLES["operate"]}, headers=headers)
    assert entered.ok, await entered.text()
    await seen.page.goto(f"{seen.origin}/jobs")


async def test_a_hidden_tab_holds_no_stream(running: Any, tmp_path: Path) -> None:
    source = Counted()
    async with serving(source, tmp_path) as url, watched(running, url) as seen:
        await enter(seen)
        await until(lambda: source.listening == 1, "the tab listens")
        await seen.page.evaluate(HIDE, True)
        await until(lambda: source.listening == 0, "a hidden tab does not")
        await seen.page.evaluate(HIDE, False)
        await until(lambda: source.listening == 1, "it listens again")
        await expect(seen.page.locator(".live")).to_have_text("live")
        assert source.begun == 2
        await seen.page.goto("about:blank")
        await until(lambda: source.listening == 0, "nobody looks")
        assert seen.answer_for() == []


async def test_a_tab_that_was_cut_off_says_so_and_heals(running: Any, tmp_path: Path) -> None:
    source = Counted()
    async with serving(source, tmp_path) as direct:
        wire = Wire(direct)
        async with wire as url, watched(running, url) as seen:
            seen.expected += ["ERR_", "Failed to load"]  # what the browser says of each request that was cut
            await enter(seen)
            await until(lambda: source.listening == 1, "the tab listens")
            wire.is_cut = True
            wire.cut()
            await expect(seen.page.locator(".away")).to_contain_text("The board does not answer.")
            await until(lambda: source.listening == 0, "its stream is over")
            wire.is_cut = False
            await expect(seen.page.locator(".away")).to_have_count(0)
            await expect(seen.page.locator(".live")).to_have_text("live")
            assert source.listening == 1, "and one alone"
            assert seen.answer_for() == []
