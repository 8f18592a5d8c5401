"""Private messages of many processes."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from .._redis import RedisServer, RedisURL, Script, load
from .._redis.keys import LARGEST_OFFSET, Argument, chance, milliseconds, partition
from ..events import Kept, Letter, Letters
from .base import MAX_DEVICES, InboxStore


def _load(name: str) -> Script:
    return load(__package__, "letters.lua", name, stream=False)


_APPEND = _load("append.lua")
_AFTER = _load("after.lua")
_CONVERSATION = _load("conversation.lua")
_FIND = _load("find.lua")
_DEVICE = _load("device.lua")
_MARK = _load("mark.lua")

# Offset, when it was kept (ms), length of the head: see letters.lua.
_PLACE: Final = struct.Struct(">QQI")


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """What the scripts look at, and what is remembered of a letter that was trimmed."""

    id: str
    sender_id: str
    target_id: str
    time: int


class _Rest(msgspec.Struct, frozen=True, array_like=True):
    sender: bytes
    content: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_Head).decode
_decode_rest = msgspec.msgpack.Decoder(_Rest).decode


class RedisInbox(InboxStore):
    """Streams in Redis: a handful of keys for each user, which end by themselves.

    Guarantees, beside the interface's: time is the server's own. Everything about one user shares a
    hash tag, and a call is one script on it, in a Cluster too. The streams of two people may be on
    two nodes, and no step spans both: a letter is in its target's stream first and in its sender's
    a moment later. If what happens in between fails, sending it again under the same id completes
    it: where it is, it is found by its id, and where it is not, it is put.

    A call whose answer was lost is tried again. `append` then may call its own letter a duplicate;
    all other answers are the same.

    Where a stream and its devices stand is forgotten 90 days after the last letter or call of a
    device, or twice the age of letters where that is longer. Offsets then begin anew, as they may
    where a failover loses what no replica had; with `durability=replicated` a letter counts as kept
    once a replica has it.

    A stream is bounded, and so is each page in bytes (half a megabyte). How many users have one is
    not: whoever may write to any id makes a stream for each that it names.

    Args:
        server: a URL, or the server that other stores share.
    """

    def __init__(self, server: RedisServer | RedisURL | str) -> None:
        self._server = server if isinstance(server, RedisServer) else RedisServer(server)
        self._replicated = self._server.url.durability == "replicated"

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        async with self._server.open():
            yield

    async def append(
        self, owner_id: str, letter: Letter, *, size: int, per_peer: int, age: float
    ) -> Kept:
        what, *found = await self._call(
            owner_id,
            _APPEND,
            _encode(_Head(letter.id, letter.sender_id, letter.target_id, letter.time)),
            _encode(_Rest(letter.sender, letter.content)),
            _bounded(size),
            _bounded(per_peer),
            milliseconds(age),
            replicated=self._replicated,
        )
        match what:
            case b"new":
                return Kept(_letter(found[0], False))
            case b"kept":
                return Kept(_letter(*found), duplicate=True)
            case _:
                return Kept(_trimmed(found[0]), duplicate=True)

    async def after(self, owner_id: str, offset: int, *, limit: int) -> Letters:
        more, *found = await self._call(owner_id, _AFTER, _bounded(offset), _bounded(limit))
        return Letters(_letters(found), more=bool(more))

    async def open(self, owner_id: str, device_id: str) -> tuple[int, int]:
        cursor, end = await self._call(owner_id, _DEVICE, device_id, 0, MAX_DEVICES)
        return cursor, end

    async def acknowledge(self, owner_id: str, device_id: str, offset: int) -> int:
        cursor: int
        cursor, _ = await self._call(owner_id, _DEVICE, device_id, _bounded(offset), MAX_DEVICES)
        return cursor

    async def conversation(
        self, owner_id: str, peer_id: str, *, before: int | None = None, limit: int
    ) -> Letters:
        start = LARGEST_OFFSET if before is None else _bounded(before)
        more, *found = await self._call(owner_id, _CONVERSATION, peer_id, start, _bounded(limit))
        return Letters(_letters(found)[::-1], more=bool(more))

    async def find(self, owner_id: str, id: str) -> Letter | None:
        found = await self._call(owner_id, _FIND, id)
        return _letter(*found) if found else None

    async def mark_read(
        self, owner_id: str, peer_id: str, author_id: str, *, through: int
    ) -> Letter | None:
        marked = await self._call(owner_id, _MARK, peer_id, author_id, _bounded(through), chance())
        return _letter(*marked) if marked else None

    async def _call(
        self, owner_id: str, script: Script, *arguments: Argument, **how: Any
    ) -> list[Any]:
        where = partition(owner_id)
        meta = f"{self._server.keys.head(where)}y:{owner_id}"
        while True:
            answer: list[Any] | None = await self._server.run(
                where, script, [meta], *arguments, **how
            )
            # Nothing: it has dropped as many old letters as one step may, and there are more.
            if answer is not None:
                return answer


def _bounded(number: int) -> int:
    return max(0, min(number, LARGEST_OFFSET))


def _letters(found: list[Any]) -> list[Letter]:
    return [_letter(found[n], found[n + 1]) for n in range(0, len(found), 2)]


def _letter(entry: bytes, read: int) -> Letter:
    offset, _, length = _PLACE.unpack_from(entry)
    middle = _PLACE.size + length
    head = _decode_head(memoryview(entry)[_PLACE.size : middle])
    rest = _decode_rest(memoryview(entry)[middle:])
    return Letter(
        id=head.id,
        sender_id=head.sender_id,
        target_id=head.target_id,
        sender=rest.sender,
        content=rest.content,
        time=head.time,
        read=bool(read),
        offset=offset,
    )


def _trimmed(head: bytes) -> Letter:
    known = _decode_head(head)
    return Letter(
        id=known.id,
        sender_id=known.sender_id,
        target_id=known.target_id,
        content=b"null",
        time=known.time,
    )
