"""Fixtures of the tests that drive clients; a conftest imports what it needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.clients.app import ClientsServer
from tests.clients.network import Network, Networks
from tests.clients.visitors import NodeVisitor, PageVisitor, Visit, Visitor
from tests.support.browser import PageFactory
from tests.support.proxy import Proxy
from tests.support.server import FAST, LiveServer


@pytest.fixture
async def network(serve: Callable[..., LiveServer]) -> AsyncIterator[Networks]:
    """`await network(**options)` starts a server with these `Options`."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Network:
            server = ClientsServer(**options)
            live = serve(server.app, ws=FAST)
            return Network(server, live, await stack.enter_async_context(Proxy(live.port)))

        yield start


@pytest.fixture
async def visit_in_node() -> AsyncIterator[Visit]:
    async with AsyncExitStack() as stack:

        async def visit(origin: str) -> Visitor:
            return await stack.enter_async_context(NodeVisitor.open(origin))

        yield visit


@pytest.fixture
def visit_in_chromium(page: PageFactory) -> Visit:
    async def visit(origin: str) -> Visitor:
        return await PageVisitor.open(page, origin)

    return visit


@pytest.fixture(params=["chromium", "node"])
def visit(request: pytest.FixtureRequest) -> Any:
    """`await visit(origin)` opens the client there, in Chromium and then in Node."""
    return request.getfixturevalue(f"visit_in_{request.param}")
