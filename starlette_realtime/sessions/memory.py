"""Sessions of a single process."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from .base import SessionRecord, SessionStore


class _Kept(msgspec.Struct, gc=False):
    """A record, and when it ends (seconds)."""

    record: SessionRecord
    until: float


class MemorySessions(SessionStore):
    """Records of one process, at most `max_sessions`; beyond, the one renewed longest ago goes.
    `clock` counts seconds."""

    shared = False

    def __init__(
        self, *, max_sessions: int = 1_000_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._max = max_sessions
        self._secret = secrets.token_bytes(32)
        self._records: OrderedDict[str, _Kept] = OrderedDict()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._records.clear()

    async def secret(self, known: bytes = b"") -> bytes:
        return self._secret

    async def put(self, record: SessionRecord, ttl: float) -> None:
        known = self._get(record.id)
        if known is None or known.generation <= record.generation:
            self._keep(record, ttl)

    async def resume(self, id: str, generation: int, ttl: float) -> SessionRecord | None:
        known = self._get(id)
        if known is None or known.generation not in (generation, generation + 1):
            return None
        record = msgspec.structs.replace(known, generation=known.generation + 1)
        self._keep(record, ttl)
        return record

    async def renew(self, sessions: list[tuple[str, int]], ttl: float) -> list[tuple[str, int]]:
        others = []
        for id, generation in sessions:
            known = self._get(id)
            if known is None:
                others.append((id, 0))
            elif known.generation > generation:
                others.append((id, known.generation))
            else:
                self._keep(known, ttl)
        return others

    async def end(self, id: str, generation: int) -> bool:
        known = self._get(id)
        if known is not None and known.generation > generation:
            return False
        self._records.pop(id, None)
        return True

    def _get(self, id: str) -> SessionRecord | None:
        kept = self._records.get(id)
        if kept is None:
            return None
        if kept.until <= self._clock():
            del self._records[id]
            return None
        return kept.record

    def _keep(self, record: SessionRecord, ttl: float) -> None:
        now = self._clock()
        records = self._records
        records[record.id] = _Kept(record, now + ttl)
        records.move_to_end(record.id)
        # The front was renewed longest ago: two steps per entry keep up with what lapses.
        for _ in range(2):
            oldest, kept = next(iter(records.items()))
            if len(records) <= self._max and kept.until > now:
                break
            del records[oldest]
