"""The server that the tests of the JavaScript client talk to.

As a module, `uvicorn tests.clients.app:app`, it takes its `Options` as JSON from `TEST_OPTIONS`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from starlette_realtime import (
    Chat,
    ClientError,
    Member,
    Options,
    Realtime,
    RealtimeMiddleware,
    Room,
    Session,
    SignedTokenAuth,
)

HERE = Path(__file__).parent
SECRET = "known to all, because it guards nothing"


class Picture(msgspec.Struct):
    """What `picture` takes."""

    pixels: bytes
    name: str = ""


class ClientsServer:
    """An app with all that a client can meet; `app` is for uvicorn.

    `banned` are users that may enter no room; `served` the names of requests for a token. Both may
    be used from another thread. Keyword arguments are `Options`.
    """

    def __init__(self, **options: Any) -> None:
        # Many messages in little time are what these tests are about.
        limits = {"message_rate": 0.0, "user_rate": 0.0, "join_rate": 0.0}
        self.banned: set[str] = set()
        self.served: list[str] = []
        self.users = SignedTokenAuth(SECRET)
        self.admins = SignedTokenAuth(SECRET, salt="admins")
        self.realtime = Realtime(
            "memory://", auth=self.users, options=Options(**{**limits, **options})
        )
        self._register(self.realtime)
        self.app = Starlette(
            routes=[
                Route("/", lambda request: FileResponse(HERE / "page.html")),
                Route("/visitor.mjs", lambda request: FileResponse(HERE / "visitor.mjs")),
                Route("/token", self.token),
                Route("/kept", self.kept),
            ],
            middleware=[Middleware(RealtimeMiddleware, realtime=self.realtime, path="/realtime")],
        )

    async def token(self, request: Request) -> Response:
        """`GET /token?user=ann`; further arguments: `expires_in` (seconds), `admin=1`."""
        query = request.query_params
        self.served.append(query["user"])
        auth = self.admins if "admin" in query else self.users
        expires_in = float(query["expires_in"]) if "expires_in" in query else None
        return PlainTextResponse(
            auth.create_token(query["user"], {"name": query["user"]}, expires_in=expires_in)
        )

    async def kept(self, request: Request) -> Response:
        """`GET /kept?room=chat/1`: the contents of the messages in its history."""
        page = await self.realtime.get_room(request.query_params["room"]).history(limit=1000)
        messages = [json.loads(publication.data) for publication in page.publications]
        return JSONResponse([message["content"] for message in messages])

    def _register(self, realtime: Realtime) -> None:
        chat = realtime.room("chat/{name}", features=[Chat()])

        @chat.authorize
        async def may_enter(member: Member) -> bool:
            return member.user_id not in self.banned

        @chat.on("picture")
        async def picture(room: Room, data: Picture) -> Any:
            await room.publish("picture", {"name": data.name, "pixels": data.pixels})
            return {"size": len(data.pixels), "back": data.pixels[::-1]}

        @chat.on("ask-me")
        async def ask_me(member: Member, data: Any) -> Any:
            return {"answer": await member.request("question", data, timeout=5)}

        @chat.on("kick-me")
        async def kick_me(member: Member, data: int) -> None:
            member.disconnect(data, "told to")

        @chat.on("buy")
        async def buy(data: Any) -> None:
            raise ClientError("sold_out", "Sold out")

        @chat.on("crash")
        async def crash(data: Any) -> None:
            raise RuntimeError("a handler that fails")

        @realtime.event("echo")
        async def echo(data: Any) -> Any:
            return data

        admin = realtime.namespace("/admin", auth=self.admins)
        admin.room("chat/{name}", features=[Chat()])

        @admin.event("who")
        async def who(session: Session) -> Any:
            return {"user": session.user_id}


app = ClientsServer(**json.loads(os.environ.get("TEST_OPTIONS", "{}"))).app
