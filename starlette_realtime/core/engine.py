"""Dispatch: what happens with a command of a client, in order, and with its session.

One path for a message: door → codec → `dispatch` (membership, route) → handler → `Room.publish` →
broker ⇒ hub → outbox → door. Commands of one connection are handled one after the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import islice
from typing import Any

import anyio
import msgspec

from ..auth.base import Credentials
from ..errors import (
    AccessDenied,
    BrokerUnavailable,
    ClientError,
    CloseCode,
    CloseConnection,
    Disconnected,
    InternalError,
    InvalidMessage,
    LimitExceeded,
    NotInRoom,
    RateLimited,
    TimedOut,
    Unavailable,
    UnknownEvent,
    UnknownRoom,
)
from ..events import (
    NOTHING_KEPT,
    Command,
    Draft,
    Lane,
    Page,
    Position,
    Publication,
    Published,
    Retention,
)
from ..presence.base import PresenceStore
from ..protocols import native, payload
from . import channels, gather, questions
from .gather import Gatherer
from .handlers import Call, Function
from .hub import Channel, Hub
from .limiter import SharedBucket
from .lobby import Lobby
from .membership import Membership
from .namespace import Context, Happening, Namespace
from .options import Options
from .orders import Orders
from .outbox import Joined, Wire
from .questions import Questions
from .room import Room
from .router import RoomType
from .runtime import Runtime, fitting
from .session import Member, Session
from .turns import Deadlines, is_cancelled, soon

logger = logging.getLogger("starlette_realtime")

MAX_REJOINED = 1000
"""Rooms a client may name in its first message where the number of rooms has no limit."""

_EPHEMERAL = Position("", 0)


class _RoomRef(msgspec.Struct):
    """Where commands may name their room inside the payload."""

    room_id: str | None = msgspec.field(default=None, name="roomId")
    room: str | None = None


class _JoinData(_RoomRef):
    since: Position | None = None


class _PageData(msgspec.Struct):
    before: int | None = None
    after: int | None = None
    limit: int = 50
    cursor: str = ""


class _BroadcastReply(msgspec.Struct):
    """The ack of `broadcast`."""

    success: bool
    position: Position


_DOLLAR = ord("$")
_reply = msgspec.json.Encoder().encode


class _Resend(msgspec.Struct):
    """Which client message is being handled, and how many publications it has caused so far."""

    scope: str
    id: str
    count: int = 0


_resend: ContextVar[_Resend | None] = ContextVar("starlette_realtime_resend", default=None)


def _own_id(session: Session, command: Command) -> str:
    """Return the idempotency key of a client's message: nobody else's, whatever their user ids,
    which are printable, and whatever keys the app chooses."""
    return f"{session.user_id or session.id}\0{command.message_id}"


def _checked_name(room: str) -> str:
    """Return a room's name, where no codec has looked at it."""
    if not native.is_name(room):
        raise InvalidMessage("Invalid message format: bad room name")
    return room


class Engine:
    """Dispatch for one namespace of a running server."""

    def __init__(self, namespace: Namespace, runtime: Runtime) -> None:
        self.namespace = namespace
        self.ns = namespace.name
        self.runtime = runtime
        self.options: Options = runtime.options
        self.hub: Hub = runtime.hub
        self.presence: PresenceStore = runtime.presence
        self._commands: dict[str, Callable[[Session, Command], Awaitable[None]]] = {
            "join": self._on_join,
            "leave": self._on_leave,
            "join-room": self._on_join_room,
            "leave-room": self._on_leave_room,
            "broadcast": self._on_broadcast,
            "ping": self._on_ping,
            "history": self._on_history,
            "members": self._on_members,
            "refresh": self._on_refresh,
        }
        self._room_events = {
            name for room_type in namespace.router.types for name in room_type.handlers
        }
        self._retention: dict[RoomType, Retention] = {}
        # Of the app's functions.
        self.deadlines = Deadlines(soon(), self.options.handler_timeout)
        self.rooms = Membership(self)
        self.lobby = Lobby(self)
        self.gatherer = Gatherer(self)
        self.orders = Orders(self)
        self.questions = Questions(self)
        # What processes say to each other of what clients are asked.
        self.signals: dict[str, Callable[[Channel, Publication], None]] = {
            **dict.fromkeys(gather.SIGNALS, self.gatherer.control),
            **dict.fromkeys(questions.SIGNALS, self.questions.control),
        }
        runtime.engines[self.ns] = self

    # Names of channels

    def room_channel(self, room: str) -> str:
        return channels.room_channel(self.ns, room)

    def user_channel(self, user_id: str) -> str:
        return channels.user_channel(self.ns, user_id)

    def session_channel(self, session_id: str) -> str:
        return channels.session_channel(self.ns, session_id)

    @property
    def everyone_channel(self) -> str:
        return channels.everyone_channel(self.ns)

    # Dispatch

    async def dispatch(self, session: Session, command: Command) -> None:
        """Handle one command of a client. Raises nothing but `CloseConnection` and cancellation."""
        try:
            now = session.connection.heard
            bucket = session.bucket
            if not session.connection.bucket.take(now) or (
                bucket is not None and not bucket.take_now() and not await bucket.take(now)
            ):
                raise RateLimited
            if self.options.room_rate and command.type != "join":
                await self._check_room_rate(session, command, now)
            run = self._commands.get(command.type, self._event)
            if self.namespace.event_middleware:
                await self._run_wrapped(session, command, run)
            else:
                await run(session, command)
            if self.namespace.observed("message"):
                await self.namespace.emit(
                    Happening(name="message", session=session, command=command)
                )
        except ClientError as error:
            self.refuse(session, error, command.id)
        except BrokerUnavailable:
            self.refuse(session, Unavailable(), command.id)
        except CloseConnection:
            raise
        except Disconnected as error:
            logger.info("the handler of %r gave up: %s", command.type, error)
            self.refuse(session, Unavailable(), command.id)
        except Exception as error:
            logger.exception("the handler of %r raised", command.type)
            self.refuse(session, InternalError(), command.id)
            if self.namespace.observed("error"):
                await self.namespace.emit(
                    Happening(name="error", session=session, error=error, command=command)
                )

    async def _run_wrapped(
        self, session: Session, command: Command, run: Callable[[Session, Command], Awaitable[None]]
    ) -> None:
        handled = False

        async def handle() -> None:
            nonlocal handled
            handled = True
            await run(session, command)

        context = Context(session=session, command=command)
        result = await self.wrapped(self.namespace.event_middleware, context, handle)
        if not handled:
            # Whoever keeps a command from its handler answers in its place.
            self._ack(session, command, result)

    async def _check_room_rate(self, session: Session, command: Command, now: float) -> None:
        member = session.memberships.get(self._room_of(command) or "")
        if member is None:
            return
        channel = member.channel
        if channel.bucket is None:
            channel.bucket = SharedBucket(
                self.runtime.limits, channel.name, self.options.room_rate, self.options.room_burst
            )
        if not await channel.bucket.take(now):
            raise RateLimited

    async def wrapped(
        self,
        middleware: Sequence[Callable[..., Awaitable[Any]]],
        context: Any,
        inner: Callable[[], Awaitable[Any]],
    ) -> Any:
        """Run `inner` inside the layers of `middleware`."""
        for layer in reversed(middleware):
            inner = partial(layer, context, inner)
        try:
            return await inner()
        except anyio.get_cancelled_exc_class() as error:
            if is_cancelled(error):
                raise
            raise RuntimeError("a layer of middleware awaited what was cancelled") from error

    def refuse(
        self,
        session: Session,
        error: ClientError,
        id: int | str | None,
        ns: str | None = None,
    ) -> None:
        """Tell a client of an error, in another namespace's name if `ns` is given. One that causes
        too many of them is sent away."""
        self.hub.push(session, session.outbox.wire.error(ns or self.ns, error, id))
        self._lose_patience(session)

    def _lose_patience(self, session: Session) -> None:
        connection = session.connection
        if not connection.patience.take(connection.heard):
            connection.close(CloseCode.POLICY, "too many refused messages")

    def small_talk(self, session: Session) -> None:
        """Count a message that nobody had asked for and nobody answers."""
        if not session.connection.bucket.take(session.connection.heard):
            self._lose_patience(session)

    def _ack(self, session: Session, command: Command, data: Any) -> None:
        if command.id is not None:
            self.hub.push(session, session.outbox.wire.ack(self.ns, command.id, payload.dump(data)))

    def answer(self, session: Session, command: Command) -> None:
        """Take a client's ack to a request of ours. An ack nobody waits for is ignored."""
        requests = session.requests
        asked = requests.get(command.id) if requests else None  # type: ignore[arg-type]
        if asked is not None:
            asked.settle(bytes(command.data))
        else:
            self.small_talk(session)

    def _room_of(self, command: Command, kind: type[_RoomRef] = _RoomRef) -> str | None:
        if command.room is not None:
            return command.room
        try:
            ref = msgspec.json.decode(command.data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        name = ref.room_id if ref.room_id is not None else ref.room
        return name if name is None else _checked_name(name)

    async def _event(self, session: Session, command: Command) -> None:
        handler: Function | None = self.namespace.handlers.get(command.type)
        in_room = command.type in self._room_events
        # Where both have a handler, the message says whether it means a room.
        if handler is not None and (self._room_of(command) if in_room else command.room) is None:
            call = Call({"session": session}, {}, bytes(command.data))
        elif in_room:
            member = self._member(session, command)
            handler = member.room_type.handlers.get(command.type)
            if handler is None:
                raise UnknownEvent(f"Unknown event: {command.type}")
            call = member.room_type.call(member, bytes(command.data))
        else:
            raise UnknownEvent(f"Unknown event: {command.type}")
        token = None
        if command.message_id:
            token = _resend.set(_Resend(_own_id(session, command), command.message_id))
        try:
            await self._take_turn()
            connection = session.connection
            try:
                with self.deadlines.scope() as connection.handling:
                    result = await handler(call)
                    self._ack(session, command, result)
                    return
            finally:
                connection.handling = None
                self.runtime.handlers.release()
            logger.warning(
                "the handler of %r was cancelled: too slow, or its client gone", command.type
            )
            raise TimedOut
        finally:
            if token is not None:
                _resend.reset(token)

    async def _take_turn(self) -> None:
        """Wait until one more handler may be at work."""
        try:
            self.runtime.handlers.acquire_nowait()
        except anyio.WouldBlock:
            with anyio.move_on_after(self.options.handler_timeout) as waiting:
                await self.runtime.handlers.acquire()
            if waiting.cancelled_caught:
                raise Unavailable from None

    async def rejoin(self, session: Session, rooms: Mapping[str, Position | None]) -> None:
        """Let a client that comes back join its rooms in the same step."""
        limit = self.options.max_rooms or MAX_REJOINED
        connection = session.connection
        for room, since in islice(rooms.items(), limit):
            if connection.gone:
                # A hook has waited for the client, which now joins from elsewhere.
                return
            try:
                command = Command("join", room=_checked_name(room), since=since, ns=self.ns)
            except InvalidMessage as error:
                self.refuse(session, error, None)
            else:
                await self.dispatch(session, command)
        if len(rooms) > limit:
            self.refuse(session, LimitExceeded(f"Limit exceeded: at most {limit} rooms"), None)

    def _member(self, session: Session, command: Command) -> Member:
        room = command.room or self._room_of(command)
        if room is None:
            raise InvalidMessage("Invalid message format: room missing")
        member = session.memberships.get(room)
        if member is None:
            raise NotInRoom
        return member

    def message_id(self) -> str:
        """Return the `messageId` of the message that is being handled; empty for none."""
        resend = _resend.get()
        return resend.id if resend is not None else ""

    def next_publication_id(self) -> str:
        """Return the id of the next publication of the message that is being handled: the same ones
        when the client sends it again; empty when the client gave it no id."""
        resend = _resend.get()
        if resend is None:
            return ""
        resend.count += 1
        return f"{resend.scope}/{resend.count}"

    # Commands

    async def _on_ping(self, session: Session, command: Command) -> None:
        now = int(time.time() * 1000)
        self.hub.push(session, session.outbox.wire.pong(self.ns, now))

    async def _on_broadcast(self, session: Session, command: Command) -> None:
        member = session.memberships.get(command.room or "") or self._member(session, command)
        if not member.room_type.options.broadcast:
            raise AccessDenied
        data = bytes(command.data)
        if command.room is None:
            # The room was named inside: what is beside it is what is meant.
            whole = payload.load(data)
            data = payload.dump(whole.get("data", whole))
        elif _DOLLAR in data or data.find(b"\\u") >= 0:
            # It goes on as it stands: bytes that are none, or half a surrogate pair, would break
            # those who read it, and everyone who finds it in the history.
            payload.load(data)
        # Numbered as what a handler publishes is, which starts with 1.
        id = f"{_own_id(session, command)}/0" if command.message_id else ""
        draft = Draft(event="broadcast", data=data, id=id)
        published = await self.publish(member.room, draft)
        if command.id is not None:
            reply = _reply(_BroadcastReply(True, published.position))
            self.hub.push(session, session.outbox.wire.ack(self.ns, command.id, reply))

    async def _on_join(self, session: Session, command: Command) -> None:
        room = self._room_of(command)
        if room is None:
            raise InvalidMessage("Invalid message format: room missing")
        self._check_join_rate(session)
        await self.rooms.join(session, room, command.since, command.id)

    def _check_join_rate(self, session: Session) -> None:
        if not session.connection.joins.take(session.connection.heard):
            raise RateLimited

    async def _on_join_room(self, session: Session, command: Command) -> None:
        try:
            data = msgspec.json.decode(command.data, type=_JoinData)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InvalidMessage from None
        room = self._room_of(command, _JoinData)
        if room is None:
            raise InvalidMessage("Invalid message format: roomId missing")

        def reply(wire: Wire, joined: Joined) -> bytes | None:
            if command.id is None:
                return None
            answer = {
                "success": True,
                "room": joined.room,
                "members": joined.members,
                "recentMessages": msgspec.Raw(joined.recent),
                "position": joined.position,
            }
            if joined.recovered is not None:
                answer["recovered"] = joined.recovered
            return wire.ack(self.ns, command.id, payload.dump(answer))

        self._check_join_rate(session)
        since = data.since or command.since
        await self.rooms.join(session, room, since, command.id, reply)

    async def _on_leave(self, session: Session, command: Command) -> None:
        member = self._member(session, command)
        await self.rooms.leave(session, member.room.name)
        self.hub.push(
            session, session.outbox.wire.left(self.ns, member.room.name, command.id, None)
        )

    async def _on_leave_room(self, session: Session, command: Command) -> None:
        member = self._member(session, command)
        await self.rooms.leave(session, member.room.name)
        self._ack(session, command, {"success": True, "room": member.room.name})

    async def _on_history(self, session: Session, command: Command) -> None:
        member = self._member(session, command)
        data = self._page_data(command)
        page = await self.page(member.room, before=data.before, after=data.after, limit=data.limit)
        self._ack(
            session,
            command,
            {
                "messages": msgspec.Raw(
                    self.rooms.recent_json(member.room_type, page.publications)
                ),
                "position": page.position,
                "more": page.more,
                "first": page.publications[0].offset if page.publications else None,
            },
        )

    async def _on_members(self, session: Session, command: Command) -> None:
        member = self._member(session, command)
        data = self._page_data(command)
        if member.room_type.options.presence == "none":
            raise AccessDenied
        limit = max(1, min(data.limit, self.options.page_limit))
        if member.room_type.options.presence == "counts":
            counts = await member.room.counts()
            self._ack(session, command, {"members": [], "count": counts.users, "cursor": ""})
            return
        page = await member.room.members(cursor=data.cursor, limit=limit)
        self._ack(
            session,
            command,
            {"members": page.members, "count": page.counts.users, "cursor": page.cursor},
        )

    def _page_data(self, command: Command) -> _PageData:
        data = bytes(command.data)
        return payload.load(data, _PageData) if data != b"null" else _PageData()

    async def _on_refresh(self, session: Session, command: Command) -> None:
        token = payload.load(bytes(command.data), dict[str, Any]).get("token")
        if not isinstance(token, str) or not token:
            raise InvalidMessage("Invalid message format: token missing")
        user = await self.lobby.authenticate(
            Credentials(scope=session.connection.scope, token=token, source="message")
        )
        if user is None or user.id != session.user_id:
            raise AccessDenied("Access denied: the token is another user's")
        # The same person in other namespaces, by the same backend, showed the same token there.
        for other in list(session.connection.sessions.values()):
            if other.user_id == user.id and other.engine.namespace.auth is self.namespace.auth:
                other.user = user
                other.engine.lobby.set_expiry(other)
                await other.engine.rooms.leave_forbidden(other)
        expires = None if user.expires_at is None else int(user.expires_at * 1000)
        self._ack(session, command, {"success": True, "expiresAt": expires})

    # Publishing

    def room(self, name: str) -> Room:
        """Return a room by name.

        Raises:
            UnknownRoom: no kind of room has this name.
        """
        room_type, params = self.namespace.router.match(name)
        if not native.is_name(name):
            raise UnknownRoom
        return Room(self, name, room_type, params)

    def retention(self, room_type: RoomType) -> Retention:
        """Return how much is kept of rooms of this kind."""
        kept = self._retention.get(room_type)
        if kept is None:
            kept = room_type.retention(self.options.history, self.options.history_age)
            self._retention[room_type] = kept
        return kept

    def publish(self, room: Room, draft: Draft) -> Awaitable[Published]:
        """Publish into a room."""
        kept = self._retention.get(room.type) or self.retention(room.type)
        if not kept.size and draft.lane is Lane.HISTORY:
            draft = msgspec.structs.replace(draft, lane=Lane.NONE)
        slow = room.type.options.slow
        if slow != "disconnect" or draft.key:
            # A connection has one queue for all its rooms: a key is the room's own.
            key = draft.key or (draft.event if slow == "conflate" else "")
            draft = msgspec.structs.replace(
                draft,
                key=f"{room.name}\0{key}" if key else "",
                volatile=draft.volatile or (slow == "drop" and draft.lane is Lane.NONE),
            )
        return self.runtime.broker.publish(room.channel, draft, kept)

    async def page(self, room: Room, *, before: int | None, after: int | None, limit: int) -> Page:
        """Return a page of a room's history; empty where nothing is kept."""
        if self.runtime.history is None:
            return Page([], _EPHEMERAL)
        limit = max(1, min(limit, self.options.page_limit))
        page = await self.runtime.history.page(
            room.channel, before=before, after=after, limit=limit
        )
        fits = self.options.recent_bytes
        if after is None:
            publications = fitting(page.publications[::-1], fits)[::-1]
        else:
            publications = fitting(page.publications, fits)
        more = page.more or len(publications) < len(page.publications)
        return Page(publications, page.position, more)

    async def find(self, room: Room, id: str) -> Publication | None:
        """Return what a room's history has under `id`; None where nothing is kept."""
        if self.runtime.history is None:
            return None
        return await self.runtime.history.find(room.channel, id)

    def ephemeral(self, event: str, data: bytes) -> Publication:
        """Return a publication that is kept nowhere."""
        return Publication(event, data)

    async def tell(self, channel: str, event: str, data: Any, exclude: str = "") -> None:
        """Publish an event that is kept nowhere to a channel that is no room."""
        draft = Draft(event=event, data=payload.dump(data), lane=Lane.NONE, exclude=exclude)
        await self.runtime.broker.publish(channel, draft, NOTHING_KEPT)
