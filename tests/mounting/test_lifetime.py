"""Starting and stopping: with the app's lifespan, without one, with a wrong configuration."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from anyio import to_thread
from litestar import Litestar
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from starlette_realtime import ConfigurationError, Realtime, RealtimeMiddleware
from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.litestar import RealtimePlugin
from tests.mounting.hosts import ROUTES, make_realtime
from tests.support.ports import listening_socket
from tests.support.server import FAST, App, LiveServer, ServerProcess
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]


def middleware_host(realtime: Realtime) -> Any:
    app = Starlette(routes=ROUTES)
    app.add_middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")
    return app


def mount_host(realtime: Realtime) -> Any:
    routes = [*ROUTES, Mount("/realtime", app=realtime)]
    return Starlette(routes=routes, lifespan=realtime.lifespan)


def forgetful_host(realtime: Realtime) -> Any:
    """Mounts, but has no lifespan for it."""
    return Starlette(routes=[*ROUTES, Mount("/realtime", app=realtime)])


def litestar_host(realtime: Realtime) -> Any:
    return Litestar(plugins=[RealtimePlugin(realtime)])


class Alone:
    """No host at all: the server is the app, told by its server where it is."""

    def __init__(self, realtime: Realtime) -> None:
        self.realtime = realtime

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            scope = {**scope, "root_path": "/realtime"}
        await self.realtime(scope, receive, send)


WITH_LIFESPAN = [middleware_host, mount_host, litestar_host, Alone]


@asynccontextmanager
async def uvicorn_here(app: App, sock: socket.socket, **options: Any) -> AsyncIterator[Any]:
    """uvicorn in the test's own event loop, so that its tasks can be counted."""
    config = uvicorn.Config(app, log_config=None, **options)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([sock]))
    while not server.started:
        assert not serving.done(), serving
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        await serving


async def tasks_are(expected: set[asyncio.Task[Any]], seconds: float = 2) -> None:
    """Waits until no task is left but these."""
    end = time.monotonic() + seconds
    while extra := asyncio.all_tasks() - expected:
        assert time.monotonic() < end, f"tasks are left: {extra}"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST, "wsproto"])
@pytest.mark.parametrize("host", WITH_LIFESPAN)
async def test_stopping_says_1012_and_leaves_no_task(
    host: Callable[[Realtime], App], ws: str
) -> None:
    realtime = make_realtime()
    before = asyncio.all_tasks()
    sock = listening_socket()
    door = f"ws://127.0.0.1:{sock.getsockname()[1]}/realtime/ws"
    async with (
        uvicorn_here(host(realtime), sock, ws=ws) as server,
        NativeClient.open(door, token="Ann") as ann,
        NativeClient.open(door, token="Bob") as bob,
    ):
        assert realtime.running
        await ann.request("join", "chat/1")
        await bob.request("join", "chat/1")
        started = time.monotonic()
        server.should_exit = True
        assert (await ann.closed())[0] == 1012
        assert (await bob.closed())[0] == 1012
    assert time.monotonic() - started < 5
    assert not realtime.running
    await tasks_are(before)


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
@pytest.mark.parametrize("host", WITH_LIFESPAN)
async def test_stopping_is_bounded_when_clients_do_not_care(
    host: Callable[[Realtime], App], ws: str
) -> None:
    realtime = make_realtime(shutdown_timeout=1)
    before = asyncio.all_tasks()
    sock = listening_socket()
    port = sock.getsockname()[1]
    # Clients that shake hands and never read again, so never answer a close frame either.
    deaf = []
    try:
        async with uvicorn_here(host(realtime), sock, ws=ws, timeout_graceful_shutdown=1):
            for name in ("Ann", "Bob"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                deaf.append(writer)
                writer.write(
                    b"GET /realtime/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                    b"Authorization: Bearer " + name.encode() + b"\r\n\r\n"
                )
                assert b" 101 " in await asyncio.wait_for(reader.readline(), 5)
                await asyncio.wait_for(reader.readuntil(b'"connected"'), 5)
            started = time.monotonic()
        assert time.monotonic() - started < 8
        assert not realtime.running
        await tasks_are(before, 3)
    finally:
        for writer in deaf:
            writer.close()


@pytest.mark.parametrize("host", [middleware_host, mount_host, litestar_host])
async def test_an_app_may_start_again(host: Callable[[Realtime], App]) -> None:
    realtime = make_realtime()
    app = host(realtime)
    for _ in range(2):
        sock = listening_socket()
        door = f"ws://127.0.0.1:{sock.getsockname()[1]}/realtime/ws"
        async with uvicorn_here(app, sock), NativeClient.open(door, token="Ann") as ann:
            await ann.request("join", "chat/1")
            await ann.request("message", "chat/1", {"content": "hello"})
        assert not realtime.running


async def test_the_hosts_own_lifespan_runs_around_it(serve: Serve) -> None:
    realtime = make_realtime()
    happened: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        # The server runs already, and still: the host may publish while it starts and stops.
        assert realtime.running
        await realtime.publish("chat/1", "greeting", {"at": "start"})
        happened.append("started")
        yield {"words": ["state", "arrives"]}
        assert realtime.running
        await realtime.publish("chat/1", "greeting", {"at": "stop"})
        happened.append("stopped")

    async def state(request: Request) -> Response:
        return JSONResponse(request.state.words)

    app = Starlette(routes=[Route("/state", state)], lifespan=lifespan)
    app.add_middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")
    server = serve(app)
    async with (
        httpx.AsyncClient() as http,
        NativeClient.open(server.ws("/realtime/ws"), token="Ann") as ann,
    ):
        assert (await http.get(server.http("/state"))).json() == ["state", "arrives"]
        await ann.request("join", "chat/1")
    server.stop()
    assert happened == ["started", "stopped"]


# Without a lifespan


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What the package logs. Not `caplog`, because Litestar replaces the root logger's handlers."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("starlette_realtime"), Keep()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("host", "lifespan"),
    [
        (forgetful_host, "auto"),
        (middleware_host, "off"),
        (mount_host, "off"),
        (litestar_host, "off"),
    ],
)
async def test_without_a_lifespan_it_starts_on_first_use(
    serve: Serve,
    host: Callable[[Realtime], App],
    lifespan: str,
    log: list[str],
) -> None:
    realtime = make_realtime()
    server = serve(host(realtime), lifespan=lifespan)
    assert not realtime.running
    # All at once, so that only one of them may start it.
    doors = [NativeClient.open(server.ws("/realtime/ws"), token=name) for name in "abcdef"]
    clients = await asyncio.gather(*(door.__aenter__() for door in doors))
    try:
        await clients[0].request("join", "chat/1")
        await clients[1].request("join", "chat/1")
        await clients[0].request("message", "chat/1", {"content": "hello"})
        await clients[1].expect("new-message", data={"content": "hello"})
    finally:
        for door in doors:
            await door.__aexit__(None, None, None)
    told = [line for line in log if "lifespan" in line]
    assert len(told) == 1
    assert "Use RealtimeMiddleware, or pass lifespan=realtime.lifespan" in told[0]
    server.stop()
    assert not realtime.running


async def test_publishing_starts_it_too(serve: Serve) -> None:
    realtime = make_realtime()

    async def announce(request: Request) -> Response:
        published = await realtime.publish("chat/1", "announcement", {"text": "first"})
        return JSONResponse({"offset": published.position.offset})

    routes = [Route("/announce", announce, methods=["POST"]), Mount("/realtime", app=realtime)]
    server = serve(Starlette(routes=routes))
    async with httpx.AsyncClient() as http:
        assert (await http.post(server.http("/announce"))).json() == {"offset": 1}
    async with NativeClient.open(server.ws("/realtime/ws"), token="Ann") as ann:
        joined = await ann.request("join", "chat/1", since=None)
        assert joined["position"]["offset"] >= 1


async def test_what_started_by_itself_ends_with_the_loop() -> None:
    realtime = make_realtime()
    server = LiveServer(forgetful_host(realtime))
    await to_thread.run_sync(server.start)
    async with NativeClient.open(server.ws("/realtime/ws"), token="Ann") as ann:
        await ann.request("join", "chat/1")
        started = time.monotonic()
        stopping = asyncio.create_task(to_thread.run_sync(server.stop))
        assert (await ann.closed())[0] == 1012
        await stopping
    assert time.monotonic() - started < 8
    assert not realtime.running
    # A task that was destroyed while it waited would complain in the collector.
    gc.collect()


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_on_every_loop_it_starts_on_first_use_and_ends_with_the_loop(loop: str) -> None:
    """The core knows two event loops; so does starting on first use, and ending with the loop."""
    realtime = make_realtime()

    async def use() -> list[int]:
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                # All at once: one of them starts it.
                tasks.start_soon(realtime.publish, "chat/1", "n", number)
        assert realtime.running
        page = await realtime.get_room("chat/1").history()
        return [publication.offset for publication in page.publications]

    for run in range(2):
        # The same memory: its history is still there the second time.
        assert anyio.run(use, backend=loop) == list(range(1, 4 + 3 * run))
        assert not realtime.running


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_on_every_loop_a_wrong_configuration_is_an_error_and_no_hang(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    realtime = make_realtime()

    @asynccontextmanager
    async def broken(self: MemoryBroker, listener: Any) -> AsyncIterator[None]:
        raise ConfigurationError("mend it")
        yield

    monkeypatch.setattr(MemoryBroker, "run", broken)

    async def use() -> None:
        for _ in range(2):
            with anyio.fail_after(5), pytest.raises(ConfigurationError, match="mend it"):
                await realtime.publish("chat/1", "n", 1)

    anyio.run(use, backend=loop)


# Wrong configurations

BROKEN = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette_realtime import ConfigurationError, GuestAuth, Realtime, RealtimeMiddleware
from starlette_realtime.brokers.memory import MemoryBroker

@asynccontextmanager
async def broken(self, *args, **kwargs):
    raise ConfigurationError("the backend is not what the URL says: mend it")
    yield

MemoryBroker.run = broken
realtime = Realtime(auth=GuestAuth())
middleware = Starlette()
middleware.add_middleware(RealtimeMiddleware, realtime=realtime)
mount = Starlette(routes=[Mount("/realtime", app=realtime)], lifespan=realtime.lifespan)
alone = realtime
forgetful = Starlette(routes=[Mount("/realtime", app=realtime)])
"""


def uvicorn_process(tmp_path: Path, module: str, app: str) -> ServerProcess:
    (tmp_path / "broken.py").write_text(module)
    return ServerProcess(f"broken:{app}", output=tmp_path / "output.log", cwd=tmp_path)


@pytest.mark.parametrize("app", ["middleware", "mount", "alone"])
def test_a_wrong_configuration_ends_uvicorn_with_the_reason(tmp_path: Path, app: str) -> None:
    server = uvicorn_process(tmp_path, BROKEN, app)
    with pytest.raises(AssertionError, match="ended before"):
        server.start()
    assert server.returncode == 3
    assert "the backend is not what the URL says: mend it" in server.output
    assert "Application startup failed. Exiting." in server.output


def test_a_wrong_url_ends_uvicorn_with_the_reason(tmp_path: Path) -> None:
    module = (
        "from starlette_realtime import GuestAuth, Realtime\n"
        "app = Realtime('memroy://', auth=GuestAuth())\n"
    )
    server = uvicorn_process(tmp_path, module, "app")
    with pytest.raises(AssertionError, match="ended before"):
        server.start()
    assert server.returncode not in {0, None}
    assert "ConfigurationError" in server.output
    assert "'memroy://'" in server.output


async def test_on_first_use_a_wrong_configuration_is_an_error_and_no_hang(tmp_path: Path) -> None:
    server = uvicorn_process(tmp_path, BROKEN, "forgetful")
    await to_thread.run_sync(server.start)
    try:
        for _ in range(2):
            async with httpx.AsyncClient() as http:
                answer = await http.get(server.http("/realtime/health"), timeout=5)
                assert answer.status_code == 500
        assert "the backend is not what the URL says: mend it" in server.output
    finally:
        server.kill()


async def test_two_lifespans_for_one_server_are_reported(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    realtime = make_realtime()
    app = Starlette(lifespan=realtime.lifespan)
    app.add_middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")
    with pytest.raises(AssertionError, match="did not start"):
        serve(app)
    assert "running already" in caplog.text


async def test_sigterm_ends_the_process_while_clients_are_there(
    serve_process: Callable[..., ServerProcess],
) -> None:
    server: ServerProcess = await to_thread.run_sync(
        lambda: serve_process("examples.mounting.starlette_mount:app")
    )
    async with NativeClient.open(server.ws("/realtime/ws"), token="Ann") as ann:
        ending = asyncio.create_task(to_thread.run_sync(server.terminate))
        assert (await ann.closed())[0] == 1012
        assert await ending in {0, -15}
    assert "Application shutdown complete." in server.output
