"""A Redis that crashes, is restarted, stands still, and cuts the connections that listen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from anyio import to_thread

from tests.faults.conftest import SHORT
from tests.faults.party import Account, Party
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio


async def test_outages(
    own_redis: Callable[..., RedisServer], tmp_path: Path, account: Account, seconds: float
) -> None:
    """Nothing that Redis has written to its disk is lost, so nobody is told that something is."""
    server = own_redis(appendonly=True)
    party = Party(tmp_path, server.url, account, lambda: [redis.Redis(port=server.port)])

    async def crash() -> None:
        account.did("redis crashed")
        await to_thread.run_sync(server.kill)
        await party.pass_time(account.chance.uniform(1, 3))
        await to_thread.run_sync(server.start)

    async def restart() -> None:
        account.did("redis stopped")
        await to_thread.run_sync(server.stop)
        await party.pass_time(account.chance.uniform(1, 3))
        await to_thread.run_sync(server.start)

    async def freeze() -> None:
        account.did("redis frozen")
        server.pause()
        await party.pass_time(3 if seconds <= SHORT else 10)
        server.resume()

    async def cut_listeners() -> None:
        with redis.Redis(port=server.port) as client:
            killed = client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        account.counts["listeners cut"] += int(killed)

    async with party.run():
        await party.harm(seconds, crash, restart, freeze, cut_listeners, cut_listeners)
    for guest in party.guests:
        for room in guest.rooms.values():
            assert not room.resets
