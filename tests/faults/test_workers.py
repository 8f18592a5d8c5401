"""Workers that are killed, and clients whose connections are cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.faults.app import LEASE
from tests.faults.conftest import SHORT
from tests.faults.party import ROOMS, Account, Party, until
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio


async def test_killed_workers(
    own_redis: Callable[..., RedisServer], tmp_path: Path, account: Account, seconds: float
) -> None:
    server = own_redis(appendonly=True)
    party = Party(tmp_path, server.url, account, lambda: [redis.Redis(port=server.port)])
    async with party.run():
        ghost = party.invite("ghost", worker=1, returns=False)
        await until(lambda: ghost.present, lambda: "the ghost is not there")
        await party.pass_time(1)
        victims = iter([1])

        async def kill() -> None:
            await party.kill_worker(next(victims, await party.busiest()))

        await party.harm(seconds, kill, kill)
        assert ghost.lost.is_set()
        for guest in party.guests[:-1]:
            for room in ROOMS:
                await until(
                    lambda g=guest, r=room: "ghost" in g.rooms[r].departures,  # type: ignore[misc]
                    lambda g=guest: f"{g.name} has not seen the ghost leave",  # type: ignore[misc]
                )
        # It left once; those who came back within the lease were never gone.
        for guest in party.guests[:-1]:
            for known in guest.rooms.values():
                assert known.departures == ["ghost"]
                assert not known.resets


async def test_cut_sockets(
    own_redis: Callable[..., RedisServer], tmp_path: Path, account: Account, seconds: float
) -> None:
    server = own_redis(appendonly=True)
    party = Party(tmp_path, server.url, account, lambda: [redis.Redis(port=server.port)])
    async with party.run():

        async def cut() -> None:
            await party.pass_time(2)
            party.cut_clients()

        async def freeze() -> None:
            # Long enough for the leases of its people to end: they leave, and are here again.
            await party.freeze_worker(await party.busiest(), LEASE + 2)

        ways = [cut] if seconds <= SHORT else [cut, cut, freeze]
        await party.harm(seconds, *ways, pause=0.1)
    # Wherever its client went, each question has found it.
    assert party.questions["answered"] > 0
    assert not party.questions["late"] + party.questions["ended"], party.questions
    for guest in party.guests:
        for room in guest.rooms.values():
            assert not room.resets
