"""The Redis session store: its contract, and what is its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from starlette_realtime import Options, Realtime
from starlette_realtime.sessions.base import SessionRecord, SessionStore
from starlette_realtime.sessions.redis import RedisSessions
from starlette_realtime.testing.contracts.recorder import eventually
from starlette_realtime.testing.contracts.sessions import SessionStoreContract
from tests.sessions.helpers import Names, client, engine, runtime, side_by_side, threadsafe, until
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.server import LiveServer

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


async def test_who_was_not_told_of_its_successor_is_closed_with_the_next_renewal(
    redis_url: str, serve: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(presence_ttl=0.6, shutdown_timeout=1.0)
    workers = [Realtime(redis_url, auth=Names(), options=options) for _ in range(2)]
    server = serve(side_by_side(workers))

    async def lost(*arguments: Any) -> None:
        pass

    async with client(server, path="/0/ws") as one:
        monkeypatch.setattr(engine(workers[1]), "tell", lost)
        async with client(server, path="/1/ws", resume=one.connected) as other:
            assert other.connected["resumed"] is True
            assert await one.closed() == (4409, "resumed elsewhere")
            await other.settle()


async def test_a_process_that_was_cut_off_sends_away_whom_it_was_told_to(
    own_redis: Callable[..., RedisServer],
) -> None:
    redis = own_redis()
    async with Proxy(redis.port) as way:
        urls = [redis.url, f"redis://127.0.0.1:{way.port}/0"]
        options = Options(shutdown_timeout=1.0)
        workers = [Realtime(url, auth=Names(), options=options) for url in urls]

        async def order(name: str) -> None:
            await threadsafe(workers[0], lambda: workers[0].disconnect_user(name, reason="banned"))

        async with LiveServer(side_by_side(workers)) as server:
            # It comes back after it was sent away: that order is none for its new connection.
            async with client(server, path="/0/ws"), client(server, "cid", path="/1/ws") as cid:
                await order("cid")
                assert await cid.closed() == (4403, "banned")
            async with (
                client(server, "cid", path="/1/ws") as cid,
                client(server, "ann", path="/1/ws") as ann,
                client(server, "bob", path="/1/ws") as bob,
            ):
                way.stall()
                way.cut_all()
                await order("ann")
                id = bob.connected["sessionId"]
                await threadsafe(workers[0], lambda: workers[0].disconnect_session(id))
                way.resume()
                assert await ann.closed(20) == (4403, "banned")
                assert (await bob.closed(20))[0] == 4410
                lists = runtime(workers[1]).engines["/"].orders
                await until(lambda: not lists._reading, "the end of the list")
                await cid.settle()
