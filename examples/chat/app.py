"""A chat: rooms, private messages, presence, typing, history, and pages that miss nothing.

    uvicorn examples.chat.app:app

Then open http://127.0.0.1:8000/ in two windows. Environment:

- `REALTIME_BACKEND`: where rooms live, `memory://` by default.
- `CHAT_SECRET`: signs the tokens by which guests stay who they are; 16 bytes at least. Without it a
  random one is used, and guests are strangers after a restart of the server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from starlette_realtime import (
    AuthenticationFailed,
    Chat,
    ClientError,
    ConfigurationError,
    GuestAuth,
    Publication,
    Realtime,
    RealtimeMiddleware,
    Room,
)
from starlette_realtime.features.direct import DirectMessages
from starlette_realtime.features.status import Presence
from starlette_realtime.features.typing import Typing

MAX_TITLE = 40
"""Characters in the title of a room."""
MAX_ROOMS = 200
"""Rooms that guests made and that the list remembers."""

backend = os.environ.get("REALTIME_BACKEND", "memory://")
secret = os.environ.get("CHAT_SECRET")
if secret is None and not backend.startswith("memory:"):
    # Each process would make up its own, and turn away the guests of the others.
    raise ConfigurationError("set CHAT_SECRET, so that all processes believe the same tokens")

auth = GuestAuth(secret)
realtime = Realtime(backend, auth=auth)
realtime.add(Presence())
realtime.add(DirectMessages())
chat = realtime.room("chat/{room_id}", features=[Chat(), Typing()])
# Who is in the lobby hears of new rooms. It is a room like any other, so nobody misses one.
lobby = realtime.room(
    "lobby",
    history=MAX_ROOMS,
    history_age=30 * 86_400,
    recent=MAX_ROOMS,
    presence="none",
    broadcast=False,
)


class NewRoom(msgspec.Struct):
    """What `create-room` takes."""

    title: str


class RoomInfo(msgspec.Struct, rename="camel"):
    """A room in the list: `roomId` is its name on the wire."""

    room_id: str
    title: str


ROOMS = {
    f"chat/{title.lower()}": RoomInfo(f"chat/{title.lower()}", title)
    for title in ("General", "Random", "Help")
}
"""Rooms that are always there."""


@chat.authorize
async def may_enter(room_id: str) -> bool:
    """Every room is open to all, under a name that `create-room` could have given it."""
    return len(room_id) <= MAX_TITLE and re.fullmatch(r"\w+(-\w+)*", room_id) is not None


@lobby.on("create-room")
async def create_room(room: Room, data: NewRoom) -> RoomInfo:
    """Tell everyone of a room; one that exists already is simply returned."""
    title = " ".join(data.title.split())
    slug = re.sub(r"[\W_]+", "-", title.casefold()).strip("-")
    if not slug or max(len(title), len(slug)) > MAX_TITLE or not title.isprintable():
        raise ClientError("bad_title", f"A title has 1 to {MAX_TITLE} letters or digits")
    info = RoomInfo(f"chat/{slug}", title)
    if info.room_id in ROOMS:
        return ROOMS[info.room_id]
    await room.publish("room-created", info, id=info.room_id)
    return info


@lobby.view_recent
def list_rooms(publications: Sequence[Publication]) -> list[Any]:
    """What a page that joins the lobby gets as `recentMessages`: all rooms."""
    made = [msgspec.json.decode(publication.data, type=RoomInfo) for publication in publications]
    return list((ROOMS | {info.room_id: info for info in made}).values())


async def token(request: Request) -> Response:
    """`GET /token?name=Ann` → the token of a new guest, and the events this server handles, so that
    the page offers what there is."""
    try:
        made = auth.create_token(request.query_params.get("name", ""))
    except AuthenticationFailed:
        return JSONResponse({"error": "A name has 1 to 40 characters."}, status_code=400)
    events = sorted({*chat.handlers, *realtime.handlers})
    return JSONResponse({"token": made, "events": events}, headers={"cache-control": "no-store"})


app = Starlette(
    routes=[
        Route("/token", token),
        Mount("/", StaticFiles(directory=Path(__file__).parent / "static", html=True)),
    ],
    middleware=[Middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")],
)
