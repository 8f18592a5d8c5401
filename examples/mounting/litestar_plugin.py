"""Litestar, with the plugin: rooms under /realtime, everything else the app's own.

    uvicorn examples.mounting.litestar_plugin:app
    curl -X POST 'http://127.0.0.1:8000/announce/kitchen?text=Dinner+is+ready'

Clients connect to ws://127.0.0.1:8000/realtime/ws, join `chat/kitchen` and get `announcement`.
"""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Request, post

from starlette_realtime import Chat, GuestAuth, Realtime
from starlette_realtime.litestar import RealtimePlugin

# Believes every name it is told: an app of your own takes SignedTokenAuth, JWTAuth or SessionAuth.
realtime = Realtime("memory://", auth=GuestAuth())
realtime.room("chat/{room_id}", features=[Chat()])


@post("/announce/{room_id:str}", status_code=200)
async def announce(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Publish into a room from an HTTP endpoint."""
    room = f"chat/{request.path_params['room_id']}"
    text = request.query_params.get("text", "")
    published = await realtime.publish(room, "announcement", {"text": text})
    return {"room": room, "offset": published.position.offset}


app = Litestar(route_handlers=[announce], plugins=[RealtimePlugin(realtime, path="/realtime")])
