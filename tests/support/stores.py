"""What suites of stores have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from starlette_realtime._redis import RedisServer
from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.presence.redis import RedisPresence
from starlette_realtime.testing.contracts import FakeClock, Recorder, RunningPresence


class OnFakeClock:
    """For contracts of stores in memory: time passes when the suite says so."""

    virtual_time = True

    def setup_method(self) -> None:
        self.clock = FakeClock()

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


@asynccontextmanager
async def two_presences(url: str) -> AsyncIterator[tuple[RunningPresence, RunningPresence]]:
    """Two processes' presence on one Redis, each with its broker."""
    async with AsyncExitStack() as stack:
        sides = []
        for _ in range(2):
            server, recorder = RedisServer(url), Recorder()
            broker, presence = RedisBroker(server), RedisPresence(server)
            await stack.enter_async_context(broker.run(recorder))
            await stack.enter_async_context(presence.run())
            sides.append(RunningPresence(presence, broker, recorder))
        yield sides[0], sides[1]
