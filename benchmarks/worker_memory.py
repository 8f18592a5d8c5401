"""``python -m benchmarks.worker_memory``: what rooms and members weigh in a worker on Redis.

Sessions on connections without a socket, so that the server's own part is left out: first in no
room, then each in a room of its own, then all in one room. What is printed is by how much the
process's resident memory has grown. A minute.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import anyio

from starlette_realtime import AuthBackend, Credentials, Options, Realtime, User
from starlette_realtime.core.lobby import Introduction
from starlette_realtime.core.outbox import Chunk, Outbox
from starlette_realtime.core.session import Connection, Session
from starlette_realtime.wires import native

from .process import redis

AT_ONCE = 200
WARM = 1000
"""Sessions that come before the measuring, for what is made once or in advance."""


class Deaf(Connection):
    """A connection that sends nothing anywhere."""

    def __init__(self, options: Options) -> None:
        outbox = Outbox(
            native.TEXT[2], limit=options.max_queued, overflow=self.overflow, write=self.write
        )
        super().__init__({"type": "websocket", "headers": []}, outbox, options)

    def write(self, chunk: Chunk) -> bool:
        return True

    def overflow(self) -> None: ...

    def close(self, code: int, reason: str = "") -> None: ...

    async def wait(self, event: anyio.Event) -> None:
        await event.wait()

    @property
    def busy(self) -> bool:
        return False


class Nobody(AuthBackend):
    """Authenticates nobody: sessions are opened behind the door."""

    async def authenticate(self, credentials: Credentials) -> User | None:
        return None


def resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def each(number: int, call: Callable[[int], Awaitable[object]]) -> None:
    for start in range(0, number, AT_ONCE):
        await asyncio.gather(*(call(n) for n in range(start, min(start + AT_ONCE, number))))


async def measure(url: str, number: int, crowd: int) -> None:
    options = Options(max_connections_per_user=0, ping_interval=3600.0)
    realtime = Realtime(url, auth=Nobody(), options=options)
    realtime.room("chat/{id}")
    async with realtime.run():
        assert realtime._running is not None
        engine = realtime._running.runtime.engines["/"]
        sessions: list[Session] = []
        names = count()

        async def enter(n: int) -> None:
            user = User(id=f"user-{next(names):06}", info={"name": "Somebody Else"})
            sessions.append(await engine.lobby.connect(Deaf(options), user, Introduction()))

        async def join(room: str, n: int) -> None:
            await engine.rooms.join(sessions[n], room)

        await each(WARM, enter)
        await each(WARM, lambda n: join(f"chat/{n:06}", n))
        await each(WARM, lambda n: join("chat/warm", n))
        for what, times, call in (
            ("a session", number, enter),
            ("a room with one member", number, lambda n: join(f"chat/own-{n:06}", n)),
            (f"a member more of a room of {crowd}", crowd, lambda n: join("chat/crowd", n)),
        ):
            before = resident()
            await each(times, call)
            grown = resident() - before
            print(f"{what}: {grown / times:.0f} bytes ({times}: {grown / 1e6:.1f} MB)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker_memory", description=__doc__)
    parser.add_argument("--rooms", type=int, default=20_000)
    parser.add_argument("--members", type=int, default=10_000)
    arguments = parser.parse_args()
    with redis() as url:
        asyncio.run(measure(url, arguments.rooms, arguments.members))


if __name__ == "__main__":
    main()
