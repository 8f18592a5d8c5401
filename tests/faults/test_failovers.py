"""Masters that die, and replicas that take their place without all that was acknowledged."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread

from starlette_realtime._redis.keys import SLOTS, partition
from starlette_realtime.core.channels import room_channel
from tests.faults.conftest import SHORT
from tests.faults.party import ROOMS, Account, Party
from tests.support.processes import wait_for
from tests.support.redis_cluster import RedisCluster, shared_cluster
from tests.support.redis_sentinel import RedisSentinel
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("durability", ["fast", "replicated"])
async def test_sentinel(tmp_path: Path, account: Account, seconds: float, durability: str) -> None:
    """What was acknowledged and lost is told; where a replica has to have it, nothing is lost."""
    lossy = durability == "fast"
    folder = tmp_path / "sentinel"
    folder.mkdir()
    nodes = RedisSentinel(folder)
    await to_thread.run_sync(nodes.start)
    try:
        party = Party(
            tmp_path,
            f"{nodes.url}?durability={durability}",
            account,
            lambda: [nodes.client(nodes.master)],
            lossless=not lossy,
        )

        async def fail_over(*, losing: bool) -> None:
            master, replica = nodes.master, nodes.replica
            if losing:
                # For a moment the replica hears nothing of what the master acknowledges.
                replica.pause()
                with nodes.client(master) as client:
                    client.execute_command("CLIENT", "KILL", "TYPE", "replica")
                await party.pass_time(0.5)
            account.did("master killed with what it knew" if losing else "master killed")
            await to_thread.run_sync(master.kill)
            replica.resume()
            await to_thread.run_sync(nodes.wait_for_promotion, replica)
            await party.pass_time(1)
            # It comes back as the other's replica, for the next time.
            await to_thread.run_sync(master.start)
            await to_thread.run_sync(follow, master, replica)

        def follow(follower: RedisServer, master: RedisServer) -> None:
            with nodes.client(follower) as client:
                client.replicaof("127.0.0.1", master.port)
                wait_for(
                    lambda: client.info("replication")["master_link_status"] == "up",
                    "the old master follows the new one",
                )

        ways = [partial(fail_over, losing=True), partial(fail_over, losing=False)]
        async with party.run():
            await party.harm(seconds, *(ways[:1] if seconds <= SHORT and not lossy else ways))
        # What was lost was seen by all, so all have been told.
        assert not lossy or all(
            any(room.resets for room in guest.rooms.values()) for guest in party.guests
        )
    finally:
        await to_thread.run_sync(nodes.stop)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> RedisCluster:
    return shared_cluster(request)


async def test_cluster(
    cluster: RedisCluster, tmp_path: Path, account: Account, seconds: float
) -> None:
    slots = [SLOTS[partition(room_channel("/", room))] for room in ROOMS]

    def masters() -> list[object]:
        owners = {cluster.owner(slot).port: cluster.owner(slot) for slot in (0, 8191, 16383)}
        return [cluster.client(owner) for owner in owners.values()]

    party = Party(tmp_path, cluster.url, account, masters, lossless=False)  # type: ignore[arg-type]

    async def kill_master(*, losing: bool) -> None:
        slot = account.chance.choice(slots)
        victim = await to_thread.run_sync(cluster.owner, slot)
        replica = await to_thread.run_sync(cluster.replica_of, victim)
        if losing:
            replica.pause()
            with cluster.client(victim) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            await party.pass_time(0.3)
        account.did("master killed with what it knew" if losing else "master killed")
        await to_thread.run_sync(victim.kill)
        replica.resume()
        await party.pass_time(4)
        await to_thread.run_sync(cluster.mend)

    async def move_slot() -> None:
        account.did("slot moved")
        slot = account.chance.choice(slots)
        owner = await to_thread.run_sync(cluster.owner, slot)
        others = [cluster.owner(number) for number in (0, 8191, 16383)]
        target = account.chance.choice([other for other in others if other is not owner])
        await to_thread.run_sync(cluster.move, slot, target)

    async with party.run():
        ways = [partial(kill_master, losing=False), partial(kill_master, losing=True)]
        await party.harm(seconds, move_slot, *(ways if seconds > SHORT else ways[:1]), move_slot)
