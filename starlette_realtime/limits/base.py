"""Limits that hold over all processes: rates and numbers of holders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager


class LimitStore(ABC):
    """Token buckets and counted holders, by key.

    Guarantee: over all processes, a bucket gives at most `burst` plus `rate` a second; a key has at
    most `limit` holders. What is not renewed or used ends by itself.
    """

    @abstractmethod
    def run(self) -> AbstractAsyncContextManager[None]:
        """Return the store's lifetime."""

    @abstractmethod
    async def take(self, key: str, tokens: float, *, rate: float, burst: float) -> float:
        """Take up to `tokens` from a bucket that holds `burst` and fills with `rate` a second;
        return how many there were to take, possibly 0."""

    @abstractmethod
    async def acquire(self, key: str, holder: str, *, limit: int, ttl: float) -> bool:
        """Become one of at most `limit` holders for `ttl` seconds; return whether there was room.
        Who is one already stays one."""

    @abstractmethod
    async def renew(self, holds: Iterable[tuple[str, str]], ttl: float) -> list[tuple[str, str]]:
        """Let these (key, holder) hold on for `ttl` seconds from now; return those that hold no
        more."""

    @abstractmethod
    async def release(self, key: str, holder: str) -> None:
        """Hold no longer."""
