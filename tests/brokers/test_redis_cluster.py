"""All stores on a Redis Cluster: their contracts, moving slots, failovers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from starlette_realtime._redis import RedisServer
from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.presence.redis import RedisPresence
from starlette_realtime.testing.contracts import (
    HistoryBrokerContract,
    PresenceContract,
    Recorder,
    Running,
    RunningPresence,
)
from starlette_realtime.testing.contracts.tickets import TicketStoreContract
from starlette_realtime.tickets import TicketStore
from starlette_realtime.tickets.redis import RedisTickets
from tests.support.redis_cluster import RedisCluster, shared_cluster

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> RedisCluster:
    return shared_cluster(request)


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


class TestBroker(HistoryBrokerContract):
    @pytest.fixture(autouse=True)
    def server(self, cluster: RedisCluster) -> None:
        self.url = cluster.url

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Running[RedisBroker], Running[RedisBroker]]]:
        async with two_stores(self.url) as pair:
            one, two = (Running(side.broker, side.recorder) for side in pair)
            yield one, two


class TestPresence(PresenceContract):
    @pytest.fixture(autouse=True)
    def server(self, cluster: RedisCluster) -> None:
        self.url = cluster.url

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[RunningPresence, RunningPresence]]:
        async with two_stores(self.url) as pair:
            yield pair


class TestTickets(TicketStoreContract):
    @pytest.fixture(autouse=True)
    def server(self, cluster: RedisCluster) -> None:
        self.url = cluster.url

    @asynccontextmanager
    async def store(self) -> AsyncIterator[TicketStore]:
        tickets = RedisTickets(self.url)
        async with tickets.run():
            yield tickets
