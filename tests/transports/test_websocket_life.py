"""How connections end: heartbeat, stopping the app, and clients that do not take part."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from starlette_realtime import AckTimeout, Disconnected, Happening, Member, Realtime, Room, Session
from tests.support.server import FAST, LiveServer
from tests.support.wsclient import NativeClient, NativeError
from tests.transports.helpers import PATH, WS, make_app, make_realtime, token, until

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]
every_server = pytest.mark.parametrize("ws", WS, ids=["found", "fast", "wsproto"])
FAST_BEAT: dict[str, Any] = {"ping_interval": 0.15, "ping_timeout": 0.15, "presence_grace": 0.05}


def plain(**options: Any) -> Realtime:
    realtime = make_realtime(**options)
    realtime.room("{name}")
    return realtime


# Heartbeat


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
async def test_a_silent_client_is_pinged_and_stays_if_it_answers(serve: Serve, ws: str) -> None:
    # Time enough for an answer on a machine that has other work to do; there is one for each ping,
    # or no other would follow.
    server = serve(make_app(plain(ping_interval=0.15, ping_timeout=20.0)), ws=ws)
    async with NativeClient.open(server.ws(PATH), token=token("ann")) as ann:
        assert (ann.connected["pingInterval"], ann.connected["pingTimeout"]) == (150, 20_000)
        await ann.read_until(lambda: ann.pings >= 4, "four pings")
        assert await ann.settle() == []


async def test_one_that_does_not_answer_is_cut_and_the_others_see_it_leave(serve: Serve) -> None:
    # Ann has a second for her answers, on a machine that may have other work to do.
    server = serve(make_app(plain(**{**FAST_BEAT, "ping_timeout": 1.0})))
    async with (
        NativeClient.open(server.ws(PATH), token=token("ann")) as ann,
        NativeClient.open(server.ws(PATH), token=token("bob"), answer_pings=False) as bob,
    ):
        await ann.request("join", "r")
        await bob.request("join", "r")
        await ann.expect("user-left", data={"userId": "bob"})
        assert await bob.closed() == (4508, "no answer to ping")
        assert [m["type"] for m in bob.backlog].count("ping") == 1


async def test_anything_a_client_sends_counts(serve: Serve) -> None:
    server = serve(make_app(plain(ping_interval=0.4, ping_timeout=1.0)))
    async with NativeClient.open(server.ws(PATH), answer_pings=False) as client:
        end = time.monotonic() + 1.8
        while time.monotonic() < end:
            await client.settle()
            await asyncio.sleep(0.05)


async def test_a_connection_whose_handler_is_at_work_is_not_cut(serve: Serve) -> None:
    realtime = plain(**FAST_BEAT)

    @realtime.event("work")
    async def work() -> str:
        await anyio.sleep(1)
        return "done"

    server = serve(make_app(realtime))
    async with NativeClient.open(server.ws(PATH), answer_pings=False) as client:
        assert await client.request("work") == "done"


async def test_a_tcp_connection_that_breaks_is_a_departure_after_the_grace(serve: Serve) -> None:
    server = serve(make_app(plain(presence_grace=0.2)))
    async with (
        NativeClient.open(server.ws(PATH), token=token("ann")) as ann,
        NativeClient.open(server.ws(PATH), token=token("bob")) as bob,
    ):
        await ann.request("join", "r")
        await bob.request("join", "r")
        bob.vanish()
        begin = time.monotonic()
        await ann.expect("user-left", data={"userId": "bob"})
        assert time.monotonic() - begin >= 0.15
        assert "user-left" not in [m["type"] for m in await ann.settle()]


# Stopping


@every_server
async def test_stopping_closes_with_1012(serve: Serve, ws: str) -> None:
    server = serve(make_app(plain()), ws=ws)
    async with (
        NativeClient.open(server.ws(PATH)) as one,
        NativeClient.open(server.ws(PATH), token=token("ann")) as two,
    ):
        await two.request("join", "r")
        await anyio.to_thread.run_sync(server.stop)
        assert (await one.closed())[0] == 1012
        assert (await two.closed())[0] == 1012


async def test_a_realtime_that_stops_alone_closes_with_1012_and_leaves_no_task(
    serve: Serve,
) -> None:
    """The app goes on: nothing of ours does."""
    left: list[set[str]] = []
    running, stop, over = threading.Event(), threading.Event(), threading.Event()
    realtime = plain(shutdown_timeout=1)

    async def live() -> None:
        before = asyncio.all_tasks()
        async with realtime.run():
            running.set()
            while not stop.is_set():
                await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        left.append(
            {
                repr(task)
                for task in asyncio.all_tasks() - before
                # The connections' own, which are the server's.
                if "run_asgi" not in repr(task)
            }
        )
        over.set()

    class Host:
        """An app that starts it on request, not with its lifespan."""

        def __init__(self) -> None:
            self.task: asyncio.Task[None] | None = None

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await receive()
                self.task = asyncio.create_task(live())
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await self.task
                await send({"type": "lifespan.shutdown.complete"})
            else:
                await realtime.handle(scope["path"], scope, receive, send)

    server = serve(Host())
    await until(running.is_set)
    async with NativeClient.open(server.ws("/ws"), token=token("ann")) as ann:
        await ann.request("join", "r")
        stop.set()
        assert (await ann.closed())[0] == 1012
        await until(over.is_set)
        assert left == [set()]


# Of a socket without a writer uvicorn has to let go: `timeout_graceful_shutdown`.
@pytest.mark.parametrize("ws", WS[:2], ids=["found", "fast"])
async def test_stopping_does_not_wait_for_a_client_that_does_not_read(
    serve: Serve, ws: str
) -> None:
    realtime = plain(shutdown_timeout=1)
    server = serve(make_app(realtime), ws=ws, stop_timeout=9)
    async with (
        NativeClient.open(server.ws(PATH), token=token("ann")) as ann,
        NativeClient.open(server.ws(PATH), token=token("bob"), max_queue=1) as bob,
    ):
        await ann.request("join", "r")
        await bob.request("join", "r")
        # More than all the buffers between them hold.
        bob.websocket.transport.pause_reading()
        for _ in range(12):
            await ann.request("broadcast", "r", "x" * 900_000)
            await ann.settle()
        begin = time.monotonic()
        await anyio.to_thread.run_sync(server.stop)
        assert time.monotonic() - begin < 8
        bob.vanish()


async def test_one_slow_receiver_is_cut_and_delays_nobody(serve: Serve) -> None:
    server = serve(make_app(plain(presence_grace=0.05)))
    async with (
        NativeClient.open(server.ws(PATH), token=token("ann")) as ann,
        NativeClient.open(server.ws(PATH), token=token("bob"), max_queue=1) as bob,
    ):
        await ann.request("join", "r")
        await bob.request("join", "r")
        bob.websocket.transport.pause_reading()
        for number in range(30):
            await ann.request("broadcast", "r", f"{number}" + "x" * 500_000)
            assert (await ann.expect("broadcast"))["data"].startswith(f"{number}")
        # The close frame stands behind what the client does not read.
        await ann.expect("user-left", timeout=10, data={"userId": "bob"})
        bob.vanish()


@every_server
async def test_stopping_does_not_wait_for_a_handler_that_hangs(serve: Serve, ws: str) -> None:
    started = threading.Event()
    realtime = plain(shutdown_timeout=1)

    @realtime.event("hang")
    async def hang() -> None:
        started.set()
        await anyio.sleep_forever()

    server = serve(make_app(realtime), ws=ws, timeout_graceful_shutdown=2, stop_timeout=9)
    async with NativeClient.open(server.ws(PATH)) as client:
        await client.send({"type": "hang"})
        await until(started.is_set)
        await anyio.to_thread.run_sync(server.stop)
        assert (await client.closed())[0] == 1012


async def test_stopping_does_not_wait_for_the_answer_of_a_client_that_is_gone(serve: Serve) -> None:
    asked = threading.Event()
    outcome: list[str] = []
    realtime = plain(handler_timeout=60)

    @realtime.event("ask")
    async def ask(session: Session) -> None:
        asked.set()
        try:
            await session.request("sure?", timeout=60)
        except Disconnected:
            # What it has to put in order now, uvicorn waits for.
            await anyio.sleep(0.2)
            outcome.append("done")

    server = serve(make_app(realtime), ws=FAST)
    async with NativeClient.open(server.ws(PATH)) as client:
        await client.send({"type": "ask"})
        await until(asked.is_set)
        client.vanish()
        await until(lambda: not realtime._running.runtime.connections)  # type: ignore[union-attr]
    await anyio.to_thread.run_sync(server.stop)
    assert outcome == ["done"]


async def test_stopping_does_not_wait_for_a_thread_that_hangs(serve: Serve) -> None:
    started, release = threading.Event(), threading.Event()
    realtime = plain(shutdown_timeout=1)

    @realtime.event("hang")
    def hang() -> None:
        started.set()
        release.wait(30)

    server = serve(make_app(realtime), timeout_graceful_shutdown=2, stop_timeout=9)
    try:
        async with NativeClient.open(server.ws(PATH)) as client:
            await client.send({"type": "hang"})
            await until(started.is_set)
            await anyio.to_thread.run_sync(server.stop)
    finally:
        release.set()


async def test_stopping_does_not_wait_for_a_leave_hook_that_hangs(serve: Serve) -> None:
    realtime = make_realtime(shutdown_timeout=1)
    room = realtime.room("{name}")

    @room.on_leave
    async def hang() -> None:
        await anyio.sleep_forever()

    server = serve(make_app(realtime), timeout_graceful_shutdown=2, stop_timeout=9)
    async with NativeClient.open(server.ws(PATH), token=token("ann")) as client:
        await client.request("join", "r")
        await anyio.to_thread.run_sync(server.stop)


async def test_stopping_does_not_wait_for_an_observer_that_hangs(serve: Serve) -> None:
    """And not because uvicorn loses its patience: by itself it has no end of it."""
    realtime = plain(shutdown_timeout=1, handler_timeout=0.3)
    told = []

    @realtime.on("disconnection")
    async def hang(happening: Happening) -> None:
        told.append(happening.code)
        await anyio.sleep_forever()

    server = serve(make_app(realtime), stop_timeout=9)
    async with NativeClient.open(server.ws(PATH), token=token("ann")) as client:
        await client.request("join", "r")
        await anyio.to_thread.run_sync(server.stop)
        assert (await client.closed())[0] == 1012
    assert len(told) == 1


async def test_a_handler_that_is_too_slow_is_cancelled(serve: Serve) -> None:
    realtime = make_realtime(handler_timeout=0.1)
    room = realtime.room("{name}")
    cancelled, release = threading.Event(), threading.Event()

    @room.on("slow")
    async def slow(room: Room, member: Member) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    @room.on("slow-thread")
    def slow_thread() -> None:
        release.wait(10)

    server = serve(make_app(realtime))
    try:
        async with NativeClient.open(server.ws(PATH)) as client:
            await client.request("join", "r")
            for event in ("slow", "slow-thread"):
                with pytest.raises(NativeError) as caught:
                    await client.request(event, "r")
                assert (caught.value.code, caught.value.retry) == ("timeout", True)
            assert cancelled.is_set()
            await client.request("broadcast", "r", 1)
    finally:
        release.set()


async def test_what_is_read_ahead_is_bounded_in_bytes(serve: Serve) -> None:
    realtime = make_realtime(max_queued=100_000)
    asked: list[bool] = []

    @realtime.event("ask")
    async def ask(session: Session) -> None:
        asked.append(True)
        with contextlib.suppress(AckTimeout):
            await session.request("question", timeout=1)

    @realtime.on("connection")
    def connected(happening: Happening) -> None:
        connections.append(happening.session.connection)

    connections: list[Any] = []
    server = serve(make_app(realtime))
    async with NativeClient.open(server.ws(PATH)) as client:
        await client.send({"type": "ask"})
        await until(lambda: asked)
        large = {"type": "unknown", "data": "x" * 50_000}
        for _ in range(20):
            await client.send(large)
        held = 0
        while asked and len(asked) == 1 and connections[0].busy:
            backlog = list(connections[0]._backlog or ())
            held = max(held, sum(len(command.data) for command in backlog))
            await asyncio.sleep(0.01)
        assert 0 < held <= 200_000
        # None of them is lost.
        errors = [await client.expect("error") for _ in range(20)]
        assert {error["code"] for error in errors} == {"unknown_event"}
