"""A server for the clients' tests, and the network before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx

from tests.clients.app import ClientsServer
from tests.clients.visitors import Visit, Visitor
from tests.support.proxy import Proxy
from tests.support.server import LiveServer


class Network:
    """A server, and the network before it: `origin` is where clients go."""

    def __init__(self, server: ClientsServer, live: LiveServer, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy
        self.origin = proxy.http()
        self._direct = live.http

    async def kept(self) -> list[str]:
        """The messages in the room's history."""
        async with httpx.AsyncClient() as http:
            found: list[str] = (await http.get(self._direct("/kept?room=chat/1"))).json()
        return found

    async def until_kept(self, *messages: str) -> None:
        with anyio.fail_after(10):
            while await self.kept() != list(messages):
                await anyio.sleep(0.01)


Networks = Callable[..., Awaitable[Network]]


async def two(visit: Visit, origin: str, **options: Any) -> tuple[Visitor, Visitor]:
    """Ann and Bob in the same room."""
    ann, bob = await visit(origin), await visit(origin)
    await ann.enter("ann", **options)
    await bob.enter("bob", **options)
    return ann, bob
