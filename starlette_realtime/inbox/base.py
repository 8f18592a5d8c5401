"""Private messages: a stream per user, a cursor per device, and how far a conversation was read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager

from ..events import Kept, Letter, Letters

MAX_DEVICES = 32
"""Devices per user whose cursors are kept; beyond, the one that was heard of longest ago goes."""


class InboxStore(ABC):
    """A stream of letters for each user, with those the user sent and those that came.

    A letter between two people is kept in both streams, by two calls, each of which is harmless
    when it is repeated; one to oneself is kept once. `peer` is always the other one, or oneself.

    Guarantee: every call touches the keys of one user alone (`owner_id`) and is one atomic step.
    The letters of a stream have the offsets 1, 2, 3 …; an offset is not given twice as long as the
    store knows the user. Whoever reads `after` an offset gets every letter above it that is still
    kept.
    """

    @abstractmethod
    def run(self) -> AbstractAsyncContextManager[None]:
        """Return the store's lifetime."""

    @abstractmethod
    async def append(
        self, owner_id: str, letter: Letter, *, size: int, per_peer: int, age: float
    ) -> Kept:
        """Keep `letter` in its owner's stream: look its id up, give the next offset, trim.

        Of an id that is kept already, or was within the last ten minutes, nothing changes; of what
        was trimmed since (the last `size` of these are remembered), the answer has only id, people
        and time, and the offset 0. Trimmed are, oldest first: what is older than `age` seconds;
        what one conversation has above `per_peer` letters, so that no single sender pushes the
        others' letters out; what the stream has above `size`. The letter's own
        `offset` and `read` are ignored.

        Raises:
            BrokerUnavailable: the backend did not answer in time.
        """

    @abstractmethod
    async def after(self, owner_id: str, offset: int, *, limit: int) -> Letters:
        """Return up to `limit` letters above `offset`, the first ones; fewer, but one at least,
        where they are large."""

    @abstractmethod
    async def open(self, owner_id: str, device_id: str) -> tuple[int, int]:
        """Return the offset up to which a device has acknowledged, and the stream's end.

        A device nobody has heard of is registered; it starts where the user's most advanced device
        stands, so that it is given what no device has.
        """

    @abstractmethod
    async def acknowledge(self, owner_id: str, device_id: str, offset: int) -> int:
        """Move a device's cursor to `offset`, but never back and never beyond the stream's end;
        return where it stands now."""

    @abstractmethod
    async def conversation(
        self, owner_id: str, peer_id: str, *, before: int | None = None, limit: int
    ) -> Letters:
        """Return up to `limit` letters exchanged with `peer_id`: the newest ones, or the newest
        with an offset below `before`; fewer, but one at least, where they are large."""

    @abstractmethod
    async def find(self, owner_id: str, id: str) -> Letter | None:
        """Return the letter that the owner's stream keeps under `id`."""

    @abstractmethod
    async def mark_read(
        self, owner_id: str, peer_id: str, author_id: str, *, through: int
    ) -> Letter | None:
        """Mark what `author_id` wrote in the conversation with `peer_id` as read, through the
        offset `through`; reading a letter is reading all before it.

        Return the newest letter that this marked; None when there was nothing new to mark.
        """
