"""Brokers: pub/sub and history in one atomic step."""

from .base import Broker, HistoryBroker, Listener
from .memory import MemoryBroker

__all__ = ["Broker", "HistoryBroker", "Listener", "MemoryBroker"]
