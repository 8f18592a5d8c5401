"""From a URL to stores."""

from __future__ import annotations

import sys

import pytest

from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.errors import ConfigurationError
from starlette_realtime.presence.redis import RedisPresence
from starlette_realtime.settings import stores_from_url


def test_memory() -> None:
    assert isinstance(stores_from_url("memory://").broker, MemoryBroker)


@pytest.mark.parametrize(
    "url",
    ["redis://localhost", "rediss://localhost/1", "redis+sentinel://a,b/x", "redis+cluster://a,b"],
)
def test_redis(url: str) -> None:
    stores = stores_from_url(url)
    assert isinstance(stores.broker, RedisBroker)
    assert isinstance(stores.presence, RedisPresence)


@pytest.mark.parametrize("url", ["carrier-pigeon://localhost", "", "redis:localhost"])
def test_anything_else(url: str) -> None:
    with pytest.raises(ConfigurationError):
        stores_from_url(url)


def test_without_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("starlette_realtime.") and "redis" in name:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis.asyncio.connection", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'starlette-realtime\[redis\]'"):
        stores_from_url("redis://localhost")
