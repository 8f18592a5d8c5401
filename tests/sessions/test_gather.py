"""A question to all of a room, on every process, and the answers that came in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from starlette_realtime import AnonymousAuth, Member, Options, Realtime, Room
from starlette_realtime.brokers.base import Broker, HistoryBroker, Listener
from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.core import gather
from starlette_realtime.core.runtime import Stores
from starlette_realtime.events import (
    Draft,
    Page,
    Position,
    Publication,
    Published,
    Recovery,
    Retention,
)
from starlette_realtime.inbox.memory import MemoryInbox
from starlette_realtime.limits.memory import MemoryLimits
from starlette_realtime.presence.memory import MemoryPresence
from starlette_realtime.sessions.memory import MemorySessions
from starlette_realtime.tickets import MemoryTickets
from tests.sessions.helpers import (
    Names,
    app_of,
    client,
    gone,
    make,
    of_user,
    side_by_side,
    threadsafe,
)
from tests.support.server import LiveServer
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]


def ask(realtime: Realtime, room: str = "chat/1", **options: Any) -> Any:
    """Gathers in the server's event loop; returns something to await."""
    return threadsafe(
        realtime, lambda: realtime.get_room(room).gather("vote", {"on": "tea"}, **options)
    )


async def answer(who: NativeClient, data: Any, timeout: float = 5) -> None:
    asked = await who.expect("vote", data={"on": "tea"}, timeout=timeout)
    await who.send({"type": "ack", "id": asked["id"], "data": data})


def answers(gathered: gather.Gathered) -> dict[str | None, Any]:
    return {answer.user_id: answer.data for answer in gathered.answers}


async def test_all_answer(serve: Serve) -> None:
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        for who in (ann, bob):
            await who.request("join", "chat/1")
        began = time.monotonic()
        asking = ask(realtime, timeout=30)
        await answer(ann, "yes")
        await answer(bob, {"$bytes": "AAEC"})
        gathered = await asking
        assert time.monotonic() - began < 10
        assert answers(gathered) == {"ann": "yes", "bob": b"\0\1\2"}
        assert (gathered.asked, gathered.missing) == (2, 0)
        assert {a.session_id for a in gathered.answers} == {
            ann.connected["sessionId"],
            bob.connected["sessionId"],
        }
        assert not of_user(realtime, "ann").requests


async def test_who_does_not_answer_is_missing(serve: Serve) -> None:
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        for who in (ann, bob):
            await who.request("join", "chat/1")
        asking = ask(realtime, timeout=0.5)
        await answer(ann, 1)
        gathered = await asking
        assert (answers(gathered), gathered.asked, gathered.missing) == ({"ann": 1}, 2, 1)
        # What comes late is nobody's.
        await answer(bob, 2)
        await bob.settle()
        assert not of_user(realtime, "bob").requests


async def test_nobody_is_there(serve: Serve) -> None:
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime))
    async with client(server, "ann"):
        gathered = await ask(realtime, timeout=5)
        assert (gathered.answers, gathered.asked, gathered.missing) == ([], 0, 0)


@pytest.mark.parametrize("presence", ["full", "counts", "none"])
async def test_anonymous_members_and_rooms_without_presence(serve: Serve, presence: Any) -> None:
    realtime = Realtime("memory://", auth=AnonymousAuth(), options=Options(shutdown_timeout=1.0))
    realtime.room("chat/{id}", presence=presence)
    server = serve(app_of(realtime))
    async with NativeClient.open(server.ws("/ws")) as one:
        await one.request("join", "chat/1")
        asking = ask(realtime, timeout=5)
        await answer(one, "me")
        assert answers(await asking) == {None: "me"}


async def test_a_handler_asks_the_room_it_was_called_from(serve: Serve) -> None:
    realtime = make()
    room_type = realtime.room("chat/{id}")

    @room_type.on("poll")
    async def poll(room: Room, member: Member, data: bool) -> dict[str, Any]:
        exclude = member if data else None
        gathered = await room.gather("vote", {"on": "tea"}, timeout=5, exclude=exclude)
        return {"asked": gathered.asked, "yes": sorted(a.data for a in gathered.answers)}

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        for who in (ann, bob):
            await who.request("join", "chat/1")
        # The one who asks is a member too, and answers although its handler is at work.
        for leave_out, expected in ((False, [1, 2]), (True, [2])):
            await ann.send({"type": "poll", "room": "chat/1", "id": "p", "data": leave_out})
            await answer(bob, 2)
            if not leave_out:
                await answer(ann, 1)
            ack = await ann.expect("ack", id="p")
            assert ack["data"] == {"asked": len(expected), "yes": expected}


async def test_a_member_whose_connection_breaks_may_still_answer(serve: Serve) -> None:
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        first = ann.connected
        await ann.request("join", "chat/1")
        asking = ask(realtime, timeout=20)
        await ann.expect("vote")
        ann.vanish()
    await gone(realtime)
    async with client(server, "ann", resume=first) as ann:
        await answer(ann, "back")
        assert answers(await asking) == {"ann": "back"}


async def test_a_member_who_leaves_for_good_is_missing(serve: Serve) -> None:
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        for who in (ann, bob):
            await who.request("join", "chat/1")
        asking = ask(realtime, timeout=3)
        await bob.expect("vote")
        await bob.close()
        await answer(ann, 1)
        gathered = await asking
        assert (answers(gathered), gathered.missing) == ({"ann": 1}, 1)


async def test_what_is_gathered_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MAX_GATHERED", 2000)
    monkeypatch.setattr(gather, "MAX_ASKED", 3)
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime))
    async with AsyncExitStack() as stack:
        people = [await stack.enter_async_context(client(server, f"u{n}")) for n in range(4)]
        for who in people:
            await who.request("join", "chat/1")
        asking = ask(realtime, timeout=2)
        for who in people[:3]:
            await answer(who, "x" * 900)
        gathered = await asking
        assert (gathered.asked, len(gathered.answers), gathered.missing) == (3, 2, 1)


async def test_an_answer_that_is_none_is_missing(serve: Serve) -> None:
    realtime = make()
    realtime.room("chat/{id}")
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        await ann.request("join", "chat/1")
        asking = ask(realtime, timeout=1)
        await answer(ann, {"$bytes": "no base64 at all!"})
        gathered = await asking
        assert (gathered.answers, gathered.missing) == ([], 1)


# Several processes


class Shared:
    """One broker behind several: each `view` is what one process has of it."""

    def __init__(self) -> None:
        self.whole = MemoryBroker()
        self.views: list[_View] = []

    def received(self, channel: str, publication: Publication) -> None:
        for view in self.views:
            if view.listener is not None and channel in view.channels:
                view.listener.received(channel, publication)

    def interrupted(self, channels: Iterable[str]) -> None:
        raise AssertionError("it never is")

    def view(self) -> HistoryBroker:
        self.views.append(_View(self))
        return self.views[-1]


class _View(HistoryBroker):
    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.whole = shared.whole
        self.listener: Listener | None = None
        self.channels: set[str] = set()

    @asynccontextmanager
    async def run(self, listener: Listener) -> AsyncIterator[None]:
        self.listener = listener
        # Whoever is first keeps the whole running; it is only told once whom to tell.
        if self.whole._listener is None:
            self.whole._listener = self.shared
        yield

    async def publish(self, channel: str, draft: Draft, retention: Retention) -> Published:
        await asyncio.sleep(0)
        return await self.whole.publish(channel, draft, retention)

    async def subscribe(self, channels: Iterable[str]) -> None:
        channels = list(channels)
        self.channels |= set(channels)
        await self.whole.subscribe(channels)

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        self.channels -= set(channels)

    async def recover(self, channel: str, since: Position, limit: int) -> Recovery:
        return await self.whole.recover(channel, since, limit)

    async def page(
        self, channel: str, *, before: int | None = None, after: int | None = None, limit: int
    ) -> Page:
        return await self.whole.page(channel, before=before, after=after, limit=limit)

    async def find(self, channel: str, id: str) -> Publication | None:
        return await self.whole.find(channel, id)


def processes(number: int, **room: Any) -> list[Realtime]:
    """Servers that share everything but their memory."""
    shared = Shared()
    presence, sessions = MemoryPresence(shared.whole), MemorySessions()
    made = []
    for _ in range(number):
        broker: Broker = shared.view()
        stores = Stores(broker, presence, sessions, MemoryLimits(), MemoryInbox(), MemoryTickets())
        realtime = Realtime(
            auth=Names(), options=Options(shutdown_timeout=1.0, presence_grace=0.5), stores=stores
        )
        realtime.room("chat/{id}", **room)
        made.append(realtime)
    return made


@pytest.mark.parametrize("presence", ["full", "none"])
async def test_members_on_other_processes_are_asked_too(serve: Serve, presence: str) -> None:
    made = processes(3, presence=presence)
    server = serve(side_by_side(made))
    async with AsyncExitStack() as stack:
        people = [
            await stack.enter_async_context(client(server, f"u{n}", path=f"/{n % 3}/ws"))
            for n in range(6)
        ]
        for who in people:
            await who.request("join", "chat/1")
        began = time.monotonic()
        asking = ask(made[0], timeout=20)
        await asyncio.gather(*(answer(who, n) for n, who in enumerate(people)))
        gathered = await asking
        assert time.monotonic() - began < 10
        assert answers(gathered) == {f"u{n}": n for n in range(6)}
        assert (gathered.asked, gathered.missing) == (6, 0)
        # Silence on another process is counted there, too.
        asking = ask(made[1], timeout=1.5)
        await asyncio.gather(*(answer(who, n) for n, who in enumerate(people[:5])))
        gathered = await asking
        assert (len(gathered.answers), gathered.missing) == (5, 1)


async def test_a_session_moves_to_another_process(serve: Serve) -> None:
    made = processes(2)
    server = serve(side_by_side(made))
    async with client(server, "bob", path="/0/ws") as bob:
        await bob.request("join", "chat/1")
        async with client(server, "ann", path="/0/ws") as ann:
            joined = await ann.request("join", "chat/1")
            await bob.expect("user-joined")
            rooms = {"chat/1": joined["position"]}
            async with client(
                server, "ann", path="/1/ws", resume=ann.connected, rooms=rooms
            ) as newer:
                assert newer.connected["resumed"] is True
                assert newer.connected["sessionId"] == ann.connected["sessionId"]
                assert (await ann.closed())[0] == 4409
                assert (await newer.expect("joined"))["recovered"] is True
                await bob.request("broadcast", "chat/1", "over there")
                await newer.expect("broadcast", data="over there")
                assert [m for m in await bob.settle() if m["type"].startswith("user-")] == []
                again = newer.connected
                newer.vanish()
            await gone(made[1])
        # And back again, after the end of both connections.
        async with client(server, "ann", path="/0/ws", resume=again) as back:
            assert back.connected["sessionId"] == again["sessionId"]
