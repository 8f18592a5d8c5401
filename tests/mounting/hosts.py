"""Host apps for the tests: what an app may have of its own beside the rooms."""

from __future__ import annotations

from typing import Any

from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from starlette_realtime import Chat, GuestAuth, Options, Realtime
from tests.support.server import App


def make_realtime(**options: Any) -> Realtime:
    """A server with a chat, whose guests are believed."""
    realtime = Realtime("memory://", auth=GuestAuth(), options=Options(**options))
    realtime.room("chat/{room_id}", features=[Chat()])
    return realtime


async def hello(request: object) -> PlainTextResponse:
    """Long enough for GZip to bother."""
    return PlainTextResponse("hello " * 200)


async def shout(websocket: WebSocket) -> None:
    """The host's own WebSocket: says back what it hears, in capitals."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


ROUTES = [Route("/hello", hello), WebSocketRoute("/shout", shout)]


class AddHeader:
    """Pure ASGI middleware that marks each HTTP answer, and counts the scopes it has seen."""

    def __init__(self, app: Any, seen: list[str]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["type"])

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-host", b"yes")]
            await send(message)

        await self.app(scope, receive, marked)


class StrippingProxy:
    """A proxy that takes `prefix` off the path, before a uvicorn with `root_path=prefix`, which
    puts it back in front, as the ASGI specification has it."""

    def __init__(self, app: App, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            assert scope["root_path"] == self.prefix
            came = scope["path"].removeprefix(self.prefix)
            assert came.startswith(self.prefix + "/")
            scope = {**scope, "path": self.prefix + came.removeprefix(self.prefix)}
        await self.app(scope, receive, send)


class KnowingServer:
    """A server that has been told the prefix, behind a proxy that leaves the path as it is: this is
    what Hypercorn and Granian make of their `root_path`."""

    def __init__(self, app: App, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            scope = {**scope, "root_path": self.prefix}
        await self.app(scope, receive, send)
