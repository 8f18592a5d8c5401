"""The Redis presence store: its contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from starlette_realtime._redis import RedisServer
from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.presence.redis import RedisPresence
from starlette_realtime.testing.contracts import PresenceContract, Recorder, RunningPresence

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def two_stores(url: str) -> AsyncIterator[tuple[RunningPresence, RunningPresence]]:
    async with AsyncExitStack() as stack:
        sides = []
        for _ in range(2):
            server, recorder = RedisServer(url), Recorder()
            broker, presence = RedisBroker(server), RedisPresence(server)
            await stack.enter_async_context(broker.run(recorder))
            await stack.enter_async_context(presence.run())
            sides.append(RunningPresence(presence, broker, recorder))
        yield sides[0], sides[1]


class TestContract(PresenceContract):
    @pytest.fixture(autouse=True)
    def server(self, redis_url: str) -> None:
        self.url = redis_url

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[RunningPresence, RunningPresence]]:
        async with two_stores(self.url) as pair:
            yield pair
