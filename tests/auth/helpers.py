"""What the tests of authentication share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette_realtime.auth import AuthBackend, Credentials, User

SECRET = "a secret of more than thirty-two bytes"


def shown(token: str = "", source: str = "message", **scope: Any) -> Credentials:
    """What a client shows."""
    return Credentials({"type": "websocket", **scope}, token, source if token else "")


class Fixed(AuthBackend):
    """Answers always the same, and counts how often it was asked."""

    def __init__(self, answer: User | Exception | None, *, token_only: bool = False) -> None:
        self.answer = answer
        self.token_only = token_only
        self.asked = 0

    async def authenticate(self, credentials: Credentials) -> User | None:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def websocket(
    headers: Mapping[str, str] | list[tuple[str, str]] | None = None, **scope: Any
) -> dict[str, Any]:
    """An ASGI scope of a WebSocket handshake."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers or []
    return {
        "type": "websocket",
        "scheme": "ws",
        "path": "/realtime/ws",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
        "subprotocols": [],
        **scope,
    }
