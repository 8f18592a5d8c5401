"""The JavaScript client against the real server over a network that fails: nothing is missing,
nothing comes twice. Each test runs in Chromium and in Node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread

from tests.clients.app import ClientsServer
from tests.clients.visitors import Visit, Visitor
from tests.support.proxy import Proxy
from tests.support.server import LiveServer, ServerProcess

pytestmark = pytest.mark.anyio

class Network:
    """A server, and the network before it: `origin` is where clients go."""

    def __init__(self, server: ClientsServer, live: LiveServer, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy
        self.origin = proxy.http()
        self._direct = live.http

    async def kept(self) -> list[str]:
        """The messages in the room's history."""
        async with httpx.AsyncClient() as http:
            found: list[str] = (await http.get(self._direct("/kept?room=chat/1"))).json()
        return found

    async def until_kept(self, *messages: str) -> None:
        with anyio.fail_after(10):
            while await self.kept() != list(messages):
                await anyio.sleep(0.01)


Networks = Callable[..., Awaitable[Network]]


@pytest.fixture
async def network(serve: Callable[..., LiveServer]) -> AsyncIterator[Networks]:
    """`await network(**options)` starts a server with these `Options`."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Network:
            server = ClientsServer(**options)
            live = serve(server.app)
            return Network(server, live, await stack.enter_async_context(Proxy(live.port)))

        yield start


async def two(visit: Visit, origin: str, **options: Any) -> tuple[Visitor, Visitor]:
    """Ann and Bob in the same room."""
    ann, bob = await visit(origin), await visit(origin)
    await ann.enter("ann", **options)
    await bob.enter("bob", **options)
    return ann, bob


async def test_chat_through_a_killed_server(
    visit: Visit, serve_process: Callable[..., ServerProcess]
) -> None:
    server = serve_process("tests.clients.app:app")
    ann, bob = await two(visit, server.http())
    await ann.say("before")
    await bob.until("visitor.shown.length === 1")

    await to_thread.run_sync(server.kill)
    for visitor in (ann, bob):
        await visitor.until("visitor.client.state === 'reconnecting'")
    await ann.say("a1", "a2", "a3")
    await bob.say("b1", "b2")
    await to_thread.run_sync(server.start)

    await ann.until("visitor.acked.length === 4")
    await bob.until("visitor.acked.length === 2")
    await ann.say("after")
    for visitor in (ann, bob):
        # History went with the memory of the process, so the client says: show these instead.
        await visitor.until("visitor.shown.includes('after')")
        assert await visitor.get("visitor.roomEvents") == ["replaced"]
        shown = await visitor.shown()
        assert sorted(shown) == ["a1", "a2", "a3", "after", "b1", "b2"]
        assert [each for each in shown if each[0] == "a"] == ["a1", "a2", "a3", "after"]
    assert await ann.shown() == await bob.shown()


async def test_connections_cut_again_and_again(visit: Visit, network: Networks) -> None:
    count, cuts = 150, 8
    net = await network()
    ann, bob = await two(visit, net.origin)
    net.proxy.latency = 0.002
    for visitor, name in ((ann, "ann"), (bob, "bob")):
        await visitor.run(f"void visitor.chatter('{name}', {count})")
    for cut in range(cuts):
        # Each time something has come through since, so that there is something to lose.
        await ann.until(f"visitor.shown.length > {cut * 10} && visitor.room.joined")
        net.proxy.cut_all()

    expected = {name: [f"{name}-{i}" for i in range(count)] for name in ("ann", "bob")}
    for visitor, name in ((ann, "ann"), (bob, "bob")):
        await visitor.until(f"visitor.acked.length + visitor.failed.length === {count}")
        assert await visitor.get("visitor.failed") == []
        await visitor.until(f"visitor.shown.length >= {2 * count}")
    shown = await ann.shown()
    assert shown == await bob.shown()
    for name, sent in expected.items():
        assert [each for each in shown if each.startswith(name)] == sent
    for visitor in (ann, bob):
        assert set(await visitor.get("visitor.roomEvents")) == {"recovered"}
        offsets = await visitor.get("visitor.offsets")
        assert offsets == sorted(set(offsets))
        sessions = await visitor.get("visitor.resumed")
        assert all(each["resumed"] for each in sessions)
        assert {each["sessionId"] for each in sessions} == {
            await visitor.get("visitor.client.sessionId")
        }


async def test_a_half_open_connection_is_noticed(visit: Visit, network: Networks) -> None:
    net = await network(ping_interval=0.3, ping_timeout=0.3)
    ann, bob = await two(visit, net.origin)
    net.proxy.bury_all()
    await ann.say("into the void")
    for visitor in (ann, bob):
        await visitor.until("visitor.closes.some(({ code }) => code === 4508)")
        await visitor.until("visitor.shown.length === 1")
        assert await visitor.shown() == ["into the void"]
    await ann.until("visitor.acked.length === 1")
    await bob.say("back")
    await ann.until("visitor.shown.length === 2")


async def test_a_message_whose_ack_was_lost_is_stored_once(visit: Visit, network: Networks) -> None:
    net = await network()
    ann, bob = await two(visit, net.origin)
    net.proxy.stall(to_server=False)
    await ann.say("once")
    await net.until_kept("once")
    net.proxy.cut_all()
    net.proxy.resume()
    await ann.until("visitor.acked.length === 1")
    await bob.until("visitor.room.joined && visitor.shown.length >= 1")
    await bob.say("next")
    for visitor in (ann, bob):
        await visitor.until("visitor.shown.includes('next')")
        assert await visitor.shown() == ["once", "next"]
    assert await net.kept() == ["once", "next"]


async def test_what_a_dead_connection_held_back_changes_nothing(
    visit: Visit, network: Networks
) -> None:
    """The bytes of an old connection reach the server long after the client came back."""
    net = await network(ping_interval=0.3, ping_timeout=0.3)
    ann, bob = await two(visit, net.origin)
    net.proxy.stall()
    await ann.say("one", "two", "three")
    await ann.until("visitor.closes.length === 1")
    net.proxy.resume()
    await ann.until("visitor.acked.length === 3")
    await ann.say("four")
    await ann.until("visitor.acked.length === 4")
    await bob.until("visitor.shown.length === 4")
    assert await net.kept() == ["one", "two", "three", "four"] == await bob.shown()
