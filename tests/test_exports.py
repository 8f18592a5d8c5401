"""The public names: a list that changes only on purpose, each name importable and explained."""

from __future__ import annotations

import importlib
import inspect

import pytest

import starlette_realtime

PUBLIC: list[str] = [
    "AccessDenied",
    "AckTimeout",
    "AnonymousAuth",
    "Answer",
    "AuthBackend",
    "AuthenticationFailed",
    "BrokerUnavailable",
    "Chat",
    "ClientError",
    "CloseConnection",
    "ConfigurationError",
    "ConnectionContext",
    "Context",
    "Credentials",
    "DirectMessages",
    "Disconnected",
    "Feature",
    "FirstOf",
    "Gathered",
    "GuestAuth",
    "Happening",
    "InvalidMessage",
    "JWTAuth",
    "Member",
    "MemberInfo",
    "Namespace",
    "NamespaceFeature",
    "NotInRoom",
    "Options",
    "Page",
    "Position",
    "Presence",
    "Publication",
    "Published",
    "Publisher",
    "RateLimited",
    "Realtime",
    "RealtimeError",
    "RealtimeMiddleware",
    "Room",
    "RoomType",
    "ScopeUserAuth",
    "Session",
    "SessionAuth",
    "SignedTokenAuth",
    "SyncPublisher",
    "TicketAuth",
    "Typing",
    "User",
    "WithUser",
    "event",
]


def test_the_list_is_the_public_interface() -> None:
    assert list(starlette_realtime.__all__) == PUBLIC
    assert sorted(PUBLIC) == PUBLIC
    assert len(set(PUBLIC)) == len(PUBLIC)


def test_a_star_import_gives_what_the_list_says() -> None:
    names: dict[str, object] = {}
    exec("from starlette_realtime import *", names)
    assert set(PUBLIC) <= set(names)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_there_and_explained(name: str) -> None:
    found = getattr(starlette_realtime, name)
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return
    # A class does not inherit its explanation.
    text = found.__dict__.get("__doc__") if inspect.isclass(found) else found.__doc__
    assert text, f"{name} has no docstring"
    # What a dataclass or a Struct writes for itself is its signature.
    assert not text.startswith(f"{name}("), f"{name} has no docstring of its own"
    assert importlib.import_module(found.__module__).__doc__, f"{found.__module__} has no docstring"


def test_no_public_name_is_forgotten() -> None:
    unlisted = [
        name
        for name, value in vars(starlette_realtime).items()
        if not name.startswith("_")
        and name not in PUBLIC
        and (inspect.isclass(value) or inspect.isroutine(value))
    ]
    assert unlisted == []


def test_version_is_a_version() -> None:
    parts = starlette_realtime.__version__.split(".")
    assert len(parts) == 3
    assert all(part.isdigit() for part in parts[:2])
