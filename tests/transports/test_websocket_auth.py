"""Authentication at the door: every way to show who one is, and every way to be refused."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import itsdangerous
import pytest
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus

from starlette_realtime import (
    AnonymousAuth,
    AuthBackend,
    Credentials,
    FirstOf,
    Member,
    Realtime,
    ScopeUserAuth,
    SessionAuth,
    User,
)
from starlette_realtime.auth import WithUser
from starlette_realtime.tickets import MemoryTickets, TicketAuth
from tests.support.server import LiveServer
from tests.support.wsclient import SUBPROTOCOL, NativeClient, NativeError
from tests.transports.helpers import PATH, TOKENS, make_app, make_realtime, token, until

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]


def serve_with(serve: Serve, auth: AuthBackend, **options: Any) -> LiveServer:
    realtime = make_realtime(auth=auth, **options)
    realtime.room("{name}")
    return serve(make_app(realtime))


async def refused(url: str, code: str, sentence: str, **options: Any) -> None:
    """The server says why, and closes with 4401."""
    async with NativeClient.open(url, wait_connected=False, **options) as client:
        error = await client.recv()
        assert (error["type"], error["code"], error["retry"]) == ("error", code, False)
        assert error["error"].startswith(sentence)
        assert await client.closed() == (4401, error["error"])


async def test_a_token_is_shown_in_one_of_four_ways(serve: Serve) -> None:
    tickets = MemoryTickets()
    url = serve_with(serve, FirstOf(TicketAuth(tickets), TOKENS)).ws(PATH)
    ticket = await tickets.issue(User(id="tim"))
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("ann", url, {"token": token("ann")}),
        ("bob", url, {"subprotocols": [SUBPROTOCOL, f"realtime.token.{token('bob')}"]}),
        ("eve", url, {"hello": {"token": token("eve")}}),
        ("tim", f"{url}?ticket={ticket}", {}),
    ]
    for user, address, shown in ways:
        async with NativeClient.open(address, **shown) as client:
            assert client.connected["userId"] == user
            assert client.websocket.subprotocol == SUBPROTOCOL
    # The server waits for a first message without `hello=1` too, when nothing was shown.
    async with NativeClient.open(url, wait_connected=False) as client:
        await client.send({"type": "connect", "data": {"token": token("max")}})
        assert (await client.recv())["userId"] == "max"
    # A ticket is good once.
    await refused(f"{url}?ticket={ticket}", "auth_failed", "Authentication failed: ")


async def test_a_ticket_that_several_show_at_once_lets_in_one(serve: Serve) -> None:
    tickets = MemoryTickets()
    url = serve_with(serve, FirstOf(TicketAuth(tickets), TOKENS)).ws(PATH)
    address = f"{url}?ticket={await tickets.issue(User(id='tim'))}"

    async def attempt() -> str:
        async with NativeClient.open(address, wait_connected=False) as client:
            said = await client.recv()
            return str(said.get("userId") or said["error"])

    said = await asyncio.gather(*(attempt() for _ in range(10)))
    assert said.count("tim") == 1
    assert set(said) - {"tim"} == {"Authentication failed: ticket unknown, used or expired"}


class Keys(AuthenticationBackend):
    """An app's own way to know its users, for Starlette's `AuthenticationMiddleware`."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-key")
        return (AuthCredentials(["authenticated"]), SimpleUser(name)) if name else None


@pytest.mark.parametrize("mount", [False, True], ids=["middleware", "mount"])
async def test_the_user_that_the_apps_own_middleware_found(serve: Serve, mount: bool) -> None:
    def find(user: Any) -> User | None:
        return User(id=f"name:{user.username}") if user.is_authenticated else None

    realtime = make_realtime(auth=ScopeUserAuth(find))
    app = make_app(realtime, mount=mount)
    # Added last, so it is asked first.
    app.add_middleware(AuthenticationMiddleware, backend=Keys())
    url = serve(app).ws(PATH)
    async with NativeClient.open(url, headers={"x-key": "ann"}) as ann:
        assert ann.connected["userId"] == "name:ann"
    async with NativeClient.open(url, wait_connected=False) as nobody:
        await nobody.send({"type": "connect", "data": {"token": "ann"}})
        assert (await nobody.recv())["error"] == "Authentication required"
        assert (await nobody.closed())[0] == 4401


async def test_the_token_is_never_selected_as_subprotocol(serve: Serve) -> None:
    url = serve_with(serve, TOKENS).ws(PATH)
    shown = [f"realtime.token.{token('bob')}"]
    async with NativeClient.open(url, subprotocols=shown) as client:
        assert client.websocket.subprotocol is None
        assert client.connected["userId"] == "bob"


async def test_a_cookie_session(serve: Serve) -> None:
    secret = "a cookie secret"
    realtime = Realtime("memory://", auth=SessionAuth())
    app = make_app(realtime)
    app.add_middleware(SessionMiddleware, secret_key=secret)
    server = serve(app)
    raw = b64encode(json.dumps({"user_id": 7}).encode())
    cookie = itsdangerous.TimestampSigner(secret).sign(raw).decode()
    async with NativeClient.open(
        server.ws(PATH), headers={"Cookie": f"session={cookie}"}, origin=server.http()
    ) as client:
        assert client.connected["userId"] == "7"
    with pytest.raises(InvalidStatus) as caught:
        async with NativeClient.open(
            server.ws(PATH), headers={"Cookie": f"session={cookie}"}, origin="https://evil.example"
        ):
            pass
    assert caught.value.response.status_code == 403


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
async def test_a_page_of_another_origin_is_refused(serve: Serve, ws: str) -> None:
    realtime = Realtime(
        "memory://", auth=AnonymousAuth(), origins=["https://app.example", "https://*.team.example"]
    )
    server = serve(make_app(realtime), ws=ws)
    url = server.ws(PATH)
    for origin in (None, server.http(), "https://app.example", "https://a.team.example"):
        async with NativeClient.open(url, origin=origin) as client:
            assert client.connected
    for origin in (
        "https://evil.example",
        "http://app.example",
        "https://app.example.evil.example",
        "https://team.example.evil",
        "null",
        server.http().replace("http:", "https:"),
    ):
        with pytest.raises(InvalidStatus) as caught:
            async with NativeClient.open(url, origin=origin):
                pass
        assert caught.value.response.status_code == 403, origin


async def test_who_shows_nothing_is_asked_and_then_refused(serve: Serve) -> None:
    url = serve_with(serve, TOKENS).ws(PATH)
    for first in ({"type": "ping"}, {"type": "join", "room": "r"}, {"type": "connect"}):
        async with NativeClient.open(url, wait_connected=False) as client:
            await client.send(first)
            error = await client.recv()
            assert (error["code"], error["error"]) == ("auth_required", "Authentication required")
            assert (await client.closed())[0] == 4401
    for frame in ("{", "", b"\xff", '{"type":"connect","data":7}'):
        async with NativeClient.open(url, wait_connected=False) as client:
            await client.send_raw(frame)
            assert (await client.recv())["code"] == "invalid_message"
            assert (await client.closed())[0] == 4401


async def test_what_is_shown_and_does_not_hold(serve: Serve) -> None:
    url = serve_with(serve, FirstOf(TOKENS, AnonymousAuth())).ws(PATH)
    forged = token("ann")[:-2] + "xx"
    for shown in (
        {"token": forged},
        {"subprotocols": [SUBPROTOCOL, f"realtime.token.{forged}"]},
        {"hello": {"token": forged}},
        {"hello": {"token": "x" * 9000}},
    ):
        await refused(url, "auth_failed", "Authentication failed: ", **shown)
    # The id of the first message is repeated.
    async with NativeClient.open(f"{url}?hello=1", wait_connected=False) as client:
        await client.send({"type": "connect", "id": 5, "data": {"token": forged}})
        assert (await client.recv())["id"] == 5


async def test_the_users_hook(serve: Serve) -> None:
    known = {"ann": User(id="ann", info={"name": "Ann of the database"})}

    async def load(user: User) -> User | None:
        return known.get(user.id)

    url = serve_with(serve, WithUser(TOKENS, load)).ws(PATH)
    async with NativeClient.open(url, token=token("ann")) as client:
        joined = await client.request("join", "r")
        assert joined["members"][0]["user"] == {"name": "Ann of the database"}
    await refused(url, "invalid_user", "Invalid user", token=token("bob"))


async def test_a_user_id_that_nobody_can_have(serve: Serve) -> None:
    class Odd(AuthBackend):
        async def authenticate(self, credentials: Credentials) -> User | None:
            return User(id=credentials.token.replace("-", "\n"))

    url = serve_with(serve, Odd()).ws(PATH)
    for shown in ("a-b", "x" * 256):
        await refused(url, "invalid_user", "Invalid user", token=shown)


async def test_anonymous_clients_only_by_name(serve: Serve) -> None:
    url = serve_with(serve, AnonymousAuth()).ws(PATH)
    async with NativeClient.open(url) as client:
        assert client.connected["userId"] is None
    # With hello=1 the server lets the client speak first, and takes what it says.
    async with NativeClient.open(url, hello={}) as client:
        assert client.connected["userId"] is None
    async with NativeClient.open(f"{url}?hello=1", wait_connected=False) as client:
        await client.send({"type": "ping"})
        assert (await client.recv())["code"] == "auth_required"
    with pytest.raises(TypeError):
        Realtime("memory://")  # type: ignore[call-arg]


async def test_a_client_that_never_says_anything(serve: Serve) -> None:
    url = serve_with(serve, TOKENS, auth_timeout=0.2).ws(PATH)
    begin = time.monotonic()
    await refused(url, "auth_required", "Authentication required")
    assert 0.15 < time.monotonic() - begin < 3
    # Nor may one keep the door open by small talk.
    async with NativeClient.open(url, wait_connected=False) as client:
        await client.send({"type": "pong"})
        assert (await client.recv())["code"] == "auth_required"


async def test_rooms_are_joined_in_the_same_step(serve: Serve) -> None:
    url = serve_with(serve, TOKENS).ws(PATH)
    async with NativeClient.open(url, token=token("ann")) as ann:
        position = (await ann.request("join", "a"))["position"]
        await ann.request("broadcast", "a", "missed")
        rooms = {"a": position, "b": None, "no/room": None}
        async with NativeClient.open(url, hello={"token": token("bob"), "rooms": rooms}) as bob:
            assert (await bob.expect("joined", roomId="a"))["recovered"] is True
            assert (await bob.expect("broadcast"))["data"] == "missed"
            assert "recovered" not in await bob.expect("joined", roomId="b")
            assert (await bob.expect("error"))["code"] == "unknown_room"


async def test_expired_tokens_close_and_a_refresh_extends(serve: Serve) -> None:
    url = serve_with(serve, TOKENS).ws(PATH)
    async with (
        NativeClient.open(url, token=token("ann", expires_in=1)) as ann,
        NativeClient.open(url, token=token("bob", expires_in=1)) as bob,
    ):
        longer = time.time() + 60
        answer = await bob.request("refresh", None, {"token": token("bob", expires_in=60)})
        assert answer["success"] is True
        assert abs(answer["expiresAt"] / 1000 - longer) < 5
        for other in (token("ann"), "forged", token("bob")[:-2] + "xx"):
            with pytest.raises(NativeError) as caught:
                await bob.request("refresh", None, {"token": other})
            assert caught.value.code in ("access_denied", "auth_failed")
        assert await ann.closed() == (4501, "token expired")
        assert await bob.settle() == []


async def test_a_refresh_that_allows_less_takes_effect_at_once(serve: Serve) -> None:
    realtime = make_realtime()
    realtime.room("{name:path}")
    server = serve(make_app(realtime))
    everywhere = token("ann", capabilities=["chat/*", "staff/*"])
    async with (
        NativeClient.open(server.ws(PATH), token=everywhere) as ann,
        NativeClient.open(server.ws(PATH), token=token("bob")) as bob,
    ):
        for client in (ann, bob):
            for room in ("chat/1", "staff/1"):
                await client.request("join", room)
        await ann.request("refresh", data={"token": token("ann", capabilities=["chat/*"])})
        left = await ann.expect("left")
        assert left == {"type": "left", "roomId": "staff/1", "reason": "Access denied"}
        await bob.expect("user-left", data={"userId": "ann", "roomId": "staff/1"})
        await bob.request("broadcast", "staff/1", "secret")
        await bob.request("broadcast", "chat/1", "public")
        came = [m["data"] for m in await ann.settle() if m["type"] == "broadcast"]
        assert came == ["public"]
        with pytest.raises(NativeError, match="Access denied"):
            await ann.request("join", "staff/1")


async def test_revoking_a_user(serve: Serve) -> None:
    realtime = make_realtime()
    realtime.room("{name}")

    @realtime.event("revoke")
    async def revoke(data: str) -> None:
        await realtime.disconnect_user(data, reason="disabled")

    url = serve(make_app(realtime)).ws(PATH)
    async with (
        NativeClient.open(url, token=token("ann")) as ann,
        NativeClient.open(url, token=token("ann")) as second,
        NativeClient.open(url, token=token("bob")) as bob,
    ):
        await ann.request("join", "r")
        await bob.request("join", "r")
        await bob.request("revoke", None, "ann")
        assert await ann.closed() == (4403, "disabled")
        assert await second.closed() == (4403, "disabled")
        # Sent away, she leaves at once.
        await bob.expect("user-left", data={"userId": "ann"})


async def test_what_connection_middleware_refuses(serve: Serve) -> None:
    from starlette_realtime import AccessDenied, CloseConnection

    realtime = make_realtime()
    ended: list[int | None] = []

    @realtime.middleware("connection")
    async def gate(ctx: Any, call_next: Any) -> None:
        if ctx.session.user_id == "bad":
            raise AccessDenied
        if ctx.session.user_id == "worse":
            raise CloseConnection(4499, "never")
        if ctx.session.user_id == "bug":
            raise RuntimeError("a bug in the app")
        await call_next()

    @realtime.on("disconnection")
    def over(happening: Any) -> None:
        ended.append(happening.code)

    url = serve(make_app(realtime)).ws(PATH)
    for user, code in (("bad", 4403), ("worse", 4499), ("bug", 1011)):
        async with NativeClient.open(url, token=token(user), wait_connected=False) as client:
            assert (await client.closed())[0] == code
    async with NativeClient.open(url, token=token("good")) as client:
        await client.close()
    await until(lambda: ended == [1000])


async def test_a_client_may_be_asked_while_it_joins_in_the_same_step(serve: Serve) -> None:
    realtime = make_realtime(auth=TOKENS)
    room = realtime.room("{name}")
    answers: list[Any] = []

    @room.on_join
    async def ask(member: Member) -> None:
        answers.append(await member.request("question"))

    url = serve(make_app(realtime)).ws(PATH)
    async with NativeClient.open(url, hello={"token": token("bob"), "rooms": {"a": None}}) as bob:
        asked = await bob.expect("question")
        await bob.send({"type": "ack", "id": asked["id"], "data": "here"})
        await until(lambda: answers == ["here"])
        await bob.settle()


async def test_the_name_of_a_device_is_short(serve: Serve) -> None:
    url = serve_with(serve, TOKENS).ws(PATH)
    hello = {"token": token("ann"), "deviceId": "x" * 256}
    await refused(url, "invalid_message", "Invalid message format", hello=hello)
