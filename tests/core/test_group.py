"""The members of a channel that share each chunk, and their descriptors."""

from __future__ import annotations

import gc
import os
import sys
from array import array
from collections.abc import Callable, Iterator

import pytest

from starlette_realtime.core.group import FAST_FROM, Group
from starlette_realtime.core.outbox import Chunk, Outbox
from starlette_realtime.wires import native as wires


class Peer:
    """A receiver at the other end of a pipe. `direct` has what was written not by descriptor."""

    def __init__(self, descriptors: tuple[int, int] | None = None) -> None:
        self.id = "peer"
        self.here, self.there = descriptors or os.pipe()
        self.direct: list[Chunk] = []
        self.outbox = Outbox(
            wires.FRAME[2],
            limit=1000,
            overflow=lambda: None,
            write=self._write,
            descriptor=self.there,
        )

    def _write(self, chunk: Chunk) -> bool:
        self.direct.append(chunk)
        return True

    def refuse(self, chunk: Chunk) -> bool:
        self.direct.append(chunk)
        return False

    def heard(self) -> bytes:
        os.set_blocking(self.here, False)
        try:
            return os.read(self.here, 1000)
        except BlockingIOError:
            return b""


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made = [Peer() for _ in range(FAST_FROM)]
    yield made
    for peer in made:
        os.close(peer.here)
        os.close(peer.there)


def group_of(peers: list[Peer]) -> Group:
    group = Group()
    for peer in peers:
        group.add(peer.outbox, peer)
    return group


def test_nothing_is_written_to_the_descriptor_of_one_that_has_closed(peers: list[Peer]) -> None:
    group = group_of(peers)
    peers[0].outbox.close()
    group.write(b"x", set())
    assert [peer.heard() for peer in peers] == [b""] + [b"x"] * (len(peers) - 1)
    # Nor when it joins another group.
    other = group_of(peers)
    other.write(b"y", set())
    assert peers[0].heard() == b""
    assert peers[0].outbox.groups == [group, other]


@pytest.mark.parametrize("end", ["remove", "write"])
def test_who_has_the_descriptor_of_one_that_has_gone_stays_fast(
    peers: list[Peer], end: str
) -> None:
    gone = peers[0]
    group = group_of(peers)
    gone.outbox.close()
    heir = Peer((gone.here, gone.there))
    group.add(heir.outbox, heir)
    if end == "remove":
        assert group.remove(gone.outbox)
    else:
        group.write(b"x", {gone.outbox})
    heir.heard()
    group.write(b"y", set())
    assert (heir.heard(), heir.direct) == (b"y", [])


def test_what_a_socket_did_not_take_goes_the_ordinary_way(peers: list[Peer]) -> None:
    group = group_of(peers)
    took = {1: 0, 3: 2, len(peers) - 1: 4}

    def write_all(descriptors: array[int], chunk: bytes, backwards: bool) -> list[tuple[int, int]]:
        return list(took.items())

    peers[3].outbox.write = peers[3].refuse
    peers[3].outbox.direct = peers[3].refuse
    assert group.write(b"hello", set(), write_all) == []
    for number, peer in enumerate(peers):
        assert peer.direct == ([b"hello"[took[number] :]] if number in took else [])
    # Who takes no more is written to no more, until its transport says so.
    assert group.write(b"again", set()) == [peers[3].outbox]
    assert peers[4].heard() == b"again"


def test_nobody_is_always_the_last(peers: list[Peer]) -> None:
    group = group_of(peers)
    orders: list[list[int]] = []

    def write_all(descriptors: array[int], chunk: bytes, backwards: bool) -> list[tuple[int, int]]:
        orders.append(list(reversed(descriptors) if backwards else descriptors))
        return []

    for _ in range(4):
        group.write(b"x", set(), write_all)
    assert orders[0] == orders[2] == orders[1][::-1] == orders[3][::-1]


def _steps(call: Callable[[], object]) -> int:
    """How many functions Python calls for `call`, those written in C included."""
    counted = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return counted


def test_a_member_costs_a_system_call_and_nothing_else(peers: list[Peer]) -> None:
    # No other function, and no block of memory that stays, for each of those that are ready.
    few, many = group_of(peers), Group()
    crowd = [Peer() for _ in range(200)]
    try:
        for peer in crowd:
            many.add(peer.outbox, peer)
        for group in (few, many):
            group.write(b"warm", set())
        more = _steps(lambda: many.write(b"x", set())) - _steps(lambda: few.write(b"x", set()))
        assert more == len(many) - len(few)
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(10):
            many.write(b"y", set())
        assert sys.getallocatedblocks() - before < 20
        assert crowd[-1].heard() == b"warmx" + b"y" * 10
    finally:
        for peer in crowd:
            os.close(peer.here)
            os.close(peer.there)
