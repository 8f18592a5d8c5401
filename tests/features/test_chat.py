"""Chat on a real server: messages, edits, deletions, receipts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from starlette_realtime import Chat, Member
from starlette_realtime.core.room import Room
from starlette_realtime.features.chat import Message
from tests.features.helpers import House, Serve, make, of, refusal
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

ROOM = "chat/1"


def chat(serve: Serve, feature: Chat | None = None, **room: Any) -> House:
    realtime = make()
    realtime.room("chat/{id}", features=[feature or Chat()], **room)
    realtime.room("plain/{id}")
    return House(serve, realtime)


async def say(client: NativeClient, content: Any, **data: Any) -> str:
    ack = await client.request("message", ROOM, {"content": content, **data})
    assert ack["success"] is True
    id: str = ack["messageId"]
    return id


async def recent(client: NativeClient) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = (await client.request("join", ROOM))["recentMessages"]
    return messages


async def test_the_author_edits_and_everyone_sees_it(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter("ann") as ann, house.enter("bob") as bob, house.enter("cid") as cid:
        await ann.request("join", ROOM)
        await bob.request("join", ROOM)
        id = await say(ann, "helo")
        ack = await ann.request("edit-message", ROOM, {"messageId": id, "content": "hello"})
        assert ack["success"] is True
        assert ack["messageId"] == id
        new = await ann.expect("new-message", data={"id": id, "edited": False})
        assert await bob.expect("new-message") == new
        for client in (ann, bob):
            told = await client.expect("message-edited", room=ROOM)
            assert told["data"] == {
                "id": id,
                "roomId": ROOM,
                "userId": "ann",
                "content": "hello",
                "timestamp": ack["timestamp"],
                "edited": True,
            }
        (shown,) = await recent(cid)
        assert shown == {**new["data"], "content": "hello", "edited": True}
        page = await cid.request("history", ROOM)
        assert page["messages"] == [shown]


async def test_a_deleted_message_has_no_content_and_is_not_edited_again(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        await ann.request("join", ROOM)
        await bob.request("join", ROOM)
        id = await say(ann, "a secret")
        ack = await ann.request("delete-message", ROOM, {"messageId": id})
        told = await bob.expect("message-deleted", room=ROOM)
        assert told["data"] == {
            "id": id,
            "roomId": ROOM,
            "userId": "ann",
            "timestamp": ack["timestamp"],
            "deleted": True,
        }
        (shown,) = await recent(bob)
        assert (shown["content"], shown["deleted"]) == (None, True)
        for event, data in (("edit-message", {"content": "x"}), ("delete-message", {})):
            error = await refusal(ann, event, ROOM, {"messageId": id, **data})
            assert (error.code, error.error) == ("not_found", "Message not found")


async def test_only_the_author_or_a_moderator_may(serve: Serve) -> None:
    asked: list[tuple[str | None, str]] = []

    async def moderates(member: Member, message: Message) -> bool:
        asked.append((member.user_id, message.content))
        return member.user_id == "mod"

    house = chat(serve, Chat(moderator=moderates))
    async with house.enter("ann") as ann, house.enter("eve") as eve, house.enter("mod") as mod:
        for client in (ann, eve, mod):
            await client.request("join", ROOM)
        id = await say(ann, "mine")
        for event, data in (("edit-message", {"content": "x"}), ("delete-message", {})):
            error = await refusal(eve, event, ROOM, {"messageId": id, **data})
            assert (error.code, error.error) == ("access_denied", "Access denied")
        assert (await recent(eve))[0]["content"] == "mine"
        await mod.request("edit-message", ROOM, {"messageId": id, "content": "tidied"})
        assert (await ann.expect("message-edited"))["data"]["userId"] == "mod"
        shown = (await recent(eve))[0]
        assert (shown["userId"], shown["content"]) == ("ann", "tidied")
        await mod.request("delete-message", ROOM, {"messageId": id})
        assert (await recent(eve))[0]["deleted"] is True
    assert asked == [("eve", "mine"), ("eve", "mine"), ("mod", "mine"), ("mod", "tidied")]


async def test_nobody_is_the_author_of_an_anonymous_message(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter() as one, house.enter() as two:
        await one.request("join", ROOM)
        await two.request("join", ROOM)
        id = await say(one, "hi")
        for client in (one, two):
            error = await refusal(client, "delete-message", ROOM, {"messageId": id})
            assert error.code == "access_denied"


async def test_what_is_not_a_message_of_this_room_is_not_found(serve: Serve) -> None:
    house = chat(serve, history=3)
    async with house.enter("ann") as ann:
        await ann.request("join", ROOM)
        await ann.request("join", "chat/2")
        elsewhere = (await ann.request("message", "chat/2", {"content": "there"}))["messageId"]
        trimmed = await say(ann, "old")
        for number in range(3):
            await say(ann, f"new {number}")
        await ann.send({"type": "broadcast", "room": ROOM, "data": 1, "messageId": "b"})
        for id in (elsewhere, trimmed, "ann/b", "", "x" * 300, "no such"):
            for event, data in (
                ("edit-message", {"content": "x"}),
                ("delete-message", {}),
                ("mark-read", {}),
            ):
                error = await refusal(ann, event, ROOM, {"messageId": id, **data})
                assert (error.code, error.error) == ("not_found", "Message not found"), id


async def test_outsiders_change_nothing(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter("ann") as ann, house.enter("eve") as eve:
        await ann.request("join", ROOM)
        id = await say(ann, "mine")
        for event in ("message", "edit-message", "delete-message", "mark-read"):
            error = await refusal(eve, event, ROOM, {"messageId": id, "content": "x"})
            assert (error.code, error.error) == ("not_in_room", "Not in room")
        # An editor who has left is an outsider.
        await ann.request("leave", ROOM)
        error = await refusal(ann, "edit-message", ROOM, {"messageId": id, "content": "x"})
        assert error.code == "not_in_room"


async def test_edits_push_no_message_out_of_the_history(serve: Serve) -> None:
    house = chat(serve, history=5, recent=5)
    async with house.enter("ann") as ann:
        await ann.request("join", ROOM)
        ids = [await say(ann, f"m{number}") for number in range(5)]
        for number in range(20):
            data = {"messageId": ids[number % 5], "content": f"e{number}"}
            await ann.request("edit-message", ROOM, data)
        shown = await recent(ann)
        assert [message["id"] for message in shown] == ids
        assert [message["content"] for message in shown] == [f"e{n}" for n in range(15, 20)]


async def test_who_was_away_recovers_edits_but_not_what_was_deleted(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        await ann.request("join", ROOM)
        kept, gone = await say(ann, "one"), await say(ann, "two")
        position = (await bob.request("join", ROOM))["position"]
        await bob.request("leave", ROOM)
        await ann.request("edit-message", ROOM, {"messageId": kept, "content": "first"})
        await ann.request("edit-message", ROOM, {"messageId": gone, "content": "SECRET"})
        await ann.request("delete-message", ROOM, {"messageId": gone})
        late = await say(ann, "late SECRET")
        await ann.request("delete-message", ROOM, {"messageId": late})
        joined = await bob.request("join", ROOM, since=position)
        assert joined["recovered"] is True
        missed = of(await bob.settle(), "new-message", "message-edited", "message-deleted")
        assert [(m["type"], m["data"]["id"], m["data"].get("content")) for m in missed] == [
            ("message-edited", kept, "first"),
            ("message-edited", gone, None),
            ("message-deleted", gone, None),
            ("new-message", late, None),
            ("message-deleted", late, None),
        ]
        assert "SECRET" not in json.dumps(missed)


async def test_an_edit_that_is_sent_again_happens_once(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter("ann", "phone") as phone, house.enter("ann", "desk") as desk:
        await phone.request("join", ROOM)
        await desk.request("join", ROOM)
        id = await say(phone, "one")
        first = {"messageId": id, "content": "two"}
        await phone.request("edit-message", ROOM, first, messageId="e1")
        await desk.request("edit-message", ROOM, {"messageId": id, "content": "three"})
        # The ack was lost, say, and meanwhile another device has edited it further.
        again = await phone.request("edit-message", ROOM, first, messageId="e1")
        assert again["success"] is True
        await desk.request("mark-read", ROOM, {"messageId": id})
        await desk.expect("message-read")
        assert (await recent(desk))[0]["content"] == "three"
        edits = of(await phone.settle(), "message-edited")
        assert [edit["data"]["content"] for edit in edits] == ["two", "three"]


async def test_a_message_that_is_sent_again_has_its_first_time(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter("ann") as ann:
        await ann.request("join", ROOM)
        one = await ann.request("message", ROOM, {"content": "x", "id": "m1"})
        await say(ann, "between")
        await ann.request("edit-message", ROOM, {"messageId": one["messageId"], "content": "y"})
        assert await ann.request("message", ROOM, {"content": "x", "id": "m1"}) == one
        assert len(await recent(ann)) == 2


async def test_an_edit_does_not_undo_a_deletion_it_has_not_seen(serve: Serve) -> None:
    """The message changes while a slow moderator hook is asked about it."""
    rooms: list[Room] = []

    async def moderates(member: Member, message: Message) -> bool:
        found = await member.room.find(message.id)
        assert found is not None
        message.content, message.deleted = None, True
        deleted = {"id": message.id, "roomId": member.room.name, "userId": "ann", "timestamp": 1}
        await member.room.publish(
            "message-deleted", deleted, id="", aside=True, amends=found, amended=message
        )
        rooms.append(member.room)
        return True

    house = chat(serve, Chat(moderator=moderates))
    async with house.enter("ann") as ann, house.enter("mod") as mod:
        await ann.request("join", ROOM)
        await mod.request("join", ROOM)
        id = await say(ann, "x")
        error = await refusal(mod, "edit-message", ROOM, {"messageId": id, "content": "back"})
        assert error.code == "not_found"
        assert len(rooms) == 1
        assert (await recent(ann))[0]["deleted"] is True
        assert not of(await ann.settle(), "message-edited")


async def test_of_many_edits_at_once_all_agree_on_the_last(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter("ann") as one, house.enter("ann") as two, house.enter("bob") as bob:
        for client in (one, two, bob):
            await client.request("join", ROOM)
        id = await say(one, "x")
        for n in range(10):
            data = {"messageId": id, "content": f"{n}"}
            edit = {"type": "edit-message", "room": ROOM, "data": data}
            await asyncio.gather(one.send(edit), two.send(edit))
        await one.settle()
        await two.settle()
        # Through Redis an edit may be announced a moment after it was acknowledged.
        edits = [await bob.expect("message-edited") for _ in range(20)]
        assert not of(await bob.settle(), "message-edited")
        assert (await recent(bob))[0]["content"] == edits[-1]["data"]["content"]


async def test_reading_is_told_to_the_room_and_not_kept(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        await ann.request("join", ROOM)
        before = (await bob.request("join", ROOM))["position"]
        id = await say(ann, "x")
        ack = await bob.request("mark-read", ROOM, {"messageId": id})
        told = await ann.expect("message-read", room=ROOM)
        assert told["data"] == {
            "roomId": ROOM,
            "messageId": id,
            "userId": "bob",
            "timestamp": ack["timestamp"],
        }
        assert "offset" not in told
        assert ack == {"success": True, "messageId": id, "timestamp": told["data"]["timestamp"]}
        after = (await bob.request("join", ROOM))["position"]
        assert after["offset"] == before["offset"] + 1


async def test_receipts_can_be_left_out(serve: Serve) -> None:
    house = chat(serve, Chat(receipts=False))
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        await ann.request("join", ROOM)
        await bob.request("join", ROOM)
        id = await say(ann, "x")
        assert (await bob.request("mark-read", ROOM, {"messageId": id}))["success"] is True
        assert not of(await ann.settle(), "message-read")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"content": ""}, "invalid_message"),
        ({"content": " \n "}, "invalid_message"),
        ({"content": None}, "invalid_message"),
        ({}, "invalid_message"),
        ({"content": 7}, "invalid_message"),
        ({"content": [1]}, "invalid_message"),
        ({"content": {"a": 1}}, "invalid_message"),
        ({"content": 7, "type": "image"}, "invalid_message"),
        ({"content": "x", "type": ""}, "invalid_message"),
        ({"content": "x", "type": "t" * 65}, "invalid_message"),
        ({"content": "x", "type": 7}, "invalid_message"),
        ({"content": "x", "id": "i" * 256}, "invalid_message"),
        ({"content": "x" * 10_001}, "too_large"),
        ({"content": {"a": "x" * 70_000}, "type": "image"}, "too_large"),
    ],
)
async def test_what_is_no_message_is_refused(serve: Serve, data: object, code: str) -> None:
    house = chat(serve)
    async with house.enter("ann") as ann:
        await ann.request("join", ROOM)
        assert (await refusal(ann, "message", ROOM, data)).code == code
        assert await recent(ann) == []


async def test_other_types_carry_objects_texts_and_bytes(serve: Serve) -> None:
    house = chat(serve)
    async with house.enter("ann") as ann:
        await ann.request("join", ROOM)
        picture = {"url": "/x.png", "thumbnail": {"$bytes": "AAEC"}}
        id = await say(ann, picture, type="image")
        await say(ann, {"$bytes": "AAEC"}, type="voice")
        await say(ann, ":)", type="sticker")
        contents = [message["content"] for message in await recent(ann)]
        assert contents == [picture, {"$bytes": "AAEC"}, ":)"]
        edited = {**picture, "url": "/y.png"}
        await ann.request("edit-message", ROOM, {"messageId": id, "content": edited})
        assert (await recent(ann))[0]["content"] == edited
        error = await refusal(ann, "edit-message", ROOM, {"messageId": id, "content": 7})
        assert error.code == "invalid_message"


async def test_a_room_without_history_has_nothing_to_edit(serve: Serve) -> None:
    house = chat(serve, history=0)
    async with house.enter("ann") as ann:
        await ann.request("join", ROOM)
        id = await say(ann, "x")
        error = await refusal(ann, "edit-message", ROOM, {"messageId": id, "content": "y"})
        assert error.code == "not_found"
