"""Who a client is: what an auth backend is given, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec


class User(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated user, as handlers see it."""

    id: str
    """Stable and unique; at most 255 characters."""
    info: Any = None
    """What others may see of the user (a name, a picture): any payload."""
    expires_at: float | None = None
    """When the credentials end, in seconds since the Unix epoch."""
    capabilities: tuple[str, ...] | None = None
    """Patterns of rooms the credentials allow, as `fnmatch` has them; None for no restriction."""
    claims: Mapping[str, Any] = {}
    """The rest of what the credentials say, for the app's own use."""


class Credentials(msgspec.Struct, frozen=True):
    """What a client shows.

    `scope` is the ASGI scope of its request, with what the host app's middleware put there.
    `token` is the token it gave, and `source` where: `message`, `header`, `subprotocol`, `query`;
    empty when it gave none.
    """

    scope: Mapping[str, Any]
    token: str = ""
    source: str = ""


class AuthBackend(ABC):
    """Tells who a client is.

    One backend serves all doors; it is called once per connection, and again for a refresh.
    """

    anonymous: bool = False
    """Whether clients that show nothing are admitted: then the server does not wait for a token."""

    @abstractmethod
    async def authenticate(self, credentials: Credentials) -> User | None:
        """Return the user, or None when nothing was shown that this backend looks at.

        Raises:
            AuthenticationFailed: something was shown and does not hold.
        """
