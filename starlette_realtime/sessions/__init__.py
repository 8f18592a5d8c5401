"""Session stores."""

from .base import SessionRecord, SessionStore
from .memory import MemorySessions

__all__ = ["MemorySessions", "SessionRecord", "SessionStore"]
