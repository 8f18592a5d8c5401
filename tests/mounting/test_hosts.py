"""What the host app has of its own goes on working: routes, WebSockets, middleware, prefixes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from litestar import Litestar, get, websocket
from litestar.connection import WebSocket as LitestarWebSocket
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Mount, Route
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from starlette_realtime import ConfigurationError, Realtime, RealtimeMiddleware
from starlette_realtime.litestar import RealtimePlugin
from tests.mounting.hosts import (
    ROUTES,
    AddHeader,
    KnowingServer,
    StrippingProxy,
    hello,
    make_realtime,
)
from tests.support.server import App, LiveServer
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]


async def chat_works(door: str, room: str = "chat/1") -> None:
    """Two guests come in by `door`, and what one says the other hears."""
    async with (
        NativeClient.open(door, token="Ann") as ann,
        NativeClient.open(door, token="Bob") as bob,
    ):
        await ann.request("join", room)
        await bob.request("join", room)
        await ann.request("message", room, {"content": "hello"})
        await bob.expect("new-message", data={"content": "hello", "user": {"name": "Ann"}})


async def shouting_works(url: str) -> None:
    async with connect(url, proxy=None) as socket:
        await socket.send("hey")
        assert await asyncio.wait_for(socket.recv(), 5) == "HEY"


async def is_refused(url: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, proxy=None):
            pass
    assert refused.value.response.status_code == status


def starlette_app(realtime: Realtime, seen: list[str]) -> Starlette:
    return Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(AddHeader, seen=seen),
            Middleware(GZipMiddleware, minimum_size=100),
            Middleware(SessionMiddleware, secret_key="not a secret"),
            Middleware(RealtimeMiddleware, realtime=realtime, path="/realtime"),
        ],
    )


async def test_routes_websockets_and_middleware_of_the_host_go_on(serve: Serve) -> None:
    seen: list[str] = []
    server = serve(starlette_app(make_realtime(), seen))
    await chat_works(server.ws("/realtime/ws"))
    await shouting_works(server.ws("/shout"))
    async with httpx.AsyncClient() as http:
        answer = await http.get(server.http("/hello"))
        assert answer.text == "hello " * 200
        assert answer.headers["x-host"] == "yes"
        assert answer.headers["content-encoding"] == "gzip"
        # The host's middleware stands before the rooms' HTTP doors too.
        script = await http.get(server.http("/realtime/client.js"))
        assert script.headers["x-host"] == "yes"
        assert script.headers["content-encoding"] == "gzip"
    assert "websocket" in seen and "http" in seen


async def test_middleware_may_stand_outside_of_others_too(serve: Serve) -> None:
    seen: list[str] = []
    app = Starlette(routes=ROUTES)
    app.add_middleware(AddHeader, seen=seen)
    # Added last, so it is the outermost one: what is the rooms' does not reach the others.
    app.add_middleware(RealtimeMiddleware, realtime=make_realtime(), path="/realtime")
    server = serve(app)
    await chat_works(server.ws("/realtime/ws"))
    await shouting_works(server.ws("/shout"))
    assert seen.count("websocket") == 1


@pytest.mark.parametrize("path", ["/realtime", "/realtime/", "/a/b"])
async def test_the_path_is_free_to_choose(serve: Serve, path: str) -> None:
    app = Starlette(routes=ROUTES)
    app.add_middleware(RealtimeMiddleware, realtime=make_realtime(), path=path)
    server = serve(app)
    await chat_works(server.ws(f"{path.rstrip('/')}/ws"))
    await is_refused(server.ws("/realtime-not/ws"), 403)


@pytest.mark.parametrize("path", ["", "/", "realtime", "//"])
def test_a_path_that_would_hide_the_app_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="'/realtime'"):
        RealtimeMiddleware(Starlette(), realtime=make_realtime(), path=path)


async def test_addresses_under_the_mount_that_are_none(serve: Serve) -> None:
    app = Starlette(routes=ROUTES)
    app.add_middleware(RealtimeMiddleware, realtime=make_realtime(), path="/realtime")
    server = serve(app)
    await is_refused(server.ws("/realtime/nowhere"), 404)
    await is_refused(server.ws("/realtime"), 404)
    async with httpx.AsyncClient() as http:
        assert (await http.get(server.http("/realtime"))).status_code == 404
        assert (await http.post(server.http("/realtime/client.js"))).status_code == 405
    await chat_works(server.ws("/realtime/ws/"))


# Behind a proxy


def middleware_host(realtime: Realtime) -> Any:
    app = Starlette(routes=ROUTES)
    app.add_middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")
    return app


def mount_host(realtime: Realtime) -> Any:
    routes = [*ROUTES, Mount("/realtime", app=realtime)]
    return Starlette(routes=routes, lifespan=realtime.lifespan)


@get("/hello", sync_to_thread=False)
def litestar_hello() -> str:
    return "hello " * 200


@websocket("/shout")
async def litestar_shout(socket: LitestarWebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    async for text in socket.iter_data("text"):
        await socket.send_text(text.upper())


def litestar_host(realtime: Realtime) -> Any:
    return Litestar([litestar_hello, litestar_shout], plugins=[RealtimePlugin(realtime)])


HOSTS = [middleware_host, mount_host, litestar_host]


async def host_works(server: LiveServer, prefix: str) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.get(server.http(f"{prefix}/hello"))).text == "hello " * 200
        script = await http.get(server.http(f"{prefix}/realtime/client.js"))
        assert script.status_code == 200
    await shouting_works(server.ws(f"{prefix}/shout"))
    await chat_works(server.ws(f"{prefix}/realtime/ws"))


@pytest.mark.parametrize("host", HOSTS)
async def test_without_a_prefix(serve: Serve, host: Callable[[Realtime], App]) -> None:
    await host_works(serve(host(make_realtime())), "")


@pytest.mark.parametrize("host", HOSTS)
async def test_root_path_behind_a_proxy_that_strips_the_prefix(
    serve: Serve, host: Callable[[Realtime], App]
) -> None:
    app = StrippingProxy(host(make_realtime()), "/api")
    await host_works(serve(app, root_path="/api"), "/api")


@pytest.mark.parametrize("host", HOSTS)
async def test_root_path_behind_a_proxy_that_leaves_the_prefix(
    serve: Serve, host: Callable[[Realtime], App]
) -> None:
    await host_works(serve(KnowingServer(host(make_realtime()), "/api")), "/api")


@pytest.mark.parametrize("host", HOSTS)
async def test_the_rooms_are_where_the_routes_of_the_host_are(
    serve: Serve, host: Callable[[Realtime], App]
) -> None:
    # uvicorn's root_path is for proxies that strip. Before one that does not, every path has the
    # prefix twice, and none is found: the host's routes and the rooms alike.
    server = serve(host(make_realtime()), root_path="/api")
    await host_works(server, "")
    async with httpx.AsyncClient() as http:
        assert (await http.get(server.http("/api/hello"))).status_code == 404
        assert (await http.get(server.http("/api/realtime/client.js"))).status_code == 404
    await is_refused(server.ws("/api/shout"), 403)
    await is_refused(server.ws("/api/realtime/ws"), 403)


# Mounts inside mounts, and several of them


async def test_nested_mounts(serve: Serve) -> None:
    realtime = make_realtime()
    inner = Starlette(routes=[Mount("/live", app=realtime), Route("/hello", hello)])
    outer = Mount("/v1", routes=[Mount("/site", app=inner)])
    server = serve(Starlette(routes=[outer, *ROUTES], lifespan=realtime.lifespan))
    await chat_works(server.ws("/v1/site/live/ws"))
    await shouting_works(server.ws("/shout"))
    async with httpx.AsyncClient() as http:
        assert (await http.get(server.http("/v1/site/hello"))).status_code == 200
        assert (await http.get(server.http("/v1/site/live/client.js"))).status_code == 200
        assert (await http.get(server.http("/live/client.js"))).status_code == 404


async def test_an_app_with_the_middleware_may_be_mounted_itself(serve: Serve) -> None:
    realtime = make_realtime()
    inner = Starlette(routes=ROUTES)
    inner.add_middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")
    # A mounted app has no lifespan of its own: the outer app runs the server for it.
    server = serve(Starlette(routes=[Mount("/inner", app=inner)], lifespan=realtime.lifespan))
    await host_works(server, "/inner")


async def test_several_servers_in_one_app_know_nothing_of_each_other(serve: Serve) -> None:
    public, staff, mounted = make_realtime(), make_realtime(), make_realtime()
    app = Starlette(routes=[*ROUTES, Mount("/games", app=mounted)], lifespan=mounted.lifespan)
    app.add_middleware(RealtimeMiddleware, realtime=public, path="/realtime")
    app.add_middleware(RealtimeMiddleware, realtime=staff, path="/staff/realtime")
    server = serve(app)
    for path in ("/realtime", "/staff/realtime", "/games"):
        await chat_works(server.ws(f"{path}/ws"))
    async with (
        NativeClient.open(server.ws("/realtime/ws"), token="Ann") as ann,
        NativeClient.open(server.ws("/staff/realtime/ws"), token="Bob") as bob,
    ):
        await ann.request("join", "chat/2")
        joined = await bob.request("join", "chat/2")
        assert [member["user"]["name"] for member in joined["members"]] == ["Bob"]
        await ann.request("message", "chat/2", {"content": "for the public"})
        assert await bob.settle() == []
    assert all(realtime.running for realtime in (public, staff, mounted))
    server.stop()
    assert not any(realtime.running for realtime in (public, staff, mounted))


async def test_one_server_below_the_path_of_another(serve: Serve) -> None:
    app = Starlette(routes=ROUTES)
    app.add_middleware(RealtimeMiddleware, realtime=make_realtime(), path="/realtime")
    app.add_middleware(RealtimeMiddleware, realtime=make_realtime(), path="/realtime/staff")
    server = serve(app)
    await chat_works(server.ws("/realtime/ws"))
    await chat_works(server.ws("/realtime/staff/ws"))


# FastAPI


async def caller(x_caller: Annotated[str, Header()] = "") -> str:
    if not x_caller:
        raise HTTPException(401, "who are you?")
    return x_caller


def fastapi_host(app: FastAPI) -> FastAPI:
    @app.get("/whoami")
    async def whoami(name: Annotated[str, Depends(caller)]) -> dict[str, str]:
        return {"name": name}

    return app


async def test_fastapi_dependencies_and_openapi_are_what_they_were(serve: Serve) -> None:
    plain = fastapi_host(FastAPI()).openapi()

    with_middleware = fastapi_host(FastAPI())
    with_middleware.add_middleware(RealtimeMiddleware, realtime=make_realtime())
    realtime = make_realtime()
    with_mount = fastapi_host(FastAPI(lifespan=realtime.lifespan))
    with_mount.mount("/realtime", realtime)

    for app in (with_middleware, with_mount):
        server = serve(app)
        await chat_works(server.ws("/realtime/ws"))
        async with httpx.AsyncClient(base_url=server.http()) as http:
            assert (await http.get("/openapi.json")).json() == plain
            assert (await http.get("/docs")).status_code == 200
            assert (await http.get("/whoami")).json() == {"detail": "who are you?"}
            answer = await http.get("/whoami", headers={"x-caller": "Ann"})
            assert answer.json() == {"name": "Ann"}
        server.stop()


# Litestar


@pytest.mark.parametrize("path", ["/realtime", "/realtime/", "/live/v1"])
async def test_litestar_with_and_without_a_slash_at_the_end(serve: Serve, path: str) -> None:
    app = Litestar(
        [litestar_hello, litestar_shout], plugins=[RealtimePlugin(make_realtime(), path=path)]
    )
    server = serve(app)
    base = path.rstrip("/")
    await chat_works(server.ws(f"{base}/ws"))
    await chat_works(server.ws(f"{base}/ws/"))
    await shouting_works(server.ws("/shout"))
    async with httpx.AsyncClient(base_url=server.http()) as http:
        assert (await http.get(f"{base}/client.js")).status_code == 200
        assert (await http.get(f"{base}/client.js/")).status_code == 200
        assert (await http.get(f"{base}/nowhere")).status_code == 404
        assert base not in (await http.get("/schema/openapi.json")).json()["paths"]


async def test_litestar_middleware_and_two_servers(serve: Serve) -> None:
    seen: list[str] = []
    app = Litestar(
        [litestar_hello, litestar_shout],
        middleware=[DefineMiddleware(AddHeader, seen=seen)],
        plugins=[
            RealtimePlugin(make_realtime()),
            RealtimePlugin(make_realtime(), path="/staff/realtime"),
        ],
    )
    server = serve(app)
    await chat_works(server.ws("/realtime/ws"))
    await chat_works(server.ws("/staff/realtime/ws"))
    await shouting_works(server.ws("/shout"))
    async with httpx.AsyncClient(base_url=server.http()) as http:
        for path in ("/hello", "/realtime/client.js", "/staff/realtime/client.js"):
            answer = await http.get(path)
            assert (answer.status_code, answer.headers["x-host"]) == (200, "yes")
    assert seen.count("websocket") == 5


@pytest.mark.parametrize("path", ["", "/", "//"])
def test_litestar_path_that_would_hide_the_app_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="'/realtime'"):
        RealtimePlugin(make_realtime(), path=path)
