"""An app that issues tickets, and knows its backend by `REALTIME_BACKEND` alone:
`uvicorn tests.tickets.app:app`."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from starlette_realtime import (
    FirstOf,
    Realtime,
    RealtimeMiddleware,
    SignedTokenAuth,
    TicketAuth,
    User,
    WithUser,
)
from tests.auth.helpers import SECRET

tickets = TicketAuth()
realtime = Realtime(auth=WithUser(FirstOf(tickets, SignedTokenAuth(SECRET)), lambda user: user))


async def ticket(request: Request) -> PlainTextResponse:
    """`POST /ticket?user=ann`"""
    return PlainTextResponse(await tickets.issue(User(id=request.query_params["user"])))


app = Starlette(
    routes=[Route("/ticket", ticket, methods=["POST"])],
    middleware=[Middleware(RealtimeMiddleware, realtime=realtime, path="/realtime")],
)
