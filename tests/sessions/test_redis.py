"""The Redis session store: its contract, and what is its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.sessions.base import SessionRecord, SessionStore
from starlette_realtime.sessions.redis import RedisSessions
from starlette_realtime.testing.contracts.recorder import eventually
from starlette_realtime.testing.contracts.sessions import SessionStoreContract
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio


class TestContract(SessionStoreContract):
    @pytest.fixture(autouse=True)
    def server(self, restricted_url: str) -> None:
        self.url = restricted_url

    @asynccontextmanager
    async def stores(self) -> AsyncIterator[tuple[SessionStore, SessionStore]]:
        one, other = RedisSessions(self.url), RedisSessions(self.url)
        async with one.run(), other.run():
            yield one, other


async def test_a_session_is_resumed_once_however_often_it_was_tried(
    own_redis: Callable[..., RedisServer],
) -> None:
    server = own_redis()
    async with Proxy(server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0?timeout=0.2&patience=20&pool=1"
        sessions = RedisSessions(url)
        async with sessions.run():
            await sessions.put(SessionRecord("id", "/", "ann", 1), 600)
            # The server knows the script from now on.
            assert await sessions.resume("nobody", 1, 600) is None
            accepted = proxy.accepted
            # It is carried out, and the answer never comes.
            proxy.stall(to_server=False)
            resumed = asyncio.create_task(sessions.resume("id", 1, 600))
            await eventually(lambda: proxy.accepted > accepted, lambda: "it does not try again")
            proxy.resume()
            record = await resumed
            assert record is not None and record.generation == 2
            # Another call is another one.
            again = await sessions.resume("id", 1, 600)
            assert again is not None and again.generation == 3
            assert await sessions.resume("id", 1, 600) is None
