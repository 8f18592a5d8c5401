"""The broker of a single process: streams in memory, announcements by a plain call."""

from __future__ import annotations

import secrets
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from heapq import merge
from itertools import islice
from operator import attrgetter

import msgspec

from ..errors import BrokerUnavailable
from ..events import Draft, Lane, Page, Position, Publication, Published, Recovery, Retention
from .base import HistoryBroker, Listener

IDEMPOTENCY_SECONDS = 600.0
MAX_IDS = 10_000
"""Ids remembered per channel; beyond, the oldest go first, even before their time. The ids of what
is in the history lane are known besides."""

SPARE = 64
"""Publications that a lane may have beyond its limit until it is read, so that most are kept
without another being looked for that goes."""

_offset = attrgetter("offset")
# Python 3.11 takes as long to find a member in its enum as to call a function.
_NONE, _HISTORY = Lane.NONE, Lane.HISTORY


class _Kept:
    """What is kept in one lane, at most `limit`, oldest first, and when each of it was: in seconds,
    because what a publisher says of the time may be wrong."""

    __slots__ = ("full", "limit", "publications", "times")

    def __init__(self) -> None:
        self.limit = 0
        # How many there may be until somebody reads.
        self.full = 0
        self.publications: deque[Publication] = deque()
        self.times: deque[float] = deque()


class _Stream:
    """One channel's kept publications."""

    __slots__ = ("by_id", "epoch", "ids", "lanes", "offset", "retention", "trimmed")

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(4)
        self.offset = 0
        self.lanes: dict[int, _Kept] = {}
        # Highest offset that was ever trimmed from a lane.
        self.trimmed = 0
        # Offset and end of each id's time, in the order of the ends.
        self.ids: OrderedDict[str, tuple[int, float]] = OrderedDict()
        # Offsets of what is in the history lane, by id.
        self.by_id: dict[str, int] = {}
        self.retention = Retention()

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset)

    def append(self, publication: Publication, retention: Retention, now: float) -> None:
        lane = publication.lane
        kept = self.lanes.get(lane)
        if kept is None:
            kept = self.lanes[lane] = _Kept()
            self._retain(retention)
        elif retention is not self.retention:
            self._retain(retention)
        times = kept.times
        times.append(now)
        kept.publications.append(publication)
        if publication.id and lane == _HISTORY:
            self.by_id[publication.id] = publication.offset
        # What the other lane has too long goes with its own next one, or before it is read.
        if len(times) > kept.full or times[0] < now - retention.age:
            self._trim(kept, now)

    def _retain(self, retention: Retention) -> None:
        self.retention = retention
        for lane, kept in self.lanes.items():
            limit = max(0, retention.size if lane == _HISTORY else retention.presence)
            kept.limit = limit
            kept.full = limit + min(limit, SPARE)

    def expire(self, now: float) -> None:
        """Drop what is more, or older, than the retention allows at `now`."""
        for kept in self.lanes.values():
            self._trim(kept, now)

    def _trim(self, kept: _Kept, now: float) -> None:
        publications, times = kept.publications, kept.times
        oldest = now - self.retention.age
        excess = max(0, len(times) - kept.limit)
        while excess < len(times) and times[excess] < oldest:
            excess += 1
        gone = None
        for _ in range(excess):
            times.popleft()
            gone = publications.popleft()
            if gone.id and gone.lane == _HISTORY:
                self.by_id.pop(gone.id, None)
        if gone is not None and gone.offset > self.trimmed:
            self.trimmed = gone.offset

    def lapsed(self, now: float) -> bool:
        """Whether nothing of it counts any more."""
        self.expire(now)
        while self.ids and next(iter(self.ids.values()))[1] <= now:
            self.ids.popitem(last=False)
        kept = any(lane.times for lane in self.lanes.values())
        return bool(self.offset) and not self.ids and not kept

    def seen(self, id: str, now: float) -> int | None:
        """Return the offset of what was published under `id`, 0 if that was not kept."""
        ids = self.ids
        while ids and next(iter(ids.values()))[1] <= now:
            ids.popitem(last=False)
        found = ids.get(id)
        return self.by_id.get(id) if found is None else found[0]

    def refuses(self, draft: Draft, now: float) -> Published | None:
        """Return the answer to what was published before, or amends what has changed; None if it
        may be published."""
        self.expire(now)
        if draft.id:
            seen = self.seen(draft.id, now)
            if seen is not None:
                position = Position(self.epoch, seen) if seen else Position("", 0)
                return Published(position, duplicate=True)
        if draft.expects and self.payload(draft.amends) != draft.expects:
            return Published(self.position, conflict=True)
        return None

    def remember(self, id: str, offset: int, now: float) -> None:
        self.ids[id] = (offset, now + IDEMPOTENCY_SECONDS)
        if len(self.ids) > MAX_IDS:
            self.ids.popitem(last=False)

    def after(self, offset: int) -> list[Publication]:
        parts = []
        for each in self.lanes.values():
            kept = each.publications
            # A position is mostly near the end, where walking backwards is short.
            if kept and kept[-1].offset > offset:
                start = bisect_right(kept, offset, key=_offset)
                parts.append(list(islice(kept, start, None)))
        if len(parts) < 2:
            return parts[0] if parts else []
        return list(merge(*parts, key=_offset))

    def index(self, id: str) -> int | None:
        """Return where in the history lane the publication with this id is."""
        offset = self.by_id.get(id)
        if offset is None:
            return None
        return bisect_left(self.lanes[_HISTORY].publications, offset, key=_offset)

    def find(self, id: str) -> Publication | None:
        index = self.index(id)
        return None if index is None else self.lanes[_HISTORY].publications[index]

    def payload(self, id: str) -> bytes | None:
        found = self.find(id)
        return None if found is None else found.data

    def amend(self, id: str, data: bytes) -> None:
        index = self.index(id)
        if index is not None:
            kept = self.lanes[_HISTORY].publications
            kept[index] = msgspec.structs.replace(kept[index], data=data)


class MemoryBroker(HistoryBroker):
    """Streams of one process, lost with it.

    Args:
        max_channels: streams kept at most; beyond, the one that was used longest ago is forgotten,
            which its clients are told by a new epoch.
        clock: seconds since the Unix epoch.
    """

    def __init__(
        self, *, max_channels: int = 100_000, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._max = max_channels
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        self._subscribed: set[str] = set()
        self._listener: Listener | None = None

    @asynccontextmanager
    async def run(self, listener: Listener) -> AsyncIterator[None]:
        self._listener = listener
        try:
            yield
        finally:
            self._listener = None
            self._subscribed.clear()

    async def publish(self, channel: str, draft: Draft, retention: Retention) -> Published:
        return self.publish_now(channel, draft, retention)

    def publish_now(self, channel: str, draft: Draft, retention: Retention) -> Published:
        """`publish`, without a step of the event loop: for the stores that live beside this one."""
        if self._listener is None:
            raise BrokerUnavailable("the broker is not running")
        now = self._clock()
        kept, id = draft.lane is not _NONE, draft.id
        # What is neither kept nor known again needs no stream.
        lasting = kept or id or draft.expects
        stream = self._stream(channel) if lasting else self._streams.get(channel)
        offset, epoch = 0, ""
        if stream is not None:
            if id or draft.expects:
                refused = stream.refuses(draft, now)
                if refused is not None:
                    return refused
            if kept:
                offset = stream.offset = stream.offset + 1
                epoch = stream.epoch
            if id:
                stream.remember(id, offset, now)
        publication = Publication(
            draft.event,
            draft.data,
            offset,
            epoch,
            id,
            draft.lane,
            draft.exclude,
            draft.volatile,
            draft.key,
            draft.time or int(now * 1000),
        )
        if stream is not None:
            if kept:
                stream.append(publication, retention, now)
            if draft.amends:
                stream.amend(draft.amends, draft.amended)
        if channel in self._subscribed:
            self._listener.received(channel, publication)
        return Published(Position(epoch, offset))

    def _stream(self, channel: str) -> _Stream:
        stream = self._streams.get(channel)
        if stream is None:
            # First, so that the new one is never what is forgotten.
            self._forget_lapsed()
            if len(self._streams) >= self._max:
                self._forget_oldest()
            stream = self._streams[channel] = _Stream()
        else:
            self._streams.move_to_end(channel)
        return stream

    def _forget_lapsed(self) -> None:
        """Forget streams that nobody uses and of which nothing is left: two at most for each new
        one, which keeps up with them."""
        now = self._clock()
        for _ in range(min(len(self._streams), 2)):
            channel, stream = next(iter(self._streams.items()))
            if channel in self._subscribed:
                self._streams.move_to_end(channel)
            elif stream.lapsed(now):
                del self._streams[channel]
            else:
                return

    def _forget_oldest(self) -> None:
        # Channels with members here are in use, however long nothing was said in them.
        for _ in range(min(len(self._streams), 100)):
            channel = next(iter(self._streams))
            if channel not in self._subscribed:
                del self._streams[channel]
                return
            self._streams.move_to_end(channel)

    async def subscribe(self, channels: Iterable[str]) -> None:
        self._subscribed.update(channels)

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        self._subscribed.difference_update(channels)

    async def recover(self, channel: str, since: Position, limit: int) -> Recovery:
        stream = self._stream(channel)
        stream.expire(self._clock())
        if since.epoch != stream.epoch or not stream.trimmed <= since.offset <= stream.offset:
            return Recovery([], stream.position, recovered=False)
        missed = stream.after(since.offset)
        if len(missed) > limit:
            return Recovery([], stream.position, recovered=False)
        return Recovery(missed, stream.position, recovered=True)

    async def page(
        self, channel: str, *, before: int | None = None, after: int | None = None, limit: int
    ) -> Page:
        stream = self._stream(channel)
        stream.expire(self._clock())
        history = stream.lanes.get(_HISTORY)
        kept = history.publications if history is not None else deque[Publication]()
        limit = max(0, limit)
        if after is not None:
            start = bisect_right(kept, after, key=_offset)
            end = min(start + limit, len(kept))
            more = end < len(kept)
        else:
            end = len(kept) if before is None else bisect_left(kept, before, key=_offset)
            start = max(0, end - limit)
            more = start > 0
        return Page(list(islice(kept, start, end)), stream.position, more)

    async def find(self, channel: str, id: str) -> Publication | None:
        stream = self._streams.get(channel)
        if stream is None:
            return None
        stream.expire(self._clock())
        return stream.find(id)
