"""Who is online: a lease for each session of a user, in a channel that is the user's own."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import anyio

from ..errors import BrokerUnavailable
from ..events import NOTHING_KEPT, Draft, Lane
from ..protocols import payload
from .session import Session, new_id

if TYPE_CHECKING:
    from .engine import Engine
    from .namespace import CallNext, ConnectionContext, Namespace, Signal

logger = logging.getLogger("starlette_realtime")

OFFLINE = "offline"
_READERS = 16
# Nobody is registered for it.
_SILENCE = Draft(event="$silence", data=b"null", lane=Lane.NONE)


class Online:
    """The users of a namespace that are online, on any process, and what status they show.

    The first session of a user and the end of the last one (after the grace period, or when its
    process was lost) are announced once, by the signal `$presence` with `{userId, status}`: to
    those who listen to the user's channel, or to everyone's sessions if `everyone` is set.

    A user has one status, whatever device it was set on; a further device takes it over. A user
    whose status is "offline" is there and does not show it.
    """

    def __init__(self, namespace: Namespace) -> None:
        self.everyone = False
        self._changed: list[Callable[[Session, str, str], Awaitable[Any]]] = []
        # Status changes under way on this process, by user: the newest one waits.
        self._waiting: dict[tuple[str, str], tuple[str, str] | None] = {}
        # Before the client is told that it is connected: from then on it counts.
        namespace.middleware("connection")(self._arrive)
        namespace.signal("$status")(self._take)

    def channel(self, engine: Engine, user_id: str) -> str:
        """Return the name of the channel in which `user_id` is present."""
        return f"online{engine.ns}:{user_id}"

    def on_change(self, function: Callable[[Session, str, str], Awaitable[Any]]) -> None:
        """Register an async function called with each of a user's sessions, its new status and the
        id of the change, on the process where the session is."""
        self._changed.append(function)

    async def statuses(self, engine: Engine, user_ids: Iterable[str]) -> dict[str, str]:
        """Return what status each of these users shows; "offline" for those who are not there.

        Raises:
            BrokerUnavailable: the backend did not answer.
        """
        found: dict[str, str] = {}
        limiter = anyio.CapacityLimiter(_READERS)

        async def read(user_id: str) -> None:
            async with limiter:
                page = await engine.presence.members(self.channel(engine, user_id), limit=1)
            found[user_id] = page.members[0].status if page.members else OFFLINE

        wanted = list(dict.fromkeys(user_ids))
        if len(wanted) == 1:
            await read(wanted[0])
            return found
        errors: list[Exception] = []

        async def attempt(user_id: str) -> None:
            try:
                await read(user_id)
            except Exception as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for user_id in wanted:
                group.start_soon(attempt, user_id)
        if errors:
            raise errors[0]
        return {user_id: found[user_id] for user_id in wanted}

    async def _arrive(self, context: ConnectionContext, call_next: CallNext) -> None:
        await call_next()
        session = context.session
        if session.user is None:
            return
        engine = session.engine
        try:
            own = self.channel(engine, session.user.id)
            page = await engine.presence.members(own, limit=1)
            if page.members and page.members[0].status != session.status:
                session.status = page.members[0].status
                await engine.lobby.save(session)
            await self._hold(session)
        except BrokerUnavailable:
            # Made good when the leases are renewed.
            logger.warning("presence must wait for the backend")
            self._remember(session)

    async def _hold(self, session: Session) -> None:
        for channel, drafts in self._remember(session).items():
            await session.engine.rooms.hold(session, channel, *drafts)

    def _remember(self, session: Session) -> dict[str, tuple[Draft | None, Draft | None]]:
        """Note the channels in which a session is to be present, and what announces it."""
        engine = session.engine
        assert session.user_id is not None
        # One that is not to be seen comes and goes without a word.
        shown = session.status != OFFLINE
        arrival = self._draft(session.user_id, session.status) if shown else None
        departure = self._draft(session.user_id, OFFLINE) if shown else _SILENCE
        own = self.channel(engine, session.user_id)
        told: dict[str, tuple[Draft | None, Draft | None]] = {own: (arrival, departure)}
        if self.everyone:
            told = {own: (None, None), engine.everyone_channel: (arrival, departure)}
        session.held = {**(session.held or {}), **told}
        return told

    def _draft(self, user_id: str, status: str) -> Draft:
        data = payload.dump({"userId": user_id, "status": status})
        return Draft(event="$presence", data=data, lane=Lane.NONE)

    async def change(self, session: Session, status: str) -> None:
        """Let the user of `session` show `status`, on all devices; "offline" hides it.

        Raises:
            BrokerUnavailable: the backend did not answer; the change may have been made in part.
        """
        user_id = session.user_id
        assert user_id is not None
        engine = session.engine
        id = new_id()
        # Here at once, so that it is true when the client is told so; elsewhere a moment later.
        await session.set_status(status)
        await engine.tell(engine.user_channel(user_id), "$status", [status, id])
        to = engine.everyone_channel if self.everyone else self.channel(engine, user_id)
        await engine.runtime.broker.publish(to, self._draft(user_id, status), NOTHING_KEPT)

    def _take(self, signal: Signal) -> None:
        status, id = signal.data
        user_id = signal.channel.name
        key = (signal.engine.ns, user_id)
        under_way = key in self._waiting
        self._waiting[key] = (status, id)
        if not under_way:
            signal.engine.runtime.spawn(self._apply, signal, key)

    async def _apply(self, signal: Signal, key: tuple[str, str]) -> None:
        """Make one user's changes here, one after the other; of those that wait, the last."""
        try:
            while (change := self._waiting[key]) is not None:
                self._waiting[key] = None
                for session in signal.sessions:
                    await self._show(session, *change)
        finally:
            del self._waiting[key]

    async def _show(self, session: Session, status: str, id: str) -> None:
        await session.set_status(status)
        if not session.connection.gone:
            await self._hold(session)
        for function in self._changed:
            await function(session, status, id)
