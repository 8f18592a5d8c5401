"""The WebSocket door: `<mount>/ws`, native protocol.

One task, the server's own, reads a connection and runs its handlers. Where the server offers a
direct writer, nothing else is needed; elsewhere one more task writes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from typing import Any, Protocol

import anyio
from anyio.lowlevel import checkpoint
from starlette.types import Message, Receive, Scope, Send

from ..auth.credentials import find_credentials
from ..auth.origin import OriginPolicy
from ..core.engine import Engine
from ..core.lobby import Introduction
from ..core.outbox import Chunk, Outbox
from ..core.rounds import Awaited, Rounds
from ..core.runtime import Runtime
from ..core.session import Connection
from ..core.timers import Countdowns
from ..core.turns import Starter, bell, current_task, is_cancelled, later, soon, starter
from ..errors import (
    AuthenticationRequired,
    BrokerUnavailable,
    ClientError,
    CloseCode,
    CloseConnection,
    InvalidMessage,
    RateLimited,
    Unavailable,
    UnknownNamespace,
)
from ..events import Command
from ..protocols import native, payload
from ..protocols.websocket import WINDOW_BITS
from ..wires import native as wires

logger = logging.getLogger("starlette_realtime")

MAX_BACKLOG = 1000
"""Commands that are read ahead while a handler waits for this client's ack; their payloads have at
most about `max_queued` bytes."""
TURN = 32
"""Frames handled in a row, where so many are there, before others have their turn."""
PONGS = ('{"type":"pong"}', '{"type": "pong"}')
"""As clients write it in JavaScript, and in Python."""
WAITING = 1000
"""Sends after one that had to wait for a turn of the event loop, until it is tried whether they
still have to."""
CLOSE_TIMEOUT = 2.0
"""Seconds a socket that takes nothing gets for our close frame."""
_BEGUN: Message = {"type": "realtime.begun"}
"""Received when handling has begun where a message arrived, and has to wait."""


class Writer(Protocol):
    """A way to the socket past ASGI's `send`."""

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor, if bytes may also be written to it while the outbox is
        ready and until it is stalled or closed; else -1."""

    @property
    def window_bits(self) -> int:
        """The window of the compression that was negotiated, as a base-2 logarithm; 0 for none."""

    def write(self, data: Chunk) -> bool:
        """Write bytes of the socket's protocol; return whether it takes more at once."""

    def attach(self, outbox: Outbox, stop: Callable[[], object]) -> None:
        """Tell `outbox` when the socket takes no more (`stall`), takes more again (`resume`), or is
        about to close (`close`). Call `stop` when the server stops, if the server says so: also
        where the connection has ended by then and its task has not."""

    def intercept(
        self,
        receive: Receive,
        take: Callable[[list[str | bytes]], Sequence[str | bytes | Message]],
    ) -> Context | None:
        """Where `receive` is the server's own, call `take` with the messages that have arrived, in
        a callback of the loop: what it returns is received in their place. Return the context of
        the running task, which is to receive them; None where this is not done."""

    def abort(self) -> None:
        """Close the socket without a word."""

    def let_go(self, seconds: float) -> None:
        """The connection is over: give the socket so long to take what is still to be written."""


class WebSocketConnection(Connection):
    """A WebSocket with a client that speaks the native protocol."""

    __slots__ = (
        "_backlog",
        "_busy",
        "_closing",
        "_context",
        "_door",
        "_gone",
        "_idle",
        "_listening",
        "_pump",
        "_receive",
        "_rest",
        "_scope",
        "_send",
        "_several",
        "_starter",
        "_task",
        "_writer",
    )

    def __init__(
        self,
        door: WebSocketDoor,
        scope: Scope,
        receive: Receive,
        send: Send,
        writer: Writer | None,
        *,
        version: int,
    ) -> None:
        self._door = door
        self._receive = receive
        self._send = send
        self._several = version >= 1
        self._busy = False
        self._closing: tuple[int, str] | None = None
        self._gone: int | None = None
        self._backlog: deque[Command | native.Refused] | None = None
        # What has arrived together with the command that is handled, behind it.
        self._rest: Iterator[Command | native.Refused] | None = None
        self._task: object = None
        # Ends what reads, where closing the socket does not.
        self._scope: anyio.CancelScope | None = None
        # Ends the reading of a handler that waits for this client's answer.
        self._listening: anyio.CancelScope | None = None
        self._pump: _Pump | None = None
        self._context: Context | None = None
        # Whether the task waits for a message and nothing wakes it yet, so that what arrives may
        # begin where it does; and what begins it.
        self._idle = False
        self._starter: Starter | None = None
        self._writer = writer
        options = door.runtime.options
        if self._writer is not None:
            wire = wires.DEFLATE if self._writer.window_bits >= WINDOW_BITS else wires.FRAME
            outbox = Outbox(
                wire[version],
                limit=options.max_queued,
                overflow=self._overflow,
                write=self._writer.write,
                descriptor=self._writer.descriptor,
            )
            self._writer.attach(outbox, door.stop)
            self._context = self._writer.intercept(receive, self._take)
        else:
            self._scope = anyio.CancelScope()
            self._pump = _Pump(send, door.rounds)
            outbox = Outbox(
                wires.TEXT[version],
                limit=options.max_queued,
                overflow=self._overflow,
                wake=self._pump.wake,
            )
        super().__init__(scope, outbox, options)

    # Connection

    @property
    def busy(self) -> bool:
        return self._busy

    @property
    def waits_here(self) -> bool:
        return self._busy and current_task() is self._task

    def _overflow(self) -> None:
        self.close(CloseCode.SLOW, "too slow")

    def close(self, code: int, reason: str = "") -> None:
        if self._closing is not None or self._gone is not None:
            return
        self._closing = (code, reason.encode()[:120].decode(errors="ignore"))
        if self._listening is not None:
            self._listening.cancel()
        self._door.runtime.spawn(self._finish)

    async def wait(self, event: anyio.Event) -> None:
        if not self.waits_here:
            await event.wait()
            return
        # The handler that waits is run by this connection's reader: so it reads. The end of the
        # connection does not end the waiting: the client may answer on its next one.
        try:
            with anyio.CancelScope() as self._listening:
                await self._listen(event)
            if not event.is_set():
                await event.wait()
        finally:
            self._listening = None

    async def _listen(self, event: anyio.Event) -> None:
        """Read until the client has answered, or is not heard any more."""
        limit = self._door.runtime.options.max_queued
        size = sum(map(_size, self._backlog or ()))
        size += sum(map(self._put_off, self._rest or ()))
        if self._idle:
            # The handler has begun where the message arrived; only the task may receive more.
            await checkpoint()
        while not event.is_set() and self._closing is None and self._gone is None:
            if self._backlog and (len(self._backlog) >= MAX_BACKLOG or size > limit):
                return
            message = await self._receive()
            if message is _BEGUN:
                continue
            self.heard = time.monotonic()
            if message["type"] == "websocket.disconnect":
                self._gone = message.get("code") or 1005
                self.gone = True
                # Not here, where the app's handler is at work.
                self._door.runtime.spawn(self._end)
                return
            size += sum(map(self._put_off, self._decode(_frame(message))))

    def _put_off(self, command: Command | native.Refused) -> int:
        """Take an answer; keep anything else until the handler has ended, and return its size."""
        if (
            isinstance(command, Command)
            and command.type == "ack"
            # Else it stands behind what opens its session.
            and command.ns in self.sessions
        ):
            self._answer(command)
            return 0
        if self._backlog is None:
            self._backlog = deque()
        self._backlog.append(command)
        return _size(command)

    # Writing

    async def _finish(self) -> None:
        """Send the close frame, and let the reader go if the client does not answer it."""
        code, reason = self._closing or (CloseCode.NORMAL, "")
        self._door.runtime.hub.flush()
        if self._pump is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT):
                await self._pump.finish()
        self.outbox.close()
        with anyio.move_on_after(CLOSE_TIMEOUT):
            try:
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
            except (Exception, anyio.get_cancelled_exc_class()) as error:
                if is_cancelled(error):
                    raise
                logger.debug("no close frame could be sent: %r", error)
            if self._listening is not None:
                # Nobody reads: who would waits for an answer, which comes elsewhere, if at all.
                await self._end()
            await anyio.sleep(CLOSE_TIMEOUT)
        if self._listening is not None:
            await self._end()
        elif self._gone is None:
            if self._writer is not None:
                self._writer.abort()
            if self._scope is not None:
                self._scope.cancel()
            elif self.handling is not None:
                self.handling.cancel()

    # Reading

    async def run(self) -> None:
        """Serve the client until it goes."""
        self._task = current_task()
        runtime = self._door.runtime
        if self._pump is not None:
            runtime.tasks.start_soon(self._pump.run, self.outbox)
        runtime.connected(self)
        try:
            with self._scope or _NO_SCOPE:
                if await self._introduce():
                    await self._read()
        finally:
            await self._end()
            # A session that waits for its client keeps this, which must not keep the context in
            # which handlers ran.
            self._task = None

    async def _end(self) -> None:
        """Let go of the sessions and the socket. May be called again."""
        code = self._ended()
        if self._writer is not None:
            self._writer.let_go(CLOSE_TIMEOUT)
        # Others must learn of the end, whatever has brought it about.
        with anyio.CancelScope(shield=True):
            for session in list(self.sessions.values()):
                await session.engine.lobby.disconnect(session, code)
            await self._door.runtime.disconnected(self)
        self._forget_socket()

    def _ended(self) -> int:
        """The code the connection ended with, after which nothing is written."""
        code = self._closing[0] if self._closing is not None else self._gone or 1006
        self._gone = code
        self.gone = True
        self.outbox.close()
        if self._pump is not None:
            # A client that does not read would hold the one who writes to it for ever.
            self._pump.stop()
        return code

    def _forget_socket(self) -> None:
        """Keep nothing of the server's side: a session that waits for its client keeps this, and
        would keep the socket's buffers, and all that was read of a message that is not whole."""
        self._receive = _no_more
        self._send = _nowhere
        self._writer = self._pump = self._starter = self._context = None
        self.scope = {}

    async def _introduce(self) -> bool:
        """Find out who the client is and open its session; return whether it may stay."""
        door = self._door
        engine = door.engines["/"]
        id: int | str | None = None
        try:
            await door.runtime.admit(self)
            try:
                if door.must_wait(self.scope):
                    raise AuthenticationRequired
                user = await engine.lobby.authenticate(find_credentials(self.scope))
            except AuthenticationRequired:
                command = await self._first()
                if command is None:
                    return False
                id = command.id
                await self._open(engine, command)
            else:
                await engine.lobby.connect(self, user, Introduction())
            return True
        except ClientError as error:
            await self._turn_away(engine, error, id)
        except CloseConnection as error:
            self.close(error.code, error.reason)
            await self._drain()
        except BrokerUnavailable:
            await self._turn_away(engine, Unavailable(), id)
        except Exception:
            logger.exception("a connection could not be opened")
            self.close(CloseCode.SERVER_ERROR, "internal error")
            await self._drain()
        return False

    async def _open(self, engine: Engine, command: Command) -> None:
        """Open a session as the client's `connect` message asks."""
        said = bytes(command.data)
        introduction = payload.load(said, Introduction) if said != b"null" else Introduction()
        first = self.sessions.get("/")
        if (
            first is not None
            and not introduction.token
            and engine.namespace.auth is first.engine.namespace.auth
        ):
            # It has shown who it is, perhaps by a ticket that is good for one time only.
            user = first.user
        else:
            user = await engine.lobby.authenticate(find_credentials(self.scope, introduction.token))
        session = await engine.lobby.connect(self, user, introduction)
        # In the first message, too, the app's hooks are at work and may ask the client.
        busy, self._busy = self._busy, True
        try:
            await engine.rejoin(session, introduction.rooms)
        finally:
            self._busy = busy

    async def _first(self) -> Command | None:
        """Return the client's first message; None if it went away, or is sent away: for taking too
        long, or for a message that is none."""
        late = self._door.late
        late.start(self)
        try:
            message = await self._receive()
        finally:
            late.stop(self)
        if message["type"] == "websocket.disconnect":
            self._gone = message.get("code") or 1005
            return None
        decoded = self._decode(_frame(message)) if self._closing is None else []
        if not decoded:
            await self._drain()
            return None
        first, *rest = decoded
        if isinstance(first, native.Refused):
            raise first.error
        if first.type not in ("connect", "auth"):
            raise AuthenticationRequired
        if rest:
            self._backlog = deque(rest)
        return first

    def too_late(self) -> None:
        """The client has not said who it is in the time it has for that."""
        self._refuse(self._door.engines["/"], AuthenticationRequired())

    async def _turn_away(self, engine: Engine, error: ClientError, id: int | str | None) -> None:
        self._refuse(engine, error, id)
        await self._drain()

    def _refuse(self, engine: Engine, error: ClientError, id: int | str | None = None) -> None:
        message = self.outbox.wire.error(engine.ns, error, id)
        for chunk in self.outbox.wire.frames([message]):
            self.outbox.push(chunk)
        self.close(_close_code(error), error.error)

    async def _drain(self) -> None:
        """Read without listening until the client has gone."""
        while self._gone is None and (await self._receive())["type"] != "websocket.disconnect":
            pass

    async def _read(self) -> None:
        message: Message | None
        hub = self._door.runtime.hub
        if self._context is not None:
            self._starter = starter(self._context)
        frames, flushes = 0, hub.flushes
        while self._gone is None:
            if self._backlog and self._closing is None:
                await self._handle_all(iter((self._backlog.popleft(),)))
                continue
            frames += 1
            if frames > TURN:
                if hub.flushes == flushes:
                    await checkpoint()
                # Else others have had theirs: a pause now would divide what arrived together.
                frames, flushes = 1, hub.flushes
            # A client that is silent from here on leaves nothing of its last message here.
            message = None
            if self._starter is None:
                message = await self._receive()
            else:
                self._idle = True
                try:
                    message = await self._starter.attend(self._receive())
                finally:
                    self._idle = False
                if message is None or message is _BEGUN:
                    # What had begun where it arrived has come to its end.
                    continue
            if message["type"] != "websocket.receive":
                self._gone = message.get("code") or 1005
                return
            await self._handle((_frame(message),))

    def _take(self, frames: list[str | bytes]) -> Sequence[str | bytes | Message]:
        """Handle frames where they arrive, if nothing is before them: the task is woken only for
        what has to wait. Return what it is to receive."""
        if len(frames) == 1 and frames[0] in PONGS and self._take_pong():
            return ()
        if not self._idle:
            return frames
        if len(frames) <= TURN and self._starter is not None:
            if self._starter.start(self._handle(frames)):
                return ()
            self._idle = False
            return (_BEGUN,)
        self._idle = False
        return frames

    def _take_pong(self) -> bool:
        """Take the answer to a ping as it arrives: nobody need be woken for it."""
        session = self.sessions.get("/")
        if session is None:
            return False
        self.heard = time.monotonic()
        session.engine.small_talk(session)
        return True

    def _decode(self, frame: str | bytes) -> list[Command | native.Refused]:
        limit, size = self._door.runtime.options.max_payload, len(frame)
        # A character of a text is at most four bytes.
        if size <= limit < size * 4 and isinstance(frame, str):
            size = len(frame.encode())
        if size > limit:
            self.close(CloseCode.TOO_BIG, "message too large")
            return []
        return native.decode(frame, several=self._several)

    def _handle(self, frames: Iterable[str | bytes]) -> Coroutine[Any, Any, None]:
        return self._handle_all(self._commands(frames))

    def _commands(self, frames: Iterable[str | bytes]) -> Iterator[Command | native.Refused]:
        for frame in frames:
            if self._closing is None:
                yield from self._decode(frame)

    async def _handle_all(self, commands: Iterator[Command | native.Refused]) -> None:
        """Handle commands, one after the other, as long as the client is to be heard."""
        sessions = self.sessions
        self._busy = True
        self._rest = commands
        try:
            for command in commands:
                if self.gone or self._closing is not None:
                    return
                # Limits count it when it is its turn.
                self.heard = time.monotonic()
                if isinstance(command, native.Refused):
                    session = sessions["/"]
                    session.engine.refuse(session, command.error, command.id)
                    continue
                if command.type == "pong":
                    session = sessions["/"]
                    session.engine.small_talk(session)
                    continue
                self.active = self.heard
                if command.type == "ack":
                    self._answer(command)
                elif command.type == "connect":
                    await self._connect_namespace(command)
                elif command.ns not in sessions:
                    session = sessions["/"]
                    session.engine.refuse(session, UnknownNamespace(), command.id, command.ns)
                else:
                    session = sessions[command.ns]
                    await session.engine.dispatch(session, command)
        except CloseConnection as error:
            self.close(error.code, error.reason)
        finally:
            self._busy = False
            self._rest = None

    def _answer(self, command: Command) -> None:
        session = self.sessions.get(command.ns)
        if session is not None:
            session.engine.answer(session, command)

    async def _connect_namespace(self, command: Command) -> None:
        """Open a session in another namespace on this connection."""
        known = self.sessions["/"]
        engine = self._door.engines.get(command.ns)
        try:
            if engine is None:
                raise UnknownNamespace
            if not self.joins.take(self.heard):
                raise RateLimited
            if command.ns in self.sessions:
                raise InvalidMessage("Invalid message format: connected already")
            await self._open(engine, command)
        except BrokerUnavailable:
            known.engine.refuse(known, Unavailable(), command.id, command.ns)
        except ClientError as error:
            known.engine.refuse(known, error, command.id, command.ns)
        except CloseConnection:
            raise
        except Exception:
            logger.exception("namespace %s could not be opened", command.ns)
            self.close(CloseCode.SERVER_ERROR, "internal error")


class _NoScope:
    """In place of a scope where nothing is to be cancelled. Its methods are static, since the end
    of a block is kept as long as that lasts: a bound one for each connection."""

    @staticmethod
    def __enter__() -> None:
        pass

    @staticmethod
    def __exit__(*error: object) -> None:
        pass


_NO_SCOPE = _NoScope()


async def _no_more() -> Message:
    return {"type": "websocket.disconnect", "code": 1006}


async def _nowhere(message: Message) -> None:
    """Takes what is sent after the end."""


def _frame(message: Message) -> str | bytes:
    text: str | None = message.get("text")
    return message.get("bytes") or b"" if text is None else text


def _size(command: Command | native.Refused) -> int:
    """Bytes of payload."""
    return len(command.data) if isinstance(command, Command) else 0


def _close_code(error: ClientError) -> int:
    if error.error_code == "limit_exceeded":
        return CloseCode.TOO_MANY
    if error.error_code in ("auth_required", "auth_failed", "invalid_user", "invalid_message"):
        return CloseCode.UNAUTHORIZED
    return CloseCode.TOO_MANY if error.retry else CloseCode.FORBIDDEN


class _Pump:
    """Writes what waits in an outbox, for servers without a direct writer: one task, which most
    servers' `send` need not wake."""

    def __init__(self, send: Send, rounds: Rounds) -> None:
        self.generation = 0
        self.stopped = False
        self._send = send
        self._rounds = rounds
        self._bell = bell()
        self._starter: Starter | None = None
        # Whether `begin` starts to send, instead of waking the task to do so.
        self._starts = False
        # Whether a send has waited for something that is no future, and cannot be asked.
        self._turns = False
        self._outbox: Outbox
        # Whether it neither sends nor stands in line to do so. It can't before its task runs.
        self._idle = False
        self._last = False
        self._done = anyio.Event()
        self._scope = anyio.CancelScope()

    def wake(self) -> None:
        """There is something in the outbox."""
        if self._idle:
            self._idle = False
            self._rounds.enter(self)

    @property
    def awaited(self) -> Awaited | None:
        return None if self._starter is None else self._starter.awaited

    def begin(self) -> bool:
        if not self._starts or self._starter is None:
            self._bell.ring()
            return False
        # Else the task has been cancelled, and ends.
        return (
            self._bell.awaited
            and not self._starter.start(self._write())
            and self._waits(self._starter)
        )

    def go_on(self) -> bool:
        starter = self._starter
        if starter is None or starter.awaited is None or not self._bell.awaited:
            # The task has been cancelled, and what has begun with it; perhaps it is over already.
            return False
        return not starter.awaited.done() or (not starter.go_on() and self._waits(starter))

    def _waits(self, starter: Starter) -> bool:
        """Whether what has begun is to be gone on with here, and not in the task."""
        if starter.awaited is not None:
            return True
        self._turns = True
        self._bell.ring()
        return False

    def hand_over(self) -> None:
        self._bell.ring()

    async def run(self, outbox: Outbox) -> None:
        """Write until `stop`."""
        self._outbox = outbox
        self._starter = starter()
        try:
            with self._scope:
                self._look()
                while True:
                    if self._starter is not None:
                        self._starts = True
                        await self._starter.attend(self._bell.wait())
                        self._starts = False
                        if not self._turns:
                            continue
                        self._turns = False
                    # Where a `send` has taken turns, the next ones will: the task begins them.
                    for _ in range(WAITING):
                        await self._bell.wait()
                        await self._write()
        except (Exception, anyio.get_cancelled_exc_class()) as error:
            # What the server has cancelled itself is an error like any other.
            if is_cancelled(error):
                raise
            # Servers differ in what they raise when the client has gone; the reader learns of it.
            logger.debug("a connection can't be written to any more: %r", error)
        finally:
            self.stopped = True
            self._rounds.leave(self)
            self._done.set()

    async def _write(self) -> None:
        for chunk in self._take():
            await self._send({"type": "websocket.send", "text": chunk})
        self._look()

    def _take(self) -> Sequence[Chunk]:
        chunks: Sequence[Chunk] = self._outbox.take()
        if len(chunks) > 1:
            joined = self._outbox.wire.join(chunks)
            if joined is not None:
                self._rounds.gathered = True
                return (joined,)
        return chunks

    def _look(self) -> None:
        """Nothing is being sent: stand in line if there is more."""
        self._rounds.leave(self)
        if self._outbox.queue:
            self._rounds.enter(self)
            return
        self._idle = True
        if self._last:
            self._done.set()

    async def finish(self) -> None:
        """Write what waits, and no more."""
        self._last = True
        if not self._idle:
            await self._done.wait()

    def stop(self) -> None:
        """Write nothing more."""
        self.stopped = True
        self._scope.cancel()


class WebSocketDoor:
    """What is behind `<mount>/ws`."""

    def __init__(
        self, runtime: Runtime, engines: Mapping[str, Engine], origins: OriginPolicy
    ) -> None:
        self.runtime = runtime
        self.engines = engines
        self.origins = origins
        self.rounds = Rounds(soon(), later(runtime.timers.call_later))
        # Connections whose clients have not said who they are, while they may still do so.
        self.late = Countdowns(
            runtime.timers, runtime.options.auth_timeout, WebSocketConnection.too_late
        )
        # One for all connections.
        self.stop = runtime.stop

    async def accept(
        self, scope: Scope, receive: Receive, send: Send, writer: Writer | None
    ) -> WebSocketConnection | None:
        """Answer a handshake, and return the connection, to be run; None if it was refused."""
        if not self.origins.check(scope):
            await _deny(scope, receive, send, 403, b"Origin not allowed")
            return None
        if self.runtime.stopping:
            await _deny(scope, receive, send, 503, b"The server is stopping")
            return None
        message = await receive()
        if message["type"] != "websocket.connect":
            return None
        version = native.choose(scope.get("subprotocols", ()))
        await send(
            {
                "type": "websocket.accept",
                "subprotocol": native.SUBPROTOCOLS[version] or None,
                "headers": [],
            }
        )
        return WebSocketConnection(self, scope, receive, send, writer, version=version)

    def must_wait(self, scope: Mapping[str, Any]) -> bool:
        """Whether the client says that it speaks first."""
        return b"hello=1" in scope.get("query_string", b"").split(b"&")


async def _deny(scope: Scope, receive: Receive, send: Send, status: int, body: bytes) -> None:
    """Refuse the handshake, with a status where the server can show one."""
    if "websocket.http.response" in scope.get("extensions", {}):
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": CloseCode.FORBIDDEN, "reason": ""})
