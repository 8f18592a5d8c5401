"""Our package with everything on: signed tokens, membership, a history of 1000, offsets.

``BENCH_PLAIN=1`` puts a wrapper between the server and the package, as any middleware is one: then
frames cannot be written past ASGI's ``send``. ``BENCH_REDIS`` is the URL of the backend instead of
memory.
"""

from __future__ import annotations

import os

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.tokens import MAX_AGE, SECRET
from starlette_realtime import Options, Realtime, SignedTokenAuth

realtime = Realtime(
    os.environ.get("BENCH_REDIS") or "memory://",
    auth=SignedTokenAuth(SECRET, max_age=MAX_AGE),
    options=Options(
        max_rooms=1000,
        history=1000,
        max_queued=64_000_000,
        message_rate=1e6,
        message_burst=1e6,
        user_rate=1e6,
        user_burst=1e6,
        join_rate=1e6,
        join_burst=1e6,
        max_connections_per_user=10_000,
        max_connections_per_ip=100_000,
    ),
)
# Members are counted, but arrivals are not announced: no peer does that, and N clients that join
# would cause N² messages which are not what is measured.
realtime.room("{name}", presence="counts", recent=0)


def plain(inner: ASGIApp) -> ASGIApp:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def forward(message: Message) -> None:
            await send(message)

        await inner(scope, receive, forward)

    return wrapped


app: ASGIApp = plain(realtime) if os.environ.get("BENCH_PLAIN") == "1" else realtime
