"""From a URL to the classes behind it: the only place that knows both."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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


def stores_from_url(url: str) -> Stores:
    """Return the stores that `url` asks for.

    Raises:
        ConfigurationError: no backend has such a URL, or what it needs is not installed.
    """
    scheme = _scheme(url)
    if scheme == "memory":
        broker = MemoryBroker()
        return Stores(
            broker, MemoryPresence(broker), MemorySessions(), MemoryLimits(), MemoryInbox()
        )
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
        "%s shares events between processes and nothing else: who is present, sessions, limits and "
        "private messages are each process's own. With several processes a list of members shows "
        "those of one, a session resumes only where it was, and limits count per process; redis:// "
        "shares it all",
        broker.name,
    )
    return Stores(broker, MemoryPresence(broker), MemorySessions(), MemoryLimits(), MemoryInbox())


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


def _redis_stores(url: str) -> Stores:
    with _needs_redis():
        from ._redis import RedisServer
        from .brokers.redis import RedisBroker
        from .inbox.redis import RedisInbox
        from .limits.redis import RedisLimits
        from .presence.redis import RedisPresence
        from .sessions.redis import RedisSessions
    server = RedisServer(url)
    return Stores(
        RedisBroker(server),
        RedisPresence(server),
        RedisSessions(server),
        RedisLimits(server),
        RedisInbox(server),
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
