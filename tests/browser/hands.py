"""Three ways to use the board: a mouse at a desk, a keyboard alone, and a thumb on a phone. One script serves all of them."""

from __future__ import annotations

from typing import Any, Final, Protocol

from playwright.async_api import Locator, Page, expect

from tests.browser.chromium import WAIT_MS

MOST_KEYS: Final = 150  # a guess: who has not come there after so many gives up
LEAST_PX: Final = 40  # high is what a thumb hits: as the board's design says
GO_KEYS: Final = {"overview": "o", "jobs": "j", "dead": "d", "types": "t", "workers": "w"}
ROWS: Final = "j k"  # down to the last row, and up again
IS_THERE: Final = "it => it === document.activeElement"
IS_IN: Final = "it => it.contains(document.activeElement)"
# Whether what has the focus shows it, in sight and under nothing else.
SHOWS_FOCUS: Final = """it => {
  const box = it.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + Math.min(box.width / 2, 40), box.y + box.height / 2);
  return it.matches(':focus-visible') && top !== null && (it.contains(top) || top.contains(it));
}"""
HEIGHT: Final = "it => (it.closest('label') ?? it).getBoundingClientRect().height"


class Hands(Protocol):
    """What a person does to a page."""

    page: Page

    async def go(self, name: str) -> None:
        """Go to a page of the bar."""
        ...

    async def find(self, text: str) -> None:
        """Search for something."""
        ...

    async def press(self, what: Locator) -> None:
        """Press a button, or follow a link."""
        ...

    async def open(self, what: Locator) -> None:
        """Open a row by what leads into it."""
        ...

    async def mark(self, row: Locator) -> None:
        """Mark a row."""
        ...

    async def write(self, where: Locator, text: str) -> None:
        """Put a text in the place of what is there."""
        ...


class Mouse:
    """Clicks; the keys are for texts alone."""

    width: Final = 1440
    height: Final = 900
    more: Final[dict[str, Any]] = {}

    def __init__(self, page: Page) -> None:
        self.page = page

    async def go(self, name: str) -> None:
        await self.press(self.page.locator(f'nav[aria-label="Pages"] a[href="{_path_of(name)}"]'))

    async def find(self, text: str) -> None:
        await self.write(_box(self.page), text)
        await self.page.keyboard.press("Enter")

    async def press(self, what: Locator) -> None:
        await what.click()

    async def open(self, what: Locator) -> None:
        await what.click()

    async def mark(self, row: Locator) -> None:
        await row.get_by_role("checkbox").click()

    async def write(self, where: Locator, text: str) -> None:
        await where.click()
        await _replace(self.page, text)


class Keyboard:
    """Tab, arrows, letters, Enter and Esc. What it comes to must show that it has the focus, and not be covered."""

    width: Final = 1440
    height: Final = 900
    more: Final[dict[str, Any]] = {}

    def __init__(self, page: Page) -> None:
        self.page = page

    async def go(self, name: str) -> None:
        await self._leave_text()
        await self.page.keyboard.press("g")
        await self.page.keyboard.press(GO_KEYS[name])

    async def find(self, text: str) -> None:
        await self._leave_text()
        await self.page.keyboard.press("/")
        assert await _box(self.page).evaluate(IS_THERE), "/ does not lead into the search box"
        await _replace(self.page, text)
        await self.page.keyboard.press("Enter")

    async def press(self, what: Locator) -> None:
        await self._come_to(what, "Tab", IS_THERE)
        await self.page.keyboard.press("Enter")

    async def open(self, what: Locator) -> None:
        await self._leave_text()
        await self._come_to(what, ROWS, IS_THERE)
        await self.page.keyboard.press("Enter")

    async def mark(self, row: Locator) -> None:
        await self._come_to(row, ROWS, IS_IN)
        await self.page.keyboard.press("x")

    async def write(self, where: Locator, text: str) -> None:
        await self._come_to(where, "Tab", IS_THERE)
        await _replace(self.page, text)

    async def _come_to(self, what: Locator, keys: str, is_there: str) -> None:
        await expect(what).to_be_visible()
        await expect(what).to_be_enabled()
        for key in [each for each in keys.split() for _ in range(MOST_KEYS)]:
            if await what.evaluate(is_there):
                break
            await self.page.keyboard.press(key)
        assert await what.evaluate(is_there), f"{keys} does not lead to {what}"
        assert await self.page.locator("*:focus").evaluate(SHOWS_FOCUS), f"the focus is not to be seen on {what}"

    async def _leave_text(self) -> None:
        if await self.page.locator("input:focus, textarea:focus").count():
            await self.page.keyboard.press("Escape")


class Thumb:
    """Taps, on a phone. What it meets must be so large that a thumb hits it."""

    width: Final = 380
    height: Final = 800
    more: Final[dict[str, Any]] = {"has_touch": True, "is_mobile": True}

    def __init__(self, page: Page) -> None:
        self.page = page
        self.small: list[str] = []

    async def go(self, name: str) -> None:
        here = self.page.locator(f'nav[aria-label="Main pages"] a[href="{_path_of(name)}"]')
        if await here.count():
            await self.press(here)
            return
        await self._more()
        await self.press(self.page.locator(f'dialog nav a[href="{_path_of(name)}"]'))

    async def find(self, text: str) -> None:
        await self._more()
        await self.write(_box(self.page), text)
        await self.page.keyboard.press("Enter")

    async def press(self, what: Locator) -> None:
        await expect(what).to_be_enabled()
        height = await what.evaluate(HEIGHT)
        if height < LEAST_PX:
            self.small.append(f"{height:.0f} px: {await what.evaluate('it => it.outerHTML.slice(0, 160)')}")
        await what.tap()

    async def open(self, what: Locator) -> None:
        await what.tap()

    async def mark(self, row: Locator) -> None:
        await self.press(row.get_by_role("checkbox"))

    async def write(self, where: Locator, text: str) -> None:
        await where.tap()
        await _replace(self.page, text)

    async def _more(self) -> None:
        await self.press(self.page.get_by_role("button", name="More", exact=True))


def _box(page: Page) -> Locator:
    return page.get_by_role("combobox", name="Search")


def _path_of(name: str) -> str:
    return "./" if name == "overview" else name


async def _replace(page: Page, text: str) -> None:
    await page.keyboard.press("Control+a")
    await page.keyboard.type(text)


expect.set_options(timeout=WAIT_MS)
