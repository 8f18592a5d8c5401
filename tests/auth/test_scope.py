from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser

from starlette_realtime.auth import ScopeUserAuth, User
from starlette_realtime.errors import ConfigurationError
from tests.auth.helpers import shown

pytestmark = pytest.mark.anyio


class OldUser(BaseUser):
    """Leaves `identity` out, as Starlette permits."""

    id = 7

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def display_name(self) -> str:
        return "Ann"


@dataclass
class Account:
    id: UUID
    name: str


class DjangoLike:
    pk = 12
    id = None

    def is_authenticated(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("found", "user"),
    [
        (SimpleUser("ann"), User(id="ann", info={"name": "ann"})),
        (OldUser(), User(id="7", info={"name": "Ann"})),
        (Account(UUID(int=1), "Ann"), User(id=str(UUID(int=1)), info={"name": "Ann"})),
        (DjangoLike(), User(id="12")),
        ({"id": 3, "username": "ann"}, User(id="3", info={"name": "ann"})),
        ({"sub": "auth0|1"}, User(id="auth0|1")),
        ("ann", User(id="ann")),
        (42, User(id="42")),
        (UUID(int=2), User(id=str(UUID(int=2)))),
    ],
)
async def test_the_user_that_middleware_found(found: Any, user: User) -> None:
    assert await ScopeUserAuth().authenticate(shown(user=found)) == user


async def test_nobody_is_signed_in() -> None:
    auth = ScopeUserAuth()
    assert await auth.authenticate(shown()) is None
    assert await auth.authenticate(shown(user=None)) is None
    assert await auth.authenticate(shown(user=UnauthenticatedUser())) is None
    assert await auth.authenticate(shown(user={"id": 1, "is_authenticated": False})) is None

    class Disabled(DjangoLike):
        def is_authenticated(self) -> bool:
            return False

    assert await auth.authenticate(shown(user=Disabled())) is None


async def test_a_shown_name_is_not_an_id() -> None:
    @dataclass
    class Namesake:
        display_name: str

    with pytest.raises(ConfigurationError, match="Namesake"):
        await ScopeUserAuth().authenticate(shown(user=Namesake("Ann")))


async def test_a_function_maps_what_is_unusual() -> None:
    @dataclass
    class Odd:
        key: str

    def plain(odd: Odd) -> User | None:
        return User(id=odd.key) if odd.key else None

    async def slow(odd: Odd) -> User | None:
        return plain(odd)

    for function in (plain, slow):
        auth = ScopeUserAuth(function)
        assert await auth.authenticate(shown(user=Odd("k"))) == User(id="k")
        assert await auth.authenticate(shown(user=Odd(""))) is None
    wrong: Any = lambda odd: odd.key  # noqa: E731
    with pytest.raises(ConfigurationError, match="to_user"):
        await ScopeUserAuth(wrong).authenticate(shown(user=Odd("k")))
