"""From a URL to stores."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from starlette_realtime import AnonymousAuth, Realtime
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


FILE = """
[realtime]
backend = "redis://localhost"
origins = ["https://app.example"]

[realtime.options]
max_rooms = 20
presence_grace = 1.5
"""


def test_a_file_says_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REALTIME_BACKEND", raising=False)
    file = tmp_path / "realtime.toml"
    file.write_text(FILE)
    realtime = Realtime.from_file(file, auth=AnonymousAuth())
    assert isinstance(realtime._stores.broker, RedisBroker)
    assert (realtime.options.max_rooms, realtime.options.presence_grace) == (20, 1.5)
    monkeypatch.setenv("REALTIME_BACKEND", "memory://")
    realtime = Realtime.from_file(file, auth=AnonymousAuth())
    assert isinstance(realtime._stores.broker, MemoryBroker)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[realtime", "realtime.toml"),
        ("[realtime]\nbakend = 'memory://'", "bakend"),
        ("[realtime.options]\nmax_romms = 3", "max_romms"),
        ("[realtime.options]\nmax_rooms = 'many'", "max_rooms"),
        ("[realtime.options]\nmax_rooms = -1", "max_rooms"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "realtime.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=why):
        Realtime.from_file(file, auth=AnonymousAuth())
    with pytest.raises(ConfigurationError, match="nowhere"):
        Realtime.from_file(tmp_path / "nowhere.toml", auth=AnonymousAuth())


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["argument", "environment", "alone"])
async def test_memory_in_several_workers_is_warned_of(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["uvicorn", "app:app"])
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    if how == "argument":
        sys.argv += ["--workers", "4"]
    elif how == "environment":
        monkeypatch.setenv("WEB_CONCURRENCY", "4")
    async with Realtime("memory://", auth=AnonymousAuth()).run():
        pass
    assert ("IN EACH OF 4 WORKERS" in caplog.text) == (how != "alone")
