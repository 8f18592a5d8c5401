"""A channel that has lost announcements: closed from history, or told openly. On both loops."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.core.namespace import Namespace
from starlette_realtime.errors import BrokerUnavailable
from starlette_realtime.events import Page, Position, Recovery
from tests.core.helpers import Client, House, LateBroker, house, until
from tests.support.loops import both_loops

pytestmark = [pytest.mark.anyio, both_loops]


class Fickle(LateBroker):
    """Announcements are lost on demand, and history is away on demand."""

    away = 0
    """Reads that fail before one succeeds again."""

    async def recover(self, channel: str, since: Position, limit: int) -> Recovery:
        self._fail()
        return await super().recover(channel, since, limit)

    async def page(
        self, channel: str, *, before: int | None = None, after: int | None = None, limit: int
    ) -> Page:
        self._fail()
        return await super().page(channel, before=before, after=after, limit=limit)

    def _fail(self) -> None:
        if self.away:
            self.away -= 1
            raise BrokerUnavailable("away")

    @asynccontextmanager
    async def losing(self) -> AsyncIterator[None]:
        """Announcements of what is published meanwhile are lost without a word."""
        self.broken = True
        yield
        self.broken = False


@asynccontextmanager
async def fickle(history: int = 1000) -> AsyncIterator[tuple[House, Fickle, Client]]:
    brokers: list[Fickle] = []

    def late(memory: MemoryBroker) -> Fickle:
        brokers.append(Fickle(memory, random.Random(7)))
        return brokers[0]

    def configure(namespace: Namespace) -> None:
        namespace.room("r", history=history, recent=3, presence="none")

    async with house(configure, broker=late) as running:
        ann = await running.enter("ann")
        await ann.send("join", "r")
        await until(lambda: ann.of("joined"))
        ann.take()
        yield running, brokers[0], ann


async def test_a_gap_is_closed_from_history() -> None:
    async with fickle() as (running, broker, ann):
        await running.publish("r", data=0)
        async with broker.losing():
            for number in range(1, 4):
                await running.publish("r", data=number)
        await running.publish("r", data=4)
        await until(lambda: len(ann.of("n")) == 5)
        assert [m["data"] for m in ann.received] == [0, 1, 2, 3, 4]
        assert running.runtime.gaps_healed == 1


async def test_an_interruption_finds_what_nothing_else_would_show() -> None:
    async with fickle() as (running, broker, ann):
        async with broker.losing():
            await running.publish("r", data=1)
        await broker.lose()
        await until(lambda: ann.of("n"))
        assert [m["data"] for m in ann.received] == [1]


async def test_the_backend_is_away_for_a_while() -> None:
    async with fickle() as (running, broker, ann):
        broker.away = 2
        async with broker.losing():
            await running.publish("r", data=1)
        await running.publish("r", data=2)
        await until(lambda: len(ann.of("n")) == 2)
        assert [m["data"] for m in ann.received] == [1, 2]


@pytest.mark.parametrize("away", [0, 2])
async def test_history_that_no_longer_reaches_is_told(away: int) -> None:
    async with fickle(history=4) as (running, broker, ann):
        bob = await running.enter("bob")
        await bob.send("join", "r")
        await until(lambda: bob.of("joined"))
        bob.take()
        async with broker.losing():
            for number in range(10):
                await running.publish("r", data=number)
        broker.away = away
        await running.publish("r", data=10)
        await until(lambda: ann.of("joined") and bob.of("joined"))
        for client in (ann, bob):
            joined = client.of("joined")[0]
            assert "id" not in joined
            assert joined["recovered"] is False
            assert [item["data"] for item in joined["recentMessages"]] == [8, 9, 10]
            assert joined["position"]["offset"] == 11
        # From there it goes on without a hole and without a duplicate.
        await running.publish("r", data=11)
        await until(lambda: ann.of("n") and bob.of("n"))
        for client in (ann, bob):
            assert [m["type"] for m in client.received] == ["joined", "n"]
            assert client.received[1]["data"] == 11
        assert running.runtime.gaps_lost == 1


async def test_another_epoch_is_told() -> None:
    async with fickle() as (running, broker, ann):
        for number in range(5):
            await running.publish("r", data=number)
        await until(lambda: len(ann.of("n")) == 5)
        ann.take()
        # The backend has lost everything.
        broker.inner._streams.clear()
        await running.publish("r", data="new")
        await until(lambda: ann.of("joined"))
        (joined,) = ann.received
        assert joined["recovered"] is False
        assert [item["data"] for item in joined["recentMessages"]] == ["new"]
        assert joined["position"]["offset"] == 1


async def test_what_is_published_while_the_loss_is_told_is_not_lost() -> None:
    """Whatever overtakes whatever, the client ends with a view without a hole."""
    for seed in range(60):
        async with fickle(history=3) as (running, broker, ann):
            broker.rng = random.Random(seed)
            broker.slowness = seed % 7
            async with broker.losing():
                for number in range(6):
                    await running.publish("r", data=number)
            async with anyio.create_task_group() as tasks:
                for number in range(6, 12):
                    tasks.start_soon(running.publish, "r", "n", number)
            channel = running.hub.channels["room/:r"]
            with anyio.fail_after(5):
                while broker.queue or broker.calls or channel.healing is not None:
                    await anyio.sleep(0.001)
                await running.settle()
            view: list[int] = []
            position = 0
            for message in ann.received:
                if message["type"] == "joined":
                    assert message["recovered"] is False
                    view = [item["offset"] for item in message["recentMessages"]]
                    position = message["position"]["offset"]
                else:
                    assert message["offset"] == position + 1, (seed, ann.received)
                    position += 1
                    view.append(position)
            assert position == 12, (seed, ann.received)
            assert view[-3:] == [10, 11, 12]


async def test_a_room_that_empties_while_a_hole_is_closed() -> None:
    for seed in range(40):
        async with fickle() as (running, broker, ann):
            broker.rng = random.Random(seed)
            broker.slowness = seed % 6
            async with broker.losing():
                await running.publish("r", data=1)
            await running.publish("r", data=2)
            await ann.send("leave", "r")
            ann.take()
            await ann.send("join", "r")
            await running.publish("r", data=3)
            with anyio.fail_after(5):
                while broker.queue or broker.calls or not ann.of("joined"):
                    await anyio.sleep(0.001)
            await until(lambda: running.hub.channels["room/:r"].healing is None)
            await running.settle()
            joined = ann.of("joined")[0]
            seen = [item["offset"] for item in joined["recentMessages"]]
            assert seen[-1] == joined["position"]["offset"]
            assert seen + [m["offset"] for m in ann.of("n")] == [1, 2, 3], seed


async def test_a_user_channel_that_one_session_leaves_as_another_enters() -> None:
    for seed in range(40):
        async with fickle() as (running, broker, ann):
            broker.rng = random.Random(seed)
            broker.slowness = seed % 6
            entered: list[Client] = []

            async def enter(running: House, entered: list[Client], turns: int) -> None:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                entered.append(await running.enter("ann"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ann.vanish, 1000)
                tasks.start_soon(enter, running, entered, seed % 5)
                tasks.start_soon(enter, running, entered, seed % 3)
            for client in entered:
                client.take()
            await running.engine.tell(running.engine.user_channel("ann"), "tap", seed)
            await until(lambda entered=entered: all(c.of("tap") for c in entered))  # type: ignore[misc]
