"""Questions to a client whose session moves: they are asked wherever it has its connection.

The law: who asks waits where it began. While a session with open questions has no connection there,
that process stays subscribed to the session's channel. Whoever resumes the session elsewhere
subscribes to this channel, says so on it ("$replaced"), and is sent the questions ("$question"). It
puts them to its client, for as long as that connection lasts, and says there what the client
answers ("$answered") or that the session has ended for good ("$ended").

Announcements may be lost: what is not answered is sent again, ever more seldom. So a question may
come twice, but under the same number; its first answer counts.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import msgspec

from ..errors import BrokerUnavailable, Disconnected, TooLarge
from ..events import Publication
from .hub import Channel
from .session import Asked, Session, new_id
from .timers import Timer

if TYPE_CHECKING:
    from .engine import Engine

logger = logging.getLogger("starlette_realtime")

MAX_FOREIGN = 100
"""Questions of other processes that one client has at a time; their payloads have at most
`max_queued` bytes together. Others wait until it has answered some of these."""
MAX_TIME = 3600.0
"""Seconds for which a question of another process is kept, unless it is sent again."""
RESEND = 1.0
"""Seconds until open questions of a session that is not here are sent again; then twice as many."""
MAX_RESEND = 8.0

SIGNALS = frozenset(["$question", "$answered", "$ended"])


class _Question(msgspec.Struct, frozen=True):
    """What "$question" carries. `process` is the one that asks; `timeout` in seconds."""

    number: int
    process: str
    event: str
    data: msgspec.Raw
    timeout: float
    room: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    """What "$answered" carries."""

    number: int
    data: msgspec.Raw


class _Foreign(Asked):
    """A question of another process, as the client has it here."""

    __slots__ = ("number", "session", "timer")

    def __init__(self, session: Session, question: _Question) -> None:
        seconds = min(question.timeout, MAX_TIME)
        super().__init__(
            question.room, question.event, bytes(question.data), time.monotonic() + seconds
        )
        self.number = question.number
        self.session = session
        self.timer = session.engine.runtime.timers.call_later(seconds, self.drop)

    def settle(self, answer: bytes | None) -> None:
        super().settle(answer)
        self.drop()
        if answer is not None:
            engine = self.session.engine
            engine.runtime.spawn(engine.questions.report, self.session.id, self.number, answer)

    def drop(self) -> None:
        self.timer.cancel()
        self.session.forget(self.number)


class Questions:
    """Questions of one namespace that are on their way between processes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.runtime = engine.runtime
        self.hub = engine.hub
        self._process = new_id()
        # Sessions without a connection here that have questions, and when these go out again.
        self._away: dict[Session, Timer] = {}

    # Where a question was asked

    def detached(self, session: Session) -> None:
        """The session's connection here is gone, or was never made: follow the session, if it has
        questions of this process."""
        self._drop_foreign(session)
        if session.requests:
            self._follow(session)

    def back(self, session: Session) -> None:
        """The session is about to have a connection here, and to listen for itself."""
        timer = self._away.pop(session, None)
        if timer is not None:
            timer.cancel()

    def over(self, session: Session) -> None:
        """The session has no questions any more."""
        timer = self._away.pop(session, None)
        if timer is not None:
            timer.cancel()
            channel = self._channel(session)
            self.hub.remove(channel, session)
            self.runtime.release(channel)

    def end(self, session: Session) -> None:
        """There will be no answers."""
        for asked in list((session.requests or {}).values()):
            asked.settle(None)
        self.over(session)

    def moved(self, session: Session) -> None:
        """The session has a connection on another process: let it be asked there."""
        self._drop_foreign(session)
        if session.requests:
            self.runtime.spawn(self._send, session)

    def seek(self, session: Session) -> None:
        """Let a session be asked that has no connection here.

        Raises:
            Disconnected: this process stops, and would not hear the answer.
        """
        if self.runtime.stopping:
            raise Disconnected("the server is stopping")
        self._follow(session)
        self.moved(session)

    def _follow(self, session: Session) -> None:
        if not self.runtime.sessions.shared:
            return
        self.hub.begin(self._channel(session), session)
        if session not in self._away:
            self._send_later(session, RESEND)

    def _send_later(self, session: Session, seconds: float) -> None:
        self._away[session] = self.runtime.later(seconds, self._send_again, session, seconds)

    async def _send_again(self, session: Session, seconds: float) -> None:
        timer = self._away.get(session)
        await self._send(session)
        if timer is not None and self._away.get(session) is timer:
            timer.cancel()
            self._send_later(session, min(2 * seconds, MAX_RESEND))

    async def _send(self, session: Session) -> None:
        """Send the questions to where the session is."""
        if not session.requests or not self.runtime.sessions.shared:
            return
        channel = self._channel(session)
        try:
            await self.runtime.subscribe(channel)
            for number, asked in list((session.requests or {}).items()):
                seconds = min(asked.until - time.monotonic(), MAX_TIME)
                if seconds <= 0 or asked.answered.is_set() or isinstance(asked, _Foreign):
                    continue
                data = msgspec.Raw(asked.data)
                question = _Question(number, self._process, asked.event, data, seconds, asked.room)
                await self._tell(session.id, "$question", question)
        except BrokerUnavailable:
            # They are sent again.
            return
        finally:
            self.runtime.release(channel)

    # Where the client is

    def _take(self, session: Session, question: _Question) -> None:
        """Put another process's question to a client that is connected here, or connects."""
        known = session.requests or {}
        foreign = [asked for asked in known.values() if isinstance(asked, _Foreign)]
        size = sum(len(asked.data) for asked in foreign) + len(bytes(question.data))
        if (
            question.number in known
            or len(foreign) >= MAX_FOREIGN
            or size > self.engine.options.max_queued
        ):
            return
        asked = _Foreign(session, question)
        session.expect(question.number, asked)
        # Else it has not been greeted yet, and is asked when it has.
        if self.hub.sessions.get(session.id) is session:
            session.ask(question.number, asked)

    def _drop_foreign(self, session: Session) -> None:
        for asked in list((session.requests or {}).values()):
            if isinstance(asked, _Foreign):
                asked.drop()

    async def report(self, session_id: str, number: int, answer: bytes) -> None:
        """Tell whoever asked what the client has answered."""
        await self._tell(session_id, "$answered", _Answer(number, msgspec.Raw(answer)))

    async def tell_ended(self, session: Session) -> None:
        """Tell all who have questions to a session that it has ended, with this generation."""
        await self._tell(session.id, "$ended", session.generation)

    # Between them

    def control(self, channel: Channel, publication: Publication) -> None:
        """Take what a process says of its questions, or of its client's answers."""
        sessions = [found for found in channel.everyone() if isinstance(found, Session)]
        if publication.event == "$question":
            question = msgspec.json.decode(publication.data, type=_Question)
            for session in sessions:
                here = not session.connection.gone and not session.moved
                if here and question.process != self._process:
                    self._take(session, question)
        elif publication.event == "$answered":
            answer = msgspec.json.decode(publication.data, type=_Answer)
            for session in sessions:
                asked = (session.requests or {}).get(answer.number)
                if isinstance(asked, _Foreign):
                    # It came again when the answer was on its way.
                    asked.drop()
                elif asked is not None:
                    asked.settle(bytes(answer.data))
        else:
            generation = msgspec.json.decode(publication.data, type=int)
            for session in sessions:
                # An older one than is known to be there has only been forgotten.
                if session.generation < generation and session.elsewhere <= generation:
                    self.engine.lobby.ended_elsewhere(session)

    def _channel(self, session: Session) -> Channel:
        return self.hub.channel(self.engine.session_channel(session.id), self.engine.ns, None)

    async def _tell(self, session_id: str, event: str, what: object) -> None:
        try:
            await self.engine.tell(self.engine.session_channel(session_id), event, what)
        except TooLarge:
            # As good as lost: whoever asked finds no answer, others are not held up.
            logger.warning("%r is larger than the backend takes: it is not sent", event)
