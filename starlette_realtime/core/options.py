"""The knobs of a server, with their defaults. Durations in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigurationError


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
    max_queued: int = 1_000_000
    """Bytes that may wait for a slow connection before it is closed with 4502."""
    handler_timeout: float = 30.0
    """A handler that takes longer is cancelled, its sender told `timeout`."""
    ack_timeout: float = 10.0
    """How long the server waits for a client's ack, unless told otherwise."""
    shutdown_timeout: float = 5.0
    """How long stopping may take before what is left is cut."""
    resume_window: float = 120.0
    """How long a session outlives its connection."""

    # Rooms
    max_rooms: int = 100
    """Rooms one session may be in."""
    history: int = 1000
    """Publications kept per room."""
    history_age: float = 86_400.0
    """How long they are kept."""
    recent: int = 50
    """Of these, how many a client gets on joining."""
    recover_limit: int = 1000
    """Publications a client may have missed and still recover."""
    page_limit: int = 100
    """Items on a page of history or members."""

    # Presence
    presence_ttl: float = 30.0
    """A lease that a crashed process no longer renews ends after so long."""
    presence_grace: float = 5.0
    """How long a lost connection counts as present, so that a quick reconnect is not seen."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must not be negative")
        if self.max_payload < 1024:
            raise ConfigurationError("max_payload must be at least 1024 bytes")
        if self.ping_interval <= 0 or self.ping_timeout <= 0:
            raise ConfigurationError("ping_interval and ping_timeout must be above 0")
