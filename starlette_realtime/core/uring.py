"""Many writes by one system call: as much of Linux's io_uring as a broadcast needs.

A broadcast is the same few bytes to hundreds of sockets. The kernel's part of each write is what it
is; a call of `os.write`, on the way there and back, costs a sixth more. Here the whole list is
handed to the kernel at once (io_uring_enter(2)), which works through it before it returns: nothing
goes on in the background, and no memory is the kernel's between two calls.

That it does so is not taken on trust: `open_ring` tries it, and returns None where anything is not
as expected, or where the system's administrator does not want it (`kernel.io_uring_disabled`, a
seccomp filter). Then `write_each` does the same, one by one.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import platform
import socket
import struct
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

logger = logging.getLogger("starlette_realtime")

Short = list[tuple[int, int]]
"""Which descriptors did not take everything, by their places, and how many bytes each took."""
WriteAll = Callable[["array[int]", bytes], Short]
"""Writes the same bytes to many descriptors, which must not block."""

ENTRIES: Final = 512
"""Writes that are handed over at once; a power of two."""
WORTHWHILE: Final = 16
"""Descriptors from which on handing them over costs less than writing to one after the other."""
LARGE: Final = 65_536
"""Bytes from which on copying them is what a write costs."""

# The kernel's numbers, the same on the machines below: io_uring_setup(2), include/uapi/linux.
_SETUP, _ENTER = 425, 426
_MACHINES = ("x86_64", "aarch64")
_SQ_RING, _SQES = 0, 0x10000000
_SINGLE_MMAP, _CQE_SKIP = 1 << 0, 1 << 11
_MAP_POPULATE = 0x8000
_OP_SEND = 26
_SKIP_SUCCESS = 1 << 6
# Not to wait, and so to be done when the call returns; not to be killed by a signal; and to be told
# when a socket took only a part: what succeeds is silent.
_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0) | socket.MSG_WAITALL
# struct io_uring_sqe: opcode, flags, ioprio, fd, off, addr, len, msg_flags, user_data.
_SQE, _SQE_SIZE = struct.Struct("=BBHiQQIIQ"), 64
_SQE_FD, _SQE_LEN = 4 // 4, 24 // 4
# struct io_uring_cqe: user_data, res, flags.
_CQE = struct.Struct("=QiI")
# struct io_uring_params: 10 words, then where things are in the two rings, 10 words for each.
_PARAMS_SIZE, _FEATURES, _SQ_OFFSETS, _CQ_OFFSETS = 120, 20, 40, 80


def write_each(descriptors: array[int], chunk: bytes) -> Short:
    """Write `chunk` to one descriptor after the other."""
    # A plain loop: `map` with what it needs to keep the results takes 3 % longer for each write.
    write, size = os.write, len(chunk)
    short = []
    for place, descriptor in enumerate(descriptors):
        try:
            sent = write(descriptor, chunk)
        except OSError:
            sent = 0
        if sent != size:
            short.append((place, sent))
    return short


class Ring:
    """A queue of writes, shared with the kernel. For one thread at a time.

    Raises:
        OSError: the kernel does not offer it, or not all that is needed.
    """

    def __init__(self) -> None:
        self._syscall = _system_call()
        params = bytearray(_PARAMS_SIZE)
        shared = (ctypes.c_char * _PARAMS_SIZE).from_buffer(params)
        self._descriptor = self._syscall(_SETUP, ENTRIES, ctypes.addressof(shared), 0, 0, 0, 0)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        try:
            self._map(params)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _map(self, params: bytearray) -> None:
        def words(offset: int, count: int) -> tuple[int, ...]:
            return struct.unpack_from(f"={count}I", params, offset)

        needed = _SINGLE_MMAP | _CQE_SKIP
        if words(0, 1) != (ENTRIES,) or words(_FEATURES, 1)[0] & needed != needed:
            raise OSError("the kernel's io_uring is too old")
        results = words(4, 1)[0]
        head, tail, _, _, _, _, order = words(_SQ_OFFSETS, 7)
        result_head, result_tail, _, _, _, found = words(_CQ_OFFSETS, 6)
        flags = mmap.MAP_SHARED | _MAP_POPULATE
        rings = mmap.mmap(
            self._descriptor,
            max(order + 4 * ENTRIES, found + _CQE.size * results),
            flags=flags,
            offset=_SQ_RING,
        )
        entries = mmap.mmap(self._descriptor, _SQE_SIZE * ENTRIES, flags=flags, offset=_SQES)
        # What is to be written lies where it stays, so that the entries can point there for good.
        self._chunk = mmap.mmap(-1, LARGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._chunk))
        self._rings = rings
        self._words = memoryview(rings).cast("I")
        self._head, self._tail = head // 4, tail // 4
        self._result_head, self._result_tail = result_head // 4, result_tail // 4
        self._results, self._found = results, found
        for number in range(ENTRIES):
            self._words[order // 4 + number] = number
            entry = (_OP_SEND, _SKIP_SUCCESS, 0, -1, 0, address, 0, _FLAGS, number)
            _SQE.pack_into(entries, _SQE_SIZE * number, *entry)
        # All that changes from one broadcast to the next.
        step = _SQE_SIZE // 4
        self._descriptors = memoryview(entries).cast("i")[_SQE_FD::step]
        self._sizes = memoryview(entries).cast("I")[_SQE_LEN::step]

    def write(self, descriptors: array[int], chunk: bytes) -> Short:
        """Write `chunk` to all descriptors, which are sockets and do not block."""
        count, size = len(descriptors), len(chunk)
        if count < WORTHWHILE or not 0 < size < LARGE:
            return write_each(descriptors, chunk)
        self._chunk[:size] = chunk
        if count <= ENTRIES:
            return self._hand_over(descriptors, chunk)
        short = []
        for first in range(0, count, ENTRIES):
            part = self._hand_over(descriptors[first : first + ENTRIES], chunk)
            short += [(first + place, sent) for place, sent in part]
        return short

    def _hand_over(self, descriptors: array[int], chunk: bytes) -> Short:
        words, count = self._words, len(descriptors)
        tail = words[self._tail]
        # The entries are used in turn: those of one call may be the last ones, then the first.
        start = tail % ENTRIES
        sizes = array("I", (len(chunk),)) * count
        if start + count <= ENTRIES:
            self._descriptors[start : start + count] = descriptors
            self._sizes[start : start + count] = sizes
        else:
            left = ENTRIES - start
            self._descriptors[start:] = descriptors[:left]
            self._sizes[start:] = sizes[:left]
            self._descriptors[: count - left] = descriptors[left:]
            self._sizes[: count - left] = sizes[left:]
        # No barrier is needed: it is this thread that goes into the kernel and reads there.
        words[self._tail] = (tail + count) & 0xFFFFFFFF
        taken = self._syscall(_ENTER, self._descriptor, count, 0, 0, 0, 0)
        short = []
        if words[self._result_head] != words[self._result_tail]:
            short = [((number - start) % ENTRIES, sent) for number, sent in self._failures()]
        if taken != count:
            short += self._without(descriptors, chunk)
        return short

    def _failures(self) -> Short:
        """Return those that were not written as a whole, by the numbers of their entries."""
        words = self._words
        head, tail = words[self._result_head], words[self._result_tail]
        failures = []
        while head != tail:
            at = self._found + _CQE.size * (head % self._results)
            number, result, _ = _CQE.unpack_from(self._rings, at)
            failures.append((number, max(result, 0)))
            head = (head + 1) & 0xFFFFFFFF
        words[self._result_head] = head
        return failures

    def _without(self, descriptors: array[int], chunk: bytes) -> Short:
        """Take back what the kernel has not taken, for want of memory, and write it here."""
        words = self._words
        left = (words[self._tail] - words[self._head]) & 0xFFFFFFFF
        words[self._tail] = words[self._head]
        first = len(descriptors) - left
        return [(first + place, sent) for place, sent in write_each(descriptors[first:], chunk)]

    def close(self) -> None:
        # The memory goes with the last view of it.
        os.close(self._descriptor)


def open_ring() -> Ring | None:
    """Return a ring that was seen to work, or None."""
    try:
        if not _may_try():
            return None
        ring = Ring()
    except (OSError, ValueError) as error:
        logger.debug("broadcasts are written one by one, without io_uring: %s", error)
        return None
    try:
        works = _works(ring)
    except OSError as error:
        logger.debug("io_uring could not be tried: %s", error)
        works = False
    if not works:
        ring.close()
        return None
    logger.debug("broadcasts are written by io_uring")
    return ring


def _may_try() -> bool:
    """Whether asking for a ring does no harm: a seccomp filter may kill the process for it."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    if sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    with Path("/proc/self/status").open() as status:
        return any(line.split() == ["Seccomp:", "0"] for line in status)


def _system_call() -> Callable[..., int]:
    # Seven arguments as wide as a register; the interpreter's lock is released meanwhile.
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.argtypes = [ctypes.c_long] * 7
    call.restype = ctypes.c_long
    return call


def _works(ring: Ring) -> bool:
    """Whether `ring` writes what sockets take, tells of those that took less, and waits for none:
    one that is full, one with room for a part, and one that is no socket, among others that are
    ready."""
    chunk = bytes(range(256)) * 128
    pairs = [socket.socketpair() for _ in range(WORTHWHILE)]
    try:
        for here, there in pairs:
            here.setblocking(False)
            there.setblocking(False)
        full, narrow = pairs[0][0], pairs[1][0]
        for small in (full, narrow):
            small.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(chunk) // 4)
        while _fits(full, chunk):
            pass
        descriptors = array("i", [here.fileno() for here, _ in pairs])
        descriptors[2] = -1
        short = dict(ring.write(descriptors, chunk))
        taken = short.pop(1, 0)
        return (
            short == {0: 0, 2: 0}
            and 0 < taken < len(chunk)
            and pairs[1][1].recv(len(chunk)) == chunk[:taken]
            and all(there.recv(len(chunk) + 1) == chunk for _, there in pairs[3:])
        )
    finally:
        for here, there in pairs:
            here.close()
            there.close()


def _fits(full: socket.socket, chunk: bytes) -> bool:
    try:
        full.send(chunk)
    except BlockingIOError:
        return False
    return True
