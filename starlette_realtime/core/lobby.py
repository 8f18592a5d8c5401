"""Coming and going: who a client is, its session, resuming, expiry, and the end."""

from __future__ import annotations

import hmac
import logging
import time
from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated

import anyio
import msgspec

from ..auth.base import Credentials, User
from ..errors import (
    AccessDenied,
    AuthenticationRequired,
    BrokerUnavailable,
    CloseCode,
    Disconnected,
    InvalidUser,
)
from ..events import Position, Publication
from ..protocols import payload
from ..sessions.base import SessionRecord
from .channels import everyone_channel, session_channel, user_channel
from .hub import Channel
from .namespace import ConnectionContext, Happening, Signal
from .outbox import Hello
from .session import Connection, Session
from .timers import Countdowns
from .turns import Locks

if TYPE_CHECKING:
    from .engine import Engine

logger = logging.getLogger("starlette_realtime")


MAX_DETACHED = 50_000
"""Sessions without a connection that a process keeps; beyond, the oldest one ends early."""


def _expire(connection: Connection) -> None:
    connection.close(CloseCode.EXPIRED, "token expired")


class Introduction(msgspec.Struct, frozen=True):
    """What a client may say in its first message."""

    token: str | None = None
    resume: str | None = None
    rooms: dict[str, Position | None] = {}
    """Rooms to be joined in the same step, each with the position the client has."""
    device_id: Annotated[str, msgspec.Meta(max_length=255)] | None = msgspec.field(
        default=None, name="deviceId"
    )


class Lobby:
    """Sessions of one namespace, from `connect` to their end.

    A session whose connection is lost stays for the resume window: its client comes back to it with
    a signed token, on any process; on this one it finds its `data`, too.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ns = engine.ns
        self.runtime = engine.runtime
        self.options = engine.options
        self.hub = engine.hub
        self.namespace = engine.namespace
        # Sessions without a connection, by their ids, until each one's resume window is over.
        self._detached: dict[str, Session] = {}
        self._windows = Countdowns(
            self.runtime.timers, self.options.resume_window, self._window_is_over
        )
        # What clients are told of their heartbeat, in milliseconds.
        self._ping_interval = int(self.options.ping_interval * 1000)
        self._ping_timeout = int(self.options.ping_timeout * 1000)
        # Sessions that are just now being taken off a connection or put onto one.
        self._moving = Locks()

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

    async def connect(
        self, connection: Connection, user: User | None, introduction: Introduction
    ) -> Session:
        """Open or resume a session for an authenticated client and tell it so.

        Raises:
            ClientError, CloseConnection: it was refused.
        """
        known = self._read_token(user, introduction.resume)
        await self._count(connection, user, known)
        if known is None:
            return await self._open(connection, user, introduction, None)
        await self._moving.acquire(known[0])
        try:
            resumed = await self._resume(connection, user, *known)
            return await self._open(connection, user, introduction, resumed)
        finally:
            self._moving.give(known[0])

    async def _open(
        self,
        connection: Connection,
        user: User | None,
        introduction: Introduction,
        resumed: Session | None,
    ) -> Session:
        session = resumed or Session(self.engine, connection, user)
        if introduction.device_id is not None:
            session.device_id = introduction.device_id
        channels: list[Channel] = []

        async def open_() -> None:
            # About to be a member first: nobody lets go of a channel that has one.
            for name in self._own_channels(session):
                channel = self.hub.channel(name, self.ns, None)
                self.hub.begin(channel, session)
                channels.append(channel)
            await self.runtime.subscribe(*channels)
            await self._put(session)
            if session.elsewhere:
                await self._tell_replaced(session)

        try:
            if self.namespace.connection_middleware:
                context = ConnectionContext(session=session)
                await self.engine.wrapped(self.namespace.connection_middleware, context, open_)
            else:
                await open_()
            if not channels:
                raise AccessDenied
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._abandon(session, resumed is not None)
            raise
        if resumed is not None:
            # What was kept while it came back as another object (see `heir`).
            self._end_kept(session.id)
        self.hub.sessions[session.id] = session
        connection.sessions[self.ns] = session
        self._set_bucket(session)
        self.set_expiry(session)
        self._greet(session, resumed is not None)
        # Nothing comes before the greeting; what a layer has let it leave again stays left.
        for channel in channels:
            if self.hub.collected(channel, session) is not None:
                self.hub.go_live(channel, session, None)
        for number, asked in (session.requests or {}).items():
            session.ask(number, asked)
        if self.namespace.observed("connection"):
            await self.namespace.emit(Happening(name="connection", session=session))
        return session

    async def _tell_replaced(self, session: Session) -> None:
        """Let all processes where it was let go of a session. Only when this one hears what is sent
        to it: others may have questions."""
        channel = self.engine.session_channel(session.id)
        await self.engine.tell(channel, "$replaced", session.generation)

    async def _abandon(self, session: Session, resumed: bool) -> None:
        """Undo an opening that failed. What was there before may be resumed again."""
        self._close_own_channels(session)
        await self.engine.rooms.let_go(session, replaced=False, linger=resumed)
        if resumed:
            self._keep(session)
        else:
            session.closed = True
            await self._forget_record(session)

    def _greet(self, session: Session, resumed: bool) -> None:
        hello = Hello(
            session_id=session.id,
            client_id=session.client_id,
            user_id=session.user_id,
            server_time=int(time.time() * 1000),
            ping_interval=self._ping_interval,
            ping_timeout=self._ping_timeout,
            max_payload=self.options.max_payload,
            resume=self._sign(session.id, session.generation, session.user_id)
            if self.options.resume_window
            else "",
            resumed=resumed,
        )
        self.hub.push(session, session.outbox.wire.connected(self.ns, hello))

    # Limits

    async def _count(
        self, connection: Connection, user: User | None, known: tuple[str, int] | None
    ) -> None:
        limit = self.options.max_connections_per_user
        if user is None or not limit:
            return
        key = f"user{self.ns}:{user.id}"
        here = self.hub.sessions.get(known[0]) if known is not None else None
        before: Connection | None = None
        if known is not None and isinstance(here, Session) and 0 <= here.generation - known[1] <= 1:
            before = here.connection
            # The connection that is about to be replaced does not stand in its successor's way,
            # and gives its place to nobody else.
            limit += key in before.holds
        await self.runtime.hold(connection, key, limit, "Limit exceeded: too many connections")
        if before is not None:
            await self.runtime.let_go(before, key)

    def _set_bucket(self, session: Session) -> None:
        if session.bucket is None and session.user_id is not None and self.options.user_rate:
            session.bucket = self.runtime.bucket(
                f"user{self.ns}:{session.user_id}", self.options.user_rate, self.options.user_burst
            )

    # Expiry

    def set_expiry(self, session: Session) -> None:
        """Close the session's connection when its credentials end."""
        if session.expiry is not None:
            session.expiry.cancel()
            session.expiry = None
        user = session.user
        if user is None or user.expires_at is None:
            return
        session.expiry = self.runtime.timers.call_later(
            max(0.0, user.expires_at - time.time()), _expire, session.connection
        )

    # Resuming

    def _read_token(self, user: User | None, token: str | None) -> tuple[str, int] | None:
        """Return the session and generation that `token` names, if it is this user's."""
        if not token or not self.options.resume_window or len(token) > 1024:
            return None
        id, _, rest = token.partition(".")
        generation = rest.partition(".")[0]
        if not generation.isascii() or not generation.isdigit() or len(generation) > 9:
            return None
        user_id = user.id if user is not None else None
        signed = self._sign(id, int(generation), user_id)
        if not hmac.compare_digest(signed.encode(), token.encode(errors="replace")):
            return None
        return id, int(generation)

    def _sign(self, id: str, generation: int, user_id: str | None) -> str:
        """Return the token that stands for a session: good for this namespace and user alone."""
        text = "\0".join((self.ns, id, str(generation), user_id or ""))
        # A third of what an HMAC takes, and every client gets one.
        mac = blake2b(text.encode(), key=self.runtime.secret[:64], digest_size=32).digest()
        return f"{id}.{generation}.{urlsafe_b64encode(mac).decode()}"

    async def _resume(
        self, connection: Connection, user: User | None, id: str, generation: int
    ) -> Session | None:
        """Return the session `id`, if it is still there and `generation` was not its last but
        one."""
        record = await self.runtime.sessions.resume(id, generation, self._record_ttl)
        if record is None:
            return None
        known = self._generation_here(id)
        kept = self._detached.pop(id, None)
        here = self.hub.sessions.get(id)
        if kept is not None:
            session = kept
            self._windows.stop(id)
        elif isinstance(here, Session):
            # The old connection has not noticed yet that it is dead, or it is not.
            session = here
            session.connection.sessions.pop(self.ns, None)
            session.connection.close(CloseCode.REPLACED, "resumed elsewhere")
            with anyio.CancelScope(shield=True):
                await self._detach(session)
        else:
            session = Session(self.engine, connection, user)
            session.id = id
            session.status = record.status
        self.engine.questions.back(session)
        if record.generation != known + 1:
            # It may have a connection on another process.
            session.elsewhere = record.generation - 1
        session.generation = record.generation
        session.connection = connection
        session.outbox = connection.outbox
        session.user = user
        session.closed = False
        return session

    def _generation_here(self, id: str) -> int:
        """Return which generation of a session this process had last; -1 for none."""
        found = self._detached.get(id) or self.hub.sessions.get(id)
        return found.generation if isinstance(found, Session) else -1

    @property
    def _record_ttl(self) -> float:
        # Renewed every third of the lease time, so that it never ends before the window does.
        return self.options.resume_window + self.options.presence_ttl

    async def _put(self, session: Session) -> None:
        if self.options.resume_window and session.generation == 1:
            await self.runtime.sessions.put(self.record(session), self._record_ttl)

    async def save(self, session: Session) -> None:
        """Let what is new about a session be there when it is resumed."""
        if self.options.resume_window:
            await self.runtime.sessions.put(self.record(session), self._record_ttl)

    def record(self, session: Session) -> SessionRecord:
        """What the session store knows of `session`."""
        return SessionRecord(
            session.id, self.ns, session.user_id, session.generation, session.status
        )

    def control(self, channel: Channel, publication: Publication) -> None:
        """Take a message of another process, or this one, to the servers."""
        if publication.event == "$interrupted":
            self.engine.orders.missed()
        handlers = self.namespace.signals.get(publication.event)
        if handlers is None and channel.room is not None:
            room_type, _ = self.namespace.router.match(channel.room)
            handlers = room_type.signals.get(publication.event)
        own = self.engine.signals.get(publication.event)
        if handlers is not None or own is not None:
            try:
                if own is not None:
                    own(channel, publication)
                for handler in handlers or ():
                    handler(Signal(self.engine, channel, publication))
            except Exception:
                logger.exception("the handler of %r raised", publication.event)
            return
        data = payload.load(publication.data)
        for receiver in channel.everyone():
            if not isinstance(receiver, Session):
                continue
            if publication.event == "$replaced":
                self._replace(receiver, data)
            elif publication.event == "$disconnect":
                receiver.disconnect(data["code"], data["reason"])

    def _replace(self, session: Session, generation: int) -> None:
        """Close the connection of a session that has gone on elsewhere with `generation`."""
        if session.generation < generation:
            # Its rooms go on there under the same id: nobody leaves.
            session.elsewhere = max(session.elsewhere, generation)
            session.disconnect(CloseCode.REPLACED, "resumed elsewhere")
            self.engine.questions.moved(session)
        elif (
            session.generation > generation
            and self.hub.sessions.get(session.id) is session
            and not session.moved
        ):
            # It was resumed twice in a moment, and the other one is the older.
            self.runtime.spawn(self._tell_replaced, session)

    async def resumed_elsewhere(self, session: Session, generation: int) -> None:
        """Do what a `$replaced` that was missed has asked for, unless it went on here."""
        await self._moving.acquire(session.id)
        try:
            self._replace(session, generation)
        finally:
            self._moving.give(session.id)

    # The end

    async def disconnect(self, session: Session, code: int) -> None:
        """Let go of a session whose connection has closed with `code`.

        Its rooms see it leave at once when the client closed deliberately (1000) or was sent
        away (4400 to 4499), else when the grace period is over and it has not come back. Not to be
        cancelled.
        """
        connection = session.connection
        if connection.sessions.get(self.ns) is not session:
            return
        del connection.sessions[self.ns]
        deliberate = code == CloseCode.NORMAL or 4400 <= code < 4500
        keep = not deliberate and self.options.resume_window > 0
        await self._moving.acquire(session.id)
        try:
            if session.connection is not connection:
                # Meanwhile it was resumed, here.
                return
            # The record first: a process that stood still learns that its time is over before
            # it takes from the rooms who has long been there again by way of another one.
            end = self._let_record_end if keep else self._forget_record
            if not session.moved and not await end(session):
                session.elsewhere = max(session.elsewhere, session.generation + 1)
            # Perhaps it has been announced meanwhile.
            replaced = session.moved
            await self._detach(session, replaced=replaced, linger=keep)
            if (keep and not replaced) or (replaced and session.requests):
                self._keep(session)
            else:
                self._end(session)
                if not replaced:
                    self._tell_ended(session)
            if self.runtime.stopping or code == CloseCode.RESTART:
                # It may come back, but not to this process.
                self.engine.questions.end(session)
        finally:
            self._moving.give(session.id)
        if self.namespace.observed("disconnection"):
            await self.namespace.emit(Happening(name="disconnection", session=session, code=code))

    async def _let_record_end(self, session: Session) -> bool:
        """Nobody renews the record any more: let it end with the window. Return False when it goes
        on elsewhere."""
        known = [(session.id, session.generation)]
        try:
            others = await self.runtime.sessions.renew(known, self.options.resume_window)
        except BrokerUnavailable:
            logger.warning("a session's record ends later than it should: the backend is away")
            return True
        return not any(generation for _, generation in others)

    async def _forget_record(self, session: Session) -> bool:
        """Let the session be resumed no more. Return False when it goes on elsewhere."""
        if not self.options.resume_window:
            return True
        try:
            return await self.runtime.sessions.end(session.id, session.generation)
        except BrokerUnavailable:
            logger.warning("a session's record must end by itself: the backend is away")
            return True

    async def _detach(
        self, session: Session, *, replaced: bool = False, linger: bool = True
    ) -> None:
        """Take a session off its connection; unless it lingers, its rooms see it leave."""
        members = list(session.memberships.values())
        session.memberships.clear()
        self._close_own_channels(session)
        if self.hub.sessions.get(session.id) is session:
            del self.hub.sessions[session.id]
        if session.expiry is not None:
            session.expiry.cancel()
        rooms = self.engine.rooms
        await rooms.let_go(session, replaced=replaced, linger=linger)
        if replaced:
            for member in members:
                rooms.detach(member)
        elif linger and self.options.presence_grace:
            await rooms.linger(members)
        else:
            for member in members:
                await rooms.depart(member)

    def _keep(self, session: Session) -> None:
        self._end_kept(session.id)
        self._detached[session.id] = session
        self._windows.start(session.id)
        while len(self._detached) > MAX_DETACHED:
            self._end_kept(self._windows.oldest)

    def _end_kept(self, id: str) -> None:
        """End what is kept of a session, if anything is."""
        kept = self._detached.pop(id, None)
        if kept is not None:
            self._windows.stop(id)
            self._end(kept)

    def _window_is_over(self, id: str) -> None:
        session = self._detached.pop(id)
        if session.moved and session.requests:
            # It is asked elsewhere, until these have ended.
            self._keep(session)
            return
        self._end(session)
        if not session.moved:
            self._tell_ended(session)

    def _end(self, session: Session) -> None:
        session.closed = True
        if session.expiry is not None:
            session.expiry.cancel()
        if session.bucket is not None:
            self.runtime.release_bucket(session.bucket)
            session.bucket = None
        self.engine.questions.end(session)

    def _tell_ended(self, session: Session) -> None:
        if session.elsewhere:
            self.runtime.spawn(self.engine.questions.tell_ended, session)

    def ended_elsewhere(self, session: Session) -> None:
        """The session, which is not here, has ended for good."""
        if self._detached.get(session.id) is session:
            session.elsewhere = 0
            self._end_kept(session.id)
        else:
            # Its connection here is just being closed.
            self.engine.questions.end(session)

    def heir(self, session: Session) -> Session:
        """Return what a session that has ended here goes on as, if it has moved: another one that
        came back to this process, or itself, to be followed where it is.

        Raises:
            Disconnected: it goes on nowhere.
        """
        if not session.moved or self.runtime.stopping:
            raise Disconnected("the session has ended")
        kept = self._detached.get(session.id)
        if kept is not None:
            return kept
        here = self.hub.sessions.get(session.id)
        if isinstance(here, Session) and here is not session:
            return here
        session.closed = False
        self._keep(session)
        return session

    def stop(self) -> None:
        """No session comes back to this process any more."""
        for session in self._detached.values():
            self.engine.questions.end(session)

    def _own_channels(self, session: Session) -> list[str]:
        names = [everyone_channel(self.ns), session_channel(self.ns, session.id)]
        if session.user is not None:
            names.append(user_channel(self.ns, session.user.id))
        names.extend(session.listening or ())
        return names

    def _close_own_channels(self, session: Session) -> None:
        for name in self._own_channels(session):
            channel = self.hub.channels.get(name)
            if channel is not None:
                self.hub.remove(channel, session)
                self.runtime.release(channel)
        self.engine.questions.detached(session)
