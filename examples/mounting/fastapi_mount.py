"""FastAPI, as a mounted app: `app.mount`, and `lifespan` so that it starts and stops with the app.

    uvicorn examples.mounting.fastapi_mount:app
    curl -X POST 'http://127.0.0.1:8000/announce/kitchen?text=Dinner+is+ready'

Clients connect to ws://127.0.0.1:8000/realtime/ws, join `chat/kitchen` and get `announcement`. The
endpoint gets the server as a dependency, which a test may override.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel

from starlette_realtime import Chat, GuestAuth, Realtime

# Believes every name it is told: an app of your own takes SignedTokenAuth, JWTAuth or SessionAuth.
_realtime = Realtime("memory://", auth=GuestAuth())
_realtime.room("chat/{room_id}", features=[Chat()])


def realtime() -> Realtime:
    """The app's realtime server."""
    return _realtime


class Announced(BaseModel):
    """Where the announcement stands in its room."""

    room: str
    offset: int


app = FastAPI(title="Kitchen", lifespan=_realtime.lifespan)
app.mount("/realtime", _realtime)


@app.post("/announce/{room_id}")
async def announce(
    room_id: str, text: str, server: Annotated[Realtime, Depends(realtime)]
) -> Announced:
    """Publish into a room from an HTTP endpoint."""
    room = f"chat/{room_id}"
    published = await server.publish(room, "announcement", {"text": text})
    return Announced(room=room, offset=published.position.offset)
