"""Fixtures for all tests, and the rules that hold for all of them.

Async tests are AnyIO's: `pytestmark = pytest.mark.anyio` in the module, asyncio unless the test
says `@both_loops` (tests/support/loops.py).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.support")

from tests.support import ci  # noqa: E402
from tests.support.browser import Chromium, PageFactory, chromium_binary, connected  # noqa: E402
from tests.support.ports import Certificate  # noqa: E402
from tests.support.redis_server import RedisServer, documented_rights, redis_binary  # noqa: E402
from tests.support.server import App, LiveServer, ServerProcess  # noqa: E402

# Machines differ in speed, and a slow one is no bug; in CI the same examples are tried each time.
settings.register_profile("tests", deadline=None, derandomize=ci.in_ci())
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ci, "counted-as-failures")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    # AnyIO keeps one event loop as long as an async fixture lives. One that outlives its test would
    # have later tests run in that loop, those for trio too, without a word.
    function = fixturedef.func
    asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if asynchronous and fixturedef.scope != "function":
        pytest.fail(
            f"async fixture {fixturedef.argname!r} has scope {fixturedef.scope!r}: "
            "make it scope='function', or synchronous",
            pytrace=False,
        )


def limited(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    @wraps(test)
    async def run(**arguments: Any) -> None:
        with anyio.fail_after(seconds):
            await test(**arguments)

    return run


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # pytest-timeout's alarm goes off in the middle of the event loop, and trio does not get over
    # it. So an async test is cancelled before: it fails where it waits, and cleans up after itself.
    default = float(config.getini("timeout"))
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("timeout")
            seconds = float(marker.args[0]) if marker is not None and marker.args else default
            if seconds > 0:
                item.obj = limited(item.obj, 0.9 * seconds)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def serve() -> Iterator[Callable[..., LiveServer]]:
    """`serve(app, **options)` starts a `LiveServer` that stops after the test."""
    with ExitStack() as stack:

        def start(app: App, **options: Any) -> LiveServer:
            return stack.enter_context(LiveServer(app, **options))

        yield start


@pytest.fixture
def serve_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., ServerProcess]]:
    """`serve_process("module:app", **options)` starts a `ServerProcess` for the test."""
    with ExitStack() as stack:

        def start(app: str, **options: Any) -> ServerProcess:
            output = tmp_path_factory.mktemp("server") / "output.log"
            return stack.enter_context(ServerProcess(app, output=output, **options))

        yield start


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A self-signed certificate for 127.0.0.1: `serve(app, certificate=certificate)`."""
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's Redis. A test that harms it takes `own_redis` instead."""
    if redis_binary() is None:
        pytest.skip("redis-server is not installed")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the session's Redis, emptied before each test."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def restricted(redis_server: RedisServer) -> str:
    """The session's Redis for a user who may do what docs/deployment.md says, and no more."""
    # Nor may it look for keys, or read all of something that grows with rooms or members.
    looking = ["-keys", "-scan", "-hscan", "-sscan", "-zscan", "-hgetall", "-hkeys", "-hvals"]
    answer = redis_server.command_line(
        "ACL", "SETUSER", "realtime", "reset", *documented_rights(), *looking
    )
    assert answer == b"+OK\r\n", answer
    return f"redis://realtime:password@127.0.0.1:{redis_server.port}/0"


@pytest.fixture
def restricted_url(redis_url: str, restricted: str) -> str:
    """`redis_url` with the rights that docs/deployment.md gives: whatever the stores do has to get
    by with these."""
    return restricted


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """`own_redis(**options)` starts a `RedisServer` for this test alone, to be harmed by it."""
    if redis_binary() is None:
        pytest.skip("redis-server is not installed")
    with ExitStack() as stack:

        def start(**options: Any) -> RedisServer:
            folder = tmp_path / f"redis-{len(list(tmp_path.glob('redis-*')))}"
            folder.mkdir()
            return stack.enter_context(RedisServer(folder, **options))

        yield start


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """The session's browser process."""
    if chromium_binary() is None:
        pytest.skip("chromium is not installed")
    with Chromium(tmp_path_factory.mktemp("chromium")) as process:
        yield process


@pytest.fixture
async def browser(chromium: Chromium, anyio_backend: object) -> AsyncIterator[Any]:
    """Playwright's `Browser`, connected to the session's browser."""
    async with connected(chromium) as browser:
        yield browser


@pytest.fixture
async def page(browser: Any) -> AsyncIterator[PageFactory]:
    """`await page(url)` opens a page as a new visitor; an unexpected error in it fails the test."""
    factory = PageFactory(browser)
    yield factory
    await factory.close()
    assert not factory.errors, "\n".join(["errors in the page:", *factory.errors])
