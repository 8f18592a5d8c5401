"""What every limit store must do, as tests.

A store passes when a subclass of `LimitStoreContract` in its tests does:

    class TestMyLimits(LimitStoreContract):
        @asynccontextmanager
        async def stores(self):
            async with MyLimits(url).run() as one, MyLimits(url).run() as other:
                yield one, other

The two stand for two processes; a store of one process yields itself twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from itertools import cycle

from ...limits.base import LimitStore
from .recorder import StoreContract, together

LONG = 600.0
SLOW = 1e-6
"""A rate at which nothing comes back while a test lasts."""


class LimitStoreContract(StoreContract, ABC):
    """Subclass it with `stores` of your own."""

    @abstractmethod
    def stores(self) -> AbstractAsyncContextManager[tuple[LimitStore, LimitStore]]:
        """Return a block that has two running stores over the same limits."""

    # Buckets

    async def test_a_new_bucket_is_full_and_gives_no_more_than_it_holds(self) -> None:
        async with self.stores() as (one, other):
            key = self.channel("bucket")
            taken = [
                await store.take(key, 4, rate=SLOW, burst=10) for store in (one, other, one, other)
            ]
            assert [round(tokens) for tokens in taken] == [4, 4, 2, 0]

    async def test_what_is_less_than_a_token_is_not_given(self) -> None:
        async with self.stores() as (one, _):
            key = self.channel("bucket")
            assert await one.take(key, 2, rate=SLOW, burst=2.5) == 2
            assert await one.take(key, 1, rate=SLOW, burst=2.5) == 0

    async def test_buckets_of_different_keys_are_strangers(self) -> None:
        async with self.stores() as (one, _):
            assert await one.take(self.channel("bucket"), 5, rate=SLOW, burst=5) == 5
            assert await one.take(self.channel("bucket"), 5, rate=SLOW, burst=5) == 5

    async def test_a_bucket_fills_with_its_rate_and_never_above_its_burst(self) -> None:
        async with self.stores() as (one, other):
            key = self.channel("bucket")
            rate = 4 / self.unit
            assert await one.take(key, 10, rate=rate, burst=10) == 10
            await self.advance(self.unit)
            some = await other.take(key, 10, rate=rate, burst=10)
            # No less than the time gives; a slow machine may give it more time.
            assert 3.99 <= some <= 10
            await self.advance(self.unit * 3)
            assert 9.99 <= await one.take(key, 100, rate=rate, burst=10) <= 10

    async def test_many_at_once_get_no_more_than_there_is(self) -> None:
        async with self.stores() as (one, other):
            key = self.channel("bucket")
            taken = await together(
                [
                    lambda store=store: store.take(key, 3, rate=SLOW, burst=20)  # type: ignore[misc]
                    for store in [one, other] * 10
                ]
            )
            assert 19 <= sum(taken) <= 20.001

    async def test_asking_in_vain_does_not_slow_the_filling(self) -> None:
        async with self.stores() as (one, _):
            key = self.channel("bucket")
            rate = 1 / self.unit
            assert await one.take(key, 1, rate=rate, burst=1) == 1
            for _ in range(4):
                await self.advance(self.unit / 3)
                if await one.take(key, 1, rate=rate, burst=1):
                    return
            raise AssertionError("a token was due after one unit of time")

    # Holders

    async def test_a_key_has_at_most_so_many_holders(self) -> None:
        async with self.stores() as (one, other):
            key = self.channel("key")
            stores = cycle((one, other))
            got = [
                await next(stores).acquire(key, f"holder {n}", limit=3, ttl=LONG) for n in range(5)
            ]
            assert got == [True, True, True, False, False]

    async def test_who_is_a_holder_stays_one(self) -> None:
        async with self.stores() as (one, other):
            key = self.channel("key")
            for store in (one, other, one):
                assert await store.acquire(key, "me", limit=1, ttl=LONG)
            assert not await one.acquire(key, "you", limit=1, ttl=LONG)
            # It was one holder, not three.
            await other.release(key, "me")
            assert await one.acquire(key, "you", limit=1, ttl=LONG)

    async def test_a_released_place_is_free_at_once(self) -> None:
        async with self.stores() as (one, other):
            key = self.channel("key")
            assert await one.acquire(key, "a", limit=2, ttl=LONG)
            assert await one.acquire(key, "b", limit=2, ttl=LONG)
            await other.release(key, "a")
            await other.release(key, "a")
            await other.release(key, "nobody")
            await other.release(self.channel("key"), "a")
            assert await other.acquire(key, "c", limit=2, ttl=LONG)
            assert not await one.acquire(key, "d", limit=2, ttl=LONG)

    async def test_a_limit_of_none_holds_nobody(self) -> None:
        async with self.stores() as (one, _):
            assert not await one.acquire(self.channel("key"), "a", limit=0, ttl=LONG)

    async def test_a_limit_may_change(self) -> None:
        async with self.stores() as (one, _):
            key = self.channel("key")
            for n in range(3):
                assert await one.acquire(key, f"{n}", limit=3, ttl=LONG)
            assert not await one.acquire(key, "new", limit=2, ttl=LONG)
            assert await one.acquire(key, "0", limit=2, ttl=LONG)
            assert await one.acquire(key, "new", limit=4, ttl=LONG)

    async def test_of_many_at_once_only_so_many_get_in(self) -> None:
        async with self.stores() as (one, other):
            key = self.channel("key")
            got = await together(
                [
                    lambda n=n, store=store: store.acquire(  # type: ignore[misc]
                        key, f"{n}", limit=5, ttl=LONG
                    )
                    for n, store in enumerate([one, other] * 10)
                ]
            )
            assert sum(got) == 5

    async def test_who_does_not_renew_holds_no_longer(self) -> None:
        async with self.stores() as (one, other):
            key = self.channel("key")
            assert await one.acquire(key, "crashed", limit=2, ttl=self.unit)
            assert await one.acquire(key, "alive", limit=2, ttl=self.unit)
            assert await other.renew([(key, "alive"), (key, "nobody")], LONG) == [(key, "nobody")]
            assert await one.renew([], LONG) == []
            await self.advance(self.unit * 1.5)
            assert await other.acquire(key, "new", limit=2, ttl=LONG)
            assert not await other.acquire(key, "newer", limit=2, ttl=LONG)

    async def test_renewing_makes_nobody_a_holder(self) -> None:
        async with self.stores() as (one, _):
            key = self.channel("key")
            assert await one.renew([(key, "a")], LONG) == [(key, "a")]
            assert await one.acquire(key, "b", limit=1, ttl=LONG)

    async def test_acquiring_again_puts_the_end_off(self) -> None:
        async with self.stores() as (one, other):
            key = self.channel("key")
            assert await one.acquire(key, "a", limit=1, ttl=self.unit)
            assert await other.acquire(key, "a", limit=1, ttl=LONG)
            await self.advance(self.unit * 1.5)
            assert not await one.acquire(key, "b", limit=1, ttl=LONG)
