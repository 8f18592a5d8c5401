"""The core without a door: an engine on memory stores, clients that are lists of messages, and a
broker that answers late."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from starlette_realtime.auth import AnonymousAuth, AuthBackend, User
from starlette_realtime.brokers.base import HistoryBroker, Listener
from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.core.engine import Engine
from starlette_realtime.core.lobby import Introduction
from starlette_realtime.core.namespace import Namespace
from starlette_realtime.core.options import Options
from starlette_realtime.core.outbox import Chunk, Outbox
from starlette_realtime.core.runtime import Runtime, running
from starlette_realtime.core.session import Connection, Session
from starlette_realtime.events import (
    Command,
    Draft,
    Page,
    Position,
    Publication,
    Published,
    Recovery,
    Retention,
)
from starlette_realtime.settings import stores_from_url
from starlette_realtime.wires import native as wires
from tests.support.wsclient import continued

Message = dict[str, Any]

NO_LIMITS: dict[str, Any] = {
    "message_rate": 0.0,
    "user_rate": 0.0,
    "join_rate": 0.0,
    "abuse_rate": 0.0,
    "shutdown_timeout": 1.0,
}
"""Options for tests that are not about limits."""


class Socket(Connection):
    """A connection that keeps what it is sent, instead of sending it."""

    def __init__(self, options: Options, wire: Any = None) -> None:
        outbox = Outbox(
            wire or wires.TEXT[2],
            limit=options.max_queued,
            overflow=self.overflow,
            write=self.write,
        )
        super().__init__({"type": "websocket", "headers": []}, outbox, options)
        self.received: list[Message] = []
        self.writes = 0
        self.closed: tuple[int, str] | None = None
        self.at_work = False
        self.takes_more = True
        self.chunks: list[Chunk] = []

    def write(self, chunk: Chunk) -> bool:
        self.writes += 1
        self.chunks.append(chunk)
        text = chunk if isinstance(chunk, str) else chunk.decode()
        before: Message = {}
        for line in text.split("\n"):
            before = continued(before, json.loads(line))
            self.received.append(before)
        return self.takes_more

    def overflow(self) -> None:
        self.close(4502, "too slow")

    def close(self, code: int, reason: str = "") -> None:
        if self.closed is None:
            self.closed = (code, reason)

    async def wait(self, event: anyio.Event) -> None:
        await event.wait()

    @property
    def busy(self) -> bool:
        return self.at_work


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for a condition."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.001)


class Client:
    """A session and its socket, spoken to by commands."""

    def __init__(self, house: House, socket: Socket, session: Session) -> None:
        self.house = house
        self.socket = socket
        self.session = session

    @property
    def received(self) -> list[Message]:
        return self.socket.received

    async def send(self, type: str, room: str | None = None, data: Any = None, **more: Any) -> None:
        """Have the engine handle one command, to its end."""
        raw = msgspec.Raw(json.dumps(data).encode())
        command = Command(type, room=room, data=raw, **more)
        await self.session.engine.dispatch(self.session, command)

    async def ask(
        self, type: str, room: str | None = None, data: Any = None, **more: Any
    ) -> Message:
        """Send with an id; return the answer: `ack`, `joined`, `left` or `error`."""
        id = f"q{len(self.received)}"
        await self.send(type, room, data, id=id, **more)
        await self.house.settle()
        (answer,) = [m for m in self.received if m.get("id") == id]
        return answer

    def of(self, *types: str) -> list[Message]:
        return [message for message in self.received if message["type"] in types]

    def take(self) -> list[Message]:
        """All that came since the last time."""
        taken = list(self.received)
        self.received.clear()
        return taken

    async def vanish(self, code: int = 1006) -> None:
        """The connection is lost."""
        self.socket.gone = True
        self.socket.outbox.close()
        await self.session.engine.lobby.disconnect(self.session, code)


class House:
    """A running core with one namespace."""

    def __init__(self, runtime: Runtime, engine: Engine, broker: MemoryBroker) -> None:
        self.runtime = runtime
        self.engine = engine
        self.hub = runtime.hub
        self.broker = broker

    async def enter(self, user: str | User | None = None, *, wire: Any = None) -> Client:
        """Connect a client."""
        if isinstance(user, str):
            user = User(id=user, info={"name": user.title()})
        socket = Socket(self.runtime.options, wire)
        session = await self.engine.lobby.connect(socket, user, Introduction())
        await self.settle()
        socket.received.clear()
        socket.writes = 0
        return Client(self, socket, session)

    async def settle(self) -> None:
        """Let everything that is ready run: on memory stores nothing takes more turns."""
        for _ in range(20):
            await checkpoint()
        self.hub.flush()

    async def publish(
        self, room: str, event: str = "n", data: Any = None, **more: Any
    ) -> Published:
        return await self.engine.room(room).publish(event, data, **more)


@asynccontextmanager
async def house(
    configure: Callable[[Namespace], object] | None = None,
    *,
    broker: Callable[[MemoryBroker], HistoryBroker] | None = None,
    auth: AuthBackend | None = None,
    **options: Any,
) -> AsyncIterator[House]:
    """A core with the rooms that `configure` registers; by default everything is a room."""
    namespace = Namespace("/", auth or AnonymousAuth())
    if configure is None:
        namespace.room("{name:path}")
    else:
        configure(namespace)
    stores = stores_from_url("memory://")
    memory = stores.broker
    assert isinstance(memory, MemoryBroker)
    if broker is not None:
        stores = msgspec.structs.replace(stores, broker=broker(memory))
    async with running(Options(**{**NO_LIMITS, **options}), stores) as runtime:
        yield House(runtime, Engine(namespace, runtime), memory)


class LateBroker(HistoryBroker):
    """A broker on a network: every call takes some turns of the event loop, before it has its
    effect and after; announcements come later, in order.

    Args:
        inner: where it all happens.
        rng: how many turns each thing takes.
    """

    def __init__(self, inner: MemoryBroker, rng: random.Random, *, slowness: int = 3) -> None:
        self.inner = inner
        self.rng = rng
        self.slowness = slowness
        self.reads = 0
        # Calls that have not returned yet.
        self.calls = 0
        # Whether announcements are lost.
        self.broken = False
        self.queue: deque[tuple[str, Publication]] = deque()
        self._filled = anyio.Event()
        self._listener: Listener | None = None

    async def turns(self) -> None:
        for _ in range(self.rng.randint(0, self.slowness)):
            await checkpoint()

    @asynccontextmanager
    async def run(self, listener: Listener) -> AsyncIterator[None]:
        self._listener = listener
        async with self.inner.run(self), anyio.create_task_group() as tasks:
            tasks.start_soon(self._announce)
            yield
            tasks.cancel_scope.cancel()

    def received(self, channel: str, publication: Publication) -> None:
        if not self.broken:
            self.queue.append((channel, publication))
            self._filled.set()

    def interrupted(self, channels: Iterable[str]) -> None:
        raise AssertionError("memory is not interrupted")

    async def lose(self) -> None:
        """The connection breaks: what is under way is lost; when it is back, the listener is told
        of all its channels."""
        assert self._listener is not None
        self.calls += 1
        self.queue.clear()
        self.broken = True
        await self.turns()
        self.broken = False
        self._listener.interrupted(set(self.inner._subscribed))
        self.calls -= 1

    async def _announce(self) -> None:
        assert self._listener is not None
        while True:
            await self._filled.wait()
            self._filled = anyio.Event()
            while self.queue:
                await self.turns()
                for _ in range(self.rng.randint(1, 3)):
                    if self.queue:
                        self._listener.received(*self.queue.popleft())

    async def _late(self, call: Callable[[], Awaitable[Any]]) -> Any:
        self.calls += 1
        try:
            await self.turns()
            result = await call()
            await self.turns()
            return result
        finally:
            self.calls -= 1

    async def publish(self, channel: str, draft: Draft, retention: Retention) -> Published:
        result: Published = await self._late(lambda: self.inner.publish(channel, draft, retention))
        return result

    async def subscribe(self, channels: Iterable[str]) -> None:
        await self._late(lambda: self.inner.subscribe(channels))

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        await self._late(lambda: self.inner.unsubscribe(channels))

    async def recover(self, channel: str, since: Position, limit: int) -> Recovery:
        self.reads += 1
        result: Recovery = await self._late(lambda: self.inner.recover(channel, since, limit))
        return result

    async def page(
        self, channel: str, *, before: int | None = None, after: int | None = None, limit: int
    ) -> Page:
        self.reads += 1
        result: Page = await self._late(
            lambda: self.inner.page(channel, before=before, after=after, limit=limit)
        )
        return result

    async def find(self, channel: str, id: str) -> Publication | None:
        result: Publication | None = await self._late(lambda: self.inner.find(channel, id))
        return result
