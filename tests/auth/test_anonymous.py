from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.auth import AnonymousAuth, GuestAuth, ScopeUserAuth, SignedTokenAuth
from starlette_realtime.errors import AuthenticationFailed
from tests.auth.helpers import SECRET, shown

pytestmark = pytest.mark.anyio


async def test_anonymous_clients_have_no_user() -> None:
    auth = AnonymousAuth()
    assert auth.anonymous
    assert await auth.authenticate(shown()) is None
    assert await auth.authenticate(shown("anything")) is None


def test_nobody_else_admits_them() -> None:
    for auth in (SignedTokenAuth(SECRET), GuestAuth(), ScopeUserAuth()):
        assert not auth.anonymous


async def test_a_guest_is_who_it_says() -> None:
    auth = GuestAuth()
    user = await auth.authenticate(shown("  Ann Ö. "))
    assert user is not None
    assert user.id.startswith("guest-")
    assert user.info == {"name": "Ann Ö."}
    assert await auth.authenticate(shown()) is None


async def test_guests_of_one_name_are_two_users() -> None:
    auth = GuestAuth()
    assert (await auth.verify("Ann")).id != (await auth.verify("Ann")).id


async def test_a_guest_with_a_token_stays_the_same() -> None:
    auth = GuestAuth(SECRET)
    token = auth.create_token(" Ann ")
    first, second = await auth.verify(token), await GuestAuth(SECRET).verify(token)
    assert first.id == second.id
    assert first.info == {"name": "Ann"}
    assert first.id != (await auth.verify(auth.create_token("Ann"))).id


async def test_a_token_for_users_is_none_for_guests_and_the_reverse() -> None:
    users, guests = SignedTokenAuth(SECRET), GuestAuth(SECRET)
    with pytest.raises(AuthenticationFailed, match="bad signature"):
        await users.verify(guests.create_token("Ann"))
    with pytest.raises(AuthenticationFailed, match="bad signature"):
        await guests.verify(users.create_token("ann"))


async def test_a_guests_token_ends() -> None:
    ahead = 0.0
    auth = GuestAuth(SECRET, max_age=60, clock=lambda: time.time() + ahead)
    token = auth.create_token("Ann")
    ahead = 61
    with pytest.raises(AuthenticationFailed, match="token expired"):
        await auth.verify(token)


@pytest.mark.parametrize(
    "name", [" ", "x" * 41, "a\nb", "a\x00", "\u202egnp", "\ud800", "a" * 9000]
)
async def test_a_name_that_is_none(name: str) -> None:
    auth = GuestAuth()
    with pytest.raises(AuthenticationFailed, match="name has 1 to 40"):
        await auth.verify(name)
    with pytest.raises(AuthenticationFailed, match="name has 1 to 40"):
        auth.create_token(name)


async def test_the_longest_name() -> None:
    assert (await GuestAuth().verify("x" * 40)).info == {"name": "x" * 40}
    assert (await GuestAuth().verify(" " * 30 + "x" * 40)).info == {"name": "x" * 40}


@given(st.text())
async def test_whatever_is_sent_the_answer_is_a_guest_or_a_refusal(token: str) -> None:
    try:
        user = await GuestAuth(SECRET).verify(token)
    except AuthenticationFailed:
        return
    assert 1 <= len(user.info["name"]) <= 40
