"""The direct writer: found where it is safe, with frames in order, compression or none."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ClassVar

import anyio
import pytest
import websockets
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from starlette_realtime import Happening, Member, RealtimeMiddleware, Session
from starlette_realtime.servers.uvicorn import (
    EXTENSION,
    READ_AHEAD,
    RealtimeProtocol,
    SansIOWriter,
    State,
)
from tests.servers.helpers import Counting, handshake, watched
from tests.support.ports import Certificate
from tests.support.server import FAST, LiveServer
from tests.support.wsclient import NativeClient
from tests.transports.helpers import PATH, make_app, make_realtime, token, until

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]
SANS_IO = ["websockets-sansio", FAST]


def loaded(app: Any, **options: Any) -> Config:
    config = Config(app, log_config=None, **options)
    config.load()
    return config


@pytest.mark.parametrize("mount", [False, True], ids=["middleware", "mount"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("ws", SANS_IO)
async def test_a_writer_is_found(serve: Serve, ws: str, loop: str, mount: bool) -> None:
    realtime, direct = watched()
    server = serve(make_app(realtime, mount=mount), ws=ws, loop=loop)
    async with NativeClient.open(server.ws(PATH)) as client:
        await client.request("join", "r")
        await client.request("broadcast", "r", 1)
        assert direct == [True]


@pytest.mark.parametrize("ws", ["wsproto", "websockets"])
async def test_elsewhere_asgi_is_enough(serve: Serve, ws: str) -> None:
    realtime, direct = watched()
    async with NativeClient.open(serve(make_app(realtime), ws=ws).ws(PATH)) as client:
        await client.request("join", "r")
        await client.request("broadcast", "r", 1)
        assert direct == [False]


@pytest.mark.parametrize("ws", SANS_IO)
async def test_a_middleware_that_wraps_send_is_not_passed_by(serve: Serve, ws: str) -> None:
    realtime, direct = watched()
    app = make_app(realtime)
    app.add_middleware(Counting)
    Counting.sent.clear()
    async with NativeClient.open(serve(app, ws=ws).ws(PATH)) as client:
        await client.request("join", "r")
    assert direct == [False]
    assert Counting.sent.count("websocket.send") >= 2


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("secure", [False, True])
async def test_where_sockets_may_be_written_to(
    serve: Serve, certificate: Certificate, secure: bool, loop: str
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        found = scope["extensions"][EXTENSION].descriptor >= 0
        await send({"type": "websocket.send", "text": str(found)})
        await receive()

    options: dict[str, Any] = {"certificate": certificate} if secure else {}
    server = serve(app, ws=FAST, loop=loop, lifespan="off", **options)
    tls: Any = {"ssl": certificate.client_context()} if secure else {}
    async with websockets.connect(server.ws("/"), **tls) as client:
        assert await client.recv() == str(not secure)


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("subprotocols", [["realtime.v2"], []], ids=["several", "single"])
@pytest.mark.parametrize("ws", SANS_IO)
async def test_frames_of_every_size_come_whole_and_in_order(
    serve: Serve, ws: str, subprotocols: list[str], compression: str | None
) -> None:
    realtime, _ = watched()
    server = serve(make_app(realtime), ws=ws)
    options: dict[str, Any] = {"compression": compression, "subprotocols": subprotocols}
    async with (
        NativeClient.open(server.ws(PATH), token=token("ann"), **options) as ann,
        NativeClient.open(server.ws(PATH), token=token("bob"), **options) as bob,
    ):
        await ann.request("join", "r")
        await bob.request("join", "r")
        # Around the boundaries of RFC 6455's three forms of a length, and of our frames.
        sizes = [0, 1, 10, 40, 60, 80, 125, 126, 127, 65_000, 65_535, 65_536, 600_000, 3]
        for size in sizes:
            await ann.request("broadcast", "r", "x" * size)
        for client in (ann, bob):
            got = [len((await client.expect("broadcast"))["data"]) for _ in sizes]
            assert got == sizes


@pytest.mark.parametrize("ws", SANS_IO)
async def test_under_tls(serve: Serve, ws: str, certificate: Certificate) -> None:
    realtime, direct = watched()
    server = serve(make_app(realtime), ws=ws, certificate=certificate)
    tls = certificate.client_context()
    async with NativeClient.open(server.ws(PATH), tls=tls) as client:
        await client.request("join", "r")
        for size in (1, 100_000, 3):
            await client.request("broadcast", "r", "x" * size)
            assert len((await client.expect("broadcast"))["data"]) == size
        assert direct == [True]
    # uvicorn's stop fails over a connection that is closing at that moment.
    await until(lambda: not server._server.server_state.connections)


@pytest.mark.parametrize("ws", SANS_IO)
async def test_a_reader_that_pauses_gets_everything_in_order(serve: Serve, ws: str) -> None:
    realtime = make_realtime(max_queued=100_000_000)
    realtime.room("{name}")
    server = serve(make_app(realtime), ws=ws)
    async with (
        NativeClient.open(server.ws(PATH), token=token("ann")) as ann,
        NativeClient.open(server.ws(PATH), token=token("bob"), max_queue=1) as bob,
    ):
        await ann.request("join", "r")
        await bob.request("join", "r")
        bob.websocket.transport.pause_reading()
        for number in range(40):
            await ann.request(
                "broadcast", "r", f"{number} " + "x" * (500_000 if number < 20 else 5)
            )
        bob.websocket.transport.resume_reading()
        for number in range(40):
            data = (await bob.expect("broadcast", timeout=10))["data"]
            assert data.split()[0] == str(number)
        await bob.settle()


async def test_stopping_while_a_client_is_closing(serve: Serve, certificate: Certificate) -> None:
    """uvicorn's own class would end there and then, without the app's lifespan."""
    realtime, _ = watched()

    @realtime.event("flood")
    async def flood(session: Session) -> None:
        await session.send("drop", "x" * 30_000_000)

    server = serve(make_app(realtime), ws=FAST, certificate=certificate)
    tls = certificate.client_context()
    async with (
        NativeClient.open(server.ws(PATH), token=token("ann"), tls=tls, close_timeout=0.1) as ann,
        NativeClient.open(server.ws(PATH), token=token("bob"), tls=tls) as bob,
    ):
        await ann.request("join", "r")
        await bob.request("join", "r")
        # Full of what nobody reads, the socket stays open after the client's close frame.
        ann.websocket.transport.pause_reading()
        await ann.send({"type": "flood"})
        ann.websocket.protocol.send_close(4000)
        ann.websocket.transport.write(b"".join(ann.websocket.protocol.data_to_send()))
        connections: Any = server._server.server_state.connections
        await until(lambda: [c for c in list(connections) if c._state is State.OVER])
        await anyio.to_thread.run_sync(server.stop)
        assert (await bob.closed())[0] == 1012
    assert not realtime.running


async def test_two_instances_in_one_app_have_writers_of_their_own(serve: Serve) -> None:
    one, direct_one = watched()
    two, direct_two = watched()
    app = Starlette(routes=[Mount("/two", two)], lifespan=two.lifespan)
    app.add_middleware(RealtimeMiddleware, realtime=one, path="/one")
    server = serve(app, ws=FAST)
    async with (
        NativeClient.open(server.ws("/one/ws")) as first,
        NativeClient.open(server.ws("/two/ws")) as second,
    ):
        for client in (first, second):
            await client.request("join", "r")
            await client.request("broadcast", "r", 1)
        assert (direct_one, direct_two) == ([True], [True])


class Attached:
    def __init__(self) -> None:
        self.told: list[str] = []

    def stall(self) -> None:
        self.told.append("stall")

    def resume(self) -> None:
        self.told.append("resume")

    def close(self) -> None:
        self.told.append("close")


async def test_an_outbox_learns_what_was_told_before_it_was_there() -> None:
    # Its descriptor may be another client's by then.
    ends = socket.socketpair()
    transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(
        lambda: RealtimeProtocol(loaded(Starlette()), ServerState(), {}), ends[0]
    )
    paused, ended = Attached(), Attached()
    protocol.pause_writing()
    protocol.attach(paused, lambda: None)
    assert paused.told == ["stall"]
    transport.abort()
    await until(lambda: "close" in paused.told)
    protocol.attach(ended, lambda: None)
    assert ended.told == ["close"]
    ends[1].close()


class Before(asyncio.Protocol):
    """Has a response on its way that nobody reads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.told = False

    def connection_made(self, transport: Any) -> None:
        transport.write(b"x" * self.size)
        assert transport.get_write_buffer_size()

    def pause_writing(self) -> None:
        self.told = True


@contextlib.asynccontextmanager
async def with_a_response_on_its_way(size: int) -> Any:
    """Yields a transport, its other end, and its protocol: told to wait, if `size` is large."""
    here, there = socket.socketpair()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    there.setblocking(False)
    transport, before = await asyncio.get_running_loop().connect_accepted_socket(
        lambda: Before(size), here
    )
    assert before.told is (size > 100_000)
    with there:
        yield transport, there, before
        transport.abort()
        await asyncio.sleep(0)


async def read(there: socket.socket, size: int) -> None:
    while size:
        with contextlib.suppress(BlockingIOError):
            size -= len(there.recv(size))
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [40_000, 2_000_000], ids=["not told yet", "told"])
async def test_a_response_that_is_still_on_its_way_is_waited_for(size: int) -> None:
    """Its protocol was told to wait, or was not, and is not the one that is told to go on."""
    async with with_a_response_on_its_way(size) as (transport, there, before):
        told_before = before.told
        protocol = RealtimeProtocol(loaded(Starlette()), ServerState(), {})
        protocol.connection_made(transport)
        attached = Attached()
        protocol.attach(attached, lambda: None)
        assert attached.told == ["stall"]
        assert before.told is told_before
        await read(there, size)
        await until(lambda: attached.told == ["stall", "resume"])


@pytest.mark.parametrize("size", [40_000, 2_000_000], ids=["not told yet", "told"])
async def test_so_does_the_writer_behind_uvicorns_own_class(size: int) -> None:
    async with with_a_response_on_its_way(size) as (transport, there, _):
        protocol = WebSocketsSansIOProtocol(loaded(Starlette()), ServerState(), {})
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        protocol.handshake_complete = True
        writer, attached = SansIOWriter(protocol), Attached()
        writer.attach(attached, lambda: None)
        assert not writer.write(b"y" * 100)
        await asyncio.sleep(0)
        assert attached.told == []
        await read(there, size + 100)
        await until(lambda: attached.told == ["resume"])


async def test_the_answer_to_a_handshake_waits_for_nothing() -> None:
    accepted = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        accepted.set()
        await send({"type": "websocket.send", "text": "hello"})

    async with with_a_response_on_its_way(2_000_000) as (transport, there, _):
        protocol = RealtimeProtocol(loaded(app), ServerState(), {})
        protocol.connection_made(transport)
        protocol.data_received(handshake())
        async with asyncio.timeout(5):
            await accepted.wait()
        assert protocol._state is State.OPEN
        await read(there, 2_000_000)
        answer = b""
        async with asyncio.timeout(5):
            while b"hello" not in answer:
                with contextlib.suppress(BlockingIOError):
                    answer += there.recv(1000)
                await asyncio.sleep(0)
        assert answer.startswith(b"HTTP/1.1 101 ")


class Full(asyncio.Transport):
    """Takes what it is given, and is full again."""

    def __init__(self, protocol: RealtimeProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.taken = b""
        self.closing = False

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        assert protocol is self.protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: Any) -> None:
        self.taken += data
        self.protocol.pause_writing()


async def test_what_fills_the_socket_as_it_resumes_is_waited_for() -> None:
    protocol, attached = RealtimeProtocol(loaded(Starlette()), ServerState(), {}), Attached()
    transport = Full(protocol)
    protocol.connection_made(transport)
    protocol._state = State.OPEN
    protocol.attach(attached, lambda: None)
    protocol.pause_writing()
    protocol.data_received(b"\x89\x80\0\0\0\0")
    protocol.resume_writing()
    assert transport.taken == b"\x8a\x00"
    assert attached.told == ["stall", "stall"]
    protocol.resume_writing()
    assert attached.told == ["stall", "stall", "resume"]
    # uvloop still writes what it has when it closes, and tells of it.
    protocol.pause_writing()
    protocol.data_received(b"\x89\x80\0\0\0\0")
    transport.closing = True
    protocol.resume_writing()
    assert attached.told == ["stall", "stall", "resume", "stall"]
    assert transport.taken == b"\x8a\x00"
    late = Attached()
    protocol.attach(late, lambda: None)
    assert late.told == ["close"]


async def test_of_a_handshake_nothing_waits_for_the_garbage_collector() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    config, state = loaded(app, http="httptools", ws=RealtimeProtocol), ServerState()
    made: list[weakref.ref[Any]] = []

    def make() -> asyncio.Protocol:
        protocol = HttpToolsProtocol(config=config, server_state=state, app_state={})
        made.append(weakref.ref(protocol))
        return protocol

    listening = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    gc.disable()
    try:
        async with NativeClient.open(f"ws://127.0.0.1:{port}/", wait_connected=False):
            assert [protocol() for protocol in made] == [None]
    finally:
        gc.enable()
        listening.close()
        await until(lambda: not state.tasks and not state.connections)


async def test_nor_does_anything_of_a_connection_that_is_over() -> None:
    ends = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
        lambda: RealtimeProtocol(loaded(Starlette()), ServerState(), {}), ends[0]
    )
    left = weakref.ref(transport)
    del transport, _
    gc.disable()
    try:
        ends[1].close()
        await until(lambda: left() is None)
    finally:
        gc.enable()


async def test_what_arrives_is_taken_in_its_order_by_one_who_may_give_up() -> None:
    protocol = RealtimeProtocol(loaded(Starlette()), ServerState(), {})

    waiting = asyncio.create_task(protocol.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for number in range(3):
        protocol._put("x" * number)
    assert [len((await protocol.receive())["text"]) for _ in range(2)] == [0, 1]
    waiting = asyncio.create_task(protocol.receive())
    assert (await waiting)["text"] == "xx"
    assert protocol._waiting == 0
    waiting = asyncio.create_task(protocol.receive())
    await asyncio.sleep(0)
    protocol._put(b"later")
    assert (await waiting)["bytes"] == b"later"


async def test_a_server_reads_only_so_far_ahead_of_a_busy_handler(serve: Serve) -> None:
    realtime = make_realtime()
    room = realtime.room("{name}")
    go_on = anyio.Event()
    taken = 0
    protocols: list[RealtimeProtocol] = []

    @room.on("slow")
    async def slow(data: str, member: Member) -> None:
        nonlocal taken
        taken += 1
        protocols.append(member.session.connection.scope["extensions"][EXTENSION])
        while not go_on.is_set():
            await asyncio.sleep(0.01)

    server = serve(make_app(realtime), ws=FAST)
    async with NativeClient.open(server.ws(PATH)) as client:
        await client.request("join", "r")
        message = {"type": "slow", "room": "r", "data": "x" * 20_000}
        sending = asyncio.create_task(client.send(*[message] * 1000))
        await until(lambda: bool(protocols) and protocols[0]._read_paused)
        # One read of the socket is at most 256 KB.
        assert protocols[0]._waiting < READ_AHEAD + 300_000
        go_on.set()
        await sending
        await client.settle(timeout=30)
        assert taken == 1000


async def test_pings_between_messages_do_not_make_a_read_more_than_one(serve: Serve) -> None:
    """Only so much of a read is handled before others get their turn."""
    realtime = make_realtime()
    protocols: list[RealtimeProtocol] = []

    @realtime.event("here")
    async def here(session: Session) -> None:
        protocols.append(session.connection.scope["extensions"][EXTENSION])

    async with NativeClient.open(serve(make_app(realtime), ws=FAST).ws(PATH)) as client:
        await client.request("here")
        reads: list[int] = []
        take = protocols[0]._take

        def counted(messages: Any) -> Any:
            reads.append(len(messages))
            return take(messages)

        protocols[0]._take = counted
        text, ping = b'{"type":"pong"}', b"?"
        frames = [Frame(Opcode.TEXT, text), Frame(Opcode.PING, ping)] * 50
        client.websocket.transport.write(b"".join(f.serialize(mask=True) for f in frames))
        await until(lambda: sum(reads) == 50)
        assert len(reads) == 1


async def test_there_is_one_heartbeat(serve: Serve) -> None:
    # uvicorn's own goes on for the app's other WebSockets.
    realtime, _ = watched()
    protocols: list[RealtimeProtocol] = []

    @realtime.on("connection")
    def connected(happening: Happening) -> None:
        scope = happening.session.connection.scope
        protocols.append(scope["extensions"][EXTENSION])

    async with NativeClient.open(serve(make_app(realtime), ws=FAST).ws(PATH)) as client:
        await client.settle()
        assert protocols[0]._timer is None


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What connections have to be woken for."""
    put, arrived = RealtimeProtocol._put, []

    def watched_put(self: RealtimeProtocol, arrival: Any) -> None:
        arrived.append(arrival)
        put(self, arrival)

    monkeypatch.setattr(RealtimeProtocol, "_put", watched_put)
    return arrived


async def test_the_answer_to_a_ping_wakes_nobody(serve: Serve, received: list[Any]) -> None:
    realtime = make_realtime(ping_interval=0.1, ping_timeout=20.0)
    async with NativeClient.open(serve(make_app(realtime), ws=FAST).ws(PATH)) as client:
        await client.read_until(lambda: client.pings >= 3, "three pings")
        await client.settle()
        assert [arrival["type"] for arrival in received] == ["websocket.connect"]


async def test_nor_does_a_message_whose_handler_does_not_wait(
    serve: Serve, received: list[Any]
) -> None:
    realtime = make_realtime()
    room = realtime.room("{name}")

    @room.on("double")
    async def double(data: int) -> int:
        return 2 * data

    @room.on("wait")
    async def wait(data: float) -> str:
        await anyio.sleep(data)
        return "waited"

    async with NativeClient.open(serve(make_app(realtime), ws=FAST).ws(PATH)) as client:
        await client.request("join", "r")
        before = len(received)
        assert await client.request("double", "r", 4) == 8
        assert len(received) == before
        assert await client.request("wait", "r", 0) == "waited"
        assert len(received) == before + 1
        # More at once than one connection may have before others have their turn.
        broadcast: dict[str, Any] = {"type": "broadcast", "room": "r"}
        await client.send_together(*({**broadcast, "data": number} for number in range(100)))
        assert [(await client.expect("broadcast"))["data"] for _ in range(100)] == [*range(100)]


async def test_what_arrives_while_a_handler_waits_is_handled_after_it(serve: Serve) -> None:
    realtime = make_realtime()
    room = realtime.room("{name}")
    handled: list[str] = []
    holding: list[anyio.Event] = []

    @room.on("hold")
    async def hold(data: str) -> None:
        holding.append(anyio.Event())
        await holding[-1].wait()
        handled.append(data)

    @room.on("go")
    async def go(data: str) -> None:
        handled.append(data)

    @realtime.event("release")
    async def release() -> None:
        holding[-1].set()

    server = serve(make_app(realtime), ws=FAST)
    async with (
        NativeClient.open(server.ws(PATH)) as ann,
        NativeClient.open(server.ws(PATH)) as bob,
    ):
        await ann.request("join", "r")
        for number in range(2):
            await ann.send({"type": "hold", "room": "r", "data": f"held {number}"})
            await until(lambda: len(holding) == number + 1)  # noqa: B023
            await ann.send({"type": "go", "room": "r", "data": f"after {number}"})
            # As a rule it has arrived when another connection is answered.
            await bob.request("release")
            await until(lambda: len(handled) == 2 * (number + 1))  # noqa: B023
        assert handled == ["held 0", "after 0", "held 1", "after 1"]


async def test_a_timeout_that_ends_before_the_connection_is_woken(serve: Serve) -> None:
    # Cancelled then is what the connection waits for, and not the handler's own waiting.
    realtime = make_realtime()
    room = realtime.room("{name}")

    @room.on("late")
    async def late() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(30)
        except TimeoutError:
            return "late"
        return "not cancelled"

    @room.on("ask")
    async def ask(member: Member) -> Any:
        await late()
        return await member.request("question", timeout=10)

    async with NativeClient.open(serve(make_app(realtime), ws=FAST).ws(PATH)) as client:
        await client.request("join", "r")
        for _ in range(2):
            assert await client.request("late", "r") == "late"
        await client.send({"type": "ask", "room": "r", "id": 1})
        question = await client.expect("question")
        await client.send({"type": "ack", "id": question["id"], "data": "an answer"})
        assert (await client.expect("ack"))["data"] == "an answer"
        assert await client.settle() == []


async def test_handlers_wait_for_the_same_future(serve: Serve) -> None:
    # All three begin where their messages arrive, before a task has adopted what the first awaits.
    realtime = make_realtime()
    loaded: list[asyncio.Future[str]] = []

    @realtime.event("load")
    async def load() -> str:
        if not loaded:
            loop = asyncio.get_running_loop()
            loaded.append(loop.create_future())
            loop.call_later(0.05, loaded[0].set_result, "value")
        return await loaded[0]

    busy = threading.Event()

    @realtime.event("block")
    async def block() -> None:
        busy.set()
        time.sleep(0.3)

    server = serve(make_app(realtime), ws=FAST)
    async with contextlib.AsyncExitStack() as stack:
        blocker, *clients = [
            await stack.enter_async_context(NativeClient.open(server.ws(PATH))) for _ in range(4)
        ]
        # What arrives while the loop is blocked is read in one turn of it.
        await blocker.send({"type": "block"})
        await anyio.to_thread.run_sync(busy.wait)
        for client in clients:
            await client.send({"type": "load", "id": 1})
        for client in clients:
            assert (await client.expect("ack"))["data"] == "value"


async def test_all_of_a_connections_handlers_run_in_one_context(serve: Serve) -> None:
    realtime = make_realtime()
    seen: ContextVar[int] = ContextVar("seen", default=0)
    last: list[int] = []

    @realtime.event("set")
    async def set_(data: int) -> None:
        seen.set(data)

    @realtime.event("get")
    async def get() -> int:
        return seen.get()

    @realtime.event("wait")
    async def wait() -> None:
        await anyio.sleep(0.01)
        seen.set(seen.get() + 1)

    @realtime.on("disconnection")
    async def gone(happening: Happening) -> None:
        last.append(seen.get())

    async with NativeClient.open(serve(make_app(realtime), ws=FAST).ws(PATH)) as client:
        await client.request("set", data=7)
        assert await client.request("get") == 7
        # Where one has to wait, and behind it; and where one read brings more than its share.
        await client.send({"type": "wait"}, {"type": "get", "id": 1})
        assert (await client.expect("ack"))["data"] == 8
        await client.send(*({"type": "get", "id": number} for number in range(100)))
        assert {(await client.expect("ack"))["data"] for _ in range(100)} == {8}
    await until(lambda: last == [8])


async def test_an_answer_behind_a_handler_that_asks_is_heard(serve: Serve) -> None:
    realtime = make_realtime()
    asked: list[Any] = []

    @realtime.event("begin")
    async def begin(session: Session) -> None:
        async def ask() -> None:
            asked.append(await session.request("beside", timeout=5))

        asyncio.get_running_loop().create_task(ask())

    @realtime.event("ask")
    async def ask(session: Session) -> Any:
        return await session.request("question", timeout=5)

    async with NativeClient.open(serve(make_app(realtime), ws=FAST).ws(PATH)) as client:
        await client.request("begin")
        beside = await client.expect("beside")
        # In one read, as two frames.
        await client.send(
            {"type": "ask", "id": 1}, {"type": "ack", "id": beside["id"], "data": "heard"}
        )
        question = await client.expect("question")
        await until(lambda: asked == ["heard"])
        await client.send({"type": "ack", "id": question["id"], "data": "too"})
        assert (await client.expect("ack"))["data"] == "too"


async def test_what_waits_behind_a_handler_counts_when_it_is_its_turn(serve: Serve) -> None:
    realtime = make_realtime(message_rate=100, message_burst=5)

    @realtime.event("work")
    async def work() -> None:
        await anyio.sleep(0.02)

    @realtime.event("ask")
    async def ask(session: Session) -> None:
        await session.request("question", timeout=5)

    async with NativeClient.open(serve(make_app(realtime), ws=FAST).ws(PATH)) as client:
        works: list[dict[str, Any]] = [{"type": "work", "id": number} for number in range(20)]
        await client.send(*works)
        assert [(await client.recv())["type"] for _ in works] == ["ack"] * 20
        await client.send_together(*works)
        assert [(await client.recv())["type"] for _ in works] == ["ack"] * 20
        await client.send({"type": "ask"}, *works)
        question = await client.expect("question")
        await client.send({"type": "ack", "id": question["id"]})
        assert [(await client.recv())["type"] for _ in works] == ["ack"] * 20


async def test_a_handler_asks_its_client_at_once(serve: Serve) -> None:
    realtime = make_realtime()

    @realtime.event("ask")
    async def ask(session: Session) -> Any:
        return await session.request("question", timeout=10)

    async with NativeClient.open(serve(make_app(realtime), ws=FAST).ws(PATH)) as client:
        for answer in (1, 2):
            await client.send({"type": "ask", "id": answer})
            question = await client.expect("question")
            # In one frame: what is behind the answer waits for the handler.
            await client.send_together(
                {"type": "ack", "id": question["id"], "data": answer}, {"type": "ping"}
            )
            assert (await client.expect("ack"))["data"] == answer
            await client.expect("pong")


class Listening:
    """A middleware that wants to see what arrives, and not what is sent."""

    heard: ClassVar[list[Message]] = []

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def listening() -> Message:
            message = await receive()
            self.heard.append(message)
            return message

        await self.app(scope, listening if scope["type"] == "websocket" else receive, send)


async def test_a_middleware_that_wraps_receive_misses_nothing(serve: Serve) -> None:
    realtime = make_realtime(ping_interval=0.1, ping_timeout=20.0)
    app = make_app(realtime)
    app.add_middleware(Listening)
    Listening.heard.clear()
    async with NativeClient.open(serve(app, ws=FAST).ws(PATH)) as client:
        await client.read_until(lambda: client.pings >= 3, "three pings")
        await client.settle()
    assert [message.get("text") for message in Listening.heard].count('{"type": "pong"}') >= 2


WITHOUT_WEBSOCKETS = """
import asyncio, sys
sys.modules["websockets"] = None
import uvicorn

async def app(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", **{"text": (await receive())["text"]}})
    await send({"type": "websocket.close"})

async def main():
    ws = "starlette_realtime.servers.uvicorn:RealtimeProtocol"
    config = uvicorn.Config(app, port=0, ws=ws, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
               "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13"]
    writer.write("".join(line + chr(13) + chr(10) for line in [*request, ""]).encode())
    while (await reader.readline()).strip():
        pass
    writer.write(bytes.fromhex("818537fa213d7f9f4d5158"))
    print(await reader.readexactly(11))
    writer.close()
    server.should_exit = True
    await serving

asyncio.run(main())
"""


def test_websockets_need_not_be_installed() -> None:
    command = [sys.executable, "-c", WITHOUT_WEBSOCKETS]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout.strip() == repr(b"\x81\x05Hello\x88\x02\x03\xe8"), run.stderr
