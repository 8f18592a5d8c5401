"""The backend that takes tickets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..auth.base import AuthBackend, Credentials, ServerStores, User
from ..errors import AuthenticationFailed, ConfigurationError
from .base import TicketStore


class TicketAuth(AuthBackend):
    """Lets in whoever shows, as `?ticket=…`, a ticket that `issue` has made; once.

    Put it before the backend that the app authenticates its own requests with:
    `FirstOf(tickets, SignedTokenAuth(secret))` with `tickets = TicketAuth()`.

    Args:
        store: where tickets are, if not where the `Realtime` that runs with this backend keeps its
            own: in memory or on Redis, as its URL says. A store that is given is run by the app. If
            several `Realtime` share the backend, tickets go where the first that was started keeps
            its own, and are good for all of them.
    """

    token_only = True

    def __init__(self, store: TicketStore | None = None) -> None:
        self._given = store
        # One for each server that runs, in the order of their starts.
        self._lent: list[TicketStore] = []

    @asynccontextmanager
    async def run(self, stores: ServerStores) -> AsyncIterator[None]:
        self._lent.append(stores.tickets)
        try:
            yield
        finally:
            self._lent.remove(stores.tickets)

    async def issue(self, user: User, ttl: float = 30) -> str:
        """Return a ticket for `user`, good for `ttl` seconds and one connection, to any process: at
        least 128 random bits, in characters that need no escaping in an address.

        Raises:
            ConfigurationError: no `Realtime` runs with this backend.
            ValueError: `ttl` is not positive.
            TypeError: the user holds something that no payload can.
            Unavailable: too many tickets are outstanding.
            BrokerUnavailable: the store did not answer in time.
        """
        return await self._stores()[0].issue(user, ttl)

    async def authenticate(self, credentials: Credentials) -> User | None:
        if not credentials.token or credentials.source != "query":
            return None
        for store in self._stores():
            user = await store.take(credentials.token)
            if user is not None:
                break
        else:
            raise AuthenticationFailed("ticket unknown, used or expired")
        # What the ticket was made from may have ended in the meantime.
        if user.expires_at is not None and user.expires_at <= time.time():
            raise AuthenticationFailed("token expired")
        return user

    def _stores(self) -> list[TicketStore]:
        if self._given is not None:
            return [self._given]
        if not self._lent:
            raise ConfigurationError(
                "no Realtime runs with this TicketAuth: give it to one (auth=…), and issue tickets"
                " inside of the app's lifespan"
            )
        return list(dict.fromkeys(self._lent))
