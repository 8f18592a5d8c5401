"""The broker over the broadcaster package, on a real PostgreSQL and on what it is given."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import asyncpg
import pytest
from broadcaster import Broadcast

from starlette_realtime import AnonymousAuth, Options, Realtime, SignedTokenAuth
from starlette_realtime.brokers.broadcaster import BroadcasterBroker
from starlette_realtime.errors import BrokerUnavailable, ConfigurationError, TooLarge
from starlette_realtime.events import Draft, Lane, Position, Publication, Published, Retention
from starlette_realtime.settings import broadcaster_stores, check_history, stores_from_url
from starlette_realtime.testing.contracts import BrokerContract, Recorder, Running
from starlette_realtime.testing.contracts.recorder import eventually
from tests.support.postgres_server import PostgresServer, postgres_folder
from tests.support.server import LiveServer
from tests.support.wsclient import NativeClient, NativeError

pytestmark = pytest.mark.anyio

KEEP = Retention()
QUICK: dict[str, Any] = {"timeout": 1.0, "patience": 0.5, "probe": 0.1}


@pytest.fixture(scope="module")
def shared() -> Iterator[PostgresServer]:
    """The module's PostgreSQL. A test that harms it takes `postgres` and leaves it running."""
    if postgres_folder() is None:
        pytest.skip("PostgreSQL is not installed")
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres(shared: PostgresServer) -> Iterator[PostgresServer]:
    yield shared
    shared.resume()
    if not shared.running:
        shared.start()


def said(number: int, id: str = "", **members: Any) -> Draft:
    return Draft(event="said", data=b"%d" % number, id=id, **members)


@asynccontextmanager
async def two_brokers(
    url: str, **options: Any
) -> AsyncIterator[tuple[Running[BroadcasterBroker], Running[BroadcasterBroker]]]:
    async with AsyncExitStack() as stack:
        sides = []
        for _ in range(2):
            recorder, broker = Recorder(), BroadcasterBroker(url, **options)
            await stack.enter_async_context(broker.run(recorder))
            sides.append(Running(broker, recorder))
        yield sides[0], sides[1]


class TestOnPostgres(BrokerContract):
    # 7999 characters of base64, less what is around a payload.
    largest = 5_800

    @pytest.fixture(autouse=True)
    def server(self, postgres: PostgresServer) -> None:
        self.url = postgres.url

    @asynccontextmanager
    async def pair(
        self,
    ) -> AsyncIterator[tuple[Running[BroadcasterBroker], Running[BroadcasterBroker]]]:
        async with two_brokers(self.url, patience=20) as pair:
            yield pair


class TestOnAGivenBroadcast(BrokerContract):
    largest = 5_800

    @asynccontextmanager
    async def pair(
        self,
    ) -> AsyncIterator[tuple[Running[BroadcasterBroker], Running[BroadcasterBroker]]]:
        recorder, broker = Recorder(), BroadcasterBroker(Broadcast("memory://"))
        async with broker.run(recorder):
            side = Running(broker, recorder)
            yield side, side


# What it keeps, and what it does not


async def test_nothing_is_kept_and_no_position_given(postgres: PostgresServer) -> None:
    async with two_brokers(postgres.url) as (one, two):
        await two.broker.subscribe(["room"])
        for lane in (Lane.HISTORY, Lane.PRESENCE):
            published = await one.broker.publish("room", said(1, lane=lane), KEEP)
            assert published == Published(Position("", 0))
        heard = await two.recorder.wait("room", 2)
        assert [(p.offset, p.epoch, p.lane) for p in heard] == [(0, "", 0)] * 2
        assert (await one.broker.publish("room", said(2, amends="m1", expects=b"1"), KEEP)).conflict
        await one.broker.publish("room", said(3, amends="m1", amended=b"2"), KEEP)
        assert [p.data for p in await two.recorder.wait("room", 3)] == [b"1", b"1", b"3"]


async def test_an_id_is_announced_once_whoever_repeats_it(postgres: PostgresServer) -> None:
    async with two_brokers(postgres.url) as (one, two):
        for side in (one, two):
            await side.broker.subscribe(["room"])
        assert not (await one.broker.publish("room", said(1, "m1"), KEEP)).duplicate
        await two.recorder.wait("room", 1)
        assert (await two.broker.publish("room", said(2, "m1"), KEEP)).duplicate
        await two.broker.publish("other", said(3, "m1"), KEEP)
        # At the same moment both may believe to be the first; the receivers know.
        async with anyio.create_task_group() as group:
            for side in (one, two):
                group.start_soon(side.broker.publish, "room", said(4, "m2"), KEEP)
        await one.broker.publish("room", said(5), KEEP)
        for side in (one, two):
            await side.recorder.wait("room", 3)
            assert [p.data for p in side.recorder.heard["room"]] == [b"1", b"4", b"5"]


async def test_what_does_not_fit_is_refused_and_harms_nobody(postgres: PostgresServer) -> None:
    async with two_brokers(postgres.url) as (one, two):
        await two.broker.subscribe(["room"])
        with pytest.raises(TooLarge, match="bytes more than the backend takes"):
            await one.broker.publish("room", Draft(event="said", data=b"x" * 6_000), KEEP)
        await one.broker.publish("room", said(1), KEEP)
        assert [p.data for p in await two.recorder.wait("room", 1)] == [b"1"]
        assert one.broker.health().restarts == 0


async def test_nonsense_from_others_is_passed_over(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_brokers(postgres.url) as (one, two):
        await two.broker.subscribe(["room"])
        connection = await asyncpg.connect(postgres.url)
        try:
            node = two.broker._node
            for text in ("", "?", f"?{node}.x", f"?{node}.99", "é", "AAAA", "x y  z", "kg=="):
                await connection.execute("SELECT pg_notify($1, $2)", two.broker.topic, text)
        finally:
            await connection.close()
        await one.broker.publish("room", said(1), KEEP)
        assert [p.data for p in await two.recorder.wait("room", 1)] == [b"1"]
        assert two.broker.health().restarts == 0
    assert caplog.text.count("made no sense") == 2


async def test_apps_with_a_server_in_common(postgres: PostgresServer) -> None:
    async with (
        two_brokers(f"{postgres.url}?topic=ours") as (ours, _),
        two_brokers(postgres.url, topic="theirs") as (theirs, _),
    ):
        for number, side in enumerate((ours, theirs)):
            await side.broker.subscribe(["room"])
            await side.broker.publish("room", said(number), KEEP)
        for number, side in enumerate((ours, theirs)):
            await side.broker.publish("room", said(9), KEEP)
            heard = await side.recorder.wait("room", 2)
            assert [p.data for p in heard] == [b"%d" % number, b"9"]


async def test_it_says_at_start_what_it_is(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with BroadcasterBroker(postgres.url).run(Recorder()):
        pass
    (said,) = [r.getMessage() for r in caplog.records if "at most once" in r.getMessage()]
    assert f"127.0.0.1:{postgres.port}" in said
    assert "let" not in said and "tester" not in said


# Outages


async def hears(one: Running[BroadcasterBroker], two: Running[BroadcasterBroker]) -> None:
    """Return when what `one` publishes reaches `two`."""
    with anyio.fail_after(20):
        while True:
            before = len(two.recorder.heard["room"])
            try:
                await one.broker.publish("room", said(0), KEEP)
            except BrokerUnavailable:
                await anyio.sleep(0.05)
                continue
            with anyio.move_on_after(0.3):
                while len(two.recorder.heard["room"]) == before:
                    await anyio.sleep(0.01)
                return


async def interrupted(*sides: Running[BroadcasterBroker]) -> None:
    await eventually(
        lambda: all(side.recorder.lost for side in sides),
        lambda: str([side.broker.health() for side in sides]),
    )
    for side in sides:
        assert set(side.recorder.lost) == {"room"}


async def test_a_crash_of_the_server_is_survived_and_told(postgres: PostgresServer) -> None:
    async with two_brokers(postgres.url, **QUICK) as (one, two):
        for side in (one, two):
            await side.broker.subscribe(["room"])
        await one.broker.publish("room", said(1), KEEP)
        await two.recorder.wait("room", 1)
        await anyio.to_thread.run_sync(postgres.crash)
        await eventually(
            lambda: not (one.broker.health().connected or two.broker.health().connected),
            lambda: str(one.broker.health()),
        )
        assert one.broker.health().error
        with anyio.fail_after(20):
            with pytest.raises(BrokerUnavailable):
                await one.broker.publish("room", said(2), KEEP)
            with pytest.raises(BrokerUnavailable):
                one.broker.publish_now("room", said(2), KEEP)
            with pytest.raises(BrokerUnavailable):
                await two.broker.subscribe(["other"])
        await anyio.to_thread.run_sync(postgres.start)
        await interrupted(one, two)
        await one.broker.publish("room", said(3), KEEP)
        await eventually(
            lambda: two.recorder.heard["room"][-1].data == b"3",
            lambda: str(two.recorder.heard["room"]),
        )
        # What was refused was not announced, and what could not be subscribed can be.
        assert [p.data for p in two.recorder.heard["room"]] == [b"1", b"3"]
        await two.broker.subscribe(["other"])
        await one.broker.publish("other", said(4), KEEP)
        await two.recorder.wait("other", 1)
        assert one.broker.health().restarts == 1


async def test_killed_connections_come_back(postgres: PostgresServer) -> None:
    async with two_brokers(postgres.url, **QUICK) as (one, two):
        await two.broker.subscribe(["room"])
        connection = await asyncpg.connect(postgres.url)
        try:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        finally:
            await connection.close()
        await interrupted(two)
        await hears(one, two)


async def test_a_connection_that_hears_nothing_is_made_anew(postgres: PostgresServer) -> None:
    made: list[Broadcast] = []

    def make() -> Broadcast:
        made.append(Broadcast(postgres.url))
        return made[-1]

    recorder, broker = Recorder(), BroadcasterBroker(make, **QUICK)
    async with broker.run(recorder):
        await broker.subscribe(["room"])
        # It stands, and takes commands.
        await made[-1]._backend.unsubscribe(broker.topic)
        side = Running(broker, recorder)
        await interrupted(side)
        await hears(side, side)
        assert len(made) == 2


async def test_a_reader_that_dies_is_made_anew(postgres: PostgresServer) -> None:
    broadcast = Broadcast(postgres.url)
    recorder, broker = Recorder(), BroadcasterBroker(broadcast, **QUICK)
    async with broker.run(recorder):
        await broker.subscribe(["room"])
        # An event that broadcaster's own listener falls over.
        broadcast._backend._listen_queue.put_nowait(None)  # type: ignore[attr-defined]
        side = Running(broker, recorder)
        await interrupted(side)
        await hears(side, side)
    # Nothing is left open, neither by the end nor by the one that died.
    connection = await asyncpg.connect(postgres.url)
    try:
        count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_notify%'"
        with anyio.fail_after(10):
            while await connection.fetchval(count + " AND pid <> pg_backend_pid()"):
                await anyio.sleep(0.05)
    finally:
        await connection.close()


class Failing(Recorder):
    """A listener that raises whatever it is told, once it has taken note."""

    def received(self, channel: str, publication: Publication) -> None:
        super().received(channel, publication)
        raise RuntimeError("received")

    def interrupted(self, channels: Iterable[str]) -> None:
        super().interrupted(channels)
        raise RuntimeError("interrupted")


async def test_a_listener_that_raises_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made: list[Broadcast] = []

    def make() -> Broadcast:
        made.append(Broadcast("memory://"))
        return made[-1]

    recorder, broker = Failing(), BroadcasterBroker(make, **QUICK)
    async with broker.run(recorder):
        await broker.subscribe(["room"])
        await broker.publish("room", said(1), KEEP)
        await recorder.wait("room", 1)
        # From now on it hears nothing.
        made[-1]._backend._subscribed.clear()  # type: ignore[attr-defined]
        side = Running(broker, recorder)
        await interrupted(side)
        await hears(side, side)
        assert broker.health().restarts == 1
    assert "RuntimeError: received" in caplog.text
    assert "RuntimeError: interrupted" in caplog.text


async def test_a_paused_server_keeps_nobody_waiting_for_ever(postgres: PostgresServer) -> None:
    async with two_brokers(postgres.url, **QUICK) as (one, two):
        await two.broker.subscribe(["room"])
        await anyio.to_thread.run_sync(postgres.pause)
        with anyio.fail_after(20), pytest.raises(BrokerUnavailable):
            await one.broker.publish("room", said(1), KEEP)
        await eventually(lambda: not two.broker.health().connected, lambda: "still connected")
        await anyio.to_thread.run_sync(postgres.resume)
        await interrupted(two)
        await hears(one, two)


async def test_only_so_much_waits_during_an_outage(postgres: PostgresServer) -> None:
    async with two_brokers(postgres.url, **{**QUICK, "patience": 3.0}) as (one, _):
        await anyio.to_thread.run_sync(postgres.pause)
        failures: list[str] = []

        async def publish() -> None:
            try:
                await one.broker.publish("room", said(1), KEEP)
            except BrokerUnavailable as error:
                failures.append(str(error))

        async with anyio.create_task_group() as group:
            for _ in range(1100):
                group.start_soon(publish)
        assert len(failures) == 1100
        assert any("too much waits" in failure for failure in failures)
        assert len(one.broker._queue) < 10
        await anyio.to_thread.run_sync(postgres.resume)
        with anyio.fail_after(20):
            while True:
                try:
                    await one.broker.subscribe(["room"])
                    break
                except BrokerUnavailable:
                    continue
        await hears(one, one)


async def test_stopping_during_an_outage_is_quick_and_leaves_no_task(
    postgres: PostgresServer,
) -> None:
    before = asyncio.all_tasks()
    async with two_brokers(postgres.url, **QUICK) as (one, _):
        await anyio.to_thread.run_sync(postgres.crash)
        await eventually(lambda: not one.broker.health().connected, lambda: "still connected")
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    await eventually(lambda: asyncio.all_tasks() <= before, lambda: str(asyncio.all_tasks()))
    with pytest.raises(BrokerUnavailable, match="not running"):
        await one.broker.publish("room", said(1), KEEP)
    with pytest.raises(BrokerUnavailable, match="not running"):
        await one.broker.subscribe(["room"])


@pytest.mark.parametrize("becomes", [None, ConnectionError("closed in the middle")])
async def test_stopping_goes_on_when_a_client_swallows_it(becomes: Exception | None) -> None:
    """What database clients do with a cancellation that meets the end of a time limit."""

    class Numb(Broadcast):
        async def connect(self) -> None:
            if made[1:]:
                begun.set()
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    if becomes is not None:
                        raise becomes from None
            await super().connect()

    def make() -> Broadcast:
        made.append(Numb("memory://"))
        return made[-1]

    made: list[Broadcast] = []
    begun = asyncio.Event()
    with anyio.fail_after(20):
        async with BroadcasterBroker(make, **QUICK).run(Recorder()):
            # From now on it hears nothing.
            made[0]._backend._subscribed.clear()  # type: ignore[attr-defined]
            await begun.wait()


# Wrong from the start


async def test_a_wrong_password_and_database_are_said_at_once(postgres: PostgresServer) -> None:
    for url, complaint in (
        (f"postgres://tester:hunter2@127.0.0.1:{postgres.port}/postgres", "password"),
        (postgres.url.replace("/postgres", "/nowhere"), "nowhere"),
    ):
        begun = time.monotonic()
        with pytest.raises(ConfigurationError, match=f"refuses: .*{complaint}") as caught:
            async with BroadcasterBroker(url).run(Recorder()):
                pass
        assert time.monotonic() - begun < 5
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_a_server_that_is_not_there(free_tcp_port: int) -> None:
    url = f"postgres://u:hunter2@127.0.0.1:{free_tcp_port}/x"
    with pytest.raises(ConfigurationError, match="cannot be reached") as caught:
        async with BroadcasterBroker(url, startup=0.3).run(Recorder()):
            pass
    assert "hunter2" not in str(caught.value)


async def test_a_broker_runs_once_at_a_time() -> None:
    broker = BroadcasterBroker(Broadcast("memory://"))
    for _ in range(2):
        async with broker.run(Recorder()):
            with pytest.raises(ConfigurationError, match="running already"):
                async with broker.run(Recorder()):
                    pass


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "postgres",
        "postgres://u:hunter2/x@host/db",
        "postgres://u:hunter2#@host/db",
        "postgres://host:99999/db",
        "postgres://host/db?topic=a%20b",
        "postgres://host/db?topic=a&topic=b",
    ],
)
def test_a_wrong_url_is_said_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BroadcasterBroker(url)
    assert "hunter2" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    monkeypatch.delitem(sys.modules, "broadcaster._backends.kafka", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'starlette-realtime\[kafka\]'"):
        BroadcasterBroker("kafka://localhost")


# As a backend


def test_a_url_gives_stores_that_say_what_is_not_shared(caplog: pytest.LogCaptureFixture) -> None:
    stores = stores_from_url("postgresql://u:hunter2@localhost/db")
    assert isinstance(stores.broker, BroadcasterBroker)
    assert "each process's own" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_history_that_cannot_be_kept_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    broker = BroadcasterBroker(Broadcast("memory://"))
    realtime = Realtime(stores=broadcaster_stores(broker), auth=AnonymousAuth())
    realtime.room("plain/{id}")
    realtime.room("none/{id}", history=0)
    caplog.clear()
    check_history(broker, Options(), [realtime])
    assert "'plain/{id}'" in caplog.text and "none/" not in caplog.text
    caplog.clear()
    check_history(broker, Options(history=0), [realtime])
    assert not caplog.records
    admin = realtime.namespace("/admin")
    admin.room("log/{id}", history=100)
    with pytest.raises(ConfigurationError, match=r"room 'log/\{id\}' of namespace '/admin'.*100"):
        check_history(broker, Options(), [realtime, admin])
    check_history(stores_from_url("memory://").broker, Options(), [realtime, admin])


async def test_an_app_on_two_processes(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        sides = []
        for _ in range(2):
            realtime = Realtime(postgres.url, auth=AnonymousAuth())
            realtime.room("chat/{id}")
            await stack.enter_async_context(realtime.run())
            sides.append(realtime)
        recorder, listening = Recorder(), BroadcasterBroker(postgres.url)
        await stack.enter_async_context(listening.run(recorder))
        await listening.subscribe(["room/:chat/7"])
        for number, realtime in enumerate(sides):
            await realtime.publish("chat/7", "said", number)
        assert [p.data for p in await recorder.wait("room/:chat/7", 2)] == [b"0", b"1"]
        assert (await sides[0].get_room("chat/7").history()).publications == []


async def test_clients_on_two_processes_through_an_outage(
    postgres: PostgresServer, serve: Callable[..., LiveServer]
) -> None:
    auth = SignedTokenAuth("known to all, because it guards nothing")
    sides = []
    for _ in range(2):
        stores = broadcaster_stores(BroadcasterBroker(postgres.url, **QUICK))
        app = Realtime(stores=stores, auth=auth)
        app.room("chat/{id}", history=0)
        sides.append(serve(app))
    async with (
        NativeClient.open(sides[0].ws("/ws"), token=auth.create_token("ann")) as ann,
        NativeClient.open(sides[1].ws("/ws"), token=auth.create_token("bob")) as bob,
    ):
        await ann.request("join", "chat/7")
        await bob.request("join", "chat/7")
        assert (await ann.expect("user-joined"))["data"]["userId"] == "bob"
        await broadcast(bob, "hello")
        await ann.expect("broadcast", data={"content": "hello"})
        with pytest.raises(NativeError) as caught:
            await broadcast(bob, "x" * 7_000)
        assert (caught.value.code, caught.value.retry) == ("too_large", False)
        await anyio.to_thread.run_sync(postgres.crash)
        with pytest.raises(NativeError) as caught:
            await broadcast(bob, "lost")
        assert (caught.value.code, caught.value.retry) == ("unavailable", True)
        await anyio.to_thread.run_sync(postgres.start)
        with anyio.fail_after(20):
            while True:
                try:
                    await broadcast(bob, "again")
                    break
                except NativeError as error:
                    assert error.code == "unavailable"
        # Both connections outlived it; ann's process may come back a little later than bob's.
        with anyio.fail_after(20):
            while True:
                try:
                    await ann.expect("broadcast", data={"content": "again"}, timeout=0.5)
                    break
                except AssertionError:
                    await broadcast(bob, "again")


async def broadcast(client: NativeClient, content: str) -> None:
    await client.request("broadcast", "chat/7", {"content": content})
