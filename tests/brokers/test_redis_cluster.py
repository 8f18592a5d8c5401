"""All stores on a Redis Cluster: their contracts, moving slots, failovers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime._redis.keys import PARTITIONS
from starlette_realtime.brokers import HistoryBroker
from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.events import Draft, Retention
from starlette_realtime.limits.base import LimitStore
from starlette_realtime.limits.redis import RedisLimits
from starlette_realtime.sessions.base import SessionStore
from starlette_realtime.sessions.redis import RedisSessions
from starlette_realtime.testing.contracts import (
    HistoryBrokerContract,
    PresenceContract,
    Recorder,
    Running,
    RunningPresence,
)
from starlette_realtime.testing.contracts.limits import LimitStoreContract
from starlette_realtime.testing.contracts.sessions import SessionStoreContract
from starlette_realtime.testing.contracts.tickets import TicketStoreContract
from starlette_realtime.tickets import TicketStore
from starlette_realtime.tickets.redis import RedisTickets
from tests.support.redis_cluster import RedisCluster, shared_cluster
from tests.support.stores import two_presences

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> RedisCluster:
    return shared_cluster(request)


class TestBroker(HistoryBrokerContract):
    @pytest.fixture(autouse=True)
    def server(self, cluster: RedisCluster) -> None:
        self.url = cluster.url

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Running[HistoryBroker], Running[HistoryBroker]]]:
        async with two_presences(self.url) as pair:
            one, two = (Running(side.broker, side.recorder) for side in pair)
            yield one, two


class TestPresence(PresenceContract):
    unit = 0.5

    @pytest.fixture(autouse=True)
    def server(self, cluster: RedisCluster) -> None:
        self.url = cluster.url

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[RunningPresence, RunningPresence]]:
        async with two_presences(self.url) as pair:
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


class TestSessions(SessionStoreContract):
    @pytest.fixture(autouse=True)
    def server(self, cluster: RedisCluster) -> None:
        self.url = cluster.url

    @asynccontextmanager
    async def stores(self) -> AsyncIterator[tuple[SessionStore, SessionStore]]:
        one, other = RedisSessions(self.url), RedisSessions(self.url)
        async with one.run(), other.run():
            yield one, other


class TestLimits(LimitStoreContract):
    unit = 0.5

    @pytest.fixture(autouse=True)
    def server(self, cluster: RedisCluster) -> None:
        self.url = cluster.url

    @asynccontextmanager
    async def stores(self) -> AsyncIterator[tuple[LimitStore, LimitStore]]:
        one, other = RedisLimits(self.url), RedisLimits(self.url)
        async with one.run(), other.run():
            yield one, other


async def test_subscriptions_do_not_grow_with_channels(cluster: RedisCluster) -> None:
    recorder = Recorder()
    broker = RedisBroker(f"{cluster.url}?prefix=growth")
    channels = [f"room/{number}" for number in range(3000)]

    def subscribed() -> int:
        found = 0
        for server in cluster.servers:
            with cluster.client(server) as client:
                found += len(client.execute_command("PUBSUB", "SHARDCHANNELS", "growth:*:c"))
        return found

    async with broker.run(recorder):
        await broker.subscribe(channels)
        assert subscribed() == broker.health().channels == PARTITIONS
        assert broker.health().links == 3
        for channel in channels[::300]:
            await broker.publish(channel, Draft(event="said", data=b"1"), Retention())
            await recorder.wait(channel, 1)
        # A channel of nobody's here, in a partition that is heard.
        await broker.publish("stranger", Draft(event="said", data=b"1"), Retention())
        await broker.unsubscribe(channels[:-1])
        assert subscribed() == 1
        await broker.publish(channels[0], Draft(event="said", data=b"2"), Retention())
        await broker.publish(channels[-1], Draft(event="said", data=b"3"), Retention())
        await recorder.wait(channels[-1], 1)
        assert "stranger" not in recorder.heard
        assert [p.data for p in recorder.heard[channels[0]]] == [b"1"]
