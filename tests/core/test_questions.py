"""Questions to clients whose sessions move between processes. On asyncio and on trio."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from starlette_realtime.auth import AnonymousAuth, User
from starlette_realtime.brokers.base import Broker, Listener
from starlette_realtime.core import questions
from starlette_realtime.core.engine import Engine
from starlette_realtime.core.lobby import Introduction
from starlette_realtime.core.namespace import Namespace
from starlette_realtime.core.options import Options
from starlette_realtime.core.runtime import Runtime, running
from starlette_realtime.core.session import Session
from starlette_realtime.errors import AckTimeout, BrokerUnavailable, Disconnected, TooLarge
from starlette_realtime.events import (
    Command,
    Draft,
    Position,
    Publication,
    Published,
    Retention,
)
from starlette_realtime.sessions.memory import MemorySessions
from starlette_realtime.settings import stores_from_url
from tests.core.helpers import NO_LIMITS, Message, Socket, house, until
from tests.support.loops import both_loops

pytestmark = [pytest.mark.anyio, both_loops]


class Post:
    """What the processes share; `lose` says which announcements get lost."""

    def __init__(self) -> None:
        self.offices: list[Office] = []
        self.lose: Callable[[Publication], bool] = lambda publication: False
        self.carried: list[str] = []
        self.broken = False
        self.largest = math.inf
        # Let subscriptions take their time.
        self.slow: anyio.Event | None = None


class Office(Broker):
    """One process's side of it."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.channels: set[str] = set()
        self.listener: Listener | None = None
        post.offices.append(self)

    @asynccontextmanager
    async def run(self, listener: Listener) -> AsyncIterator[None]:
        self.listener = listener
        yield

    async def publish(self, channel: str, draft: Draft, retention: Retention) -> Published:
        await checkpoint()
        if self.post.broken:
            raise BrokerUnavailable("broken")
        if len(draft.data) > self.post.largest:
            raise TooLarge
        publication = Publication(draft.event, draft.data, exclude=draft.exclude)
        self.post.carried.append(draft.event)
        for office in self.post.offices:
            lost = self.post.lose(publication)
            if channel in office.channels and office.listener is not None and not lost:
                office.listener.received(channel, publication)
        return Published(Position("", 0))

    async def subscribe(self, channels: Iterable[str]) -> None:
        await checkpoint()
        if self.post.slow is not None:
            await self.post.slow.wait()
        self.channels.update(channels)

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        await checkpoint()
        self.channels.difference_update(channels)


class SharedSessions(MemorySessions):
    shared = True


class Visit:
    """One connection of ann's."""

    def __init__(self, engine: Engine, socket: Socket, session: Session) -> None:
        self.engine = engine
        self.socket = socket
        self.session = session

    @property
    def resume(self) -> str:
        (connected,) = [m for m in self.socket.received if m["type"] == "connected"]
        token: str = connected["resume"]
        return token

    @property
    def asked(self) -> list[Message]:
        self.engine.hub.flush()
        return [m for m in self.socket.received if m["type"].endswith("?")]

    async def hear(self, number: int = 1) -> list[Message]:
        await until(lambda: len(self.asked) >= number)
        return self.asked

    def answer(self, question: Message, data: Any) -> None:
        raw = msgspec.Raw(msgspec.json.encode(data))
        self.engine.answer(self.session, Command("ack", id=question["id"], data=raw))

    async def answer_all(self, data: Any) -> None:
        for number in itertools.count(1):
            await until(lambda n=number: len(self.asked) >= n, math.inf)  # type: ignore[misc]
            self.answer(self.asked[number - 1], data)

    async def end(self, code: int = 1006) -> None:
        self.socket.gone = True
        self.socket.outbox.close()
        await self.engine.lobby.disconnect(self.session, code)


class Asking:
    """A question that was put, and what became of it."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self.done = anyio.Event()

    async def run(self, ask: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.result = await ask()
        except (AckTimeout, Disconnected) as error:
            self.error = error
        self.done.set()

    async def outcome(self) -> Any:
        with anyio.fail_after(5):
            await self.done.wait()
        return self.result if self.error is None else type(self.error)


class Town:
    """Several processes, A, B, C, …, of one server."""

    def __init__(self, post: Post, runtimes: list[Runtime], tasks: anyio.abc.TaskGroup) -> None:
        self.post = post
        self.runtimes = dict(zip("ABC", runtimes, strict=True))
        self.tasks = tasks

    def engine(self, process: str) -> Engine:
        return self.runtimes[process].engines["/"]

    async def visit(self, process: str, resume: str | None = None) -> Visit:
        engine = self.engine(process)
        socket = Socket(engine.options)
        session = await engine.lobby.connect(socket, User(id="ann"), Introduction(resume=resume))
        visit = Visit(engine, socket, session)
        await until(lambda: self.is_quiet() and socket.received)
        assert resume is None or session.generation > 1, "it was resumed"
        return visit

    def is_quiet(self) -> bool:
        for runtime in self.runtimes.values():
            runtime.hub.flush()
        return True

    def ask(
        self, session: Session, event: str = "sure?", timeout: float = 5, **more: Any
    ) -> Asking:
        asking = Asking()
        self.tasks.start_soon(
            asking.run, lambda: session.request(event, {"n": 1}, timeout=timeout, **more)
        )
        return asking

    async def nothing_left(self, *processes: str) -> None:
        """Wait until no process but those that have a connection hears of anything."""
        for name, runtime in self.runtimes.items():
            if name not in processes:
                broker = runtime.broker
                assert isinstance(broker, Office)
                await until(lambda b=broker: not b.channels)  # type: ignore[misc]
                await until(lambda r=runtime: not r.hub.channels)  # type: ignore[misc]
            assert not self.engine(name).questions._away
            for session in runtime.hub.sessions.values():
                await until(lambda s=session: not s.requests)  # type: ignore[misc]


@asynccontextmanager
async def town(**options: Any) -> AsyncIterator[Town]:
    post, sessions = Post(), SharedSessions()
    stores = stores_from_url("memory://")
    async with AsyncExitStack() as stack:
        runtimes = []
        for _ in "ABC":
            theirs = msgspec.structs.replace(stores, broker=Office(post), sessions=sessions)
            given = Options(**{**NO_LIMITS, **options})
            runtimes.append(await stack.enter_async_context(running(given, theirs)))
            namespace = Namespace("/", AnonymousAuth())
            namespace.room("{name:path}", presence="none")
            Engine(namespace, runtimes[-1])
        tasks = await stack.enter_async_context(anyio.create_task_group())
        yield Town(post, runtimes, tasks)
        tasks.cancel_scope.cancel()


async def test_a_lost_client_is_asked_where_it_comes_back() -> None:
    async with town() as place:
        first = await place.visit("A")
        asking = place.ask(first.session, room="r")
        (question,) = await first.hear()
        await first.end()
        second = await place.visit("B", first.resume)
        assert await second.hear() == [question]
        assert (question["room"], question["data"]) == ("r", {"n": 1})
        second.answer(question, "yes")
        assert await asking.outcome() == "yes"
        # A second answer is nobody's.
        second.answer(question, "no")
        await place.nothing_left("B")


async def test_a_live_connection_is_replaced_elsewhere() -> None:
    async with town() as place:
        first = await place.visit("A")
        asking = place.ask(first.session)
        (question,) = await first.hear()
        second = await place.visit("B", first.resume)
        assert await second.hear() == [question]
        assert first.socket.closed == (4409, "resumed elsewhere")
        await first.end(4409)
        assert not asking.done.is_set()
        second.answer(question, "yes")
        assert await asking.outcome() == "yes"
        await place.nothing_left("B")


@pytest.mark.parametrize("lost", [True, False])
async def test_there_and_back_again(lost: bool) -> None:
    async with town() as place:
        first = await place.visit("A")
        first.session.data["mine"] = True
        asking = place.ask(first.session)
        await first.hear()
        if lost:
            await first.end()
        second = await place.visit("B", first.resume)
        (question,) = await second.hear()
        if lost:
            await second.end()
        else:
            await first.end(4409)
        third = await place.visit("A", second.resume)
        assert third.session is first.session and third.session.data == {"mine": True}
        assert await third.hear() == [question]
        if not lost:
            assert second.socket.closed is not None
            assert not second.session.requests
            await second.end(4409)
        third.answer(question, "yes")
        assert await asking.outcome() == "yes"
        await place.nothing_left("A")


async def test_ever_further() -> None:
    async with town() as place:
        first = await place.visit("A")
        asking = place.ask(first.session)
        (question,) = await first.hear()
        await first.end()
        second = await place.visit("B", first.resume)
        await second.hear()
        third = await place.visit("C", second.resume)
        assert await third.hear() == [question]
        # Who has been there meanwhile asks no more, and its client's answer counts for nothing.
        second.answer(question, "too late")
        await second.end(4409)
        third.answer(question, "yes")
        assert await asking.outcome() == "yes"
        await place.nothing_left("C")


async def test_one_that_comes_back_to_where_it_came_to_is_asked_there_again() -> None:
    async with town() as place:
        first = await place.visit("A")
        asking = place.ask(first.session)
        await first.hear()
        await first.end()
        second = await place.visit("B", first.resume)
        await second.hear()
        await second.end()
        third = await place.visit("B", second.resume)
        (question,) = await third.hear()
        third.answer(question, "yes")
        assert await asking.outcome() == "yes"
        await place.nothing_left("B")


async def test_who_asks_goes_on_asking() -> None:
    """The app keeps the session, and asks when it has long been elsewhere, or nowhere."""
    async with town() as place:
        first = await place.visit("A")
        second = await place.visit("B", first.resume)
        await first.end(4409)
        for number in (1, 2):
            asking = place.ask(first.session)
            question = (await second.hear(number))[-1]
            second.answer(question, number)
            assert await asking.outcome() == number
            await place.nothing_left("B")
        await second.end()
        asking = place.ask(first.session)
        third = await place.visit("C", second.resume)
        third.answer((await third.hear())[0], 3)
        assert await asking.outcome() == 3
        await place.nothing_left("C")
        await third.end()
        fourth = await place.visit("A", third.resume)
        asking = place.ask(first.session)
        fourth.answer((await fourth.hear())[0], 4)
        assert await asking.outcome() == 4
        await place.nothing_left("A")


async def test_who_asks_finds_the_session_that_came_back_as_another() -> None:
    async with town() as place:
        first = await place.visit("A")
        second = await place.visit("B", first.resume)
        await first.end(4409)
        await second.end()
        third = await place.visit("A", second.resume)
        assert third.session is not first.session
        asking = place.ask(first.session)
        third.answer((await third.hear())[0], "here")
        assert await asking.outcome() == "here"


@pytest.mark.parametrize("code", [1000, 4403])
async def test_a_session_that_ends_elsewhere_has_not_answered(code: int) -> None:
    async with town() as place:
        first = await place.visit("A")
        asking = place.ask(first.session)
        await first.hear()
        second = await place.visit("B", first.resume)
        await first.end(4409)
        await second.hear()
        await second.end(code)
        assert await asking.outcome() is Disconnected
        with pytest.raises(Disconnected):
            await first.session.request("again?")
        await place.nothing_left()


async def test_the_end_of_the_window_is_the_end_of_the_question() -> None:
    async with town(resume_window=0.8) as place:
        first = await place.visit("A")
        moved = place.ask(first.session)
        await first.hear()
        await first.end()
        second = await place.visit("B", first.resume)
        await second.hear()
        # Its window on the first process passes; it is elsewhere.
        await anyio.sleep(0.9)
        assert not moved.done.is_set()
        await second.end()
        assert await moved.outcome() is Disconnected
        third = await place.visit("A")
        stayed = place.ask(third.session)
        await third.end()
        assert await stayed.outcome() is Disconnected
        await place.nothing_left()


async def test_what_is_not_answered_in_time_ends_everywhere() -> None:
    async with town() as place:
        first = await place.visit("A")
        asking = place.ask(first.session, timeout=0.2)
        await first.end()
        second = await place.visit("B", first.resume)
        await second.hear()
        assert await asking.outcome() is AckTimeout
        await until(lambda: not second.session.requests)
        await place.nothing_left("B")


@pytest.mark.parametrize("signal", ["$replaced", "$question", "$answered"])
async def test_announcements_that_are_lost(signal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "RESEND", 0.02)
    async with town() as place:
        first = await place.visit("A")
        asking = place.ask(first.session)
        await first.end()
        lost: list[str] = []

        def lose(publication: Publication) -> bool:
            # Each announcement is offered to three.
            if publication.event == signal and len(lost) < 3:
                lost.append(signal)
                return True
            return False

        place.post.lose = lose
        second = await place.visit("B", first.resume)
        place.tasks.start_soon(second.answer_all, "yes")
        assert await asking.outcome() == "yes"
        assert lost
        # It may have come twice, as the same one.
        assert len({question["id"] for question in second.asked}) == 1
        await place.nothing_left("B")


async def test_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "RESEND", 0.02)
    async with town() as place:
        first = await place.visit("A")
        asking = place.ask(first.session)
        await first.end()
        second = await place.visit("B", first.resume)
        (question,) = await second.hear()
        place.post.broken = True
        second.answer(question, "yes")
        await anyio.sleep(0.05)
        assert not asking.done.is_set()
        place.post.broken = False
        await second.hear(2)
        second.answer(question, "yes")
        assert await asking.outcome() == "yes"


async def test_what_others_ask_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "RESEND", 0.02)
    monkeypatch.setattr(questions, "MAX_FOREIGN", 2)
    async with town(max_queued=2000) as place:
        first = await place.visit("A")
        await first.end()
        several = [place.ask(first.session) for _ in range(3)]
        large = Asking()
        place.tasks.start_soon(
            large.run, lambda: first.session.request("large?", "x" * 3000, timeout=0.5)
        )
        second = await place.visit("B", first.resume)
        await second.hear(2)
        await anyio.sleep(0.1)
        assert len(second.session.requests or ()) == 2
        # The third has its turn when one is answered; what is too large never has.
        for number in range(3):
            question = (await second.hear(number + 1))[number]
            second.answer(question, number)
        assert sorted([await one.outcome() for one in several]) == [0, 1, 2]
        assert await large.outcome() is AckTimeout
        assert {question["type"] for question in second.asked} == {"sure?"}


async def test_what_the_backend_does_not_take_stands_in_nobodys_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with town() as place:
        place.post.largest = 1000
        first = await place.visit("A")
        await first.end()
        large = Asking()
        place.tasks.start_soon(
            large.run, lambda: first.session.request("large?", "x" * 1000, timeout=0.5)
        )
        await until(lambda: first.session.requests)
        asking = place.ask(first.session)
        second = await place.visit("B", first.resume)
        (question,) = await second.hear()
        assert question["type"] == "sure?"
        # Nor does it take every answer; the client may think of another one.
        second.answer(question, "x" * 1000)
        (_, again) = await second.hear(2)
        second.answer(again, "yes")
        assert await asking.outcome() == "yes"
        assert await large.outcome() is AckTimeout
    assert not [record for record in caplog.records if record.exc_info]


async def test_who_asks_while_the_session_comes_back_as_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with town(resume_window=1.5) as place:
        first = await place.visit("A")
        second = await place.visit("B", first.resume)
        await first.end(4409)
        await second.end()
        # Else there is nothing to wait for, and it is back before anyone asks.
        await until(lambda: not place.runtimes["A"].hub.channels)
        place.post.slow = anyio.Event()
        opened: list[Visit] = []

        async def come_back() -> None:
            opened.append(await place.visit("A", second.resume))

        place.tasks.start_soon(come_back)
        await until(lambda: place.runtimes["A"].hub.channels)
        asking = place.ask(first.session)
        await anyio.wait_all_tasks_blocked()
        place.post.slow.set()
        await until(lambda: opened)
        assert await asking.outcome() is Disconnected
        asking = place.ask(first.session)
        opened[0].answer((await opened[0].hear())[0], "here")
        assert await asking.outcome() == "here"
        await opened[0].end()
        lobby = place.engine("A").lobby
        await until(lambda: not lobby._detached)
        await place.nothing_left()
    assert not caplog.records


async def test_one_that_goes_on_elsewhere_while_it_is_let_go_of_stays_in_its_rooms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with town() as place:
        first = await place.visit("A")
        await place.engine("A").rooms.join(first.session, "r")
        sessions, renewed, go_on = place.runtimes["A"].sessions, anyio.Event(), anyio.Event()
        renew = sessions.renew

        async def answered_late(known: list[tuple[str, int]], ttl: float) -> list[tuple[str, int]]:
            others = await renew(known, ttl)
            renewed.set()
            await go_on.wait()
            return others

        monkeypatch.setattr(sessions, "renew", answered_late)
        place.tasks.start_soon(first.end)
        await renewed.wait()
        await place.visit("B", first.resume)
        go_on.set()
        await until(lambda: not place.runtimes["A"].hub.sessions)
        await until(lambda: not place.runtimes["A"].hub.channels)
        assert not first.session.lingering


async def test_a_process_that_stops_waits_no_more() -> None:
    async with town() as place:
        first = await place.visit("A")
        away = place.ask(first.session)
        await first.end()
        second = await place.visit("B", first.resume)
        await second.hear()
        third = await place.visit("A")
        here = place.ask(third.session)
        await third.hear()
        runtime = place.runtimes["A"]
        runtime.connections.clear()
        await runtime.drain()
        await third.end(1012)
        assert await away.outcome() is Disconnected
        assert await here.outcome() is Disconnected
        for session in (first.session, third.session):
            with pytest.raises(Disconnected):
                await session.request("again?")
        # Where the client is, nobody is asked in its name for ever.
        assert second.session.requests
        for asked in second.session.requests.values():
            assert asked.until - time.monotonic() < 6


async def test_a_member_that_moves_answers_who_gathers() -> None:
    async with town() as place:
        first = await place.visit("A")
        await place.engine("A").rooms.join(first.session, "r")
        gathering = Asking()
        room = place.engine("A").room("r")
        place.tasks.start_soon(gathering.run, lambda: room.gather("vote?", timeout=5))
        await first.hear()
        await first.end()
        second = await place.visit("B", first.resume)
        (question,) = await second.hear()
        second.answer(question, "tea")
        gathered = await gathering.outcome()
        assert [answer.data for answer in gathered.answers] == ["tea"]
        assert gathered.missing == 0


async def test_answers_that_are_too_many_for_one_report_come_in_several() -> None:
    async with town() as place:
        # The first answer fits into none.
        place.post.largest = 2000
        visits = [await place.visit("B") for _ in range(20)]
        for visit in visits:
            await visit.engine.rooms.join(visit.session, "r")
        gathering = Asking()
        room = place.engine("A").room("r")
        place.tasks.start_soon(gathering.run, lambda: room.gather("vote?", timeout=2))
        questions = [(await visit.hear())[0] for visit in visits]
        for number, visit in enumerate(visits):
            visit.answer(questions[number], "x" * (100 if number else 3000))
        gathered = await gathering.outcome()
        assert [answer.data for answer in gathered.answers] == ["x" * 100] * 19
        assert gathered.missing == 1


async def test_the_older_of_two_returns_gives_way() -> None:
    async with town() as place:
        first = await place.visit("A")
        await first.end()
        lost: list[str] = []

        def lose(publication: Publication) -> bool:
            lost.append(publication.event)
            return publication.event == "$replaced" and len(lost) <= 6

        # Neither hears of the other, until the older one says again what it is.
        place.post.lose = lose
        second = await place.visit("B", first.resume)
        third = await place.visit("C", second.resume)
        assert second.socket.closed is None
        await second.engine.tell(
            second.engine.session_channel(second.session.id), "$replaced", second.session.generation
        )
        await until(lambda: second.socket.closed is not None)
        assert third.socket.closed is None


async def test_one_process_tells_nobody() -> None:
    async with house() as running_:
        ann = await running_.enter("ann")
        published: list[str] = []
        publish = running_.broker.publish

        async def counted(channel: str, draft: Draft, retention: Retention) -> Published:
            published.append(draft.event)
            return await publish(channel, draft, retention)

        running_.broker.publish = counted  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            asking = Asking()
            tasks.start_soon(asking.run, lambda: ann.session.request("sure?", timeout=0.05))
            await until(lambda: ann.of("sure?"))
            await ann.vanish()
            assert await asking.outcome() is AckTimeout
        assert published == []
        await until(lambda: not running_.hub.channels)
