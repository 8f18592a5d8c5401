"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import PageFactory
from tests.support.server import LiveServer
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


async def test_the_server_and_the_client_snippet(page: PageFactory) -> None:
    module: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block("python"), "README.md", "exec"), module)
    token = module["auth"].create_token("ann", {"name": "Ann"})
    async with LiveServer(module["app"]) as server:
        page.expect_error("favicon.ico")
        # A page of the same origin; the snippet is a module, and `import` inside one is dynamic.
        opened = await page(server.http("/realtime/client.js"))
        snippet = re.sub(
            r'import (\{.*?\}) from (".*?");', r"const \1 = await import(\2);", block("js")
        )
        shown = await opened.evaluate(
            """async ([snippet, token]) => {
                 const shown = [];
                 const done = new Promise((resolve) => {
                   globalThis.show = (m) => (shown.push(`${m.user.name}: ${m.content}`), resolve());
                 });
                 globalThis.fetchToken = async () => token;
                 const AsyncFunction = (async () => {}).constructor;
                 await new AsyncFunction(snippet)();
                 await done;
                 return shown;
               }""",
            [snippet, token],
        )
        assert shown == ["Ann: hello"]
        # Before the server goes, or it would try to come back.
        await opened.close()
        async with NativeClient.open(server.ws("/realtime/ws"), token=token) as ann:
            joined = await ann.request("join", "chat/7")
            assert [message["content"] for message in joined["recentMessages"]] == ["hello"]
            offset = await ann.request("wave", "chat/7", "hi")
            await ann.expect("waved", data="hi", offset=offset)


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
