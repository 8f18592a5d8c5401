"""The oldest uvicorn and websockets that the extra `server` allows; elsewhere it is the newest."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import to_thread

from tests.support.server import FAST, ROOT, ServerProcess
from tests.support.wsclient import NativeClient
from tests.transports.helpers import PATH, token

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with the oldest versions, beside the environment, and which they are."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = project["optional-dependencies"]["server"]
    versions = dict(re.findall(r"(\w+)>=([\d.]+)", " ".join(needs)))
    folder = tmp_path_factory.mktemp("oldest")
    pins = [f"{name}=={version}" for name, version in versions.items()]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, "--disable-pip-version-check", *pins], check=True, timeout=100)
    return folder, versions


@pytest.mark.parametrize("ws", [FAST, "websockets-sansio"])
async def test_rooms_on_the_oldest_server(
    serve_process: Callable[..., ServerProcess], oldest: tuple[Path, dict[str, str]], ws: str
) -> None:
    folder, versions = oldest
    paths = os.pathsep.join(map(str, (folder, ROOT)))
    server = await to_thread.run_sync(
        lambda: serve_process("tests.servers.app:app", ws=ws, env={"PYTHONPATH": paths})
    )
    options: list[dict[str, Any]] = [
        {"compression": "deflate"},
        {"compression": None},
        {"compression": None, "subprotocols": []},
    ]
    people = [
        NativeClient.open(server.ws(PATH), token=token(f"u{number}"), **chosen)
        for number, chosen in enumerate(options)
    ]
    async with people[0] as ann, people[1] as bob, people[2] as cleo:
        for client in (ann, bob, cleo):
            await client.request("join", "r")
        sizes = [1, 125, 126, 70_000, 600_000, 3]
        for size in sizes:
            await ann.request("broadcast", "r", "x" * size)
        for client in (ann, bob, cleo):
            assert [len((await client.expect("broadcast"))["data"]) for _ in sizes] == sizes
        # A client that goes, and one that is sent away, are seen to leave.
        async with NativeClient.open(server.ws(PATH), token=token("dan")) as dan:
            await dan.request("join", "r")
            await ann.expect("user-joined", data={"userId": "dan"})
            await dan.websocket.close()
        await ann.expect("user-left", data={"userId": "dan"})
        await cleo.send({"type": "kick", "room": "r"})
        assert (await cleo.closed())[0] == 4410
        await ann.expect("user-left", data={"userId": "u2"})
        async with httpx.AsyncClient() as http:
            found = (await http.get(server.http("/versions"))).json()
        for name, version in versions.items():
            assert found[name].startswith(version), found
        assert found["direct"] == [ws == FAST] * 4
        stopping = asyncio.create_task(to_thread.run_sync(server.terminate))
        assert (await ann.closed())[0] == 1012
        assert (await bob.closed())[0] == 1012
        await stopping
    assert "Traceback" not in server.output, server.output
