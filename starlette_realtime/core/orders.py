"""Orders to send somebody away, and how a process learns of those it could not hear.

The law: an order is announced on the channel of its user or session, once, to whoever listens. It
is kept, too, in one short list for each namespace. A process reads that when its subscriptions
stand again after they were lost, and sends away whoever has been connected since before the order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec

from ..brokers.base import HistoryBroker
from ..errors import BrokerUnavailable
from ..events import Draft, Lane, Publication, Retention
from ..protocols import payload
from .channels import orders_channel
from .session import Session

if TYPE_CHECKING:
    from .engine import Engine

_KEPT = Retention(size=1000, age=86_400.0, presence=0)
_PAGE = 100


class _Order(msgspec.Struct, frozen=True):
    channel: str
    code: int
    reason: str


class Orders:
    """Orders of one namespace."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runtime = engine.runtime
        self._channel = orders_channel(engine.ns)
        # Whether the list is to be read, and whether somebody is at it.
        self._missed = False
        self._reading = False

    async def give(self, channel: str, code: int, reason: str) -> None:
        """Close the connections of a user's or a session's channel, on every process."""
        if self._runtime.history is not None:
            # Kept before it is announced: whoever misses it finds it.
            order = payload.dump(_Order(channel, code, reason))
            draft = Draft(event="$disconnect", data=order, lane=Lane.HISTORY)
            await self._runtime.history.publish(self._channel, draft, _KEPT)
        await self._engine.tell(channel, "$disconnect", {"code": code, "reason": reason})

    def missed(self) -> None:
        """Carry out what this process may not have heard."""
        self._missed = True
        if not self._reading and self._runtime.history is not None:
            self._reading = True
            self._runtime.spawn(self._catch_up, self._runtime.history)

    async def _catch_up(self, history: HistoryBroker) -> None:
        try:
            while self._missed:
                self._missed = False
                try:
                    await self._read(history)
                except BrokerUnavailable:
                    self._missed = True
                    await anyio.sleep(1.0)
        finally:
            self._reading = False

    async def _read(self, history: HistoryBroker) -> None:
        before = None
        while True:
            page = await history.page(self._channel, before=before, limit=_PAGE)
            for kept in page.publications:
                self._carry_out(kept)
            if not page.more:
                return
            before = page.publications[0].offset

    def _carry_out(self, kept: Publication) -> None:
        order = payload.load(kept.data, _Order)
        channel = self._engine.hub.channels.get(order.channel)
        for receiver in channel.everyone() if channel is not None else ():
            # Who has come back since may stay.
            if isinstance(receiver, Session) and receiver.connection.opened * 1000 < kept.time:
                receiver.disconnect(order.code, order.reason)
