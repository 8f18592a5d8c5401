"""The package's words: frozen values that travel between its floors. No behaviour, no I/O.

Times are integers in milliseconds since the Unix epoch; durations are floats in seconds. A payload
in canonical form is JSON in UTF-8, with bytes as `protocols.payload` writes them.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Final

import msgspec


class Position(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A place in a channel's stream: after the publication with this `offset`, within `epoch`.

    `nonce` names the very publication at `offset`, where a broker can lose acknowledged writes in
    a failover; empty elsewhere.
    """

    epoch: str
    offset: int
    nonce: str = ""


class Lane(enum.IntEnum):
    """Where in a channel's stream a publication is kept.

    The two kept lanes share one run of offsets and are trimmed separately, so that arrivals and
    departures never push messages out.
    """

    NONE = 0
    """Not kept, no offset: delivered at most once to who is there."""
    HISTORY = 1
    PRESENCE = 2


class Draft(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a publisher hands to a broker."""

    event: str
    data: bytes
    """The payload in canonical form."""
    id: str = ""
    """Idempotency key within the channel; empty for none. Also what `amends` refers to."""
    lane: Lane = Lane.HISTORY
    exclude: str = ""
    """Id of a session that does not get it."""
    volatile: bool = False
    """May be dropped for a slow receiver."""
    key: str = ""
    """For a slow receiver, a later publication with the same key replaces this one."""
    amends: str = ""
    """Id of an earlier kept publication whose stored payload becomes `amended`."""
    amended: bytes = b""
    expects: bytes = b""
    """With `amends`: the payload which that publication must have now. If it has another, or is no
    longer kept, nothing is published. Empty: whatever it has."""
    time: int = 0


class Publication(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a broker announces and keeps. `offset` is 0 when it is not kept."""

    event: str
    data: bytes
    offset: int = 0
    epoch: str = ""
    id: str = ""
    lane: int = 0
    exclude: str = ""
    volatile: bool = False
    key: str = ""
    time: int = 0
    nonce: str = ""
    previous: str = ""
    """Nonce of the publication at `offset - 1`, where the broker has nonces."""

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset, self.nonce)


class Published(msgspec.Struct, frozen=True, gc=False):
    """What a broker answers: where the publication stands. `duplicate` when its id had been
    published before, and nothing was announced now."""

    position: Position
    duplicate: bool = False
    conflict: bool = False
    """What it amends is not as `Draft.expects` says: nothing was published or remembered."""


class Retention(msgspec.Struct, frozen=True, gc=False):
    """How much of a channel's stream is kept."""

    size: int = 1000
    """Publications in the history lane."""
    age: float = 86_400.0
    """Seconds after which a kept publication goes."""
    presence: int = 1000
    """Publications in the presence lane."""


NOTHING_KEPT: Final = Retention(0, 0.0, 0)
"""Of what is told and kept nowhere."""


class Recovery(msgspec.Struct, frozen=True):
    """What followed a position, oldest first, and where the stream ends.

    When `recovered` is false (foreign epoch, fork, trimmed) `publications` is empty.
    """

    publications: list[Publication]
    position: Position
    recovered: bool


class Page(msgspec.Struct, frozen=True):
    """A page of the history lane, oldest first. `more`: whether there is more in that direction."""

    publications: list[Publication]
    position: Position
    more: bool = False


MAX_NAME: Final = 255
"""Characters of an event's, a room's or a namespace's name."""
MAX_ID: Final = 255
"""Characters of an `id` that is a string; one that is a number has at most 64 bits."""
MAX_MESSAGE_ID: Final = 64
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
_Id = (
    Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    | Annotated[str, msgspec.Meta(max_length=MAX_ID)]
)


class Command(msgspec.Struct, frozen=True, gc=False):
    """One message from a client, as every protocol's codec hands it to the engine."""

    type: _Name
    id: _Id | None = None
    room: _Name | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    since: Position | None = None
    message_id: Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE_ID)] = msgspec.field(
        default="", name="messageId"
    )
    ns: _Name = "/"


class MemberInfo(msgspec.Struct, frozen=True):
    """A user in a room, as lists of members show it."""

    user_id: str = msgspec.field(name="userId")
    user: Any = None
    status: str = "online"


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A private message, as the stream of one of its two people keeps it."""

    id: str
    sender_id: str
    target_id: str
    sender: bytes = b"null"
    """What others may see of the sender, in canonical form."""
    content: bytes
    """In canonical form."""
    time: int
    read: bool = False
    """Whether the target has read it."""
    offset: int = 0
    """Its place in the stream it was read from."""


class Letters(msgspec.Struct, frozen=True):
    """Some of a stream's letters, oldest first. `more`: whether there are more that way."""

    letters: list[Letter]
    more: bool = False


class Kept(msgspec.Struct, frozen=True):
    """What an inbox answers: the letter as it is kept. `duplicate` when its id had been kept
    before, and this is the first one; if that has been trimmed since, without its content and at
    the offset 0."""

    letter: Letter
    duplicate: bool = False
