"""Private messages on a real server."""

from __future__ import annotations

from typing import Any

import pytest

from starlette_realtime import Realtime
from starlette_realtime.core.session import Session
from starlette_realtime.features.chat import Chat
from starlette_realtime.features.direct import DirectMessages
from starlette_realtime.features.status import Presence
from tests.features.helpers import House, Serve, make, of, refusal
from tests.support.wsclient import Message, NativeClient, NativeError

pytestmark = pytest.mark.anyio


def build(direct: DirectMessages | None = None, **options: Any) -> Realtime:
    realtime = make(**options)
    realtime.add(direct or DirectMessages())
    realtime.room("chat/{id}", features=[Chat()])
    return realtime


async def write(client: NativeClient, to: str, content: Any, **data: Any) -> dict[str, Any]:
    ack: dict[str, Any] = await client.request(
        "private-message", data={"targetUserId": to, "content": content, **data}
    )
    assert ack["success"] is True
    return ack


async def receive(client: NativeClient) -> dict[str, Any]:
    message = await client.expect("private-message")
    assert "offset" not in message
    data: dict[str, Any] = message["data"]
    return data


async def pending(client: NativeClient) -> tuple[list[Any], bool]:
    data = (await client.expect("pending-messages"))["data"]
    return [message["content"] for message in data["messages"]], data["more"]


async def acknowledge(client: NativeClient, up_to: int | str) -> int:
    reply = await client.request("ack-messages", data={"upTo": up_to})
    assert reply["success"] is True
    reached: int = reply["upTo"]
    return reached


async def contents(client: NativeClient, peer: str, **page: Any) -> list[Any]:
    reply = await client.request("conversation", data={"userId": peer, **page})
    return [message["content"] for message in reply["messages"]]


def private(messages: list[Message]) -> list[Message]:
    return of(messages, "private-message", "pending-messages", "message-read")


async def test_to_all_devices_of_the_target_and_the_senders_others(serve: Serve) -> None:
    house = House(serve, build())
    async with (
        house.enter("ann", "phone") as phone,
        house.enter("ann", "desk") as desk,
        house.enter("bob", "one") as one,
        house.enter("bob", "two") as two,
        house.enter("eve") as eve,
    ):
        ack = await write(phone, "bob", "hello")
        assert ack["delivered"] is True
        first = await receive(one)
        assert first == {
            "id": ack["messageId"],
            "fromUserId": "ann",
            "fromUser": {"name": "Ann"},
            "toUserId": "bob",
            "content": "hello",
            "timestamp": ack["timestamp"],
            "read": False,
            "offset": 1,
        }
        assert await receive(two) == first
        assert await receive(desk) == first
        for client in (phone, one, two, desk, eve):
            assert not private(await client.settle())


async def test_who_is_away_gets_it_on_connecting(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann:
        acks = [await write(ann, "bob", f"m{number}") for number in range(3)]
        assert [ack["delivered"] for ack in acks] == [False, False, False]
        async with house.enter("bob") as bob:
            assert await pending(bob) == (["m0", "m1", "m2"], False)
            assert (await write(ann, "bob", "m3"))["delivered"] is True
            assert (await receive(bob))["content"] == "m3"
        # Nothing was acknowledged, so all of it comes again, what was delivered too.
        async with house.enter("bob") as bob:
            assert await pending(bob) == (["m0", "m1", "m2", "m3"], False)
            assert await acknowledge(bob, 2) == 2
        async with house.enter("bob") as bob:
            assert await pending(bob) == (["m2", "m3"], False)
            assert await acknowledge(bob, acks[2]["messageId"]) == 3
            assert await acknowledge(bob, 4) == 4
        async with house.enter("bob") as bob:
            assert not private(await bob.settle())


async def test_each_device_acknowledges_for_itself(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("bob", "phone"), house.enter("bob", "desk"):
        pass
    async with house.enter("ann") as ann:
        for number in range(3):
            await write(ann, "bob", f"m{number}")
    async with house.enter("bob", "phone") as phone:
        assert await pending(phone) == (["m0", "m1", "m2"], False)
        await acknowledge(phone, 3)
    async with house.enter("bob", "phone") as phone:
        assert not private(await phone.settle())
    async with house.enter("bob", "desk") as desk:
        assert await pending(desk) == (["m0", "m1", "m2"], False)
    # One that was never seen is given what no device has.
    async with house.enter("bob", "new") as new:
        assert not private(await new.settle())


async def test_what_is_pending_comes_a_page_at_a_time(serve: Serve) -> None:
    house = House(serve, build(page_limit=4))
    async with house.enter("ann") as ann:
        for number in range(10):
            await write(ann, "bob", f"m{number}")
        async with house.enter("bob", "phone") as bob:
            assert await pending(bob) == (["m0", "m1", "m2", "m3"], True)
            # What comes meanwhile does not wait for the rest.
            await write(ann, "bob", "new")
            assert (await receive(bob))["content"] == "new"
            assert not private(await bob.settle())
            # It has not got everything before what it has got last.
            assert await acknowledge(bob, 11) == 4
            assert await pending(bob) == (["m4", "m5", "m6", "m7"], True)
            assert await acknowledge(bob, 7) == 7
            assert not private(await bob.settle())
            assert await acknowledge(bob, 8) == 8
            assert await pending(bob) == (["m8", "m9"], False)
            assert await acknowledge(bob, 11) == 11
        async with house.enter("bob", "phone") as bob:
            assert not private(await bob.settle())


async def test_a_page_is_bounded_in_bytes(serve: Serve) -> None:
    house = House(serve, build(max_queued=600_000))
    large = "x" * 9_000
    async with house.enter("ann") as ann:
        for _ in range(70):
            await write(ann, "bob", large)
    async with house.enter("bob") as bob:
        total, more = 0, True
        while more:
            got, more = await pending(bob)
            total += len(got)
            assert len(got) * 9_000 < 300_000
            await acknowledge(bob, total)
        assert total == 70
        reply = await bob.request("conversation", data={"userId": "ann", "limit": 100})
        assert reply["more"] is True
        assert reply["messages"][-1]["offset"] == 70


async def test_one_id_is_one_message(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann, house.enter("bob") as bob, house.enter("eve") as eve:
        first = await write(ann, "bob", "hello", id="m1")
        assert await write(ann, "bob", "hello", id="m1") == first
        by_envelope = {"targetUserId": "bob", "content": "hello"}
        again = await ann.request("private-message", data=by_envelope, messageId="m1")
        assert again == first
        # The same choice of another sender, or to another target, is another message.
        assert (await write(eve, "bob", "hi", id="m1"))["messageId"] != first["messageId"]
        assert (await write(ann, "eve", "hey", id="m1"))["messageId"] != first["messageId"]
        assert [(await receive(bob))["content"] for _ in "12"] == ["hello", "hi"]
        assert not private(await bob.settle())
        assert await contents(ann, "bob") == ["hello"]


async def test_what_a_device_sends_itself_is_not_pending_for_it(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann", "phone") as ann:
        await write(ann, "bob", "one")
        await write(ann, "bob", "two")
    async with house.enter("ann", "phone") as ann:
        assert not private(await ann.settle())
        async with house.enter("bob") as bob:
            await write(bob, "ann", "three")
        assert (await receive(ann))["content"] == "three"
        await write(ann, "bob", "four")
    # It has not acknowledged what came in between.
    async with house.enter("ann", "phone") as ann:
        assert await pending(ann) == (["three", "four"], False)


async def test_the_senders_other_devices_have_it_when_they_come_back(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann", "desk"):
        pass
    async with house.enter("ann", "phone") as phone:
        await write(phone, "bob", "from the phone")
    async with house.enter("ann", "desk") as desk:
        assert await pending(desk) == (["from the phone"], False)


async def test_to_oneself(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann", "phone") as phone, house.enter("ann", "desk") as desk:
        ack = await write(phone, "ann", "note")
        assert ack["delivered"] is True
        assert (await receive(desk))["content"] == "note"
        assert not private(await phone.settle())
        assert await contents(desk, "ann") == ["note"]
        await desk.request("mark-read", data={"messageId": ack["messageId"]})
        await phone.expect("message-read", data={"messageId": ack["messageId"]})


async def test_reading_is_told_to_the_sender_and_ones_other_devices(serve: Serve) -> None:
    house = House(serve, build())
    async with (
        house.enter("ann") as ann,
        house.enter("bob", "one") as one,
        house.enter("bob", "two") as two,
    ):
        ids = [(await write(ann, "bob", f"m{n}"))["messageId"] for n in range(3)]
        reply = await one.request("mark-read", data={"messageId": ids[1]})
        assert (reply["success"], reply["messageId"]) == (True, ids[1])
        for client in (ann, two):
            told = (await client.expect("message-read"))["data"]
            assert told == {"messageId": ids[1], "userId": "bob", "timestamp": reply["timestamp"]}
        for client, peer in ((ann, "bob"), (one, "ann")):
            page = await client.request("conversation", data={"userId": peer})
            assert [message["read"] for message in page["messages"]] == [True, True, False]
        # Once is enough; up to an offset, or a message, of one user.
        await one.request("mark-read", data={"messageId": ids[0]})
        await one.request("mark-read", data={"userId": "ann", "upTo": ids[2]})
        assert (await ann.expect("message-read"))["data"]["messageId"] == ids[2]
        await one.request("mark-read", data={"userId": "ann", "upTo": 3})
        assert not of(await ann.settle(), "message-read")


async def test_receipts_can_be_left_out(serve: Serve) -> None:
    house = House(serve, build(DirectMessages(receipts=False)))
    async with house.enter("ann") as ann, house.enter("bob") as bob, house.enter("bob") as two:
        id = (await write(ann, "bob", "hello"))["messageId"]
        await bob.request("mark-read", data={"messageId": id})
        await two.expect("message-read")
        assert not of(await ann.settle(), "message-read")


async def test_mark_read_means_the_room_when_it_names_one(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        for client in (ann, bob):
            await client.request("join", "chat/1")
        said = await ann.request("message", "chat/1", {"content": "in the room"})
        data = {"roomId": "chat/1", "messageId": said["messageId"]}
        await bob.request("mark-read", data=data)
        await ann.expect("message-read", room="chat/1", data={"userId": "bob"})
        error = await refusal(bob, "mark-read", data={"messageId": said["messageId"]})
        assert error.code == "not_found"


async def test_nobody_touches_what_is_between_others(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann, house.enter("bob") as bob, house.enter("eve") as eve:
        id = (await write(ann, "bob", "secret"))["messageId"]
        await receive(bob)
        for data in ({"messageId": id}, {"userId": "ann", "upTo": id}):
            assert (await refusal(eve, "mark-read", data=data)).code == "not_found"
        await eve.request("mark-read", data={"userId": "ann", "upTo": 10})
        assert (await refusal(eve, "ack-messages", data={"upTo": id})).code == "not_found"
        assert await acknowledge(eve, 10) == 0
        assert await contents(eve, "ann") == await contents(eve, "bob") == []
        # The sender does not mark its own message as read.
        assert (await refusal(ann, "mark-read", data={"messageId": id})).code == "not_found"
        assert not private(await ann.settle())
        assert await contents(ann, "bob") == ["secret"]


async def test_paging_a_conversation(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann, house.enter("bob") as bob, house.enter("eve") as eve:
        for number in range(6):
            await write(ann if number % 2 else bob, "bob" if number % 2 else "ann", f"m{number}")
            await write(eve, "ann", "noise")
        page = await ann.request("conversation", data={"userId": "bob", "limit": 4})
        assert [message["content"] for message in page["messages"]] == ["m2", "m3", "m4", "m5"]
        assert page["more"] is True
        before = page["messages"][0]["offset"]
        assert await contents(ann, "bob", before=before) == ["m0", "m1"]
        assert await contents(bob, "ann", limit=2) == ["m4", "m5"]
        assert await contents(ann, "nobody") == []


async def test_one_sender_cannot_push_out_what_others_wrote(serve: Serve) -> None:
    house = House(serve, build(DirectMessages(size=10, per_peer=4)))
    async with house.enter("ann") as ann, house.enter("eve") as eve:
        await write(ann, "bob", "important")
        for number in range(30):
            await write(eve, "bob", f"spam {number}")
    async with house.enter("bob") as bob:
        got, more = await pending(bob)
        assert got == ["important", *(f"spam {number}" for number in range(26, 30))]
        assert more is False


async def test_the_invisible_are_not_betrayed_by_delivery(serve: Serve) -> None:
    realtime = build()
    realtime.add(Presence())
    house = House(serve, realtime)
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        await bob.request("update-status", data={"status": "invisible"})
        assert (await write(ann, "bob", "there?"))["delivered"] is False
        assert (await receive(bob))["content"] == "there?"


async def test_a_hook_decides_who_may_write_to_whom(serve: Serve) -> None:
    async def may(session: Session, target: str) -> bool:
        return target in ("ann", "bob")

    house = House(serve, build(DirectMessages(may_message=may)))
    async with house.enter("ann") as ann:
        await write(ann, "bob", "hello")
        data = {"targetUserId": "stranger", "content": "hello"}
        error = await refusal(ann, "private-message", data=data)
        assert (error.code, error.error) == ("access_denied", "Access denied")
        assert await contents(ann, "stranger") == []


async def test_the_anonymous_have_no_private_messages(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter() as nobody:
        for event, data in (
            ("private-message", {"targetUserId": "ann", "content": "x"}),
            ("ack-messages", {"upTo": 1}),
            ("mark-read", {"messageId": "x"}),
            ("conversation", {"userId": "ann"}),
        ):
            assert (await refusal(nobody, event, data=data)).code == "access_denied"


@pytest.mark.parametrize(
    ("event", "data", "code"),
    [
        ("private-message", {"targetUserId": "", "content": "x"}, "invalid_message"),
        ("private-message", {"targetUserId": "x" * 256, "content": "x"}, "invalid_message"),
        ("private-message", {"targetUserId": "a\nb", "content": "x"}, "invalid_message"),
        ("private-message", {"content": "x"}, "invalid_message"),
        ("private-message", {"targetUserId": "bob"}, "invalid_message"),
        ("private-message", {"targetUserId": "bob", "content": " "}, "invalid_message"),
        ("private-message", {"targetUserId": "bob", "content": None}, "invalid_message"),
        ("private-message", {"targetUserId": "bob", "content": 7}, "invalid_message"),
        (
            "private-message",
            {"targetUserId": "bob", "content": "x", "id": "i" * 256},
            "invalid_message",
        ),
        ("private-message", {"targetUserId": "bob", "content": "x" * 10_001}, "too_large"),
        ("private-message", {"targetUserId": "bob", "content": {"a": "x" * 70_000}}, "too_large"),
        ("ack-messages", {"upTo": 1.5}, "invalid_message"),
        ("ack-messages", {"upTo": None}, "invalid_message"),
        ("ack-messages", {"upTo": "no such"}, "not_found"),
        ("mark-read", {}, "invalid_message"),
        ("mark-read", {"userId": "bob"}, "invalid_message"),
        ("mark-read", {"messageId": "no such"}, "not_found"),
        ("conversation", {}, "invalid_message"),
        ("conversation", {"userId": ""}, "invalid_message"),
    ],
)
async def test_malformed(serve: Serve, event: str, data: object, code: str) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann:
        assert (await refusal(ann, event, data=data)).code == code
        assert not private(await ann.settle())


async def test_objects_and_bytes_arrive_as_they_are(serve: Serve) -> None:
    house = House(serve, build())
    content = {"text": "ü\u2028", "key": {"$bytes": "AAEC"}, "odd": {"$escaped": {"$bytes": "x"}}}
    async with house.enter("ann") as ann, house.enter("bob", "phone") as bob:
        await write(ann, "bob", content)
        await write(ann, "bob", {"$bytes": "AAEC"})
        assert (await receive(bob))["content"] == content
        assert (await receive(bob))["content"] == {"$bytes": "AAEC"}
    async with house.enter("bob", "phone") as bob:
        assert await pending(bob) == ([content, {"$bytes": "AAEC"}], False)


async def test_absurd_numbers_are_no_trouble(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann:
        await write(ann, "bob", "x")
        for number in (-1, 0, 2**62, -(2**62)):
            assert await acknowledge(ann, number) in (0, 1)
            assert await contents(ann, "bob", limit=number) == ["x"]
            await ann.request("conversation", data={"userId": "bob", "before": number})
            await ann.request("mark-read", data={"userId": "bob", "upTo": number})
        for number in (2**63, 2**64, 10**40):
            try:
                await acknowledge(ann, number)
            except NativeError as error:
                assert error.code == "invalid_message"
