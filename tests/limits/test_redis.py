"""The Redis limit store: its contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from starlette_realtime.limits.base import LimitStore
from starlette_realtime.limits.redis import RedisLimits
from starlette_realtime.testing.contracts.limits import LimitStoreContract

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
