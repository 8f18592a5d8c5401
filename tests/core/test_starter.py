"""Work that begins in a callback, in the name of a task that goes on with it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from starlette_realtime.core.turns import Starter

pytestmark = pytest.mark.anyio


class Worker:
    """A task that goes on with what is started for it."""

    def __init__(self) -> None:
        self.starter: Starter
        self.task = asyncio.create_task(self._run())
        self._wake: asyncio.Future[None]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self.starter = Starter(loop)
        while True:
            self._wake = loop.create_future()
            await self.starter.attend(self._wake)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        if not self.starter.start(work):
            self.wake()

    def wake(self) -> None:
        self._wake.set_result(None)


async def in_a_callback(worker: Worker, work: Coroutine[Any, Any, None]) -> None:
    """Start `work` where no task is the current one."""
    started = asyncio.Event()

    def start() -> None:
        worker.start(work)
        started.set()

    asyncio.get_running_loop().call_soon(start)
    await started.wait()


@asynccontextmanager
async def started() -> AsyncIterator[tuple[Worker, asyncio.Task[None]]]:
    worker = Worker()
    await checkpoint()
    yield worker, worker.task
    worker.task.cancel()
    await asyncio.wait([worker.task])


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await checkpoint()


async def test_work_begins_at_once_and_goes_on_in_the_same_task_and_context() -> None:
    seen: list[asyncio.Task[Any] | None] = []
    name = ContextVar("name", default="")

    async def work(wait: asyncio.Future[str] | None) -> None:
        seen.append(asyncio.current_task())
        token = name.set("work")
        if wait is not None:
            seen.append(asyncio.current_task() if await wait == "done" else None)
            assert name.get() == "work"
            await asyncio.sleep(0)
        name.reset(token)
        seen.append(asyncio.current_task())

    async with started() as (worker, task):
        await in_a_callback(worker, work(None))
        assert seen == [task] * 2
        wait: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        await in_a_callback(worker, work(wait))
        assert seen == [task] * 3
        wait.set_result("done")
        await until(lambda: len(seen) == 5)
        # And again, after work that had to wait.
        await in_a_callback(worker, work(None))
        assert seen == [task] * 7
        assert name.get() == ""


async def test_a_timeout_around_a_wait_ends_the_wait_alone() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            with anyio.fail_after(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            ended.append("too late")

    async with started() as (worker, task):
        for number in (1, 2):
            await in_a_callback(worker, work())
            await until(lambda: len(ended) == number)  # noqa: B023
        assert not task.done() and not task.cancelling()


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_cancels_the_task_cancels_what_its_work_waits_for(at_once: bool) -> None:
    loop = asyncio.get_running_loop()
    wait: asyncio.Future[None] = loop.create_future()
    ended: list[bool] = []

    async def work() -> None:
        try:
            await wait
        finally:
            ended.append(wait.cancelled())

    async with started() as (worker, task):
        if at_once:
            # The task has not heard of the work yet.
            loop.call_soon(worker.start, work())
            loop.call_soon(task.cancel)
        else:
            await in_a_callback(worker, work())
            await checkpoint()
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [True]


@pytest.mark.parametrize("waits", [True, False])
async def test_what_work_raises_the_task_raises(waits: bool) -> None:
    async def work() -> None:
        if waits:
            await checkpoint()
        raise OSError("away")

    async with started() as (worker, task):
        await in_a_callback(worker, work())
        with pytest.raises(OSError, match="away"):
            await task


async def test_who_asks_what_work_waits_for_goes_on_with_it_without_waking_the_task() -> None:
    loop = asyncio.get_running_loop()
    waits: list[asyncio.Future[str]] = [loop.create_future() for _ in range(2)]
    seen: list[object] = []

    async def work() -> None:
        for wait in waits:
            seen.append(await wait)
            seen.append(asyncio.current_task())
        raise OSError("away")

    async with started() as (worker, task):
        starter = worker.starter

        def start() -> None:
            assert not starter.start(work())
            assert starter.awaited is waits[0]
            waits[0].set_result("one")
            assert not starter.go_on()
            assert starter.awaited is waits[1]

        loop.call_soon(start)
        await until(lambda: seen == ["one", task])
        waits[1].set_result("two")

        def end() -> None:
            assert not starter.go_on()
            assert starter.awaited is None
            worker.wake()

        loop.call_soon(end)
        with pytest.raises(OSError, match="away"):
            await task
        assert seen == ["one", task, "two", task]


async def test_work_that_is_asked_about_is_the_tasks_when_that_is_woken_or_cancelled() -> None:
    loop = asyncio.get_running_loop()
    ended: list[str] = []

    async def work(wait: asyncio.Future[None]) -> None:
        try:
            await wait
            ended.append("sent")
        except asyncio.CancelledError:
            ended.append("given up")
            raise

    async with started() as (worker, task):
        wait = loop.create_future()
        loop.call_soon(worker.starter.start, work(wait))
        loop.call_soon(worker.wake)
        await checkpoint()
        loop.call_soon(wait.set_result, None)
        await until(lambda: ended == ["sent"])
        wait = loop.create_future()
        loop.call_soon(worker.starter.start, work(wait))
        await checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["sent", "given up"]
        assert wait.cancelled()


async def test_nothing_is_kept_of_what_work_has_waited_for() -> None:
    loop = asyncio.get_running_loop()

    async def work(wait: asyncio.Future[None]) -> None:
        await wait

    async with started() as (worker, _):
        wait = loop.create_future()
        loop.call_soon(worker.starter.start, work(wait))
        await checkpoint()
        wait.set_result(None)
        ended: list[bool] = []
        loop.call_soon(lambda: ended.append(worker.starter.go_on()))
        await until(lambda: ended == [True])
        kept = weakref.ref(wait)
        del wait
        assert kept() is None
