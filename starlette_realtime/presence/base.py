"""Who is in a channel: leases of sessions, counted by user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager

import msgspec

from ..events import Draft, MemberInfo, Retention


class Lease(msgspec.Struct, frozen=True, gc=False):
    """One session's presence in one channel."""

    session_id: str
    user_id: str
    user: bytes = b"null"
    """What others may see of the user, in canonical form."""
    status: str = "online"


class Counts(msgspec.Struct, frozen=True):
    users: int
    sessions: int


class MemberPage(msgspec.Struct, frozen=True):
    """Some of a channel's users, ordered by user id. `cursor` asks for the next page; empty at the
    end."""

    members: list[MemberInfo]
    counts: Counts
    cursor: str = ""


class PresenceStore(ABC):
    """Leases with an end, kept alive by `renew`.

    Guarantee: over all processes, the first lease of a user in a channel and the end of the last
    are each noticed exactly once, and what announces them is published into the channel's stream
    in the same atomic step: whoever reads members and stream sees them agree. A lease whose time is
    over is removed by some process's `expire`, within its interval.
    """

    @abstractmethod
    def run(self) -> AbstractAsyncContextManager[None]:
        """Return the store's lifetime."""

    @abstractmethod
    async def enter(
        self,
        channel: str,
        lease: Lease,
        *,
        ttl: float,
        arrival: Draft | None,
        departure: Draft | None,
        retention: Retention,
    ) -> bool:
        """Give or renew a lease of `ttl` seconds; return whether it is the user's first here.

        `arrival` is published when it is. `departure` is kept, and published when the user's last
        lease ends, however it ends.
        """

    @abstractmethod
    async def leave(self, channel: str, session_id: str) -> bool:
        """End a lease now; return whether it was the user's last here."""

    @abstractmethod
    async def renew(self, leases: Iterable[tuple[str, str]], ttl: float) -> list[tuple[str, str]]:
        """Let these (channel, session id) leases end in `ttl` seconds from now; return those that
        no longer exist, which their owners must enter again."""

    @abstractmethod
    async def update(
        self, channel: str, session_id: str, *, user: bytes | None, status: str | None
    ) -> None:
        """Change what a lease shows of its user."""

    @abstractmethod
    async def members(self, channel: str, *, cursor: str = "", limit: int = 100) -> MemberPage:
        """Return up to `limit` users, those after `cursor`. A user with several sessions is shown
        once, as the session that entered or was updated last shows it."""

    @abstractmethod
    async def counts(self, channel: str) -> Counts:
        """Return how many users and sessions are in `channel`."""

    @abstractmethod
    async def expire(self) -> int:
        """Remove the leases whose time is over; return how many."""
