"""The demo on a server that also has typing, presence, editing and private messages.

    uvicorn tests.browser.featured:app

What examples/chat/app.py does not install yet is written here as an application would, with the
names and payloads of the wire, so that the page is tested against them.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from examples.chat.app import app, chat, realtime
from starlette_realtime import Member, NotInRoom, Room, Session

__all__ = ["app"]


class Edit(msgspec.Struct, rename="camel"):
    message_id: str
    content: str = ""


class Private(msgspec.Struct, rename="camel"):
    target_user_id: str
    content: str


class Status(msgspec.Struct):
    status: str


if "typing" not in chat.handlers:

    @chat.on("typing")
    async def typing(room: Room, member: Member) -> None:
        data = {"userId": member.user_id, "roomId": room.name}
        await room.publish("user-typing", data, exclude=member, keep=False)

    @chat.on("stop-typing")
    async def stop_typing(room: Room, member: Member) -> None:
        data = {"userId": member.user_id, "roomId": room.name}
        await room.publish("user-stopped-typing", data, exclude=member, keep=False)


if "edit-message" not in chat.handlers:

    @chat.on("edit-message")
    async def edit_message(room: Room, member: Member, data: Edit) -> dict[str, Any]:
        if "forbidden" in data.content:
            raise NotInRoom
        change = {"id": data.message_id, "roomId": room.name, "content": data.content}
        await room.publish("message-edited", {**change, "edited": True})
        return {"success": True}

    @chat.on("delete-message")
    async def delete_message(room: Room, member: Member, data: Edit) -> dict[str, Any]:
        await room.publish("message-deleted", {"id": data.message_id, "roomId": room.name})
        return {"success": True}


if "private-message" not in realtime.handlers:

    @realtime.event("private-message")
    async def private_message(session: Session, data: Private) -> dict[str, Any]:
        now = int(time.time() * 1000)
        id = f"private-{now}-{len(data.content)}"
        message = {
            "id": id,
            "fromUserId": session.user_id,
            "fromUser": session.user.info if session.user else None,
            "toUserId": data.target_user_id,
            "content": data.content,
            "timestamp": now,
            "read": False,
        }
        await realtime.send_to_user(data.target_user_id, "private-message", message)
        return {"success": True, "messageId": id, "timestamp": now, "delivered": True}


if "update-status" not in realtime.handlers:

    @realtime.event("update-status")
    async def update_status(session: Session, data: Status) -> dict[str, Any]:
        now = int(time.time() * 1000)
        update = {"userId": session.user_id, "status": data.status, "timestamp": now}
        await realtime.broadcast("presence-update", update)
        return {"success": True}
