"""What every ticket store must do, as tests.

A store passes when a subclass of `TicketStoreContract` in its tests does:

    class TestMyTickets(TicketStoreContract):
        @asynccontextmanager
        async def store(self):
            tickets = MyTickets()
            async with tickets.run():
                yield tickets

The tests are marked for AnyIO's pytest plugin. A store that needs asyncio adds the fixture
`anyio_backend` to its subclass.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest

from ...auth.base import User
from ...tickets.base import TicketStore

ANN = User(
    id="ann",
    info={"name": "Ann", "picture": b"\x00\xff", "tags": ["a", None, 1.5]},
    expires_at=4102444800.5,
    capabilities=("chat/*", "game/7"),
    claims={"role": "admin", "nested": {"level": 2}},
)


@pytest.mark.anyio
class TicketStoreContract(ABC):
    """Subclass it with a `store` of your own."""

    @abstractmethod
    def store(self) -> AbstractAsyncContextManager[TicketStore]:
        """Return a block that has a fresh, running store."""

    async def let_pass(self, seconds: float) -> None:
        """Let time go by; a store with a clock of its own may turn that instead."""
        await anyio.sleep(seconds)

    async def test_a_ticket_brings_its_user_back_as_it_was(self) -> None:
        async with self.store() as tickets:
            assert await tickets.take(await tickets.issue(ANN)) == ANN
            plain = User(id="bob")
            assert await tickets.take(await tickets.issue(plain)) == plain
            nowhere = User(id="eve", capabilities=())
            assert await tickets.take(await tickets.issue(nowhere)) == nowhere

    async def test_a_ticket_works_once(self) -> None:
        async with self.store() as tickets:
            ticket = await tickets.issue(ANN)
            assert await tickets.take(ticket) is not None
            assert await tickets.take(ticket) is None

    async def test_of_many_at_once_exactly_one_gets_the_user(self) -> None:
        async with self.store() as tickets:
            ticket = await tickets.issue(ANN)
            taken: list[User] = []

            async def take() -> None:
                user = await tickets.take(ticket)
                if user is not None:
                    taken.append(user)

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(take)
            assert taken == [ANN]

    async def test_tickets_of_one_user_are_independent(self) -> None:
        async with self.store() as tickets:
            first, second = await tickets.issue(ANN), await tickets.issue(ANN)
            assert first != second
            assert await tickets.take(second) == ANN
            assert await tickets.take(first) == ANN

    async def test_a_ticket_ends_after_its_time(self) -> None:
        async with self.store() as tickets:
            short, long = await tickets.issue(ANN, ttl=0.1), await tickets.issue(ANN, ttl=60)
            await self.let_pass(0.2)
            assert await tickets.take(short) is None
            assert await tickets.take(long) == ANN

    @pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
    async def test_a_ticket_without_a_time_is_refused(self, ttl: float) -> None:
        async with self.store() as tickets:
            with pytest.raises(ValueError, match="ttl"):
                await tickets.issue(ANN, ttl=ttl)

    async def test_what_was_never_issued_is_nobody(self) -> None:
        async with self.store() as tickets:
            issued = await tickets.issue(ANN)
            for made_up in (
                "",
                "*",
                "x" * 10_000,
                "\x00",
                "ü\ud800",
                issued[:-1],
                issued.swapcase(),
            ):
                assert await tickets.take(made_up) is None
            assert await tickets.take(issued) == ANN

    async def test_a_ticket_fits_into_an_address_and_cannot_be_guessed(self) -> None:
        async with self.store() as tickets:
            # 22 characters of base64 hold 128 bits.
            assert re.fullmatch(r"[A-Za-z0-9_.~-]{22,256}", await tickets.issue(ANN))

    async def test_what_the_app_changes_later_does_not_change_the_ticket(self) -> None:
        info: dict[str, Any] = {"name": "Ann"}
        async with self.store() as tickets:
            ticket = await tickets.issue(User(id="ann", info=info))
            info["name"] = "Eve"
            user = await tickets.take(ticket)
            assert user is not None and user.info == {"name": "Ann"}

    async def test_a_user_that_cannot_be_stored_is_refused_at_once(self) -> None:
        async with self.store() as tickets:
            with pytest.raises(TypeError):
                await tickets.issue(User(id="ann", info=object()))
