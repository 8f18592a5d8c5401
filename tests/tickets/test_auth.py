from __future__ import annotations

import time

import pytest

from starlette_realtime.auth import FirstOf, SignedTokenAuth, User, WithUser, find_credentials
from starlette_realtime.auth.token import is_token_only
from starlette_realtime.errors import AuthenticationFailed
from starlette_realtime.tickets import MemoryTickets, TicketAuth
from tests.auth.helpers import SECRET, shown, websocket

pytestmark = pytest.mark.anyio

ANN = User(id="ann", info={"name": "Ann"})


async def test_a_ticket_lets_in_once() -> None:
    tickets = MemoryTickets()
    auth = TicketAuth(tickets)
    credentials = find_credentials(
        websocket(query_string=f"ticket={await tickets.issue(ANN)}".encode())
    )
    assert await auth.authenticate(credentials) == ANN
    with pytest.raises(AuthenticationFailed, match="ticket unknown, used or expired"):
        await auth.authenticate(credentials)


async def test_only_the_address_is_looked_at() -> None:
    tickets = MemoryTickets()
    auth = TicketAuth(tickets)
    ticket = await tickets.issue(ANN)
    assert await auth.authenticate(shown()) is None
    for source in ("message", "header", "subprotocol"):
        assert await auth.authenticate(shown(ticket, source)) is None
    # None of these has used it up.
    assert await auth.authenticate(shown(ticket, "query")) == ANN


async def test_a_ticket_does_not_outlive_what_it_was_made_from() -> None:
    tickets = MemoryTickets()
    over = await tickets.issue(User(id="ann", expires_at=time.time() - 1))
    with pytest.raises(AuthenticationFailed, match="token expired"):
        await TicketAuth(tickets).authenticate(shown(over, "query"))


async def test_beside_another_backend() -> None:
    tickets, signed = MemoryTickets(), SignedTokenAuth(SECRET)
    auth = FirstOf(TicketAuth(tickets), signed)
    user = await auth.authenticate(shown(await tickets.issue(ANN), "query"))
    assert user == ANN
    user = await auth.authenticate(shown(signed.create_token("bob"), "header"))
    assert user is not None and user.id == "bob"
    with pytest.raises(AuthenticationFailed, match="ticket unknown"):
        await auth.authenticate(shown(signed.create_token("bob"), "query"))
    assert is_token_only(WithUser(auth, lambda user: user))
