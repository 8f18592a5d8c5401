"""What waits to be sent to one connection, bounded in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from ..errors import ClientError
from ..events import Position, Publication

if TYPE_CHECKING:
    from .group import Group

Chunk = bytes | str
"""What a door writes at once: wire bytes, or the text of one frame."""


class Wire(Protocol):
    """How words become what one kind of door writes: a protocol's codec and the door's framing.

    One instance serves all connections of its kind, which is what lets an event be encoded once for
    all of them. Messages are bytes of the protocol; `frames` turns a run of them into as few chunks
    as the framing allows, and `join` puts chunks that were made apart into one, or returns None
    where the framing cannot. `run` is `frames` for the messages of publications that a client gets
    one after the other, which a protocol may say in fewer words together than each by itself.
    `ping` is the chunk that asks for a sign of life.
    """

    def frames(self, messages: Sequence[bytes]) -> Sequence[Chunk]: ...
    def run(
        self, messages: Sequence[bytes], publications: Sequence[Publication]
    ) -> Sequence[Chunk]: ...
    def join(self, chunks: Sequence[Chunk]) -> Chunk | None: ...

    def events(
        self, ns: str, room: str | None, publications: Iterable[Publication]
    ) -> list[bytes]: ...
    def request(self, ns: str, room: str | None, event: str, data: bytes, id: int) -> bytes: ...
    def connected(self, ns: str, hello: Hello) -> bytes: ...
    def ack(self, ns: str, id: int | str, data: bytes) -> bytes: ...
    def error(self, ns: str, error: ClientError, id: int | str | None) -> bytes: ...
    def joined(self, ns: str, joined: Joined, id: int | str | None) -> bytes: ...
    def left(self, ns: str, room: str, id: int | str | None, reason: str | None) -> bytes: ...
    def pong(self, ns: str, timestamp: int) -> bytes: ...
    def ping(self) -> Chunk | None: ...


class Framed(msgspec.Struct, frozen=True):
    """Messages that have been framed, for all who get just these."""

    chunks: Sequence[Chunk]

    def __len__(self) -> int:
        """What they take in an outbox."""
        return sum(map(len, self.chunks))


class Hello(msgspec.Struct, frozen=True, rename="camel"):
    """What a client is told first. Times in milliseconds, sizes in bytes."""

    session_id: str
    client_id: str
    user_id: str | None
    server_time: int
    ping_interval: int
    ping_timeout: int
    max_payload: int
    resume: str = ""
    resumed: bool = False


class Joined(msgspec.Struct, frozen=True):
    """What a client is told of a room it has joined. `recent` is a JSON array."""

    room: str
    members: list[msgspec.Raw]
    recent: bytes
    position: Position
    recovered: bool | None = None
    count: int = 0


class _Keyed:
    """A chunk in the queue that a later one with the same key replaces."""

    __slots__ = ("chunk", "key")

    def __init__(self, chunk: Chunk, key: str) -> None:
        self.chunk = chunk
        self.key = key


class Outbox:
    """The queue of one connection and its way to the socket.

    With a `write` (it takes the chunk and returns whether the socket takes more at once) a chunk
    goes straight out while the socket keeps up. Without one, `wake` is called when there is
    something to `take`. Either way, what waits is at most `limit` bytes; when it would be more,
    `overflow` is called, once, and everything waiting is dropped.
    """

    __slots__ = (
        "_husks",
        "_keys",
        "_overflow",
        "_wake",
        "closed",
        "congested",
        "descriptor",
        "direct",
        "dropped",
        "groups",
        "limit",
        "queue",
        "size",
        "soft",
        "wire",
        "write",
    )

    def __init__(
        self,
        wire: Wire,
        *,
        limit: int,
        overflow: Callable[[], object],
        write: Callable[[Chunk], bool] | None = None,
        descriptor: int = -1,
        wake: Callable[[], object] | None = None,
    ) -> None:
        self.wire = wire
        self.limit = limit
        # From here on a receiver counts as slow: volatile publications are dropped for it.
        self.soft = 0 if write is not None else limit // 8
        self.write = write
        # `write`, as long as nothing is in its way: what the hub calls without asking further.
        self.direct = write
        # The socket's descriptor, where bytes may be written to it while `direct` is set; the door
        # calls `stall` or `close` before that ends.
        self.descriptor = descriptor
        # Those that have it among their fast ones, or would if it were ready.
        self.groups: list[Group] | None = None
        self.congested = False
        self.closed = False
        self.size = 0
        self.dropped = 0
        self._wake = wake
        self._overflow: Callable[[], object] | None = overflow
        # What waits, oldest first; others may see whether anything does. Mostly nothing ever does.
        self.queue: list[Chunk | _Keyed] | tuple[Chunk | _Keyed, ...] = ()
        self._keys: dict[str, _Keyed] | None = None
        self._husks = 0

    def push(self, chunk: Chunk, volatile: bool = False, key: str = "") -> None:
        """Send `chunk`, or keep it until the socket takes it."""
        if self.direct is not None:
            if not self.direct(chunk):
                self.stall()
            return
        if self.closed:
            return
        if self.congested and volatile:
            self.dropped += 1
            return
        entry = self._keyed(chunk, key) if key else chunk
        if isinstance(self.queue, list):
            self.queue.append(entry)
        else:
            self.queue = [entry]
        self.size = size = self.size + len(chunk)
        if size > self.soft:
            self.congested = True
            if size > self.limit and size - len(self._first()) > self.limit:
                overflow = self._overflow
                self.close()
                if overflow is not None:
                    overflow()
                return
        if self._wake is not None:
            self._wake()

    def _first(self) -> Chunk:
        """What is next: it does not count, or one large message would be too much by itself."""
        first = self.queue[0]
        return first.chunk if isinstance(first, _Keyed) else first

    def _keyed(self, chunk: Chunk, key: str) -> _Keyed:
        """Return `chunk` as the queue holds it, in place of an older one with its key.

        The newer one stands at the end: in the older one's place it would come before lower
        offsets, which the client would then take for duplicates.
        """
        if self._keys is None:
            self._keys = {}
        older = self._keys.get(key)
        if older is not None and self.congested:
            self.size -= len(older.chunk)
            older.chunk = b""
            self.dropped += 1
            self._husks += 1
            if self._husks > 1000 and self._husks * 2 > len(self.queue):
                # What was replaced counts no bytes, but has a place in the queue each.
                self.queue = [e for e in self.queue if not isinstance(e, _Keyed) or e.chunk]
                self._husks = 0
        keyed = self._keys[key] = _Keyed(chunk, key)
        return keyed

    def stall(self) -> None:
        """The socket takes no more: keep what comes until `resume`."""
        self._stop()
        self.congested = True

    def _stop(self) -> None:
        if self.direct is not None:
            self.direct = None
            for group in self.groups or ():
                group.leave_fast(self)

    def take(self) -> list[Chunk]:
        """Return all that waits, oldest first, and keep it no longer."""
        queue = self.queue
        if not queue:
            return []
        self.queue = ()
        self._husks = 0
        self.size = 0
        self.congested = False
        if self._keys is None:
            return queue  # type: ignore[return-value]
        self._keys = None
        chunks = [entry.chunk if isinstance(entry, _Keyed) else entry for entry in queue]
        return [chunk for chunk in chunks if chunk]

    def resume(self) -> None:
        """The socket takes more: write what waits, as far as it goes."""
        write = self.write
        if self.closed or write is None:
            return
        queue = self.queue
        for number, entry in enumerate(queue):
            chunk = entry
            if isinstance(chunk, _Keyed):
                if self._keys is not None and self._keys.get(chunk.key) is chunk:
                    del self._keys[chunk.key]
                chunk = chunk.chunk
            self.size -= len(chunk)
            if chunk and not write(chunk):
                self.queue = queue[number + 1 :]
                return
        self.queue = ()
        self._husks = 0
        self.congested = False
        if self.direct is None:
            self.direct = write
            for group in self.groups or ():
                group.enter_fast(self)

    def close(self) -> None:
        """Take nothing more and forget what waits."""
        self.closed = True
        self._stop()
        self.write = self._wake = self._overflow = None
        self.queue = ()
        self._keys = None
        self.size = 0
