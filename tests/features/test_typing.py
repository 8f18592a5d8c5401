"""Typing: with a clock that is turned by hand, and on a real server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from starlette_realtime import Chat
from starlette_realtime.core.room import Room
from starlette_realtime.core.session import Member
from starlette_realtime.core.timers import Timer
from starlette_realtime.features.typing import Typing
from tests.features.helpers import House, Serve, make, of, refusal

pytestmark = pytest.mark.anyio


class Session:
    namespace = "/"


class Person:
    """A member as `Typing` sees it."""

    session = Session()

    def __init__(self, user_id: str | None, session_id: str) -> None:
        self.user_id = user_id
        self.session_id = session_id
        self.info = user_id


class Hall:
    """A room with a clock: it says what was published, and to the exclusion of whom."""

    def __init__(self) -> None:
        self.name = "hall"
        self.now = 1000.0
        self.said: list[tuple[str, str | None, str]] = []
        self.timers: list[tuple[Timer, Callable[[], Awaitable[Any]]]] = []

    def clock(self) -> float:
        return self.now

    def later(self, delay: float, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Timer:
        timer = Timer(self.now + delay, lambda: None)
        self.timers.append((timer, lambda: call(*arguments)))
        return timer

    async def publish(self, event: str, data: Any, *, exclude: Person, **options: Any) -> None:
        assert options.get("volatile") or options.get("keep") is False
        self.said.append((event, data["userId"], exclude.session_id))

    async def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [entry for entry in self.timers if entry[0].when <= until]:
            entry = min(due, key=lambda entry: entry[0].when)
            self.timers.remove(entry)
            self.now = max(self.now, entry[0].when)
            if not entry[0].cancelled:
                await entry[1]()
        self.now = until

    def take(self) -> list[str]:
        taken = [event for event, _, _ in self.said]
        self.said.clear()
        return taken


class Scene:
    def __init__(self) -> None:
        self.hall = Hall()
        self.typing = Typing(clock=self.hall.clock)

    async def types(self, person: Person) -> None:
        await self.typing.typing(cast(Room, self.hall), cast(Member, person))

    async def stops(self, person: Person) -> None:
        await self.typing.stop(cast(Room, self.hall), cast(Member, person))


ANN, DESK, BOB = Person("ann", "ann's phone"), Person("ann", "ann's desk"), Person("bob", "bob's")
START, STOP = "user-typing", "user-stopped-typing"


async def test_typing_stops_by_itself_once() -> None:
    scene = Scene()
    await scene.types(ANN)
    assert scene.hall.said == [(START, "ann", "ann's phone")]
    await scene.hall.wait(2.9)
    assert scene.hall.take() == [START]
    await scene.hall.wait(0.2)
    assert scene.hall.said == [(STOP, "ann", "ann's phone")]
    await scene.hall.wait(60)
    assert scene.hall.take() == [STOP]
    assert not scene.hall.timers


async def test_typing_on_puts_the_end_off_and_is_told_once_a_second() -> None:
    scene = Scene()
    for _ in range(50):
        await scene.types(ANN)
        await scene.hall.wait(0.1)
    assert scene.hall.take() == [START] * 5
    await scene.hall.wait(2.8)
    assert scene.hall.take() == []
    await scene.hall.wait(0.2)
    assert scene.hall.take() == [STOP]


async def test_a_stop_is_told_at_once_and_only_once() -> None:
    scene = Scene()
    await scene.types(ANN)
    await scene.stops(ANN)
    await scene.stops(ANN)
    await scene.hall.wait(10)
    assert scene.hall.take() == [START, STOP]


async def test_who_does_not_type_does_not_stop() -> None:
    scene = Scene()
    await scene.types(BOB)
    await scene.stops(ANN)
    assert scene.hall.take() == [START]


async def test_typing_again_after_a_stop_is_a_new_start() -> None:
    scene = Scene()
    await scene.types(ANN)
    await scene.stops(ANN)
    await scene.hall.wait(0.1)
    await scene.types(ANN)
    await scene.hall.wait(2.5)
    assert scene.hall.take() == [START, STOP, START]
    await scene.hall.wait(0.6)
    assert scene.hall.take() == [STOP]


async def test_two_devices_of_one_user_start_once_and_stop_once() -> None:
    scene = Scene()
    await scene.types(ANN)
    await scene.types(DESK)
    assert scene.hall.take() == [START]
    await scene.stops(ANN)
    assert scene.hall.take() == []
    await scene.stops(DESK)
    assert scene.hall.take() == [STOP]
    await scene.hall.wait(10)
    assert scene.hall.take() == []


async def test_a_device_that_fell_silent_does_not_keep_its_user_typing() -> None:
    scene = Scene()
    await scene.types(ANN)
    for _ in range(4):
        await scene.types(DESK)
        await scene.hall.wait(1)
    scene.hall.take()
    await scene.stops(DESK)
    assert scene.hall.take() == [STOP]


async def test_people_type_independently_and_nothing_is_left_of_them() -> None:
    scene = Scene()
    crowd = [Person(f"user {number}", f"session {number}") for number in range(200)]
    nobody = [Person(None, f"anonymous {number}") for number in range(2)]
    for person in crowd + nobody:
        await scene.types(person)
    assert scene.hall.take() == [START] * 202
    await scene.hall.wait(4)
    assert scene.hall.take() == [STOP] * 202
    assert not scene.hall.timers
    assert not scene.typing._typists


async def test_what_a_stopped_server_left_behind_is_no_obstacle() -> None:
    scene = Scene()
    await scene.types(ANN)
    scene.hall.timers.clear()
    scene.hall.now += 60
    await scene.types(ANN)
    await scene.hall.wait(3)
    assert scene.hall.take() == [START, START, STOP]


# On a server


def hall(serve: Serve, timeout: float = 30.0) -> House:
    realtime = make(presence_grace=0.0)
    # In either order: the one does not know of the other.
    realtime.room("chat/{id}", features=[Typing(timeout=timeout), Chat()])
    realtime.room("talk/{id}", features=[Chat(), Typing(timeout=timeout)])
    return House(serve, realtime)


async def test_the_others_see_it_and_it_is_not_kept(serve: Serve) -> None:
    house = hall(serve, timeout=0.2)
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        await ann.request("join", "chat/1")
        before = (await bob.request("join", "chat/1"))["position"]
        await ann.request("typing", data={"roomId": "chat/1"})
        told = await bob.expect(START, room="chat/1")
        assert told["data"] == {"userId": "ann", "user": {"name": "Ann"}, "roomId": "chat/1"}
        assert "offset" not in told
        over = await bob.expect(STOP, room="chat/1")
        assert over["data"] == {"userId": "ann", "roomId": "chat/1"}
        assert not of(await ann.settle(), START, STOP)
        assert (await bob.request("join", "chat/1"))["position"] == before
        error = await refusal(bob, "typing", "chat/2")
        assert error.error == "Not in room"


@pytest.mark.parametrize("room", ["chat/1", "talk/1"])
async def test_it_is_over_when_the_message_is_sent(serve: Serve, room: str) -> None:
    house = hall(serve)
    async with house.enter("ann") as ann, house.enter("bob") as bob:
        await ann.request("join", room)
        await bob.request("join", room)
        await ann.request("typing", room)
        await refusal(ann, "message", room, {"content": ""})
        await bob.expect(START)
        assert not of(await bob.settle(), STOP)
        await ann.request("message", room, {"content": "done"})
        await bob.expect("new-message")
        await bob.expect(STOP)


async def test_it_is_over_on_leaving_and_when_the_connection_is_lost(serve: Serve) -> None:
    house = hall(serve)
    async with house.enter("bob") as bob:
        await bob.request("join", "chat/1")
        async with house.enter("ann") as ann:
            await ann.request("join", "chat/1")
            await ann.request("typing", "chat/1")
            await ann.request("leave", "chat/1")
            await bob.expect(START)
            await bob.expect(STOP)
            await ann.request("join", "chat/1")
            await ann.request("typing", "chat/1")
            await bob.expect(START)
            ann.vanish()
        await bob.expect(STOP)
