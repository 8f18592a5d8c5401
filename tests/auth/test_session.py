from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from starlette.middleware.sessions import SessionMiddleware
from starlette.types import Message, Receive, Scope, Send

from starlette_realtime.auth import SessionAuth, User, find_credentials
from starlette_realtime.errors import AuthenticationFailed, ConfigurationError
from tests.auth.helpers import SECRET, shown, websocket

pytestmark = pytest.mark.anyio


async def test_the_user_of_the_session() -> None:
    auth = SessionAuth()
    assert await auth.authenticate(shown(session={"user_id": "ann"})) == User(id="ann")
    assert await auth.authenticate(shown(session={"user_id": 7})) == User(id="7")
    uuid = UUID(int=5)
    assert await auth.authenticate(shown(session={"user_id": uuid})) == User(id=str(uuid))


async def test_another_key() -> None:
    auth = SessionAuth("uid")
    assert await auth.authenticate(shown(session={"uid": "ann", "user_id": "eve"})) == User(
        id="ann"
    )


async def test_info_from_a_key_or_a_function() -> None:
    session = {"user_id": "ann", "profile": {"name": "Ann"}}
    user = await SessionAuth(info="profile").authenticate(shown(session=session))
    assert user is not None and user.info == {"name": "Ann"}
    auth = SessionAuth(info=lambda session: session["profile"]["name"].upper())
    user = await auth.authenticate(shown(session=session))
    assert user is not None and user.info == "ANN"


@pytest.mark.parametrize("session", [{}, {"user_id": None}, {"other": 1}, None, object()])
async def test_nobody_is_signed_in(session: Any) -> None:
    assert await SessionAuth().authenticate(shown(session=session)) is None


@pytest.mark.parametrize("value", ["", "x" * 256, "a\x00b", True, 1.5, ["ann"], {"id": 1}])
async def test_what_cannot_be_an_id_is_refused(value: Any) -> None:
    with pytest.raises(AuthenticationFailed):
        await SessionAuth().authenticate(shown(session={"user_id": value}))


async def test_a_missing_middleware_is_named() -> None:
    with pytest.raises(ConfigurationError, match="SessionMiddleware"):
        await SessionAuth().authenticate(shown())


async def test_with_the_middleware_itself() -> None:
    seen: list[User | None] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["session"]["user_id"] = "ann"
            await send({"type": "http.response.start", "status": 200})
        else:
            seen.append(await SessionAuth().authenticate(find_credentials(scope)))

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        sent.append(message)

    guarded = SessionMiddleware(app, secret_key=SECRET)
    await guarded(websocket(type="http"), receive, send)
    ((_, cookie),) = [pair for pair in sent[0]["headers"] if pair[0] == b"set-cookie"]
    cookie = cookie.decode().partition(";")[0]
    for headers in ({}, {"Cookie": cookie}, {"Cookie": cookie[:-1]}):
        await guarded(websocket(headers), receive, send)
    assert seen == [None, User(id="ann"), None]
