"""Every error of the package, drawn once:

    RealtimeError
     ├─ ConfigurationError        the app is put together wrongly; the text says how to mend it
     ├─ BrokerUnavailable         the backend is away; the same call may succeed later
     ├─ AckTimeout                a client did not answer in time
     ├─ Disconnected              the connection went away while something was waited for
     ├─ CloseConnection           raised to close the connection with a code and a reason
     └─ ClientError               goes over the wire to the client that caused it, and nowhere else
         ├─ InvalidMessage        ├─ AuthenticationRequired
         ├─ UnknownEvent          ├─ AuthenticationFailed
         ├─ UnknownRoom           ├─ InvalidUser
         ├─ UnknownNamespace      ├─ RateLimited
         ├─ NotInRoom             ├─ LimitExceeded
         ├─ AccessDenied          ├─ TooLarge
         ├─ Unavailable           └─ InternalError

Codes and sentences of `ClientError` are part of the wire protocol (docs/protocol.md).
"""

from __future__ import annotations

from typing import ClassVar, Final


class RealtimeError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigurationError(RealtimeError):
    """The application is configured in a way that cannot work. The message says how to mend it."""


class BrokerUnavailable(RealtimeError):
    """The backend did not answer. Nothing is known to be stored; retrying is safe when the
    publication carries an id."""


class AckTimeout(RealtimeError):
    """A client did not acknowledge within the timeout (seconds)."""


class Disconnected(RealtimeError):
    """The connection closed before what was waited for happened."""


class CloseConnection(RealtimeError):
    """Raise in a handler or middleware to close the client's connection.

    `code` is a WebSocket close code: 4000 to 4499 tell the client to stay away, 4500 to 4999 to
    come back. `reason` is at most 123 bytes of UTF-8 (RFC 6455, section 5.5).
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason


class ClientError(RealtimeError):
    """An error the client is told about: `code` for programs, `error` for people, `retry` when the
    same message may succeed later. Raise it, or a subclass, from a handler."""

    code: ClassVar[str] = "error"
    sentence: ClassVar[str] = "Error"
    retry: bool = False

    def __init__(
        self, code: str | None = None, error: str | None = None, *, retry: bool | None = None
    ) -> None:
        self.error = error if error is not None else self.sentence
        super().__init__(self.error)
        self.error_code = code if code is not None else self.code
        if retry is not None:
            self.retry = retry


class _Fixed(ClientError):
    """A client error whose class fixes its code; only the sentence may be more precise."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__(None, error)


class InvalidMessage(_Fixed):
    """The message is not what the protocol or the handler's annotation asks for."""

    code = "invalid_message"
    sentence = "Invalid message format"


class UnknownEvent(_Fixed):
    """No handler has this event's name."""

    code = "unknown_event"
    sentence = "Unknown event"


class UnknownRoom(_Fixed):
    """No room pattern matches this name."""

    code = "unknown_room"
    sentence = "Unknown room"


class UnknownNamespace(_Fixed):
    """There is no such namespace."""

    code = "unknown_namespace"
    sentence = "Invalid namespace"


class NotInRoom(_Fixed):
    """The sender is not a member of the room."""

    code = "not_in_room"
    sentence = "Not in room"


class AccessDenied(_Fixed):
    """The room's authorise hook, a capability or a moderator hook said no."""

    code = "access_denied"
    sentence = "Access denied"


class AuthenticationRequired(_Fixed):
    """Nothing that tells who the client is was shown. Closes with 4401."""

    code = "auth_required"
    sentence = "Authentication required"


class AuthenticationFailed(_Fixed):
    """What was shown does not hold: `Authentication failed: <why>`. Closes with 4401."""

    code = "auth_failed"
    sentence = "Authentication failed"

    def __init__(self, why: str | None = None) -> None:
        super().__init__(f"{self.sentence}: {why}" if why else None)


class InvalidUser(_Fixed):
    """The credentials hold, but the user-loading hook knows no such user. Closes with 4401."""

    code = "invalid_user"
    sentence = "Invalid user"


class RateLimited(_Fixed):
    """Too many messages in too short a time. The message was not handled; later it may be."""

    code = "rate_limited"
    sentence = "Rate limit exceeded"
    retry = True


class LimitExceeded(_Fixed):
    """More rooms, connections or the like than are allowed."""

    code = "limit_exceeded"
    sentence = "Limit exceeded"


class TooLarge(_Fixed):
    """The payload is larger than allowed."""

    code = "too_large"
    sentence = "Message too large"


class TimedOut(_Fixed):
    """The handler took longer than `handler_timeout`."""

    code = "timeout"
    sentence = "Timed out"
    retry = True


class Unavailable(_Fixed):
    """The backend cannot be reached just now."""

    code = "unavailable"
    sentence = "Temporarily unavailable"
    retry = True


class InternalError(_Fixed):
    """A handler raised. The log has the traceback; the client learns no more than this."""

    code = "handler_error"
    sentence = "Internal error"


class CloseCode:
    """WebSocket close codes the package uses (docs/protocol.md, "Close codes")."""

    NORMAL: Final = 1000
    POLICY: Final = 1008
    TOO_BIG: Final = 1009
    SERVER_ERROR: Final = 1011
    RESTART: Final = 1012
    UNAUTHORIZED: Final = 4401
    FORBIDDEN: Final = 4403
    REPLACED: Final = 4409
    KICKED: Final = 4410
    EXPIRED: Final = 4501
    SLOW: Final = 4502
    TOO_MANY: Final = 4503
    IDLE: Final = 4507
    PING_TIMEOUT: Final = 4508
    DRAINING: Final = 4512
