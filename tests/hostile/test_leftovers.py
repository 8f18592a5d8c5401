"""What a server keeps of connections that have gone, and of messages once handled: nothing."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from starlette_realtime import Realtime, Session
from starlette_realtime.events import Command
from starlette_realtime.protocols import native
from starlette_realtime.servers.uvicorn import RealtimeProtocol
from starlette_realtime.transports import websocket
from starlette_realtime.transports.websocket import WebSocketConnection
from tests.sessions.helpers import app_of, client, engine, gone, make, runtime, until
from tests.support.server import FAST, LiveServer
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]


def kept(realtime: Realtime) -> list[Any]:
    """The connections and sessions of this server that are still in memory."""
    gc.collect()
    return [
        thing
        for thing in gc.get_objects()
        if (isinstance(thing, WebSocketConnection) and thing._door.runtime is runtime(realtime))
        or (isinstance(thing, Session) and thing.engine.runtime is runtime(realtime))
    ]


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
@pytest.mark.parametrize("end", ["away", "turned away", "silent"])
async def test_nothing_is_left_of_a_connection_that_has_gone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, ws: str, end: str
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.2)
    times: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.2} if end == "silent" else {}
    realtime = make(resume_window=0.0, presence_grace=0.0, **times)
    realtime.room("chat/{id}")
    server = serve(app_of(realtime), ws=ws)
    if end == "turned away":
        url = server.ws("/ws?hello=1")
        async with NativeClient.open(url, wait_connected=False) as stranger:
            await stranger.send_raw("who am I?")
            assert (await stranger.closed())[0] == 4401
    else:
        async with client(server, "ann", answer_pings=end == "away") as ann:
            await ann.request("join", "chat/1")
            if end == "silent":
                assert (await ann.closed())[0] == 4508
    await gone(realtime)
    # Only so long: what stays until the next connection or timer comes by stays here.
    await until(lambda: not kept(realtime), "the end of what is left of it")


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
async def test_a_silent_client_leaves_nothing_of_its_last_message(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, ws: str
) -> None:
    found: list[weakref.ref[Any]] = []

    class Noticed(SimpleNamespace):
        """A command whose end is seen."""

    class Frame(dict[str, Any]):
        pass

    decode = native.decode

    def decode_and_notice(*arguments: Any, **options: Any) -> list[Any]:
        (command,) = decode(*arguments, **options)
        assert isinstance(command, Command)
        noticed = Noticed(**msgspec.structs.asdict(command))
        found.append(weakref.ref(noticed))
        return [noticed]

    monkeypatch.setattr(native, "decode", decode_and_notice)
    realtime = make()

    @realtime.event("measure")
    async def measure(session: Session, data: str) -> int:
        return len(data)

    inner = app_of(realtime)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def noticed() -> Any:
            frame = Frame(await receive())
            if frame["type"] == "websocket.receive":
                found.append(weakref.ref(frame))
            return frame

        await inner(scope, noticed, send)

    server = serve(app, ws=ws)
    async with client(server, "ann") as ann:
        assert await ann.request("measure", None, "x" * 500_000) == 500_000
        assert len(found) >= 2
        await until(lambda: not any(ref() for ref in found), "the end of the message")


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
async def test_a_session_that_may_come_back_does_not_keep_its_socket(serve: Serve, ws: str) -> None:
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime), ws=ws)
    address = ("127.0.0.1", server.port)

    def sockets() -> int:
        """The server's sides of its connections, each with what it has read of a message."""
        gc.collect()
        return sum(
            thing._transport.get_extra_info("sockname") == address
            if isinstance(thing, RealtimeProtocol)
            else isinstance(thing, WebSocketsSansIOProtocol) and thing.server == address
            for thing in gc.get_objects()
        )

    async with client(server, "ann") as ann:
        await ann.request("join", "chat/1")
        assert sockets() == 1
        ann.vanish()
    await gone(realtime)
    assert len(engine(realtime).lobby._detached) == 1
    await until(lambda: not sockets(), "the end of the socket")
    async with client(server, "ann", resume=ann.connected) as again:
        assert again.connected["resumed"] is True
