"""What the stores cost a Redis: round trips, memory, many rooms and large ones."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
import redis
from redis.asyncio import Redis as AsyncRedis

from starlette_realtime import AnonymousAuth, DirectMessages, Options, Presence, Realtime
from starlette_realtime._redis import RedisServer
from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.events import Draft, Lane, Letter, Retention
from starlette_realtime.inbox.redis import RedisInbox
from starlette_realtime.presence import Counts, Lease
from starlette_realtime.presence.redis import RedisPresence
from starlette_realtime.sessions import SessionRecord
from starlette_realtime.sessions.redis import RedisSessions
from starlette_realtime.testing.contracts import Recorder
from tests.features.helpers import Names
from tests.support.redis_server import ROOT
from tests.support.redis_server import RedisServer as Process
from tests.support.server import LiveServer
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

KEEP = Retention()


@asynccontextmanager
async def commands(url: str) -> AsyncIterator[Callable[[], Awaitable[list[str]]]]:
    """What clients ask of a server inside the block, without what scripts do: what is yielded
    returns the first words of all commands since it was last called."""
    async with AsyncRedis.from_url(url, protocol=2) as client, client.monitor() as monitor:
        asker = AsyncRedis.from_url(url, protocol=2)

        async def asked() -> list[str]:
            await asker.echo("that was all")
            found: list[str] = []
            while True:
                command = await monitor.next_command()
                words = command["command"].split(" ")
                if words[0] == "ECHO":
                    return found
                if command["client_type"] != "lua":
                    found.append(words[0])

        try:
            await asked()
            yield asked
        finally:
            await asker.aclose()


async def test_a_publication_is_one_round_trip(redis_url: str) -> None:
    quiet = f"{redis_url}?probe=600"
    broker = RedisBroker(quiet)
    drafts = [
        Draft(event="said", data=b"1", lane=lane, id=id, amends=amends, amended=b"2")
        for lane in Lane
        for id in ("", f"id{lane}")
        for amends in ("", "id1")
    ]
    realtime = Realtime(quiet, auth=AnonymousAuth())
    realtime.room("chat/{id}")
    async with broker.run(Recorder()), realtime.run(), commands(redis_url) as asked:
        for draft in drafts:
            await broker.publish("room", draft, KEEP)
        await asked()
        for draft in drafts:
            await broker.publish("room", draft, KEEP)
        found = await asked()
        assert len(found) == len(drafts)
        assert set(found) == {"EVALSHA", "PUBLISH"}
        await realtime.publish("chat/7", "said", 1)
        await realtime.send_to_user("ann", "ready")
        assert await asked() == ["EVALSHA", "PUBLISH"]


async def test_a_message_of_a_client_is_one_round_trip(
    redis_url: str, serve: Callable[..., LiveServer]
) -> None:
    realtime = Realtime(f"{redis_url}?probe=600", auth=AnonymousAuth())
    realtime.room("chat/{id}")
    server = serve(realtime)
    async with (
        NativeClient.open(server.ws("/ws")) as ann,
        NativeClient.open(server.ws("/ws")) as bob,
    ):
        for client in (ann, bob):
            await client.request("join", "chat/7")
        await ann.request("broadcast", "chat/7", {"content": 0})
        async with commands(redis_url) as asked:
            for number in range(1, 6):
                await ann.request("broadcast", "chat/7", {"content": number})
                await bob.expect("broadcast", data={"content": number})
            assert await asked() == ["EVALSHA"] * 5


# Memory


def documented() -> dict[str, list[int]]:
    """The table of sizes in docs/deployment.md: numbers by the words before them."""
    text = (ROOT / "docs/deployment.md").read_text().split("## Sizing")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+) \|$", text, re.MULTILINE)
    return {
        name: [int(number.replace(" ", "")) for number in re.findall(r"\d[\d ]*", value)]
        for name, value in rows
    }


async def wait_for(call: Callable[[], Awaitable[object]]) -> None:
    await call()


async def in_batches(calls: Iterable[Callable[[], Awaitable[object]]], size: int = 200) -> None:
    batch: list[Callable[[], Awaitable[object]]] = []
    for call in [*calls, None]:
        if call is not None:
            batch.append(call)
        if call is None or len(batch) == size:
            async with anyio.create_task_group() as group:
                for each in batch:
                    group.start_soon(wait_for, each)
            batch.clear()


def lease(number: int) -> Lease:
    return Lease(f"{number:032x}", f"user-{number:06}", b'{"name":"Somebody Else"}')


def moved(event: str, number: int) -> Draft:
    data = b'{"userId":"user-%06d","user":{"name":"Somebody Else"}}' % number
    return Draft(event=event, data=data, lane=Lane.PRESENCE, exclude=f"{number:032x}")


def enter(presence: RedisPresence, room: str, number: int) -> Callable[[], Awaitable[object]]:
    return lambda: presence.enter(
        room,
        lease(number),
        ttl=600,
        arrival=moved("user-joined", number),
        departure=moved("user-left", number),
        retention=KEEP,
    )


async def test_what_things_take_is_what_the_documentation_says(
    own_redis: Callable[..., Process],
) -> None:
    process = own_redis()
    server = RedisServer(process.url)
    broker, presence = RedisBroker(server), RedisPresence(server)
    sessions, inbox = RedisSessions(server), RedisInbox(server)
    measured: dict[str, list[int]] = {}
    many = 1000

    def name(number: int) -> str:
        return f"room/:chat/{number:06}"

    with redis.Redis(port=process.port, protocol=2) as client:

        def used() -> int:
            # Without the buffers that connections have grown, which others take the place of.
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            return int(client.info("memory")["used_memory"])

        async def cost(*calls: Callable[[], Awaitable[object]]) -> int:
            before = used()
            await in_batches(calls)
            return (used() - before) // len(calls)

        async with (
            broker.run(Recorder()),
            presence.run(),
            sessions.run(),
            inbox.run(),
        ):

            def publish(number: int, id: str) -> Callable[[], Awaitable[object]]:
                draft = Draft(event="new-message", data=b"x" * 200, id=id)
                return lambda: broker.publish("room/:chat/one", draft, Retention(size=10 * many))

            def letter(number: int) -> Callable[[], Awaitable[object]]:
                letter = Letter(
                    id=f"{number:032x}",
                    sender_id="ann",
                    target_id="bob",
                    sender=b'{"name":"Ann"}',
                    content=b"x" * 200,
                    time=1,
                )
                return lambda: inbox.append(
                    "bob", letter, size=10 * many, per_peer=10 * many, age=600
                )

            await publish(0, "first")()
            await enter(presence, "room/:crowd", 0)()
            await letter(0)()
            numbers = range(1, many + 1)
            measured["a room that was opened and in which nothing is kept"] = [
                await cost(*(lambda n=n: broker.page(name(n), limit=1) for n in numbers))
            ]
            measured["a room with one member and its arrival"] = [
                await cost(*(enter(presence, f"{name(n)}/x", n) for n in numbers))
            ]
            measured["a further member of the same room, arrival kept"] = [
                await cost(*(enter(presence, "room/:crowd", n) for n in numbers))
            ]
            remembered = 0
            for id in ("", "0123456789abcdef0123456789ab"):
                ids = [f"{id}{n:04}" if id else "" for n in numbers]
                grown = await cost(*(publish(n, i) for n, i in zip(numbers, ids, strict=True)))
                keys = list(client.scan_iter("*:[ij]:*", count=1000))
                remembered = sum(client.memory_usage(key) or 0 for key in keys) // len(keys)
                client.delete(*keys)
                measured.setdefault(
                    "a message of 200 bytes in the history, without and with an id", []
                ).append(grown - remembered)
            measured["the id of a message, for ten minutes after it"] = [remembered]
            measured["a session, while it may be resumed"] = [
                await cost(
                    *(
                        lambda n=n: sessions.put(
                            SessionRecord(f"{n:032x}", "/", f"user-{n:06}", 1, "online"), 600
                        )
                        for n in numbers
                    )
                )
            ]
            measured["a private message of 200 bytes, with each of the two"] = [
                await cost(*(letter(n) for n in numbers))
            ]
    agree(measured)


def agree(measured: dict[str, list[int]]) -> None:
    """See that the documentation's table has these figures, give or take a quarter."""
    for what, bytes_ in measured.items():
        said = next((said for row, said in documented().items() if row.startswith(what)), None)
        assert said is not None and len(said) == len(bytes_), f"{what}: {bytes_}"
        for one, other in zip(said, bytes_, strict=True):
            assert abs(one - other) <= one / 4, f"{what}: {bytes_}, and not {said}"


async def test_what_a_user_takes_is_what_the_documentation_says(
    own_redis: Callable[..., Process], serve: Callable[..., LiveServer]
) -> None:
    process = own_redis()
    many = 100
    realtime = Realtime(process.url, auth=Names(), options=Options(max_connections_per_ip=0))
    realtime.add(Presence())
    realtime.add(DirectMessages())
    server = serve(realtime)
    async with AsyncExitStack() as stack:

        async def enter(name: str) -> None:
            client = NativeClient.open(server.ws("/ws"), hello={"token": name, "deviceId": "phone"})
            await stack.enter_async_context(client)

        with redis.Redis(port=process.port, protocol=2) as client:
            await enter("first")
            before = int(client.info("memory")["used_memory"])
            for number in range(many):
                await enter(f"user-{number:06}")
            grown = int(client.info("memory")["used_memory"]) - before
    agree({"a user who is connected, with all that belongs to it": [grown // many]})


async def test_many_rooms_and_a_large_one(redis_url: str) -> None:
    server = RedisServer(f"{redis_url}?probe=600")
    broker, presence = RedisBroker(server), RedisPresence(server)
    rooms, members = 1000, 500
    async with broker.run(Recorder()), presence.run(), commands(redis_url) as asked:
        # The first one brings the script.
        await enter(presence, "room0", 0)()
        await asked()
        await in_batches(enter(presence, f"room{n}", n) for n in range(rooms))
        await in_batches(enter(presence, "crowd", n) for n in range(members))
        assert len(await asked()) == rooms + members
        assert await presence.counts("room999") == Counts(1, 1)
        assert await presence.counts("crowd") == Counts(members, members)
        found, cursor = 0, ""
        while True:
            page = await presence.members("crowd", cursor=cursor, limit=200)
            found, cursor = found + len(page.members), page.cursor
            if not cursor:
                break
        assert found == members
        await asked()
        # One command for many: how many there are, and not how many rooms.
        leases = [(f"room{n}", lease(n).session_id) for n in range(rooms)]
        leases += [("crowd", lease(n).session_id) for n in range(members)]
        # The first of each brings its script.
        await presence.renew(leases[:1], 600)
        await presence.expire()
        await broker.publish("crowd", Draft(event="said", data=b"0"), KEEP)
        await asked()
        assert await presence.renew(leases, 600) == []
        assert len(await asked()) <= len(leases) // 256 + 1
        assert await presence.expire() == 0
        await broker.publish("crowd", Draft(event="said", data=b"1"), KEEP)
        assert await asked() == ["EVALSHA"] * 2
        await presence.renew(leases, 0.001)
        assert await presence.expire() == len(leases)
        assert await presence.counts("crowd") == Counts(0, 0)
