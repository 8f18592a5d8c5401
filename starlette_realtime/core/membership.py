"""Joining and leaving rooms, without a crack between history and live."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import anyio
import msgspec

from ..auth.base import User
from ..errors import (
    AccessDenied,
    BrokerUnavailable,
    LimitExceeded,
    NotInRoom,
    TimedOut,
    Unavailable,
)
from ..events import NOTHING_KEPT, Draft, Lane, Position, Publication
from ..presence.base import Lease
from ..protocols import payload
from .handlers import Call
from .hub import Channel
from .namespace import Happening
from .outbox import Framed, Joined, Outbox, Wire
from .recovery import Gap, merge
from .room import Room
from .router import RoomType
from .runtime import Read
from .session import Member, Session
from .timers import Countdowns
from .turns import Locks

if TYPE_CHECKING:
    from .engine import Engine

logger = logging.getLogger("starlette_realtime")

_EPHEMERAL = Position("", 0)
_JOIN_ATTEMPTS = 5

Reply = Callable[[Wire, Joined], bytes | None]
"""Makes the message that answers a join."""


def _is_behind(position: Position, channel: Channel) -> bool:
    """Whether the channel's other members have been given more than stands before `position`: what
    lies between is announced no more, or passes for a duplicate when it is."""
    return position.epoch == channel.epoch and position.offset < channel.offset


def _allows(user: User | None, room: str) -> bool:
    """Whether a client's credentials allow `room`."""
    patterns = user.capabilities if user is not None else None
    return patterns is None or any(fnmatchcase(room, pattern) for pattern in patterns)


class Membership:
    """Who is in which room of one namespace, on this process."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ns = engine.ns
        self.runtime = engine.runtime
        self.options = engine.options
        self.hub = engine.hub
        self.presence = engine.presence
        self.namespace = engine.namespace
        # Rooms that somebody here is in, by name: who comes next shares what was made of the name.
        self._rooms: WeakValueDictionary[str, Room] = WeakValueDictionary()
        # What is under way of a session in a room.
        self._moving = Locks()
        # Memberships whose connection is lost, until each one's grace period is over.
        self._graces = Countdowns(
            self.runtime.timers, self.options.presence_grace, self._linger_is_over
        )

    async def join(
        self,
        session: Session,
        name: str,
        since: Position | None = None,
        id: int | str | None = None,
        reply: Reply | None = None,
    ) -> None:
        """Make `session` a member of a room and tell it what it needs to know, without a crack
        between history and live: add, buffering; subscribe; presence; read; merge; reply; unbuffer.

        Raises:
            UnknownRoom, AccessDenied, LimitExceeded, BrokerUnavailable: it is no member.
        """
        member = session.memberships.get(name) or await self._candidate(session, name)
        key = (session, name)
        # One coming or going of a session in a room at a time, whoever asks for it: the client's
        # commands are in order, but the app may let it join or leave at any moment.
        await self._moving.acquire(key)
        try:
            existing = session.memberships.get(name)
            arrived = await self._bring_in(existing or member, since, id, reply, existing is None)
        finally:
            self._moving.give(key)
        if arrived:
            await self._hooks(member, member.room_type.joiners)
            if self.namespace.observed("room-joined"):
                await self.namespace.emit(
                    Happening(name="room-joined", session=session, member=member, room=name)
                )

    async def _candidate(self, session: Session, name: str) -> Member:
        """Return what may become a member."""
        room = self._rooms.get(name)
        if room is None:
            room_type, params = self.namespace.router.match(name)
            room = self._rooms[name] = Room(self.engine, name, room_type, params)
        if 0 < self.options.max_rooms <= len(session.memberships):
            raise LimitExceeded(f"Limit exceeded: at most {self.options.max_rooms} rooms")
        channel = self.hub.channels.get(room.channel) or Channel(room.channel, self.ns, name)
        member = Member(session, room, room.type, channel, room.params)
        await self._authorize(member)
        return member

    async def _bring_in(
        self,
        member: Member,
        since: Position | None,
        id: int | str | None,
        reply: Reply | None,
        new: bool,
    ) -> bool:
        """Return whether the room sees it arrive: not if it was there, or never seen gone."""
        session, name = member.session, member.room.name
        if since is not None:
            # Before there is a channel: one that nobody is in may be let go of meanwhile.
            await self._wait_for_room_in(session.outbox)
        channel = member.channel = self.hub.channel(member.channel.name, self.ns, name)
        if not new:
            # It asks again, perhaps with a position: it gets what it asks for as if it were new.
            self.hub.flush()
            self.hub.remove(channel, session)
        self.hub.begin(channel, session)
        try:
            if not channel.subscribed:
                await self.runtime.subscribe(channel)
            await self._enter(member)
            joined, missed, position = await self._read(member, since)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._abandon(member)
            if not new:
                self.runtime.spawn(self.tell_left, member)
            raise
        # No step of the event loop from here to going live.
        wire = session.outbox.wire
        message = reply(wire, joined) if reply else wire.joined(self.ns, joined, id)
        if missed:
            # It asked for them: a client that was closed for being slow must be able to recover.
            session.outbox.limit = self.options.max_queued + sum(map(len, missed)) + len(missed)
        self.hub.go_live(channel, session, position)
        self.hub.push(session, *([message] if message else []), *missed)
        session.memberships[name] = member
        if session.connection.gone:
            # It went away while another task let it join: nobody was told of it.
            await self._abandon(member)
            return False
        lingered = session.stop_lingering(name)
        if lingered is None:
            return new
        self._graces.stop(lingered)
        return False

    async def _wait_for_room_in(self, outbox: Outbox) -> None:
        """Let a client take what it has recovered before it recovers more."""
        while outbox.size > self.options.max_queued // 2 and not outbox.closed:  # noqa: ASYNC110
            # Seldom, and for this client alone: an event would cost every outbox its memory.
            await anyio.sleep(0.05)
        outbox.limit = self.options.max_queued

    async def _authorize(self, member: Member) -> None:
        if not _allows(member.user, member.room.name):
            raise AccessDenied
        for authorize in member.room_type.authorizers:
            call = member.room_type.call(member)
            allowed: object = None
            with self.engine.deadlines.scope() as scope:
                allowed = await authorize(call)
            if scope.cancelled_caught:
                raise TimedOut
            if allowed is not True:
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

    async def _enter(self, member: Member, *, again: bool = False) -> None:
        """Let presence know of a member; `again` when its lease was lost with the backend. Then it
        is told of its own arrival, too: the list it was given meanwhile may be without it."""
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
                exclude="" if again else session.id,
            )
            departure = Draft(
                event="user-left", data=payload.dump(ids), lane=Lane.PRESENCE, exclude=session.id
            )
        await self.presence.enter(
            member.channel.name,
            Lease(session.id, user.id, info, session.status),
            ttl=self.options.presence_ttl,
            arrival=arrival,
            departure=departure,
            retention=self.engine.retention(member.room_type),
        )

    async def reenter(self, channel: str, session: Session) -> None:
        """Enter a lease again that was lost with the backend."""
        held = session.held.get(channel) if session.held else None
        if held is not None:
            await self.hold(session, channel, *held)
        for member in list(session.memberships.values()):
            if member.channel.name == channel:
                await self._enter(member, again=True)

    def leases(self, session: Session) -> Iterable[str]:
        """Channels in which `session` holds a lease."""
        if session.user is None:
            return []
        return [
            *(session.held or ()),
            *(
                member.channel.name
                for member in session.memberships.values()
                if member.room_type.options.presence != "none"
            ),
        ]

    async def hold(
        self, session: Session, channel: str, arrival: Draft | None, departure: Draft | None
    ) -> bool:
        """Let an authenticated session be present in a channel that is no room, until its
        connection is gone (and the grace period over); return whether its user was not there
        before. `arrival` and `departure` are what `PresenceStore.enter` says."""
        assert session.user is not None
        if session.held is None:
            session.held = {}
        session.held[channel] = (arrival, departure)
        return await self.presence.enter(
            channel,
            Lease(session.id, session.user.id, payload.dump(session.user.info), session.status),
            ttl=self.options.presence_ttl,
            arrival=arrival,
            departure=departure,
            retention=NOTHING_KEPT,
        )

    async def let_go(self, session: Session, *, replaced: bool, linger: bool) -> None:
        """End what `hold` began: at once, or after the grace period if the session lingers. One
        that goes on elsewhere is held there."""
        held, session.held = session.held or {}, None
        grace = self.options.presence_grace
        try:
            if linger and grace and held and not replaced:
                await self.presence.renew([(channel, session.id) for channel in held], grace)
            elif not replaced:
                for channel in held:
                    await self.presence.leave(channel, session.id)
        except BrokerUnavailable:
            logger.warning("presence must wait for the backend")

    async def show(self, session: Session) -> None:
        """Let the lists of members show the session's user and status as they are now."""
        if session.user is None:
            return
        info = payload.dump(session.user.info)
        for channel in list(self.leases(session)):
            await self.presence.update(channel, session.id, user=info, status=session.status)

    async def _read(
        self, member: Member, since: Position | None
    ) -> tuple[Joined, Sequence[bytes | Framed], Position | None]:
        """Return what the member is told, the events it missed, and where it then stands."""
        channel, session = member.channel, member.session
        wire = session.outbox.wire
        room = member.room.name
        look = partial(self._members, member)
        if self.runtime.history is None:
            members, count = await self.runtime.reads.ask(channel.name, None, lambda _: look())
            # Nothing kept: whoever comes with a position learns that it cannot be honoured.
            lost = None if since is None else False
            return Joined(room, members, b"[]", _EPHEMERAL, lost, count), [], None
        recoverable = since is not None and self.engine.retention(member.room_type).size > 0
        for _ in range(_JOIN_ATTEMPTS):
            read: Read | None = None
            missed: list[Publication] | None = None
            if since is not None and recoverable:
                read = await self.runtime.recover(channel.name, since, look)
                missed = read.since(since)
            if read is None or missed is None:
                read = await self.runtime.recent(channel.name, self._recent_limit(member), look)
            collected = self.hub.collected(channel, session)
            merged = (
                Gap()
                if collected is None
                else merge(missed if missed is not None else [], read.position, collected)
            )
            if isinstance(merged, Gap) or _is_behind(merged[1], channel):
                self.hub.rewind(channel, session)
                continue
            publications, position = merged
            if missed is not None:
                tail = self._encode(publications[len(missed) :], channel, session, wire)
                events = [*self._encoded(read, missed, member, wire), *tail]
                joined = Joined(room, read.members, b"[]", position, True, read.count)
                return joined, events, position
            recent: bytes = read.once(
                "recent", lambda found: self.recent_json(member.room_type, found)
            )
            lost = None if since is None else False
            joined = Joined(room, read.members, recent, read.position, lost, read.count)
            tail = self._encode(publications, channel, session, wire)
            return joined, tail, position
        raise Unavailable

    def _encoded(
        self, read: Read, missed: list[Publication], member: Member, wire: Wire
    ) -> Sequence[bytes | Framed]:
        """Encode what a member missed: once for all who share what was read, and those who missed
        the same get the same bytes."""
        channel, session = member.channel, member.session
        viewed: Sequence[Publication] = read.once("viewed", member.room_type.missed or list)
        everything: list[bytes] = read.once(
            wire, lambda _: wire.events(self.ns, channel.room, viewed)
        )
        start = len(everything) - len(missed)
        if session.id in read.once("excluded", lambda found: {p.exclude for p in found}):
            return [
                message
                for message, p in zip(everything[start:], missed, strict=True)
                if p.exclude != session.id
            ]
        if not missed:
            return []
        run: Framed = read.once(
            (wire, start), lambda _: Framed(wire.run(everything[start:], viewed[start:]))
        )
        return [run]

    def _encode(
        self, publications: list[Publication], channel: Channel, session: Session, wire: Wire
    ) -> list[bytes]:
        theirs = [each for each in publications if each.exclude != session.id]
        return wire.events(self.ns, channel.room, theirs)

    def _recent_limit(self, member: Member) -> int:
        own = member.room_type.options.recent
        return self.options.recent if own is None else own

    def recent_json(self, room_type: RoomType, publications: Sequence[Publication]) -> bytes:
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
            return [], (await self.presence.counts(name)).users
        page = await self.presence.members(name, limit=self.options.page_limit)
        encoded = [msgspec.Raw(msgspec.json.encode(info)) for info in page.members]
        return encoded, page.counts.users

    async def leave(self, session: Session, name: str) -> None:
        """Take `session` out of a room.

        Raises:
            NotInRoom: it is not in it.
        """
        key = (session, name)
        await self._moving.acquire(key)
        try:
            member = session.memberships.pop(name, None)
            if member is None:
                raise NotInRoom
            # What was published while it was a member is still for it.
            self.hub.flush()
            with anyio.CancelScope(shield=True):
                await self._go(member)
        finally:
            self._moving.give(key)
        with anyio.CancelScope(shield=True):
            await self.tell_left(member)

    async def leave_forbidden(self, session: Session) -> None:
        """Take `session` out of the rooms that its credentials no longer allow."""
        for name in list(session.memberships):
            if not _allows(session.user, name) and name in session.memberships:
                await session.leave(name, AccessDenied.sentence)

    async def depart(self, member: Member) -> None:
        """End a membership now: hub, presence, hooks."""
        await self._go(member)
        await self.tell_left(member)

    async def _go(self, member: Member) -> None:
        self.detach(member)
        if self._is_present(member):
            try:
                await self.presence.leave(member.channel.name, member.session.id)
            except BrokerUnavailable:
                # Nobody renews the lease any more, so it ends by itself.
                logger.warning("leaving %s must wait for the backend", member.room.name)

    def detach(self, member: Member) -> None:
        """Deliver nothing more to a member."""
        self.hub.remove(member.channel, member.session)
        self.runtime.release(member.channel)

    async def linger(self, members: Sequence[Member]) -> None:
        """Detach members whose connection is lost, and let their rooms know only when the grace
        period is over and they have not come back."""
        grace = self.options.presence_grace
        for member in members:
            self.detach(member)
            member.session.linger(member)
            self._graces.start(member)
        leases = [(m.channel.name, m.session.id) for m in members if self._is_present(m)]
        try:
            await self.presence.renew(leases, grace)
        except BrokerUnavailable:
            logger.warning("presence must wait for the backend")

    def _linger_is_over(self, member: Member) -> None:
        seen = member.session.stop_lingering(member.room.name) is not None
        if seen and (member.room_type.leavers or self.namespace.observed("room-left")):
            self.runtime.tasks.start_soon(self.tell_left, member)

    def _is_present(self, member: Member) -> bool:
        return member.session.user is not None and member.room_type.options.presence != "none"

    async def tell_left(self, member: Member) -> None:
        """Call the leave hooks and observers."""
        await self._hooks(member, member.room_type.leavers)
        if self.namespace.observed("room-left"):
            await self.namespace.emit(
                Happening(
                    name="room-left",
                    session=member.session,
                    member=member,
                    room=member.room.name,
                )
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

    async def tell_reset(self, channel: Channel, position: Position) -> bool:
        """Tell the members of a channel that something is lost, and what is there now, and let the
        channel go on from there: without members, from `position`. Return False when what has been
        announced meanwhile does not follow: then read again."""
        before = channel.position
        members: list[msgspec.Raw] = []
        count, recent = 0, b"[]"
        found = next(self._in(channel), None)
        if found is not None:
            limit = self._recent_limit(found)
            read = await self.runtime.recent(channel.name, limit, partial(self._members, found))
            recent = self.recent_json(found.room_type, read.publications)
            position, members, count = read.position, read.members, read.count
        merged = merge([], position, channel.healing or [])
        if isinstance(merged, Gap) or channel.position != before:
            if channel.healing is not None:
                channel.healing = []
            return False
        # No step of the event loop from here on, so that what is lost stands before what is new.
        self.hub.reset(channel, position)
        for member in self._in(channel):
            joined = Joined(member.room.name, members, recent, position, False, count)
            outbox = member.session.outbox
            self.hub.push(member.session, outbox.wire.joined(self.ns, joined, None))
        for publication in merged[0]:
            self.hub.received(channel.name, publication)
        return True

    def _in(self, channel: Channel) -> Iterator[Member]:
        """The members of a room's channel that are live."""
        for receiver in channel.receivers():
            member = (
                receiver.memberships.get(channel.room or "")
                if isinstance(receiver, Session)
                else None
            )
            if member is not None:
                yield member
