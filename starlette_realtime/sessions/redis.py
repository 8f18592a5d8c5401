"""Sessions of many processes."""

from __future__ import annotations

import secrets

import msgspec

from .._redis import RedisStore, load
from .._redis.keys import chance, milliseconds, partition
from .base import SessionRecord, SessionStore

_PUT = load(__package__, "put.lua", stream=False)
_RESUME = load(__package__, "resume.lua", stream=False)
_RENEW = load(__package__, "renew.lua", stream=False)
_END = load(__package__, "end.lua", stream=False)


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """What is stored beside the generation."""

    ns: str
    user_id: str | None
    status: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class RedisSessions(RedisStore, SessionStore):
    """Sessions in Redis, which forgets them when their time is over. A call whose answer was lost
    is tried again, and then resumes a session no second time.

    Args:
        server: a URL, or the server that other stores share.
    """

    async def secret(self, known: bytes = b"") -> bytes:
        key = f"{self._server.keys.head(0)}secret"
        fresh = known or secrets.token_bytes(32)
        kept: bytes | None = await self._server.call(0, "SET", key, fresh, "NX", "GET")
        return fresh if kept is None else kept

    async def put(self, record: SessionRecord, ttl: float) -> None:
        kept = _encode(_Kept(record.ns, record.user_id, record.status))
        await self._server.run(
            partition(record.id),
            _PUT,
            [self._key(record.id)],
            record.generation,
            kept,
            milliseconds(ttl),
        )

    async def resume(self, id: str, generation: int, ttl: float) -> SessionRecord | None:
        found = await self._server.run(
            partition(id), _RESUME, [self._key(id)], generation, milliseconds(ttl), chance()
        )
        if not found:
            return None
        kept = _decode(found[1])
        return SessionRecord(id, kept.ns, kept.user_id, found[0], kept.status)

    async def renew(self, sessions: list[tuple[str, int]], ttl: float) -> list[tuple[str, int]]:
        others: list[tuple[str, int]] = []

        async def renew(where: int, batch: list[int]) -> None:
            keys = [self._key(sessions[index][0]) for index in batch]
            generations = [sessions[index][1] for index in batch]
            found = await self._server.run(where, _RENEW, keys, milliseconds(ttl), *generations)
            for place, generation in zip(found[::2], found[1::2], strict=True):
                others.append((sessions[batch[place - 1]][0], generation))

        await self._server.in_batches([id for id, _ in sessions], renew)
        return others

    async def end(self, id: str, generation: int) -> bool:
        return bool(await self._server.run(partition(id), _END, [self._key(id)], generation))

    def _key(self, id: str) -> str:
        return f"{self._server.keys.head(partition(id))}s:{id}"
