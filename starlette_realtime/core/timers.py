"""Timers of one server: a heap and one task, on any event loop."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Generic, TypeVar

import anyio
import msgspec

logger = logging.getLogger("starlette_realtime")


Item = TypeVar("Item", bound=Hashable)

COUNTDOWN_STEPS = 100
"""How exact a countdown is: it ends late by one of so many parts of its length at most."""


# The garbage collector need not know of one: what it refers to it lets go of when it fires, is
# cancelled, or ends with all others.
class Timer(msgspec.Struct, order=True, gc=False):
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
        self._ended = False

    def now(self) -> float:
        """The time that timers go by, in seconds."""
        return self._clock()

    def call_later(self, delay: float, call: Callable[..., object], *arguments: Any) -> Timer:
        timer = Timer(self._clock() + delay, next(self._numbers), call, arguments)
        if self._ended:
            timer.cancel()
            return timer
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
        try:
            while True:
                self._fire()
                self._nearer = anyio.Event()
                self._next = self._heap[0].when if self._heap else math.inf
                with anyio.move_on_after(max(0.0, self._next - self._clock())):
                    await self._nearer.wait()
        finally:
            # What is due now, or is to be due, never comes.
            self._ended = True
            for timer in self._heap:
                timer.cancel()
            self._heap = []

    def _fire(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0].when <= now:
            try:
                heappop(self._heap).fire()
            except Exception:
                logger.exception("a timer raised")


class Countdowns(Generic[Item]):
    """Calls `over` with each item `seconds` after its countdown has begun, unless it is stopped.

    All take equally long, so that they end in the order in which they have begun: one timer serves
    all of them, and each is no more than an entry. Many that end within a hundredth of their length
    end together.
    """

    def __init__(self, timers: Timers, seconds: float, over: Callable[[Item], object]) -> None:
        self._timers = timers
        self._seconds = seconds
        self._over = over
        # When each one ends. Other than a dict's, its oldest entry is found at once.
        self._ends: OrderedDict[Item, float] = OrderedDict()
        self._waiting = False

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def oldest(self) -> Item:
        """The item whose countdown ends next."""
        return next(iter(self._ends))

    def start(self, item: Item) -> None:
        """Begin an item's countdown, which must not be under way."""
        self._ends[item] = self._timers.now() + self._seconds
        if not self._waiting:
            self._waiting = True
            self._timers.call_later(self._seconds, self._end)

    def stop(self, item: Item) -> None:
        """End an item's countdown without a call, if it is under way."""
        self._ends.pop(item, None)

    def _end(self) -> None:
        now = self._timers.now()
        while self._ends:
            item = self.oldest
            left = self._ends[item] - now
            if left > 0:
                step = self._seconds / COUNTDOWN_STEPS
                self._timers.call_later(max(left, step), self._end)
                return
            del self._ends[item]
            try:
                self._over(item)
            except Exception:
                logger.exception("a timer raised")
        self._waiting = False
