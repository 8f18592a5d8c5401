"""The Redis ticket store: its contract, and what is its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.auth import User
from starlette_realtime.testing.contracts.tickets import TicketStoreContract
from starlette_realtime.tickets import TicketStore
from starlette_realtime.tickets.redis import RedisTickets

pytestmark = pytest.mark.anyio


class TestContract(TicketStoreContract):
    @pytest.fixture(autouse=True)
    def server(self, restricted_url: str) -> None:
        self.url = restricted_url

    @asynccontextmanager
    async def store(self) -> AsyncIterator[TicketStore]:
        tickets = RedisTickets(self.url)
        async with tickets.run():
            yield tickets


async def test_of_many_workers_exactly_one_gets_the_user(redis_url: str) -> None:
    one, two = RedisTickets(redis_url), RedisTickets(redis_url)
    async with one.run(), two.run():
        ticket = await one.issue(User(id="ann"))
        found = await asyncio.gather(*(store.take(ticket) for store in (two, one) * 10))
        assert [user for user in found if user is not None] == [User(id="ann")]
