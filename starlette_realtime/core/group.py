"""The members of a channel that get the same bytes, and the loop that writes them."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set
from typing import Protocol

from .outbox import Chunk, Outbox


class Receiver(Protocol):
    """The hub's view of a session."""

    id: str
    outbox: Outbox


FAST_FROM = 8
"""Members from which on a group keeps the descriptors of those that are ready at hand."""


class Group(dict[Outbox, Receiver]):
    """The members of a channel that share a wire, and so each chunk.

    For most of them a write is one system call on their socket. Their descriptors are kept beside
    them, so that the loop over them runs without a step of Python for each.
    """

    __slots__ = ("_fast",)

    def __init__(self) -> None:
        super().__init__()
        self._fast: dict[int, Outbox] | None = None

    def add(self, outbox: Outbox, receiver: Receiver) -> None:
        self[outbox] = receiver
        if outbox.descriptor < 0:
            return
        outbox.groups.append(self)
        if self._fast is not None:
            self.enter_fast(outbox)
        elif len(self) >= FAST_FROM:
            self._fast = {}
            for each in self:
                self.enter_fast(each)

    def remove(self, outbox: Outbox) -> bool:
        """Return whether `outbox` was in the group."""
        if self.pop(outbox, None) is None:
            return False
        if outbox.descriptor >= 0:
            outbox.groups.remove(self)
            self.leave_fast(outbox)
        return True

    def enter_fast(self, outbox: Outbox) -> None:
        if self._fast is not None and outbox.direct is not None and outbox.descriptor >= 0:
            self._fast[outbox.descriptor] = outbox

    def leave_fast(self, outbox: Outbox) -> None:
        # Its descriptor may be another's by now, who is in the group as well.
        if self._fast is not None and self._is_fast(outbox):
            del self._fast[outbox.descriptor]

    def write(self, chunk: Chunk, done: Set[Outbox]) -> Sequence[Outbox]:
        """Write `chunk` to every member that is ready, but not to those in `done`, which are
        members as well; return the others, which are neither."""
        fast = self._fast
        if fast is None:
            others = [outbox for outbox in self if outbox not in done]
        else:
            ready = [outbox for outbox in done if self._is_fast(outbox)] if done else ()
            for outbox in ready:
                del fast[outbox.descriptor]
            others = (
                [outbox for outbox in self if outbox not in done and not self._is_fast(outbox)]
                if len(fast) + len(done) < len(self)
                else []
            )
            _write_fast(fast, chunk)
            for outbox in ready:
                self.enter_fast(outbox)
        slow = []
        for outbox in others:
            if outbox.direct is None:
                slow.append(outbox)
            elif not outbox.direct(chunk):
                outbox.stall()
        return slow

    def _is_fast(self, outbox: Outbox) -> bool:
        return self._fast is not None and self._fast.get(outbox.descriptor) is outbox


def _write_fast(fast: dict[int, Outbox], chunk: Chunk) -> None:
    # A plain loop: `map` with what it needs to keep the results takes 3 % longer for each write.
    write, size = os.write, len(chunk)
    short = []
    for descriptor in list(fast):
        try:
            sent = write(descriptor, chunk)  # type: ignore[arg-type]
        except OSError:
            sent = 0
        if sent != size:
            short.append((descriptor, sent))
    for descriptor, sent in short:
        outbox = fast.get(descriptor)
        # The transport keeps what the socket did not take, and tells when it has gone.
        if outbox is not None and outbox.direct is not None and not outbox.direct(chunk[sent:]):
            outbox.stall()
