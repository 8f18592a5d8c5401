"""Typing: with a clock that is turned by hand, and on a real server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from starlette_realtime import Chat
from starlette_realtime.core.namespace import Signal
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
        self.client_id = f"{session_id} connection"
        self.info = user_id


class Word:
    """A signal as a process gets it."""

    namespace = "/"

    def __init__(self, hall: Hall, process: int, data: Any, exclude: Person, volatile: bool):
        self.hall = hall
        self.process = process
        self.room = hall.name
        self.data = data
        self.exclude = exclude
        self.volatile = volatile

    def pass_on(self, event: str, data: Any, *, volatile: bool | None = None) -> None:
        # A slow member may miss that somebody types, never that it is over.
        assert (self.volatile if volatile is None else volatile) == (event == START)
        said = (event, data["userId"], self.exclude.session_id)
        self.hall.said[self.process].append(said)

    def later(self, delay: float, call: Callable[..., Any], *arguments: Any) -> Timer:
        async def calls() -> None:
            call(*arguments)

        return self.hall.later(delay, calls)


class Hall:
    """A room with a clock, on some processes: for each, what its members were told, and to the
    exclusion of whom."""

    def __init__(self, processes: int) -> None:
        self.name = "hall"
        self.now = 1000.0
        self.typing = [Typing(clock=self.clock) for _ in range(processes)]
        self.said: list[list[tuple[str, str | None, str]]] = [[] for _ in range(processes)]
        self.timers: list[tuple[Timer, Callable[[], Awaitable[Any]]]] = []

    def clock(self) -> float:
        return self.now

    def later(self, delay: float, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Timer:
        timer = Timer(self.now + delay, 0, lambda: None)
        self.timers.append((timer, lambda: call(*arguments)))
        return timer

    async def signal(
        self, name: str, data: Any, *, exclude: Person, volatile: bool, key: str
    ) -> None:
        for process, typing in enumerate(self.typing):
            word = cast(Signal, Word(self, process, data, exclude, volatile))
            {"$typing": typing._heard, "$typed": typing._over}[name](word)

    async def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [entry for entry in self.timers if entry[0].when <= until]:
            entry = min(due, key=lambda entry: entry[0].when)
            self.timers.remove(entry)
            self.now = max(self.now, entry[0].when)
            if not entry[0].cancelled:
                await entry[1]()
        self.now = until

    def take(self, process: int = 0) -> list[str]:
        taken = [event for event, _, _ in self.said[process]]
        self.said[process].clear()
        return taken


class Scene:
    def __init__(self, processes: int = 1) -> None:
        self.hall = Hall(processes)

    async def types(self, person: Person, process: int = 0) -> None:
        typing = self.hall.typing[process]
        await typing.typing(cast(Room, self.hall), cast(Member, person))

    async def stops(self, person: Person, process: int = 0) -> None:
        await self.hall.typing[process].stop(cast(Room, self.hall), cast(Member, person))

    def kill(self, process: int) -> None:
        """Nobody says any more what happens there."""
        self.hall.typing[process]._devices.clear()


ANN, DESK, BOB = Person("ann", "ann's phone"), Person("ann", "ann's desk"), Person("bob", "bob's")
START, STOP = "user-typing", "user-stopped-typing"


async def test_typing_stops_by_itself_once() -> None:
    scene = Scene()
    await scene.types(ANN)
    assert scene.hall.said[0] == [(START, "ann", "ann's phone")]
    await scene.hall.wait(2.9)
    assert scene.hall.take() == [START]
    await scene.hall.wait(0.2)
    assert scene.hall.said[0] == [(STOP, "ann", "ann's phone")]
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


async def test_devices_on_two_processes_start_once_and_stop_once_for_everybody() -> None:
    scene = Scene(processes=3)
    await scene.types(ANN, 0)
    await scene.hall.wait(0.5)
    await scene.types(DESK, 1)
    for process in range(3):
        assert scene.hall.take(process) == [START]
    await scene.stops(ANN, 0)
    await scene.hall.wait(1)
    for process in range(3):
        assert scene.hall.take(process) == []
    # The other one is told of as often, though nobody else types any more.
    for _ in range(20):
        await scene.types(DESK, 1)
        await scene.hall.wait(0.1)
    await scene.hall.wait(5)
    for process in range(3):
        assert scene.hall.take(process) == [START, START, STOP]
    await scene.hall.wait(60)
    assert not any(scene.hall.take(process) for process in range(3))


async def test_many_devices_are_told_of_once_a_second() -> None:
    scene = Scene(processes=2)
    devices = [Person("ann", f"device {number}") for number in range(10)]
    for _ in range(50):
        for number, device in enumerate(devices):
            await scene.types(device, number % 2)
        await scene.hall.wait(0.1)
    for process in range(2):
        assert scene.hall.take(process) == [START] * 5
    await scene.hall.wait(10)
    for process in range(2):
        assert scene.hall.take(process) == [STOP]


async def test_a_session_that_goes_on_on_another_process_types_on() -> None:
    scene = Scene(processes=2)
    await scene.types(ANN, 0)
    moved = Person("ann", ANN.session_id)
    moved.client_id = "another connection"
    for _ in range(4):
        await scene.types(moved, 1)
        await scene.hall.wait(1)
    for process in range(2):
        assert scene.hall.take(process) == [START] * 4
    await scene.hall.wait(5)
    for process in range(2):
        assert scene.hall.take(process) == [STOP]


async def test_a_process_that_is_lost_types_no_more() -> None:
    scene = Scene(processes=2)
    await scene.types(ANN, 0)
    await scene.types(DESK, 1)
    scene.kill(0)
    await scene.stops(DESK, 1)
    assert scene.hall.take(1) == [START]
    await scene.hall.wait(4.9)
    assert scene.hall.take(1) == []
    await scene.hall.wait(0.2)
    assert scene.hall.take(1) == [STOP]
    await scene.hall.wait(60)
    assert scene.hall.take(1) == []


async def test_people_type_independently_and_nothing_is_left_of_them() -> None:
    scene = Scene()
    crowd = [Person(f"user {number}", f"session {number}") for number in range(200)]
    nobody = [Person(None, f"anonymous {number}") for number in range(2)]
    for person in crowd + nobody:
        await scene.types(person)
    assert scene.hall.take() == [START] * 202
    await scene.hall.wait(4)
    assert scene.hall.take() == [STOP] * 202
    assert all(timer.cancelled for timer, _ in scene.hall.timers)
    (typing,) = scene.hall.typing
    assert not typing._typists and not typing._devices


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
