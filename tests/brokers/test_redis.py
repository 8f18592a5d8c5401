"""The Redis broker on a single server: its contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.testing.contracts import (
    HistoryBrokerContract,
    Recorder,
    Running,
)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def two_brokers(
    url: str,
) -> AsyncIterator[tuple[Running[RedisBroker], Running[RedisBroker]]]:
    async with AsyncExitStack() as stack:
        sides = []
        for _ in range(2):
            recorder, broker = Recorder(), RedisBroker(url)
            await stack.enter_async_context(broker.run(recorder))
            sides.append(Running(broker, recorder))
        yield sides[0], sides[1]


class TestContract(HistoryBrokerContract):
    @pytest.fixture(autouse=True)
    def server(self, redis_url: str) -> None:
        self.url = redis_url

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Running[RedisBroker], Running[RedisBroker]]]:
        async with two_brokers(self.url) as pair:
            yield pair
