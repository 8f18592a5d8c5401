"""JSON Web Tokens (RFC 7519), checked as RFC 8725 advises. Needs `starlette-realtime[jwt]`."""

from __future__ import annotations

import base64
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final

import anyio.to_thread
import msgspec

from ..errors import AuthenticationFailed, ConfigurationError
from .base import User
from .identity import as_user_id
from .token import MAX_TOKEN, TokenAuth

logger = logging.getLogger("starlette_realtime.auth")

_HASH_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {
    "secp256r1": "ES256",
    "secp384r1": "ES384",
    "secp521r1": "ES512",
    "secp256k1": "ES256K",
}
_KNOWN: Final = frozenset({*_HASH_BYTES, *_RSA, *_CURVES.values(), "EdDSA"})
_MIN_RSA: Final = 2048

# Keys that a token without `kid` is tried against: each try costs a signature check.
_MAX_TRIES: Final = 8

# The end of the year 9999: later times overflow elsewhere.
_LATEST: Final = 253402300799.0

_INSTALL: Final = "JWTAuth needs PyJWT and cryptography: pip install starlette-realtime[jwt]"

KeySource = (
    str | bytes | os.PathLike[str] | Mapping[str, Any] | Sequence[str | bytes | Mapping[str, Any]]
)


class _Key(msgspec.Struct, frozen=True):
    """A key, and the algorithms it may be used with: never another kind of them."""

    kid: str | None
    algorithms: frozenset[str]
    value: Any


class _Header(msgspec.Struct, frozen=True):
    """What counts of a token's header. `jwk`, `jku`, `x5u` and the like would let a token bring its
    own key and are not looked at."""

    alg: str
    kid: str | None = None
    crit: Any = None


class _KeyReader:
    """Makes keys for a fixed set of algorithms, refusing weak ones.

    Raises (from every method):
        ConfigurationError: the key is weak, unreadable or of the wrong kind.
    """

    def __init__(self, algorithms: frozenset[str]) -> None:
        self._algorithms = algorithms
        self._symmetric = algorithms <= _HASH_BYTES.keys()

    def read(self, source: object) -> list[_Key]:
        if isinstance(source, Mapping):
            keys = self._jwks(source)
        elif isinstance(source, str | bytes):
            keys = [self._plain(source)]
        elif isinstance(source, Sequence):
            keys = [key for one in source for key in self.read(one)]
        else:
            raise ConfigurationError(f"JWTAuth: {type(source).__name__} is not a key")
        if not keys:
            raise ConfigurationError(
                f"JWTAuth: no key for {', '.join(sorted(self._algorithms))} was given"
            )
        return keys

    def read_file(self, path: Path) -> list[_Key]:
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"JWTAuth: cannot read {path}: {error.strerror}") from None
        if raw.lstrip().startswith(b"{"):
            try:
                content = msgspec.json.decode(raw)
            except (msgspec.DecodeError, RecursionError):
                raise ConfigurationError(f"JWTAuth: {path} is not JSON") from None
            return self.read(content)
        if self._symmetric:
            raise ConfigurationError(f"JWTAuth: {path} is not a JWKS file, as HS* needs")
        return self.read(raw)

    def _plain(self, source: str | bytes) -> _Key:
        raw = source.encode() if isinstance(source, str) else source
        return self._checked(None, raw if self._symmetric else _public_key_from_pem(raw))

    def _jwks(self, source: Mapping[str, Any]) -> list[_Key]:
        if "keys" not in source:
            return [key for key in [self._jwk(source)] if key is not None]
        if not isinstance(source["keys"], list):
            raise ConfigurationError("JWTAuth: a JWKS has a list of keys under `keys`")
        keys = []
        for jwk in source["keys"]:
            if not isinstance(jwk, Mapping):
                raise ConfigurationError("JWTAuth: a JWKS has a list of keys under `keys`")
            key = self._jwk(jwk)
            if key is not None:
                keys.append(key)
        return keys

    def _jwk(self, jwk: Mapping[str, Any]) -> _Key | None:
        """Return the key, or None when it is meant for something else (RFC 7517, section 5)."""
        import jwt.algorithms

        operations = jwk.get("key_ops")
        if jwk.get("use", "sig") != "sig" or (
            isinstance(operations, list) and "verify" not in operations
        ):
            return None
        readers: dict[str, Any] = {
            "oct": jwt.algorithms.HMACAlgorithm,
            "RSA": jwt.algorithms.RSAAlgorithm,
            "EC": jwt.algorithms.ECAlgorithm,
            "OKP": jwt.algorithms.OKPAlgorithm,
        }
        kind, kid, only = jwk.get("kty"), jwk.get("kid"), jwk.get("alg")
        # A secret among public keys, or the reverse, is another system's.
        if not isinstance(kind, str) or kind not in readers or (kind == "oct") != self._symmetric:
            return None
        try:
            value = readers[kind].from_jwk(dict(jwk))
        except (jwt.PyJWTError, ValueError, TypeError, LookupError, AttributeError):
            # An unknown curve, or one for key agreement: the other keys may still be ours.
            logger.warning("a key of the JWKS cannot be used: kid %r", kid)
            return None
        if not isinstance(value, bytes):
            value = _public(value)
        key = self._checked(kid if isinstance(kid, str) else None, value, strict=False)
        if isinstance(only, str):
            key = msgspec.structs.replace(key, algorithms=key.algorithms & {only})
        return key if key.algorithms else None

    def _checked(self, kid: str | None, value: Any, *, strict: bool = True) -> _Key:
        """Return the key with those of the algorithms it fits; if `strict`, there must be one."""
        import jwt.algorithms

        fitting = _algorithms_of(value) & self._algorithms
        if isinstance(value, bytes):
            needed = max(_HASH_BYTES[name] for name in self._algorithms)
            if len(value) < needed:
                raise ConfigurationError(
                    f"JWTAuth: a secret of {len(value)} bytes is too short for"
                    f" {', '.join(sorted(self._algorithms))}: at least {needed} are needed"
                    " (RFC 7518, section 3.2). Make one with:"
                    f' python -c "import secrets; print(secrets.token_hex({needed}))"'
                )
            try:
                # Refuses what looks like a public key, which is no secret.
                jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).prepare_key(value)
            except jwt.InvalidKeyError:
                raise ConfigurationError(
                    "JWTAuth: the secret for HS* looks like a key pair's key; its holder could sign"
                    " tokens. Name the algorithms of that key instead"
                ) from None
        elif fitting and fitting <= _RSA and value.key_size < _MIN_RSA:
            raise ConfigurationError(
                f"JWTAuth: an RSA key of {value.key_size} bits is too short: at least"
                f" {_MIN_RSA} are needed (RFC 7518, section 3.3)"
            )
        if strict and not fitting:
            raise ConfigurationError(
                f"JWTAuth: the key does not fit {', '.join(sorted(self._algorithms))}"
            )
        return _Key(kid, fitting, value)


def _public(key: Any) -> Any:
    """Return the public half: signatures are only checked here."""
    return key.public_key() if hasattr(key, "public_key") else key


def _public_key_from_pem(raw: bytes) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509 import load_pem_x509_certificate

    try:
        if b"-----BEGIN CERTIFICATE-----" in raw:
            return load_pem_x509_certificate(raw).public_key()
        if b"PRIVATE KEY-----" in raw:
            return serialization.load_pem_private_key(raw, password=None).public_key()
        return serialization.load_pem_public_key(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigurationError(
            "JWTAuth: the key is not a PEM public key or certificate; for a JWKS file give a Path"
        ) from None


def _algorithms_of(value: Any) -> frozenset[str]:
    """Return the algorithms that go with this kind of key."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    if isinstance(value, bytes):
        return frozenset(_HASH_BYTES)
    if isinstance(value, rsa.RSAPublicKey):
        return _RSA
    if isinstance(value, ec.EllipticCurvePublicKey):
        return frozenset({_CURVES[value.curve.name]} if value.curve.name in _CURVES else ())
    if isinstance(value, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return frozenset({"EdDSA"})
    return frozenset()


def _header_of(token: str) -> _Header:
    try:
        encoded = token[: token.index(".")].encode("ascii")
        if token.count(".") != 2:
            raise ValueError
        raw = base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
        return msgspec.json.decode(raw, type=_Header)
    except (ValueError, RecursionError):
        raise AuthenticationFailed("malformed token") from None


def _texts(value: str | Iterable[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


class JWTAuth(TokenAuth):
    """JSON Web Tokens of an identity provider or of the app.

    `sub` becomes the user's id, `exp` is required, and `nbf` and `iat` count when they are there.
    All claims are in `User.claims`.

    Args:
        key: what signatures are checked with: a secret (HS*), a PEM public key or certificate, a
            JWKS or a single JWK as a dict, a list of these to change keys, or the `Path` of a JWKS
            or PEM file, which is read again when it has changed. In a JWKS the token's `kid`
            selects.
        algorithms: the ones allowed, such as `["RS256"]`. A token does not choose among others,
            and a key is never used with an algorithm of another kind.
        audience: one of these must be in `aud`. Without it, a token that has `aud` is refused: it
            was made for someone else.
        issuer: `iss` must be one of these.
        leeway: seconds by which clocks may differ.
        info: the claims others may see of the user, which become `User.info` as a dict; a single
            name becomes that claim itself.
        capabilities: the claim with the patterns of rooms the token allows: a list, or text
            separated by spaces. A token without it is not restricted.

    Raises:
        ConfigurationError: PyJWT is not installed; no, an unknown or the `none` algorithm; HS*
            mixed with others; a secret shorter than the hash, an RSA key below 2048 bits; no usable
            key.
    """

    def __init__(
        self,
        key: KeySource,
        *,
        algorithms: Sequence[str],
        audience: str | Iterable[str] | None = None,
        issuer: str | Iterable[str] | None = None,
        leeway: float = 0,
        info: str | Sequence[str] | None = ("name", "picture"),
        capabilities: str | None = "rooms",
    ) -> None:
        try:
            import cryptography  # noqa: F401
            import jwt
        except ImportError:
            raise ConfigurationError(_INSTALL) from None
        self._jwt = jwt
        self._algorithms = _check_algorithms(algorithms)
        self._audience = None if audience is None else _texts(audience)
        self._issuers = None if issuer is None else _texts(issuer)
        if self._audience == () or self._issuers == ():
            raise ConfigurationError("JWTAuth: an empty audience or issuer admits nobody")
        if not 0 <= leeway < math.inf:
            raise ConfigurationError("JWTAuth: leeway is a number of seconds")
        self._leeway = leeway
        self._info = info
        self._capabilities = capabilities
        reader = _KeyReader(self._algorithms)
        self._file: _KeyFile | None = None
        if isinstance(key, os.PathLike):
            self._file = _KeyFile(Path(key), reader)
            self._keys = self._file.keys
        else:
            self._keys = reader.read(key)

    async def verify(self, token: str) -> User:
        if len(token) > MAX_TOKEN:
            raise AuthenticationFailed("malformed token")
        header = _header_of(token)
        if header.alg not in self._algorithms:
            raise AuthenticationFailed("algorithm not allowed")
        # No extension is understood, so none may be critical (RFC 7515, section 4.1.11).
        if header.crit is not None:
            raise AuthenticationFailed("malformed token")
        if self._file is not None:
            self._keys = await self._file.current()
        return self._user(self._claims(token, header))

    def _candidates(self, header: _Header) -> list[_Key]:
        fitting = [key for key in self._keys if header.alg in key.algorithms]
        if header.kid is not None:
            named = [key for key in fitting if key.kid == header.kid]
            fitting = named or [key for key in fitting if key.kid is None]
        if not fitting:
            raise AuthenticationFailed("unknown key")
        return fitting[:_MAX_TRIES]

    def _claims(self, token: str, header: _Header) -> dict[str, Any]:
        jwt = self._jwt
        for key in self._candidates(header):
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key.value,
                    algorithms=[header.alg],
                    audience=self._audience,
                    leeway=self._leeway,
                    options={"require": ["exp", "sub"], "verify_iss": False},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.ExpiredSignatureError:
                why = "token expired"
            except jwt.ImmatureSignatureError:
                why = "token not yet valid"
            except jwt.InvalidAudienceError:
                why = "wrong audience"
            except jwt.MissingRequiredClaimError as error:
                why = f"missing claim {error.claim}"
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
                why = "malformed token"
            else:
                return claims
            raise AuthenticationFailed(why)
        raise AuthenticationFailed("bad signature")

    def _user(self, claims: dict[str, Any]) -> User:
        if self._issuers is not None:
            issuer = claims.get("iss")
            if issuer is None:
                raise AuthenticationFailed("missing claim iss")
            if not isinstance(issuer, str) or issuer not in self._issuers:
                raise AuthenticationFailed("wrong issuer")
        subject, expires = claims["sub"], claims["exp"]
        if not isinstance(subject, str) or as_user_id(subject) is None:
            raise AuthenticationFailed("unusable claim sub")
        if not isinstance(expires, int | float):
            raise AuthenticationFailed("malformed token")
        try:
            # What JSON can say and a payload cannot: surrogate halves, huge integers.
            msgspec.json.encode(claims)
            expires_at = min(float(expires) + self._leeway, _LATEST)
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise AuthenticationFailed("malformed token") from None
        return User(
            id=subject,
            info=self._info_of(claims),
            expires_at=expires_at,
            capabilities=self._capabilities_of(claims),
            claims=claims,
        )

    def _info_of(self, claims: dict[str, Any]) -> Any:
        if self._info is None:
            return None
        if isinstance(self._info, str):
            return claims.get(self._info)
        return {name: claims[name] for name in self._info if name in claims} or None

    def _capabilities_of(self, claims: dict[str, Any]) -> tuple[str, ...] | None:
        if self._capabilities is None or self._capabilities not in claims:
            return None
        rooms = claims[self._capabilities]
        if isinstance(rooms, str):
            return tuple(rooms.split())
        # A restriction that is not understood must not become none at all.
        if not isinstance(rooms, list) or not all(isinstance(room, str) for room in rooms):
            raise AuthenticationFailed(f"malformed claim {self._capabilities}")
        return tuple(rooms)


def _check_algorithms(algorithms: Sequence[str]) -> frozenset[str]:
    if isinstance(algorithms, str):
        algorithms = [algorithms]
    named = frozenset(map(str, algorithms))
    if not named:
        raise ConfigurationError('JWTAuth: name the algorithms, as in algorithms=["RS256"]')
    for name in named:
        if name.lower() == "none":
            raise ConfigurationError("JWTAuth: the algorithm `none` would admit everyone")
    if not named <= _KNOWN:
        unknown = ", ".join(sorted(named - _KNOWN))
        raise ConfigurationError(
            f"JWTAuth: unknown algorithm {unknown}; there are {', '.join(sorted(_KNOWN))}"
        )
    if named & _HASH_BYTES.keys() and not named <= _HASH_BYTES.keys():
        raise ConfigurationError(
            "JWTAuth: HS* cannot be mixed with other algorithms: a public key would serve as the"
            " secret"
        )
    return named


class _KeyFile:
    """The keys in a file, read again when it has changed; looked at once a second at most.

    A file that is gone or unreadable at that moment leaves the keys as they were, and an error in
    the log.
    """

    def __init__(self, path: Path, reader: _KeyReader) -> None:
        self._path = path
        self._reader = reader
        self._checked = monotonic()
        self._state = self._look()
        self.keys = reader.read_file(path)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _refresh(self) -> None:
        state = self._look()
        if state == self._state:
            return
        self._state = state
        try:
            self.keys = self._reader.read_file(self._path)
        except ConfigurationError as error:
            logger.error("the keys stay as they were: %s", error)

    async def current(self) -> list[_Key]:
        now = monotonic()
        if now - self._checked >= 1:
            # Before the wait, so that the others meanwhile go on with the keys there are.
            self._checked = now
            await anyio.to_thread.run_sync(self._refresh)
        return self.keys
