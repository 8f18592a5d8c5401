"""The members of a channel that get the same bytes, and how these are written to them all."""

from __future__ import annotations

from array import array
from collections.abc import Sequence, Set
from typing import Protocol

from .outbox import Chunk, Outbox
from .writing import WriteAll, write_each


class Receiver(Protocol):
    """The hub's view of a session."""

    id: str
    outbox: Outbox


FAST_FROM = 8
"""Members from which on a group keeps the descriptors of those that are ready at hand."""


class Group(dict[Outbox, Receiver]):
    """The members of a channel that share a wire, and so each chunk.

    For most of them a write concerns nothing but their socket. Their descriptors are kept beside
    them, so that it takes no step of Python for each.

    Every other write begins with the last of them, so nobody is always the last one. And what the
    kernel keeps of hundreds of sockets is more than a processor's cache holds: a write that always
    began with the first one would find nothing of it there.
    """

    __slots__ = ("_backwards", "_descriptors", "_places", "_ready")

    def __init__(self) -> None:
        # Those that are ready, with their descriptors, in no order; and where each is among them.
        # None as long as the group is small: most are one session's or one user's.
        self._places: dict[Outbox, int] | None = None
        self._ready: list[Outbox]
        self._descriptors: array[int]
        self._backwards: bool

    def add(self, outbox: Outbox, receiver: Receiver) -> None:
        self[outbox] = receiver
        if self._places is not None:
            self._follow(outbox)
        elif len(self) >= FAST_FROM:
            self._places = {}
            self._ready = []
            self._descriptors = array("i")
            self._backwards = True
            for each in self:
                self._follow(each)

    def _follow(self, outbox: Outbox) -> None:
        """Let a member's outbox tell whether it is ready."""
        if outbox.descriptor >= 0:
            outbox.groups = [*(outbox.groups or ()), self]
            self.enter_fast(outbox)

    def remove(self, outbox: Outbox) -> bool:
        """Return whether `outbox` was in the group."""
        if self.pop(outbox, None) is None:
            return False
        if self._places is not None and outbox.descriptor >= 0:
            outbox.groups = [group for group in outbox.groups or () if group is not self] or None
            self.leave_fast(outbox)
        return True

    def enter_fast(self, outbox: Outbox) -> None:
        places = self._places
        if places is None or outbox.direct is None or outbox.descriptor < 0 or outbox in places:
            return
        places[outbox] = len(self._ready)
        self._ready.append(outbox)
        self._descriptors.append(outbox.descriptor)

    def leave_fast(self, outbox: Outbox) -> None:
        place = self._places.pop(outbox, None) if self._places is not None else None
        if self._places is None or place is None:
            return
        # The last one takes its place.
        last, descriptor = self._ready.pop(), self._descriptors.pop()
        if last is not outbox:
            self._ready[place], self._descriptors[place] = last, descriptor
            self._places[last] = place

    def write(
        self, chunk: Chunk, done: Set[Outbox], write_all: WriteAll = write_each
    ) -> Sequence[Outbox]:
        """Write `chunk` to every member that is ready, but not to those in `done`, which are
        members as well; return the others, which are neither."""
        places = self._places
        if places is None:
            others = [outbox for outbox in self if outbox not in done]
        else:
            spared = [outbox for outbox in done if outbox in places] if done else ()
            for outbox in spared:
                self.leave_fast(outbox)
            others = (
                [outbox for outbox in self if outbox not in done and outbox not in places]
                if len(places) + len(done) < len(self)
                else []
            )
            self._write_fast(chunk, write_all)
            for outbox in spared:
                self.enter_fast(outbox)
        slow = []
        for outbox in others:
            if outbox.direct is None:
                slow.append(outbox)
            elif not outbox.direct(chunk):
                outbox.stall()
        return slow

    def _write_fast(self, chunk: Chunk, write_all: WriteAll) -> None:
        self._backwards = not self._backwards
        # Descriptors are those of doors that take bytes.
        short = write_all(self._descriptors, chunk, self._backwards)  # type: ignore[arg-type]
        ready = self._ready
        for outbox, sent in [(ready[place], sent) for place, sent in short]:
            # The transport keeps what the socket did not take, and tells when it has gone.
            outbox.push(chunk[sent:])
