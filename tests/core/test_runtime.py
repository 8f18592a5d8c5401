"""What a server starts beside the connections."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from starlette_realtime.core.options import Options
from starlette_realtime.core.runtime import running
from starlette_realtime.settings import stores_from_url
from tests.core.helpers import until

pytestmark = pytest.mark.anyio


async def test_one_that_awaits_what_was_cancelled_ends_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    given_up.cancel()
    ended = False

    async def wait() -> None:
        await given_up

    async with running(Options(), stores_from_url("memory://")) as runtime:
        runtime.spawn(wait)
        await until(lambda: "raised" in caplog.text, seconds=10)
        last = anyio.Event()

        async def end() -> None:
            last.set()

        runtime.spawn(end)
        with anyio.fail_after(10):
            await last.wait()
        ended = True
    assert ended
