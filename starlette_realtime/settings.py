"""From a URL to the classes behind it: the only place that knows both."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .brokers.base import Broker, HistoryBroker
from .brokers.memory import MemoryBroker
from .core.namespace import Namespace
from .core.options import Options
from .core.runtime import Stores
from .errors import ConfigurationError
from .inbox.memory import MemoryInbox
from .limits.memory import MemoryLimits
from .presence.memory import MemoryPresence
from .sessions.memory import MemorySessions
from .tickets.memory import MemoryTickets

if TYPE_CHECKING:
    from .brokers.broadcaster import BroadcasterBroker
    from .brokers.redis import RedisBroker

logger = logging.getLogger("starlette_realtime")

ENVIRONMENT = "REALTIME_BACKEND"
"""Environment variable that names the backend where the code does not."""

REDIS_SCHEMES = frozenset(
    scheme + kind for scheme in ("redis", "rediss") for kind in ("", "+sentinel", "+cluster")
)

BROADCASTER_SCHEMES = frozenset(["postgres", "postgresql", "kafka"])


class Configuration(msgspec.Struct, forbid_unknown_fields=True):
    """What a configuration file says: TOML, in the table `[realtime]`.

    `options` has the names of `Options`.
    """

    backend: str | None = None
    origins: list[str] | str | None = None
    options: dict[str, Any] = {}


def read_configuration(path: str | Path) -> Configuration:
    """Return what the file at `path` says.

    Raises:
        ConfigurationError: it is not there, not TOML, or says something unknown.
    """
    try:
        with Path(path).open("rb") as file:
            table = tomllib.load(file).get("realtime", {})
        return msgspec.convert(table, Configuration)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def options_from(values: dict[str, Any]) -> Options:
    """Return `Options` with these values.

    Raises:
        ConfigurationError: an option has another name, or another type.
    """
    unknown = sorted(set(values) - set(Options.__slots__))
    if unknown:
        raise ConfigurationError(f"options: there is no {', '.join(unknown)}")
    try:
        return msgspec.convert(values, Options)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"options: {error}") from None


_WORKERS = re.compile(r"(?:^|\s)(?:--workers[=\s]|-w[=\s]?)([0-9]+)(?=\s|$)")


def workers() -> int:
    """Return how many worker processes this one's server was asked for, as far as it can be told:
    by uvicorn's settings in one of its workers, by the command line, by `GUNICORN_CMD_ARGS` under
    gunicorn, by `WEB_CONCURRENCY`."""
    # uvicorn starts a worker with its settings as arguments; `uvicorn.run(workers=4)` leaves no
    # other trace. A process that is there to be reloaded is one, however many were asked for.
    arguments = getattr(multiprocessing.current_process(), "_kwargs", {})
    uvicorn = sys.modules.get("uvicorn")
    if uvicorn is not None and isinstance(config := arguments.get("config"), uvicorn.Config):
        return 1 if config.should_reload else int(config.workers)
    said = [" ".join(sys.argv)]
    if "gunicorn" in sys.modules:
        said.append(os.environ.get("GUNICORN_CMD_ARGS", ""))
    for line in said:
        if numbers := _WORKERS.findall(line):
            return int(numbers[-1])
    value = os.environ.get("WEB_CONCURRENCY", "")
    return int(value) if value.isdigit() else 1


def warn_of_workers(broker: Broker) -> None:
    """Say so when several workers would each have a memory of their own."""
    if isinstance(broker, MemoryBroker) and (number := workers()) > 1:
        logger.warning(
            "REALTIME RUNS ON memory:// IN EACH OF %d WORKERS: people on different workers will "
            "not see each other, and will miss messages. Set REALTIME_BACKEND=redis://… or run one "
            "worker.",
            number,
        )


def stores_from_url(url: str) -> Stores:
    """Return the stores that `url` asks for.

    Raises:
        ConfigurationError: no backend has such a URL, or what it needs is not installed.
    """
    scheme = _scheme(url)
    if scheme == "memory":
        return _around(MemoryBroker())
    if scheme in REDIS_SCHEMES:
        return _redis_stores(url)
    if scheme in BROADCASTER_SCHEMES:
        from .brokers.broadcaster import BroadcasterBroker

        return broadcaster_stores(BroadcasterBroker(url))
    raise ConfigurationError(
        f"no backend for '{scheme}://': use memory:// or redis://, or postgres:// or kafka://,"
        " which keep no history"
    )


def broadcaster_stores(broker: BroadcasterBroker) -> Stores:
    """Return stores around `broker`: pub/sub alone is shared by all processes, and the rest is
    each process's own, which is said in the log.

    `Realtime(stores=broadcaster_stores(BroadcasterBroker(broadcast)), …)`
    """
    logger.warning(
        "%s shares events between processes and nothing else: who is present, sessions, limits, "
        "private messages and tickets are each process's own. With several processes a list of "
        "members shows those of one, a session resumes and a ticket is good only where it began, "
        "and limits count per process; redis:// shares it all",
        broker.name,
    )
    return _around(broker)


def check_history(broker: Broker, options: Options, namespaces: Iterable[Namespace]) -> None:
    """See that no room asks for a history that `broker` cannot keep.

    A history by default becomes none, which is said in the log.

    Raises:
        ConfigurationError: a room asks for one explicitly.
    """
    if isinstance(broker, HistoryBroker):
        return
    defaults = []
    for namespace in namespaces:
        for room_type in namespace.router.types:
            where = f"room {room_type.pattern!r}"
            if namespace.name != "/":
                where += f" of namespace {namespace.name!r}"
            asked = room_type.options.history
            if asked is None and options.history:
                defaults.append(where)
            elif asked:
                raise ConfigurationError(
                    f"{where} asks for history={asked}, and this backend keeps none:"
                    " give it history=0, or use redis://"
                )
    if defaults:
        logger.warning(
            "this backend keeps no history, so these have none: %s; history=0 says so in the code",
            ", ".join(defaults),
        )


def publishing_broker(url: str) -> RedisBroker:
    """Return the broker through which another process may publish (`Publisher`).

    Raises:
        ConfigurationError: there is no such backend, or no other process can reach it.
    """
    scheme = _scheme(url)
    if scheme == "memory":
        raise ConfigurationError("memory:// is this process's own: to publish, use redis://")
    if scheme not in REDIS_SCHEMES:
        raise ConfigurationError(f"no backend to publish through for {scheme}://: use redis://")
    with _needs_redis():
        from .brokers.redis import RedisBroker
    return RedisBroker(url)


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator:
        # Not shown: it may be anything, a password too.
        raise ConfigurationError("a backend's URL is missing its scheme: memory://, redis://…")
    return scheme


def _around(broker: MemoryBroker | BroadcasterBroker) -> Stores:
    """Stores in this process's memory, but for the broker."""
    return Stores(
        broker,
        MemoryPresence(broker),
        MemorySessions(),
        MemoryLimits(),
        MemoryInbox(),
        MemoryTickets(),
    )


def _redis_stores(url: str) -> Stores:
    with _needs_redis():
        from ._redis import RedisServer
        from .brokers.redis import RedisBroker
        from .inbox.redis import RedisInbox
        from .limits.redis import RedisLimits
        from .presence.redis import RedisPresence
        from .sessions.redis import RedisSessions
        from .tickets.redis import RedisTickets
    server = RedisServer(url)
    return Stores(
        RedisBroker(server),
        RedisPresence(server),
        RedisSessions(server),
        RedisLimits(server),
        RedisInbox(server),
        RedisTickets(server),
    )


@contextmanager
def _needs_redis() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] != "redis":
            raise
        raise ConfigurationError(
            "redis:// needs redis-py, version 5 or newer: pip install 'starlette-realtime[redis]'"
        ) from error
