"""What waits for one connection: order, bounds, and what may be dropped."""

from __future__ import annotations

from starlette_realtime.core.outbox import Chunk, Outbox
from starlette_realtime.wires import native as wires


class Wire:
    """A socket that takes what it is told to take."""

    def __init__(self, limit: int = 100, *, direct: bool = True) -> None:
        self.sent: list[Chunk] = []
        self.room = 10**9
        self.overflows = 0
        self.wakes = 0
        self.outbox = Outbox(
            wires.TEXT[2],
            limit=limit,
            overflow=self.overflow,
            write=self.write if direct else None,
            wake=None if direct else self.wake,
        )

    def overflow(self) -> None:
        self.overflows += 1

    def wake(self) -> None:
        self.wakes += 1

    def write(self, chunk: Chunk) -> bool:
        self.sent.append(chunk)
        self.room -= 1
        return self.room > 0


def test_it_goes_straight_out_while_the_socket_keeps_up() -> None:
    wire = Wire()
    for chunk in ("a", "b"):
        wire.outbox.push(chunk)
    assert wire.sent == ["a", "b"]
    assert (wire.outbox.size, wire.outbox.congested) == (0, False)


def test_it_waits_while_the_socket_does_not() -> None:
    wire = Wire()
    wire.room = 1
    for chunk in ("a", "b", "c", "d"):
        wire.outbox.push(chunk)
    assert wire.sent == ["a"]
    assert (wire.outbox.size, wire.outbox.congested) == (3, True)
    wire.room = 2
    wire.outbox.resume()
    assert wire.sent == ["a", "b", "c"]
    assert wire.outbox.congested
    wire.room = 10
    wire.outbox.resume()
    wire.outbox.push("e")
    assert wire.sent == ["a", "b", "c", "d", "e"]
    assert (wire.outbox.size, wire.outbox.congested) == (0, False)


def test_it_is_bounded() -> None:
    wire = Wire(limit=100)
    wire.room = 1
    for _ in range(50):
        wire.outbox.push("x" * 10)
    assert wire.overflows == 1
    assert wire.outbox.closed
    assert wire.outbox.size == 0
    # Nothing comes out after it has closed.
    wire.room = 10
    wire.outbox.resume()
    assert len(wire.sent) == 1


def test_one_large_message_is_never_too_much_by_itself() -> None:
    for direct in (True, False):
        wire = Wire(limit=100, direct=direct)
        wire.room = 1
        if direct:
            wire.outbox.push("first")
        wire.outbox.push("x" * 1000)
        wire.outbox.push("small")
        assert wire.overflows == 0
        wire.outbox.push("y" * 1000)
        assert wire.overflows == 1


def test_volatile_messages_are_dropped_for_the_slow() -> None:
    wire = Wire()
    wire.outbox.push("a", volatile=True)
    wire.room = 1
    wire.outbox.push("b")
    wire.outbox.push("c", volatile=True)
    wire.outbox.push("d")
    wire.room = 10
    wire.outbox.resume()
    assert wire.sent == ["a", "b", "d"]
    assert wire.outbox.dropped == 1


def test_later_ones_replace_earlier_ones_of_their_key() -> None:
    wire = Wire()
    wire.room = 1
    wire.outbox.push("first")
    for chunk, key in (("a1", "a"), ("b1", "b"), ("plain", ""), ("a2", "a"), ("a3", "a")):
        wire.outbox.push(chunk, key=key)
    assert wire.outbox.size == len("b1" + "plain" + "a3")
    wire.room = 10
    wire.outbox.resume()
    assert wire.sent == ["first", "b1", "plain", "a3"]
    wire.outbox.push("a4", key="a")
    assert wire.sent[-1] == "a4"


def test_a_writer_that_asks() -> None:
    wire = Wire(direct=False)
    wire.outbox.push("a")
    wire.outbox.push("b")
    assert wire.wakes == 2
    assert wire.outbox.take() == ["a", "b"]
    assert wire.outbox.take() == []
    wire.outbox.push("x" * 50)
    wire.outbox.push("volatile", volatile=True)
    assert wire.outbox.take() == ["x" * 50]
    wire.outbox.close()
    wire.outbox.push("late")
    assert wire.outbox.take() == []


def test_what_is_replaced_leaves_nothing_behind() -> None:
    wire = Wire(1000, direct=False)
    wire.outbox.push("x" * 500)
    for _ in range(20_000):
        wire.outbox.push("y" * 100, key="price")
    assert wire.overflows == 0
    assert len(wire.outbox.queue) < 2100
    assert wire.outbox.take() == ["x" * 500, "y" * 100]
