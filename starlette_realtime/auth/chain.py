"""Several backends as one, and the hook that loads the user."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio.to_thread
import msgspec

from ..errors import AuthenticationFailed, ConfigurationError, InvalidUser
from .base import AuthBackend, Credentials, ServerStores, User
from .identity import as_user_id
from .token import is_token_only


class FirstOf(AuthBackend):
    """Asks its backends in turn; the first that knows the client answers.

    When a backend refuses what the client showed, those after it are still asked, since the token
    may be one of theirs, but only those that decide by tokens alone: a client whose token has
    expired is refused, not taken for the user of its cookie or for a visitor. If nobody knows it,
    the first refusal stands.

    Anonymous clients are admitted when one of the backends admits them.
    """

    def __init__(self, *backends: AuthBackend) -> None:
        if not backends:
            raise ConfigurationError("FirstOf needs at least one backend")
        for backend in backends:
            if not isinstance(backend, AuthBackend):
                raise ConfigurationError(
                    f"FirstOf takes backends (AuthBackend), not {type(backend).__name__}"
                )
        self._backends = backends
        self.anonymous = any(backend.anonymous for backend in backends)
        self.token_only = all(map(is_token_only, backends))

    @asynccontextmanager
    async def run(self, stores: ServerStores) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for backend in self._backends:
                await stack.enter_async_context(backend.run(stores))
            yield

    async def authenticate(self, credentials: Credentials) -> User | None:
        refusal: AuthenticationFailed | None = None
        for backend in self._backends:
            if refusal is not None and not is_token_only(backend):
                continue
            try:
                user = await backend.authenticate(credentials)
            except AuthenticationFailed as error:
                refusal = refusal or error
                continue
            if user is not None:
                return user
        if refusal is not None:
            raise refusal
        return None


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


class WithUser(AuthBackend):
    """Loads the user after `backend` has told who it is.

    Args:
        backend: tells who the client is.
        load: given that `User`, returns the one to go on with (the same, or one with `info` from a
            database), or None when there is no such user, or no longer: then the client is refused
            with `Invalid user`. It may be `async`; otherwise it is called in a worker thread. What
            the credentials restrict stays restricted: the result ends no later than they do, and
            has their capabilities unless it names its own.

    Raises (from `authenticate`):
        InvalidUser: `load` returned None.
    """

    def __init__(
        self,
        backend: AuthBackend,
        load: Callable[[User], User | None] | Callable[[User], Awaitable[User | None]],
    ) -> None:
        self._backend = backend
        self._load: Callable[[User], Any] = load
        self._in_thread = not _is_async(load)
        self.anonymous = backend.anonymous
        self.token_only = is_token_only(backend)

    def run(self, stores: ServerStores) -> AbstractAsyncContextManager[None]:
        return self._backend.run(stores)

    async def authenticate(self, credentials: Credentials) -> User | None:
        shown = await self._backend.authenticate(credentials)
        if shown is None:
            return None
        if self._in_thread:
            # In a list: Trio refuses a bare coroutine from a thread, and it is awaited below.
            [user] = await anyio.to_thread.run_sync(lambda: [self._load(shown)])
        else:
            user = self._load(shown)
        # Also what a plain function hands on, such as `lambda user: users.find(user.id)`.
        if inspect.isawaitable(user):
            user = await user
        if user is None:
            raise InvalidUser
        if not isinstance(user, User) or as_user_id(user.id) is None:
            raise ConfigurationError("WithUser: load returns a User with a usable id, or None")
        ends = [at for at in (shown.expires_at, user.expires_at) if at is not None]
        return msgspec.structs.replace(
            user,
            expires_at=min(ends, default=None),
            capabilities=shown.capabilities if user.capabilities is None else user.capabilities,
        )
