"""hypercorn: a way past ASGI's `send`, found by itself, for WebSockets over HTTP/1.1 on asyncio.

hypercorn's own `send` passes four layers and a lock for each frame. All frames, ours and its own
(pings, their answers, the close), end as whole writes to one `StreamWriter`. HTTP/2, whose frames
are wrapped in others, the trio worker, and versions of hypercorn that look otherwise have ASGI's
`send` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any, Final

from starlette.types import Scope, Send

from .direct import Attached, TransportWriter, owner, unwrapped

_STREAM: Final = "hypercorn.protocol.ws_stream"


class HypercornWriter(TransportWriter):
    """A direct writer over hypercorn's `WSStream`."""

    __slots__ = ("_buffered", "_high", "_open", "_stream", "_writer")

    def __init__(self, stream: Any, writer: asyncio.StreamWriter, open_state: object) -> None:
        super().__init__(writer.transport)
        self._stream = stream
        self._writer = writer
        # The state of wsproto's connection in which messages may be sent: another one from when a
        # close frame has arrived or been made.
        self._open = open_state
        self._buffered = writer.transport.get_write_buffer_size
        self._high = 0

    @property
    def window_bits(self) -> int:
        # A client that has gone before it was answered has no connection.
        protocol = getattr(getattr(self._stream, "connection", None), "_proto", None)
        for extension in getattr(protocol, "extensions", ()):
            if extension.enabled():
                return getattr(extension, "server_max_window_bits", 0)
        return 0

    def attach(self, outbox: Attached, stop: Any) -> None:
        super().attach(outbox, stop)
        self._high = self._transport.get_write_buffer_limits()[1]

    def write(self, data: Any) -> bool:
        """Write whole frames; return whether the socket takes more at once. What comes before the
        handshake is complete or after the first sign of a close is dropped."""
        stream = self._stream
        if stream.closed or stream.connection.state is not self._open or self._is_closing():
            return True
        self._write(data)
        if self._buffered() <= self._high:
            return True
        # Beyond the mark the transport has paused its protocol, and `drain` waits.
        self._stall()
        return False

    async def _writable(self) -> None:
        # It raises what has ended the connection, of which hypercorn tells whoever reads.
        with contextlib.suppress(Exception):
            await self._writer.drain()


def find_writer(scope: Scope, send: Send) -> HypercornWriter | None:
    """Return a direct writer if `send` is hypercorn's very own, for a WebSocket over HTTP/1.1 on
    asyncio: then no middleware stands between that would have to see each message."""
    stream = owner(unwrapped(send), _STREAM, "WSStream")
    protocol = owner(getattr(stream, "send", None), "hypercorn.protocol.h11", "H11Protocol")
    server = owner(getattr(protocol, "send", None), "hypercorn.asyncio.tcp_server", "TCPServer")
    writer = getattr(server, "writer", None)
    if not isinstance(writer, asyncio.StreamWriter) or not hasattr(stream, "closed"):
        return None
    try:
        # The stream has a connection only when it has accepted, which it has not yet.
        makes_connection = "connection" in type(stream)._accept.__code__.co_names
        module = sys.modules[_STREAM]
        has_state = isinstance(module.Connection.state, property)
        open_state = module.ConnectionState.OPEN
    except (AttributeError, KeyError):
        return None
    if not makes_connection or not has_state:
        return None
    return HypercornWriter(stream, writer, open_state)
