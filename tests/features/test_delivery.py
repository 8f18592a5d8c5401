"""Private messages when what announces them is late or lost: on the core, without a door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from starlette_realtime.auth import User
from starlette_realtime.core.lobby import Introduction
from starlette_realtime.core.namespace import Namespace
from starlette_realtime.errors import BrokerUnavailable, CloseConnection
from starlette_realtime.events import Letter, Letters
from starlette_realtime.features.direct import DirectMessages
from starlette_realtime.inbox import MemoryInbox
from tests.core.helpers import Client, House, Socket, house, until
from tests.support.loops import both_loops

pytestmark = [pytest.mark.anyio, both_loops]


class Inbox(MemoryInbox):
    """One that can be made to wait, or to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = anyio.Event()
        self.gate.set()
        self.waiting = 0
        self.away = False

    async def after(self, owner_id: str, offset: int, *, limit: int) -> Letters:
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        if self.away:
            raise BrokerUnavailable
        return await super().after(owner_id, offset, limit=limit)

    async def drop_in(self, owner_id: str, text: str) -> None:
        """A letter whose announcement is lost."""
        letter = Letter(
            id=text, sender_id="eve", target_id=owner_id, content=b'"%b"' % text.encode(), time=1
        )
        await self.append(owner_id, letter, size=1000, per_peer=1000, age=3600)


@asynccontextmanager
async def post_office() -> AsyncIterator[tuple[House, Inbox]]:
    def configure(namespace: Namespace) -> None:
        namespace.add(DirectMessages())

    async with house(configure) as here:
        inbox = here.runtime.inbox = Inbox()
        yield here, inbox


async def write(client: Client, text: str) -> None:
    answer = await client.ask("private-message", data={"targetUserId": "bob", "content": text})
    assert answer["type"] == "ack", answer


def got(socket: Socket) -> list[Any]:
    found: list[Any] = []
    for message in socket.received:
        if message["type"] == "pending-messages":
            found += [letter["content"] for letter in message["data"]["messages"]]
        elif message["type"] == "private-message":
            found.append(message["data"]["content"])
    return found


async def test_a_lost_announcement_is_made_good_by_the_next_one() -> None:
    async with post_office() as (here, inbox):
        ann, bob = await here.enter("ann"), await here.enter("bob")
        await write(ann, "one")
        await inbox.drop_in("bob", "two")
        await inbox.drop_in("bob", "three")
        await write(ann, "four")
        await write(ann, "five")
        await until(lambda: len(got(bob.socket)) >= 5)
        await here.settle()
        assert got(bob.socket) == ["one", "two", "three", "four", "five"]


async def test_what_was_lost_with_the_brokers_connection_comes_when_it_is_back() -> None:
    async with post_office() as (here, inbox):
        ann, bob = await here.enter("ann"), await here.enter("bob")
        await write(ann, "one")
        await inbox.drop_in("bob", "two")
        here.hub.interrupted([here.engine.user_channel("bob"), here.engine.everyone_channel])
        await until(lambda: len(got(bob.socket)) >= 2)
        await here.settle()
        assert got(bob.socket) == ["one", "two"]
        assert got(ann.socket) == []


async def test_what_comes_while_a_device_connects_comes_once_and_after_what_was_pending() -> None:
    async with post_office() as (here, inbox):
        ann = await here.enter("ann")
        await write(ann, "old")
        inbox.gate = anyio.Event()
        socket = Socket(here.runtime.options)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(here.engine.lobby.connect, socket, User(id="bob"), Introduction())
            await until(lambda: inbox.waiting)
            await write(ann, "new")
            await write(ann, "newer")
            inbox.gate.set()
        await until(lambda: len(got(socket)) >= 3)
        await here.settle()
        assert got(socket) == ["old", "new", "newer"]


async def test_what_comes_while_a_device_reads_on_comes_once_and_in_order() -> None:
    async with post_office() as (here, inbox):
        ann, bob = await here.enter("ann"), await here.enter("bob")
        await inbox.drop_in("bob", "one")
        inbox.gate = anyio.Event()
        await write(ann, "two")
        await until(lambda: inbox.waiting)
        await write(ann, "three")
        inbox.gate.set()
        await write(ann, "four")
        await until(lambda: len(got(bob.socket)) >= 4)
        await here.settle()
        assert got(bob.socket) == ["one", "two", "three", "four"]


async def test_a_device_whose_messages_cannot_be_read_is_sent_away_to_come_back() -> None:
    async with post_office() as (here, inbox):
        ann = await here.enter("ann")
        await write(ann, "old")
        inbox.away = True
        bob = await here.enter("bob")
        assert bob.socket.closed is not None
        assert bob.socket.closed[0] == 1011


async def test_a_failure_in_between_is_made_good_by_the_resend() -> None:
    async with post_office() as (here, inbox):
        ann, bob = await here.enter("ann"), await here.enter("bob")
        append = inbox.append

        async def fail(owner_id: str, *arguments: Any, **options: Any) -> Any:
            if owner_id == "ann":
                raise BrokerUnavailable
            return await append(owner_id, *arguments, **options)

        inbox.append = fail  # type: ignore[method-assign]
        data = {"targetUserId": "bob", "content": "hello", "id": "m1"}
        answer = await ann.ask("private-message", data=data)
        assert (answer["type"], answer["code"]) == ("error", "unavailable")
        inbox.append = append  # type: ignore[method-assign]
        answer = await ann.ask("private-message", data=data)
        assert answer["data"]["success"] is True
        await here.settle()
        assert got(bob.socket) == ["hello"]
        page = await ann.ask("conversation", data={"userId": "bob"})
        assert [message["content"] for message in page["data"]["messages"]] == ["hello"]


async def test_a_device_that_cannot_be_known_is_not_let_in() -> None:
    async with post_office() as (here, inbox):

        async def fail(owner_id: str, device_id: str) -> tuple[int, int]:
            raise BrokerUnavailable

        inbox.open = fail  # type: ignore[method-assign]
        with pytest.raises(CloseConnection) as raised:
            await here.enter("bob")
        assert raised.value.code == 1011
        # Nobody was there, as far as others can tell.
        statuses = await here.engine.namespace.online.statuses(here.engine, ["bob"])
        assert statuses == {"bob": "offline"}


async def test_from_connected_on_everything_arrives() -> None:
    """Also at a device that is new, and while its user's other device has acknowledged it."""
    async with post_office() as (here, inbox):
        desk = await here.enter("bob")
        inbox.gate = anyio.Event()
        socket = Socket(here.runtime.options)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(here.engine.lobby.connect, socket, User(id="bob"), Introduction())
            await until(lambda: any(m["type"] == "connected" for m in socket.received))
            # To oneself: the sending device has it without being told.
            await write(desk, "note")
            inbox.gate.set()
        await until(lambda: got(socket))
        await here.settle()
        assert got(socket) == ["note"]
