"""The peers: how each is started, and what its clients say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from .install import HERE, NODE_MODULES, PYTHON


@dataclass(frozen=True)
class Dialect:
    """What a client says and waits for; the words are the load generator's (`loadgen.c`)."""

    publish: str = "{payload}"
    path: str = "/"
    subprotocol: str = ""
    steps: tuple[tuple[str, str], ...] = (("expect", "ready"),)
    again: tuple[tuple[str, str], ...] = ()
    """Spoken after a reconnect, if it is not the same."""
    capture: str = ""
    ping: tuple[str, str] | None = None
    fail: str = ""
    fill: tuple[str, str] | None = None
    """What joins one more room ({n} is its number), and the answer."""
    fill_steps: int = 0
    """How much of `steps` a client speaks that stays out of the room."""

    def arguments(self) -> list[str]:
        """Return them as the load generator's arguments."""
        made = ["--path", self.path, "--publish", self.publish]
        if self.subprotocol:
            made += ["--subprotocol", self.subprotocol]
        for verb, text in self.steps:
            made += [f"--{verb}", text]
        for verb, text in self.again:
            made += [f"--again-{verb}", text]
        if self.capture:
            made += ["--capture", self.capture]
        if self.ping:
            made += ["--ping", self.ping[0], "--pong", self.ping[1]]
        if self.fail:
            made += ["--fail", self.fail]
        return made


@dataclass(frozen=True)
class Peer:
    """A server to measure. `command` makes its command line from a port."""

    name: str
    label: str
    command: Callable[[int], list[str]]
    dialect: Dialect
    environment: Mapping[str, str] = field(default_factory=dict)
    deflate: Mapping[str, str] | None = None
    """Environment that switches permessage-deflate on; None if it cannot."""
    deflate_command: Callable[[int], list[str]] | None = None
    """The command with permessage-deflate, where it is not the same."""
    node: bool = False
    slow: bool = False
    """A broadcast takes so long that it is measured in the first round of a block only."""
    ordered: bool = True
    """Whether one sender's messages must arrive in order; if not, late ones are counted."""


PLAIN = Dialect()

NATIVE = Dialect(
    path="/ws?hello=1",
    subprotocol="realtime.v2",
    steps=(
        ("send", '{"type":"connect","data":{"token":"{token}"}}'),
        ("expect", '"connected"'),
        ("send", '{"type":"join","room":"hot"}'),
        ("expect", '"joined"'),
    ),
    again=(
        ("send", '{"type":"connect","data":{"token":"{token}"}}'),
        ("expect", '"connected"'),
        ("send", '{"type":"join","room":"hot","since":{cap}}'),
        ("expect", '"recovered":true'),
    ),
    capture='"position":',
    publish='{"type":"broadcast","room":"hot","data":"{payload}"}',
    ping=('{"type":"ping"}', '{"type":"pong"}'),
    fail='"error"',
    fill=('{"type":"join","room":"filler-{n}"}', '"joined"'),
    fill_steps=2,
)

NATIVE_V1 = replace(NATIVE, subprotocol="realtime.v1")

SOCKETIO = Dialect(
    path="/socket.io/?EIO=4&transport=websocket",
    steps=(
        ("expect", "0{"),
        ("send", '40{"token":"{token}"}'),
        ("expect", "40{"),
        ("send", '42["join","hot"]'),
        ("expect", '42["joined"'),
    ),
    publish='42["msg","{payload}"]',
    ping=("2", "3"),
    fail="44{",
    fill=('42["join","filler-{n}"]', '42["joined"'),
    fill_steps=3,
)


def _uvicorn(app: str, *extra: str) -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        return [
            *(str(PYTHON), "-m", "uvicorn", f"benchmarks.servers.{app}:app"),
            *("--port", str(port), "--log-level", "warning", "--no-access-log"),
            *("--loop", "asyncio", "--http", "httptools", *extra),
        ]

    return command


def _program(*words: str) -> Callable[[int], list[str]]:
    return lambda port: [*words, str(port)]


def _hypercorn(app: str) -> Callable[[int], list[str]]:
    return lambda port: [
        *(str(PYTHON), "-m", "hypercorn", f"benchmarks.servers.{app}:app"),
        *("--bind", f"127.0.0.1:{port}", "--log-level", "WARNING"),
    ]


def _granian(app: str) -> Callable[[int], list[str]]:
    return lambda port: [
        *(str(PYTHON), "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1"),
        *("--port", str(port), "--workers", "1", "--loop", "asyncio", "--no-log"),
        f"benchmarks.servers.{app}:app",
    ]


SANSIO = ("--ws", "websockets-sansio")
NO_DEFLATE = ("--ws-per-message-deflate", "false")
PROTOCOL_CLASS = ("--ws", "starlette_realtime.servers.uvicorn:RealtimeProtocol")
BUN = str(NODE_MODULES / ".bin" / "bun")
SERVERS = HERE / "servers"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "realtime",
            "starlette-realtime",
            _uvicorn("realtime_app", *PROTOCOL_CLASS),
            NATIVE,
            deflate={},
        ),
        Peer(
            "realtime-v1",
            "starlette-realtime, clients of `realtime.v1`",
            _uvicorn("realtime_app", *PROTOCOL_CLASS),
            NATIVE_V1,
        ),
        Peer(
            "realtime-uvloop",
            "starlette-realtime, uvloop",
            _uvicorn("realtime_app", *PROTOCOL_CLASS, "--loop", "uvloop"),
            NATIVE,
        ),
        Peer(
            "realtime-unmodified",
            "starlette-realtime, unmodified uvicorn",
            _uvicorn("realtime_app", *SANSIO),
            NATIVE_V1,
        ),
        Peer(
            "realtime-uvicorn",
            "starlette-realtime, uvicorn, a middleware around `send`",
            _uvicorn("realtime_app", *SANSIO),
            NATIVE_V1,
            environment={"BENCH_PLAIN": "1"},
            deflate={"BENCH_PLAIN": "1"},
        ),
        Peer(
            "realtime-hypercorn",
            "starlette-realtime, hypercorn",
            _hypercorn("realtime_app"),
            NATIVE_V1,
        ),
        Peer(
            "realtime-granian", "starlette-realtime, granian", _granian("realtime_app"), NATIVE_V1
        ),
        Peer(
            "python-socketio",
            "python-socketio on uvicorn",
            _uvicorn("python_socketio_app", *SANSIO, *NO_DEFLATE),
            SOCKETIO,
            # It handles each message in a task of its own.
            ordered=False,
            deflate={},
            deflate_command=_uvicorn("python_socketio_app", *SANSIO),
        ),
        Peer(
            "python-socketio-hypercorn",
            "python-socketio on hypercorn",
            _hypercorn("python_socketio_app"),
            SOCKETIO,
            ordered=False,
        ),
        Peer(
            "python-socketio-granian",
            "python-socketio on granian",
            _granian("python_socketio_app"),
            SOCKETIO,
            ordered=False,
        ),
        Peer(
            "litestar",
            "Litestar channels on uvicorn",
            _uvicorn("litestar_app", *SANSIO, *NO_DEFLATE),
            PLAIN,
            deflate={},
            deflate_command=_uvicorn("litestar_app", *SANSIO),
        ),
        Peer(
            "channels",
            "Django Channels, in-memory layer, uvicorn",
            _uvicorn("channels_app", *SANSIO, *NO_DEFLATE),
            PLAIN,
            slow=True,
        ),
        Peer(
            "sansio-loop",
            "hand-written loop on uvicorn",
            _uvicorn("sansio_loop_app", *SANSIO, *NO_DEFLATE),
            PLAIN,
            deflate={},
            deflate_command=_uvicorn("sansio_loop_app", *SANSIO),
        ),
        Peer(
            "loop-hypercorn",
            "hand-written loop on hypercorn",
            _hypercorn("sansio_loop_app"),
            PLAIN,
        ),
        Peer(
            "loop-granian",
            "hand-written loop on granian",
            _granian("sansio_loop_app"),
            PLAIN,
        ),
        Peer(
            "prototype",
            "a loop over `os.write`",
            _program(str(PYTHON), str(SERVERS / "prototype.py")),
            PLAIN,
        ),
        Peer(
            "prototype-envelope",
            "a loop over `os.write`, messages as long as ours",
            _program(str(PYTHON), str(SERVERS / "prototype.py")),
            PLAIN,
            environment={"BENCH_ENVELOPE": "1"},
        ),
        Peer(
            "socketio",
            "Socket.IO on Node",
            _program("node", str(SERVERS / "socketio.mjs")),
            SOCKETIO,
            deflate={"BENCH_DEFLATE": "1"},
            node=True,
        ),
        Peer(
            "ws",
            "ws on Node",
            _program("node", str(SERVERS / "ws.mjs")),
            PLAIN,
            deflate={"BENCH_DEFLATE": "1"},
            node=True,
        ),
        Peer(
            "bun",
            "Bun's native publish",
            _program(BUN, "run", str(SERVERS / "bun.js")),
            PLAIN,
            deflate={"BENCH_DEFLATE": "1"},
            node=True,
        ),
    )
}
