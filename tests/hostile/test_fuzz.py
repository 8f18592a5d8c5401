"""A seeded fuzz of the native door, over real sockets: whatever is sent, nothing breaks, nothing is
left behind, and others are not disturbed."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from starlette_realtime import Chat, Member, Realtime, Room, Session
from starlette_realtime.core.outbox import Outbox
from starlette_realtime.core.runtime import Runtime
from starlette_realtime.transports.websocket import WebSocketConnection
from tests.sessions.helpers import (
    app_of,
    client,
    engine,
    make,
    nothing_left,
    runtime,
    runtime_loops,
    until,
)
from tests.support.server import FAST, LiveServer
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]
FRAMES = 80_000
LANES = 6
POOL = 6_000
"""Different frames that each attacker has, to be sent in any order."""
BATCH = 200
"""Frames in one write to a socket."""

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA

COMMANDS = [
    *("connect", "join", "leave", "join-room", "leave-room", "broadcast", "ping", "pong", "ack"),
    *("history", "members", "refresh", "message", "move", "shout", "typing", "error", "connected"),
    *("joined", "$ask", "$answer", "$disconnect", "$replaced", "auth"),
]
NAMES: list[Any] = [
    "chat/1",
    "chat/2",
    "plain/a",
    "nowhere",
    "",
    "x" * 300,
    "chat/\u0000",
    "chat/\ud7ff\U0001f600",
    "room/:chat/1",
    None,
    7,
    [],
    {},
]
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**53,
    2**63,
    2**64,
    10**30,
    10**400,
    1.5,
    -0.0,
    1e308,
    "",
    "\u0000",
    "$bytes",
    "x" * 500,
    "\U0001f600\u202e",
    [],
    [[]],
    {},
    {"$bytes": "AAEC"},
    {"$bytes": "not base64!"},
    {"$bytes": 7},
    {"$escaped": {"$bytes": "x"}},
    {"$escaped": 1},
    {"epoch": "x", "offset": -5},
    {"epoch": "", "offset": 2**63},
    {"epoch": "x", "offset": 10**30, "nonce": "n"},
]
BROKEN = [
    b"",
    b"{",
    b"}",
    b"[]",
    b"null",
    b"7",
    b'"text"',
    b'{"type":',
    b'{"type":"ping"',
    b'{"type":"ping"}}',
    b'{"type":"ping","type":"pong"}',
    b'{"type":"join","room":"chat/1","room":7,"room":"chat/2"}',
    b'{"type":"ping","id":1,"id":"2"}',
    b'{"type":"\\ud800"}',
    b'{"type":"broadcast","room":"chat/1","data":"\\udc00\\ud800"}',
    b'{"type":"broadcast","room":"chat/1","data":NaN}',
    b'{"type":"broadcast","room":"chat/1","data":1e999}',
    b'{"type":"broadcast","room":"chat/1","data":' + b"9" * 400 + b"}",
    b'{"type":"broadcast","room":"chat/1","data":' + b"[" * 70 + b"]" * 70 + b"}",
    b'{"type":"broadcast","room":"chat/1","data":' + b"[" * 3000,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    b'{"type":"ping"}\n' * 300,
    b'{"type":"broadcast","room":"chat/1","data":{"a":1,\n"b":2}}',
    b"\n\n\n",
    b"\x00\x01\x02",
    b"\xef\xbb\xbf{}",
]


class Fuzz:
    """Frames made by one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        r = self.random
        if depth < 3 and r.random() < 0.25:
            if r.random() < 0.5:
                return [self.value(depth + 1) for _ in range(r.randrange(3))]
            return {
                r.choice(["roomId", "room", "data", "since", "token", "limit", "before", "x"]):
                    self.value(depth + 1)
                for _ in range(r.randrange(3))
            }  # fmt: skip
        return r.choice(NAMES if r.random() < 0.4 else ODD)

    def command(self) -> bytes:
        """Valid JSON: a command, or something like it, with members of any type."""
        r = self.random
        message: dict[str, Any] = {"type": r.choice(COMMANDS)}
        if r.random() < 0.02:
            message["type"] = self.value()
        if r.random() < 0.7:
            # Mostly a real room, so that much gets past the first checks.
            message["room"] = "chat/1" if r.random() < 0.7 else r.choice(NAMES)
        if r.random() < 0.5:
            message["id"] = r.choice([1, "a", 2**63, 2**64, -1, "x" * 300, None, [], 1.5])
        if r.random() < 0.6:
            message["data"] = self.value()
        for name in ("since", "messageId", "ns", "other"):
            if r.random() < 0.08:
                message[name] = self.value()
        return json.dumps(message).encode()

    def payload(self) -> bytes:
        r = self.random
        kind = r.random()
        if kind < 0.6:
            return self.command()
        if kind < 0.75:
            return r.choice(BROKEN)
        if kind < 0.85:
            whole = self.command()
            return whole[: r.randrange(len(whole))]
        if kind < 0.93:
            changed = bytearray(self.command())
            for _ in range(r.randrange(1, 4)):
                changed[r.randrange(len(changed))] = r.randrange(256)
            return bytes(changed)
        return r.randbytes(r.randrange(200))

    def frames(self) -> Iterator[bytes]:
        """Frames, or runs of fragments; mostly such as leave a connection alive."""
        r = self.random
        while True:
            payload = self.payload()
            kind = r.random()
            if kind < 0.001:
                yield self.wild()
            elif kind < 0.75 and _is_text(payload):
                yield frame(TEXT, payload)
            elif kind < 0.80 and _is_text(payload):
                yield b"".join(self.fragmented(payload))
            elif kind < 0.84:
                yield frame(r.choice([PING, PONG]), payload[:125])
            else:
                yield frame(BINARY, payload)

    def fragmented(self, payload: bytes) -> Iterator[bytes]:
        r = self.random
        cuts = sorted(r.randrange(len(payload) + 1) for _ in range(r.randrange(1, 5)))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for number, part in enumerate(parts):
            final = number == len(parts) - 1
            yield frame(CONTINUATION if number else TEXT, part, final=final)
            if not final and r.random() < 0.3:
                yield frame(PING, b"between")

    def wild(self) -> bytes:
        """What ends a connection: broken frames, closes of every kind."""
        r = self.random
        return r.choice(
            [
                frame(TEXT, b"\xff\xfe\xfd"),
                frame(CONTINUATION, b"of nothing"),
                frame(0x3, b"reserved"),
                frame(PING, b"x" * 126),
                frame(PING, b"x", final=False),
                frame(TEXT, b"{}", masked=False),
                frame(TEXT, b"{}", reserved=0x40),
                frame(CLOSE, b""),
                frame(CLOSE, b"\x03"),
                frame(CLOSE, struct.pack("!H", r.choice([999, 1000, 1001, 1005, 4401, 4502]))),
                frame(CLOSE, struct.pack("!H", 1000) + b"\xff"),
                b"\x81\xff" + b"\xff" * 8 + b"1234",
                b"\x81\xfe\xff\xff1234" + b"short",
                r.randbytes(60),
            ]
        )


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def frame(
    opcode: int, payload: bytes, *, final: bool = True, masked: bool = True, reserved: int = 0
) -> bytes:
    size = len(payload)
    bit = 0x80 if masked else 0
    head = bytes([(0x80 if final else 0) | reserved | opcode])
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += struct.pack("!BH", bit | 126, size)
    else:
        head += struct.pack("!BQ", bit | 127, size)
    # The mask of nothing but zeros is a mask.
    return head + (b"\0\0\0\0" if masked else b"") + payload


async def shake_hands(
    port: int, query: str = "", protocol: str = "realtime.v1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /ws{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {protocol}\r\nAuthorization: Bearer eve\r\n\r\n".encode()
    )
    assert b" 101 " in (await reader.readuntil(b"\r\n\r\n"))
    return reader, writer


async def closed_with(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Reads up to the close frame; returns its code and all that came before."""
    data = b""
    async with asyncio.timeout(8):
        while chunk := await reader.read(1 << 16):
            data += chunk
            at = data.rfind(b"\x88")
            if at >= 0 and len(data) >= at + 4 and data[at + 1] == len(data) - at - 2:
                return struct.unpack("!H", data[at + 2 : at + 4])[0], data[:at]
    raise AssertionError(f"no close frame in {data!r}")


async def hang_up(writer: asyncio.StreamWriter, *, abort: bool = True) -> None:
    if abort:
        writer.transport.abort()
    writer.close()
    try:
        async with asyncio.timeout(1):
            await writer.wait_closed()
    except (ConnectionError, TimeoutError):
        writer.transport.abort()


class Attack:
    """One after the other, connections that fuzz the server until it has read so many frames."""

    def __init__(self, port: int, seed: int, number: int) -> None:
        self.port = port
        self.left = number
        self.fuzz = Fuzz(seed)
        self.connections = 0
        self.seen = b""
        self.news = asyncio.Event()

    async def run(self) -> None:
        frames = self.fuzz.frames()
        pool = [next(frames) for _ in range(POOL)]
        while self.left > 0:
            self.connections += 1
            hello = self.fuzz.random.random() < 0.2
            reader, writer = await shake_hands(self.port, "?hello=1" if hello else "")
            reading = asyncio.create_task(self._read(reader))
            try:
                if not hello or self.fuzz.random.random() < 0.8:
                    if hello:
                        writer.write(frame(TEXT, b'{"type":"connect","data":{"token":"eve"}}'))
                    writer.write(frame(TEXT, b'{"type":"join","room":"chat/1"}'))
                while self.left > 0 and not reading.done():
                    batch = self.fuzz.random.choices(pool, k=BATCH)
                    # Not further ahead of the server than this: what it has not read when the
                    # connection ends is lost to the test.
                    mark = self.fuzz.random.randbytes(8)
                    writer.write(b"".join(batch) + frame(PING, mark))
                    if await self._until_read(mark, reading):
                        self.left -= BATCH
            except ConnectionError:
                pass
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await hang_up(writer, abort=self.fuzz.random.random() < 0.5)

    async def _until_read(self, mark: bytes, reading: asyncio.Task[None]) -> bool:
        """Waits until the server has read on to `mark`; returns False if it has hung up."""
        end = time.monotonic() + 1.0
        while b"\x8a\x08" + mark not in self.seen:
            if reading.done() or time.monotonic() > end:
                return False
            self.news.clear()
            waiting = asyncio.ensure_future(self.news.wait())
            await asyncio.wait([waiting, reading], timeout=0.5, return_when="FIRST_COMPLETED")
            waiting.cancel()
        return True

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.seen = self.seen[-10:] + data
                self.news.set()
        except ConnectionError:
            pass


def make_target(**options: Any) -> Realtime:
    unlimited: dict[str, Any] = dict.fromkeys(
        ("message_rate", "user_rate", "join_rate", "abuse_rate", "resume_window"), 0.0
    )
    realtime = make(
        **{
            **unlimited,
            "presence_grace": 0.0,
            "max_connections_per_user": 0,
            "max_connections_per_ip": 0,
            **options,
        }
    )
    realtime.room("chat/{room_id}", features=[Chat()], history=50, recent=5)
    plain = realtime.room("plain/{name}")

    @plain.on("move")
    async def move(room: Room, member: Member, data: dict[str, int]) -> dict[str, int]:
        await room.publish("moved", data, volatile=True)
        return data

    @realtime.event("shout")
    async def shout(session: Session, data: str) -> str:
        return data.upper()

    admin = realtime.namespace("/admin")
    admin.room("chat/{room_id}")
    return realtime


class Pair:
    """Two well-behaved clients who talk, and how long each message takes (s)."""

    def __init__(self, ann: NativeClient, bob: NativeClient) -> None:
        self.ann = ann
        self.bob = bob
        self.times: list[float] = []

    async def talk(self) -> None:
        n = 0
        while True:
            n += 1
            began = time.monotonic()
            await self.ann.request("broadcast", "plain/pair", n, timeout=20)
            await self.bob.expect("broadcast", data=n, timeout=20)
            self.times.append(time.monotonic() - began)
            await asyncio.sleep(0.01)


def everything(realtime: Realtime) -> dict[str, int]:
    """How many there are of what this server could leave behind."""
    gc.collect()
    found = runtime(realtime)
    kinds = ("Session", "WebSocketConnection", "Member", "Outbox", "Channel", "Asked")
    # In memory are those of other tests, too: whose are they?
    objects = [
        type(thing).__name__
        for thing in gc.get_objects()
        if type(thing).__name__ in kinds and _server_of(thing) in (found, None)
    ]
    loop = runtime_loops[realtime]
    return {
        "tasks": len(asyncio.all_tasks(loop)),
        "connections": len(found.connections),
        "channels": len(found.hub.channels),
        "sessions": len(found.hub.sessions),
        "own": len(found.hub._own),
        "detached": len(engine(realtime).lobby._detached),
        "handlers": found.options.max_handlers - found.handlers.value,
        **{kind: objects.count(kind) for kind in kinds},
    }


def _server_of(thing: Any) -> Runtime | None:
    """The server that something belongs to; None for what could be any server's."""
    if isinstance(thing, Outbox):
        thing = getattr(thing._overflow, "__self__", None)
    if isinstance(thing, Member):
        thing = thing.session
    if isinstance(thing, Session):
        return thing.engine.runtime
    return thing._door.runtime if isinstance(thing, WebSocketConnection) else None


class Log(logging.Filter):
    """Warnings and errors, as text: a traceback that is kept keeps alive all it goes through."""

    LOGGERS = ("starlette_realtime", "uvicorn.error", "asyncio")

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        record.exc_info = None
        if record.levelno >= logging.WARNING:
            message = record.getMessage().splitlines()[0]
            self.lines.append(f"{record.name}: {message} {kind}".strip())
        return True

    def __enter__(self) -> Log:
        for logger in map(logging.getLogger, self.LOGGERS):
            logger.addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        for logger in map(logging.getLogger, self.LOGGERS):
            logger.removeFilter(self)


# uvicorn's own way with a text frame that is not UTF-8, alone and with a close frame behind it.
KNOWN = {
    "uvicorn.error: Invalid UTF-8 sequence received from client. UnicodeDecodeError",
    "asyncio: Fatal error: protocol.data_received() call failed. InvalidState",
}


@pytest.fixture
def log() -> Iterator[Log]:
    with Log() as log:
        yield log


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("ws", "number"), [(FAST, FRAMES), ("websockets-sansio", FRAMES // 10)])
async def test_nothing_that_is_sent_breaks_anything(
    serve: Serve, ws: str, number: int, log: Log
) -> None:
    realtime = make_target()
    server = serve(app_of(realtime), ws=ws)
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        for who in (ann, bob):
            await who.request("join", "plain/pair")
        before = everything(realtime)
        pair = Pair(ann, bob)
        talking = asyncio.create_task(pair.talk())
        attacks = [Attack(server.port, seed, number // LANES + BATCH) for seed in range(LANES)]
        await asyncio.gather(*(attack.run() for attack in attacks))
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        assert talking.cancelled(), talking.exception()
        await until(lambda: len(runtime(realtime).connections) == 2, "the attackers' end", 15)
        end = time.monotonic() + 15
        while more := {name: n for name, n in everything(realtime).items() if n > before[name]}:
            assert time.monotonic() < end, f"left behind: {more}, not {before}"
            await asyncio.sleep(0.1)
        assert sum(attack.connections for attack in attacks) > number / 5000
        assert pair.times and sorted(pair.times)[len(pair.times) // 2] < 0.5
        # One in a hundred may be slow on a machine that has other work to do.
        assert sorted(pair.times)[len(pair.times) * 99 // 100] < 3.0
        assert (await ann.request("join", "chat/1"))["members"][0]["userId"] == "ann"
    await nothing_left(realtime)
    assert set(log.lines) <= KNOWN


async def test_the_default_limits_send_the_hostile_away(serve: Serve) -> None:
    realtime = make()
    realtime.room("chat/{room_id}")
    server = serve(app_of(realtime), ws=FAST)
    attack = Attack(server.port, 99, 5_000)
    await attack.run()
    assert attack.connections >= 3
    await until(lambda: not runtime(realtime).connections, "their end")


async def test_a_first_message_that_trickles_in_is_not_waited_for(serve: Serve) -> None:
    realtime = make(auth_timeout=0.5)
    server = serve(app_of(realtime), ws=FAST)
    reader, writer = await shake_hands(server.port, "?hello=1")
    hello = frame(TEXT, b'{"type":"connect","data":{"token":"eve"}}' + b" " * 500)
    began = time.monotonic()
    ended = asyncio.create_task(closed_with(reader))
    for byte in hello:
        writer.write(bytes([byte]))
        await asyncio.wait([ended], timeout=0.02)
        if ended.done():
            break
    code, answer = await ended
    assert code == 4401 and b"auth_required" in answer
    assert time.monotonic() - began < 6
    await hang_up(writer)
    await nothing_left(realtime)


async def test_a_message_that_trickles_in_is_no_sign_of_life(serve: Serve) -> None:
    realtime = make(ping_interval=0.2, ping_timeout=0.3, resume_window=0.0, presence_grace=0.0)
    server = serve(app_of(realtime), ws=FAST)
    reader, writer = await shake_hands(server.port)
    ended = asyncio.create_task(closed_with(reader))
    for byte in frame(TEXT, b'{"type":"shout","data":"' + b"x" * 2000):
        writer.write(bytes([byte]))
        await asyncio.wait([ended], timeout=0.02)
        if ended.done():
            break
    assert (await ended)[0] == 4508
    await hang_up(writer)
    await nothing_left(realtime)


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
async def test_who_only_shakes_hands_is_sent_away(serve: Serve, ws: str) -> None:
    realtime = make(auth_timeout=0.3)
    server = serve(app_of(realtime), ws=ws)
    opened = [await shake_hands(server.port, "?hello=1") for _ in range(50)]
    for reader, writer in opened:
        assert (await closed_with(reader))[0] == 4401
        await hang_up(writer)
    await nothing_left(realtime)


@pytest.mark.parametrize("header", ["x" * 20_000, "y\r\n" + "X-Next: y\r\n" * 500 + "X-Last: y"])
async def test_a_handshake_that_is_too_large_is_not_kept(serve: Serve, header: str) -> None:
    server = serve(app_of(make()), ws=FAST)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        b"X-First: " + header.encode() + b"\r\n\r\n"
    )
    async with asyncio.timeout(10):
        assert b" 101 " not in await reader.read()
    await hang_up(writer)
