"""Presence: who is where, by leases."""

from .base import Counts, Lease, MemberPage, PresenceStore
from .memory import MemoryPresence

__all__ = ["Counts", "Lease", "MemberPage", "MemoryPresence", "PresenceStore"]
