"""People in the chat demo, as its page shows them to a test."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Page, expect

from tests.support.browser import PageFactory

PHONE = {"width": 360, "height": 740}

LOST = r"WebSocket connection to|ERR_CONNECTION_REFUSED|ERR_INTERNET_DISCONNECTED"
"""What Chromium writes to the console when a connection cannot be made; no page can prevent it."""


class Guest:
    """One person in one browser context."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name

    @classmethod
    async def enter(cls, pages: PageFactory, url: str, name: str, **context: Any) -> Guest:
        """Opens the demo, gives a name, and waits for the first room."""
        page = await pages(url, **context)
        await page.get_by_label("Your name").fill(name)
        await page.keyboard.press("Enter")
        guest = cls(page, name)
        await guest.is_connected()
        await expect(page.locator("#subtitle")).to_contain_text("here")
        return guest

    async def is_connected(self, seconds: float = 30) -> None:
        await expect(self.page.locator("#link-word")).to_have_text(
            "Connected", timeout=seconds * 1000
        )

    async def type(self, text: str) -> None:
        """Sends a message without waiting for anything."""
        await self.page.locator("#field").fill(text)
        await self.page.keyboard.press("Enter")

    async def say(self, *texts: str) -> None:
        """Sends messages, each of which the server has before the next."""
        for text in texts:
            await self.type(text)
            await self.has_no_pending()

    async def texts(self) -> list[str]:
        """All messages that are shown, from top to bottom."""
        return await self.page.locator("#messages .text").all_inner_texts()

    async def sees(self, *texts: str, seconds: float = 30) -> None:
        """Waits until exactly these messages are shown, in this order."""
        await expect(self.page.locator("#messages .text")).to_have_text(
            list(texts), timeout=seconds * 1000
        )

    async def sees_all(self, texts: set[str], seconds: float = 30) -> None:
        """Waits until exactly these messages are shown, each once, in any order."""
        await expect(self.page.locator("#messages .text")).to_have_count(
            len(texts), timeout=seconds * 1000
        )
        shown = await self.texts()
        assert sorted(shown) == sorted(texts)

    async def has_no_pending(self) -> None:
        await expect(self.page.locator("#messages .sending, #messages .failed")).to_have_count(
            0, timeout=30_000
        )

    async def members(self, *names: str) -> None:
        """Waits until exactly these people are listed."""
        await expect(self.page.locator("#members .name")).to_have_text(
            [*sorted(names)], timeout=15_000
        )

    async def watches_typing(self) -> None:
        """Keeps all that the line about who types says from now on: it may be short, and the test
        slow to look."""
        await self.page.locator("#typing").evaluate(
            """line => {
                 const record = document.body.dataset;
                 record.typing = "";
                 const keep = () => (record.typing += `${line.textContent}|`);
                 new MutationObserver(keep).observe(line, { childList: true });
               }"""
        )

    async def saw_typing(self, *lines: str) -> None:
        """Waits until the line has said exactly this, one after the other."""
        said = "".join(f"{line}|" for line in lines)
        await expect(self.page.locator("body")).to_have_attribute(
            "data-typing", said, timeout=30_000
        )

    async def open_room(self, title: str) -> None:
        await self.page.get_by_role("button", name=title).first.click()
        await expect(self.page.locator("#title")).to_have_text(f"# {title}")

    async def width_fits(self) -> None:
        """Nothing makes the page scroll sideways."""
        wide = await self.page.evaluate(
            "[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
        )
        assert max(wide[:2]) <= wide[2], wide
