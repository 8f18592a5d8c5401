"""A Redis, a master behind Sentinels, or a Cluster: where each partition is, and commands to it.

Policy: a call that was certainly not carried out is tried again, with growing pauses, until its
patience ends; one whose fate is unknown only if doing it twice does no harm. What remains is one
`BrokerUnavailable`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from ..errors import BrokerUnavailable, ConfigurationError
from .keys import PARTITIONS, SLOTS, Argument, Keys
from .keys import partition as partition_of
from .pipe import Command, Lost, Pipe, Redirected, ask_once, close, connect, redirection
from .scripts import Script
from .url import Address, RedisURL, host_and_port

logger = logging.getLogger("starlette_realtime")

MINIMUM_VERSION: Final = (7, 0)
MAX_UNDER_WAY: Final = 1024
"""Commands sent and not answered, to all nodes; further calls wait their turn."""
MAX_REDIRECTIONS: Final = 5
LOOK: Final = 5.0
"""Seconds after which Sentinels or Cluster are asked where things are, though nobody complains: a
master that was replaced and does not know goes on answering."""
BATCH: Final = 256
"""Names that one script works on, where it works on many."""
BATCHES_AT_ONCE: Final = 4

# Answers that mean "not now", by their first word. redis-py knows only some of them.
_PASSING = ("LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "TRYAGAIN")

_WRONG = (AuthenticationError, AuthorizationError, AuthenticationWrongNumberOfArgsError)


class Refused(BrokerUnavailable):
    """The server said no, and will say so again."""


class NotNow(BrokerUnavailable):
    """The command was certainly not carried out; it may be soon."""


def pause(failures: int) -> float:
    """Return how long to wait after so many failures in a row: from 20 ms to 1 s, with jitter, so
    that not everybody comes back at once."""
    longest: float = min(1.0, 0.02 * 2 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)


class Node:
    """One server of possibly several, and the connections for commands to it: for those that
    `wait` for a replica, which let nothing else pass on their connection meanwhile, or the rest."""

    def __init__(self, server: RedisServer, address: Address, waits: bool) -> None:
        self.address = address
        self.error = "not connected yet"
        self._server = server
        self._waits = waits
        self._pipes: set[Pipe] = set()
        self._ready = asyncio.Event()
        self._closed = False
        self._tasks = [
            server.spawn(self._keep(), f"redis {host_and_port(address)}")
            for _ in range(server.url.pool)
        ]

    async def pipe(self) -> Pipe:
        """Return the least busy connection; wait for one if there is none.

        Raises:
            NotNow: this server is no longer in charge.
        """
        while not self._pipes:
            if self._closed:
                raise NotNow(f"{host_and_port(self.address)} is no longer in charge")
            await self._ready.wait()
        if len(self._pipes) == 1:
            (only,) = self._pipes
            return only
        return min(self._pipes, key=lambda pipe: pipe.load)

    async def _keep(self) -> None:
        """Keep one connection, for ever."""
        failures = 0
        url = self._server.url
        patience = url.timeout * (2 if self._waits else 1)
        while True:
            try:
                pipe = Pipe(await connect(url, self.address), self.address, patience)
                failures = 0
                self._pipes.add(pipe)
                self._ready.set()
                try:
                    await pipe.run()
                finally:
                    self._pipes.discard(pipe)
                    if not self._pipes and not self._closed:
                        self._ready.clear()
            except (RedisError, OSError, BrokerUnavailable) as error:
                self.error = describe(error)
            except Exception as error:
                self.error = describe(error)
                logger.exception("a connection to %s broke", host_and_port(self.address))
            self._server.stale()
            await asyncio.sleep(pause(failures))
            failures += 1

    @property
    def connected(self) -> bool:
        return bool(self._pipes)

    def close(self) -> None:
        self._closed = True
        # Those who wait for a connection look elsewhere.
        self._ready.set()
        for task in self._tasks:
            task.cancel()


class RedisServer:
    """What all stores on one URL share. Opened by each of them, closed after the last."""

    def __init__(self, url: RedisURL | str) -> None:
        self.url = url if isinstance(url, RedisURL) else RedisURL.parse(url)
        self.keys = Keys(self.url.prefix, self.url.db, sharded=self.url.kind == "cluster")
        self._users = 0
        self._opening: asyncio.Lock | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._nodes: dict[tuple[Address, bool], Node] = {}
        self._where: list[Address] = []
        self._known: tuple[Address, ...] = self.url.hosts
        self._slots = asyncio.Semaphore(MAX_UNDER_WAY)
        self._stale = asyncio.Event()
        self._located = asyncio.Event()
        # Called after partitions have moved.
        self.moved: list[Callable[[], None]] = []

    # Lifetime

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Be connected inside the block; the first one to enter tries for `url.startup` seconds.

        Raises:
            ConfigurationError: the server is not what the URL says, or cannot be reached.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                "Redis needs asyncio; on trio there is memory:// alone"
            ) from None
        self._users += 1
        try:
            if self._opening is None:
                self._opening = asyncio.Lock()
            async with self._opening:
                if not self._where:
                    await self._start()
            yield
        finally:
            self._users -= 1
            if not self._users:
                # The next one may come on another event loop.
                self._opening = None
                with anyio.CancelScope(shield=True):
                    await self._stop()

    async def _start(self) -> None:
        self._slots = asyncio.Semaphore(MAX_UNDER_WAY)
        self._stale = asyncio.Event()
        self._located = asyncio.Event()
        loop = asyncio.get_running_loop()
        end = loop.time() + self.url.startup
        failures = 0
        while True:
            try:
                await self._check()
                await self._locate()
                break
            except (RedisError, OSError, BrokerUnavailable) as error:
                _raise_if_hopeless(self.url, error)
                self._where = []
                if loop.time() > end:
                    raise ConfigurationError(
                        f"{self.url} cannot be reached: {describe(error)}"
                    ) from None
            await asyncio.sleep(pause(failures))
            failures += 1
        self.spawn(self._relocate(), "redis topology")

    async def _stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._nodes.clear()
        self._where = []

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that ends with the block."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("%s ended", task.get_name(), exc_info=task.exception())

    async def _check(self) -> None:
        """See that this is a Redis that will do.

        Raises:
            ConfigurationError: it is not.
            RedisError, OSError, BrokerUnavailable: it cannot be asked.
        """
        url = self.url
        addresses = [await self._ask_sentinels()] if url.kind == "sentinel" else list(url.hosts)
        connection = await _connect_to_one(url, addresses)
        try:
            async with asyncio.timeout(url.timeout):
                server = parse_info(await ask_once(connection, "INFO", "server"))
                memory = parse_info(await ask_once(connection, "INFO", "memory"))
        finally:
            await close(connection)
        version = server.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < MINIMUM_VERSION:
            needed = ".".join(map(str, MINIMUM_VERSION))
            raise ConfigurationError(f"{url} is Redis {version}: it must be {needed} or newer")
        mode = server.get("redis_mode", "standalone")
        if mode == "sentinel":
            raise ConfigurationError(f"{url} is a Sentinel: use redis+sentinel://…/service")
        if (mode == "cluster") != (url.kind == "cluster"):
            raise ConfigurationError(
                f"{url} is a Redis Cluster: use redis+cluster://"
                if mode == "cluster"
                else f"{url} is no Redis Cluster: use redis://"
            )
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys") and memory.get("maxmemory", "0") != "0":
            logger.warning(
                "%s has maxmemory-policy %s: when memory runs out it forgets who is present and "
                "what was said; use noeviction or volatile-ttl",
                url,
                policy,
            )

    # Where things are

    def node(self, address: Address, waits: bool = False) -> Node:
        found = self._nodes.get((address, waits))
        if found is None:
            found = self._nodes[address, waits] = Node(self, address, waits)
        return found

    def where(self, partition: int) -> Address:
        """Return which server has a partition, as far as is known."""
        return self._where[partition]

    @property
    def all_where(self) -> list[Address]:
        """The server of each partition."""
        return self._where

    def stale(self) -> None:
        """Say that a server did not answer, or answered that it is not in charge."""
        self._stale.set()

    async def relocated(self) -> None:
        """Look again where things are, and wait until that is done or has failed."""
        self._located.clear()
        self._stale.set()
        await self._located.wait()

    async def _relocate(self) -> None:
        while True:
            try:
                async with asyncio.timeout(None if self.url.kind == "single" else LOOK):
                    await self._stale.wait()
            except TimeoutError:
                pass
            self._stale.clear()
            if self.url.kind != "single":
                try:
                    await self._locate()
                except Exception as error:
                    # Whatever it is: those who wait look for themselves, and ask again.
                    logger.warning("%s cannot say where things are: %s", self.url, describe(error))
            self._located.set()
            # However many complain: a few times a second is enough.
            await asyncio.sleep(0.2)

    async def _locate(self) -> None:
        match self.url.kind:
            case "single":
                found = [self.url.hosts[0]] * PARTITIONS
            case "sentinel":
                found = [await self._ask_sentinels()] * PARTITIONS
            case _:
                found = await self._ask_cluster()
        self._take(found)

    def _take(self, found: list[Address]) -> None:
        if found == self._where:
            return
        self._where = found
        wanted = set(found)
        for key in list(self._nodes):
            if key[0] not in wanted:
                self._nodes.pop(key).close()
        for moved in self.moved:
            moved()

    async def _ask_sentinels(self) -> Address:
        hopeless = None
        errors = []
        for address in self._known:
            try:
                connection = await connect(self.url, address, sentinel=True)
                try:
                    async with asyncio.timeout(self.url.timeout):
                        found = await ask_once(
                            connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.url.service
                        )
                finally:
                    await close(connection)
            except (RedisError, OSError) as error:
                if isinstance(error, _WRONG):
                    raise ConfigurationError(
                        f"the Sentinel {host_and_port(address)} refused the user or password of "
                        f"sentinel_username and sentinel_password: {error}"
                    ) from None
                where = f"the Sentinel {host_and_port(address)}"
                hopeless = hopeless or bad_certificate(where, error)
                errors.append(f"{host_and_port(address)}: {describe(error)}")
                continue
            if found:
                # The next question goes first to the one that knew.
                self._known = (address, *(other for other in self._known if other != address))
                return found[0].decode(), int(found[1])
            errors.append(f"{host_and_port(address)}: knows no {self.url.service!r}")
        raise hopeless or NotNow(f"no Sentinel knows the master ({'; '.join(errors)})")

    async def _ask_cluster(self) -> list[Address]:
        hopeless = None
        errors = []
        for address in self._known:
            try:
                connection = await connect(self.url, address)
                try:
                    async with asyncio.timeout(self.url.timeout):
                        ranges = await ask_once(connection, "CLUSTER", "SLOTS")
                finally:
                    await close(connection)
            except (RedisError, OSError) as error:
                if isinstance(error, _WRONG):
                    raise
                hopeless = hopeless or bad_certificate(host_and_port(address), error)
                errors.append(f"{host_and_port(address)}: {describe(error)}")
                continue
            owners = {}
            others = []
            for first, last, *nodes in ranges:
                here = [((node[0] or b"").decode() or address[0], node[1]) for node in nodes]
                others += here
                for partition, slot in enumerate(SLOTS):
                    if first <= slot <= last:
                        owners[partition] = here[0]
            if len(owners) == PARTITIONS:
                seeds = [*self.url.hosts, *others]
                self._known = tuple(dict.fromkeys([address, *seeds]))[:100]
                return [owners[partition] for partition in range(PARTITIONS)]
            errors.append(f"{host_and_port(address)}: slots without a node")
        raise hopeless or NotNow(f"the cluster is not whole ({'; '.join(errors)})")

    # Commands

    def batches(self, names: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        """Return which of `names` go into one script, by their indexes, and to which partition: in
        a Cluster those of one partition, else any."""
        by_partition: dict[int, list[int]] = {}
        for index, name in enumerate(names):
            where = partition_of(name) if self.keys.sharded else 0
            by_partition.setdefault(where, []).append(index)
        for where, indexes in by_partition.items():
            for start in range(0, len(indexes), BATCH):
                yield where, indexes[start : start + BATCH]

    async def in_batches(
        self, names: Sequence[str], work: Callable[[int, list[int]], Awaitable[None]]
    ) -> None:
        """Await `work` for each of the `batches`, a few at a time: however many there are, what
        others ask in the meantime does not wait behind all of them."""
        batches = self.batches(names)

        async def some() -> None:
            for batch in batches:
                await work(*batch)

        await asyncio.gather(*(some() for _ in range(BATCHES_AT_ONCE)))

    async def run(
        self, partition: int, script: Script, keys: list[str], *arguments: Argument, **how: Any
    ) -> Any:
        """Run a script on the server that has a partition; `how` as in `call`."""
        if self.keys.sharded:
            script, keys = script.sharded, [*keys, self.keys.nothing(partition)]
        rest = (len(keys), *keys, *arguments)
        try:
            return await self.call(partition, "EVALSHA", script.digest, *rest, **how)
        except _Unknown:
            return await self.call(partition, "EVAL", script.text, *rest, **how)

    async def call(
        self,
        partition: int,
        *command: Argument,
        twice: bool = True,
        replicated: bool = False,
        patience: float | None = None,
    ) -> Any:
        """Return the answer to a command for the server that has a partition.

        Args:
            twice: doing it twice does no harm.
            replicated: wait until a replica has it too. The command must write.
            patience: seconds to go on trying, if not the URL's.

        Raises:
            BrokerUnavailable: see the module's policy.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + (self.url.patience if patience is None else patience)
        failures = redirections = 0
        address: Address | None = None
        asking = False
        failure: BrokerUnavailable | None = None
        if not self._where:
            raise BrokerUnavailable(f"not connected to {self.url}")
        try:
            async with asyncio.timeout_at(end), self._slots:
                while True:
                    target = address or self._where[partition]
                    try:
                        return await self._once(target, command, asking, replicated)
                    except Redirected as error:
                        redirections += 1
                        asking = error.asking
                        address = (error.address[0] or target[0], error.address[1])
                        if not asking:
                            self._correct(partition, address)
                            address = None
                        if redirections <= MAX_REDIRECTIONS:
                            continue
                        failure = NotNow(f"sent from node to node: {error}")
                    except (NotNow, Lost) as error:
                        if isinstance(error, Lost) and not twice:
                            raise
                        failure = error
                    address, asking = None, False
                    self.stale()
                    delay = pause(failures)
                    failures += 1
                    if loop.time() + delay >= end:
                        raise failure
                    await asyncio.sleep(delay)
        except TimeoutError:
            if failure is not None:
                raise failure from None
            target = self._where[partition] if self._where else self.url.hosts[0]
            node = self._nodes.get((target, replicated))
            why = node.error if node is not None and not node.connected else "no answer in time"
            raise BrokerUnavailable(f"{host_and_port(target)}: {why}") from None

    def _correct(self, partition: int, address: Address) -> None:
        if self._where and self._where[partition] != address:
            found = list(self._where)
            found[partition] = address
            self._take(found)
            # Others will have moved with it.
            self.stale()

    async def _once(
        self, address: Address, command: Command, asking: bool, replicated: bool
    ) -> Any:
        pipe = await self.node(address, replicated).pipe()
        commands: list[Command] = [command]
        if asking:
            commands.insert(0, ("ASKING",))
        if replicated:
            commands.append(("WAIT", 1, int(self.url.timeout * 1000)))
        answers = pipe.ask(*commands)
        if len(answers) > 1:
            try:
                await asyncio.wait(answers)
            finally:
                for each in answers:
                    # Looked at, or given up, so that none counts as an error that nobody saw.
                    if not each.cancel():
                        each.exception()
        try:
            answer = await answers[int(asking)]
        except NoScriptError:
            raise _Unknown from None
        except (ReadOnlyError, ClusterDownError, TryAgainError, BusyLoadingError) as error:
            raise NotNow(f"{host_and_port(address)}: {error}") from None
        except OutOfMemoryError as error:
            raise NotNow(f"{host_and_port(address)} has no memory left: {error}") from None
        except NoPermissionError as error:
            raise Refused(f"{host_and_port(address)}: the user may not: {error}") from None
        except ResponseError as error:
            elsewhere = redirection(error)
            if elsewhere is not None:
                raise elsewhere from None
            if str(error).startswith(_PASSING):
                raise NotNow(f"{host_and_port(address)}: {error}") from None
            raise Refused(f"{host_and_port(address)}: {error}") from None
        if replicated and answers[-1].result() < 1:
            raise Lost(f"{host_and_port(address)}: no replica has it yet")
        return answer


class RedisStore:
    """A store that lives as long as its connection to `server`: a URL, or the server that other
    stores share."""

    def __init__(self, server: RedisServer | RedisURL | str) -> None:
        self._server = server if isinstance(server, RedisServer) else RedisServer(server)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        async with self._server.open():
            yield


class _Unknown(Exception):
    """The server has not seen the script."""


async def _connect_to_one(url: RedisURL, addresses: list[Address]) -> AbstractConnection:
    hopeless: ConfigurationError | None = None
    last: Exception | None = None
    for address in addresses:
        try:
            return await connect(url, address)
        except _WRONG:
            raise
        except (RedisError, OSError) as error:
            hopeless = hopeless or bad_certificate(host_and_port(address), error)
            last = error
    raise hopeless or last or NotNow(f"{url} names no server")


def _raise_if_hopeless(url: RedisURL, error: BaseException) -> None:
    """Raise `ConfigurationError` for what no waiting mends."""
    text = describe(error)
    if isinstance(error, _WRONG):
        raise ConfigurationError(f"{url} refused the user or password: {text}") from None
    if isinstance(error, NoPermissionError):
        raise ConfigurationError(f"{url}: the user may not: {text}") from None
    if isinstance(error, ResponseError) and not text.startswith(_PASSING):
        raise ConfigurationError(f"{url}: {text}") from None


def bad_certificate(who: str, error: BaseException) -> ConfigurationError | None:
    """Return what to raise if `error` is about the certificate that `who` shows: no waiting mends
    it."""
    # Some versions of redis-py do not say in their own text what was wrong.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    return ConfigurationError(f"{who} shows a certificate that does not hold: {describe(cause)}")


def describe(error: BaseException) -> str:
    """Return one line that says what went wrong."""
    text = str(error) or type(error).__name__
    return " ".join(text.split())


def parse_info(answer: bytes) -> dict[str, str]:
    """Return what INFO says, by name."""
    lines = answer.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")
