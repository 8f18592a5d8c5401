"""The knobs of a server, with their defaults. Durations in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from ..errors import ConfigurationError


def refuse_negative(name: str, value: float) -> None:
    """Raise `ConfigurationError` for a negative option, or one that is no number."""
    if not value >= 0:
        raise ConfigurationError(f"{name} must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a `Realtime` behaves. Every value may be changed; the defaults suit a public web app."""

    # Connection
    ping_interval: float = 25.0
    """A client that was silent for so long is pinged."""
    ping_timeout: float = 20.0
    """A client that was pinged and stays silent for so long is cut."""
    auth_timeout: float = 10.0
    """How long the server waits for the first message."""
    max_payload: int = 1_000_000
    """A larger frame from a client closes its connection with 1009."""
    max_queued: int = 4_000_000
    """Bytes that may wait for a slow connection before it is closed with 4502."""
    handler_timeout: float = 30.0
    """A handler that takes longer is cancelled, its sender told `timeout`."""
    ack_timeout: float = 10.0
    """How long the server waits for a client's ack, unless told otherwise."""
    shutdown_timeout: float = 5.0
    """How long stopping may take before what is left is cut."""
    resume_window: float = 120.0
    """How long a session outlives its connection."""
    io_uring: bool = True
    """Whether a room's messages are written by Linux's io_uring, where the server and the system
    allow it."""

    # Rooms
    max_rooms: int = 100
    """Rooms one session may be in; 0 for any number."""
    history: int = 1000
    """Publications kept per room."""
    history_age: float = 86_400.0
    """How long they are kept."""
    recent: int = 50
    """Of these, how many a client gets on joining."""
    recent_bytes: int = 1_000_000
    """Bytes of payload that a client gets at most on joining, and on a page of history."""
    recover_limit: int = 1000
    """Publications a client may have missed and still recover."""
    page_limit: int = 100
    """Items on a page of history or members."""

    # Limits; 0 is no limit. Rates are per second, with a burst that may come at once.
    message_rate: float = 50.0
    """Messages of one connection."""
    message_burst: float = 200.0
    user_rate: float = 100.0
    """Messages of all of a user's connections, on all processes."""
    user_burst: float = 400.0
    room_rate: float = 0.0
    """Messages of clients into one room, on all processes."""
    room_burst: float = 1000.0
    join_rate: float = 20.0
    """Rooms one connection joins."""
    join_burst: float = 100.0
    max_connections: int = 0
    """Connections of this process."""
    max_connections_per_user: int = 50
    max_connections_per_ip: int = 500
    max_handlers: int = 1000
    """App handlers at work at the same time on this process; further messages wait."""
    abuse_rate: float = 2.0
    """Refused messages a connection may cause; beyond, it is closed with 1008."""
    abuse_burst: float = 100.0
    idle_timeout: float = 0.0
    """A connection whose client does nothing but answer pings for so long is closed."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks ("10.0.0.0/8") of proxies whose X-Forwarded-For is believed."""

    # Presence
    presence_ttl: float = 30.0
    """A lease that a crashed process no longer renews ends after so long."""
    presence_grace: float = 5.0
    """How long a lost connection counts as present, so that a quick reconnect is not seen."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, int | float):
                refuse_negative(name, value)
        for name in ("message", "user", "room", "join", "abuse"):
            if getattr(self, f"{name}_rate") and getattr(self, f"{name}_burst") < 1:
                raise ConfigurationError(f"{name}_burst must be at least 1")
        for name in ("auth_timeout", "handler_timeout", "ack_timeout", "presence_ttl"):
            if not getattr(self, name):
                raise ConfigurationError(f"{name} must be above 0")
        if self.max_payload < 1024:
            raise ConfigurationError("max_payload must be at least 1024 bytes")
        for network in self.trusted_proxies:
            try:
                ip_network(network)
            except ValueError as error:
                raise ConfigurationError(f"trusted_proxies: {error}") from None
        if self.ping_interval <= 0 or self.ping_timeout <= 0:
            raise ConfigurationError("ping_interval and ping_timeout must be above 0")
