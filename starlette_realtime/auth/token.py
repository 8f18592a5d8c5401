"""Backends that tell the user from a token and from nothing else."""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from ..errors import AuthenticationFailed
from .base import AuthBackend, Credentials, User

MAX_TOKEN: Final = 8192
"""Characters; a longer token is refused before anything looks at it."""


class TokenAuth(AuthBackend):
    """Base of the backends that read a token: from the first message, the subprotocol or the
    `Authorization` header.

    A token in the address is not looked at: addresses end up in logs and histories. For that there
    are one-time tickets, `starlette_realtime.tickets.TicketAuth`.
    """

    token_only = True
    """Whether nothing that a browser sends by itself, such as a cookie, decides who the client is.
    What lacks this attribute is taken to trust cookies."""

    async def authenticate(self, credentials: Credentials) -> User | None:
        if not credentials.token or credentials.source == "query":
            return None
        if len(credentials.token) > MAX_TOKEN:
            raise AuthenticationFailed("token too long")
        return await self.verify(credentials.token)

    @abstractmethod
    async def verify(self, token: str) -> User:
        """Return the user the token stands for.

        Raises:
            AuthenticationFailed: the token does not hold, for whatever reason; whoever made it up,
                nothing else is raised.
        """


def is_token_only(backend: AuthBackend) -> bool:
    """Whether `backend` decides by what the client shows on purpose alone.

    False for backends that trust cookies or what middleware made of them: those are safe only
    behind an Origin check that is not open to everyone.
    """
    return bool(getattr(backend, "token_only", False))
