"""The hub alone: order, one write per turn, shared chunks, and the watch over offsets."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.core.group import FAST_FROM
from starlette_realtime.core.hub import MAX_BUFFERED, Channel, Hub
from starlette_realtime.core.options import Options
from starlette_realtime.events import Position, Publication
from starlette_realtime.wires import native as wires
from tests.core.helpers import Socket

START = Position("e", 0)


class Someone:
    """A receiver."""

    def __init__(self, id: str, wire: Any = None) -> None:
        self.id = id
        self.socket = Socket(Options(), wire)
        self.outbox = self.socket.outbox

    def heard(self) -> list[Any]:
        """The data of all that came."""
        return [message.get("data") for message in self.socket.received]


class Turn:
    """A hub whose turns end when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []
        self.holes: list[Channel] = []
        self.controls: list[str] = []
        self.hub = Hub(
            self.waiting.append,
            self.holes.append,
            lambda channel, publication: self.controls.append(publication.event),
        )

    def end(self) -> None:
        waiting, self.waiting[:] = list(self.waiting), []
        for call in waiting:
            call()

    def room(self, name: str, *members: Someone, at: Position | None = START) -> Channel:
        channel = self.hub.channel(f"room/:{name}", "/", name)
        for member in members:
            self.hub.sessions[member.id] = member
            self.hub.begin(channel, member)
            self.hub.go_live(channel, member, at)
        return channel

    def announce(self, room: str, offset: int, **more: Any) -> None:
        data = more.pop("data", str(offset).encode())
        more.setdefault("epoch", "e" if offset else "")
        self.hub.received(f"room/:{room}", Publication("n", data, offset, **more))


def direct(data: Any) -> bytes:
    return json.dumps({"type": "direct", "data": data}).encode()


def test_a_turn_is_one_write_and_one_encoding() -> None:
    turn = Turn()
    several = [Someone(f"a{n}") for n in range(5)]
    frames = [Someone(f"b{n}", wires.TEXT[0]) for n in range(3)]
    turn.room("r", *several, *frames)
    for offset in (1, 2, 3):
        turn.announce("r", offset)
    assert [one.heard() for one in several] == [[]] * 5
    assert len(turn.waiting) == 1
    turn.end()
    assert [one.heard() for one in several + frames] == [[1, 2, 3]] * 8
    # Once for each of the two wires, however many members.
    assert turn.hub.encoded == 6
    assert turn.hub.delivered == 24
    assert [one.socket.writes for one in several] == [1] * 5
    # The very same object for all that get the same.
    assert len({id(one.socket.chunks[0]) for one in several}) == 1
    turn.end()
    assert [one.socket.writes for one in several] == [1] * 5


def test_what_continues_is_said_in_brief_to_those_who_take_it() -> None:
    turn = Turn()
    people = [Someone(f"v{version}", wires.TEXT[version]) for version in (1, 2)]
    ann = Someone("ann")
    turn.room("r", *people, ann)
    turn.announce("r", 1)
    turn.announce("r", 2)
    turn.hub.push(ann, direct("between"))
    turn.announce("r", 3)
    turn.end()
    first, second, third = (f'{{"type":"n","room":"r","offset":{n},"data":{n}}}' for n in (1, 2, 3))
    assert [one.socket.chunks for one in people] == [
        [f"{first}\n{second}\n{third}"],
        [f'{first}\n{{"data":2}}\n{{"data":3}}'],
    ]
    assert ann.heard() == [1, 2, "between", 3]


def test_a_direct_message_stands_where_it_was_handed_over() -> None:
    turn = Turn()
    ann, bob = Someone("ann"), Someone("bob")
    turn.room("r", ann, bob)
    turn.hub.push(ann, direct("before"))
    turn.announce("r", 1)
    turn.hub.push(ann, direct("between"))
    turn.announce("r", 2)
    turn.hub.push(ann, direct("after"))
    turn.end()
    assert ann.heard() == ["before", 1, "between", 2, "after"]
    assert bob.heard() == [1, 2]
    assert ann.socket.writes == 1


def test_rooms_that_speak_in_one_turn_are_each_written_to_as_a_whole() -> None:
    turn = Turn()
    people = [Someone(f"{room}{n}") for room in "ab" for n in range(FAST_FROM)]
    both = Someone("both")
    for number, one in enumerate([*people, both]):
        one.outbox.descriptor = number
    half = len(people) // 2
    turn.room("a", *people[:half], both)
    turn.room("b", *people[half:], both)
    written: list[tuple[list[int], Any]] = []

    def write_all(descriptors: array[int], chunk: Any, _: bool) -> list[tuple[int, int]]:
        written.append((sorted(descriptors), chunk))
        return []

    turn.hub.write_all = write_all
    turn.announce("a", 1, data=b"11")
    turn.announce("b", 1, data=b"21")
    turn.announce("a", 2, data=b"12")
    turn.end()
    (first, in_a), (second, in_b) = written
    assert (first, second) == (list(range(half)), list(range(half, half * 2)))
    assert in_a.count('"data"') == 2 and in_b.count('"data"') == 1
    # Who is in both gets all in its order, by one write of its own.
    assert both.heard() == [11, 21, 12]
    assert both.socket.writes == 1
    assert turn.hub.writes == len(people) + 1


def test_who_is_left_out() -> None:
    turn = Turn()
    ann, bob = Someone("ann"), Someone("bob")
    turn.room("r", ann, bob)
    turn.announce("r", 1, exclude="ann")
    turn.announce("r", 2)
    turn.announce("r", 3, exclude="bob")
    turn.announce("r", 4, exclude="nobody")
    turn.end()
    assert ann.heard() == [2, 3, 4]
    assert bob.heard() == [1, 2, 4]
    turn.announce("r", 5, exclude="ann")
    turn.end()
    assert ann.heard() == [2, 3, 4]
    assert ann.socket.writes == 1


@st.composite
def _steps(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """(what, room, whom): publish into a room but not to whom, or push to whom."""
    step = st.tuples(
        st.sampled_from(["publish", "exclude", "push", "end"]), st.integers(0, 2), st.integers(0, 3)
    )
    return draw(st.lists(step, max_size=25))


@given(
    steps=_steps(),
    places=st.lists(st.sets(st.integers(0, 2)), min_size=4, max_size=4),
    versions=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_everyone_gets_everything_in_the_order_in_which_it_was_handed_over(
    steps: list[tuple[str, int, int]], places: list[set[int]], versions: list[int]
) -> None:
    turn = Turn()
    people = [Someone(f"s{n}", wires.TEXT[each]) for n, each in enumerate(versions)]
    for room in range(3):
        turn.room(str(room), *(p for p, in_ in zip(people, places, strict=True) if room in in_))
    wanted: list[list[Any]] = [[] for _ in people]
    offsets = [0, 0, 0]
    for number, (what, room, whom) in enumerate(steps):
        if what == "end":
            turn.end()
        elif what == "push":
            turn.hub.push(people[whom], direct(number))
            wanted[whom].append(number)
        else:
            offsets[room] += 1
            exclude = people[whom].id if what == "exclude" else ""
            data = str(number).encode()
            turn.announce(str(room), offsets[room], data=data, exclude=exclude)
            for index, in_ in enumerate(places):
                if room in in_ and people[index].id != exclude:
                    wanted[index].append(number)
    turn.end()
    assert [person.heard() for person in people] == wanted


def test_history_that_was_ahead_of_the_announcements() -> None:
    turn = Turn()
    ann, bob = Someone("ann"), Someone("bob")
    channel = turn.room("r", ann, at=Position("e", 3))
    turn.room("r", bob, at=Position("e", 6))
    for offset in range(1, 9):
        turn.announce("r", offset)
        turn.end()
    assert ann.heard() == [4, 5, 6, 7, 8]
    assert bob.heard() == [7, 8]
    assert channel.ahead is None
    assert not turn.holes


def test_one_that_is_ahead_and_leaves() -> None:
    turn = Turn()
    ann, bob = Someone("ann"), Someone("bob")
    channel = turn.room("r", ann, at=Position("e", 3))
    turn.room("r", bob, at=Position("e", 6))
    turn.hub.remove(channel, bob)
    turn.announce("r", 4)
    turn.end()
    assert (ann.heard(), bob.heard(), channel.members) == ([4], [], 1)


def test_a_duplicate_is_dropped_and_a_gap_is_held_until_it_is_closed() -> None:
    turn = Turn()
    ann = Someone("ann")
    channel = turn.room("r", ann)
    for offset in (1, 2, 2, 1):
        turn.announce("r", offset)
    turn.end()
    assert ann.heard() == [1, 2]
    for offset in (5, 6):
        turn.announce("r", offset)
    turn.end()
    assert ann.heard() == [1, 2]
    assert turn.holes == [channel]
    missed = [Publication("n", str(n).encode(), n, "e") for n in (3, 4, 5)]
    assert turn.hub.healed(channel, missed, Position("e", 5))
    turn.announce("r", 7)
    turn.end()
    assert ann.heard() == [1, 2, 3, 4, 5, 6, 7]
    assert channel.healing is None


def test_a_history_that_does_not_meet_what_was_announced_is_read_again() -> None:
    turn = Turn()
    ann = Someone("ann")
    channel = turn.room("r", ann)
    turn.announce("r", 3)
    turn.announce("r", 6)
    missed = [Publication("n", str(n).encode(), n, "e") for n in (1, 2, 3)]
    assert not turn.hub.healed(channel, missed, Position("e", 3))
    turn.end()
    assert ann.heard() == []
    missed += [Publication("n", str(n).encode(), n, "e") for n in (4, 5, 6)]
    assert turn.hub.healed(channel, missed, Position("e", 6))
    turn.end()
    assert ann.heard() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "publication",
    [
        Publication("n", b"1", 1, "other"),
        Publication("n", b"1", 5, "other"),
        # The same offsets again, of other publications: the backend lost some and went on.
        Publication("n", b"1", 2, "e", nonce="x2", previous="x1"),
        Publication("n", b"1", 3, "e", nonce="x3", previous="x2"),
        Publication("n", b"1", 4, "e", nonce="x4", previous="x3"),
    ],
)
def test_another_epoch_and_a_fork_are_holes(publication: Publication) -> None:
    turn = Turn()
    ann = Someone("ann")
    channel = turn.room("r", ann)
    for offset in (1, 2, 3):
        previous = f"n{offset - 1}" if offset > 1 else ""
        turn.announce("r", offset, nonce=f"n{offset}", previous=previous)
    # One that is older, and known, is no fork.
    turn.announce("r", 2, nonce="n2", previous="n1")
    turn.end()
    assert ann.heard() == [1, 2, 3]
    assert not turn.holes
    turn.hub.received("room/:r", publication)
    turn.end()
    assert ann.heard() == [1, 2, 3]
    assert turn.holes == [channel]


def test_after_a_reset_it_goes_on_from_there() -> None:
    turn = Turn()
    ann = Someone("ann")
    channel = turn.room("r", ann)
    turn.announce("r", 5, epoch="new")
    assert turn.holes == [channel]
    turn.hub.reset(channel, Position("new", 5))
    turn.announce("r", 6, epoch="new")
    turn.end()
    assert ann.heard() == [6]


def test_an_interruption_makes_a_hole_of_every_room() -> None:
    turn = Turn()
    ann = Someone("ann")
    here = turn.room("here", ann)
    turn.room("there", ann)
    turn.hub.interrupted(["room/:here", "room/:nowhere"])
    assert turn.holes == [here]
    turn.announce("here", 1)
    turn.end()
    assert ann.heard() == []
    assert turn.hub.healed(here, [], Position("e", 0))
    turn.end()
    assert ann.heard() == [1]


def test_an_interruption_while_someone_joins() -> None:
    """What it has collected may have a hole at its end, which nothing else would show."""
    turn = Turn()
    ann = Someone("ann")
    channel = turn.hub.channel("room/:r", "/", "r")
    turn.hub.begin(channel, ann)
    turn.announce("r", 1)
    turn.hub.interrupted(["room/:r"])
    assert turn.hub.collected(channel, ann) is None
    turn.hub.rewind(channel, ann)
    assert turn.hub.collected(channel, ann) == []


def test_an_interruption_while_a_hole_is_closed() -> None:
    """The history may have been read before what was lost now."""
    turn = Turn()
    ann = Someone("ann")
    channel = turn.room("r", ann)
    turn.announce("r", 2)
    turn.hub.interrupted(["room/:r"])
    first = [Publication("n", str(n).encode(), n, "e") for n in (1, 2)]
    assert not turn.hub.healed(channel, first, Position("e", 2))
    assert turn.hub.healed(channel, first, Position("e", 2))
    turn.end()
    assert ann.heard() == [1, 2]


def test_what_is_collected_is_bounded() -> None:
    turn = Turn()
    ann, bob = Someone("ann"), Someone("bob")
    channel = turn.room("r", ann)
    turn.hub.begin(channel, bob)
    turn.announce("r", 2)
    for offset in range(3, MAX_BUFFERED + 10):
        turn.announce("r", offset)
    assert turn.hub.collected(channel, bob) is None
    assert channel.healing is not None
    assert len(channel.healing) <= MAX_BUFFERED
    # What was too much to keep is not taken for the end.
    missed = [Publication("n", str(n).encode(), n, "e") for n in (1, 2)]
    assert not turn.hub.healed(channel, missed, Position("e", 2))


def test_what_is_for_the_servers_reaches_no_client() -> None:
    turn = Turn()
    ann = Someone("ann")
    turn.room("r", ann)
    turn.hub.received("room/:r", Publication("$order", b"1"))
    turn.end()
    assert (turn.controls, ann.heard()) == (["$order"], [])


def test_one_whose_socket_breaks_does_not_keep_the_others_waiting() -> None:
    turn = Turn()
    people = [Someone(f"s{n}") for n in range(4)]
    turn.room("r", *people)
    people[1].outbox.close()
    turn.announce("r", 1)
    turn.end()
    assert [p.heard() for p in people] == [[1], [], [1], [1]]


def test_a_slow_receiver_gets_what_matters() -> None:
    turn = Turn()
    slow, quick = Someone("slow"), Someone("quick")
    turn.room("r", slow, quick)
    slow.socket.takes_more = False
    turn.announce("r", 1)
    turn.end()
    turn.announce("r", 0, data=b'"volatile"', volatile=True)
    for value in (1, 2, 3):
        turn.announce("r", 0, data=f'"place {value}"'.encode(), key="place")
    turn.announce("r", 2)
    turn.end()
    assert slow.heard() == [1]
    assert quick.heard() == [1, "volatile", "place 1", "place 2", "place 3", 2]
    slow.socket.takes_more = True
    slow.outbox.resume()
    assert slow.heard() == [1, "place 3", 2]
    turn.announce("r", 3)
    turn.end()
    assert slow.heard() == [1, "place 3", 2, 3]
