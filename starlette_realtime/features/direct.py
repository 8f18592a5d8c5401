"""Private messages: from user to user, on every device, kept for those who are away."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from ..core.namespace import CallNext, ConnectionContext, Happening, Namespace, Signal
from ..core.online import OFFLINE
from ..core.session import Session, new_id
from ..errors import (
    AccessDenied,
    BrokerUnavailable,
    ClientError,
    CloseCode,
    CloseConnection,
    InvalidMessage,
    TooLarge,
)
from ..events import Kept, Letter
from ..protocols import payload

_MAX_ID = 255
_PAGE_BYTES = 256 * 1024
"""Contents of one `pending-messages`, or of a page of a conversation, have at most about so many
bytes."""

MayMessage = Callable[[Session, str], Awaitable[bool]]


class SendPrivate(msgspec.Struct, rename="camel"):
    """What a client sends as `private-message`."""

    target_user_id: str
    content: Any
    id: str | None = None
    """Chosen by the client: makes a resend harmless."""


class SendReply(msgspec.Struct, rename="camel"):
    """Its ack. `delivered`: a device of the target was online. `timestamp` in milliseconds."""

    success: bool
    message_id: str
    delivered: bool
    timestamp: int


class PrivateMessage(msgspec.Struct, rename="camel"):
    """`private-message`, and what `pending-messages` and `conversation` have many of. `offset` is
    its place among all the private messages of the user who receives it."""

    id: str
    from_user_id: str
    from_user: msgspec.Raw
    to_user_id: str
    content: msgspec.Raw
    timestamp: int
    read: bool
    offset: int


class Messages(msgspec.Struct):
    """`pending-messages`, and the ack of `conversation`: oldest first."""

    messages: list[PrivateMessage]
    more: bool


class Acknowledge(msgspec.Struct, rename="camel"):
    """What a client sends as `ack-messages`: this device has everything up to an offset, or up to
    the message with an id."""

    up_to: int | str


class MarkRead(msgspec.Struct, rename="camel"):
    """What a client sends as `mark-read`, without a room: one message, or what a user has sent up
    to an offset or a message's id. What came before it is read as well."""

    message_id: str | None = None
    user_id: str | None = None
    up_to: int | str | None = None


class Conversation(msgspec.Struct, rename="camel"):
    """What a client sends as `conversation`: a page of it, backwards from the offset `before`."""

    user_id: str
    before: int | None = None
    limit: int = 50


class _Device:
    """A session as a receiver of private messages."""

    __slots__ = ("acknowledged", "again", "backlog_end", "backlog_sent", "busy", "sent", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.acknowledged = 0
        # What was pending on connecting goes out in pages, up to `backlog_end`.
        self.backlog_sent = 0
        self.backlog_end = 0
        # What came later goes out at once; `sent` is how far.
        self.sent = 0
        self.busy = True
        self.again = False

    @property
    def user_id(self) -> str:
        assert self.session.user_id is not None
        return self.session.user_id

    @property
    def id(self) -> str:
        return self.session.device_id or self.session.id


class DirectMessages:
    """`private-message {targetUserId, content}` for a namespace: `realtime.add(DirectMessages())`.

    A message goes to every device of its target and to the sender's other ones. Each user has one
    stream of them, in which a device acknowledges for itself (`ack-messages {upTo}`); what it has
    not acknowledged it gets as `pending-messages` after it has connected, a page at a time. A
    device is what the client names as `deviceId` in its `connect` message; without that name, the
    session is one of its own, and begins where the user's most advanced device stands.

    Args:
        max_length: characters a text may have.
        max_size: bytes any other content may have, as JSON.
        size: messages kept per user.
        per_peer: of these, messages exchanged with any one other user.
        age: seconds after which a message goes.
        may_message: an async function of the session and the target's id that says whether it may
            write to that user. Without it, anyone who is authenticated may write to any id.
        receipts: whether the sender is told (`message-read`) that a message was read.
    """

    def __init__(
        self,
        *,
        max_length: int = 10_000,
        max_size: int = 65_536,
        size: int = 1000,
        per_peer: int = 250,
        age: float = 30 * 86_400.0,
        may_message: MayMessage | None = None,
        receipts: bool = True,
    ) -> None:
        self.max_length = max_length
        self.max_size = max_size
        self.size = size
        self.per_peer = per_peer
        self.age = age
        self.may_message = may_message
        self.receipts = receipts

    def install_namespace(self, target: Namespace) -> None:
        # Asked for, so that it is known who is online.
        target.online  # noqa: B018
        # A device is there before its client is told that it is connected.
        target.middleware("connection")(self._open)
        target.on("connection")(self._connected)
        target.event("private-message")(self.send)
        target.event("ack-messages")(self.acknowledge)
        target.event("mark-read")(self.mark_read)
        target.event("conversation")(self.conversation)
        target.signal("$letter")(self._arrived)
        target.signal("$interrupted")(self._interrupted)

    # Sending

    async def send(self, session: Session, data: SendPrivate) -> SendReply:
        user, engine = session.user, session.engine
        if user is None:
            raise AccessDenied
        target = _checked_user(data.target_user_id)
        content = self._checked_content(data.content)
        if self.may_message is not None and await self.may_message(session, target) is not True:
            raise AccessDenied
        chosen = data.id or session.message_id
        if len(chosen) > _MAX_ID:
            raise InvalidMessage("Invalid message format: id too long")
        letter = Letter(
            id=session.stable_id(f"private-message {target}", chosen) if chosen else new_id(),
            sender_id=user.id,
            target_id=target,
            sender=payload.dump(user.info),
            content=content,
            time=int(time.time() * 1000),
        )
        kept = await self._keep(session, target, letter)
        if target != user.id:
            # A resend, after a failure in between, is the same message here and there.
            first = msgspec.structs.replace(letter, time=kept.letter.time)
            own = await self._keep(session, user.id, first)
        else:
            own = kept
        await self._has_own(session, own.letter.offset)
        statuses = await engine.namespace.online.statuses(engine, [target])
        return SendReply(True, letter.id, statuses[target] != OFFLINE, kept.letter.time)

    def _checked_content(self, content: Any) -> bytes:
        encoded = payload.dump(content)
        if isinstance(content, str):
            if not content.strip():
                raise InvalidMessage("Invalid message format: content missing")
            if len(content) > self.max_length:
                raise TooLarge(f"Message too large: over {self.max_length} characters")
        elif not isinstance(content, dict | bytes):
            raise InvalidMessage("Invalid message format: content must be a text or an object")
        elif len(encoded) > self.max_size:
            raise TooLarge(f"Message too large: over {self.max_size} bytes")
        return encoded

    async def _keep(self, session: Session, owner_id: str, letter: Letter) -> Kept:
        """Put a letter into a user's stream, and let the user's devices know, on all processes."""
        engine = session.engine
        kept = await engine.runtime.inbox.append(
            owner_id, letter, size=self.size, per_peer=self.per_peer, age=self.age
        )
        # Of one that was sent again, too: the first time may have failed before this. Devices that
        # have it let it pass.
        if kept.letter.offset:
            told = _raw((session.id, _shown(kept.letter)))
            await engine.tell(engine.user_channel(owner_id), "$letter", told)
        return kept

    async def _has_own(self, session: Session, offset: int) -> None:
        """A device that has acknowledged all that came before need not acknowledge its own."""
        device = self._device_of(session)
        if device is not None and device.acknowledged == offset - 1:
            device.acknowledged = offset
            await session.engine.runtime.inbox.acknowledge(device.user_id, device.id, offset)

    # Receiving

    def _device_of(self, session: Session) -> _Device | None:
        device = session.state.get(self)
        return device if isinstance(device, _Device) else None

    async def _open(self, context: ConnectionContext, call_next: CallNext) -> None:
        await call_next()
        session = context.session
        if session.user_id is None:
            return
        device = session.state[self] = _Device(session)
        try:
            device.acknowledged, end = await session.engine.runtime.inbox.open(
                session.user_id, device.id
            )
        except BrokerUnavailable:
            # Better no connection than one that lacks messages without a word.
            raise _unreadable() from None
        device.backlog_sent = device.acknowledged
        device.backlog_end = device.sent = end

    async def _connected(self, happening: Happening) -> None:
        device = self._device_of(happening.session)
        if device is None:
            return
        try:
            await self._send_pending(device)
            await self._catch_up(device)
        except BrokerUnavailable:
            error = _unreadable()
            happening.session.disconnect(error.code, error.reason)

    async def _send_pending(self, device: _Device) -> None:
        if device.backlog_sent >= device.backlog_end:
            return
        session = device.session
        page = await session.engine.runtime.inbox.after(
            device.user_id, device.backlog_sent, limit=session.engine.options.page_limit
        )
        pending = [letter for letter in page.letters if letter.offset <= device.backlog_end]
        fitting = _fitting(pending)
        more = len(fitting) < len(pending) or (
            page.more and page.letters[-1].offset < device.backlog_end
        )
        device.backlog_sent = fitting[-1].offset if more else device.backlog_end
        if fitting:
            session.push("pending-messages", _raw(Messages(list(map(_shown, fitting)), more)))

    def _arrived(self, signal: Signal) -> None:
        sender, message = _told.decode(signal.publication.data)
        for session in signal.sessions:
            device = self._device_of(session)
            if device is None or message.offset <= device.sent:
                continue
            if device.busy or message.offset != device.sent + 1:
                self._read_on(device)
                continue
            device.sent = message.offset
            if session.id != sender:
                session.push("private-message", _raw(message))

    def _interrupted(self, signal: Signal) -> None:
        for session in signal.sessions:
            device = self._device_of(session)
            if device is not None and signal.channel.name == session.engine.user_channel(
                device.user_id
            ):
                self._read_on(device)

    def _read_on(self, device: _Device) -> None:
        device.again = True
        if not device.busy:
            device.busy = True
            device.session.engine.runtime.spawn(self._catch_up, device)

    async def _catch_up(self, device: _Device) -> None:
        """Send what the device was not told of, or could not take at the time, in order."""
        session = device.session
        try:
            while device.again and self._device_of(session) is device:
                device.again = False
                page = await session.engine.runtime.inbox.after(
                    device.user_id, device.sent, limit=session.engine.options.page_limit
                )
                device.again = device.again or page.more
                for letter in page.letters:
                    device.sent = letter.offset
                    session.push("private-message", _raw(_shown(letter)))
        finally:
            device.busy = False

    async def acknowledge(self, session: Session, data: Acknowledge) -> dict[str, Any]:
        device = self._device(session)
        offset = await self._offset(session, data.up_to)
        # Not what it has not been sent, whatever it says.
        offset = min(offset, device.sent)
        if device.backlog_sent < device.backlog_end:
            offset = min(offset, device.backlog_sent)
        device.acknowledged = await session.engine.runtime.inbox.acknowledge(
            device.user_id, device.id, offset
        )
        if device.backlog_sent <= device.acknowledged < device.backlog_end:
            await self._send_pending(device)
        return {"success": True, "upTo": device.acknowledged}

    def _device(self, session: Session) -> _Device:
        device = self._device_of(session)
        if device is None:
            raise AccessDenied
        return device

    async def _offset(self, session: Session, place: int | str) -> int:
        if isinstance(place, int):
            return place
        return (await self._find(session, place)).offset

    async def _find(self, session: Session, id: str) -> Letter:
        user_id = _user_id(session)
        letter = None
        if 0 < len(id) <= _MAX_ID:
            letter = await session.engine.runtime.inbox.find(user_id, id)
        if letter is None:
            raise ClientError("not_found", "Message not found")
        return letter

    # Reading

    async def mark_read(self, session: Session, data: MarkRead) -> dict[str, Any]:
        user_id, engine = _user_id(session), session.engine
        inbox = engine.runtime.inbox
        if data.message_id is not None:
            letter = await self._find(session, data.message_id)
            if letter.target_id != user_id:
                raise ClientError("not_found", "Message not found")
            peer, through = letter.sender_id, letter.offset
        elif data.user_id is not None and data.up_to is not None:
            peer = _checked_user(data.user_id)
            through = await self._offset(session, data.up_to)
        else:
            raise InvalidMessage("Invalid message format: messageId, or userId and upTo")
        now = int(time.time() * 1000)
        marked = await inbox.mark_read(user_id, peer, peer, through=through)
        if marked is not None:
            read = {"messageId": marked.id, "userId": user_id, "timestamp": now}
            copy = await inbox.find(peer, marked.id) if peer != user_id else None
            if copy is not None:
                await inbox.mark_read(peer, user_id, peer, through=copy.offset)
            if self.receipts and peer != user_id:
                await engine.tell(engine.user_channel(peer), "message-read", read)
            await engine.tell(engine.user_channel(user_id), "message-read", read, session.id)
        reply = {"success": True, "timestamp": now}
        newest = data.message_id or (marked.id if marked is not None else None)
        return {**reply, "messageId": newest}

    async def conversation(self, session: Session, data: Conversation) -> msgspec.Raw:
        user_id = _user_id(session)
        limit = max(1, min(data.limit, session.engine.options.page_limit))
        page = await session.engine.runtime.inbox.conversation(
            user_id, _checked_user(data.user_id), before=data.before, limit=limit
        )
        fitting = _fitting(reversed(page.letters))[::-1]
        more = page.more or len(fitting) < len(page.letters)
        return _raw(Messages(list(map(_shown, fitting)), more))


_told = msgspec.json.Decoder(tuple[str, PrivateMessage])


def _raw(shown: Any) -> msgspec.Raw:
    """Its parts are in canonical form already."""
    return msgspec.Raw(msgspec.json.encode(shown))


def _shown(letter: Letter) -> PrivateMessage:
    return PrivateMessage(
        id=letter.id,
        from_user_id=letter.sender_id,
        from_user=msgspec.Raw(letter.sender),
        to_user_id=letter.target_id,
        content=msgspec.Raw(letter.content),
        timestamp=letter.time,
        read=letter.read,
        offset=letter.offset,
    )


def _fitting(letters: Iterable[Letter]) -> Sequence[Letter]:
    """The first ones, as many as fit into a page; at least one."""
    fitting: list[Letter] = []
    size = 0
    for letter in letters:
        size += len(letter.content) + len(letter.sender)
        if fitting and size > _PAGE_BYTES:
            break
        fitting.append(letter)
    return fitting


def _unreadable() -> CloseConnection:
    return CloseConnection(CloseCode.SERVER_ERROR, "private messages can't be read now")


def _user_id(session: Session) -> str:
    if session.user_id is None:
        raise AccessDenied
    return session.user_id


def _checked_user(id: str) -> str:
    if not 0 < len(id) <= _MAX_ID or not id.isprintable():
        raise InvalidMessage("Invalid message format: bad user id")
    return id
