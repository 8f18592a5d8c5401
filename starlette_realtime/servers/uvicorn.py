"""uvicorn: frames written straight to the socket, past ASGI's `send`.

Run uvicorn with `--ws starlette_realtime.servers.uvicorn:RealtimeProtocol`, or let `find_writer`
recognise uvicorn's own `websockets-sansio` protocol, the default of newer versions.

Why it is safe beside ordinary sends: both write whole frames synchronously into the same transport,
so frames never interleave and keep their order. Our frames are uncompressed, or compressed without
reference to what came before, which both is valid where compression was negotiated (RFC 7692), and
all that we send goes this way. A frame is written only between the accepted handshake and the first
sign of a close.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import socket
import sys
import threading
from typing import Any, Final, Protocol

from starlette.types import Scope, Send

try:
    from uvicorn.protocols.utils import is_ssl
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    from websockets.exceptions import InvalidState
    from websockets.extensions.permessage_deflate import (
        PerMessageDeflate,
        ServerPerMessageDeflateFactory,
    )
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "starlette_realtime.servers.uvicorn needs uvicorn >= 0.35 and websockets: "
        "pip install 'starlette-realtime[server]'"
    ) from error

logger = logging.getLogger("starlette_realtime")

EXTENSION = "realtime.writer"
READ_SIZE: Final = 262_144
"""Bytes that are read at once, at most."""
READ_AHEAD: Final = 65_536
"""Bytes of messages that may wait for the application before the socket is read no further."""


class Attached(Protocol):
    """What a writer tells of its socket: an outbox."""

    def stall(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class SansIOWriter:
    """A direct writer over uvicorn's sans-IO protocol.

    `descriptor` is the socket's, where bytes may be written past the transport as well: only with
    `RealtimeProtocol`, which knows when something waits in the transport's buffer (then it would be
    overtaken) and when the socket is about to close (then its descriptor may become another's).
    """

    __slots__ = (
        "_attached",
        "_is_closing",
        "_over",
        "_protocol",
        "_tls_socket",
        "_waiter",
        "_write",
        "descriptor",
        "window_bits",
    )

    def __init__(self, protocol: WebSocketsSansIOProtocol) -> None:
        transport = protocol.transport
        # The transport says it is paused as soon as anything waits in its buffer, and writable when
        # nothing does.
        if not is_ssl(transport):
            # Not with TLS: its transport (asyncio.sslproto) would count an empty buffer as full,
            # and stay paused.
            transport.set_write_buffer_limits(high=0)
        # Remembered: asyncio's TLS transport forgets its own when it is closed twice, as uvicorn
        # does, and can't be aborted any more.
        self._tls_socket = transport.get_extra_info("socket") if is_ssl(transport) else None
        self._protocol = protocol
        self._write = transport.write
        self._is_closing = transport.is_closing
        self._attached: Attached | None = None
        self._over = False
        self._waiter: asyncio.Task[None] | None = None
        self.descriptor = _descriptor(protocol)
        self.window_bits = max(
            (
                extension.local_max_window_bits
                for extension in protocol.conn.extensions
                if isinstance(extension, PerMessageDeflate)
            ),
            default=0,
        )

    def write(self, data: Any) -> bool:
        """Write whole frames; return whether the socket takes more at once.

        Nothing is written before the handshake is complete or after the first sign of a close: what
        comes then is dropped, as the peer would drop it.
        """
        protocol = self._protocol
        if (
            self._over
            or protocol.close_sent
            # Not with older versions, whose `RealtimeProtocol` is told of the end all the same.
            or getattr(protocol, "disconnected", False)
            or self._is_closing()
            or not protocol.handshake_complete
        ):
            return True
        self._write(data)
        if protocol.writable.is_set():
            return True
        if self._waiter is None and not isinstance(protocol, RealtimeProtocol):
            # uvicorn's own class does not tell; it can only be waited for.
            self._waiter = protocol.loop.create_task(self._wait_writable())
        return False

    async def _wait_writable(self) -> None:
        await self._protocol.writable.wait()
        self._waiter = None
        self.resumed()

    def attach(self, outbox: Attached) -> None:
        self._attached = outbox
        if isinstance(self._protocol, RealtimeProtocol):
            self._protocol.stop_pinging()
        # The application comes here when it pleases: what was told meanwhile, nobody has heard.
        if self._over:
            outbox.close()
        elif self.descriptor >= 0 and not self._protocol.writable.is_set():
            outbox.stall()

    def paused(self) -> None:
        if self._attached is not None:
            self._attached.stall()

    def resumed(self) -> None:
        if self._attached is not None:
            self._attached.resume()

    def closing(self) -> None:
        self._over = True
        if self._attached is not None:
            self._attached.close()

    def abort(self) -> None:
        self._protocol.transport.abort()

    def let_go(self, seconds: float) -> None:
        """Close the socket, in `seconds` at the latest: asyncio would wait for ever until a peer
        that does not read takes what is still to be written, and uvicorn's stop with it."""
        transport = self._protocol.transport
        if self._tls_socket is not None:
            # It does not say what waits beneath the encryption.
            self._protocol.loop.call_later(seconds, _cut, transport, self._tls_socket)
        elif transport.get_write_buffer_size():
            self._protocol.loop.call_later(seconds, transport.abort)


class _Arrivals:
    """What arrived and the application has not taken: as much of `asyncio.Queue` as uvicorn uses.
    One of these takes 200 bytes where a queue with its locks takes 3 KB."""

    __slots__ = ("_loop", "_newer", "_older", "_waiter", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # The next one stands last in `_older`; when that is empty, `_newer` takes its place.
        self._older: list[Any] = []
        self._newer: list[Any] = []
        self._waiter: asyncio.Future[None] | None = None
        self.size = 0

    def put_nowait(self, message: Any) -> None:
        self._newer.append(message)
        self.size += _size(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def empty(self) -> bool:
        return not self._older and not self._newer

    async def get(self) -> Any:
        """Return the oldest message, when there is one. For one caller at a time."""
        if not self._older:
            while not self._newer:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            self._older, self._newer = self._newer[::-1], []
        message = self._older.pop()
        self.size -= _size(message)
        return message


def _size(message: Any) -> int:
    # An empty message takes room as well.
    return 100 + len(message.get("text") or message.get("bytes") or ())


class _Gate:
    """As much of `asyncio.Event` as uvicorn uses, without a queue of those who wait."""

    __slots__ = ("_loop", "_open", "_waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open = True
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        return self._open

    def clear(self) -> None:
        self._open = False

    def set(self) -> None:
        self._open = True
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        if not self._open:
            if self._waiters is None:
                self._waiters = []
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter


class _Buffers(threading.local):
    """What sockets are read into, one for each thread. Its content is taken before another read.

    asyncio's own way is to make 256 KB anew for each read, however little there is to read, which
    takes several times as long as the read itself.
    """

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_SIZE))


_buffers = _Buffers()


class RealtimeProtocol(WebSocketsSansIOProtocol, asyncio.BufferedProtocol):
    """uvicorn's sans-IO WebSocket protocol that offers a direct writer in the scope.

    It keeps less of each connection: no compressor (compression is negotiated without context
    takeover, some 100 KB less), no request and response of a handshake that is over, no queues
    with locks. And it does less for each message: it goes on reading while little waits for the
    application, where uvicorn stops and starts again, two system calls, after each one.
    """

    # Where the attributes live that uvicorn's own class makes: without these it has more of them
    # than CPython keeps compactly, and each instance a dictionary of over 1 KB.
    __slots__ = (
        "app",
        "app_state",
        "asgi_version",
        "client",
        "close_sent",
        "close_timeout",
        "close_timer",
        "config",
        "conn",
        "connections",
        "curr_msg_data_type",
        "default_headers",
        "frames",
        "handshake_complete",
        "handshake_initiated",
        "initial_response",
        "last_ping_rtt",
        "logger",
        "loop",
        "pending_ping_payload",
        "ping_interval",
        "ping_sent_at",
        "ping_timeout",
        "ping_timer",
        "pong_timer",
        "queue",
        "read_paused",
        "realtime_writer",
        "request",
        "response",
        "root_path",
        "scheme",
        "scope",
        "server",
        "tasks",
        "transport",
        "writable",
    )

    realtime_writer: SansIOWriter | None
    request: Any
    response: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.realtime_writer = None
        super().__init__(*args, **kwargs)
        self.queue: Any = _Arrivals(self.loop)
        self.writable: Any = _Gate(self.loop)
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

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except InvalidState:
            # A close frame behind a text frame that is no UTF-8: uvicorn closes for the one, and
            # does not expect the other.
            self._closing()
            self.transport.close()
        if self.conn.handshake_exc is not None:
            # A request that is no WebSocket handshake, or has too many or too long headers: uvicorn
            # would keep the connection, and never answer.
            self.transport.close()

    # A transport that reads in the background (Windows' proactor) needs a buffer that stays.
    if sys.platform == "win32":

        def get_buffer(self, sizehint: int) -> memoryview:
            self._view = memoryview(bytearray(READ_SIZE))
            return self._view

        def buffer_updated(self, nbytes: int) -> None:
            self.data_received(bytes(self._view[:nbytes]))
    else:

        def get_buffer(self, sizehint: int) -> memoryview:
            return _buffers.view

        def buffer_updated(self, nbytes: int) -> None:
            self.data_received(bytes(_buffers.view[:nbytes]))

    def send_receive_event_to_app(self) -> None:
        paused, self.read_paused = self.read_paused, True
        super().send_receive_event_to_app()
        if not paused and self.queue.size > READ_AHEAD:
            self.transport.pause_reading()
        else:
            self.read_paused = paused

    def stop_pinging(self) -> None:
        """Leave heartbeats to the core, which has its own: two would cost twice."""
        stop = getattr(self, "stop_keepalive", None)
        if stop is not None:
            stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.realtime_writer is not None:
            self.realtime_writer.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.realtime_writer is not None:
            self.realtime_writer.resumed()

    # Whatever ends the connection passes through one of these. Each is told before it is done, and
    # `connection_lost` before asyncio closes the socket.

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing()
        super().connection_lost(exc)

    def handle_close(self, event: Any) -> None:
        self._closing()
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        self._closing()
        super().handle_parser_exception()

    def keepalive_timeout(self) -> None:
        self._closing()
        super().keepalive_timeout()

    def shutdown(self) -> None:
        self._closing()
        try:
            super().shutdown()
        except InvalidState:
            # The client is closing at this very moment. uvicorn does not expect that, and would
            # stop without ending the app's lifespan.
            if not self.transport.is_closing():
                self.transport.close()

    async def send(self, message: Any) -> None:
        kind = message["type"]
        if kind == "websocket.close":
            self._closing()
        await super().send(message)
        if kind == "websocket.accept" and self.request is not None:
            # All that anyone wants of them stands in the scope. The parser keeps the request.
            self.request.headers.clear()
            self.request = self.response = None

    def _closing(self) -> None:
        if self.realtime_writer is not None:
            self.realtime_writer.closing()


def _cut(transport: Any, sock: Any) -> None:
    """End a TLS connection at once, if it has not ended."""
    transport.abort()
    # Other event loops' sockets can't be shut down like this, and need not be.
    with contextlib.suppress(OSError, TypeError):
        sock.shutdown(socket.SHUT_RDWR)


def _descriptor(protocol: WebSocketsSansIOProtocol) -> int:
    """Return the socket's file descriptor if writing to it is just what the transport would do; -1
    for TLS and for other event loops, whose transports may hold bytes back elsewhere."""
    transport = protocol.transport
    if not isinstance(protocol, RealtimeProtocol):
        return -1
    if type(transport).__module__ != "asyncio.selector_events" or is_ssl(transport):
        return -1
    sock = transport.get_extra_info("socket")
    return -1 if sock is None else int(sock.fileno())


_NEEDED = (
    "close_sent",
    "disconnected",
    "handshake_complete",
    "loop",
    "transport",
    "writable",
)


def _unwrapped(send: Any) -> Any:
    """Starlette wraps `send` for what stands in its router, `Mount` included, only to note that an
    HTTP response has started: nothing that concerns a WebSocket's messages."""
    while getattr(send, "__module__", "") == "starlette._exception_handler":
        inner = inspect.getclosurevars(send).nonlocals.get("send")
        if inner is None:
            break
        send = inner
    return send


def find_writer(scope: Scope, send: Send) -> SansIOWriter | None:
    """Return a direct writer if `send` is the very method of uvicorn's sans-IO protocol: then no
    middleware stands between that would have to see each message."""
    extensions = scope.get("extensions") or {}
    offered = extensions.get(EXTENSION)
    protocol = getattr(_unwrapped(send), "__self__", None)
    if offered is not None:
        return offered if protocol is offered._protocol else None
    if type(protocol) is not WebSocketsSansIOProtocol:
        return None
    if not all(hasattr(protocol, name) for name in _NEEDED):
        return None
    return SansIOWriter(protocol)
