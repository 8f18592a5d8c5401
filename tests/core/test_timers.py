"""Timers: a heap and one task."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from starlette_realtime.core.timers import Timers
from tests.core.helpers import until
from tests.support.loops import both_loops

pytestmark = [pytest.mark.anyio, both_loops]


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


async def test_cancelled_ones_do_not_pile_up() -> None:
    timers = Timers()
    for _ in range(50_000):
        timers.call_later(1000, lambda: None).cancel()
    assert len(timers._heap) < 20_000
