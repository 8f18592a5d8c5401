"""Joining, leaving, losing and publishing at once: nothing is lost, nothing comes twice.

A broker that takes its time (`LateBroker`) makes publications, announcements, subscriptions and
reads of history overtake each other in every way that its guarantee permits; clients keep score as
the protocol tells them to (docs/protocol.md, "Rooms, positions, recovery").
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.core import runtime
from starlette_realtime.core.namespace import Namespace
from starlette_realtime.events import Position
from tests.core.helpers import Client, House, LateBroker, Message, house

ROOM = "r"


@pytest.fixture(autouse=True, scope="module")
def _let_go_at_once() -> Iterator[None]:
    """A channel that is gathered for some time is never unsubscribed from in a few turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "RELEASE", 0.0)
        yield


class Score:
    """What a client of the protocol has seen of one room."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.position: Position | None = None
        self.inside = False
        self.recovered = 0
        self.resets = 0
        # Offsets shown to the user since the view began, and where it began.
        self.seen: dict[int, Any] = {}
        self.start = 0
        self._asked: dict[int, Position | None] = {}
        self._read = 0

    async def join(self, number: int, *, again: bool) -> None:
        self.read(ANY)
        since = self._asked[number] = self.position if again else None
        await self.client.send("join", ROOM, id=number, since=since)

    def read(self, allowed_gaps: set[int]) -> None:
        """Take what came, and complain."""
        self.client.house.hub.flush()
        received = self.client.received
        while self._read < len(received):
            self._take(received[self._read], allowed_gaps)
            self._read += 1

    def _take(self, message: Message, allowed_gaps: set[int]) -> None:
        kind = message["type"]
        assert kind != "error", message
        if kind == "joined":
            end = Position(message["position"]["epoch"], message["position"]["offset"])
            self.inside = True
            if message.get("recovered"):
                self.recovered += 1
                since = self._asked[message["id"]]
                assert since is not None
                assert message["recentMessages"] == []
                self.position = since
            else:
                self.resets += "id" not in message
                recent = message["recentMessages"]
                offsets = [item["offset"] for item in recent]
                assert offsets == sorted(set(offsets))
                self.seen = {item["offset"]: item["data"] for item in recent}
                self.start = offsets[0] - 1 if offsets else end.offset
                self.position = end
        elif kind == "left":
            self.inside = False
        elif "offset" in message:
            offset = message["offset"]
            assert self.position is not None, f"before joined: {message}"
            assert self.inside, f"after left: {message}"
            assert offset > self.position.offset, f"twice, or out of order: {message}"
            gap = set(range(self.position.offset + 1, offset)) - allowed_gaps
            assert not gap, f"lost before {offset}: {sorted(gap)}"
            self.seen[offset] = message["data"]
            self.position = Position(self.position.epoch, offset)


class World:
    """One room, its publishers and its clients."""

    def __init__(self, house: House, broker: LateBroker, rng: random.Random) -> None:
        self.house = house
        self.broker = broker
        self.rng = rng
        self.published: dict[int, Any] = {}
        # Offsets that a session is not to see.
        self.excluded: dict[str, set[int]] = {}
        self.scores: list[Score] = []

    async def publisher(self, number: int, count: int) -> None:
        for index in range(count):
            for _ in range(self.rng.randint(0, 6)):
                await checkpoint()
            exclude = (
                self.rng.choice(self.scores).client.session if self.rng.random() < 0.2 else None
            )
            data = f"{number}.{index}"
            published = await self.house.publish(ROOM, data=data, exclude=exclude)
            offset = published.position.offset
            assert self.published.setdefault(offset, data) == data
            if exclude is not None:
                self.excluded.setdefault(exclude.id, set()).add(offset)

    async def member(self, score: Score, rounds: int) -> None:
        rng, client = self.rng, score.client
        for index in range(rounds):
            for _ in range(rng.randint(0, 8)):
                await checkpoint()
            await score.join(index, again=rng.random() < 0.7)
            if index == rounds - 1:
                break
            for _ in range(rng.randint(0, 8)):
                await checkpoint()
            if rng.random() < 0.7:
                await client.send("leave", ROOM)
            # Or it asks again while it is inside.

    def check(self, score: Score) -> None:
        excluded = self.excluded.get(score.client.session.id, set())
        assert score.inside
        assert score.position is not None
        end = len(self.published)
        missing = set(range(score.position.offset + 1, end + 1)) - excluded
        assert not missing, f"the end never came: {sorted(missing)}"
        for offset, data in score.seen.items():
            assert self.published[offset] == data
        wanted = set(range(score.start + 1, end + 1))
        assert wanted - excluded - set(score.seen) == set()


class _Any(set[int]):
    """Before the exclusions are known, every gap may be one; `check` looks again at the end."""

    def __rsub__(self, other: object) -> set[int]:
        return set()


ANY = _Any()


async def scenario(seed: int, clients: int, messages: int, history: int, losses: int) -> None:
    rng = random.Random(seed)
    brokers: list[LateBroker] = []

    def late(memory: MemoryBroker) -> LateBroker:
        brokers.append(LateBroker(memory, rng, slowness=rng.randint(0, 5)))
        return brokers[0]

    def configure(namespace: Namespace) -> None:
        namespace.room(ROOM, presence="none", history=history, recent=5)

    async with house(configure, broker=late, resume_window=0.0) as running:
        world = World(running, brokers[0], rng)
        world.scores = [Score(await running.enter(f"u{number}")) for number in range(clients)]

        async def lose() -> None:
            for _ in range(losses):
                for _ in range(rng.randint(0, 20)):
                    await checkpoint()
                await world.broker.lose()

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for number in range(rng.randint(1, 3)):
                    tasks.start_soon(world.publisher, number, messages)
                for score in world.scores:
                    tasks.start_soon(world.member, score, rng.randint(1, 5))
                tasks.start_soon(lose)
            await until_quiet(running, world.broker)
        for score in world.scores:
            score.read(ANY)
            world.check(score)


async def until_quiet(running: House, broker: LateBroker) -> None:
    """Wait until nothing is under way any more, and no channel heals."""
    while (
        broker.queue
        or broker.calls
        or any(channel.healing is not None for channel in running.hub.channels.values())
    ):
        await checkpoint()
    await running.settle()


INTERLEAVINGS = settings(
    max_examples=500, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@given(
    seed=st.integers(0, 2**32),
    clients=st.integers(1, 5),
    messages=st.integers(0, 12),
    history=st.sampled_from([1000, 1000, 7]),
)
@INTERLEAVINGS
def test_what_races_with_a_join_is_neither_lost_nor_doubled(
    seed: int, clients: int, messages: int, history: int
) -> None:
    anyio.run(scenario, seed, clients, messages, history, 0)


@given(seed=st.integers(0, 2**32), losses=st.integers(1, 4))
@settings(INTERLEAVINGS, max_examples=200)
def test_announcements_that_are_lost_are_found_in_the_history(seed: int, losses: int) -> None:
    anyio.run(scenario, seed, 3, 10, 1000, losses)


@given(seed=st.integers(0, 2**32), losses=st.integers(0, 2))
@settings(INTERLEAVINGS, max_examples=40)
def test_on_trio_as_well(seed: int, losses: int) -> None:
    anyio.run(scenario, seed, 3, 8, 1000, losses, backend="trio")
