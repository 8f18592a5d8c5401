"""Questions that were open when their session went to another process, with Redis in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from starlette_realtime import Member, Options, Realtime, Session
from starlette_realtime.errors import AckTimeout, Disconnected
from starlette_realtime.limits.memory import MemoryLimits
from tests.sessions.helpers import (
    Names,
    app_of,
    client,
    engine,
    gone,
    make,
    runtime,
    side_by_side,
    threadsafe,
    until,
)
from tests.support.server import FAST, LiveServer
from tests.support.wsclient import Message, NativeClient

pytestmark = pytest.mark.anyio

WS = ("websockets-sansio", FAST, "wsproto")


class House:
    """Processes "A", "B" and "C", and what became of the questions that were asked there."""

    def __init__(self, url: str, serve: Callable[..., LiveServer], ws: str, **options: Any) -> None:
        self.outcomes: list[tuple[str, Any]] = []
        self.processes = {name: self._build(name, url, options) for name in "ABC"}
        self.server = serve(side_by_side(list(self.processes.values())), ws=ws)

    def _build(self, name: str, url: str, options: dict[str, Any]) -> Realtime:
        settings = {"presence_grace": 5.0, "shutdown_timeout": 1.0, **options}
        realtime = Realtime(url, auth=Names(), options=Options(**settings))
        room = realtime.room("{name}")

        async def ask(member: Member | Session, seconds: float) -> None:
            try:
                answer = await member.request("sure?", {"e": 4}, timeout=seconds)
            except (AckTimeout, Disconnected) as error:
                answer = type(error)
            self.outcomes.append((name, answer))

        @room.on("ask")
        async def ask_in_the_handler(member: Member, data: float) -> str:
            await ask(member, data)
            return "asked"

        @realtime.event("ask-beside")
        async def ask_beside(session: Session, data: float) -> None:
            session.engine.runtime.spawn(ask, session, data)

        return realtime

    @asynccontextmanager
    async def enter(
        self, process: str, resume: Message | None = None, name: str = "ann"
    ) -> AsyncIterator[NativeClient]:
        hello: dict[str, Any] = {"token": name}
        if resume is not None:
            hello["resume"] = resume["resume"]
        url = self.server.ws(f"/{'ABC'.index(process)}/ws")
        async with NativeClient.open(url, hello=hello) as client:
            assert client.connected["resumed"] is (resume is not None)
            yield client

    async def outcome(self) -> tuple[str, Any]:
        await until(lambda: bool(self.outcomes), "an outcome")
        (found,) = self.outcomes
        return found

    async def nothing_left(self, *processes: str) -> None:
        """Waits until only these have any channel of a session, or a question."""
        for name, realtime in self.processes.items():
            away = engine(realtime).questions._away
            await until(lambda a=away: not a, f"the end of what {name} asks")  # type: ignore[misc]
            if name not in processes:
                channels = runtime(realtime).hub.channels
                await until(lambda c=channels: not c, f"the end of {name}'s channels")  # type: ignore[misc]


# The handler that asks its own client is run by what reads the connection: that is the door's.
DOORS = pytest.mark.parametrize(
    ("house", "beside"), [(FAST, True), *((ws, False) for ws in WS)], indirect=["house"]
)


@pytest.fixture
def house(
    redis_url: str, serve: Callable[..., LiveServer], request: pytest.FixtureRequest
) -> House:
    return House(redis_url, serve, getattr(request, "param", FAST))


async def begin(client: NativeClient, beside: bool = False, seconds: float = 20) -> Message:
    """Let the server ask; returns the question."""
    if beside:
        await client.send({"type": "ask-beside", "data": seconds})
    else:
        await client.request("join", "r")
        await client.send({"type": "ask", "room": "r", "id": "a", "data": seconds})
    return await client.expect("sure?", data={"e": 4})


async def answer(client: NativeClient, question: Message, data: Any = "yes") -> None:
    assert (await client.expect("sure?")) == question
    await client.send({"type": "ack", "id": question["id"], "data": data})


@DOORS
async def test_a_lost_client_answers_elsewhere(house: House, beside: bool) -> None:
    async with house.enter("A") as ann:
        question = await begin(ann, beside)
        first = ann.connected
        ann.vanish()
    await gone(house.processes["A"])
    async with house.enter("B", first) as ann:
        await answer(ann, question)
        assert await house.outcome() == ("A", "yes")
        await house.nothing_left("B")
        assert "sure?" not in [message["type"] for message in await ann.settle()]


@DOORS
async def test_a_live_one_is_replaced_and_comes_back(house: House, beside: bool) -> None:
    async with house.enter("A") as ann:
        question = await begin(ann, beside)
        async with house.enter("B", ann.connected) as there:
            assert (await there.expect("sure?")) == question
            assert (await ann.closed())[0] == 4409
            async with house.enter("A", there.connected) as back:
                assert (await there.closed())[0] == 4409
                await answer(back, question)
                assert await house.outcome() == ("A", "yes")
                await house.nothing_left("A")


async def test_ever_further(house: House) -> None:
    async with house.enter("A") as ann:
        question = await begin(ann)
        ann.vanish()
        async with house.enter("B", ann.connected) as second:
            assert (await second.expect("sure?")) == question
            async with house.enter("C", second.connected) as third:
                assert (await second.closed())[0] == 4409
                await answer(third, question)
                assert await house.outcome() == ("A", "yes")
                await house.nothing_left("C")


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "replaced"])
async def test_the_same_process_again(house: House, lost: bool) -> None:
    """The handler that asks its own client is no exception."""
    async with house.enter("A") as ann:
        question = await begin(ann)
        if lost:
            ann.vanish()
        async with house.enter("A", ann.connected) as again:
            await answer(again, question)
            assert await house.outcome() == ("A", "yes")
            # What the handler returns goes where its client is now.
            assert (await again.expect("ack", id="a"))["data"] == "asked"


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "handler"])
@pytest.mark.parametrize("end", ["goodbye", "sent away", "sent away at home"])
async def test_a_session_that_ends(house: House, end: str, beside: bool) -> None:
    realtime = house.processes["A"]
    async with house.enter("A") as ann:
        question = await begin(ann, beside)
        async with house.enter("B", ann.connected) as there:
            assert (await there.expect("sure?")) == question
            if end == "goodbye":
                await there.close()
            elif end == "sent away":
                await threadsafe(realtime, lambda: realtime.disconnect_user("ann"))
                assert (await there.closed())[0] == 4403
            else:
                async with house.enter("A", there.connected) as back:
                    assert (await back.expect("sure?")) == question
                    await threadsafe(realtime, lambda: realtime.disconnect_user("ann"))
                    assert (await back.closed())[0] == 4403
            assert await house.outcome() == ("A", Disconnected)
    for process in house.processes.values():
        await gone(process)
    await house.nothing_left()


async def test_time_is_up(house: House) -> None:
    async with house.enter("A") as ann:
        await begin(ann, seconds=0.5)
        ann.vanish()
        async with house.enter("B", ann.connected) as there:
            await there.expect("sure?")
            assert await house.outcome() == ("A", AckTimeout)
            await house.nothing_left("B")


async def test_another_user_is_not_asked(house: House) -> None:
    async with house.enter("A") as ann:
        await begin(ann)
        hello = {"token": "eve", "resume": ann.connected["resume"]}
        url = house.server.ws("/1/ws")
        async with NativeClient.open(url, hello=hello) as eve:
            assert eve.connected["resumed"] is False
            assert await eve.settle() == []


async def test_a_server_that_stops_waits_for_nobody(
    redis_url: str, serve: Callable[..., LiveServer]
) -> None:
    house = House(redis_url, serve, FAST)
    async with house.enter("A") as ann, house.enter("A", name="bob") as bob:
        await begin(ann)
        await begin(bob, beside=True)
        began = time.monotonic()
        await asyncio.to_thread(house.server.stop)
        assert time.monotonic() - began < 5
        assert house.outcomes == [("A", Disconnected)] * 2


async def test_a_handler_that_waits_for_who_has_gone_counts_for_its_address(
    serve: Callable[..., LiveServer],
) -> None:
    realtime = make(max_connections_per_ip=2)
    asked: list[Any] = []

    @realtime.event("ask")
    async def ask(session: Session) -> None:
        asked.append(await session.request("sure?", timeout=20))

    server = serve(app_of(realtime))
    async with client(server) as ann:
        await ann.send({"type": "ask"})
        question = await ann.expect("sure?")
        ann.vanish()
    await gone(realtime)
    async with client(server, resume=ann.connected) as ann:
        async with NativeClient.open(server.ws("/ws"), wait_connected=False) as bob:
            assert (await bob.closed())[0] == 4503
        await answer(ann, question)
        await until(lambda: bool(asked), "the answer")
        await until(lambda: len(limited(realtime)) == 1, "the end of the handler")
        async with client(server, "bob"):
            pass


def limited(realtime: Realtime) -> dict[str, Any]:
    """Who is counted for the one address."""
    limits = runtime(realtime).limits
    assert isinstance(limits, MemoryLimits)
    (holders,) = [held for key, held in limits._holders.items() if key.startswith("ip:")]
    return holders
