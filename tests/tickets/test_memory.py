from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.auth import User
from starlette_realtime.errors import Unavailable
from starlette_realtime.testing.contracts.tickets import TicketStoreContract
from starlette_realtime.tickets import MemoryTickets, TicketStore

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
class TestMemoryTickets(TicketStoreContract):
    clock = Clock()

    @asynccontextmanager
    async def store(self) -> AsyncIterator[TicketStore]:
        tickets = MemoryTickets(clock=self.clock)
        async with tickets.run():
            yield tickets

    async def let_pass(self, seconds: float) -> None:
        self.clock.now += seconds


async def test_the_number_of_tickets_is_bounded() -> None:
    clock = Clock()
    tickets = MemoryTickets(max_tickets=3, clock=clock)
    issued = [await tickets.issue(User(id=f"user-{n}")) for n in range(3)]
    with pytest.raises(Unavailable, match="Too many tickets"):
        await tickets.issue(User(id="late"))
    # Used or expired ones make room.
    assert await tickets.take(issued[0]) is not None
    await tickets.issue(User(id="late"), ttl=60)
    clock.now += 31
    for n in range(2):
        await tickets.issue(User(id=f"later-{n}"))
    with pytest.raises(Unavailable):
        await tickets.issue(User(id="latest"))


async def test_one_user_does_not_use_up_everyones_tickets() -> None:
    tickets = MemoryTickets(max_tickets=10, max_per_user=2)
    bobs = await tickets.issue(User(id="bob"))
    anns = [await tickets.issue(User(id="ann")) for _ in range(100)]
    taken = [await tickets.take(ticket) for ticket in anns]
    assert [user is not None for user in taken] == [False] * 98 + [True] * 2
    assert await tickets.take(bobs) == User(id="bob")


async def test_nothing_is_left_of_used_and_expired_tickets() -> None:
    clock = Clock()
    tickets = MemoryTickets(clock=clock)
    for n in range(2000):
        ticket = await tickets.issue(User(id=f"user-{n}"), ttl=3600)
        assert await tickets.take(ticket) is not None
    assert sum(len(kept) for kept in (tickets._issued, tickets._by_user, tickets._ends)) < 200
    for n in range(2000):
        await tickets.issue(User(id=f"user-{n}"), ttl=1)
        clock.now += 2
    assert sum(len(kept) for kept in (tickets._issued, tickets._by_user, tickets._ends)) < 200


async def test_tickets_are_not_kept_in_the_clear() -> None:
    tickets = MemoryTickets()
    ticket = await tickets.issue(User(id="ann"))
    assert ticket not in repr(vars(tickets))


async def test_tickets_end_with_the_store() -> None:
    tickets = MemoryTickets()
    async with tickets.run():
        ticket = await tickets.issue(User(id="ann"))
    assert await tickets.take(ticket) is None
