"""Sessions that outlive their connection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import ClassVar

import msgspec


class SessionRecord(msgspec.Struct, frozen=True, gc=False):
    """What is known of a session on every process."""

    id: str
    ns: str
    user_id: str | None
    generation: int
    """Counts its connections, from 1."""
    status: str = "online"


class SessionStore(ABC):
    """Sessions by id, each with an end.

    Guarantee: each attempt to resume a session that succeeds, on any process, gives it a generation
    it never had; from one generation it is resumed at most twice.
    """

    shared: ClassVar[bool] = True
    """Whether a session may be resumed on another process than the one it was on."""

    @abstractmethod
    def run(self) -> AbstractAsyncContextManager[None]:
        """Return the store's lifetime."""

    @abstractmethod
    async def secret(self, known: bytes = b"") -> bytes:
        """Return the key resume tokens are signed with: the same on all processes. Its first 64
        bytes count.

        Args:
            known: what it was, so that a store that has lost it keeps it again.
        """

    @abstractmethod
    async def put(self, record: SessionRecord, ttl: float) -> None:
        """Keep or renew `record` for `ttl` seconds. An older generation never replaces a newer."""

    @abstractmethod
    async def resume(self, id: str, generation: int, ttl: float) -> SessionRecord | None:
        """Return the record with the next generation, which it has from now on, if the session is
        there and its generation is `generation` or the one after it: the reply that told the client
        of that one may have been lost with its connection. Else None."""

    @abstractmethod
    async def renew(self, sessions: list[tuple[str, int]], ttl: float) -> list[tuple[str, int]]:
        """Let these sessions, each with its generation, end in `ttl` seconds from now, unless they
        have been resumed since; return those that were not renewed, each with the newer generation
        that is there, 0 for none."""

    @abstractmethod
    async def end(self, id: str, generation: int) -> bool:
        """Forget a session, unless it has been resumed since, so that its generation is a newer
        one: then return False."""
