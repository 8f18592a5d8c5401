"""Limits of a single process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import msgspec

from .base import LimitStore

MAX_BUCKETS = 100_000


class _Bucket(msgspec.Struct, gc=False):
    """There were `level` tokens at `then` (seconds)."""

    level: float
    then: float


class MemoryLimits(LimitStore):
    """Limits of one process. `clock` counts seconds.

    At most 100 000 buckets are remembered; the one used longest ago, most likely full again, goes
    first.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._holders: dict[str, dict[str, float]] = {}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._buckets.clear()
            self._holders.clear()

    async def take(self, key: str, tokens: float, *, rate: float, burst: float) -> float:
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(burst, now)
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        level = min(burst, bucket.level + (now - bucket.then) * rate)
        taken = min(tokens, level)
        if taken < 1:
            taken = 0.0
        bucket.level, bucket.then = level - taken, now
        return taken

    async def acquire(self, key: str, holder: str, *, limit: int, ttl: float) -> bool:
        now = self._clock()
        holders = self._holders.get(key)
        if holders is None:
            if limit < 1:
                return False
            holders = self._holders[key] = {}
        if holder not in holders and len(holders) >= limit:
            for lapsed in [one for one, until in holders.items() if until <= now]:
                del holders[lapsed]
            if len(holders) >= limit:
                return False
        holders[holder] = now + ttl
        return True

    async def renew(self, holds: Iterable[tuple[str, str]], ttl: float) -> list[tuple[str, str]]:
        until = self._clock() + ttl
        gone = []
        for key, holder in holds:
            holders = self._holders.get(key)
            if holders is not None and holder in holders:
                holders[holder] = until
            else:
                gone.append((key, holder))
        return gone

    async def release(self, key: str, holder: str) -> None:
        holders = self._holders.get(key)
        if holders is not None:
            holders.pop(holder, None)
            if not holders:
                del self._holders[key]
