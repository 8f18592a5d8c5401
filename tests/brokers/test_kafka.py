"""The broker over broadcaster on Kafka's protocol: see tests/support/kafka_server.py."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from broadcaster import Broadcast
from broadcaster._backends.kafka import KafkaBackend

from starlette_realtime.brokers.broadcaster import BroadcasterBroker
from starlette_realtime.errors import BrokerUnavailable, ConfigurationError, TooLarge
from starlette_realtime.events import Draft, Retention
from starlette_realtime.testing.contracts import BrokerContract, Recorder, Running
from starlette_realtime.testing.contracts.recorder import eventually
from tests.support.kafka_server import KafkaServer

pytestmark = pytest.mark.anyio

KEEP = Retention()
QUICK: dict[str, Any] = {"timeout": 1.0, "patience": 0.5, "probe": 0.1}


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    with KafkaServer() as server:
        yield server


def said(number: int, id: str = "") -> Draft:
    return Draft(event="said", data=b"%d" % number, id=id)


class Prompt(KafkaBackend):
    """Broadcaster's own, but for how long an empty fetch may wait: Kafka answers as soon as there
    is something, the broker of these tests does not."""

    async def connect(self) -> None:
        self._producer = AIOKafkaProducer(bootstrap_servers=self._servers)
        self._consumer = AIOKafkaConsumer(bootstrap_servers=self._servers, fetch_max_wait_ms=10)
        await self._producer.start()
        await self._consumer.start()


@asynccontextmanager
async def two_brokers(
    kafka: KafkaServer, **options: Any
) -> AsyncIterator[tuple[Running[BroadcasterBroker], Running[BroadcasterBroker]]]:
    async with AsyncExitStack() as stack:
        sides = []
        for _ in range(2):
            recorder = Recorder()
            broker = BroadcasterBroker(lambda: Broadcast(backend=Prompt(kafka.url)), **options)
            await stack.enter_async_context(broker.run(recorder))
            sides.append(Running(broker, recorder))
        yield sides[0], sides[1]


class TestContract(BrokerContract):
    largest = 700_000

    @pytest.fixture(autouse=True)
    def server(self, kafka: KafkaServer) -> None:
        self.kafka = kafka

    @asynccontextmanager
    async def pair(
        self,
    ) -> AsyncIterator[tuple[Running[BroadcasterBroker], Running[BroadcasterBroker]]]:
        async with two_brokers(self.kafka, max_message=1_000_000, patience=20) as pair:
            yield pair


async def test_by_url(kafka: KafkaServer, caplog: pytest.LogCaptureFixture) -> None:
    recorder, broker = Recorder(), BroadcasterBroker(kafka.url)
    async with broker.run(recorder):
        await broker.subscribe(["room"])
        await broker.publish("room", said(1), KEEP)
        assert [p.data for p in await recorder.wait("room", 1)] == [b"1"]
        with pytest.raises(TooLarge):
            await broker.publish("room", Draft(event="said", data=b"x" * 800_000), KEEP)
        assert broker.health().restarts == 0
    assert f"{kafka.url} delivers at most once and keeps nothing" in caplog.text


async def test_a_topic_without_order_is_refused(kafka: KafkaServer) -> None:
    kafka.topic("scattered", partitions=4)
    broker = BroadcasterBroker(f"{kafka.url}?topic=scattered", **QUICK)
    with pytest.raises(ConfigurationError, match=r"scattered has 4 partitions.*a single") as caught:
        async with broker.run(Recorder()):
            pass
    assert "\n" not in str(caught.value)


async def test_an_outage_is_survived_and_told(kafka: KafkaServer) -> None:
    async with two_brokers(kafka, **QUICK) as (one, two):
        for side in (one, two):
            await side.broker.subscribe(["room"])
        await one.broker.publish("room", said(1), KEEP)
        await two.recorder.wait("room", 1)
        kafka.down()
        try:
            await eventually(
                lambda: not (one.broker.health().connected or two.broker.health().connected),
                lambda: str(one.broker.health()),
            )
            with anyio.fail_after(5), pytest.raises(BrokerUnavailable):
                await one.broker.publish("room", said(2), KEEP)
        finally:
            kafka.up()
        await eventually(
            lambda: set(one.recorder.lost) == set(two.recorder.lost) == {"room"},
            lambda: str([side.broker.health() for side in (one, two)]),
        )
        await one.broker.publish("room", said(3), KEEP)
        await eventually(
            lambda: two.recorder.heard["room"][-1].data == b"3",
            lambda: str(two.recorder.heard["room"]),
        )
        assert [p.data for p in two.recorder.heard["room"]] == [b"1", b"3"]
    # What is left open complains when it goes.
    gc.collect()


async def test_nobody_there(free_tcp_port: int) -> None:
    broker = BroadcasterBroker(f"kafka://127.0.0.1:{free_tcp_port}", startup=0.3)
    with pytest.raises(ConfigurationError, match="cannot be reached") as caught:
        async with broker.run(Recorder()):
            pass
    assert "\n" not in str(caught.value)
