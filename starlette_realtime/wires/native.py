"""The native protocol's wires: its codec with the framing of each door that speaks it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import msgspec

from ..core.outbox import Chunk, Hello, Joined
from ..errors import ClientError
from ..events import Publication
from ..protocols import native
from ..protocols.websocket import COMPRESS_FROM, compressed_frame, frame

MAX_FRAME: Final = 512 * 1024
"""Messages are put together into frames of at most about this size (bytes)."""

PING: Final = '{"type":"ping"}'


def _parts(messages: Sequence[bytes]) -> list[bytes]:
    """Put messages together, newline-separated, into as few parts as their size allows."""
    if sum(map(len, messages)) < MAX_FRAME:
        return [b"\n".join(messages)]
    parts: list[bytes] = []
    part: list[bytes] = []
    size = 0
    for message in messages:
        if part and size + len(message) > MAX_FRAME:
            parts.append(b"\n".join(part))
            part, size = [], 0
        part.append(message)
        size += len(message) + 1
    parts.append(b"\n".join(part))
    return parts


_PING_FRAME: Final = frame(PING.encode())


class NativeWire(ABC):
    """The native protocol's words, in the version that the client takes."""

    def __init__(self, version: int) -> None:
        # Whether a frame may hold several messages, and one that continues the one before it.
        self.several = version >= 1
        self.continued = version >= 2

    @abstractmethod
    def frames(self, messages: Sequence[bytes]) -> Sequence[Chunk]: ...

    def run(
        self, messages: Sequence[bytes], publications: Sequence[Publication]
    ) -> Sequence[Chunk]:
        # What needs more than one frame is so long that the rest does not matter.
        if self.continued and len(messages) > 1 and sum(map(len, messages)) < MAX_FRAME:
            messages = native.abridge(messages, publications)
        return self.frames(messages)

    events = staticmethod(native.encode_events)

    def request(self, ns: str, room: str | None, event: str, data: bytes, id: int) -> bytes:
        return native.encode(
            event,
            ns,
            id=id,
            room=msgspec.UNSET if room is None else room,
            data=msgspec.Raw(data),
        )

    def connected(self, ns: str, hello: Hello) -> bytes:
        return native.encode_struct("connected", ns, hello)

    def ack(self, ns: str, id: int | str, data: bytes) -> bytes:
        return native.encode_ack(ns, id, data)

    def error(self, ns: str, error: ClientError, id: int | str | None) -> bytes:
        return native.encode_error(error, id, ns)

    def joined(self, ns: str, joined: Joined, id: int | str | None) -> bytes:
        return native.encode(
            "joined",
            ns,
            roomId=joined.room,
            members=joined.members,
            count=joined.count,
            recentMessages=msgspec.Raw(joined.recent),
            position=native.position(joined.position),
            recovered=msgspec.UNSET if joined.recovered is None else joined.recovered,
            id=msgspec.UNSET if id is None else id,
        )

    def left(self, ns: str, room: str, id: int | str | None, reason: str | None) -> bytes:
        return native.encode(
            "left",
            ns,
            roomId=room,
            reason=msgspec.UNSET if reason is None else reason,
            id=msgspec.UNSET if id is None else id,
        )

    def pong(self, ns: str, timestamp: int) -> bytes:
        return native.encode("pong", ns, timestamp=timestamp)


class TextWire(NativeWire):
    """For ASGI's `websocket.send`: chunks are texts of frames, shared by their receivers."""

    def frames(self, messages: Sequence[bytes]) -> Sequence[Chunk]:
        if self.several:
            return [part.decode() for part in _parts(messages)]
        return [message.decode() for message in messages]

    def join(self, chunks: Sequence[Chunk]) -> Chunk | None:
        if self.several and sum(map(len, chunks)) < MAX_FRAME:
            return "\n".join(chunks)  # type: ignore[arg-type]
        return None

    def ping(self) -> Chunk | None:
        return PING


class FrameWire(NativeWire):
    """For a door that takes bytes of the socket: chunks are whole frames, any number of them."""

    def frames(self, messages: Sequence[bytes]) -> Sequence[Chunk]:
        if len(messages) == 1:
            return [frame(messages[0])]
        if self.several:
            messages = _parts(messages)
        return [b"".join(map(frame, messages))]

    def join(self, chunks: Sequence[Chunk]) -> Chunk | None:
        return b"".join(chunks)  # type: ignore[arg-type]

    def ping(self) -> Chunk | None:
        return _PING_FRAME


class DeflateFrameWire(FrameWire):
    """Whole frames for receivers that negotiated compression: large ones are compressed, once for
    all of them."""

    def frames(self, messages: Sequence[bytes]) -> Sequence[Chunk]:
        parts = _parts(messages) if self.several else messages
        return [
            b"".join(
                compressed_frame(part) if len(part) >= COMPRESS_FROM else frame(part)
                for part in parts
            )
        ]


_VERSIONS: Final = range(len(native.SUBPROTOCOLS))
TEXT: Final = [TextWire(version) for version in _VERSIONS]
FRAME: Final = [FrameWire(version) for version in _VERSIONS]
DEFLATE: Final = [DeflateFrameWire(version) for version in _VERSIONS]
