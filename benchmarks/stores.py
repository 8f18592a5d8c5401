"""``python -m benchmarks.stores``: what the stores cost on a Redis of their own.

Publishing beside a bare redis-py call of the same script, in turns; then 100 000 rooms with one
member each, and one room with 10 000 members. One process and one Redis; half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from statistics import median

from redis.asyncio import Redis

from starlette_realtime._redis import RedisServer
from starlette_realtime._redis.keys import chance, draft_arguments, retention_arguments
from starlette_realtime.brokers.redis import _PUBLISH, RETRY_MS, RedisBroker
from starlette_realtime.events import Draft, Lane, Publication, Retention
from starlette_realtime.presence import Lease
from starlette_realtime.presence.redis import RedisPresence

from .process import redis

KEEP = Retention()
SAID = Draft(event="new-message", data=b"x" * 200, lane=Lane.HISTORY)
CALLS = 300
ROUNDS = 9

Call = Callable[[], Awaitable[object]]


class Nobody:
    """A listener."""

    def received(self, channel: str, publication: Publication) -> None: ...

    def interrupted(self, channels: Iterable[str]) -> None: ...


async def timed(call: Call, calls: int, at_once: int) -> float:
    """Return how long a call takes, in microseconds, with so many under way."""
    begun = time.perf_counter()
    for _ in range(calls // at_once):
        await asyncio.gather(*(call() for _ in range(at_once)))
    return (time.perf_counter() - begun) / (calls // at_once * at_once) * 1e6


async def in_batches(calls: list[Call], size: int = 500) -> float:
    """Make all calls; return seconds."""
    begun = time.perf_counter()
    for start in range(0, len(calls), size):
        await asyncio.gather(*(call() for call in calls[start : start + size]))
    return time.perf_counter() - begun


async def publishing(url: str, broker: RedisBroker) -> None:
    server = broker._server
    arguments = [*draft_arguments(SAID), *retention_arguments(KEEP)]
    async with Redis.from_url(url) as client:
        digest = await client.script_load(_PUBLISH.text)

        async def bare() -> None:
            digits = chance()
            keys = (server.keys.meta("bare"), f"{server.keys.head(0)}j:{digits}")
            rest = (server.keys.announcements, digits, RETRY_MS, 0)
            await client.evalsha(digest, 2, *keys, *arguments, *rest)

        async def ours() -> None:
            await broker.publish("ours", SAID, KEEP)

        for at_once in (1, 64):
            await timed(ours, CALLS, at_once), await timed(bare, CALLS, at_once)
            pairs = [
                (await timed(ours, CALLS, at_once), await timed(bare, CALLS, at_once))
                for _ in range(ROUNDS)
            ]
            ratio = median(one / other for one, other in pairs)
            print(
                f"publish, {at_once:2} under way: {median(p[0] for p in pairs):6.0f} µs, "
                f"bare redis-py {median(p[1] for p in pairs):6.0f} µs: x {ratio:.2f}"
            )


def lease(number: int) -> Lease:
    return Lease(f"{number:032x}", f"user-{number:06}", b'{"name":"Somebody Else"}')


def enter(presence: RedisPresence, room: str, number: int) -> Call:
    data = b'{"userId":"user-%06d","user":{"name":"Somebody Else"}}' % number
    arrival = Draft(event="user-joined", data=data, lane=Lane.PRESENCE)
    departure = Draft(event="user-left", data=data, lane=Lane.PRESENCE)
    return lambda: presence.enter(
        room, lease(number), ttl=600, arrival=arrival, departure=departure, retention=KEEP
    )


async def crowds(
    url: str, broker: RedisBroker, presence: RedisPresence, rooms: int, size: int
) -> None:
    async def publish() -> None:
        await broker.publish("room/:crowd", SAID, KEEP)

    async with Redis.from_url(url) as client:

        async def megabytes() -> float:
            return float((await client.info("memory"))["used_memory"]) / 1e6

        many = [f"room/:chat/{number:06}" for number in range(rooms)]
        for title, names in (
            (f"{rooms} rooms with one member each", many),
            (f"one room with {size} members", ["room/:crowd"] * size),
        ):
            empty = await megabytes()
            leases = [(name, lease(number).session_id) for number, name in enumerate(names)]
            calls = [enter(presence, name, number) for number, name in enumerate(names)]
            entered = await in_batches(calls)
            grown = await megabytes() - empty
            begun = time.perf_counter()
            assert await presence.renew(leases, 600) == []
            renewed = time.perf_counter() - begun
            begun = time.perf_counter()
            assert await presence.expire() == 0
            swept = time.perf_counter() - begun
            begun = time.perf_counter()
            assert len((await presence.members(names[-1], limit=100)).members) == min(
                100, names.count(names[-1])
            )
            page = time.perf_counter() - begun
            print(
                f"{title}: {grown:.0f} MB; to enter {entered / len(names) * 1e6:.0f} µs each, to "
                f"renew {renewed / len(names) * 1e6:.1f}; a sweep {swept * 1e3:.1f} ms, a page of "
                f"members {page * 1e3:.1f} ms, publish {await timed(publish, CALLS, 1):.0f} µs"
            )


async def measure(url: str, rooms: int, size: int) -> None:
    server = RedisServer(url)
    broker, presence = RedisBroker(server), RedisPresence(server)
    async with broker.run(Nobody()), presence.run():
        await publishing(url, broker)
        await crowds(url, broker, presence, rooms, size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--rooms", type=int, default=100_000)
    parser.add_argument("--members", type=int, default=10_000)
    arguments = parser.parse_args()
    with redis() as url:
        asyncio.run(measure(url, arguments.rooms, arguments.members))


if __name__ == "__main__":
    main()
