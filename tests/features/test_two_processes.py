"""People on two processes of one server, which share nothing but a Redis."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from starlette_realtime import Chat, Member, Options, Realtime, Typing
from starlette_realtime.features.direct import DirectMessages
from starlette_realtime.features.status import Presence
from tests.features.helpers import Names, of, refusal
from tests.sessions.helpers import gone, side_by_side, threadsafe
from tests.support.server import LiveServer
from tests.support.wsclient import Message, NativeClient

pytestmark = pytest.mark.anyio


async def moderates(member: Member, message: Any) -> bool:
    return member.user_id == "mod"


def build(url: str) -> Realtime:
    options = Options(
        presence_grace=20.0, message_rate=0.0, user_rate=0.0, join_rate=0.0, shutdown_timeout=1.0
    )
    realtime = Realtime(url, auth=Names(), options=options)
    realtime.add(Presence(interval=0.0))
    realtime.add(DirectMessages())
    realtime.room("chat/{id}", features=[Chat(moderator=moderates), Typing(timeout=1.0)])
    realtime.room("crowd/{id}", presence="counts")
    return realtime


class House:
    """Processes "A" and "B"."""

    def __init__(self, url: str, serve: Callable[..., LiveServer]) -> None:
        self.processes = {name: build(url) for name in "AB"}
        self.server = serve(side_by_side(list(self.processes.values())))

    def enter(
        self, process: str, name: str, **hello: Any
    ) -> AbstractAsyncContextManager[NativeClient]:
        url = self.server.ws(f"/{'AB'.index(process)}/ws")
        return NativeClient.open(url, hello={"token": name, **hello})


@pytest.fixture
def house(redis_url: str, serve: Callable[..., LiveServer]) -> House:
    return House(redis_url, serve)


async def watch(client: NativeClient, name: str) -> str:
    reply = await client.request("watch-presence", data={"userIds": [name]})
    status: str = reply["users"][0]["status"]
    return status


async def about_ann(client: NativeClient, word: str) -> list[Message]:
    """What is said of ann in chat/1 before a word of the client's own."""
    await client.request("broadcast", "chat/1", word)
    await client.expect("broadcast", room="chat/1", data=word)
    heard = [found for found in await client.settle() if isinstance(found.get("data"), dict)]
    return [found for found in heard if found["data"].get("userId") == "ann"]


async def test_the_first_device_comes_and_the_last_one_goes_wherever_they_are(
    house: House,
) -> None:
    async with house.enter("B", "bob") as bob, house.enter("A", "cid") as cid:
        for client in (bob, cid):
            assert await watch(client, "ann") == "offline"
            await client.request("join", "chat/1")
        async with house.enter("A", "ann") as phone:
            await phone.request("join", "chat/1")
            async with house.enter("B", "ann") as desk:
                await desk.request("join", "chat/1")
                # Seen everywhere, and the same on all devices.
                await desk.request("update-status", data={"status": "busy"})
                for client in (bob, cid):
                    for status, room in (("online", None), ("busy", None), ("busy", "chat/1")):
                        told = {"userId": "ann", "status": status}
                        message = await client.expect("presence-update", data=told)
                        assert message.get("room") == room or room == "chat/1"
                    await client.expect("user-joined", data={"userId": "ann"})
                    members = (await client.request("members", "chat/1"))["members"]
                    assert {m["userId"]: m["status"] for m in members}["ann"] == "busy"
                await phone.close()
                await gone(house.processes["A"], 1)
                # Nobody has seen it go, as long as another device is there.
                for client in (bob, cid):
                    assert not await about_ann(client, "still there")
        for client in (bob, cid):
            await client.expect("user-left", data={"userId": "ann", "roomId": "chat/1"})
            await client.expect("presence-update", data={"userId": "ann", "status": "offline"})
            assert not await about_ann(client, "gone")


async def test_a_list_of_members_is_paged_and_counted_over_both(house: House) -> None:
    async with (
        house.enter("A", "ann") as ann,
        house.enter("B", "bob") as bob,
        house.enter("B", "bob") as desk,
        house.enter("A", "cid") as cid,
    ):
        for client in (ann, bob, desk, cid):
            await client.request("join", "chat/1")
            await client.request("join", "crowd/1")
        joined = await ann.request("join", "crowd/1")
        assert (joined["members"], joined["count"]) == ([], 3)
        found, cursor = [], ""
        for _ in range(3):
            page = await ann.request("members", "chat/1", {"limit": 1, "cursor": cursor})
            assert page["count"] == 3
            found += [member["userId"] for member in page["members"]]
            cursor = page["cursor"]
        assert (found, cursor) == (["ann", "bob", "cid"], "")


async def test_two_devices_type_as_one_person(house: House) -> None:
    async with (
        house.enter("A", "ann") as phone,
        house.enter("B", "ann") as desk,
        house.enter("A", "bob") as bob,
        house.enter("B", "cid") as cid,
    ):
        for client in (phone, desk, bob, cid):
            await client.request("join", "chat/1")
        await phone.request("typing", "chat/1")
        await desk.expect("user-typing", data={"userId": "ann"})
        await desk.request("typing", "chat/1")
        await phone.request("stop-typing", "chat/1")
        for client in (bob, cid):
            about = {"userId": "ann", "user": {"name": "Ann"}, "roomId": "chat/1"}
            assert (await client.expect("user-typing"))["data"] == about
            # The other device falls silent a second later: that is when the user has stopped.
            over = await client.expect("user-stopped-typing")
            assert over["data"] == {"userId": "ann", "roomId": "chat/1"}
            seen = of(await about_ann(client, "later"), "user-typing", "user-stopped-typing")
            assert not seen
        # The device that typed is not told of itself.
        assert not of(await about_ann(desk, "later"), "user-stopped-typing")


async def test_a_user_is_sent_away_from_all_of_them(house: House) -> None:
    async with (
        house.enter("A", "bob") as bob,
        house.enter("A", "ann") as phone,
        house.enter("B", "ann") as desk,
    ):
        for client in (bob, phone, desk):
            await client.request("join", "chat/1")
        one = house.processes["A"]
        await threadsafe(one, lambda: one.disconnect_user("ann", reason="banned"))
        assert await phone.closed() == (4403, "banned")
        assert await desk.closed() == (4403, "banned")
        await bob.expect("user-left", data={"userId": "ann", "roomId": "chat/1"})
        assert not of(await about_ann(bob, "later"), "user-left")
        # Its sessions have ended, on the other process too.
        for client in (phone, desk):
            resume = client.connected["resume"]
            async with house.enter("B", "ann", resume=resume) as again:
                assert again.connected["resumed"] is False


async def test_a_session_goes_on_elsewhere_for_its_user_alone(house: House) -> None:
    async with house.enter("A", "bob") as bob:
        joined = await bob.request("join", "chat/1")
        async with house.enter("A", "ann") as ann:
            first = ann.connected
            rooms = {"chat/1": (await ann.request("join", "chat/1"))["position"]}
            await ann.request("update-status", data={"status": "out to lunch"})
            await bob.expect("presence-update", data={"status": "out to lunch"})
            await bob.expect("user-joined", data={"userId": "ann"})
            ann.vanish()
        await bob.request("message", "chat/1", {"content": "missed"})
        async with house.enter("B", "eve", resume=first["resume"]) as eve:
            assert eve.connected["resumed"] is False
            assert eve.connected["sessionId"] != first["sessionId"]
        async with house.enter("B", "ann", resume=first["resume"], rooms=rooms) as ann:
            assert ann.connected["resumed"] is True
            assert ann.connected["sessionId"] == first["sessionId"]
            back = await ann.expect("joined")
            assert back["recovered"] is True
            statuses = {member["userId"]: member["status"] for member in back["members"]}
            assert statuses["ann"] == "out to lunch"
            await ann.expect("new-message", data={"content": "missed"})
            assert joined["position"]["epoch"] == back["position"]["epoch"]
            # A second one replaces it, wherever it is.
            again = ann.connected["resume"]
            async with house.enter("A", "ann", resume=again) as newer:
                assert newer.connected["sessionId"] == first["sessionId"]
                assert (await ann.closed())[0] == 4409
        assert not of(await about_ann(bob, "later"), "user-joined")


async def test_a_message_is_changed_from_another_process(house: House) -> None:
    async with (
        house.enter("A", "ann") as phone,
        house.enter("B", "ann") as desk,
        house.enter("B", "mod") as mod,
        house.enter("B", "eve") as eve,
    ):
        for client in (phone, desk, mod, eve):
            await client.request("join", "chat/1")
        id = (await phone.request("message", "chat/1", {"content": "helo"}))["messageId"]
        other = (await phone.request("message", "chat/1", {"content": "spam"}))["messageId"]
        error = await refusal(eve, "edit-message", "chat/1", {"messageId": id, "content": "x"})
        assert error.code == "access_denied"
        await desk.request("edit-message", "chat/1", {"messageId": id, "content": "hello"})
        await mod.request("delete-message", "chat/1", {"messageId": other})
        await phone.expect("message-edited", data={"id": id, "content": "hello"})
        await phone.expect("message-deleted", data={"id": other, "userId": "mod"})
        async with house.enter("A", "new") as new:
            recent = (await new.request("join", "chat/1"))["recentMessages"]
            shown = [(m["content"], m["edited"], m["deleted"]) for m in recent]
            assert shown == [("hello", True, False), (None, False, True)]
