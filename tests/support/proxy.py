"""A network that misbehaves on command: a TCP proxy between a client and a server of the tests.

    async with Proxy(server.port) as proxy:
        page = await browser_page(proxy.http("/"))
        proxy.stall()                  # what is sent now is on its way, and stays there
        proxy.cut_all()

Connections run in the test's event loop (asyncio), so a test that blocks stops them too.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

CHUNK = 65_536


class _Way:
    """One direction of all connections: open, or holding back what comes."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    def hold(self, held: bool) -> None:
        if held:
            self.open.clear()
        else:
            self.open.set()


class _Link:
    """One connection through the proxy."""

    def __init__(
        self, client: asyncio.StreamWriter, server: asyncio.StreamWriter | None = None
    ) -> None:
        self.client = client
        self.server = server
        self.dead = False
        """Both ends believe in it; nothing passes any more."""

    def abort(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                writer.transport.abort()


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes on to `target`, a port of the same host.

    `latency` (seconds) delays what passes from now on, in each direction.
    """

    def __init__(self, target: int, *, latency: float = 0) -> None:
        self.target = target
        self.latency = latency
        self.accepted = 0
        """Connections so far."""
        self.port = 0
        self._to_server = _Way()
        self._to_client = _Way()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def http(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def ws(self, path: str = "") -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    @property
    def connections(self) -> int:
        """Connections there are now, the dead ones included."""
        return len(self._links)

    # Misbehaviour

    def cut_all(self) -> int:
        """Resets every connection, and what was on its way is lost. Returns how many."""
        links = list(self._links)
        for link in links:
            link.abort()
        return len(links)

    def stall(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Holds back everything, on new connections too, until `resume`; the ends see nothing."""
        self._to_server.hold(to_server)
        self._to_client.hold(to_client)

    def resume(self) -> None:
        """Passes on what was held back, in order, and everything after it."""
        self._to_server.hold(False)
        self._to_client.hold(False)

    def bury_all(self) -> int:
        """Makes every connection half-open for ever: both ends send into the void and hear nothing,
        not even the other's end. New connections work. Returns how many."""
        links = [link for link in self._links if not link.dead]
        for link in links:
            link.dead = True
        return len(links)

    # Connections

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        try:
            from_server, link.server = await asyncio.open_connection("127.0.0.1", self.target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(link, reader, link.server, self._to_server))
                group.create_task(self._pass_on(link, from_server, writer, self._to_client))
        except* OSError:
            pass  # an end reset the connection, or nobody listens: so it is for the other end
        finally:
            link.abort()
            self._links.discard(link)

    async def _pass_on(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: _Way
    ) -> None:
        while data := await reader.read(CHUNK):
            if self.latency:
                await asyncio.sleep(self.latency)
            await way.open.wait()
            if not link.dead:
                writer.write(data)
                await writer.drain()
        await way.open.wait()
        if link.dead:
            await asyncio.Event().wait()
        writer.write_eof()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
