"""A room as the app sees it: by name, whether or not anyone of this process is in it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..events import Draft, Lane, Page, Publication, Published
from ..presence.base import Counts, MemberPage
from ..protocols import payload
from .channels import check_public
from .session import Member, Session
from .timers import Timer

if TYPE_CHECKING:
    from .engine import Engine
    from .gather import Gathered
    from .router import RoomType


class Room:
    """A room of a namespace.

    Attributes:
        name: as clients write it, `"chat/7"`.
        params: the path parameters of its pattern, converted.
    """

    __slots__ = ("__weakref__", "_engine", "channel", "name", "params", "type")

    def __init__(
        self, engine: Engine, name: str, room_type: RoomType, params: Mapping[str, Any]
    ) -> None:
        self._engine = engine
        self.name = name
        # One string for all who are in the room.
        self.channel = sys.intern(engine.room_channel(name))
        self.type = room_type
        self.params = params

    async def publish(
        self,
        event: str,
        data: Any = None,
        *,
        id: str | None = None,
        exclude: Member | Session | str | None = None,
        keep: bool = True,
        aside: bool = False,
        volatile: bool = False,
        key: str = "",
        amends: str | Publication = "",
        amended: Any = None,
    ) -> Published:
        """Publish an event to the room's members on every process, and keep it in its history.

        Args:
            id: makes a second call harmless: it publishes nothing and returns the first one's
                position. Inside a handler it is derived from the client's `messageId` if that is
                given, so that a message that is sent again does not take effect again.
            exclude: a member that does not get it, or the id of its session, as its client may
                send it along with an HTTP request.
            keep: False leaves no trace in the history; who is not connected misses it.
            aside: kept beside the history, as arrivals and departures are: who was not connected
                recovers it, but it is on no page of the history and pushes nothing out of it.
            volatile: may be dropped for a slow receiver; implies `keep=False`.
            key: for a receiver that is slow, a later event with this key replaces this one.
            amends: id of an earlier event whose payload in the history becomes `amended`; or that
                event as `find` returned it: then nothing is published, and the answer says
                `conflict`, if its payload has changed since.

        Raises:
            BrokerUnavailable: the backend did not answer.
            ValueError: `event` is one of the protocol's own.
        """
        check_public(event)
        expects = b""
        if isinstance(amends, Publication):
            expects = amends.data
            amends = amends.id
        lane = Lane.PRESENCE if aside else Lane.HISTORY
        draft = Draft(
            event=event,
            data=payload.dump(data),
            id=id if id is not None else self._engine.next_publication_id(),
            lane=lane if keep and not volatile else Lane.NONE,
            exclude=session_id(exclude),
            volatile=volatile,
            key=key,
            amends=amends,
            amended=payload.dump(amended) if amends else b"",
            expects=expects,
        )
        return await self._engine.publish(self, draft)

    async def signal(
        self,
        name: str,
        data: Any = None,
        *,
        exclude: Member | Session | None = None,
        volatile: bool = False,
        key: str = "",
    ) -> None:
        """Send a signal to all processes that have members of the room: what `RoomType.signal` has
        registered there may pass it on to them. The rest is as in `publish`.

        Raises:
            BrokerUnavailable: the backend did not answer.
        """
        draft = Draft(
            event=name,
            data=payload.dump(data),
            lane=Lane.NONE,
            exclude=session_id(exclude),
            volatile=volatile,
            key=key,
        )
        await self._engine.publish(self, draft)

    async def gather(
        self,
        event: str,
        data: Any = None,
        *,
        timeout: float | None = None,
        exclude: Member | Session | str | None = None,
    ) -> Gathered:
        """Send an event that wants an answer to every member, on every process, and return what
        they answer within `timeout` seconds (default: the option `ack_timeout`).

        Returns earlier when all have answered. It never raises for those who do not: they are
        `missing`.

        Raises:
            BrokerUnavailable: the backend did not answer.
        """
        check_public(event)
        seconds = self._engine.options.ack_timeout if timeout is None else timeout
        return await self._engine.gatherer.gather(
            self, event, payload.dump(data), seconds, session_id(exclude)
        )

    async def history(
        self, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> Page:
        """Return a page of what is kept, oldest first; see `HistoryBroker.page`."""
        return await self._engine.page(self, before=before, after=after, limit=limit)

    async def find(self, id: str) -> Publication | None:
        """Return what the history has under `id`, as it was last amended; None when nothing, or no
        longer."""
        return await self._engine.find(self, id)

    def later(self, delay: float, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Timer:
        """Run an async function in `delay` seconds, unless `cancel` is called on the timer that is
        returned. What it raises is logged."""
        return self._engine.runtime.later(delay, call, *arguments)

    async def members(self, *, cursor: str = "", limit: int = 100) -> MemberPage:
        """Return who is here, over all processes."""
        return await self._engine.presence.members(self.channel, cursor=cursor, limit=limit)

    async def counts(self) -> Counts:
        """Return how many users and sessions are here, over all processes."""
        return await self._engine.presence.counts(self.channel)

    def __repr__(self) -> str:
        return f"<Room {self.name!r}>"


def session_id(who: Member | Session | str | None) -> str:
    """Return the id of a session that is meant; empty for none."""
    if who is None or isinstance(who, str):
        return who or ""
    return who.session.id if isinstance(who, Member) else who.id
