"""Timers of one server: a heap and one task, on any event loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush

import anyio

logger = logging.getLogger("starlette_realtime")


class Timer:
    """A call that is due later; `cancel()` forgets it."""

    __slots__ = ("_call", "when")

    def __init__(self, when: float, call: Callable[[], object]) -> None:
        self.when = when
        self._call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self._call = None

    @property
    def cancelled(self) -> bool:
        return self._call is None

    def fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Timers:
    """Call functions after a delay in seconds. `run` is the one task behind all of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heap: list[Timer] = []
        self._nearer = anyio.Event()
        self._next = math.inf
        self._compact_at = 1000

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer:
        timer = Timer(self._clock() + delay, call)
        heappush(self._heap, timer)
        if timer.when < self._next:
            self._nearer.set()
        if len(self._heap) > self._compact_at:
            # Cancelled timers stay in the heap until their time; never more of them than others.
            self._heap = [waiting for waiting in self._heap if not waiting.cancelled]
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
