"""An app to be served, and what the tests of its doors share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from starlette_realtime import (
    AnonymousAuth,
    AuthBackend,
    Chat,
    FirstOf,
    Member,
    Options,
    Realtime,
    RealtimeMiddleware,
    Room,
    Session,
    SignedTokenAuth,
)
from tests.support.server import FAST

SECRET = "a secret of more than thirty-two bytes"
TOKENS = SignedTokenAuth(SECRET)
PATH = "/realtime/ws"
WS = ("websockets-sansio", FAST, "wsproto")
"""uvicorn's own protocol, in which the writer is found; the package's; one without a writer."""
FRAMINGS: tuple[tuple[str, ...], ...] = (("realtime.v2",), ("realtime.v1",), ())

NO_LIMITS: dict[str, Any] = {
    "message_rate": 0.0,
    "user_rate": 0.0,
    "join_rate": 0.0,
    "abuse_rate": 0.0,
    "max_connections_per_user": 0,
}


def token(user_id: str, **more: Any) -> str:
    return TOKENS.create_token(user_id, {"name": user_id.title()}, **more)


def make_realtime(*, auth: AuthBackend | None = None, **options: Any) -> Realtime:
    return Realtime(
        "memory://",
        auth=auth or FirstOf(TOKENS, AnonymousAuth()),
        options=Options(**{**NO_LIMITS, **options}),
    )


def make_app(realtime: Realtime, routes: Iterable[Route] = (), *, mount: bool = False) -> Starlette:
    if mount:
        return Starlette(routes=[Mount("/realtime", realtime), *routes], lifespan=realtime.lifespan)
    app = Starlette(routes=list(routes))
    app.add_middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")
    return app


class Told(msgspec.Struct):
    text: str
    blob: bytes = b""


def house_app() -> Starlette:
    """Rooms of several kinds, and endpoints that publish."""
    realtime = make_realtime()
    realtime.room("chat/{name}", features=[Chat()])
    closed = realtime.room("closed/{name}")
    room = realtime.room("{name}")

    @closed.authorize
    async def nobody() -> bool:
        return False

    @room.on("tell")
    async def tell(room: Room, member: Member, data: Told) -> dict[str, Any]:
        published = await room.publish("told", {"text": data.text, "blob": data.blob})
        return {"blob": data.blob, "size": len(data.blob), "offset": published.position.offset}

    @room.on("boom")
    async def boom() -> None:
        raise RuntimeError("a bug in the app")

    @room.on("slow")
    async def slow(data: float) -> str:
        await anyio.sleep(data)
        return "done"

    @room.on("question")
    async def question(member: Member, data: Any) -> Any:
        return {"answer": await member.request("question", data, timeout=5)}

    @realtime.event("echo")
    async def echo(session: Session, data: Any) -> Any:
        return data

    async def publish(request: Request) -> JSONResponse:
        said = await request.json()
        published = await realtime.publish(
            said["room"], "news", said["data"], exclude=said.get("exclude")
        )
        return JSONResponse({"offset": published.position.offset})

    async def send(request: Request) -> JSONResponse:
        said = await request.json()
        match said["to"]:
            case {"user": user_id}:
                await realtime.send_to_user(user_id, "news", said["data"])
            case {"session": session_id}:
                await realtime.send_to_session(session_id, "news", said["data"])
            case {"others": session_id}:
                await realtime.broadcast("news", said["data"], exclude=session_id)
            case "all":
                await realtime.broadcast("news", said["data"])
        return JSONResponse({})

    routes = [
        Route("/publish", publish, methods=["POST"]),
        Route("/tell", send, methods=["POST"]),
    ]
    return make_app(realtime, routes)


def text_frame(payload: bytes) -> bytes:
    """A client's text frame (RFC 6455, section 5.2), masked with zeros, whatever is in it."""
    size = len(payload)
    assert size < 126
    return bytes([0x81, 0x80 | size, 0, 0, 0, 0]) + payload


async def post(url: str, data: Any) -> Any:
    """POST JSON and return the JSON of the answer."""
    import httpx

    async with httpx.AsyncClient() as http:
        answer = await http.post(url, json=data)
    answer.raise_for_status()
    return answer.json()


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for something that happens in the server's thread."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def dumps(value: Any, **options: Any) -> str:
    return json.dumps(value, **options)
