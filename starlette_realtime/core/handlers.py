"""Calling the app's functions: which of their parameters gets what is settled once, when they are
registered."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from anyio import get_cancelled_exc_class
from anyio.to_thread import run_sync

from ..errors import ConfigurationError
from ..protocols import payload
from .turns import is_cancelled

Function = Callable[..., Any]


class Call(msgspec.Struct):
    """What a function may ask for: objects, path parameters, and the payload."""

    objects: Mapping[str, Any]
    params: Mapping[str, Any] = {}
    data: bytes = b"null"


def _hints(function: Function, locals_: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(locals_ or {}), include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"{_name(function)}: the annotation {error.name!r} cannot be resolved; "
            "define it before the handler, in the same module or function"
        ) from None


def _name(function: Function) -> str:
    return getattr(function, "__qualname__", repr(function))


class Handler:
    """A function of the app, with the plan of how to call it.

    A parameter gets: the object whose class it is annotated with or whose name it has (`room`,
    `member`, `session`, …); the path parameter of its name; or, if it is the one that is left, the
    payload, validated against its annotation.

    Args:
        function: sync (then called in a worker thread) or async.
        objects: the objects on offer: name → class.
        locals_: names the annotations may need that are not global.
        payload: whether a payload is on offer.
        params: path parameters on offer; None when any name may be one.
    """

    __slots__ = ("_function", "_is_async", "_plan", "name")

    def __init__(
        self,
        function: Function,
        objects: Mapping[str, type],
        *,
        locals_: Mapping[str, Any] | None = None,
        payload: bool = False,
        params: tuple[str, ...] = (),
    ) -> None:
        self.name = _name(function)
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004
        )
        hints = _hints(function, locals_) if not inspect.isclass(function) else {}
        plan: list[tuple[str, str, str, Any]] = []
        payload_at = ""
        for parameter in inspect.signature(function).parameters.values():
            name = parameter.name
            hint = hints.get(name, Any)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ConfigurationError(f"{self.name}: handlers do not take *{name}")
            by_class = [offer for offer, kind in objects.items() if hint is kind]
            if by_class:
                plan.append((name, "object", by_class[0], None))
            elif name in params:
                plan.append((name, "param", name, None))
            elif hint is Any and name in objects:
                plan.append((name, "object", name, None))
            elif payload and not payload_at:
                payload_at = name
                plan.append((name, "payload", name, hint))
            elif parameter.default is parameter.empty:
                on_offer = ", ".join([*objects, *params, *(["the payload"] if payload else [])])
                raise ConfigurationError(
                    f"{self.name}: nothing to give to the parameter {name!r}; on offer: {on_offer}"
                )
        self._plan = tuple(plan)

    async def __call__(self, call: Call) -> Any:
        """Call the function and return what it returns.

        Raises:
            InvalidMessage: the payload does not fit its annotation.
            RuntimeError: it awaited something that was cancelled, though it was not itself.
        """
        arguments: dict[str, Any] = {}
        for name, source, key, hint in self._plan:
            if source == "object":
                arguments[name] = call.objects[key]
            elif source == "param":
                arguments[name] = call.params[key]
            else:
                arguments[name] = payload.load(call.data, hint)
        try:
            if self._is_async:
                return await self._function(**arguments)
            # Abandoned when it is cancelled: a thread can't be stopped, nobody must wait for it.
            call_it = partial(self._function, **arguments)
            result = await run_sync(call_it, abandon_on_cancel=True)
            return await result if isinstance(result, Awaitable) else result
        except get_cancelled_exc_class() as error:
            if is_cancelled(error):
                raise
            # An error of the app's like any other, which must not end the connection.
            raise RuntimeError(f"{self.name} awaited something that was cancelled") from error


def caller_locals(depth: int = 2) -> Mapping[str, Any]:
    """Names visible where a decorator of ours was applied, for annotations inside functions."""
    frame = inspect.currentframe()
    for _ in range(depth):
        frame = frame.f_back if frame is not None else None
    if frame is None or frame.f_locals is frame.f_globals:
        return {}
    return dict(frame.f_locals)
