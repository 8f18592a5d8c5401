"""Servers other than uvicorn, in a thread beside the test.

with running(Hypercorn(app)) as server:
    async with NativeClient.open(server.ws("/realtime/ws")) as client: ...
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from hypercorn.config import Config

from tests.support.ports import Certificate, accepts, free_port


class Threaded:
    """A server in a thread, with an event loop of its own."""

    def __init__(self, app: Any, loop: str = "asyncio") -> None:
        self.app = app
        self.loop = loop
        self.port = free_port()
        self.secure = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None

    def ws(self, path: str) -> str:
        return f"{'wss' if self.secure else 'ws'}://127.0.0.1:{self.port}{path}"

    async def serve(self) -> None:
        """Serve until `told_to_stop` returns."""
        raise NotImplementedError

    async def told_to_stop(self) -> None:
        while not self._stop.is_set():
            await anyio.sleep(0.01)

    def _run(self) -> None:
        try:
            if self.loop == "uvloop":
                anyio.run(self.serve, backend_options={"use_uvloop": True})
            else:
                anyio.run(self.serve, backend=self.loop)
        except BaseException as error:
            self._error = error

    def start(self) -> None:
        self._thread.start()
        end = time.monotonic() + 10
        while not accepts(self.port):
            assert self._thread.is_alive(), self._error
            assert time.monotonic() < end, "not up after 10 s"
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive(), "still running 10 s after it was told to stop"
        assert self._error is None, self._error


class Hypercorn(Threaded):
    """Further options are those of hypercorn's configuration."""

    def __init__(
        self,
        app: Any,
        loop: str = "asyncio",
        *,
        certificate: Certificate | None = None,
        **options: Any,
    ) -> None:
        super().__init__(app, loop)
        self.config = Config()
        self.config.bind = [f"127.0.0.1:{self.port}"]
        self.config.errorlog = None
        self.config.graceful_timeout = 1
        if certificate is not None:
            self.secure = True
            self.config.certfile = str(certificate.certfile)
            self.config.keyfile = str(certificate.keyfile)
        for name, value in options.items():
            setattr(self.config, name, value)

    async def serve(self) -> None:
        if self.loop == "trio":
            from hypercorn.trio import serve
        else:
            from hypercorn.asyncio import serve  # type: ignore[assignment]
        await serve(self.app, self.config, shutdown_trigger=self.told_to_stop)


@contextmanager
def running(server: Threaded) -> Iterator[Threaded]:
    server.start()
    try:
        yield server
    finally:
        server.stop()
