"""Starlette, with the middleware: rooms under /realtime, everything else the app's own.

    uvicorn examples.mounting.starlette_middleware:app
    curl -X POST 'http://127.0.0.1:8000/announce/kitchen?text=Dinner+is+ready'

Clients connect to ws://127.0.0.1:8000/realtime/ws, join `chat/kitchen` and get `announcement`.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from starlette_realtime import Chat, GuestAuth, Realtime, RealtimeMiddleware

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


app = Starlette(routes=[Route("/announce/{room_id}", announce, methods=["POST"])])
app.add_middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")
