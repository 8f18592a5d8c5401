"""Who sends when, where a server's `send` is the only way to the sockets."""

from __future__ import annotations

from collections.abc import Callable

from starlette_realtime.core.rounds import FEW, LATE, SHARED, Rounds


class Loop:
    """Turns and timers by hand."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], object]] = []
        self.later: list[Callable[[], object]] = []
        self.began: list[Sender] = []
        self.rounds = Rounds(self.soon.append, self._call_later)

    def _call_later(self, delay: float, call: Callable[[], object]) -> None:
        assert delay == LATE
        self.later.append(call)

    def turn(self) -> list[Sender]:
        """Return who is let begin in the next turn, and does so in the one after it."""
        self.began = []
        for _ in range(2):
            calls = self.soon[:]
            self.soon.clear()
            for call in calls:
                call()
        return self.began

    def wait(self) -> None:
        """Let the time of the timers pass."""
        calls, self.later = self.later, []
        for call in calls:
            call()

    def senders(self, count: int) -> list[Sender]:
        return [Sender(self) for _ in range(count)]

    def send(self, senders: list[Sender]) -> None:
        """Let a server have sent, and tell whoever waits for it."""
        for sender in senders:
            sender.sent = True
        for sender in senders:
            callbacks, sender.callbacks = sender.callbacks, []
            for callback in callbacks:
                callback(sender)

    def enter(self, senders: list[Sender]) -> None:
        for sender in senders:
            self.rounds.enter(sender)

    def leave(self, senders: list[Sender]) -> None:
        for sender in senders:
            self.rounds.leave(sender)


class Sender:
    def __init__(self, loop: Loop) -> None:
        self.generation = 0
        self.stopped = False
        # One whose sends are to be waited for here.
        self.waits = False
        self.sent = False
        self.ended = 0
        self.handed_over = 0
        self.callbacks: list[Callable[[object], object]] = []
        self._loop = loop

    @property
    def awaited(self) -> Sender:
        return self

    def add_done_callback(self, callback: Callable[[object], object]) -> None:
        self.callbacks.append(callback)

    def begin(self) -> bool:
        self._loop.began.append(self)
        return self.waits

    def go_on(self) -> bool:
        if not self.waits or not self.sent:
            return self.waits
        self.waits = False
        self.ended += 1
        self._loop.rounds.leave(self)
        return False

    def hand_over(self) -> None:
        self.waits = False
        self.handed_over += 1


def gathering(senders: int) -> tuple[Loop, list[Sender]]:
    loop = Loop()
    everyone = loop.senders(senders)
    loop.enter(everyone)
    loop.rounds.gathered = True
    return loop, everyone


def test_a_few_begin_at_a_time_and_the_next_when_half_of_them_have_sent() -> None:
    loop, everyone = gathering(FEW * 3)
    began = loop.turn()
    assert began == everyone[:FEW]
    loop.rounds.gathered = True
    loop.leave(began[: FEW // 2 - 1])
    assert loop.turn() == []
    loop.leave(began[FEW // 2 - 1 : FEW // 2])
    assert loop.turn() == everyone[FEW : FEW + FEW // 2]


def test_one_alone_begins_when_the_turn_ends() -> None:
    loop = Loop()
    for _ in range(3):
        (one,) = loop.senders(1)
        loop.rounds.enter(one)
        assert loop.turn() == [one]
        loop.rounds.leave(one)
    assert not loop.soon and not loop.later


def test_those_that_do_not_come_to_an_end_hold_nobody() -> None:
    loop, everyone = gathering(FEW * 2)
    assert loop.turn() == everyone[:FEW]
    loop.wait()
    if not loop.soon:
        # It had moved since it was looked at first.
        loop.wait()
    loop.rounds.gathered = True
    assert loop.turn() == everyone[FEW:]
    # They come to an end after all, and are not counted twice.
    loop.leave(everyone)
    more = loop.senders(FEW * 2)
    loop.enter(more)
    loop.rounds.gathered = True
    assert loop.turn() == more[:FEW]


def test_who_comes_while_all_places_are_taken_for_ever_is_not_forgotten() -> None:
    loop, everyone = gathering(FEW)
    assert loop.turn() == everyone
    late = loop.senders(1)
    loop.enter(late)
    assert loop.turn() == []
    loop.wait()
    assert loop.turn() == late


def test_while_nothing_gathers_more_and_more_begin_at_once() -> None:
    loop = Loop()
    everyone = loop.senders(FEW * 8)
    rounds = []
    for _ in range(3):
        loop.enter(everyone)
        rounds.append(0)
        while began := loop.turn():
            rounds[-1] += 1
            loop.leave(began)
    assert rounds[0] > rounds[-1] == 1
    # And few again as soon as something does.
    loop.rounds.gathered = True
    loop.enter(everyone)
    assert len(loop.turn()) == FEW


def test_who_has_stopped_is_passed_over_and_takes_no_place() -> None:
    loop, everyone = gathering(FEW * 2)
    for sender in everyone[:FEW]:
        sender.stopped = True
        loop.rounds.leave(sender)
    assert loop.turn() == everyone[FEW:]


def waiting(count: int) -> tuple[Loop, list[Sender]]:
    loop = Loop()
    everyone = loop.senders(count)
    for sender in everyone:
        sender.waits = True
    loop.enter(everyone)
    assert loop.turn() == everyone
    return loop, everyone


def test_sends_that_wait_are_gone_on_with_together() -> None:
    loop, everyone = waiting(SHARED * 2)
    assert sum(len(sender.callbacks) for sender in everyone) == 2
    loop.send(everyone)
    assert [sender.ended for sender in everyone] == [1] * len(everyone)
    for _ in range(2):
        loop.wait()
    assert not loop.later
    assert not any(sender.handed_over for sender in everyone)


def test_in_whatever_order_sends_end_all_are_gone_on_with() -> None:
    loop, everyone = waiting(SHARED)
    for number in (SHARED - 1, *range(0, SHARED - 1, 2), *range(1, SHARED - 1, 2)):
        loop.send([everyone[number]])
    assert [sender.ended for sender in everyone] == [1] * len(everyone)


def test_who_is_late_goes_on_by_itself_and_holds_nobody() -> None:
    loop, everyone = waiting(SHARED)
    *others, last = everyone
    loop.send(others)
    assert not any(sender.ended for sender in others)
    for _ in range(2):
        loop.wait()
    assert all(sender.ended for sender in others)
    assert (last.ended, last.handed_over) == (0, 1)
    # It comes to an end after all, as far as it is concerned itself.
    loop.send([last])
    assert (last.ended, last.handed_over) == (0, 1)
    assert not loop.later


def test_one_alone_is_waited_for_without_a_timer() -> None:
    loop, (one,) = waiting(1)
    assert not loop.later
    loop.send([one])
    assert one.ended == 1
