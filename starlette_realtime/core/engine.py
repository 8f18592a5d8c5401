"""Dispatch: what happens with a command of a client, in order, and with its session.

One path for a message: door → codec → `dispatch` (membership, route) → handler → `Room.publish` →
broker ⇒ hub → outbox → door. Commands of one connection are handled one after the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import anyio
import msgspec

from ..auth.base import Credentials, User
from ..errors import (
    AccessDenied,
    AuthenticationRequired,
    BrokerUnavailable,
    ClientError,
    CloseConnection,
    InternalError,
    InvalidMessage,
    InvalidUser,
    LimitExceeded,
    NotInRoom,
    TimedOut,
    Unavailable,
    UnknownEvent,
    UnknownRoom,
)
from ..events import Command, Draft, Lane, Page, Position, Publication, Published, Retention
from ..presence.base import Lease, PresenceStore
from ..protocols import payload
from .handlers import Call
from .hub import Channel, Hub
from .namespace import ConnectionContext, Context, Happening, Namespace
from .options import Options
from .outbox import Hello, Joined, Wire
from .recovery import Gap, merge
from .room import Room
from .router import RoomType
from .runtime import Read, Runtime
from .session import Connection, Member, Session

logger = logging.getLogger("starlette_realtime")

_EPHEMERAL = Position("", 0)
_NOTHING_KEPT = Retention(0, 0.0, 0)
_JOIN_ATTEMPTS = 5


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


class _Resend(msgspec.Struct):
    """Which client message is being handled, and how many publications it has caused so far."""

    scope: str
    id: str
    count: int = 0


_resend: ContextVar[_Resend | None] = ContextVar("starlette_realtime_resend", default=None)


def _allows(pattern: str, room: str) -> bool:
    return fnmatchcase(room, pattern)


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

    def start(self) -> None:
        """Take part in the running server."""
        self.runtime.resetters[self.ns] = self.tell_reset

    # Names of channels

    def room_channel(self, room: str) -> str:
        return f"room{self.ns}:{room}"

    def user_channel(self, user_id: str) -> str:
        return f"user{self.ns}:{user_id}"

    def session_channel(self, session_id: str) -> str:
        return f"session{self.ns}:{session_id}"

    @property
    def everyone_channel(self) -> str:
        return f"all{self.ns}:"

    # Sessions

    async def authenticate(self, credentials: Credentials) -> User | None:
        """Return who shows `credentials`; None for an anonymous client that may be one.

        Raises:
            AuthenticationRequired, AuthenticationFailed, InvalidUser: it may not come in.
        """
        user = await self.namespace.auth.authenticate(credentials)
        if user is None and not self.namespace.auth.anonymous:
            raise AuthenticationRequired
        if user is not None and not (user.id and len(user.id) <= 255 and user.id.isprintable()):
            raise InvalidUser
        return user

    async def connect(self, connection: Connection, user: User | None) -> Session:
        """Open a session for an authenticated client and tell it so.

        Raises:
            ClientError, CloseConnection: a middleware refused it.
        """
        session = Session(self, connection, user)

        async def open_() -> None:
            for name in self._own_channels(session):
                channel = self.hub.channel(name, self.ns, None)
                await self.runtime.subscribe(channel)
                self.hub.go_live(channel, session, None)

        try:
            await self._wrapped(
                self.namespace.connection_middleware, ConnectionContext(session=session), open_
            )
        except BaseException:
            self._close_own_channels(session)
            raise
        self.hub.sessions[session.id] = session
        connection.sessions[self.ns] = session
        options = self.options
        hello = Hello(
            session_id=session.id,
            client_id=connection.id,
            user_id=session.user_id,
            server_time=int(time.time() * 1000),
            ping_interval=int(options.ping_interval * 1000),
            ping_timeout=int(options.ping_timeout * 1000),
            max_payload=options.max_payload,
        )
        self.hub.push(session, session.outbox.wire.connected(self.ns, hello))
        if self.namespace.observed("connection"):
            await self.namespace.emit(Happening(name="connection", session=session))
        return session

    def _own_channels(self, session: Session) -> Iterable[str]:
        yield self.everyone_channel
        yield self.session_channel(session.id)
        if session.user_id is not None:
            yield self.user_channel(session.user_id)

    def _close_own_channels(self, session: Session) -> None:
        for name in self._own_channels(session):
            channel = self.hub.channels.get(name)
            if channel is not None:
                self.hub.remove(channel, session)
                self.runtime.release(channel)

    async def disconnect(self, session: Session, code: int) -> None:
        """End a session whose connection has closed with `code`. Its rooms see it leave at once
        when the client closed deliberately (1000, 1001), else after the grace period."""
        if session.closed:
            return
        session.closed = True
        deliberate = code in (1000, 1001) or 4400 <= code < 4500
        members = list(session.memberships.values())
        session.memberships.clear()
        with anyio.CancelScope(shield=True):
            for member in members:
                try:
                    await self._depart(member, deliberate)
                except BrokerUnavailable:
                    # The lease is not renewed any more, so it ends by itself.
                    logger.warning("leaving %s must wait for the backend", member.room.name)
            self._close_own_channels(session)
            self.hub.sessions.pop(session.id, None)
            if self.namespace.observed("disconnection"):
                await self.namespace.emit(
                    Happening(name="disconnection", session=session, code=code)
                )

    # Dispatch

    async def dispatch(self, session: Session, command: Command) -> None:
        """Handle one command of a client. Never raises but for cancellation and `CloseConnection`."""
        try:
            run = self._commands.get(command.type)
            handle = (
                partial(run, session, command) if run else partial(self._event, session, command)
            )
            if self.namespace.event_middleware:
                await self._wrapped(
                    self.namespace.event_middleware,
                    Context(session=session, command=command),
                    handle,
                )
            else:
                await handle()
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
        except Exception as error:
            logger.exception("the handler of %r raised", command.type)
            self.refuse(session, InternalError(), command.id)
            if self.namespace.observed("error"):
                await self.namespace.emit(
                    Happening(name="error", session=session, error=error, command=command)
                )

    async def _wrapped(
        self,
        middleware: Sequence[Callable[..., Awaitable[Any]]],
        context: Any,
        inner: Callable[[], Awaitable[Any]],
    ) -> Any:
        for layer in reversed(middleware):
            inner = partial(layer, context, inner)
        return await inner()

    def refuse(self, session: Session, error: ClientError, id: int | str | None) -> None:
        """Tell a client of an error."""
        self.hub.push(session, session.outbox.wire.error(self.ns, error, id))

    def _ack(self, session: Session, command: Command, data: Any) -> None:
        if command.id is not None:
            self.hub.push(session, session.outbox.wire.ack(self.ns, command.id, payload.dump(data)))

    def answer(self, connection: Connection, command: Command) -> None:
        """Take a client's ack to a request of ours. An ack nobody waits for is ignored."""
        waiting = connection.acks.get(command.id) if connection.acks else None  # type: ignore[arg-type]
        if waiting is not None:
            waiting.data = bytes(command.data)
            waiting.event.set()

    def _room_of(self, command: Command, kind: type[_RoomRef] = _RoomRef) -> str | None:
        if command.room is not None:
            return command.room
        try:
            ref = msgspec.json.decode(command.data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        name = ref.room_id if ref.room_id is not None else ref.room
        if name is not None and not (0 < len(name) <= 255 and name.isprintable()):
            raise InvalidMessage("Invalid message format: bad room name")
        return name

    async def _event(self, session: Session, command: Command) -> None:
        handler = self.namespace.handlers.get(command.type)
        if handler is not None and command.room is None:
            call = Call({"session": session}, {}, bytes(command.data))
        elif command.type in self._room_events:
            member = self._member(session, self._room_of(command))
            handler = member.room_type.handlers.get(command.type)
            if handler is None:
                raise UnknownEvent(f"Unknown event: {command.type}")
            call = member.room_type.call(member, bytes(command.data))
        else:
            raise UnknownEvent(f"Unknown event: {command.type}")
        token = None
        if command.message_id:
            scope = f"{session.user_id or session.id}/{command.message_id}"
            token = _resend.set(_Resend(scope, command.message_id))
        try:
            with anyio.move_on_after(self.options.handler_timeout) as scope_:
                result = await handler(call)
                self._ack(session, command, result)
                return
            if scope_.cancelled_caught:
                logger.warning("the handler of %r was cancelled: too slow", command.type)
                raise TimedOut
        finally:
            if token is not None:
                _resend.reset(token)

    def _member(self, session: Session, room: str | None) -> Member:
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
        member = self._member(session, self._room_of(command))
        if not member.room_type.options.broadcast:
            raise AccessDenied
        data = bytes(command.data)
        if command.room is None:
            # The room was named inside: what is beside it is what is meant.
            whole = payload.load(data)
            data = payload.dump(whole.get("data", whole))
        elif b"\n" in data or b"\r" in data:
            data = msgspec.json.format(data, indent=-1)
        id = f"{session.user_id or session.id}/{command.message_id}" if command.message_id else ""
        draft = Draft(event="broadcast", data=data, id=id)
        published = await self.publish(member.room, draft)
        if command.id is not None:
            self._ack(session, command, {"success": True, "position": published.position})

    async def _on_join(self, session: Session, command: Command) -> None:
        room = self._room_of(command)
        if room is None:
            raise InvalidMessage("Invalid message format: room missing")
        await self.join(session, room, command.since, command.id)

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

        await self.join(session, room, data.since or command.since, command.id, reply)

    async def _on_leave(self, session: Session, command: Command) -> None:
        room = self._room_of(command)
        member = self._member(session, room)
        await self._leave(member)
        self.hub.push(
            session, session.outbox.wire.left(self.ns, member.room.name, command.id, None)
        )

    async def _on_leave_room(self, session: Session, command: Command) -> None:
        member = self._member(session, self._room_of(command))
        await self._leave(member)
        self._ack(session, command, {"success": True, "room": member.room.name})

    async def _on_history(self, session: Session, command: Command) -> None:
        member = self._member(session, self._room_of(command))
        data = self._page_data(command)
        page = await self.page(member.room, before=data.before, after=data.after, limit=data.limit)
        self._ack(
            session,
            command,
            {
                "messages": msgspec.Raw(self._recent_json(member.room_type, page.publications)),
                "position": page.position,
                "more": page.more,
            },
        )

    async def _on_members(self, session: Session, command: Command) -> None:
        member = self._member(session, self._room_of(command))
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
        user = await self.authenticate(
            Credentials(scope=session.connection.scope, token=token, source="message")
        )
        if user is None or user.id != session.user_id:
            raise AccessDenied("Access denied: the token is another user's")
        session.user = user
        expires = None if user.expires_at is None else int(user.expires_at * 1000)
        self._ack(session, command, {"success": True, "expiresAt": expires})

    # Joining and leaving

    async def join_and_tell(self, session: Session, room: str) -> None:
        """Let the server make a session a member; the client is told by `joined`."""
        await self.join(session, room, None, None)

    async def join(
        self,
        session: Session,
        name: str,
        since: Position | None,
        id: int | str | None,
        reply: Callable[[Wire, Joined], bytes | None] | None = None,
    ) -> None:
        """Make `session` a member of a room and tell it what it needs to know, without a crack
        between history and live: add, buffering; subscribe; presence; read; merge; reply; unbuffer.

        Raises:
            UnknownRoom, AccessDenied, LimitExceeded, BrokerUnavailable: it is no member.
        """
        room_type, params = self.namespace.router.match(name)
        existing = session.memberships.get(name)
        if existing is not None:
            member = existing
        else:
            if len(session.memberships) >= self.options.max_rooms:
                raise LimitExceeded(f"Limit exceeded: at most {self.options.max_rooms} rooms")
            room = Room(self, name, room_type, params)
            channel = self.hub.channel(self.room_channel(name), self.ns, name)
            member = Member(session, room, room_type, channel, params)
            try:
                await self._authorize(member)
            except BaseException:
                self.runtime.release(channel)
                raise
        channel = self.hub.channel(member.channel.name, self.ns, name)
        member.channel = channel
        if existing is not None:
            # It asks again, perhaps with a position: it gets what it asks for as if it were new.
            self.hub.flush()
            self.hub.remove(channel, session)
        self.hub.begin(channel, session)
        try:
            await self.runtime.subscribe(channel)
            await self._enter(member)
            joined, missed, position = await self._read(member, since)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._abandon(member)
            raise
        # No step of the event loop from here to going live.
        wire = session.outbox.wire
        message = reply(wire, joined) if reply else wire.joined(self.ns, joined, id)
        self.hub.go_live(channel, session, position)
        self.hub.push(session, *([message] if message else []), *missed)
        session.memberships[name] = member
        if session.closed:
            # It went away while another task let it join.
            del session.memberships[name]
            await self._depart(member, deliberate=False)
            return
        if existing is None:
            await self._hooks(member, room_type.joiners)
            if self.namespace.observed("room-joined"):
                await self.namespace.emit(
                    Happening(name="room-joined", session=session, member=member, room=name)
                )

    async def _authorize(self, member: Member) -> None:
        user = member.user
        if user is not None and user.capabilities is not None:
            if not any(_allows(pattern, member.room.name) for pattern in user.capabilities):
                raise AccessDenied
        call = member.room_type.call(member)
        for authorize in member.room_type.authorizers:
            with anyio.fail_after(self.options.handler_timeout):
                if await authorize(call) is not True:
                    raise AccessDenied

    async def _abandon(self, member: Member) -> None:
        """Undo a join that failed half-way."""
        self.hub.remove(member.channel, member.session)
        member.session.memberships.pop(member.room.name, None)
        self.runtime.release(member.channel)
        try:
            await self.presence.leave(member.channel.name, member.session.id)
        except BrokerUnavailable:
            logger.warning("leaving %s must wait for the backend", member.room.name)

    async def _enter(self, member: Member) -> None:
        """Let presence know of a member."""
        session = member.session
        user = session.user
        kind = member.room_type.options.presence
        if user is None or kind == "none":
            return
        info = payload.dump(user.info)
        arrival = departure = None
        if kind == "full":
            ids = {"userId": user.id, "roomId": member.room.name}
            arrival = Draft(
                event="user-joined",
                data=payload.dump({**ids, "user": msgspec.Raw(info)}),
                lane=Lane.PRESENCE,
                exclude=session.id,
            )
            departure = Draft(
                event="user-left", data=payload.dump(ids), lane=Lane.PRESENCE, exclude=session.id
            )
        await self.presence.enter(
            member.channel.name,
            Lease(session.id, user.id, info),
            ttl=self.options.presence_ttl,
            arrival=arrival,
            departure=departure,
            retention=self._retention(member.room_type),
        )

    async def reenter(self, channel: str, session: Session) -> None:
        """Enter a lease again that was lost with the backend."""
        for member in list(session.memberships.values()):
            if member.channel.name == channel:
                await self._enter(member)

    def leases(self, session: Session) -> Iterable[str]:
        """Channels in which `session` holds a lease."""
        if session.user is None:
            return []
        return [
            member.channel.name
            for member in session.memberships.values()
            if member.room_type.options.presence != "none"
        ]

    async def _read(
        self, member: Member, since: Position | None
    ) -> tuple[Joined, list[bytes], Position | None]:
        """Return what the member is told, the encoded events it missed, and where it then stands."""
        channel, session = member.channel, member.session
        wire = session.outbox.wire
        members, count = await self._members(member)
        room = member.room.name
        if self.runtime.history is None:
            # Nothing kept: whoever comes with a position learns that it cannot be honoured.
            lost = None if since is None else False
            return Joined(room, members, b"[]", _EPHEMERAL, lost, count), [], None
        recoverable = since is not None and self._retention(member.room_type).size > 0
        for _ in range(_JOIN_ATTEMPTS):
            missed: list[Publication] | None = None
            if since is not None and recoverable:
                read = await self.runtime.recover(channel.name, since)
                missed = read.since(since)
            if missed is None:
                read = await self.runtime.recent(channel.name, self._recent_limit(member))
            collected = self.hub.collected(channel, session)
            merged = (
                Gap()
                if collected is None
                else merge(missed if missed is not None else [], read.position, collected)
            )
            if isinstance(merged, Gap):
                self.hub.rewind(channel, session)
                continue
            publications, position = merged
            if missed is not None:
                events = self._encoded(read, missed, publications, channel, session, wire)
                return Joined(room, members, b"[]", position, True, count), events, position
            recent: bytes = read.once(
                "recent", lambda found: self._recent_json(member.room_type, found)
            )
            joined = Joined(
                room, members, recent, read.position, None if since is None else False, count
            )
            tail = self._encode(publications, channel, session, wire)
            return joined, tail, position
        raise Unavailable

    def _encoded(
        self,
        read: Read,
        missed: list[Publication],
        publications: list[Publication],
        channel: Channel,
        session: Session,
        wire: Wire,
    ) -> list[bytes]:
        """Encode what a member missed; the part that was read is encoded once for all who share it."""
        everything: list[bytes] = read.once(
            wire, lambda found: [wire.event(self.ns, channel.room, p) for p in found]
        )
        shared = everything[len(everything) - len(missed) :]
        if any(p.exclude == session.id for p in missed):
            shared = [
                message
                for message, p in zip(shared, missed, strict=True)
                if p.exclude != session.id
            ]
        return shared + self._encode(publications[len(missed) :], channel, session, wire)

    def _encode(
        self, publications: list[Publication], channel: Channel, session: Session, wire: Wire
    ) -> list[bytes]:
        return [
            wire.event(self.ns, channel.room, publication)
            for publication in publications
            if publication.exclude != session.id
        ]

    def _recent_limit(self, member: Member) -> int:
        own = member.room_type.options.recent
        return self.options.recent if own is None else own

    def _recent_json(self, room_type: RoomType, publications: Sequence[Publication]) -> bytes:
        if room_type.recent is not None:
            return payload.dump(room_type.recent(publications))
        return payload.dump(
            [
                {"type": p.event, "offset": p.offset, "data": msgspec.Raw(p.data)}
                for p in publications
            ]
        )

    async def _members(self, member: Member) -> tuple[list[msgspec.Raw], int]:
        kind = member.room_type.options.presence
        if kind == "none":
            return [], 0
        name = member.channel.name
        if kind == "counts":
            counts = await self.runtime.reads.ask(
                (name, "counts"), None, lambda _: self.presence.counts(name)
            )
            return [], counts.users
        limit = self.options.page_limit

        async def read(_: list[None]) -> tuple[list[msgspec.Raw], int]:
            page = await self.presence.members(name, limit=limit)
            encoded = [msgspec.Raw(msgspec.json.encode(info)) for info in page.members]
            return encoded, page.counts.users

        result: tuple[list[msgspec.Raw], int] = await self.runtime.reads.ask(
            (name, "members"), None, read
        )
        return result

    async def _leave(self, member: Member) -> None:
        if member.session.memberships.pop(member.room.name, None) is None:
            raise NotInRoom
        with anyio.CancelScope(shield=True):
            await self._depart(member, deliberate=True)

    async def remove(self, session: Session, room: str, reason: str | None) -> None:
        """Take a session out of a room on the server's own account."""
        member = self._member(session, room)
        await self._leave(member)
        self.hub.push(session, session.outbox.wire.left(self.ns, room, None, reason))

    async def _depart(self, member: Member, deliberate: bool) -> None:
        session, channel = member.session, member.channel
        self.hub.remove(channel, session)
        self.runtime.release(channel)
        if session.user is not None and member.room_type.options.presence != "none":
            grace = self.options.presence_grace
            if deliberate or not grace:
                await self.presence.leave(channel.name, session.id)
            else:
                await self.presence.renew([(channel.name, session.id)], grace)
        await self._hooks(member, member.room_type.leavers)
        if self.namespace.observed("room-left"):
            await self.namespace.emit(
                Happening(name="room-left", session=session, member=member, room=member.room.name)
            )

    async def _hooks(
        self, member: Member, hooks: Sequence[Callable[[Call], Awaitable[Any]]]
    ) -> None:
        """Call join or leave hooks. What they raise is the app's trouble, not the client's."""
        for hook in hooks:
            try:
                with anyio.fail_after(self.options.handler_timeout):
                    await hook(member.room_type.call(member))
            except Exception:
                logger.exception("a hook of %r raised", member.room_type.pattern)

    async def tell_reset(self, channel: Channel) -> None:
        """Tell the members of a channel that something is lost, and what is there now."""
        for receiver in channel.receivers():
            if not isinstance(receiver, Session) or channel.room is None:
                continue
            member = receiver.memberships.get(channel.room)
            if member is None:
                continue
            members, count = await self._members(member)
            read = await self.runtime.recent(channel.name, self._recent_limit(member))
            recent = self._recent_json(member.room_type, read.publications)
            joined = Joined(member.room.name, members, recent, read.position, False, count)
            self.hub.push(receiver, receiver.outbox.wire.joined(self.ns, joined, None))

    # Publishing

    def room(self, name: str) -> Room:
        """Return a room by name.

        Raises:
            UnknownRoom: no kind of room has this name.
        """
        room_type, params = self.namespace.router.match(name)
        if len(name) > 255 or not name.isprintable():
            raise UnknownRoom
        return Room(self, name, room_type, params)

    def _retention(self, room_type: RoomType) -> Retention:
        return room_type.retention(self.options.history, self.options.history_age)

    async def publish(self, room: Room, draft: Draft) -> Published:
        """Publish into a room."""
        kept = self._retention(room.type)
        if draft.lane is Lane.HISTORY and not kept.size:
            draft = msgspec.structs.replace(draft, lane=Lane.NONE)
        return await self.runtime.broker.publish(self.room_channel(room.name), draft, kept)

    async def page(self, room: Room, *, before: int | None, after: int | None, limit: int) -> Page:
        """Return a page of a room's history; empty where nothing is kept."""
        if self.runtime.history is None:
            return Page([], _EPHEMERAL)
        limit = max(1, min(limit, self.options.page_limit))
        return await self.runtime.history.page(
            self.room_channel(room.name), before=before, after=after, limit=limit
        )

    def ephemeral(self, event: str, data: bytes) -> Publication:
        """Return a publication that is kept nowhere."""
        return Publication(event, data)

    async def tell(self, channel: str, event: str, data: Any, exclude: str = "") -> None:
        """Publish an event that is kept nowhere to a channel that is no room."""
        draft = Draft(event=event, data=payload.dump(data), lane=Lane.NONE, exclude=exclude)
        await self.runtime.broker.publish(channel, draft, _NOTHING_KEPT)
