"""Private messages of a single process."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from operator import attrgetter

import msgspec

from ..events import Kept, Letter, Letters
from .base import MAX_DEVICES, InboxStore

IDEMPOTENCY_SECONDS = 600.0

_offset = attrgetter("offset")


class _Stream:
    """What is kept of one user."""

    __slots__ = (
        "age",
        "arrived",
        "by_id",
        "cursors",
        "end",
        "furthest",
        "gone",
        "letters",
        "opened",
    )

    def __init__(self) -> None:
        self.end = 0
        self.opened = False
        self.letters: dict[str, deque[Letter]] = {}
        # Offset → when it was kept (seconds) and the peer whose conversation has it, all in order.
        self.arrived: OrderedDict[int, tuple[float, str]] = OrderedDict()
        self.by_id: dict[str, int] = {}
        # Letters that were trimmed so early that their senders may still send them again: id →
        # the letter and the end of its time.
        self.gone: OrderedDict[str, tuple[Letter, float]] = OrderedDict()
        self.cursors: OrderedDict[str, int] = OrderedDict()
        self.furthest = 0
        self.age = float("inf")

    def letter(self, offset: int) -> Letter:
        found = self.letters[self.arrived[offset][1]]
        return found[bisect_left(found, offset, key=_offset)]

    def drop(self, offset: int, now: float) -> None:
        arrived, peer = self.arrived.pop(offset)
        conversation = self.letters[peer]
        # Whatever is trimmed is its conversation's oldest.
        letter = conversation.popleft()
        if not conversation:
            del self.letters[peer]
        del self.by_id[letter.id]
        until = arrived + IDEMPOTENCY_SECONDS
        if until > now:
            # Its text has no use any more: the sender is told the id and the time.
            trimmed = msgspec.structs.replace(letter, content=b"null", offset=0)
            self.gone[letter.id] = (trimmed, until)

    def expire(self, now: float) -> None:
        while self.arrived:
            offset, (arrived, _) = next(iter(self.arrived.items()))
            if arrived >= now - self.age:
                break
            self.drop(offset, now)
        while self.gone and next(iter(self.gone.values()))[1] <= now:
            self.gone.popitem(last=False)

    def trim(self, peer: str, size: int, per_peer: int, now: float) -> None:
        while len(self.letters.get(peer, ())) > per_peer:
            self.drop(self.letters[peer][0].offset, now)
        while len(self.arrived) > size:
            self.drop(next(iter(self.arrived)), now)
        while len(self.gone) > size:
            self.gone.popitem(last=False)


class MemoryInbox(InboxStore):
    """Streams of one process, lost with it.

    Args:
        max_users: streams kept at most; beyond, the one that was used longest ago is forgotten.
            Those that never had a letter, and those whose user was never here, are counted apart,
            so that neither a crowd nor letters to made-up users push anyone's letters out.
        clock: seconds, of any origin.
    """

    def __init__(
        self, *, max_users: int = 100_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._max = max_users
        # Without letters; with letters, but nobody to read them yet; with both.
        self._tiers: tuple[OrderedDict[str, _Stream], ...] = (
            OrderedDict(),
            OrderedDict(),
            OrderedDict(),
        )

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for tier in self._tiers:
                tier.clear()

    def _known(self, owner_id: str) -> _Stream | None:
        """The stream of a user who has one: looking makes none."""
        for tier in reversed(self._tiers):
            stream = tier.get(owner_id)
            if stream is not None:
                tier.move_to_end(owner_id)
                stream.expire(self._clock())
                return stream
        return None

    def _place(self, owner_id: str, stream: _Stream) -> None:
        """Put a stream where it belongs now."""
        tier = self._tiers[0 if not stream.end else 2 if stream.opened else 1]
        if owner_id not in tier:
            for other in self._tiers:
                other.pop(owner_id, None)
            tier[owner_id] = stream
            if len(tier) > self._max:
                tier.popitem(last=False)

    async def append(
        self, owner_id: str, letter: Letter, *, size: int, per_peer: int, age: float
    ) -> Kept:
        stream, now = self._known(owner_id) or _Stream(), self._clock()
        stream.age = age
        stream.expire(now)
        known = stream.by_id.get(letter.id)
        if known is not None:
            return Kept(stream.letter(known), duplicate=True)
        if letter.id in stream.gone:
            return Kept(stream.gone[letter.id][0], duplicate=True)
        peer = letter.target_id if letter.sender_id == owner_id else letter.sender_id
        stream.end += 1
        kept = msgspec.structs.replace(letter, offset=stream.end, read=False)
        stream.letters.setdefault(peer, deque()).append(kept)
        stream.arrived[kept.offset] = (now, peer)
        stream.by_id[kept.id] = kept.offset
        stream.trim(peer, size, per_peer, now)
        self._place(owner_id, stream)
        return Kept(kept)

    async def after(self, owner_id: str, offset: int, *, limit: int) -> Letters:
        stream = self._known(owner_id)
        if stream is None:
            return Letters([])
        # A reader is mostly near the end, where walking backwards is short.
        offsets: list[int] = []
        for known in reversed(stream.arrived):
            if known <= offset:
                break
            offsets.append(known)
        offsets.reverse()
        limit = max(0, limit)
        chosen = [stream.letter(known) for known in offsets[:limit]]
        return Letters(chosen, more=len(offsets) > limit)

    async def open(self, owner_id: str, device_id: str) -> tuple[int, int]:
        return self._move(owner_id, device_id, 0)

    async def acknowledge(self, owner_id: str, device_id: str, offset: int) -> int:
        return self._move(owner_id, device_id, offset)[0]

    def _move(self, owner_id: str, device_id: str, offset: int) -> tuple[int, int]:
        stream = self._known(owner_id) or _Stream()
        stream.opened = True
        self._place(owner_id, stream)
        offset = min(offset, stream.end)
        cursor = max(stream.cursors.get(device_id, stream.furthest), offset)
        stream.cursors[device_id] = cursor
        stream.cursors.move_to_end(device_id)
        if len(stream.cursors) > MAX_DEVICES:
            stream.cursors.popitem(last=False)
        stream.furthest = max(stream.furthest, cursor)
        return cursor, stream.end

    async def conversation(
        self, owner_id: str, peer_id: str, *, before: int | None = None, limit: int
    ) -> Letters:
        stream = self._known(owner_id)
        kept: Sequence[Letter] = stream.letters.get(peer_id, ()) if stream is not None else ()
        end = len(kept) if before is None else bisect_left(kept, before, key=_offset)
        start = max(0, end - max(0, limit))
        return Letters(list(islice(kept, start, end)), more=start > 0)

    async def find(self, owner_id: str, id: str) -> Letter | None:
        stream = self._known(owner_id)
        if stream is None or id not in stream.by_id:
            return None
        return stream.letter(stream.by_id[id])

    async def mark_read(
        self, owner_id: str, peer_id: str, author_id: str, *, through: int
    ) -> Letter | None:
        stream = self._known(owner_id)
        kept = stream.letters.get(peer_id) if stream is not None else None
        newest: Letter | None = None
        if not kept:
            return None
        for index in range(bisect_right(kept, through, key=_offset) - 1, -1, -1):
            letter = kept[index]
            if letter.sender_id != author_id:
                continue
            if letter.read:
                # What is before it was marked when it was.
                break
            kept[index] = msgspec.structs.replace(letter, read=True)
            newest = newest or kept[index]
        return newest
