"""Chat: messages that are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from ..core.room import Room
from ..core.router import RoomType
from ..core.session import Member, new_id
from ..errors import InvalidMessage
from ..events import Publication
from ..protocols import payload


class SendMessage(msgspec.Struct, rename="camel"):
    """What a client sends as `message`."""

    content: Any
    type: str = "text"
    id: str | None = None
    """Chosen by the client: makes a resend harmless."""


class SendReply(msgspec.Struct, rename="camel"):
    """The ack of `message`. `timestamp` in milliseconds."""

    success: bool
    message_id: str
    timestamp: int


class Message(msgspec.Struct, rename="camel"):
    """A message, as `new-message` and `recentMessages` carry it."""

    id: str
    room_id: str
    user_id: str | None
    user: Any
    content: Any
    type: str
    timestamp: int
    edited: bool = False
    deleted: bool = False


class Chat:
    """`message` → `new-message` for a kind of room; `recentMessages` are messages.

    Args:
        max_length: characters a text message may have.
    """

    def __init__(self, *, max_length: int = 10_000) -> None:
        self.max_length = max_length

    def install(self, target: RoomType) -> None:
        target.on("message")(self.message)
        target.view_recent(self.recent)

    async def message(self, room: Room, member: Member, data: SendMessage) -> SendReply:
        if data.content is None or data.content == "":
            raise InvalidMessage("Invalid message format: content missing")
        if isinstance(data.content, str) and len(data.content) > self.max_length:
            raise InvalidMessage(f"Invalid message format: over {self.max_length} characters")
        chosen = data.id or member.message_id
        id = member.stable_id(chosen) if chosen else new_id()
        message = Message(
            id=id,
            room_id=room.name,
            user_id=member.user_id,
            user=member.info,
            content=data.content,
            type=data.type,
            timestamp=int(time.time() * 1000),
        )
        published = await room.publish("new-message", message, id=id)
        if published.duplicate:
            # The first one's time is the message's.
            at = published.position.offset
            for kept in (await room.history(after=at - 1, limit=1)).publications:
                if kept.id == id:
                    message.timestamp = kept.time
        return SendReply(success=True, message_id=id, timestamp=message.timestamp)

    def recent(self, publications: Sequence[Publication]) -> list[Any]:
        return [
            payload.load(publication.data)
            for publication in publications
            if publication.event == "new-message"
        ]
