"""Where a client's token is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from ..errors import AuthenticationFailed
from ..protocols.native import TOKEN_PREFIX
from .base import Credentials
from .token import MAX_TOKEN

_MAX_PARAMETERS: Final = 100


def _only(tokens: list[str]) -> str:
    """Of several tokens in one place, client and proxy might each mean another one."""
    if not tokens:
        return ""
    tokens = [token for token in tokens if token]
    if len(tokens) > 1:
        raise AuthenticationFailed("several tokens")
    return tokens[0] if tokens else ""


def _from_subprotocols(scope: Mapping[str, Any]) -> str:
    offered = scope.get("subprotocols") or ()
    return _only([p[len(TOKEN_PREFIX) :] for p in offered if p.startswith(TOKEN_PREFIX)])


def _from_header(scope: Mapping[str, Any]) -> str:
    tokens = []
    for name, value in scope.get("headers") or ():
        if name.lower() == b"authorization":
            scheme, _, token = value.decode("latin-1").strip(" \t").partition(" ")
            if scheme.lower() == "bearer":
                tokens.append(token.strip(" \t"))
    return _only(tokens)


def _from_query(scope: Mapping[str, Any]) -> str:
    query = scope.get("query_string") or b""
    if b"=" not in query:
        return ""
    try:
        pairs = parse_qsl(query.decode("latin-1"), max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise AuthenticationFailed("malformed query") from None
    return _only([value for name, value in pairs if name == "ticket"])


def find_credentials(scope: Mapping[str, Any], message_token: object = None) -> Credentials:
    """Return what the client of this ASGI scope shows.

    The token is the first found of: `message_token`, which stood in the client's first message; the
    subprotocol `realtime.token.<token>`; the header `Authorization: Bearer <token>` (RFC 6750,
    section 2.1; the scheme in any case); the query parameter `ticket`. An empty one counts as none.

    Raises:
        AuthenticationFailed: the token is longer than 8192 characters, is not text, or stands
            several times in the same place.
    """
    if message_token is not None and not isinstance(message_token, str):
        raise AuthenticationFailed("malformed token")
    token, source = message_token or "", "message"
    if not token:
        token, source = _from_subprotocols(scope), "subprotocol"
    if not token:
        token, source = _from_header(scope), "header"
    if not token:
        token, source = _from_query(scope), "query"
    if len(token) > MAX_TOKEN:
        raise AuthenticationFailed("token too long")
    return Credentials(scope, token, source if token else "")
