"""One-time tickets: how a client that can set no header and send no message shows who it is."""

from .auth import TicketAuth
from .base import TicketStore
from .memory import MemoryTickets

__all__ = ["MemoryTickets", "TicketAuth", "TicketStore"]
