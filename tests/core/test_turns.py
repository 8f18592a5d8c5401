"""One read for all who ask in one turn."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint

from starlette_realtime.core.turns import Deadlines, OncePerTurn, bell, later, soon
from tests.support.loops import both_loops

pytestmark = [pytest.mark.anyio, both_loops]


async def test_one_read_for_all_of_a_turn() -> None:
    once: OncePerTurn[int, str] = OncePerTurn()
    reads: list[list[int]] = []
    answers: list[str] = []

    async def read(requests: list[int]) -> str:
        reads.append(list(requests))
        await checkpoint()
        return f"answer {len(reads)}"

    async def ask(key: str, number: int) -> None:
        answers.append(await once.ask(key, number, read))

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(ask, "a", number)
    assert len(reads) == 1
    assert sorted(reads[0]) == [0, 1, 2, 3, 4]
    assert answers == ["answer 1"] * 5
    # Later is another read: an answer is never older than its question.
    await ask("a", 5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "a", 6)
        tasks.start_soon(ask, "b", 7)
    assert sorted(reads[1:]) == [[5], [6], [7]]


async def test_what_the_read_raises_all_get() -> None:
    once: OncePerTurn[int, str] = OncePerTurn()
    raised: list[str] = []

    async def read(requests: list[int]) -> str:
        raise OSError("away")

    async def ask(number: int) -> None:
        try:
            await once.ask("a", number, read)
        except OSError as error:
            raised.append(str(error))

    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(ask, number)
    assert raised == ["away"] * 6


async def test_one_that_goes_away_does_not_take_the_others_answer_along() -> None:
    once: OncePerTurn[int, str] = OncePerTurn()
    answers: list[str] = []
    scope = anyio.CancelScope()

    async def read(requests: list[int]) -> str:
        for _ in range(3):
            await checkpoint()
        return "answer"

    async def first() -> None:
        with scope:
            await once.ask("a", 0, read)

    async def second() -> None:
        answers.append(await once.ask("a", 1, read))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        tasks.start_soon(second)
        await checkpoint()
        scope.cancel()
    assert answers == ["answer"]


async def test_soon_is_after_this_turn() -> None:
    called: list[int] = []
    soon()(lambda: called.append(1))
    assert called == []
    with anyio.fail_after(5):
        while not called:
            await checkpoint()


async def test_later_is_after_a_delay() -> None:
    called = anyio.Event()

    async def spare(seconds: float, call: Callable[[], object]) -> None:
        await anyio.sleep(seconds)
        call()

    async with anyio.create_task_group() as tasks:
        began = anyio.current_time()
        # asyncio's own, or the one that is given.
        later(lambda seconds, call: tasks.start_soon(spare, seconds, call))(0.01, called.set)
        with anyio.fail_after(5):
            await called.wait()
        assert anyio.current_time() - began >= 0.009


async def test_a_bell_says_whether_somebody_waits_whom_nothing_has_woken() -> None:
    rung = bell()
    woken: list[int] = []

    async def wait() -> None:
        await rung.wait()
        woken.append(1)

    assert not rung.awaited
    for number in (1, 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            with anyio.fail_after(5):
                while not rung.awaited:
                    await checkpoint()
            rung.ring()
            assert not rung.awaited
        assert len(woken) == number
    # Rung while nobody waits, it wakes the next one to.
    rung.ring()
    assert not rung.awaited
    await wait()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await checkpoint()
        tasks.cancel_scope.cancel()
        await checkpoint()
    assert not rung.awaited
    assert len(woken) == 3


async def test_a_read_that_fails_leaves_the_next_one_alone() -> None:
    once: OncePerTurn[int, str] = OncePerTurn()
    turn = anyio.Event()
    raised: list[str] = []
    answers: list[str] = []

    async def fail(requests: list[int]) -> str:
        # The next one has begun, but not read yet, when this one raises.
        tasks.start_soon(ask)
        await turn.wait()
        raise OSError("away")

    async def read(requests: list[int]) -> str:
        return "answer"

    async def ask() -> None:
        turn.set()
        answers.append(await once.ask("a", 2, read))

    async with anyio.create_task_group() as tasks:
        try:
            await once.ask("a", 1, fail)
        except OSError as error:
            raised.append(str(error))
    assert (raised, answers) == (["away"], ["answer"])


async def test_what_lasts_too_long_is_cancelled_and_nothing_else() -> None:
    deadlines = Deadlines(soon(), 0.05)
    with deadlines.scope() as over:
        pass
    with deadlines.scope() as waiting:
        await checkpoint()
    ended: list[bool] = []

    async def hang() -> None:
        with deadlines.scope() as scope:
            await anyio.sleep_forever()
        ended.append(scope.cancelled_caught)

    began = anyio.current_time()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(hang)
    assert ended == [True] * 3
    assert anyio.current_time() - began >= 0.04
    assert not over.cancel_called
    assert not waiting.cancel_called


async def test_who_cancels_earlier_is_not_undone_by_the_deadline() -> None:
    with Deadlines(soon(), 100.0).scope() as scope:
        scope.cancel()
        await anyio.sleep_forever()
    assert scope.cancelled_caught
