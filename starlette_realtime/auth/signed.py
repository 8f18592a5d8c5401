"""Tokens that the app signs itself, with itsdangerous."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
import zlib
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from itsdangerous import URLSafeTimedSerializer

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

# The last second that itsdangerous knows: the end of the year 9999.
_LAST: Final = 253_402_300_799

_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    """What stands in a token. Short names: it travels with every connection."""

    sub: str
    info: Any = None
    claims: dict[str, Any] = {}
    rooms: list[str] | None = None
    exp: float | None = None


_read_payload = msgspec.json.Decoder(_Payload).decode


def _from_base64(text: bytes) -> bytes:
    """Decode base64url without padding."""
    return a2b_base64(text.translate(_FROM_URL_SAFE) + b"=" * (-len(text) % 4))


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

    What stands in a token can be read by whoever holds it; it cannot be changed. Tokens are those
    of itsdangerous' `URLSafeTimedSerializer` with `key_derivation="hmac"` and SHA-256, which makes
    them. They are checked here, in a third of its time: every new connection waits for that.

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
        secrets = check_secrets(secret, "SignedTokenAuth")
        self._keys = [hmac.digest(secret, salt.encode(), "sha256") for secret in secrets]
        self._serializer = URLSafeTimedSerializer(
            # Oldest first is what the serializer wants: it signs with the last.
            secrets[::-1],
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
        packed, signed = self._unsign(token.encode())
        try:
            payload = _read_payload(_unpack(packed))
        except (ValueError, zlib.error, RecursionError):
            # Signed under our secret and salt, but not by `create_token`.
            raise AuthenticationFailed("malformed token") from None
        now = self._clock()
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

    def _unsign(self, token: bytes) -> tuple[bytes, int]:
        """Return the payload of a token and when it was signed, in seconds since the Unix epoch.

        Raises:
            AuthenticationFailed: it was not signed under one of the secrets, or at no time.
        """
        signed, _, signature = token.rpartition(b".")
        packed, _, time = signed.rpartition(b".")
        try:
            given = _from_base64(signature)
            at = int.from_bytes(_from_base64(time), "big")
        except ValueError:
            raise AuthenticationFailed("bad signature") from None
        for key in self._keys:
            if hmac.compare_digest(given, hmac.digest(key, signed, "sha256")) and at <= _LAST:
                return packed, at
        raise AuthenticationFailed("bad signature")


def _unpack(packed: bytes) -> bytes:
    """Return the JSON text of a payload, which a dot marks as compressed.

    Raises:
        ValueError, zlib.error: it is none.
    """
    if packed[:1] == b".":
        return zlib.decompress(_from_base64(packed[1:]))
    return _from_base64(packed)
