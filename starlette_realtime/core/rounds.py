"""Who sends when, where a server's `send` is the only way to the sockets.

What is published while a connection waits for its turn shares the next send with what waits there
already. So under load it pays to let few begin at a time and to let the event loop read between
them: a message that arrives during a round of sends goes out with the next round, in one send for
each connection, where it would otherwise cost a round of its own.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any, Protocol

from .turns import Later, Soon

FEW = 64
"""Connections that send at the same time, while messages gather."""
SHARED = FEW // 2
"""Connections whose sends are waited for in one callback."""
LATE = 0.002
"""Seconds after which nobody waits any longer for those that send."""


class Awaited(Protocol):
    """A future."""

    def add_done_callback(self, callback: Any, /) -> object: ...


class Sender(Protocol):
    """A connection's writer."""

    generation: int
    """Kept by `Rounds`; 0 while it does not send."""
    stopped: bool
    """Whether it sends nothing more; it need not leave then, unless it was its turn."""

    @property
    def awaited(self) -> Awaited | None:
        """What a send waits for that `go_on` is to go on with."""

    def begin(self) -> bool:
        """Take what waits now, and send it. Return whether there is something `awaited`."""

    def go_on(self) -> bool:
        """Go on, if what was `awaited` is done. Return whether something is."""

    def hand_over(self) -> None:
        """Go on without being called, when what is `awaited` is done."""


class Rounds:
    """The line of connections that have something to send.

    The next ones begin when half of those that send have left, a turn of the loop later, in which
    more may come to what waits for them. Who takes longer than the others holds nobody: when
    nothing moves for `LATE` seconds, those that are still sending count no more. While nothing
    gathers, as when each message waits for the one before it, more and more are let begin at a
    time, since waiting for them would only cost turns of the loop.

    Where a send waits for a future, as with a server that has a thread for it, a few share one
    callback: when the last one's is done, all are asked whether theirs are. Each would else cost a
    change of thread, or a turn of the loop, of its own. Who is late, by `LATE` to twice that, is
    asked no more and goes on by itself.

    Args:
        soon: how to be called when the turn of the event loop is over.
        later: calls a function after a delay (seconds).
    """

    def __init__(self, soon: Soon, later: Later) -> None:
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
        # Those whose sends wait: since `_hand_over` was to be called, and before that.
        self._young: list[list[Sender]] = []
        self._old: list[list[Sender]] = []

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
        waiting = [sender for sender in senders if not sender.stopped and sender.begin()]
        for first in range(0, len(waiting), SHARED):
            self._wait(waiting[first : first + SHARED])

    def _wait(self, senders: list[Sender]) -> None:
        """See to it that all go on when the last one's send is done."""
        awaited = senders[-1].awaited
        assert awaited is not None
        if len(senders) > 1:
            if not self._young and not self._old:
                self._later(LATE, self._hand_over)
            self._young.append(senders)
        awaited.add_done_callback(partial(self._go_on_with, senders))

    def _go_on_with(self, senders: list[Sender], _: object) -> None:
        waiting = [sender for sender in senders if sender.go_on()]
        senders.clear()
        if waiting:
            self._wait(waiting)

    def _hand_over(self) -> None:
        old, self._old, self._young = self._old, self._young, []
        for senders in old:
            for sender in senders:
                if sender.go_on():
                    sender.hand_over()
            senders.clear()
        if self._old:
            self._later(LATE, self._hand_over)

    def _watch(self) -> None:
        self._watched = False
        if not self._line or self._scheduled:
            return
        if not self._moved:
            self._generation += 1
            self._sending = 0
        self._go_on()
