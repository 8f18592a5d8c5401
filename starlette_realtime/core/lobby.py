"""Coming and going: who a client is, its session, resuming, expiry, and the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import anyio
import msgspec
from itsdangerous import BadData, URLSafeSerializer

from ..auth.base import Credentials, User
from ..errors import (
    AuthenticationRequired,
    BrokerUnavailable,
    CloseCode,
    InvalidUser,
)
from ..events import Position, Publication
from ..protocols import payload
from ..sessions.base import SessionRecord
from .hub import Channel
from .namespace import ConnectionContext, Happening
from .outbox import Hello
from .session import Connection, Session

if TYPE_CHECKING:
    from .engine import Engine

logger = logging.getLogger("starlette_realtime")


MAX_DETACHED = 50_000
"""Sessions without a connection that a process keeps; beyond, the oldest one ends early."""


class Introduction(msgspec.Struct, frozen=True):
    """What a client may say in its first message."""

    token: str | None = None
    resume: str | None = None
    rooms: dict[str, Position | None] = {}
    """Rooms to be joined in the same step, each with the position the client has."""
    device_id: str | None = msgspec.field(default=None, name="deviceId")


class Lobby:
    """Sessions of one namespace, from `connect` to their end.

    A session whose connection is lost stays for the resume window: its client comes back to it with
    a signed token, on any process; on this one it finds its `data` and the questions that wait for
    an answer, too.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ns = engine.ns
        self.runtime = engine.runtime
        self.options = engine.options
        self.hub = engine.hub
        self.namespace = engine.namespace
        self._detached: dict[str, Session] = {}
        self._signer = URLSafeSerializer(engine.runtime.secret, salt=f"realtime.resume{self.ns}")

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
        await self._count(connection, user)
        resumed = await self._resume(connection, user, introduction.resume)
        session = resumed or Session(self.engine, connection, user)
        if introduction.device_id is not None:
            session.device_id = introduction.device_id

        async def open_() -> None:
            for name in self._own_channels(session):
                channel = self.hub.channel(name, self.ns, None)
                await self.runtime.subscribe(channel)
                self.hub.go_live(channel, session, None)
            await self._put(session)

        try:
            context = ConnectionContext(session=session)
            await self.engine.wrapped(self.namespace.connection_middleware, context, open_)
        except BaseException:
            self._close_own_channels(session)
            raise
        self.hub.sessions[session.id] = session
        connection.sessions[self.ns] = session
        self._set_bucket(session)
        self.set_expiry(session)
        self._greet(session, resumed is not None)
        if self.namespace.observed("connection"):
            await self.namespace.emit(Happening(name="connection", session=session))
        for number, asked in (session.requests or {}).items():
            session.ask(number, asked)
        return session

    def _greet(self, session: Session, resumed: bool) -> None:
        options = self.options
        hello = Hello(
            session_id=session.id,
            client_id=session.client_id,
            user_id=session.user_id,
            server_time=int(time.time() * 1000),
            ping_interval=int(options.ping_interval * 1000),
            ping_timeout=int(options.ping_timeout * 1000),
            max_payload=options.max_payload,
            resume=str(
                self._signer.dumps([session.id, session.generation, session.user_id])
                if options.resume_window
                else ""
            ),
            resumed=resumed,
        )
        self.hub.push(session, session.outbox.wire.connected(self.ns, hello))

    # Limits

    async def _count(self, connection: Connection, user: User | None) -> None:
        limit = self.options.max_connections_per_user
        if user is None or not limit:
            return
        key = f"user{self.ns}:{user.id}"
        await self.runtime.hold(connection, key, limit, "Limit exceeded: too many connections")

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
        connection = session.connection
        session.expiry = self.runtime.timers.call_later(
            max(0.0, user.expires_at - time.time()),
            lambda: connection.close(CloseCode.EXPIRED, "token expired"),
        )

    # Resuming

    async def _resume(
        self, connection: Connection, user: User | None, token: str | None
    ) -> Session | None:
        """Return the session that `token` stands for, if it is this user's and still there."""
        window = self.options.resume_window
        if not token or not window or len(token) > 1024:
            return None
        try:
            id, generation, user_id = self._signer.loads(token)
        except (BadData, ValueError, TypeError):
            return None
        if user_id != (user.id if user is not None else None):
            return None
        record = await self.runtime.sessions.resume(id, generation, self._record_ttl)
        if record is None:
            return None
        session = self._detached.pop(id, None)
        if session is None:
            here = self.hub.sessions.get(id)
            if isinstance(here, Session):
                # The old connection has not noticed yet that it is dead, or it is not.
                session = here
                session.connection.sessions.pop(self.ns, None)
                session.connection.close(CloseCode.REPLACED, "resumed elsewhere")
                await self._detach(session)
            else:
                session = Session(self.engine, connection, user)
                session.id = id
                session.status = record.status
                await self.engine.tell(
                    self.engine.session_channel(id), "$replaced", record.generation
                )
        session.generation = record.generation
        session.connection = connection
        session.outbox = connection.outbox
        session.user = user
        session.closed = False
        return session

    @property
    def _record_ttl(self) -> float:
        # Renewed every third of the lease time, so that it never ends before the window does.
        return self.options.resume_window + self.options.presence_ttl

    async def _put(self, session: Session) -> None:
        if self.options.resume_window and session.generation == 1:
            await self.runtime.sessions.put(self.record(session), self._record_ttl)

    def record(self, session: Session) -> SessionRecord:
        """What the session store knows of `session`."""
        return SessionRecord(
            session.id, self.ns, session.user_id, session.generation, session.status
        )

    def control(self, channel: Channel, publication: Publication) -> None:
        """Take a message of another process, or this one, to the servers."""
        data = payload.load(publication.data)
        for receiver in channel.receivers():
            if not isinstance(receiver, Session):
                continue
            if publication.event == "$replaced" and receiver.generation < data:
                # Its rooms go on elsewhere under the same id: nobody leaves.
                receiver.generation = -1
                receiver.disconnect(CloseCode.REPLACED, "resumed elsewhere")
            elif publication.event == "$disconnect":
                receiver.disconnect(data["code"], data["reason"])

    # The end

    async def disconnect(self, session: Session, code: int) -> None:
        """Let go of a session whose connection has closed with `code`.

        Its rooms see it leave at once when the client closed deliberately (1000, 1001) or was sent
        away (4400 to 4499), else when the grace period is over and it has not come back.
        """
        if session.connection.sessions.get(self.ns) is not session:
            return
        del session.connection.sessions[self.ns]
        with anyio.CancelScope(shield=True):
            replaced = session.generation < 0
            deliberate = code in (1000, 1001) or (4400 <= code < 4500 and not replaced)
            keep = not deliberate and self.options.resume_window > 0
            await self._detach(session, replaced=replaced, linger=keep)
            if not keep:
                self._end(session)
                await self._forget_record(session)
            elif not replaced:
                self._keep(session)
            if self.namespace.observed("disconnection"):
                await self.namespace.emit(
                    Happening(name="disconnection", session=session, code=code)
                )

    async def _forget_record(self, session: Session) -> None:
        if not self.options.resume_window:
            return
        try:
            await self.runtime.sessions.end(session.id)
        except BrokerUnavailable:
            logger.warning("a session's record must end by itself: the backend is away")

    async def _detach(
        self, session: Session, *, replaced: bool = False, linger: bool = True
    ) -> None:
        """Take a session off its connection; unless it lingers, its rooms see it leave."""
        members = list(session.memberships.values())
        session.memberships.clear()
        self._close_own_channels(session)
        self.hub.sessions.pop(session.id, None)
        if session.expiry is not None:
            session.expiry.cancel()
        rooms = self.engine.rooms
        if replaced:
            for member in members:
                rooms.detach(member)
        elif linger and self.options.presence_grace:
            await rooms.linger(members)
        else:
            for member in members:
                await rooms.depart(member)

    def _keep(self, session: Session) -> None:
        self._detached[session.id] = session
        generation = session.generation
        while len(self._detached) > MAX_DETACHED:
            self._end(self._detached.pop(next(iter(self._detached))))

        def is_over() -> None:
            if self._detached.get(session.id) is session and session.generation == generation:
                del self._detached[session.id]
                self._end(session)

        self.runtime.timers.call_later(self.options.resume_window, is_over)

    def _end(self, session: Session) -> None:
        session.closed = True
        self._close_own_channels(session)
        self.hub.sessions.pop(session.id, None)
        if session.expiry is not None:
            session.expiry.cancel()
        if session.bucket is not None:
            self.runtime.release_bucket(session.bucket)
            session.bucket = None
        for asked in (session.requests or {}).values():
            asked.answered.set()

    def _own_channels(self, session: Session) -> Iterable[str]:
        yield self.engine.everyone_channel
        yield self.engine.session_channel(session.id)
        if session.user_id is not None:
            yield self.engine.user_channel(session.user_id)

    def _close_own_channels(self, session: Session) -> None:
        for name in self._own_channels(session):
            channel = self.hub.channels.get(name)
            if channel is not None:
                self.hub.remove(channel, session)
                self.runtime.release(channel)
