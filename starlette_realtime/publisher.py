"""Publishing from a process without connections: a cron job, a task queue's worker, a shell.

async with Publisher("redis://…") as publisher:
    await publisher.publish("chat/7", "new-message", {"content": "hello"})

with SyncPublisher("redis://…") as publisher:
    publisher.send_to_user("ann", "report-ready", {"url": "/reports/3"})
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from .brokers.base import Broker
from .core.channels import check_public, everyone_channel, room_channel, user_channel
from .errors import ConfigurationError
from .events import NOTHING_KEPT, Draft, Lane, Published, Retention
from .protocols import payload
from .settings import ENVIRONMENT, publishing_broker


class Publisher:
    """Publishes into the rooms of a running app, through the backend they share.

    Args:
        backend: the URL the app is given; without it, the environment variable `REALTIME_BACKEND`
            is asked.
        retention: what is kept of a room that the app has not published into yet; otherwise it is
            kept as the app does.

    Raises:
        ConfigurationError: the URL is wrong, or of a backend that no other process can reach.
    """

    def __init__(self, backend: str | None = None, *, retention: Retention | None = None) -> None:
        url = backend or os.environ.get(ENVIRONMENT)
        if not url:
            raise ConfigurationError(f"which backend? Give a URL or set {ENVIRONMENT}")
        self._broker = publishing_broker(url)
        self._retention = retention or Retention()
        self._stack: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._broker.publishing())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.aclose()

    async def publish(
        self,
        room: str,
        event: str,
        data: Any = None,
        *,
        id: str = "",
        keep: bool = True,
        volatile: bool = False,
        key: str = "",
        namespace: str = "/",
    ) -> Published:
        """Publish an event to a room's members, and keep it in its history.

        Args:
            id: makes a second call harmless: it publishes nothing and returns the first one's
                position.
            keep: False leaves no trace in the history; who is not connected misses it.
            volatile: may be dropped for a slow receiver; implies `keep=False`.
            key: for a receiver that is slow, a later event with this key replaces this one.

        Raises:
            TypeError: no payload can hold `data`.
            ValueError: `event` is a name of the protocol's own.
            BrokerUnavailable: the backend did not answer. With an `id` the call may be repeated.
        """
        check_public(event)
        draft = Draft(
            event=event,
            data=payload.dump(data),
            id=id,
            lane=Lane.HISTORY if keep and not volatile else Lane.NONE,
            volatile=volatile,
            # A connection has one queue for all its rooms: a key is the room's own.
            key=f"{room}\0{key}" if key else "",
        )
        return await self._broker.publish_from_outside(
            room_channel(namespace, room), draft, self._retention
        )

    async def send_to_user(
        self, user_id: str, event: str, data: Any = None, *, namespace: str = "/"
    ) -> None:
        """Send an event to every connection of a user. Not kept.

        Raises:
            TypeError, ValueError, BrokerUnavailable: see `publish`.
        """
        await self._tell(user_channel(namespace, user_id), event, data)

    async def broadcast(self, event: str, data: Any = None, *, namespace: str = "/") -> None:
        """Send an event to every connected client. Not kept.

        Raises:
            TypeError, ValueError, BrokerUnavailable: see `publish`.
        """
        await self._tell(everyone_channel(namespace), event, data)

    async def _tell(self, channel: str, event: str, data: Any) -> None:
        check_public(event)
        draft = Draft(event=event, data=payload.dump(data), lane=Lane.NONE)
        broker: Broker = self._broker
        await broker.publish(channel, draft, NOTHING_KEPT)


class SyncPublisher:
    """`Publisher` for code without an event loop, which runs in a thread of its own meanwhile. Its
    methods block and may be called from any thread. Arguments as for `Publisher`."""

    def __init__(self, backend: str | None = None, *, retention: Retention | None = None) -> None:
        self._publisher = Publisher(backend, retention=retention)
        self._stack: ExitStack | None = None
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(portal.wrap_async_context_manager(self._publisher))
            self._portal = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stack is not None:
            stack, self._stack, self._portal = self._stack, None, None
            stack.close()

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            raise ConfigurationError("publish inside the block: with SyncPublisher(…) as publisher")
        return self._portal

    def publish(
        self,
        room: str,
        event: str,
        data: Any = None,
        *,
        id: str = "",
        keep: bool = True,
        volatile: bool = False,
        key: str = "",
        namespace: str = "/",
    ) -> Published:
        """See `Publisher.publish`."""
        return self._running().call(
            lambda: self._publisher.publish(
                room,
                event,
                data,
                id=id,
                keep=keep,
                volatile=volatile,
                key=key,
                namespace=namespace,
            )
        )

    def send_to_user(
        self, user_id: str, event: str, data: Any = None, *, namespace: str = "/"
    ) -> None:
        """See `Publisher.send_to_user`."""
        self._running().call(
            lambda: self._publisher.send_to_user(user_id, event, data, namespace=namespace)
        )

    def broadcast(self, event: str, data: Any = None, *, namespace: str = "/") -> None:
        """See `Publisher.broadcast`."""
        self._running().call(lambda: self._publisher.broadcast(event, data, namespace=namespace))
