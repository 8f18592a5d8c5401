"""Timers of one server: a heap and one task, on any event loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

import anyio
import msgspec

logger = logging.getLogger("starlette_realtime")


class Timer(msgspec.Struct, order=True):
    """A call that is due later; `cancel()` forgets it."""

    when: float
    number: int
    """Keeps those that are due at the same time in their order."""
    call: Callable[..., object] | None
    arguments: tuple[Any, ...] = ()

    def cancel(self) -> None:
        self.call = None
        self.arguments = ()

    @property
    def cancelled(self) -> bool:
        return self.call is None

    def fire(self) -> None:
        call, arguments = self.call, self.arguments
        self.cancel()
        if call is not None:
            call(*arguments)


class Timers:
    """Call functions after a delay in seconds. `run` is the one task behind all of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heap: list[Timer] = []
        self._numbers = count()
        self._nearer = anyio.Event()
        self._next = math.inf
        self._compact_at = 1000

    def call_later(self, delay: float, call: Callable[..., object], *arguments: Any) -> Timer:
        timer = Timer(self._clock() + delay, next(self._numbers), call, arguments)
        heappush(self._heap, timer)
        if timer.when < self._next:
            self._nearer.set()
        if len(self._heap) > self._compact_at:
            # Cancelled timers stay in the heap until their time; never more of them than others.
            self._heap = [waiting for waiting in self._heap if waiting.call is not None]
            heapify(self._heap)
            self._compact_at = 2 * len(self._heap) + 1000
        return timer

    async def run(self) -> None:
        while True:
            now = self._clock()
            while self._heap and self._heap[0].when <= now:
                try:
                    heappop(self._heap).fire()
                except Exception:
                    logger.exception("a timer raised")
            self._nearer = anyio.Event()
            self._next = self._heap[0].when if self._heap else math.inf
            with anyio.move_on_after(max(0.0, self._next - self._clock())):
                await self._nearer.wait()
