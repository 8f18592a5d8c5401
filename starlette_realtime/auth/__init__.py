"""Who a client is, and from which pages it may come."""

from .anonymous import AnonymousAuth, GuestAuth
from .base import AuthBackend, Credentials, ServerStores, User
from .chain import FirstOf, WithUser
from .credentials import find_credentials
from .jwt import JWTAuth
from .origin import OriginPolicy
from .scope import ScopeUserAuth
from .session import SessionAuth
from .signed import SignedTokenAuth
from .token import TokenAuth, is_token_only

__all__ = [
    "AnonymousAuth",
    "AuthBackend",
    "Credentials",
    "FirstOf",
    "GuestAuth",
    "JWTAuth",
    "OriginPolicy",
    "ScopeUserAuth",
    "ServerStores",
    "SessionAuth",
    "SignedTokenAuth",
    "TokenAuth",
    "User",
    "WithUser",
    "find_credentials",
    "is_token_only",
]
