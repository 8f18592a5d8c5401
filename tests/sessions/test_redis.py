"""The Redis session store: its contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.sessions.base import SessionStore
from starlette_realtime.sessions.redis import RedisSessions
from starlette_realtime.testing.contracts.sessions import SessionStoreContract


class TestContract(SessionStoreContract):
    @pytest.fixture(autouse=True)
    def server(self, restricted_url: str) -> None:
        self.url = restricted_url

    @asynccontextmanager
    async def stores(self) -> AsyncIterator[tuple[SessionStore, SessionStore]]:
        one, other = RedisSessions(self.url), RedisSessions(self.url)
        async with one.run(), other.run():
            yield one, other
