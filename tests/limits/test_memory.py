from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.limits import LimitStore, MemoryLimits
from starlette_realtime.limits import memory as limits_memory
from starlette_realtime.testing.contracts.limits import LimitStoreContract
from starlette_realtime.testing.contracts.recorder import FakeClock
from tests.support.loops import both_loops
from tests.support.stores import OnFakeClock

pytestmark = pytest.mark.anyio


@both_loops
class TestMemoryLimits(OnFakeClock, LimitStoreContract):
    @asynccontextmanager
    async def stores(self) -> AsyncIterator[tuple[LimitStore, LimitStore]]:
        limits = MemoryLimits(clock=self.clock)
        async with limits.run():
            yield limits, limits


async def test_the_number_of_buckets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_memory, "MAX_BUCKETS", 100)
    limits = MemoryLimits()
    for n in range(1000):
        await limits.take(str(n), 1, rate=1, burst=10)
    assert len(limits._buckets) == 100


async def test_nothing_is_left_of_holders_that_have_gone() -> None:
    clock = FakeClock()
    limits = MemoryLimits(clock=clock)
    for n in range(1000):
        await limits.acquire(f"user {n}", "one", limit=2, ttl=60)
        await limits.release(f"user {n}", "one")
    assert not limits._holders
