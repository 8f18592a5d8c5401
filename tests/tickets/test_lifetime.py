"""`TicketAuth` in an app: its store is the server's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from anyio.abc import TaskStatus

from starlette_realtime import (
    AuthBackend,
    ConfigurationError,
    Credentials,
    FirstOf,
    Realtime,
    SignedTokenAuth,
    TicketAuth,
    User,
    WithUser,
)
from starlette_realtime.auth import ServerStores
from starlette_realtime.errors import AuthenticationFailed
from tests.auth.helpers import SECRET, shown
from tests.support.loops import both_loops
from tests.support.server import ServerProcess
from tests.support.wsclient import NativeClient, NativeError

pytestmark = pytest.mark.anyio

ANN = User(id="ann")


async def issued_by(server: ServerProcess, user: str) -> str:
    async with httpx.AsyncClient() as client:
        answer = await client.post(server.http(f"/ticket?user={user}"), timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.text


async def test_a_ticket_of_one_process_is_good_on_another(
    serve_process: Callable[..., ServerProcess], redis_url: str
) -> None:
    env = {"REALTIME_BACKEND": redis_url}
    one, two = (serve_process("tests.tickets.app:app", env=env) for _ in range(2))
    for here, there in ((one, two), (two, one)):
        ticket = await issued_by(here, "ann")
        async with NativeClient.open(there.ws(f"/realtime/ws?ticket={ticket}")) as client:
            assert client.connected["userId"] == "ann"
        # It was good once, for all of them.
        for server in (here, there):
            with pytest.raises(NativeError, match="ticket unknown, used or expired"):
                async with NativeClient.open(server.ws(f"/realtime/ws?ticket={ticket}")):
                    pass


@both_loops
async def test_in_memory_by_default() -> None:
    tickets = TicketAuth()
    auth = FirstOf(tickets, SignedTokenAuth(SECRET))
    async with Realtime("memory://", auth=auth).run():
        ticket = await tickets.issue(ANN)
        assert await auth.authenticate(shown(ticket, "query")) == ANN
        with pytest.raises(AuthenticationFailed, match="ticket unknown"):
            await auth.authenticate(shown(ticket, "query"))


async def test_outside_of_the_lifespan_it_says_what_is_missing() -> None:
    tickets = TicketAuth()
    realtime = Realtime("memory://", auth=tickets)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="no Realtime runs with this TicketAuth"):
            await tickets.issue(ANN)
        async with realtime.run():
            ticket = await tickets.issue(ANN)
        with pytest.raises(ConfigurationError, match="inside of the app's lifespan"):
            await tickets.authenticate(shown(ticket, "query"))


async def test_namespaces_share_it() -> None:
    tickets = TicketAuth()
    realtime = Realtime("memory://", auth=FirstOf(tickets, SignedTokenAuth(SECRET)))
    realtime.namespace("/admin", auth=WithUser(tickets, lambda user: user))
    realtime.namespace("/same")
    async with realtime.run():
        for namespace in realtime._namespaces.values():
            ticket = await tickets.issue(ANN)
            assert await namespace.auth.authenticate(shown(ticket, "query")) == ANN
    with pytest.raises(ConfigurationError):
        await tickets.issue(ANN)


async def test_several_servers_share_it() -> None:
    tickets = TicketAuth()
    one, two = (Realtime("memory://", auth=tickets) for _ in range(2))
    over, ended = anyio.Event(), anyio.Event()

    async def first(*, task_status: TaskStatus[None]) -> None:
        async with one.run():
            task_status.started()
            await over.wait()
        ended.set()

    async with anyio.create_task_group() as tasks:
        await tasks.start(first)
        early = await tickets.issue(ANN)
        async with two.run():
            assert await tickets.authenticate(shown(early, "query")) == ANN
            late = await tickets.issue(ANN)
            over.set()
            await ended.wait()
            # It went with the server that kept it; the other one goes on.
            with pytest.raises(AuthenticationFailed, match="ticket unknown"):
                await tickets.authenticate(shown(late, "query"))
            late = await tickets.issue(ANN)
            assert await tickets.authenticate(shown(late, "query")) == ANN


class Living(AuthBackend):
    """Notes when it lives."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    @asynccontextmanager
    async def run(self, stores: ServerStores) -> AsyncIterator[None]:
        if self.name == "wrong":
            raise ConfigurationError("the wrong one")
        self.log.append(f"{self.name} begins")
        try:
            yield
        finally:
            self.log.append(f"{self.name} ends")

    async def authenticate(self, credentials: Credentials) -> User | None:
        return None


async def test_backends_live_as_long_as_the_server() -> None:
    log: list[str] = []
    a, b = Living("a", log), Living("b", log)
    auth = FirstOf(a, WithUser(b, lambda user: user))
    realtime = Realtime("memory://", auth=auth)
    realtime.namespace("/shares")
    async with realtime.run():
        assert log == ["a begins", "b begins"]
    assert log[2:] == ["b ends", "a ends"]
    # One that can't begin keeps the server from starting, and those before it end.
    realtime = Realtime("memory://", auth=FirstOf(a, Living("wrong", log)))
    with pytest.raises(ConfigurationError, match="the wrong one"):
        async with realtime.run():
            raise AssertionError("it runs")
    assert log[4:] == ["a begins", "a ends"]
    assert not realtime.running
