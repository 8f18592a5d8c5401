"""Presence beyond rooms, on a real server."""

from __future__ import annotations

from typing import Any

import pytest

from starlette_realtime import ConfigurationError, Realtime
from starlette_realtime.core.session import Session
from starlette_realtime.features.status import Presence
from tests.features.helpers import House, Serve, make, of, refusal
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio


def build(presence: Presence | None = None, **options: Any) -> Realtime:
    realtime = make(**options)
    realtime.add(presence or Presence(interval=0.0))
    realtime.room("chat/{id}")
    realtime.room("crowd/{id}", presence="counts")
    realtime.room("mute/{id}", presence="none")
    return realtime


async def watch(client: NativeClient, *names: str) -> dict[str, str]:
    reply = await client.request("watch-presence", data={"userIds": list(names)})
    return {user["userId"]: user["status"] for user in reply["users"]}


async def shown(client: NativeClient, *names: str) -> dict[str, str]:
    reply = await client.request("get-presence", data={"userIds": list(names)})
    return {user["userId"]: user["status"] for user in reply["users"]}


async def update(client: NativeClient, status: str) -> str:
    reply = await client.request("update-status", data={"status": status})
    assert reply["success"] is True
    said: str = reply["status"]
    return said


async def test_watchers_see_the_first_device_come_and_the_last_one_go(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("bob") as bob:
        assert await watch(bob, "ann", "bob") == {"ann": "offline", "bob": "online"}
        async with house.enter("ann") as phone:
            told = (await bob.expect("presence-update"))["data"]
            assert (told["userId"], told["status"]) == ("ann", "online")
            assert abs(told["timestamp"] - phone.connected["serverTime"]) < 5000
            async with house.enter("ann") as desk:
                await desk.settle()
                assert await shown(bob, "ann") == {"ann": "online"}
                await phone.close()
                await desk.settle()
            told = (await bob.expect("presence-update"))["data"]
            assert (told["userId"], told["status"]) == ("ann", "offline")
            later = (await house_time(bob)) - told["timestamp"]
            assert -5000 < later < 5000
        assert not of(await bob.settle(), "presence-update")


async def house_time(client: NativeClient) -> int:
    await client.send({"type": "ping"})
    timestamp: int = (await client.expect("pong"))["timestamp"]
    return timestamp


async def test_a_quick_reconnect_is_not_seen_a_slow_one_is(serve: Serve) -> None:
    house = House(serve, build(presence_grace=0.5))
    async with house.enter("bob") as bob:
        await watch(bob, "ann")
        async with house.enter("ann") as ann:
            await bob.expect("presence-update", data={"status": "online"})
            ann.vanish()
        async with house.enter("ann") as ann:
            # Longer than the old connection's grace.
            await bob.request("join", "chat/1")
            async with house.enter("zoe") as zoe:
                await watch(bob, "zoe")
                zoe.vanish()
                await bob.expect("presence-update", data={"userId": "zoe", "status": "offline"})
            assert await shown(bob, "ann") == {"ann": "online"}
            assert not of(await bob.settle(), "presence-update")
            ann.vanish()
        await bob.expect("presence-update", data={"userId": "ann", "status": "offline"})


async def test_a_change_of_status_reaches_rooms_and_watchers_and_lists(serve: Serve) -> None:
    house = House(serve, build())
    async with (
        house.enter("ann") as ann,
        house.enter("bob") as bob,
        house.enter("cid") as cid,
        house.enter("eve") as eve,
    ):
        for client in (ann, bob):
            await client.request("join", "chat/1")
        await watch(cid, "ann")
        assert await update(ann, "away") == "away"
        for client, room in ((bob, "chat/1"), (ann, "chat/1"), (cid, None)):
            told = await client.expect("presence-update")
            assert told.get("room") == room
            assert told["data"]["userId"] == "ann"
            assert told["data"]["status"] == "away"
            assert "offset" not in told
        members_ = (await eve.request("join", "chat/1"))["members"]
        assert {m["userId"]: m["status"] for m in members_} == {
            "ann": "away",
            "bob": "online",
            "eve": "online",
        }
        assert await shown(eve, "ann", "bob", "nobody") == {
            "ann": "away",
            "bob": "online",
            "nobody": "offline",
        }
        # Whoever neither shares a room nor watches is not told.
        assert not of(await eve.settle(), "presence-update")
        # What it is already is not news.
        await update(ann, "away")
        await ann.settle()
        assert not of(await cid.settle(), "presence-update")
        assert await update(ann, "  out to lunch ") == "out to lunch"
        await cid.expect("presence-update", data={"status": "out to lunch"})


async def test_a_user_has_one_status_on_all_devices(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann") as phone, house.enter("bob") as bob:
        await bob.request("join", "chat/1")
        await watch(bob, "ann")
        await update(phone, "busy")
        await bob.expect("presence-update", data={"status": "busy"})
        async with house.enter("ann") as desk:
            await desk.request("join", "chat/1")
            await phone.request("join", "chat/1")
            assert await shown(bob, "ann") == {"ann": "busy"}
            await update(desk, "away")
            # Both devices are in the room; it is told once, and the watcher once.
            seen = [await bob.expect("presence-update", data={"status": "away"}) for _ in "12"]
            assert sorted(message.get("room", "") for message in seen) == ["", "chat/1"]
            assert not of(await bob.settle(), "presence-update")
        # The status outlives the device it was set on.
        assert await shown(bob, "ann") == {"ann": "away"}
        members = (await bob.request("members", "chat/1"))["members"]
        assert {m["userId"]: m["status"] for m in members} == {"ann": "away", "bob": "online"}


async def test_the_invisible_come_and_go_unseen(serve: Serve) -> None:
    house = House(serve, build(presence_grace=0.0))
    async with house.enter("bob") as bob:
        await watch(bob, "ann")
        async with house.enter("ann") as ann:
            await bob.expect("presence-update", data={"status": "online"})
            assert await update(ann, "invisible") == "offline"
            await bob.expect("presence-update", data={"status": "offline"})
            assert await shown(bob, "ann") == {"ann": "offline"}
            async with house.enter("ann") as desk:
                # A further device is as invisible as the first.
                assert await shown(desk, "ann") == {"ann": "offline"}
                await desk.request("join", "chat/1")
                members = (await bob.request("join", "chat/1"))["members"]
                assert {m["userId"]: m["status"] for m in members}["ann"] == "offline"
            await bob.expect("user-left")
            assert not of(await bob.settle(), "presence-update")
        # Gone for good: nobody is told a second time. Then it comes back, as online.
        async with house.enter("ann"):
            told = await bob.expect("presence-update")
            assert told["data"]["status"] == "online"


async def test_the_invisible_show_themselves_again(serve: Serve) -> None:
    house = House(serve, build(presence_grace=0.0))
    async with house.enter("bob") as bob:
        await watch(bob, "ann")
        async with house.enter("ann") as ann:
            await update(ann, "invisible")
            await update(ann, "online")
            for status in ("online", "offline", "online"):
                assert (await bob.expect("presence-update"))["data"]["status"] == status
            assert await shown(bob, "ann") == {"ann": "online"}
        assert (await bob.expect("presence-update"))["data"]["status"] == "offline"


async def test_a_status_survives_a_resumed_session(serve: Serve) -> None:
    house = House(serve, build(presence_grace=0.0))
    async with house.enter("bob") as bob:
        async with house.enter("ann") as ann:
            await update(ann, "busy")
            resume = ann.connected["resume"]
            ann.vanish()
        await watch(bob, "ann")
        hello = {"token": "ann", "resume": resume}
        async with NativeClient.open(house.server.ws("/realtime/ws"), hello=hello) as ann:
            assert ann.connected["resumed"] is True
            assert await shown(bob, "ann") == {"ann": "busy"}


async def test_quick_changes_are_put_together(serve: Serve) -> None:
    house = House(serve, build(Presence(interval=0.4)))
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        await watch(bob, "ann")
        for number in range(30):
            await update(ann, f"mood {number}")
        await bob.expect("presence-update", data={"status": "mood 29"})
        first = of(list(bob.backlog), "presence-update")
        assert [message["data"]["status"] for message in first] == ["mood 0"]
        assert await shown(bob, "ann") == {"ann": "mood 29"}


async def test_large_rooms_are_not_told(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        for room in ("crowd/1", "mute/1"):
            await ann.request("join", room)
            await bob.request("join", room)
        await update(ann, "away")
        assert await shown(bob, "ann") == {"ann": "away"}
        assert not of(await bob.settle(), "presence-update")


async def test_everyone_may_be_told(serve: Serve) -> None:
    house = House(serve, build(Presence(everyone=True, interval=0.0), presence_grace=0.0))
    async with house.enter("bob") as bob, house.enter() as nobody:
        async with house.enter("ann") as ann:
            for client in (bob, nobody):
                await client.expect("presence-update", data={"userId": "ann", "status": "online"})
            await update(ann, "away")
            for client in (bob, nobody):
                await client.expect("presence-update", data={"userId": "ann", "status": "away"})
            assert await watch(bob, "ann") == {"ann": "away"}
        for client in (bob, nobody):
            await client.expect("presence-update", data={"userId": "ann", "status": "offline"})
            rest = of(await client.settle(), "presence-update")
            assert not [message for message in rest if message["data"]["userId"] == "ann"]


async def test_a_hook_decides_who_may_see_whom(serve: Serve) -> None:
    async def friends(session: Session, user_id: str) -> bool:
        return (session.user_id, user_id) == ("bob", "ann")

    house = House(serve, build(Presence(may_see=friends)))
    async with house.enter("ann") as ann, house.enter("bob") as bob, house.enter("eve") as eve:
        assert await watch(bob, "ann", "eve") == {"ann": "online", "eve": "offline"}
        assert await watch(eve, "ann", "eve") == {"ann": "offline", "eve": "online"}
        assert await shown(eve, "ann") == {"ann": "offline"}
        await update(ann, "away")
        await bob.expect("presence-update", data={"status": "away"})
        assert not of(await eve.settle(), "presence-update")


async def test_watching_ends_when_it_is_told_to(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        await watch(bob, "ann", "bob")
        await bob.request("unwatch-presence", data={"userIds": ["ann", "nobody"]})
        await update(ann, "away")
        assert await shown(bob, "ann") == {"ann": "away"}
        assert not of(await bob.settle(), "presence-update")


async def test_watching_is_bounded(serve: Serve) -> None:
    house = House(serve, build(Presence(max_watched=3)))
    async with house.enter("ann") as ann:
        await watch(ann, "a", "b")
        error = await refusal(ann, "watch-presence", data={"userIds": ["c", "d"]})
        assert error.code == "limit_exceeded"
        await watch(ann, "b", "c")
        await ann.request("unwatch-presence", data={"userIds": ["a", "b"]})
        await watch(ann, "d", "e")


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("update-status", {"status": ""}),
        ("update-status", {"status": "  "}),
        ("update-status", {"status": "x" * 101}),
        ("update-status", {"status": "a\nb"}),
        ("update-status", {"status": 7}),
        ("update-status", {}),
        ("get-presence", {"userIds": ["x"] * 101}),
        ("get-presence", {"userIds": [""]}),
        ("get-presence", {"userIds": ["x" * 256]}),
        ("watch-presence", {"userIds": "ann"}),
        ("watch-presence", {}),
    ],
)
async def test_malformed(serve: Serve, event: str, data: object) -> None:
    house = House(serve, build())
    async with house.enter("ann") as ann:
        assert (await refusal(ann, event, data=data)).code == "invalid_message"


async def test_the_anonymous_neither_have_a_status_nor_see_one(serve: Serve) -> None:
    house = House(serve, build())
    async with house.enter() as nobody:
        for event, data in (
            ("update-status", {"status": "away"}),
            ("get-presence", {"userIds": ["ann"]}),
            ("watch-presence", {"userIds": ["ann"]}),
        ):
            assert (await refusal(nobody, event, data=data)).code == "access_denied"


def test_presence_is_no_rooms_feature() -> None:
    with pytest.raises(ConfigurationError, match=r"realtime\.add\(Presence"):
        make().room("chat/{id}", features=[Presence()])
