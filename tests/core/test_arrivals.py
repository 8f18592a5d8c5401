"""The list of members that a join is answered with, and the arrivals that follow it, leave nobody
out."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest

from starlette_realtime.presence.base import MemberPage
from tests.core.helpers import Client, House, house
from tests.support.loops import both_loops

pytestmark = pytest.mark.anyio


def known(client: Client) -> set[str]:
    """The others in the room, as a client that follows the protocol sees them."""
    found: set[str] = set()
    for message in client.received:
        data: Any = message.get("data")
        if message["type"] == "joined":
            found = {member["userId"] for member in message["members"]}
        elif message["type"] == "user-joined":
            found.add(data["userId"])
    return found


def slow_lists(house_: House) -> None:
    """Let every list of members be read at once and arrive later, as over a network."""
    presence = house_.runtime.presence
    read = presence.members

    async def members(channel: str, *, cursor: str = "", limit: int = 100) -> MemberPage:
        page = await read(channel, cursor=cursor, limit=limit)
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        return page

    presence.members = members  # type: ignore[method-assign]


@both_loops
async def test_somebody_who_arrives_while_the_list_is_read() -> None:
    context: AbstractAsyncContextManager[House] = house()
    async with context as at:
        slow_lists(at)
        ann, bob = await at.enter("ann"), await at.enter("bob")
        async with anyio.create_task_group() as group:
            group.start_soon(ann.send, "join", "r")
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            group.start_soon(bob.send, "join", "r")
        await at.settle()
        assert known(ann) - {"ann"} == {"bob"}
        assert known(bob) - {"bob"} == {"ann"}
