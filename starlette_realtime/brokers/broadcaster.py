"""The broker over the `broadcaster` package: pub/sub through PostgreSQL, Kafka, or what one has.

Everything goes through one channel of the server's, the topic, in one order. So a room needs no
subscription of its own on the server, whatever its name, and the way of a probe is the way of every
announcement. One task keeps the connection for as long as the broker runs: it connects, reads,
writes and probes, and does it all again when one of these fails.

A message is text: segments with a space between them. A segment is an announcement (base64 of
msgpack: channel, publication) or a marker, "?" with the name of a broker and a number, which that
broker waits for. What waits to be sent goes together into one message, as far as it fits.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import secrets
import time
from base64 import b64decode, b64encode
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import blake2b
from importlib import metadata
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import anyio
import msgspec

from ..errors import BrokerUnavailable, ConfigurationError, TooLarge
from ..events import Draft, Position, Publication, Published, Retention
from .base import Broker, Listener

logger = logging.getLogger("starlette_realtime")

POSTGRES: Final = frozenset(["postgres", "postgresql"])
SCHEMES: Final = POSTGRES | {"kafka"}

POSTGRES_LIMIT: Final = 7999
"""Bytes of the longest payload of a NOTIFY (PostgreSQL's documentation, NOTIFY)."""
KAFKA_LIMIT: Final = 1_000_000
"""Just below `max.message.bytes` of a topic, if nobody has changed it."""

MAX_WAITING: Final = 1024
"""Announcements not sent yet; beyond, publishing is refused."""
MAX_IDS: Final = 50_000
IDS_FOR: Final = 600.0
"""How many ids are remembered, and for how many seconds."""

_NOT_KEPT: Final = Published(Position("", 0))
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[bytes, Publication]).decode

T = TypeVar("T")


class Subscriber(Protocol):
    """What `Broadcast.subscribe` gives."""

    async def get(self) -> Any: ...


class Broadcast(Protocol):
    """What is used of a `broadcaster.Broadcast`."""

    async def connect(self) -> None: ...

    async def disconnect(self) -> None: ...

    async def publish(self, channel: str, message: Any) -> None: ...

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[Any]: ...


class BroadcasterHealth(msgspec.Struct, frozen=True):
    """How the connection is. Times are in seconds."""

    connected: bool
    """It stands, and has heard its last probe."""
    channels: int
    restarts: int
    """How often it was made anew, since the start."""
    silence: float
    """How long ago anything was heard."""
    latency: float | None
    """How long the last probe took there and back; None before the first."""
    error: str
    """Why it is down; empty when it is not."""


class _Lost(BrokerUnavailable):
    """The connection broke before an answer came; what was asked may be asked again."""


class _Waiting:
    """A segment that is to be sent. `sent` is resolved when it has been."""

    __slots__ = ("sent", "text")

    def __init__(self, text: str, sent: asyncio.Future[None] | None) -> None:
        self.text = text
        self.sent = sent

    def settle(self, error: Exception | None = None) -> None:
        if self.sent is not None and not self.sent.done():
            if error is None:
                self.sent.set_result(None)
            else:
                self.sent.set_exception(error)


class BroadcasterBroker(Broker):
    """Publish and subscribe over `broadcaster`, at most once: nothing is kept, so who is not
    connected misses it, and so do all when the server is away.

    Guarantees: announcements come in one order for all processes. A second one under an id that was
    heard of in the last ten minutes (of the newest 50 000) reaches nobody, whichever process it
    comes from. During an outage a call waits for `patience` seconds, then raises; an announcement
    whose fate is unknown is not repeated. After an outage the listener is told that all channels
    may have missed something. What does not fit into one message is refused with `TooLarge`.
    A draft with `expects` is always a conflict, for nothing is kept to compare it with.

    Every process gets all that is published, to whatever room: this is for a handful of them.
    A Kafka topic must have a single partition, or there is no order: one with more is refused.

    Args:
        source: a URL (`postgres://…`, `kafka://…`; `?topic=` for `topic`); or a `Broadcast` that
            nobody else connects; or a function that makes one, which is called again after an
            outage. Kafka's can't be connected twice: there it must be the function.
        topic: the server's channel or topic: apps that share a server have different ones. 1 to 63
            letters, digits and underscores.
        max_message: bytes of the longest message the server takes. Unless given, what PostgreSQL or
            Kafka do; for another source, what PostgreSQL does.
        timeout: a step that the server takes longer for is given up, and the connection with it.
        patience: how long a call waits during an outage.
        startup: how long starting goes on trying to reach the server.
        probe: time between two probes. All these in seconds.

    Raises:
        ConfigurationError: the URL is wrong, or a package is missing.
    """

    def __init__(
        self,
        source: str | Broadcast | Callable[[], Broadcast],
        *,
        topic: str | None = None,
        max_message: int | None = None,
        timeout: float = 5.0,
        patience: float = 3.0,
        startup: float = 10.0,
        probe: float = 2.0,
    ) -> None:
        limit = POSTGRES_LIMIT
        if isinstance(source, str):
            self.name, url, in_url = parse_url(source)
            topic = topic or in_url
            if not self.name.startswith("postgres"):
                limit = KAFKA_LIMIT
            self._make = _factory(url)
        elif callable(source):
            self.name = "broadcaster"
            self._make = source
        else:
            self.name = "broadcaster"
            broadcast = source
            self._make = lambda: broadcast
        self.topic = topic or "starlette_realtime"
        if not re.fullmatch(r"[A-Za-z0-9_]{1,63}", self.topic):
            raise ConfigurationError(
                f"{self.name}: the topic is 1 to 63 letters, digits and underscores"
            )
        self._limit = limit if max_message is None else max_message
        if self._limit < 1000:
            raise ConfigurationError(f"{self.name}: max_message is at least 1000 bytes")
        self._timeout = timeout
        self._patience = patience
        self._startup = startup
        self._probe = probe
        self._node = secrets.token_hex(8)
        self._listener: Listener | None = None
        self._subscribed: set[str] = set()
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        # Markers on their way: what begins with the hearing of each, and who waits for it.
        self._markers: dict[int, tuple[frozenset[str], asyncio.Future[None]]] = {}
        self._marked = 0
        self._ids: OrderedDict[bytes, float] = OrderedDict()
        self._up = False
        self._restarts = 0
        self._heard_at = 0.0
        self._latency: float | None = None
        self._error = "not running"
        self._strange = False

    # Lifetime

    @asynccontextmanager
    async def run(self, listener: Listener) -> AsyncIterator[None]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                f"{self.name} needs asyncio; on trio there is memory:// alone"
            ) from None
        if self._listener is not None:
            raise ConfigurationError(f"{self.name}: this broker is running already")
        self._listener = listener
        self._wake = asyncio.Event()
        self._restarts, self._error, self._heard_at = 0, "connecting", time.monotonic()
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        keeper = asyncio.create_task(self._keep(first), name=f"broker {self.name}")
        try:
            await first
            logger.warning(
                "%s delivers at most once and keeps nothing: no history, no recovery; what is "
                "published while a client or the server is away is lost to it",
                self.name,
            )
            yield
        finally:
            with anyio.CancelScope(shield=True):
                # Again and again: on its way through a database's client a cancellation may become
                # another error, or get lost.
                while not keeper.done():
                    keeper.cancel()
                    await asyncio.wait([keeper], timeout=0.5)
            self._listener = None
            self._error = "not running"
            self._subscribed.clear()
            self._ids.clear()
            while self._queue:
                self._queue.popleft().settle(BrokerUnavailable("the broker is not running"))

    def health(self) -> BroadcasterHealth:
        """Return how the connection is, as probes that go the way of announcements see it."""
        return BroadcasterHealth(
            self._up,
            len(self._subscribed),
            self._restarts,
            time.monotonic() - self._heard_at if self._listener is not None else 0.0,
            self._latency,
            self._error,
        )

    async def _keep(self, first: asyncio.Future[None]) -> None:
        """Keep a connection, for ever. `first` is resolved when the first one stands."""
        end = time.monotonic() + self._startup
        failures = 0
        while True:
            try:
                await self._live(first)
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from None
                down, self._up = self._up, False
                self._error = _describe(error)
                self._lose(_Lost(f"{self.name}: {self._error}"))
                if not first.done():
                    if isinstance(error, ConfigurationError):
                        first.set_exception(error)
                        return
                    hopeless = _hopeless(error)
                    if hopeless or time.monotonic() > end:
                        what = "refuses" if hopeless else "cannot be reached"
                        first.set_exception(
                            ConfigurationError(f"{self.name} {what}: {self._error}")
                        )
                        return
                elif down:
                    failures = 0
                    logger.warning("%s is lost and will be back: %s", self.name, self._error)
            await asyncio.sleep(_pause(failures))
            failures += 1

    async def _live(self, first: asyncio.Future[None]) -> None:
        """Connect, and live as long as that lasts.

        Raises:
            Exception: why it ended.
        """
        broadcast = self._make()
        try:
            await self._in_time(broadcast.connect(), "connecting")
            subscription = broadcast.subscribe(self.topic)
            subscriber = await self._in_time(subscription.__aenter__(), "subscribing")
            self._check_order(broadcast)
            tasks = [
                asyncio.create_task(work, name=f"{name} {self.name}")
                for name, work in (
                    ("reader", self._read(subscriber)),
                    ("writer", self._write(broadcast)),
                    ("prober", self._watch(first)),
                )
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                await self._quietly(subscription.__aexit__(None, None, None))
            failures = [error for error in ended if isinstance(error, Exception)]
            if failures:
                raise failures[0]
            raise _Lost(f"{next(iter(done)).get_name()} ended")
        finally:
            await self._let_go(broadcast)

    def _check_order(self, broadcast: Broadcast) -> None:
        """See that what is published comes in one order.

        Raises:
            ConfigurationError: a Kafka topic has several partitions, each with an order of its own.
        """
        consumer = getattr(getattr(broadcast, "_backend", None), "_consumer", None)
        partitions = getattr(consumer, "partitions_for_topic", lambda topic: None)(self.topic)
        if partitions is not None and len(partitions) > 1:
            raise ConfigurationError(
                f"{self.name}: the topic {self.topic} has {len(partitions)} partitions, between "
                "which there is no order: make one with a single partition, and name it by ?topic="
            )

    async def _let_go(self, broadcast: Broadcast) -> None:
        backend = getattr(broadcast, "_backend", None)
        with anyio.CancelScope(shield=True):
            # Kafka's producer would wait for what it cannot send any more.
            unsent = getattr(getattr(backend, "_producer", None), "_message_accumulator", None)
            if unsent is not None:
                unsent.fail_all(_Lost(f"{self.name}: the connection is given up"))
            if not await self._quietly(broadcast.disconnect()) and backend is not None:
                # `Broadcast.disconnect` stops half-way when its own listener has died, and Kafka's
                # backend when its producer would not end.
                await self._quietly(backend.disconnect())
                consumer = getattr(backend, "_consumer", None)
                if consumer is not None:
                    await self._quietly(consumer.stop())

    async def _quietly(self, ending: Coroutine[Any, Any, Any]) -> bool:
        """Await `ending` of something that is given up; return whether it went well."""
        try:
            await self._in_time(ending, "disconnecting")
        except Exception as error:
            logger.debug("%s: %s", self.name, _describe(error))
            return False
        return True

    async def _in_time(self, step: Coroutine[Any, Any, T], what: str) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await step
        except TimeoutError:
            raise _Lost(f"{what} took more than {self._timeout:g} s") from None

    def _lose(self, error: Exception) -> None:
        """Tell those who wait for markers that these won't come."""
        markers, self._markers = self._markers, {}
        for _, heard in markers.values():
            if not heard.done():
                heard.set_exception(error)
                # Looked at: who waited may have gone.
                heard.exception()

    # The three tasks of a connection

    async def _read(self, subscriber: Subscriber) -> None:
        while True:
            # Both of broadcaster's queues before this one are without a bound. They stay short,
            # for nobody here ever waits: what one turn of the event loop brings is gone in the
            # next.
            event = await subscriber.get()
            self._heard_at = time.monotonic()
            for segment in event.message.split(" "):
                try:
                    self._hear(segment)
                except Exception:
                    # Anyone who may use the server can say anything. Once, lest it fills the log.
                    if not self._strange:
                        self._strange = True
                        logger.exception("%s: what was announced made no sense", self.name)

    def _hear(self, segment: str) -> None:
        if segment[:1] == "?":
            node, _, number = segment[1:].partition(".")
            if node == self._node:
                channels, heard = self._markers.pop(int(number), (frozenset(), None))
                self._subscribed |= channels
                if heard is not None and not heard.done():
                    heard.set_result(None)
            return
        name, publication = _decode(b64decode(segment, validate=True))
        channel = name.decode("utf-8", "surrogatepass")
        if publication.id:
            key = _key(channel, publication.id)
            if self._knows(key):
                return
            self._remember(key)
        if channel in self._subscribed and self._listener is not None:
            try:
                self._listener.received(channel, publication)
            except Exception:
                logger.exception("%s: an announcement could not be delivered", self.name)

    async def _write(self, broadcast: Broadcast) -> None:
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            batch = [self._queue.popleft()]
            room = self._limit - len(batch[0].text)
            while self._queue and len(self._queue[0].text) < room:
                batch.append(self._queue.popleft())
                room -= len(batch[-1].text) + 1
            message = " ".join(waiting.text for waiting in batch)
            error: Exception | None = BrokerUnavailable(f"{self.name}: the connection broke")
            try:
                await self._in_time(broadcast.publish(self.topic, message), "publishing")
                error = None
            except Exception as failure:
                error = BrokerUnavailable(f"{self.name}: {_describe(failure)}")
                raise
            finally:
                for waiting in batch:
                    waiting.settle(error)

    async def _watch(self, first: asyncio.Future[None]) -> None:
        await self._prove()
        back, self._up, self._error = first.done(), True, ""
        if back:
            self._restarts += 1
            logger.warning("%s is back; what was published meanwhile is lost", self.name)
            if self._subscribed and self._listener is not None:
                try:
                    self._listener.interrupted(list(self._subscribed))
                except Exception:
                    logger.exception("%s: an interruption could not be told", self.name)
        else:
            first.set_result(None)
        while True:
            await asyncio.sleep(self._probe)
            begun = time.monotonic()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._mark(frozenset())
            except TimeoutError:
                raise _Lost("it is deaf: a probe did not come back") from None
            self._latency = time.monotonic() - begun

    async def _prove(self) -> None:
        """Return when a first probe has come back. Several are sent: a Kafka consumer starts at the
        topic's end, wherever that is when it gets to look."""
        begun = time.monotonic()
        end = begun + self._timeout
        while time.monotonic() < end:
            try:
                async with asyncio.timeout(self._timeout / 4):
                    await self._mark(frozenset())
            except TimeoutError:
                continue
            self._latency = time.monotonic() - begun
            return
        raise _Lost(
            "no probe came back: is there a connection pool in between that does not keep sessions?"
        )

    async def _mark(self, channels: frozenset[str]) -> None:
        """Send a marker and wait until it is heard; from then on `channels` are subscribed.

        Raises:
            _Lost: the connection broke meanwhile.
        """
        self._marked += 1
        number = self._marked
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(f"?{self._node}.{number}", None)
        if channels:
            self._put(waiting)
        else:
            # A probe goes first: what waits behind an outage must not shut it out.
            self._queue.appendleft(waiting)
            self._wake.set()
        self._markers[number] = (channels, heard)
        try:
            await heard
        finally:
            self._markers.pop(number, None)
            self._take_back(waiting)

    def _put(self, waiting: _Waiting) -> None:
        if len(self._queue) >= MAX_WAITING:
            raise BrokerUnavailable(f"{self.name}: too much waits to be sent")
        self._queue.append(waiting)
        self._wake.set()

    def _take_back(self, waiting: _Waiting) -> None:
        try:
            self._queue.remove(waiting)
        except ValueError:
            pass

    # Publishing

    async def publish(self, channel: str, draft: Draft, retention: Retention) -> Published:
        """See `Broker.publish`.

        Raises:
            TooLarge: it does not fit into one message of the server's.
        """
        text = self._text(channel, draft)
        if isinstance(text, Published):
            return text
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(text, sent)
        self._put(waiting)
        try:
            async with asyncio.timeout(self._patience):
                await sent
        except TimeoutError:
            raise BrokerUnavailable(f"{self.name}: {self._error or 'no answer in time'}") from None
        finally:
            self._take_back(waiting)
        return _NOT_KEPT

    def publish_now(self, channel: str, draft: Draft, retention: Retention) -> Published:
        """`publish`, without a step of the event loop and without knowing whether it was sent: for
        the memory stores that live beside this one. Refused while the server is away."""
        if not self._up:
            raise BrokerUnavailable(f"{self.name}: {self._error}")
        text = self._text(channel, draft)
        if isinstance(text, Published):
            return text
        self._put(_Waiting(text, None))
        return _NOT_KEPT

    def _text(self, channel: str, draft: Draft) -> str | Published:
        """Return what announces `draft`, or the answer when nothing does."""
        if self._listener is None:
            raise BrokerUnavailable("the broker is not running")
        if draft.expects:
            return Published(Position("", 0), conflict=True)
        if draft.id and self._knows(_key(channel, draft.id)):
            return Published(Position("", 0), duplicate=True)
        publication = Publication(
            draft.event,
            draft.data,
            id=draft.id,
            exclude=draft.exclude,
            volatile=draft.volatile,
            key=draft.key,
            time=draft.time or int(time.time() * 1000),
        )
        name = channel.encode("utf-8", "surrogatepass")
        text = b64encode(_encode((name, publication))).decode("ascii")
        if len(text) > self._limit:
            excess = (len(text) - self._limit) * 3 // 4 + 1
            raise TooLarge(f"Message too large: {excess} bytes more than the backend takes")
        return text

    def _knows(self, key: bytes) -> bool:
        at = self._ids.get(key)
        return at is not None and time.monotonic() - at < IDS_FOR

    def _remember(self, key: bytes) -> None:
        self._ids.pop(key, None)
        self._ids[key] = time.monotonic()
        if len(self._ids) > MAX_IDS:
            self._ids.popitem(last=False)

    # Subscribing

    async def subscribe(self, channels: Iterable[str]) -> None:
        """See `Broker.subscribe`. Waits until a marker has come back: what is heard before it was
        published before.

        Raises:
            BrokerUnavailable: the server did not answer in time.
        """
        if self._listener is None:
            raise BrokerUnavailable("the broker is not running")
        fresh = frozenset(channels) - self._subscribed
        if not fresh:
            return
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    try:
                        await self._mark(fresh)
                        return
                    except _Lost:
                        await asyncio.sleep(_pause(0))
        except TimeoutError:
            raise BrokerUnavailable(f"{self.name}: {self._error or 'no answer in time'}") from None

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        self._subscribed.difference_update(channels)


def _key(channel: str, id: str) -> bytes:
    """Return what stands for an id: short, whatever the client's choice of ids."""
    text = f"{len(channel)}:{channel}{id}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def parse_url(url: str) -> tuple[str, str, str | None]:
    """Return how the server is called in texts, without secrets; its URL; the topic it names."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ConfigurationError("broadcaster: the URL starts with postgres:// or kafka://")
    wrong = ConfigurationError(
        f"{scheme}: no URL like {scheme}://user:password@host:port/name;"
        " in a password, characters like @ : / ? # are percent-encoded"
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    if parts.fragment:
        raise wrong
    options = parse_qsl(parts.query, keep_blank_values=True)
    topics = [value for name, value in options if name == "topic"]
    if len(topics) > 1:
        raise ConfigurationError(f"{scheme}: topic stands there twice")
    rest = urlencode([(name, value) for name, value in options if name != "topic"])
    if ":" in host:
        host = f"[{host}]"
    name = f"{scheme}://{host}{f':{port}' if port else ''}{parts.path}"
    return name, urlunsplit(parts._replace(query=rest)), topics[0] if topics else None


def _factory(url: str) -> Callable[[], Broadcast]:
    """Return what makes a `Broadcast` for `url`.

    Raises:
        ConfigurationError: it, or what it needs for such a URL, is not installed.
    """
    scheme = url.partition("://")[0]
    try:
        # Another package, permit-broadcaster, installs a module of the same name.
        metadata.version("broadcaster")
        import broadcaster

        # Drivers are imported only now.
        broadcaster.Broadcast(url)
    except (metadata.PackageNotFoundError, ImportError):
        extra = "kafka" if scheme == "kafka" else "broadcaster"
        raise ConfigurationError(
            f"{scheme}:// needs more packages: pip install 'starlette-realtime[{extra}]'"
        ) from None
    return lambda: broadcaster.Broadcast(url)


def _hopeless(error: BaseException) -> bool:
    """Whether no waiting mends it: a wrong user or password, database, or address."""
    state = str(getattr(error, "sqlstate", None) or "")
    # Classes 28 and 3D of the PostgreSQL error codes: authorization, and no such database.
    return state[:2] in ("28", "3D") or isinstance(error, ValueError | TypeError)


def _describe(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())


def _pause(failures: int) -> float:
    """Return how long to wait after so many failures in a row: from 20 ms to 2 s, with jitter."""
    longest: float = min(2.0, 0.04 * 2 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)
