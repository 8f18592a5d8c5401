"""What a broker promises (brokers/base.py), each promise a test."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import pairwise
from typing import ClassVar

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ...brokers.base import Broker, HistoryBroker
from ...events import Draft, Lane, Page, Position, Publication, Published, Recovery, Retention
from .recorder import Running, StoreContract, together

PLENTY = Retention(size=10_000, age=86_400.0, presence=10_000)

ODD_NAMES = [
    "a b  c",
    "{tag}:chat",
    "{",
    "}{",
    "{}",
    "a:b::c:",
    "чат/комната/七",
    "👩‍💻 room",
    "'\"\\`$;--",
    "*?[a-z]",
    "../../etc/passwd",
    "%s %d {0}",
    "A" * 300,
    "ß" * 300,
]


def draft(number: int = 0, **members: object) -> Draft:
    """Return a draft whose payload is `number`."""
    wanted = {"event": "said", "data": b"%d" % number, **members}
    return msgspec.convert(wanted, Draft, builtin_types=(bytes,))


def numbers(publications: Iterable[Publication]) -> list[int]:
    """Return the payloads of what `draft` made."""
    return [int(publication.data) for publication in publications]


async def say(
    broker: Broker, channel: str, said: Iterable[int], retention: Retention = PLENTY
) -> Position:
    """Publish these numbers; return the position after the last."""
    positions = [
        (await broker.publish(channel, draft(number), retention)).position for number in said
    ]
    return positions[-1]


def offsets(publications: Iterable[Publication]) -> list[int]:
    return [publication.offset for publication in publications]


class BrokerContract(StoreContract):
    """For a broker that publishes and subscribes.

    The subclass writes `pair`: a block in which two brokers over the same backend are running, the
    second as another process would have it, each with a `Recorder` of its own for a listener. A
    broker of a single process gives the same one twice.
    """

    largest: int = 1_000_000
    """Bytes of the largest payload the broker takes."""

    def pair(self) -> AbstractAsyncContextManager[tuple[Running[Broker], Running[Broker]]]:
        raise NotImplementedError("a contract suite needs `pair`: see docs/stores.md")

    async def test_announcements_arrive_everywhere_once_and_in_order(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await one.broker.subscribe([room])
            await two.broker.subscribe([room])
            for number in range(50):
                publisher = (one, two)[number % 2].broker
                await publisher.publish(room, draft(number, lane=Lane.NONE), PLENTY)
            for side in (one, two):
                assert numbers(await side.recorder.wait(room, 50)) == list(range(50))

    async def test_a_publishers_order_holds_while_others_publish(self) -> None:
        room = self.channel()

        async def publish(side: Running[Broker], start: int) -> None:
            for number in range(start, start + 20):
                await side.broker.publish(room, draft(number, lane=Lane.NONE), PLENTY)

        async with self.pair() as (one, two):
            await one.broker.subscribe([room])
            await two.broker.subscribe([room])
            sides = [one, two] * 4
            await together(partial(publish, side, n * 20) for n, side in enumerate(sides))
            for side in (one, two):
                heard = numbers(await side.recorder.wait(room, 160))
                assert sorted(heard) == list(range(160))
                for start in range(0, 160, 20):
                    mine = [number for number in heard if start <= number < start + 20]
                    assert mine == sorted(mine)

    async def test_a_publication_carries_all_its_draft_says(self) -> None:
        room = self.channel()
        said = draft(
            event="moved ✓",
            data=b'{"x":1}',
            id="the id",
            lane=Lane.NONE,
            exclude="session-7",
            volatile=True,
            key="cursor:ann",
            time=1_767_225_600_123,
        )
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            await one.broker.publish(room, said, PLENTY)
            (heard,) = await two.recorder.wait(room, 1)
        assert heard.event == "moved ✓"
        assert heard.data == b'{"x":1}'
        assert heard.id == "the id"
        assert heard.exclude == "session-7"
        assert heard.volatile is True
        assert heard.key == "cursor:ann"
        assert heard.time == 1_767_225_600_123

    async def test_a_publication_without_a_time_gets_one_in_milliseconds(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            await one.broker.publish(room, draft(lane=Lane.NONE), PLENTY)
            (heard,) = await two.recorder.wait(room, 1)
        # Between 2001 and 2286: neither seconds nor microseconds.
        assert 10**12 < heard.time < 10**13

    async def test_an_ephemeral_publication_has_no_offset(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            published = await one.broker.publish(room, draft(lane=Lane.NONE), PLENTY)
            (heard,) = await two.recorder.wait(room, 1)
        assert published == Published(Position("", 0))
        assert (heard.offset, heard.epoch, heard.lane) == (0, "", Lane.NONE)

    async def test_any_bytes_survive(self) -> None:
        room = self.channel()
        every = bytes(range(256)) + b"\r\n\0\r\n" + bytes(reversed(range(256)))
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            for data in (every, b"", b"\0"):
                await one.broker.publish(room, draft(data=data, lane=Lane.NONE), PLENTY)
            heard = await two.recorder.wait(room, 3)
        assert [publication.data for publication in heard] == [every, b"", b"\0"]

    async def test_a_large_payload_arrives_whole(self) -> None:
        room = self.channel()
        large = b'"' + b"x" * (self.largest - 2) + b'"'
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            await one.broker.publish(room, draft(data=large, lane=Lane.NONE), PLENTY)
            (heard,) = await two.recorder.wait(room, 1)
        assert heard.data == large

    async def test_odd_channel_names_are_kept_apart(self) -> None:
        rooms = [self.channel(name) for name in ODD_NAMES]
        async with self.pair() as (one, two):
            await two.broker.subscribe(rooms)
            for number, room in enumerate(rooms):
                await one.broker.publish(room, draft(number, lane=Lane.NONE), PLENTY)
            for number, room in enumerate(rooms):
                assert numbers(await two.recorder.wait(room, 1)) == [number]

    async def test_many_channels_at_once(self) -> None:
        rooms = [self.channel(f"room{number}") for number in range(500)]
        async with self.pair() as (one, two):
            await two.broker.subscribe(rooms)
            await together(
                partial(one.broker.publish, room, draft(number, lane=Lane.NONE), PLENTY)
                for number, room in enumerate(rooms)
            )
            for number, room in enumerate(rooms):
                assert numbers(await two.recorder.wait(room, 1)) == [number]

    async def test_what_was_not_subscribed_is_not_heard(self) -> None:
        wanted, other = self.channel("wanted"), self.channel("other")
        async with self.pair() as (one, two):
            await two.broker.subscribe([wanted])
            await one.broker.publish(other, draft(1, lane=Lane.NONE), PLENTY)
            await one.broker.publish(wanted, draft(2, lane=Lane.NONE), PLENTY)
            assert numbers(await two.recorder.wait(wanted, 1)) == [2]
            # What was published before a subscription does not come after it.
            await two.broker.subscribe([other])
            await one.broker.publish(other, draft(3, lane=Lane.NONE), PLENTY)
            assert numbers(await two.recorder.wait(other, 1)) == [3]

    async def test_after_unsubscribe_nothing_is_heard(self) -> None:
        room, stays = self.channel(), self.channel("stays")
        async with self.pair() as (one, two):
            await two.broker.subscribe([room, stays])
            await one.broker.publish(room, draft(1, lane=Lane.NONE), PLENTY)
            await two.recorder.wait(room, 1)
            await two.broker.unsubscribe([room])
            await one.broker.publish(room, draft(2, lane=Lane.NONE), PLENTY)
            await one.broker.publish(stays, draft(3, lane=Lane.NONE), PLENTY)
            assert numbers(await two.recorder.wait(stays, 1)) == [3]
            await two.broker.subscribe([room])
            await one.broker.publish(room, draft(4, lane=Lane.NONE), PLENTY)
            assert numbers(await two.recorder.wait(room, 2)) == [1, 4]

    async def test_subscribing_twice_is_as_once(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room, room])
            await two.broker.subscribe([room])
            for number in (1, 2):
                await one.broker.publish(room, draft(number, lane=Lane.NONE), PLENTY)
            assert numbers(await two.recorder.wait(room, 2)) == [1, 2]
            await two.broker.unsubscribe([room])
            await one.broker.publish(room, draft(3, lane=Lane.NONE), PLENTY)
            await two.broker.subscribe([room])
            await one.broker.publish(room, draft(4, lane=Lane.NONE), PLENTY)
            assert numbers(await two.recorder.wait(room, 3)) == [1, 2, 4]

    async def test_unsubscribing_what_was_never_subscribed_is_harmless(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.unsubscribe([room])
            await two.broker.unsubscribe([])
            await two.broker.subscribe([])
            await two.broker.subscribe([room])
            await one.broker.publish(room, draft(1, lane=Lane.NONE), PLENTY)
            assert numbers(await two.recorder.wait(room, 1)) == [1]

    async def test_publishing_to_nobody_is_harmless(self) -> None:
        async with self.pair() as (one, two):
            room = self.channel()
            await one.broker.publish(room, draft(1, lane=Lane.NONE), PLENTY)
            await two.broker.subscribe([room])
            await one.broker.publish(room, draft(2, lane=Lane.NONE), PLENTY)
            assert numbers(await two.recorder.wait(room, 1)) == [2]

    async def test_without_an_outage_nothing_is_said_of_one(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            await one.broker.publish(room, draft(lane=Lane.NONE), PLENTY)
            await two.recorder.wait(room, 1)
            assert (one.recorder.lost, two.recorder.lost) == ([], [])


_IDS = st.sampled_from(["", "", "a", "b", "c"])
_OFFSETS = st.integers(-1, 14)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(list(Lane)), _IDS, _IDS),
        st.tuples(st.just("recover"), _OFFSETS, st.integers(0, 12)),
        st.tuples(st.just("before"), st.none() | _OFFSETS, st.integers(0, 6)),
        st.tuples(st.just("after"), _OFFSETS, st.integers(0, 6)),
    ),
    max_size=40,
)


class _Model:
    """A channel as a plain list."""

    SIZE: ClassVar = {Lane.HISTORY: 4, Lane.PRESENCE: 2}

    def __init__(self) -> None:
        self.kept: list[tuple[int, Lane, str, int]] = []
        self.offset = 0
        self.trimmed = 0
        self.seen: dict[str, int] = {}

    def publish(self, number: int, lane: Lane, id: str, amends: str) -> tuple[int, bool]:
        if id and id in self.seen:
            return self.seen[id], True
        offset = 0
        if lane is not Lane.NONE:
            offset = self.offset = self.offset + 1
            self.kept.append((offset, lane, id, number))
            mine = [entry for entry in self.kept if entry[1] is lane]
            for entry in mine[: -self.SIZE[lane]]:
                self.kept.remove(entry)
                self.trimmed = max(self.trimmed, entry[0])
        if id:
            self.seen[id] = offset
        if amends:
            self.kept = [
                (at, where, name, -number if name == amends and where is Lane.HISTORY else data)
                for at, where, name, data in self.kept
            ]
        return offset, False

    def recover(self, since: int, limit: int) -> list[tuple[int, int]] | None:
        missed = [(at, data) for at, _, _, data in self.kept if at > since]
        if not self.trimmed <= since <= self.offset or len(missed) > limit:
            return None
        return missed

    def before(self, before: int | None, limit: int) -> tuple[list[tuple[int, int]], bool]:
        fit = [(at, data) for at, data in self.history() if before is None or at < before]
        return fit[max(0, len(fit) - limit) :], len(fit) > limit

    def after(self, after: int, limit: int) -> tuple[list[tuple[int, int]], bool]:
        fit = [(at, data) for at, data in self.history() if at > after]
        return fit[:limit], len(fit) > limit

    def history(self) -> list[tuple[int, int]]:
        return [(at, data) for at, lane, _, data in self.kept if lane is Lane.HISTORY]


def _pairs(publications: Iterable[Publication]) -> list[tuple[int, int]]:
    return [(publication.offset, int(publication.data)) for publication in publications]


class HistoryBrokerContract(BrokerContract):
    """For a broker that also keeps what was published; all of `BrokerContract` besides."""

    def pair(
        self,
    ) -> AbstractAsyncContextManager[tuple[Running[HistoryBroker], Running[HistoryBroker]]]:
        raise NotImplementedError("a contract suite needs `pair`: see docs/stores.md")

    async def test_offsets_count_from_one_within_one_epoch(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            lanes = [Lane.HISTORY, Lane.PRESENCE, Lane.HISTORY, Lane.PRESENCE, Lane.HISTORY]
            positions = []
            for number, lane in enumerate(lanes):
                side = (one, two)[number % 2]
                published = await side.broker.publish(room, draft(number, lane=lane), PLENTY)
                assert not published.duplicate
                positions.append(published.position)
            heard = await two.recorder.wait(room, 5)
            page = await one.broker.page(room, limit=10)
        assert [position.offset for position in positions] == [1, 2, 3, 4, 5]
        assert len({position.epoch for position in positions}) == 1
        assert positions[0].epoch
        assert [publication.position for publication in heard] == positions
        assert [publication.lane for publication in heard] == lanes
        assert page.position == positions[-1]

    async def test_channels_count_for_themselves(self) -> None:
        rooms = [self.channel(name) for name in ODD_NAMES]
        async with self.pair() as (one, two):
            for number, room in enumerate(rooms):
                assert (await say(one.broker, room, [number, number])).offset == 2
            for number, room in enumerate(rooms):
                page = await two.broker.page(room, limit=10)
                assert numbers(page.publications) == [number, number]

    async def test_concurrent_publishers_get_offsets_of_their_own(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await one.broker.subscribe([room])
            await two.broker.subscribe([room])
            published = await together(
                partial((one, two)[n % 2].broker.publish, room, draft(n), PLENTY)
                for n in range(200)
            )
            recovery = await one.broker.recover(
                room, Position(published[0].position.epoch, 0), limit=1000
            )
            assert sorted(p.position.offset for p in published) == list(range(1, 201))
            for n, publication in enumerate(published):
                assert int(recovery.publications[publication.position.offset - 1].data) == n
            for side in (one, two):
                heard = await side.recorder.wait(room, 200)
                assert heard == recovery.publications
                assert offsets(heard) == list(range(1, 201))

    async def test_reading_while_others_publish_is_never_torn(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            epoch = (await one.broker.publish(room, draft(0), PLENTY)).position.epoch
            done = anyio.Event()

            async def publish() -> None:
                for number in range(1, 100):
                    lane = Lane.PRESENCE if number % 3 == 0 else Lane.HISTORY
                    await one.broker.publish(room, draft(number, lane=lane), PLENTY)
                    await anyio.lowlevel.checkpoint()
                done.set()

            async def read() -> None:
                while not done.is_set():
                    recovery = await two.broker.recover(room, Position(epoch, 0), limit=1000)
                    assert recovery.recovered
                    assert offsets(recovery.publications) == list(
                        range(1, recovery.position.offset + 1)
                    )
                    page = await two.broker.page(room, limit=3)
                    newest = page.publications[-1].offset
                    assert page.position.offset - newest in (0, 1)
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as group:
                group.start_soon(publish)
                group.start_soon(read)

    async def test_what_was_announced_can_be_read(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            for number in range(1, 21):
                await one.broker.publish(room, draft(number), PLENTY)
                heard = await two.recorder.wait(room, number)
                page = await two.broker.page(room, limit=1)
                assert page.publications == [heard[-1]]

    async def test_what_is_kept_is_what_was_announced(self) -> None:
        room = self.channel()
        said = draft(
            event="moved ✓",
            data=b'{"x":"\xc3\xa9"}',
            id="the id",
            exclude="session-7",
            volatile=True,
            key="cursor",
            time=1_767_225_600_123,
        )
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            await one.broker.publish(room, said, PLENTY)
            heard = await two.recorder.wait(room, 1)
            page = await one.broker.page(room, limit=10)
            recovery = await one.broker.recover(room, Position(heard[0].epoch, 0), limit=10)
        assert page.publications == heard
        assert recovery.publications == heard
        assert heard[0].exclude == "session-7"
        assert (heard[0].volatile, heard[0].key, heard[0].id) == (True, "cursor", "the id")
        assert heard[0].time == 1_767_225_600_123

    async def test_any_and_large_bytes_are_kept(self) -> None:
        room = self.channel()
        contents = [bytes(range(256)), b"", b'"' + b"y" * (self.largest - 2) + b'"']
        async with self.pair() as (one, two):
            for data in contents:
                await one.broker.publish(room, draft(data=data), PLENTY)
            page = await two.broker.page(room, limit=10)
        assert [publication.data for publication in page.publications] == contents

    async def test_an_ephemeral_publication_is_not_kept(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            lanes = [Lane.HISTORY, Lane.NONE, Lane.HISTORY, Lane.NONE]
            for number, lane in enumerate(lanes):
                await one.broker.publish(room, draft(number, lane=lane), PLENTY)
            heard = await two.recorder.wait(room, 4)
            page = await two.broker.page(room, limit=10)
            recovery = await two.broker.recover(room, Position(heard[0].epoch, 0), limit=10)
        assert numbers(heard) == [0, 1, 2, 3]
        assert offsets(heard) == [1, 0, 2, 0]
        assert numbers(page.publications) == [0, 2]
        assert numbers(recovery.publications) == [0, 2]
        assert page.position.offset == 2

    # Idempotency

    async def test_a_second_publication_under_an_id_changes_nothing(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            first = await one.broker.publish(room, draft(1, id="m1"), PLENTY)
            await one.broker.publish(room, draft(2), PLENTY)
            again = await two.broker.publish(room, draft(3, id="m1"), PLENTY)
            await one.broker.publish(room, draft(4), PLENTY)
            heard = await two.recorder.wait(room, 3)
            page = await two.broker.page(room, limit=10)
        assert again.duplicate
        assert not first.duplicate
        assert again.position == first.position
        assert numbers(heard) == numbers(page.publications) == [1, 2, 4]
        assert offsets(heard) == [1, 2, 3]

    async def test_concurrent_publications_under_an_id_count_once(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            published = await together(
                partial((one, two)[n % 2].broker.publish, room, draft(n, id="m1"), PLENTY)
                for n in range(40)
            )
            end = await one.broker.publish(room, draft(99), PLENTY)
            heard = await two.recorder.wait(room, 2)
        assert [p.duplicate for p in published].count(False) == 1
        assert {p.position for p in published} == {heard[0].position}
        winner = next(n for n, p in enumerate(published) if not p.duplicate)
        assert numbers(heard) == [winner, 99]
        assert end.position.offset == 2

    async def test_an_id_counts_for_its_channel_alone(self) -> None:
        async with self.pair() as (one, _):
            for _ in range(2):
                published = await one.broker.publish(self.channel(), draft(id="m1"), PLENTY)
                assert not published.duplicate

    async def test_an_id_is_known_when_its_publication_was_trimmed(self) -> None:
        room = self.channel()
        few = Retention(size=1, presence=1)
        async with self.pair() as (one, two):
            first = await one.broker.publish(room, draft(1, id="m1"), few)
            gone = await one.broker.publish(room, draft(1, id="p1", lane=Lane.PRESENCE), few)
            for lane in (Lane.HISTORY, Lane.PRESENCE):
                for number in range(3):
                    await one.broker.publish(room, draft(number, lane=lane), few)
            again = await two.broker.publish(room, draft(2, id="m1"), few)
            assert again == Published(first.position, duplicate=True)
            again = await two.broker.publish(room, draft(2, id="p1", lane=Lane.PRESENCE), few)
            assert again == Published(gone.position, duplicate=True)

    async def test_an_ephemeral_publication_under_an_id_is_announced_once(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            first = await one.broker.publish(room, draft(1, id="m1", lane=Lane.NONE), PLENTY)
            again = await two.broker.publish(room, draft(2, id="m1", lane=Lane.NONE), PLENTY)
            await one.broker.publish(room, draft(3, lane=Lane.NONE), PLENTY)
            assert numbers(await two.recorder.wait(room, 2)) == [1, 3]
        assert first == Published(Position("", 0))
        assert again == Published(Position("", 0), duplicate=True)

    async def test_a_duplicate_does_not_amend(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await one.broker.publish(room, draft(1, id="m1"), PLENTY)
            await one.broker.publish(room, draft(2, id="e1", amends="m1", amended=b"10"), PLENTY)
            await two.broker.publish(room, draft(3, id="e1", amends="m1", amended=b"20"), PLENTY)
            page = await one.broker.page(room, limit=10)
        assert numbers(page.publications) == [10, 2]

    # Retention

    async def test_history_keeps_the_newest(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for number in range(1, 11):
                await one.broker.publish(room, draft(number), Retention(size=3))
            page = await two.broker.page(room, limit=100)
        assert offsets(page.publications) == numbers(page.publications) == [8, 9, 10]
        assert page.position.offset == 10
        assert not page.more

    async def test_nothing_is_kept_of_size_zero(self) -> None:
        room = self.channel()
        none = Retention(size=0, presence=0)
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            end = await say(one.broker, room, [1, 2], none)
            assert offsets(await two.recorder.wait(room, 2)) == [1, 2]
            page = await two.broker.page(room, limit=10)
            assert page == Page([], end)
            old = msgspec.structs.replace(end, offset=1, nonce="")
            assert not (await two.broker.recover(room, old, limit=10)).recovered
            recovery = await two.broker.recover(room, end, limit=10)
            assert recovery == Recovery([], end, recovered=True)

    async def test_presence_never_pushes_history_out(self) -> None:
        room = self.channel()
        few = Retention(size=3, presence=2)
        async with self.pair() as (one, two):
            for number in (1, 2):
                await one.broker.publish(room, draft(number), few)
            for number in range(3, 23):
                await one.broker.publish(room, draft(number, lane=Lane.PRESENCE), few)
            page = await two.broker.page(room, limit=100)
            assert numbers(page.publications) == [1, 2]
            # 20 is the newest that went: whoever has seen it misses nothing.
            epoch = page.position.epoch
            recovery = await two.broker.recover(room, Position(epoch, 20), limit=100)
            assert numbers(recovery.publications) == [21, 22]
            assert not (await two.broker.recover(room, Position(epoch, 19), limit=100)).recovered
            # And history does not push presence out.
            for number in range(23, 43):
                await one.broker.publish(room, draft(number), few)
            page = await two.broker.page(room, limit=100)
            assert numbers(page.publications) == [40, 41, 42]
            recovery = await two.broker.recover(room, Position(epoch, 39), limit=100)
            assert numbers(recovery.publications) == [40, 41, 42]

    async def test_the_page_holds_history_alone_recovery_both_lanes(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for number in range(1, 7):
                lane = Lane.PRESENCE if number % 2 else Lane.HISTORY
                await one.broker.publish(room, draft(number, lane=lane), PLENTY)
            page = await two.broker.page(room, limit=10)
            recovery = await two.broker.recover(room, Position(page.position.epoch, 1), limit=10)
        assert numbers(page.publications) == [2, 4, 6]
        assert numbers(recovery.publications) == [2, 3, 4, 5, 6]
        assert [p.lane for p in recovery.publications] == [1, 2, 1, 2, 1]

    async def test_what_is_too_old_goes(self) -> None:
        room = self.channel()
        short = Retention(age=self.unit)
        async with self.pair() as (one, two):
            start = (await one.broker.page(room, limit=1)).position
            await one.broker.publish(room, draft(1), short)
            await one.broker.publish(room, draft(2, lane=Lane.PRESENCE), short)
            await self.advance(self.unit * 1.5)
            # Nobody published since: age alone is enough.
            page = await two.broker.page(room, limit=10)
            assert (page.publications, page.more) == ([], False)
            assert page.position.offset == 2
            assert page.position.epoch == start.epoch
            assert not (await two.broker.recover(room, start, limit=10)).recovered
            assert (await two.broker.recover(room, page.position, limit=10)).recovered
            third = await one.broker.publish(room, draft(3), short)
            assert third.position.offset == 3
            assert third.position.epoch == start.epoch
            page = await two.broker.page(room, limit=10)
            assert numbers(page.publications) == [3]

    async def test_age_counts_from_the_publication_not_from_its_time(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for number, time in enumerate([1, 4_102_444_800_000, 1]):
                await one.broker.publish(room, draft(number, time=time), Retention(age=3600.0))
            page = await two.broker.page(room, limit=10)
        assert numbers(page.publications) == [0, 1, 2]
        assert [p.time for p in page.publications] == [1, 4_102_444_800_000, 1]

    # Amending

    async def test_amending_changes_what_is_read(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            await one.broker.publish(room, draft(1, id="m1", key="k", time=5), PLENTY)
            await one.broker.publish(room, draft(2, id="m2"), PLENTY)
            edit = draft(3, event="edited", amends="m1", amended=b"10")
            await one.broker.publish(room, edit, PLENTY)
            heard = await two.recorder.wait(room, 3)
            page = await two.broker.page(room, limit=10)
            recovery = await two.broker.recover(room, Position(heard[0].epoch, 0), limit=10)
        assert numbers(heard) == [1, 2, 3]
        changed = [msgspec.structs.replace(heard[0], data=b"10"), *heard[1:]]
        assert page.publications == changed
        assert recovery.publications == changed

    async def test_amending_twice_leaves_the_last(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await one.broker.publish(room, draft(1, id="m1"), PLENTY)
            await two.broker.publish(room, draft(2, amends="m1", amended=b"10"), PLENTY)
            await one.broker.publish(
                room, draft(3, lane=Lane.PRESENCE, amends="m1", amended=b"20"), PLENTY
            )
            page = await two.broker.page(room, limit=10)
            assert numbers(page.publications) == [20, 2]
            # An announcement that is not kept itself may amend too.
            await one.broker.publish(
                room, draft(4, lane=Lane.NONE, amends="m1", amended=bytes(range(256))), PLENTY
            )
            page = await two.broker.page(room, limit=10)
        assert [p.data for p in page.publications] == [bytes(range(256)), b"2"]

    async def test_amending_the_unknown_is_harmless(self) -> None:
        room = self.channel()
        few = Retention(size=2)
        async with self.pair() as (one, two):
            await one.broker.publish(room, draft(1, lane=Lane.PRESENCE, id="p1"), few)
            for number in (2, 3, 4):
                await one.broker.publish(room, draft(number, id=f"m{number}"), few)
            # Unknown, trimmed, of the other lane, and trimmed by this very publication.
            for amends in ("nothing", "m2", "p1"):
                await two.broker.publish(
                    room, draft(0, lane=Lane.NONE, amends=amends, amended=b"99"), few
                )
            await two.broker.publish(room, draft(5, amends="m3", amended=b"99"), few)
            fresh = self.channel()
            await one.broker.publish(
                fresh, draft(0, lane=Lane.NONE, amends="m4", amended=b"99"), few
            )
            page = await one.broker.page(room, limit=10)
            recovery = await one.broker.recover(room, Position(page.position.epoch, 3), limit=10)
        assert numbers(page.publications) == [4, 5]
        assert numbers(recovery.publications) == [4, 5]

    async def test_an_amendment_that_expects_something_else_is_a_conflict(self) -> None:
        room, empty = self.channel(), self.channel()

        def edit(number: int, expects: bytes, amends: str = "m1") -> Draft:
            amended = b"%d0" % number
            return draft(number, id=f"e{number}", amends=amends, amended=amended, expects=expects)

        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            await one.broker.publish(room, draft(1, id="m1"), PLENTY)
            await one.broker.publish(room, draft(9, lane=Lane.PRESENCE, id="p1"), PLENTY)
            first = await two.broker.publish(room, edit(2, b"1"), PLENTY)
            assert not first.conflict
            for refused in (edit(3, b"1"), edit(4, b"9", "p1"), edit(5, b"1", "m9")):
                result = await one.broker.publish(room, refused, PLENTY)
                assert result.conflict and not result.duplicate
                assert result.position.offset == first.position.offset
            # A resend of what took effect is a duplicate, whatever the payload is now.
            assert (await one.broker.publish(room, edit(2, b"1"), PLENTY)).duplicate
            # An id that met with a conflict is free.
            again = await one.broker.publish(room, edit(3, b"20"), PLENTY)
            assert not again.conflict and not again.duplicate
            assert (await one.broker.publish(empty, edit(6, b"1"), PLENTY)).conflict
            heard = await two.recorder.wait(room, 4)
            page = await two.broker.page(room, limit=10)
        assert numbers(heard) == [1, 9, 2, 3]
        assert numbers(page.publications) == [30, 2, 3]

    async def test_of_many_amendments_at_once_one_wins(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await one.broker.publish(room, draft(1, id="m1"), PLENTY)
            sides = [one, two] * 8
            results = await together(
                partial(
                    side.broker.publish,
                    room,
                    draft(n, amends="m1", amended=b"%d" % n, expects=b"1"),
                    PLENTY,
                )
                for n, side in enumerate(sides, start=100)
            )
            page = await two.broker.page(room, limit=10)
        winners = [n for n, result in enumerate(results, start=100) if not result.conflict]
        assert len(winners) == 1
        assert numbers(page.publications) == winners * 2

    async def test_finding_by_id(self) -> None:
        room = self.channel()
        few = Retention(size=2)
        async with self.pair() as (one, two):
            assert await one.broker.find(room, "m1") is None
            for number in (1, 2, 3):
                await one.broker.publish(room, draft(number, id=f"m{number}"), few)
            await one.broker.publish(room, draft(4, lane=Lane.PRESENCE, id="p1"), few)
            await one.broker.publish(room, draft(5, lane=Lane.NONE, id="n1"), few)
            await one.broker.publish(
                room, draft(6, lane=Lane.NONE, amends="m3", amended=b"30"), few
            )
            page = await two.broker.page(room, limit=10)
            found = [await two.broker.find(room, f"m{number}") for number in (2, 3)]
            # Trimmed, of the other lane, not kept, never there.
            for gone in ("m1", "p1", "n1", "m9", ""):
                assert await two.broker.find(room, gone) is None
        assert found == page.publications
        assert numbers(page.publications) == [2, 30]

    # Recovery

    async def test_recovery_is_everything_since(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            positions = [
                (await one.broker.publish(room, draft(number), PLENTY)).position
                for number in range(1, 6)
            ]
            heard = await two.recorder.wait(room, 5)
            for position in positions:
                recovery = await two.broker.recover(room, position, limit=5)
                assert recovery == Recovery(heard[position.offset :], positions[-1], True)

    async def test_recovery_stops_at_its_limit(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            end = await say(one.broker, room, range(1, 6))
            start = Position(end.epoch, 2)
            assert (await two.broker.recover(room, start, limit=3)).recovered
            assert await two.broker.recover(room, start, limit=2) == Recovery([], end, False)
            assert await two.broker.recover(room, start, limit=0) == Recovery([], end, False)
            assert await two.broker.recover(room, end, limit=0) == Recovery([], end, True)

    @pytest.mark.parametrize("offset", [4, 1_000, 2**63, 10**30, -1, -(10**30)])
    async def test_a_position_that_never_was_is_not_recovered(self, offset: int) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            end = await say(one.broker, room, range(1, 4))
            recovery = await two.broker.recover(room, Position(end.epoch, offset), limit=100)
        assert recovery == Recovery([], end, False)

    @pytest.mark.parametrize("epoch", ["", "x", "0", "é\0{}", "e" * 10_000])
    async def test_a_foreign_epoch_is_not_recovered(self, epoch: str) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            end = (await one.broker.publish(room, draft(1), PLENTY)).position
            for offset in (0, 1):
                recovery = await two.broker.recover(room, Position(epoch, offset), limit=100)
                assert recovery == Recovery([], end, False)

    async def test_a_fork_is_not_recovered(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            positions = [
                (await one.broker.publish(room, draft(number), PLENTY)).position
                for number in range(1, 4)
            ]
            recovery = await two.broker.recover(room, positions[0], limit=10)
            assert recovery.recovered
            if positions[0].nonce:
                for position in positions:
                    fork = msgspec.structs.replace(position, nonce="another")
                    recovery = await two.broker.recover(room, fork, limit=10)
                    assert recovery == Recovery([], positions[-1], False)
                named = recovery.publications
                assert all(b.previous == a.nonce for a, b in pairwise(named))

    async def test_trimmed_history_is_not_recovered(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            end = await say(one.broker, room, range(1, 11), Retention(size=4))
            for offset in range(11):
                position = Position(end.epoch, offset)
                recovery = await two.broker.recover(room, position, limit=100)
                # 7 to 10 are there, so whoever has seen 6 misses nothing.
                assert recovery.recovered is (offset >= 6)
                wanted = list(range(offset + 1, 11)) if offset >= 6 else []
                assert numbers(recovery.publications) == wanted

    async def test_what_one_lane_lost_is_missing_when_the_other_loses_older(self) -> None:
        room = self.channel()
        few = Retention(size=1, presence=1)
        async with self.pair() as (one, two):
            epoch = (await one.broker.page(room, limit=1)).position.epoch
            # 2 goes before 1 does.
            for number, lane in enumerate((1, 2, 2, 1), 1):
                await one.broker.publish(room, draft(number, lane=lane), few)
                for offset in range(number + 1):
                    recovery = await two.broker.recover(room, Position(epoch, offset), 10)
                    assert recovery.recovered is (offset >= (0 if number < 3 else 2))
            recovery = await two.broker.recover(room, Position(epoch, 2), limit=10)
            assert numbers(recovery.publications) == [3, 4]

    async def test_a_fresh_channel_has_a_position_one_can_come_back_to(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            page = await one.broker.page(room, limit=10)
            assert page == Page([], Position(page.position.epoch, 0))
            assert page.position.epoch
            start = page.position
            assert await two.broker.recover(room, start, limit=10) == Recovery([], start, True)
            foreign = await two.broker.recover(room, Position("foreign", 0), limit=10)
            assert foreign == Recovery([], start, False)
            await two.broker.publish(room, draft(1), PLENTY)
            recovery = await one.broker.recover(room, start, limit=10)
            assert recovery.recovered
            assert numbers(recovery.publications) == [1]

    # Paging

    async def test_paging_backwards(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            end = await say(one.broker, room, range(1, 11))
            page = await two.broker.page(room, limit=4)
            assert (numbers(page.publications), page.more) == ([7, 8, 9, 10], True)
            page = await two.broker.page(room, before=7, limit=4)
            assert (numbers(page.publications), page.more) == ([3, 4, 5, 6], True)
            page = await two.broker.page(room, before=3, limit=4)
            assert (numbers(page.publications), page.more) == ([1, 2], False)
            assert page.position == end
            page = await two.broker.page(room, before=5, limit=4)
            assert (numbers(page.publications), page.more) == ([1, 2, 3, 4], False)
            page = await two.broker.page(room, limit=10)
            assert (numbers(page.publications), page.more) == (list(range(1, 11)), False)

    async def test_paging_forwards(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            end = await say(one.broker, room, range(1, 11))
            page = await two.broker.page(room, after=0, limit=4)
            assert (numbers(page.publications), page.more) == ([1, 2, 3, 4], True)
            page = await two.broker.page(room, after=4, limit=4)
            assert (numbers(page.publications), page.more) == ([5, 6, 7, 8], True)
            page = await two.broker.page(room, after=8, limit=4)
            assert (numbers(page.publications), page.more) == ([9, 10], False)
            assert page.position == end
            page = await two.broker.page(room, after=6, limit=4)
            assert (numbers(page.publications), page.more) == ([7, 8, 9, 10], False)

    async def test_empty_pages(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            end = await say(one.broker, room, range(1, 5), Retention(size=2))
            for bound in (3, 1, 0, -1, -(10**30)):
                assert await two.broker.page(room, before=bound, limit=5) == Page([], end)
            for bound in (4, 5, 2**63, 10**30):
                assert await two.broker.page(room, after=bound, limit=5) == Page([], end)
            # A bound outside what is kept is none.
            for bound in (5, 2**63, 10**30):
                page = await two.broker.page(room, before=bound, limit=5)
                assert (numbers(page.publications), page.more) == ([3, 4], False)
            for bound in (2, 0, -1, -(10**30)):
                page = await two.broker.page(room, after=bound, limit=5)
                assert (numbers(page.publications), page.more) == ([3, 4], False)
            assert (await two.broker.page(room, limit=0)).publications == []

    async def test_pages_add_up_to_the_history_with_presence_in_between(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for number in range(1, 41):
                lane = Lane.HISTORY if number % 4 == 1 else Lane.PRESENCE
                await one.broker.publish(room, draft(number, lane=lane), PLENTY)
            forwards: list[int] = []
            page = await two.broker.page(room, after=0, limit=3)
            while page.publications:
                forwards += numbers(page.publications)
                assert page.more is (forwards[-1] != 37)
                page = await two.broker.page(room, after=forwards[-1], limit=3)
            backwards: list[int] = []
            page = await two.broker.page(room, limit=3)
            while page.publications:
                backwards = numbers(page.publications) + backwards
                assert page.more is (backwards[0] != 1)
                page = await two.broker.page(room, before=backwards[0], limit=3)
        assert forwards == backwards == list(range(1, 41, 4))

    @settings(
        max_examples=50,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(steps=_STEPS)
    async def test_it_behaves_like_a_list(self, steps: list[tuple[object, ...]]) -> None:
        room = self.channel()
        model = _Model()
        few = Retention(size=_Model.SIZE[Lane.HISTORY], presence=_Model.SIZE[Lane.PRESENCE])
        announced: list[tuple[int, int]] = []
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            epoch = (await one.broker.page(room, limit=1)).position.epoch
            for number, step in enumerate(steps, 1):
                broker = (one, two)[number % 2].broker
                match step:
                    case ("publish", Lane() as lane, str(id), str(amends)):
                        offset, duplicate = model.publish(number, lane, id, amends)
                        published = await broker.publish(
                            room,
                            draft(number, lane=lane, id=id, amends=amends, amended=b"-%d" % number),
                            few,
                        )
                        assert (published.position.offset, published.duplicate) == (
                            offset,
                            duplicate,
                        )
                        if not duplicate:
                            announced.append((offset, number))
                    case ("recover", int(since), int(limit)):
                        recovery = await broker.recover(room, Position(epoch, since), limit)
                        wanted = model.recover(since, limit)
                        assert recovery.recovered is (wanted is not None)
                        assert _pairs(recovery.publications) == (wanted or [])
                        assert recovery.position.offset == model.offset
                    case ("before", (int() | None) as bound, int(limit)):
                        page = await broker.page(room, before=bound, limit=limit)
                        found = (_pairs(page.publications), page.more)
                        assert found == model.before(bound, limit)
                    case ("after", int(bound), int(limit)):
                        page = await broker.page(room, after=bound, limit=limit)
                        assert (_pairs(page.publications), page.more) == model.after(bound, limit)
            end = (await one.broker.page(room, limit=1)).position
            assert (end.epoch, end.offset) == (epoch, model.offset)
            assert _pairs(await two.recorder.wait(room, len(announced))) == announced
