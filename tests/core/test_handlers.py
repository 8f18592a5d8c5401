"""Calling the app's functions."""

from __future__ import annotations

import asyncio

import pytest

from starlette_realtime.core.namespace import CallNext, Context, Happening, Namespace
from tests.core.helpers import house

pytestmark = pytest.mark.anyio


async def cancelled_by_somebody() -> None:
    """Await a task that has been cancelled: on asyncio that raises `CancelledError` here."""
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def test_awaiting_what_was_cancelled_is_an_error_and_no_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors: list[Happening] = []

    def configure(namespace: Namespace) -> None:
        room = namespace.room("{name}")
        namespace.on("error")(errors.append)

        @room.authorize
        async def authorize(name: str) -> bool:
            if name == "closed":
                await cancelled_by_somebody()
            return True

        @room.on_join
        async def join() -> None:
            await cancelled_by_somebody()

        @room.on("async")
        async def handler() -> None:
            await cancelled_by_somebody()

        @room.on("awaitable")
        def returns_awaitable() -> object:
            return cancelled_by_somebody()

        @namespace.on("message")
        async def observe(happening: Happening) -> None:
            await cancelled_by_somebody()

        @namespace.middleware("event")
        async def layer(context: Context, call_next: CallNext) -> object:
            if context.command.type == "layer":
                await cancelled_by_somebody()
            return await call_next()

    async with house(configure) as running:
        ann = await running.enter("ann")
        assert (await ann.ask("join", "closed"))["code"] == "handler_error"
        assert (await ann.ask("join", "r"))["type"] == "joined"
        for kind in ("async", "awaitable", "layer"):
            assert (await ann.ask(kind, "r"))["code"] == "handler_error"
        assert (await ann.ask("broadcast", "r", 1))["type"] == "ack"
        assert len(errors) == 4
        assert "awaited something that was cancelled" in caplog.text


async def test_a_cancellation_that_is_meant_goes_through() -> None:
    over = asyncio.Event()

    def configure(namespace: Namespace) -> None:
        room = namespace.room("{name}")

        @room.on("wait")
        async def wait() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                over.set()

    async with house(configure) as running:
        ann = await running.enter("ann")
        await ann.ask("join", "r")
        task = asyncio.create_task(ann.send("wait", "r"))
        await running.settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert over.is_set()
