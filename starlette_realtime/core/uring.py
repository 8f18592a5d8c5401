"""Many writes by one system call: as much of Linux's io_uring as a broadcast needs.

A broadcast is the same few bytes to hundreds of sockets. The kernel's part of each write is what it
is; a call of `os.write`, on the way there and back, costs 13 to 15 % more. Here the whole list is
handed to the kernel at once (io_uring_enter(2)), which works through it before it returns: nothing
goes on in the background, and no memory is the kernel's between two calls. That it does so is not
taken on trust: `works` tries it.

Imported only where it may be used (`writing.open_ring`).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import socket
import struct
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from .writing import Short, write_each

logger = logging.getLogger("starlette_realtime")

ENTRIES: Final = 512
"""Writes that are handed over at once; a power of two."""

# The kernel's numbers, the same on x86-64 and ARM64: io_uring_setup(2), include/uapi/linux.
_SETUP, _ENTER = 425, 426
_RINGS, _SQES = 0, 0x10000000
# One mapping for both rings, and silence about what succeeds: 5.17 is the first one that has it.
_NEEDED = 1 << 0 | 1 << 11
_SEND = 26
_SKIP_SUCCESS = 1 << 6
# Not to wait, and so to be done when the call returns; not to raise a signal; and to fail, with the
# bytes that were taken, when it was only a part: what succeeds is silent.
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL | socket.MSG_WAITALL
# struct io_uring_sqe: opcode, flags, ioprio, fd, off, addr, len, msg_flags, user_data.
_SQE, _SQE_SIZE, _SQE_FD, _SQE_LEN = struct.Struct("=BBHiQQIIQ"), 64, 4, 24
# struct io_uring_cqe: user_data, res, flags.
_CQE = struct.Struct("=QiI")
# struct io_uring_params: words, the last ones for where things are in the two rings.
_PARAMS_SIZE, _FEATURES, _SQ_OFFSETS, _CQ_OFFSETS = 120, 20, 40, 80
_WORD = 0xFFFFFFFF
# The numbers of the entries, up and down, twice: to be begun with anywhere.
_UP = memoryview(array("I", range(ENTRIES)) * 2)
_DOWN = memoryview(array("I", reversed(range(ENTRIES))) * 2)
_NOTHING = array("i")
# What may be otherwise the next time.
_PASSING = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM)


class Ring:
    """A queue of writes, shared with the kernel. For one thread.

    Args:
        size: bytes a chunk has at most.

    Raises:
        OSError: the kernel does not offer it, or not all that is needed.
    """

    def __init__(self, size: int) -> None:
        self.closed = False
        self._syscall = _system_call()
        params = bytearray(_PARAMS_SIZE)
        shared = (ctypes.c_char * _PARAMS_SIZE).from_buffer(params)
        descriptor = self._syscall(_SETUP, ENTRIES, ctypes.addressof(shared), 0, 0, 0, 0)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        with ExitStack() as stack:
            stack.callback(os.close, descriptor)
            self._descriptor = descriptor
            self._map(params, size, stack)
            self._exit = stack.pop_all()

    def _map(self, params: bytearray, size: int, stack: ExitStack) -> None:
        def words(offset: int, count: int) -> tuple[int, ...]:
            return struct.unpack_from(f"={count}I", params, offset)

        entries, results = words(0, 2)
        if entries != ENTRIES or words(_FEATURES, 1)[0] & _NEEDED != _NEEDED:
            raise OSError("the kernel's io_uring is too old")
        head, tail, _, _, _, _, order = words(_SQ_OFFSETS, 7)
        result_head, result_tail, _, _, _, found = words(_CQ_OFFSETS, 6)

        def shared(offset: int, length: int) -> memoryview:
            mapped = mmap.mmap(self._descriptor, length, mmap.MAP_SHARED, offset=offset)
            stack.callback(mapped.close)
            return kept(memoryview(mapped))

        def kept(view: memoryview) -> memoryview:
            stack.callback(view.release)
            return view

        rings = shared(_RINGS, max(order + 4 * ENTRIES, found + _CQE.size * results))
        sqes = shared(_SQES, _SQE_SIZE * ENTRIES)
        # What is to be written lies where it stays, so that the entries can point there for good.
        self._chunk = mmap.mmap(-1, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._chunk))
        self._cqes = rings
        self._words = kept(rings.cast("I"))
        self._head, self._tail = head // 4, tail // 4
        self._result_head, self._result_tail = result_head // 4, result_tail // 4
        self._results, self._found = results, found
        self._order = kept(self._words[order // 4 : order // 4 + ENTRIES])
        for number in range(ENTRIES):
            entry = (_SEND, _SKIP_SUCCESS, 0, -1, 0, address, 0, _FLAGS, number)
            _SQE.pack_into(sqes, _SQE_SIZE * number, *entry)
        # All that changes from one broadcast to the next, and what is written there.
        step = _SQE_SIZE // 4
        self._descriptors = kept(kept(sqes.cast("i"))[_SQE_FD // 4 :: step])
        self._sizes = kept(kept(sqes.cast("I"))[_SQE_LEN // 4 :: step])
        self._last_descriptors = _NOTHING
        self._last_sizes = _NOTHING

    def write(self, descriptors: array[int], chunk: bytes, backwards: bool = False) -> Short:
        """Write `chunk` to all descriptors, which are sockets and do not block; to the last one
        first if `backwards`."""
        self._chunk[: len(chunk)] = chunk
        if len(descriptors) <= ENTRIES:
            return self._hand_over(descriptors, chunk, backwards)
        short = []
        parts = range(0, len(descriptors), ENTRIES)
        for first in reversed(parts) if backwards else parts:
            part = self._hand_over(descriptors[first : first + ENTRIES], chunk, backwards)
            short += [(first + place, sent) for place, sent in part]
        return short

    def _hand_over(self, descriptors: array[int], chunk: bytes, backwards: bool) -> Short:
        if self.closed:
            return write_each(descriptors, chunk, backwards)
        words, count = self._words, len(descriptors)
        # Where the kernel stands, and what it says from now on: a call that was broken off, by a
        # signal's handler, leaves nothing behind.
        before = words[self._head]
        words[self._result_head] = words[self._result_tail]
        # The kernel goes on in the ring from where it stands, and is to find the first entry there,
        # or the last.
        numbers, first = (_DOWN, ENTRIES - count) if backwards else (_UP, 0)
        at = (first - before) % ENTRIES
        self._order[:] = numbers[at : at + ENTRIES]
        # Mostly it is the same group, and often as many bytes.
        if descriptors != self._last_descriptors:
            self._last_descriptors = _NOTHING
            self._descriptors[:count] = descriptors
            self._last_descriptors = descriptors[:]
        sizes = array("I", (len(chunk),)) * count
        if sizes != self._last_sizes:
            self._last_sizes = _NOTHING
            self._sizes[:count] = sizes
            self._last_sizes = sizes
        # No barrier is needed: it is this thread that goes into the kernel and reads there.
        words[self._tail] = (before + count) & _WORD
        returned = self._syscall(_ENTER, self._descriptor, count, 0, 0, 0, 0)
        short = []
        if words[self._result_head] != words[self._result_tail]:
            short = self._failures()
        if returned != count:
            # What the kernel has not accepted, for want of memory as a rule, is written here.
            accepted = (words[self._head] - before) & _WORD
            start, end = (0, count - accepted) if backwards else (accepted, count)
            for place, sent in write_each(descriptors[start:end], chunk, backwards):
                short.append((start + place, sent))
            if returned < 0 and ctypes.get_errno() not in _PASSING:
                logger.debug("io_uring is given up: %s", os.strerror(ctypes.get_errno()))
                self.close()
        return short

    def _failures(self) -> Short:
        """Return those that were not written as a whole, by the numbers of their entries."""
        words = self._words
        head, tail = words[self._result_head], words[self._result_tail]
        failures = []
        while head != tail:
            at = self._found + _CQE.size * (head % self._results)
            number, result, _ = _CQE.unpack_from(self._cqes, at)
            failures.append((number, max(result, 0)))
            head = (head + 1) & _WORD
        words[self._result_head] = head
        return failures

    def close(self) -> None:
        """Give it back to the kernel. What is written afterwards is written one by one."""
        self.closed = True
        self._exit.close()


def _system_call() -> Callable[..., int]:
    # Seven arguments as wide as a register; the interpreter's lock is released meanwhile.
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.argtypes = [ctypes.c_long] * 7
    call.restype = ctypes.c_long
    return call


def proven(size: int) -> Ring:
    """Return a ring for chunks of at most `size` bytes that was seen to work.

    Raises:
        OSError: the kernel does not offer it, or it does not do what is expected of it.
    """
    ring = Ring(size)
    with ExitStack() as stack:
        stack.callback(ring.close)
        if not works(ring):
            raise OSError("it does not work as expected")
        stack.pop_all()
    return ring


def works(ring: Ring) -> bool:
    """Whether `ring` writes what sockets take, tells of those that took less, and waits for none:
    one that is full, one with room for a part, and one that is no socket, among others that are
    ready."""
    chunk = bytes(range(256)) * 128
    with ExitStack() as stack:
        pairs = []
        for _ in range(6):
            here, there = socket.socketpair()
            stack.enter_context(here)
            stack.enter_context(there)
            here.setblocking(False)
            there.setblocking(False)
            pairs.append((here, there))
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


def _fits(full: socket.socket, chunk: bytes) -> bool:
    try:
        full.send(chunk)
    except BlockingIOError:
        return False
    return True
