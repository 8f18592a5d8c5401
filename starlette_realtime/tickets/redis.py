"""Tickets of many processes."""

from __future__ import annotations

from .._redis import RedisStore
from .._redis.keys import PARTITIONS, milliseconds
from ..auth.base import User
from .base import TicketStore, check_ttl, dump_user, load_user, new_ticket, ticket_key


class RedisTickets(RedisStore, TicketStore):
    """Tickets in Redis, which forgets them when their time is over. How many are outstanding is
    bounded by the rate at which the app lets them be issued, and by the server's memory: without
    any left `issue` raises `BrokerUnavailable`.

    Args:
        server: a URL, or the server that other stores share.
    """

    async def issue(self, user: User, ttl: float = 30) -> str:
        check_ttl(ttl)
        stored = dump_user(user)
        ticket = new_ticket()
        where, key = self._place(ticket)
        await self._server.call(where, "SET", key, stored, "PX", milliseconds(ttl))
        return ticket

    async def take(self, ticket: str) -> User | None:
        where, key = self._place(ticket)
        # Once only: a second try would find the ticket used up by the first.
        stored = await self._server.call(where, "GETDEL", key, twice=False)
        return None if stored is None else load_user(stored)

    def _place(self, ticket: str) -> tuple[int, str]:
        hashed = ticket_key(ticket)
        where = hashed[0] % PARTITIONS
        return where, f"{self._server.keys.head(where)}t:{hashed.hex()}"
