"""Writing one chunk to many sockets: one by one, and by io_uring where the system has it."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from starlette_realtime import Options, Realtime
from starlette_realtime.auth import AnonymousAuth
from starlette_realtime.core import uring
from starlette_realtime.core.uring import (
    ENTRIES,
    LARGE,
    WORTHWHILE,
    Ring,
    Short,
    WriteAll,
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
    ring = open_ring() if request.param == "as here" else None
    assert (ring is not None) == (offered and request.param == "as here")
    yield write_each if ring is None else ring.write
    if ring is not None:
        ring.close()


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


def descriptors_of(pairs: list[Pair]) -> array[int]:
    return array("i", [pair.here.fileno() for pair in pairs])


@pytest.mark.parametrize("count", [1, WORTHWHILE, ENTRIES - 1, ENTRIES, ENTRIES + 1, 1300])
def test_all_get_everything_in_order(write_all: WriteAll, pairs: list[Pair], count: int) -> None:
    descriptors = descriptors_of([pairs[number % MANY] for number in range(count)])
    for turn in range(5):
        assert write_all(descriptors, b"turn %d;" % turn) == []
        for number, pair in enumerate(pairs):
            times = len(range(number, count, MANY))
            assert pair.arrived() == b"turn %d;" % turn * times


@pytest.mark.parametrize("size", [0, 1, 1000, LARGE - 1, LARGE, LARGE + 1])
def test_chunks_of_any_size(write_all: WriteAll, pairs: list[Pair], size: int) -> None:
    chunk = os.urandom(size)
    assert write_all(descriptors_of(pairs), chunk) == []
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
        short = write_all(descriptors, chunk)
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


def test_who_has_gone_disturbs_nobody(write_all: WriteAll, pairs: list[Pair]) -> None:
    # A signal would end this process.
    for pair in pairs[::3]:
        pair.there.close()
    short = write_all(descriptors_of(pairs), b"hello")
    assert sorted(short) == [(number, 0) for number in range(0, MANY, 3)]
    stayed = [pair for number, pair in enumerate(pairs) if number % 3]
    assert {pair.arrived() for pair in stayed} == {b"hello"}


def test_after_the_end_all_is_written_still(pairs: list[Pair]) -> None:
    ring = open_ring()
    if ring is not None:
        ring.close()
        assert ring.write(descriptors_of(pairs), b"late") == []
        assert {pair.arrived() for pair in pairs} == {b"late"}


@pytest.mark.parametrize("takes", [0, 1, MANY - 1, -1])
def test_what_the_kernel_does_not_take_is_written_all_the_same(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    ring = open_ring()
    if ring is None:
        return
    enter = ring._syscall

    def poor(number: int, descriptor: int, count: int, *rest: int) -> int:
        return enter(number, descriptor, takes, *rest) if takes > 0 else takes

    for turn in range(3 * ENTRIES // MANY):
        chunk = b"turn %d" % turn
        pairs[0].there.close()
        # As it goes between: what was not taken is not written later.
        monkeypatch.setattr(ring, "_syscall", poor if turn % 2 else enter)
        assert ring.write(descriptors_of(pairs), chunk) == [(0, 0)]
        assert {pair.arrived() for pair in pairs[1:]} == {chunk}
    ring.close()


def test_however_many_there_are_the_kernel_is_called_once(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = open_ring()
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
    ring.close()
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
    assert open_ring() is None


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
    assert open_ring() is None
    assert open_rings() == open_before


def test_a_process_under_a_filter_does_not_try() -> None:
    # Even one that allows everything: what it forbids may be forbidden on pain of death.
    program = """
import ctypes
from starlette_realtime.core import uring

class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte),
                ("k", ctypes.c_uint32)]

class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]

RETURN, ALLOW, NO_NEW_PRIVILEGES, SECCOMP, FILTER = 6, 0x7FFF0000, 38, 22, 2
prctl = ctypes.CDLL(None).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
one = Filter(RETURN, 0, 0, ALLOW)
assert prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
filters = Program(1, ctypes.pointer(one))
assert prctl(SECCOMP, FILTER, ctypes.addressof(filters), 0, 0) == 0
print(uring.open_ring())
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "None\n"


@pytest.mark.anyio
@pytest.mark.parametrize("wanted", [True, False])
async def test_an_option_turns_it_off(offered: bool, wanted: bool) -> None:
    realtime = Realtime("memory://", auth=AnonymousAuth(), options=Options(io_uring=wanted))
    async with realtime.run():
        assert realtime._running is not None
        one_by_one = realtime._running.runtime.hub.write_all is write_each
    assert one_by_one == (not (wanted and offered))


def test_nothing_stays_open_when_it_ends() -> None:
    open_before = open_rings()
    for _ in range(3):
        ring = open_ring()
        if ring is not None:
            ring.close()
        del ring
    assert open_rings() == open_before
