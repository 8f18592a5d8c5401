"""The JavaScript client against the real server over a network that fails: nothing is missing,
nothing comes twice. Each test runs in Chromium and in Node."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from anyio import to_thread

from tests.clients.network import Networks, two
from tests.clients.visitors import Visit
from tests.support.server import ServerProcess

pytestmark = pytest.mark.anyio


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
    for visitor in (ann, bob):
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


async def test_a_cut_does_not_end_the_session(visit: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit(net.origin)
    await ann.enter("ann")
    before = await ann.get("visitor.client.sessionId")
    clients = {await ann.get("visitor.client.clientId")}
    for count in (1, 2, 3):
        net.proxy.cut_all()
        await ann.until(f"visitor.resumed.length === {count} && visitor.room.joined")
        clients.add(await ann.get("visitor.client.clientId"))
    assert await ann.get("visitor.resumed") == [{"sessionId": before, "resumed": True}] * 3
    assert len(clients) == 4


async def test_a_half_open_connection_is_noticed(visit: Visit, network: Networks) -> None:
    net = await network(ping_interval=0.3, ping_timeout=0.3)
    ann, bob = await visit(net.origin), await visit(net.origin)
    for visitor, user in ((ann, "ann"), (bob, "bob")):
        # A token at hand: a request for one would wait on a buried connection, too.
        await visitor.enter(user, auth=net.server.users.create_token(user))
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
    # More than one if it comes back before we look: it finds nobody, either.
    await ann.until("visitor.closes.length >= 1")
    net.proxy.resume()
    await ann.until("visitor.acked.length === 3")
    await ann.say("four")
    await ann.until("visitor.acked.length === 4")
    await bob.until("visitor.shown.length === 4")
    assert await net.kept() == ["one", "two", "three", "four"] == await bob.shown()


async def test_bytes_both_ways(visit: Visit, network: Networks) -> None:
    net = await network()
    ann, bob = await two(visit, net.origin)
    await bob.run("visitor.room.on('picture', (picture) => (visitor.picture = picture))")
    answer = await ann.run(
        """const pixels = Uint8Array.from({ length: 100_000 }, (_, i) => i % 256);
        const { size, back } = await visitor.room.send("picture", { pixels, name: "$bytes" });
        return [size, back instanceof Uint8Array, back.length, back[0], back.at(-1)];"""
    )
    assert answer == [100_000, True, 100_000, 159, 0]
    await bob.until("visitor.picture")
    assert await bob.run(
        """const { pixels, name } = visitor.picture;
        return [name, pixels instanceof Uint8Array, pixels.length, pixels[255], pixels[256]]"""
    ) == ["$bytes", True, 100_000, 255, 0]
    assert await ann.run(
        """const tricky = { a: { $bytes: "no" }, b: [new ArrayBuffer(2)], c: { $escaped: 1 } };
        const back = await visitor.client.send("echo", tricky);
        return [back.a, Array.from(back.b[0]), back.c]"""
    ) == [{"$bytes": "no"}, [0, 0], {"$escaped": 1}]


async def test_the_server_asks_and_the_client_answers(visit: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit(net.origin)
    await ann.enter("ann")
    asked = "return await visitor.room.send('ask-me', 20)"
    await ann.run("visitor.room.handle('question', async (data) => data + 1)")
    assert await ann.run(asked) == {"answer": 21}
    # The namespace answers when the room does not; nobody at all is an answer as well.
    await ann.run(
        """visitor.room.handle('question', () => 0)();
        visitor.off = visitor.client.handle('question', (data, { room }) => [data, room])"""
    )
    assert await ann.run(asked) == {"answer": [20, "chat/1"]}
    await ann.run("visitor.off()")
    assert await ann.run(asked) == {"answer": {"code": "no_handler", "error": "No handler"}}


async def test_namespaces_on_one_connection(visit: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit(net.origin)
    await ann.enter("ann")
    who = "return visitor.admin.send('who')"
    await ann.run(
        """visitor.adminToken = async () => { visitor.asked = true; return "wrong" };
        visitor.admin = visitor.client.namespace("/admin", { auth: () => visitor.adminToken() })"""
    )
    error = await ann.get("visitor.failure(visitor.admin.connect())")
    assert (error["code"], error["retry"]) == ("auth_failed", False)
    assert await ann.get("visitor.client.state") == "connected"
    # The default one's token is not the namespace's.
    await ann.run("visitor.adminToken = () => visitor.token('root', '&admin=1')")
    await ann.run("await visitor.admin.connect()")
    assert await ann.run(who) == {"user": "root"}
    await ann.run(
        """visitor.heard = [];
        const room = await visitor.admin.join("chat/1");
        room.on("new-message", ({ content }) => visitor.heard.push(content));
        await room.send("message", { content: "among admins" })"""
    )
    await ann.until("visitor.heard.length === 1")
    await ann.say("among all")
    await ann.until("visitor.acked.length === 1")
    net.proxy.cut_all()
    assert await ann.run(who) == {"user": "root"}
    await ann.run("await visitor.admin.room('chat/1').send('message', { content: 'again' })")
    await ann.until("visitor.heard.length === 2")
    assert await ann.get("visitor.heard") == ["among admins", "again"]
    assert await ann.shown() == ["among all"]
    error = await ann.get("visitor.failure(visitor.client.namespace('/nowhere').connect())")
    assert error["code"] == "unknown_namespace"
    assert net.proxy.connections == 1 or await ann.get("visitor.closes.length") == 1


async def test_an_expired_token_is_replaced(visit: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit(net.origin)
    await ann.run(
        """visitor.tokens = 0;
        const auth = () => visitor.token("ann", ++visitor.tokens === 1 ? "&expires_in=2" : "");
        await visitor.enter("ann", "chat/1", { auth })"""
    )
    await ann.until("visitor.resumed.length === 1")
    assert await ann.get("visitor.closes") == [
        {"code": 4501, "reason": "token expired", "willReconnect": True}
    ]
    assert await ann.get("visitor.tokens") == 2
    assert (await ann.get("visitor.resumed"))[0]["resumed"] is True
    await ann.say("with a new token")
    await ann.until("visitor.shown.length === 1")


async def test_a_wrong_token_is_final(visit: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit(net.origin)
    error = await ann.get("visitor.failure(visitor.connect('ann', { auth: 'wrong' }))")
    assert (error["code"], error["closeCode"], error["retry"]) == ("auth_failed", 4401, False)
    assert error["message"].startswith("Authentication failed: ")
    error = await ann.get("visitor.failure(visitor.connect('ann', { auth: null }))")
    assert (error["code"], error["closeCode"]) == ("auth_required", 4401)
    assert await ann.get("visitor.client.state") == "closed"
    assert net.proxy.accepted >= 2


async def test_messages_that_are_too_large(visit: Visit, network: Networks) -> None:
    net = await network(max_payload=2_000)
    ann = await visit(net.origin)
    # Before the first connection the client cannot know the limit.
    await ann.run(
        """const client = visitor.create("ann");
        visitor.early = visitor.failure(client.send("echo", "x".repeat(3_000)));
        visitor.small = client.send("echo", "small");
        await client.connect()"""
    )
    assert (await ann.get("visitor.early"))["code"] == "too_large"
    assert await ann.get("visitor.small") == "small"
    for big in ("'x'.repeat(2_000)", "'\u00fc'.repeat(1_000)", "new Uint8Array(1_500)"):
        error = await ann.get(f"visitor.failure(visitor.client.send('echo', {big}))")
        assert (error["code"], error["retry"]) == ("too_large", False)
    # Many small ones together are several frames.
    assert (
        await ann.get(
            "Promise.all(Array.from({ length: 50 }, (_, i) =>"
            " visitor.client.send('echo', `${i}`.padEnd(200))))"
        )
    ) == [f"{i}".ljust(200) for i in range(50)]
    assert await ann.get("visitor.closes") == []


async def test_two_devices_of_one_user(visit: Visit, network: Networks) -> None:
    net = await network()
    watcher, phone, laptop = [await visit(net.origin) for _ in range(3)]
    await watcher.enter("bob")
    await watcher.run(
        """visitor.comings = [];
        for (const type of ["user-joined", "user-left"])
            visitor.room.on(type, ({ userId }) => visitor.comings.push([type, userId]))"""
    )
    for device in (phone, laptop):
        await device.enter("ann")
    members = "visitor.room.members.map(({ userId }) => userId).sort()"
    assert await laptop.get(members) == ["ann", "bob"]
    await phone.say("from the phone")
    for visitor in (watcher, phone, laptop):
        await visitor.until("visitor.shown.length === 1")
    await phone.run("visitor.client.close()")
    await laptop.say("only one left")
    await watcher.until("visitor.shown.length === 2")
    assert await watcher.get("visitor.comings") == [["user-joined", "ann"]]
    await laptop.run("await visitor.room.leave()")
    await watcher.until("visitor.comings.length === 2")
    assert await watcher.get("visitor.comings[1]") == ["user-left", "ann"]
    assert await watcher.get(members) == ["bob"]


async def test_a_room_that_refuses(visit: Visit, network: Networks) -> None:
    net = await network()
    ann = await visit(net.origin)
    net.server.banned.add("ann")
    await ann.run("await visitor.connect('ann')")
    error = await ann.get("visitor.failure(visitor.join('chat/1'))")
    assert (error["code"], error["message"], error["retry"]) == (
        "access_denied",
        "Access denied",
        False,
    )
    assert (await ann.get("visitor.failure(visitor.join('no/such'))"))["code"] == "unknown_room"
    net.server.banned.clear()
    await ann.run("await visitor.join('chat/1')")
    net.server.banned.add("ann")
    net.proxy.cut_all()
    await ann.until("visitor.roomEvents.includes('left')")
    assert await ann.get("visitor.roomEvents") == ["error", "left"]
    error = await ann.get("visitor.failure(visitor.room.send('message', { content: 'x' }))")
    assert error["code"] == "not_in_room"
    assert await ann.get("visitor.client.room('chat/1') === undefined") is True
    assert await ann.get("visitor.client.send('echo', 1)") == 1
