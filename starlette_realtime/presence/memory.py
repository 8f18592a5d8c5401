"""Presence of a single process."""

from __future__ import annotations

import time
from bisect import bisect_right, insort
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol

import msgspec

from ..events import Draft, MemberInfo, Published, Retention
from .base import Counts, Lease, MemberPage, PresenceStore


class Announcer(Protocol):
    """What this store needs of the broker beside it (`MemoryBroker` has it): to publish without a
    step of the event loop, so that members and stream never disagree."""

    def publish_now(self, channel: str, draft: Draft, retention: Retention) -> Published: ...


class _Held(msgspec.Struct, eq=False, gc=False):
    """A lease, and when it ends (seconds)."""

    channel: str
    lease: Lease
    until: float
    entry: int = 0
    """Number of its one valid entry among the ends; 0 when the lease is over."""


class _Room:
    """Leases of one channel, by session and by user."""

    __slots__ = ("departures", "order", "sessions", "users")

    def __init__(self) -> None:
        self.sessions: dict[str, _Held] = {}
        # Session ids of each user; the one that entered or changed last is last.
        self.users: dict[str, dict[str, None]] = {}
        self.order: list[str] = []
        self.departures: dict[str, tuple[Draft, Retention]] = {}

    @property
    def counts(self) -> Counts:
        return Counts(len(self.users), len(self.sessions))


class MemoryPresence(PresenceStore):
    """Leases of one process, announced through its `MemoryBroker`. `clock` counts seconds."""

    def __init__(self, broker: Announcer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._broker = broker
        self._clock = clock
        self._rooms: dict[str, _Room] = {}
        # (end, number of the entry, lease). An entry may come early, for renewing leaves it where
        # it is, but never late; those no longer valid are counted, and swept out in time.
        self._ends: list[tuple[float, int, _Held]] = []
        self._stale = 0
        self._numbers = count(1)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._rooms.clear()
            self._ends.clear()
            self._stale = 0

    async def enter(
        self,
        channel: str,
        lease: Lease,
        *,
        ttl: float,
        arrival: Draft | None,
        departure: Draft | None,
        retention: Retention,
    ) -> bool:
        until = self._clock() + ttl
        room = self._rooms.get(channel)
        held = room.sessions.get(lease.session_id) if room else None
        if room is not None and held is not None and held.lease.user_id != lease.user_id:
            self._end(room, held)
            room, held = self._rooms.get(channel), None
        first = room is None or lease.user_id not in room.users
        # Before anything changes: the broker may refuse.
        if first and arrival is not None:
            self._broker.publish_now(channel, arrival, retention)
        if room is None:
            room = self._rooms[channel] = _Room()
        if first:
            room.users[lease.user_id] = {}
            insort(room.order, lease.user_id)
        sessions = room.users[lease.user_id]
        sessions.pop(lease.session_id, None)
        sessions[lease.session_id] = None
        if departure is not None:
            room.departures[lease.user_id] = (departure, retention)
        if held is None:
            held = room.sessions[lease.session_id] = _Held(channel, lease, until)
            self._schedule(held)
        else:
            held.lease = lease
            self._prolong(held, until)
        return first

    async def leave(self, channel: str, session_id: str) -> bool:
        room = self._rooms.get(channel)
        held = room.sessions.get(session_id) if room else None
        return room is not None and held is not None and self._end(room, held)

    def _end(self, room: _Room, held: _Held) -> bool:
        """Take a lease away; return whether it was the user's last here."""
        session_id, user_id = held.lease.session_id, held.lease.user_id
        sessions = room.users[user_id]
        last = len(sessions) == 1
        if last and (departure := room.departures.get(user_id)) is not None:
            # Before anything changes: the broker may refuse.
            self._broker.publish_now(held.channel, *departure)
        del room.sessions[session_id]
        del sessions[session_id]
        if last:
            del room.users[user_id]
            del room.order[bisect_right(room.order, user_id) - 1]
            room.departures.pop(user_id, None)
            if not room.users:
                del self._rooms[held.channel]
        held.entry = 0
        self._outdate()
        return last

    def _schedule(self, held: _Held) -> None:
        held.entry = next(self._numbers)
        heappush(self._ends, (held.until, held.entry, held))

    def _prolong(self, held: _Held, until: float) -> None:
        shorter, held.until = until < held.until, until
        if shorter:
            self._schedule(held)
            self._outdate()

    def _outdate(self) -> None:
        """Count one more invalid entry; once they are the majority, take them all out."""
        self._stale += 1
        if self._stale * 2 > len(self._ends):
            self._ends = [end for end in self._ends if end[2].entry == end[1]]
            heapify(self._ends)
            self._stale = 0

    async def renew(self, leases: Iterable[tuple[str, str]], ttl: float) -> list[tuple[str, str]]:
        until = self._clock() + ttl
        gone = []
        for channel, session_id in leases:
            room = self._rooms.get(channel)
            held = room.sessions.get(session_id) if room else None
            if held is None:
                gone.append((channel, session_id))
            else:
                self._prolong(held, until)
        return gone

    async def update(
        self, channel: str, session_id: str, *, user: bytes | None, status: str | None
    ) -> None:
        room = self._rooms.get(channel)
        held = room.sessions.get(session_id) if room else None
        if room is None or held is None:
            return
        held.lease = msgspec.structs.replace(
            held.lease,
            user=held.lease.user if user is None else user,
            status=held.lease.status if status is None else status,
        )
        sessions = room.users[held.lease.user_id]
        del sessions[session_id]
        sessions[session_id] = None

    async def members(self, channel: str, *, cursor: str = "", limit: int = 100) -> MemberPage:
        room = self._rooms.get(channel)
        if room is None:
            return MemberPage([], Counts(0, 0))
        limit = max(0, limit)
        start = bisect_right(room.order, cursor) if cursor else 0
        chosen = room.order[start : start + limit]
        members = []
        for user_id in chosen:
            lease = room.sessions[next(reversed(room.users[user_id]))].lease
            members.append(MemberInfo(user_id, msgspec.Raw(lease.user), lease.status))
        more = start + limit < len(room.order)
        return MemberPage(members, room.counts, chosen[-1] if chosen and more else "")

    async def counts(self, channel: str) -> Counts:
        room = self._rooms.get(channel)
        return room.counts if room else Counts(0, 0)

    async def expire(self) -> int:
        now = self._clock()
        removed = 0
        while self._ends and self._ends[0][0] <= now:
            _, number, held = self._ends[0]
            if held.entry == number and held.until <= now:
                self._end(self._rooms[held.channel], held)
                removed += 1
                continue
            heappop(self._ends)
            if held.entry == number:
                self._schedule(held)
            else:
                self._stale -= 1
        return removed
