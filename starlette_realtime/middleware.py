"""`RealtimeMiddleware`: an app and its real-time channels in one line."""

from __future__ import annotations

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from .app import Realtime, lifespan
from .errors import ConfigurationError


class RealtimeMiddleware:
    """Serve `realtime` under `path`, and everything else by the app.

    `app.add_middleware(RealtimeMiddleware, realtime=rt, path="/realtime")` for Starlette, FastAPI.
    The server starts and stops with the app's lifespan. With several, whose paths lie inside one
    another, add the one with the longest path last: the last one is asked first.
    """

    def __init__(self, app: ASGIApp, realtime: Realtime, path: str = "/realtime") -> None:
        if not path.startswith("/") or path.rstrip("/") == "":
            raise ConfigurationError(f"path must look like '/realtime', not {path!r}")
        self.app = app
        self.realtime = realtime
        self.path = path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(self.realtime, self.app, scope, receive, send)
            return
        if scope["type"] in ("http", "websocket"):
            path = get_route_path(scope)
            if path == self.path or path.startswith(self.path + "/"):
                await self.realtime.handle(path[len(self.path) :], scope, receive, send)
                return
        await self.app(scope, receive, send)
