"""Names of the channels that a namespace publishes to, and of what may be published. The law: who
publishes from another process and who listens here agree on them, so they change for all at once or
not at all."""

from __future__ import annotations

RESERVED = frozenset(
    [
        "connect",
        "connected",
        "join",
        "joined",
        "leave",
        "left",
        "join-room",
        "leave-room",
        "broadcast",
        "ping",
        "pong",
        "ack",
        "error",
        "refresh",
        "history",
        "members",
    ]
)
"""Event names that are the protocol's own."""
_UNFIT = RESERVED - {"broadcast"} | {""}


def check_public(event: str) -> None:
    """Refuse an event that an app may not send to clients: one of the protocol's own messages, or
    what only servers send to servers, a name that starts with "$".

    Raises:
        ValueError: `event` is such a name.
    """
    if event.startswith("$"):
        raise ValueError(f"{event!r}: names that start with '$' are the servers' own")
    if event in _UNFIT:
        raise ValueError(f"{event!r}: clients would take it for a message of the protocol's own")


def room_channel(namespace: str, room: str) -> str:
    return f"room{namespace}:{room}"


def user_channel(namespace: str, user_id: str) -> str:
    return f"user{namespace}:{user_id}"


def session_channel(namespace: str, session_id: str) -> str:
    return f"session{namespace}:{session_id}"


def everyone_channel(namespace: str) -> str:
    return f"all{namespace}:"


def orders_channel(namespace: str) -> str:
    return f"orders{namespace}:"
