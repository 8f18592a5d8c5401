"""The app's own cookie session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import AuthenticationFailed, ConfigurationError
from .base import AuthBackend, Credentials, User
from .identity import as_user_id


class SessionAuth(AuthBackend):
    """The user whose id the app put into `request.session` at login.

    Reads `scope["session"]`, which Starlette's `SessionMiddleware` (or Litestar's session
    middleware) fills from a cookie. That middleware must run outside of the realtime one: of two
    calls of `add_middleware`, the later one runs outside.

    A browser sends the cookie with every WebSocket handshake, whichever page asked for it; only the
    Origin check keeps other sites from acting as the user. Do not open it to everyone.

    Args:
        key: the session's key for the user id: text, an integer or a UUID.
        info: what others may see of the user: another key of the session, or a function of it.

    Raises (from `authenticate`):
        ConfigurationError: no session middleware ran before.
    """

    def __init__(
        self, key: str = "user_id", *, info: str | Callable[[Mapping[str, Any]], Any] | None = None
    ) -> None:
        self._key = key
        self._info = info

    async def authenticate(self, credentials: Credentials) -> User | None:
        if "session" not in credentials.scope:
            raise ConfigurationError(
                "SessionAuth finds no session: add SessionMiddleware, and add it after the"
                " RealtimeMiddleware so that it runs before it"
            )
        session = credentials.scope["session"]
        # Litestar marks a cleared session with an object of its own.
        if not isinstance(session, Mapping) or session.get(self._key) is None:
            return None
        user_id = as_user_id(session[self._key])
        if user_id is None:
            raise AuthenticationFailed("unusable user id in the session")
        if callable(self._info):
            info = self._info(session)
        else:
            info = session.get(self._info) if self._info is not None else None
        return User(id=user_id, info=info)
