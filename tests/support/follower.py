"""A listener that does with announcements what the hub does: checks each against the one before,
closes holes from history, and notes when that is no longer possible."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio

from starlette_realtime.brokers.base import HistoryBroker
from starlette_realtime.errors import BrokerUnavailable
from starlette_realtime.events import Position, Publication
from starlette_realtime.testing.contracts.recorder import eventually


class Follower:
    """Follows one channel: `heard` has what is kept, once and in order, or `lost` counts."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.heard: list[Publication] = []
        self.lost = 0
        self.healed = 0
        self.interruptions = 0
        self.position: Position | None = None
        self._known: set[str] = set()
        self._hole = anyio.Event()

    # Listener

    def received(self, channel: str, publication: Publication) -> None:
        position = self.position
        if channel != self.channel or position is None or not publication.offset:
            return
        follows = (
            publication.epoch == position.epoch
            and publication.offset == position.offset + 1
            and publication.previous == position.nonce
        )
        if follows:
            self._take(publication)
        elif publication.offset > position.offset or publication.nonce not in self._known:
            self._hole.set()

    def interrupted(self, channels: Iterable[str]) -> None:
        if self.channel in channels:
            self.interruptions += 1
            self._hole.set()

    def _take(self, publication: Publication) -> None:
        self.heard.append(publication)
        self.position = publication.position
        self._known.add(publication.nonce)

    @property
    def payloads(self) -> list[int]:
        return [int(publication.data) for publication in self.heard]

    async def wait(self, payloads: Iterable[int]) -> None:
        """Wait until exactly these payloads have been heard.

        Raises:
            AssertionError: something else was, or not enough for 20 s.
        """
        wanted = list(payloads)
        await eventually(
            lambda: len(self.heard) >= len(wanted),
            lambda: f"{len(self.heard)} of {len(wanted)} heard",
        )
        assert self.payloads == wanted

    @asynccontextmanager
    async def follow(self, broker: HistoryBroker) -> AsyncIterator[None]:
        """Subscribe and follow, inside the block, from where the stream is now."""
        await broker.subscribe([self.channel])
        self.position = (await broker.page(self.channel, limit=1)).position
        async with anyio.create_task_group() as group:
            group.start_soon(self._heal, broker)
            yield
            group.cancel_scope.cancel()

    async def _heal(self, broker: HistoryBroker) -> None:
        while True:
            await self._hole.wait()
            self._hole = anyio.Event()
            assert self.position is not None
            try:
                recovery = await broker.recover(self.channel, self.position, 10_000)
            except BrokerUnavailable:
                self._hole.set()
                await anyio.sleep(0.05)
                continue
            if not recovery.recovered:
                self.lost += 1
                self.position = recovery.position
                self._known.clear()
                continue
            for publication in recovery.publications:
                if publication.offset > self.position.offset:
                    self._take(publication)
                    self.healed += 1
