"""What Python can reach: asyncio, a minimal frame reader, one write per connection and turn.

No rooms, users, limits, history or slow receivers, and payloads of at most 125 bytes.
``BENCH_ENVELOPE=1`` dresses payloads as the native protocol does, several to a frame; without, each
goes out as it came in.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import sys
from typing import Any

ENVELOPE = os.environ.get("BENCH_ENVELOPE") == "1"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
members: dict[int, Connection] = {}
published: list[bytes] = []
offset = 0


def frame(payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    return b"\x81\x7e" + size.to_bytes(2, "big") + payload


def flush() -> None:
    global offset
    if ENVELOPE:
        lines = []
        for payload in published:
            offset += 1
            lines.append(
                b'{"type":"broadcast","room":"hot","offset":%d,"data":"%b"}' % (offset, payload)
            )
        chunk = frame(b"\n".join(lines))
    else:
        chunk = b"".join(map(frame, published))
    published.clear()
    for descriptor in members:
        os.write(descriptor, chunk)


class Connection(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.data = b""
        self.open = False

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.open:
            head, end, self.data = self.data.partition(b"\r\n\r\n")
            if not end:
                self.data = head
                return
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            key = next(value for name, value in fields.items() if name.lower().endswith(b"-key"))
            accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + frame(b"ready")
            )
            self.open = True
            members[self.transport.get_extra_info("socket").fileno()] = self
        while len(self.data) >= 6 and len(self.data) >= 6 + (size := self.data[1] & 127):
            mask = (self.data[2:6] * 32)[:size]
            payload = int.from_bytes(self.data[6 : 6 + size], "big") ^ int.from_bytes(mask, "big")
            if self.data[0] == 0x81:
                if not published:
                    asyncio.get_running_loop().call_soon(flush)
                published.append(payload.to_bytes(size, "big"))
            self.data = self.data[6 + size :]

    def connection_lost(self, exc: Exception | None) -> None:
        members.pop(self.transport.get_extra_info("socket").fileno(), None)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(
        Connection, "127.0.0.1", int(sys.argv[1])
    )
    await server.serve_forever()


asyncio.run(main())
