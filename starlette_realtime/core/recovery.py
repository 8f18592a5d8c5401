"""Merging history with what arrived while it was read. Pure functions.

The law: history up to `position`, then live publications from `position + 1` on without a hole, is
the stream; each publication stands in it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ..events import Position, Publication


class Gap(msgspec.Struct, frozen=True):
    """History and what arrived live do not meet: read again."""


def merge(
    history: Sequence[Publication], position: Position, live: Iterable[Publication]
) -> tuple[list[Publication], Position] | Gap:
    """Return the stream's part that `history` (which ends at `position`) and `live` make together,
    and where it ends.

    `live` is what was announced since before the history was read, in any order, with duplicates
    and possibly without some that history has.
    """
    merged = list(history)
    end = position
    for publication in sorted(live, key=lambda live: live.offset):
        if publication.epoch != end.epoch:
            # Either side may be the newer one; only another read can tell.
            return Gap()
        if publication.offset <= end.offset:
            if publication.offset == end.offset and publication.nonce != end.nonce:
                return Gap()
            continue
        if publication.offset != end.offset + 1 or publication.previous != end.nonce:
            return Gap()
        merged.append(publication)
        end = publication.position
    return merged, end
