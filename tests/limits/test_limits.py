"""Each limit with its code, against a real server; and what is left of them: nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from starlette_realtime import ConfigurationError, Options, Realtime, Session
from starlette_realtime.core.limiter import client_ip, networks
from tests.sessions.helpers import (
    app_of,
    client,
    gone,
    make,
    nothing_left,
    runtime,
    threadsafe,
    until,
)
from tests.support.server import FAST, LiveServer
from tests.support.wsclient import Message, NativeClient, NativeError

pytestmark = pytest.mark.anyio

Serve = Callable[..., LiveServer]
OFF: dict[str, Any] = {"message_rate": 0.0, "user_rate": 0.0, "join_rate": 0.0, "abuse_rate": 0.0}


def chat(**options: Any) -> Realtime:
    realtime = make(**options)
    realtime.room("chat/{id}", history=10)
    return realtime


async def refused(who: NativeClient, kind: str, room: str | None = None, data: Any = None) -> str:
    with pytest.raises(NativeError) as caught:
        await who.request(kind, room, data)
    return f"{caught.value.code} {caught.value.retry}"


async def turned_away(server: LiveServer, name: str = "ann", **options: Any) -> tuple[str, int]:
    """The error and the close code that a client gets instead of `connected`."""
    url = server.ws("/ws")
    async with NativeClient.open(url, token=name, wait_connected=False, **options) as late:
        error = await late.expect("error")
        return error["code"], (await late.closed())[0]


# Numbers of connections


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
async def test_connections_per_user(serve: Serve, ws: str) -> None:
    realtime = chat(max_connections_per_user=2)
    server = serve(app_of(realtime), ws=ws)
    async with client(server) as one, client(server), client(server, "bob"):
        assert await turned_away(server) == ("limit_exceeded", 4503)
        await one.close()
        await gone(realtime, 2)
        # Its place is free again.
        async with client(server):
            assert await turned_away(server) == ("limit_exceeded", 4503)
    await nothing_left(realtime)


async def test_a_user_is_counted_for_each_namespace(serve: Serve) -> None:
    realtime = chat(max_connections_per_user=1)
    realtime.namespace("/admin")
    server = serve(app_of(realtime))
    async with client(server) as ann:
        await ann.send({"type": "connect", "ns": "/admin"})
        await ann.expect("connected", ns="/admin")
    await nothing_left(realtime)


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
async def test_connections_per_address(serve: Serve, ws: str) -> None:
    realtime = chat(max_connections_per_ip=2)
    server = serve(app_of(realtime), ws=ws, proxy_headers=False)
    async with client(server, "ann") as one, client(server, "bob"):
        assert await turned_away(server, "eve") == ("limit_exceeded", 4503)
        # Who is nobody's proxy may say what it likes of where it comes from.
        spoofed = {"X-Forwarded-For": "203.0.113.7"}
        assert await turned_away(server, "eve", headers=spoofed) == ("limit_exceeded", 4503)
        await one.close()
        await gone(realtime, 1)
        async with client(server, "eve"):
            pass
    await nothing_left(realtime)


async def test_addresses_behind_a_trusted_proxy(serve: Serve) -> None:
    realtime = chat(max_connections_per_ip=1, trusted_proxies=("127.0.0.0/8",))
    server = serve(app_of(realtime), proxy_headers=False)

    def through(*entries: str) -> dict[str, str]:
        return {"X-Forwarded-For": ", ".join(entries)}

    async with (
        client(server, "ann", headers=through("203.0.113.7")),
        client(server, "bob", headers=through("203.0.113.8")),
    ):
        # The client's own claims stand before what the proxy adds.
        lie = through("198.51.100.1", "203.0.113.7")
        assert await turned_away(server, "eve", headers=lie) == ("limit_exceeded", 4503)
    await nothing_left(realtime)


TRUSTED = networks(("10.0.0.0/8", "2001:db8:1::/48"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, "], "10.0.0.1"),
        ("10.0.0.1", ["x" * 100_000], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("2001:db8:1::1", ["[2001:db8:2:3:4:5:6:7]:443"], "2001:db8:2:3::/64"),
        ("2001:db8:2:3::1", [], "2001:db8:2:3::/64"),
        ("2001:db8:2:3:ffff::9", [], "2001:db8:2:3::/64"),
        ("/run/proxy.sock", ["198.51.100.1"], "/run/proxy.sock"),
    ],
)
def test_where_a_connection_comes_from(peer: str, forwarded: list[str], found: str) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert client_ip({"client": (peer, 1), "headers": headers}, TRUSTED) == found


def test_a_connection_without_an_address() -> None:
    assert client_ip({"client": None, "headers": []}, TRUSTED) is None


async def test_connections_in_all(serve: Serve) -> None:
    realtime = chat(max_connections=2)
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "bob"), AsyncExitStack() as stack:
        # Those who were turned away and do not hang up take nobody's place.
        for _ in range(3):
            late = await stack.enter_async_context(
                NativeClient.open(
                    server.ws("/ws"), token="eve", wait_connected=False, close_timeout=0
                )
            )
            assert (await late.expect("error"))["code"] == "limit_exceeded"
        await ann.close()
        await until(lambda: len(runtime(realtime).connections) == 1, "ann's end")
        async with client(server, "cat"):
            pass
    await nothing_left(realtime)


# Rates


async def test_messages_of_a_connection(serve: Serve) -> None:
    realtime = chat(**{**OFF, "message_rate": 1.0, "message_burst": 10.0})
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "ann") as other:
        await ann.request("join", "chat/1")
        taken = 0
        with pytest.raises(NativeError) as caught:
            while taken < 20:
                await ann.request("broadcast", "chat/1", taken)
                taken += 1
        assert (caught.value.code, caught.value.retry) == ("rate_limited", True)
        # One token went for the join; a slow machine gives some back.
        assert taken >= 9
        # The other connection has a bucket of its own; in time there is a token again.
        await other.request("join", "chat/1")
        await retried(ann, "broadcast", "chat/1", "later")
        recent = (await other.request("join", "chat/1"))["recentMessages"]
        assert [m["data"] for m in recent][-2:] == [taken - 1, "later"]
    await nothing_left(realtime)


async def retried(who: NativeClient, *message: Any) -> None:
    """Does what `retry` says: sends again until it is taken."""
    end = time.monotonic() + 8
    while True:
        try:
            await who.request(*message)
        except NativeError as error:
            assert error.retry and time.monotonic() < end
            await asyncio.sleep(0.1)
        else:
            return


async def test_messages_of_a_user_over_two_connections(serve: Serve) -> None:
    realtime = chat(**{**OFF, "user_rate": 0.1, "user_burst": 20.0})
    server = serve(app_of(realtime))
    async with (
        client(server, "ann") as one,
        client(server, "ann") as two,
        client(server, "bob") as bob,
    ):
        for who in (one, two, bob):
            await who.request("join", "chat/1")
        taken = 0
        codes = set()
        for n in range(40):
            try:
                await (one, two)[n % 2].request("broadcast", "chat/1", n)
                taken += 1
            except NativeError as error:
                codes.add((error.code, error.retry))
        # Two tokens went for the joins; a slow machine gives one or two back.
        assert 16 <= taken <= 22
        assert codes == {("rate_limited", True)}
        await bob.request("broadcast", "chat/1", "mine")
    await nothing_left(realtime)


async def test_messages_into_a_room(serve: Serve) -> None:
    realtime = chat(**{**OFF, "room_rate": 0.1, "room_burst": 10.0})
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        for who in (ann, bob):
            await who.request("join", "chat/1")
            await who.request("join", "chat/2")
        taken = 0
        for n in range(30):
            try:
                await (ann, bob)[n % 2].request("broadcast", "chat/1", n)
                taken += 1
            except NativeError as error:
                assert (error.code, error.retry) == ("rate_limited", True)
        assert 9 <= taken <= 12
        await ann.request("broadcast", "chat/2", "elsewhere")
    await nothing_left(realtime)


async def test_joins(serve: Serve) -> None:
    realtime = chat(**{**OFF, "join_rate": 0.01, "join_burst": 5.0})
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        for n in range(5):
            await ann.request("join", f"chat/{n}")
        assert await refused(ann, "join", "chat/5") == "rate_limited True"
        assert await refused(ann, "join-room", data={"roomId": "chat/5"}) == "rate_limited True"
        await ann.request("broadcast", "chat/1", "still here")


async def test_rooms_of_a_connection(serve: Serve) -> None:
    realtime = chat(max_rooms=2)
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        await ann.request("join", "chat/1")
        await ann.request("join", "chat/2")
        assert await refused(ann, "join", "chat/3") == "limit_exceeded False"
        # A room it is in may be joined again, and one that is left makes room.
        await ann.request("join", "chat/2")
        await ann.request("leave", "chat/1")
        await ann.request("join", "chat/3")


async def test_zero_is_no_limit(serve: Serve) -> None:
    names = (
        "message_rate user_rate room_rate join_rate abuse_rate max_rooms max_connections "
        "max_connections_per_user max_connections_per_ip max_handlers idle_timeout"
    )
    bursts: dict[str, Any] = {
        f"{name}_burst": 0.0 for name in ("message", "user", "room", "join", "abuse")
    }
    realtime = chat(**dict.fromkeys(names.split(), 0), **bursts)
    handled = 0

    @realtime.event("work")
    async def work(session: Session) -> None:
        nonlocal handled
        handled += 1

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "ann"):
        for n in range(300):
            await ann.send({"type": "join", "room": f"chat/{n}"})
            await ann.send({"type": "work"})
            await ann.send({"type": "no-such-event"})
        seen = await ann.settle()
        kinds = [m["type"] for m in seen if m["type"] != "user-joined"]
        assert kinds.count("joined") == 300 and kinds.count("error") == 300
        assert handled == 300
    await nothing_left(realtime)


@pytest.mark.parametrize(
    "options",
    [
        {"message_rate": -1.0},
        {"message_rate": float("nan")},
        {"message_burst": 0.5},
        {"room_rate": 1.0, "room_burst": 0.0},
        {"max_payload": 100},
        {"auth_timeout": 0.0},
        {"handler_timeout": 0.0},
        {"trusted_proxies": ("anywhere",)},
    ],
)
def test_what_cannot_work_is_refused_at_the_start(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Options(**options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"history": -1}, "history must not be negative"),
        ({"history_age": float("nan")}, "history_age must not be negative"),
        ({"recent": -1}, "recent must not be negative"),
        ({"presence": "all"}, "presence must be one of full, counts, none"),
        ({"slow": "wait"}, "slow must be one of disconnect, drop, conflate"),
    ],
)
def test_a_kind_of_room_that_cannot_be_is_refused_at_once(
    options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigurationError, match=why):
        make().room("r", **options)


# Sizes


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST, "wsproto"])
async def test_payload_size(serve: Serve, ws: str) -> None:
    realtime = chat(max_payload=10_000)
    server = serve(app_of(realtime), ws=ws)
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        assert ann.connected["maxPayload"] == 10_000
        await ann.request("join", "chat/1")
        await bob.request("join", "chat/1")
        await ann.request("broadcast", "chat/1", "x" * 9_000)
        await ann.send({"type": "broadcast", "room": "chat/1", "data": "x" * 10_000})
        assert (await ann.closed())[0] == 1009
        # In bytes, not in characters.
        await bob.send_raw('{"type":"broadcast","room":"chat/1","data":"%s"}' % ("é" * 6_000))
        assert (await bob.closed())[0] == 1009


# Times


async def test_time_to_authenticate(serve: Serve) -> None:
    realtime = chat(auth_timeout=0.3)
    server = serve(app_of(realtime))
    began = time.monotonic()
    async with NativeClient.open(server.ws("/ws?hello=1"), wait_connected=False) as silent:
        error = await silent.expect("error")
        assert error["code"] == "auth_required"
        assert (await silent.closed())[0] == 4401
    assert 0.25 < time.monotonic() - began < 5
    await nothing_left(realtime)


async def test_idle_connections(serve: Serve) -> None:
    realtime = chat(idle_timeout=1.5, ping_interval=0.1, ping_timeout=20.0)
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        # Answering pings keeps nobody busy; doing something does.
        end = asyncio.create_task(ann.closed())
        n = 0
        while not end.done():
            await bob.request("join", f"chat/{(n := n + 1)}")
            await asyncio.sleep(0.1)
        assert await end == (4507, "idle")
        assert ann.pings > 0
        await bob.request("join", "chat/9")


async def test_a_silent_peer_is_cut(serve: Serve) -> None:
    realtime = chat(ping_interval=0.2, ping_timeout=0.3)
    server = serve(app_of(realtime))
    async with client(server, "ann", answer_pings=False) as dead:
        assert (await dead.closed())[0] == 4508
        assert [m for m in dead.backlog if m["type"] == "ping"] == [{"type": "ping"}]


# Handlers in flight


async def test_handlers_in_flight(serve: Serve) -> None:
    realtime = chat(max_handlers=3, handler_timeout=20.0)
    at_work = peak = 0

    @realtime.event("work")
    async def work(session: Session) -> None:
        nonlocal at_work, peak
        at_work += 1
        peak = max(peak, at_work)
        await asyncio.sleep(0.05)
        at_work -= 1

    server = serve(app_of(realtime))
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(server, f"u{n}")) for n in range(12)]
        await asyncio.gather(*(one.request("work") for one in clients))
    assert peak == 3


async def test_who_waits_too_long_for_its_turn_is_told(serve: Serve) -> None:
    realtime = chat(max_handlers=1, handler_timeout=1.0)
    started = asyncio.Event()
    let_go = asyncio.Event()

    @realtime.event("hang")
    async def hang(session: Session) -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            # A handler that does not let itself be cancelled keeps its place.
            with anyio.CancelScope(shield=True):
                await let_go.wait()

    @realtime.event("work")
    async def work(session: Session) -> str:
        return "done"

    server = serve(app_of(realtime))
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        hanging = asyncio.create_task(refused(ann, "hang"))
        await until(started.is_set, "the first handler")
        assert await refused(bob, "work") == "unavailable True"
        await threadsafe(realtime, lambda: release(let_go))
        assert await hanging == "timeout True"
        assert await bob.request("work") == "done"


async def release(event: asyncio.Event) -> None:
    event.set()


# Abuse


ABUSES: list[tuple[str, Message | str]] = [
    ("rate_limited", {"type": "broadcast", "room": "chat/1", "data": 1}),
    ("invalid_message", "{" * 10),
    ("unknown_event", {"type": "no-such-event"}),
    ("not_in_room", {"type": "broadcast", "room": "chat/9", "data": 1}),
    ("unknown_namespace", {"type": "x", "ns": "/nowhere"}),
    ("unknown_namespace", {"type": "connect", "ns": "/nowhere"}),
    ("invalid_message", {"type": "connect"}),
]


@pytest.mark.parametrize(("code", "message"), ABUSES)
async def test_persistent_abuse_closes(serve: Serve, code: str, message: Message | str) -> None:
    limited = code == "rate_limited"
    realtime = chat(
        message_rate=0.1 if limited else 0.0,
        message_burst=5.0,
        join_burst=10_000.0,
        abuse_rate=0.1,
        abuse_burst=20.0,
    )
    server = serve(app_of(realtime))
    raw = message if isinstance(message, str) else None
    async with client(server, "ann") as ann, client(server, "bob") as bob:
        await ann.request("join", "chat/1")
        try:
            for _ in range(60):
                if raw is not None:
                    await ann.send_raw(raw)
                else:
                    assert isinstance(message, dict)
                    await ann.send(message)
        except ConnectionClosed:
            pass
        assert await ann.closed() == (1008, "too many refused messages")
        errors = [m for m in ann.backlog if m["type"] == "error"]
        assert {m["code"] for m in errors} == {code}
        assert 20 <= len(errors) <= 23
        await bob.request("join", "chat/1")


@pytest.mark.parametrize("ws", ["websockets-sansio", FAST])
@pytest.mark.parametrize("message", [{"type": "ack", "id": 1}, {"type": "pong"}])
async def test_small_talk_is_counted_too(serve: Serve, message: Any, ws: str) -> None:
    realtime = chat(message_rate=1.0, message_burst=50.0, abuse_rate=0.1, abuse_burst=20.0)
    server = serve(app_of(realtime), ws=ws)
    async with client(server, "ann") as ann:
        try:
            for _ in range(200):
                await ann.send(message)
        except ConnectionClosed:
            pass
        assert (await ann.closed())[0] == 1008


async def test_namespaces_cannot_be_opened_faster_than_rooms(serve: Serve) -> None:
    realtime = chat(join_rate=0.01, join_burst=3.0)
    realtime.namespace("/admin")
    server = serve(app_of(realtime))
    async with client(server, "ann") as ann:
        for _ in range(5):
            await ann.send({"type": "connect", "ns": "/admin", "data": {"token": "nobody"}})
        seen = await ann.settle()
        assert [m["code"] for m in seen] == ["auth_failed"] * 3 + ["rate_limited"] * 2
        assert {m["ns"] for m in seen} == {"/admin"}


# What they cost


async def test_limits_cost_next_to_nothing(serve: Serve) -> None:
    """Dispatch in one process, with limits and without, in turns; the best of each counts."""
    limits = {
        "message_rate": 1e6,
        "message_burst": 1e6,
        "user_rate": 1e6,
        "user_burst": 1e6,
        "join_rate": 1e6,
        "max_connections": 1000,
    }
    off = {**OFF, "max_connections_per_user": 0, "max_connections_per_ip": 0}
    times: dict[str, list[float]] = {"with": [], "without": []}
    async with AsyncExitStack() as stack:
        measured = {}
        for name, options in (("with", limits), ("without", off)):
            realtime = chat(**options)
            await stack.enter_async_context(realtime.run())
            measured[name] = await _session(realtime)
        for _ in range(150):
            for name, session in measured.items():
                times[name].append(await _time(session))
    ratio = min(times["with"]) / min(times["without"])
    assert ratio < 1.25, f"dispatch takes {ratio:.3f} times as long with limits"


async def _session(realtime: Realtime) -> Session:
    from starlette_realtime import User
    from starlette_realtime.core.lobby import Introduction
    from tests.core.helpers import Socket

    found = runtime(realtime)
    socket = Socket(realtime.options)
    found.connected(socket)
    session = await found.engines["/"].lobby.connect(socket, User(id="ann"), Introduction())
    await found.engines["/"].rooms.join(session, "chat/1")
    return session


async def _time(session: Session) -> float:
    from starlette_realtime.events import Command

    command = Command("broadcast", room="chat/1", data=msgspec.Raw(b'{"x":1}'))
    dispatch = session.engine.dispatch
    began = time.thread_time()
    for _ in range(100):
        await dispatch(session, command)
    spent = time.thread_time() - began
    session.engine.hub.flush()
    return spent
