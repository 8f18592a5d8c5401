"""Servers other than uvicorn, on both event loops: ASGI alone is enough for the door."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import to_thread
from granian.constants import Interfaces
from granian.server import embed as granian
from starlette.applications import Starlette
from starlette.routing import Mount

from starlette_realtime import Realtime
from tests.support.threaded import Hypercorn, Threaded, running
from tests.support.wsclient import NativeClient
from tests.transports.helpers import PATH, make_app, make_realtime, token

pytestmark = pytest.mark.anyio

LOOPS = ["asyncio", "trio"]
COME_BACK = (1001, 1006, 1011, 1012)


class Granian(Threaded):
    """It takes each message, and hands each over, in another thread."""

    async def serve(self) -> None:
        server = granian.Server(
            self.app,
            port=self.port,
            interface=Interfaces.ASGI,
            log_enabled=False,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            await self.told_to_stop()
            server.stop()  # type: ignore[no-untyped-call]


SERVERS: dict[str, Callable[[Any], Threaded]] = {
    "granian": Granian,
    "hypercorn": Hypercorn,
    "hypercorn, trio": partial(Hypercorn, loop="trio"),
}


def rooms() -> Realtime:
    realtime = make_realtime(shutdown_timeout=1)
    room = realtime.room("{name}")

    @room.on("question")
    async def question(member: Any, data: Any) -> Any:
        return await member.request("question", data, timeout=5)

    return realtime


async def two_chat(door: str) -> None:
    async with (
        NativeClient.open(door, token=token("ann")) as ann,
        NativeClient.open(door, token=token("bob"), subprotocols=[]) as bob,
    ):
        await ann.request("join", "r")
        position = (await bob.request("join", "r"))["position"]
        await ann.request("broadcast", "r", {"n": 1})
        assert (await bob.expect("broadcast"))["data"] == {"n": 1}
        # A handler that asks its own client: the reader reads on meanwhile.
        await ann.send({"type": "question", "id": 1, "room": "r", "data": 7})
        asked = await ann.expect("question")
        await ann.send({"type": "ack", "id": asked["id"], "data": 8})
        assert (await ann.expect("ack"))["data"] == 8
        await bob.request("leave", "r")
        await ann.request("broadcast", "r", {"n": 2})
        assert (await bob.request("join", "r", since=position))["recovered"] is True
        assert [(await bob.expect("broadcast"))["data"] for _ in range(2)][-1] == {"n": 2}


@pytest.mark.parametrize("loop", LOOPS)
async def test_two_clients_chat_and_are_sent_away_to_come_back(loop: str) -> None:
    realtime = rooms()
    with running(Hypercorn(make_app(realtime), loop)) as server:
        assert realtime.running
        await two_chat(server.ws(PATH))
        async with NativeClient.open(server.ws(PATH), token=token("ann")) as ann:
            await ann.request("join", "r")
            stopping = asyncio.create_task(to_thread.run_sync(server.stop))
            # Hypercorn's asyncio worker cancels its connections before it ends the lifespan.
            assert (await ann.closed())[0] in COME_BACK
            await stopping
    assert not realtime.running


@pytest.mark.parametrize("loop", LOOPS)
async def test_without_a_lifespan_it_starts_on_first_use(loop: str) -> None:
    realtime = rooms()
    app = Starlette(routes=[Mount("/realtime", app=realtime)])
    with running(Hypercorn(app, loop)) as server:
        assert not realtime.running
        await two_chat(server.ws(PATH))
        assert realtime.running
    assert not realtime.running


@pytest.mark.parametrize("name", SERVERS)
async def test_a_burst_reaches_everybody_in_order(name: str) -> None:
    count = 300
    with running(SERVERS[name](make_app(rooms()))) as server:
        await two_chat(server.ws(PATH))
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    NativeClient.open(server.ws(PATH), token=token("a"))
                )
                for _ in range(20)
            ]
            for client in clients:
                await client.request("join", "r")
            await clients[0].send(
                *({"type": "broadcast", "room": "r", "data": n} for n in range(count))
            )
            for client in clients:
                heard = [(await client.expect("broadcast"))["data"] for _ in range(count)]
                assert heard == list(range(count))
