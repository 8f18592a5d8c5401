"""Private messages between two workers, which share nothing but a Redis."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest

from tests.features.helpers import of
from tests.support.server import ServerProcess
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio


class Workers:
    """Each has a port of its own, so that a test says who is where."""

    def __init__(self, one: ServerProcess, two: ServerProcess) -> None:
        self.servers = {"A": one, "B": two}

    def enter(
        self, worker: str, name: str, device: str | None = None
    ) -> AbstractAsyncContextManager[NativeClient]:
        hello = {"token": name, "deviceId": device or f"{name}'s"}
        return NativeClient.open(self.servers[worker].ws("/realtime/ws"), hello=hello)


@pytest.fixture
def workers(redis_url: str, serve_process: Callable[..., ServerProcess]) -> Workers:
    environment = {"TEST_BACKEND": redis_url}
    one, two = (serve_process("tests.inbox.workers:app", env=environment) for _ in "AB")
    return Workers(one, two)


async def write(client: NativeClient, to: str, content: str, **data: Any) -> dict[str, Any]:
    ack: dict[str, Any] = await client.request(
        "private-message", data={"targetUserId": to, "content": content, **data}
    )
    return ack


def contents(page: dict[str, Any]) -> list[str]:
    return [message["content"] for message in page["messages"]]


async def received(client: NativeClient) -> list[str]:
    """What arrives until nothing more is on its way, live or pending."""
    found: list[str] = []
    for message in of(await client.settle(), "private-message", "pending-messages"):
        data = message["data"]
        found += contents(data) if "messages" in data else [data["content"]]
    return found


async def test_private_messages_between_two_workers(workers: Workers) -> None:
    async with (
        workers.enter("A", "ann", "phone") as ann,
        workers.enter("B", "ann", "desk") as desk,
        workers.enter("B", "bob", "one") as one,
        workers.enter("B", "bob", "two") as two,
        workers.enter("B", "eve") as eve,
    ):
        # To every device, wherever it is.
        ack = await write(ann, "bob", "hello", id="m1")
        assert ack["delivered"] is True
        for client in (one, two, desk):
            message = await client.expect("private-message")
            assert message["data"]["id"] == ack["messageId"]
            assert message["data"]["content"] == "hello"

        # Sent again, from another worker too, it is the same one.
        assert await write(ann, "bob", "hello", id="m1") == ack
        again = await write(desk, "bob", "hello", id="m1")
        assert again["messageId"] == ack["messageId"]

        # Reading is told across workers.
        await one.request("mark-read", data={"messageId": ack["messageId"]})
        for client in (ann, two):
            told = await client.expect("message-read")
            assert told["data"]["messageId"] == ack["messageId"]

        await write(ann, "bob", "last")
        for client in (one, two, desk):
            assert (await client.expect("private-message"))["data"]["content"] == "last"
        for client in (ann, desk, one, two, eve):
            assert await received(client) == []
        assert await one.request("ack-messages", data={"upTo": 2})

    # The other device has acknowledged nothing, and is somewhere else now.
    async with workers.enter("A", "bob", "two") as two:
        assert await received(two) == ["hello", "last"]
    async with workers.enter("A", "bob", "one") as one:
        assert await received(one) == []


async def test_who_is_away_gets_it_from_another_worker(workers: Workers) -> None:
    async with workers.enter("A", "ann") as ann, workers.enter("A", "eve") as eve:
        assert (await write(eve, "bob", "important"))["delivered"] is False
        said = [f"m{number}" for number in range(23)]
        for content in said:
            await write(ann, "bob", content, id=content)
        await write(ann, "bob", "m22", id="m22")
        # Trimmed meanwhile, and not taken again.
        await write(ann, "bob", "m0", id="m0")
        async with workers.enter("B", "bob") as bob:
            first = (await bob.expect("pending-messages"))["data"]
            assert contents(first) == ["important", *said[3:14]]
            assert first["more"] is True
            await bob.request("ack-messages", data={"upTo": first["messages"][-1]["id"]})
            second = (await bob.expect("pending-messages"))["data"]
            assert contents(second) == said[14:]
            assert second["more"] is False
            reply = await bob.request("conversation", data={"userId": "ann"})
            assert contents(reply) == said[11:]
            assert reply["more"] is True
            await bob.request("ack-messages", data={"upTo": second["messages"][-1]["id"]})
    async with workers.enter("A", "bob") as bob:
        assert await received(bob) == []


async def test_many_writing_at_once_on_both_are_each_heard_once_in_order(workers: Workers) -> None:
    async with (
        workers.enter("A", "ann") as ann,
        workers.enter("B", "eve") as eve,
        workers.enter("A", "bob", "one") as one,
        workers.enter("B", "bob", "two") as two,
    ):

        async def say(client: NativeClient, name: str) -> None:
            for number in range(15):
                await write(client, "bob", f"{name} {number}", id=f"{number}")
                await write(client, "bob", f"{name} {number}", id=f"{number}")

        async with anyio.create_task_group() as group:
            group.start_soon(say, ann, "ann")
            group.start_soon(say, eve, "eve")
        heard = []
        for client in (one, two):
            messages = [await client.expect("private-message") for _ in range(30)]
            heard.append([message["data"]["content"] for message in messages])
            assert await received(client) == []
        assert heard[0] == heard[1]
        for name in ("ann", "eve"):
            said = [content for content in heard[0] if content.startswith(name)]
            assert said == [f"{name} {number}" for number in range(15)]
