"""Rooms as an app writes them: patterns, handlers, hooks, publishing. On asyncio and on trio."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import anyio
import msgspec
import pydantic
import pytest
from anyio.lowlevel import checkpoint

from starlette_realtime.auth import User
from starlette_realtime.brokers.memory import MemoryBroker
from starlette_realtime.core.lobby import Introduction
from starlette_realtime.core.namespace import Happening, Namespace
from starlette_realtime.core.room import Room
from starlette_realtime.core.router import RoomType, event
from starlette_realtime.core.session import Member, Session
from starlette_realtime.errors import (
    AckTimeout,
    ClientError,
    CloseConnection,
    ConfigurationError,
    Disconnected,
    UnknownRoom,
)
from starlette_realtime.events import Position
from tests.core.helpers import LateBroker, Socket, house, until
from tests.support.loops import both_loops

pytestmark = [pytest.mark.anyio, both_loops]


# Patterns


async def test_convertors_give_their_values() -> None:
    seen: list[dict[str, Any]] = []

    def configure(namespace: Namespace) -> None:
        numbers = namespace.room("number/{id:int}")
        files = namespace.room("file/{path:path}")
        pair = namespace.room("{first}/{second:float}")

        @numbers.on("tell")
        async def number(id: int, room: Room, member: Member, data: str) -> None:
            seen.append({"id": id, "params": room.params, "data": data})

        @files.on("tell")
        async def file(path: str) -> None:
            seen.append({"path": path})

        @pair.authorize
        def both(second: float, first: str) -> bool:
            seen.append({"first": first, "second": second})
            return True

    async with house(configure) as running:
        ann = await running.enter("ann")
        for room in ("number/7", "file/a/b.txt", "x/2.5"):
            assert (await ann.ask("join", room))["type"] == "joined", room
            if room != "x/2.5":
                await ann.send("tell", room, "hi")
        assert seen == [
            {"id": 7, "params": {"id": 7}, "data": "hi"},
            {"path": "a/b.txt"},
            {"first": "x", "second": 2.5},
        ]
        for room in ("number/x", "number/7/8", "number/", "nothing", "", "number/-1"):
            error = await ann.ask("join", room)
            assert error["code"] in ("unknown_room", "invalid_message"), room
        with pytest.raises(UnknownRoom):
            running.engine.room("nothing")


async def test_a_room_has_one_name() -> None:
    """A handler sees the converted parameters, and could not tell the rooms apart."""
    uuid = "0f8fad5b-d9cb-469f-a165-70867728950e"

    def configure(namespace: Namespace) -> None:
        namespace.room("number/{id:int}")
        namespace.room("thing/{id:uuid}")

    async with house(configure) as running:
        ann = await running.enter("ann")
        for room in ("number/7", "number/0", f"thing/{uuid}"):
            assert (await ann.ask("join", room))["type"] == "joined", room
        others = ("number/07", "number/000", f"thing/{uuid.upper()}", "thing/" + uuid[9:])
        for room in (*others, f"thing/{uuid.replace('-', '')}"):
            assert (await ann.ask("join", room))["code"] == "unknown_room", room
            with pytest.raises(UnknownRoom):
                running.engine.room(room)


async def test_the_first_pattern_that_fits_counts() -> None:
    def configure(namespace: Namespace) -> None:
        namespace.room("a/{x:int}").authorize(lambda x: x == 1)
        namespace.room("a/{x}")

    async with house(configure) as running:
        ann = await running.enter("ann")
        assert (await ann.ask("join", "a/1"))["type"] == "joined"
        assert (await ann.ask("join", "a/2"))["code"] == "access_denied"
        assert (await ann.ask("join", "a/b"))["type"] == "joined"


def test_mistakes_are_told_when_they_are_made(anyio_backend_name: str) -> None:
    from starlette_realtime.auth import AnonymousAuth

    namespace = Namespace("/", AnonymousAuth())
    room = namespace.room("r/{id}")
    room.on("twice")(lambda room: None)
    wrong: list[Any] = [
        lambda: namespace.room("{a}/{a}"),
        lambda: namespace.room("{a:nothing}"),
        lambda: room.on("join"),
        lambda: room.on(""),
        lambda: room.on("a\nb"),
        lambda: room.on("$disconnect"),
        lambda: room.on("x" * 256),
        lambda: room.on("twice")(lambda room: None),
        lambda: room.on("star")(lambda *rest: None),
        lambda: room.on("stars")(lambda **rest: None),
        lambda: room.on("more")(lambda data, more: None),
        lambda: room.authorize(lambda data: True),
        lambda: namespace.on("no-such-event"),  # type: ignore[arg-type]
        lambda: namespace.middleware("other"),  # type: ignore[arg-type]
        lambda: Namespace("admin", AnonymousAuth()),
    ]
    for make in wrong:
        with pytest.raises(ConfigurationError):
            make()


# Handlers


class Move(msgspec.Struct):
    x: int
    y: int = 0


@dataclass
class DataMove:
    x: int
    y: int = 0


class DictMove(TypedDict):
    x: int


class ModelMove(pydantic.BaseModel):
    x: int
    y: int = 0


async def test_payloads_are_validated_from_the_annotation() -> None:
    def configure(namespace: Namespace) -> None:
        room = namespace.room("r")

        @room.on("struct")
        async def struct(data: Move) -> Move:
            return Move(data.x + 1)

        @room.on("dataclass")
        async def data_class(data: DataMove) -> DataMove:
            return DataMove(data.x + 1)

        @room.on("typed-dict")
        async def typed_dict(data: DictMove) -> DictMove:
            return {"x": data["x"] + 1}

        @room.on("pydantic")
        async def model(data: ModelMove) -> ModelMove:
            return ModelMove(x=data.x + 1)

        @room.on("sync")
        def sync(data: Move) -> dict[str, int]:
            return {"x": data.x + 1}

        @room.on("list")
        async def several(data: list[Move]) -> int:
            return len(data)

        @room.on("bytes")
        async def blob(data: bytes) -> list[Any]:
            return [data, len(data)]

        @room.on("anything")
        async def anything(what) -> Any:  # type: ignore[no-untyped-def]
            return what

        @room.on("optional")
        async def optional(data: Move | None = None) -> bool:
            return data is None

    async with house(configure) as running:
        ann = await running.enter("ann")
        await ann.ask("join", "r")
        for kind in ("struct", "dataclass", "typed-dict", "pydantic", "sync"):
            await ann.send(kind, "r", {"x": 1}, id=kind)
            await until(lambda kind=kind: ann.received[-1].get("id") == kind)  # type: ignore[misc]
            assert ann.received[-1]["data"]["x"] == 2, kind
            for bad in ({"x": "1"}, {}, None, [1]):
                if kind == "pydantic" and bad == {"x": "1"}:
                    continue
                error = await ann.ask(kind, "r", bad)
                assert error["code"] == "invalid_message", (kind, bad)
                assert error["error"].startswith("Invalid message format")
        assert (await ann.ask("list", "r", [{"x": 1}, {"x": 2}]))["data"] == 2
        answer = await ann.ask("bytes", "r", {"$bytes": "AAE="})
        assert answer["data"] == [{"$bytes": "AAE="}, 2]
        assert (await ann.ask("anything", "r", {"a": [1]}))["data"] == {"a": [1]}
        assert (await ann.ask("optional", "r"))["data"] is True


async def test_a_handler_class() -> None:
    left: list[str | None] = []

    def configure(namespace: Namespace) -> None:
        class Point(msgspec.Struct):
            x: int

        room = namespace.room("board/{id:int}")

        @room
        class Board:
            def __init__(self) -> None:
                self.moves = 0

            async def authorize(self, member: Member, id: int) -> bool:
                return id < 10

            async def on_join(self, member: Member) -> None:
                await member.send("welcome", member.user_id)

            def on_leave(self, member: Member) -> None:
                left.append(member.user_id)

            @event("move")
            async def move(self, room: Room, id: int, data: Point) -> int:
                self.moves += data.x
                await room.publish("moved", {"board": id})
                return self.moves

    async with house(configure) as running:
        ann = await running.enter("ann")
        assert (await ann.ask("join", "board/11"))["code"] == "access_denied"
        await ann.ask("join", "board/7")
        assert ann.of("welcome")[0]["data"] == "ann"
        assert (await ann.ask("move", "board/7", {"x": 2}))["data"] == 2
        assert (await ann.ask("move", "board/7", {"x": 3}))["data"] == 5
        assert ann.of("moved")[-1]["data"] == {"board": 7}
        await ann.send("leave", "board/7")
        await until(lambda: left == ["ann"])


async def test_a_handler_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Happening] = []

    def configure(namespace: Namespace) -> None:
        room = namespace.room("r")

        @room.on("bug")
        async def bug() -> None:
            raise KeyError("secret detail")

        @room.on("unsendable")
        async def unsendable() -> object:
            return object()

        @room.on("refuse")
        async def refuse() -> None:
            raise ClientError("sold_out", "Sold out", retry=True)

        @room.on("close")
        async def close() -> None:
            raise CloseConnection(4444, "enough")

        namespace.on("error")(errors.append)

    async with house(configure) as running:
        ann = await running.enter("ann")
        await ann.ask("join", "r")
        for kind in ("bug", "unsendable"):
            with caplog.at_level(logging.ERROR):
                error = await ann.ask(kind, "r")
            assert (error["code"], error["error"], error["retry"]) == (
                "handler_error",
                "Internal error",
                False,
            )
        tracebacks = [record.exc_text or "" for record in caplog.records]
        assert any("secret detail" in text and "Traceback" in text for text in tracebacks)
        assert "secret detail" not in str(ann.received)
        assert [type(e.error).__name__ for e in errors] == ["KeyError", "TypeError"]
        error = await ann.ask("refuse", "r")
        assert (error["code"], error["error"], error["retry"]) == ("sold_out", "Sold out", True)
        assert len(errors) == 2
        assert ann.session.rooms == ("r",)
        assert ann.socket.closed is None
        with pytest.raises(CloseConnection):
            await ann.send("close", "r")


# Hooks


async def test_authorize(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    def configure(namespace: Namespace) -> None:
        room = namespace.room("{what}")

        @room.authorize
        async def first(member: Member, what: str) -> Any:
            asked.append(what)
            match what:
                case "raise":
                    raise RuntimeError("a bug in the app")
                case "refuse":
                    raise ClientError("too_late", "Too late")
                case "slow":
                    await anyio.sleep_forever()
                case "truthy":
                    return 1
            return what != "false"

        @room.authorize
        def second(what: str) -> bool:
            return what != "second"

    async with house(configure, handler_timeout=0.1) as running:
        ann = await running.enter("ann")
        bob = await running.enter("bob")
        await bob.ask("join", "true")
        codes = {
            "false": "access_denied",
            "truthy": "access_denied",
            "raise": "handler_error",
            "refuse": "too_late",
            "slow": "timeout",
        }
        for what, code in codes.items():
            assert (await ann.ask("join", what))["code"] == code
            assert (await ann.ask("broadcast", what, 1))["code"] == "not_in_room"
            # Nothing is left of the attempt.
            assert f"room/:{what}" not in running.hub.channels
            assert (await running.engine.room(what).counts()).users == 0
        await ann.send("join", "second", id="second")
        await until(lambda: ann.received[-1].get("id") == "second")
        assert ann.received[-1]["code"] == "access_denied"
        await ann.send("join", "true", id="true")
        await until(lambda: ann.received[-1].get("id") == "true")
        assert ann.received[-1]["type"] == "joined"
        assert asked == ["true", *codes, "second", "true"]


async def test_capabilities() -> None:
    async with house() as running:
        user = User(id="ann", capabilities=("chat/*", "one"))
        ann = await running.enter(user)
        for room in ("chat/7", "chat/7/8", "one"):
            assert (await ann.ask("join", room))["type"] == "joined", room
        for room in ("chat", "two", "Chat/7", "one/x", "xchat/7"):
            assert (await ann.ask("join", room))["code"] == "access_denied", room
        none = await running.enter(User(id="eve", capabilities=()))
        assert (await none.ask("join", "one"))["code"] == "access_denied"


async def test_join_and_leave_hooks(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, str | None]] = []

    def configure(namespace: Namespace) -> None:
        room = namespace.room("{name}")

        @room.on_join
        async def came(room: Room, member: Member, name: str) -> None:
            assert member.session.rooms == (name,)
            told.append(("came", member.user_id))
            raise RuntimeError("a bug in the app")

        @room.on_leave
        async def went(room: Room, member: Member) -> None:
            told.append(("went", member.user_id))
            raise RuntimeError("a bug in the app")

    async with house(configure, presence_grace=0.05) as running:
        ann, bob = await running.enter("ann"), await running.enter("bob")
        assert (await ann.ask("join", "r"))["type"] == "joined"
        # Joining again is not another arrival.
        assert (await ann.ask("join", "r"))["type"] == "joined"
        assert told == [("came", "ann")]
        assert (await ann.ask("leave", "r"))["type"] == "left"
        assert told[1:] == [("went", "ann")]
        await bob.ask("join", "r")
        await bob.vanish()
        assert len(told) == 3
        # A crash is told when the grace period is over.
        await until(lambda: told[3:] == [("went", "bob")])
        eve = await running.enter("eve")
        await eve.ask("join", "r")
        await eve.vanish(code=1000)
        assert told[-1] == ("went", "eve")
        assert sum("a hook of" in record.message for record in caplog.records) == 6


async def test_an_app_hears_what_happens() -> None:
    told: list[tuple[Any, ...]] = []

    def configure(namespace: Namespace) -> None:
        namespace.room("{name}")

        @namespace.on("connection")
        async def connected(happening: Happening) -> None:
            told.append(("connection", happening.session.user_id))

        @namespace.on("message")
        def message(happening: Happening) -> None:
            assert happening.command is not None
            told.append(("message", happening.command.type))

        @namespace.on("room-joined")
        def joined(happening: Happening) -> None:
            assert happening.member is not None
            told.append(("room-joined", happening.room, happening.member.user_id))

        @namespace.on("room-left")
        def left(happening: Happening) -> None:
            told.append(("room-left", happening.room))

        @namespace.on("disconnection")
        def over(happening: Happening) -> None:
            told.append(("disconnection", happening.code))
            raise RuntimeError("an observer's bug harms nobody")

    async with house(configure) as running:
        ann = await running.enter("ann")
        await ann.ask("join", "r")
        await ann.ask("broadcast", "r", 1)
        await ann.ask("nothing", "r")
        await ann.ask("leave", "r")
        await ann.vanish(code=1000)
    assert told == [
        ("connection", "ann"),
        ("room-joined", "r", "ann"),
        ("message", "join"),
        ("message", "broadcast"),
        ("room-left", "r"),
        ("message", "leave"),
        ("disconnection", 1000),
    ]


# Membership


async def test_joining_is_idempotent_and_bounded() -> None:
    async with house(max_rooms=2) as running:
        ann = await running.enter("ann")
        bob = await running.enter("bob")
        await bob.ask("join", "a")
        for _ in range(3):
            assert (await ann.ask("join", "a"))["type"] == "joined"
        await running.publish("a", data=1)
        await running.settle()
        assert len(ann.of("n")) == 1
        assert len(bob.of("user-joined")) == 1
        await ann.ask("join", "b")
        error = await ann.ask("join", "c")
        assert (error["code"], error["error"]) == (
            "limit_exceeded",
            "Limit exceeded: at most 2 rooms",
        )
        await ann.ask("leave", "b")
        assert (await ann.ask("join", "c"))["type"] == "joined"


async def test_joining_again_with_a_position() -> None:
    async with house() as running:
        ann = await running.enter("ann")
        position = (await ann.ask("join", "r"))["position"]
        for number in range(3):
            await running.publish("r", data=number)
        await running.settle()
        ann.take()
        since = Position(position["epoch"], position["offset"] + 1)
        joined = await ann.ask("join", "r", since=since)
        assert joined["recovered"] is True
        assert [m["data"] for m in ann.of("n")] == [1, 2]
        await running.publish("r", data=3)
        await running.settle()
        assert [m["data"] for m in ann.of("n")] == [1, 2, 3]


async def test_a_room_that_everybody_leaves_while_a_slow_client_comes_back() -> None:
    """It reads the rest of what it has first, which lasts longer than a channel without members."""
    async with house(max_queued=1000, presence_grace=0.0, resume_window=0.0) as running:
        ann, bob = await running.enter("ann"), await running.enter("bob")
        await ann.ask("join", "other")
        position = (await bob.ask("join", "r"))["position"]
        since = Position(position["epoch"], position["offset"])
        await running.publish("r", data="missed")
        await running.settle()
        channel = running.engine.room_channel("r")
        # What comes next stays in ann's outbox.
        ann.socket.takes_more = False
        for size in (1, 600):
            await running.publish("other", data="x" * size)
            await running.settle()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(ann.send, "join", "r", id="j", since=since))
            await running.settle()
            await bob.ask("leave", "r")
            await until(lambda: channel not in running.hub.channels)
            ann.socket.takes_more = True
            ann.socket.outbox.resume()
        await running.publish("r", data="live")
        await running.settle()
        assert [m["data"] for m in ann.of("n") if m["room"] == "r"] == ["missed", "live"]


async def test_history_that_no_longer_reaches() -> None:
    def configure(namespace: Namespace) -> None:
        namespace.room("r", history=5, recent=3)
        namespace.room("none", history=0)

    async with house(configure) as running:
        ann = await running.enter("ann")
        position = (await ann.ask("join", "r"))["position"]
        await ann.ask("leave", "r")
        for number in range(10):
            await running.publish("r", data=number)
        joined = await ann.ask("join", "r", since=Position(**position))
        assert joined["recovered"] is False
        assert [item["data"] for item in joined["recentMessages"]] == [7, 8, 9]
        assert ann.of("n") == []
        joined = await ann.ask("join", "none")
        assert joined["recentMessages"] == []
        joined = await ann.ask("join", "none", since=Position(**position))
        assert joined["recovered"] is False


async def test_too_much_was_missed() -> None:
    async with house(recover_limit=3) as running:
        ann = await running.enter("ann")
        position = Position(**(await ann.ask("join", "r"))["position"])
        await ann.ask("leave", "r")
        # Offset 2 is her own departure.
        await running.publish("r", data=0)
        await running.publish("r", data=1)
        assert (await ann.ask("join", "r", since=position))["recovered"] is False


async def test_presence_of_several_kinds() -> None:
    def configure(namespace: Namespace) -> None:
        namespace.room("full")
        namespace.room("counts", presence="counts")
        namespace.room("none", presence="none")

    async with house(configure) as running:
        ann, bob = await running.enter("ann"), await running.enter("bob")
        nobody = await running.enter()
        for room in ("full", "counts", "none"):
            await ann.ask("join", room)
            await bob.ask("join", room)
            await nobody.ask("join", room)
        assert [m["room"] for m in ann.of("user-joined")] == ["full"]
        assert (await ann.ask("members", "full"))["data"]["count"] == 2
        counted = (await ann.ask("members", "counts"))["data"]
        assert (counted["count"], counted["members"]) == (2, [])
        assert (await ann.ask("members", "none"))["code"] == "access_denied"


async def test_an_observer_that_hangs_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def configure(namespace: Namespace) -> None:
        namespace.room("{name}")

        @namespace.on("message")
        async def hang(happening: Happening) -> None:
            await anyio.sleep_forever()

        @namespace.on("message")
        def next_one(happening: Happening) -> None:
            told.append(happening.name)

    async with house(configure, handler_timeout=0.05) as running:
        ann = await running.enter("ann")
        assert (await ann.ask("join", "r"))["type"] == "joined"
        assert told == ["message"]
        assert "an observer of 'message' raised" in caplog.text


# Publishing


async def test_publishing_and_leaving_someone_out() -> None:
    members: dict[str, Member] = {}

    def configure(namespace: Namespace) -> None:
        room = namespace.room("r", broadcast=False)

        @room.on("say")
        async def say(room: Room, member: Member, data: Any) -> None:
            await room.publish("said", data, exclude=member)

        @room.on_join
        def keep(member: Member) -> None:
            members[str(member.user_id)] = member

    async with house(configure) as running:
        ann, bob = await running.enter("ann"), await running.enter("bob")
        nobody = await running.enter("eve")
        for client in (ann, bob):
            await client.send("join", "r")
        await until(lambda: len(members) == 2)
        assert (await ann.ask("broadcast", "r", 1))["code"] == "access_denied"
        await ann.ask("say", "r", {"n": 1})
        # By its id, as an HTTP endpoint knows it.
        await running.publish("r", "said", {"n": 2}, exclude=ann.session.id)
        await running.settle()
        assert ann.of("said") == []
        assert [m["data"] for m in bob.of("said")] == [{"n": 1}, {"n": 2}]
        assert nobody.received == []
        # What one was left out of is not replayed either.
        end = (await ann.ask("history", "r"))["data"]["position"]
        since = Position(end["epoch"], end["offset"] - 2)
        assert (await ann.ask("join", "r", since=since))["recovered"] is True
        assert ann.of("said") == []
        # To one member alone; kept nowhere.
        await members["bob"].send("psst", 7)
        await running.settle()
        assert bob.of("psst") == [{"type": "psst", "room": "r", "data": 7}]
        assert ann.of("psst") == []
        # Not kept.
        await running.publish("r", "blink", keep=False)
        await running.publish("r", "flash", volatile=True)
        await running.settle()
        assert all("offset" not in m for m in ann.of("blink", "flash"))
        assert len(bob.of("blink", "flash")) == 2
        page = (await ann.ask("history", "r"))["data"]["messages"]
        assert [item["type"] for item in page] == ["said", "said"]


async def test_a_message_to_a_user_a_session_and_all() -> None:
    async with house() as running:
        engine = running.engine
        phone, laptop = await running.enter("ann"), await running.enter("ann")
        bob, nobody = await running.enter("bob"), await running.enter()
        everyone = [phone, laptop, bob, nobody]

        async def who(channel: str, exclude: str = "") -> list[int]:
            await engine.tell(channel, "tap", {"n": 1}, exclude)
            await running.settle()
            return [
                number
                for number, client in enumerate(everyone)
                if client.take() == [{"type": "tap", "data": {"n": 1}}]
            ]

        assert await who(engine.user_channel("ann")) == [0, 1]
        assert await who(engine.user_channel("nobody")) == []
        assert await who(engine.session_channel(laptop.session.id)) == [1]
        assert await who(engine.everyone_channel) == [0, 1, 2, 3]
        assert await who(engine.everyone_channel, bob.session.id) == [0, 1, 3]
        await laptop.vanish()
        assert await who(engine.user_channel("ann")) == [0]


async def test_what_is_published_before_a_member_is_sent_away_reaches_it() -> None:
    def configure(namespace: Namespace) -> None:
        room = namespace.room("r")

        @room.on("go")
        async def go(room: Room, member: Member) -> None:
            await room.publish("banned", member.user_id)
            await member.leave("banned")

    async with house(configure) as running:
        ann, bob = await running.enter("ann"), await running.enter("bob")
        await ann.ask("join", "r")
        await bob.ask("join", "r")
        ann.take()
        await ann.ask("go", "r")
        assert [m["type"] for m in ann.take()] == ["user-joined", "banned", "left", "ack"][1:]
        assert ann.session.rooms == ()
        await running.publish("r")
        await running.settle()
        assert ann.take() == []
        assert [m["type"] for m in bob.of("banned", "user-left", "n")] == [
            "banned",
            "user-left",
            "n",
        ]


async def test_a_session_that_the_app_lets_join() -> None:
    async with house() as running:
        ann = await running.enter("ann")
        await ann.session.join("r")
        await running.settle()
        assert ann.of("joined")[0]["roomId"] == "r"
        await running.publish("r")
        await ann.session.leave("r", "closed")
        await running.settle()
        assert ann.received[-1] == {"type": "left", "roomId": "r", "reason": "closed"}
        assert len(ann.of("n")) == 1


async def test_joins_of_one_room_at_once() -> None:
    """The client asks, and the app lets it in, at the same time."""
    async with house() as running:
        ann = await running.enter("ann")
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ann.session.join, "r")
                    tasks.start_soon(ann.send, "join", "r")
                tasks.start_soon(running.publish, "r")
        await running.settle()
        await running.publish("r", "last")
        await running.settle()
        assert [m["type"] for m in ann.of("last", "error")] == ["last"]
        assert ann.session.rooms == ("r",)


# Questions to clients


async def test_a_client_is_asked() -> None:
    async with house() as running:
        ann = await running.enter("ann")
        answers: list[Any] = []

        async def ask(session: Session, data: Any) -> None:
            answers.append(await session.request("question", data))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, ann.session, {"n": 1})
            await until(lambda: ann.of("question"))
            (asked,) = ann.take()
            assert (asked["type"], asked["data"]) == ("question", {"n": 1})
            for id in ("x", asked["id"] + 1, None):
                ann.session.engine.answer(ann.session, command(id, "wrong"))
            assert answers == []
            ann.session.engine.answer(ann.session, command(asked["id"], ["right"]))
        assert answers == [["right"]]
        with pytest.raises(AckTimeout):
            await ann.session.request("question", timeout=0.02)
        assert not ann.session.requests
        # One that goes away for good has not answered.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(disconnected, ann.session)
            await until(lambda: len(ann.of("question")) == 2)
            await ann.vanish(code=1000)
        with pytest.raises(Disconnected):
            await ann.session.request("question")


async def disconnected(session: Session) -> None:
    with pytest.raises(Disconnected):
        await session.request("question")


def command(id: Any, data: Any) -> Any:
    from starlette_realtime.events import Command

    return Command("ack", id=id, data=msgspec.Raw(msgspec.json.encode(data)))


def test_a_room_type_says_what_it_is(anyio_backend_name: str) -> None:
    from starlette_realtime.core.router import RoomOptions

    assert repr(RoomType("a/{b}", RoomOptions())) == "<RoomType 'a/{b}'>"


async def test_an_answer_that_is_no_payload_is_none() -> None:
    async with house() as running:
        ann = await running.enter("ann")
        raised: list[bool] = []

        async def ask() -> None:
            with pytest.raises(AckTimeout):
                await ann.session.request("question")
            raised.append(True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: ann.of("question"))
            (asked,) = ann.take()
            answer = command(asked["id"], {"$bytes": "no base64"})
            ann.session.engine.answer(ann.session, answer)
        assert raised == [True]


async def test_the_message_ids_of_two_users_never_meet() -> None:
    def configure(namespace: Namespace) -> None:
        room = namespace.room("{name}")

        @room.on("say")
        async def say(room: Room, data: str) -> None:
            await room.publish("said", data)

    async with house(configure) as running:
        org = await running.enter("org")
        ann = await running.enter("org/ann")
        await org.ask("join", "r")
        await ann.ask("join", "r")
        for type, heard in (("broadcast", "broadcast"), ("say", "said")):
            await org.send(type, "r", "first", message_id="ann/1")
            await ann.send(type, "r", "second", message_id="1")
            await running.settle()
            assert [m["data"] for m in ann.of(heard)] == ["first", "second"]


async def test_the_message_ids_of_an_event_and_a_broadcast_never_meet() -> None:
    def configure(namespace: Namespace) -> None:
        room = namespace.room("{name}")

        @room.on("say")
        async def say(room: Room, data: str) -> None:
            await room.publish("said", data)

    async with house(configure) as running:
        ann = await running.enter("ann")
        await ann.ask("join", "r")
        await ann.send("say", "r", "first", message_id="m")
        for id in ("m/1", "m/0", "m/0/0"):
            await ann.send("broadcast", "r", id, message_id=id)
        await running.settle()
        assert [m["data"] for m in ann.of("said", "broadcast")] == ["first", "m/1", "m/0", "m/0/0"]


async def test_rooms_of_the_first_message_have_names_as_others_have() -> None:
    async with house() as running:
        ann = await running.enter("ann")
        rooms = {"r": None, "x" * 256: None, "a\nb": None, "": None}
        await ann.session.engine.rejoin(ann.session, rooms)
        await running.settle()
        assert [m["roomId"] for m in ann.of("joined")] == ["r"]
        assert [m["code"] for m in ann.of("error")] == ["invalid_message"] * 3
        assert list(ann.session.rooms) == ["r"]
        # The same ones, wherever the name stands.
        family = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"
        await ann.send("join", data={"roomId": family})
        await ann.session.engine.rejoin(ann.session, {family: None})
        await running.publish(family, "news", 1)
        await running.settle()
        assert list(ann.session.rooms) == ["r", family]
        assert [m["room"] for m in ann.of("news")] == [family]


async def test_coming_back_is_given_up_half_way() -> None:
    entered = anyio.Event()

    def configure(namespace: Namespace) -> None:
        room = namespace.room("{name}")

        @room.on_leave
        async def on_leave(room: Room) -> None:
            entered.set()
            await anyio.sleep(0.01)

    async with house(configure, presence_grace=0.0) as running:
        lobby = running.engine.lobby
        ann = await running.enter("ann")
        ann.session.data["kept"] = True
        for name in ("a", "b"):
            await ann.ask("join", name)
        token = lobby._sign(ann.session.id, 1, "ann")

        async def come_back() -> Session:
            return await lobby.connect(
                Socket(running.runtime.options), ann.session.user, Introduction(resume=token)
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(come_back)
            await entered.wait()
            tasks.cancel_scope.cancel()
        # Its rooms have seen it leave, all of them, and it is still there to be resumed.
        await until(lambda: not any(name.startswith("room") for name in running.hub.channels))
        again = await come_back()
        assert (again, again.data) == (ann.session, {"kept": True})


@pytest.mark.parametrize("turns", range(0, 12, 2))
async def test_a_join_that_is_cancelled_leaves_the_others_theirs(turns: int) -> None:
    """Whoever comes second waits for the subscription, and for the read, of the first."""

    def late(memory: MemoryBroker) -> LateBroker:
        return LateBroker(memory, random.Random(1))

    async with house(broker=late) as running:
        ann, bob = await running.enter("ann"), await running.enter("bob")
        scope = anyio.CancelScope()

        async def first() -> None:
            with scope:
                await ann.session.join("r")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await checkpoint()
            tasks.start_soon(bob.session.join, "r")
            for _ in range(turns):
                await checkpoint()
            scope.cancel()
        if scope.cancelled_caught:
            await ann.session.join("r")
        await running.publish("r", data="to both")
        await until(lambda: ann.of("n") and bob.of("n"))
        assert len(bob.of("joined")) == 1
        assert ann.of("n")[0]["data"] == bob.of("n")[0]["data"] == "to both"
