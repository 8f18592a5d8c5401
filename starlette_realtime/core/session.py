"""A client as handlers see it: its session, its connection, its membership in rooms."""

from __future__ import annotations

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from ..auth.base import User
from ..errors import AckTimeout, CloseCode, Disconnected
from ..protocols import payload
from .outbox import Outbox

if TYPE_CHECKING:
    from .engine import Engine
    from .hub import Channel
    from .room import Room
    from .router import RoomType


def new_id() -> str:
    """Return a fresh unguessable id: 128 bits, 22 URL-safe characters."""
    return secrets.token_urlsafe(16)


class Connection(ABC):
    """One client's connection, as a door offers it to the core."""

    __slots__ = ("acks", "gone", "heard", "id", "outbox", "pinged", "scope", "sessions")

    def __init__(self, scope: Mapping[str, Any], outbox: Outbox) -> None:
        self.id = new_id()
        self.scope = scope
        self.outbox = outbox
        self.sessions: dict[str, Session] = {}
        # Loop time of the last sign of life, and of the ping that asked for one.
        self.heard = 0.0
        self.pinged = 0.0
        self.gone = False
        self.acks: dict[int, Answer] | None = None

    @abstractmethod
    def close(self, code: int, reason: str = "") -> None:
        """Close the connection soon; what is in the outbox may be lost. May be called twice."""

    @abstractmethod
    async def wait(self, event: anyio.Event) -> None:
        """Wait for `event`, which only a message from this client may set: a door whose reader is
        the caller itself reads on meanwhile."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether a handler is at work for this connection, so that silence means nothing."""


class Answer:
    """A client's ack that is being waited for."""

    __slots__ = ("data", "event")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.data = b"null"


class Session:
    """One client in one namespace.

    Attributes:
        id: the session's id, the same after a resumed reconnect.
        user: who it is; None for an anonymous client.
        data: a dictionary for the app's own use, kept while the session lasts on this process.
    """

    __slots__ = (
        "_data",
        "closed",
        "connection",
        "engine",
        "id",
        "memberships",
        "outbox",
        "user",
    )

    def __init__(self, engine: Engine, connection: Connection, user: User | None) -> None:
        self.id = new_id()
        self.engine = engine
        self.connection = connection
        self.outbox = connection.outbox
        self.user = user
        self.memberships: dict[str, Member] = {}
        self.closed = False
        self._data: dict[str, Any] | None = None

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
    def data(self) -> dict[str, Any]:
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def rooms(self) -> tuple[str, ...]:
        """Names of the rooms it is in."""
        return tuple(self.memberships)

    async def send(self, event: str, data: Any = None, *, room: str | None = None) -> None:
        """Send an event to this client alone. Not kept: if the connection is lost, so is it."""
        message = self.outbox.wire.event(
            self.namespace, room, self.engine.ephemeral(event, payload.dump(data))
        )
        self.engine.hub.push(self, message)

    async def request(
        self, event: str, data: Any = None, *, room: str | None = None, timeout: float | None = None
    ) -> Any:
        """Send an event and return what the client answers.

        Raises:
            AckTimeout: no answer within `timeout` seconds (default: the option `ack_timeout`).
            Disconnected: the connection closed first.
        """
        seconds = self.engine.options.ack_timeout if timeout is None else timeout
        connection = self.connection
        if connection.gone:
            raise Disconnected("the session has no connection")
        if connection.acks is None:
            connection.acks = {}
        number = secrets.randbits(48)
        answer = connection.acks[number] = Answer()
        try:
            self.engine.hub.push(
                self,
                self.outbox.wire.request(self.namespace, room, event, payload.dump(data), number),
            )
            with anyio.move_on_after(seconds):
                await connection.wait(answer.event)
        finally:
            connection.acks.pop(number, None)
        if not answer.event.is_set():
            raise AckTimeout(f"no answer to {event!r} within {seconds:g} s")
        if connection.gone:
            raise Disconnected(f"the connection closed before {event!r} was answered")
        return payload.load(answer.data)

    async def join(self, room: str) -> None:
        """Make this session a member of `room`, as if it had asked; it is told by `joined`."""
        await self.engine.join_and_tell(self, room)

    async def leave(self, room: str, reason: str | None = None) -> None:
        """Take this session out of `room`; it is told by `left`."""
        await self.engine.remove(self, room, reason)

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
        return self.session.engine.message_id()

    def stable_id(self, chosen: str) -> str:
        """Return an id made from one that the client chose: the same for the same user, room and
        choice, and nobody else's."""
        owner = self.user_id or self.session_id
        text = "\0".join((self.session.namespace, self.room.name, owner, chosen))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    async def leave(self, reason: str | None = None) -> None:
        """Take this member out of the room."""
        await self.session.leave(self.room.name, reason)

    def disconnect(self, code: int = CloseCode.KICKED, reason: str = "") -> None:
        """Close this member's connection."""
        self.session.disconnect(code, reason)
