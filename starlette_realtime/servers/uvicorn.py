"""uvicorn: frames written straight to the socket, past ASGI's `send`.

Run uvicorn with `--ws starlette_realtime.servers.uvicorn:RealtimeProtocol`, or let `find_writer`
recognise uvicorn's own `websockets-sansio` protocol, which is the default since uvicorn 0.54.

Why it is safe beside ordinary sends: both write whole frames synchronously into the same transport,
so frames never interleave and keep their order. Our frames are uncompressed, which is valid where
compression was negotiated (RFC 7692, section 6), and leave both sides' compression windows alone. A frame is written only between the accepted handshake and the first sign of a close.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Scope, Send

try:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
    from websockets.protocol import State
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "starlette_realtime.servers.uvicorn needs uvicorn >= 0.35 and websockets: "
        "pip install 'starlette-realtime[server]'"
    ) from error

logger = logging.getLogger("starlette_realtime")

EXTENSION = "realtime.writer"


class SansIOWriter:
    """A direct writer over uvicorn's sans-IO protocol."""

    __slots__ = ("_protocol", "_resumed", "_waiter", "_write")

    def __init__(self, protocol: WebSocketsSansIOProtocol) -> None:
        self._protocol = protocol
        self._write = protocol.transport.write
        self._resumed: Callable[[], object] | None = None
        self._waiter: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Whether frames may be written: after the handshake and before any close."""
        protocol = self._protocol
        return (
            protocol.handshake_complete
            and not protocol.close_sent
            and not protocol.disconnected
            and protocol.conn.state is State.OPEN
            and not protocol.transport.is_closing()
        )

    def write(self, data: Any) -> bool:
        """Write whole frames; return whether the socket takes more at once. What comes after a
        close is dropped, as the peer would drop it."""
        if self.open:
            self._write(data)
            if not self._protocol.writable.is_set():
                self._wait()
                return False
        return True

    def _wait(self) -> None:
        # RealtimeProtocol tells of resume_writing; uvicorn's own class can only be waited for.
        if not isinstance(self._protocol, RealtimeProtocol) and self._waiter is None:
            self._waiter = self._protocol.loop.create_task(self._wait_writable())

    async def _wait_writable(self) -> None:
        await self._protocol.writable.wait()
        self._waiter = None
        self.resumed()

    def attach(self, resumed: Callable[[], object]) -> None:
        self._resumed = resumed

    def resumed(self) -> None:
        if self._resumed is not None:
            self._resumed()

    def abort(self) -> None:
        self._protocol.transport.abort()


class RealtimeProtocol(WebSocketsSansIOProtocol):
    """uvicorn's sans-IO WebSocket protocol that offers a direct writer in the scope.

    It negotiates compression without context takeover, so that a connection keeps no compressor:
    some 100 KB less for each.
    """

    realtime_writer: SansIOWriter | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.config.ws_per_message_deflate:
            self.conn.available_extensions = [
                ServerPerMessageDeflateFactory(
                    server_no_context_takeover=True,
                    client_no_context_takeover=True,
                    server_max_window_bits=12,
                    client_max_window_bits=12,
                    compress_settings={"memLevel": 5},
                )
            ]

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        # The application's task has been created but has not run: it sees the finished scope.
        if self.response.status_code == 101:
            self.realtime_writer = SansIOWriter(self)
            scope: Any = self.scope
            scope["extensions"] = {**scope.get("extensions", {}), EXTENSION: self.realtime_writer}

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.realtime_writer is not None:
            self.realtime_writer.resumed()


_NEEDED = (
    "close_sent",
    "conn",
    "disconnected",
    "handshake_complete",
    "loop",
    "transport",
    "writable",
)


def find_writer(scope: Scope, send: Send) -> SansIOWriter | None:
    """Return a direct writer if `send` is the very method of uvicorn's sans-IO protocol: then no
    middleware stands between that would have to see each message."""
    extensions = scope.get("extensions") or {}
    offered = extensions.get(EXTENSION)
    protocol = getattr(send, "__self__", None)
    if offered is not None:
        return offered if protocol is offered._protocol else None
    if type(protocol) is not WebSocketsSansIOProtocol:
        return None
    if not all(hasattr(protocol, name) for name in _NEEDED):
        return None
    return SansIOWriter(protocol)
