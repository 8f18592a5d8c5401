"""Who sends when, where a server's `send` is the only way to the sockets.

What is published while a connection waits for its turn shares the next send with what waits there
already. So under load it pays to let few begin at a time and to let the event loop read between
them: a message that arrives during a round of sends goes out with the next round, in one send for
each connection, where it would otherwise cost a round of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from .turns import Soon

FEW = 64
"""Connections that send at the same time, while messages gather."""
LATE = 0.002
"""Seconds after which nobody waits any longer for those that send."""


class Sender(Protocol):
    """A connection's writer."""

    generation: int
    """Kept by `Rounds`; 0 while it does not send."""
    stopped: bool
    """Whether it sends nothing more; it need not leave then, unless it was its turn."""

    def begin(self) -> None:
        """Take what waits now, and send it."""


class Rounds:
    """The line of connections that have something to send.

    The next ones begin when half of those that send have left, a turn of the loop later, in which
    more may come to what waits for them. Who takes longer than the others holds nobody: when
    nothing moves for `LATE` seconds, those that are still sending count no more. While nothing
    gathers, as when each message waits for the one before it, more and more are let begin at a
    time, since waiting for them would only cost turns of the loop.

    Args:
        soon: how to be called when the turn of the event loop is over.
        later: calls a function after a delay (seconds).
    """

    def __init__(self, soon: Soon, later: Callable[[float, Callable[[], object]], object]) -> None:
        # Set by a sender that has put several chunks into one.
        self.gathered = False
        self._soon = soon
        self._later = later
        self._line: deque[Sender] = deque()
        self._next: list[Sender] = []
        self._limit = FEW
        self._sending = 0
        self._generation = 1
        self._scheduled = False
        self._watched = False
        self._moved = False

    def enter(self, sender: Sender) -> None:
        """Let `sender`, which does not stand in line, begin when it is its turn."""
        self._line.append(sender)
        if not self._scheduled:
            self._go_on()

    def leave(self, sender: Sender) -> None:
        """`sender` has sent what it took, or will not."""
        if sender.generation == self._generation:
            self._sending -= 1
            if self._line and not self._scheduled:
                self._go_on()
        sender.generation = 0

    def _go_on(self) -> None:
        if self._sending * 2 <= self._limit:
            self._scheduled = True
            self._soon(self._turn)
        elif not self._watched:
            self._watched = True
            self._moved = False
            self._later(LATE, self._watch)

    def _turn(self) -> None:
        self._scheduled = False
        self._moved = True
        line = self._line
        if self.gathered:
            self.gathered = False
            self._limit = FEW
        elif self._limit < len(line):
            self._limit *= 2
        while line and self._sending < self._limit:
            sender = line.popleft()
            if not sender.stopped:
                sender.generation = self._generation
                self._sending += 1
                self._next.append(sender)
        if self._next:
            self._soon(self._begin)
        if line:
            self._go_on()

    def _begin(self) -> None:
        senders, self._next = self._next, []
        for sender in senders:
            if not sender.stopped:
                sender.begin()

    def _watch(self) -> None:
        self._watched = False
        if not self._line or self._scheduled:
            return
        if not self._moved:
            self._generation += 1
            self._sending = 0
        self._go_on()
