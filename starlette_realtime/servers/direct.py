"""What direct writers have in common that are found by themselves, behind the `send` of servers
that know nothing of them.

Why it is safe beside ordinary sends: both write whole frames synchronously into the same transport,
so frames never interleave and keep their order. Our frames are uncompressed, or compressed without
reference to what came before, which both is valid where compression was negotiated (RFC 7692), and
all messages that we send go this way: a compressor of the server's that remembers has nothing to
remember. A frame is written only between the accepted handshake and the first sign of a close.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final, Protocol

from starlette.types import Message, Receive

Arrival = str | bytes | Message
"""A message from the client, or what ASGI says of the rest."""
Take = Callable[[list[str | bytes]], Sequence[Arrival]]
"""Takes messages that have arrived; returns what the application is to receive in their place."""


class Attached(Protocol):
    """What a writer tells of its socket: an outbox."""

    def stall(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class TransportWriter:
    """A direct writer over an asyncio transport whose protocol is the server's."""

    __slots__ = ("_attached", "_is_closing", "_tls_socket", "_transport", "_waiter", "_write")

    descriptor: Final = -1

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._write = transport.write
        self._is_closing = transport.is_closing
        # Remembered: asyncio's TLS transport forgets its own when it is closed twice, as servers
        # do, and can't be aborted any more.
        self._tls_socket = transport.get_extra_info("socket") if is_tls(transport) else None
        self._attached: Attached | None = None
        self._waiter: asyncio.Task[None] | None = None

    async def _writable(self) -> None:
        """Wait until the server would write, or the connection has ended."""
        raise NotImplementedError

    def _stall(self) -> None:
        """Resume the outbox in time: the server does not tell when, it can only be waited for."""
        if self._waiter is None:
            self._waiter = asyncio.get_running_loop().create_task(self._resume())

    async def _resume(self) -> None:
        await self._writable()
        self._waiter = None
        if self._attached is not None:
            self._attached.resume()

    def attach(self, outbox: Attached, stop: Callable[[], object]) -> None:
        """Resume `outbox` when the socket takes more. That the server stops, it does not tell."""
        # TLS keeps its limits: as long as they are not reached, it takes more.
        if self._tls_socket is None and not self._is_closing():
            pause_while_anything_waits(self._transport)
        self._attached = outbox

    def intercept(self, receive: Receive, take: Take) -> Context | None:
        """These servers do not show what arrives."""
        return None

    def abort(self) -> None:
        self._transport.abort()

    def let_go(self, seconds: float) -> None:
        """Close the socket, in `seconds` at the latest: asyncio would wait for ever until a peer
        that does not read takes what is still to be written, and the server's stop with it."""
        loop = asyncio.get_running_loop()
        # TLS does not say what waits beneath the encryption.
        if self._tls_socket is not None:
            loop.call_later(seconds, _cut, self._transport, self._tls_socket)
        elif self._transport.get_write_buffer_size():
            loop.call_later(seconds, _abort, self._transport)


def pause_while_anything_waits(transport: Any) -> None:
    """Let a transport tell that it is paused as soon as anything waits in its buffer, and that it
    is writable when nothing does. It tells at once if something waits, unless it has told before.
    """
    # TLS (asyncio.sslproto, and uvloop's) counts as full what has just reached the limit.
    transport.set_write_buffer_limits(high=1 if is_tls(transport) else 0)


def is_tls(transport: Any) -> bool:
    return transport.get_extra_info("sslcontext") is not None


def _abort(transport: Any) -> None:
    # What has been written meanwhile may have been the last of a transport that is lost.
    if transport.get_write_buffer_size():
        transport.abort()


def _cut(transport: Any, sock: Any) -> None:
    """End a TLS connection at once, if it has not ended."""
    transport.abort()
    # Other event loops' sockets can't be shut down like this, and need not be.
    with contextlib.suppress(OSError, TypeError):
        sock.shutdown(socket.SHUT_RDWR)


def owner(method: object, module: str, name: str) -> Any:
    """Return the object whose method it is, if its class is just this one, no subclass; else None.
    The module is not imported for it: what is not there is not in use."""
    found = getattr(method, "__self__", None)
    kind = type(found)
    return found if kind.__module__ == module and kind.__name__ == name else None


def unwrapped(send: Any) -> Any:
    """Starlette wraps `send` for what stands in its router, `Mount` included, only to note that an
    HTTP response has started: nothing that concerns a WebSocket's messages."""
    while getattr(send, "__module__", "") == "starlette._exception_handler":
        try:
            inner = send.__closure__[send.__code__.co_freevars.index("send")].cell_contents
        except (AttributeError, TypeError, ValueError):
            break
        send = inner
    return send
