"""Servers for these tests: users by name, and what is inside the running server."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

from starlette_realtime import AuthBackend, Credentials, Options, Realtime, User
from starlette_realtime.core.engine import Engine
from starlette_realtime.core.runtime import Runtime
from starlette_realtime.core.session import Session
from starlette_realtime.errors import AuthenticationFailed
from tests.support.wsclient import Message, NativeClient

GRACE = 0.5


class Names(AuthBackend):
    """The token is the user's id, perhaps with the number of seconds it is good for: `ann;2.5`."""

    def __init__(self) -> None:
        self.asked = 0

    async def authenticate(self, credentials: Credentials) -> User | None:
        self.asked += 1
        if not credentials.token:
            return None
        name, _, seconds = credentials.token.partition(";")
        if name == "nobody":
            raise AuthenticationFailed("unknown name")
        expires = time.time() + float(seconds) if seconds else None
        return User(id=name, info={"name": name.title()}, expires_at=expires)


def make(auth: AuthBackend | None = None, **options: Any) -> Realtime:
    """A server whose grace period is short enough to be waited for."""
    settings: dict[str, Any] = {
        "presence_grace": GRACE,
        "resume_window": 30.0,
        "shutdown_timeout": 1.0,
        **options,
    }
    return Realtime("memory://", auth=auth or Names(), options=Options(**settings))


def runtime(realtime: Realtime) -> Runtime:
    """What runs behind a server that has been started."""
    assert realtime._running is not None
    return realtime._running.runtime


def engine(realtime: Realtime, ns: str = "/") -> Engine:
    return runtime(realtime).engines[ns]


def sessions(realtime: Realtime) -> list[Session]:
    """The sessions that have a connection."""
    return [s for s in list(runtime(realtime).hub.sessions.values()) if isinstance(s, Session)]


def of_user(realtime: Realtime, user_id: str) -> Session:
    (found,) = [session for session in sessions(realtime) if session.user_id == user_id]
    return found


async def until(condition: Callable[[], bool], what: str, timeout: float = 8) -> None:
    """Waits for something inside the server."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about"
        await asyncio.sleep(0.005)


async def gone(realtime: Realtime, number: int = 0) -> None:
    """Waits until the server has at most `number` connections."""
    await until(
        lambda: len(runtime(realtime).connections) <= number and len(sessions(realtime)) <= number,
        f"the end of all but {number} connections",
    )


async def nothing_left(realtime: Realtime) -> None:
    """Waits until nothing is left of any connection: channels, leases, counts, buckets."""
    from starlette_realtime.limits.memory import MemoryLimits
    from starlette_realtime.presence.memory import MemoryPresence

    found = runtime(realtime)
    presence, limits = found.presence, found.limits
    assert isinstance(presence, MemoryPresence) and isinstance(limits, MemoryLimits)

    def left() -> dict[str, Any]:
        everything = {
            "connections": found.connections,
            "channels": found.hub.channels,
            "leases": presence._rooms,
            "holders": limits._holders,
            "buckets": found._buckets,
            "sessions": found.hub.sessions,
        }
        return {name: list(value) for name, value in everything.items() if value}

    end = time.monotonic() + 8
    while left():
        assert time.monotonic() < end, f"still there: {left()}"
        await asyncio.sleep(0.005)


def threadsafe(realtime: Realtime, call: Callable[[], Any]) -> asyncio.Future[Any]:
    """Runs an async function in the server's event loop; await what is returned."""
    loop = runtime_loops[realtime]
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), loop))


runtime_loops: WeakKeyDictionary[Realtime, asyncio.AbstractEventLoop] = WeakKeyDictionary()


def app_of(realtime: Realtime) -> Callable[..., Any]:
    """The ASGI app, which remembers the event loop it runs in."""

    @functools.wraps(realtime.__call__)
    async def app(scope: Any, receive: Any, send: Any) -> None:
        runtime_loops[realtime] = asyncio.get_running_loop()
        await realtime(scope, receive, send)

    return app


def side_by_side(made: list[Realtime]) -> Any:
    """One app with each of them under `/0`, `/1`, …"""
    apps = [app_of(realtime) for realtime in made]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            async with AsyncExitStack() as stack:
                await receive()
                for realtime in made:
                    await stack.enter_async_context(realtime.run())
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        number, _, rest = scope["path"][1:].partition("/")
        await apps[int(number)]({**scope, "path": "/" + rest}, receive, send)

    return app


@asynccontextmanager
async def client(
    server: Any,
    name: str = "ann",
    *,
    resume: Message | None = None,
    rooms: Mapping[str, Any] | None = None,
    path: str = "/ws",
    **options: Any,
) -> AsyncIterator[NativeClient]:
    """A client called `name`; `resume` is the `connected` of an earlier one."""
    hello: dict[str, Any] = {"token": name}
    if resume is not None:
        hello["resume"] = resume["resume"]
    if rooms is not None:
        hello["rooms"] = dict(rooms)
    async with NativeClient.open(server.ws(path), hello=hello, **options) as opened:
        yield opened
