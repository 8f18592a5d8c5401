"""A client of the native protocol for tests: it shows the wire as it is and loses nothing.

    async with NativeClient.open(server.ws("/realtime/ws"), token=token) as ann:
        await ann.request("join", "chat/7")
        await ann.send({"type": "typing", "room": "chat/7"})
        message = await ann.expect("new-message", data={"content": "hello"})

Nothing is read in the background: a client that is not asked for anything is a slow receiver, and
the server's pings are answered while the test waits for something. Payloads are what is on the
wire; bytes are `{"$bytes": …}`. Runs on asyncio only, as `websockets` does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

Message = dict[str, Any]

SUBPROTOCOLS = ("realtime.v1", "realtime.v2")
SUBPROTOCOL = SUBPROTOCOLS[-1]
BACKLOG = 100_000
"""Messages kept for later expectations; more than that fails the test."""


class NativeError(Exception):
    """The server answered a request with `error`; the members are the wire's own."""

    def __init__(self, message: Message) -> None:
        super().__init__(f"{message.get('code')}: {message.get('error')}")
        self.message = message
        self.code: str = message["code"]
        self.error: str = message["error"]
        self.retry: bool = message["retry"]


class NativeClosed(AssertionError):
    """The connection closed while the test waited for something else."""

    def __init__(self, code: int, reason: str, text: str) -> None:
        super().__init__(f"closed with {code} {reason!r} {text}")
        self.code = code
        self.reason = reason


def matches(found: object, wanted: object) -> bool:
    """Equality, but an object may have further members, at every depth."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            name in found and matches(found[name], value) for name, value in wanted.items()
        )
    return type(found) is type(wanted) and found == wanted


def continued(before: Message, message: Message) -> Message:
    """What a message says that stands behind another one in a frame of `realtime.v2`."""
    if "type" in message:
        return message
    whole: Message = {n: before[n] for n in ("type", "ns", "room") if n in before}
    if "offset" in before:
        whole["offset"] = before["offset"] + 1
    return whole | message


class NativeClient:
    """One connection. Make it with `NativeClient.open`."""

    def __init__(self, websocket: ClientConnection, *, answer_pings: bool) -> None:
        self.websocket = websocket
        self.connected: Message = {}
        """The server's first message, `connected`."""
        self.pings = 0
        """The server's pings that were answered."""
        self.backlog: deque[Message] = deque()
        """Messages received and not yet taken, oldest first."""
        self._answer_pings = answer_pings
        self._ids = itertools.count(1)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        token: str | None = None,
        subprotocols: Sequence[str] = (SUBPROTOCOL,),
        headers: Mapping[str, str] | None = None,
        hello: Mapping[str, Any] | None = None,
        origin: str | None = None,
        wait_connected: bool = True,
        answer_pings: bool = True,
        tls: ssl.SSLContext | None = None,
        timeout: float = 10,
        **options: Any,
    ) -> AsyncIterator[NativeClient]:
        """Connects and, unless told otherwise, waits for `connected`.

        `token` goes into the `Authorization` header; other ways are spelt out by the test
        (`subprotocols`, the URL). `hello` is the `data` of a first message `connect`, and adds
        `hello=1` to the URL. Further options go to `websockets.connect`. Raises
        `websockets.exceptions.InvalidStatus` when the handshake is refused, `NativeError` when the
        first message is an error, `NativeClosed` when the server closes instead.
        """
        sent_headers = dict(headers or {})
        if token is not None:
            sent_headers["Authorization"] = f"Bearer {token}"
        if hello is not None:
            url = _with_query(url, "hello=1")
        settings: dict[str, Any] = {
            # The protocol's own heartbeat is under test, not WebSocket's.
            "ping_interval": None,
            "open_timeout": timeout,
            "close_timeout": 2,
            "compression": None,
            "max_size": None,
            "proxy": None,
            "origin": origin,
            "additional_headers": sent_headers,
            "subprotocols": [Subprotocol(name) for name in subprotocols] or None,
            **options,
        }
        if tls is not None:
            settings["ssl"] = tls
        async with connect(url, **settings) as websocket:
            client = cls(websocket, answer_pings=answer_pings)
            if hello is not None:
                await client.send({"type": "connect", "data": dict(hello)})
            if wait_connected:
                first = await client.recv(timeout)
                if first.get("type") == "error":
                    raise NativeError(first)
                assert first.get("type") == "connected", f"the first message is {first}"
                client.connected = first
            yield client

    async def send(self, *messages: Message) -> None:
        """Sends each message in a text frame of its own."""
        for message in messages:
            await self.websocket.send(json.dumps(message))

    async def send_together(self, *messages: Message) -> None:
        """Sends all the messages in one text frame, as both subprotocols permit."""
        await self.websocket.send("\n".join(map(json.dumps, messages)))

    async def send_raw(self, frame: str | bytes) -> None:
        """Sends a text or binary frame as it is, however malformed."""
        await self.websocket.send(frame)

    async def recv(self, timeout: float = 10) -> Message:
        """The oldest message not yet taken."""
        end = time.monotonic() + timeout
        while not self.backlog:
            await self._read(end, "a message")
        return self.backlog.popleft()

    async def expect(self, kind: str, timeout: float = 10, **members: Any) -> Message:
        """Takes the oldest message of this type whose members match; the others stay there.

        A member that is an object need only contain what is given. Fails with all that came
        instead.
        """
        wanted = {"type": kind, **members}
        return await self._take(lambda found: matches(found, wanted), str(wanted), timeout)

    async def request(
        self,
        kind: str,
        room: str | None = None,
        data: Any = None,
        *,
        timeout: float = 10,
        **members: Any,
    ) -> Any:
        """Sends with an `id`; returns the `data` of the `ack`, or the whole `joined` or `left`.

        Raises `NativeError` when the answer is an error.
        """
        name = f"r{next(self._ids)}"
        message: Message = {"type": kind, "id": name, **members}
        if room is not None:
            message["room"] = room
        if data is not None:
            message["data"] = data
        await self.send(message)
        answer = await self._take(
            lambda found: (
                found.get("id") == name and found["type"] in {"ack", "joined", "left", "error"}
            ),
            f"the answer to {message}",
            timeout,
        )
        if answer["type"] == "error":
            raise NativeError(answer)
        return answer.get("data") if answer["type"] == "ack" else answer

    async def settle(self, timeout: float = 10) -> list[Message]:
        """Waits until the server has handled all that was sent; takes and returns what came.

        A `ping` and its `pong` mark the moment: what this connection caused is before it. What
        another connection caused is before it only if that one has had its own answer.
        """
        await self.send({"type": "ping"})
        await self._take(lambda found: found["type"] == "pong", "pong", timeout)
        taken = list(self.backlog)
        self.backlog.clear()
        return taken

    async def read_until(
        self, condition: Callable[[], bool], what: str = "the condition", timeout: float = 10
    ) -> None:
        """Reads (and answers pings) until the condition holds; it is looked at after each frame."""
        end = time.monotonic() + timeout
        while not condition():
            await self._read(end, what)

    async def closed(self, timeout: float = 10) -> tuple[int, str]:
        """Waits for the server to close; returns code and reason. The messages before stay."""
        end = time.monotonic() + timeout
        try:
            while True:
                await self._read(end, "the end of the connection")
        except NativeClosed as closed:
            return closed.code, closed.reason

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self.websocket.close(code, reason)

    def vanish(self) -> None:
        """Cuts the TCP connection without a word, as a phone in a tunnel does."""
        self.websocket.transport.abort()

    async def _take(self, wanted: Callable[[Message], bool], what: str, timeout: float) -> Message:
        end = time.monotonic() + timeout
        seen = 0
        while True:
            for index in range(seen, len(self.backlog)):
                found = self.backlog[index]
                if wanted(found):
                    del self.backlog[index]
                    return found
            seen = len(self.backlog)
            await self._read(end, what)

    async def _read(self, end: float, what: str) -> None:
        """Reads one frame into the backlog."""
        try:
            async with asyncio.timeout(max(0.0, end - time.monotonic())):
                frame = await self.websocket.recv()
        except TimeoutError:
            raise AssertionError(f"{what} did not come in time; {self._received()}") from None
        except ConnectionClosed as error:
            # Without a close frame the code is what RFC 6455, section 7.1.5 gives it.
            code, reason = (error.rcvd.code, error.rcvd.reason) if error.rcvd else (1006, "")
            raise NativeClosed(code, reason, f"before {what}; {self._received()}") from None
        if isinstance(frame, bytes):
            raise AssertionError(f"a binary frame from the server: {frame[:200]!r}")
        spoken = self.websocket.subprotocol
        before: Message = {}
        for part in frame.split("\n") if spoken in SUBPROTOCOLS else [frame]:
            message = json.loads(part)
            assert isinstance(message, dict), f"not an object: {part}"
            if spoken == "realtime.v2":
                message = before = continued(before, message)
            assert isinstance(message.get("type"), str), f"without a type: {part}"
            if message["type"] == "ping" and self._answer_pings:
                self.pings += 1
                await self.send({"type": "pong"})
            else:
                self.backlog.append(message)
        assert len(self.backlog) <= BACKLOG, "the test takes too few of its messages"

    def _received(self) -> str:
        newest = [str(message)[:500] for message in self.backlog][-20:]
        return "\n  ".join([f"{len(self.backlog)} other messages, the newest:", *newest])


def _with_query(url: str, item: str) -> str:
    parts = urlsplit(url)
    items = [*filter(None, parts.query.split("&"))]
    if item not in items:
        items.append(item)
    return urlunsplit(parts._replace(query="&".join(items)))
