"""Kinds of rooms: name patterns, handlers, hooks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

from starlette.convertors import IntegerConvertor, UUIDConvertor
from starlette.routing import compile_path

from ..errors import ConfigurationError, UnknownRoom
from ..events import Publication, Retention
from .channels import RESERVED
from .handlers import Call, Function, Handler, caller_locals
from .options import refuse_negative
from .room import Room
from .session import Member

if TYPE_CHECKING:
    from starlette.convertors import Convertor

    from .namespace import Signal

F = TypeVar("F", bound=Callable[..., Any])
Presence = Literal["full", "counts", "none"]
Slow = Literal["disconnect", "drop", "conflate"]
Recent = Callable[[Sequence[Publication]], list[Any]]
Missed = Callable[[Sequence[Publication]], Sequence[Publication]]


class Feature(Protocol):
    """Something that can be added to a kind of room, or to a namespace."""

    def install(self, target: RoomType) -> None:
        """Register handlers and hooks on `target`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomOptions:
    """How rooms of one kind behave; None takes the server's `Options`."""

    history: int | None = None
    """Publications kept per room; 0 keeps none."""
    history_age: float | None = None
    recent: int | None = None
    """Of these, how many a client gets on joining."""
    presence: Presence = "full"
    """Whether members are listed and announced, only counted, or neither."""
    broadcast: bool = True
    """Whether members may `broadcast`."""
    slow: Slow = "disconnect"
    """What a member gets that reads too slowly: everything, until too much waits and it is closed
    with a code that makes it come back and recover (disconnect); everything that is kept, and what
    is not kept only while it keeps up (drop); of each event only the latest (conflate)."""

    def __post_init__(self) -> None:
        for name in ("history", "history_age", "recent"):
            value = getattr(self, name)
            if value is not None:
                refuse_negative(name, value)
        for name, known in (("presence", get_args(Presence)), ("slow", get_args(Slow))):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name} must be one of {', '.join(known)}")


def event(name: str) -> Callable[[F], F]:
    """Mark a method of a handler class as the handler of an event."""
    _check_event_name(name)

    def mark(function: F) -> F:
        function.__realtime_event__ = name  # type: ignore[attr-defined]
        return function

    return mark


class RoomType:
    """A kind of room: every room whose name fits one pattern.

    Register on it with `authorize`, `on`, `on_join`, `on_leave`, or decorate a class with it whose
    methods have these names (events by `@event("name")`).
    """

    def __init__(
        self, pattern: str, options: RoomOptions, features: Iterable[Feature] = ()
    ) -> None:
        self.pattern = pattern
        self.options = options
        path = "/" + pattern
        try:
            self._regex, _, self._convertors = compile_path(path)
        except (AssertionError, ValueError) as error:
            raise ConfigurationError(f"room pattern {pattern!r}: {error}") from None
        self.params = tuple(self._convertors)
        self._exact = [
            key
            for key, convertor in self._convertors.items()
            if isinstance(convertor, IntegerConvertor | UUIDConvertor)
        ]
        self.handlers: dict[str, Callable[[Call], Awaitable[Any]]] = {}
        self.authorizers: list[Handler] = []
        self.joiners: list[Handler] = []
        self.leavers: list[Handler] = []
        self.recent: Recent | None = None
        self._around: Mapping[str, Any] | None = None
        self.missed: Missed | None = None
        self._followers: dict[str, list[Handler]] = {}
        self.signals: dict[str, list[Callable[[Signal], None]]] = {}
        for feature in features:
            feature.install(self)

    def match(self, name: str) -> dict[str, Any] | None:
        """Return the converted path parameters if `name` fits the pattern.

        A room has one name: `chat/7` is one where `chat/07`, which a handler could not tell from
        it, would be another.
        """
        found = self._regex.match("/" + name)
        if found is None:
            return None
        convertors: Mapping[str, Convertor[Any]] = self._convertors
        texts = found.groupdict()
        try:
            params = {key: convertors[key].convert(text) for key, text in texts.items()}
        except ValueError:
            return None
        for key in self._exact:
            if str(params[key]) != texts[key]:
                return None
        return params

    def authorize(self, function: F) -> F:
        """Register who may enter: called with `member`, `room` and path parameters; anything but
        True refuses with `Access denied`. With several, all must agree."""
        self.authorizers.append(self._handler(function))
        return function

    def on(self, name: str) -> Callable[[F], F]:
        """Register the handler of an event: called with `room`, `member`, path parameters and the
        payload, which is validated against its annotation. What it returns is the ack."""
        _check_event_name(name)

        def register(function: F) -> F:
            if name in self.handlers:
                raise ConfigurationError(f"{self.pattern!r} has a handler for {name!r} already")
            self.handlers[name] = self._handler(function, payload=True)
            if name in self._followers:
                self._follow(name)
            return function

        return register

    def after(self, name: str) -> Callable[[F], F]:
        """Register a hook called with `room` and `member` after each event `name` of a client that
        its handler took without raising, whichever is registered first. The client's ack waits for
        it."""
        _check_event_name(name)

        def register(function: F) -> F:
            new = name not in self._followers
            self._followers.setdefault(name, []).append(self._handler(function))
            if new and name in self.handlers:
                self._follow(name)
            return function

        return register

    def _follow(self, name: str) -> None:
        handler, followers = self.handlers[name], self._followers[name]

        async def handle(call: Call) -> Any:
            result = await handler(call)
            for follower in followers:
                await follower(call)
            return result

        self.handlers[name] = handle

    def on_join(self, function: F) -> F:
        """Register a hook called with `room` and `member` after a session has become a member."""
        self.joiners.append(self._handler(function))
        return function

    def on_leave(self, function: F) -> F:
        """Register a hook called with `room` and `member` after a session has left, however."""
        self.leavers.append(self._handler(function))
        return function

    def signal(self, name: str) -> Callable[[F], F]:
        """Register what is called, without waiting, with each `Signal` of this name ("$moved") that
        `Room.signal` sends, on every process that has members of the room."""
        _check_signal_name(name)

        def register(function: F) -> F:
            self.signals.setdefault(name, []).append(function)
            return function

        return register

    def view_recent(self, view: Recent) -> None:
        """Let `recentMessages` be what `view` makes of the newest kept publications, instead of
        the events themselves."""
        if self.recent is not None:
            raise ConfigurationError(f"{self.pattern!r} has a view of its history already")
        self.recent = view

    def view_missed(self, view: Missed) -> None:
        """Let a client that recovers get what `view` makes of all that it missed: as many
        publications, each in its place."""
        if self.missed is not None:
            raise ConfigurationError(f"{self.pattern!r} has a view of what was missed already")
        self.missed = view

    def __call__(self, cls: type) -> type:
        """Register the methods of a handler class; one instance serves all rooms of this kind."""
        instance = cls()
        # What stands around the class is out of sight of the methods' own registration.
        self._around = {**caller_locals(), **vars(cls)}
        try:
            for name in dir(cls):
                if name.startswith("__"):
                    continue
                method = getattr(instance, name)
                marked = getattr(method, "__realtime_event__", None)
                if marked is not None:
                    self.on(marked)(method)
                elif name in ("authorize", "on_join", "on_leave"):
                    getattr(self, name)(method)
        finally:
            self._around = None
        return cls

    def _handler(self, function: Function, *, payload: bool = False) -> Handler:
        return Handler(
            function,
            {"room": Room, "member": Member},
            locals_=caller_locals(3) if self._around is None else self._around,
            payload=payload,
            params=self.params,
        )

    def retention(self, size: int, age: float) -> Retention:
        """How much of a room's stream is kept: its own options, or the server's `size`, `age`."""
        options = self.options
        return Retention(
            size if options.history is None else options.history,
            age if options.history_age is None else options.history_age,
        )

    def call(self, member: Member, data: bytes = b"null") -> Call:
        """What the handlers of this kind of room are called with."""
        return Call({"room": member.room, "member": member}, member.params, data)

    def __repr__(self) -> str:
        return f"<RoomType {self.pattern!r}>"


def _check_event_name(name: str) -> None:
    if name in RESERVED:
        raise ConfigurationError(f"{name!r} is a name of the protocol's own; choose another")
    if name.startswith("$"):
        raise ConfigurationError(f"{name!r}: names that start with '$' are the servers' own")
    if not name or len(name) > 255 or not name.isprintable():
        raise ConfigurationError(f"{name!r} cannot be the name of an event")


def _check_signal_name(name: str) -> None:
    if name[:1] != "$":
        raise ConfigurationError(f"{name!r}: names of signals start with $")


class Router:
    """The kinds of rooms of a namespace, in the order in which they were registered."""

    def __init__(self) -> None:
        self.types: list[RoomType] = []

    def add(self, room_type: RoomType) -> None:
        self.types.append(room_type)

    def match(self, name: str) -> tuple[RoomType, dict[str, Any]]:
        """Return the first kind of room that `name` fits, and the path parameters.

        Raises:
            UnknownRoom: it fits none.
        """
        for room_type in self.types:
            params = room_type.match(name)
            if params is not None:
                return room_type, params
        raise UnknownRoom(f"Unknown room: {name}")
