"""python-socketio: one room, ``sio.emit(room=…)``; the token is checked as our own backend does."""

# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator"
# It has no types, and is installed in benchmarks/.venv only.

from __future__ import annotations

import os
from typing import Any

import socketio
from itsdangerous import BadSignature

from benchmarks.tokens import read_token

redis_url = os.environ.get("BENCH_REDIS")
manager = socketio.AsyncRedisManager(redis_url) if redis_url else None
sio = socketio.AsyncServer(
    async_mode="asgi", client_manager=manager, cors_allowed_origins="*", logger=False
)
app = socketio.ASGIApp(sio)


@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: dict[str, str] | None) -> None:
    if auth is None:
        raise ConnectionRefusedError("authentication required")
    try:
        user = read_token(auth["token"])
    except (BadSignature, KeyError):
        raise ConnectionRefusedError("authentication failed") from None
    await sio.save_session(sid, {"user": user})


@sio.event
async def join(sid: str, room: str) -> None:
    await sio.enter_room(sid, room)
    await sio.emit("joined", to=sid)


@sio.event
async def msg(sid: str, data: str) -> None:
    await sio.emit("msg", data, room="hot")
