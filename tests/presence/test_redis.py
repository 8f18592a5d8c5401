"""The Redis presence store: its contract, and what is its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
import redis

from starlette_realtime.errors import BrokerUnavailable
from starlette_realtime.events import Draft, Lane, Position, Retention
from starlette_realtime.presence import Counts, Lease, PresenceStore
from starlette_realtime.testing.contracts import PresenceContract, RunningPresence
from tests.support.redis_server import RedisServer as Server
from tests.support.stores import two_presences

pytestmark = pytest.mark.anyio


class TestContract(PresenceContract):
    unit = 0.5

    @pytest.fixture(autouse=True)
    def server(self, restricted_url: str) -> None:
        self.url = restricted_url

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[RunningPresence, RunningPresence]]:
        async with two_presences(self.url) as pair:
            yield pair


async def enter(store: PresenceStore, room: str, session: str, user: str, ttl: float) -> bool:
    return await store.enter(
        room,
        Lease(session, user, b'{"name":"Ann"}'),
        ttl=ttl,
        arrival=Draft(event="arrived", data=b"1", lane=Lane.PRESENCE),
        departure=Draft(event="departed", data=b"1", lane=Lane.PRESENCE),
        retention=Retention(),
    )


async def lapse(store: PresenceStore, *leases: tuple[str, str]) -> None:
    """Let leases be over now, as if nobody had renewed them."""
    assert await store.renew(leases, 0) == []
    # The store knows no shorter time than a millisecond.
    await anyio.sleep(0.005)


async def test_many_leases_of_a_process_that_died_end_once(redis_url: str) -> None:
    async with two_presences(redis_url) as (one, two):
        # More than one step of the sweeper takes, in one room and in many.
        rooms = ["crowd" if number % 2 else f"room{number}" for number in range(450)]
        for number, room in enumerate(rooms):
            await enter(one.presence, room, f"s{number}", f"u{number}", 60)
        await enter(two.presence, "crowd", "stays", "bob", 60)
        await lapse(one.presence, *((room, f"s{number}") for number, room in enumerate(rooms)))
        assert sum(await gather_expired(one, two)) == 450
        assert await two.presence.counts("crowd") == Counts(1, 1)
        page = await two.broker.page("crowd", limit=1)
        recovery = await two.broker.recover("crowd", Position(page.position.epoch, 0), 1000)
        events = [publication.event for publication in recovery.publications]
        assert (events.count("arrived"), events.count("departed")) == (226, 225)


async def gather_expired(one: RunningPresence, two: RunningPresence) -> list[int]:
    return list(await asyncio.gather(*(side.presence.expire() for side in (one, two, one, two))))


async def test_of_those_who_have_gone_nothing_is_left(redis_url: str) -> None:
    async with two_presences(redis_url) as (one, two):
        for number in range(20):
            await enter(one.presence, f"room{number % 3}", f"s{number}", f"u{number % 7}", 60)
        for number in range(0, 20, 2):
            await two.presence.leave(f"room{number % 3}", f"s{number}")
        left = range(1, 20, 2)
        await lapse(one.presence, *((f"room{number % 3}", f"s{number}") for number in left))
        assert await two.presence.expire() == 10
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        keys = {key.decode().split(":")[2] for key in client.scan_iter("*")}
    # Where the streams stand, and what was announced.
    assert keys == {"m", "p"}


async def test_leases_outlive_the_stores_and_are_swept_by_the_next(redis_url: str) -> None:
    async with two_presences(redis_url) as (one, _):
        await enter(one.presence, "room", "s1", "ann", 60)
        await lapse(one.presence, ("room", "s1"))
    async with two_presences(redis_url) as (one, two):
        assert await one.presence.counts("room") == Counts(1, 1)
        assert await two.presence.expire() == 1
        assert await one.presence.counts("room") == Counts(0, 0)


async def test_a_server_without_memory_leaves_everything_as_it_was(
    own_redis: Callable[..., Server],
) -> None:
    server = own_redis(options={"maxmemory-policy": "noeviction"})
    async with two_presences(f"{server.url}?patience=0.2") as (one, _):
        await enter(one.presence, "room", "s1", "ann", 60)
        with redis.Redis(port=server.port, protocol=2) as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(BrokerUnavailable):
                await enter(one.presence, "room", "s2", "bob", 60)
            with pytest.raises(BrokerUnavailable):
                await one.presence.leave("room", "s1")
            client.config_set("maxmemory", "0")
        assert await one.presence.counts("room") == Counts(1, 1)
        assert await one.presence.leave("room", "s1")
        page = await one.broker.page("room", limit=1)
        recovery = await one.broker.recover("room", Position(page.position.epoch, 0), 10)
        assert [p.event for p in recovery.publications] == ["arrived", "departed"]


async def test_renewing_many_leases_keeps_nobody_waiting(redis_url: str) -> None:
    """A process of many rooms renews them all at once; what is published in the meantime is not
    behind all of that."""
    async with two_presences(redis_url) as (one, _):
        server = one.presence._server  # type: ignore[attr-defined]
        await one.presence.renew([("room", "nobody")], 60)
        await one.broker.publish("room", Draft(event="said", data=b"1"), Retention())
        leases = [(f"room{number}", "nobody") for number in range(20_000)]
        done: list[str] = []

        async def renew() -> None:
            assert await one.presence.renew(leases, 60) == leases
            done.append("renewed")

        async with anyio.create_task_group() as group:
            group.start_soon(renew)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            assert sum(pipe.load for node in server._nodes.values() for pipe in node._pipes) < 10
            await one.broker.publish("room", Draft(event="said", data=b"1"), Retention())
            done.append("published")
        assert done == ["published", "renewed"]
