"""Turns of the event loop: doing a thing when one ends, reading once for all who ask in one."""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Awaitable, Callable, Coroutine, Generator, Hashable
from contextvars import Context, copy_context
from functools import partial
from types import coroutine
from typing import Any, Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Soon = Callable[[Callable[[], object]], object]
Later = Callable[[float, Callable[[], object]], object]


def soon() -> Soon:
    """Return the running loop's own way to call a function once the present turn is over."""
    try:
        return asyncio.get_running_loop().call_soon
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon


def clock() -> Callable[[], float]:
    """Return the running loop's own clock, which the deadlines of its cancel scopes go by. To be
    called where no task runs, too: there AnyIO's takes a hundred times as long."""
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        import trio

        return trio.current_time


def current_task() -> object:
    """Return the running task: the same object as long as it lives."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_task()


def is_cancelled(error: BaseException) -> bool:
    """Whether an error that was caught is the present task's own cancellation: asyncio raises the
    same one in a task that awaits another one which somebody has cancelled."""
    if isinstance(error, Exception):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True
    return task is None or task.cancelling() > 0


class Deadlines:
    """Cancel scopes that last for so many seconds, as those of `anyio.move_on_after`.

    A timer of the event loop takes as long as dozens of calls, and most of what the app does for a
    message is done in the turn in which it begins: only what lasts longer gets one.
    """

    def __init__(self, soon: Soon, seconds: float) -> None:
        self._soon = soon
        self._seconds = seconds
        self._clock = clock()
        self._begun: list[anyio.CancelScope] = []

    def scope(self) -> anyio.CancelScope:
        """Return a scope, to be entered at once."""
        if not self._begun:
            self._soon(self._set)
        scope = anyio.CancelScope()
        self._begun.append(scope)
        return scope

    def _set(self) -> None:
        begun, self._begun = self._begun, []
        deadline = self._clock() + self._seconds
        for scope in begun:
            # To one that is over it means nothing.
            scope.deadline = deadline


def later(otherwise: Later) -> Later:
    """Return the running loop's own way to call a function after a delay (seconds), or, if it has
    none, another one."""
    try:
        return asyncio.get_running_loop().call_later
    except RuntimeError:
        return otherwise


class Bell(Protocol):
    """Wakes one task, any number of times. Rung while nobody waits, it wakes the next one to."""

    @property
    def awaited(self) -> bool:
        """Whether a task waits that neither the bell nor anything else has woken."""

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

    @property
    def awaited(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

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
    __slots__ = ("_event", "_waiting")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._waiting = False

    @property
    def awaited(self) -> bool:
        return self._waiting and not self._event.is_set()

    def ring(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        self._waiting = True
        try:
            await self._event.wait()
        finally:
            self._waiting = False
        self._event = anyio.Event()


def starter(context: Context | None = None) -> Starter | None:
    """Return a starter for the running task, whose context it is if one is given; None if it can't
    have one, which asyncio's can."""
    try:
        return Starter(asyncio.get_running_loop(), context)
    except RuntimeError:
        return None


class Starter:
    """What asyncio's eager tasks do, for a task that is there already: work begins where `start` is
    called, and only work that has to wait wakes the task, which goes on with it. To wake it for all
    of it costs two to three times as much.

    Work begins with the task as the current one, and is run in one context to its end: the task's
    own, where it is known, or a copy. So whoever asks for the task, to cancel it after a timeout
    for instance, gets the one that goes on.
    """

    __slots__ = ("_context", "_error", "_loop", "_own", "_task", "_work", "_yielded", "awaited")

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context | None = None) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] = asyncio.current_task(loop)  # type: ignore[assignment]
        self._own = context is not None
        # An empty one is false.
        self._context = copy_context() if context is None else context
        # What has begun, and what it waits for; or what it has raised.
        self._work: Coroutine[Any, Any, None] | None = None
        self._yielded: Any = None
        # What it waits for, if that is a future, to be asked.
        self.awaited: asyncio.Future[Any] | None = None
        self._error: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> bool:
        """Begin `work`, in a callback of the loop, while the task is in `attend`. Return whether it
        has come to its end: if not, see to it that what `attend` waits for does, now or, where it
        is `awaited`, instead of calling `go_on`."""
        self._yielded = self.awaited = None
        _enter_task(self._loop, self._task)
        try:
            self._yielded = awaited = self._context.run(work.send, None)
            self._work = work
            if asyncio.isfuture(awaited):
                # To others who wait for it this one would look like a mistake until the task does.
                awaited._asyncio_future_blocking = False
                self.awaited = awaited
        except StopIteration:
            self._work = None
            return True
        except BaseException as error:
            self._work = None
            self._error = error
        finally:
            _leave_task(self._loop, self._task)
        return False

    def go_on(self) -> bool:
        """Go on with what has begun, in a callback of the loop, while the task is in `attend` and
        nothing has woken it, once `awaited` is done. Returns as `start`."""
        assert self._work is not None
        return self.start(self._work)

    async def attend(self, waiting: Awaitable[Answer]) -> Answer | None:
        """Await `waiting`, go on with what has begun meanwhile and had to wait, to its end, and
        return the result of `waiting`; None if that was broken off, by a cancellation that was
        meant for what had begun. Raises what that raises."""
        answer = None
        try:
            try:
                answer = await waiting
            except asyncio.CancelledError as cancelled:
                if self._work is None:
                    raise
                await self._go_on(self._work, cancelled)
            else:
                if self._error is not None:
                    raise self._error
                if self._work is not None:
                    await self._go_on(self._work)
        finally:
            self._work = self._yielded = self._error = self.awaited = None
        return answer

    @coroutine
    def _go_on(
        self,
        work: Coroutine[Any, Any, None],
        cancelled: asyncio.CancelledError | None = None,
    ) -> Generator[Any, Any, None]:
        # The task runs in its own context already.
        run = _call if self._own else self._context.run
        awaited = self._yielded
        try:
            # A task that is cancelled cancels what it waits for, which this one could not do yet.
            if cancelled is not None and not (
                asyncio.isfuture(awaited) and awaited.cancel(*cancelled.args)
            ):
                awaited = run(work.throw, cancelled)
            elif asyncio.isfuture(awaited):
                awaited._asyncio_future_blocking = True
            elif awaited is None:
                # It waits for the next turn, which this one is: to wake the task has taken one.
                awaited = run(work.send, None)
            while True:
                try:
                    value = yield awaited
                except BaseException as error:
                    awaited = run(work.throw, error)
                else:
                    awaited = run(work.send, value)
        except StopIteration:
            return


def _call(function: Callable[[Any], Any], argument: Any) -> Any:
    return function(argument)


class Locks:
    """A lock for each key, for one task at a time. One that nobody waits for costs an entry."""

    def __init__(self) -> None:
        # The events are made by the first one who waits: mostly nobody does.
        self._held: dict[Hashable, anyio.Event | None] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Whether somebody holds the lock of `key`."""
        return key in self._held

    def take(self, *keys: Hashable) -> None:
        """Take locks that nobody holds."""
        for key in keys:
            self._held[key] = None

    def give(self, *keys: Hashable) -> None:
        """Let go of locks."""
        for key in keys:
            released = self._held.pop(key)
            if released is not None:
                released.set()

    async def wait(self, key: Hashable) -> None:
        """Wait until a lock is let go of, if somebody holds it: the next one may hold it then."""
        if key in self._held:
            released = self._held[key]
            if released is None:
                released = self._held[key] = anyio.Event()
            await released.wait()

    async def acquire(self, key: Hashable) -> None:
        """Take the lock of `key` as soon as nobody holds it."""
        while key in self._held:
            await self.wait(key)
        self._held[key] = None


def next_turn() -> Callable[[], Awaitable[object]]:
    """Return the running loop's own way to let a task wait for the next turn. AnyIO's asks each
    time which loop that is, for half as long as the turn takes."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.lowlevel.checkpoint
    return partial(asyncio.sleep, 0)


class _Batch(Generic[Request, Answer]):
    __slots__ = ("answer", "error", "requests", "waiting")

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.waiting: list[Bell] = []
        self.answer: Answer | None = None
        self.error: Exception | None = None


class OncePerTurn(Generic[Request, Answer]):
    """One read for all who ask for the same key in the same turn.

    A thousand clients that join one room together cost one read of its history, and its encoding.
    """

    def __init__(self) -> None:
        self._open: dict[Hashable, _Batch[Request, Answer]] = {}
        self._next_turn = next_turn()

    async def ask(
        self,
        key: Hashable,
        request: Request,
        read: Callable[[list[Request]], Awaitable[Answer]],
    ) -> Answer:
        """Return what `read` returns for all of this turn's requests under `key`.

        Whatever `read` sees is at least as new as this call.
        """
        while True:
            batch = self._open.get(key)
            if batch is None:
                batch = await self._lead(key, request, read)
            else:
                batch.requests.append(request)
                waiting = bell()
                batch.waiting.append(waiting)
                await waiting.wait()
            if batch.error is not None:
                raise batch.error
            if batch.answer is not None:
                return batch.answer
            # The one who read for all was cancelled: its end is not the others'.

    async def _lead(
        self,
        key: Hashable,
        request: Request,
        read: Callable[[list[Request]], Awaitable[Answer]],
    ) -> _Batch[Request, Answer]:
        """Read for all who ask until this turn is over."""
        batch = self._open[key] = _Batch()
        batch.requests.append(request)
        try:
            try:
                await self._next_turn()
            finally:
                del self._open[key]
            batch.answer = await read(batch.requests)
        except Exception as error:
            batch.error = error
        finally:
            for waiting in batch.waiting:
                waiting.ring()
        return batch
