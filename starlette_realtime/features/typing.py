"""Who is typing: told to the others, kept nowhere, over by itself.

The process of a device that types signals it to all processes that have members of the room
("$typing", "$typed"). Each of these puts a user's devices together, wherever they are connected,
and tells its own members.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..core.namespace import Signal
from ..core.room import Room
from ..core.router import RoomType
from ..core.session import Member
from ..core.timers import Timer

_Key = tuple[str, str, str]
"""Namespace, room, and who: a device (connection), or a user (of an anonymous one the session)."""


class _Word(msgspec.Struct, array_like=True):
    """What the signals carry of a device and its user, as the members are told of it."""

    device: str
    who: str
    user_id: str | None
    user: Any


class _Device:
    """A connection to this process that types in a room. Times in seconds."""

    __slots__ = ("last", "said", "timer")

    def __init__(self) -> None:
        self.last = 0.0
        self.said = 0.0
        self.timer: Timer | None = None


class _Typist:
    """A user who types in a room, on whatever processes, as the members on this one know it."""

    __slots__ = ("devices", "said", "signal", "teller", "timer", "word")

    def __init__(self, signal: Signal, word: _Word) -> None:
        self.signal = signal
        self.word = word
        # When each device was last heard of, and when the members were last told, because of which.
        self.devices: dict[str, float] = {}
        self.said = 0.0
        self.teller = ""
        self.timer: Timer | None = None


class Typing:
    """`typing` and `stop-typing` → `user-typing {userId, user, roomId}` and `user-stopped-typing
    {userId, roomId}` to the other members.

    Typing ends by itself `timeout` seconds after the last `typing`, when a message is sent
    (`message`), and on leaving. A user who types on several devices starts once and stops once,
    whatever processes they are connected to. The session that types is not told; its user's other
    devices are. Of a process that is lost, the others end what its devices type after `timeout`
    and two intervals.

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
        # After so long, whoever has to say that a device stopped is not there to say it.
        self._lost = timeout + 2 * interval
        self._clock = clock
        self._devices: dict[_Key, _Device] = {}
        self._typists: dict[_Key, _Typist] = {}

    def install(self, target: RoomType) -> None:
        target.on("typing")(self.typing)
        target.on("stop-typing")(self.stop)
        target.after("message")(self.stop)
        target.on_leave(self.stop)
        target.signal("$typing")(self._heard)
        target.signal("$typed")(self._over)

    # The devices of this process

    async def typing(self, room: Room, member: Member) -> dict[str, bool]:
        now = self._clock()
        key = _device_key(room, member)
        device = self._devices.get(key)
        if device is None or now - device.last > self._lost:
            # None, or one of a server that was stopped: its timer will not come.
            device = self._devices[key] = _Device()
        device.last = now
        if device.timer is None:
            self._wait(room, member, key, device, self.timeout)
        elif now - device.said < self.interval:
            return {"success": True}
        device.said = now
        await self._signal("$typing", room, member, key, volatile=True)
        return {"success": True}

    async def stop(self, room: Room, member: Member) -> dict[str, bool]:
        key = _device_key(room, member)
        device = self._devices.pop(key, None)
        if device is not None:
            if device.timer is not None:
                device.timer.cancel()
            await self._signal("$typed", room, member, key, volatile=False)
        return {"success": True}

    def _wait(self, room: Room, member: Member, key: _Key, device: _Device, delay: float) -> None:
        device.timer = room.later(delay, self._time_is_over, room, member, key, device)

    async def _time_is_over(self, room: Room, member: Member, key: _Key, device: _Device) -> None:
        if self._devices.get(key) is not device:
            return
        # One timer for all the times it was put off.
        left = device.last + self.timeout - self._clock()
        if left > 0:
            self._wait(room, member, key, device, left)
        else:
            del self._devices[key]
            await self._signal("$typed", room, member, key, volatile=False)

    async def _signal(
        self, name: str, room: Room, member: Member, key: _Key, *, volatile: bool
    ) -> None:
        who = member.user_id or member.session_id
        await room.signal(
            name,
            [key[2], who, member.user_id, member.info],
            exclude=member,
            volatile=volatile,
            key=f"typing/{who}",
        )

    # What the members on this process are told

    def _heard(self, signal: Signal) -> None:
        now = self._clock()
        word = _read(signal)
        key = (signal.namespace, signal.room, word.who)
        typist = self._typists.get(key)
        if typist is None or not self._types(typist, now):
            typist = self._typists[key] = _Typist(signal, word)
            typist.timer = signal.later(self._lost, self._look, key, typist)
        elif word.device != typist.teller and now - typist.said < self.interval:
            typist.devices[word.device] = now
            return
        typist.signal, typist.word, typist.teller, typist.said = signal, word, word.device, now
        typist.devices[word.device] = now
        about = {"userId": word.user_id, "user": word.user, "roomId": signal.room}
        signal.pass_on("user-typing", about)

    def _over(self, signal: Signal) -> None:
        word = _read(signal)
        key = (signal.namespace, signal.room, word.who)
        typist = self._typists.get(key)
        if typist is None or typist.devices.pop(word.device, None) is None:
            return
        if not self._types(typist, self._clock()):
            self._end(key, typist, signal)

    def _types(self, typist: _Typist, now: float) -> bool:
        """Whether the user still types on some device."""
        return any(now - heard < self._lost for heard in typist.devices.values())

    def _look(self, key: _Key, typist: _Typist) -> None:
        """End what nobody said the end of."""
        if self._typists.get(key) is not typist:
            return
        left = max(typist.devices.values()) + self._lost - self._clock()
        if left > 0:
            typist.timer = typist.signal.later(left, self._look, key, typist)
        else:
            self._end(key, typist, typist.signal)

    def _end(self, key: _Key, typist: _Typist, signal: Signal) -> None:
        del self._typists[key]
        if typist.timer is not None:
            typist.timer.cancel()
        about = {"userId": typist.word.user_id, "roomId": signal.room}
        signal.pass_on("user-stopped-typing", about, volatile=False)


def _device_key(room: Room, member: Member) -> _Key:
    return member.session.namespace, room.name, member.client_id


def _read(signal: Signal) -> _Word:
    return msgspec.convert(signal.data, _Word)
