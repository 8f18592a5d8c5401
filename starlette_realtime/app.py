"""`Realtime`: the whole package as one ASGI application."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .auth.base import AuthBackend
from .auth.origin import OriginPolicy
from .core.channels import check_public
from .core.engine import Engine
from .core.namespace import Namespace
from .core.options import Options
from .core.room import Room, session_id
from .core.runtime import Runtime, Stores, running
from .core.session import Member, Session
from .errors import CloseCode, ConfigurationError
from .events import Published
from .servers import hypercorn
from .settings import (
    ENVIRONMENT,
    check_history,
    options_from,
    read_configuration,
    stores_from_url,
    warn_of_workers,
)
from .transports.websocket import WebSocketDoor, Writer

logger = logging.getLogger("starlette_realtime")

_STATIC = {
    "/client.js": ("client.js", "text/javascript; charset=utf-8"),
    "/client.d.ts": ("client.d.ts", "text/plain; charset=utf-8"),
}


class Realtime(Namespace):
    """Real-time channels for an ASGI app: mount it, or wrap the app in `RealtimeMiddleware`.

    Args:
        backend: where publications and presence live: `memory://` for one process. Without it, the
            environment variable `REALTIME_BACKEND` is asked, then memory it is.
        auth: who may connect. `AnonymousAuth()` lets everyone in.
        origins: origins of pages that may connect, beside the app's own: `"https://app.example"`,
            `"https://*.example"`; `"*"` for any.
        options: see `Options`.
        stores: backends made by hand, instead of `backend`.

    Raises:
        ConfigurationError: the backend's URL is wrong.
    """

    def __init__(
        self,
        backend: str | None = None,
        *,
        auth: AuthBackend,
        origins: list[str] | str | None = None,
        options: Options | None = None,
        stores: Stores | None = None,
    ) -> None:
        super().__init__("/", auth)
        self.options = options or Options()
        self.origins = OriginPolicy(origins)
        url = backend or os.environ.get(ENVIRONMENT) or "memory://"
        self._stores = stores or stores_from_url(url)
        self._namespaces: dict[str, Namespace] = {"/": self}
        self._running: _Running | None = None
        self._starting: anyio.Lock | None = None
        self._detached: object = None

    @classmethod
    def from_file(cls, path: str | Path, *, auth: AuthBackend) -> Realtime:
        """Return a `Realtime` that is set up by a TOML file:

            [realtime]
            backend = "redis://localhost"
            origins = ["https://app.example"]

            [realtime.options]
            max_rooms = 20

        The environment variable `REALTIME_BACKEND` goes before the file's `backend`.

        Raises:
            ConfigurationError: the file is not there, or says something unknown.
        """
        said = read_configuration(path)
        return cls(
            os.environ.get(ENVIRONMENT) or said.backend,
            auth=auth,
            origins=said.origins,
            options=options_from(said.options),
        )

    def namespace(self, name: str, *, auth: AuthBackend | None = None) -> Namespace:
        """Add a namespace `name` ("/admin") with handlers and rooms of its own, and its own
        authentication if `auth` is given."""
        if name in self._namespaces:
            raise ConfigurationError(f"there is a namespace {name!r} already")
        namespace = self._namespaces[name] = Namespace(name, auth or self.auth)
        return namespace

    # Lifetime

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Realtime]:
        """Run: inside the block connections are served; leaving it closes them with 1012 and ends
        every task, within `shutdown_timeout`."""
        if self._running is not None:
            raise ConfigurationError("this Realtime is running already")
        warn_of_workers(self._stores.broker)
        check_history(self._stores.broker, self.options, self._namespaces.values())
        # Once each: namespaces may share one.
        auths = dict.fromkeys(namespace.auth for namespace in self._namespaces.values())
        async with running(self.options, self._stores, auths) as runtime:
            self._running = _Running(self, runtime)
            try:
                yield self
            finally:
                self._running = None

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """The same as `run`, as Starlette's and FastAPI's `lifespan=` wants it."""
        async with self.run():
            yield

    async def drain(self) -> None:
        """Close every connection with 1012 and admit no more; part of stopping."""
        if self._running is not None:
            await self._running.runtime.drain()

    @property
    def running(self) -> bool:
        return self._running is not None

    async def _started(self) -> _Running:
        """Return the running server; start it if no lifespan has."""
        if self._running is None:
            if self._starting is None:
                self._starting = anyio.Lock()
            async with self._starting:
                if self._running is None:
                    await self._start_detached()
        assert self._running is not None
        return self._running

    async def _start_detached(self) -> None:
        """Start without a lifespan to live in: the server lives as long as the event loop."""
        logger.warning(
            "Realtime was not started by the app's lifespan: it starts now, and can't say goodbye "
            "to its clients when the app stops. Use RealtimeMiddleware, or pass "
            "lifespan=realtime.lifespan to the app."
        )
        started = anyio.Event()
        failure: list[BaseException] = []

        async def live() -> None:
            try:
                async with self.run():
                    started.set()
                    await anyio.sleep_forever()
            except Exception as error:
                failure.append(error)
            finally:
                started.set()

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            import trio

            trio.lowlevel.spawn_system_task(live)
        else:
            # Referenced: the event loop itself keeps only weak references to its tasks.
            self._detached = loop.create_task(live(), name="starlette-realtime")
        await started.wait()
        if failure:
            raise failure[0]

    def _now(self) -> _Running:
        if self._running is None:
            raise ConfigurationError(
                "Realtime is not running: publish from inside the app's lifespan"
            )
        return self._running

    async def _engine(self, namespace: str) -> Engine:
        return (await self._started()).engine(namespace)

    # Publishing from anywhere in the app

    def get_room(self, name: str, *, namespace: str = "/") -> Room:
        """Return a room by name, to publish into or to read.

        Raises:
            UnknownRoom: no pattern matches `name`.
            ConfigurationError: the server is not running, or has no such namespace.
        """
        return self._now().engine(namespace).room(name)

    async def publish(self, room: str, event: str, data: Any = None, **options: Any) -> Published:
        """Publish an event to a room: `Room.publish` by the room's name."""
        await self._started()
        return await self.get_room(room, namespace=options.pop("namespace", "/")).publish(
            event, data, **options
        )

    async def broadcast(
        self,
        event: str,
        data: Any = None,
        *,
        exclude: Member | Session | str | None = None,
        namespace: str = "/",
    ) -> None:
        """Send an event to every connected client, or to all but the session `exclude`. Not
        kept."""
        check_public(event)
        engine = await self._engine(namespace)
        await engine.tell(engine.everyone_channel, event, data, session_id(exclude))

    async def send_to_user(
        self, user_id: str, event: str, data: Any = None, *, namespace: str = "/"
    ) -> None:
        """Send an event to every connection of a user. Not kept."""
        check_public(event)
        engine = await self._engine(namespace)
        await engine.tell(engine.user_channel(user_id), event, data)

    async def send_to_session(
        self, session_id: str, event: str, data: Any = None, *, namespace: str = "/"
    ) -> None:
        """Send an event to one session, on whichever process it is. Not kept."""
        check_public(event)
        engine = await self._engine(namespace)
        await engine.tell(engine.session_channel(session_id), event, data)

    async def disconnect_user(
        self,
        user_id: str,
        *,
        code: int = CloseCode.FORBIDDEN,
        reason: str = "disconnected by the server",
        namespace: str = "/",
    ) -> None:
        """Close every connection of a user, on every process. With a code from 4400 to 4499 its
        clients stay away; whether the user may come back is for the auth backend to say."""
        engine = await self._engine(namespace)
        await engine.orders.give(engine.user_channel(user_id), code, reason)

    async def disconnect_session(
        self,
        session_id: str,
        *,
        code: int = CloseCode.KICKED,
        reason: str = "disconnected by the server",
        namespace: str = "/",
    ) -> None:
        """Close the connection of one session, on whichever process it is."""
        engine = await self._engine(namespace)
        await engine.orders.give(engine.session_channel(session_id), code, reason)

    # ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(self, None, scope, receive, send)
            return
        await self.handle(get_route_path(scope), scope, receive, send)

    async def handle(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request for `path` below the mount."""
        path = "/" + path.strip("/")
        if scope["type"] == "websocket":
            if path != "/ws":
                await _not_found(scope, receive, send)
                return
            running = self._running or await self._started()
            writer = _find_writer(scope, send)
            connection = await running.websocket.accept(scope, receive, send, writer)
            if connection is not None:
                await connection.run()
            return
        response = await self._http(path, Request(scope, receive))
        await response(scope, receive, send)

    async def _http(self, path: str, request: Request) -> Response:
        if path in _STATIC:
            return _static(path, request)
        if path == "/health":
            running = await self._started()
            state = "ok"
            if running.runtime.stopping:
                state = "draining"
            elif not running.runtime.broker.health().connected:
                # Probes through the broker do not come back: what others publish is not heard.
                state = "deaf"
            return JSONResponse({"status": state}, status_code=503 if state != "ok" else 200)
        if path == "/ws":
            return PlainTextResponse(
                "This is a WebSocket address.", status_code=426, headers={"upgrade": "websocket"}
            )
        return PlainTextResponse("Not Found", status_code=404)


class _Running:
    """What exists while a server runs."""

    def __init__(self, realtime: Realtime, runtime: Runtime) -> None:
        self.runtime = runtime
        self.engines = {
            name: Engine(namespace, runtime) for name, namespace in realtime._namespaces.items()
        }
        self.websocket = WebSocketDoor(runtime, self.engines, realtime.origins)

    def engine(self, namespace: str) -> Engine:
        engine = self.engines.get(namespace)
        if engine is None:
            known = ", ".join(map(repr, self.engines))
            raise ConfigurationError(f"there is no namespace {namespace!r}; there are: {known}")
        return engine


@cache
def _writer_finders() -> list[Callable[[Scope, Send], Writer | None]]:
    """Return what finds the direct writers of servers that have one."""
    finders: list[Callable[[Scope, Send], Writer | None]] = [hypercorn.find_writer]
    # Needs uvicorn, which need not be there.
    with suppress(ImportError):
        from .servers import uvicorn

        finders.insert(0, uvicorn.find_writer)
    return finders


def _find_writer(scope: Scope, send: Send) -> Writer | None:
    """Return a way past `send`, if there is one."""
    for find in _writer_finders():
        writer = find(scope, send)
        if writer is not None:
            return writer
    return None


def _static(path: str, request: Request) -> Response:
    name, media_type = _STATIC[path]
    if request.method not in ("GET", "HEAD"):
        return PlainTextResponse("Method Not Allowed", status_code=405, headers={"allow": "GET"})
    content, etag = _load_static(name)
    headers = {"etag": etag, "cache-control": "no-cache", "access-control-allow-origin": "*"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


_loaded: dict[str, tuple[bytes, str]] = {}


def _load_static(name: str) -> tuple[bytes, str]:
    if name not in _loaded:
        import hashlib

        content = (files(__package__) / "static" / name).read_bytes()
        _loaded[name] = (content, f'"{hashlib.sha256(content).hexdigest()[:20]}"')
    return _loaded[name]


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await PlainTextResponse("Not Found", status_code=404)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 4404, "reason": "Not Found"})


async def lifespan(
    realtime: Realtime, app: ASGIApp | None, scope: Scope, receive: Receive, send: Send
) -> None:
    """Serve a `lifespan` scope for `realtime` and, inside of it, for `app`: it is started before
    the app is, and stopped before the app is."""
    message = await receive()
    failure: BaseException | None = None
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(realtime.run())
        except Exception as error:
            failed = f"starlette-realtime: {error}"
            await send({"type": "lifespan.startup.failed", "message": failed})
            raise
        if app is None:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        else:
            replayed = False

            async def replay() -> Any:
                nonlocal replayed
                if not replayed:
                    replayed = True
                    return message
                event = await receive()
                # Clients are told while the app is whole; the stores close after it has stopped.
                await realtime.drain()
                return event

            try:
                await app(scope, replay, send)
            except Exception as error:
                # Raised again outside, because a task group would wrap it.
                failure = error
    if failure is not None:
        raise failure
    if app is None:
        await send({"type": "lifespan.shutdown.complete"})
