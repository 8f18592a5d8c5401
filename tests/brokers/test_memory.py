"""The memory broker: its contract, and what is its own."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.brokers.memory import IDEMPOTENCY_SECONDS, MAX_IDS, SPARE, MemoryBroker
from starlette_realtime.errors import BrokerUnavailable
from starlette_realtime.events import Draft, Lane, Position, Retention
from starlette_realtime.testing.contracts import (
    FakeClock,
    HistoryBrokerContract,
    Recorder,
    Running,
)
from tests.support.loops import both_loops
from tests.support.stores import OnFakeClock

pytestmark = pytest.mark.anyio

KEEP = Retention()


@both_loops
class TestContract(OnFakeClock, HistoryBrokerContract):
    @asynccontextmanager
    async def pair(
        self,
    ) -> AsyncIterator[tuple[Running[MemoryBroker], Running[MemoryBroker]]]:
        recorder = Recorder()
        broker = MemoryBroker(clock=self.clock)
        async with broker.run(recorder):
            running = Running(broker, recorder)
            yield running, running


def said(number: int, id: str = "", lane: Lane = Lane.HISTORY) -> Draft:
    return Draft(event="said", data=b"%d" % number, id=id, lane=lane)


@asynccontextmanager
async def running(broker: MemoryBroker) -> AsyncIterator[Recorder]:
    recorder = Recorder()
    async with broker.run(recorder):
        yield recorder


async def test_an_id_is_forgotten_after_its_time() -> None:
    clock = FakeClock()
    broker = MemoryBroker(clock=clock)
    few = Retention(size=1)
    async with running(broker):
        for lane in (Lane.NONE, Lane.PRESENCE, Lane.HISTORY):
            await broker.publish("room", said(1, f"m{lane}", lane), few)
        clock.advance(IDEMPOTENCY_SECONDS - 1)
        for lane in Lane:
            assert (await broker.publish("room", said(2, f"m{lane}", lane), few)).duplicate
        await broker.publish("room", said(3), few)
        clock.advance(2)
        for lane in Lane:
            assert not (await broker.publish("room", said(4, f"m{lane}", lane), few)).duplicate


async def test_the_id_of_what_is_in_the_history_stays_known() -> None:
    clock = FakeClock()
    broker = MemoryBroker(clock=clock)
    async with running(broker):
        first = await broker.publish("room", said(1, "m1"), KEEP)
        clock.advance(IDEMPOTENCY_SECONDS * 10)
        again = await broker.publish("room", said(2, "m1"), KEEP)
        assert (again.position, again.duplicate) == (first.position, True)
        for number in range(MAX_IDS + 10):
            await broker.publish("room", said(number, f"e{number}", Lane.NONE), KEEP)
        assert (await broker.publish("room", said(2, "m1"), KEEP)).duplicate
        await broker.publish("room", Draft(event="e", data=b"0", amends="m1", amended=b"9"), KEEP)
        assert (await broker.page("room", limit=5)).publications[0].data == b"9"


async def test_what_is_remembered_of_ids_is_bounded() -> None:
    clock = FakeClock()
    broker = MemoryBroker(clock=clock)
    few = Retention(size=100)
    async with running(broker):
        # A quiet history before the flood must not keep the flood's ids alive.
        await broker.publish("room", said(0, "kept"), few)
        for number in range(MAX_IDS * 2):
            lane = Lane.NONE if number % 2 else Lane.HISTORY
            await broker.publish("room", said(number, f"m{number}", lane), few)
        stream = broker._streams["room"]
        assert len(stream.ids) == MAX_IDS
        assert len(stream.by_id) <= 100 + SPARE
        clock.advance(IDEMPOTENCY_SECONDS + 1)
        await broker.publish("room", said(0, "after", Lane.NONE), few)
        assert len(stream.ids) == 1
        clock.advance(few.age)
        await broker.page("room", limit=1)
        assert not stream.by_id


async def test_the_channel_used_longest_ago_is_forgotten_with_a_new_epoch() -> None:
    broker = MemoryBroker(max_channels=3)
    async with running(broker):
        first = {}
        for name in "abc":
            first[name] = (await broker.publish(name, said(1), KEEP)).position
        await broker.page("a", limit=1)
        await broker.publish("d", said(1), KEEP)
        for name in "ac":
            assert (await broker.recover(name, first[name], limit=10)).recovered
        recovery = await broker.recover("b", first["b"], limit=10)
        assert not recovery.recovered
        assert recovery.position.epoch != first["b"].epoch
        assert recovery.position.offset == 0
        assert len(broker._streams) == 3


async def test_subscribed_channels_are_not_forgotten_and_new_ones_work_beside_them() -> None:
    broker = MemoryBroker(max_channels=2)
    async with running(broker) as recorder:
        await broker.subscribe(["a", "b"])
        for name in "ab":
            await broker.publish(name, said(1), KEEP)
        for name in "cd":
            published = await broker.publish(name, said(1), KEEP)
            page = await broker.page(name, limit=10)
            # What the publisher was told must be what readers find.
            assert page.position == published.position
            assert len(page.publications) == 1
        for name in "ab":
            position = recorder.heard[name][0].position
            assert (await broker.recover(name, position, limit=1)).recovered
        assert len(broker._streams) <= 3


async def test_ephemeral_publications_make_no_streams() -> None:
    broker = MemoryBroker()
    async with running(broker):
        for number in range(10):
            await broker.publish(f"room{number}", said(number, lane=Lane.NONE), KEEP)
        assert not broker._streams


async def test_history_without_an_end_of_its_age() -> None:
    clock = FakeClock()
    broker = MemoryBroker(clock=clock)
    async with running(broker):
        await broker.publish("room", said(1), Retention(age=math.inf))
        clock.advance(10**9)
        assert (await broker.page("room", limit=1)).publications


async def test_what_stops_being_kept_goes_at_its_own_age() -> None:
    clock = FakeClock()
    broker = MemoryBroker(clock=clock)
    minute = Retention(age=60.0)
    async with running(broker):
        first = await broker.publish("room", said(1), minute)
        clock.advance(40)
        await broker.publish("room", said(2), minute)
        clock.advance(40)
        page = await broker.page("room", limit=10)
        assert [p.data for p in page.publications] == [b"2"]
        assert (await broker.recover("room", first.position, limit=10)).recovered
        start = Position(first.position.epoch, 0)
        assert not (await broker.recover("room", start, limit=10)).recovered


async def test_outside_its_lifetime_it_does_not_publish() -> None:
    broker = MemoryBroker()
    with pytest.raises(BrokerUnavailable):
        await broker.publish("room", said(1), KEEP)
    async with running(broker) as recorder:
        await broker.subscribe(["room"])
        first = await broker.publish("room", said(1), KEEP)
    with pytest.raises(BrokerUnavailable):
        await broker.publish("room", said(2), KEEP)
    # History outlives the block, subscriptions do not.
    async with running(broker) as later:
        second = await broker.publish("room", said(3), KEEP)
        assert second.position == Position(first.position.epoch, 2)
        assert not later.heard
    assert len(recorder.heard["room"]) == 1


async def test_rooms_that_nobody_comes_back_to_do_not_stay() -> None:
    clock = FakeClock()
    broker = MemoryBroker(clock=clock)
    async with running(broker):
        await broker.subscribe(["used"])
        await broker.publish("used", said(0), KEEP)
        for number in range(1000):
            await broker.publish(f"room-{number}", said(number, id="i"), KEEP)
        clock.advance(KEEP.age + 1)
        for number in range(600):
            await broker.publish(f"later-{number}", said(number), KEEP)
        assert len(broker._streams) == 1 + 600
        # Where someone is, the position goes on.
        assert (await broker.publish("used", said(1), KEEP)).position.offset == 2


async def test_a_lane_is_never_more_than_twice_as_long_as_it_may_be() -> None:
    broker = MemoryBroker()
    async with running(broker):
        for number in range(200):
            await broker.publish("room", said(number), Retention(size=1))
        assert len(broker._streams["room"].lanes[Lane.HISTORY].publications) <= 2
        assert len((await broker.page("room", limit=10)).publications) == 1
