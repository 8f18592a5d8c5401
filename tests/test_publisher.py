"""Publishing from a process without connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest

from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.core.channels import everyone_channel, room_channel, user_channel
from starlette_realtime.errors import BrokerUnavailable, ConfigurationError
from starlette_realtime.events import Draft, Retention
from starlette_realtime.publisher import Publisher, SyncPublisher
from starlette_realtime.testing.contracts import Recorder, Running

pytestmark = pytest.mark.anyio

ROOM = room_channel("/", "chat/7")


@asynccontextmanager
async def listening(url: str, *channels: str) -> AsyncIterator[Running[RedisBroker]]:
    recorder, broker = Recorder(), RedisBroker(url)
    async with broker.run(recorder):
        await broker.subscribe(channels)
        yield Running(broker, recorder)


async def test_to_a_room_a_user_and_everyone(redis_url: str) -> None:
    ann, everyone = user_channel("/", "ann"), everyone_channel("/admin")
    async with listening(redis_url, ROOM, ann, everyone) as app, Publisher(redis_url) as publisher:
        published = await publisher.publish("chat/7", "said", {"content": b"\0\1"}, id="m1")
        assert published.position.offset == 1
        assert (await publisher.publish("chat/7", "said", id="m1")).duplicate
        assert (await publisher.publish("chat/7", "moved", keep=False)).position.offset == 0
        await publisher.publish("chat/7", "seen", volatile=True, key="x")
        await publisher.send_to_user("ann", "ready", {"url": "/3"})
        await publisher.broadcast("maintenance", namespace="/admin")
        heard = await app.recorder.wait(ROOM, 3)
        assert [p.event for p in heard] == ["said", "moved", "seen"]
        assert heard[0].data == b'{"content":{"$bytes":"AAE="}}'
        # A key is the room's own.
        assert (heard[2].volatile, heard[2].key) == (True, "chat/7\0x")
        (ready,) = await app.recorder.wait(ann, 1)
        assert (ready.event, ready.data, ready.offset) == ("ready", b'{"url":"/3"}', 0)
        (maintenance,) = await app.recorder.wait(everyone, 1)
        assert (maintenance.event, maintenance.data) == ("maintenance", b"null")


async def test_a_room_keeps_what_the_app_lets_it_keep(redis_url: str) -> None:
    async with listening(redis_url, ROOM) as app:
        few = Retention(size=2, age=100)
        await app.broker.publish(ROOM, Draft(event="said", data=b"0"), few)
        async with Publisher(redis_url, retention=Retention(size=3)) as publisher:
            for number in range(1, 5):
                await publisher.publish("chat/7", "said", number)
                await publisher.publish("chat/8", "said", number)
        page = await app.broker.page(ROOM, limit=10)
        assert [p.data for p in page.publications] == [b"3", b"4"]
        page = await app.broker.page(room_channel("/", "chat/8"), limit=10)
        assert [p.data for p in page.publications] == [b"2", b"3", b"4"]


async def test_without_an_event_loop(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_BACKEND", redis_url)
    ann, everyone = user_channel("/", "ann"), everyone_channel("/")

    def publish() -> None:
        with SyncPublisher() as publisher:
            assert publisher.publish("chat/7", "said", 1, id="m1").position.offset == 1
            assert publisher.publish("chat/7", "said", 2, id="m1").duplicate
            publisher.send_to_user("ann", "ready")
            publisher.broadcast("maintenance")
        with pytest.raises(ConfigurationError, match="inside the block"):
            publisher.broadcast("late")

    async with listening(redis_url, ROOM, ann, everyone) as app:
        await anyio.to_thread.run_sync(publish)
        assert [p.data for p in await app.recorder.wait(ROOM, 1)] == [b"1"]
        await app.recorder.wait(ann, 1)
        await app.recorder.wait(everyone, 1)


async def test_outside_its_block_it_does_not_publish(redis_url: str) -> None:
    publisher = Publisher(redis_url)
    with pytest.raises(BrokerUnavailable):
        await publisher.broadcast("early")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://", "memory:// is this process's own"),
        ("kafka://localhost", "no backend to publish through for kafka://"),
        ("localhost", "missing its scheme"),
        ("redis://localhost/x", "the database is a number"),
    ],
)
def test_what_cannot_be_published_through(url: str, said: str) -> None:
    for kind in (Publisher, SyncPublisher):
        with pytest.raises(ConfigurationError, match=said):
            kind(url)


def test_without_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REALTIME_BACKEND", raising=False)
    with pytest.raises(ConfigurationError, match="REALTIME_BACKEND"):
        Publisher()
