"""What a broker is: publish and subscribe, and, where it can, history in the same step.

A broker moves publications between processes and keeps the newest. Local fan-out is not its
business: it hands each publication of a subscribed channel once to its listener.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from ..events import Draft, Page, Position, Publication, Published, Recovery, Retention


class Listener(Protocol):
    """The one that a broker delivers to. Both are called from the event loop and must not block."""

    def received(self, channel: str, publication: Publication) -> None:
        """A publication was announced on a subscribed channel."""

    def interrupted(self, channels: Iterable[str]) -> None:
        """Announcements on these channels may have been missed: the connection was lost and is
        back. Called after the subscription stands again."""


class Health(Protocol):
    """How the listening side of a broker is."""

    @property
    def connected(self) -> bool:
        """Whether announcements come through."""


class _Healthy(msgspec.Struct, frozen=True):
    connected: bool = True


class Broker(ABC):
    """Publish and subscribe.

    Guarantee: announcements of one channel reach a listener in the order of their publication, each
    at most once. Announcements after `subscribe` has returned arrive, unless the backend was lost
    meanwhile, which `Listener.interrupted` tells.
    """

    @abstractmethod
    def run(self, listener: Listener) -> AbstractAsyncContextManager[None]:
        """Return the broker's lifetime: inside the block it delivers to `listener`.

        Raises:
            ConfigurationError: on entering, when the backend is not what the URL says.
        """

    @abstractmethod
    async def publish(self, channel: str, draft: Draft, retention: Retention) -> Published:
        """Announce `draft` to every subscriber of `channel`, and keep it where the broker keeps.

        One atomic step: look the id up, give the next offset, append to the draft's lane, trim,
        amend, announce. A second publication under an id seen before (within the last ten minutes,
        at least) changes nothing, announces nothing and returns the first one's position. One with
        `expects`, whose `amends` is not kept in the history lane with that very payload (as
        it was last amended), does nothing at all and returns `conflict`, with the position of the
        stream's end.

        Raises:
            BrokerUnavailable: the backend did not answer in time.
        """

    def health(self) -> Health:
        """Return whether announcements come through, as far as the broker can tell."""
        return _Healthy()

    @abstractmethod
    async def subscribe(self, channels: Iterable[str]) -> None:
        """Ask for the announcements of `channels`. Takes effect before it returns; if it is
        cancelled, or raises, it may have taken effect or not, and others may ask for the same."""

    @abstractmethod
    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Want no more announcements of `channels`."""


class HistoryBroker(Broker):
    """A broker that also keeps what was published in the lanes HISTORY and PRESENCE.

    Guarantee: the kept publications of a channel have the offsets 1, 2, 3, … within an epoch; what
    is read and what is announced agree. An epoch ends when kept publications may have been lost;
    after that no position of it is recovered.
    """

    @abstractmethod
    async def recover(self, channel: str, since: Position, limit: int) -> Recovery:
        """Return every kept publication after `since`, if they are all still there and at most
        `limit`; else `recovered=False`."""

    @abstractmethod
    async def page(
        self, channel: str, *, before: int | None = None, after: int | None = None, limit: int
    ) -> Page:
        """Return up to `limit` publications of the history lane, oldest first: the newest of all,
        or those with an offset below `before`, or the first ones above `after`."""

    @abstractmethod
    async def find(self, channel: str, id: str) -> Publication | None:
        """Return what the history lane keeps under `id`, as it was last amended; None when nothing,
        or no longer."""
