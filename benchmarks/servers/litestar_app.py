"""Litestar: its channels plugin with the memory backend.

``BENCH_HISTORY`` is how many of the last messages a new subscriber gets first.
"""

from __future__ import annotations

import os
from typing import Any

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.exceptions import WebSocketDisconnect

HISTORY = int(os.environ.get("BENCH_HISTORY", "0"))
channels_plugin = ChannelsPlugin(
    backend=MemoryChannelsBackend(history=max(HISTORY, 1)), channels=["hot"]
)


@websocket("/")
async def room(socket: WebSocket[Any, Any, Any], channels: ChannelsPlugin) -> None:
    await socket.accept()
    async with (
        channels.start_subscription("hot", history=HISTORY or None) as subscriber,
        subscriber.run_in_background(socket.send_text),
    ):
        await socket.send_text("ready")
        try:
            while True:
                channels.publish(await socket.receive_text(), "hot")
        except WebSocketDisconnect:
            pass


app = Litestar([room], plugins=[channels_plugin])
