"""Timers: a heap and one task."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from starlette_realtime.core.timers import COUNTDOWN_STEPS, Countdowns, Timers
from tests.core.helpers import until
from tests.support.loops import both_loops

pytestmark = pytest.mark.anyio


@both_loops
async def test_they_fire_in_their_order_and_not_when_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    timers = Timers()
    fired: list[str] = []

    def bug() -> None:
        raise RuntimeError("a bug")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timers.run)
        timers.call_later(0.06, lambda: fired.append("late"))
        timers.call_later(0.01, bug)
        cancelled = timers.call_later(0.02, lambda: fired.append("never"))
        # One that is due before those the task already waits for.
        await checkpoint()
        timers.call_later(0.03, lambda: fired.append("early"))
        timers.call_later(0, lambda: fired.append("now"))
        cancelled.cancel()
        assert cancelled.cancelled
        await until(lambda: len(fired) == 3)
        tasks.cancel_scope.cancel()
    assert fired == ["now", "early", "late"]
    assert "a timer raised" in caplog.text


@both_loops
async def test_cancelled_ones_do_not_pile_up() -> None:
    timers = Timers()
    for _ in range(50_000):
        timers.call_later(1000, lambda: None).cancel()
    assert len(timers._heap) < 20_000


@both_loops
async def test_after_the_end_nothing_is_kept() -> None:
    timers = Timers()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timers.run)
        before = timers.call_later(1000, lambda: None)
        await checkpoint()
        tasks.cancel_scope.cancel()
    after = timers.call_later(1000, lambda: None)
    assert before.cancelled and after.cancelled and not timers._heap


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers = Timers(lambda: self.now)
        self.wakes = 0

    def pass_by(self, seconds: float) -> None:
        until = self.now + seconds
        while self.timers._heap and self.timers._heap[0].when <= until:
            self.now = max(self.now, self.timers._heap[0].when)
            self.wakes += 1
            self.timers._fire()
        self.now = until


def test_countdowns_end_in_their_order_unless_they_are_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    over: list[str] = []

    def end(name: str) -> None:
        over.append(name)
        if name == "again" and over.count(name) < 2:
            countdowns.start(name)
        if name == "bug":
            raise RuntimeError("a bug")

    countdowns = Countdowns(clock.timers, 10.0, end)
    for name in ("first", "again", "stopped", "bug", "last"):
        countdowns.start(name)
        clock.pass_by(1.0)
    countdowns.stop("stopped")
    countdowns.stop("unknown")
    assert countdowns.oldest == "first" and len(countdowns) == 4
    clock.pass_by(4.9)
    assert over == []
    clock.pass_by(4.1)
    assert over == ["first", "again", "bug", "last"] and len(countdowns) == 1
    assert "a timer raised" in caplog.text
    clock.pass_by(10.0)
    assert over[4:] == ["again"] and len(countdowns) == 0


def test_countdowns_that_end_almost_together_end_together() -> None:
    clock = Clock()
    ended: dict[int, float] = {}
    countdowns: Countdowns[int]
    countdowns = Countdowns(clock.timers, 10.0, lambda number: ended.update({number: clock.now}))
    for number in range(1000):
        countdowns.start(number)
        clock.pass_by(0.001)
    clock.pass_by(10.5)
    late = [ended[number] - number * 0.001 - 10.0 for number in range(1000)]
    assert min(late) > -1e-6 and max(late) <= 10.0 / COUNTDOWN_STEPS + 1e-6
    assert clock.wakes < 15
