"""The JavaScript client in Node: what needs no browser to be shown, and what is Node's own."""

from __future__ import annotations

import pytest

from tests.clients.network import Networks, two
from tests.clients.visitors import Visit
from tests.support.ports import free_port

pytestmark = pytest.mark.anyio


async def test_a_long_queue_gets_through_the_rate_limit(
    visit_in_node: Visit, network: Networks
) -> None:
    net = await network(message_rate=200, message_burst=100, abuse_rate=1, abuse_burst=100)
    ann, bob = await two(visit_in_node, net.origin)
    net.proxy.stall()
    net.proxy.cut_all()
    await ann.until("visitor.client.state === 'reconnecting'")
    expected = [f"m{i}" for i in range(300)]
    await ann.say(*expected)
    net.proxy.resume()
    await ann.until("visitor.acked.length + visitor.failed.length === 300")
    assert await ann.get("visitor.failed") == []
    assert [code["code"] for code in await ann.get("visitor.closes")] == [1006]
    await bob.until("visitor.shown.length === 300")
    assert sorted(await bob.shown(), key=lambda name: int(name[1:])) == expected


async def test_errors_of_handlers_are_the_senders(visit_in_node: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit_in_node(net.origin)
    await ann.enter("ann")
    for event, code in (
        ("buy", "sold_out"),
        ("crash", "handler_error"),
        ("no-such-event", "unknown_event"),
        ("message", "invalid_message"),
    ):
        error = await ann.get(f"visitor.failure(visitor.room.send('{event}', {{}}))")
        assert (error["name"], error["code"], error["retry"]) == ("RealtimeError", code, False)
    await ann.say("still here")
    await ann.until("visitor.acked.length === 1")


async def test_refresh_extends_the_connection(visit_in_node: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit_in_node(net.origin)
    await ann.run(
        """const auth = await visitor.token("ann", "&expires_in=3");
        await visitor.enter("ann", "chat/1", { auth });
        visitor.expiry = Date.now() + 3000;
        visitor.extended = await visitor.client.refresh(await visitor.token("ann"))"""
    )
    assert (await ann.get("visitor.extended"))["success"] is True
    await ann.until("Date.now() > visitor.expiry + 200")
    await ann.say("still here")
    await ann.until("visitor.acked.length === 1")
    assert await ann.get("visitor.closes") == []


async def test_close_codes_say_whether_to_come_back(
    visit_in_node: Visit, network: Networks
) -> None:
    net = await network()
    ann = await visit_in_node(net.origin)
    await ann.enter("ann")
    for count, code in enumerate((1012, 4502, 4503), 1):
        await ann.run(f"visitor.room.send('kick-me', {code}, {{ ack: false }})")
        await ann.until(f"visitor.resumed.length === {count} && visitor.room.joined")
        assert (await ann.get("visitor.closes.at(-1)")) == {
            "code": code,
            "reason": "told to",
            "willReconnect": True,
        }
    await ann.run("visitor.room.send('kick-me', 4410, { ack: false })")
    await ann.until("visitor.client.state === 'closed'")
    assert (await ann.get("visitor.client.closeReason"))["willReconnect"] is False
    assert await ann.get("visitor.roomEvents.at(-1)") == "left"


async def test_history_in_pages(visit_in_node: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit_in_node(net.origin)
    await ann.enter("ann")
    await ann.say(*(f"m{i}" for i in range(10)))
    await ann.until("visitor.acked.length === 10")
    page = await ann.get("visitor.room.history({ limit: 4 })")
    assert [message["content"] for message in page["messages"]] == ["m6", "m7", "m8", "m9"]
    assert page["more"] is True
    members = await ann.get("visitor.room.membersPage()")
    assert [member["userId"] for member in members["members"]] == ["ann"]


async def test_a_client_that_finds_nobody_says_why(visit_in_node: Visit, network: Networks) -> None:
    port = free_port()
    lost = await visit_in_node(f"http://127.0.0.1:{port}")
    options = "{ auth: 'a token', giveUpAfter: 500 }"
    error = await lost.get(f"visitor.failure(visitor.connect('ann', {options}))")
    assert (error["code"], error["closeCode"], error["retry"]) == ("unavailable", 1006, True)
    assert "ECONNREFUSED" in error["message"]
    tries = await lost.get("visitor.tries")
    assert tries[0]["attempt"] == 2 and tries[0]["closeReason"]["code"] == 1006

    net = await network()
    astray = await visit_in_node(f"{net.origin}/not-there")
    error = await astray.get(f"visitor.failure(visitor.connect('ann', {options}))")
    assert error["message"].endswith(("HTTP 403", "HTTP 404"))
