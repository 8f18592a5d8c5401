"""Through ASGI's `send`: what is published while others are sent to shares a send, in order; who
takes nothing holds nobody."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from starlette_realtime import AnonymousAuth, Realtime
from starlette_realtime.transports import websocket
from tests.support.loops import both_loops
from tests.support.wsclient import SUBPROTOCOL
from tests.transports.helpers import make_realtime

pytestmark = [pytest.mark.anyio, both_loops]


class Client:
    """A client behind a server that takes a turn of the event loop for each message, either way."""

    def __init__(self) -> None:
        self.frames: list[str] = []
        self.closed: int | None = None
        self.stuck = False
        self._connected = False
        self._said: deque[str] = deque()
        self._news = anyio.Event()

    def say(self, *messages: dict[str, Any]) -> None:
        self._said.extend(map(json.dumps, messages))
        self._news.set()

    def hang_up(self) -> None:
        self.closed = 1000
        self._news.set()

    @property
    def heard(self) -> list[Any]:
        """The payloads of what was broadcast."""
        messages = [json.loads(line) for frame in self.frames for line in frame.split("\n")]
        return [message["data"] for message in messages if message["type"] == "broadcast"]

    def knows(self, type: str) -> bool:
        return any(f'"type":"{type}"' in frame for frame in self.frames)

    async def receive(self) -> dict[str, Any]:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        await checkpoint()
        while not self._said:
            if self.closed is not None:
                return {"type": "websocket.disconnect", "code": self.closed}
            self._news = anyio.Event()
            await self._news.wait()
        return {"type": "websocket.receive", "text": self._said.popleft()}

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.closed = message["code"]
            self._news.set()
        elif message["type"] == "websocket.send":
            if self.stuck:
                await anyio.sleep_forever()
            await checkpoint()
            self.frames.append(message["text"])


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


@asynccontextmanager
async def room_of(count: int, **options: Any) -> AsyncIterator[list[Client]]:
    realtime: Realtime = make_realtime(auth=AnonymousAuth(), shutdown_timeout=1, **options)
    realtime.room("{name}", presence="counts")
    scope = {
        "type": "websocket",
        "path": "/ws",
        "headers": [],
        "query_string": b"",
        "subprotocols": [SUBPROTOCOL],
    }
    clients = [Client() for _ in range(count)]
    async with realtime.run(), anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(realtime, dict(scope), client.receive, client.send)
        for client in clients:
            client.say({"type": "join", "room": "r"})
        await until(lambda: all(client.knows("joined") for client in clients))
        yield clients
        for client in clients:
            client.hang_up()


def broadcasts(numbers: range, pad: str = "") -> list[dict[str, Any]]:
    return [{"type": "broadcast", "room": "r", "data": [n, pad]} for n in numbers]


async def test_what_comes_during_a_round_shares_the_next_ones_sends() -> None:
    async with room_of(300) as clients:
        before = sum(len(client.frames) for client in clients)
        clients[0].say(*broadcasts(range(64)))
        await until(lambda: all(len(client.heard) == 64 for client in clients))
        for client in clients:
            assert [n for n, _ in client.heard] == list(range(64))
        sends = sum(len(client.frames) for client in clients) - before
        assert sends < 300 * 64 / 4


async def test_clients_that_take_nothing_hold_nobody_and_are_sent_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.2)
    async with room_of(200, max_queued=20_000) as clients:
        stuck, well = clients[:150], clients[150:]
        for client in stuck:
            client.stuck = True
        for start in range(0, 50, 10):
            well[0].say(*broadcasts(range(start, start + 10), "x" * 1000))
            await until(lambda: all(len(client.heard) == start + 10 for client in well))  # noqa: B023
        for client in well:
            assert [n for n, _ in client.heard] == list(range(50))
            assert client.closed is None
        await until(lambda: all(client.closed == 4502 for client in stuck))
