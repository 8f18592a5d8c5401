"""A Redis that crashes, is restarted, stands still, is away for long, forgets everything, cuts the
connections that listen, and is out of reach for one of the workers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import redis
from anyio import to_thread

from tests.faults.app import GRACE, LEASE
from tests.faults.conftest import SHORT
from tests.faults.party import ROOMS, Account, Party, until
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

Own = Callable[..., RedisServer]


async def test_outages(own_redis: Own, tmp_path: Path, account: Account, seconds: float) -> None:
    """Nothing that Redis has written to its disk is lost, so nobody is told that something is, and
    nobody's connection ends."""
    server = own_redis(appendonly=True)
    party = Party(tmp_path, server.url, account, lambda: [redis.Redis(port=server.port)])

    async def crash(away: float) -> None:
        account.did(f"redis crashed, away for {away:g} s")
        await to_thread.run_sync(server.kill)
        await party.pass_time(away)
        await to_thread.run_sync(server.start)

    async def restart() -> None:
        account.did("redis stopped, away for 1 s")
        await to_thread.run_sync(server.stop)
        await party.pass_time(1)
        await to_thread.run_sync(server.start)

    async def freeze() -> None:
        length = 3 if seconds <= SHORT else 10
        account.did(f"redis frozen for {length} s")
        server.pause()
        await party.pass_time(length)
        server.resume()

    async def cut_listeners() -> None:
        with redis.Redis(port=server.port) as client:
            killed = client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        account.counts["listeners cut"] += int(killed)

    async def cut_all() -> None:
        with redis.Redis(port=server.port) as client:
            for kind in ("pubsub", "normal"):
                killed = client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
                account.counts["connections to redis cut"] += int(killed)

    async with party.run():
        await party.harm(seconds, partial(crash, 1.5), restart, freeze, cut_listeners, cut_all)
        if seconds > SHORT:
            for away in (10, 60):
                await crash(away)
                await party.pass_time(2)
    for guest in party.guests:
        assert guest.connections == 1
        for room in guest.rooms.values():
            assert not room.resets
    # Nobody waited in vain: an answer comes within the patience, for each of those under way.
    assert max(guest.slowest for guest in party.guests if guest.window == 1) < 10


async def test_lost_memory(
    own_redis: Own, tmp_path: Path, account: Account, seconds: float
) -> None:
    """A Redis without a disk: everybody is told, and all that the workers know is there again."""
    server = own_redis()
    connect = partial(redis.Redis, port=server.port)
    party = Party(tmp_path, server.url, account, lambda: [connect()], lossless=False)

    async def all_told(since: float) -> None:
        await until(
            lambda: all(
                room.resets and room.resets[-1] > since
                for guest in party.guests
                for room in guest.rooms.values()
            ),
            lambda: "not all have been told",
        )

    async def crash() -> None:
        account.did("redis crashed, all forgotten")
        since = time.monotonic()
        await to_thread.run_sync(server.kill)
        await party.pass_time(0.5)
        await to_thread.run_sync(server.start)
        await all_told(since)

    async def flush() -> None:
        account.did("redis emptied")
        since = time.monotonic()
        with connect() as client:
            client.flushall()
        await all_told(since)

    async with party.run():
        await party.harm(seconds, crash, flush)
        # Sessions that were lost are kept again, and can be gone on with on the other worker.
        await party.pass_time(LEASE / 3 + 1)
        await until(lambda: all(guest.present for guest in party.guests), lambda: "not there")
        before = {guest: (guest.connections, guest.resumed) for guest in party.guests}
        await party.kill_worker(await party.busiest())
        await until(lambda: all(guest.present for guest in party.guests), lambda: "not back")
        returned = [guest for guest in party.guests if guest.connections > before[guest][0]]
        assert returned
        for guest in returned:
            connections, resumed = before[guest]
            assert guest.resumed - resumed == guest.connections - connections
        assert all(room.departures == [] for g in party.guests for room in g.rooms.values())


async def test_partition(own_redis: Own, tmp_path: Path, account: Account, seconds: float) -> None:
    """A worker that cannot reach Redis for longer than the leases of its people: they leave, once,
    and are there again; their connections stay, and what they missed comes."""
    server = own_redis(appendonly=True)
    async with Proxy(server.port) as way:
        urls = [server.url, f"redis://127.0.0.1:{way.port}/0"]
        party = Party(tmp_path, urls, account, lambda: [redis.Redis(port=server.port)])
        partitions = 0

        async def cut_off() -> None:
            nonlocal partitions
            partitions += 1
            account.did("worker cut off from redis")
            way.stall()
            if account.chance.random() < 0.5:
                # What is on its way never comes, and no end hears of that.
                account.counts["connections buried"] += way.bury_all()
            await party.pass_time(LEASE + GRACE)
            way.resume()
            await until(lambda: all(guest.present for guest in party.guests), lambda: "not back")
            await until(
                lambda: all(
                    Counter(room.arrivals)[guest.name] == partitions
                    for observer in party.guests
                    if observer not in beyond
                    for room in observer.rooms.values()
                    for guest in beyond
                ),
                lambda: "not all of them were seen to come back",
            )

        async with party.run(settled=True):
            beyond = party.guests[2:4]
            for guest in party.guests:
                for room in guest.rooms.values():
                    room.arrivals.clear()
            await party.harm(seconds if seconds > SHORT else 0, cut_off)
        expected = Counter({guest.name: partitions for guest in beyond})
        for guest in party.guests:
            assert guest.connections == 1
            for name in ROOMS:
                room = guest.rooms[name]
                assert not room.resets
                assert Counter(room.departures) == Counter(
                    {name: times for name, times in expected.items() if name != guest.name}
                )
