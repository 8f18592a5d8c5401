"""What things cost, counted rather than timed: the guard over the law of fan-out."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import starlette_realtime
from starlette_realtime.auth.origin import OriginPolicy
from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.core import hub
from starlette_realtime.core.namespace import Namespace
from starlette_realtime.core.outbox import Chunk
from starlette_realtime.events import Position, Publication
from starlette_realtime.transports.websocket import WebSocketConnection, WebSocketDoor
from starlette_realtime.wires import native as wires
from tests.core.helpers import Client, LateBroker, house
from tests.support.server import FAST, LiveServer
from tests.support.wsclient import NativeClient
from tests.transports.helpers import PATH, make_app, make_realtime, token, until

pytestmark = pytest.mark.anyio


def quiet(namespace: Namespace) -> None:
    namespace.room("{name}", presence="none")


async def test_a_publication_is_encoded_once_per_wire_and_written_once_per_member() -> None:
    async with house(quiet) as running:
        people = [await running.enter() for _ in range(50)]
        others = [await running.enter(wire=wires.TEXT[0]) for _ in range(50)]
        for client in people + others:
            await client.ask("join", "r")
        counted = running.hub
        encoded, writes, delivered = counted.encoded, counted.writes, counted.delivered
        for client in people + others:
            client.socket.writes = 0
        await running.publish("r", data={"n": 1})
        await running.settle()
        assert counted.encoded - encoded == 2
        assert counted.delivered - delivered == 100
        assert counted.writes - writes == 100
        assert {client.socket.writes for client in people + others} == {1}
        assert len({id(client.socket.chunks[-1]) for client in people}) == 1


async def test_what_happens_in_one_turn_is_one_write() -> None:
    async with house(quiet) as running:
        people = [await running.enter() for _ in range(20)]
        for client in people:
            for room in ("a", "b"):
                await client.ask("join", room)
            client.socket.writes = 0
        # Three publications in two rooms, an answer to each, and nothing waits in between.
        for client in people[:3]:
            await client.send("broadcast", "a", 1, id=1)
            await client.send("broadcast", "b", 1, id=2)
        await running.settle()
        assert {client.socket.writes for client in people} == {1}
        assert len(people[0].of("broadcast")) == 6
        assert len(people[0].of("ack")) >= 2


@pytest.mark.parametrize("since", [True, False], ids=["recover", "plain"])
async def test_those_who_join_at_once_share_one_read(since: bool) -> None:
    brokers: list[LateBroker] = []

    def late(memory: MemoryBroker) -> LateBroker:
        brokers.append(LateBroker(memory, random.Random(1)))
        return brokers[0]

    async with house(quiet, broker=late) as running:
        first = await running.enter("first")
        await first.ask("join", "r")
        await until_true(lambda: first.of("joined"))
        position = Position(**first.of("joined")[0]["position"])
        for number in range(10):
            await running.publish("r", data=number)
        people = [await running.enter(f"u{number}") for number in range(200)]
        reads, encoded, framed = brokers[0].reads, [], 0
        wire = wires.TEXT[2]
        encode, frame = wire.events, wire.frames

        def counted(ns: str, room: str | None, publications: Iterable[Publication]) -> list[bytes]:
            found = list(publications)
            encoded.extend(found)
            return encode(ns, room, found)

        def frames(messages: Sequence[bytes]) -> Sequence[Chunk]:
            nonlocal framed
            framed += len(messages)
            return frame(messages)

        wire.events = counted
        wire.frames = frames  # type: ignore[method-assign]
        try:
            async with anyio.create_task_group() as tasks:
                for number, client in enumerate(people):
                    # Positions differ, as those of clients that were cut off do.
                    at = Position(position.epoch, position.offset + number % 5) if since else None
                    tasks.start_soon(join, client, at)
            await running.settle()
        finally:
            del wire.events, wire.frames
        assert brokers[0].reads - reads == 1
        assert len(encoded) <= 10
        # Beside what tells each that it has joined: those who missed the same get the same bytes.
        assert framed - len(people) <= (10 + 9 + 8 + 7 + 6 if since else 0)
        for number, client in enumerate(people):
            (joined,) = client.of("joined")
            if since:
                assert joined["recovered"] is True
                assert [m["data"] for m in client.of("n")] == list(range(number % 5, 10))
            else:
                assert [item["data"] for item in joined["recentMessages"]] == list(range(10))


async def join(client: Client, since: Position | None) -> None:
    await client.send("join", "r", since=since)


async def until_true(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("mount", [True, False], ids=["mount", "middleware"])
@pytest.mark.parametrize(
    ("ws", "each"),
    [("websockets-sansio", 0), (FAST, 0), ("wsproto", 1)],
    ids=["found", "fast", "wsproto"],
)
async def test_tasks_per_connection(ws: str, each: int, mount: bool) -> None:
    """Beside the server's own task none, where there is a writer; one elsewhere."""
    loops: list[asyncio.AbstractEventLoop] = []
    realtime = make_realtime()
    realtime.room("{name}")

    @realtime.on("connection")
    def found(happening: Any) -> None:
        loops[:] = [asyncio.get_running_loop()]

    def tasks() -> int:
        counted: list[int] = []
        done = threading.Event()

        def count() -> None:
            counted.append(len(asyncio.all_tasks(loops[0])))
            done.set()

        loops[0].call_soon_threadsafe(count)
        assert done.wait(5)
        return counted[0]

    with LiveServer(make_app(realtime, mount=mount), ws=ws) as server:
        async with AsyncExitStack() as stack:

            async def enter() -> NativeClient:
                client = await stack.enter_async_context(
                    NativeClient.open(server.ws(PATH), token=token("ann"))
                )
                await client.request("join", "r")
                return client

            first = await enter()
            before = await anyio.to_thread.run_sync(tasks)
            people = [await enter() for _ in range(10)]
            assert await anyio.to_thread.run_sync(tasks) - before == 10 * (1 + each)
            # Nor does it take any to publish.
            for _ in range(5):
                await first.request("broadcast", "r", 1)
            for client in people:
                await client.expect("broadcast")
            assert await anyio.to_thread.run_sync(tasks) - before == 10 * (1 + each)
        await until(lambda: tasks() <= before)


async def test_a_storm_of_arrivals_is_told_together() -> None:
    """Everyone hears of everyone, but not in a message of its own for each."""

    def full(namespace: Namespace) -> None:
        namespace.room("{name}", presence="full")

    async with house(full) as running:
        people = [await running.enter(f"user-{number}") for number in range(200)]
        watcher = people[0]
        await watcher.ask("join", "r")
        watcher.socket.writes = 0
        watcher.take()
        async with anyio.create_task_group() as tasks:
            for client in people[1:]:
                tasks.start_soon(client.send, "join", "r")
        await running.settle()
        assert len(watcher.of("user-joined")) == 199
        assert watcher.socket.writes < 20


async def test_those_who_arrive_one_by_one_are_told_together_in_a_crowd() -> None:
    """A storm takes time: what counts is how long it is, not how many come."""

    def full(namespace: Namespace) -> None:
        namespace.room("{name}", presence="full")

    async with house(full) as running:
        people = [await running.enter(f"user-{number}") for number in range(200)]
        crowd, comers = people[:60], people[60:]
        for client in crowd:
            await client.ask("join", "r")
        # The first who comes after that is told at once, if it was quiet.
        channel = running.hub.channels[running.engine.room_channel("r")]
        await until_true(lambda: channel.held is None)
        channel.calm = 0.0
        watcher = crowd[0]
        await running.settle()
        watcher.take()
        await comers[0].ask("join", "r")
        assert len(watcher.of("user-joined")) == 1
        watcher.socket.writes = 0
        began = anyio.current_time()
        for client in comers[1:]:
            await client.ask("join", "r")
        # A message does not overtake them.
        await running.publish("r", data="after them")
        await running.settle()
        took = anyio.current_time() - began
        assert watcher.socket.writes <= 2 + took / hub.STORM
        for client in (watcher, comers[1]):
            seen = [
                m["data"]["userId"] if m["type"] == "user-joined" else m["data"]
                for m in client.of("user-joined", "n")
            ]
            wanted = [
                c.session.user_id
                for c in comers[comers.index(client) + 1 if client in comers else 0 :]
            ]
            assert seen == [*wanted, "after them"]
            offsets = [m["offset"] for m in client.of("user-joined", "n")]
            assert offsets == sorted(set(offsets))
        watcher.take()
        # Departures as well; without a word after them they come by themselves.
        for client in comers:
            await client.vanish(1000)
        await until_true(lambda: len(watcher.of("user-left")) == len(comers))
        assert [m["data"]["userId"] for m in watcher.of("user-left")] == [
            client.session.user_id for client in comers
        ]


async def test_a_storm_of_arrivals_in_a_counted_room_tells_nobody() -> None:
    def counted(namespace: Namespace) -> None:
        namespace.room("{name}", presence="counts")

    async with house(counted) as running:
        people = [await running.enter(f"user-{number}") for number in range(50)]
        watcher = people[0]
        await watcher.ask("join", "r")
        watcher.take()
        for client in people[1:-1]:
            await client.ask("join", "r")
        joined = await people[-1].ask("join", "r")
        assert (joined["members"], joined["count"]) == ([], 50)
        assert watcher.take() == []


async def _calls(members: int, others: int) -> int:
    """How many functions are called for one publication in a room of `members`, beside `others`."""
    async with house(quiet, max_rooms=others) as running:
        elsewhere = await running.enter()
        for number in range(others):
            await elsewhere.session.join(f"other-{number}")
        for _ in range(members):
            client = await running.enter()
            await client.ask("join", "r")
            client.session.outbox.direct = lambda chunk: True
        counted = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        await running.publish("r", data="warm")
        await running.settle()
        sys.setprofile(count)
        try:
            await running.publish("r", data="x")
            await running.settle()
        finally:
            sys.setprofile(None)
        return counted


async def test_a_delivery_is_one_call_however_much_else_there_is() -> None:
    few, many = await _calls(50, 0), await _calls(150, 0)
    assert (many - few) / 100 < 1.2
    # Nor does it matter how many rooms there are, and sessions in them.
    assert abs(await _calls(50, 1000) - few) < 40


class _Way:
    """A direct way to nowhere."""

    descriptor = -1
    window_bits = 0

    def __init__(self) -> None:
        self.context = copy_context()

    def write(self, data: Any) -> bool:
        return True

    async def send(self, message: Any) -> None: ...
    def attach(self, outbox: Any, stop: Any) -> None: ...
    def intercept(self, receive: Any, take: Any) -> Context:
        self.take = take
        return self.context

    def abort(self) -> None: ...
    def let_go(self, seconds: float) -> None: ...


async def _steps(count: int) -> int:
    """How many functions the package calls, its own and C's, for `count` broadcasts of a client
    that arrive in one turn: from the door to the write."""
    package = str(Path(starlette_realtime.__file__).parent)
    counted = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call") and frame.f_code.co_filename.startswith(package)

    async with house(quiet) as running:
        listener = await running.enter()
        await listener.ask("join", "r")
        arrivals: deque[Any] = deque()

        async def receive() -> Any:
            while not arrivals:
                await checkpoint()
            return arrivals.popleft()

        door = WebSocketDoor(running.runtime, {"/": running.engine}, OriginPolicy())
        scope, way = {"type": "websocket"}, _Way()
        connection = WebSocketConnection(door, scope, receive, way.send, way, version=2)
        serving = asyncio.create_task(connection.run(), context=way.context)

        async def say(message: str, times: int = 1) -> None:
            before = len(listener.of("broadcast"))
            # As a server's protocol does, in a callback of the loop.
            asyncio.get_running_loop().call_soon(lambda: rest.extend(way.take([message] * times)))
            await until_true(lambda: len(listener.of("broadcast")) == before + times)
            assert rest == []

        rest: list[Any] = []
        arrivals.append({"type": "websocket.receive", "text": '{"type":"join","room":"r"}'})
        await until_true(lambda: "/" in connection.sessions and not connection.busy)
        await until_true(lambda: connection.sessions["/"].rooms)
        broadcast = '{"type":"broadcast","room":"r","data":"x"}'
        await say(broadcast)
        sys.setprofile(note)
        try:
            await say(broadcast, count)
        finally:
            sys.setprofile(None)
        arrivals.append({"type": "websocket.disconnect", "code": 1000})
        await serving
    return counted


async def test_how_little_is_done_for_a_broadcast() -> None:
    # When a turn's writes are done nothing of this is in a cache any more: each function counts.
    one, many = await _steps(1), await _steps(17)
    assert one <= 111
    assert (many - one) / 16 <= 47
