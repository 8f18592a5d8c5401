"""Each mounting example, on a real server: two clients chat, an HTTP endpoint publishes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import httpx
import pytest
from anyio import to_thread

from tests.support.server import FAST, ServerProcess
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "mounting"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def test_every_way_in_has_an_example() -> None:
    assert EXAMPLES == [
        "fastapi_middleware",
        "fastapi_mount",
        "litestar_plugin",
        "starlette_middleware",
        "starlette_mount",
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_docstring_tells_how_to_run_it(name: str) -> None:
    module = import_module(f"examples.mounting.{name}")
    assert f"uvicorn examples.mounting.{name}:app" in (module.__doc__ or "")


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
@pytest.mark.parametrize("name", EXAMPLES)
async def test_two_clients_chat(
    name: str, ws: str, serve_process: Callable[..., ServerProcess]
) -> None:
    server = await to_thread.run_sync(lambda: serve_process(f"examples.mounting.{name}:app", ws=ws))
    door = server.ws("/realtime/ws")
    async with (
        NativeClient.open(door, token="Ann") as ann,
        NativeClient.open(door, token="Bob") as bob,
    ):
        await ann.request("join", "chat/kitchen")
        joined = await bob.request("join", "chat/kitchen")
        assert [member["user"]["name"] for member in joined["members"]].count("Ann") == 1
        await ann.expect("user-joined", data={"user": {"name": "Bob"}})

        reply = await ann.request("message", "chat/kitchen", {"content": "hello"})
        said = await bob.expect("new-message", data={"content": "hello", "user": {"name": "Ann"}})
        assert said["data"]["id"] == reply["messageId"]

        async with httpx.AsyncClient() as http:
            url = server.http("/announce/kitchen")
            answer = await http.post(url, params={"text": "Dinner"})
            assert answer.status_code == 200
            script = await http.get(server.http("/realtime/client.js"))
        told = await ann.expect("announcement", room="chat/kitchen", data={"text": "Dinner"})
        assert answer.json() == {"room": "chat/kitchen", "offset": told["offset"]}
        await bob.expect("announcement", data={"text": "Dinner"})
        assert script.headers["content-type"].startswith("text/javascript")
        assert "export" in script.text
    assert await to_thread.run_sync(server.terminate) in {0, -15}


@pytest.mark.parametrize("name", EXAMPLES)
async def test_nothing_else_is_touched(
    name: str, serve_process: Callable[..., ServerProcess]
) -> None:
    server: ServerProcess = await to_thread.run_sync(
        lambda: serve_process(f"examples.mounting.{name}:app")
    )
    async with httpx.AsyncClient(base_url=server.http()) as http:
        assert (await http.get("/nowhere")).status_code == 404
        assert (await http.get("/realtimes")).status_code == 404
        assert (await http.get("/announce/kitchen")).status_code == 405
        assert (await http.get("/realtime/nowhere")).status_code == 404
        health = await http.get("/realtime/health")
        assert (health.status_code, health.json()["status"]) == (200, "ok")
        # A browser that follows the link to a WebSocket address is told so.
        assert (await http.get("/realtime/ws")).status_code == 426


@pytest.mark.parametrize("name", EXAMPLES)
def test_importing_it_starts_nothing(name: str) -> None:
    module = import_module(f"examples.mounting.{name}")
    server = module.realtime() if name == "fastapi_mount" else module.realtime
    assert not server.running
