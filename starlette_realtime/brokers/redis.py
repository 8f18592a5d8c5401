"""The broker of many processes: streams and announcements in Redis."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from heapq import merge
from operator import attrgetter
from typing import Any, Final

import msgspec

from .._redis import Health, Reader, RedisServer, RedisURL, Refused, Script, load
from .._redis.keys import (
    LARGEST_OFFSET,
    Argument,
    chance,
    decode_publication,
    draft_arguments,
    partition,
    retention_arguments,
    unframe,
)
from ..errors import BrokerUnavailable, ConfigurationError
from ..events import Draft, Lane, Page, Position, Publication, Published, Recovery, Retention
from .base import HistoryBroker, Listener

logger = logging.getLogger("starlette_realtime")

IDEMPOTENCY_MS: Final = 600_000
RETRY_MS: Final = 60_000
"""How long the result of a publication without an id is remembered, for our own second tries."""

_PUBLISH = load(__package__, "publish.lua")
_RECOVER = load(__package__, "recover.lua")
_PAGE = load(__package__, "page.lua")
_FIND = load(__package__, "find.lua")

_encode = msgspec.msgpack.Encoder().encode
_offset = attrgetter("offset")


class RedisBroker(HistoryBroker):
    """Streams in Redis, shared by all processes with the same URL.

    Guarantees, beside the interface's: a publication is one round trip and one atomic script.
    During an outage a call goes on trying for `RedisURL.patience` seconds; a publication that is
    kept or has an id takes effect once, however often it was tried. Writes that were acknowledged
    and then lost in a failover are noticed by the nonces: a position that had them is not
    recovered. With `durability=replicated` a publication is acknowledged once a replica has it.
    Subscriptions are made anew after any outage, and the listener is told which channels may have
    missed something.

    Args:
        server: a URL, or the server that other stores share.
    """

    def __init__(self, server: RedisServer | RedisURL | str) -> None:
        self._server = server if isinstance(server, RedisServer) else RedisServer(server)
        self._reader: Reader | None = None
        self._listener: Listener | None = None
        # Subscribed channels by Redis channel: one each, or in a Cluster those of a partition.
        self._channels: dict[bytes, set[str]] = {}

    @asynccontextmanager
    async def run(self, listener: Listener) -> AsyncIterator[None]:
        async with self._server.open():
            reader = Reader(self._server, self._heard, self._missed)
            self._listener = listener
            try:
                async with reader.run():
                    self._reader = reader
                    await self._check()
                    yield
            finally:
                self._reader = self._listener = None
                self._channels.clear()

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """The lifetime of a broker that listens to nothing: inside the block it publishes and
        reads.

        Raises:
            ConfigurationError: as `run`.
        """
        async with self._server.open():
            await self._check()
            yield

    async def _check(self) -> None:
        """See that the user may run scripts, before the first message needs it."""
        try:
            await self._server.run(0, _FIND, [f"{self._server.keys.head(0)}m:check"], "check")
        except Refused as error:
            raise ConfigurationError(f"{self._server.url}: {error}") from None

    def health(self) -> Health:
        """Return how the listening side is: whether announcements come through, as probes that go
        the same way see it."""
        if self._reader is None:
            return Health(False, 0, 0, 0, 0.0, None, "not running")
        return self._reader.health()

    # Publishing

    async def publish(self, channel: str, draft: Draft, retention: Retention) -> Published:
        return await self._publish(channel, draft, retention_arguments(retention))

    async def publish_from_outside(
        self, channel: str, draft: Draft, default: Retention
    ) -> Published:
        """Publish like `publish`, and keep as much as those who published here before;
        `default` is for a channel that nobody has published to."""
        return await self._publish(channel, draft, retention_arguments(default, default=True))

    async def _publish(self, channel: str, draft: Draft, retention: list[Argument]) -> Published:
        server = self._server
        where = partition(channel)
        if (
            draft.lane is Lane.NONE
            and not draft.id
            and not draft.amends
            and not server.keys.sharded
        ):
            publication = self._ephemeral(draft)
            name = server.keys.announced(channel)
            await server.call(where, "PUBLISH", name, _encode(publication), twice=False)
            return Published(publication.position)
        digits = chance()
        keys = [server.keys.meta(channel)]
        safe = draft.lane is not Lane.NONE or draft.id != ""
        if safe:
            kind, id = ("i", draft.id) if draft.id else ("j", digits)
            keys.append(f"{server.keys.head(where)}{kind}:{len(channel)}:{channel}{id}")
        replicated = server.url.durability == "replicated" and draft.lane is not Lane.NONE
        answer: bytes = await server.run(
            where,
            _PUBLISH,
            keys,
            *draft_arguments(draft),
            *retention,
            server.keys.announcements,
            digits,
            IDEMPOTENCY_MS if draft.id else RETRY_MS,
            int(replicated),
            twice=safe,
            replicated=replicated,
        )
        outcome, offset, epoch, nonce = answer.decode().split(":")
        # Without an id of its own, a duplicate is our own second try.
        duplicate = outcome == "1" and draft.id != ""
        return Published(
            Position(epoch, int(offset), nonce), duplicate=duplicate, conflict=outcome == "2"
        )

    # Subscribing

    async def subscribe(self, channels: Iterable[str]) -> None:
        reader = self._running()
        fresh: list[str] = []
        wanted: dict[bytes, int] = {}
        for channel in dict.fromkeys(channels):
            name = self._server.keys.announced(channel)
            wanted[name] = partition(channel)
            members = self._channels.setdefault(name, set())
            if channel not in members:
                members.add(channel)
                fresh.append(channel)
        try:
            await reader.subscribe(wanted.items())
        except BaseException:
            reader.unwant(self._drop(fresh))
            raise

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        reader = self._running()
        done = self._drop(channels)
        if done:
            await reader.unsubscribe(done)

    def _drop(self, channels: Iterable[str]) -> list[bytes]:
        """Want these no more; return the Redis channels that nobody wants now."""
        done = []
        for channel in channels:
            name = self._server.keys.announced(channel)
            members = self._channels.get(name)
            if members is not None and channel in members:
                members.remove(channel)
                if not members:
                    del self._channels[name]
                    done.append(name)
        return done

    def _running(self) -> Reader:
        if self._reader is None:
            raise BrokerUnavailable("the broker is not running")
        return self._reader

    def _heard(self, name: bytes, data: bytes) -> None:
        members = self._channels.get(name)
        if members is None or self._listener is None:
            return
        if self._server.keys.sharded:
            channel, data = unframe(data)
            if channel not in members:
                return
        else:
            (channel,) = members
        self._listener.received(channel, decode_publication(data))

    def _missed(self, names: list[bytes]) -> None:
        channels = [channel for name in names for channel in self._channels.get(name, ())]
        if channels and self._listener is not None:
            self._listener.interrupted(channels)

    # Reading

    async def recover(self, channel: str, since: Position, limit: int) -> Recovery:
        start = since.offset if 0 <= since.offset <= LARGEST_OFFSET else -1
        limit = max(0, min(limit, LARGEST_OFFSET))
        found: list[Publication] = []
        nonce = since.nonce
        while True:
            epoch, offset, last, *rest = await self._read(
                channel, _RECOVER, since.epoch, start, limit
            )
            position = Position(epoch.decode(), offset, last.decode())
            lost = Recovery([], position, recovered=False)
            if not rest[0]:
                return lost
            _, reached, history, amendments, presence = rest
            part = list(
                merge(
                    _amended(history, amendments),
                    map(decode_publication, presence),
                    key=_offset,
                )
            )
            # A hole, or another publication at the position than the one that was seen there.
            if len(part) != reached - start:
                return lost
            for publication in part:
                if nonce and publication.previous != nonce:
                    return lost
                nonce = publication.nonce
            found += part
            limit -= len(part)
            start = reached
            if start == offset:
                if nonce and nonce != position.nonce:
                    return lost
                return Recovery(found, position, recovered=True)

    async def page(
        self, channel: str, *, before: int | None = None, after: int | None = None, limit: int
    ) -> Page:
        limit = max(0, min(limit, LARGEST_OFFSET))
        if after is not None:
            bounds: tuple[str, str | int] = ("after", max(0, min(after, LARGEST_OFFSET)))
        elif before is None or before > LARGEST_OFFSET:
            bounds = ("before", "+inf")
        else:
            bounds = ("before", max(0, before - 1))
        epoch, offset, nonce, more, payloads, amendments = await self._read(
            channel, _PAGE, *bounds, limit
        )
        publications = list(_amended(payloads, amendments))
        if bounds[0] == "before":
            publications.reverse()
        return Page(publications, Position(epoch.decode(), offset, nonce.decode()), bool(more))

    async def find(self, channel: str, id: str) -> Publication | None:
        found = await self._server.run(
            partition(channel), _FIND, [self._server.keys.meta(channel)], id
        )
        if not found:
            return None
        return next(_amended(found[:1], found[1:] or [None]))

    async def _read(self, channel: str, script: Script, *arguments: str | int) -> Any:
        while True:
            answer = await self._server.run(
                partition(channel),
                script,
                [self._server.keys.meta(channel)],
                chance(),
                *arguments,
            )
            # Empty while there is too much to clear away in one step.
            if answer:
                return answer

    @staticmethod
    def _ephemeral(draft: Draft) -> Publication:
        return Publication(
            draft.event,
            draft.data,
            lane=int(draft.lane),
            exclude=draft.exclude,
            volatile=draft.volatile,
            key=draft.key,
            time=draft.time or int(time.time() * 1000),
        )


def _amended(
    payloads: Iterable[bytes], amendments: Iterable[bytes | None]
) -> Iterator[Publication]:
    for payload, amended in zip(payloads, amendments, strict=True):
        publication = decode_publication(payload)
        if amended is not None:
            publication = msgspec.structs.replace(publication, data=amended)
        yield publication
