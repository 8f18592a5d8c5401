"""The native protocol: JSON objects in text frames (docs/protocol.md). Pure: text in, commands out;
words in, bytes out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from ..errors import ClientError, InvalidMessage
from ..events import MAX_ID, MAX_MESSAGE_ID, MAX_NAME, Command, Position, Publication
from .payload import out_of_range, too_deep

SUBPROTOCOLS: Final = ("", "realtime.v1", "realtime.v2")
"""By version, what clients offer that take more than one object in a frame: with 1 several, with 2
also those that go without what they share with the one before."""
TOKEN_PREFIX: Final = "realtime.token."
"""Start of the subprotocol entry that carries a token."""
MAX_OBJECTS: Final = 256
"""Objects a client may put into one frame."""
MAX_DEPTH: Final = 64

# A number is found faster than `b"\n"`, which is first tried, and fails, to be taken for one.
_NEWLINE = ord("\n")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class _Unbounded(Command, frozen=True, gc=False):
    """A command whose strings may be too long for one."""

    type: str
    id: int | str | None = None
    room: str | None = None
    message_id: str = msgspec.field(default="", name="messageId")
    ns: str = "/"


_command = msgspec.json.Decoder(Command)
_unbounded = msgspec.json.Decoder(_Unbounded)
_loose = msgspec.json.Decoder(dict[str, Any])
_json = msgspec.json.Encoder().encode


class Refused(msgspec.Struct, frozen=True):
    """A message that could not be taken, the error its sender gets and the id it was sent under."""

    error: ClientError
    id: int | str | None = None


def choose(offered: Collection[str]) -> int:
    """Return the newest version whose subprotocol is offered; 0 without one."""
    return max(
        version for version, name in enumerate(SUBPROTOCOLS) if version == 0 or name in offered
    )


def decode(frame: str | bytes, *, several: bool = False) -> list[Command | Refused]:
    """Return what one frame holds, in order; what cannot be taken stands as `Refused` in its place.

    With `several` the frame may hold newline-separated objects.
    """
    try:
        if isinstance(frame, str):
            raw = frame.encode()
        else:
            raw = bytes(frame)
            # The command's decoder does not look into `data`. That may go on to others as it
            # stands, and invalid UTF-8 in a text frame cuts a connection (RFC 6455, section 8.1).
            raw.decode()
    except UnicodeError:
        return [Refused(InvalidMessage())]
    if _NEWLINE not in raw:
        return [_decode_one(raw)]
    if not several:
        return [_on_one_line(_decode_one(raw))]
    raw = raw.strip(b" \t\r\n")
    if raw.count(b"\n") >= MAX_OBJECTS:
        return [Refused(InvalidMessage(f"Invalid message format: more than {MAX_OBJECTS} objects"))]
    return [_decode_one(line) for line in raw.split(b"\n") if line.strip()] or [
        Refused(InvalidMessage())
    ]


def _decode_one(raw: bytes) -> Command | Refused:
    try:
        command = _command.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _unbounded_command(raw)
        if isinstance(found, Refused):
            return found
        command = found
    # A level takes two bytes at least.
    if len(raw) > 2 * MAX_DEPTH and too_deep(raw, MAX_DEPTH):
        return Refused(InvalidMessage("Invalid message format: nested too deeply"), command.id)
    if out_of_range(raw):
        return Refused(InvalidMessage("Invalid message format: number out of range"), command.id)
    room, ns = command.room, command.ns
    if not (
        (command.type.isprintable() or is_name(command.type))
        and (room is None or room.isprintable() or is_name(room))
        and (ns == "/" or is_name(ns))
    ):
        return Refused(InvalidMessage("Invalid message format: bad name"), command.id)
    return command


def _unbounded_command(raw: bytes) -> Command | Refused:
    """Find out what is wrong with a message that is no command; or nothing, if it is only what
    comes once more behind it."""
    try:
        command = _unbounded.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refused(InvalidMessage(), _id_of(raw))
    id, room = command.id, command.room
    if id is not None and not _echoes(id):
        return Refused(InvalidMessage("Invalid message format: id too long"))
    if not (is_name(command.type) and (room is None or is_name(room)) and is_name(command.ns)):
        return Refused(InvalidMessage("Invalid message format: bad name"), id)
    if len(command.message_id) > MAX_MESSAGE_ID:
        return Refused(InvalidMessage("Invalid message format: messageId too long"), id)
    return command


def _on_one_line(command: Command | Refused) -> Command | Refused:
    """Newlines separate the objects of a frame: in a payload that is spliced into one, what follows
    a newline would be read as a message of the server's own."""
    if isinstance(command, Refused):
        return command
    data = msgspec.Raw(msgspec.json.format(command.data, indent=-1))
    return msgspec.structs.replace(command, data=data)


def is_name(name: str) -> bool:
    """Whether rooms, events and namespaces may be called `name`."""
    # What is printable throughout, and that is nearly every name, has no control characters.
    return 0 < len(name) <= MAX_NAME and (name.isprintable() or not _CONTROL.search(name))


def _echoes(id: int | str) -> bool:
    """Whether `id` is short enough to be repeated in an answer."""
    return len(id) <= MAX_ID if isinstance(id, str) else -(1 << 63) <= id < 1 << 63


def _id_of(raw: bytes) -> int | str | None:
    """The id of a message that is broken elsewhere, so that its sender learns which one it was."""
    try:
        found = _loose.decode(raw).get("id")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(found, bool) or not isinstance(found, int | str):
        return None
    return found if _echoes(found) else None


@lru_cache(maxsize=4096)
def _text(name: str) -> bytes:
    return _json(name)


@lru_cache(maxsize=4096)
def _event_head(ns: str, room: str | None, event: str) -> bytes:
    head = b'{"type":' + _json(event)
    if ns != "/":
        head += b',"ns":' + _json(ns)
    if room is not None:
        head += b',"room":' + _json(room)
    return head


def encode_events(ns: str, room: str | None, publications: Iterable[Publication]) -> list[bytes]:
    """Return the messages publications are to a client: spliced, because this is the hot path."""
    messages = []
    event: str | None = None
    head = b""
    for publication in publications:
        if publication.event != event:
            event = publication.event
            head = _event_head(ns, room, event)
        offset, data = publication.offset, publication.data
        if not offset:
            message = b'%b,"data":%b}' % (head, data)
        elif publication.nonce:
            nonce = _text(publication.nonce)
            message = b'%b,"offset":%d,"nonce":%b,"data":%b}' % (head, offset, nonce, data)
        else:
            message = b'%b,"offset":%d,"data":%b}' % (head, offset, data)
        messages.append(message)
    return messages


def abridge(messages: Sequence[bytes], publications: Sequence[Publication]) -> list[bytes]:
    """Return the messages that publications are as they stand in one frame for a client of version
    2: one that continues the one before it says no more than what is new."""
    abridged = list(messages)
    event: str | None = None
    following = 0
    for number, publication in enumerate(publications):
        offset, data = publication.offset, publication.data
        if publication.event == event and offset == following:
            if publication.nonce:
                nonce = _text(publication.nonce)
                abridged[number] = b'{"nonce":%b,"data":%b}' % (nonce, data)
            else:
                abridged[number] = b'{"data":%b}' % data
        event = publication.event
        following = offset + 1 if offset else 0
    return abridged


def encode(type: str, ns: str = "/", /, **members: Any) -> bytes:
    """Return the message `{"type": type, …members}`. Payloads among the members are `msgspec.Raw`;
    a member that is `None` is sent as `null`, one that is `msgspec.UNSET` is left out."""
    message: dict[str, Any] = {"type": type}
    if ns != "/":
        message["ns"] = ns
    for name, value in members.items():
        if value is not msgspec.UNSET:
            message[name] = value
    return _json(message)


def encode_struct(type: str, ns: str, members: msgspec.Struct) -> bytes:
    """Return the message `{"type": type, …members}`; the struct has one at least."""
    return b"%b,%b" % (_event_head(ns, None, type), _json(members)[1:])


def encode_ack(ns: str, id: int | str, data: bytes) -> bytes:
    """Return the `ack` message: spliced like an event, because most messages cause one."""
    head = b'{"type":"ack"' if ns == "/" else b'{"type":"ack","ns":' + _text(ns)
    return b'%b,"id":%b,"data":%b}' % (head, _json(id), data)


def encode_error(error: ClientError, id: int | str | None = None, ns: str = "/") -> bytes:
    """Return the `error` message for `error`."""
    return encode(
        "error",
        ns,
        code=error.error_code,
        error=error.error,
        retry=error.retry,
        id=msgspec.UNSET if id is None else id,
    )


def position(position: Position) -> dict[str, Any] | None:
    """Return a position as clients keep it; None where nothing is kept."""
    if not position.epoch:
        return None
    wire: dict[str, Any] = {"epoch": position.epoch, "offset": position.offset}
    if position.nonce:
        wire["nonce"] = position.nonce
    return wire
