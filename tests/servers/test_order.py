"""Frames written past the transport, frames that had to wait, and what uvicorn itself sends, on
real sockets whose readers pause: whole, and in the order in which they were given."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from starlette_realtime.core import writing
from starlette_realtime.core.group import FAST_FROM, Group
from starlette_realtime.core.outbox import Outbox
from starlette_realtime.core.writing import WriteAll, Writes
from starlette_realtime.servers.uvicorn import EXTENSION, RealtimeProtocol
from starlette_realtime.wires import native as wires

MEMBERS = FAST_FROM + 1
WIRE = wires.FRAME[0]


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


@dataclass
class End:
    """Both ends of one connection: the server's outbox, and a client that reads when told to."""

    outbox: Outbox
    writer: RealtimeProtocol
    send: Send
    client: ClientProtocol
    socket: socket.socket
    given: list[str] = field(default_factory=list)
    id: str = "end"

    def read(self) -> bool:
        """Take what is there; return whether anything was."""
        try:
            data = self.socket.recv(20_000)
        except BlockingIOError:
            return False
        self.client.receive_data(data)
        return bool(data)


async def connect(outboxes: asyncio.Queue[Any], listening: socket.socket) -> End:
    raw = socket.socket(listening.family)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, listening.getsockname())
    client = ClientProtocol(parse_uri("ws://localhost/"))
    client.send_request(client.connect())
    await loop.sock_sendall(raw, b"".join(client.data_to_send()))
    outbox, writer, send = await outboxes.get()
    end = End(outbox, writer, send, client, raw)
    while client.state.name != "OPEN":
        end.read()
        await asyncio.sleep(0)
    client.events_received()
    return end


def tell(group: Group, ends: list[End], text: str, write_all: WriteAll) -> None:
    """As the hub does it."""
    (chunk,) = WIRE.frames([text.encode()])
    for outbox in group.write(chunk, set(), write_all):
        outbox.push(chunk)
    for end in ends:
        end.given.append(text)


async def play(
    steps: list[tuple[str, int, int]], write_all: WriteAll, listening: socket.socket
) -> None:
    outboxes: asyncio.Queue[Any] = asyncio.Queue()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        writer = scope["extensions"][EXTENSION]
        outbox = Outbox(
            WIRE,
            limit=1 << 30,
            overflow=lambda: None,
            write=writer.write,
            descriptor=writer.descriptor,
        )
        assert writer.descriptor >= 0
        writer.attach(outbox, lambda: None)
        outboxes.put_nowait((outbox, writer, send))
        while (await receive())["type"] != "websocket.disconnect":
            pass

    config = Config(app, ws_per_message_deflate=False, log_config=None)
    config.load()
    state = ServerState()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop = asyncio.get_running_loop()
    create = loop.create_unix_server if listening.family == socket.AF_UNIX else loop.create_server
    server = await create(lambda: RealtimeProtocol(config, state, {}), sock=listening)
    group, ends = Group(), []
    try:
        for _ in range(MEMBERS):
            end = await connect(outboxes, listening)
            ends.append(end)
            group.add(end.outbox, end)
        for number, (verb, who, size) in enumerate(steps):
            end = ends[who]
            text = f"{number} " + "x" * size
            if verb == "all":
                tell(group, ends, text, write_all)
            elif verb == "one":
                (chunk,) = WIRE.frames([text.encode()])
                end.outbox.push(chunk)
                end.given.append(text)
            elif verb == "ping":
                end.writer.ping()
            elif verb == "asked":
                end.client.send_ping(b"x" * 125)
                end.socket.send(b"".join(end.client.data_to_send()))
            elif verb == "read":
                end.read()
            else:
                await asyncio.sleep(0)
        for end in ends:
            async with asyncio.timeout(10):
                while end.read() or end.outbox.queue or not end.writer._writable:
                    await asyncio.sleep(0)
            closing: Message = {"type": "websocket.close", "code": 4410, "reason": "over"}
            await end.send(closing)
            async with asyncio.timeout(10):
                while end.client.close_rcvd is None:
                    end.read()
                    await asyncio.sleep(0)
            frames = [frame for frame in end.client.events_received() if isinstance(frame, Frame)]
            got = [bytes(one.data).decode() for one in frames if one.opcode is Opcode.TEXT]
            assert got == end.given
            assert end.client.parser_exc is None
            assert end.client.close_rcvd.code == 4410
    finally:
        server.close()
        for end in ends:
            end.writer.abort()
            end.socket.close()
        while state.connections:
            await asyncio.sleep(0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["all", "all", "one", "ping", "asked", "read", "turn"]),
        st.integers(0, MEMBERS - 1),
        st.sampled_from([0, 10, 200, 20_000]),
    ),
    max_size=40,
)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("way", ["one by one", "io_uring, where the system has it"])
@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_frames_and_ordinary_sends_keep_their_order(
    way: str, unix: bool, loop: str, steps: list[tuple[str, int, int]]
) -> None:
    writes = Writes(io_uring=way != "one by one")
    try:
        with (
            mock.patch.object(writing, "WORTHWHILE", 1),
            tempfile.TemporaryDirectory() as folder,
            socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as listening,
            asyncio.Runner(loop_factory=partial(new_loop, loop)) as runner,
        ):
            listening.bind(f"{folder}/socket" if unix else ("127.0.0.1", 0))
            runner.run(play(steps, writes.write_all, listening))
    finally:
        writes.close()
