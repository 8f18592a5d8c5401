"""The direct writer behind hypercorn's `send`: found where it is safe, with all that is sent in
order, and whoever reads nothing, or has gone, holding nobody."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
import subprocess
import sys
from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from h2.connection import H2Connection
from h2.events import DataReceived, RemoteSettingsChanged, ResponseReceived
from h2.settings import SettingCodes
from hypercorn import protocol
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.protocol import h11, ws_stream
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side
from websockets.uri import parse_uri
from wsproto.connection import ConnectionState

from starlette_realtime import Member, Room
from tests.servers.helpers import Counting, watched
from tests.support.ports import Certificate
from tests.support.threaded import Hypercorn, running
from tests.support.wsclient import NativeClient
from tests.transports.helpers import PATH, make_app, token, until

pytestmark = pytest.mark.anyio


async def chat(server: Any, **options: Any) -> None:
    async with NativeClient.open(server.ws(PATH), **options) as client:
        await client.request("join", "r")
        for size in (1, 100_000, 3):
            await client.request("broadcast", "r", "x" * size)
            assert len((await client.expect("broadcast"))["data"]) == size


@pytest.mark.parametrize("mount", [False, True], ids=["middleware", "mount"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_writer_is_found(loop: str, mount: bool) -> None:
    realtime, direct = watched()
    with running(Hypercorn(make_app(realtime, mount=mount), loop)) as server:
        await chat(server)
    assert direct == [True]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_under_tls(loop: str, certificate: Certificate) -> None:
    realtime, direct = watched()
    with running(Hypercorn(make_app(realtime), loop, certificate=certificate)) as server:
        await chat(server, tls=certificate.client_context())
    assert direct == [True]


async def test_on_trio_asgi_is_enough() -> None:
    realtime, direct = watched()
    with running(Hypercorn(make_app(realtime), "trio")) as server:
        await chat(server)
    assert direct == [False]


async def test_a_middleware_that_wraps_send_is_not_passed_by() -> None:
    realtime, direct = watched()
    app = make_app(realtime)
    app.add_middleware(Counting)
    Counting.sent.clear()
    with running(Hypercorn(app)) as server:
        await chat(server)
    assert direct == [False]
    assert Counting.sent.count("websocket.send") >= 5


async def test_over_http_2_frames_stay_in_the_frames_of_http_2() -> None:
    realtime, direct = watched()
    with running(Hypercorn(make_app(realtime))) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        http = H2Connection()
        http.initiate_connection()
        messages = Protocol(Side.CLIENT)
        said, heard = json.dumps({"type": "join", "id": 1, "room": "r"}), ""
        async with asyncio.timeout(10):
            while '"joined"' not in heard:
                writer.write(http.data_to_send())
                data = await reader.read(65536)
                assert data, heard
                for event in http.receive_data(data):
                    if isinstance(event, RemoteSettingsChanged):
                        assert SettingCodes.ENABLE_CONNECT_PROTOCOL in event.changed_settings
                        asked = {
                            ":method": "CONNECT",
                            ":protocol": "websocket",
                            ":scheme": "http",
                            ":authority": f"127.0.0.1:{server.port}",
                            ":path": PATH,
                            "sec-websocket-version": "13",
                        }
                        http.send_headers(1, list(asked.items()))
                    elif isinstance(event, ResponseReceived):
                        messages.send_text(said.encode())
                        http.send_data(1, b"".join(messages.data_to_send()))
                    elif isinstance(event, DataReceived):
                        messages.receive_data(event.data)
                        heard += "".join(map(text_of, messages.events_received()))
            http.close_connection()
            writer.write(http.data_to_send())
            while await reader.read(65536):
                pass
        writer.close()
    assert direct == [False]


def text_of(frame: Any) -> str:
    return bytes(frame.data).decode() if frame.opcode is Opcode.TEXT else ""


def shaped(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Make hypercorn another one, which works as well."""
    if what == "accept":
        accept = ws_stream.WSStream._accept
        monkeypatch.setattr(ws_stream.WSStream, "_accept", lambda *given: accept(*given))
    elif what == "state":
        others = SimpleNamespace(REMOTE_CLOSING=ConnectionState.REMOTE_CLOSING)
        monkeypatch.setattr(ws_stream, "ConnectionState", others)
    elif what == "writer":
        made = TCPServer.__init__

        def make(self: Any, *given: Any) -> None:
            made(self, *given)
            plain = self.writer
            self.writer = SimpleNamespace(
                write=plain.write,
                drain=plain.drain,
                close=plain.close,
                write_eof=plain.write_eof,
                wait_closed=plain.wait_closed,
                get_extra_info=plain.get_extra_info,
            )

        monkeypatch.setattr(TCPServer, "__init__", make)
    else:
        holder, name = {"stream": (h11, "WSStream"), "protocol": (protocol, "H11Protocol")}[what]
        monkeypatch.setattr(holder, name, type("Another", (getattr(holder, name),), {}))


@pytest.mark.parametrize("what", ["stream", "protocol", "writer", "accept", "state"])
async def test_what_is_not_as_expected_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    shaped(monkeypatch, what)
    realtime, direct = watched()
    with running(Hypercorn(make_app(realtime))) as server:
        await chat(server)
    assert direct == [False]


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("subprotocols", [["realtime.v2"], []], ids=["several", "single"])
async def test_frames_of_every_size_come_whole_and_in_order_between_hypercorn_s_own(
    subprotocols: list[str], compression: str | None
) -> None:
    realtime, direct = watched()
    app = make_app(realtime)
    options: dict[str, Any] = {"compression": compression, "subprotocols": subprotocols}
    with running(Hypercorn(app, websocket_ping_interval=0.001)) as server:
        async with (
            NativeClient.open(server.ws(PATH), token=token("ann"), **options) as ann,
            NativeClient.open(server.ws(PATH), token=token("bob"), **options) as bob,
        ):
            await ann.request("join", "r")
            await bob.request("join", "r")
            sizes = [0, 1, 60, 80, 125, 126, 127, 65_000, 65_535, 65_536, 600_000, 3]
            pongs = []
            for size in sizes:
                pongs += [await ann.websocket.ping(), await bob.websocket.ping()]
                await ann.request("broadcast", "r", "x" * size)
            for client in (ann, bob):
                got = [len((await client.expect("broadcast"))["data"]) for _ in sizes]
                assert got == sizes
            await asyncio.wait_for(asyncio.gather(*pongs), 10)
    assert direct == [True, True]


async def test_the_close_comes_after_all_that_was_said() -> None:
    realtime, direct = watched()
    room = realtime.room("last/{name}")

    @room.on("last")
    async def last(room: Room, member: Member) -> None:
        for number in range(100):
            await room.publish("told", number)
        member.disconnect(4410, "go")

    with running(Hypercorn(make_app(realtime))) as server:
        async with NativeClient.open(server.ws(PATH)) as client:
            await client.request("join", "last/r")
            await client.send({"type": "last", "room": "last/r"})
            heard = [(await client.expect("told"))["data"] for _ in range(100)]
            assert heard == list(range(100))
            assert (await client.closed())[0] == 4410
    assert direct == [True]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_client_that_goes_before_it_is_answered_is_no_error(loop: str) -> None:
    realtime, _ = watched()
    inner = make_app(realtime)
    asked: list[Any] = []
    ended: list[Exception | None] = []

    def as_many(seen: list[Any], number: int) -> bool:
        return len(seen) == number

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            asked.append(scope)
            while not send.__self__.closed:
                await asyncio.sleep(0.001)
        try:
            await inner(scope, receive, send)
        except Exception as error:
            ended.append(error)
        else:
            ended.append(None)

    request = (
        f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with running(Hypercorn(app, loop)) as server:
        for number in (1, 2):
            raw = socket.create_connection(("127.0.0.1", server.port))
            raw.sendall(request.encode())
            await until(partial(as_many, asked, number))
            if number == 2:
                # The second one resets the connection.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
            await until(partial(as_many, ended, number))
    assert ended[:2] == [None, None]


async def test_nothing_follows_a_close_of_hypercorn_s_own() -> None:
    realtime, direct = watched()
    with running(Hypercorn(make_app(realtime), websocket_max_message_size=1000)) as server:
        async with NativeClient.open(server.ws(PATH), token=token("ann")) as ann:
            await ann.request("join", "r")
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = ClientProtocol(parse_uri(server.ws(PATH)))
            client.send_request(client.connect())
            async with asyncio.timeout(10):
                while client.state is client.state.CONNECTING:
                    writer.write(b"".join(client.data_to_send()))
                    client.receive_data(await reader.read(65536))
                client.send_text(json.dumps({"type": "join", "room": "r"}).encode())
                client.send_text(b"x" * 2000)
                writer.write(b"".join(client.data_to_send()))
                while client.close_rcvd is None:
                    client.receive_data(await reader.read(65536))
                assert client.close_rcvd.code == 1009
                # The answer is not sent yet: for the server the connection has not ended.
                for number in range(5):
                    await ann.request("broadcast", "r", number)
                    await ann.expect("broadcast", data=number)
                client.events_received()
                writer.write(b"".join(client.data_to_send()))
                assert await reader.read() == b""
            writer.close()
    assert direct == [True, True]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_reader_that_pauses_holds_nobody_and_gets_everything_in_order(
    loop: str, secure: bool, certificate: Certificate
) -> None:
    realtime, direct = watched(max_queued=100_000_000)
    given: dict[str, Any] = {"certificate": certificate} if secure else {}
    tls = certificate.client_context() if secure else None
    with running(Hypercorn(make_app(realtime), loop, **given)) as server:
        async with (
            NativeClient.open(server.ws(PATH), token=token("ann"), tls=tls) as ann,
            NativeClient.open(server.ws(PATH), token=token("bob"), tls=tls, max_queue=1) as bob,
        ):
            await ann.request("join", "r")
            await bob.request("join", "r")
            bob.websocket.transport.pause_reading()
            for number in range(30):
                text = f"{number} " + "x" * (500_000 if number < 20 else 5)
                await ann.request("broadcast", "r", text)
                await ann.expect("broadcast")
            bob.websocket.transport.resume_reading()
            for number in range(30):
                data = (await bob.expect("broadcast", timeout=10))["data"]
                assert data.split()[0] == str(number)
            await bob.settle()
    assert direct == [True, True]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_one_who_never_reads_is_sent_away_and_those_who_go_are_missed(
    secure: bool, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    realtime, direct = watched(max_queued=1_000_000, presence_grace=0.05)
    given: dict[str, Any] = {"certificate": certificate} if secure else {}
    tls = certificate.client_context() if secure else None
    with (
        caplog.at_level(logging.WARNING),
        running(Hypercorn(make_app(realtime), **given)) as server,
    ):
        async with AsyncExitStack() as stack:
            ann, bob, cleo = [
                await stack.enter_async_context(
                    NativeClient.open(server.ws(PATH), token=token(who), tls=tls, max_queue=1)
                )
                for who in ("ann", "bob", "cleo")
            ]
            for client in (ann, bob, cleo):
                await client.request("join", "r")
            bob.websocket.transport.pause_reading()
            cleo.websocket.transport.abort()
            number = 0
            left: set[str] = set()
            async with asyncio.timeout(20):
                while left != {"bob", "cleo"}:
                    await ann.send(
                        {"type": "broadcast", "room": "r", "data": [number, "x" * 200_000]}
                    )
                    message = await ann.recv()
                    while message["type"] != "broadcast":
                        if message["type"] == "user-left":
                            left.add(message["data"]["userId"])
                        message = await ann.recv()
                    assert message["data"][0] == number
                    number += 1
            bob.websocket.transport.abort()
    assert direct == [True] * 3
    assert not caplog.records


def test_uvicorn_need_not_be_installed() -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from starlette_realtime.app import _writer_finders\n"
        "print([finder.__module__ for finder in _writer_finders()], 'hypercorn' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.strip() == "['starlette_realtime.servers.hypercorn'] False", run.stderr
