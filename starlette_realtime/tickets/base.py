"""What a ticket store is: a user is put in, a ticket comes out, and brings the user back once."""

from __future__ import annotations

import hashlib
import math
import secrets
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager

import msgspec

from ..auth.base import User

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(User)


class TicketStore(ABC):
    """Tickets that stand for a user for a short time, each good for one connection.

    Guarantee: of all calls of `take` with one ticket, in all processes, exactly one gets the user,
    if it comes within the ticket's time. What is stored does not give the ticket away: it is kept
    hashed.
    """

    @abstractmethod
    def run(self) -> AbstractAsyncContextManager[None]:
        """Return the store's lifetime."""

    @abstractmethod
    async def issue(self, user: User, ttl: float = 30) -> str:
        """Return a ticket for `user`, good for `ttl` seconds: at least 128 random bits, in
        characters that need no escaping in an address.

        Raises:
            ValueError: `ttl` is not positive.
            TypeError: the user holds something that no payload can.
            Unavailable: too many tickets are outstanding.
            BrokerUnavailable: the backend did not answer in time.
        """

    @abstractmethod
    async def take(self, ticket: str) -> User | None:
        """Return the user this ticket was issued for, and forget it; None when it is unknown,
        used or too old.

        Raises:
            BrokerUnavailable: the backend did not answer in time. The ticket may be used up.
        """


def new_ticket() -> str:
    """Return a fresh ticket."""
    return secrets.token_urlsafe(24)


def check_ttl(ttl: float) -> None:
    if not 0 < ttl < math.inf:
        raise ValueError("ttl is a positive number of seconds")


def ticket_key(ticket: str) -> bytes:
    """Return under what a ticket is stored: 32 bytes. Any text has one."""
    return hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).digest()


def dump_user(user: User) -> bytes:
    """Return the user as bytes, for storing.

    Raises:
        TypeError: it holds something that no payload can.
    """
    try:
        return _encoder.encode(user)
    except (ValueError, OverflowError, RecursionError) as error:
        raise TypeError(f"the user cannot be stored: {error}") from None


def load_user(stored: bytes) -> User:
    """Return the user that `dump_user` was given; sequences come back as lists."""
    return _decoder.decode(stored)
