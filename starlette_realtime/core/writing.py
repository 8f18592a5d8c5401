"""One chunk to many sockets: one by one, or by one system call where the kernel has io_uring."""

from __future__ import annotations

import logging
import os
import platform
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .uring import Ring

logger = logging.getLogger("starlette_realtime")

Short = list[tuple[int, int]]
"""Which descriptors did not take everything, by their places, and how many bytes each took."""
WriteAll = Callable[["array[int]", bytes, bool], Short]
"""Writes the same bytes to many descriptors, which must not block; to the last one first if the
third argument is true."""

WORTHWHILE: Final = 16
"""Descriptors from which on one system call for all costs less than one for each."""
LARGE: Final = 65_536
"""Bytes from which on copying them is what a write costs."""


def write_each(descriptors: array[int], chunk: bytes, backwards: bool = False) -> Short:
    """Write `chunk` to one descriptor after the other, to the last one first if `backwards`."""
    # A plain loop: `map` with what it needs to keep the results takes 3 % longer for each write.
    write, size = os.write, len(chunk)
    short = []
    places = range(len(descriptors))
    for place in reversed(places) if backwards else places:
        try:
            sent = write(descriptors[place], chunk)
        except OSError:
            sent = 0
        if sent != size:
            short.append((place, sent))
    return short


class Writes:
    """How a process writes one chunk to many sockets. For one thread.

    A ring is opened when there is first something for it: most processes that could have one, a
    worker on another server or a script, never need it.
    """

    def __init__(self, *, io_uring: bool) -> None:
        self._wanted = io_uring
        self._ring: Ring | None = None
        self._process = os.getpid()

    def write_all(self, descriptors: array[int], chunk: bytes, backwards: bool = False) -> Short:
        """Write `chunk` to all descriptors, which are sockets and do not block; to the last one
        first if `backwards`."""
        if len(descriptors) < WORTHWHILE or not 0 < len(chunk) < LARGE:
            return write_each(descriptors, chunk, backwards)
        if self._wanted:
            self._wanted = False
            self._ring = open_ring(LARGE)
        ring = self._ring
        # The rings of a process that was forked off are still its parent's.
        if ring is None or os.getpid() != self._process:
            return write_each(descriptors, chunk, backwards)
        return ring.write(descriptors, chunk, backwards)

    def close(self) -> None:
        """From here on write one by one."""
        self._wanted = False
        if self._ring is not None:
            self._ring.close()


def open_ring(size: int) -> Ring | None:
    """Return a ring for chunks of at most `size` bytes that was seen to work, or None."""
    try:
        if not _may_try():
            raise OSError("not on this system, or not under a seccomp filter")
        from .uring import proven

        ring = proven(size)
    except Exception as error:
        # Whatever it is: nothing is lost without it.
        logger.debug("broadcasts are written one by one, without io_uring: %s", error)
        return None
    logger.debug("broadcasts are written by io_uring")
    return ring


def _may_try() -> bool:
    """Whether asking for a ring does no harm: a seccomp filter may end the process for it."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return False
    if sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return False
    with Path("/proc/thread-self/status").open() as status:
        return any(line.split() == ["Seccomp:", "0"] for line in status)
