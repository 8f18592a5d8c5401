"""A running server: the hub, the stores and the few tasks behind all connections, as one block."""

from __future__ import annotations

import logging
import sys
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup

from ..auth.base import AuthBackend
from ..brokers.base import Broker, HistoryBroker
from ..errors import BrokerUnavailable, CloseCode, ConfigurationError, LimitExceeded
from ..events import Position, Publication
from ..inbox.base import InboxStore
from ..limits.base import LimitStore
from ..presence.base import PresenceStore
from ..sessions.base import SessionStore
from ..tickets.base import TicketStore
from .hub import Channel, Hub
from .limiter import SharedBucket, client_ip, networks
from .options import Options
from .session import Connection, Session
from .timers import Timer, Timers
from .turns import Locks, OncePerTurn, is_cancelled, soon
from .writing import Writes

if TYPE_CHECKING:
    from .engine import Engine

logger = logging.getLogger("starlette_realtime")

RELEASE = 0.05
"""Seconds in which all channels that are let go of are gathered for one request to the broker."""


class Stores(msgspec.Struct, frozen=True):
    """The backends a server runs on."""

    broker: Broker
    presence: PresenceStore
    sessions: SessionStore
    limits: LimitStore
    inbox: InboxStore
    tickets: TicketStore


Look = Callable[[], Awaitable[tuple[list[msgspec.Raw], int]]]
"""Reads the first members of a channel, and how many there are."""


class Runtime:
    """What is shared by all namespaces and connections of a running server."""

    tasks: TaskGroup

    def __init__(self, options: Options, stores: Stores) -> None:
        self.options = options
        self.broker = stores.broker
        self.history = stores.broker if isinstance(stores.broker, HistoryBroker) else None
        self.presence = stores.presence
        self.sessions = stores.sessions
        self.limits = stores.limits
        self.inbox = stores.inbox
        self.secret = b""
        self.engines: dict[str, Engine] = {}
        self.timers = Timers()
        self.hub = Hub(soon(), self._heal, self._control, self.timers.call_later)
        self.handlers = anyio.Semaphore(options.max_handlers or 1_000_000, fast_acquire=True)
        self.connections: set[Connection] = set()
        self.stopping = False
        self.reads: OncePerTurn[Any, Any] = OncePerTurn()
        self._buckets: dict[str, SharedBucket] = {}
        self._proxies = networks(options.trusted_proxies)
        # Channels whose subscription is being changed, and who waits for that.
        self._changing = Locks()
        self._released: dict[Channel, None] = {}
        self._releasing = False
        self._empty = anyio.Event()
        self._to_start: deque[tuple[Any, ...]] = deque()
        self._start_wake = anyio.Event()
        self.gaps_healed = 0
        self.gaps_lost = 0

    # Limits

    async def admit(self, connection: Connection) -> None:
        """Count a new connection.

        Raises:
            LimitExceeded: there are too many, in all or from its address.
        """
        options = self.options
        if options.max_connections and len(self.connections) > options.max_connections:
            # One that was turned away takes nobody's place until it has gone.
            self.connections.discard(connection)
            raise LimitExceeded("Limit exceeded: the server is full")
        connection.ip = client_ip(connection.scope, self._proxies)
        if connection.ip is not None and options.max_connections_per_ip:
            await self.hold(
                connection,
                f"ip:{connection.ip}",
                options.max_connections_per_ip,
                "Limit exceeded: too many connections from this address",
            )

    async def hold(self, connection: Connection, key: str, limit: int, refusal: str) -> None:
        """Let `connection` be one of at most `limit` holders of `key` while it lasts.

        Raises:
            LimitExceeded: there are as many already.
        """
        ttl = self.options.presence_ttl
        if not await self.limits.acquire(key, connection.id, limit=limit, ttl=ttl):
            raise LimitExceeded(refusal)
        if key not in connection.holds:
            connection.holds += (key,)

    async def let_go(self, connection: Connection, key: str) -> None:
        """Let `connection` no longer be a holder of `key`."""
        if key in connection.holds:
            connection.holds = tuple(held for held in connection.holds if held != key)
            await self.limits.release(key, connection.id)

    def bucket(self, key: str, rate: float, burst: float) -> SharedBucket:
        """Return the bucket of `key`, shared by all here who ask; give it back when done."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = SharedBucket(self.limits, key, rate, burst)
        bucket.users += 1
        return bucket

    def release_bucket(self, bucket: SharedBucket) -> None:
        bucket.users -= 1
        if not bucket.users:
            self._buckets.pop(bucket.key, None)

    # Channels

    def _control(self, channel: Channel, publication: Publication) -> None:
        self.engines[channel.ns].lobby.control(channel, publication)

    async def subscribe(self, *channels: Channel) -> None:
        """Make sure the broker sends what is published to `channels`."""
        while missing := [channel for channel in channels if not channel.subscribed]:
            mine = [channel for channel in missing if channel.name not in self._changing]
            if not mine:
                await self._changing.wait(missing[0].name)
                continue
            names = [channel.name for channel in mine]
            self._changing.take(*names)
            try:
                await self.broker.subscribe(names)
                for channel in mine:
                    channel.subscribed = True
            finally:
                self._changing.give(*names)

    def release(self, channel: Channel) -> None:
        """Let go of `channel` if nobody here is in it any more."""
        if channel.idle and self.hub.channels.get(channel.name) is channel:
            self._released[channel] = None
            if not self._releasing:
                self._releasing = True
                self.later(RELEASE, self._unsubscribe_released)

    async def _unsubscribe_released(self) -> None:
        try:
            while self._released:
                released, self._released = list(self._released), {}
                for channel in released:
                    await self._changing.wait(channel.name)
                gone = [
                    channel
                    for channel in released
                    if channel.idle
                    and channel.name not in self._changing
                    and self.hub.channels.get(channel.name) is channel
                ]
                await self._unsubscribe(gone)
        finally:
            self._releasing = False

    async def _unsubscribe(self, channels: list[Channel]) -> None:
        if not channels:
            return
        names = [channel.name for channel in channels]
        self._changing.take(*names)
        for channel in channels:
            # From here on a join finds the channel unsubscribed, and waits for its turn.
            channel.subscribed = False
            channel.epoch = None
        try:
            await self.broker.unsubscribe(names)
        except BrokerUnavailable:
            logger.warning("%d channels could not be unsubscribed from", len(channels))
        finally:
            self._changing.give(*names)
        for channel in channels:
            if channel.idle and not channel.subscribed:
                self.hub.forget(channel)

    # Holes

    def _heal(self, channel: Channel) -> None:
        self.spawn(self._heal_until_whole, channel)

    async def _heal_until_whole(self, channel: Channel) -> None:
        delay = 0.05
        while channel.healing is not None and not channel.idle:
            position = channel.position
            if self.history is None or position is None:
                break
            try:
                if await self._close_hole(self.history, channel, position):
                    return
            except BrokerUnavailable:
                delay = min(delay * 2, 5.0)
            except Exception:
                logger.exception("closing a hole in %s failed", channel.name)
                delay = min(delay * 2, 5.0)
            await anyio.sleep(delay)
        channel.healing = None

    async def _close_hole(
        self, history: HistoryBroker, channel: Channel, position: Position
    ) -> bool:
        """Deliver what is missing after `position`, or tell the members that it is lost; return
        False when it must be tried again."""
        recovery = await history.recover(channel.name, position, self.options.recover_limit)
        if channel.position != position:
            # Everyone had left meanwhile, and with the next one it began anew.
            return False
        if not recovery.recovered:
            rooms = self.engines[channel.ns].rooms
            if not await rooms.tell_reset(channel, recovery.position):
                return False
            self.gaps_lost += 1
        elif not self.hub.healed(channel, recovery.publications, recovery.position):
            return False
        else:
            self.gaps_healed += 1
        return True

    # Reading for many at once

    async def recover(self, channel: str, since: Position, members: Look) -> Read:
        """Return what followed `since`, or the fact that it can't be told, and who is there. One
        read serves all who ask in the same turn of the event loop."""

        async def read_for(all_: list[Position]) -> Read:
            return await self._look(await self._recover(channel, all_), members)

        read: Read = await self.reads.ask((channel, since.epoch), since, read_for)
        return read

    async def _look(self, read: Read, members: Look) -> Read:
        # After the history: who comes or goes in between is then an event that follows.
        read.members, read.count = await members()
        return read

    async def _recover(self, channel: str, positions: list[Position]) -> Read:
        assert self.history is not None
        lost: set[Position] = set()
        end = Position("", 0)
        for since in sorted(positions, key=attrgetter("offset")):
            if since in lost:
                continue
            recovery = await self.history.recover(channel, since, self.options.recover_limit)
            if recovery.recovered:
                return Read(recovery.publications, recovery.position, since.offset)
            end = recovery.position
            lost.add(since)
        return Read([], end, None)

    async def recent(self, channel: str, limit: int, members: Look) -> Read:
        """Return the newest `limit` of the history lane, and who is there; shared like
        `recover`."""

        async def read_for(_: list[None]) -> Read:
            return await self._look(await self._recent(channel, limit), members)

        read: Read = await self.reads.ask((channel, limit), None, read_for)
        return read

    async def _recent(self, channel: str, limit: int) -> Read:
        assert self.history is not None
        page = await self.history.page(channel, limit=limit)
        newest = fitting(page.publications[::-1], self.options.recent_bytes)[::-1]
        return Read(newest, page.position, None)

    # Tasks

    def spawn(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run an async function beside what is going on, until it ends or the server does. What it
        raises is logged. May be called where no task runs: from a callback of the event loop."""
        self._to_start.append((call, *arguments))
        self._start_wake.set()

    async def _start(self) -> None:
        while True:
            await self._start_wake.wait()
            self._start_wake = anyio.Event()
            while self._to_start:
                # No variable of this task, which never ends, may hold on to what is started.
                self.tasks.start_soon(self._guarded, *self._to_start.popleft())

    def later(self, delay: float, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Timer:
        """`spawn` after `delay` seconds, unless the timer is cancelled before."""
        return self.timers.call_later(delay, self.spawn, call, *arguments)

    async def _guarded(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        try:
            await call(*arguments)
        except BrokerUnavailable:
            logger.warning("%r could not be done: the backend is away", call)
        except (Exception, anyio.get_cancelled_exc_class()) as error:
            # Who awaits what another one has cancelled must not end all that is spawned.
            if is_cancelled(error):
                raise
            logger.exception("%r raised", call)

    async def _beat(self) -> None:
        """Ping the silent, cut the dead: one task for all connections."""
        interval = min(1.0, self.options.ping_interval / 4, self.options.ping_timeout / 4)
        while True:
            await anyio.sleep(interval)
            # In a call of its own, whose variables hold on to nobody until the next time.
            await self._look_after(list(self.connections), time.monotonic())

    async def _look_after(self, connections: list[Connection], now: float) -> None:
        options = self.options
        for number, connection in enumerate(connections):
            if now - connection.heard > options.ping_interval:
                self._check(connection, now)
            if options.idle_timeout and now - connection.active > options.idle_timeout:
                connection.close(CloseCode.IDLE, "idle")
            if number % 2000 == 1999:
                await anyio.lowlevel.checkpoint()

    def _check(self, connection: Connection, now: float) -> None:
        if connection.busy:
            connection.heard = now
        elif connection.pinged < connection.heard:
            connection.pinged = now
            ping = connection.outbox.wire.ping()
            if ping is not None and connection.sessions:
                connection.outbox.push(ping)
        elif now - connection.pinged > self.options.ping_timeout:
            connection.close(CloseCode.PING_TIMEOUT, "no answer to ping")

    async def _sweep(self) -> None:
        """Remove leases whose processes no longer renew them."""
        while True:
            await anyio.sleep(min(1.0, self.options.presence_grace / 4 or 1.0))
            try:
                await self.presence.expire()
            except BrokerUnavailable:
                logger.warning("presence could not be swept: the backend is away")
            except Exception:
                logger.exception("sweeping presence failed")

    async def _renew(self) -> None:
        """Renew what this process holds; hold again what was lost."""
        ttl = self.options.presence_ttl
        kinds = {
            "presence": self._renew_presence,
            "sessions": self._renew_sessions,
            "counted connections": self._renew_holds,
        }
        delay = ttl / 3
        while True:
            await anyio.sleep(delay)
            done: list[str] = []
            # One part of a backend that is away keeps nothing else from being renewed in time.
            with anyio.move_on_after(ttl / 3):
                async with anyio.create_task_group() as renewals:
                    for what, renew in kinds.items():
                        renewals.start_soon(self._renew_one, what, renew, done)
            # After an outage every moment counts: what has ended is swept.
            delay = ttl / 3 if len(done) == len(kinds) else min(1.0, ttl / 3)

    async def _renew_one(
        self, what: str, renew: Callable[[], Awaitable[None]], done: list[str]
    ) -> None:
        try:
            await renew()
            done.append(what)
        except BrokerUnavailable:
            logger.warning("%s could not be renewed: the backend is away", what)
        except Exception:
            logger.exception("renewing %s failed", what)

    async def _renew_presence(self) -> None:
        for channel, session_id in await self.presence.renew(
            self._leases(), self.options.presence_ttl
        ):
            session = self.hub.sessions.get(session_id)
            if isinstance(session, Session) and not session.closed:
                await session.engine.rooms.reenter(channel, session)

    async def _renew_sessions(self) -> None:
        options = self.options
        if not options.resume_window:
            return
        self.secret = await self.sessions.secret(self.secret)
        ttl = options.resume_window + options.presence_ttl
        known = [
            (session.id, session.generation)
            for session in self.hub.sessions.values()
            if isinstance(session, Session) and not session.moved
        ]
        for id, generation in await self.sessions.renew(known, ttl):
            session = self.hub.sessions.get(id)
            if not isinstance(session, Session) or session.moved:
                continue
            if generation:
                await session.engine.lobby.resumed_elsewhere(session, generation)
            else:
                await session.engine.lobby.save(session)

    async def _renew_holds(self) -> None:
        ttl = self.options.presence_ttl
        holders = {(key, each.id): each for each in self.connections for key in each.holds}
        for hold in await self.limits.renew(holders, ttl):
            if self._holds(holders[hold], hold[0]):
                # Lost with the backend. Whoever came in meanwhile, it keeps the place it had.
                await self.limits.acquire(*hold, limit=sys.maxsize, ttl=ttl)
                if not self._holds(holders[hold], hold[0]):
                    # Its release came first.
                    await self.limits.release(*hold)

    def _holds(self, connection: Connection, key: str) -> bool:
        return connection in self.connections and key in connection.holds

    def _leases(self) -> Iterable[tuple[str, str]]:
        return [
            (channel, session.id)
            for session in list(self.hub.sessions.values())
            if isinstance(session, Session)
            for channel in session.engine.rooms.leases(session)
        ]

    def connected(self, connection: Connection) -> None:
        connection.heard = time.monotonic()
        self.connections.add(connection)

    async def disconnected(self, connection: Connection) -> None:
        """Forget a connection that is over. While a handler is still at work for its client, the
        client's address is not free of it: call this again then. Not to be cancelled."""
        self.connections.discard(connection)
        holds, connection.holds = connection.holds, ()
        for key in holds:
            if connection.busy and key.startswith("ip:"):
                connection.holds += (key,)
                continue
            try:
                await self.limits.release(key, connection.id)
            except BrokerUnavailable:
                logger.warning("a counted connection must lapse: the backend is away")
        if not self.connections:
            self._empty.set()

    def stop(self) -> None:
        """Begin to stop: no client comes back here, so nobody waits for one any longer."""
        if not self.stopping:
            self.stopping = True
            for engine in self.engines.values():
                engine.lobby.stop()

    async def drain(self) -> None:
        """Close every connection with 1012 and wait until they are gone, within bounds."""
        self.stop()
        self.hub.flush()
        for connection in list(self.connections):
            connection.close(CloseCode.RESTART, "server restart")
        with anyio.move_on_after(self.options.shutdown_timeout):
            while self.connections:
                self._empty = anyio.Event()
                await self._empty.wait()


def fitting(publications: list[Publication], size: int) -> list[Publication]:
    """Return as many of `publications`, from the first one on, as have `size` bytes of payload
    together; the first one in any case."""
    for number, publication in enumerate(publications):
        size -= len(publication.data)
        if size < 0:
            return publications[: max(number, 1)]
    return publications


class Read:
    """A piece of history read once for many, with what each wire makes of it.

    `after` is the offset after which `publications` is complete, None when it is just the newest.
    `members` and `count` are those of the channel, a moment later.
    """

    __slots__ = ("_encoded", "after", "count", "members", "position", "publications")

    def __init__(
        self, publications: list[Publication], position: Position, after: int | None
    ) -> None:
        self.publications = publications
        self.position = position
        self.after = after
        self.members: list[msgspec.Raw] = []
        self.count = 0
        self._encoded: dict[object, Any] = {}

    def since(self, position: Position) -> list[Publication] | None:
        """Return what followed `position`; None when it cannot be told without a hole."""
        if self.after is None or not self.after <= position.offset <= self.position.offset:
            return None
        if position.nonce:
            here = self.position if position.offset == self.position.offset else None
            known = [p.nonce for p in self.publications if p.offset == position.offset]
            if here is not None:
                known.append(here.nonce)
            if position.offset != self.after and position.nonce not in known:
                return None
        start = bisect_right(self.publications, position.offset, key=attrgetter("offset"))
        return self.publications[start:]

    def once(self, key: object, make: Callable[[list[Publication]], Any]) -> Any:
        """Return `make(publications)`, made once under `key`."""
        if key not in self._encoded:
            self._encoded[key] = make(self.publications)
        return self._encoded[key]


@asynccontextmanager
async def running(
    options: Options, stores: Stores, auths: Iterable[AuthBackend] = ()
) -> AsyncIterator[Runtime]:
    """Run a server: inside the block it lives; leaving it closes connections and ends every task.
    What is in `auths` lives as long as the stores do.

    Raises:
        ConfigurationError: a backend is not what its URL says.
    """
    async with AsyncExitStack() as stack:
        runtime = Runtime(options, stores)
        writes = stack.enter_context(closing(Writes(io_uring=options.io_uring)))
        runtime.hub.write_all = writes.write_all
        try:
            await stack.enter_async_context(stores.broker.run(runtime.hub))
            await stack.enter_async_context(stores.presence.run())
            await stack.enter_async_context(stores.sessions.run())
            await stack.enter_async_context(stores.limits.run())
            await stack.enter_async_context(stores.inbox.run())
            await stack.enter_async_context(stores.tickets.run())
            for auth in auths:
                await stack.enter_async_context(auth.run(stores))
            runtime.secret = await stores.sessions.secret()
        except BrokerUnavailable as error:
            raise ConfigurationError(f"the backend cannot be reached: {error}") from error
        tasks = runtime.tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(runtime._start)
        tasks.start_soon(runtime.timers.run)
        tasks.start_soon(runtime._beat)
        tasks.start_soon(runtime._sweep)
        tasks.start_soon(runtime._renew)
        try:
            yield runtime
        finally:
            with anyio.CancelScope(shield=True):
                await runtime.drain()
            tasks.cancel_scope.cancel()
