"""Limit stores."""

from .base import LimitStore
from .memory import MemoryLimits

__all__ = ["LimitStore", "MemoryLimits"]
