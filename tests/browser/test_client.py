"""The JavaScript client where a browser has a say: its network, its Origin, its pages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from anyio import to_thread

from tests.clients.app import ClientsServer
from tests.clients.network import Networks
from tests.clients.visitors import PageVisitor, Visit
from tests.support.browser import PageFactory
from tests.support.server import LiveServer, ServerProcess

pytestmark = pytest.mark.anyio


async def test_the_network_goes_away_and_comes_back(page: PageFactory, network: Networks) -> None:
    net = await network(ping_interval=0.5, ping_timeout=0.5)
    ann = await PageVisitor.open(page, net.origin)
    bob = await PageVisitor.open(page, net.origin)
    await ann.enter("ann")
    await bob.enter("bob")
    await ann.say("before")
    await bob.until("visitor.shown.length === 1")

    # A browser that is offline keeps the sockets it has; the network does not carry them.
    await ann.page.context.set_offline(True)
    net.proxy.stall()
    await ann.until("visitor.client.state === 'reconnecting'")
    await ann.say("from afar")
    await ann.until("visitor.tries.length > 2")
    net.proxy.resume()
    await bob.until("visitor.client.state === 'connected' && visitor.room.joined")
    await bob.say("meanwhile")
    await bob.until("visitor.acked.length === 1")
    await ann.page.context.set_offline(False)

    for visitor in (ann, bob):
        await visitor.until("visitor.shown.length === 3")
        assert await visitor.shown() == ["before", "meanwhile", "from afar"]
    assert await ann.get("visitor.roomEvents") == ["recovered"]
    assert await ann.get("visitor.room.recovered") is True
    assert (await ann.get("visitor.resumed"))[-1]["resumed"] is True
    offsets = await ann.get("visitor.offsets")
    assert offsets == sorted(set(offsets))


async def test_the_browser_says_that_the_network_is_back(
    page: PageFactory, network: Networks
) -> None:
    net = await network()
    ann = await PageVisitor.open(page, net.origin)
    await ann.enter("ann", backoffBase=1e9, backoffCap=1e9)
    await ann.page.context.set_offline(True)
    net.proxy.cut_all()
    await ann.until("visitor.tries.length === 1")
    await ann.page.context.set_offline(False)
    # Left to its backoff it would come days later.
    await ann.until("visitor.room.joined")


async def test_a_page_from_elsewhere_is_refused_with_a_reason(
    page: PageFactory, network: Networks, serve: Callable[..., LiveServer]
) -> None:
    net = await network()
    elsewhere = serve(ClientsServer().app)
    mallory = await PageVisitor.open(page, elsewhere.http())
    error = await mallory.run(
        f"""const auth = await visitor.token("mallory");
        visitor.origin = "{net.origin}";
        return visitor.failure(visitor.connect("mallory", {{ auth, giveUpAfter: 300 }}))"""
    )
    assert (error["code"], error["closeCode"], error["retry"]) == ("unavailable", 1006, True)
    assert error["message"].startswith("No connection after ")
    assert await mallory.get("visitor.client.state") == "closed"


async def test_a_page_that_loads_while_the_server_restarts_connects_by_itself(
    page: PageFactory, serve_process: Callable[..., ServerProcess]
) -> None:
    server = serve_process("tests.clients.app:app")
    ann = await PageVisitor.open(page, server.http())
    await to_thread.run_sync(server.kill)
    await ann.run("void visitor.enter('ann')")
    await ann.until("visitor.tries.length > 2")
    assert await ann.get("visitor.client.state") == "connecting"
    assert (await ann.get("visitor.tries.at(-1)"))["closeReason"]["willReconnect"] is True
    await to_thread.run_sync(server.start)
    await ann.until("visitor.room?.joined")


async def test_a_server_that_stops_in_order_is_waited_for(
    page: PageFactory, serve_process: Callable[..., ServerProcess]
) -> None:
    server = serve_process("tests.clients.app:app")
    ann = await PageVisitor.open(page, server.http())
    await ann.enter("ann")
    await to_thread.run_sync(server.restart)
    await ann.until("visitor.resumed.length === 1 && visitor.room.joined")
    assert (await ann.get("visitor.closes"))[0] == {
        "code": 1012,
        "reason": await ann.get("visitor.closes[0].reason"),
        "willReconnect": True,
    }
    await ann.say("after")
    await ann.until("visitor.shown.at(-1) === 'after'")


async def test_the_module_is_served_whole(visit_in_chromium: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit_in_chromium(net.origin)
    assert await ann.run(
        """const module = await import("/realtime/client.js");
        const response = await fetch("/realtime/client.js");
        const again = await fetch("/realtime/client.js",
            { headers: { "if-none-match": response.headers.get("etag") }, cache: "no-store" });
        return [Object.keys(module).sort(), response.headers.get("content-type"), again.status]"""
    ) == [
        ["RealtimeError", "connect", "createClient"],
        "text/javascript; charset=utf-8",
        304,
    ]
