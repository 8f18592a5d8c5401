"""Real uvicorn servers: in a thread beside the test, or as a process of its own.

    with LiveServer(app) as server:                       # or `async with`, or the fixture `serve`
        async with NativeClient.open(server.ws("/realtime/ws")) as client: ...

    with ServerProcess("examples.chat.app:app", workers=2, output=tmp_path / "log") as server:
        ...
        server.kill_worker()

`ws` is what `uvicorn --ws` takes: a name, or `module:Class`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback as tracebacks
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from anyio import to_thread
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from tests.support.ports import Certificate, accepts, free_port, listening_socket
from tests.support.processes import Process

FAST = "starlette_realtime.servers.uvicorn:RealtimeProtocol"
WS_IMPLEMENTATIONS = ("websockets-sansio", FAST, "wsproto", "websockets")
"""The WebSocket implementations a user may choose; the first is the default of the tests."""

ROOT = Path(__file__).resolve().parents[2]

CLOSING = 3.0
"""Seconds that a connection which its client is closing has to end when the server is stopped."""

# Any ASGI application; frameworks declare their own, incompatible, names for scope and messages.
App = Callable[..., Awaitable[None]]


class _Addresses:
    """The addresses of something served at a port; `path` begins with a slash."""

    port: int
    secure: bool

    def http(self, path: str = "") -> str:
        return f"{'https' if self.secure else 'http'}://127.0.0.1:{self.port}{path}"

    def ws(self, path: str = "") -> str:
        return f"{'wss' if self.secure else 'ws'}://127.0.0.1:{self.port}{path}"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up_or_over = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.up_or_over.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn's own sans-IO protocol raises InvalidState when it is stopped while a client's
        # close is under way, and the server then ends without the app's lifespan. That is no
        # concern of the tests: such connections end first. From the last look to uvicorn's own
        # there is no step of the event loop.
        end = time.monotonic() + CLOSING
        while closing := [c for c in self.server_state.connections if is_closing(c)]:
            if time.monotonic() > end:
                for connection in closing:
                    connection.transport.abort()
            await asyncio.sleep(0.005)
        await super().shutdown(sockets=sockets)


def is_closing(connection: Any) -> bool:
    """Whether the client has begun to close, and TCP has not ended yet."""
    if type(connection) is not WebSocketsSansIOProtocol or not connection.handshake_complete:
        return False
    return not connection.close_sent and connection.conn.state is not State.OPEN


class LiveServer(_Addresses):
    """uvicorn in a background thread, serving an app object on a free port of 127.0.0.1.

    The app runs in another event loop than the test: what it shares with the test must be safe for
    threads. Stopping fails the test if the server has not ended after `stop_timeout` seconds, and
    shows where it hangs. Further options go to `uvicorn.Config`.
    """

    def __init__(
        self,
        app: App,
        *,
        ws: str = "websockets-sansio",
        loop: str = "asyncio",
        root_path: str = "",
        certificate: Certificate | None = None,
        start_timeout: float = 10,
        stop_timeout: float = 10,
        **options: Any,
    ) -> None:
        self._socket = listening_socket()
        self.port: int = self._socket.getsockname()[1]
        self.secure = certificate is not None
        if certificate is not None:
            options |= {"ssl_certfile": certificate.certfile, "ssl_keyfile": certificate.keyfile}
        settings: dict[str, Any] = {
            "ws": ws,
            "loop": loop,
            "root_path": root_path,
            "log_config": None,
            "access_log": False,
            **options,
        }
        self._server = _Server(uvicorn.Config(app, **settings))
        self._thread = threading.Thread(target=self._run, name=f"uvicorn:{self.port}", daemon=True)
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._error: BaseException | None = None

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as error:
            # uvicorn ends with SystemExit when the app's start-up fails; nobody else would hear of
            # it.
            self._error = error
        finally:
            self._socket.close()
            self._server.up_or_over.set()

    def start(self) -> None:
        self._thread.start()
        if not self._server.up_or_over.wait(self._start_timeout):
            self._server.force_exit = self._server.should_exit = True
            raise AssertionError(
                f"not up after {self._start_timeout} s; it stands here:\n{self._stack()}"
            )
        if not self._server.started:
            self._thread.join(self._stop_timeout)
            raise AssertionError("the app did not start: see the log") from self._error

    def stop(self) -> None:
        """Stops as SIGTERM would. Blocks, so clients in this event loop cannot answer meanwhile."""
        self._server.should_exit = True
        self._thread.join(self._stop_timeout)
        if self._thread.is_alive():
            stack = self._stack()
            self._server.force_exit = True
            self._thread.join(2)
            raise AssertionError(
                f"still running {self._stop_timeout} s after it was told to stop:\n{stack}"
            )
        if self._error is not None:
            raise AssertionError("the server ended with an error") from self._error

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        lines = tracebacks.format_stack(frame) if frame is not None else []
        # Iterating over another thread's tasks may fail when one ends meanwhile; the frames still
        # tell.
        try:
            tasks = [_where(task) for task in asyncio.all_tasks(self._loop())]
        except RuntimeError:
            tasks = []
        return "".join(lines) + "".join(tasks)

    def _loop(self) -> asyncio.AbstractEventLoop:
        for server in getattr(self._server, "servers", ()):
            return server.get_loop()  # type: ignore[no-any-return]
        raise RuntimeError("no event loop yet")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await to_thread.run_sync(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await to_thread.run_sync(self.stop, abandon_on_cancel=False)


def _where(task: asyncio.Task[Any]) -> str:
    """A task's name and where it waits, outermost call first."""
    lines = [f"task {task.get_name()}\n"]
    waiting: Any = task.get_coro()
    while waiting is not None:
        for kind in ("cr", "gi", "ag"):
            if frame := getattr(waiting, f"{kind}_frame", None):
                code = frame.f_code
                lines.append(f"  {code.co_filename}:{frame.f_lineno} {code.co_qualname}\n")
                waiting = getattr(
                    waiting, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None
                )
                break
        else:
            break
    return "".join(lines)


class ServerProcess(Process, _Addresses):
    """uvicorn as a process, serving `module:app` on a port that stays the same over restarts.

    `output` is a file for its log. With `workers` > 1 the process is uvicorn's master;
    `worker_pids` are those that serve. All methods block (see `Process`).
    """

    def __init__(
        self,
        app: str,
        *,
        output: Path,
        workers: int = 1,
        ws: str = "websockets-sansio",
        loop: str = "asyncio",
        root_path: str = "",
        certificate: Certificate | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        port: int | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.port = port or free_port()
        self.secure = certificate is not None
        self.workers = workers
        command = [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", str(workers), "--no-access-log"]
        command += ["--ws", ws, "--loop", loop, "--root-path", root_path]
        if certificate is not None:
            command += ["--ssl-certfile", str(certificate.certfile)]
            command += ["--ssl-keyfile", str(certificate.keyfile)]
        paths = [str(cwd), str(ROOT), os.environ.get("PYTHONPATH", "")]
        super().__init__(
            [*command, *arguments],
            output=output,
            env={"PYTHONPATH": os.pathsep.join(filter(None, paths)), **(env or {})},
            cwd=cwd,
        )

    @property
    def worker_pids(self) -> list[int]:
        """The processes that serve, oldest first, without those that have ended."""
        pids = map(int, re.findall(r"Started server process \[(\d+)\]", self.output))
        return [pid for pid in pids if _alive(pid)]

    def start(self) -> None:
        super().start()
        self.wait_until(
            lambda: self.output.count("Application startup complete.") >= self.workers,
            f"up with {self.workers} worker(s)",
        )
        self.wait_until(lambda: accepts(self.port), f"listening on {self.port}")

    def restart(self) -> None:
        """SIGTERM, the end, and a start on the same port."""
        self.terminate()
        self.start()

    def kill_worker(self, index: int = 0) -> int:
        """Kills one serving process with SIGKILL and returns its pid; a master lives on."""
        pid = self.worker_pids[index]
        os.kill(pid, signal.SIGKILL)
        return pid


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child that ended and was not yet waited for answers signal 0 as well.
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
