"""The tokens clients show. python-socketio's server checks the same ones, by the same signature."""

from __future__ import annotations

import hashlib
from pathlib import Path

from itsdangerous import URLSafeTimedSerializer

SECRET = "a secret that only benchmarks share"
MAX_AGE = 86_400


def write_tokens(path: Path, count: int) -> None:
    """Write one token a line, each of a user of its own."""
    from starlette_realtime import SignedTokenAuth

    auth = SignedTokenAuth(SECRET, max_age=MAX_AGE)
    path.write_text("".join(f"{auth.create_token(f'user-{i}')}\n" for i in range(count)))


_serializer = URLSafeTimedSerializer(
    SECRET,
    salt="starlette-realtime.auth",
    signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
)


def read_token(token: str) -> str:
    """Return the user's id, for servers that are not ours.

    Raises:
        itsdangerous.BadSignature: it is not one of our tokens, or too old.
    """
    return str(_serializer.loads(token, max_age=MAX_AGE)["sub"])
