"""Presence beyond rooms: who is online, and what status they show."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec

from ..core.namespace import Namespace, Signal
from ..core.online import OFFLINE
from ..core.session import Session
from ..errors import AccessDenied, ConfigurationError, InvalidMessage, LimitExceeded

MAX_STATUS = 100
"""Characters a status of one's own may have."""
MAX_ASKED = 100
"""Users one message may ask about."""

_STALE = 5.0
"""Seconds after which a timer that has not come was one of a server that was stopped."""

UserId = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
MaySee = Callable[[Session, str], Awaitable[bool]]


class UpdateStatus(msgspec.Struct):
    """What a client sends as `update-status`: "online", "away", "busy", "invisible", or a text."""

    status: str


class StatusReply(msgspec.Struct):
    """Its ack: the status as others see it. `timestamp` in milliseconds."""

    success: bool
    status: str
    timestamp: int


class Users(msgspec.Struct, rename="camel"):
    """What a client sends as `get-presence`, `watch-presence` and `unwatch-presence`."""

    user_ids: Annotated[list[UserId], msgspec.Meta(max_length=MAX_ASKED)]


class UserStatus(msgspec.Struct, rename="camel"):
    """How a user shows."""

    user_id: str
    status: str


class Statuses(msgspec.Struct):
    """The ack of `get-presence` and `watch-presence`."""

    users: list[UserStatus]


class _Slot:
    """The last `interval` of a user: the status that waits for it to be over."""

    __slots__ = ("since", "status")

    def __init__(self) -> None:
        self.status: str | None = None
        self.since = time.monotonic()


class Presence:
    """`presence-update {userId, status, timestamp}` for a namespace: `realtime.add(Presence())`.

    The first connection of a user is `online`; when the last one is gone and the grace period over,
    the user is `offline`. That is told to those who watch the user (`watch-presence {userIds}`),
    or, with `everyone`, to all. A change of status (`update-status {status}`) is told to them and
    to the rooms the user is in, where coming and going are `user-joined` and `user-left`; rooms
    with `presence="counts"` or `"none"` are left out.

    A user has one status, whatever device it was set on. "invisible" shows as `offline`: the user
    still stands in the rooms it is in, as offline. A status lasts until the user's last session is
    gone.

    Args:
        everyone: tell all connected clients of everyone's coming and going. For small apps: each
            of N users who connect is N messages.
        may_see: an async function of the session and a user id that says whether the session's
            user may know the other's status; without it, everyone who is authenticated may. Those
            it may not know are shown as offline. Not asked about rooms, nor with `everyone`.
        max_watched: users one session may watch.
        interval: seconds within which a user's status changes at most once; of more changes, the
            last one counts.
    """

    def __init__(
        self,
        *,
        everyone: bool = False,
        may_see: MaySee | None = None,
        max_watched: int = 200,
        interval: float = 1.0,
    ) -> None:
        self.everyone = everyone
        self.may_see = may_see
        self.max_watched = max_watched
        self.interval = interval
        self._slots: dict[tuple[str, str], _Slot] = {}

    def install_namespace(self, target: Namespace) -> None:
        online = target.online
        online.everyone = self.everyone
        online.on_change(self._tell_rooms)
        target.event("update-status")(self.update)
        target.event("get-presence")(self.get)
        target.event("watch-presence")(self.watch)
        target.event("unwatch-presence")(self.unwatch)
        target.signal("$presence")(self._announce)

    def install(self, target: object) -> None:
        """Presence belongs to a namespace; a room's is its option `presence`."""
        raise ConfigurationError(
            "Presence is added to the namespace, not to a room: realtime.add(Presence())"
        )

    async def update(self, session: Session, data: UpdateStatus) -> StatusReply:
        user_id = _user_id(session)
        status = data.status.strip()
        if not 0 < len(status) <= MAX_STATUS or not status.isprintable():
            raise InvalidMessage(
                f"Invalid message format: a status has 1 to {MAX_STATUS} characters"
            )
        if status == "invisible":
            status = OFFLINE
        key = (session.namespace, user_id)
        slot = self._slots.get(key)
        if slot is not None and time.monotonic() - slot.since < self.interval + _STALE:
            slot.status = status
        elif status != session.status:
            await self._change(session, key, status)
        return StatusReply(success=True, status=status, timestamp=_now())

    async def _change(self, session: Session, key: tuple[str, str], status: str) -> None:
        slot = self._slots[key] = _Slot()
        try:
            await session.engine.namespace.online.change(session, status)
        finally:
            session.engine.runtime.later(self.interval, self._settle, session, key, slot)

    async def _settle(self, session: Session, key: tuple[str, str], slot: _Slot) -> None:
        if self._slots.get(key) is not slot:
            return
        del self._slots[key]
        if slot.status is not None and slot.status != session.status:
            await self._change(session, key, slot.status)

    async def get(self, session: Session, data: Users) -> Statuses:
        _user_id(session)
        return await self._statuses(session, await self._visible(session, data), data)

    async def watch(self, session: Session, data: Users) -> Statuses:
        _user_id(session)
        visible = await self._visible(session, data)
        if not self.everyone:
            channels = [self._channel(session, user_id) for user_id in visible]
            watched = (session.listening or set()).union(channels)
            if len(watched) > self.max_watched:
                raise LimitExceeded(f"Limit exceeded: at most {self.max_watched} users watched")
            # Before the statuses are read, so that no change falls in between.
            for channel in channels:
                await session.listen(channel)
        return await self._statuses(session, visible, data)

    async def unwatch(self, session: Session, data: Users) -> dict[str, bool]:
        for user_id in data.user_ids:
            session.unlisten(self._channel(session, user_id))
        return {"success": True}

    def _channel(self, session: Session, user_id: str) -> str:
        return session.engine.namespace.online.channel(session.engine, user_id)

    async def _visible(self, session: Session, data: Users) -> Sequence[str]:
        wanted = list(dict.fromkeys(data.user_ids))
        if self.may_see is None:
            return wanted
        return [
            user_id
            for user_id in wanted
            if user_id == session.user_id or await self.may_see(session, user_id) is True
        ]

    async def _statuses(self, session: Session, visible: Sequence[str], data: Users) -> Statuses:
        engine = session.engine
        known = await engine.namespace.online.statuses(engine, visible)
        return Statuses(
            [
                UserStatus(user_id, known.get(user_id, OFFLINE))
                for user_id in dict.fromkeys(data.user_ids)
            ]
        )

    def _announce(self, signal: Signal) -> None:
        known = signal.data
        update = {"userId": known["userId"], "status": known["status"]}
        signal.pass_on("presence-update", {**update, "timestamp": signal.publication.time})

    async def _tell_rooms(self, session: Session, status: str, id: str) -> None:
        update: dict[str, Any] = {
            "userId": session.user_id,
            "status": status,
            "timestamp": _now(),
        }
        for member in list(session.memberships.values()):
            if member.room_type.options.presence == "full":
                # One id, whichever of the user's devices are in the room.
                await member.room.publish(
                    "presence-update",
                    update,
                    id=f"presence/{id}",
                    keep=False,
                    key=f"presence/{session.user_id}",
                )


def _user_id(session: Session) -> str:
    if session.user_id is None:
        raise AccessDenied
    return session.user_id


def _now() -> int:
    return int(time.time() * 1000)
