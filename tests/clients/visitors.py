"""Visitors: the JavaScript client in Chromium and in Node, both told what to do in JavaScript.

    ann = await visit(proxy.http())
    await ann.run("await visitor.enter('ann')")
    await ann.until("visitor.shown.length === 1")

`visitor` is the one of visitor.mjs.
"""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page

from tests.support.browser import PageFactory

HERE = Path(__file__).parent
NODE_CLIENT = HERE.parents[1] / "starlette_realtime" / "static" / "node.js"
MAX_ANSWER = 10_000_000


class VisitorError(Exception):
    """What the visitor's JavaScript threw."""


class Visitor(ABC):
    """Somebody who uses the client."""

    @abstractmethod
    async def run(self, code: str) -> Any:
        """Runs the body of an async function; returns what it returns, as JSON can carry it.

        Raises:
            VisitorError: it threw.
        """

    @abstractmethod
    async def _wait(self, condition: str, seconds: float) -> None:
        """Waits until the expression is true; raises `TimeoutError`."""

    async def get(self, expression: str) -> Any:
        return await self.run(f"return {expression}")

    async def until(self, condition: str, seconds: float = 15) -> None:
        """Waits until the expression is true; else fails, with the visitor's record."""
        try:
            await self._wait(condition, seconds)
        except TimeoutError:
            record = await self.get(
                "JSON.stringify({ ...visitor, realtime: null, client: null, room: null,"
                " state: visitor.client?.state, joined: visitor.room?.joined })"
            )
            raise AssertionError(f"not {condition} after {seconds} s: {record}") from None

    async def enter(self, user: str, room: str = "chat/1", **options: Any) -> None:
        """Connects and enters a room; `options` are the client's."""
        await self.run(f"await visitor.enter({user!r}, {room!r}, {json.dumps(options)})")

    async def say(self, *contents: str) -> None:
        await self.run(f"visitor.say(...{json.dumps(contents)})")

    async def shown(self) -> list[str]:
        found: list[str] = await self.get("visitor.shown")
        return found


Visit = Callable[[str], Awaitable[Visitor]]
"""Opens the client of a server at an address without a path, as a new visitor."""


class PageVisitor(Visitor):
    """In a page of Chromium."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @classmethod
    async def open(cls, pages: PageFactory, origin: str) -> PageVisitor:
        # A network that fails is what these tests are about; the browser logs each failure.
        pages.expect_error(r"WebSocket connection to|ERR_|Failed to fetch")
        visitor = cls(await pages(f"{origin}/"))
        await visitor.page.wait_for_function("globalThis.visitor !== undefined")
        return visitor

    async def run(self, code: str) -> Any:
        try:
            return await self.page.evaluate(
                f"async () => {{ const {{ visitor }} = globalThis; {code} }}"
            )
        except PlaywrightError as error:
            raise VisitorError(error.message) from None

    async def _wait(self, condition: str, seconds: float) -> None:
        try:
            await self.page.wait_for_function(condition, timeout=seconds * 1000, polling=10)
        except PlaywrightError as error:
            if "Timeout" not in error.message:
                raise
            raise TimeoutError from None


class NodeVisitor(Visitor):
    """In a Node process."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._stdin = process.stdin
        self._stdout = BufferedByteReceiveStream(process.stdout)

    @classmethod
    @asynccontextmanager
    async def open(cls, origin: str) -> AsyncIterator[NodeVisitor]:
        command = ["node", str(HERE / "driver.mjs"), str(NODE_CLIENT), origin]
        async with await anyio.open_process(command, stderr=None, stdin=subprocess.PIPE) as process:
            try:
                visitor = cls(process)
                assert await visitor._answer() == "ready"
                yield visitor
                await process.stdin.aclose()  # type: ignore[union-attr]
                with anyio.fail_after(5):
                    # A client that was closed keeps no process alive.
                    assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()

    async def _answer(self) -> Any:
        line = await self._stdout.receive_until(b"\n", MAX_ANSWER)
        answer = json.loads(line)
        if "error" in answer:
            raise VisitorError(answer["error"])
        return answer["value"]

    async def run(self, code: str) -> Any:
        await self._stdin.send(json.dumps({"code": code}).encode() + b"\n")
        return await self._answer()

    async def _wait(self, condition: str, seconds: float) -> None:
        met = await self.run(
            f"""const end = Date.now() + {seconds * 1000};
            while (!({condition})) {{
                if (Date.now() > end) return false;
                await new Promise((resolve) => setTimeout(resolve, 5));
            }}
            return true;"""
        )
        if not met:
            raise TimeoutError
