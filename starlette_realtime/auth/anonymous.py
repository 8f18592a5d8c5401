"""Clients that nobody vouches for. Neither backend is a default: the app asks for it by name."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final

from ..errors import AuthenticationFailed
from .base import AuthBackend, Credentials, User
from .signed import SignedTokenAuth, looks_signed
from .token import TokenAuth

MAX_GUEST_NAME: Final = 40
"""Characters."""


class AnonymousAuth(AuthBackend):
    """Admits everyone, as nobody: such a client has no user id.

    Whether it may enter a room is for the room's `authorize` hook. Combine it with another backend,
    `FirstOf(SignedTokenAuth(secret), AnonymousAuth())`, to admit users and visitors; a user whose
    token does not hold is then refused, not let in as a visitor.
    """

    anonymous = True
    token_only = True

    async def authenticate(self, credentials: Credentials) -> User | None:
        return None


def guest_name(text: str) -> str:
    """Return `text` without surrounding white space.

    Raises:
        AuthenticationFailed: what is left does not have 1 to 40 characters, or has unprintable ones
            (control characters, and those that reverse the direction of writing).
    """
    name = text.strip()
    if not 0 < len(name) <= MAX_GUEST_NAME or not name.isprintable():
        raise AuthenticationFailed(f"a name has 1 to {MAX_GUEST_NAME} printable characters")
    return name


class GuestAuth(TokenAuth):
    """For demos and nothing else: the token is a name, and whoever says it is believed.

    `{"token": "Ann"}` becomes `User(id="guest-…", info={"name": "Ann"})` with a fresh random id, so
    two guests called Ann are two users. To let a guest keep its id over reconnects, or use several
    devices, give it a token made by `create_token`, which it shows instead of the name.

    Args:
        secret: signs those tokens; as for `SignedTokenAuth`. Without one a random secret is used,
            and tokens hold in this process only.
        max_age: seconds that such a token holds.
    """

    def __init__(
        self,
        secret: str | bytes | Sequence[str | bytes] | None = None,
        *,
        max_age: float = 30 * 86400,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signed = SignedTokenAuth(
            secrets.token_bytes(32) if secret is None else secret,
            max_age=max_age,
            salt="starlette-realtime.guest",
            clock=clock,
        )

    def create_token(self, name: str) -> str:
        """Return a token for a new guest of this name.

        Raises:
            AuthenticationFailed: the name does not have 1 to 40 printable characters.
        """
        user = self._new(name)
        return self._signed.create_token(user.id, user.info)

    async def verify(self, token: str) -> User:
        # The shortest token is longer than the longest name.
        if len(token) <= MAX_GUEST_NAME or not looks_signed(token):
            return self._new(token)
        return await self._signed.verify(token)

    def _new(self, name: str) -> User:
        return User(id=f"guest-{secrets.token_hex(8)}", info={"name": guest_name(name)})
