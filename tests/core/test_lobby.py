"""Who may come in. On asyncio and on trio."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from starlette_realtime.auth import User
from starlette_realtime.core.lobby import Introduction
from starlette_realtime.errors import LimitExceeded
from starlette_realtime.limits.memory import MemoryLimits
from tests.core.helpers import House, Socket, house
from tests.support.loops import both_loops

pytestmark = [pytest.mark.anyio, both_loops]


class RemoteLimits(MemoryLimits):
    """A store on a network: whoever has let go of a place hears of it a little later."""

    async def release(self, key: str, holder: str) -> None:
        await super().release(key, holder)
        for _ in range(10):
            await checkpoint()


async def connect(running: House, resume: str | None = None) -> Socket:
    socket = Socket(running.runtime.options)
    running.runtime.connected(socket)
    introduction = Introduction(resume=resume)
    await running.engine.lobby.connect(socket, User(id="ann"), introduction)
    running.hub.flush()
    return socket


async def test_nobody_slips_into_the_place_that_a_successor_takes_over() -> None:
    async with house(max_connections_per_user=1) as running:
        running.runtime.limits = RemoteLimits()
        first = await connect(running)
        successors: list[Socket] = []

        async def come_back() -> None:
            successors.append(await connect(running, first.received[0]["resume"]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(come_back)
            for _ in range(5):
                await checkpoint()
                with pytest.raises(LimitExceeded):
                    await connect(running)
        assert successors[0].received[0]["resumed"] is True
        assert first.closed == (4409, "resumed elsewhere")
        running.runtime.connections.clear()


@pytest.mark.parametrize("size", [0, 32, 100])
async def test_a_store_may_sign_with_a_key_of_any_length(size: int) -> None:
    async with house() as running:
        running.runtime.secret = bytes(range(size))
        first = await connect(running)
        token = first.received[0]["resume"]
        again = await connect(running, token)
        assert again.received[0]["resumed"] is True
        forged = token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]
        assert (await connect(running, forged)).received[0]["resumed"] is False
        running.runtime.connections.clear()
