"""Writing one chunk to many sockets: one by one, and by io_uring where the system has it."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import select
import signal
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from starlette_realtime import Options, Realtime
from starlette_realtime.auth import AnonymousAuth
from starlette_realtime.core import uring
from starlette_realtime.core.uring import ENTRIES, Ring
from starlette_realtime.core.writing import (
    LARGE,
    WORTHWHILE,
    Short,
    WriteAll,
    Writes,
    open_ring,
    write_each,
)

MANY = WORTHWHILE * 2


def is_offered() -> bool:
    """Whether this system offers io_uring to this process, asked in another way."""
    program = (
        "import ctypes, re\n"
        "status = open('/proc/self/status').read()\n"
        "call = ctypes.CDLL(None).syscall\n"
        "params = ctypes.create_string_buffer(120)\n"
        "found = call(425, 1, params)\n"
        "print(found >= 0 and bool(re.search(r'^Seccomp:\\s0$', status, re.M)))\n"
    )
    return subprocess.check_output([sys.executable, "-c", program]) == b"True\n"


@pytest.fixture(scope="module")
def offered() -> bool:
    return is_offered()


@pytest.fixture(params=["one by one", "as here"])
def write_all(request: pytest.FixtureRequest, offered: bool) -> Iterator[WriteAll]:
    """Each way: where the system has no io_uring, there is one."""
    writes = Writes(io_uring=request.param == "as here")
    yield writes.write_all
    assert (writes._ring is not None) == (offered and request.param == "as here")
    writes.close()


class Pair:
    """A connection: what is written here arrives there."""

    def __init__(self) -> None:
        self.here, self.there = socket.socketpair()
        self.here.setblocking(False)
        self.there.setblocking(False)
        self.expected = b""

    def fill(self) -> None:
        """Leave no room for another byte."""
        self.here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        try:
            while sent := self.here.send(b"y" * 512):
                self.expected += b"y" * sent
        except BlockingIOError:
            pass

    def arrived(self) -> bytes:
        parts = []
        try:
            while part := self.there.recv(1 << 20):
                parts.append(part)
        except BlockingIOError:
            pass
        return b"".join(parts)


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [Pair() for _ in range(MANY)]
    yield made
    for pair in made:
        pair.here.close()
        pair.there.close()


@pytest.fixture
def ring() -> Iterator[Ring | None]:
    """None where the system has no io_uring."""
    opened = open_ring(LARGE)
    yield opened
    if opened is not None:
        opened.close()


def descriptors_of(pairs: list[Pair]) -> array[int]:
    return array("i", [pair.here.fileno() for pair in pairs])


@pytest.mark.parametrize("count", [1, WORTHWHILE, ENTRIES - 1, ENTRIES, ENTRIES + 1, 1300])
def test_all_get_everything_in_order(write_all: WriteAll, pairs: list[Pair], count: int) -> None:
    write_all(descriptors_of(pairs), b"once", False)
    assert {pair.arrived() for pair in pairs} == {b"once"}
    descriptors = descriptors_of([pairs[number % MANY] for number in range(count)])
    for turn in range(5):
        assert write_all(descriptors, b"turn %d;" % turn, turn % 2 == 1) == []
        for number, pair in enumerate(pairs):
            times = len(range(number, count, MANY))
            assert pair.arrived() == b"turn %d;" % turn * times


@pytest.fixture
def order(pairs: list[Pair]) -> Iterator[Callable[[], list[int]]]:
    """In which order something has arrived at them since the last time."""
    with select.epoll() as poller:
        for pair in pairs:
            poller.register(pair.there, select.EPOLLIN)
        numbers = {pair.there.fileno(): number for number, pair in enumerate(pairs)}

        def arrived() -> list[int]:
            found = [numbers[descriptor] for descriptor, _ in poller.poll(0, len(pairs))]
            for pair in pairs:
                pair.arrived()
            assert poller.poll(0) == []
            return found

        yield arrived


def test_either_end_may_come_first(
    write_all: WriteAll, pairs: list[Pair], order: Callable[[], list[int]]
) -> None:
    there = list(range(MANY))
    for turn in range(3 * ENTRIES // MANY):
        count = MANY - turn % 5
        write_all(descriptors_of(pairs[:count]), b"x", turn % 2 == 1)
        assert order() == (there[:count][::-1] if turn % 2 else there[:count])


def test_either_end_of_more_than_a_ring_takes(
    write_all: WriteAll, pairs: list[Pair], order: Callable[[], list[int]]
) -> None:
    # The first ones and the last ones stand nowhere else.
    middle = pairs[2:-2] * (2 * ENTRIES // (MANY - 4))
    descriptors = descriptors_of([*pairs[:2], *middle, *pairs[-2:]])
    assert len(descriptors) > ENTRIES
    write_all(descriptors, b"x", False)
    arrived = order()
    assert (arrived[:2], arrived[-2:]) == ([0, 1], [MANY - 2, MANY - 1])
    write_all(descriptors, b"x", True)
    arrived = order()
    assert (arrived[:2], arrived[-2:]) == ([MANY - 1, MANY - 2], [1, 0])


@pytest.mark.parametrize("size", [0, 1, 1000, LARGE - 1, LARGE, LARGE + 1])
def test_chunks_of_any_size(write_all: WriteAll, pairs: list[Pair], size: int) -> None:
    write_all(descriptors_of(pairs), b"once", False)
    assert {pair.arrived() for pair in pairs} == {b"once"}
    chunk = os.urandom(size)
    assert write_all(descriptors_of(pairs), chunk, False) == []
    assert {pair.arrived() for pair in pairs} == {chunk}


def test_who_takes_less_is_told_with_how_much_it_took(
    write_all: WriteAll, pairs: list[Pair]
) -> None:
    decide = random.Random(7)
    for turn in range(40):
        chunk = bytes([97 + turn % 26]) * decide.choice([100, 3000, 20_000])
        gone = decide.sample(range(MANY), 3)
        descriptors = descriptors_of(pairs)
        for number in gone:
            descriptors[number] = -1
        for pair in decide.sample(pairs, 4):
            pair.fill()
        for pair in decide.sample(pairs, 4):
            pair.here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        short = write_all(descriptors, chunk, turn % 2 == 1)
        taken = dict(short)
        assert len(taken) == len(short)
        assert all(0 <= sent < len(chunk) for sent in taken.values())
        for number, pair in enumerate(pairs):
            sent = taken.get(number, len(chunk))
            assert number not in gone or sent == 0
            pair.expected += chunk[:sent]
            if decide.random() < 0.5:
                assert pair.arrived() == pair.expected
                pair.expected = b""
    for pair in pairs:
        assert pair.arrived() == pair.expected


@pytest.mark.parametrize("backwards", [False, True])
def test_who_has_gone_disturbs_nobody(
    write_all: WriteAll, pairs: list[Pair], backwards: bool
) -> None:
    for pair in pairs[::3]:
        pair.there.close()
    short = write_all(descriptors_of(pairs), b"hello", backwards)
    assert sorted(short) == [(number, 0) for number in range(0, MANY, 3)]
    stayed = [pair for number, pair in enumerate(pairs) if number % 3]
    assert {pair.arrived() for pair in stayed} == {b"hello"}


def test_who_has_gone_raises_no_signal(ring: Ring | None, pairs: list[Pair]) -> None:
    raised: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, frame: raised.append(number))
    try:
        pairs[0].there.close()
        if ring is not None:
            assert ring.write(descriptors_of(pairs), b"hello") == [(0, 0)]
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert raised == []


def test_after_the_end_all_is_written_still(ring: Ring | None, pairs: list[Pair]) -> None:
    writes = Writes(io_uring=True)
    assert writes.write_all(descriptors_of(pairs), b"first") == []
    writes.close()
    writes.close()
    assert writes.write_all(descriptors_of(pairs), b"last") == []
    assert {pair.arrived() for pair in pairs} == {b"firstlast"}


def test_a_process_that_was_forked_off_leaves_the_ring_alone(pairs: list[Pair]) -> None:
    writes = Writes(io_uring=True)
    descriptors = descriptors_of(pairs)
    writes.write_all(descriptors, b"parent;")
    child = os.fork()
    if not child:
        failed = True
        with suppress(BaseException):
            # What any use of it would raise for.
            writes._ring = writes._ring and SimpleNamespace(closed=False)  # type: ignore[assignment]
            failed = writes.write_all(descriptors, b"child;") != []
        os._exit(failed)
    assert os.waitpid(child, 0)[1] == 0
    writes.write_all(descriptors, b"parent")
    assert {pair.arrived() for pair in pairs} == {b"parent;child;parent"}
    writes.close()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("takes", [0, 1, MANY - 1, -1])
def test_what_the_kernel_does_not_take_is_written_all_the_same(
    ring: Ring | None,
    pairs: list[Pair],
    order: Callable[[], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    takes: int,
    backwards: bool,
) -> None:
    if ring is None:
        return
    enter = ring._syscall

    def poor(number: int, descriptor: int, count: int, *rest: int) -> int:
        ctypes.set_errno(errno.EAGAIN)
        return enter(number, descriptor, takes, *rest) if takes > 0 else takes

    expected = list(range(MANY))[:: -1 if backwards else 1]
    for turn in range(3 * ENTRIES // MANY):
        # As it goes between: what was not taken is not written later.
        monkeypatch.setattr(ring, "_syscall", poor if turn % 2 else enter)
        assert ring.write(descriptors_of(pairs), b"turn %d" % turn, backwards) == []
        assert order() == expected
    pairs[0].there.close()
    for turn in range(3 * ENTRIES // MANY):
        chunk = b"turn %d" % turn
        monkeypatch.setattr(ring, "_syscall", poor if turn % 2 else enter)
        assert ring.write(descriptors_of(pairs), chunk, backwards) == [(0, 0)]
        assert {pair.arrived() for pair in pairs[1:]} == {chunk}
    assert not ring.closed


def test_a_ring_that_is_forbidden_later_is_given_up(ring: Ring | None, pairs: list[Pair]) -> None:
    if ring is None:
        return
    ring._syscall = refused(errno.EPERM)
    assert ring.write(descriptors_of(pairs), b"one by one") == []
    assert ring.closed
    assert ring.write(descriptors_of(pairs), b", then on") == []
    assert {pair.arrived() for pair in pairs} == {b"one by one, then on"}


class Interrupted(Exception):
    """As a signal's handler raises it."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_call_that_is_broken_off_leaves_nothing_behind(
    ring: Ring | None, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    if ring is None:
        return
    enter = ring._syscall

    def interrupted(*arguments: int) -> int:
        if when == "after":
            enter(*arguments)
        raise Interrupted

    room, other = pairs[: MANY // 2], pairs[MANY // 2 :]
    room[0].there.close()
    for turn in range(2 * ENTRIES // MANY):
        monkeypatch.setattr(ring, "_syscall", interrupted)
        with pytest.raises(Interrupted):
            ring.write(descriptors_of(room), b"secret %d" % turn)
        monkeypatch.setattr(ring, "_syscall", enter)
        for pair in room[1:]:
            assert pair.arrived() == (b"secret %d" % turn if when == "after" else b"")
        assert ring.write(descriptors_of(other), b"public %d" % turn) == []
        assert {pair.arrived() for pair in other} == {b"public %d" % turn}
        assert {pair.arrived() for pair in room[1:]} == {b""}


def test_however_many_there_are_the_kernel_is_called_once(
    ring: Ring | None, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    if ring is None:
        return
    enter, counted, entered = ring._syscall, [0], []

    def note(*arguments: int) -> int:
        entered.append(arguments[2])
        return enter(*arguments)

    def count(frame: object, event: str, argument: object) -> None:
        counted[0] += event in ("call", "c_call")

    monkeypatch.setattr(ring, "_syscall", note)
    steps = []
    for size in (WORTHWHILE, ENTRIES - WORTHWHILE):
        descriptors = descriptors_of([pairs[number % MANY] for number in range(size)])
        counted[0] = 0
        sys.setprofile(count)
        try:
            ring.write(descriptors, b"x")
        finally:
            sys.setprofile(None)
        steps.append(counted[0])
    assert entered == [WORTHWHILE, ENTRIES - WORTHWHILE]
    assert steps[0] == steps[1] < 20


# Whether it is used at all


def open_rings() -> int:
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += "io_uring" in str(descriptor.readlink())
    return found


def refused(number: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    return call


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOMEM, errno.EINVAL])
def test_where_the_kernel_refuses_there_is_none(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(uring, "_system_call", lambda: refused(number))
    assert open_ring(LARGE) is None


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, MemoryError, ImportError])
def test_whatever_goes_wrong_there_is_none(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fails(*_: object) -> None:
        raise error("not today")

    rings = open_rings()
    for part in ("works", "_system_call"):
        monkeypatch.setattr(uring, part, fails)
        assert open_ring(LARGE) is None
        assert open_rings() == rings


@pytest.mark.parametrize("missing", ["ctypes", "socket.MSG_DONTWAIT", "socket.MSG_NOSIGNAL"])
def test_what_only_a_ring_needs_may_be_missing(missing: str) -> None:
    # On Windows, for example, the constants are.
    program = """
import sys, socket
if sys.argv[1] == "ctypes":
    sys.modules["ctypes"] = None
else:
    delattr(socket, sys.argv[1].partition(".")[2])
import starlette_realtime
from starlette_realtime.core.writing import open_ring
print(open_ring(1000))
"""
    said = subprocess.check_output([sys.executable, "-c", program, missing], text=True)
    assert said == "None\n"


def forgets_short_ones(ring: Ring, descriptors: array[int], chunk: bytes) -> Short:
    write_each(descriptors, chunk)
    return []


def forgets_one(ring: Ring, descriptors: array[int], chunk: bytes) -> Short:
    return write_each(descriptors[:-1], chunk)


def changes_a_byte(ring: Ring, descriptors: array[int], chunk: bytes) -> Short:
    return write_each(descriptors, chunk[:-1] + b"?")


@pytest.mark.parametrize("broken", [forgets_short_ones, forgets_one, changes_a_byte])
def test_one_that_does_not_work_is_not_used(
    monkeypatch: pytest.MonkeyPatch, offered: bool, broken: Callable[..., Short]
) -> None:
    open_before = open_rings()
    monkeypatch.setattr(Ring, "write", broken)
    assert open_ring(LARGE) is None
    assert open_rings() == open_before


def test_a_process_under_a_filter_does_not_try() -> None:
    # Even one that allows everything: what it forbids may be forbidden on pain of death.
    program = """
import ctypes
import threading
from starlette_realtime.core import writing

class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte),
                ("k", ctypes.c_uint32)]

class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]

RETURN, ALLOW, NO_NEW_PRIVILEGES, SECCOMP, FILTER = 6, 0x7FFF0000, 38, 22, 2
prctl = ctypes.CDLL(None).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
one = Filter(RETURN, 0, 0, ALLOW)
filters = Program(1, ctypes.pointer(one))

def confined():
    assert prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    assert prctl(SECCOMP, FILTER, ctypes.addressof(filters), 0, 0) == 0
    print(writing.open_ring(1000))

# A filter is a thread's.
thread = threading.Thread(target=confined)
thread.start()
thread.join()
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "None\n"


@pytest.mark.anyio
@pytest.mark.parametrize("wanted", [True, False])
async def test_it_is_opened_when_it_is_needed_and_wanted(
    offered: bool, wanted: bool, pairs: list[Pair]
) -> None:
    realtime = Realtime("memory://", auth=AnonymousAuth(), options=Options(io_uring=wanted))
    before, descriptors = open_rings(), descriptors_of(pairs)
    async with realtime.run():
        assert realtime._running is not None
        hub = realtime._running.runtime.hub
        hub.write_all(descriptors[: WORTHWHILE - 1], b"few;", False)
        assert open_rings() == before
        hub.write_all(descriptors, b"many;", False)
        assert (open_rings() > before) == (wanted and offered)
    assert open_rings() == before
    hub.write_all(descriptors, b"late", False)
    assert pairs[0].arrived() == b"few;many;late"
