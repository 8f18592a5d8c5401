"""A session outlives its connection: resumed, it is the same one for its app and its rooms."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from starlette_realtime import Member, Realtime, Room, Session
from starlette_realtime.core import lobby
from starlette_realtime.presence.memory import MemoryPresence
from tests.sessions.helpers import (
    app_of,
    client,
    engine,
    gone,
    make,
    nothing_left,
    of_user,
    runtime,
    sessions,
    threadsafe,
    until,
)
from tests.support.server import FAST, LiveServer
from tests.support.wsclient import Message, NativeClient

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]


class Chat:
    """A server with a room type that counts its hooks."""

    def __init__(self, **options: Any) -> None:
        self.realtime = make(**options)
        self.joined: list[str | None] = []
        self.left: list[str | None] = []
        room = self.realtime.room("chat/{id}")

        @room.on_join
        async def on_join(room: Room, member: Member) -> None:
            self.joined.append(member.user_id)

        @room.on_leave
        async def on_leave(room: Room, member: Member) -> None:
            self.left.append(member.user_id)

        @self.realtime.event("remember")
        async def remember(session: Session, data: str) -> str | None:
            before: str | None = session.data.get("what")
            session.data["what"] = data
            return before


LONG = 20.0
"""A grace period that no test outlasts."""


def is_settled(realtime: Realtime, user_id: str) -> bool:
    """Whether no grace period is running for a user who is in rooms."""
    session = of_user(realtime, user_id)
    presence = runtime(realtime).presence
    assert isinstance(presence, MemoryPresence) and session.memberships
    leases = [presence._rooms[m.channel.name] for m in session.memberships.values()]
    soon = time.monotonic() + LONG + 1
    return not session.lingering and all(room.sessions[session.id].until > soon for room in leases)


async def say(who: NativeClient, text: str, room: str = "chat/1") -> None:
    await who.request("broadcast", room, text)


def texts(messages: list[Message]) -> list[Any]:
    return [message["data"] for message in messages if message["type"] == "broadcast"]


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST, "wsproto"])
async def test_the_same_session_with_its_rooms_and_all_that_was_missed(
    serve: Serve, ws: str
) -> None:
    chat = Chat(presence_grace=LONG)
    server = serve(app_of(chat.realtime), ws=ws)
    async with client(server, "bob") as bob:
        await bob.request("join", "chat/1")
        await bob.request("join", "chat/2")
        async with client(server, "ann") as ann:
            first = ann.connected
            assert first["resumed"] is False and first["resume"]
            joined = await ann.request("join", "chat/1")
            await ann.request("join", "chat/2")
            assert await ann.request("remember", data="tea") is None
            await say(bob, "before")
            position = {**joined["position"]}
            position["offset"] = (await ann.expect("broadcast"))["offset"]
            await bob.settle()
            ann.vanish()
        await gone(chat.realtime, 1)
        for number in range(20):
            await say(bob, f"missed {number}")
        rooms = {"chat/1": position, "chat/2": None}
        async with client(server, "ann", resume=first, rooms=rooms) as ann:
            again = ann.connected
            assert again["resumed"] is True
            assert again["sessionId"] == first["sessionId"]
            assert again["clientId"] != first["clientId"]
            assert again["userId"] == "ann"
            back = await ann.expect("joined", roomId="chat/1")
            assert back["recovered"] is True and back["recentMessages"] == []
            assert {m["userId"] for m in back["members"]} == {"ann", "bob"}
            await ann.expect("joined", roomId="chat/2")
            await say(bob, "live")
            await ann.expect("broadcast", data="live", room="chat/1")
            missed = [m for m in await ann.settle() if m["type"] == "broadcast"]
            assert texts(missed) == [f"missed {number}" for number in range(20)]
            assert await ann.request("remember", data="coffee") == "tea"
            # No one else has seen anything of it, nor will when the grace period is over.
            assert is_settled(chat.realtime, "ann")
            seen = await bob.settle()
            assert [m for m in seen if m["type"] in ("user-left", "user-joined")] == []
            assert (chat.joined.count("ann"), chat.left) == (2, [])


async def test_missed_messages_come_in_order_once_and_before_newer_ones(serve: Serve) -> None:
    chat = Chat()
    server = serve(app_of(chat.realtime))
    async with client(server, "bob") as bob:
        await bob.request("join", "chat/1")
        async with client(server, "ann") as ann:
            first = ann.connected
            position = (await ann.request("join", "chat/1"))["position"]
            ann.vanish()
        await gone(chat.realtime, 1)
        sending = asyncio.create_task(flood(bob, 200))
        async with client(server, "ann", resume=first, rooms={"chat/1": position}) as ann:
            await sending
            got = await collect(ann, 200)
            assert got == list(range(200))


async def flood(who: NativeClient, number: int) -> None:
    for n in range(number):
        await who.send({"type": "broadcast", "room": "chat/1", "data": n})
        if n % 10 == 9:
            await asyncio.sleep(0.001)


async def collect(who: NativeClient, number: int) -> list[Any]:
    await who.read_until(
        lambda: sum(m["type"] == "broadcast" for m in who.backlog) >= number, "all broadcasts"
    )
    return texts(list(who.backlog))


async def test_hooks_are_not_called_for_a_session_that_comes_back_in_time(serve: Serve) -> None:
    chat = Chat(presence_grace=LONG)
    server = serve(app_of(chat.realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        await ann.request("join", "chat/1")
        ann.vanish()
    await gone(chat.realtime)
    async with client(server, "ann", resume=first, rooms={"chat/1": None}) as ann:
        await ann.expect("joined")
        await ann.settle()
        assert (chat.joined, chat.left) == (["ann"], [])
        await ann.request("leave", "chat/1")
        assert chat.left == ["ann"]


async def test_the_status_comes_back(serve: Serve) -> None:
    chat = Chat()
    server = serve(app_of(chat.realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        await ann.request("join", "chat/1")
        session = of_user(chat.realtime, "ann")
        await threadsafe(chat.realtime, lambda: session.set_status("busy"))
        ann.vanish()
    await gone(chat.realtime)
    async with client(server, "ann", resume=first, rooms={"chat/1": None}) as ann:
        joined = await ann.expect("joined")
        assert [(m["userId"], m["status"]) for m in joined["members"]] == [("ann", "busy")]


async def test_an_unanswered_question_is_asked_again(serve: Serve) -> None:
    chat = Chat()
    answers: list[Any] = []

    @chat.realtime.event("ask-me")
    async def ask_me(session: Session) -> None:
        async def ask() -> None:
            answers.append(await session.request("how-are-you", {"n": 1}, timeout=20))

        session.engine.runtime.spawn(ask)

    server = serve(app_of(chat.realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        await ann.request("ask-me")
        asked = await ann.expect("how-are-you")
        ann.vanish()
    await gone(chat.realtime)
    async with client(server, "ann", resume=first) as ann:
        again = await ann.expect("how-are-you")
        assert again == asked
        await ann.send({"type": "ack", "id": again["id"], "data": {"fine": True}})
        await until(lambda: bool(answers), "the answer")
        assert answers == [{"fine": True}]
        assert not of_user(chat.realtime, "ann").requests


def altered(token: str) -> str:
    middle = len(token) // 2
    return token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]


@pytest.mark.parametrize(
    "forge",
    [
        lambda token: altered(token),
        lambda token: token + "x",
        lambda token: token[:-2],
        lambda token: "",
        lambda token: "." + token,
        lambda token: "x" * 900,
        lambda token: "x" * 100_000,
        lambda token: "W10.AAAA",
        lambda token: token.split(".")[0] + ".",
        lambda token: "\x00\uffff",
    ],
)
async def test_a_forged_token_is_a_new_session(serve: Serve, forge: Callable[[str], str]) -> None:
    realtime = make()
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        ann.vanish()
    await gone(realtime)
    async with client(server, "ann", resume={"resume": forge(first["resume"])}) as ann:
        assert ann.connected["resumed"] is False
        assert ann.connected["sessionId"] != first["sessionId"]


async def test_a_token_is_its_users_alone(serve: Serve) -> None:
    realtime = make()
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        # Not even while the session is live does a stolen token harm it.
        async with client(server, "eve", resume=first) as eve:
            assert eve.connected["resumed"] is False
            assert eve.connected["sessionId"] != first["sessionId"]
            assert (await ann.settle()) == []
        ann.vanish()
    await gone(realtime)
    async with client(server, "eve", resume=first) as eve:
        assert eve.connected["resumed"] is False
    async with client(server, "ann", resume=first) as ann:
        assert ann.connected["resumed"] is True


async def test_a_token_of_another_server_or_namespace_is_a_new_session(serve: Serve) -> None:
    realtime, other = make(), make()
    realtime.namespace("/admin")
    server, elsewhere = serve(app_of(realtime)), serve(app_of(other))
    async with client(server, "ann") as ann:
        first = ann.connected
        await ann.send({"type": "connect", "ns": "/admin", "data": {"resume": first["resume"]}})
        admin = await ann.expect("connected", ns="/admin")
        assert admin["resumed"] is False and admin["sessionId"] != first["sessionId"]
    async with client(elsewhere, "ann", resume=first) as ann:
        assert ann.connected["resumed"] is False


async def test_an_old_token_ends_when_newer_ones_have_been_used(serve: Serve) -> None:
    realtime = make()
    server = serve(app_of(realtime))

    async def come(resume: Message) -> Message:
        async with client(server, "ann", resume=resume) as ann:
            connected = ann.connected
            ann.vanish()
        await gone(realtime)
        return connected

    async with client(server, "ann") as ann:
        first = ann.connected
        ann.vanish()
    await gone(realtime)
    second = await come(first)
    assert second["resumed"] is True
    # The reply may have been lost with its connection: the old token holds once more.
    third = await come(first)
    assert third["resumed"] is True
    assert third["sessionId"] == second["sessionId"]
    stale = await come(first)
    assert stale["resumed"] is False
    assert (await come(third))["resumed"] is True


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
async def test_a_second_connection_replaces_the_first(serve: Serve, ws: str) -> None:
    chat = Chat(presence_grace=LONG)
    server = serve(app_of(chat.realtime), ws=ws)
    async with client(server, "bob") as bob, client(server, "ann") as ann:
        await bob.request("join", "chat/1")
        position = (await ann.request("join", "chat/1"))["position"]
        await bob.settle()
        await say(bob, "while away")
        async with client(server, "ann", resume=ann.connected, rooms={"chat/1": position}) as newer:
            assert newer.connected["resumed"] is True
            assert newer.connected["sessionId"] == ann.connected["sessionId"]
            assert await ann.closed() == (4409, "resumed elsewhere")
            joined = await newer.expect("joined")
            assert joined["recovered"] is True
            await newer.expect("broadcast", data="while away")
            await say(newer, "hello")
            await bob.expect("broadcast", data="hello")
            assert is_settled(chat.realtime, "ann")
            assert [m for m in await bob.settle() if m["type"].startswith("user-")] == []
            assert len(sessions(chat.realtime)) == 2
            assert chat.left == []


async def test_two_that_come_back_at_once_are_one_session(serve: Serve) -> None:
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        ann.vanish()
    await gone(realtime)
    async with AsyncExitStack() as stack:
        opened = await asyncio.gather(
            *(stack.enter_async_context(client(server, "ann", resume=first)) for _ in range(2))
        )
        assert {one.connected["sessionId"] for one in opened} == {first["sessionId"]}
        await gone(realtime, 1)
        (last,) = sessions(realtime)
        (alive,) = [o for o in opened if o.connected["clientId"] == last.client_id]
        (other,) = [o for o in opened if o is not alive]
        assert (await other.closed())[0] == 4409
        await alive.request("join", "chat/1")


async def test_a_full_house_does_not_keep_a_session_from_its_own_successor(serve: Serve) -> None:
    realtime = make(max_connections_per_user=1)
    server = serve(app_of(realtime))
    async with (
        client(server, "ann") as ann,
        client(server, "ann", resume=ann.connected) as newer,
    ):
        assert newer.connected["resumed"] is True
        assert (await ann.closed())[0] == 4409
    await nothing_left(realtime)


async def test_a_page_that_is_reloaded_was_never_gone(serve: Serve) -> None:
    chat = Chat(presence_grace=30.0)
    server = serve(app_of(chat.realtime))
    async with client(server, "bob") as bob:
        await bob.request("join", "chat/1")
        async with client(server, "ann") as ann:
            first = ann.connected
            await ann.request("join", "chat/1")
            await bob.expect("user-joined")
            await ann.close(1001)
        async with client(server, "ann", resume=first, rooms={"chat/1": None}) as ann:
            assert ann.connected["resumed"] is True
            await ann.expect("joined")
            assert await bob.settle() == []
            assert chat.left == []


async def test_a_deliberate_close_ends_the_session_at_once(serve: Serve) -> None:
    chat = Chat(presence_grace=30.0)
    server = serve(app_of(chat.realtime))
    async with client(server, "bob") as bob:
        await bob.request("join", "chat/1")
        async with client(server, "ann") as ann:
            first = ann.connected
            await ann.request("join", "chat/1")
            await ann.close(1000)
        await bob.expect("user-left", data={"userId": "ann", "roomId": "chat/1"})
        await until(lambda: chat.left == ["ann"], "the leave hook")
        async with client(server, "ann", resume=first) as ann:
            assert ann.connected["resumed"] is False


async def test_grace_over_is_one_leave_with_its_hook(serve: Serve) -> None:
    chat = Chat()
    server = serve(app_of(chat.realtime))
    async with client(server, "bob") as bob:
        await bob.request("join", "chat/1")
        async with client(server, "ann") as ann:
            first = ann.connected
            await ann.request("join", "chat/1")
            await bob.expect("user-joined")
            ann.vanish()
        await bob.expect("user-left", data={"userId": "ann", "roomId": "chat/1"})
        await until(lambda: chat.left == ["ann"], "the leave hook")
        # The window is still open: the same session, but its rooms see it come again.
        async with client(server, "ann", resume=first, rooms={"chat/1": None}) as ann:
            assert ann.connected["resumed"] is True
            await bob.expect("user-joined", data={"userId": "ann", "roomId": "chat/1"})
            await until(lambda: chat.joined.count("ann") == 2, "the join hook")
        assert [m for m in await bob.settle() if m["type"] == "user-joined"] == []


async def test_window_over_is_the_end_of_the_session(serve: Serve) -> None:
    chat = Chat(resume_window=0.3, presence_grace=0.1)
    server = serve(app_of(chat.realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        await ann.request("join", "chat/1")
        ann.vanish()
    await gone(chat.realtime)
    await until(lambda: not engine(chat.realtime).lobby._detached, "the end of the window")
    store = runtime(chat.realtime).sessions
    await until(
        lambda: not [id for id in store._records if store._get(id)],  # type: ignore[attr-defined]
        "the end of the record",
    )
    async with client(server, "ann", resume=first) as ann:
        assert ann.connected["resumed"] is False
        assert ann.connected["sessionId"] != first["sessionId"]


async def test_without_a_window_nothing_is_kept(serve: Serve) -> None:
    chat = Chat(resume_window=0.0)
    server = serve(app_of(chat.realtime))
    async with client(server, "ann") as ann:
        assert ann.connected["resume"] == ""
        await ann.request("join", "chat/1")
        ann.vanish()
    await gone(chat.realtime)
    assert not engine(chat.realtime).lobby._detached
    await nothing_left(chat.realtime)


async def test_the_number_of_detached_sessions_is_bounded(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lobby, "MAX_DETACHED", 5)
    realtime = make()
    server = serve(app_of(realtime))
    firsts = []
    for _ in range(8):
        async with client(server, "ann") as ann:
            firsts.append(ann.connected)
            ann.vanish()
        await gone(realtime)
    detached = engine(realtime).lobby._detached
    assert list(detached) == [first["sessionId"] for first in firsts[3:]]
    assert sum(bucket.users for bucket in runtime(realtime)._buckets.values()) == 5
    # What was let go here is still known: the same session, without what the app kept in it.
    async with client(server, "ann", resume=firsts[0]) as ann:
        assert ann.connected["resumed"] is True


async def test_a_refused_return_may_be_tried_again(serve: Serve) -> None:
    realtime = make()
    refuse = False

    @realtime.middleware("connection")
    async def gate(ctx: Any, call_next: Any) -> None:
        await call_next()
        if refuse:
            raise RuntimeError("not now")

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        ann.vanish()
    await gone(realtime)
    refuse = True
    async with client(server, "ann", resume=first, wait_connected=False) as ann:
        assert (await ann.closed())[0] == 1011
    await gone(realtime)
    refuse = False
    async with client(server, "ann", resume=first) as ann:
        assert ann.connected["resumed"] is True
        assert ann.connected["sessionId"] == first["sessionId"]
    await nothing_left(realtime)


async def test_the_old_connection_ends_while_the_new_one_resumes(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat()
    server = serve(app_of(chat.realtime))
    async with client(server, "bob") as bob, client(server, "ann") as ann:
        for who in (bob, ann):
            await who.request("join", "chat/1")
        old = of_user(chat.realtime, "ann").connection
        store = runtime(chat.realtime).sessions
        asked, ended = threading.Event(), threading.Event()
        resume = store.resume

        async def slow(*arguments: Any) -> Any:
            asked.set()
            while not ended.is_set():
                await asyncio.sleep(0.005)
            return await resume(*arguments)

        monkeypatch.setattr(store, "resume", slow)
        async with client(
            server, "ann", resume=ann.connected, rooms={"chat/1": None}, wait_connected=False
        ) as again:
            await until(asked.is_set, "the attempt to resume")
            ann.vanish()
            await until(lambda: not old.sessions, "the end of the old connection")
            ended.set()
            assert (await again.expect("connected"))["resumed"] is True
            await again.expect("joined")
            await until(lambda: old not in runtime(chat.realtime).connections, "its very end")
            await say(bob, "hello")
            await again.expect("broadcast", data="hello")
            assert of_user(chat.realtime, "ann").memberships
    await nothing_left(chat.realtime)


async def test_an_anonymous_session_is_resumed_by_its_token(serve: Serve) -> None:
    from starlette_realtime import AnonymousAuth

    realtime = make(AnonymousAuth())
    server = serve(app_of(realtime))
    async with NativeClient.open(server.ws("/ws"), hello={}) as one:
        first = one.connected
        one.vanish()
    await gone(realtime)
    async with NativeClient.open(server.ws("/ws"), hello={"resume": first["resume"]}) as one:
        assert one.connected["resumed"] is True
        assert one.connected["sessionId"] == first["sessionId"]


async def test_more_rooms_than_allowed_are_refused_in_one_word(serve: Serve) -> None:
    realtime: Realtime = make(max_rooms=3)
    realtime.room("chat/{id}")
    server = serve(app_of(realtime))
    rooms = {f"chat/{n}": None for n in range(5000)}
    async with client(server, "ann", rooms=rooms) as ann:
        seen = await ann.settle()
        assert [m["type"] for m in seen] == ["joined"] * 3 + ["error"]
        assert seen[-1]["code"] == "limit_exceeded"
