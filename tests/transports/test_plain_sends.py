"""Through ASGI's `send`, which may have to wait or not: what is published while others are sent to
shares a send, in order; who takes nothing holds nobody."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from starlette_realtime import AnonymousAuth, CloseConnection, Member, Realtime, Room
from starlette_realtime.transports import websocket
from tests.support.loops import both_loops
from tests.support.wsclient import SUBPROTOCOL, continued
from tests.transports.helpers import make_realtime

pytestmark = [pytest.mark.anyio, both_loops]

MANNERS = ["prompt", "turns", "thread"]
in_every_manner = pytest.mark.parametrize("manner", MANNERS)


class Client:
    """A client behind a server that takes a turn of the event loop for each message that arrives.

    It sends at once (`prompt`), or takes a turn for each message that is sent, or waits until a
    thread would have sent it.
    """

    def __init__(self, manner: str, under_way: list[anyio.Event]) -> None:
        self.manner = manner
        self.under_way = under_way
        self.given_up = 0
        self.frames: list[str] = []
        self.closed: int | None = None
        self.stuck = False
        # What a send waits in, and for, while stuck.
        self.waiting: anyio.CancelScope | None = None
        self.let_go = anyio.Event()
        # How its sends fail, once it has gone.
        self.gone: Callable[[], Awaitable[None]] | None = None
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
        payloads: list[Any] = []
        for frame in self.frames:
            message: dict[str, Any] = {}
            for line in frame.split("\n"):
                message = continued(message, json.loads(line))
                if message["type"] == "broadcast":
                    payloads.append(message["data"])
        return payloads

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
            if self.gone is not None:
                await self.gone()
            self.closed = message["code"]
            self._news.set()
        elif message["type"] == "websocket.send":
            try:
                if self.stuck:
                    with anyio.CancelScope() as self.waiting:
                        await self.let_go.wait()
                if self.manner == "turns":
                    await checkpoint()
                elif self.manner == "thread":
                    sent = anyio.Event()
                    self.under_way.append(sent)
                    await sent.wait()
            except anyio.get_cancelled_exc_class():
                self.given_up += 1
                raise
            if self.gone is not None:
                await self.gone()
            self.frames.append(message["text"])


async def fails() -> None:
    raise OSError("gone")


async def is_given_up() -> None:
    """On asyncio a server may cancel what its own `send` waits for."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        await fails()
    else:
        future = loop.create_future()
        loop.call_soon(future.cancel)
        await future


async def work(under_way: list[anyio.Event]) -> None:
    """Be the thread: send every second one of those that are under way, the last one first."""
    while True:
        await anyio.sleep(0.0005)
        sent = under_way[::-2]
        del under_way[::-2]
        for one in sent:
            one.set()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


@asynccontextmanager
async def room_of(count: int, manner: str, **options: Any) -> AsyncIterator[list[Client]]:
    realtime: Realtime = make_realtime(auth=AnonymousAuth(), shutdown_timeout=1, **options)
    room = realtime.room("{name}", presence="counts")

    @room.on("last")
    async def last(room: Room, member: Member) -> None:
        for number in range(10):
            await room.publish("broadcast", number)
        raise CloseConnection(4000)

    scope = {
        "type": "websocket",
        "path": "/ws",
        "headers": [],
        "query_string": b"",
        "subprotocols": [SUBPROTOCOL],
    }
    under_way: list[anyio.Event] = []
    clients = [Client(manner, under_way) for _ in range(count)]
    async with realtime.run(), anyio.create_task_group() as threads:
        threads.start_soon(work, under_way)
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(realtime, dict(scope), client.receive, client.send)
            for client in clients:
                client.say({"type": "join", "room": "r"})
            await until(lambda: all(client.knows("joined") for client in clients))
            yield clients
            for client in clients:
                client.hang_up()
        threads.cancel_scope.cancel()


def broadcasts(numbers: range, pad: str = "") -> list[dict[str, Any]]:
    return [{"type": "broadcast", "room": "r", "data": [n, pad]} for n in numbers]


@in_every_manner
async def test_what_comes_during_a_round_shares_the_next_ones_sends(manner: str) -> None:
    async with room_of(300, manner) as clients:
        before = sum(len(client.frames) for client in clients)
        clients[0].say(*broadcasts(range(64)))
        await until(lambda: all(len(client.heard) == 64 for client in clients))
        for client in clients:
            assert [n for n, _ in client.heard] == list(range(64))
        sends = sum(len(client.frames) for client in clients) - before
        assert sends < 300 * 64 / 4


@in_every_manner
async def test_clients_that_take_nothing_hold_nobody_and_are_sent_away(
    monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.2)
    async with room_of(200, manner, max_queued=20_000) as clients:
        well = clients[::4]
        stuck = [client for client in clients if client not in well]
        for client in stuck:
            client.stuck = True
        for start in range(0, 50, 10):
            well[0].say(*broadcasts(range(start, start + 10), "x" * 1000))
            await until(lambda: all(len(client.heard) == start + 10 for client in well))  # noqa: B023
        for client in well:
            assert [n for n, _ in client.heard] == list(range(50))
            assert client.closed is None
        await until(lambda: all(client.closed == 4502 for client in stuck))
        # What waits for the server still is given up then.
        await until(lambda: all(client.given_up == 1 for client in stuck))


@in_every_manner
async def test_who_is_slow_for_a_while_gets_all_in_order(manner: str) -> None:
    async with room_of(3, manner) as clients:
        slow, *others = clients
        for start in range(0, 30, 10):
            slow.manner = MANNERS[MANNERS.index(manner) - 1]
            clients[-1].say(*broadcasts(range(start, start + 5)))
            await until(lambda: all(len(one.heard) == start + 5 for one in others))  # noqa: B023
            slow.manner = manner
            clients[-1].say(*broadcasts(range(start + 5, start + 10)))
            await until(lambda: all(len(one.heard) == start + 10 for one in others))  # noqa: B023
        await until(lambda: len(slow.heard) == 30)
        for client in clients:
            assert [n for n, _ in client.heard] == list(range(30))


@pytest.mark.parametrize("gone", [fails, is_given_up])
@in_every_manner
async def test_a_send_that_fails_ends_with_its_connection(
    manner: str, gone: Callable[[], Awaitable[None]]
) -> None:
    gone_on = False
    async with room_of(3, manner) as (first, second, third):
        first.gone = second.gone = gone
        third.say(*broadcasts(range(5)))
        await until(lambda: len(third.heard) == 5)
        first.hang_up()
        # The server's close fails as well.
        second.say({"type": "last", "room": "r"})
        await until(lambda: len(third.heard) == 15)
        third.say(*broadcasts(range(5, 10)))
        await until(lambda: len(third.heard) == 20)
        gone_on = True
    assert gone_on


@in_every_manner
async def test_who_cancels_a_send_just_as_it_ends_cancels_nothing_else(manner: str) -> None:
    async with room_of(1, manner) as (client,):
        client.stuck = True
        client.say(*broadcasts(range(1)))
        await until(lambda: client.waiting is not None)
        client.stuck = False
        assert client.waiting is not None
        client.let_go.set()
        client.waiting.cancel()
        client.say(*broadcasts(range(1, 2)))
        await until(lambda: [n for n, _ in client.heard] == [0, 1])


@in_every_manner
async def test_what_was_sent_before_the_close_arrives_before_it(manner: str) -> None:
    async with room_of(3, manner) as clients:
        clients[0].say({"type": "last", "room": "r"})
        await until(lambda: clients[0].closed is not None)
        assert clients[0].closed == 4000
        assert clients[0].heard == list(range(10))
        assert clients[1].closed is None
