"""From a URL to the classes behind it: the only place that knows both."""

from __future__ import annotations

from urllib.parse import urlsplit

from .brokers.memory import MemoryBroker
from .core.runtime import Stores
from .errors import ConfigurationError
from .inbox.memory import MemoryInbox
from .limits.memory import MemoryLimits
from .presence.memory import MemoryPresence
from .sessions.memory import MemorySessions

ENVIRONMENT = "REALTIME_BACKEND"
"""Environment variable that names the backend where the code does not."""


def stores_from_url(url: str) -> Stores:
    """Return the stores that `url` asks for.

    Raises:
        ConfigurationError: no backend has such a URL, or what it needs is not installed.
    """
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        broker = MemoryBroker()
        return Stores(
            broker, MemoryPresence(broker), MemorySessions(), MemoryLimits(), MemoryInbox()
        )
    raise ConfigurationError(f"no backend for {url!r}: use memory://")
