"""Presence of many processes: leases in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import msgspec

from .._redis import RedisStore, load
from .._redis.keys import (
    LARGEST_OFFSET,
    PARTITIONS,
    Argument,
    chance,
    draft_arguments,
    milliseconds,
    partition,
    retention_arguments,
)
from ..events import Draft, MemberInfo, Retention
from .base import Counts, Lease, MemberPage, PresenceStore

_ENTER = load(__package__, "leases.lua", "enter.lua")
_LEAVE = load(__package__, "leases.lua", "leave.lua")
_RENEW = load(__package__, "leases.lua", "renew.lua")
_UPDATE = load(__package__, "leases.lua", "update.lua")
_MEMBERS = load(__package__, "leases.lua", "members.lua")
_COUNTS = load(__package__, "leases.lua", "counts.lua")
_EXPIRE = load(__package__, "leases.lua", "expire.lua")

_NO_DRAFT: Final[list[Argument]] = ["", "", 0, "", "", "", 0, ""]


class RedisPresence(RedisStore, PresenceStore):
    """Leases in Redis, announced through the streams that `RedisBroker` reads and announces.

    Guarantees, beside the interface's: time is the server's own, so that clocks of processes do not
    matter. Any process's `expire` ends the leases of one that died. Leases survive the store: they
    end by their time. After an outage a call is tried again; `enter` and `leave` then still take
    effect once, but their result may tell of the second try.

    Args:
        server: a URL, or the server that other stores share.
    """

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
        first = await self._server.run(
            partition(channel),
            _ENTER,
            [self._server.keys.meta(channel)],
            lease.session_id,
            lease.user_id,
            lease.user,
            lease.status,
            milliseconds(ttl),
            self._server.keys.announcements,
            chance(),
            *retention_arguments(retention),
            *_optional(arrival),
            *_optional(departure),
        )
        return bool(first)

    async def leave(self, channel: str, session_id: str) -> bool:
        last = await self._server.run(
            partition(channel),
            _LEAVE,
            [self._server.keys.meta(channel)],
            session_id,
            self._server.keys.announcements,
            chance(),
        )
        return bool(last)

    async def renew(self, leases: Iterable[tuple[str, str]], ttl: float) -> list[tuple[str, str]]:
        asked = list(leases)
        gone: set[int] = set()

        async def renew(where: int, batch: list[int]) -> None:
            by_channel: dict[str, list[int]] = {}
            for index in batch:
                by_channel.setdefault(asked[index][0], []).append(index)
            arguments: list[Argument] = [milliseconds(ttl)]
            for indexes in by_channel.values():
                arguments.append(len(indexes))
                arguments += [asked[index][1] for index in indexes]
            keys = [self._server.keys.meta(channel) for channel in by_channel]
            missing = await self._server.run(where, _RENEW, keys, *arguments)
            order = [index for indexes in by_channel.values() for index in indexes]
            gone.update(order[place - 1] for place in missing)

        await self._server.in_batches([channel for channel, _ in asked], renew)
        return [lease for index, lease in enumerate(asked) if index in gone]

    async def update(
        self, channel: str, session_id: str, *, user: bytes | None, status: str | None
    ) -> None:
        await self._server.run(
            partition(channel),
            _UPDATE,
            [self._server.keys.meta(channel)],
            session_id,
            int(user is not None),
            user or b"",
            int(status is not None),
            status or "",
        )

    async def members(self, channel: str, *, cursor: str = "", limit: int = 100) -> MemberPage:
        limit = max(0, min(limit, LARGEST_OFFSET))
        users, sessions, more, *rest = await self._server.run(
            partition(channel), _MEMBERS, [self._server.keys.meta(channel)], cursor, limit
        )
        members = [
            MemberInfo(rest[n].decode(), msgspec.Raw(rest[n + 1]), rest[n + 2].decode())
            for n in range(0, len(rest), 3)
        ]
        after = members[-1].user_id if more and members else ""
        return MemberPage(members, Counts(users, sessions), after)

    async def counts(self, channel: str) -> Counts:
        users, sessions = await self._server.run(
            partition(channel), _COUNTS, [self._server.keys.meta(channel)]
        )
        return Counts(users, sessions)

    async def expire(self) -> int:
        keys = self._server.keys
        ends = [keys.ends(where) for where in range(PARTITIONS)]
        if not keys.sharded:
            return await self._expire(0, ends)
        calls = (self._expire(where, [ends[where]]) for where in range(PARTITIONS))
        return sum(await asyncio.gather(*calls))

    async def _expire(self, where: int, ends: list[str]) -> int:
        removed: int = 0
        while True:
            ended, more = await self._server.run(
                where, _EXPIRE, ends, self._server.keys.announcements, chance()
            )
            removed += ended
            if not more:
                return removed


def _optional(draft: Draft | None) -> list[Argument]:
    return [0, *_NO_DRAFT] if draft is None else [1, *draft_arguments(draft)]
