"""Asking every member of a room, on every process, and gathering the answers.

One question goes out on the room's own channel, as a message to the servers ("$ask"). Each process
puts it to the members it has and reports on a channel of the asking process ("$answer"): at once
how many it has asked, then what they answer, as it comes. All members on one process are asked by
the same bytes; there is one task for each process that was asked, not one for each member.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from ..errors import BrokerUnavailable, ClientError, TooLarge
from ..events import NOTHING_KEPT, Draft, Lane, Publication
from ..protocols import payload
from .hub import Channel
from .outbox import Wire
from .room import Room
from .session import Asked, Session, new_id

if TYPE_CHECKING:
    from .engine import Engine

MAX_ASKED = 10_000
"""Members of one process that are put a question; the others count as not asked."""
MAX_GATHERED = 16_000_000
"""Bytes of answers that one gathering keeps; a member whose answer is beyond counts as missing."""
MAX_REPORT = 256_000
"""Bytes of answers in one report of a process."""
SETTLE = 0.5
"""Seconds that other processes have to say whom they asked, where presence can't tell how many
members there are."""

SIGNALS = frozenset(["$ask", "$answer"])


class Answer(msgspec.Struct, frozen=True):
    """What one member answered. `user_id` is None for an anonymous one."""

    session_id: str
    user_id: str | None
    data: Any


class Gathered(msgspec.Struct, frozen=True):
    """What the members of a room answered in time.

    Attributes:
        answers: one for each member that answered, in no particular order.
        asked: how many members were asked.
    """

    answers: list[Answer]
    asked: int

    @property
    def missing(self) -> int:
        """How many of those who were asked have not answered."""
        return self.asked - len(self.answers)


class _Question(msgspec.Struct, frozen=True):
    """What "$ask" carries. `timeout` in seconds, `reply` a channel."""

    number: int
    reply: str
    event: str
    data: msgspec.Raw
    timeout: float
    exclude: str = ""


_Given = tuple[str, str | None, msgspec.Raw]


class _Report(msgspec.Struct, frozen=True):
    """What "$answer" carries: how many are being asked by this process, on its first report, and
    the answers there are."""

    number: int
    asked: int
    answers: list[_Given]


class _Asking:
    """A question put to the members on this process."""

    __slots__ = ("answers", "asked", "left_out", "named", "news", "number", "open", "size", "until")

    def __init__(self, number: int, timeout: float) -> None:
        self.number = number
        self.until = time.monotonic() + timeout
        self.open: dict[Session, _Put] = {}
        self.asked = 0
        self.left_out = False
        self.answers: list[_Given] = []
        # Answers of members with a user: those are the ones that presence counts.
        self.named = 0
        self.size = 0
        self.news = anyio.Event()

    def settled(self, put: _Put, answer: bytes | None) -> None:
        self.open.pop(put.session, None)
        if answer is not None:
            session = put.session
            self.named += session.user_id is not None
            self.size += len(answer)
            if self.size <= MAX_GATHERED:
                self.answers.append((session.id, session.user_id, msgspec.Raw(answer)))
        self.news.set()

    def forget(self) -> None:
        """Expect no more answers."""
        for session in self.open:
            session.forget(self.number)
        self.open.clear()


class _Put(Asked):
    """The question as one member has it."""

    __slots__ = ("asking", "session")

    def __init__(self, asking: _Asking, session: Session, question: _Question, room: str) -> None:
        super().__init__(room, question.event, bytes(question.data), asking.until)
        self.asking = asking
        self.session = session

    def settle(self, answer: bytes | None) -> None:
        super().settle(answer)
        self.session.forget(self.asking.number)
        self.asking.settled(self, answer)


class _Gathering:
    """A question that was put to all processes by this one."""

    __slots__ = ("answers", "asked", "named", "news", "size")

    def __init__(self) -> None:
        self.asked = 0
        self.answers: list[Answer] = []
        self.named = 0
        self.size = 0
        self.news = anyio.Event()

    def take(self, asked: int, answers: Iterable[_Given]) -> None:
        self.asked += asked
        for session_id, user_id, data in answers:
            self.size += len(bytes(data))
            if self.size > MAX_GATHERED:
                continue
            try:
                answer = payload.load(bytes(data))
            except ClientError:
                # Not a payload at all: as good as no answer.
                continue
            self.named += user_id is not None
            self.answers.append(Answer(session_id, user_id, answer))
        self.news.set()


class Gatherer:
    """Questions to rooms of one namespace: those this process asks, and those it passes on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._channel = f"process{engine.ns}:{new_id()}"
        self._open: dict[int, _Gathering] = {}

    async def gather(
        self, room: Room, event: str, data: bytes, timeout: float, exclude: str
    ) -> Gathered:
        """See `Room.gather`."""
        number = secrets.randbits(48)
        question = _Question(number, self._channel, event, msgspec.Raw(data), timeout, exclude)
        gathering = self._open[number] = _Gathering()
        here = self.engine.hub.channels.get(room.channel)
        asking = self._ask(here, question)
        gathering.asked = asking.asked
        try:
            with anyio.move_on_after(timeout):
                await self._gather(room, question, gathering, asking)
        finally:
            del self._open[number]
            asking.forget()
            self._release()
        gathering.take(0, asking.answers)
        return Gathered(gathering.answers, gathering.asked)

    async def _gather(
        self, room: Room, question: _Question, gathering: _Gathering, asking: _Asking
    ) -> None:
        reply = self.engine.hub.channel(self._channel, self.engine.ns, None)
        await self.engine.runtime.subscribe(reply)
        draft = Draft(event="$ask", data=msgspec.json.encode(question), lane=Lane.NONE)
        await self.engine.runtime.broker.publish(room.channel, draft, NOTHING_KEPT)
        expected = (await room.counts()).sessions - asking.left_out
        settled = anyio.current_time() + SETTLE
        for session, put in list(asking.open.items()):
            if session.connection.waits_here:
                # The member whose handler this is: only we can read its answer.
                await session.connection.wait(put.answered)
        while True:
            gathering.news = asking.news = anyio.Event()
            elsewhere = gathering.asked - asking.asked
            if not asking.open and len(gathering.answers) >= elsewhere:
                named = asking.named + gathering.named
                if named >= expected > 0 or anyio.current_time() >= settled:
                    return
                with anyio.move_on_after(settled - anyio.current_time()):
                    await gathering.news.wait()
            else:
                await gathering.news.wait()

    def _release(self) -> None:
        """Let go of the channel the answers come on, when nothing is asked any more."""
        reply = self.engine.hub.channels.get(self._channel)
        if reply is not None and not self._open:
            self.engine.runtime.release(reply)

    def _ask(self, channel: Channel | None, question: _Question) -> _Asking:
        """Put a question to the members on this process."""
        asking = _Asking(question.number, question.timeout)
        if channel is None or channel.room is None:
            return asking
        hub = self.engine.hub
        encoded: dict[Wire, bytes] = {}
        for session in channel.receivers():
            if not isinstance(session, Session):
                continue
            if session.id == question.exclude:
                asking.left_out = session.user_id is not None
                continue
            if asking.asked == MAX_ASKED:
                break
            asking.asked += 1
            wire = session.outbox.wire
            message = encoded.get(wire)
            if message is None:
                message = encoded[wire] = wire.request(
                    self.engine.ns,
                    channel.room,
                    question.event,
                    bytes(question.data),
                    question.number,
                )
            put = asking.open[session] = _Put(asking, session, question, channel.room)
            session.expect(question.number, put)
            hub.push(session, message)
        return asking

    def control(self, channel: Channel, publication: Publication) -> None:
        """Take a question or an answer of a process."""
        if publication.event == "$answer":
            report = msgspec.json.decode(publication.data, type=_Report)
            gathering = self._open.get(report.number)
            if gathering is not None:
                gathering.take(report.asked, report.answers)
            return
        question = msgspec.json.decode(publication.data, type=_Question)
        if question.reply != self._channel:
            asking = self._ask(channel, question)
            if asking.asked:
                self.engine.runtime.spawn(self._report, question, asking)

    async def _report(self, question: _Question, asking: _Asking) -> None:
        """Tell the process that asks what the members here answer."""
        asked = asking.asked
        limit = MAX_REPORT
        try:
            with anyio.move_on_after(question.timeout):
                while asked or asking.answers or asking.open:
                    if not asked and not asking.answers:
                        await asking.news.wait()
                    asking.news = anyio.Event()
                    part = _part(asking.answers, limit)
                    draft = Draft(
                        event="$answer",
                        data=msgspec.json.encode(_Report(question.number, asked, part)),
                        lane=Lane.NONE,
                    )
                    try:
                        await self.engine.runtime.broker.publish(
                            question.reply, draft, NOTHING_KEPT
                        )
                        asked = 0
                    except TooLarge:
                        if not part:
                            raise
                        # One that is too large by itself is as good as no answer.
                        if len(part) > 1:
                            asking.answers[:0] = part
                            limit //= 2
        except BrokerUnavailable:
            # Whoever asked counts these members as missing, or not at all.
            return
        finally:
            asking.forget()


def _part(answers: list[_Given], limit: int) -> list[_Given]:
    """Take as many answers as have `limit` bytes together, at least one."""
    size = 0
    for number, (_, _, data) in enumerate(answers):
        size += len(bytes(data))
        if number and size > limit:
            break
    else:
        number = len(answers)
    part = answers[:number]
    del answers[:number]
    return part
