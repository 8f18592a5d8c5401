"""Stores of private messages."""

from .base import InboxStore
from .memory import MemoryInbox

__all__ = ["InboxStore", "MemoryInbox"]
