"""Real-time channels for Starlette, FastAPI and Litestar apps."""

from .app import Realtime
from .auth import (
    AnonymousAuth,
    AuthBackend,
    Credentials,
    FirstOf,
    GuestAuth,
    JWTAuth,
    ScopeUserAuth,
    SessionAuth,
    SignedTokenAuth,
    User,
    WithUser,
)
from .core.gather import Answer, Gathered
from .core.namespace import ConnectionContext, Context, Happening, Namespace, NamespaceFeature
from .core.options import Options
from .core.room import Room
from .core.router import Feature, RoomType, event
from .core.session import Member, Session
from .errors import (
    AccessDenied,
    AckTimeout,
    AuthenticationFailed,
    BrokerUnavailable,
    ClientError,
    CloseConnection,
    ConfigurationError,
    Disconnected,
    InvalidMessage,
    NotInRoom,
    RateLimited,
    RealtimeError,
)
from .events import MemberInfo, Page, Position, Publication, Published
from .features.chat import Chat
from .features.direct import DirectMessages
from .features.status import Presence
from .features.typing import Typing
from .middleware import RealtimeMiddleware
from .publisher import Publisher, SyncPublisher
from .tickets import TicketAuth

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "AckTimeout",
    "AnonymousAuth",
    "Answer",
    "AuthBackend",
    "AuthenticationFailed",
    "BrokerUnavailable",
    "Chat",
    "ClientError",
    "CloseConnection",
    "ConfigurationError",
    "ConnectionContext",
    "Context",
    "Credentials",
    "DirectMessages",
    "Disconnected",
    "Feature",
    "FirstOf",
    "Gathered",
    "GuestAuth",
    "Happening",
    "InvalidMessage",
    "JWTAuth",
    "Member",
    "MemberInfo",
    "Namespace",
    "NamespaceFeature",
    "NotInRoom",
    "Options",
    "Page",
    "Position",
    "Presence",
    "Publication",
    "Published",
    "Publisher",
    "RateLimited",
    "Realtime",
    "RealtimeError",
    "RealtimeMiddleware",
    "Room",
    "RoomType",
    "ScopeUserAuth",
    "Session",
    "SessionAuth",
    "SignedTokenAuth",
    "SyncPublisher",
    "TicketAuth",
    "Typing",
    "User",
    "WithUser",
    "event",
]
