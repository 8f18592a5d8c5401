"""From a URL to stores."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from starlette_realtime import AnonymousAuth, Realtime
from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.errors import ConfigurationError
from starlette_realtime.presence.redis import RedisPresence
from starlette_realtime.settings import stores_from_url, workers
from tests.support.processes import Process
from tests.support.server import ROOT


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


@pytest.mark.anyio
async def test_the_environment_says_it_all(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_BACKEND", redis_url)
    one, two = Realtime(auth=AnonymousAuth()), Realtime(auth=AnonymousAuth())
    for realtime in (one, two):
        realtime.room("{name}")
    async with one.run(), two.run():
        await one.publish("lobby", "said", "by one")
        page = await two.get_room("lobby").history()
    assert [publication.data for publication in page.publications] == [b'"by one"']


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
@pytest.mark.parametrize(
    ("arguments", "environment", "number"),
    [
        ("--workers 4", {}, 4),
        ("--workers=4", {}, 4),
        ("-w 4", {}, 4),
        ("-w4", {}, 4),
        ("-w 1 --workers 4", {}, 4),
        ("", {"WEB_CONCURRENCY": "4"}, 4),
        ("", {"GUNICORN_CMD_ARGS": "--bind=127.0.0.1 --workers=4"}, 4),
        ("", {"GUNICORN_CMD_ARGS": "-w4", "WEB_CONCURRENCY": "2"}, 4),
        ("-w 1", {"GUNICORN_CMD_ARGS": "-w4", "WEB_CONCURRENCY": "4"}, 1),
        ("--worker-connections 4 --workers-of-the-world 4", {}, 1),
        ("", {}, 1),
    ],
)
async def test_memory_in_several_workers_is_warned_of(
    arguments: str,
    environment: dict[str, str],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "argv", ["server", "app:app", *arguments.split()])
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "gunicorn", ModuleType("gunicorn"))
    async with Realtime("memory://", auth=AnonymousAuth()).run():
        pass
    assert (f"IN EACH OF {number} WORKERS" in caplog.text) == (number > 1)
    assert ("IN EACH OF" in caplog.text) == (number > 1)


def test_another_servers_environment_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["uvicorn", "app:app"])
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    monkeypatch.delitem(sys.modules, "gunicorn", raising=False)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers=4")
    assert workers() == 1


APP = """
import uvicorn
from starlette_realtime import AnonymousAuth, Realtime

app = Realtime("memory://", auth=AnonymousAuth())

if __name__ == "__main__":
    uvicorn.run("served:app", port=0, {options})
"""


@pytest.mark.parametrize(
    ("command", "options", "number"),
    [
        ("-m uvicorn served:app --port 0 --workers 2", "", 2),
        ("served.py", "workers=2", 2),
        ("-m uvicorn served:app --port 0 --workers 2 --reload", "", 1),
    ],
    ids=["command line", "in code", "reload"],
)
def test_each_worker_of_uvicorn_says_what_to_do(
    command: str, options: str, number: int, tmp_path: Path
) -> None:
    (tmp_path / "served.py").write_text(APP.format(options=options))
    server = Process(
        [sys.executable, *command.split()],
        output=tmp_path / "output.log",
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
    )
    with server:
        server.wait_until(
            lambda: server.output.count("Application startup complete.") == number, "up"
        )
        said = server.output
    warned = re.findall("IN EACH OF 2 WORKERS: .*Set REALTIME_BACKEND=redis://… or run one", said)
    assert len(warned) == (number if number > 1 else 0), said
    assert said.count("IN EACH OF") == len(warned)
