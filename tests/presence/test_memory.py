"""The memory presence store: its contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.errors import BrokerUnavailable
from starlette_realtime.events import Draft, Lane, Retention
from starlette_realtime.presence import Counts, Lease, MemoryPresence
from starlette_realtime.testing.contracts import (
    FakeClock,
    PresenceContract,
    Recorder,
    RunningPresence,
)
from tests.support.loops import both_loops
from tests.support.stores import OnFakeClock

pytestmark = pytest.mark.anyio

KEEP = Retention()


@both_loops
class TestContract(OnFakeClock, PresenceContract):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[RunningPresence, RunningPresence]]:
        recorder = Recorder()
        broker = MemoryBroker(clock=self.clock)
        presence = MemoryPresence(broker, clock=self.clock)
        async with broker.run(recorder), presence.run():
            running = RunningPresence(presence, broker, recorder)
            yield running, running


def move(event: str) -> Draft:
    return Draft(event=event, data=b"null", lane=Lane.PRESENCE)


async def enter(store: MemoryPresence, room: str, session: str, user: str, ttl: float) -> bool:
    return await store.enter(
        room,
        Lease(session, user),
        ttl=ttl,
        arrival=move("arrived"),
        departure=move("departed"),
        retention=KEEP,
    )


async def test_nothing_is_left_when_everyone_has_gone() -> None:
    clock = FakeClock()
    broker = MemoryBroker(clock=clock)
    store = MemoryPresence(broker, clock=clock)
    async with broker.run(Recorder()), store.run():
        for number in range(200):
            await enter(store, f"room{number % 7}", f"s{number}", f"u{number % 50}", 10 + number)
        await store.renew([(f"room{n % 7}", f"s{n}") for n in range(200)], 60)
        await store.renew([(f"room{n % 7}", f"s{n}") for n in range(0, 200, 3)], 5)
        for number in range(0, 200, 2):
            await store.leave(f"room{number % 7}", f"s{number}")
        clock.advance(100)
        assert await store.expire() == 100
        assert not store._rooms
        assert not store._ends
        # And without the sweeper, when all leave by themselves.
        for number in range(50):
            await enter(store, "room", f"s{number}", "ann", 10)
        for number in range(50):
            await store.leave("room", f"s{number}")
        assert not store._rooms
        assert not store._ends


async def test_coming_and_going_does_not_pile_up() -> None:
    clock = FakeClock()
    broker = MemoryBroker(clock=clock)
    store = MemoryPresence(broker, clock=clock)
    async with broker.run(Recorder()), store.run():
        await enter(store, "room", "stays", "bob", 60)
        for _ in range(500):
            await enter(store, "room", "s1", "ann", 60)
            await store.leave("room", "s1")
            await store.renew([("room", "stays")], 30)
            await store.renew([("room", "stays")], 60)
        await enter(store, "room", "s1", "ann", 60)
        assert len(store._ends) <= 5
        # Swept and renewed for hours, there is still about one entry for each lease.
        for _ in range(200):
            clock.advance(20)
            await store.renew([("room", "s1"), ("room", "stays")], 60)
            assert await store.expire() == 0
        assert len(store._ends) <= 5
        assert await store.counts("room") == Counts(2, 2)


async def test_a_broker_that_refuses_leaves_everything_as_it_was() -> None:
    clock = FakeClock()
    broker = MemoryBroker(clock=clock)
    store = MemoryPresence(broker, clock=clock)
    async with store.run():
        with pytest.raises(BrokerUnavailable):
            await enter(store, "room", "s1", "ann", 10)
        assert await store.counts("room") == Counts(0, 0)
        assert not store._rooms
        async with broker.run(Recorder()):
            assert await enter(store, "room", "s1", "ann", 10)
        with pytest.raises(BrokerUnavailable):
            await store.leave("room", "s1")
        clock.advance(11)
        with pytest.raises(BrokerUnavailable):
            await store.expire()
        assert await store.counts("room") == Counts(1, 1)
        recorder = Recorder()
        async with broker.run(recorder):
            await broker.subscribe(["room"])
            assert await store.expire() == 1
        assert [p.event for p in recorder.heard["room"]] == ["departed"]


async def test_leases_end_with_the_store() -> None:
    broker = MemoryBroker()
    store = MemoryPresence(broker)
    async with broker.run(Recorder()):
        async with store.run():
            await enter(store, "room", "s1", "ann", 10)
        async with store.run():
            assert await store.counts("room") == Counts(0, 0)
            assert await enter(store, "room", "s1", "ann", 10)
