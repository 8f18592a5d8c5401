"""`/health`: a worker that hears nothing says so, and says when it hears again."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import httpx
import pytest
from anyio import to_thread
from starlette.applications import Starlette

from starlette_realtime import AnonymousAuth, Realtime, RealtimeMiddleware
from tests.support.redis_server import RedisServer
from tests.support.server import LiveServer

pytestmark = pytest.mark.anyio


async def answers(url: str, status: int, state: str) -> None:
    async with httpx.AsyncClient() as http:
        with anyio.fail_after(30):
            while True:
                answer = await http.get(url, timeout=10)
                if (answer.status_code, answer.json()["status"]) == (status, state):
                    return
                await anyio.lowlevel.checkpoint()


async def test_a_deaf_worker_is_not_ready_until_it_hears_again(
    own_redis: Callable[..., RedisServer], serve: Callable[..., LiveServer]
) -> None:
    redis = own_redis()
    app = Starlette()
    realtime = Realtime(f"{redis.url}?probe=0.5", auth=AnonymousAuth())
    app.add_middleware(RealtimeMiddleware, realtime=realtime)
    url = serve(app).http("/realtime/health")
    await answers(url, 200, "ok")
    await to_thread.run_sync(redis.stop)
    await answers(url, 503, "deaf")
    await to_thread.run_sync(redis.start)
    await answers(url, 200, "ok")
