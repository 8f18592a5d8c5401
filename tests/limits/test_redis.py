"""The Redis limit store: its contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

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

    async def comes_in(stack: AsyncExitStack) -> bool:
        """Whether one more is let in; it stays until the stack ends."""
        url = server.ws("/0/ws")
        opening = NativeClient.open(url, hello={"token": "ann"}, wait_connected=False)
        late = await stack.enter_async_context(opening)
        return bool((await late.recv())["type"] == "connected")

    async def full() -> bool:
        async with AsyncExitStack() as stack:
            return not await comes_in(stack)

    async with client(server, path="/0/ws") as one, client(server, path="/1/ws"):
        assert await full()
        redis.kill()
        redis.start()
        while not await full():
            await anyio.sleep(0.02)
        # Both are counted, and none twice.
        await one.close()
        async with AsyncExitStack() as stack:
            while not await comes_in(stack):
                await anyio.sleep(0.02)
            assert await full()
