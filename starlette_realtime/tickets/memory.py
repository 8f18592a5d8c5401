"""Tickets of a single process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heappush

import msgspec

from ..auth.base import User
from ..errors import Unavailable
from .base import TicketStore, check_ttl, dump_user, load_user, new_ticket, ticket_key


class _Issued(msgspec.Struct, frozen=True):
    """The user in stored form, so that what the app changes later does not change the ticket."""

    user_id: str
    user: bytes
    until: float


class MemoryTickets(TicketStore):
    """Tickets in this process's memory.

    Args:
        max_tickets: how many may be outstanding; above that `issue` raises `Unavailable`.
        max_per_user: how many of them one user may have; above that, the user's oldest is
            forgotten, so that nobody uses up everyone's.
        clock: counts seconds.
    """

    def __init__(
        self,
        *,
        max_tickets: int = 100_000,
        max_per_user: int = 32,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_tickets = max_tickets
        self._max_per_user = max_per_user
        self._clock = clock
        self._issued: dict[bytes, _Issued] = {}
        # Keys of each user's tickets, oldest first.
        self._by_user: dict[str, dict[bytes, None]] = {}
        # (end, key), with entries of tickets that are gone already.
        self._ends: list[tuple[float, bytes]] = []

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._issued.clear()
            self._by_user.clear()
            self._ends.clear()

    async def issue(self, user: User, ttl: float = 30) -> str:
        check_ttl(ttl)
        stored = dump_user(user)
        now = self._clock()
        self._forget_expired(now)
        of_user = self._by_user.get(user.id)
        if of_user is not None and len(of_user) >= self._max_per_user:
            self._pop(next(iter(of_user)))
        if len(self._issued) >= self._max_tickets:
            raise Unavailable("Too many tickets")
        ticket = new_ticket()
        key = ticket_key(ticket)
        self._issued[key] = _Issued(user.id, stored, now + ttl)
        self._by_user.setdefault(user.id, {})[key] = None
        heappush(self._ends, (now + ttl, key))
        if len(self._ends) > 2 * len(self._issued) + 64:
            # Tickets with a long time, issued and taken again and again.
            self._ends = [(issued.until, key) for key, issued in self._issued.items()]
            heapify(self._ends)
        return ticket

    async def take(self, ticket: str) -> User | None:
        issued = self._pop(ticket_key(ticket))
        if issued is None or issued.until <= self._clock():
            return None
        return load_user(issued.user)

    def _pop(self, key: bytes) -> _Issued | None:
        issued = self._issued.pop(key, None)
        if issued is not None:
            of_user = self._by_user[issued.user_id]
            del of_user[key]
            if not of_user:
                del self._by_user[issued.user_id]
        return issued

    def _forget_expired(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            self._pop(heappop(self._ends)[1])
