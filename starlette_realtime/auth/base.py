"""Who a client is: what an auth backend is given, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from ..tickets.base import TicketStore


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


class ServerStores(Protocol):
    """What a running server lends its auth backends."""

    @property
    def tickets(self) -> TicketStore: ...


class AuthBackend(ABC):
    """Tells who a client is.

    One backend serves all doors; it is called once per connection, and again for a refresh.
    """

    anonymous: bool = False
    """Whether clients that show nothing are admitted: then the server does not wait for a token."""

    def run(self, stores: ServerStores) -> AbstractAsyncContextManager[None]:
        """Return the backend's lifetime with a server: entered before the server admits anyone, and
        left when its last connection has gone. Several servers with one backend enter it once each.
        A backend made of others enters theirs.

        Raises (on entering):
            ConfigurationError: it cannot do its work; the server does not start.
        """
        return nullcontext()

    @abstractmethod
    async def authenticate(self, credentials: Credentials) -> User | None:
        """Return the user, or None when nothing was shown that this backend looks at.

        Raises:
            AuthenticationFailed: something was shown and does not hold.
        """
