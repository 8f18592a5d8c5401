"""The native protocol over real servers, message by message (docs/protocol.md)."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import uuid4

import pytest

from tests.support.server import LiveServer
from tests.support.wsclient import SUBPROTOCOL, Message, NativeClient, NativeError
from tests.transports.helpers import FRAMINGS, PATH, WS, house_app, post, text_frame, token

pytestmark = pytest.mark.anyio

Open = Callable[..., AbstractAsyncContextManager[NativeClient]]


@pytest.fixture(scope="module", params=WS, ids=["found", "fast", "wsproto"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with LiveServer(house_app(), ws=request.param) as server:
        yield server


@pytest.fixture(params=FRAMINGS, ids=["v2", "v1", "none"])
def connect(request: pytest.FixtureRequest, server: LiveServer) -> Open:
    """`connect("ann")` opens a connection as that user; without a name, as nobody."""

    def connect(user: str | None = None, **options: Any) -> Any:
        options.setdefault("subprotocols", request.param)
        shown = token(user) if user is not None else None
        return NativeClient.open(server.ws(PATH), token=shown, **options)

    return connect


@pytest.fixture
def room() -> str:
    return f"room-{uuid4().hex[:8]}"


@pytest.fixture
async def ann(connect: Open) -> AsyncIterator[NativeClient]:
    async with connect("ann") as client:
        yield client


@pytest.fixture
async def bob(connect: Open) -> AsyncIterator[NativeClient]:
    async with connect("bob") as client:
        yield client


async def ask(client: NativeClient, message: Message) -> Message:
    """Send a message as it is, return the first answer under its id."""
    await client.send(message)
    while (found := await client.recv()).get("id") != message["id"]:
        pass
    return found


async def test_connected_comes_first(connect: Open) -> None:
    before = int(time.time() * 1000)
    async with connect("ann") as ann, connect("ann") as again:
        said = ann.connected
        assert said["userId"] == "ann"
        assert before <= said["serverTime"] <= int(time.time() * 1000)
        assert (said["pingInterval"], said["pingTimeout"]) == (25000, 20000)
        assert said["maxPayload"] == 1_000_000
        assert said["resumed"] is False
        assert isinstance(said["resume"], str)
        ids = {said["sessionId"], said["clientId"]}
        ids |= {again.connected["sessionId"], again.connected["clientId"]}
        assert len(ids) == 4
        assert all(len(id) >= 22 for id in ids)


async def test_nobody_has_no_user_id(connect: Open) -> None:
    async with connect() as visitor:
        assert visitor.connected["userId"] is None


async def test_the_subprotocol_is_selected_only_if_it_is_offered(server: LiveServer) -> None:
    async with NativeClient.open(server.ws(PATH), subprotocols=["other", SUBPROTOCOL]) as client:
        assert client.websocket.subprotocol == SUBPROTOCOL
    async with NativeClient.open(server.ws(PATH), subprotocols=["other", "realtime.v1"]) as client:
        assert client.websocket.subprotocol == "realtime.v1"
    both = ["realtime.v1", "realtime.v2"]
    async with NativeClient.open(server.ws(PATH), subprotocols=both) as client:
        assert client.websocket.subprotocol == "realtime.v2"
    async with NativeClient.open(server.ws(PATH), subprotocols=["other"]) as client:
        assert client.websocket.subprotocol is None


@pytest.mark.parametrize("id", [0, 7, -1, 2**53, "a", "", "é\n", "7"])
async def test_every_answer_repeats_the_id(ann: NativeClient, room: str, id: int | str) -> None:
    joined = await ask(ann, {"type": "join", "id": id, "room": room})
    assert (joined["type"], joined["id"]) == ("joined", id)
    ack = await ask(ann, {"type": "broadcast", "id": id, "room": room, "data": 1})
    assert (ack["type"], ack["id"]) == ("ack", id)
    error = await ask(ann, {"type": "nothing", "id": id})
    assert (error["type"], error["id"]) == ("error", id)
    left = await ask(ann, {"type": "leave", "id": id, "room": room})
    assert left == {"type": "left", "roomId": room, "id": id}


async def test_without_an_id_nothing_is_acknowledged(ann: NativeClient, room: str) -> None:
    await ann.send({"type": "join", "room": room})
    joined = await ann.expect("joined")
    assert "id" not in joined
    await ann.send(
        {"type": "broadcast", "room": room, "data": 1},
        {"type": "echo", "data": 1},
        {"type": "leave", "room": room},
    )
    came = await ann.settle()
    assert [message["type"] for message in came] == ["broadcast", "left"]
    assert came[1] == {"type": "left", "roomId": room}


async def test_ping(ann: NativeClient) -> None:
    await ann.send({"type": "ping"})
    pong = await ann.recv()
    assert pong.keys() == {"type", "timestamp"}
    assert pong["type"] == "pong"
    assert abs(pong["timestamp"] - time.time() * 1000) < 10_000


async def test_join(ann: NativeClient, bob: NativeClient, room: str) -> None:
    joined = await ann.request("join", room)
    assert joined.pop("id")
    position = joined.pop("position")
    # One's own arrival is the first event of the room.
    assert (position.keys(), position["offset"]) == ({"epoch", "offset"}, 1)
    ann_there = {"userId": "ann", "user": {"name": "Ann"}, "status": "online"}
    assert joined == {
        "type": "joined",
        "roomId": room,
        "members": [ann_there],
        "count": 1,
        "recentMessages": [],
    }
    await ann.request("broadcast", room, {"n": 1})
    joined = await bob.request("join", room)
    assert [member["userId"] for member in joined["members"]] == ["ann", "bob"]
    assert joined["recentMessages"] == [{"type": "broadcast", "offset": 2, "data": {"n": 1}}]
    assert joined["position"] == {"epoch": position["epoch"], "offset": 3}
    assert "recovered" not in joined
    arrival = await ann.expect("user-joined")
    assert arrival == {
        "type": "user-joined",
        "room": room,
        "offset": 3,
        "data": {"userId": "bob", "user": {"name": "Bob"}, "roomId": room},
    }
    await bob.request("leave", room)
    departure = await ann.expect("user-left")
    assert departure["data"] == {"userId": "bob", "roomId": room}
    assert not [m for m in await bob.settle() if m["type"] in ("user-joined", "user-left")]


@pytest.mark.parametrize("inside", [True, False])
async def test_join_room_and_leave_room(
    ann: NativeClient, bob: NativeClient, room: str, inside: bool
) -> None:
    def named(**data: Any) -> Message:
        return {"data": {"roomId": room, **data}} if inside else {"room": room, "data": data}

    await bob.request("join", room)
    await bob.request("broadcast", room, 1)
    answer = await ask(ann, {"type": "join-room", "id": 1, **named()})
    assert answer["type"] == "ack"
    data = answer["data"]
    assert data.keys() == {"success", "room", "members", "recentMessages", "position"}
    assert (data["success"], data["room"]) == (True, room)
    assert [member["userId"] for member in data["members"]] == ["ann", "bob"]
    assert data["recentMessages"] == [{"type": "broadcast", "offset": 2, "data": 1}]
    left = await ask(ann, {"type": "leave-room", "id": 2, **named()})
    assert left == {"type": "ack", "id": 2, "data": {"success": True, "room": room}}
    await bob.expect("user-left", data={"userId": "ann"})
    await bob.request("broadcast", room, 2)
    answer = await ask(ann, {"type": "join-room", "id": 3, **named(since=data["position"])})
    assert answer["data"]["recovered"] is True
    assert answer["data"]["recentMessages"] == []
    assert (await ann.expect("broadcast"))["data"] == 2


async def test_broadcast(ann: NativeClient, bob: NativeClient, room: str) -> None:
    await ann.request("join", room)
    await bob.request("join", room)
    data = {"text": "héllo \u2028 \x00 😀", "n": [1.5, -0.0, None, True], "o": {"": {}}}
    ack = await ann.request("broadcast", room, data)
    assert ack["success"] is True
    for client in (ann, bob):
        heard = await client.expect("broadcast")
        assert heard == {
            "type": "broadcast",
            "room": room,
            "offset": ack["position"]["offset"],
            "data": data,
        }
    await ann.request("broadcast", None, {"roomId": room, "data": {"in": "side"}})
    assert (await bob.expect("broadcast"))["data"] == {"in": "side"}


async def test_events(ann: NativeClient, bob: NativeClient, room: str) -> None:
    await ann.request("join", room)
    await bob.request("join", room)
    assert await ann.request("tell", room, {"text": "hi"}) == {
        "blob": {"$bytes": ""},
        "size": 0,
        "offset": 3,
    }
    assert (await bob.expect("told"))["data"]["text"] == "hi"
    # The room named in the payload.
    await ann.request("tell", None, {"roomId": room, "text": "hi again"})
    assert (await bob.expect("told"))["data"]["text"] == "hi again"
    # An event of no room.
    assert await ann.request("echo", None, [1, {"a": None}]) == [1, {"a": None}]


NESTED = "[" * 65 + "]" * 65
REFUSED: list[tuple[str, str | bytes]] = [
    ("invalid_message", "{"),
    ("invalid_message", ""),
    ("invalid_message", "null"),
    ("invalid_message", "[]"),
    ("invalid_message", '"ping"'),
    ("invalid_message", "{}"),
    ("invalid_message", '{"type": 7}'),
    ("invalid_message", '{"type": null}'),
    ("invalid_message", '{"type": ""}'),
    ("invalid_message", '{"type": "a\\u0000b"}'),
    ("invalid_message", json.dumps({"type": "x" * 256})),
    ("invalid_message", '{"type": "ping", "id": {}}'),
    ("invalid_message", '{"type": "ping", "id": true}'),
    ("invalid_message", '{"type": "ping", "id": 1.5}'),
    ("invalid_message", json.dumps({"type": "ping", "id": "x" * 256})),
    ("invalid_message", '{"type": "join"}'),
    ("invalid_message", '{"type": "join", "room": 7}'),
    ("invalid_message", '{"type": "join", "room": ""}'),
    ("invalid_message", json.dumps({"type": "join", "room": "x" * 256})),
    ("invalid_message", '{"type": "join", "room": "r", "since": 7}'),
    ("invalid_message", '{"type": "join", "room": "r", "since": {"epoch": 1, "offset": "x"}}'),
    ("invalid_message", '{"type": "join-room", "data": 7}'),
    ("invalid_message", '{"type": "join-room", "data": {"roomId": 7}}'),
    ("invalid_message", '{"type": "join-room", "data": {"roomId": ""}}'),
    ("invalid_message", '{"type": "join-room"}'),
    ("invalid_message", '{"type": "leave"}'),
    ("invalid_message", '{"type": "leave-room"}'),
    ("invalid_message", '{"type": "broadcast"}'),
    ("invalid_message", '{"type": "history"}'),
    ("invalid_message", '{"type": "members"}'),
    ("invalid_message", '{"type": "tell", "data": {"text": "no room"}}'),
    ("invalid_message", '{"type": "refresh"}'),
    ("invalid_message", '{"type": "refresh", "data": {"token": 7}}'),
    ("invalid_message", f'{{"type": "echo", "data": {NESTED}}}'),
    ("invalid_message", f'{{"type": "echo", "data": {"[" * 5000}{"]" * 5000}}}'),
    ("invalid_message", f'{{"x": {"[" * 5000}'),
    ("invalid_message", '{"type": "echo", "data": NaN}'),
    ("invalid_message", '{"type": "echo", "data": 1e999}'),
    ("invalid_message", '{"type": "echo", "data": {"$bytes": "?"}}'),
    ("invalid_message", b"\xff\xfe"),
    ("invalid_message", b"\x80" * 50),
    ("not_in_room", '{"type": "leave", "room": "elsewhere"}'),
    ("not_in_room", '{"type": "leave-room", "data": {"roomId": "elsewhere"}}'),
    ("not_in_room", '{"type": "broadcast", "room": "elsewhere", "data": 1}'),
    ("not_in_room", '{"type": "history", "room": "elsewhere"}'),
    ("not_in_room", '{"type": "members", "room": "elsewhere"}'),
    ("not_in_room", '{"type": "tell", "room": "elsewhere", "data": {"text": "x"}}'),
    ("unknown_event", '{"type": "nothing"}'),
    ("unknown_event", '{"type": "nothing", "room": "elsewhere"}'),
    ("unknown_event", '{"type": "connected"}'),
    ("unknown_event", '{"type": "$disconnect", "data": {"code": 4410, "reason": ""}}'),
    ("unknown_room", '{"type": "join", "room": "no/such/room"}'),
    ("unknown_namespace", '{"type": "ping", "ns": "/other"}'),
    ("access_denied", '{"type": "join", "room": "closed/7"}'),
]
SENTENCES = {
    "invalid_message": "Invalid message format",
    "not_in_room": "Not in room",
    "unknown_event": "Unknown event: ",
    "unknown_room": "Unknown room: ",
    "unknown_namespace": "Invalid namespace",
    "access_denied": "Access denied",
}


async def test_what_is_wrong_gets_its_error_and_the_server_goes_on(
    ann: NativeClient, bob: NativeClient
) -> None:
    for code, frame in REFUSED:
        await ann.send_raw(frame)
        error = await ann.recv()
        assert error["type"] == "error", (frame, error)
        assert (error["code"], error["retry"]) == (code, False), (frame, error)
        assert error["error"].startswith(SENTENCES[code]), (frame, error)
        assert await ann.settle() == [], frame
    assert await bob.settle() == []
    assert await bob.request("echo", None, "still there") == "still there"


async def test_the_error_of_a_broken_message_names_its_id(ann: NativeClient) -> None:
    error = await ask(ann, {"type": 7, "id": "x"})
    assert (error["type"], error["code"]) == ("error", "invalid_message")
    error = await ask(ann, {"type": "tell", "id": 8, "room": "elsewhere"})
    assert error["code"] == "not_in_room"


async def test_a_payload_that_does_not_fit_its_annotation(ann: NativeClient, room: str) -> None:
    await ann.request("join", room)
    wrong: list[Any] = [None, 7, [], {}, {"text": 7}, {"text": "x", "blob": "not bytes"}]
    for data in wrong:
        with pytest.raises(NativeError) as caught:
            await ann.request("tell", room, data)
        assert caught.value.code == "invalid_message"
        assert caught.value.error.startswith("Invalid message format")
    assert [m["type"] for m in await ann.settle()] == []


async def test_a_handler_that_raises(
    ann: NativeClient, bob: NativeClient, room: str, caplog: pytest.LogCaptureFixture
) -> None:
    await ann.request("join", room)
    await bob.request("join", room)
    with pytest.raises(NativeError) as caught:
        await ann.request("boom", room)
    assert caught.value.message["code"] == "handler_error"
    assert caught.value.message["error"] == "Internal error"
    logged = [record for record in caplog.records if record.exc_info and "boom" in record.message]
    assert any("a bug in the app" in str(record.exc_info) for record in logged)
    # Still a member, and nobody else has heard of it.
    await ann.request("broadcast", room, 1)
    assert [m["type"] for m in await bob.settle() if m["type"] != "user-joined"] == ["broadcast"]


@pytest.mark.parametrize("binary", [False, True])
async def test_a_frame_that_is_too_large(
    ann: NativeClient, bob: NativeClient, room: str, binary: bool
) -> None:
    await bob.request("join", room)
    await ann.request("join", room)
    frame = json.dumps({"type": "broadcast", "room": room, "id": 1, "data": ""})
    fits = frame.replace('""', f'"{"x" * (1_000_000 - len(frame))}"')
    await ann.send_raw(fits.encode() if binary else fits)
    assert (await ann.expect("ack"))["id"] == 1
    assert len((await bob.expect("broadcast"))["data"]) == 1_000_000 - len(frame)
    over = fits + " "
    await ann.send_raw(over.encode() if binary else over)
    assert (await ann.closed())[0] == 1009
    assert [m["type"] for m in await bob.settle() if m["type"] == "broadcast"] == []


async def test_a_frame_is_measured_in_bytes(ann: NativeClient) -> None:
    await ann.send_raw(json.dumps({"type": "echo", "data": "é" * 500_000}, ensure_ascii=False))
    assert (await ann.closed())[0] == 1009


async def test_invalid_utf8_in_a_text_frame(ann: NativeClient, bob: NativeClient) -> None:
    ann.websocket.transport.write(text_frame(b'{"type":"\xff"}'))
    # uvicorn's wsproto cuts the connection without a close frame.
    assert (await ann.closed())[0] in (1006, 1007)
    assert await bob.request("echo", None, 1) == 1


async def test_ten_thousand_objects_in_a_frame(ann: NativeClient, bob: NativeClient) -> None:
    await ann.send_raw("\n".join(['{"type":"ping"}'] * 10_000))
    error = await ann.recv()
    assert (error["type"], error["code"]) == ("error", "invalid_message")
    assert await ann.settle() == []
    await ann.send_raw("\n" * 10_000)
    assert (await ann.recv())["code"] == "invalid_message"
    assert await bob.settle() == []


async def test_several_objects_in_a_frame(connect: Open, room: str) -> None:
    async with connect("ann", subprotocols=[SUBPROTOCOL]) as ann:
        joins = {"type": "join", "room": room, "id": 0}
        calls = [{"type": "echo", "id": number, "data": number} for number in range(1, 255)]
        await ann.send_together(joins, *calls, {"type": "nothing", "id": 255})
        came = [await ann.recv() for _ in range(256)]
        assert [message["id"] for message in came] == list(range(256))
        # One that is broken harms none of the others.
        await ann.send_raw('{"type":"echo","id":1}\n{oops\n\n{"type":"echo","id":2}\n')
        came = [await ann.recv() for _ in range(3)]
        assert [m.get("id", m["type"]) for m in came] == [1, "error", 2]


async def test_binary_frames_are_read_as_text(ann: NativeClient) -> None:
    await ann.send_raw(json.dumps({"type": "echo", "id": 1, "data": "é"}).encode())
    assert (await ann.recv()) == {"type": "ack", "id": 1, "data": "é"}


async def test_newlines_between_the_tokens_of_a_payload(connect: Open, room: str) -> None:
    """Newlines separate messages: those of a pretty-printed payload must not reach anyone."""
    async with (
        connect("ann", subprotocols=[]) as ann,
        connect("bob", subprotocols=[SUBPROTOCOL]) as bob,
        connect("eve", subprotocols=[]) as eve,
    ):
        for client in (ann, bob, eve):
            await client.request("join", room)
        data = {"text": "x", "a": [1, {"b": 2}], "forged": '\n{"type":"forged"}\n'}
        sent = [
            {"type": "broadcast", "room": room, "data": data},
            {"type": "broadcast", "data": {"roomId": room, "data": data}},
            {"type": "tell", "room": room, "data": data},
            {"type": "echo", "id": 1, "data": data},
        ]
        for message in sent:
            await ann.send_raw(json.dumps(message, indent=2).replace("\n", "\r\n"))
        assert (await ann.expect("ack"))["data"] == data
        for client in (bob, eve):
            for _ in range(2):
                assert (await client.expect("broadcast"))["data"] == data
            assert (await client.expect("told"))["data"]["text"] == "x"
            assert {m["type"] for m in await client.settle()} <= {"user-joined"}


async def test_bytes_survive(ann: NativeClient, bob: NativeClient, room: str) -> None:
    blob = {"$bytes": "AAEC/w=="}
    looks_like = {"$escaped": {"$bytes": "not bytes"}}
    data = {"a": [blob], "b": looks_like}
    position = (await bob.request("join", room))["position"]
    await ann.request("join", room)
    # A broadcast, live.
    await ann.request("broadcast", room, data)
    assert (await bob.expect("broadcast"))["data"] == data
    # With the room named inside, where the payload is taken apart.
    await ann.request("broadcast", None, {"roomId": room, "data": data})
    assert (await bob.expect("broadcast"))["data"] == data
    # Through a handler, as bytes, and back.
    answer = await ann.request("tell", room, {"text": "x", "blob": blob})
    assert (answer["blob"], answer["size"]) == (blob, 4)
    assert (await bob.expect("told"))["data"]["blob"] == blob
    assert await ann.request("echo", None, data) == data
    # From history, by all three ways.
    page = await ann.request("history", room)
    assert [item["data"] for item in page["messages"]][:2] == [data, data]
    again = await ann.request("join", room)
    assert [item["data"] for item in again["recentMessages"]][:2] == [data, data]
    await bob.request("leave", room)
    assert (await bob.request("join", room, since=position))["recovered"] is True
    assert (await bob.expect("broadcast"))["data"] == data


async def test_a_broadcast_that_nobody_could_read(
    ann: NativeClient, bob: NativeClient, room: str
) -> None:
    await ann.request("join", room)
    await bob.request("join", room)
    for data in ('{"$bytes":"?"}', '[{"\\u0024bytes":"AAE"}]', '"\\ud800"', '{"a":{"$bytes":"="}}'):
        await ann.send_raw(f'{{"type":"broadcast","room":"{room}","id":1,"data":{data}}}')
        assert (await ann.expect("error"))["code"] == "invalid_message", data
    assert [m for m in await bob.settle() if m["type"] == "broadcast"] == []
    assert (await bob.request("history", room))["messages"] == []


async def test_history_is_paged_both_ways(ann: NativeClient, room: str) -> None:
    first = (await ann.request("join", room))["position"]["offset"]
    for number in range(5):
        await ann.request("broadcast", room, number)

    async def page(**data: Any) -> tuple[list[int], bool]:
        found = await ann.request("history", room, data)
        assert found["position"]["offset"] == first + 5
        assert [item["offset"] for item in found["messages"]] == [
            first + 1 + item["data"] for item in found["messages"]
        ]
        return [item["data"] for item in found["messages"]], found["more"]

    assert await page() == ([0, 1, 2, 3, 4], False)
    assert await page(limit=2) == ([3, 4], True)
    assert await page(limit=2, before=first + 4) == ([1, 2], True)
    assert await page(limit=2, before=first + 2) == ([0], False)
    assert await page(limit=2, after=first) == ([0, 1], True)
    assert await page(limit=2, after=first + 3) == ([3, 4], False)
    assert await page(after=first + 5) == ([], False)
    assert await page(after=10**15) == ([], False)
    assert await page(before=-5) == ([], False)
    assert (await page(limit=-5))[0] == [4]
    assert len((await page(limit=10**9))[0]) == 5
    with pytest.raises(NativeError, match="invalid_message"):
        await ann.request("history", room, {"before": "x"})


async def test_members(ann: NativeClient, bob: NativeClient, connect: Open, room: str) -> None:
    await ann.request("join", room)
    await bob.request("join", room)
    async with connect("bob") as second:
        await second.request("join", room)
        page = await ann.request("members", room, {"limit": 1})
        assert ([m["userId"] for m in page["members"]], page["count"]) == (["ann"], 2)
        page = await ann.request("members", room, {"cursor": page["cursor"], "limit": 1})
        assert [m["userId"] for m in page["members"]] == ["bob"]
        assert page["cursor"] == ""
    # One of two devices has gone: bob has not.
    await second.close()
    await bob.request("leave", room)
    await ann.expect("user-left", data={"userId": "bob"})
    assert "user-left" not in [m["type"] for m in await ann.settle()]


async def test_what_was_missed_comes_in_order(
    ann: NativeClient, bob: NativeClient, room: str
) -> None:
    await ann.request("join", room)
    position = (await bob.request("join", room))["position"]
    await bob.request("leave", room)
    for number in range(20):
        await ann.request("broadcast", room, number)
    await bob.settle()
    joined = await bob.request("join", room, since=position)
    assert (joined["recovered"], joined["recentMessages"]) == (True, [])
    came = await bob.settle()
    assert [m["data"] for m in came if m["type"] == "broadcast"] == list(range(20))
    offsets = [m["offset"] for m in came]
    assert offsets == sorted(offsets)
    assert offsets[0] > position["offset"]


async def test_a_position_of_elsewhere(ann: NativeClient, room: str) -> None:
    epoch = (await ann.request("join", room))["position"]["epoch"]
    await ann.request("broadcast", room, 1)
    await ann.settle()
    for since in (
        {"epoch": "other", "offset": 1},
        {"epoch": epoch, "offset": 10_000},
        {"epoch": epoch, "offset": -1},
        {"epoch": "", "offset": 0},
    ):
        joined = await ann.request("join", room, since=since)
        assert joined["recovered"] is False, since
        assert [item["data"] for item in joined["recentMessages"]] == [1]
        assert joined["position"] == {"epoch": epoch, "offset": 2}
        assert await ann.settle() == []


async def test_the_same_message_id_has_one_effect(
    ann: NativeClient, bob: NativeClient, server: LiveServer
) -> None:
    room = f"chat/{uuid4().hex[:8]}"
    await ann.request("join", room)
    await bob.request("join", room)
    said = {"content": "hello"}
    first = await ann.request("message", room, said, messageId="m1")
    again = await ann.request("message", room, said, messageId="m1")
    assert first == again
    assert first["success"] is True
    other = await bob.request("message", room, said, messageId="m1")
    assert other["messageId"] != first["messageId"]
    for client in (ann, bob):
        came = [m["data"]["id"] for m in await client.settle() if m["type"] == "new-message"]
        assert came == [first["messageId"], other["messageId"]]
    # A broadcast, likewise; and what a handler publishes.
    other_room = f"room-{uuid4().hex[:8]}"
    for kind, data in (("broadcast", 1), ("tell", {"text": "x"})):
        await ann.request("join", other_room)
        await ann.settle()
        first = await ann.request(kind, other_room, data, messageId="m2")
        again = await ann.request(kind, other_room, data, messageId="m2")
        assert first == again
        assert len(await ann.settle()) == 1


async def test_commands_are_handled_in_their_order(ann: NativeClient, room: str) -> None:
    await ann.send(
        {"type": "join", "id": 1, "room": room},
        {"type": "slow", "id": 2, "room": room, "data": 0.05},
        {"type": "echo", "id": 3},
        {"type": "tell", "id": 4, "room": room, "data": {"text": "x"}},
        {"type": "leave", "id": 5, "room": room},
        {"type": "tell", "id": 6, "room": room, "data": {"text": "x"}},
    )
    came: list[Message] = []
    while not came or came[-1].get("id") != 6:
        came.append(await ann.recv())
    assert [m.get("id", m["type"]) for m in came if m["type"] != "told"] == [1, 2, 3, 4, 5, 6]
    assert came[-1]["code"] == "not_in_room"


async def test_a_handler_asks_its_own_client(ann: NativeClient, room: str) -> None:
    """The connection's reader runs the handler, and yet reads the answer it waits for."""
    await ann.request("join", room)
    await ann.send(
        {"type": "question", "id": 1, "room": room, "data": {"$bytes": "AAE="}},
        {"type": "echo", "id": 2, "data": "meanwhile"},
    )
    asked = await ann.expect("question")
    assert asked["data"] == {"$bytes": "AAE="}
    assert asked["room"] == room
    await ann.send({"type": "ack", "id": "wrong", "data": "nobody waits for this"})
    await ann.send({"type": "ack", "id": asked["id"], "data": {"$bytes": "AAE="}})
    first, second = await ann.recv(), await ann.recv()
    assert first == {"type": "ack", "id": 1, "data": {"answer": {"$bytes": "AAE="}}}
    assert second == {"type": "ack", "id": 2, "data": "meanwhile"}
    # The same answer again is nobody's.
    await ann.send({"type": "ack", "id": asked["id"], "data": 1})
    assert await ann.settle() == []


async def test_publishing_from_an_endpoint(
    ann: NativeClient, server: LiveServer, room: str
) -> None:
    await ann.request("join", room)
    answer = await post(server.http("/publish"), {"room": room, "data": {"n": 1}})
    assert await ann.expect("news") == {
        "type": "news",
        "room": room,
        "offset": answer["offset"],
        "data": {"n": 1},
    }


async def test_an_endpoint_reaches_a_user_a_session_all_and_the_others(
    ann: NativeClient, bob: NativeClient, connect: Open, server: LiveServer, room: str
) -> None:
    async with connect("ann") as phone:
        clients = {"ann": ann, "phone": phone, "bob": bob}
        for client in clients.values():
            await client.request("join", room)
        session = ann.connected["sessionId"]

        async def who(path: str, **said: Any) -> set[str]:
            """Who hears of what is posted."""
            data = uuid4().hex
            await post(server.http(path), {**said, "data": data})
            heard = set()
            for name, client in clients.items():
                if data in [m["data"] for m in await client.settle() if m["type"] == "news"]:
                    heard.add(name)
            return heard

        assert await who("/publish", room=room) == {"ann", "phone", "bob"}
        assert await who("/publish", room=room, exclude=session) == {"phone", "bob"}
        assert await who("/tell", to={"user": "ann"}) == {"ann", "phone"}
        assert await who("/tell", to={"user": "nobody"}) == set()
        assert await who("/tell", to={"session": session}) == {"ann"}
        assert await who("/tell", to={"others": session}) == {"phone", "bob"}
        assert await who("/tell", to="all") == {"ann", "phone", "bob"}
