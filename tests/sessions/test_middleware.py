"""Middleware around connections and events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from starlette_realtime import (
    ClientError,
    CloseConnection,
    ConnectionContext,
    Context,
    Realtime,
    Session,
)
from tests.sessions.helpers import app_of, client, make, nothing_left
from tests.support.server import LiveServer
from tests.support.wsclient import NativeError

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]


def with_work(calls: list[str], **options: Any) -> Realtime:
    realtime = make(**options)
    realtime.room("chat/{id}")

    @realtime.event("work")
    async def work(session: Session, data: Any = None) -> str:
        calls.append("work")
        if data == "fail":
            raise ClientError("sold_out", "Sold out")
        return "done"

    return realtime


async def test_the_first_registered_is_the_outermost(serve: Serve) -> None:
    calls: list[str] = []
    realtime = with_work(calls)
    for name in ("outer", "inner"):

        @realtime.middleware("event")
        async def layer(ctx: Context, call_next: Any, name: str = name) -> None:
            calls.append(f"{name} {ctx.command.type} {ctx.session.user_id}")
            await call_next()
            calls.append(f"{name} after")

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        assert await ann.request("work") == "done"
    assert calls == ["outer work ann", "inner work ann", "work", "inner after", "outer after"]


async def test_commands_of_the_protocol_pass_through_it_too(serve: Serve) -> None:
    calls: list[str] = []
    realtime = with_work(calls)

    @realtime.middleware("event")
    async def layer(ctx: Context, call_next: Any) -> None:
        calls.append(f"{ctx.command.type} {ctx.member.room.name if ctx.member else None}")
        await call_next()

    server = serve(app_of(realtime))
    async with client(server, "ann", rooms={"chat/9": None}) as ann:
        await ann.request("join", "chat/1")
        await ann.request("broadcast", "chat/1", 1)
        await ann.request("leave", "chat/1")
    assert calls == ["join None", "join None", "broadcast chat/1", "leave chat/1"]


async def test_a_layer_may_answer_in_the_handlers_place(serve: Serve) -> None:
    calls: list[str] = []
    realtime = with_work(calls)

    @realtime.middleware("event")
    async def cache(ctx: Context, call_next: Any) -> Any:
        return {"from": "cache"}

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        assert await ann.request("work") == {"from": "cache"}
    assert calls == []


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_layer_may_refuse(serve: Serve, when: str) -> None:
    calls: list[str] = []
    realtime = with_work(calls)

    @realtime.middleware("event")
    async def gate(ctx: Context, call_next: Any) -> None:
        if when == "after":
            await call_next()
        raise ClientError("closed", "Closed on Sundays", retry=True)

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        await ann.send({"type": "work", "id": 1})
        error = await ann.expect("error", id=1)
        assert (error["code"], error["error"], error["retry"]) == (
            "closed",
            "Closed on Sundays",
            True,
        )
    assert calls == (["work"] if when == "after" else [])


async def test_a_layer_sees_the_handlers_error_and_may_mend_it(serve: Serve) -> None:
    calls: list[str] = []
    realtime = with_work(calls)

    @realtime.middleware("event")
    async def watch(ctx: Context, call_next: Any) -> None:
        try:
            await call_next()
        except ClientError as error:
            calls.append(error.error_code)
            raise ClientError("mended", "Come back tomorrow") from error

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        with pytest.raises(NativeError, match="mended: Come back tomorrow"):
            await ann.request("work", data="fail")
    assert calls == ["work", "sold_out"]


async def test_a_layer_may_close_the_connection(serve: Serve) -> None:
    realtime = with_work([])

    @realtime.middleware("event")
    async def bouncer(ctx: Context, call_next: Any) -> None:
        raise CloseConnection(4403, "not like this")

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        await ann.send({"type": "work"}, {"type": "work"})
        assert await ann.closed() == (4403, "not like this")
    await nothing_left(realtime)


async def test_what_a_layer_raises_harms_nobody(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    realtime = with_work([])
    broken = True

    @realtime.middleware("event")
    async def layer(ctx: Context, call_next: Any) -> None:
        if broken:
            raise ZeroDivisionError
        await call_next()

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        with pytest.raises(NativeError, match="handler_error: Internal error"):
            await ann.request("work")
        broken = False
        assert await ann.request("work") == "done"
    assert [r for r in caplog.records if r.exc_info and r.exc_info[0] is ZeroDivisionError]


async def test_layers_around_connections_in_order(serve: Serve) -> None:
    calls: list[str] = []
    realtime = with_work(calls)
    for name in ("outer", "inner"):

        @realtime.middleware("connection")
        async def layer(ctx: ConnectionContext, call_next: Any, name: str = name) -> None:
            calls.append(f"{name} {ctx.session.user_id}")
            ctx.session.data.setdefault("seen", []).append(name)
            await call_next()
            calls.append(f"{name} after")

    server = serve(app_of(realtime))
    async with client(server, "ann"):
        assert calls == ["outer ann", "inner ann", "inner after", "outer after"]


@pytest.mark.parametrize(
    ("error", "code", "close"),
    [
        (ClientError("banned", "You are banned"), "banned", 4403),
        (ClientError("full", "Come back later", retry=True), "full", 4503),
        (CloseConnection(4410, "bye"), None, 4410),
        (None, "access_denied", 4403),
        (ZeroDivisionError(), None, 1011),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_connection_is_refused(
    serve: Serve, error: Exception | None, code: str | None, close: int, when: str
) -> None:
    realtime = with_work([])

    @realtime.middleware("connection")
    async def gate(ctx: ConnectionContext, call_next: Any) -> None:
        if when == "after" and error is not None:
            await call_next()
        if error is not None:
            raise error

    server = serve(app_of(realtime))
    async with client(server, "ann", wait_connected=False) as ann:
        assert (await ann.closed())[0] == close
        assert [m.get("code") for m in ann.backlog] == ([code] if code else [])
    await nothing_left(realtime)
