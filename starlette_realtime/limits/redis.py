"""Limits over many processes."""

from __future__ import annotations

from collections.abc import Iterable

from .._redis import RedisStore, load
from .._redis.keys import LARGEST_OFFSET, milliseconds, partition
from .base import LimitStore

_TAKE = load(__package__, "take.lua", stream=False)
_ACQUIRE = load(__package__, "acquire.lua", stream=False)
_RENEW = load(__package__, "renew.lua", stream=False)


class RedisLimits(RedisStore, LimitStore):
    """Limits in Redis, by the server's own clock. A full bucket and a key without holders take no
    memory.

    Args:
        server: a URL, or the server that other stores share.
    """

    async def take(self, key: str, tokens: float, *, rate: float, burst: float) -> float:
        taken = await self._server.run(
            partition(key), _TAKE, [self._key("b", key)], repr(tokens), repr(rate), repr(burst)
        )
        return float(taken)

    async def acquire(self, key: str, holder: str, *, limit: int, ttl: float) -> bool:
        held = await self._server.run(
            partition(key),
            _ACQUIRE,
            [self._key("n", key)],
            holder,
            max(0, min(limit, LARGEST_OFFSET)),
            milliseconds(ttl),
        )
        return bool(held)

    async def renew(self, holds: Iterable[tuple[str, str]], ttl: float) -> list[tuple[str, str]]:
        asked = list(holds)
        gone: list[tuple[str, str]] = []

        async def renew(where: int, batch: list[int]) -> None:
            keys = [self._key("n", asked[index][0]) for index in batch]
            holders = [asked[index][1] for index in batch]
            missing = await self._server.run(where, _RENEW, keys, milliseconds(ttl), *holders)
            gone.extend(asked[batch[place - 1]] for place in missing)

        await self._server.in_batches([key for key, _ in asked], renew)
        return gone

    async def release(self, key: str, holder: str) -> None:
        await self._server.call(partition(key), "ZREM", self._key("n", key), holder)

    def _key(self, kind: str, key: str) -> str:
        return f"{self._server.keys.head(partition(key))}{kind}:{key}"
