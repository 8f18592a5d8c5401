"""Starlette, as a mounted app: `Mount`, and `lifespan` so that it starts and stops with the app.

    uvicorn examples.mounting.starlette_mount:app
    curl -X POST 'http://127.0.0.1:8000/announce/kitchen?text=Dinner+is+ready'

Clients connect to ws://127.0.0.1:8000/realtime/ws, join `chat/kitchen` and get `announcement`.
An app with a lifespan of its own enters `realtime.run()` in it: `async with realtime.run(): yield`.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from starlette_realtime import Chat, GuestAuth, Realtime

# Believes every name it is told: an app of your own takes SignedTokenAuth, JWTAuth or SessionAuth.
realtime = Realtime("memory://", auth=GuestAuth())
realtime.room("chat/{room_id}", features=[Chat()])


async def announce(request: Request) -> Response:
    """Publish into a room from an HTTP endpoint."""
    room = f"chat/{request.path_params['room_id']}"
    published = await realtime.publish(
        room, "announcement", {"text": request.query_params.get("text", "")}
    )
    return JSONResponse({"room": room, "offset": published.position.offset})


app = Starlette(
    routes=[
        Route("/announce/{room_id}", announce, methods=["POST"]),
        Mount("/realtime", app=realtime),
    ],
    lifespan=realtime.lifespan,
)
