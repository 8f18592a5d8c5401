"""What `test_oldest` serves: rooms for all, and at `/versions` which server this is."""

from __future__ import annotations

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from websockets.version import version as websockets

from starlette_realtime import Happening, Member
from tests.transports.helpers import make_app, make_realtime

realtime = make_realtime()
room = realtime.room("{name}")
direct: list[bool] = []


@realtime.on("connection")
def connected(happening: Happening) -> None:
    direct.append(happening.session.outbox.write is not None)


@room.on("kick")
async def kick(member: Member) -> None:
    member.disconnect(4410, "go")


async def versions(request: Request) -> JSONResponse:
    found = {"uvicorn": uvicorn.__version__, "websockets": websockets}
    return JSONResponse({**found, "direct": direct})


app = make_app(realtime, [Route("/versions", versions)])
