"""The connection that all Redis stores share. Needs redis-py and asyncio."""

from .reader import Health, Reader
from .scripts import Script, load
from .server import RedisServer, RedisStore, Refused
from .url import RedisURL

__all__ = ["Health", "Reader", "RedisServer", "RedisStore", "RedisURL", "Refused", "Script", "load"]
