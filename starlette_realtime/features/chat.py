"""Chat: messages that are kept, and may be edited, deleted and marked as read."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import msgspec

from ..core.room import Room
from ..core.router import RoomType
from ..core.session import Member, new_id
from ..errors import AccessDenied, ClientError, InvalidMessage, TooLarge, Unavailable
from ..events import Publication
from ..protocols import payload

_ATTEMPTS = 8
"""How often an edit is tried against others of the same message."""
_MAX_TYPE = 64
_MAX_ID = 255


class SendMessage(msgspec.Struct, rename="camel"):
    """What a client sends as `message`."""

    content: Any
    type: str = "text"
    id: str | None = None
    """Chosen by the client: makes a resend harmless."""


class EditMessage(msgspec.Struct, rename="camel"):
    """What a client sends as `edit-message`."""

    message_id: str
    content: Any


class MessageRef(msgspec.Struct, rename="camel"):
    """What a client sends as `delete-message` and `mark-read`."""

    message_id: str


class Reply(msgspec.Struct, rename="camel"):
    """The ack of all of these. `timestamp` in milliseconds."""

    success: bool
    message_id: str
    timestamp: int


class Message(msgspec.Struct, rename="camel"):
    """A message, as `new-message` and `recentMessages` carry it. A deleted one has no content."""

    id: str
    room_id: str
    user_id: str | None
    user: Any
    content: Any
    type: str
    timestamp: int
    edited: bool = False
    deleted: bool = False


class Edited(msgspec.Struct, rename="camel"):
    """`message-edited`. `user_id` is who did it."""

    id: str
    room_id: str
    user_id: str | None
    content: Any
    timestamp: int
    edited: bool = True


class Deleted(msgspec.Struct, rename="camel"):
    """`message-deleted`. `user_id` is who did it."""

    id: str
    room_id: str
    user_id: str | None
    timestamp: int
    deleted: bool = True


class Receipt(msgspec.Struct, rename="camel"):
    """`message-read`: `user_id` has read the message, and so all before it."""

    room_id: str
    message_id: str
    user_id: str | None
    timestamp: int


Moderator = Callable[[Member, Message], Awaitable[bool]]


def _now() -> int:
    return int(time.time() * 1000)


class Chat:
    """`message`, `edit-message`, `delete-message` and `mark-read` for a kind of room;
    `recentMessages` are messages.

    Edits and deletions are recovered like messages, but push none out of the history, which shows
    the messages as they are now.

    Args:
        max_length: characters a text may have.
        max_size: bytes any other content may have, as JSON.
        moderator: an async function of `member` and `message` that says whether someone who is not
            the author may edit or delete the message.
        receipts: whether `mark-read` is told to the room. Leave it out where a room is large: each
            member's receipt goes to all the others.
    """

    def __init__(
        self,
        *,
        max_length: int = 10_000,
        max_size: int = 65_536,
        moderator: Moderator | None = None,
        receipts: bool = True,
    ) -> None:
        self.max_length = max_length
        self.max_size = max_size
        self.moderator = moderator
        self.receipts = receipts

    def install(self, target: RoomType) -> None:
        target.on("message")(self.message)
        target.on("edit-message")(self.edit)
        target.on("delete-message")(self.delete)
        target.on("mark-read")(self.mark_read)
        target.view_recent(self.recent)
        target.view_missed(self.missed)

    async def message(self, room: Room, member: Member, data: SendMessage) -> Reply:
        if not 0 < len(data.type) <= _MAX_TYPE or not data.type.isprintable():
            raise InvalidMessage("Invalid message format: bad type")
        self._check(data.content, data.type)
        chosen = data.id or member.message_id
        if len(chosen) > _MAX_ID:
            raise InvalidMessage("Invalid message format: id too long")
        id = member.stable_id(chosen) if chosen else new_id()
        message = Message(
            id=id,
            room_id=room.name,
            user_id=member.user_id,
            user=member.info,
            content=data.content,
            type=data.type,
            timestamp=_now(),
        )
        published = await room.publish("new-message", message, id=id)
        if published.duplicate and (kept := await room.find(id)) is not None:
            # The first one's time is the message's.
            message.timestamp = payload.load(kept.data, Message).timestamp
        return Reply(success=True, message_id=id, timestamp=message.timestamp)

    async def edit(self, room: Room, member: Member, data: EditMessage) -> Reply:
        def edit(message: Message, now: int) -> Edited:
            self._check(data.content, message.type)
            message.content = data.content
            message.edited = True
            return Edited(message.id, room.name, member.user_id, data.content, now)

        return await self._amend(room, member, data.message_id, "message-edited", edit)

    async def delete(self, room: Room, member: Member, data: MessageRef) -> Reply:
        def delete(message: Message, now: int) -> Deleted:
            message.content = None
            message.deleted = True
            return Deleted(message.id, room.name, member.user_id, now)

        return await self._amend(room, member, data.message_id, "message-deleted", delete)

    async def _amend(
        self,
        room: Room,
        member: Member,
        message_id: str,
        event: str,
        change: Callable[[Message, int], Edited | Deleted],
    ) -> Reply:
        """Change a message in the history and tell the room, in one step."""
        id = member.stable_id(f"{event} {member.message_id}") if member.message_id else ""
        for attempt in range(_ATTEMPTS):
            found, message = await self._find(room, message_id)
            if message.deleted:
                raise _not_found()
            await self._check_author(member, message)
            now = _now()
            announced = change(message, now)
            published = await room.publish(
                event, announced, id=id, aside=True, amends=found, amended=message
            )
            if not published.conflict:
                return Reply(success=True, message_id=message_id, timestamp=now)
            # Two that go on at the same pace would meet, and the same one lose, each time.
            await anyio.sleep(random.uniform(0, 0.002 * 2**attempt))
        raise Unavailable

    async def mark_read(self, room: Room, member: Member, data: MessageRef) -> Reply:
        await self._find(room, data.message_id)
        now = _now()
        if self.receipts:
            receipt = Receipt(room.name, data.message_id, member.user_id, now)
            reader = member.user_id or member.session_id
            await room.publish("message-read", receipt, keep=False, key=f"read/{reader}")
        return Reply(success=True, message_id=data.message_id, timestamp=now)

    def _check(self, content: Any, type: str) -> None:
        if isinstance(content, str):
            if not content.strip():
                raise InvalidMessage("Invalid message format: content missing")
            if len(content) > self.max_length:
                raise TooLarge(f"Message too large: over {self.max_length} characters")
        elif content is None:
            raise InvalidMessage("Invalid message format: content missing")
        elif type == "text" or not isinstance(content, dict | bytes):
            raise InvalidMessage("Invalid message format: content must be a text or an object")
        elif len(payload.dump(content)) > self.max_size:
            raise TooLarge(f"Message too large: over {self.max_size} bytes")

    async def _find(self, room: Room, id: str) -> tuple[Publication, Message]:
        found = await room.find(id) if 0 < len(id) <= _MAX_ID else None
        if found is None or found.event != "new-message":
            raise _not_found()
        return found, payload.load(found.data, Message)

    async def _check_author(self, member: Member, message: Message) -> None:
        if message.user_id is not None and message.user_id == member.user_id:
            return
        if self.moderator is None or await self.moderator(member, message) is not True:
            raise AccessDenied

    def recent(self, publications: Sequence[Publication]) -> list[Any]:
        return [
            msgspec.Raw(publication.data)
            for publication in publications
            if publication.event == "new-message"
        ]

    def missed(self, publications: Sequence[Publication]) -> list[Publication]:
        """Leave nothing of a deleted message's content in what was said of it before."""
        deleted = {
            payload.load(publication.data, Deleted).id
            for publication in publications
            if publication.event == "message-deleted"
        }
        return [
            _without_content(publication, deleted)
            if deleted and publication.event == "message-edited"
            else publication
            for publication in publications
        ]


def _without_content(publication: Publication, deleted: set[str]) -> Publication:
    edited = payload.load(publication.data, Edited)
    if edited.id not in deleted:
        return publication
    edited.content = None
    return msgspec.structs.replace(publication, data=payload.dump(edited))


def _not_found() -> ClientError:
    return ClientError("not_found", "Message not found")
