"""Who is typing: told to the others, kept nowhere, over by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..core.room import Room
from ..core.router import RoomType
from ..core.session import Member
from ..core.timers import Timer

_Key = tuple[str, str, str]
"""Namespace, room, and user or (of an anonymous one) session."""


class _Typist:
    """A user who is typing in a room, on this process."""

    __slots__ = ("member", "said", "seen", "timer")

    def __init__(self, member: Member) -> None:
        self.member = member
        # When each session last typed, and when the room was last told (seconds).
        self.seen: dict[str, float] = {}
        self.said = 0.0
        self.timer: Timer | None = None


class Typing:
    """`typing` and `stop-typing` → `user-typing {userId, user, roomId}` and `user-stopped-typing
    {userId, roomId}` to the other members.

    Typing ends by itself `timeout` seconds after the last `typing`, when a message is sent
    (`message`), and on leaving. A user who types on several devices starts once and stops once;
    of devices that are connected to different processes, each does. The session that types is not
    told; its user's other devices are.

    Args:
        timeout: seconds.
        interval: seconds within which the room is told at most once that a user still types.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        *,
        timeout: float = 3.0,
        interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout = timeout
        self.interval = interval
        self._clock = clock
        self._typists: dict[_Key, _Typist] = {}

    def install(self, target: RoomType) -> None:
        target.on("typing")(self.typing)
        target.on("stop-typing")(self.stop)
        target.after("message")(self.stop)
        target.on_leave(self.stop)

    async def typing(self, room: Room, member: Member) -> dict[str, bool]:
        now = self._clock()
        key = _key(room, member)
        typist = self._typists.get(key)
        if typist is None or now - max(typist.seen.values()) > self.timeout + self.interval:
            # None, or one of a server that was stopped: its timer will not come.
            typist = self._typists[key] = _Typist(member)
        typist.member = member
        typist.seen[member.session_id] = now
        if typist.timer is None:
            self._wait(room, key, typist, self.timeout)
        elif now - typist.said < self.interval:
            return {"success": True}
        typist.said = now
        await room.publish(
            "user-typing",
            {"userId": member.user_id, "user": member.info, "roomId": room.name},
            id="",
            exclude=member,
            volatile=True,
            key=f"typing/{key[2]}",
        )
        return {"success": True}

    async def stop(self, room: Room, member: Member) -> dict[str, bool]:
        key = _key(room, member)
        typist = self._typists.get(key)
        if typist is not None and member.session_id in typist.seen:
            over = self._clock() - self.timeout
            others = [session for session in typist.seen if session != member.session_id]
            if any(typist.seen[session] > over for session in others):
                del typist.seen[member.session_id]
            else:
                typist.member = member
                await self._end(room, key, typist)
        return {"success": True}

    def _wait(self, room: Room, key: _Key, typist: _Typist, delay: float) -> None:
        typist.timer = room.later(delay, self._time_is_over, room, key, typist)

    async def _time_is_over(self, room: Room, key: _Key, typist: _Typist) -> None:
        if self._typists.get(key) is not typist:
            return
        # One timer for all the times it was put off.
        left = max(typist.seen.values()) + self.timeout - self._clock()
        if left > 0:
            self._wait(room, key, typist, left)
        else:
            await self._end(room, key, typist)

    async def _end(self, room: Room, key: _Key, typist: _Typist) -> None:
        del self._typists[key]
        if typist.timer is not None:
            typist.timer.cancel()
        stopped: dict[str, Any] = {"userId": typist.member.user_id, "roomId": room.name}
        await room.publish(
            "user-stopped-typing",
            stopped,
            id="",
            exclude=typist.member,
            keep=False,
            key=f"typing/{key[2]}",
        )


def _key(room: Room, member: Member) -> _Key:
    return member.session.namespace, room.name, member.user_id or member.session_id
