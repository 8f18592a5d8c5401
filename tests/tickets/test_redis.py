"""The Redis ticket store: its contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

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
