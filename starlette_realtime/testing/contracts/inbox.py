"""What every store of private messages must do, as tests.

A store passes when a subclass of `InboxContract` in its tests does:

    class TestMyInbox(InboxContract):
        @asynccontextmanager
        async def pair(self):
            async with connect() as one, connect() as two:
                yield one, two

`one` and `two` are the store as two processes see it; for a store of one process they are the same.
"""

from __future__ import annotations

import uuid
from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from functools import partial

import msgspec
import pytest

from ...events import Kept, Letter
from ...inbox.base import MAX_DEVICES, InboxStore
from .recorder import StoreContract, together

DAY = 86_400.0


def _letter(id: str, from_id: str, to_id: str, **members: object) -> Letter:
    letter = Letter(
        id=id, sender_id=from_id, target_id=to_id, content=id.encode(), time=1_767_225_600_000
    )
    return msgspec.structs.replace(letter, **members)


class InboxContract(StoreContract):
    """Subclass it with a `pair` of your own."""

    @abstractmethod
    def pair(self) -> AbstractAsyncContextManager[tuple[InboxStore, InboxStore]]:
        """Return a block that has a running store, twice."""

    @staticmethod
    def user(name: str) -> str:
        """Return a user nobody has written to."""
        return f"{name}-{uuid.uuid4().hex}"

    async def put(
        self,
        store: InboxStore,
        owner: str,
        letter: Letter,
        *,
        size: int = 1000,
        per_peer: int = 1000,
        age: float = DAY,
    ) -> Kept:
        return await store.append(owner, letter, size=size, per_peer=per_peer, age=age)

    async def ids(self, store: InboxStore, owner: str, offset: int = 0) -> list[str]:
        found = await store.after(owner, offset, limit=1000)
        assert not found.more
        return [letter.id for letter in found.letters]

    # The stream

    async def test_letters_come_back_as_they_were_with_their_place(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        sent = _letter(
            "m1",
            bob,
            ann,
            sender=b'{"name":"Bob"}',
            content=bytes(range(256)),
            time=17,
            read=True,
            offset=99,
        )
        async with self.pair() as (one, two):
            kept = await self.put(one, ann, sent)
            await self.put(two, ann, _letter("m2", ann, bob))
            found = await two.after(ann, 0, limit=10)
        assert not kept.duplicate
        assert kept.letter == msgspec.structs.replace(sent, offset=1, read=False)
        assert found.letters[0] == kept.letter
        assert [letter.offset for letter in found.letters] == [1, 2]
        assert not found.more

    async def test_streams_of_users_are_apart(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        letter = _letter("m1", ann, bob)
        async with self.pair() as (one, two):
            assert not (await self.put(one, ann, letter)).duplicate
            assert not (await self.put(one, bob, letter)).duplicate
            assert await self.ids(two, ann) == await self.ids(two, bob) == ["m1"]
            assert await self.ids(two, self.user("eve")) == []
            assert await two.find(self.user("eve"), "m1") is None

    async def test_reading_on_from_an_offset(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            for number in range(1, 8):
                await self.put(one, ann, _letter(f"m{number}", bob, ann))
            page = await two.after(ann, 2, limit=3)
            assert [letter.offset for letter in page.letters] == [3, 4, 5]
            assert page.more
            page = await two.after(ann, 5, limit=2)
            assert [letter.offset for letter in page.letters] == [6, 7]
            assert not page.more
            assert (await two.after(ann, 7, limit=5)).letters == []
            assert (await two.after(ann, 99, limit=5)).letters == []

    async def test_an_id_is_kept_once(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            first = await self.put(one, ann, _letter("m1", bob, ann))
            again = await self.put(two, ann, _letter("m1", bob, ann, content=b"other", time=9))
            await self.put(two, ann, _letter("m2", bob, ann))
            assert again == Kept(first.letter, duplicate=True)
            assert await self.ids(one, ann) == ["m1", "m2"]
            assert (await one.after(ann, 1, limit=5)).letters[0].offset == 2

    async def test_of_many_at_once_with_one_id_one_is_kept(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            kept = await together(
                partial(self.put, (one, two)[n % 2], ann, _letter("m1", bob, ann, time=n))
                for n in range(20)
            )
            assert sum(not result.duplicate for result in kept) == 1
            assert len({result.letter.time for result in kept}) == 1
            assert await self.ids(one, ann) == ["m1"]

    async def test_of_many_at_once_each_has_its_own_place(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            kept = await together(
                partial(self.put, (one, two)[n % 2], ann, _letter(f"m{n}", bob, ann))
                for n in range(20)
            )
            found = (await one.after(ann, 0, limit=50)).letters
        assert sorted(result.letter.offset for result in kept) == list(range(1, 21))
        by_offset = {result.letter.offset: result.letter.id for result in kept}
        assert {letter.offset: letter.id for letter in found} == by_offset

    async def test_finding_by_id(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            kept = await self.put(one, ann, _letter("m1", bob, ann))
            assert await two.find(ann, "m1") == kept.letter
            assert await two.find(ann, "m2") is None
            assert await two.find(bob, "m1") is None
            assert await two.find(ann, "") is None

    # Trimming

    async def test_the_stream_is_trimmed_to_its_size(self) -> None:
        ann = self.user("ann")
        async with self.pair() as (one, two):
            for number in range(1, 7):
                letter = _letter(f"m{number}", self.user("bob"), ann)
                await self.put(one, ann, letter, size=3)
            assert await self.ids(two, ann) == ["m4", "m5", "m6"]
            assert await two.find(ann, "m1") is None
            # Offsets go on.
            kept = await self.put(two, ann, _letter("m7", self.user("bob"), ann), size=3)
        assert kept.letter.offset == 7

    async def test_one_conversation_does_not_push_out_another(self) -> None:
        ann, bob, eve = self.user("ann"), self.user("bob"), self.user("eve")
        async with self.pair() as (one, two):
            await self.put(one, ann, _letter("b1", bob, ann), per_peer=3, size=5)
            for number in range(20):
                await self.put(one, ann, _letter(f"e{number}", eve, ann), per_peer=3, size=5)
            await self.put(one, ann, _letter("mine", ann, eve), per_peer=3, size=5)
            assert await self.ids(two, ann) == ["b1", "e18", "e19", "mine"]
            page = await two.conversation(ann, eve, limit=10)
            assert [letter.id for letter in page.letters] == ["e18", "e19", "mine"]

    async def test_letters_end_with_their_age(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            await self.put(one, ann, _letter("m1", bob, ann), age=2 * self.unit)
            await self.advance(1.2 * self.unit)
            await self.put(one, ann, _letter("m2", bob, ann), age=2 * self.unit)
            assert await self.ids(two, ann) == ["m1", "m2"]
            await self.advance(1.2 * self.unit)
            assert await self.ids(two, ann) == ["m2"]
            assert await two.find(ann, "m1") is None
            page = await two.conversation(ann, bob, limit=10)
            assert [letter.id for letter in page.letters] == ["m2"]
            await self.advance(1.2 * self.unit)
            assert await self.ids(two, ann) == []

    async def test_what_was_trimmed_is_not_taken_again(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            await self.put(one, ann, _letter("m1", bob, ann, time=5), size=1)
            await self.put(one, ann, _letter("m2", bob, ann), size=1)
            again = await self.put(two, ann, _letter("m1", bob, ann, time=6), size=1)
            assert again.duplicate
            assert (again.letter.id, again.letter.time) == ("m1", 5)
            assert again.letter.offset == 0
            assert await self.ids(two, ann) == ["m2"]

    # Devices

    async def test_each_device_acknowledges_for_itself(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            assert await one.open(ann, "phone") == (0, 0)
            assert await one.open(ann, "laptop") == (0, 0)
            for number in range(1, 6):
                await self.put(one, ann, _letter(f"m{number}", bob, ann))
            assert await one.acknowledge(ann, "phone", 4) == 4
            assert await two.open(ann, "phone") == (4, 5)
            assert await two.open(ann, "laptop") == (0, 5)
            assert await two.open(bob, "phone") == (0, 0)

    async def test_a_cursor_goes_neither_back_nor_beyond_the_end(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            for number in range(1, 4):
                await self.put(one, ann, _letter(f"m{number}", bob, ann))
            await one.open(ann, "phone")
            assert await one.acknowledge(ann, "phone", 2) == 2
            assert await two.acknowledge(ann, "phone", 1) == 2
            assert await two.acknowledge(ann, "phone", -7) == 2
            assert await two.acknowledge(ann, "phone", 1_000_000) == 3
            assert await one.open(ann, "phone") == (3, 3)

    async def test_a_new_device_starts_where_the_most_advanced_one_stands(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            for number in range(1, 6):
                await self.put(one, ann, _letter(f"m{number}", bob, ann))
            assert await one.open(ann, "phone") == (0, 5)
            await one.acknowledge(ann, "phone", 3)
            assert await two.open(ann, "new") == (3, 5)
            # It is registered: what others acknowledge from now on, it has not.
            await one.acknowledge(ann, "phone", 5)
            assert await two.open(ann, "new") == (3, 5)

    async def test_cursors_are_bounded_and_the_users_place_is_not_lost(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            for number in range(1, 6):
                await self.put(one, ann, _letter(f"m{number}", bob, ann))
            await one.open(ann, "old")
            await one.acknowledge(ann, "phone", 4)
            for number in range(MAX_DEVICES + 5):
                await one.open(ann, f"device-{number}")
            # Both have been forgotten, and come as new ones; nothing acknowledged comes again.
            assert await two.open(ann, "phone") == (4, 5)
            assert await two.open(ann, "old") == (4, 5)

    # Conversations

    async def test_paging_a_conversation_backwards(self) -> None:
        ann, bob, eve = self.user("ann"), self.user("bob"), self.user("eve")
        async with self.pair() as (one, two):
            for number in range(1, 7):
                sender, target = (ann, bob) if number % 2 else (bob, ann)
                await self.put(one, ann, _letter(f"m{number}", sender, target))
                await self.put(one, ann, _letter(f"e{number}", eve, ann))
            page = await two.conversation(ann, bob, limit=4)
            assert [letter.id for letter in page.letters] == ["m3", "m4", "m5", "m6"]
            assert page.more
            page = await two.conversation(ann, bob, before=page.letters[0].offset, limit=4)
            assert [letter.id for letter in page.letters] == ["m1", "m2"]
            assert not page.more
            assert (await two.conversation(ann, self.user("zoe"), limit=4)).letters == []
            assert (await two.conversation(eve, ann, limit=4)).letters == []

    async def test_letters_to_oneself_are_kept_once(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            await self.put(one, ann, _letter("m1", ann, ann))
            await self.put(one, ann, _letter("m2", ann, bob))
            page = await two.conversation(ann, ann, limit=5)
            assert [letter.id for letter in page.letters] == ["m1"]
            assert await self.ids(two, ann) == ["m1", "m2"]

    # Reading

    async def test_reading_marks_all_before_it_by_one_author(self) -> None:
        ann, bob, eve = self.user("ann"), self.user("bob"), self.user("eve")
        async with self.pair() as (one, two):
            for id, sender, target in (
                ("b1", bob, ann),
                ("a2", ann, bob),
                ("b3", bob, ann),
                ("e4", eve, ann),
                ("b5", bob, ann),
            ):
                await self.put(one, ann, _letter(id, sender, target))
            marked = await one.mark_read(ann, bob, bob, through=4)
            assert marked is not None and (marked.id, marked.read) == ("b3", True)
            found = (await two.after(ann, 0, limit=10)).letters
            assert [letter.read for letter in found] == [True, False, True, False, False]
            assert (await two.find(ann, "b1")).read  # type: ignore[union-attr]
            # Nothing new.
            assert await two.mark_read(ann, bob, bob, through=4) is None
            assert await two.mark_read(ann, bob, bob, through=3) is None
            newest = await two.mark_read(ann, bob, bob, through=1_000_000)
            assert newest is not None and newest.id == "b5"
            mine = await two.mark_read(ann, bob, ann, through=5)
            assert mine is not None and mine.id == "a2"

    async def test_reading_what_is_not_there(self) -> None:
        ann, bob = self.user("ann"), self.user("bob")
        async with self.pair() as (one, two):
            assert await one.mark_read(ann, bob, bob, through=5) is None
            await self.put(one, ann, _letter("m1", bob, ann))
            assert await two.mark_read(ann, bob, bob, through=0) is None
            assert await two.mark_read(ann, bob, ann, through=5) is None
            assert await two.mark_read(bob, ann, bob, through=5) is None

    @pytest.mark.parametrize("name", ["", "a:b", "{x}", "ü\u2028", "x" * 255, "*", "a\x00b"])
    async def test_names_are_only_names(self, name: str) -> None:
        ann, odd = self.user("ann"), name
        async with self.pair() as (one, two):
            await self.put(one, ann, _letter(f"id {name}", odd, ann))
            await one.open(ann, name)
            await one.acknowledge(ann, name, 1)
            assert await two.open(ann, name) == (1, 1)
            page = await two.conversation(ann, odd, limit=3)
            assert [letter.id for letter in page.letters] == [f"id {name}"]
            assert await two.mark_read(ann, odd, odd, through=1) is not None
