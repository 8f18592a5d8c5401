"""The Redis limit store: its contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
import redis

from starlette_realtime import Options, Realtime
from starlette_realtime.limits.base import LimitStore
from starlette_realtime.limits.redis import RedisLimits
from starlette_realtime.testing.contracts.limits import LimitStoreContract
from tests.sessions.helpers import Names, client, side_by_side
from tests.support.redis_server import RedisServer
from tests.support.server import LiveServer
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio


class TestContract(LimitStoreContract):
    unit = 0.5

    @pytest.fixture(autouse=True)
    def server(self, restricted_url: str) -> None:
        self.url = restricted_url

    @asynccontextmanager
    async def stores(self) -> AsyncIterator[tuple[LimitStore, LimitStore]]:
        one, other = RedisLimits(self.url), RedisLimits(self.url)
        async with one.run(), other.run():
            yield one, other


async def test_what_is_full_or_held_by_nobody_ends_by_itself(redis_url: str) -> None:
    limits = RedisLimits(redis_url)
    async with limits.run():
        await limits.take("bucket", 10, rate=1, burst=10)
        await limits.take("frozen", 10, rate=0, burst=10)
        await limits.acquire("key", "a", limit=2, ttl=60)
        await limits.acquire("key", "b", limit=2, ttl=5)
        await limits.renew([("key", "b")], 120)
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        lives = sorted(client.ttl(key) for key in client.scan_iter("*"))
    assert len(lives) == 3
    assert 9 <= lives[0] <= 12
    assert 115 <= lives[1] <= 120
    assert 0 < lives[2] <= 31 * 86_400


async def test_connections_are_counted_again_after_lost_memory(
    own_redis: Callable[..., RedisServer], serve: Callable[..., LiveServer]
) -> None:
    """A Redis without a disk has forgotten who is connected; the workers have not."""
    redis = own_redis()
    options = Options(max_connections_per_user=2, presence_ttl=0.6, shutdown_timeout=1.0)
    workers = [Realtime(redis.url, auth=Names(), options=options) for _ in range(2)]
    server = serve(side_by_side(workers))

    async def comes_in() -> bool:
        hello = {"token": "ann"}
        async with NativeClient.open(server.ws("/0/ws"), hello=hello, wait_connected=False) as late:
            answer = await late.recv()
        return bool(answer["type"] == "connected")

    async def until(admitted: bool) -> None:
        while await comes_in() is not admitted:
            await anyio.sleep(0.02)

    async with client(server, path="/0/ws") as one, client(server, path="/1/ws"):
        await until(False)
        redis.kill()
        redis.start()
        await until(False)
        # Both are counted, and none twice.
        await one.close()
        await until(True)
        async with client(server, path="/1/ws"):
            assert not await comes_in()
