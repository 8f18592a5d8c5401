"""What a presence store promises (presence/base.py), each promise a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ...events import Draft, Lane, Position, Publication, Retention
from ...presence.base import Counts, Lease, MemberPage, PresenceStore
from .broker import ODD_NAMES
from .recorder import RunningPresence, StoreContract, together

KEEP = Retention(size=10_000, age=86_400.0, presence=10_000)


def arrived(user_id: str) -> Draft:
    return Draft(event="arrived", data=msgspec.json.encode(user_id), lane=Lane.PRESENCE)


def departed(user_id: str) -> Draft:
    return Draft(event="departed", data=msgspec.json.encode(user_id), lane=Lane.PRESENCE)


def moves(publications: list[Publication]) -> list[tuple[str, str]]:
    """Return who arrived and departed, in order."""
    return [(p.event, msgspec.json.decode(p.data, type=str)) for p in publications]


def shown(page: MemberPage) -> list[tuple[str, Any, str]]:
    """Return what a page shows of its users. A store may hold `user` as JSON or decoded."""
    return [
        (m.user_id, msgspec.json.decode(msgspec.json.encode(m.user)), m.status)
        for m in page.members
    ]


def user_ids(page: MemberPage) -> list[str]:
    return [member.user_id for member in page.members]


_SESSIONS = st.sampled_from(["s1", "s2", "s3", "s4"])
_USERS = st.sampled_from(["ann", "bob", "cyd"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), _SESSIONS, _USERS, st.sampled_from([10, 100])),
        st.tuples(st.just("leave"), _SESSIONS),
        st.tuples(st.just("renew"), st.lists(_SESSIONS, max_size=4), st.sampled_from([10, 100])),
        st.tuples(st.just("update"), _SESSIONS),
        st.tuples(st.just("pass"), st.sampled_from([1, 9, 50])),
    ),
    max_size=40,
)


class _Model:
    """One channel: its leases in the order of entering and changing, and what was announced."""

    def __init__(self) -> None:
        # Session id → user, what is shown, end.
        self.leases: dict[str, tuple[str, int, float]] = {}
        self.moves: list[tuple[str, str]] = []
        self.now = 0.0

    def users(self) -> dict[str, int]:
        """Return what is shown of each user: the last wins."""
        return {user: show for user, show, _ in self.leases.values()}

    def enter(self, session: str, user: str, show: int, ttl: float) -> bool:
        if session in self.leases and self.leases[session][0] != user:
            self.leave(session)
        first = user not in self.users()
        if first:
            self.moves.append(("arrived", user))
        self.leases.pop(session, None)
        self.leases[session] = (user, show, self.now + ttl)
        return first

    def leave(self, session: str) -> bool:
        user = self.leases.pop(session, ("",))[0]
        last = user != "" and user not in self.users()
        if last:
            self.moves.append(("departed", user))
        return last

    def renew(self, session: str, ttl: float) -> bool:
        if session in self.leases:
            self.leases[session] = (*self.leases[session][:2], self.now + ttl)
        return session in self.leases

    def update(self, session: str, show: int) -> None:
        if session in self.leases:
            user, _, until = self.leases.pop(session)
            self.leases[session] = (user, show, until)

    def expire(self) -> int:
        over = [session for session, lease in self.leases.items() if lease[2] <= self.now]
        # Which of two leases that are both over ends first says nothing about who departs.
        for session in sorted(over, key=lambda session: self.leases[session][2]):
            self.leave(session)
        return len(over)


class PresenceContract(StoreContract):
    """For a presence store.

    The subclass writes `pair`: a block in which two stores over the same backend are running, the
    second as another process would have it, each beside a broker with a `Recorder` for a listener.
    A store of a single process gives the same one twice. No `expire` runs by itself.
    """

    def pair(self) -> AbstractAsyncContextManager[tuple[RunningPresence, RunningPresence]]:
        raise NotImplementedError("a contract suite needs `pair`: see docs/stores.md")

    @property
    def long(self) -> float:
        """Seconds that do not end during a test."""
        return self.unit * 1000

    async def enter(
        self,
        store: PresenceStore,
        channel: str,
        session_id: str,
        user_id: str,
        *,
        ttl: float | None = None,
        user: object = None,
        status: str = "online",
    ) -> bool:
        """Enter with the arrival and departure this suite looks for."""
        return await store.enter(
            channel,
            Lease(session_id, user_id, msgspec.json.encode(user), status),
            ttl=self.long if ttl is None else ttl,
            arrival=arrived(user_id),
            departure=departed(user_id),
            retention=KEEP,
        )

    async def moves(self, side: RunningPresence, channel: str) -> list[tuple[str, str]]:
        """Return who arrived and departed, as the stream has it."""
        end = (await side.broker.page(channel, limit=1)).position
        start = Position(end.epoch, 0)
        recovery = await side.broker.recover(channel, start, limit=100_000)
        assert recovery.recovered
        return moves(recovery.publications)

    # First and last

    async def test_the_first_session_arrives_and_the_last_departs(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            assert await self.enter(one.presence, room, "s1", "ann")
            assert not await self.enter(two.presence, room, "s2", "ann")
            assert await self.enter(two.presence, room, "s3", "bob")
            assert await one.presence.counts(room) == Counts(users=2, sessions=3)
            assert not await two.presence.leave(room, "s1")
            assert await one.presence.leave(room, "s2")
            assert await one.presence.counts(room) == Counts(users=1, sessions=1)
            assert await one.presence.leave(room, "s3")
            assert await two.presence.counts(room) == Counts(users=0, sessions=0)
            wanted = [
                ("arrived", "ann"),
                ("arrived", "bob"),
                ("departed", "ann"),
                ("departed", "bob"),
            ]
            heard = await two.recorder.wait(room, 4)
            assert moves(heard) == wanted
            assert await self.moves(one, room) == wanted
            assert [p.offset for p in heard] == [1, 2, 3, 4]
            assert {p.lane for p in heard} == {Lane.PRESENCE}

    async def test_entering_again_is_neither_first_nor_another_session(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            assert await self.enter(one.presence, room, "s1", "ann")
            assert not await self.enter(one.presence, room, "s1", "ann")
            assert not await self.enter(two.presence, room, "s1", "ann")
            assert await one.presence.counts(room) == Counts(1, 1)
            assert await two.presence.leave(room, "s1")
            assert await self.moves(one, room) == [("arrived", "ann"), ("departed", "ann")]

    async def test_coming_back_is_a_new_arrival(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for _ in range(3):
                assert await self.enter(one.presence, room, "s1", "ann")
                assert await two.presence.leave(room, "s1")
            assert await self.moves(one, room) == [("arrived", "ann"), ("departed", "ann")] * 3

    async def test_many_at_once_count_one_first_and_one_last(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            sides = [(one, two)[number % 2].presence for number in range(60)]
            names = [(f"s{number}", f"user{number % 3}") for number in range(60)]
            firsts = await together(
                partial(self.enter, side, room, session, user)
                for side, (session, user) in zip(sides, names, strict=True)
            )
            assert firsts.count(True) == 3
            assert await two.presence.counts(room) == Counts(users=3, sessions=60)
            # By the other store than the one that let them in.
            lasts = await together(
                partial(side.leave, room, session)
                for side, (session, _) in zip(reversed(sides), names, strict=True)
            )
            assert lasts.count(True) == 3
            counted = Counter(await self.moves(one, room))
        assert counted == Counter(
            (event, f"user{number}") for event in ("arrived", "departed") for number in range(3)
        )

    async def test_one_lease_ended_by_many_ends_once(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await self.enter(one.presence, room, "s1", "ann")
            lasts = await together(
                partial((one, two)[number % 2].presence.leave, room, "s1") for number in range(20)
            )
            assert lasts.count(True) == 1
            assert await self.moves(one, room) == [("arrived", "ann"), ("departed", "ann")]

    async def test_members_and_stream_agree_whatever_happens_at_once(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):

            async def come_and_go(number: int) -> None:
                store, other = one.presence, two.presence
                if number % 2:
                    store, other = other, store
                session, user = f"s{number}", f"user{number % 5}"
                for _ in range(4):
                    await self.enter(store, room, session, user)
                    await other.leave(room, session)
                if number < 10:
                    await self.enter(store, room, session, user)

            await together(partial(come_and_go, number) for number in range(20))
            happened = await self.moves(two, room)
            there: set[str] = set()
            for event, user in happened:
                # Never two arrivals of one user in a row, nor two departures.
                assert (user in there) is (event == "departed")
                there ^= {user}
            page = await one.presence.members(room)
            assert set(user_ids(page)) == there == {f"user{number}" for number in range(5)}
            assert page.counts == Counts(users=5, sessions=10)

    async def test_whoever_hears_of_a_move_finds_it_done(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            for number in range(10):
                await self.enter(one.presence, room, "s1", "ann")
                await two.recorder.wait(room, number * 2 + 1)
                assert user_ids(await two.presence.members(room)) == ["ann"]
                await one.presence.leave(room, "s1")
                await two.recorder.wait(room, number * 2 + 2)
                assert user_ids(await two.presence.members(room)) == []

    async def test_moves_stand_between_messages_and_do_not_push_them_out(self) -> None:
        room = self.channel()
        few = Retention(size=2, presence=3)
        async with self.pair() as (one, two):
            said = Draft(event="said", data=b'"hello"')
            await one.broker.publish(room, said, few)
            for number in range(10):
                await two.presence.enter(
                    room,
                    Lease(f"s{number}", f"user{number}"),
                    ttl=self.long,
                    arrival=arrived(f"user{number}"),
                    departure=None,
                    retention=few,
                )
            await one.broker.publish(room, said, few)
            page = await two.broker.page(room, limit=10)
            assert [p.offset for p in page.publications] == [1, 12]
            start = Position(page.position.epoch, 8)
            recovery = await one.broker.recover(room, start, limit=10)
            assert moves(recovery.publications) == [
                ("arrived", "user7"),
                ("arrived", "user8"),
                ("arrived", "user9"),
                ("said", "hello"),
            ]

    # Drafts

    async def test_without_drafts_nothing_is_announced(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for session in ("s1", "s2"):
                first = await one.presence.enter(
                    room,
                    Lease(session, "ann"),
                    ttl=self.long,
                    arrival=None,
                    departure=None,
                    retention=KEEP,
                )
                assert first is (session == "s1")
            assert not await one.presence.leave(room, "s1")
            assert await two.presence.leave(room, "s2")
            assert await self.moves(one, room) == []

    async def test_the_newest_departure_is_the_one(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for session, name in (("s1", "first"), ("s2", "second"), ("s1", "third")):
                await one.presence.enter(
                    room,
                    Lease(session, "ann"),
                    ttl=self.long,
                    arrival=None,
                    departure=departed(name),
                    retention=KEEP,
                )
            await two.presence.leave(room, "s1")
            await two.presence.leave(room, "s2")
            assert await self.moves(one, room) == [("departed", "third")]

    async def test_a_departure_says_all_its_draft_says(self) -> None:
        room = self.channel()
        said = Draft(
            event="gone ✓",
            data=bytes(range(256)),
            lane=Lane.PRESENCE,
            exclude="s9",
            volatile=True,
            key="presence:ann",
        )
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            await one.presence.enter(
                room,
                Lease("s1", "ann"),
                ttl=self.long,
                arrival=said,
                departure=said,
                retention=KEEP,
            )
            await two.presence.leave(room, "s1")
            for heard in await two.recorder.wait(room, 2):
                assert (heard.event, heard.data) == ("gone ✓", bytes(range(256)))
                assert (heard.lane, heard.exclude) == (Lane.PRESENCE, "s9")
                assert (heard.volatile, heard.key) == (True, "presence:ann")
                assert heard.time > 10**12

    async def test_moves_may_be_announced_without_being_kept(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await two.broker.subscribe([room])
            await one.presence.enter(
                room,
                Lease("s1", "ann"),
                ttl=self.long,
                arrival=Draft(event="arrived", data=b'"ann"', lane=Lane.NONE),
                departure=Draft(event="departed", data=b'"ann"', lane=Lane.NONE),
                retention=KEEP,
            )
            await one.presence.leave(room, "s1")
            heard = await two.recorder.wait(room, 2)
            assert moves(heard) == [("arrived", "ann"), ("departed", "ann")]
            assert [p.offset for p in heard] == [0, 0]
            assert await self.moves(two, room) == []

    # Leases

    async def test_a_lease_that_is_not_renewed_ends(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await self.enter(one.presence, room, "s1", "ann", ttl=self.unit)
            await self.enter(one.presence, room, "s2", "bob")
            await self.advance(self.unit * 1.5)
            assert await two.presence.expire() == 1
            assert await one.presence.expire() == 0
            assert user_ids(await one.presence.members(room)) == ["bob"]
            assert await one.presence.counts(room) == Counts(1, 1)
            assert await self.moves(two, room) == [
                ("arrived", "ann"),
                ("arrived", "bob"),
                ("departed", "ann"),
            ]
            assert not await one.presence.leave(room, "s1")
            assert await self.enter(one.presence, room, "s1", "ann")

    async def test_only_the_last_session_that_ends_departs(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await self.enter(one.presence, room, "s1", "ann", ttl=self.unit)
            await self.enter(two.presence, room, "s2", "ann")
            await self.advance(self.unit * 1.5)
            assert await two.presence.expire() == 1
            assert await self.moves(one, room) == [("arrived", "ann")]
            assert await one.presence.counts(room) == Counts(1, 1)
            assert await one.presence.leave(room, "s2")

    async def test_two_that_expire_at_once_end_each_lease_once(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for number in range(40):
                user = f"user{number // 2}"
                await self.enter(one.presence, room, f"s{number}", user, ttl=self.unit)
            await self.advance(self.unit * 1.5)
            removed = await together((one, two)[number % 2].presence.expire for number in range(6))
            assert sum(removed) == 40
            counted = Counter(await self.moves(two, room))
            assert await one.presence.counts(room) == Counts(0, 0)
        assert counted == Counter(
            (event, f"user{number}") for event in ("arrived", "departed") for number in range(20)
        )

    async def test_leaving_and_expiring_at_once_departs_once(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for number in range(20):
                await self.enter(one.presence, room, f"s{number}", f"u{number}", ttl=self.unit)
            await self.advance(self.unit * 1.5)

            async def leave(number: int) -> int:
                return int(await one.presence.leave(room, f"s{number}"))

            calls: list[Callable[[], Awaitable[int]]] = [
                partial(leave, number) for number in range(20)
            ]
            calls.insert(10, two.presence.expire)
            assert sum(await together(calls)) == 20
            happened = await self.moves(two, room)
            assert Counter(happened) == Counter(
                (event, f"u{number}") for event in ("arrived", "departed") for number in range(20)
            )

    async def test_renewing_and_expiring_at_once_one_of_them_wins(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            sessions = [(room, f"s{number}") for number in range(20)]
            for number, (_, session) in enumerate(sessions):
                await self.enter(one.presence, room, session, f"u{number}", ttl=self.unit)
            await self.advance(self.unit * 1.5)
            gone: list[tuple[str, str]] = []

            async def renew(lease: tuple[str, str]) -> int:
                gone.extend(await one.presence.renew([lease], self.long))
                return 0

            calls: list[Callable[[], Awaitable[int]]] = [partial(renew, s) for s in sessions]
            calls.insert(10, two.presence.expire)
            removed = sum(await together(calls))
            removed += await two.presence.expire()
            assert removed == len(gone)
            page = await two.presence.members(room)
            assert page.counts.sessions == 20 - removed
            happened = Counter(event for event, _ in await self.moves(two, room))
            assert happened["departed"] == removed

    async def test_a_renewed_lease_lives_on(self) -> None:
        room, other = self.channel(), self.channel("other")
        async with self.pair() as (one, two):
            for channel in (room, other):
                await self.enter(one.presence, channel, "s1", "ann", ttl=self.unit)
            assert await two.presence.renew([(room, "s1"), (other, "s1")], self.long) == []
            await self.advance(self.unit * 1.5)
            assert await two.presence.expire() == 0
            assert await one.presence.counts(room) == Counts(1, 1)
            assert await one.presence.counts(other) == Counts(1, 1)
            assert await self.moves(one, room) == [("arrived", "ann")]

    async def test_entering_again_renews(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await self.enter(one.presence, room, "s1", "ann", ttl=self.unit)
            await self.enter(two.presence, room, "s1", "ann", ttl=self.long)
            await self.advance(self.unit * 1.5)
            assert await one.presence.expire() == 0
            assert await one.presence.counts(room) == Counts(1, 1)

    async def test_the_newest_end_counts_even_when_it_is_earlier(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await self.enter(one.presence, room, "s1", "ann", ttl=self.long)
            assert await two.presence.renew([(room, "s1")], self.unit) == []
            await self.enter(one.presence, room, "s2", "bob", ttl=self.long)
            await self.enter(one.presence, room, "s2", "bob", ttl=self.unit)
            await self.advance(self.unit * 1.5)
            assert await two.presence.expire() == 2
            assert await one.presence.counts(room) == Counts(0, 0)

    async def test_renewing_tells_which_are_gone(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await self.enter(one.presence, room, "here", "ann")
            await self.enter(one.presence, room, "left", "bob")
            await self.enter(one.presence, room, "over", "cyd", ttl=self.unit)
            await one.presence.leave(room, "left")
            await self.advance(self.unit * 1.5)
            await one.presence.expire()
            nowhere = self.channel("nowhere")
            asked = [(room, "left"), (room, "here"), (room, "over"), (nowhere, "here")]
            gone = await two.presence.renew(asked, self.long)
            assert sorted(gone) == sorted([(room, "left"), (room, "over"), (nowhere, "here")])
            assert await two.presence.renew([], self.long) == []
            # Asking makes nobody be there.
            assert await one.presence.counts(room) == Counts(1, 1)
            assert await one.presence.counts(nowhere) == Counts(0, 0)

    async def test_many_leases_are_renewed_at_once(self) -> None:
        rooms = [self.channel(f"room{number}") for number in range(300)]
        async with self.pair() as (one, two):
            for room in rooms:
                await self.enter(one.presence, room, "s1", "ann", ttl=self.long)
            gone = await two.presence.renew(
                [(room, session) for room in rooms for session in ("s1", "s2")], self.long
            )
            assert sorted(gone) == sorted((room, "s2") for room in rooms)

    async def test_ending_what_is_not_there_is_harmless(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            assert not await one.presence.leave(room, "s1")
            await self.enter(one.presence, room, "s1", "ann")
            assert not await two.presence.leave(room, "s2")
            assert not await two.presence.leave(self.channel(), "s1")
            assert await two.presence.counts(room) == Counts(1, 1)
            assert await self.moves(one, room) == [("arrived", "ann")]

    async def test_a_session_that_enters_as_another_user_leaves_first(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await self.enter(one.presence, room, "s1", "ann")
            assert await self.enter(two.presence, room, "s1", "bob")
            assert await one.presence.counts(room) == Counts(1, 1)
            assert user_ids(await one.presence.members(room)) == ["bob"]
            await self.enter(one.presence, room, "s2", "ann")
            assert not await self.enter(two.presence, room, "s1", "ann")
            assert await one.presence.counts(room) == Counts(1, 2)
            assert await self.moves(one, room) == [
                ("arrived", "ann"),
                ("departed", "ann"),
                ("arrived", "bob"),
                ("arrived", "ann"),
                ("departed", "bob"),
            ]

    async def test_channels_have_nothing_to_do_with_each_other(self) -> None:
        rooms = [self.channel(name) for name in ODD_NAMES]
        async with self.pair() as (one, two):
            for number, room in enumerate(rooms):
                assert await self.enter(one.presence, room, "s1", f"user{number}")
            for number, room in enumerate(rooms):
                assert user_ids(await two.presence.members(room)) == [f"user{number}"]
            assert await one.presence.leave(rooms[0], "s1")
            for number, room in enumerate(rooms):
                here = 0 if number == 0 else 1
                assert await two.presence.counts(room) == Counts(users=here, sessions=here)

    async def test_odd_names_of_users_and_sessions(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            for name in ODD_NAMES:
                assert await self.enter(one.presence, room, f"session {name}", name, user=name)
            page = await two.presence.members(room)
            assert shown(page) == [(name, name, "online") for name in sorted(ODD_NAMES)]
            leases = [(room, f"session {name}") for name in ODD_NAMES]
            assert await two.presence.renew(leases, self.long) == []
            for name in ODD_NAMES:
                assert await two.presence.leave(room, f"session {name}")
            assert await one.presence.counts(room) == Counts(0, 0)

    # Members

    async def test_members_show_what_the_lease_says(self) -> None:
        room = self.channel()
        ann = {"name": "Ann ✓", "age": 7, "tags": ["a", None, True]}
        async with self.pair() as (one, two):
            await self.enter(one.presence, room, "s1", "ann", user=ann, status="busy: à table")
            await self.enter(one.presence, room, "s2", "bob")
            page = await two.presence.members(room)
            assert shown(page) == [("ann", ann, "busy: à table"), ("bob", None, "online")]
            assert (page.counts, page.cursor) == (Counts(2, 2), "")

    async def test_nobody_is_an_empty_page(self) -> None:
        async with self.pair() as (one, _):
            room = self.channel()
            assert await one.presence.members(room) == MemberPage([], Counts(0, 0))
            assert await one.presence.members(room, cursor="ann") == MemberPage([], Counts(0, 0))
            assert await one.presence.counts(room) == Counts(0, 0)
            assert await one.presence.expire() == 0

    async def test_the_session_that_entered_or_was_updated_last_is_shown(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            show = partial(two.presence.members, room)
            await self.enter(one.presence, room, "s1", "ann", user=1, status="away")
            await self.enter(two.presence, room, "s2", "ann", user=2, status="busy")
            assert shown(await show()) == [("ann", 2, "busy")]
            await two.presence.update(room, "s1", user=None, status="online")
            assert shown(await show()) == [("ann", 1, "online")]
            await one.presence.update(room, "s2", user=b'{"n":3}', status=None)
            assert shown(await show()) == [("ann", {"n": 3}, "busy")]
            await self.enter(one.presence, room, "s1", "ann", user=4)
            assert shown(await show()) == [("ann", 4, "online")]
            await two.presence.leave(room, "s1")
            assert shown(await show()) == [("ann", {"n": 3}, "busy")]
            await two.presence.renew([(room, "s2")], self.long)
            assert shown(await show()) == [("ann", {"n": 3}, "busy")]
            assert await self.moves(one, room) == [("arrived", "ann")]

    async def test_updating_what_is_not_there_is_harmless(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await one.presence.update(room, "s1", user=b"1", status="busy")
            assert await two.presence.counts(room) == Counts(0, 0)
            await self.enter(one.presence, room, "s1", "ann", user=1)
            await one.presence.update(room, "s2", user=b"2", status="busy")
            assert shown(await two.presence.members(room)) == [("ann", 1, "online")]

    async def test_an_update_does_not_renew(self) -> None:
        room = self.channel()
        async with self.pair() as (one, two):
            await self.enter(one.presence, room, "s1", "ann", ttl=self.unit)
            await one.presence.update(room, "s1", user=None, status="busy")
            await self.advance(self.unit * 1.5)
            assert await two.presence.expire() == 1

    async def test_pages_of_members_are_ordered_and_complete(self) -> None:
        room = self.channel()
        names = [f"user{number:02}" for number in range(25)]
        async with self.pair() as (one, two):
            for name in reversed(names):
                for device in "ab":
                    await self.enter(one.presence, room, name + device, name)
            for limit in (1, 5, 7, 24, 25, 26):
                seen: list[str] = []
                page = await two.presence.members(room, limit=limit)
                seen += user_ids(page)
                while page.cursor:
                    assert len(page.members) == limit
                    assert page.counts == Counts(users=25, sessions=50)
                    page = await two.presence.members(room, cursor=page.cursor, limit=limit)
                    seen += user_ids(page)
                assert seen == names
            assert (await two.presence.members(room, limit=0)).members == []

    async def test_paging_is_stable_while_people_come_and_go(self) -> None:
        room = self.channel()
        stay = [f"stay{number:02}" for number in range(20)]
        async with self.pair() as (one, two):
            for name in stay:
                await self.enter(one.presence, room, name, name)
                await self.enter(one.presence, room, f"{name}-goes", f"{name}-goes")
            seen: list[str] = []
            cursor = ""
            for step in range(100):
                page = await two.presence.members(room, cursor=cursor, limit=3)
                seen += user_ids(page)
                cursor = page.cursor
                if not cursor:
                    break
                # The very user the cursor names may be gone, and others come before and after.
                await one.presence.leave(room, f"{stay[step % 20]}-goes")
                if cursor.endswith("-goes"):
                    await one.presence.leave(room, cursor)
                await self.enter(one.presence, room, f"aaa{step}", f"aaa{step}")
                await self.enter(one.presence, room, f"zzz{step}", f"zzz{step % 3}")
            assert not cursor
            assert seen == sorted(set(seen))
            assert [name for name in seen if name in stay] == stay

    @settings(
        max_examples=50,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(steps=_STEPS)
    async def test_it_behaves_like_a_dict(self, steps: list[tuple[object, ...]]) -> None:
        room = self.channel()
        model = _Model()
        async with self.pair() as (one, two):
            for number, step in enumerate(steps):
                store = (one, two)[number % 2].presence
                match step:
                    case ("enter", str(session), str(user), int(units)):
                        ttl = units * self.unit if self.virtual_time else self.long
                        first = await self.enter(store, room, session, user, ttl=ttl, user=number)
                        assert first is model.enter(session, user, number, ttl)
                    case ("leave", str(session)):
                        assert await store.leave(room, session) is model.leave(session)
                    case ("renew", list(sessions), int(units)):
                        ttl = units * self.unit if self.virtual_time else self.long
                        gone = await store.renew([(room, s) for s in sessions], ttl)
                        assert gone == [(room, s) for s in sessions if not model.renew(s, ttl)]
                    case ("update", str(session)):
                        await store.update(room, session, user=b"%d" % number, status=None)
                        model.update(session, number)
                    case ("pass", int(units)) if self.virtual_time:
                        await self.advance(units * self.unit)
                        model.now += units * self.unit
                        assert await store.expire() == model.expire()
                users = model.users()
                page = await store.members(room)
                assert shown(page) == [(user, users[user], "online") for user in sorted(users)]
                assert page.counts == await store.counts(room)
                assert page.counts == Counts(len(users), len(model.leases))
            happened = await self.moves(two, room)
        # What ends in one sweep ends in no order that was promised.
        assert Counter(happened) == Counter(model.moves)
        for user in ("ann", "bob", "cyd"):
            assert [m for m in happened if m[1] == user] == [m for m in model.moves if m[1] == user]
