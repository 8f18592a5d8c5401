"""Fixtures of the tests that drive clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.clients.visitors import NodeVisitor, PageVisitor, Visit, Visitor
from tests.support.browser import PageFactory


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
