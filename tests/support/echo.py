"""A small ASGI app without a framework, to test the tests' own tools against."""

from __future__ import annotations

import json
import os
from typing import Any

GREETING = {"type": "connected", "sessionId": "s", "clientId": "c", "userId": None}

PAGE = """<!doctype html><link rel="icon" href="data:,"><title>echo</title>
<script>
  if (location.hash === "#log") console.error("logged");
  if (location.hash === "#throw") setTimeout(() => { throw new Error("thrown"); });
  onload = () => { document.title = "ready"; };
</script>"""


async def _send(send: Any, *messages: Any) -> None:
    await send({"type": "websocket.send", "text": "\n".join(map(json.dumps, messages))})


async def _websocket(scope: Any, receive: Any, send: Any) -> None:
    """Answers like the native protocol: `connected`, pongs, acks; closes or errs when asked to."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    await _send(send, GREETING)
    while (event := await receive())["type"] != "websocket.disconnect":
        for line in event["text"].splitlines():
            message = json.loads(line)
            match message["type"]:
                case "ping":
                    await _send(send, {"type": "pong", "timestamp": 0})
                case "pong":
                    await _send(send, {"type": "heard"})
                case "ask":
                    await _send(send, {"type": "ping"})
                case "flood":
                    await _send(send, *[{"type": "drop", "data": "x" * 1_000_000}] * 30)
                case "fail":
                    error = {"type": "error", "code": "no", "error": "No", "retry": False}
                    await _send(send, error | {"id": message["id"]})
                case "close":
                    await send({"type": "websocket.close", "code": 4410, "reason": "told to"})
                    return
                case _:
                    noise = {"type": "noise", "data": {"a": 1, "b": [1, 2]}}
                    await _send(
                        send, noise, {"type": "ack", "id": message.get("id"), "data": "done"}
                    )


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup" and os.environ.get("ECHO_REFUSES"):
                await send({"type": "lifespan.startup.failed", "message": "refused"})
            else:
                await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    elif scope["type"] == "websocket":
        await _websocket(scope, receive, send)
    else:
        body = PAGE if scope["path"] == "/" else str(os.getpid())
        headers = [(b"content-type", b"text/html; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})
