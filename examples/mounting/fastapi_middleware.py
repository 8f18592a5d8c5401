"""FastAPI, with the middleware: rooms under /realtime, everything else the app's own.

    uvicorn examples.mounting.fastapi_middleware:app
    curl -X POST 'http://127.0.0.1:8000/announce/kitchen?text=Dinner+is+ready'

Clients connect to ws://127.0.0.1:8000/realtime/ws, join `chat/kitchen` and get `announcement`.
"""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from starlette_realtime import Chat, GuestAuth, Realtime, RealtimeMiddleware

# Believes every name it is told: an app of your own takes SignedTokenAuth, JWTAuth or SessionAuth.
realtime = Realtime("memory://", auth=GuestAuth())
realtime.room("chat/{room_id}", features=[Chat()])

app = FastAPI(title="Kitchen")
app.add_middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")


class Announced(BaseModel):
    """Where the announcement stands in its room."""

    room: str
    offset: int


@app.post("/announce/{room_id}")
async def announce(room_id: str, text: str) -> Announced:
    """Publish into a room from an HTTP endpoint."""
    room = f"chat/{room_id}"
    published = await realtime.publish(room, "announcement", {"text": text})
    return Announced(room=room, offset=published.position.offset)
