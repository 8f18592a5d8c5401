"""Names of keys and of Redis's own channels, and how a draft is written.

Everything about a channel lies in one partition: its keys and the Redis channel that announces it
share a hash tag, so that one script may touch all of them, in a Cluster too. There is a fixed
number of partitions, spread evenly over the slots.

    <prefix>:{<tag>}:m:<channel>     hash: where the stream stands ("meta")
    <prefix>:{<tag>}:h:<channel>     sorted set: history lane      …:p:…    presence lane
    <prefix>:{<tag>}:x:<channel>     hash: offset by id of what is in the history lane
    <prefix>:{<tag>}:a:<channel>     hash: amended payload by offset
    <prefix>:{<tag>}:i:…  …:j:…      string: result of a publication, by id of the client's or ours
    <prefix>:{<tag>}:l:<channel>     sorted set: end of the lease by session
    <prefix>:{<tag>}:d:<channel>     hash: what a lease shows by session
    <prefix>:{<tag>}:w:<channel>     hash: sessions and departure by user
    <prefix>:{<tag>}:u:<channel>     sorted set: users
    <prefix>:{<tag>}:ends            sorted set: first end of a lease by channel
    <prefix>:{<tag>}:t:<hash>        string: a ticket
    <prefix>:{<tag>}:s:<session>     hash: a session              …:secret  string: of all sessions
    <prefix>:{<tag>}:b:<key>         hash: a bucket of tokens
    <prefix>:{<tag>}:n:<key>         sorted set: end of the time by holder
    <prefix>:{<tag>}:none            never there (`Script.sharded`)
"""

from __future__ import annotations

import math
import secrets
from binascii import crc32, crc_hqx
from typing import Final

import msgspec

from ..events import Draft, Publication, Retention

PARTITIONS: Final = 64
_SLOTS: Final = 16384

_encode = msgspec.msgpack.Encoder().encode
decode_publication = msgspec.msgpack.Decoder(Publication).decode

# In Lua numbers are exact up to here.
LARGEST_OFFSET: Final = 2**53 - 1
_LONGEST_MS: Final = 10 * 365 * 86_400_000


def slot(key: bytes) -> int:
    """Return the Cluster slot of a key whose hash tag is `key` (CRC16, XMODEM)."""
    return crc_hqx(key, 0) % _SLOTS


def _tags() -> tuple[str, ...]:
    """Return one tag for each of as many equal ranges of slots: the smallest number that falls into
    it. So each node of a Cluster has its share."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < PARTITIONS:
        found.setdefault(slot(b"%d" % number) * PARTITIONS // _SLOTS, str(number))
        number += 1
    return tuple(found[index] for index in range(PARTITIONS))


TAGS: Final = _tags()
SLOTS: Final = tuple(slot(tag.encode()) for tag in TAGS)


def partition(channel: str) -> int:
    """Return in which partition a channel lies."""
    return crc32(channel.encode("utf-8", "surrogatepass")) % PARTITIONS


class Keys:
    """Names under one prefix. `announcements` is what scripts are told of where to announce: the
    kind of Redis channel before a channel's name, or nothing for one per partition."""

    def __init__(self, prefix: str, db: int, *, sharded: bool) -> None:
        self._heads = [f"{prefix}:{{{tag}}}:" for tag in TAGS]
        self.sharded = sharded
        # Redis's channels, unlike keys, are the same in all databases.
        self.announcements = "" if sharded else f"c{db}:"

    def head(self, partition_: int) -> str:
        return self._heads[partition_]

    def meta(self, channel: str) -> str:
        return f"{self._heads[partition(channel)]}m:{channel}"

    def ends(self, partition_: int) -> str:
        return f"{self._heads[partition_]}ends"

    def nothing(self, partition_: int) -> str:
        return f"{self._heads[partition_]}none"

    def announced(self, channel: str) -> bytes:
        """Return the Redis channel that announces `channel`."""
        head = self._heads[partition(channel)]
        name = f"{head}c" if self.sharded else f"{head}{self.announcements}{channel}"
        return name.encode("utf-8", "surrogatepass")


def unframe(data: bytes) -> tuple[str, bytes]:
    """Return the channel and the payload of an announcement as a partition's Redis channel carries
    it: the length of the channel's name (4 bytes, big-endian), the name, the payload.

    Raises:
        ValueError: it is not such a one.
    """
    end = 4 + int.from_bytes(data[:4], "big")
    if len(data) < end:
        raise ValueError("announcement cut off")
    return data[4:end].decode("utf-8", "surrogatepass"), data[end:]


Argument = bytes | str | int


def draft_arguments(draft: Draft) -> list[Argument]:
    """Return a draft as the scripts take it (stream.lua): the members of a `Publication` before
    `offset`, those between `epoch` and `time`, and what the script itself looks at."""
    return [
        # Without the header of the array: the script puts the parts of one together.
        _encode((draft.event, draft.data))[1:],
        _encode((draft.id, int(draft.lane), draft.exclude, draft.volatile, draft.key))[1:],
        int(draft.lane),
        draft.id,
        draft.amends,
        draft.amended,
        draft.time,
        draft.expects,
    ]


def retention_arguments(retention: Retention, *, default: bool = False) -> list[Argument]:
    """Return a retention as the scripts take it; with `default` it counts only for a stream that
    nobody has published to with another."""
    size = max(0, min(retention.size, LARGEST_OFFSET))
    return [
        -1 - size if default else size,
        milliseconds(retention.age),
        max(0, min(retention.presence, LARGEST_OFFSET)),
    ]


def milliseconds(seconds: float) -> int:
    """Return a time to live as Redis takes it: at least 1 ms, at most ten years."""
    if math.isnan(seconds):
        raise ValueError("a duration is a number")
    return int(max(1, min(seconds * 1000, _LONGEST_MS)))


def chance() -> str:
    """Return 16 random hexadecimal digits: Lua in Redis has no randomness of its own."""
    return secrets.token_hex(8)
