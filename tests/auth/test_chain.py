from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest

from starlette_realtime.auth import (
    AnonymousAuth,
    FirstOf,
    ScopeUserAuth,
    SessionAuth,
    SignedTokenAuth,
    User,
    WithUser,
    is_token_only,
)
from starlette_realtime.errors import (
    AccessDenied,
    AuthenticationFailed,
    ConfigurationError,
    InvalidUser,
)
from tests.auth.helpers import SECRET, Fixed, shown
from tests.support.loops import both_loops

pytestmark = pytest.mark.anyio

ANN, BOB = User(id="ann"), User(id="bob")


@both_loops
async def test_the_first_that_knows_the_client_answers() -> None:
    last = Fixed(BOB)
    assert await FirstOf(Fixed(None), Fixed(ANN), last).authenticate(shown()) == ANN
    assert last.asked == 0


async def test_nobody_knows_the_client() -> None:
    assert await FirstOf(Fixed(None), Fixed(None)).authenticate(shown()) is None


async def test_a_token_that_one_refuses_may_be_another_ones() -> None:
    ours, theirs = SignedTokenAuth(SECRET), SignedTokenAuth(SECRET[::-1])
    user = await FirstOf(ours, theirs).authenticate(shown(theirs.create_token("ann")))
    assert user is not None and user.id == "ann"


async def test_the_first_refusal_stands_when_nobody_knows_better() -> None:
    first, second = AuthenticationFailed("one"), AuthenticationFailed("two")
    auth = FirstOf(Fixed(first, token_only=True), Fixed(second, token_only=True))
    with pytest.raises(AuthenticationFailed, match="one"):
        await auth.authenticate(shown("token"))


async def test_a_refused_token_does_not_fall_back_on_the_cookie() -> None:
    cookie = SessionAuth()
    auth = FirstOf(SignedTokenAuth(SECRET), cookie, ScopeUserAuth(), AnonymousAuth())
    scope: dict[str, Any] = {"session": {"user_id": "ann"}, "user": "ann"}
    with pytest.raises(AuthenticationFailed, match="malformed token"):
        await auth.authenticate(shown("bad", **scope))
    assert await auth.authenticate(shown(**scope)) == ANN


async def test_a_refused_token_does_not_make_a_visitor() -> None:
    auth = FirstOf(SignedTokenAuth(SECRET), AnonymousAuth())
    assert auth.anonymous
    assert await auth.authenticate(shown()) is None
    with pytest.raises(AuthenticationFailed):
        await auth.authenticate(shown("bad"))


def test_anonymous_clients_come_in_only_where_one_admits_them() -> None:
    signed = SignedTokenAuth(SECRET)
    assert not FirstOf(signed, SessionAuth()).anonymous
    assert WithUser(FirstOf(signed, AnonymousAuth()), lambda user: user).anonymous
    assert not WithUser(signed, lambda user: user).anonymous


def test_it_is_known_which_backends_trust_cookies() -> None:
    signed = SignedTokenAuth(SECRET)
    assert is_token_only(FirstOf(signed, AnonymousAuth()))
    assert is_token_only(WithUser(signed, lambda user: user))
    assert not is_token_only(FirstOf(signed, SessionAuth()))
    assert not is_token_only(WithUser(ScopeUserAuth(), lambda user: user))


@pytest.mark.parametrize("backends", [(), (SignedTokenAuth,), ("signed",)])
def test_a_chain_of_nothing_is_refused(backends: Any) -> None:
    with pytest.raises(ConfigurationError, match="FirstOf"):
        FirstOf(*backends)


@both_loops
async def test_the_user_is_loaded() -> None:
    names = {"ann": "Ann"}

    def plain(user: User) -> User | None:
        return User(id=user.id, info=names[user.id]) if user.id in names else None

    async def asynchronous(user: User) -> User | None:
        return plain(user)

    class Loader:
        async def __call__(self, user: User) -> User | None:
            return plain(user)

    loaders: list[Any] = [plain, asynchronous, Loader(), partial(asynchronous)]
    loaders.append(lambda user: asynchronous(user))
    for load in loaders:
        user = await WithUser(Fixed(ANN), load).authenticate(shown())
        assert user == User(id="ann", info="Ann")
        with pytest.raises(InvalidUser, match="Invalid user"):
            await WithUser(Fixed(BOB), load).authenticate(shown())


async def test_a_plain_function_does_not_hold_up_the_event_loop() -> None:
    threads: list[int] = []

    def load(user: User) -> User:
        threads.append(threading.get_ident())
        return user

    await WithUser(Fixed(ANN), load).authenticate(shown())
    assert threads and threading.get_ident() not in threads


async def test_nobody_is_not_loaded() -> None:
    def load(user: User) -> User:
        raise AssertionError("there is nobody to load")

    assert await WithUser(Fixed(None), load).authenticate(shown()) is None


async def test_loading_does_not_widen_what_the_credentials_allow() -> None:
    limited = User(id="ann", expires_at=100.0, capabilities=("chat/*",))
    for loaded, expires_at, capabilities in [
        (User(id="ann"), 100.0, ("chat/*",)),
        (User(id="ann", expires_at=200.0, capabilities=("game/*",)), 100.0, ("game/*",)),
        (User(id="ann", expires_at=50.0, capabilities=()), 50.0, ()),
    ]:
        user = await WithUser(Fixed(limited), lambda _, to=loaded: to).authenticate(shown())
        assert user is not None
        assert (user.expires_at, user.capabilities) == (expires_at, capabilities)


async def test_a_loader_may_refuse_in_its_own_words() -> None:
    def load(user: User) -> User:
        raise AccessDenied("Your account is closed")

    with pytest.raises(AccessDenied, match="closed"):
        await WithUser(Fixed(ANN), load).authenticate(shown())


async def test_a_loader_that_returns_something_else_is_named() -> None:
    load: Any = lambda user: {"id": user.id}  # noqa: E731
    with pytest.raises(ConfigurationError, match="load"):
        await WithUser(Fixed(ANN), load).authenticate(shown())


async def test_a_disabled_user_is_not_let_in_by_the_next_backend() -> None:
    first = WithUser(Fixed(ANN), lambda user: None)
    last = Fixed(BOB)
    with pytest.raises(InvalidUser):
        await FirstOf(first, last).authenticate(shown())
    assert last.asked == 0
