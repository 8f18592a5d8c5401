"""What every session store must do, as tests.

A store passes when a subclass of `SessionStoreContract` in its tests does:

    class TestMySessions(SessionStoreContract):
        @asynccontextmanager
        async def stores(self):
            async with MySessions(url).run() as one, MySessions(url).run() as other:
                yield one, other

The two stand for two processes; a store of one process yields itself twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager

from ...sessions.base import SessionRecord, SessionStore
from .recorder import StoreContract, together

LONG = 600.0


class SessionStoreContract(StoreContract, ABC):
    """Subclass it with `stores` of your own."""

    @abstractmethod
    def stores(self) -> AbstractAsyncContextManager[tuple[SessionStore, SessionStore]]:
        """Return a block that has two running stores over the same records."""

    def record(self, generation: int = 1, status: str = "online") -> SessionRecord:
        return SessionRecord(self.channel("session"), "/admin", "ann", generation, status)

    async def test_the_secret_is_the_same_for_all(self) -> None:
        async with self.stores() as (one, other):
            secret = await one.secret()
            assert len(secret) >= 32
            assert await other.secret() == secret
            assert await one.secret() == secret
            # What it is already counts, whatever a process believes.
            assert await other.secret(b"x" * 32) == secret

    async def test_a_session_is_resumed_as_it_was_with_its_next_generation(self) -> None:
        async with self.stores() as (one, other):
            record = self.record(status="out for lunch ☕\x00\n")
            await one.put(record, LONG)
            resumed = await other.resume(record.id, 1, LONG)
            assert resumed == SessionRecord(record.id, "/admin", "ann", 2, record.status)
            again = await one.resume(record.id, 2, LONG)
            assert again is not None and again.generation == 3

    async def test_an_anonymous_session_stays_anonymous(self) -> None:
        async with self.stores() as (one, other):
            record = SessionRecord(self.channel("session"), "/", None, 1)
            await one.put(record, LONG)
            resumed = await other.resume(record.id, 1, LONG)
            assert resumed == SessionRecord(record.id, "/", None, 2, "online")

    async def test_what_was_never_put_is_not_resumed(self) -> None:
        async with self.stores() as (one, _):
            for id in (self.channel("session"), "", "*", "x" * 5000, "\x00", "ü"):
                assert await one.resume(id, 1, LONG) is None

    async def test_one_generation_holds_twice_because_a_reply_may_be_lost(self) -> None:
        async with self.stores() as (one, other):
            record = self.record()
            await one.put(record, LONG)
            generations = [
                resumed.generation if (resumed := await store.resume(record.id, 1, LONG)) else None
                for store in (one, other, one, other)
            ]
            assert generations == [2, 3, None, None]

    async def test_neither_a_newer_nor_an_older_generation_is_taken(self) -> None:
        async with self.stores() as (one, _):
            record = self.record(generation=5)
            await one.put(record, LONG)
            for generation in (-1, 0, 3, 6, 7):
                assert await one.resume(record.id, generation, LONG) is None
            resumed = await one.resume(record.id, 4, LONG)
            assert resumed is not None and resumed.generation == 6

    async def test_of_many_at_once_no_two_get_the_same_generation(self) -> None:
        async with self.stores() as (one, other):
            record = self.record()
            await one.put(record, LONG)
            results = await together(
                [
                    lambda store=store: store.resume(record.id, 1, LONG)  # type: ignore[misc]
                    for store in [one, other] * 10
                ]
            )
            won = sorted(result.generation for result in results if result is not None)
            assert won == [2, 3]

    async def test_an_older_generation_never_replaces_a_newer_one(self) -> None:
        async with self.stores() as (one, other):
            record = self.record(generation=4, status="busy")
            await one.put(record, LONG)
            await other.put(SessionRecord(record.id, "/admin", "ann", 3, "away"), LONG)
            resumed = await one.resume(record.id, 4, LONG)
            assert resumed is not None
            assert (resumed.generation, resumed.status) == (5, "busy")

    async def test_the_same_generation_may_be_put_again_with_another_status(self) -> None:
        async with self.stores() as (one, other):
            record = self.record()
            await one.put(record, LONG)
            await one.put(SessionRecord(record.id, "/admin", "ann", 1, "away"), LONG)
            resumed = await other.resume(record.id, 1, LONG)
            assert resumed is not None and resumed.status == "away"

    async def test_a_session_ends_after_its_time(self) -> None:
        async with self.stores() as (one, other):
            short, long = self.record(), self.record()
            await one.put(short, self.unit)
            await one.put(long, LONG)
            await self.advance(self.unit * 1.5)
            assert await other.resume(short.id, 1, LONG) is None
            assert await other.resume(long.id, 1, LONG) is not None

    async def test_resuming_and_renewing_put_the_end_off_and_nearer(self) -> None:
        async with self.stores() as (one, other):
            resumed, renewed, shortened = self.record(), self.record(), self.record()
            for record in (resumed, renewed):
                await one.put(record, self.unit)
            await one.put(shortened, LONG)
            assert await other.resume(resumed.id, 1, LONG) is not None
            nobody = self.channel("nobody")
            asked = [(nobody, 1), (renewed.id, 1), (shortened.id, 1)]
            assert await other.renew(asked, LONG) == [(nobody, 0)]
            assert await one.renew([(shortened.id, 1)], self.unit) == []
            assert await one.renew([], LONG) == []
            await self.advance(self.unit * 1.5)
            assert await one.resume(resumed.id, 2, LONG) is not None
            assert await one.resume(renewed.id, 1, LONG) is not None
            assert await one.resume(shortened.id, 1, LONG) is None

    async def test_renewing_does_not_bring_back_what_has_ended(self) -> None:
        async with self.stores() as (one, _):
            record = self.record()
            await one.put(record, LONG)
            await one.end(record.id, 1)
            assert await one.renew([(record.id, 1)], LONG) == [(record.id, 0)]
            assert await one.resume(record.id, 1, LONG) is None

    async def test_renewing_late_does_not_shorten_what_was_resumed_since(self) -> None:
        async with self.stores() as (one, other):
            record, bystander = self.record(), self.record()
            for each in (record, bystander):
                await one.put(each, LONG)
            assert await other.resume(record.id, 1, LONG) is not None
            asked = [(record.id, 1), (bystander.id, 1)]
            assert await one.renew(asked, self.unit) == [(record.id, 2)]
            await self.advance(self.unit * 1.5)
            assert await other.renew([(record.id, 2)], LONG) == []
            assert await other.resume(record.id, 2, LONG) is not None
            assert await other.resume(bystander.id, 1, LONG) is None

    async def test_an_ended_session_is_gone_everywhere(self) -> None:
        async with self.stores() as (one, other):
            record = self.record()
            await one.put(record, LONG)
            assert await other.end(record.id, 1)
            assert await one.resume(record.id, 1, LONG) is None
            assert await other.end(record.id, 1)

    async def test_an_end_that_comes_late_does_not_end_what_was_resumed_since(self) -> None:
        async with self.stores() as (one, other):
            record = self.record()
            await one.put(record, LONG)
            assert await other.resume(record.id, 1, LONG) is not None
            assert not await one.end(record.id, 1)
            resumed = await other.resume(record.id, 2, LONG)
            assert resumed is not None and resumed.generation == 3
            assert await one.end(record.id, 3)
            assert await other.resume(record.id, 3, LONG) is None
