"""The memory inbox: its contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from starlette_realtime.events import Letter
from starlette_realtime.inbox import InboxStore, MemoryInbox
from starlette_realtime.testing.contracts import FakeClock, InboxContract
from tests.support.loops import both_loops
from tests.support.stores import OnFakeClock

pytestmark = pytest.mark.anyio


@both_loops
class TestContract(OnFakeClock, InboxContract):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[InboxStore, InboxStore]]:
        inbox = MemoryInbox(clock=self.clock)
        async with inbox.run():
            yield inbox, inbox


def letter(id: str, sender: str, target: str) -> Letter:
    return Letter(id=id, sender_id=sender, target_id=target, content=b"1", time=1)


async def put(inbox: MemoryInbox, owner: str, what: Letter) -> bool:
    kept = await inbox.append(owner, what, size=10, per_peer=10, age=3600)
    return not kept.duplicate


async def test_the_user_whose_stream_was_used_longest_ago_is_forgotten_first() -> None:
    inbox = MemoryInbox(max_users=2)
    for name in ("ann", "bob"):
        await put(inbox, name, letter("m1", "x", name))
        await inbox.open(name, "phone")
    await inbox.after("ann", 0, limit=1)
    await put(inbox, "cid", letter("m3", "x", "cid"))
    await inbox.open("cid", "phone")
    kept = [len((await inbox.after(name, 0, limit=1)).letters) for name in ("ann", "bob", "cid")]
    assert kept == [1, 0, 1]


async def test_letters_to_nobody_push_nobodys_letters_out() -> None:
    inbox = MemoryInbox(max_users=2)
    await put(inbox, "ann", letter("m1", "x", "ann"))
    await inbox.open("ann", "phone")
    for number in range(100):
        await put(inbox, f"nobody-{number}", letter("m1", "x", f"nobody-{number}"))
    assert [kept.id for kept in (await inbox.after("ann", 0, limit=5)).letters] == ["m1"]
    assert [kept.id for kept in (await inbox.after("nobody-99", 0, limit=5)).letters] == ["m1"]
    assert (await inbox.after("nobody-0", 0, limit=5)).letters == []


async def test_a_crowd_that_only_connects_pushes_nobodys_letters_out() -> None:
    inbox = MemoryInbox(max_users=2)
    await inbox.open("ann", "phone")
    await put(inbox, "ann", letter("m1", "x", "ann"))
    for number in range(100):
        await inbox.open(f"guest-{number}", "phone")
        await inbox.after(f"stranger-{number}", 0, limit=1)
        await inbox.find(f"stranger-{number}", "m1")
    assert [kept.id for kept in (await inbox.after("ann", 0, limit=5)).letters] == ["m1"]
    assert await inbox.open("ann", "phone") == (0, 1)


async def test_a_device_known_before_the_first_letter_keeps_its_place() -> None:
    inbox = MemoryInbox()
    await inbox.open("ann", "phone")
    await put(inbox, "ann", letter("m1", "x", "ann"))
    await inbox.acknowledge("ann", "laptop", 1)
    assert await inbox.open("ann", "phone") == (0, 1)


async def test_an_id_may_be_used_again_once_its_time_is_over() -> None:
    clock = FakeClock()
    inbox = MemoryInbox(clock=clock)
    for number in range(12):
        await put(inbox, "ann", letter(f"m{number}", "x", "ann"))
    assert not await put(inbox, "ann", letter("m0", "x", "ann"))
    clock.advance(601)
    assert await put(inbox, "ann", letter("m0", "x", "ann"))
    # One that is kept is known however old it is.
    assert not await put(inbox, "ann", letter("m11", "x", "ann"))
