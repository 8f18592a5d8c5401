"""Namespaces: several sets of rooms, handlers and users on one connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from starlette_realtime import ConfigurationError, Realtime, Session
from starlette_realtime.errors import AuthenticationFailed
from tests.sessions.helpers import Names, app_of, client, engine, make, nothing_left
from tests.support.server import LiveServer
from tests.support.wsclient import Message, NativeClient, NativeError

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]


class Staff(Names):
    """Admits those whose name begins with "boss"."""

    async def authenticate(self, credentials: Any) -> Any:
        user = await super().authenticate(credentials)
        if user is not None and not user.id.startswith("boss"):
            raise AuthenticationFailed("staff only")
        return user


def handler(name: str) -> Callable[[Session], Awaitable[list[Any]]]:
    async def where(session: Session) -> list[Any]:
        return [name, session.namespace, session.user_id]

    return where


def two(**options: Any) -> tuple[Realtime, Names]:
    auth = Names()
    realtime = make(auth, **options)
    realtime.room("chat/{id}")
    same = realtime.namespace("/same")
    same.room("chat/{id}")
    admin = realtime.namespace("/admin", auth=Staff())
    admin.room("chat/{id}")
    for namespace, name in ((realtime, "main"), (same, "same"), (admin, "admin")):
        namespace.event("where")(handler(name))
    return realtime, auth


async def enter(who: NativeClient, ns: str, **data: Any) -> Message:
    await who.send({"type": "connect", "ns": ns, "id": 1, "data": data})
    return await who.expect("connected", ns=ns)


async def test_handlers_and_users_are_the_namespaces_own(serve: Serve) -> None:
    realtime, _ = two()
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        admin = await enter(ann, "/admin", token="boss-ann")
        assert admin["userId"] == "boss-ann"
        assert admin["sessionId"] != ann.connected["sessionId"]
        assert admin["clientId"] == ann.connected["clientId"]
        assert await ann.request("where") == ["main", "/", "ann"]
        assert await ann.request("where", ns="/admin") == ["admin", "/admin", "boss-ann"]
    await nothing_left(realtime)


async def test_rooms_of_one_name_are_different_rooms(serve: Serve) -> None:
    realtime, _ = two()
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        for who in (ann, bob):
            await enter(who, "/same")
            await who.request("join", "chat/1")
        await ann.request("join", "chat/1", ns="/same")
        with pytest.raises(NativeError) as caught:
            await bob.request("broadcast", "chat/1", 1, ns="/same")
        assert caught.value.code == "not_in_room"
        assert caught.value.message["ns"] == "/same"
        await ann.request("broadcast", "chat/1", "in same", ns="/same")
        await ann.request("broadcast", "chat/1", "in main")
        assert [(m["data"], m.get("ns")) for m in await taken(ann)] == [
            ("in same", "/same"),
            ("in main", None),
        ]
        assert [m["data"] for m in await taken(bob)] == ["in main"]


async def taken(who: NativeClient) -> list[Message]:
    return [m for m in await who.settle() if m["type"] == "broadcast"]


async def test_an_unknown_namespace(serve: Serve) -> None:
    realtime, _ = two()
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        for message in ({"type": "connect"}, {"type": "where"}):
            await ann.send({**message, "ns": "/nowhere", "id": 5})
            error = await ann.expect("error", id=5)
            assert (error["code"], error["ns"]) == ("unknown_namespace", "/nowhere")
        # One that is there but was not entered is no different.
        await ann.send({"type": "where", "ns": "/admin", "id": 6})
        assert (await ann.expect("error", id=6))["code"] == "unknown_namespace"
        assert await ann.request("where") == ["main", "/", "ann"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"token": "ann"}, "auth_failed"),
        ({"token": "nobody"}, "auth_failed"),
        ({}, "auth_required"),
        ({"token": 7}, "invalid_message"),
    ],
)
async def test_who_may_not_enter_one_stays_in_the_others(
    serve: Serve, data: Any, code: str
) -> None:
    realtime, _ = two()
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        await ann.request("join", "chat/1")
        await ann.send({"type": "connect", "ns": "/admin", "id": 9, "data": data})
        error = await ann.expect("error", id=9)
        assert (error["code"], error["ns"]) == (code, "/admin")
        await ann.request("broadcast", "chat/1", "still here")
        assert "/admin" not in engine(realtime).hub.channels
        await enter(ann, "/admin", token="boss")
    await nothing_left(realtime)


async def test_entering_twice_is_refused(serve: Serve) -> None:
    realtime, _ = two()
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        await enter(ann, "/same")
        for ns in ("/same", "/"):
            await ann.send({"type": "connect", "ns": ns, "id": 2, "data": {"token": "eve"}})
            assert (await ann.expect("error", id=2))["code"] == "invalid_message"
        assert await ann.request("where", ns="/same") == ["same", "/same", "ann"]


async def test_who_was_admitted_once_need_not_show_a_token_again(serve: Serve) -> None:
    realtime, auth = two()
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        assert auth.asked == 1
        assert (await enter(ann, "/same"))["userId"] == "ann"
        assert auth.asked == 1
    async with client(server, "ann") as ann:
        # A token that is shown is the one that counts.
        assert (await enter(ann, "/same", token="cat"))["userId"] == "cat"


async def test_a_refresh_holds_wherever_the_token_was_shown(serve: Serve) -> None:
    realtime, _ = two()
    server = serve(app_of(realtime))
    async with client(server, "ann;1.5") as ann:
        await enter(ann, "/same")
        await ann.request("refresh", data={"token": "ann"})
        for session in (s for s in engine(realtime).hub.sessions.values()):
            assert isinstance(session, Session) and session.expiry is None


async def test_sessions_of_namespaces_are_resumed_each_for_itself(serve: Serve) -> None:
    realtime, _ = two()
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        same = await enter(ann, "/same")
        ann.vanish()
    async with client(server, "ann", resume=first) as ann:
        assert ann.connected["sessionId"] == first["sessionId"]
        again = await enter(ann, "/same", resume=same["resume"], rooms={"chat/1": None})
        assert again["sessionId"] == same["sessionId"] and again["resumed"] is True
        assert (await ann.expect("joined"))["ns"] == "/same"


@pytest.mark.parametrize("name", ["admin", "/a b", "/" + "x" * 200, "/\n", ""])
def test_a_name_that_cannot_be_one(name: str) -> None:
    with pytest.raises(ConfigurationError):
        make().namespace(name)


def test_a_name_is_there_once() -> None:
    realtime = make()
    realtime.namespace("/admin")
    for name in ("/admin", "/"):
        with pytest.raises(ConfigurationError):
            realtime.namespace(name)
