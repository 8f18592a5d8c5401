"""Tokens that the app signs itself, with itsdangerous."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from itsdangerous import BadData, BadPayload, URLSafeTimedSerializer

from ..errors import AuthenticationFailed, ConfigurationError
from .base import User
from .identity import as_user_id
from .token import MAX_TOKEN, TokenAuth

MIN_SECRET: Final = 16
"""Bytes of the shortest secret that is accepted; 32 are better."""

# A payload (a leading dot says that it is compressed), a time and a signature, in base64url.
_SHAPE = re.compile(r"\.?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")

# How far the clocks of two machines that share a secret may be apart, in seconds.
_SKEW: Final = 60


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    """What stands in a token. Short names: it travels with every connection."""

    sub: str
    info: Any = None
    claims: dict[str, Any] = {}
    rooms: list[str] | None = None
    exp: float | None = None


def looks_signed(token: str) -> bool:
    """Whether `token` has the outer form of what `create_token` makes, right or wrong."""
    return _SHAPE.match(token) is not None


def check_secrets(secret: str | bytes | Sequence[str | bytes], owner: str) -> list[bytes]:
    """Return the secrets, newest first.

    Raises:
        ConfigurationError: there is none, or one is too short to withstand guessing.
    """
    given = [secret] if isinstance(secret, str | bytes) else list(secret)
    if not given:
        raise ConfigurationError(f"{owner} needs at least one secret")
    secrets = []
    for one in given:
        if not isinstance(one, str | bytes):
            raise ConfigurationError(
                f"{owner}: a secret is text or bytes, not {type(one).__name__}"
            )
        raw = one.encode() if isinstance(one, str) else one
        if len(raw) < MIN_SECRET:
            raise ConfigurationError(
                f"{owner}: a secret of {len(raw)} bytes can be guessed; at least {MIN_SECRET} are"
                " needed, 32 or more recommended. Make one with:"
                ' python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        secrets.append(raw)
    return secrets


class SignedTokenAuth(TokenAuth):
    """Tokens made by `create_token`, signed with HMAC-SHA-256 under a secret only the app knows.

    What stands in a token can be read by whoever holds it; it cannot be changed.

    Args:
        secret: one secret, or several, newest first: the first signs, all verify. To change the
            secret, put the new one in front and drop the old one after `max_age`.
        max_age: seconds after which any token ends.
        salt: separates these tokens from others made with the same secret: a token made for one
            salt does not hold under another.
        clock: the time in seconds since the Unix epoch, against which tokens are checked.

    Raises:
        ConfigurationError: a secret is shorter than 16 bytes, or `max_age` is not positive.
    """

    def __init__(
        self,
        secret: str | bytes | Sequence[str | bytes],
        *,
        max_age: float = 3600,
        salt: str = "starlette-realtime.auth",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < max_age < math.inf:
            raise ConfigurationError("SignedTokenAuth: max_age is a positive number of seconds")
        self._max_age = max_age
        self._clock = clock
        self._serializer = URLSafeTimedSerializer(
            # Oldest first is what the serializer wants: it signs with the last.
            check_secrets(secret, "SignedTokenAuth")[::-1],
            salt=salt,
            # ensure_ascii: a lone surrogate must fail here rather than on the wire.
            serializer_kwargs={"allow_nan": False, "ensure_ascii": False},
            signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
        )

    def create_token(
        self,
        user_id: str | int,
        info: Any = None,
        *,
        claims: Mapping[str, Any] | None = None,
        expires_in: float | None = None,
        capabilities: Sequence[str] | None = None,
    ) -> str:
        """Return a token for this user; characters of base64url and dots.

        Args:
            user_id: 1 to 255 printable characters.
            info: what others may see of the user; JSON.
            claims: anything else the app wants to find in `User.claims`; JSON.
            expires_in: seconds until the token ends, at most `max_age`, which is the default.
            capabilities: patterns of the rooms it allows (`"chat/*"`); None for no restriction.

        Raises:
            ValueError: an argument is not as above, or the token would exceed 8192 characters.
            TypeError: `info` or `claims` are not JSON.
        """
        subject = as_user_id(user_id)
        if subject is None:
            raise ValueError("a user id has 1 to 255 printable characters")
        if expires_in is not None and not 0 < expires_in <= self._max_age:
            raise ValueError(
                f"expires_in is above 0 and at most max_age ({self._max_age:g} seconds)"
            )
        if isinstance(capabilities, str):
            raise ValueError("capabilities is a list of patterns, not one text")
        payload: dict[str, Any] = {"sub": subject}
        if info is not None:
            payload["info"] = info
        if claims:
            payload["claims"] = dict(claims)
        if capabilities is not None:
            payload["rooms"] = list(capabilities)
        if expires_in is not None:
            payload["exp"] = self._clock() + expires_in
        try:
            msgspec.convert(payload, _Payload)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None
        token = self._serializer.dumps(payload)
        if len(token) > MAX_TOKEN:
            raise ValueError(
                f"the token would have {len(token)} characters; {MAX_TOKEN} are allowed"
            )
        return token

    async def verify(self, token: str) -> User:
        if len(token) > MAX_TOKEN or not looks_signed(token):
            raise AuthenticationFailed("malformed token")
        try:
            raw, signed_at = self._serializer.loads(token, return_timestamp=True)
            payload = msgspec.convert(raw, _Payload)
        except (BadPayload, msgspec.ValidationError, RecursionError):
            # Signed under our secret and salt, but not by `create_token`.
            raise AuthenticationFailed("malformed token") from None
        except (BadData, ValueError, OverflowError):
            raise AuthenticationFailed("bad signature") from None
        now = self._clock()
        signed = signed_at.timestamp()
        ends = signed + self._max_age
        if payload.exp is not None:
            ends = min(ends, payload.exp)
        if now >= ends:
            raise AuthenticationFailed("token expired")
        if signed > now + _SKEW:
            raise AuthenticationFailed("token not yet valid")
        if as_user_id(payload.sub) is None:
            raise AuthenticationFailed("malformed token")
        return User(
            id=payload.sub,
            info=payload.info,
            expires_at=ends,
            capabilities=None if payload.rooms is None else tuple(payload.rooms),
            claims=payload.claims,
        )
