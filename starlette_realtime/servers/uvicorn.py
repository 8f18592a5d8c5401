"""uvicorn: WebSockets with less between the socket and the app, and a way past ASGI's `send`.

Run uvicorn with `--ws starlette_realtime.servers.uvicorn:RealtimeProtocol`. With uvicorn's own
`websockets-sansio` protocol, the default of newer versions, `find_writer` finds such a way as well.

Why such a way is safe beside ordinary sends is said in `direct`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from starlette.types import Message, Receive, Scope, Send

from ..protocols.websocket import (
    BINARY,
    CLOSE,
    COMPRESS_FROM,
    FIN,
    INTERNAL_ERROR,
    NO_STATUS,
    NORMAL,
    PING,
    PONG,
    SERVICE_RESTART,
    TEXT,
    Close,
    Compression,
    Failure,
    FrameReader,
    Headers,
    Ping,
    Pong,
    Refused,
    Request,
    accept,
    close_payload,
    compressed_frame,
    frame,
    negotiate,
    read_request,
    respond,
)
from .direct import (
    Arrival,
    Attached,
    Take,
    TransportWriter,
    is_tls,
    owner,
    pause_while_anything_waits,
    unwrapped,
)

try:
    from uvicorn.logging import TRACE_LOG_LEVEL
    from uvicorn.protocols.utils import (
        ClientDisconnected,
        get_client_addr,
        get_path_with_query_string,
    )
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "starlette_realtime.servers.uvicorn needs uvicorn >= 0.38: "
        "pip install 'starlette-realtime[server]'"
    ) from error

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

# Where whoever runs uvicorn looks for what its own protocols say.
logger = logging.getLogger("uvicorn.error")

EXTENSION: Final = "realtime.writer"
READ_SIZE: Final = 262_144
"""Bytes that are read at once, at most."""
READ_AHEAD: Final = 65_536
"""Bytes of messages that may wait for the application before the socket is read no further."""
CLOSE_TIMEOUT: Final = 10.0
"""Seconds a client gets to answer a close frame, and then to take what is still to be written."""


class State(Enum):
    """Of a connection; each comes after those above it."""

    NEW = "the request is not whole"
    ASKED = "the application has not answered"
    DENYING = "the application is giving an HTTP response"
    OPEN = "frames go both ways"
    CLOSING = "the application has closed, the client has not answered"
    OVER = "nothing more is read or written"


# Python 3.11 takes as long to find a member in its enum as to call a function.
_NEW, _ASKED, _DENYING, _OPEN, _CLOSING, _OVER = State


_WRITING_AT_ONCE = {
    "asyncio.selector_events._SelectorSocketTransport",
    "uvloop.loop.TCPTransport",
    "uvloop.loop.UnixTransport",
}
"""Transports that write what they get before they return, unless something waits in their buffer;
that they tell as soon as it does, with a limit of 0 (for uvloop: handles/stream.pyx,
`_initiate_write`). They close their socket after `connection_lost`."""


class _Buffers(threading.local):
    """What sockets are read into, one for each thread. Its content is taken before another read.

    asyncio's own way is to make 256 KB anew for each read, however little there is to read, which
    takes several times as long as the read itself.
    """

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_SIZE))


_buffers = _Buffers()


class RealtimeProtocol(asyncio.BufferedProtocol):
    """A WebSocket of uvicorn's, for all of an app's WebSockets, which is its own direct writer.

    It does for the application what uvicorn's protocols do, and keeps little of each connection:
    compression is negotiated without context takeover, pings wait for no timer of their own once
    an outbox is attached, and of a handshake that is over nothing stays.

    Its `descriptor` is the socket's, where bytes may be written past the transport while the
    attached outbox is not told otherwise: it is when something waits in the transport's buffer
    (which would be overtaken) and when the socket is about to close (then its descriptor may
    become another's).
    """

    __slots__ = (
        "_app_state",
        "_arrived",
        "_at_work",
        "_attached",
        "_config",
        "_context",
        "_denial",
        "_drained",
        "_early",
        "_loop",
        "_lost",
        "_ping_interval",
        "_pinged",
        "_pong",
        "_read_paused",
        "_reader",
        "_request",
        "_scope",
        "_server",
        "_state",
        "_stop",
        "_take",
        "_task",
        "_timer",
        "_transport",
        "_waiter",
        "_waiting",
        "_writable",
        "window_bits",
    )

    _transport: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._loop = _loop or asyncio.get_event_loop()
        self._app_state = app_state
        self.window_bits = 0
        self._config = config
        self._server = server_state
        self._state = _NEW
        self._lost = False
        # Whether the application's task has not ended, and what it is to be told of uvicorn's stop.
        self._at_work = False
        self._task: asyncio.Task[Any] | None = None
        self._context: Context | None = None
        self._stop: Callable[[], object] | None = None
        # Until the handshake is over: the request, the scope that is made of it, and what the
        # client sends too early.
        self._request: Request | None = None
        self._scope: Scope = {}
        self._early = b""
        self._denial: tuple[int, Headers, bytearray] | None = None
        self._reader = FrameReader(config.ws_max_size or sys.maxsize)
        # What arrived and the application has not taken: messages, and ASGI's words for the rest.
        # How much that is, in bytes, and who waits for it. As much of `asyncio.Queue` as is needed,
        # and nothing while nothing is there.
        self._arrived: deque[Arrival] | None = None
        self._waiting = 0
        self._waiter: asyncio.Future[None] | None = None
        self._read_paused = False
        self._attached: Attached | None = None
        self._take: Take = _untouched
        self._writable = True
        # Those who wait until it is writable again.
        self._drained: list[asyncio.Future[None]] | None = None
        # For a ping or its answer while the connection is open, for its end afterwards.
        self._timer: asyncio.TimerHandle | None = None
        self._ping_interval = config.ws_ping_interval or 0.0
        self._pinged: bytes | None = None
        self._pong: bytes | None = None

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        _release_parser(self._transport.get_protocol())
        # uvicorn does it a little later: what the transport tells meanwhile concerns us.
        self._transport.set_protocol(self)
        if self._transport.get_write_buffer_size():
            # A response that is still on its way: uvicorn's HTTP protocol may have been told to
            # wait, and then we would not be. Now somebody has been, and we are told when it ends.
            pause_while_anything_waits(self._transport)
            self._writable = False
        self._server.connections.add(self)  # type: ignore[arg-type]
        self._trace("connection made")

    def connection_lost(self, exc: Exception | None) -> None:
        # Before asyncio closes the socket: its descriptor must be written to no more.
        code = 1006 if self._state in (_NEW, _ASKED, _DENYING) else NO_STATUS
        self._leave(_OVER)
        self._lost = True
        self._read_paused = False
        if not self._at_work:
            self._server.connections.discard(self)
        self._put({"type": "websocket.disconnect", "code": code})
        # asyncio resumes nobody whose transport is lost.
        self._release()
        self._trace("connection lost")
        _release_reader(self._transport)

    def _trace(self, what: str) -> None:
        if logger.level <= TRACE_LOG_LEVEL:
            client = _address(self._transport, "peername")
            prefix = "{}:{} - ".format(*client) if client else ""
            logger.log(TRACE_LOG_LEVEL, "%sWebSocket %s", prefix, what)

    def eof_received(self) -> None:
        """A client that closes its half of the connection has gone: asyncio ends the other half."""
        if self._attached is not None:
            self._attached.close()
        self._end_in_time()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffers.view

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_buffers.view[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Also called by uvicorn's HTTP protocols, with the request that they have read."""
        state = self._state
        if state is _OPEN or state is _CLOSING:
            self._read(data)
        elif state is _NEW:
            self._read_handshake(data)
        elif state is _ASKED:
            self._early += data
            self._pause_reading()

    def pause_writing(self) -> None:
        self._writable = False
        if self._attached is not None:
            self._attached.stall()

    def resume_writing(self) -> None:
        self._writable = True
        # What a transport that is closing writes is what was given to it before.
        if not self._transport.is_closing():
            self._send_pong()
            if self._writable and self._attached is not None:
                self._attached.resume()
        if self._writable:
            self._release()

    def _release(self) -> None:
        waiting, self._drained = self._drained, None
        for waiter in waiting or ():
            if not waiter.done():
                waiter.set_result(None)

    async def _drain(self) -> None:
        while not self._writable and not self._lost:
            waiter = self._loop.create_future()
            if self._drained is None:
                self._drained = []
            self._drained.append(waiter)
            await waiter

    def _pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()

    # Ends

    def _leave(self, state: State) -> None:
        """Whatever ends the connection passes through here, before it is done."""
        if state is _OVER and self._state in (_OPEN, _CLOSING):
            logger.info("connection closed")
        self._state = state
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pinged = None
        if self._attached is not None:
            self._attached.close()

    def _fail(self, code: int, reason: str) -> None:
        """End an open connection with a close frame that need not be answered."""
        self._leave(_OVER)
        self._put({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._write(close_payload(code, reason), CLOSE)
        self._end()

    def _end(self) -> None:
        """Close the socket, when it has taken what is still to be written."""
        self._leave(_OVER)
        if not self._transport.is_closing():
            self._transport.close()
        self._end_in_time()

    def _end_in_time(self) -> None:
        """Wait no longer than `CLOSE_TIMEOUT` for a peer to take what is still to be written."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lost and self._holds_something():
            self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._cut)

    def _holds_something(self) -> bool:
        # TLS does not say what waits beneath the encryption.
        return is_tls(self._transport) or self._transport.get_write_buffer_size() > 0

    def _cut(self) -> None:
        if not self._lost:
            self._transport.abort()

    def shutdown(self) -> None:
        """uvicorn stops. Called as long as the connection lasts, or the application's task."""
        if self._stop is not None:
            self._stop()
        if self._state is _OPEN:
            self._fail(SERVICE_RESTART, "")
            return
        if self._state is _ASKED:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, (), b"Internal Server Error")
            return
        self._end()

    # The handshake

    def _read_handshake(self, data: bytes) -> None:
        self._early += data
        try:
            request = read_request(self._early)
        except Refused as refused:
            self._refuse(refused.status, refused.headers, f"{refused}\n".encode())
            return
        if request is None:
            return
        # A client has nothing to say before it is answered; what it says is kept until then.
        self._early = self._early.partition(b"\r\n\r\n")[2]
        if self._early:
            self._pause_reading()
        self._state = _ASKED
        self._request = request
        transport = self._transport
        path = request.path.decode("ascii")
        root_path = self._config.root_path
        self._scope = {
            "type": "websocket",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if is_tls(transport) else "ws",
            "server": _address(transport, "sockname"),
            "client": _address(transport, "peername"),
            "root_path": root_path,
            "path": root_path + (unquote(path) if "%" in path else path),
            "raw_path": root_path.encode("ascii") + request.path,
            "query_string": request.query,
            "headers": request.headers,
            "subprotocols": request.subprotocols,
            "state": self._app_state.copy(),
            "extensions": {"websocket.http.response": {}, EXTENSION: self},
        }
        self._put({"type": "websocket.connect"})
        self._at_work = True
        # Factories that were written for Python 3.10 take no context.
        if self._loop.get_task_factory() is None:
            self._context = copy_context()
            task = self._loop.create_task(self._run(self._scope), context=self._context)
        else:
            task = self._loop.create_task(self._run(self._scope))
        # An eager task may have ended by now.
        if self._at_work:
            self._server.tasks.add(task)

    async def _run(self, scope: Scope) -> None:
        self._task = asyncio.current_task()
        try:
            result = await self._config.loaded_app(scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException:
            logger.exception("Exception in ASGI application\n")
            if self._state is _OPEN:
                self._fail(INTERNAL_ERROR, "")
        else:
            if self._state in (_ASKED, _DENYING):
                logger.error("ASGI callable returned without completing handshake.")
            elif result is not None:
                logger.error("ASGI callable should return None, but returned '%s'.", result)
        finally:
            self._finish()

    def _finish(self) -> None:
        """The application has returned, and its task is about to end."""
        # No callback of the task, which would keep one more context for each connection.
        self._at_work = False
        self._server.tasks.discard(self._task)
        self._task = self._context = None
        self._take = _untouched
        if self._state is _ASKED:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, (), b"Internal Server Error")
        elif self._state is not _CLOSING:
            self._end()
        if self._lost:
            self._server.connections.discard(self)

    def _accept(self, message: Message) -> None:
        request = self._request
        if request is None or self._transport.is_closing():
            raise ClientDisconnected
        agreed: Compression | None = None
        if self._config.ws_per_message_deflate and request.offers:
            agreed = negotiate(request.offers)
        response = accept(
            request,
            extensions=b"" if agreed is None else agreed.header,
            subprotocol=message.get("subprotocol"),
            headers=[*self._server.default_headers, *message.get("headers", ())],
        )
        self._log("[accepted]")
        if agreed is not None:
            self.window_bits = agreed.window_bits
            self._reader.deflate = True
        self._state = _OPEN
        self._request = None
        self._scope = {}
        self._transport.write(response)
        logger.info("connection open")
        if self._ping_interval > 0:
            self._timer = self._loop.call_later(self._ping_interval, self.ping)
        if self._early:
            early, self._early = self._early, b""
            self._resume_reading()
            self._read(early)

    def _refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer the handshake with an HTTP response, and close the connection."""
        given = {name.lower() for name, _ in headers}
        defaults = [each for each in self._server.default_headers if each[0] not in given]
        response = respond(status, [*defaults, *headers], body)
        self._leave(_OVER)
        self._request = self._denial = None
        self._scope = {}
        self._early = b""
        logger.info("connection rejected (%d)", status)
        self._transport.write(response)
        self._end()

    def _log(self, outcome: str) -> None:
        if logger.isEnabledFor(logging.INFO):
            client = get_client_addr(self._scope)  # type: ignore[arg-type]
            path = get_path_with_query_string(self._scope)  # type: ignore[arg-type]
            logger.info('%s - "WebSocket %s" %s', client, path, outcome)

    # What the client sends

    def _read(self, data: bytes) -> None:
        messages: list[str | bytes] = []
        for event in self._reader.receive(data):
            if isinstance(event, (str, bytes)):
                messages.append(event)
            elif isinstance(event, Pong):
                self._take_pong(event.payload)
            elif isinstance(event, Ping):
                # One that is not answered yet need not be (RFC 6455, section 5.5.3): answers never
                # pile up before a client that does not read.
                self._pong = event.payload
            else:
                self._arrive(messages)
                messages = []
                self._close_for(event)
        self._arrive(messages)
        if self._pong is not None:
            self._send_pong()
        if self._waiting > READ_AHEAD and self._state is _OPEN:
            self._pause_reading()

    def _arrive(self, messages: list[str | bytes]) -> None:
        # Who has closed wants no more.
        if messages and self._state is _OPEN:
            for arrival in self._take(messages):
                self._put(arrival)

    def _close_for(self, event: Close | Failure) -> None:
        if self._state is not _OPEN:
            self._end()
        elif isinstance(event, Failure):
            self._fail(event.code, event.reason)
        else:
            self._answer_close(event)

    def _answer_close(self, event: Close) -> None:
        self._leave(_OVER)
        code, reason = event.code, event.reason
        self._put({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._write(event.payload, CLOSE)
        self._end()

    def _send_pong(self) -> None:
        if self._pong is not None and self._writable and self._state is not _OVER:
            pong, self._pong = self._pong, None
            self._write(pong, PONG)

    def _write(self, payload: bytes, opcode: int) -> None:
        self._transport.write(frame(payload, FIN | opcode))

    # Pings: for those of the app's connections that have no heartbeat of the core's

    def ping(self) -> None:
        """Ask the client for a sign of life."""
        self._timer = None
        if self._state is not _OPEN or self._transport.is_closing():
            return
        self._pinged = random.randbytes(4)
        self._write(self._pinged, PING)
        timeout = self._config.ws_ping_timeout
        if timeout is None:
            self._timer = self._loop.call_later(self._ping_interval, self.ping)
        else:
            self._timer = self._loop.call_later(timeout, self._silent)

    def _take_pong(self, payload: bytes) -> None:
        if self._pinged is None or payload != self._pinged:
            return
        self._pinged = None
        if self._config.ws_ping_timeout is not None and self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(self._ping_interval, self.ping)

    def _silent(self) -> None:
        self._timer = None
        if self._state is _OPEN and not self._transport.is_closing():
            self._trace("keepalive ping timeout")
            self._fail(INTERNAL_ERROR, "keepalive ping timeout")

    def stop_pinging(self) -> None:
        """Leave heartbeats to the core, which has its own: two would cost twice."""
        self._ping_interval = 0.0
        self._pinged = None
        if self._state is _OPEN and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The application

    def _put(self, arrival: Arrival) -> None:
        if self._arrived is None:
            self._arrived = deque()
        self._arrived.append(arrival)
        # An empty message takes room as well.
        self._waiting += 100 + len(arrival)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def receive(self) -> Message:
        """Return what arrived first. For one caller at a time."""
        while self._arrived is None:
            waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                # Who has cancelled this one may have called again before it came to its end.
                if self._waiter is waiter:
                    self._waiter = None
        arrival = self._arrived.popleft()
        self._waiting -= 100 + len(arrival)
        if not self._arrived:
            self._arrived = None
            # What is sent before the handshake is over waits until then.
            if self._read_paused and self._state is not _ASKED:
                self._resume_reading()
        if isinstance(arrival, str):
            return {"type": "websocket.receive", "text": arrival}
        if isinstance(arrival, bytes):
            return {"type": "websocket.receive", "bytes": arrival}
        return arrival

    async def send(self, message: Message) -> None:
        # The answer to the handshake is small. Were it to wait for a response that is still on its
        # way, no timeout would have begun.
        if not self._writable and self._state is not _ASKED:
            await self._drain()
        kind = message["type"]
        state = self._state
        if state is _OPEN:
            if self._transport.is_closing():
                raise ClientDisconnected
            if kind == "websocket.send":
                self._send(message)
            elif kind == "websocket.close":
                self._close(message)
            else:
                raise RuntimeError(
                    "Expected ASGI message 'websocket.send' or 'websocket.close', "
                    f"but got '{kind}'."
                )
        elif self._lost or state is _OVER:
            raise ClientDisconnected
        elif state is _ASKED:
            self._reply(message)
        elif self._denial is not None:
            self._deny(message, self._denial)
        else:
            raise RuntimeError(
                f"Unexpected ASGI message '{kind}', after sending 'websocket.close'."
            )

    def _send(self, message: Message) -> None:
        payload = message.get("bytes")
        opcode: Any = BINARY
        if payload is None:
            text = message.get("text")
            if text is None:
                return
            payload, opcode = text.encode(), TEXT
        if self.window_bits and len(payload) >= COMPRESS_FROM:
            self._transport.write(compressed_frame(payload, opcode, self.window_bits))
        else:
            self._write(payload, opcode)

    def _close(self, message: Message) -> None:
        code, reason = message.get("code", NORMAL), message.get("reason") or ""
        payload = close_payload(code, reason)
        self._leave(_CLOSING)
        self._put({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._write(payload, CLOSE)
        self._resume_reading()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._end)

    def _reply(self, message: Message) -> None:
        """Do as the application wishes with a handshake."""
        kind = message["type"]
        if kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            self._log("403")
            self._put({"type": "websocket.disconnect", "code": 1006})
            self._refuse(HTTPStatus.FORBIDDEN, (), b"")
        elif kind == "websocket.http.response.start":
            status = message["status"]
            if not 100 <= status < 600:
                raise RuntimeError(f"Invalid HTTP status code '{status}' in response.")
            self._log(str(status))
            self._denial = (status, list(message.get("headers", ())), bytearray())
            self._state = _DENYING
        else:
            raise RuntimeError(
                "Expected ASGI message 'websocket.accept', 'websocket.close' "
                f"or 'websocket.http.response.start' but got '{kind}'."
            )

    def _deny(self, message: Message, denial: tuple[int, Headers, bytearray]) -> None:
        if message["type"] != "websocket.http.response.body":
            raise RuntimeError(
                f"Expected ASGI message 'websocket.http.response.body' but got '{message['type']}'."
            )
        status, headers, body = denial
        body += message.get("body", b"")
        if not message.get("more_body", False):
            self._put({"type": "websocket.disconnect", "code": 1006})
            self._refuse(status, headers, bytes(body))

    # The direct writer

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor if writing to it is just what the transport would do; -1 for
        TLS and for other event loops, whose transports may hold bytes back elsewhere."""
        kind = type(self._transport)
        if f"{kind.__module__}.{kind.__qualname__}" not in _WRITING_AT_ONCE:
            return -1
        sock = self._transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def attach(self, outbox: Attached, stop: Callable[[], object]) -> None:
        """Tell `outbox` when the socket takes no more, takes more again, or is about to close; call
        `stop` when uvicorn stops."""
        self.stop_pinging()
        self._attached = outbox
        self._stop = stop
        # The application comes here when it pleases: what was told meanwhile, nobody has heard.
        if self._state in (_CLOSING, _OVER) or self._transport.is_closing():
            outbox.close()
            return
        # Under TLS there is no other way to the socket, which something could overtake.
        if not is_tls(self._transport):
            pause_while_anything_waits(self._transport)
        if not self._writable:
            outbox.stall()

    def intercept(self, receive: Receive, take: Take) -> Context | None:
        """Call `take` with the messages that have arrived, in the callback of the loop that reads
        them: what it returns is received in their place. Return the context of the task that calls
        this, and is to receive; None where it can't be. Not where a middleware would miss messages:
        `receive` must be our own."""
        if (
            getattr(receive, "__self__", None) is not self
            or self._task is not asyncio.current_task()
        ):
            return None
        context: Context | None = self._context
        if context is not None:
            self._take = take
        return context

    def write(self, data: Any) -> bool:
        """Write whole frames; return whether the socket takes more at once.

        Nothing is written before the handshake is complete or after the first sign of a close: what
        comes then is dropped, as the peer would drop it.
        """
        if self._state is not _OPEN or self._transport.is_closing():
            return True
        self._transport.write(data)
        return self._writable

    def abort(self) -> None:
        self._transport.abort()

    def let_go(self, seconds: float) -> None:
        """Close the socket, in `seconds` at the latest: asyncio would wait for ever until a peer
        that does not read takes what is still to be written, and uvicorn's stop with it."""
        if self._holds_something():
            self._loop.call_later(seconds, self._cut)


def _release_parser(protocol: object) -> None:
    """Let go of the parser of uvicorn's HTTP protocol that hands its connection over. It holds that
    protocol, which holds it: what they have made of the request would stay until the garbage
    collector has found them. uvicorn does the same where an HTTP connection is lost."""
    if getattr(protocol, "parser", None) is not None:
        protocol.parser = None  # type: ignore[attr-defined]


def _release_reader(transport: object) -> None:
    """Let go of what a transport that is lost would read with, a method of its own: it would stay,
    and the socket's objects with it, until the garbage collector has found it. asyncio does the
    same from Python 3.12 on, where it closes the socket of its own accord."""
    if getattr(transport, "_read_ready_cb", None) is not None:
        transport._read_ready_cb = None  # type: ignore[attr-defined]


def _untouched(messages: list[str | bytes]) -> Sequence[Arrival]:
    return messages


def _address(transport: asyncio.Transport, which: str) -> Any:
    """Return host and port, or a Unix socket's path and None; None if it is not known."""
    try:
        found = transport.get_extra_info(which)
    except OSError:
        return None
    if isinstance(found, tuple | list) and len(found) >= 2:
        if type(found) is tuple and len(found) == 2 and isinstance(found[0], str):
            # IPv4: just that, and the transport keeps it anyway.
            return found
        return (str(found[0]), int(found[1]))
    return (found, None) if found and isinstance(found, str) and which == "sockname" else None


# uvicorn's own protocol


class SansIOWriter(TransportWriter):
    """A direct writer over uvicorn's sans-IO protocol."""

    __slots__ = ("_protocol", "window_bits")

    def __init__(self, protocol: Any) -> None:
        super().__init__(protocol.transport)
        self._protocol = protocol
        self.window_bits = max(
            (getattr(extension, "local_max_window_bits", 0) for extension in _extensions(protocol)),
            default=0,
        )

    def attach(self, outbox: Attached, stop: Callable[[], object]) -> None:
        """As `TransportWriter.attach`; a response that is still on its way is waited for: uvicorn's
        HTTP protocol was told, and this one was not."""
        super().attach(outbox, stop)
        if not self._is_closing() and self._transport.get_write_buffer_size():
            pause_while_anything_waits(self._transport)
            self._protocol.writable.clear()

    def write(self, data: Any) -> bool:
        """As `RealtimeProtocol.write`."""
        protocol = self._protocol
        if (
            protocol.close_sent
            or protocol.disconnected
            or self._is_closing()
            or not protocol.handshake_complete
        ):
            return True
        self._write(data)
        if protocol.writable.is_set():
            return True
        self._stall()
        return False

    async def _writable(self) -> None:
        await self._protocol.writable.wait()


def _extensions(protocol: Any) -> Any:
    return getattr(getattr(protocol, "conn", None), "extensions", ())


_SANS_IO: Final = "uvicorn.protocols.websockets.websockets_sansio_impl"
_NEEDED: Final = (
    "close_sent",
    "disconnected",
    "handshake_complete",
    "transport",
    "writable",
)


def find_writer(scope: Scope, send: Send) -> RealtimeProtocol | SansIOWriter | None:
    """Return a direct writer if `send` is the very method of a protocol that has one: then no
    middleware stands between that would have to see each message."""
    send = unwrapped(send)
    extensions = scope.get("extensions") or {}
    offered = extensions.get(EXTENSION)
    if isinstance(offered, RealtimeProtocol):
        protocol: object = getattr(send, "__self__", None)
        if protocol is not offered:
            return None
        # Before the first is due: who asks for a writer has a heartbeat.
        offered.stop_pinging()
        return offered
    # Not imported: with another protocol, `websockets` need not be there.
    protocol = owner(send, _SANS_IO, "WebSocketsSansIOProtocol")
    if all(hasattr(protocol, name) for name in _NEEDED):
        return SansIOWriter(protocol)
    return None
