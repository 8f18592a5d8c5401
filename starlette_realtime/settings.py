"""From a URL to the classes behind it: the only place that knows both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .brokers.memory import MemoryBroker
from .core.runtime import Stores
from .errors import ConfigurationError
from .inbox.memory import MemoryInbox
from .limits.memory import MemoryLimits
from .presence.memory import MemoryPresence
from .sessions.memory import MemorySessions

if TYPE_CHECKING:
    from .brokers.redis import RedisBroker

ENVIRONMENT = "REALTIME_BACKEND"
"""Environment variable that names the backend where the code does not."""

REDIS_SCHEMES = frozenset(
    scheme + kind for scheme in ("redis", "rediss") for kind in ("", "+sentinel", "+cluster")
)


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
    raise ConfigurationError(f"no backend for '{scheme}://': use memory:// or redis://")


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
        from .limits.redis import RedisLimits
        from .presence.redis import RedisPresence
        from .sessions.redis import RedisSessions
    server = RedisServer(url)
    return Stores(
        RedisBroker(server),
        RedisPresence(server),
        RedisSessions(server),
        RedisLimits(server),
        MemoryInbox(),
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
