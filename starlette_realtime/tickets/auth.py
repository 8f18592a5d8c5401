"""The backend that takes tickets."""

from __future__ import annotations

import time

from ..auth.base import AuthBackend, Credentials, User
from ..errors import AuthenticationFailed
from .base import TicketStore


class TicketAuth(AuthBackend):
    """Lets in whoever shows a ticket of `store` as `?ticket=…`, once.

    Put it before the backend that the app authenticates its own requests with:
    `FirstOf(TicketAuth(tickets), SignedTokenAuth(secret))`.
    """

    token_only = True

    def __init__(self, store: TicketStore) -> None:
        self.store = store

    async def authenticate(self, credentials: Credentials) -> User | None:
        if not credentials.token or credentials.source != "query":
            return None
        user = await self.store.take(credentials.token)
        if user is None:
            raise AuthenticationFailed("ticket unknown, used or expired")
        # What the ticket was made from may have ended in the meantime.
        if user.expires_at is not None and user.expires_at <= time.time():
            raise AuthenticationFailed("token expired")
        return user
