"""What a client costs from its handshake to its room, counted rather than timed."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import pytest
from starlette.types import Message, Receive

from starlette_realtime import Options, Realtime
from starlette_realtime.core.outbox import Chunk, Outbox
from starlette_realtime.transports.websocket import WebSocketDoor
from tests.support.wsclient import SUBPROTOCOL
from tests.transports.helpers import TOKENS, token, until

pytestmark = pytest.mark.anyio


class Server:
    """As much of a server as one connection needs: it is its `receive`, `send` and writer."""

    descriptor = -1
    window_bits = 0

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[Message] = asyncio.Queue()
        self.arrived.put_nowait({"type": "websocket.connect"})
        self.written = b""
        self.writes = 0
        self.joined = asyncio.Event()

    async def receive(self) -> Message:
        return await self.arrived.get()

    async def send(self, message: Message) -> None:
        assert message["type"] == "websocket.accept"

    def say(self, text: str) -> None:
        self.arrived.put_nowait({"type": "websocket.receive", "text": text})

    def write(self, data: Chunk) -> bool:
        assert isinstance(data, bytes)
        self.written += data
        self.writes += 1
        if b'"joined"' in data:
            self.joined.set()
        return True

    def attach(self, outbox: Outbox, stop: Callable[[], object]) -> None:
        pass

    def intercept(
        self,
        receive: Receive,
        take: Callable[[list[str | bytes]], Sequence[str | bytes | Message]],
    ) -> Context | None:
        return None

    def abort(self) -> None:
        raise AssertionError

    def let_go(self, seconds: float) -> None:
        pass


async def serve(door: WebSocketDoor, server: Server) -> None:
    scope = {
        "type": "websocket",
        "path": "/ws",
        "headers": [(b"host", b"example.com"), (b"origin", b"http://example.com")],
        "client": ("192.0.2.1", 1234),
        "subprotocols": [SUBPROTOCOL],
    }
    connection = await door.accept(scope, server.receive, server.send, server)
    assert connection is not None
    await connection.run()


@contextmanager
def counting() -> Iterator[list[int]]:
    """Count the calls of Python functions: a coroutine counts whenever it goes on."""
    counted = [0]

    def count(frame: Any, event: str, argument: Any) -> None:
        counted[0] += event == "call"

    sys.setprofile(count)
    try:
        yield counted
    finally:
        sys.setprofile(None)


async def test_connecting_and_joining_takes_few_calls() -> None:
    realtime = Realtime("memory://", auth=TOKENS, options=Options(max_connections_per_user=0))
    realtime.room("{name}", presence="counts")
    clients = 20
    async with realtime.run():
        assert realtime._running is not None
        door = realtime._running.websocket
        servers = [Server() for _ in range(clients + 1)]
        for number, server in enumerate(servers):
            shown = token(f"user-{number}")
            server.say(f'{{"type":"connect","data":{{"token":"{shown}"}}}}')
            server.say('{"type":"join","room":"r"}')
        async with asyncio.TaskGroup() as tasks:
            # The first one finds everything unused.
            tasks.create_task(serve(door, servers[0]))
            await servers[0].joined.wait()
            with counting() as entering:
                for server in servers[1:]:
                    tasks.create_task(serve(door, server))
                for server in servers:
                    await server.joined.wait()
            with counting() as leaving:
                for server in servers[1:]:
                    server.arrived.put_nowait({"type": "websocket.disconnect", "code": 1006})
                while len(realtime._running.runtime.connections) > 1:
                    await asyncio.sleep(0)
            servers[0].arrived.put_nowait({"type": "websocket.disconnect", "code": 1000})
    assert all(server.written.count(b'"type":"joined"') == 1 for server in servers)
    # The event loop's own are among them, and what this file is called for.
    assert entering[0] / clients < 340
    assert leaving[0] / clients < 120


async def test_a_connection_is_few_objects() -> None:
    """The garbage collector looks at each of them again and again."""
    realtime = Realtime("memory://", auth=TOKENS)
    realtime.room("{name}", presence="counts")
    clients = 30
    async with realtime.run():
        assert realtime._running is not None
        door = realtime._running.websocket
        servers = [Server() for _ in range(clients)]
        before = 0
        async with asyncio.TaskGroup() as tasks:
            for number, server in enumerate(servers):
                server.say(f'{{"type":"connect","data":{{"token":"{token(f"user-{number}")}"}}}}')
                server.say('{"type":"join","room":"r"}')
                tasks.create_task(serve(door, server))
                await server.joined.wait()
                if number == clients // 3:
                    gc.collect()
                    before = len(gc.get_objects())
            gc.collect()
            after = len(gc.get_objects())
            for server in servers:
                server.arrived.put_nowait({"type": "websocket.disconnect", "code": 1000})
    # A task, its coroutines and the scope are among them.
    assert after - before < 30 * (clients - clients // 3 - 1)


async def test_a_session_that_waits_for_its_client_is_even_fewer() -> None:
    realtime = Realtime("memory://", auth=TOKENS)
    realtime.room("{name}", presence="counts")
    clients = 30

    async def come_and_go(user_id: str) -> None:
        server = Server()
        server.say(f'{{"type":"connect","data":{{"token":"{token(user_id)}"}}}}')
        server.say('{"type":"join","room":"r"}')
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(door, server))
            await server.joined.wait()
            server.arrived.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async with realtime.run():
        assert realtime._running is not None
        door = realtime._running.websocket
        await come_and_go("first")
        gc.collect()
        before = len(gc.get_objects())
        for number in range(clients):
            await come_and_go(f"user-{number}")
        hub = realtime._running.runtime.hub
        await until(lambda: not hub.channels)
        gc.collect()
        after = len(gc.get_objects())
    assert after - before < 8 * clients


async def test_what_arrives_together_is_written_together() -> None:
    realtime = Realtime("memory://", auth=TOKENS, options=Options(message_rate=0))
    realtime.room("{name}", broadcast=True)
    bursts, size = 20, 16
    async with realtime.run():
        assert realtime._running is not None
        door = realtime._running.websocket
        ann, bob = Server(), Server()
        async with asyncio.TaskGroup() as tasks:
            for name, server in (("ann", ann), ("bob", bob)):
                server.say(f'{{"type":"connect","data":{{"token":"{token(name)}"}}}}')
                server.say('{"type":"join","room":"r"}')
                tasks.create_task(serve(door, server))
                await server.joined.wait()
            before = bob.writes
            for burst in range(1, bursts + 1):
                for _ in range(size):
                    ann.say('{"type":"broadcast","room":"r","data":"x"}')
                while bob.written.count(b'"data":"x"') < burst * size:
                    await asyncio.sleep(0)
            for server in (ann, bob):
                server.arrived.put_nowait({"type": "websocket.disconnect", "code": 1000})
    assert bob.writes - before == bursts
