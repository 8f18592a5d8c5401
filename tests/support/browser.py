"""Chromium driven by Playwright: one browser, a clean context and a watch for errors per page.

The browser is a process of its own, which each test reaches over the DevTools protocol from its own
event loop; so no event loop outlives its test.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright
from playwright.async_api import Error as PlaywrightError

from tests.support.processes import Process

ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-port=0",
]


def chromium_binary() -> str | None:
    """The browser of the system; scripts/test installs the first of these."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return None


class Chromium(Process):
    """The browser process; `address` is where Playwright connects."""

    def __init__(self, folder: Path) -> None:
        binary = chromium_binary()
        assert binary is not None, "chromium is not installed"
        self._profile = folder / "profile"
        super().__init__(
            [binary, *ARGUMENTS, f"--user-data-dir={self._profile}", "about:blank"],
            output=folder / "chromium.log",
        )

    @property
    def address(self) -> str:
        # Chromium writes the port it chose and the path of its endpoint, one to a line.
        port, path = (self._profile / "DevToolsActivePort").read_text().splitlines()
        return f"ws://127.0.0.1:{port}{path}"

    def _listens(self) -> bool:
        try:
            return self.address != ""
        except (OSError, ValueError):
            return False

    def start(self) -> None:
        (self._profile / "DevToolsActivePort").unlink(missing_ok=True)
        super().start()
        self.wait_until(self._listens, "ready for Playwright", 60)


@asynccontextmanager
async def connected(chromium: Chromium) -> AsyncIterator[Browser]:
    """Playwright's view of the running browser, in the caller's event loop."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(chromium.address)
        try:
            yield browser
        finally:
            # Only the connection ends: the browser goes on to serve the next test.
            await browser.close()


class PageFactory:
    """Opens pages, each as another visitor, and remembers what goes wrong in them.

    `ann = await page(url)` returns Playwright's `Page`; `page.errors` has the console's errors and
    the uncaught exceptions since; `page.expect_error(pattern)` permits those that match, before or
    after they happen.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._expected: list[re.Pattern[str]] = []
        self._contexts: list[Any] = []
        self._errors: list[str] = []

    async def __call__(
        self, url: str | None = None, *, timeout: float = 15, **context: Any
    ) -> Page:
        """A new page, at `url` if given. `timeout` (s) is for all that Playwright waits for."""
        made = await self._browser.new_context(**context)
        self._contexts.append(made)
        made.set_default_timeout(timeout * 1000)
        page = await made.new_page()
        page.on("console", self._on_console)
        page.on("pageerror", self._on_page_error)
        if url is not None:
            await page.goto(url)
        return page

    @property
    def errors(self) -> list[str]:
        """What went wrong and was not expected, oldest first."""
        return [
            error
            for error in self._errors
            if not any(pattern.search(error) for pattern in self._expected)
        ]

    def expect_error(self, pattern: str) -> None:
        """Permits errors in which the regular expression is found."""
        self._expected.append(re.compile(pattern))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            place = message.location
            self._errors.append(f"console: {message.text} ({place['url']}:{place['lineNumber']})")

    def _on_page_error(self, error: PlaywrightError) -> None:
        self._errors.append(f"uncaught: {error.stack or error.message}")

    async def close(self) -> None:
        for context in self._contexts:
            await context.close()
