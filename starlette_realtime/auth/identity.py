"""What may serve as a user's id.

An id goes into the names of channels and into what other users see, so it is text of bounded length
that every store and every protocol can carry.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

MAX_USER_ID: Final = 255
"""Characters."""


def as_user_id(value: object) -> str | None:
    """Return `value` as a user id, or None when it cannot be one.

    Text of 1 to 255 printable characters (`str.isprintable`) stays as it is; an integer (a database
    key) and a UUID become their usual text.
    """
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        # str() of a huge integer is refused by Python itself, and no key is that large.
        value = str(value) if isinstance(value, UUID) or abs(value) < 1 << 128 else ""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_USER_ID or not value.isprintable():
        return None
    return str(value)
