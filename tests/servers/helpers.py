"""A handshake by hand, and what shows whether a direct writer was found."""

from __future__ import annotations

from typing import Any, ClassVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from starlette_realtime import Happening, Realtime
from tests.transports.helpers import make_realtime


def handshake(more: bytes = b"", path: bytes = b"/") -> bytes:
    return (
        b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        + more
        + b"\r\n"
    )


def watched(**options: Any) -> tuple[Realtime, list[bool]]:
    """A Realtime, and for each of its connections whether it writes directly."""
    realtime = make_realtime(**options)
    realtime.room("{name}")
    direct: list[bool] = []

    @realtime.on("connection")
    def connected(happening: Happening) -> None:
        direct.append(happening.session.outbox.write is not None)

    return realtime, direct


class Counting:
    """A middleware that wants to see every message."""

    sent: ClassVar[list[str]] = []

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            self.sent.append(message["type"])
            await send(message)

        await self.app(scope, receive, counting if scope["type"] == "websocket" else send)
