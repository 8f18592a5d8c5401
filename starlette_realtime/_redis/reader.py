"""The listening side: one task per server, which never ends while it is needed.

Each server that has subscribed channels has one `Link`: a connection in Pub/Sub mode, read by one
task without any time limit, so that no read is ever broken off and gone on with. When it dies it is
made anew, asks again for what it had, in batches, and then says which channels may have missed
something. A probe goes the way that announcements go, every few seconds; a link that does not hear
its probes is deaf, whatever its socket says, and is made anew too.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final

import anyio
import msgspec
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from ..errors import BrokerUnavailable, ConfigurationError
from .pipe import close, connect, pack, redirection, until_first
from .server import RedisServer, bad_certificate, describe, pause
from .url import Address, host_and_port

logger = logging.getLogger("starlette_realtime")

BATCH: Final = 512
"""Channels asked for and not yet confirmed, on one connection."""
STABLE: Final = 5.0
"""Seconds after which a connection that breaks counts as having been good."""


class Health(msgspec.Struct, frozen=True):
    """How the listening side is. Times are in seconds."""

    connected: bool
    """Every link stands, and has heard its last probe."""
    links: int
    channels: int
    restarts: int
    """How often a link was made anew, since the start."""
    silence: float
    """How long ago anything was heard, on the link that has been silent longest; probes come every
    `RedisURL.probe` seconds."""
    latency: float | None
    """How long the slowest last probe took there and back; None before the first."""
    error: str
    """Why a link that is down is down; empty when none is."""


class _State(Enum):
    NONE = 0
    ASKED = 1
    STANDS = 2
    ENDING = 3


class _Entry:
    """A Redis channel that is, or is to be, subscribed."""

    __slots__ = ("link", "missed", "name", "partition", "state", "waiting", "wanted")

    def __init__(self, name: bytes, partition: int) -> None:
        self.name = name
        self.partition = partition
        self.wanted = True
        self.state = _State.NONE
        # Whether it stood before, so that something may have been missed.
        self.missed = False
        self.waiting: list[asyncio.Future[None]] = []
        self.link: _Link | None = None

    def lose(self) -> None:
        """Stand no more."""
        self.missed = self.missed or self.state is _State.STANDS
        self.state = _State.NONE

    def settle(self) -> None:
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.waiting.clear()

    @property
    def settled(self) -> bool:
        return self.state is (_State.STANDS if self.wanted else _State.NONE)


class Reader:
    """Subscriptions to Redis channels.

    Args:
        server: opened by whoever runs the reader.
        heard: called with a Redis channel and what was announced there. It must not block.
        missed: called with Redis channels that stand again after they were lost.
    """

    def __init__(
        self,
        server: RedisServer,
        heard: Callable[[bytes, bytes], None],
        missed: Callable[[list[bytes]], None],
    ) -> None:
        self.server = server
        self.heard = heard
        self.missed = missed
        self.restarts = 0
        self.entries: dict[bytes, _Entry] = {}
        self._links: dict[Address, _Link] = {}
        self._running = False

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Listen inside the block.

        Raises:
            ConfigurationError: the user may not subscribe or publish, or nothing comes through.
        """
        self.server.moved.append(self._moved)
        self._running = True
        try:
            # One link stands from the start, so that the way is known to be good.
            first = self._link(self.server.where(0))
            await first.proven(self.server.url.startup)
            yield
        finally:
            self._running = False
            self.server.moved.remove(self._moved)
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*(link.end() for link in self._links.values()))
            self._links.clear()
            for entry in self.entries.values():
                entry.settle()
            self.entries.clear()

    async def subscribe(self, channels: Iterable[tuple[bytes, int]]) -> None:
        """Subscribe to Redis channels, each with its partition; return when all stand.

        Raises:
            BrokerUnavailable: they do not after the URL's patience. They go on being asked for:
                who does not want them any more says so to `unwant`.
        """
        asked = []
        for name, partition in channels:
            entry = self.entries.get(name)
            if entry is None:
                entry = self.entries[name] = _Entry(name, partition)
            entry.wanted = True
            if not entry.settled:
                asked.append((entry, self._wait(entry)))
                self._place(entry)
        if not asked:
            return
        try:
            async with asyncio.timeout(self.server.url.patience):
                await asyncio.gather(*(waiter for _, waiter in asked))
        except TimeoutError:
            why = next((link.error for link in self._links.values() if link.error), "no answer")
            raise BrokerUnavailable(f"cannot subscribe: {why}") from None
        if not all(entry.state is _State.STANDS for entry, _ in asked):
            raise BrokerUnavailable("cannot subscribe: it was ended meanwhile")

    def unwant(self, channels: Iterable[bytes]) -> list[_Entry]:
        """End subscriptions without waiting; return those that are not over yet."""
        ending = []
        for name in channels:
            entry = self.entries.get(name)
            if entry is not None and entry.wanted:
                entry.wanted = False
                self._place(entry)
                if not entry.settled:
                    ending.append(entry)
        return ending

    async def unsubscribe(self, channels: Iterable[bytes]) -> None:
        """End subscriptions; return when nothing comes any more, or there is no connection it could
        come on."""
        waiting = [self._wait(entry) for entry in self.unwant(channels)]
        if waiting:
            try:
                async with asyncio.timeout(self.server.url.patience):
                    await asyncio.gather(*waiting)
            except TimeoutError:
                # It ends with the connection at the latest.
                pass

    def _wait(self, entry: _Entry) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiting.append(waiter)
        return waiter

    def _place(self, entry: _Entry) -> None:
        """Give an entry to the link of its server, which does what is to be done."""
        if entry.link is None:
            if not entry.wanted:
                self.entries.pop(entry.name, None)
                entry.settle()
                return
            entry.link = self._link(self.server.where(entry.partition))
            entry.link.entries[entry.name] = entry
        if not entry.settled:
            entry.link.attend(entry)

    def _link(self, address: Address) -> _Link:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = _Link(self, address)
        return link

    def lost(self, entry: _Entry) -> None:
        """The server has taken a subscription away."""
        if entry.link is not None:
            entry.link.let_go(entry)
            entry.link = None
        entry.lose()
        if self._running:
            self._place(entry)

    def dropped(self, link: _Link) -> None:
        """A link's connection has gone, and with it all its subscriptions."""
        for entry in list(link.entries.values()):
            self.lost(entry)

    def _moved(self) -> None:
        """Partitions are elsewhere: go after them."""
        for entry in list(self.entries.values()):
            if entry.link is not None and entry.link.address != self.server.where(entry.partition):
                self.lost(entry)
        home = self.server.where(0)
        self._link(home)
        for address, link in list(self._links.items()):
            if not link.entries and address != home:
                del self._links[address]
                self.server.spawn(link.end(), f"redis reader {host_and_port(address)} ends")

    def health(self) -> Health:
        links = list(self._links.values())
        latencies = [link.latency for link in links if link.latency is not None]
        return Health(
            connected=bool(links) and all(link.hears for link in links),
            links=len(links),
            channels=sum(1 for e in self.entries.values() if e.state is _State.STANDS),
            restarts=self.restarts,
            silence=max((time.monotonic() - link.last_heard for link in links), default=0.0),
            latency=max(latencies, default=None),
            error=next((link.error for link in links if link.error), ""),
        )


class _Request:
    """A command under way on a link: what it asks for, and how many confirmations are to come."""

    __slots__ = ("entries", "left")

    def __init__(self, entries: list[_Entry]) -> None:
        self.entries = entries
        self.left = len(entries)


class _Link:
    """The listening connection to one server."""

    def __init__(self, reader: Reader, address: Address) -> None:
        self.address = address
        self.entries: dict[bytes, _Entry] = {}
        self.error = ""
        self.last_heard = time.monotonic()
        self.latency: float | None = None
        self._reader = reader
        self._server = reader.server
        self._attention: dict[bytes, _Entry] = {}
        self._wake = asyncio.Event()
        self._requests: deque[_Request] = deque()
        self._quiet = asyncio.Event()
        self._proven = asyncio.Event()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._probe_name = secrets.token_hex(8)
        self._probe: _Entry | None = None
        self._probe_heard = asyncio.Event()
        self._task = self._server.spawn(self._keep(), f"redis reader {host_and_port(address)}")

    @property
    def hears(self) -> bool:
        return self._proven.is_set()

    async def proven(self, seconds: float) -> None:
        """Wait until a probe has come back.

        Raises:
            ConfigurationError: none did, or what a probe takes is forbidden.
        """
        end = time.monotonic() + seconds
        while not self._proven.is_set():
            failed = asyncio.ensure_future(self._failed.wait())
            proven = asyncio.ensure_future(self._proven.wait())
            try:
                await asyncio.wait(
                    [failed, proven], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                failed.cancel()
                proven.cancel()
            self._failed.clear()
            url = self._server.url
            if isinstance(self._failure, NoPermissionError | AuthenticationError):
                raise ConfigurationError(f"{url}: the user may not: {self.error}")
            if self._failure is not None:
                hopeless = bad_certificate(host_and_port(self.address), self._failure)
                if hopeless is not None:
                    raise hopeless
            if not self._proven.is_set() and time.monotonic() > end:
                raise ConfigurationError(
                    f"{url}: announcements do not come through: {self.error or 'no answer'}"
                )

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def attend(self, entry: _Entry) -> None:
        """Have something to do for an entry."""
        self._attention[entry.name] = entry
        self._wake.set()

    def let_go(self, entry: _Entry) -> None:
        """Have no more to do with an entry."""
        self.entries.pop(entry.name, None)
        self._attention.pop(entry.name, None)

    async def _keep(self) -> None:
        """Be connected, for ever."""
        failures = 0
        where = host_and_port(self.address)
        while True:
            begun = time.monotonic()
            try:
                if failures:
                    # Perhaps another server has taken its place.
                    await self._server.relocated()
                    self._reader.dropped(self)
                connection = await connect(self._server.url, self.address)
                try:
                    await self._listen(connection)
                finally:
                    await close(connection)
            except (RedisError, OSError, BrokerUnavailable) as error:
                self._failure, self.error = error, describe(error)
                # Before it has ever heard anything, starting tells of it.
                level = logging.WARNING if self._proven.is_set() else logging.DEBUG
                logger.log(level, "the listener to %s broke off: %s", where, self.error)
            except Exception as error:
                self._failure, self.error = error, describe(error)
                logger.exception("the listener to %s broke off", where)
            self._proven.clear()
            self._failed.set()
            self._requests.clear()
            self._attention.clear()
            for entry in self.entries.values():
                entry.lose()
            self._reader.restarts += 1
            failures = 1 if time.monotonic() - begun > STABLE else failures + 1
            await asyncio.sleep(pause(failures - 1))

    async def _listen(self, connection: AbstractConnection) -> None:
        self._probe = self._choose_probe()
        self._attention[self._probe.name] = self._probe
        self._quiet.set()
        self._wake.set()
        await until_first(self._read(connection), self._ask(connection), self._probe_it())

    def _choose_probe(self) -> _Entry:
        server = self._server
        for partition, address in enumerate(server.all_where):
            if address == self.address:
                name = f"{server.keys.head(partition)}probe:{self._probe_name}"
                entry = _Entry(name.encode(), partition)
                entry.link = self
                return entry
        raise BrokerUnavailable(f"{host_and_port(self.address)} is in charge of nothing")

    # Asking

    async def _ask(self, connection: AbstractConnection) -> None:
        """Bring what is subscribed in line with what is wanted, a batch at a time."""
        timeout = self._server.url.timeout
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._attention:
                batch = [self._attention.pop(name) for name in list(self._attention)[:BATCH]]
                asked = self._send_batch(batch)
                if not asked:
                    continue
                self._quiet.clear()
                if not connection.is_connected:
                    # redis-py would connect anew, and nobody would know what was missed.
                    raise BrokerUnavailable("the connection has closed")
                await connection.send_packed_command(asked, check_health=False)
                try:
                    async with asyncio.timeout(timeout):
                        await self._quiet.wait()
                except TimeoutError:
                    raise BrokerUnavailable("subscriptions were not confirmed") from None
                back = [entry for entry in batch if entry.missed and entry.state is _State.STANDS]
                for entry in back:
                    entry.missed = False
                if back:
                    self._reader.missed([entry.name for entry in back])

    def _send_batch(self, batch: list[_Entry]) -> list[bytes]:
        begin = [e for e in batch if e.wanted and e.state is _State.NONE]
        finish = [e for e in batch if not e.wanted and e.state is _State.STANDS]
        commands = []
        sharded = self._server.keys.sharded
        for entries, state, verb in (
            (begin, _State.ASKED, "SUBSCRIBE"),
            (finish, _State.ENDING, "UNSUBSCRIBE"),
        ):
            # In a Cluster a command's channels must be of one slot.
            groups = [[entry] for entry in entries] if sharded else [entries] if entries else []
            for group in groups:
                for entry in group:
                    entry.state = state
                self._requests.append(_Request(group))
                names = [entry.name for entry in group]
                commands.append(pack([f"S{verb}" if sharded else verb, *names]))
        for entry in batch:
            if entry.settled:
                entry.settle()
            self._forget(entry)
        return commands

    def _forget(self, entry: _Entry) -> None:
        if not entry.wanted and entry.state is _State.NONE and entry is not self._probe:
            self.entries.pop(entry.name, None)
            entry.link = None
            if self._reader.entries.get(entry.name) is entry:
                del self._reader.entries[entry.name]
            entry.settle()

    # Reading

    async def _read(self, connection: AbstractConnection) -> None:
        read = connection.read_response
        heard = self._reader.heard
        announced = b"smessage" if self._server.keys.sharded else b"message"
        while True:
            try:
                message = await read(disable_decoding=True)
            except NoPermissionError:
                raise
            except ResponseError as error:
                self._refused(error)
                continue
            self.last_heard = time.monotonic()
            kind = message[0]
            if kind == announced:
                name = message[1]
                if self._probe is not None and name == self._probe.name:
                    self._probe_heard.set()
                    continue
                try:
                    heard(name, message[2])
                except Exception:
                    logger.exception("an announcement could not be handled")
            else:
                self._confirmed(kind, message[1])

    def _confirmed(self, kind: bytes, name: bytes) -> None:
        entry = self._probe if self._probe is not None and name == self._probe.name else None
        entry = entry or self.entries.get(name)
        request = self._requests[0] if self._requests else None
        if kind in (b"subscribe", b"ssubscribe"):
            if entry is not None:
                entry.state = _State.STANDS
        elif kind in (b"unsubscribe", b"sunsubscribe"):
            if entry is not None and entry.state is not _State.ENDING:
                # Nobody asked: the slot has gone elsewhere.
                if entry is self._probe:
                    raise BrokerUnavailable("the server gave its slot away")
                self._server.stale()
                self._reader.lost(entry)
                return
            if entry is not None:
                entry.state = _State.NONE
        else:
            return
        if entry is not None:
            if entry.settled:
                entry.settle()
                self._forget(entry)
            else:
                self.attend(entry)
        if request is not None:
            request.left -= 1
            if request.left <= 0:
                self._requests.popleft()
                if not self._requests:
                    self._quiet.set()

    def _refused(self, error: ResponseError) -> None:
        """A command to subscribe was refused, as the answer to the oldest one."""
        if not self._requests:
            raise BrokerUnavailable(f"an answer that nobody asked for: {error}")
        request = self._requests.popleft()
        if not self._requests:
            self._quiet.set()
        self._server.stale()
        if self._probe in request.entries or redirection(error) is None:
            raise error
        for entry in request.entries:
            entry.state = _State.NONE
            # Not at once, lest it goes round in circles until the new place is known.
            asyncio.get_running_loop().call_later(0.1, self._try_again, entry)

    def _try_again(self, entry: _Entry) -> None:
        if entry.link is self:
            self._reader.lost(entry)

    # Probing

    async def _probe_it(self) -> None:
        server = self._server
        verb = "SPUBLISH" if server.keys.sharded else "PUBLISH"
        probe = self._probe
        assert probe is not None
        standing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        probe.waiting.append(standing)
        await standing
        while True:
            self._probe_heard.clear()
            begun = time.monotonic()
            try:
                await server.call(probe.partition, verb, probe.name, b"")
            except BrokerUnavailable as error:
                # That way is shut, which says nothing of this one.
                self.error = describe(error)
                self._proven.clear()
                self._failed.set()
            else:
                try:
                    async with asyncio.timeout(2 * server.url.timeout):
                        await self._probe_heard.wait()
                except TimeoutError:
                    raise BrokerUnavailable("it is deaf: a probe did not come back") from None
                self.latency = time.monotonic() - begun
                self.error = ""
                self._proven.set()
            await asyncio.sleep(server.url.probe)
