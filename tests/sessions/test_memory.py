from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.sessions import MemorySessions, SessionRecord, SessionStore
from starlette_realtime.testing.contracts.recorder import FakeClock
from starlette_realtime.testing.contracts.sessions import SessionStoreContract
from tests.support.loops import both_loops
from tests.support.stores import OnFakeClock

pytestmark = pytest.mark.anyio


@both_loops
class TestMemorySessions(OnFakeClock, SessionStoreContract):
    @asynccontextmanager
    async def stores(self) -> AsyncIterator[tuple[SessionStore, SessionStore]]:
        sessions = MemorySessions(clock=self.clock)
        async with sessions.run():
            yield sessions, sessions


async def test_the_number_of_records_is_bounded() -> None:
    sessions = MemorySessions(max_sessions=10)
    for n in range(100):
        await sessions.put(SessionRecord(str(n), "/", None, 1), 60)
    assert len(sessions._records) == 10
    assert await sessions.resume("99", 1, 60) is not None
    assert await sessions.resume("89", 1, 60) is None


async def test_nothing_is_left_of_what_has_lapsed() -> None:
    clock = FakeClock()
    sessions = MemorySessions(clock=clock)
    for n in range(1000):
        await sessions.put(SessionRecord(str(n), "/", None, 1), 10)
        clock.advance(1)
    assert len(sessions._records) < 20


async def test_each_store_has_a_secret_of_its_own() -> None:
    assert await MemorySessions().secret() != await MemorySessions().secret()
