"""Whoever the app's own authentication middleware found."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from ..errors import ConfigurationError
from .base import AuthBackend, Credentials, User
from .identity import as_user_id

# `display_name` is not among them: two people may have the same.
_IDS: Final = ("identity", "id", "pk", "user_id", "sub", "username")
_NAMES: Final = ("display_name", "name", "username")


def _read(user: Any, name: str) -> Any:
    if isinstance(user, Mapping):
        return user.get(name)
    try:
        return getattr(user, name, None)
    except NotImplementedError:
        # Starlette's BaseUser declares properties that its subclasses may leave out.
        return None


def _signed_in(user: Any) -> bool:
    answer = _read(user, "is_authenticated")
    if callable(answer):
        answer = answer()
    return answer is None or bool(answer)


def _from_object(user: Any) -> User:
    user_id = as_user_id(user)
    if user_id is not None:
        return User(id=user_id)
    for name in _IDS:
        user_id = as_user_id(_read(user, name))
        if user_id is not None:
            break
    else:
        raise ConfigurationError(
            f'ScopeUserAuth finds no id in scope["user"], a {type(user).__name__}: it has none of'
            f" {', '.join(_IDS)}. Give it a function: ScopeUserAuth(lambda user: User(id=…))"
        )
    for name in _NAMES:
        shown = _read(user, name)
        if isinstance(shown, str) and shown:
            return User(id=user_id, info={"name": shown})
    return User(id=user_id)


class ScopeUserAuth(AuthBackend):
    """The user in `scope["user"]`, where Starlette's `AuthenticationMiddleware`, Litestar's
    authentication middleware or the app's own put it, running outside of the realtime one.

    Nobody is signed in when there is no such entry, when it is None, or when its `is_authenticated`
    is false. The id is the first usable of the object's (or dict's) `identity`, `id`, `pk`,
    `user_id`, `sub` and `username`; text, an integer or a UUID is the id itself. `info` is
    `{"name": …}`, from `display_name`, `name` or `username`.

    If that middleware reads a cookie, only the Origin check keeps other sites from acting as the
    user. Do not open it to everyone.

    Args:
        to_user: makes a `User` of the object instead, or None for nobody; may be `async`.

    Raises (from `authenticate`):
        ConfigurationError: the object has no usable id.
    """

    def __init__(
        self, to_user: Callable[[Any], User | Awaitable[User | None] | None] | None = None
    ) -> None:
        self._to_user = to_user

    async def authenticate(self, credentials: Credentials) -> User | None:
        found = credentials.scope.get("user")
        if found is None or not _signed_in(found):
            return None
        if self._to_user is None:
            return _from_object(found)
        user: Any = self._to_user(found)
        if inspect.isawaitable(user):
            user = await user
        if user is not None and (not isinstance(user, User) or as_user_id(user.id) is None):
            raise ConfigurationError(
                "ScopeUserAuth: to_user returns a User with a usable id, or None"
            )
        return user
