"""Turns of the event loop: doing a thing when one ends, reading once for all who ask in one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from ..errors import Unavailable

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Soon = Callable[[Callable[[], object]], object]


def soon() -> Soon:
    """Return the running loop's own way to call a function once the present turn is over."""
    try:
        return asyncio.get_running_loop().call_soon
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon


def current_task() -> object:
    """Return the running task: the same object as long as it lives."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_task()


def is_cancelled() -> bool:
    """Whether the present task is being cancelled, asked where a cancellation has arrived: asyncio
    raises the same error in a task that awaits another one which somebody has cancelled."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True
    return task is None or task.cancelling() > 0


class Bell(Protocol):
    """Wakes one task, any number of times. Rung while nobody waits, it wakes the next one to."""

    def ring(self) -> None: ...
    def wait(self) -> Awaitable[object]: ...


def bell() -> Bell:
    """Return a bell for the running loop. An event would do; this costs a fraction of one."""
    try:
        return _FutureBell(asyncio.get_running_loop())
    except RuntimeError:
        return _EventBell()


class _FutureBell:
    __slots__ = ("_loop", "_rung", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._rung = True
        else:
            self._waiter = None
            waiter.set_result(None)

    def wait(self) -> asyncio.Future[None]:
        # The future itself: a coroutine around it would cost as much again.
        waiter = self._waiter = self._loop.create_future()
        if self._rung:
            self._rung = False
            self.ring()
        return waiter


class _EventBell:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = anyio.Event()


class _Batch(Generic[Request, Answer]):
    __slots__ = ("answer", "done", "error", "requests")

    def __init__(self) -> None:
        self.requests: list[Request] = []
        # Made by the second one who asks: most ask alone.
        self.done: anyio.Event | None = None
        self.answer: Answer | None = None
        self.error: Exception | None = None


class OncePerTurn(Generic[Request, Answer]):
    """One read for all who ask for the same key in the same turn.

    A thousand clients that join one room together cost one read of its history, and its encoding.
    """

    def __init__(self) -> None:
        self._open: dict[Hashable, _Batch[Request, Answer]] = {}

    async def ask(
        self,
        key: Hashable,
        request: Request,
        read: Callable[[list[Request]], Awaitable[Answer]],
    ) -> Answer:
        """Return what `read` returns for all of this turn's requests under `key`.

        Whatever `read` sees is at least as new as this call.
        """
        batch = self._open.get(key)
        if batch is not None:
            batch.requests.append(request)
            if batch.done is None:
                batch.done = anyio.Event()
            await batch.done.wait()
        else:
            batch = self._open[key] = _Batch()
            batch.requests.append(request)
            # Shielded: the others' answer must not hang on this one's connection.
            with anyio.CancelScope(shield=True):
                try:
                    try:
                        await checkpoint()
                    finally:
                        del self._open[key]
                    batch.answer = await read(batch.requests)
                except Exception as error:
                    batch.error = error
                finally:
                    if batch.done is not None:
                        batch.done.set()
        if batch.error is not None:
            raise batch.error
        if batch.answer is None:
            raise Unavailable
        return batch.answer
