"""The end of what a client was admitted with: expiry, refresh, and the app's own word."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.sessions.helpers import app_of, client, make, nothing_left, sessions, threadsafe, until
from tests.support.server import FAST, LiveServer
from tests.support.wsclient import NativeError

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
async def test_an_expired_token_closes_and_a_new_one_resumes(serve: Serve, ws: str) -> None:
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime), ws=ws)
    async with client(server, "ann;0.6") as ann:
        first = ann.connected
        position = (await ann.request("join", "chat/1"))["position"]
        assert await ann.closed() == (4501, "token expired")
    async with client(server, "ann", resume=first, rooms={"chat/1": position}) as ann:
        assert ann.connected["resumed"] is True
        assert (await ann.expect("joined"))["recovered"] is True


async def test_a_refresh_extends_the_connection(serve: Serve) -> None:
    realtime = make()
    server = serve(app_of(realtime))
    async with client(server, "ann;1.0") as ann:
        began = time.time()
        answer = await ann.request("refresh", data={"token": "ann;60"})
        assert answer["success"] is True
        assert abs(answer["expiresAt"] / 1000 - (began + 60)) < 5
        (session,) = sessions(realtime)
        assert session.expiry is not None and session.expiry.when > time.monotonic() + 30
        # And may shorten it.
        await ann.request("refresh", data={"token": "ann;0.2"})
        assert (await ann.closed())[0] == 4501


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"token": "bob"}, "access_denied"),
        ({"token": "nobody"}, "auth_failed"),
        ({"token": ""}, "invalid_message"),
        ({"token": 7}, "invalid_message"),
        ({}, "invalid_message"),
        ([], "invalid_message"),
        (None, "invalid_message"),
    ],
)
async def test_what_refreshes_nothing(serve: Serve, data: object, code: str) -> None:
    realtime = make()
    server = serve(app_of(realtime))
    async with client(server, "ann;60") as ann:
        with pytest.raises(NativeError) as caught:
            await ann.request("refresh", data=data)
        assert caught.value.code == code
        (session,) = sessions(realtime)
        assert session.user_id == "ann" and session.expiry is not None


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
async def test_a_user_is_sent_away_from_every_device(serve: Serve, ws: str) -> None:
    realtime = make(presence_grace=30.0)
    realtime.room("chat/{id}")
    server = serve(app_of(realtime), ws=ws)
    async with (
        client(server, "ann") as one,
        client(server, "ann") as two,
        client(server, "bob") as bob,
    ):
        for who in (bob, one, two):
            await who.request("join", "chat/1")
        await bob.expect("user-joined")
        await threadsafe(realtime, lambda: realtime.disconnect_user("ann", reason="banned"))
        assert await one.closed() == (4403, "banned")
        assert await two.closed() == (4403, "banned")
        # Without a grace period, and once.
        await bob.expect("user-left", data={"userId": "ann", "roomId": "chat/1"})
        await until(lambda: len(sessions(realtime)) == 1, "the end of ann's sessions")
        async with client(server, "ann", resume=one.connected) as again:
            assert again.connected["resumed"] is False
        await bob.request("broadcast", "chat/1", "unharmed")
        assert [m["type"] for m in await bob.settle()].count("user-left") == 0
    await nothing_left(realtime)


async def test_one_session_is_sent_away(serve: Serve) -> None:
    realtime = make()
    server = serve(app_of(realtime))
    async with client(server, "ann") as one, client(server, "ann") as two:
        id = one.connected["sessionId"]
        await threadsafe(realtime, lambda: realtime.disconnect_session(id))
        assert (await one.closed())[0] == 4410
        await two.settle()
    await nothing_left(realtime)
