"""`RealtimePlugin`: real-time channels for a Litestar app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

try:
    from litestar import Litestar, asgi
    from litestar.config.app import AppConfig
    from litestar.plugins import InitPlugin
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "starlette_realtime.litestar needs Litestar: pip install 'starlette-realtime[litestar]'"
    ) from error

from .app import Realtime
from .errors import ConfigurationError


class RealtimePlugin(InitPlugin):
    """Serve `realtime` under `path` of a Litestar app: `Litestar(plugins=[RealtimePlugin(rt)])`."""

    def __init__(self, realtime: Realtime, path: str = "/realtime") -> None:
        if path.strip("/") == "":
            raise ConfigurationError(f"path must look like '/realtime', not {path!r}")
        self.realtime = realtime
        self.path = "/" + path.strip("/")

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        realtime, path = self.realtime, self.path

        @asynccontextmanager
        async def lifespan(app: Litestar) -> AsyncIterator[None]:
            async with realtime.run():
                yield

        @asgi(path, is_mount=True, copy_scope=True)
        async def realtime_app(scope: Any, receive: Any, send: Any) -> None:
            # Litestar hands over the path below the mount, with a slash at the end, and an empty
            # root_path; older versions leave the mount's own path in front.
            below = scope["path"]
            if below == path or below.startswith(path + "/"):
                below = below[len(path) :]
            await realtime.handle(below, scope, receive, send)

        app_config.lifespan = [*app_config.lifespan, lifespan]
        app_config.route_handlers = [*app_config.route_handlers, realtime_app]
        return app_config
