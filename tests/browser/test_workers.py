"""`scripts/demo` on Redis with two workers, and a browser on each."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from anyio import to_thread
from playwright.async_api import expect

from tests.browser.guests import LOST, Guest
from tests.support.browser import PageFactory
from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.server import ROOT, ServerProcess

pytestmark = pytest.mark.anyio

WATCH = """() => {
    // All that a page shows of others and of the link, as it changes.
    window.seen = {members: new Set(), words: new Set(), notices: new Set()};
    const look = () => {
        const names = [...document.querySelectorAll("#members .name")].map(n => n.textContent);
        window.seen.members.add(names.sort().join(" "));
        window.seen.words.add(document.querySelector("#link-word").textContent);
        const notice = document.querySelector("#notice");
        if (!notice.hidden) window.seen.notices.add(notice.textContent);
    };
    look();
    new MutationObserver(look).observe(
        document.body, {subtree: true, childList: true, characterData: true, attributes: true});
}"""
SEEN = "Object.fromEntries(Object.entries(window.seen).map(([k, v]) => [k, [...v].sort()]))"


class Demo(ServerProcess):
    """What a newcomer runs."""

    def __init__(self, output: Path, backend: str) -> None:
        self.port = free_port()
        self.secure = False
        self.workers = 2
        environment = {"REALTIME_BACKEND": backend, "PORT": str(self.port)}
        Process.__init__(
            self, [str(ROOT / "scripts" / "demo")], output=output, env=environment, cwd=ROOT
        )

    @contextmanager
    def only(self, worker: int) -> Iterator[None]:
        """Let one worker alone take connections: the others are frozen."""
        others = [pid for pid in self.worker_pids if pid != worker]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def running(demo: Demo) -> AsyncIterator[Demo]:
    await to_thread.run_sync(demo.start)
    try:
        yield demo
    finally:
        await to_thread.run_sync(demo.kill)


async def test_a_worker_is_killed_in_the_middle_of_a_conversation(
    redis_url: str, tmp_path: Path, page: PageFactory
) -> None:
    page.expect_error(LOST)
    async with running(Demo(tmp_path / "demo.log", redis_url)) as demo:
        first, second = demo.worker_pids
        with demo.only(first):
            ann = await Guest.enter(page, demo.http("/"), "Ann")
        with demo.only(second):
            bob = await Guest.enter(page, demo.http("/"), "Bob")
        for guest in (ann, bob):
            await guest.members("Ann", "Bob")
            await guest.page.evaluate(WATCH)
        await ann.say("hello")
        await bob.say("hello yourself")
        for number in range(3):
            await ann.type(f"ann before {number}")
            await bob.type(f"bob before {number}")
        os.kill(first, signal.SIGKILL)
        for number in range(5):
            await ann.type(f"ann after {number}")
            await bob.type(f"bob after {number}")
        said = {"hello", "hello yourself"}
        said |= {f"{name} before {number}" for name in ("ann", "bob") for number in range(3)}
        said |= {f"{name} after {number}" for name in ("ann", "bob") for number in range(5)}
        for guest in (ann, bob):
            await guest.sees_all(said)
            await guest.has_no_pending()
            await guest.is_connected()
        texts = await ann.texts()
        assert texts == await bob.texts()
        for name in ("ann", "bob"):
            own = [text for text in texts if text.startswith(name)]
            assert own == sorted(own, key=lambda text: "after" in text)
        # She is on another worker, and they go on as if nothing had been.
        await ann.say("still there?")
        await expect(bob.page.locator("#messages .text").last).to_have_text("still there?")
        assert await bob.page.evaluate(SEEN) == {
            "members": ["Ann Bob"],
            "words": ["Connected"],
            "notices": [],
        }
        seen = await ann.page.evaluate(SEEN)
        assert (seen["members"], seen["notices"]) == (["Ann Bob"], [])
        assert (
            {"Connected", "Reconnecting…"}
            <= {*seen["words"]}
            <= {
                "Connected",
                "Connecting…",
                "Reconnecting…",
            }
        )
        assert first not in demo.worker_pids
