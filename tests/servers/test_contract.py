"""ASGI's WebSocket contract for any application that `RealtimeProtocol` serves, as uvicorn's own
protocol keeps it: most tests run on both."""

from __future__ import annotations

import asyncio
import gzip
import logging
import queue
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from starlette_realtime.protocols.websocket import frame
from starlette_realtime.servers import uvicorn as served
from starlette_realtime.servers.uvicorn import EXTENSION, READ_AHEAD, RealtimeProtocol
from tests.servers.helpers import handshake
from tests.support.ports import Certificate
from tests.support.server import FAST, LiveServer
from tests.transports.helpers import until

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]
OURS_AND_THEIRS = pytest.mark.parametrize("ws", [FAST, "websockets-sansio"])


class Said:
    """What an application that runs in another thread has seen, in order."""

    def __init__(self) -> None:
        self._all: queue.Queue[Any] = queue.Queue()

    def put(self, thing: Any) -> None:
        self._all.put(thing)

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            while self._all.empty():
                await asyncio.sleep(0.002)
        return self._all.get_nowait()

    def empty(self) -> bool:
        return self._all.empty()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


def telling(said: Said) -> Callable[..., Awaitable[None]]:
    """Accepts, and tells what it receives, until the client has gone."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        said.put(scope)
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            said.put(message)
        said.put(message)

    return app


def opened(server: LiveServer, path: str = "/", **options: Any) -> connect:
    return connect(server.ws(path), **{"proxy": None, "compression": None, **options})


async def closed(client: ClientConnection) -> tuple[int | None, str]:
    async with asyncio.timeout(10):
        await client.wait_closed()
    return client.close_code, client.close_reason or ""


# The scope


async def scope_of(serve: Serve, ws: str, **options: Any) -> Scope:
    said = Said()
    server = serve(telling(said), ws=ws, lifespan="off", **options)
    tls: dict[str, Any] = {}
    if "certificate" in options:
        tls = {"ssl": options["certificate"].client_context()}
    headers = {"X-Twice": "a", "Cookie": "b=c", "User-Agent": "test"}
    path = "/some%20where/%C3%A4?x=%20y&z"
    protocols: Any = ["one", "two"]
    async with opened(
        server, path, additional_headers=headers, subprotocols=protocols, **tls
    ) as client:
        scope: Scope = await said.next()
        assert scope["client"] == client.local_address[:2]
        assert scope["server"] == ("127.0.0.1", server.port)
    return scope


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_the_scope_is_uvicorn_s(serve: Serve, http: str) -> None:
    ours = await scope_of(serve, FAST, http=http, root_path="/mounted")
    theirs = await scope_of(serve, "websockets-sansio", http=http, root_path="/mounted")
    assert list(ours) == list(theirs)
    del ours["extensions"][EXTENSION]
    for scope in (ours, theirs):
        changing = (b"sec-websocket-key", b"host")
        scope["headers"] = [each for each in scope["headers"] if each[0] not in changing]
        del scope["client"], scope["server"]
    assert ours == theirs
    assert ours["path"] == "/mounted/some where/ä"
    assert ours["raw_path"] == b"/mounted/some%20where/%C3%A4"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_secure_one(serve: Serve, certificate: Certificate, loop: str) -> None:
    assert (await scope_of(serve, FAST, certificate=certificate, loop=loop))["scheme"] == "wss"


async def test_over_a_unix_socket(tmp_path: Any) -> None:
    said = Said()
    path = str(tmp_path / "socket")
    async with directly(telling(said), unix=path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(handshake())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        scope = await said.next()
        assert (scope["server"], scope["client"]) == ((path, None), None)
        writer.close()


# Messages


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("compression", ["deflate", None])
async def test_messages_of_every_size(
    serve: Serve, http: str, loop: str, compression: str | None
) -> None:
    server = serve(echo, ws=FAST, http=http, loop=loop, lifespan="off")
    async with opened(server, compression=compression, max_size=None) as client:
        messages: list[str | bytes] = ["", "ä", b"", b"\x00\xff", "x" * 125, b"y" * 126]
        messages += ["€" * 30_000, b"z" * 65_536, gzip.compress(bytes(100)) * 5000, "x" * 2_000_000]
        for message in messages:
            await client.send(message)
            assert await client.recv() == message
        # Several in one segment, one in several frames.
        await client.send(["a", "bc", "", "d"])
        for message in messages[:4]:
            await client.send(message)
        assert [await client.recv() for _ in range(5)] == ["abcd", *messages[:4]]


async def test_large_messages_are_compressed_if_the_client_can(serve: Serve) -> None:
    server = serve(echo, ws=FAST, lifespan="off")
    for offer, first in ((b"permessage-deflate", 0xC1), (b"", 0x81)):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(handshake(b"Sec-WebSocket-Extensions: " + offer + b"\r\n" if offer else b""))
        head = await reader.readuntil(b"\r\n\r\n")
        assert (b"permessage-deflate; server_no_context_takeover" in head) is bool(offer)
        for size, kind in ((10, 0x81), (5000, first)):
            writer.write(masked(0x81, b"x" * size))
            start = await reader.readexactly(4)
            assert start[0] == kind
            length = start[1] if start[1] < 126 else int.from_bytes(start[2:4])
            await reader.readexactly(length - (2 if start[1] < 126 else 0))
        writer.close()


@OURS_AND_THEIRS
async def test_compression_can_be_turned_off(serve: Serve, ws: str) -> None:
    server = serve(echo, ws=ws, lifespan="off", ws_per_message_deflate=False)
    async with opened(server, compression="deflate") as client:
        assert client.protocol.extensions == []


async def test_a_reader_that_falls_behind_is_waited_for(serve: Serve) -> None:
    said, go_on = Said(), anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        protocol = scope["extensions"][EXTENSION]
        while not go_on.is_set():
            said.put(protocol._waiting)
            await asyncio.sleep(0.01)
        count = 0
        while (await receive())["type"] == "websocket.receive":
            count += 1
            if count == 200:
                await send({"type": "websocket.send", "text": str(count)})

    server = serve(app, ws=FAST, lifespan="off")
    async with opened(server) as client:
        sending = asyncio.create_task(send_many(client, 200, "x" * 20_000))
        end = time.monotonic() + 5
        while (size := await said.next()) <= READ_AHEAD:
            assert time.monotonic() < end
        # One read of the socket is at most 256 KB.
        for _ in range(10):
            size = max(size, await said.next())
        assert size < READ_AHEAD + 300_000
        go_on.set()
        await sending
        assert await client.recv() == "200"


async def send_many(client: ClientConnection, number: int, text: str) -> None:
    for _ in range(number):
        await client.send(text)


@OURS_AND_THEIRS
async def test_a_client_that_reads_nothing_is_waited_for_until_it_goes(
    serve: Serve, ws: str
) -> None:
    said = Said()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            for number in range(1000):
                said.put(number)
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
        except OSError as error:
            said.put(type(error).__name__)
            raise

    server = serve(app, ws=ws, lifespan="off")
    client = await opened(server)
    client.transport.pause_reading()
    seen: list[Any] = []
    with anyio.move_on_after(0.5):
        while True:
            seen.append(await said.next())
    assert 1 <= len(seen) < 500
    client.transport.abort()
    while not isinstance(last := await said.next(), str):
        pass
    assert last == "ClientDisconnected"


# Accepting and refusing


@OURS_AND_THEIRS
async def test_what_the_application_answers_with(serve: Serve, ws: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"X-One", b"1"), (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d")]
        await send({"type": "websocket.accept", "subprotocol": "two", "headers": headers})
        await receive()

    server = serve(app, ws=ws, lifespan="off", headers=[("X-Server", "here")])
    protocols: Any = ["one", "two"]
    async with opened(server, subprotocols=protocols) as client:
        assert client.subprotocol == "two"
        assert client.response is not None
        headers = client.response.headers
        assert headers["X-One"] == "1" and headers["X-Server"] == "here"
        assert headers["Server"] == "uvicorn" and len(headers.get_all("Date")) == 1
        assert headers.get_all("Set-Cookie") == ["a=b", "c=d"]


async def refused(server: LiveServer, path: str = "/") -> Any:
    with pytest.raises(InvalidStatus) as status:
        await opened(server, path)
    return status.value.response


@OURS_AND_THEIRS
async def test_closing_before_accepting_is_403(serve: Serve, ws: str) -> None:
    said = Said()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 4000})
        said.put(await receive())

    response = await refused(serve(app, ws=ws, lifespan="off"))
    assert (response.status_code, response.body) == (403, b"")
    assert (await said.next())["type"] == "websocket.disconnect"


@OURS_AND_THEIRS
async def test_a_response_instead(serve: Serve, ws: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert "websocket.http.response" in scope["extensions"]
        await receive()
        start = {"type": "websocket.http.response.start", "status": 418}
        await send({**start, "headers": [(b"content-type", b"text/tea"), (b"x-a", b"b")]})
        for word, more in ((b"no ", True), (b"coffee", False)):
            await send({"type": "websocket.http.response.body", "body": word, "more_body": more})

    response = await refused(serve(app, ws=ws, lifespan="off"))
    assert (response.status_code, response.body) == (418, b"no coffee")
    assert response.reason_phrase == "I'm a Teapot"
    assert response.headers["Content-Type"] == "text/tea"
    assert (response.headers["X-A"], response.headers["Content-Length"]) == ("b", "9")
    assert response.headers["Connection"] == "close"


async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("on purpose")


async def returns(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


async def says_something_else(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.send", "text": "too early"})


async def breaks_a_header(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept", "headers": [(b"x-a", b"b\r\nx-c: d")]})


@OURS_AND_THEIRS
async def test_an_application_that_gives_no_answer(
    serve: Serve, ws: str, caplog: pytest.LogCaptureFixture
) -> None:
    apps = {"/raises": raises, "/returns": returns, "/says": says_something_else}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await apps[scope["path"]](scope, receive, send)

    server = serve(app, ws=ws, lifespan="off")
    for path in apps:
        caplog.clear()
        response = await refused(server, path)
        assert (response.status_code, response.body) == (500, b"Internal Server Error")
        # It is logged before the answer is given.
        expected = "ASGI callable returned" if path == "/returns" else "Exception in ASGI"
        assert expected in caplog.text


async def test_no_header_of_the_application_s_becomes_two(serve: Serve) -> None:
    assert (await refused(serve(breaks_a_header, ws=FAST, lifespan="off"))).status_code == 500


# Closing


@OURS_AND_THEIRS
async def test_the_client_closes(serve: Serve, ws: str) -> None:
    said = Said()
    server = serve(telling(said), ws=ws, lifespan="off")
    for code, reason in ((1000, ""), (1001, "going"), (4321, "ä" * 60), (None, "")):
        async with opened(server) as client:
            await said.next()
            await client.send(b"before")
            assert (await said.next())["bytes"] == b"before"
            if code is None:
                client.transport.write(masked(0x88, b""))
            else:
                await client.close(code, reason)
            expected = {"type": "websocket.disconnect", "code": code or 1005, "reason": reason}
            assert await said.next() == expected
            assert await closed(client) == (code or 1005, reason)


@OURS_AND_THEIRS
async def test_the_client_is_gone_without_a_word(serve: Serve, ws: str) -> None:
    said = Said()
    server = serve(telling(said), ws=ws, lifespan="off")
    client = await opened(server)
    await said.next()
    client.transport.abort()
    assert (await said.next())["code"] == 1005
    await until(lambda: not server._server.server_state.connections)
    await until(lambda: not server._server.server_state.tasks)


@OURS_AND_THEIRS
async def test_the_application_closes(serve: Serve, ws: str) -> None:
    said = Said()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["text"] == "go"
        await send({"type": "websocket.close", "code": 4002, "reason": "enough"})
        said.put(await receive())
        try:
            await send({"type": "websocket.send", "text": "late"})
        except Exception as error:
            said.put(type(error))

    server = serve(app, ws=ws, lifespan="off")
    async with opened(server) as client:
        await client.send("go")
        assert await closed(client) == (4002, "enough")
    gone = {"type": "websocket.disconnect", "code": 4002, "reason": "enough"}
    assert await said.next() == gone
    # Which of them, depends on whether the client has gone by then.
    assert issubclass(await said.next(), RuntimeError | OSError)


async def test_what_comes_after_the_close_frame_is_not_delivered(serve: Serve) -> None:
    said = Said()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4002})
        said.put(await receive())
        said.put(await receive())

    server = serve(app, ws=FAST, lifespan="off")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(handshake())
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(4) == b"\x88\x02\x0f\xa2"
    writer.write(masked(0x89, b"ping") + masked(0x81, b"x" * 200_000) * 5)
    await writer.drain()
    writer.write(masked(0x88, b"\x0f\xa2"))
    # A ping is still answered: the client has not closed (RFC 6455, section 5.5.2).
    assert await reader.read() == b"\x8a\x04ping"
    writer.close()
    assert [(await said.next())["code"] for _ in range(2)] == [4002, 1005]


@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_answers_no_close_frame(
    serve: Serve, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "CLOSE_TIMEOUT", 0.2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if not reads:
            await send({"type": "websocket.send", "bytes": bytes(20_000_000)})
            return
        await send({"type": "websocket.close"})

    server = serve(app, ws=FAST, lifespan="off")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1000)
    writer.write(handshake())
    await reader.readuntil(b"\r\n\r\n")
    await until(lambda: not server._server.server_state.connections)
    writer.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("secure", [False, True])
async def test_a_client_that_has_gone_and_has_not_read(
    serve: Serve,
    certificate: Certificate,
    secure: bool,
    loop: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served, "CLOSE_TIMEOUT", 0.2)
    said = Said()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            for _ in range(3):
                await send({"type": "websocket.send", "bytes": bytes(20_000_000)})
        except OSError:
            said.put("gone")

    options: dict[str, Any] = {}
    if secure:
        # uvloop's TLS does not tell that the client has gone as long as something waits.
        options = {"certificate": certificate, "ws_ping_interval": 0.2, "ws_ping_timeout": 0.2}
    server = serve(app, ws=FAST, loop=loop, lifespan="off", **options)

    def connect_and_go() -> socket.socket:
        client = socket.create_connection(("127.0.0.1", server.port))
        if secure:
            client = certificate.client_context().wrap_socket(client, server_hostname="localhost")
        client.sendall(handshake())
        assert client.recv(12) == b"HTTP/1.1 101"
        client.shutdown(socket.SHUT_WR)
        return client

    client = await anyio.to_thread.run_sync(connect_and_go)
    assert await said.next() == "gone"
    await until(lambda: not server._server.server_state.connections)
    client.close()


@OURS_AND_THEIRS
async def test_who_gives_up_waiting_may_call_again_at_once(serve: Serve, ws: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        given_up = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        # It comes to its end only after this one has begun to wait.
        given_up.cancel()
        message = await receive()
        await send({"type": "websocket.send", "text": message["text"]})
        await receive()

    async with opened(serve(app, ws=ws, lifespan="off")) as client:
        await client.send("hello")
        assert await asyncio.wait_for(client.recv(), 5) == "hello"


async def test_a_close_frame_that_can_t_be(serve: Serve) -> None:
    said = Said()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for code, reason in ((1005, ""), (999, ""), (1000, "x" * 124)):
            try:
                await send({"type": "websocket.close", "code": code, "reason": reason})
            except ValueError as error:
                said.put(error)
        await send({"type": "websocket.close", "code": 1000, "reason": None})

    async with opened(serve(app, ws=FAST, lifespan="off")) as client:
        for _ in range(3):
            await said.next()
        assert await closed(client) == (1000, "")


async def test_an_application_that_fails_is_1011(serve: Serve) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        raise RuntimeError("on purpose")

    async with opened(serve(app, ws=FAST, lifespan="off")) as client:
        await client.send("go")
        assert await closed(client) == (1011, "")


@OURS_AND_THEIRS
async def test_a_client_that_breaks_the_rules(serve: Serve, ws: str) -> None:
    said = Said()
    server = serve(telling(said), ws=ws, lifespan="off", ws_max_size=16_384)
    for frames, code in (
        ("8182 00000000 fffe", 1007),
        ("0182 00000000 c328 8080 00000000", 1007),
        ("818000000000 8380 00000000", 1002),
        ("c180 00000000", 1002),
        ("89fe 007e 00000000" + "00" * 126, 1002),
        ("0980 00000000", 1002),
        ("8080 00000000", 1002),
        ("0180 00000000 8180 00000000", 1002),
        ("8881 00000000 03", 1002),
        ("8882 00000000 03ed", 1002),
        ("8883 00000000 03e8ff", 1007),
        ("81ff 0000000000004001 00000000", 1009),
        ("0182 00000000 6161 80fe 4000 00000000", 1009),
        # Nothing to say of a frame that is not whole.
        ("8182 00000000 c3", None),
        ("81", None),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(handshake())
        await reader.readuntil(b"\r\n\r\n")
        await said.next()
        writer.write(bytes.fromhex(frames))
        if code is None:
            writer.write_eof()
        answer = await reader.read()
        if code is not None:
            assert answer[0] == 0x88 and int.from_bytes(answer[2:4]) == code, frames
        while (message := await said.next())["type"] == "websocket.receive":
            pass
        assert message["code"] == (code or 1005), frames
        writer.close()


@OURS_AND_THEIRS
async def test_stopping(serve: Serve, ws: str) -> None:
    said = Said()
    server = serve(telling(said), ws=ws, lifespan="off")
    async with opened(server) as client:
        await said.next()
        stopping = asyncio.create_task(anyio.to_thread.run_sync(server.stop))
        assert (await closed(client))[0] == 1012
        assert (await said.next())["code"] == 1012
        await stopping


@OURS_AND_THEIRS
async def test_stopping_while_it_is_asked(serve: Serve, ws: str) -> None:
    said = Said()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        said.put("asked")
        said.put(await receive())

    server = serve(app, ws=ws, lifespan="off")
    connecting = asyncio.create_task(refused(server))
    await said.next()
    await anyio.to_thread.run_sync(server.stop)
    assert (await connecting).status_code == 500
    assert (await said.next())["code"] in (1005, 1006)


# Pings


@OURS_AND_THEIRS
async def test_a_client_that_does_not_answer_pings(serve: Serve, ws: str) -> None:
    said = Said()
    server = serve(telling(said), ws=ws, lifespan="off", ws_ping_interval=0.1, ws_ping_timeout=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(handshake())
    await reader.readuntil(b"\r\n\r\n")
    await said.next()
    ping = await reader.readexactly(6)
    assert ping[:2] == b"\x89\x04"
    # Another's answer is none.
    writer.write(masked(0x8A, b"no"))
    rest = await reader.read()
    assert rest[:4] == b"\x88\x18\x03\xf3" and rest[4:] == b"keepalive ping timeout"
    assert (await said.next())["type"] == "websocket.disconnect"
    writer.close()


@OURS_AND_THEIRS
@pytest.mark.parametrize("timeout", [10, None])
async def test_a_client_that_answers_pings(serve: Serve, ws: str, timeout: float | None) -> None:
    server = serve(echo, ws=ws, lifespan="off", ws_ping_interval=0.05, ws_ping_timeout=timeout)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(handshake())
    await reader.readuntil(b"\r\n\r\n")
    for _ in range(4):
        ping = await reader.readexactly(6)
        assert ping[:2] == b"\x89\x04"
        writer.write(masked(0x8A, ping[2:]))
    writer.close()


@OURS_AND_THEIRS
async def test_pings_are_answered(serve: Serve, ws: str) -> None:
    async with opened(serve(echo, ws=ws, lifespan="off")) as client:
        answers = [await client.ping(bytes(number)) for number in (0, 1, 125)]
        async with asyncio.timeout(5):
            await asyncio.gather(*answers)


async def test_pings_are_answered_while_an_application_only_sends(serve: Serve) -> None:
    said, over = Said(), Said()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        said.put((await receive())["type"])
        await over.next()

    # The message is more than is read ahead; when it is taken, reading goes on.
    async with opened(serve(app, ws=FAST, lifespan="off")) as client:
        await client.send("x" * (READ_AHEAD + 10_000))
        assert await said.next() == "websocket.receive"
        async with asyncio.timeout(5):
            await (await client.ping())
        over.put(None)


async def test_answers_to_pings_do_not_pile_up() -> None:
    protocols: list[RealtimeProtocol] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        protocols.append(scope["extensions"][EXTENSION])
        await echo(scope, receive, send)

    async with directly(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(handshake())
        await reader.readuntil(b"\r\n\r\n")
        flood = masked(0x89, b"x" * 125) * 1000
        for _ in range(400):
            writer.write(flood)
            await writer.drain()
        # The last of them is answered, sooner or later.
        writer.write(masked(0x89, b"last"))
        await writer.drain()
        assert protocols[0]._transport.get_write_buffer_size() < 200_000
        got = b""
        async with asyncio.timeout(10):
            while not got.endswith(b"\x8a\x04last"):
                got = got[-10:] + await reader.read(100_000)
        writer.close()


# What uvicorn's HTTP protocols never hand over


def masked(first: int, payload: bytes) -> bytes:
    """A client's frame, with a mask of zeros."""
    head = frame(payload, first)[: -len(payload) or None]
    return bytes([head[0], head[1] | 0x80]) + head[2:] + bytes(4) + payload


@asynccontextmanager
async def directly(app: Any, unix: str = "") -> Any:
    """The protocol on a socket of its own: yields the port."""
    config = Config(app, log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()

    def make() -> RealtimeProtocol:
        return RealtimeProtocol(config, state, {})

    if unix:
        server: Any = await loop.create_unix_server(make, unix)
    else:
        server = await loop.create_server(make, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        await until(lambda: not state.connections and not state.tasks)


async def test_a_handshake_in_pieces_and_messages_right_behind_it() -> None:
    may = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await may.wait()
        await echo(scope, receive, send)

    async with directly(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = handshake()
        for start in range(0, len(request), 40):
            writer.write(request[start : start + 40])
            await asyncio.sleep(0)
        writer.write(masked(0x81, b"early"))
        await writer.drain()
        # Too much of it is not read.
        flood = asyncio.create_task(flooded(writer, masked(0x82, bytes(60_000)), 500))
        await asyncio.wait([flood], timeout=0.2)
        assert not flood.done()
        may.set()
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(7) == b"\x81\x05early"
        for _ in range(500):
            await reader.readexactly(60_004)
        await flood
        writer.close()


async def flooded(writer: asyncio.StreamWriter, data: bytes, number: int) -> None:
    for _ in range(number):
        writer.write(data)
        await writer.drain()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"426 Upgrade Required"),
        (b"\x16\x03\x01" + b"x" * 100_000, b"431 Request Header Fields Too Large"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
    ],
)
async def test_no_handshake_at_all(request_: bytes, status: bytes) -> None:
    async with directly(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_)
        assert (await reader.readline()).strip() == b"HTTP/1.1 " + status
        writer.close()


async def test_the_client_leaves_before_it_is_answered() -> None:
    said = Said()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        said.put("asked")
        said.put(await receive())
        await send({"type": "websocket.accept"})

    async with directly(app) as port:
        raw = socket.create_connection(("127.0.0.1", port))
        raw.sendall(handshake())
        await said.next()
        raw.close()
        assert (await said.next()) == {"type": "websocket.disconnect", "code": 1006}


# The log


@OURS_AND_THEIRS
async def test_what_stands_in_the_log(
    serve: Serve, ws: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/no":
            await receive()
            await send({"type": "websocket.close"})
        else:
            await echo(scope, receive, send)

    server = serve(app, ws=ws, lifespan="off")
    async with opened(server, "/a%20b?c=d") as client:
        address = "{}:{}".format(*client.local_address)
        await client.close()
    with pytest.raises(InvalidStatus):
        await opened(server, "/no")
    await until(lambda: not server._server.server_state.connections)
    lines = [record.getMessage() for record in caplog.records]
    assert f'{address} - "WebSocket /a%20b?c=d" [accepted]' in lines
    assert "connection open" in lines
    assert any('"WebSocket /no" 403' in line for line in lines)
    if ws == FAST:
        assert "connection closed" in lines


async def test_a_message_is_whole_before_the_connection_s_end() -> None:
    said = Said()
    async with directly(telling(said)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(handshake())
        await reader.readuntil(b"\r\n\r\n")
        await said.next()
        writer.write(masked(0x81, b"one") + masked(0x82, b"two") + masked(0x88, b"\x03\xe8"))
        found: list[Message] = [await said.next() for _ in range(3)]
        assert [each.get("text") or each.get("bytes") or each["code"] for each in found] == [
            "one",
            b"two",
            1000,
        ]
        writer.close()
