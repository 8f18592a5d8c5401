"""A client as handlers see it: its session, its connection, its membership in rooms."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from abc import ABC, abstractmethod
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from ..auth.base import User
from ..errors import AckTimeout, CloseCode, Disconnected, InvalidMessage
from ..events import Draft
from ..protocols import payload
from .channels import check_public
from .limiter import Bucket, SharedBucket
from .options import Options
from .outbox import Outbox
from .timers import Timer

if TYPE_CHECKING:
    from .engine import Engine
    from .hub import Channel
    from .room import Room
    from .router import RoomType


def new_id() -> str:
    """Return a fresh unguessable id: 128 bits, 22 URL-safe characters."""
    return urlsafe_b64encode(os.urandom(16))[:22].decode()


class Connection(ABC):
    """One client's connection, as a door offers it to the core."""

    __slots__ = (
        "active",
        "bucket",
        "gone",
        "handling",
        "heard",
        "holds",
        "id",
        "ip",
        "joins",
        "opened",
        "outbox",
        "patience",
        "pinged",
        "scope",
        "sessions",
    )

    def __init__(self, scope: Mapping[str, Any], outbox: Outbox, options: Options) -> None:
        self.id = new_id()
        # In seconds since 1970: other processes' orders are older or newer.
        self.opened = time.time()
        now = time.monotonic()
        burst = options.message_burst
        self.bucket = Bucket(options.message_rate, burst, burst, now)
        self.joins = Bucket(options.join_rate, options.join_burst, options.join_burst, now)
        self.patience = Bucket(options.abuse_rate, options.abuse_burst, options.abuse_burst, now)
        # Keys of the counted limits whose holder the connection is, by its id.
        self.holds: tuple[str, ...] = ()
        self.ip: str | None = None
        self.scope = scope
        self.outbox = outbox
        self.sessions: dict[str, Session] = {}
        # Monotonic times of the last sign of life, of the ping that asked for one, and of the
        # last message that was more than a sign of life.
        self.heard = now
        self.pinged = 0.0
        self.active = now
        self.gone = False
        # What the app's handler that is at work runs in.
        self.handling: anyio.CancelScope | None = None

    @abstractmethod
    def close(self, code: int, reason: str = "") -> None:
        """Close the connection soon; what is in the outbox may be lost. May be called twice."""

    @abstractmethod
    async def wait(self, event: anyio.Event) -> None:
        """Wait for `event`, which a message from this client may set: a door whose reader is the
        caller itself reads on meanwhile. The end of the connection does not end it."""

    @property
    def waits_here(self) -> bool:
        """Whether the caller is this connection's reader, so that only `wait` can wait for it."""
        return False

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a handler is at work for this connection, so that silence means nothing."""


class Asked:
    """A message of ours that waits for the client's answer, which is in canonical form, until a
    time of the monotonic clock."""

    __slots__ = ("answer", "answered", "data", "event", "room", "until")

    def __init__(self, room: str | None, event: str, data: bytes, until: float) -> None:
        self.room = room
        self.event = event
        self.data = data
        self.until = until
        self.answered = anyio.Event()
        self.answer: bytes | None = None

    def settle(self, answer: bytes | None) -> None:
        """Take the answer, if it is the first; None when there will be none."""
        if not self.answered.is_set():
            self.answer = answer
            self.answered.set()


class Session:
    """One client in one namespace.

    Attributes:
        id: the session's id, the same after a resumed reconnect.
        user: who it is; None for an anonymous client.
        data: a dictionary for the app's own use, kept while the session lasts on this process.
    """

    __slots__ = (
        "_data",
        "_state",
        "bucket",
        "closed",
        "connection",
        "device_id",
        "elsewhere",
        "engine",
        "expiry",
        "generation",
        "held",
        "id",
        "lingering",
        "listening",
        "memberships",
        "outbox",
        "requests",
        "status",
        "user",
    )

    def __init__(self, engine: Engine, connection: Connection, user: User | None) -> None:
        self.id = new_id()
        self.engine = engine
        self.connection = connection
        self.outbox = connection.outbox
        self.user = user
        self.memberships: dict[str, Member] = {}
        # Rooms that have not been told yet that the connection is lost.
        self.lingering: dict[str, Member] | None = None
        # Channels that are no rooms: those it is present in, and those it hears.
        self.held: dict[str, tuple[Draft | None, Draft | None]] | None = None
        self.listening: set[str] | None = None
        # Counts its connections on all processes, and which of them was on another one last.
        self.generation = 1
        self.elsewhere = 0
        # What the client calls the device it runs on; None when it does not say.
        self.device_id: str | None = None
        self.status = "online"
        self.closed = False
        self.bucket: SharedBucket | None = None
        self.expiry: Timer | None = None
        # Messages that wait for an answer, to be sent again after a reconnect.
        self.requests: dict[int, Asked] | None = None
        self._data: dict[str, Any] | None = None
        self._state: dict[object, Any] | None = None

    @property
    def user_id(self) -> str | None:
        return self.user.id if self.user is not None else None

    @property
    def client_id(self) -> str:
        """The id of the present connection."""
        return self.connection.id

    @property
    def namespace(self) -> str:
        return self.engine.ns

    @property
    def moved(self) -> bool:
        """Whether it goes on on another process."""
        return self.elsewhere > self.generation

    @property
    def data(self) -> dict[str, Any]:
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def state(self) -> dict[object, Any]:
        """What features keep of this session, each under itself."""
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def rooms(self) -> tuple[str, ...]:
        """Names of the rooms it is in."""
        return tuple(self.memberships)

    async def send(self, event: str, data: Any = None, *, room: str | None = None) -> None:
        """Send an event to this client alone. Not kept: if the connection is lost, so is it."""
        self.push(event, data, room=room)

    def push(self, event: str, data: Any = None, *, room: str | None = None) -> None:
        """`send`, where nothing may be awaited."""
        check_public(event)
        publication = self.engine.ephemeral(event, payload.dump(data))
        messages = self.outbox.wire.events(self.namespace, room, (publication,))
        self.engine.hub.push(self, *messages)

    @property
    def message_id(self) -> str:
        """The `messageId` of the message that is being handled; empty when it has none."""
        return self.engine.message_id()

    def stable_id(self, scope: str, chosen: str) -> str:
        """Return an id made from one that the client chose: the same for the same user, scope and
        choice, and nobody else's."""
        owner = self.user_id or self.id
        text = "\0".join((self.namespace, scope, owner, chosen))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    async def set_status(self, status: str) -> None:
        """Change what lists of members show of this session; tells nobody. A session that is
        resumed has it again."""
        self.status = status
        await self.engine.rooms.show(self)
        await self.engine.lobby.save(self)

    async def listen(self, channel: str) -> None:
        """Let the client hear what is published to a channel that is no room, across reconnects,
        until `unlisten`."""
        if self.listening is None:
            self.listening = set()
        self.listening.add(channel)
        found = self.engine.hub.channel(channel, self.namespace, None)
        # A member first: nobody lets go of a channel that has one.
        self.engine.hub.go_live(found, self, None)
        try:
            await self.engine.runtime.subscribe(found)
        except BaseException:
            self.unlisten(channel)
            raise
        if channel not in self.listening or self.connection.gone:
            self.engine.hub.remove(found, self)
            self.engine.runtime.release(found)

    def unlisten(self, channel: str) -> None:
        """End `listen`."""
        if self.listening is not None and channel in self.listening:
            self.listening.remove(channel)
            found = self.engine.hub.channels.get(channel)
            if found is not None:
                self.engine.hub.remove(found, self)
                self.engine.runtime.release(found)

    async def request(
        self, event: str, data: Any = None, *, room: str | None = None, timeout: float | None = None
    ) -> Any:
        """Send an event and return what the client answers. A client that loses its connection is
        asked again when its session is resumed, on whatever process.

        Raises:
            AckTimeout: no answer within `timeout` seconds (default: the option `ack_timeout`), or
                one that is no payload.
            Disconnected: the session ended first, or this process stops.
        """
        check_public(event)
        if self.closed and (heir := self.engine.lobby.heir(self)) is not self:
            return await heir.request(event, data, room=room, timeout=timeout)
        seconds = self.engine.options.ack_timeout if timeout is None else timeout
        number = secrets.randbits(48)
        asked = Asked(room, event, payload.dump(data), time.monotonic() + seconds)
        self.expect(number, asked)
        try:
            if self.connection.gone or self.moved:
                self.engine.questions.seek(self)
            else:
                self.ask(number, asked)
            with anyio.move_on_after(seconds):
                await self.connection.wait(asked.answered)
        finally:
            self.forget(number)
        if asked.answer is not None:
            try:
                return payload.load(asked.answer)
            except InvalidMessage:
                # This client's mistake: not to be told to the one whose handler asks.
                raise AckTimeout(f"the answer to {event!r} can't be read") from None
        if asked.answered.is_set():
            raise Disconnected(f"the session ended before {event!r} was answered")
        raise AckTimeout(f"no answer to {event!r} within {seconds:g} s")

    def expect(self, number: int, asked: Asked) -> None:
        """Wait for the answer to a question."""
        if self.requests is None:
            self.requests = {}
        self.requests[number] = asked

    def forget(self, number: int) -> None:
        """Wait no more for the answer to a question."""
        if self.requests is not None:
            self.requests.pop(number, None)
            if not self.requests:
                self.requests = None
                self.engine.questions.over(self)

    def ask(self, number: int, asked: Asked) -> None:
        """Send a message that wants an answer, or send it again."""
        self.engine.hub.push(
            self,
            self.outbox.wire.request(self.namespace, asked.room, asked.event, asked.data, number),
        )

    async def join(self, room: str) -> None:
        """Make this session a member of `room`, as if it had asked; it is told by `joined`."""
        await self.engine.rooms.join(self, room)

    async def leave(self, room: str, reason: str | None = None) -> None:
        """Take this session out of `room`; it is told by `left`."""
        await self.engine.rooms.leave(self, room)
        self.engine.hub.push(self, self.outbox.wire.left(self.namespace, room, None, reason))

    def linger(self, member: Member) -> None:
        """Remember a membership whose connection is lost."""
        if self.lingering is None:
            self.lingering = {}
        self.lingering[member.room.name] = member

    def stop_lingering(self, room: str) -> Member | None:
        """Return the membership that was remembered, if one was, and forget it."""
        if self.lingering is None:
            return None
        found = self.lingering.pop(room, None)
        if not self.lingering:
            self.lingering = None
        return found

    def disconnect(self, code: int = CloseCode.KICKED, reason: str = "") -> None:
        """Close this client's connection."""
        self.connection.close(code, reason)


class Member:
    """A session in a room. Has what a session has; `send` and `request` name the room."""

    __slots__ = ("channel", "params", "room", "room_type", "session")

    def __init__(
        self,
        session: Session,
        room: Room,
        room_type: RoomType,
        channel: Channel,
        params: Mapping[str, Any],
    ) -> None:
        self.session = session
        self.room = room
        self.room_type = room_type
        self.channel = channel
        self.params = params

    @property
    def session_id(self) -> str:
        return self.session.id

    @property
    def client_id(self) -> str:
        return self.session.client_id

    @property
    def user(self) -> User | None:
        return self.session.user

    @property
    def user_id(self) -> str | None:
        return self.session.user_id

    @property
    def info(self) -> Any:
        """What others may see of the user."""
        return self.session.user.info if self.session.user is not None else None

    @property
    def data(self) -> dict[str, Any]:
        return self.session.data

    async def send(self, event: str, data: Any = None) -> None:
        """Send an event of the room to this member alone."""
        await self.session.send(event, data, room=self.room.name)

    async def request(self, event: str, data: Any = None, *, timeout: float | None = None) -> Any:
        """Send an event of the room to this member and return its answer; see `Session.request`."""
        return await self.session.request(event, data, room=self.room.name, timeout=timeout)

    @property
    def message_id(self) -> str:
        """The `messageId` of the message that is being handled; empty when it has none."""
        return self.session.message_id

    def stable_id(self, chosen: str) -> str:
        """Return an id made from one that the client chose: the same for the same user, room and
        choice, and nobody else's."""
        return self.session.stable_id(self.room.name, chosen)

    async def leave(self, reason: str | None = None) -> None:
        """Take this member out of the room."""
        await self.session.leave(self.room.name, reason)

    def disconnect(self, code: int = CloseCode.KICKED, reason: str = "") -> None:
        """Close this member's connection."""
        self.session.disconnect(code, reason)
