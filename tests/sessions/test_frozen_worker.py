"""A worker that stood still comes back to find that life has gone on without it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial

import pytest
import redis
from anyio import to_thread

from tests.sessions.helpers import client
from tests.support.server import ServerProcess

pytestmark = pytest.mark.anyio


async def test_who_went_on_elsewhere_is_not_seen_to_leave(
    redis_url: str, serve_process: Callable[..., ServerProcess]
) -> None:
    async def start() -> ServerProcess:
        env = {"TEST_BACKEND": redis_url}
        return await to_thread.run_sync(
            partial(serve_process, "tests.sessions.worker:app", env=env)
        )

    admin = redis.Redis.from_url(redis_url, protocol=2)
    old = await start()
    listening = [each["id"] for each in admin.client_list("pubsub")]
    new = await start()
    async with client(new, "bob") as bob:
        await bob.request("join", "chat/1")
        async with client(old, "ann") as ann, client(old, "cid") as cid:
            for who in (ann, cid):
                await who.request("join", "chat/1")
            old.signal_group(signal.SIGSTOP)
            # It is not told that ann goes on elsewhere.
            for id in listening:
                admin.client_kill_filter(id)
            ann.vanish()
            cid.vanish()
            rooms = {"chat/1": None}
            async with client(new, "ann", resume=ann.connected, rooms=rooms) as again:
                assert again.connected["resumed"] is True
                await again.expect("joined")
                old.signal_group(signal.SIGCONT)
                # Only cid is gone.
                await bob.expect("user-left", data={"userId": "cid", "roomId": "chat/1"})
                await bob.request("broadcast", "chat/1", "who is there?")
                await again.expect("broadcast", data="who is there?")
                assert "user-left" not in [message["type"] for message in await bob.settle()]
                members = (await bob.request("members", "chat/1"))["members"]
                assert [member["userId"] for member in members] == ["ann", "bob"]
    admin.close()
