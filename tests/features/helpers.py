"""A server on a real uvicorn, its people by name, and what they say to each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from starlette.applications import Starlette

from starlette_realtime import (
    AuthBackend,
    Credentials,
    Options,
    Realtime,
    RealtimeMiddleware,
    User,
)
from tests.support.server import LiveServer
from tests.support.wsclient import Message, NativeClient, NativeError

Serve = Callable[..., LiveServer]

backend = "memory://"
"""What `make` builds servers on; the tests of this folder set it."""


class Names(AuthBackend):
    """The token is the user's id; without one, the client is anonymous."""

    anonymous = True

    async def authenticate(self, credentials: Credentials) -> User | None:
        name = credentials.token
        return User(id=name, info={"name": name.title()}) if name else None


def make(**options: Any) -> Realtime:
    settings: dict[str, Any] = {
        "presence_grace": 0.3,
        "message_rate": 0.0,
        "user_rate": 0.0,
        "abuse_rate": 0.0,
        "shutdown_timeout": 1.0,
        **options,
    }
    return Realtime(backend, auth=Names(), options=Options(**settings))


class House:
    """A running server."""

    def __init__(self, serve: Serve, realtime: Realtime) -> None:
        app = Starlette()
        app.add_middleware(RealtimeMiddleware, realtime=realtime)
        self.realtime = realtime
        self.server = serve(app)

    def enter(
        self, name: str | None = None, device: str | None = None
    ) -> AbstractAsyncContextManager[NativeClient]:
        """Connect; as an anonymous client without a name."""
        hello: dict[str, Any] = {"token": name} if name is not None else {}
        if device is not None:
            hello["deviceId"] = device
        return NativeClient.open(self.server.ws("/realtime/ws"), hello=hello)


async def refusal(client: NativeClient, *request: Any, **members: Any) -> NativeError:
    """Make a request that is refused."""
    with pytest.raises(NativeError) as raised:
        await client.request(*request, **members)
    return raised.value


def of(messages: list[Message], *types: str) -> list[Message]:
    return [message for message in messages if message["type"] in types]
