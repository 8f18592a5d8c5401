"""What all contract suites share: a listener that remembers, time, and waiting on conditions."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio
import pytest

from ...brokers.base import Broker, HistoryBroker
from ...events import Publication
from ...presence.base import PresenceStore

DEADLINE = 20.0
"""Seconds after which what was waited for counts as never happening."""

B = TypeVar("B", bound=Broker, covariant=True)
T = TypeVar("T")


class Recorder:
    """A listener that remembers what it was told."""

    def __init__(self) -> None:
        self.heard: defaultdict[str, list[Publication]] = defaultdict(list)
        self.lost: list[str] = []

    def received(self, channel: str, publication: Publication) -> None:
        self.heard[channel].append(publication)

    def interrupted(self, channels: Iterable[str]) -> None:
        self.lost.extend(channels)

    async def wait(self, channel: str, number: int) -> list[Publication]:
        """Return all announcements of `channel`, once there are at least `number`.

        Raises:
            AssertionError: there were fewer for 20 s.
        """
        heard = self.heard[channel]
        await eventually(
            lambda: len(heard) >= number,
            lambda: f"{len(heard)} of {number} announcements on {channel!r} arrived",
        )
        return list(heard)


@dataclass(frozen=True)
class Running(Generic[B]):
    """A running broker and its listener."""

    broker: B
    recorder: Recorder


@dataclass(frozen=True)
class RunningPresence:
    """A running presence store, the broker it announces through, and that broker's listener."""

    presence: PresenceStore
    broker: HistoryBroker
    recorder: Recorder


class FakeClock:
    """A clock that moves when told to, for stores that take theirs as an argument (seconds)."""

    def __init__(self, now: float = 1_767_225_600.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class StoreContract:
    """What a suite asks of its subclass beside `pair`. The answers here fit a store on a server."""

    pytestmark = pytest.mark.anyio

    unit: float = 1.0
    """The shortest time to live that the suite works with, in seconds. Larger on slow machines."""
    virtual_time: bool = False
    """Whether `advance` moves a clock of the store's rather than waiting. The model tests then let
    time pass too."""

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass for the store."""
        await anyio.sleep(seconds)

    @staticmethod
    def channel(name: str = "room") -> str:
        """Return a channel nobody has used, so that tests do not meet in one store."""
        return f"{name}:{uuid.uuid4().hex}"


async def eventually(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Return when `condition` holds.

    Raises:
        AssertionError: it did not for 20 s; the text is what `otherwise` returns.
    """
    with anyio.move_on_after(DEADLINE):
        while not condition():  # noqa: ASYNC110 - any store's condition, so nothing to wait on
            await anyio.sleep(0.005)
    if not condition():
        raise AssertionError(otherwise())


async def together(calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run `calls` at the same time; return what they returned, in their order."""
    results: dict[int, T] = {}

    async def run(index: int, call: Callable[[], Awaitable[T]]) -> None:
        results[index] = await call()

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(run, index, call)
    return [results[index] for index in sorted(results)]
