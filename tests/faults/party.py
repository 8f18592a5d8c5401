"""Real workers and guests under load, harm done to them, and the judgement at the end.

The law: what a guest has been shown is the room's history from some point on, each message once and
in its place. That point is the beginning, unless the guest was told `recovered: false`; then it is
where the recent messages of that moment begin. Whatever was acknowledged is in it, unless that
lies before such a word. What had been shown until then has nothing twice and nothing out of place
either, as far as its authors' numbers tell. Messages of a guest that waits for each
acknowledgement are in its order. Where nothing may be lost, the history has all that was
acknowledged.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import redis
from anyio import to_thread

from tests.clients.visitors import NodeVisitor
from tests.faults.app import GRACE, LEASE, PATIENCE
from tests.faults.guests import Guest, Said
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess

ROOMS = ("chat/1", "chat/2")
RECOVERY = 30.0
"""Seconds after the last harm in which everybody must be back, with everything acknowledged."""

Masters = Callable[[], Sequence[redis.Redis]]


class Account:
    """What a case did and counted, and the chance that chose it."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.seed = seed
        self.chance = random.Random(f"{seed} {name}")
        self.counts: Counter[str] = Counter()
        self.outcome = "failed"

    def did(self, what: str) -> None:
        self.counts[what] += 1

    def __str__(self) -> str:
        counted = ", ".join(f"{what} {number}" for what, number in self.counts.items())
        return f"{self.name} {self.outcome} FAULTS_SEED={self.seed}\n    {counted}"


async def until(
    condition: Callable[[], bool], what: Callable[[], str], seconds: float = RECOVERY
) -> None:
    """Wait for a condition; fail with `what()` when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds:g} s: {what()}"
        await asyncio.sleep(0.02)


SPEAK = """
visitor.speak = async (content) => {
  for (;;) {
    try {
      await visitor.room.send("message", { content }, { messageId: content });
      return visitor.acked.push(content);
    } catch (error) {
      if (!error.retry) return visitor.failed.push([content, error.code]);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
};"""
"""What an app does that wants its messages sent: again, when the error says that it may."""


class NodeGuest:
    """The JavaScript client in a Node process, in the first room."""

    name = "node"

    def __init__(self, visitor: NodeVisitor) -> None:
        self.visitor = visitor
        self.said: list[str] = []
        self._hushed = False
        self._talking = asyncio.create_task(self._talk())

    async def _talk(self) -> None:
        await self.visitor.run(SPEAK)
        while not self._hushed:
            # As many under way as other guests have: one connection handles them in turn.
            done = await self.visitor.get("visitor.acked.length + visitor.failed.length")
            if len(self.said) - done >= 8:
                await asyncio.sleep(0.07)
                continue
            content = f"{self.name}:{len(self.said)}"
            self.said.append(content)
            await self.visitor.run(f"void visitor.speak({content!r})")
            await asyncio.sleep(0.07)

    async def hush(self) -> None:
        """Say nothing more, and wait until all is acknowledged."""
        self._hushed = True
        await self._talking
        await self.visitor.until(
            f"visitor.acked.length + visitor.failed.length >= {len(self.said)}", RECOVERY
        )


def judge_shown(who: str, kept: list[str], shown: list[str], reset: bool) -> None:
    """Fail unless `shown` is the history that is `kept`; after a reset, the end of it."""
    expected = kept[-len(shown) :] if reset else kept
    if shown != expected:
        seen, there = Counter(shown), Counter(expected)
        what = "the history since a reset" if reset else "the whole history"
        raise AssertionError(
            f"{who} was not shown {what}:"
            f" missing {list((there - seen).elements())[:20]},"
            f" too much {list((seen - there).elements())[:20]}, {len(shown)} of {len(expected)}"
        )


def judge_before_reset(who: str, shown: list[str], patient: set[str]) -> None:
    """Fail if what was shown until a reset has something twice, or has changed places with what the
    same author said before; `patient` are the authors that wait for each acknowledgement."""
    twice = [content for content, number in Counter(shown).items() if number > 1]
    assert not twice, f"{who} was shown twice, before a reset: {twice[:20]}"
    for author in patient:
        numbers = [
            int(number)
            for name, _, number in (content.rpartition(":") for content in shown)
            if name == author
        ]
        assert numbers == sorted(numbers), f"{who} was shown {author}'s out of order: {numbers}"


def judge_order(who: str, said: Sequence[Said], kept: list[str], window: int) -> None:
    """Fail unless what was acknowledged stands in the history in the order in which it was said."""
    places = {content: place for place, content in enumerate(kept)}
    # With several under way one that is refused, or tried on two connections, may be overtaken.
    order = [
        places[s.content] for s in said if s.content in places and (window == 1 or s.sent == 1)
    ]
    assert order == sorted(order), f"{who}'s messages changed places"


def judge_acknowledged(
    who: str, said: Sequence[Said], shown: Sequence[str], since: float = 0.0
) -> None:
    """Fail unless all that was acknowledged after `since` is in `shown`."""
    there = set(shown)
    missing = [s.content for s in said if s.acknowledged > since and s.content not in there]
    assert not missing, f"{who} never had, though acknowledged: {missing[:20]}"


def extra_tasks(now: Counter[str], allowed: Counter[str]) -> Counter[str]:
    """Return the tasks that are more than there may be."""
    return now - allowed


def is_left_over(key: str, ttl: int) -> bool:
    """Whether a key of ours (without its prefix) should not be there when nobody is: one of
    presence or of holders, or one that would stay for ever. `ttl` as PTTL has it."""
    kind = key.split("}:", 1)[-1].split(":", 1)[0]
    return kind in {"l", "d", "w", "u", "n", "ends"} or (ttl == -1 and kind != "secret")


class Party:
    """Workers on one Redis, and guests on any of them.

    Args:
        backend: the URL of the Redis, or one for each worker.
        lossless: nothing that was acknowledged may be lost, whatever clients are told.
    """

    def __init__(
        self,
        folder: Path,
        backend: str | Sequence[str],
        account: Account,
        masters: Masters,
        *,
        lossless: bool = True,
    ) -> None:
        self.account = account
        self.chance = account.chance
        # Its own corner of a server that other tests may use as well.
        self._prefix = f"party{secrets.token_hex(4)}"
        self._lossless = lossless
        backends = [backend] * 2 if isinstance(backend, str) else backend
        self.workers = [
            ServerProcess(
                "tests.faults.app:app",
                output=folder / f"worker-{number}.log",
                env={"REALTIME_BACKEND": f"{url}{'&' if '?' in url else '?'}prefix={self._prefix}"},
            )
            for number, url in enumerate(backends)
        ]
        self.proxies: list[Proxy] = []
        self.guests: list[Guest] = []
        self.node: NodeGuest | None = None
        self.logs = ""
        self.questions: Counter[str] = Counter()
        """What became of the questions that the workers have asked since they were started."""
        self._masters = masters
        self._tasks: list[Counter[str]] = [Counter() for _ in self.workers]
        self._living: dict[Guest, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()

    @asynccontextmanager
    async def run(self, guests: int = 6, *, settled: bool = False) -> AsyncIterator[Party]:
        """Let it begin, and inside the block do harm; after it, judge. Guests go to any worker, or
        each to one if they are `settled`; the JavaScript client's is the first."""
        async with self._stack:
            for worker in self.workers:
                self._stack.callback(worker.kill)
            await asyncio.gather(*(to_thread.run_sync(worker.start) for worker in self.workers))
            for number, worker in enumerate(self.workers):
                self.proxies.append(await self._stack.enter_async_context(Proxy(worker.port)))
                self._tasks[number] = await self._settled_tasks(number)
            self._stack.push_async_callback(self._dismiss)
            for number in range(guests):
                # Every second one has several messages under way.
                place = number // 2 % len(self.workers) if settled else None
                self.invite(f"guest-{number}", window=1 if number % 2 else 8, worker=place)
            origin = self.proxies[0].http()
            visitor = await self._stack.enter_async_context(NodeVisitor.open(origin))
            await visitor.enter(NodeGuest.name, ROOMS[0])
            self.node = NodeGuest(visitor)
            await until(lambda: all(g.present for g in self.guests), self._who_is_missing)
            for guest in self.guests:
                guest.silent = False
            try:
                yield self
                await self._judge()
            except BaseException as error:
                for worker in self.workers:
                    error.add_note(f"{worker.port}:\n{worker.output[-6000:]}")
                error.add_note(str(self.account))
                raise
            self.account.outcome = "passed"

    def invite(
        self, name: str, *, window: int = 1, worker: int | None = None, returns: bool = True
    ) -> Guest:
        """Let somebody come, to any worker or only to one, who says nothing until all are there."""
        only = range(len(self.workers)) if worker is None else (worker,)
        guest = Guest(
            name,
            ROOMS,
            lambda: [self.proxies[number].ws("/realtime/ws") for number in only],
            random.Random(self.chance.random()),
            window=window,
            returns=returns,
        )
        guest.silent = True
        self.guests.append(guest)
        self._living[guest] = asyncio.create_task(guest.live())
        return guest

    async def _dismiss(self) -> None:
        for task in self._living.values():
            task.cancel()
        await asyncio.gather(*self._living.values(), return_exceptions=True)

    # Harm

    async def pass_time(self, seconds: float) -> None:
        """Let things go on, as long as no guest has broken down."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.1))
            for task in self._living.values():
                if task.done() and not task.cancelled() and (error := task.exception()):
                    raise error

    async def harm(
        self, seconds: float, *ways: Callable[[], Awaitable[None]], pause: float = 1.5
    ) -> None:
        """Do harm in every one of these ways, in any order, and again while there is time."""
        end = time.monotonic() + seconds
        while True:
            for way in self.chance.sample(ways, len(ways)):
                await way()
                await self.pass_time(self.chance.uniform(0.5, 1) * pause)
            if time.monotonic() >= end:
                return

    async def kill_worker(self, number: int, down: float = 0.5) -> None:
        """SIGKILL, and a start on the same port a while later."""
        worker = self.workers[number]
        self.account.did("worker killed")
        self.logs += worker.output
        await to_thread.run_sync(worker.kill)
        if self.node is not None and self.proxies[0].target == worker.port:
            # Where the JavaScript client goes there is a balancer, which knows who lives.
            self.proxies[0].target = self.workers[1 - number].port
        await self.pass_time(down)
        await to_thread.run_sync(worker.start)
        self._tasks[number] = await self._settled_tasks(number)

    async def busiest(self) -> int:
        """The worker with the most connections."""
        states = [await self._get(number, "/state") for number in range(len(self.workers))]
        return max(range(len(states)), key=lambda number: int(states[number]["connections"]))

    async def freeze_worker(self, number: int, seconds: float) -> None:
        """Let a worker stand still, as one behind a broken network does."""
        self.account.did("worker frozen")
        self.workers[number].signal_group(signal.SIGSTOP)
        await self.pass_time(seconds)
        self.workers[number].signal_group(signal.SIGCONT)

    def cut_clients(self) -> None:
        """Reset the connections of all clients."""
        self.account.counts["sockets cut"] += sum(proxy.cut_all() for proxy in self.proxies)

    # Judgement

    def _who_is_missing(self) -> str:
        missing = [
            f"{guest.name}: present {guest.present}, unacknowledged"
            f" {[vars(said) for said in guest._unacknowledged.values()][:3]},"
            f" joined {[room.joined for room in guest.rooms.values()]},"
            f" refused {guest.refused}, complaints {guest.complaints[:3]}"
            for guest in self.guests
            if not guest.settled
        ]
        return "not settled: " + "; ".join(missing)

    async def _judge(self) -> None:
        here = [guest for guest in self.guests if not guest.lost.is_set()]
        for guest in here:
            guest.silent = True
        if self.node is not None:
            await self.node.hush()
        await until(lambda: all(guest.settled for guest in here), self._who_is_missing)
        ends = {room: here[0].say(room, f"the end of {room}") for room in ROOMS}
        for guest in here:
            await until(
                lambda g=guest: all(g.rooms[r].shown[-1:] == [ends[r].content] for r in ROOMS),  # type: ignore[misc]
                lambda g=guest: f"{g.name} has not heard the end",  # type: ignore[misc]
            )
        for room in ROOMS:
            kept = await self._get(0, "/kept", room=room)
            await self._judge_history(room, kept, here)
        for guest in self.guests:
            assert guest.complaints == [], f"{guest.name}: {guest.complaints}"
        await self._judge_questions()
        await self.judge_presence(here, LEASE + GRACE + 4)
        await self._judge_what_is_left(here)
        self._judge_logs()
        self._count()

    async def _judge_history(self, name: str, kept: list[str], here: list[Guest]) -> None:
        twice = [content for content, number in Counter(kept).items() if number > 1]
        assert not twice, f"{name} has several times: {twice}"
        said = [said for guest in self.guests for said in guest.acknowledged if said.room == name]
        patient = {guest.name for guest in self.guests if guest.window == 1}
        if self._lossless:
            judge_acknowledged(f"the history of {name}", said, kept)
        for guest in here:
            room = guest.rooms[name]
            judge_shown(guest.name, kept, room.shown, bool(room.resets))
            for shown in room.before:
                judge_before_reset(guest.name, shown, patient)
            judge_acknowledged(guest.name, said, room.shown, max(room.resets, default=0.0))
        if self.node is not None and name == ROOMS[0]:
            await self._judge_node(self.node, kept)
        for guest in self.guests:
            mine = [s for s in guest.acknowledged if s.room == name]
            judge_order(guest.name, mine, kept, guest.window)

    async def _judge_node(self, node: NodeGuest, kept: list[str]) -> None:
        await node.visitor.until(f"visitor.shown.at(-1) === {kept[-1]!r}")
        failed = await node.visitor.get("visitor.failed")
        assert failed == [], f"the JavaScript client could not send: {failed}"
        shown = await node.visitor.shown()
        reset = "replaced" in await node.visitor.get("visitor.roomEvents")
        judge_shown(node.name, kept, shown, reset)
        unseen = set(node.said) - set(shown)
        assert reset or not unseen, f"the JavaScript client never saw {unseen}"

    async def _judge_questions(self) -> None:
        """Nobody waits for an answer any longer than it should, or gets another's."""
        end = time.monotonic() + PATIENCE + 5
        for number in range(len(self.workers)):
            while (asked := (await self._get(number, "/state"))["questions"]).get("open"):
                assert time.monotonic() < end, f"worker {number} waits for ever: {asked}"
                await asyncio.sleep(0.2)
            assert not asked.get("wrong"), f"answers to other questions: {asked}"
            self.questions.update(asked)

    async def judge_presence(self, here: list[Guest], patience: float) -> None:
        """Fail unless every worker, and every guest, has all that are here present, and no others,
        within so many seconds."""
        names = {guest.name for guest in here}
        for room in ROOMS:
            there = names | ({NodeGuest.name} if self.node and room == ROOMS[0] else set())
            for number in range(len(self.workers)):
                end = time.monotonic() + patience
                while (found := set(await self._get(number, "/members", room=room))) != there:
                    assert time.monotonic() < end, f"{room}: present {found}, connected {there}"
                    await asyncio.sleep(0.1)
            for guest in here:
                await until(
                    lambda g=guest, r=room, t=there: g.rooms[r].members == t,  # type: ignore[misc]
                    lambda g=guest, r=room: f"{g.name} thinks {g.rooms[r].members} are in {r}",  # type: ignore[misc]
                    patience,
                )
        if self.node is not None:
            everybody = ",".join(sorted(names | {NodeGuest.name}))
            await self.node.visitor.until(
                f"visitor.room.members.map((m) => m.userId).sort().join() === {everybody!r}",
                patience,
            )

    async def _judge_what_is_left(self, here: list[Guest]) -> None:
        warm = [await self._get(number, "/state") for number in range(len(self.workers))]
        most = Counter[str]()
        for state in warm:
            most |= Counter({n: c for n, c in state["tasks"].items() if n.startswith("_redis/")})
        for guest in here:
            guest.leave()
        await asyncio.wait_for(asyncio.gather(*(self._living[guest] for guest in here)), 20)
        if self.node is not None:
            await self.node.visitor.run("visitor.client.close()")
        for number in range(len(self.workers)):
            end = time.monotonic() + 10
            while True:
                state = await self._get(number, "/state")
                left = {name: state[name] for name in ("connections", "sessions", "channels")}
                extra = extra_tasks(Counter(state["tasks"]), self._tasks[number] | most)
                if not any(left.values()) and not extra:
                    break
                assert time.monotonic() < end, f"left on worker {number}: {left}, tasks {extra}"
                await asyncio.sleep(0.1)
            self.account.counts["gaps healed"] += state["healed"]
            self.account.counts["gaps lost"] += state["lost"]
        end = time.monotonic() + LEASE + GRACE + 4
        while keys := await to_thread.run_sync(self._left_keys):
            assert time.monotonic() < end, f"left in Redis: {keys[:20]}"
            await asyncio.sleep(0.2)

    def _left_keys(self) -> list[str]:
        """Keys of presence and of holders, and those that would stay for ever."""
        found = []
        for master in self._masters():
            with master:
                for raw in master.scan_iter(match=f"{self._prefix}:*", count=1000):
                    key = raw.decode()
                    if is_left_over(key, master.pttl(raw)):
                        found.append(key)
        return found

    def _judge_logs(self) -> None:
        logs = self.logs + "".join(worker.output for worker in self.workers)
        for word in ("Traceback", "never retrieved", "was destroyed", "never awaited"):
            at = logs.find(word)
            assert at < 0, f"in a worker's log:\n{logs[max(0, at - 500) : at + 4000]}"

    def _count(self) -> None:
        counts = self.account.counts
        rooms = [room for guest in self.guests for room in guest.rooms.values()]
        counts["messages acknowledged"] = sum(len(guest.acknowledged) for guest in self.guests)
        counts["messages acknowledged"] += len(self.node.said) if self.node else 0
        counts["sent again"] = sum(
            s.sent - 1 for guest in self.guests for s in guest.said if s.sent
        )
        counts["refused"] = sum(guest.refused for guest in self.guests)
        counts["shown"] = sum(len(room.shown) for room in rooms)
        counts["duplicates dropped"] = sum(room.duplicates for room in rooms)
        counts["connections"] = sum(guest.connections for guest in self.guests)
        counts["sessions resumed"] = sum(guest.resumed for guest in self.guests)
        counts["questions answered"] = self.questions["answered"]
        counts["questions not answered"] = self.questions["late"] + self.questions["ended"]
        counts["questions asked again"] = sum(guest.asked_again for guest in self.guests)
        counts["rooms recovered"] = sum(room.recoveries for room in rooms)
        counts["rooms reset"] = sum(len(room.resets) for room in rooms)
        counts["slowest answer (ms)"] = int(1000 * max(guest.slowest for guest in self.guests))

    # The workers' own view

    async def _get(self, number: int, path: str, **query: str) -> Any:
        async with httpx.AsyncClient(timeout=10) as http:
            response = await http.get(self.workers[number].http(path), params=query)
            return response.raise_for_status().json()

    async def _settled_tasks(self, number: int) -> Counter[str]:
        return Counter((await self._get(number, "/state"))["tasks"])
