"""One worker of the server that the fault suite harms: `uvicorn tests.faults.app:app`.

`REALTIME_BACKEND` says where its Redis is. Leases are short, so that a test need not wait long for
those of the dead; histories are long, so that what was lost can't hide behind what was trimmed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from starlette_realtime import (
    Chat,
    Member,
    Options,
    Realtime,
    RealtimeMiddleware,
    SignedTokenAuth,
)
from starlette_realtime.errors import AckTimeout, Disconnected

SECRET = "known to all, because it guards nothing"
LEASE = 4.0
GRACE = 2.0

users = SignedTokenAuth(SECRET)
realtime = Realtime(
    auth=users,
    options=Options(
        presence_ttl=LEASE,
        presence_grace=GRACE,
        resume_window=20.0,
        history=100_000,
        recover_limit=10_000,
        message_rate=0.0,
        user_rate=0.0,
        join_rate=0.0,
        abuse_rate=0.0,
        shutdown_timeout=2.0,
    ),
)
chat = realtime.room("chat/{name}", features=[Chat()])

PATIENCE = 12.0
questions: Counter[str] = Counter()
"""What became of the questions that this worker has asked; "open" are those that wait."""


@chat.on("ask-me")
async def ask_me(member: Member, data: int) -> None:
    """Have the client answer with the same number, without keeping it waiting."""
    member.session.engine.runtime.spawn(ask, member, data)


async def ask(member: Member, number: int) -> None:
    questions["open"] += 1
    try:
        answer = await member.request("question", number, timeout=PATIENCE)
        questions["answered" if answer == number else "wrong"] += 1
    except AckTimeout:
        questions["late"] += 1
    except Disconnected:
        questions["ended"] += 1
    finally:
        questions["open"] -= 1


async def token(request: Request) -> Response:
    """`GET /token?user=ann`"""
    user = request.query_params["user"]
    return PlainTextResponse(users.create_token(user, {"name": user}))


async def state(request: Request) -> Response:
    """What this worker holds: tasks by what they run, and the tables behind its connections."""
    assert realtime._running is not None
    runtime = realtime._running.runtime
    tasks: Counter[str] = Counter()
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        if task is not asyncio.current_task():
            code = getattr(coroutine, "cr_code", None)
            where = Path(code.co_filename).parent.name if code is not None else ""
            tasks[f"{where}/{getattr(coroutine, '__qualname__', coroutine)}"] += 1
    return JSONResponse(
        {
            "pid": os.getpid(),
            "tasks": tasks,
            "connections": len(runtime.connections),
            "sessions": len(runtime.hub.sessions),
            "channels": sorted(runtime.hub.channels),
            "questions": questions,
            "healed": runtime.gaps_healed,
            "lost": runtime.gaps_lost,
        }
    )


async def members(request: Request) -> Response:
    """`GET /members?room=chat/1`: the users that this worker says are there."""
    page = await realtime.get_room(request.query_params["room"]).members(limit=100)
    return JSONResponse(sorted(member.user_id for member in page.members))


async def kept(request: Request) -> Response:
    """`GET /kept?room=chat/1`: the contents of all messages of its history, oldest first."""
    room = realtime.get_room(request.query_params["room"])
    contents: list[str] = []
    after = 0
    while True:
        page = await room.history(after=after, limit=100)
        for publication in page.publications:
            contents.append(json.loads(publication.data)["content"])
            after = publication.offset
        if not page.more:
            return JSONResponse(contents)


app = Starlette(
    routes=[
        Route("/token", token),
        Route("/state", state),
        Route("/members", members),
        Route("/kept", kept),
    ],
    middleware=[Middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")],
)
