"""What the app registers: rooms, handlers, hooks, observers. Nothing here runs anything."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import anyio
import msgspec
from anyio import get_cancelled_exc_class

from ..auth.base import AuthBackend
from ..errors import ConfigurationError
from ..events import Command, Publication
from ..protocols import payload
from .handlers import Handler, caller_locals
from .hub import Channel
from .online import Online
from .router import (
    Feature,
    Presence,
    RoomOptions,
    RoomType,
    Router,
    Slow,
    _check_event_name,
    _check_signal_name,
)
from .session import Member, Session
from .timers import Timer
from .turns import is_cancelled

if TYPE_CHECKING:
    from .engine import Engine

logger = logging.getLogger("starlette_realtime")

F = TypeVar("F", bound=Callable[..., Any])
ServerEvent = Literal["connection", "message", "room-joined", "room-left", "disconnection", "error"]
SERVER_EVENTS: frozenset[str] = frozenset(ServerEvent.__args__)  # type: ignore[attr-defined]
CallNext = Callable[[], Awaitable[Any]]


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """What an observer is told. Which members are set depends on `name`:

    connection, disconnection: `session` (and `code`); message: `session`, `command`; room-joined,
    room-left: `session`, `member`, `room`; error: `session`, `error`, `command` if one caused it.
    """

    name: ServerEvent
    session: Session
    member: Member | None = None
    room: str | None = None
    command: Command | None = None
    error: Exception | None = None
    code: int | None = None


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What middleware sees of an event: who sent which command."""

    session: Session
    command: Command

    @property
    def member(self) -> Member | None:
        """The sender's membership in the command's room, if it has one."""
        return self.session.memberships.get(self.command.room) if self.command.room else None


class ConnectionContext(msgspec.Struct, kw_only=True):
    """What connection-level middleware sees: the session that is about to be opened. Raising a
    `ClientError` or `CloseConnection` refuses it."""

    session: Session


Middleware = Callable[[Any, CallNext], Awaitable[Any]]


class Signal(msgspec.Struct, frozen=True):
    """An event from server to server: one whose name starts with "$" does not go to clients, but to
    the function that is registered for it, on every process that has members of the channel."""

    engine: Engine
    channel: Channel
    publication: Publication

    @property
    def namespace(self) -> str:
        return self.engine.ns

    @property
    def room(self) -> str:
        """Name of the room it was sent to; empty for a channel that is no room."""
        return self.channel.room or ""

    @property
    def sessions(self) -> list[Session]:
        """The channel's members on this process, those that connect just now included, without the
        one that is to be left out."""
        return [
            receiver
            for receiver in self.channel.everyone()
            if isinstance(receiver, Session) and receiver.id != self.publication.exclude
        ]

    @property
    def data(self) -> Any:
        return payload.load(self.publication.data)

    def pass_on(self, event: str, data: Any, *, volatile: bool | None = None) -> None:
        """Let these members have an event instead; as `volatile` as the signal, unless told
        otherwise."""
        publication = self.publication
        changed = msgspec.structs.replace(
            publication,
            event=event,
            data=payload.dump(data),
            id="",
            volatile=publication.volatile if volatile is None else volatile,
        )
        self.engine.hub.received(self.channel.name, changed)

    def later(self, delay: float, call: Callable[..., object], *arguments: Any) -> Timer:
        """Call a function on this process in `delay` seconds, unless `cancel` is called on the
        timer that is returned."""
        return self.engine.runtime.timers.call_later(delay, call, *arguments)


class NamespaceFeature(Protocol):
    """Something that can be added to a namespace."""

    def install_namespace(self, target: Namespace) -> None:
        """Register handlers, observers and signals on `target`."""


class Namespace:
    """A set of rooms and handlers with its own authentication, spoken to under a name."""

    def __init__(self, name: str, auth: AuthBackend) -> None:
        if not re.fullmatch(r"/[A-Za-z0-9_./-]{0,100}", name):
            raise ConfigurationError(f"namespace {name!r}: write it like '/admin'")
        self.name = name
        self.auth = auth
        self.router = Router()
        self.handlers: dict[str, Handler] = {}
        self.event_middleware: list[Middleware] = []
        self.connection_middleware: list[Middleware] = []
        self.signals: dict[str, list[Callable[[Signal], None]]] = {}
        self._observers: dict[str, list[Callable[[Happening], Any]]] = {}
        self._online: Online | None = None

    def room(
        self,
        pattern: str,
        *,
        features: Iterable[Feature] = (),
        history: int | None = None,
        history_age: float | None = None,
        recent: int | None = None,
        presence: Presence = "full",
        broadcast: bool = True,
        slow: Slow = "disconnect",
    ) -> RoomType:
        """Add a kind of room: every name that fits `pattern`, written as Starlette's routes are,
        without the leading slash: `"chat/{room_id:int}"`. See `RoomOptions` for the rest.

        Raises:
            ConfigurationError: the pattern is none, or an option has a value that cannot be.
        """
        options = RoomOptions(
            history=history,
            history_age=history_age,
            recent=recent,
            presence=presence,
            broadcast=broadcast,
            slow=slow,
        )
        room_type = RoomType(pattern, options, features)
        self.router.add(room_type)
        return room_type

    def add(self, feature: NamespaceFeature) -> None:
        """Add a feature that belongs to no room."""
        feature.install_namespace(self)

    @property
    def online(self) -> Online:
        """Who is online. Kept from the first use on, which must be before the server starts."""
        if self._online is None:
            self._online = Online(self)
        return self._online

    def signal(self, name: str) -> Callable[[F], F]:
        """Register what is called, without waiting, with each `Signal` of this name ("$moved").
        `$interrupted` says that some may have been missed on a channel."""
        _check_signal_name(name)

        def register(function: F) -> F:
            self.signals.setdefault(name, []).append(function)
            return function

        return register

    def event(self, name: str) -> Callable[[F], F]:
        """Register the handler of an event that belongs to no room: called with `session` and the
        payload; what it returns is the ack."""
        _check_event_name(name)

        def register(function: F) -> F:
            if name in self.handlers:
                raise ConfigurationError(f"there is a handler for {name!r} already")
            self.handlers[name] = Handler(
                function, {"session": Session}, locals_=caller_locals(), payload=True
            )
            return function

        return register

    def on(self, name: ServerEvent) -> Callable[[F], F]:
        """Register an observer, sync or async, of what the server does. It is called with a
        `Happening`; what it raises is logged and changes nothing."""
        if name not in SERVER_EVENTS:
            raise ConfigurationError(
                f"{name!r} is not one of {', '.join(sorted(SERVER_EVENTS))}; "
                "clients' events are handled by room(...).on or event"
            )

        def register(function: F) -> F:
            self._observers.setdefault(name, []).append(function)
            return function

        return register

    def middleware(self, kind: Literal["connection", "event"]) -> Callable[[F], F]:
        """Register `async def m(ctx, call_next)` around every connection or every event; the first
        one registered is the outermost."""
        target = {"connection": self.connection_middleware, "event": self.event_middleware}.get(
            kind
        )
        if target is None:
            raise ConfigurationError(f"middleware is for 'connection' or 'event', not {kind!r}")

        def register(function: F) -> F:
            target.append(function)
            return function

        return register

    def observed(self, name: ServerEvent) -> bool:
        """Whether anyone observes `name`: asked first where building a `Happening` would cost."""
        return name in self._observers

    async def emit(self, happening: Happening) -> None:
        """Tell the observers. One that takes longer than a handler may is cancelled."""
        limit = happening.session.engine.options.handler_timeout
        for observer in self._observers.get(happening.name, ()):
            try:
                with anyio.fail_after(limit):
                    result = observer(happening)
                    if isawaitable(result):
                        await result
            except (Exception, get_cancelled_exc_class()) as error:
                if is_cancelled(error):
                    raise
                logger.exception("an observer of %r raised", happening.name)
