"""The Redis broker while its server, its connections or its master go away."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import redis

from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.errors import BrokerUnavailable
from starlette_realtime.events import Draft, Lane, Position, Retention
from starlette_realtime.testing.contracts import Recorder
from starlette_realtime.testing.contracts.recorder import eventually
from tests.support.follower import Follower
from tests.support.proxy import Proxy
from tests.support.redis_cluster import RedisCluster, shared_cluster
from tests.support.redis_sentinel import RedisSentinel
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

KEEP = Retention(size=100_000)
Own = Callable[..., RedisServer]


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[RedisSentinel]:
    with RedisSentinel(tmp_path) as servers:
        yield servers


def said(number: int, id: str = "", **members: object) -> Draft:
    return Draft(event="said", data=b"%d" % number, id=id, **members)  # type: ignore[arg-type]


def commands(server: RedisServer) -> redis.Redis:
    return redis.Redis(port=server.port, socket_timeout=5, protocol=2)


@asynccontextmanager
async def following(url: str, channel: str = "room") -> AsyncIterator[tuple[RedisBroker, Follower]]:
    broker, follower = RedisBroker(url), Follower(channel)
    async with broker.run(follower), follower.follow(broker):
        yield broker, follower


async def hears_again(broker: RedisBroker, restarts: int) -> None:
    """Wait until the listening side has been made anew, and is whole."""
    await eventually(
        lambda: broker.health().restarts > restarts and broker.health().connected,
        lambda: f"not back: {broker.health()}",
    )


async def test_publishing_waits_out_a_restart_and_nothing_is_lost(own_redis: Own) -> None:
    server = own_redis(appendonly=True)
    async with following(f"{server.url}?patience=15") as (broker, follower):
        for number in range(5):
            await broker.publish("room", said(number), KEEP)

        back = anyio.Event()

        async def restart() -> None:
            await anyio.to_thread.run_sync(server.stop)
            await anyio.sleep(1)
            await anyio.to_thread.run_sync(server.start)
            back.set()

        async with anyio.create_task_group() as group:
            group.start_soon(restart)
            number = 5
            while not back.is_set():
                await broker.publish("room", said(number), KEEP)
                number += 1
        await follower.wait(range(number))
        await hears_again(broker, 0)
        assert follower.lost == 0
        assert follower.interruptions == 1


async def test_a_longer_outage_is_told_and_a_retry_counts_once(own_redis: Own) -> None:
    server = own_redis(appendonly=True)
    async with following(f"{server.url}?patience=0.4&timeout=0.3&probe=0.2") as (broker, follower):
        await broker.publish("room", said(1), KEEP)
        server.kill()
        with anyio.fail_after(20):
            with pytest.raises(BrokerUnavailable):
                await broker.publish("room", said(2, "m2"), KEEP)
            with pytest.raises(BrokerUnavailable):
                await broker.page("room", limit=1)
            with pytest.raises(BrokerUnavailable):
                await broker.subscribe(["other"])
        await eventually(lambda: not broker.health().connected, lambda: str(broker.health()))
        assert broker.health().error
        await anyio.to_thread.run_sync(server.start)
        await hears_again(broker, 0)
        await broker.publish("room", said(2, "m2"), KEEP)
        assert (await broker.publish("room", said(3, "m2"), KEEP)).duplicate
        await follower.wait([1, 2])
        # What could not be subscribed is not, and can be.
        await broker.subscribe(["other"])
        assert follower.lost == 0


async def test_a_paused_server_keeps_nobody_waiting_for_ever(own_redis: Own) -> None:
    server = own_redis()
    async with following(f"{server.url}?patience=0.5&timeout=0.3&probe=0.2") as (broker, follower):
        await broker.publish("room", said(1), KEEP)
        server.pause()
        with anyio.fail_after(20), pytest.raises(BrokerUnavailable):
            await broker.publish("room", said(2, "m2"), KEEP)
        server.resume()
        # The first try lies in the server's buffers, and may yet be carried out.
        await eventually_published(broker, said(2, "m2"))
        await broker.publish("room", said(3), KEEP)
        await follower.wait([1, 2, 3])
        assert follower.lost == 0


async def eventually_published(broker: RedisBroker, draft: Draft, channel: str = "room") -> None:
    with anyio.fail_after(20):
        while True:
            try:
                await broker.publish(channel, draft, KEEP)
            except BrokerUnavailable:
                continue
            return


async def test_killed_connections_lose_and_double_nothing(own_redis: Own) -> None:
    server = own_redis()
    async with following(f"{server.url}?patience=15") as (broker, follower):
        stopped = False

        async def kill() -> None:
            with commands(server) as client:
                for _ in range(12):
                    await anyio.sleep(0.1)
                    for kind in ("normal", "pubsub"):
                        client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            nonlocal stopped
            stopped = True

        positions: list[Position] = []

        async def publish(start: int) -> None:
            number = start
            while not stopped:
                published = await broker.publish("room", said(number), KEEP)
                assert not published.duplicate
                positions.append(published.position)
                number += 1

        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            for start in range(0, 400_000, 100_000):
                group.start_soon(publish, start)
        await eventually(
            lambda: len(follower.heard) == len(positions),
            lambda: f"{len(follower.heard)} heard, {len(positions)} published",
        )
        assert [p.offset for p in follower.heard] == list(range(1, len(positions) + 1))
        assert {p.offset for p in positions} == {p.offset for p in follower.heard}
        assert len(set(follower.payloads)) == len(positions)
        assert follower.lost == 0
        assert broker.health().restarts > 0


async def test_scripts_that_a_server_has_forgotten_are_sent_again(own_redis: Own) -> None:
    server = own_redis()
    async with following(server.url) as (broker, follower):
        await broker.publish("room", said(1), KEEP)
        with commands(server) as client:
            client.script_flush()
        await broker.publish("room", said(2), KEEP)
        await follower.wait([1, 2])


async def test_a_listener_that_the_server_cut_off_for_being_slow_catches_up(own_redis: Own) -> None:
    server = own_redis()
    with commands(server) as client:
        client.config_set("client-output-buffer-limit", "pubsub 200kb 200kb 1")
    async with following(server.url) as (broker, follower), following(server.url) as (other, _):
        publication = Draft(event="said", data=b"7" * 50_000)
        # Nobody reads while this loop is blocked, which only the server's own thread is not.
        with commands(server) as client:
            wire = broker._server.keys.announced("room")
            await broker.publish("room", publication, KEEP)
            for _ in range(400):
                client.publish(wire, b"x" * 50_000)
        await hears_again(broker, 0)
        for _ in range(3):
            await other.publish("room", publication, KEEP)
        await eventually(lambda: len(follower.heard) == 4, lambda: f"{len(follower.heard)} of 4")
        assert follower.lost == 0


async def test_a_deaf_listener_is_made_anew(own_redis: Own) -> None:
    server = own_redis()
    async with Proxy(server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0?timeout=0.3&probe=0.2&patience=10"
        async with following(url) as (broker, follower), following(server.url) as (other, _):
            await other.publish("room", said(1), KEEP)
            await follower.wait([1])
            assert broker.health().connected
            # Both ends believe in their connections, and nothing comes any more.
            assert proxy.bury_all() >= 2
            await other.publish("room", said(2), KEEP)
            await follower.wait([1, 2])
            await hears_again(broker, 0)
            await other.publish("room", said(3), KEEP)
            await follower.wait([1, 2, 3])
            assert follower.lost == 0


async def test_probes_show_in_the_health(own_redis: Own) -> None:
    server = own_redis()
    async with following(f"{server.url}?probe=0.1") as (broker, _):
        health = broker.health()
        assert health.connected and health.restarts == 0 and health.error == ""
        assert health.latency is not None and 0 < health.latency < 5
        assert health.channels == 1
        # It grows, and with the next probe's answer it begins anew.
        for heard in (
            lambda: broker.health().silence > 0.05,
            lambda: broker.health().silence < 0.05,
        ):
            await eventually(heard, lambda: str(broker.health()))
    assert not broker.health().connected


async def test_acknowledged_writes_that_the_server_lost_are_noticed(own_redis: Own) -> None:
    server = own_redis(options={"dbfilename": "dump.rdb"})
    async with following(f"{server.url}?patience=15&probe=0.2") as (broker, follower):
        for number in range(1, 4):
            await broker.publish("room", said(number), KEEP)
        with commands(server) as client:
            client.save()
        for number in range(4, 9):
            await broker.publish("room", said(number), KEEP)
        await follower.wait(range(1, 9))
        seen = follower.position
        assert seen is not None and seen.offset == 8
        server.kill()
        await anyio.to_thread.run_sync(server.start)
        # Offsets 4 and 5 exist again, for other publications.
        forked = [await broker.publish("room", said(n), KEEP) for n in (104, 105)]
        assert [p.position.offset for p in forked] == [4, 5]
        assert forked[0].position.epoch == seen.epoch
        await eventually(lambda: follower.lost == 1, lambda: "nothing was told")
        # Whoever had seen what was lost is told; whoever had not misses nothing.
        for publication in follower.heard[3:]:
            assert not (await broker.recover("room", publication.position, 100)).recovered
        innocent = await broker.recover("room", follower.heard[2].position, 100)
        assert innocent.recovered
        assert [int(p.data) for p in innocent.publications] == [104, 105]
        # Even when the new stream has long passed the old positions, and forgotten its beginning.
        few = Retention(size=2)
        for number in range(106, 112):
            await broker.publish("room", said(number), few)
        for publication in follower.heard[:8]:
            assert not (await broker.recover("room", publication.position, 100)).recovered
        await follower.wait([*range(1, 9), *range(106, 112)])


async def test_a_fork_is_noticed_where_the_history_begins(own_redis: Own) -> None:
    server = own_redis(options={"dbfilename": "dump.rdb"})
    few = Retention(size=2)
    async with following(f"{server.url}?patience=15") as (broker, follower):
        await broker.publish("room", said(1), few)
        with commands(server) as client:
            client.save()
        await broker.publish("room", said(2), few)
        seen = (await broker.publish("room", said(3), few)).position
        server.kill()
        await anyio.to_thread.run_sync(server.start)
        for number in range(102, 106):
            await broker.publish("room", said(number), few)
        # Offset 3 is the newest that went; the nonce of what followed it tells.
        assert not (await broker.recover("room", seen, 100)).recovered
        await eventually(lambda: follower.lost > 0, lambda: "nothing was told")


async def test_a_server_that_lost_everything_begins_a_new_epoch(own_redis: Own) -> None:
    server = own_redis()
    async with following(f"{server.url}?patience=15") as (broker, follower):
        first = await broker.publish("room", said(1), KEEP)
        server.kill()
        await anyio.to_thread.run_sync(server.start)
        second = await broker.publish("room", said(2), KEEP)
        assert second.position.epoch != first.position.epoch
        assert second.position.offset == 1
        assert not (await broker.recover("room", first.position, 10)).recovered
        await eventually(lambda: follower.lost == 1, lambda: "nothing was told")
        await broker.publish("room", said(3), KEEP)
        await eventually(
            lambda: follower.payloads[-1:] == [3], lambda: f"heard {follower.payloads}"
        )


async def test_ephemeral_publications_are_not_repeated(own_redis: Own) -> None:
    server = own_redis()
    recorder = Recorder()
    async with Proxy(server.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}/0?timeout=0.3&patience=5")
        listener = RedisBroker(server.url)
        async with broker.run(Recorder()), listener.run(recorder):
            await listener.subscribe(["room"])
            proxy.stall(to_server=False)
            # It is carried out, but the answer never comes.
            with pytest.raises(BrokerUnavailable):
                await broker.publish("room", said(1, lane=Lane.NONE), KEEP)
            proxy.resume()
            await listener.publish("room", said(2, lane=Lane.NONE), KEEP)
            await recorder.wait("room", 2)
            assert [p.data for p in recorder.heard["room"]] == [b"1", b"2"]


async def test_many_channels_are_subscribed_anew_in_batches(own_redis: Own) -> None:
    server = own_redis()
    recorder = Recorder()
    broker = RedisBroker(f"{server.url}?patience=30")
    channels = [f"room/{number}" for number in range(5000)]
    async with broker.run(recorder):
        await broker.subscribe(channels)
        with commands(server) as client:
            assert len(client.pubsub_channels("rt:*room/*")) == 5000
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await eventually(
                lambda: len(recorder.lost) == 5000, lambda: f"{len(recorder.lost)} of 5000"
            )
            assert sorted(recorder.lost) == sorted(channels)
            assert len(client.pubsub_channels("rt:*room/*")) == 5000
        await broker.publish(channels[-1], said(1), KEEP)
        await recorder.wait(channels[-1], 1)
        await broker.unsubscribe(channels[:-1])
        with commands(server) as client:
            assert len(client.pubsub_channels("rt:*room/*")) == 1


async def test_joining_and_leaving_while_connections_die(own_redis: Own) -> None:
    server = own_redis()
    recorder = Recorder()
    broker = RedisBroker(f"{server.url}?patience=30")
    async with broker.run(recorder), anyio.create_task_group() as group:

        async def kill() -> None:
            with commands(server) as client:
                while True:
                    await anyio.sleep(0.1)
                    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

        group.start_soon(kill)

        async def come_and_go(number: int) -> None:
            while broker.health().restarts < 5:
                await broker.subscribe([f"room/{number}"])
                await broker.unsubscribe([f"room/{number}"])
            if number % 2:
                await broker.subscribe([f"room/{number}"])

        async with anyio.create_task_group() as inner:
            for number in range(20):
                inner.start_soon(come_and_go, number)
        group.cancel_scope.cancel()
        with commands(server) as client:
            # What was ended while the connection was down goes with it.
            await eventually(
                lambda: len(client.pubsub_channels("rt:*room/*")) == 10,
                lambda: f"{client.pubsub_channels('rt:*')}",
            )
        for number in range(20):
            await broker.publish(f"room/{number}", said(number), KEEP)
        for number in range(1, 20, 2):
            await recorder.wait(f"room/{number}", 1)
        assert len(recorder.heard) == 10


async def test_a_failover_by_a_sentinel(sentinel: RedisSentinel) -> None:
    async with following(f"{sentinel.url}?patience=20&probe=0.3") as (broker, follower):
        for number in range(5):
            await broker.publish("room", said(number), KEEP)
        replica = sentinel.replica
        with commands(sentinel.master) as client:
            assert client.execute_command("WAIT", 1, 2000) is not None
        sentinel.master.kill()
        for number in range(5, 10):
            await broker.publish("room", said(number), KEEP)
        await anyio.to_thread.run_sync(sentinel.wait_for_promotion, replica)
        assert broker._server.where(0) == ("127.0.0.1", replica.port)
        await hears_again(broker, 0)
        await broker.publish("room", said(10), KEEP)
        # The last before the end may not have reached the replica: then it is told.
        if not follower.lost:
            await follower.wait(range(11))
        else:
            await eventually(lambda: follower.payloads[-1:] == [10], lambda: str(follower.payloads))


async def test_what_the_replica_never_got_is_told(sentinel: RedisSentinel) -> None:
    async with following(f"{sentinel.url}?patience=20&probe=0.3") as (broker, follower):
        await broker.publish("room", said(1), KEEP)
        master, replica = sentinel.master, sentinel.replica
        with commands(master) as client, commands(replica) as behind:
            offset = client.info("replication")["master_repl_offset"]
            await eventually(
                lambda: behind.info("replication")["slave_repl_offset"] >= offset,
                lambda: "the replica does not catch up",
            )
        replica.pause()
        with commands(master) as client:
            # What would wait for it in the socket is cut off too.
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        for number in (2, 3):
            await broker.publish("room", said(number), KEEP)
        await follower.wait([1, 2, 3])
        master.kill()
        replica.resume()
        published = await broker.publish("room", said(102), KEEP)
        assert published.position.offset == 2
        await eventually(lambda: follower.lost == 1, lambda: "nothing was told")
        await broker.publish("room", said(103), KEEP)
        await eventually(lambda: follower.payloads[-1:] == [103], lambda: str(follower.payloads))
        # The first of the new master's came before or after it was told.
        assert follower.payloads in ([1, 2, 3, 103], [1, 2, 3, 102, 103])


async def test_a_master_that_does_not_know_it_was_replaced(
    sentinel: RedisSentinel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers as ever, but its Sentinel has lost it and made another one the master."""
    monkeypatch.setattr("starlette_realtime._redis.server.LOOK", 0.5)
    url = f"{sentinel.add_user('app', 'known')}?patience=20&probe=0.3"
    async with following(url) as (broker, follower):
        replica = sentinel.replica
        await anyio.to_thread.run_sync(sentinel.split_off)
        await broker.publish("room", said(1), KEEP)
        await follower.wait([1])
        await anyio.to_thread.run_sync(sentinel.wait_for_promotion, replica)
        async with following(url) as (newcomer, other):
            await newcomer.publish("room", said(101), KEEP)
            # Whoever was there before finds the way, and is told what was lost on it.
            await eventually(lambda: follower.lost > 0, lambda: "nothing was told")
            await broker.publish("room", said(102), KEEP)
            await newcomer.publish("room", said(103), KEEP)
            await eventually(
                lambda: follower.payloads[-2:] == [102, 103], lambda: str(follower.payloads)
            )
            await other.wait([101, 102, 103])


async def test_replicated_durability_waits_for_a_replica(sentinel: RedisSentinel) -> None:
    url = f"{sentinel.url}?patience=1.5&timeout=0.4&durability=replicated"
    async with following(url) as (broker, follower):
        await broker.publish("room", said(1), KEEP)
        sentinel.replica.pause()
        waiting = True

        async def in_vain() -> None:
            nonlocal waiting
            with pytest.raises(BrokerUnavailable, match="no replica"):
                await broker.publish("room", said(2, "m2"), KEEP)
            waiting = False

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(in_vain)
            await follower.wait([1, 2])
            # What needs no replica waits for none.
            assert len((await broker.page("room", limit=5)).publications) == 2
            assert waiting
        sentinel.replica.resume()
        confirmed = await broker.publish("room", said(3, "m2"), KEEP)
        assert confirmed.duplicate
        await follower.wait([1, 2])


async def test_without_a_replica_replicated_durability_confirms_nothing(own_redis: Own) -> None:
    server = own_redis()
    url = f"{server.url}?patience=0.5&timeout=0.2&durability=replicated"
    broker = RedisBroker(url)
    async with broker.run(Recorder()):
        with pytest.raises(BrokerUnavailable, match="no replica"):
            await broker.publish("room", said(1), KEEP)
        # What is not kept needs none.
        await broker.publish("room", said(1, lane=Lane.NONE), KEEP)


async def test_giving_up_on_a_replica_leaves_no_error_that_nobody_saw(
    own_redis: Own, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_redis()
    broker = RedisBroker(f"{server.url}?patience=0.3&timeout=0.5&pool=1&durability=replicated")
    async with broker.run(Recorder()):
        # The server does not know the script, and says so before the replica's time is over.
        for number in range(2):
            try:
                await broker.publish("room", said(number), KEEP)
            except BrokerUnavailable:
                pass
        await broker.page("room", limit=1)
    gc.collect()
    assert "never retrieved" not in caplog.text


class TestCluster:
    @pytest.fixture(autouse=True)
    def cluster(self, request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
        self.whole = shared_cluster(request)
        yield self.whole

    async def test_a_slot_moves_to_another_node(self) -> None:
        cluster = self.whole
        async with following(f"{cluster.url}?patience=20", "moving") as (broker, follower):
            await broker.publish("moving", said(1), KEEP)
            await follower.wait([1])
            slot = slot_of(broker, "moving")
            source = cluster.owner(slot)
            masters = [cluster.owner(number) for number in (0, 8000, 16000)]
            target = next(server for server in masters if server is not source)
            await anyio.to_thread.run_sync(cluster.move, slot, target)
            for number in range(2, 12):
                await broker.publish("moving", said(number), KEEP)
            await follower.wait(range(1, 12))
            assert broker._server.where(partition_of("moving")) == ("127.0.0.1", target.port)
            assert follower.lost == 0
            await anyio.to_thread.run_sync(cluster.move, slot, source)
            await broker.publish("moving", said(12), KEEP)
            await follower.wait(range(1, 13))

    @pytest.mark.parametrize("first", ["m", "h"])
    async def test_a_slot_on_its_way_is_left_alone(self, first: str) -> None:
        """While a room's keys lie on two nodes nothing is done by halves: whoever publishes or
        reads waits, or is told to try again."""
        cluster = self.whole
        channel = f"half-{first}"
        url = f"{cluster.url}?patience=0.6"
        async with following(url, channel) as (broker, follower):
            start = (await broker.page(channel, limit=1)).position
            for number in range(1, 4):
                await broker.publish(channel, said(number, f"m{number}"), KEEP)
            slot = slot_of(broker, channel)
            source = cluster.owner(slot)
            masters = [cluster.owner(number) for number in (0, 8000, 16000)]
            target = next(server for server in masters if server is not source)
            finish = await anyio.to_thread.run_sync(cluster.begin_move, slot, target)
            with commands(source) as here:
                keys = here.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
                moved = [key for key in keys if f"}}:{first}:{channel}" in key]
                assert len(moved) == 1
                cluster.migrate(here, target, *moved)
                with pytest.raises(BrokerUnavailable):
                    await broker.publish(channel, said(4, "m4"), KEEP)
                with pytest.raises(BrokerUnavailable):
                    await broker.recover(channel, start, 10)
                cluster.migrate(here, target, *(key for key in keys if key not in moved))
            await anyio.to_thread.run_sync(finish)
            await eventually_published(broker, said(4, "m4"), channel)
            recovery = await broker.recover(channel, start, 10)
            assert recovery.recovered
            assert [int(p.data) for p in recovery.publications] == [1, 2, 3, 4]
            await follower.wait([1, 2, 3, 4])
            assert follower.lost == 0
            await anyio.to_thread.run_sync(cluster.move, slot, source)

    async def test_a_master_dies_and_its_replica_takes_over(self) -> None:
        cluster = self.whole
        async with following(f"{cluster.url}?patience=30&probe=0.3", "dying") as (broker, follower):
            for number in range(3):
                await broker.publish("dying", said(number), KEEP)
            await follower.wait(range(3))
            owner = cluster.owner(slot_of(broker, "dying"))
            replica = cluster.replica_of(owner)
            with commands(owner) as client, commands(replica) as behind:
                offset = client.info("replication")["master_repl_offset"]
                await eventually(
                    lambda: behind.info("replication")["slave_repl_offset"] >= offset,
                    lambda: "the replica does not catch up",
                )
            owner.kill()
            # The other partitions go on in the meantime.
            elsewhere = next(
                f"x{n}"
                for n in range(1000)
                if broker._server.where(partition_of(f"x{n}"))[1] != owner.port
            )
            await broker.publish(elsewhere, said(1), KEEP)
            for number in range(3, 6):
                await broker.publish("dying", said(number), KEEP)
            await follower.wait(range(6))
            assert follower.lost == 0
            await hears_again(broker, 0)


def partition_of(channel: str) -> int:
    from starlette_realtime._redis.keys import partition

    return partition(channel)


def slot_of(broker: RedisBroker, channel: str) -> int:
    from starlette_realtime._redis.keys import SLOTS

    return SLOTS[partition_of(channel)]
