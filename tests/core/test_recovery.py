"""Merging history with what was announced: pure functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.core.recovery import Gap, merge
from starlette_realtime.events import Position, Publication


def publication(offset: int, epoch: str = "e", fork: str = "") -> Publication:
    return Publication(
        "n",
        str(offset).encode(),
        offset,
        epoch,
        nonce=f"{fork}{offset}",
        previous=f"{fork}{offset - 1}" if offset > 1 else "",
    )


def position(offset: int) -> Position:
    return Position("e", offset, str(offset) if offset else "")


@given(
    start=st.integers(0, 5),
    read=st.integers(0, 10),
    more=st.integers(0, 10),
    lost=st.sets(st.integers(1, 25)),
    order=st.randoms(use_true_random=False),
    repeated=st.lists(st.integers(0, 19), max_size=5),
)
def test_every_publication_once_or_a_gap(
    start: int, read: int, more: int, lost: set[int], order: object, repeated: list[int]
) -> None:
    """History has `start + 1` to `read`; announced was everything up to `end` but what was lost."""
    middle = start + read
    end = middle + more
    history = [publication(offset) for offset in range(start + 1, middle + 1)]
    live = [publication(n) for n in range(1, end + 1) if n not in lost]
    live += [live[index] for index in repeated if index < len(live)]
    order.shuffle(live)  # type: ignore[attr-defined]
    merged = merge(history, position(middle), live)
    heard = [p.offset for p in live if p.offset > middle]
    reached = max(heard, default=middle)
    if set(heard) == set(range(middle + 1, reached + 1)):
        assert not isinstance(merged, Gap)
        assert [p.offset for p in merged[0]] == list(range(start + 1, reached + 1))
        assert merged[1] == position(reached)
    else:
        assert isinstance(merged, Gap)


def test_another_epoch_is_a_gap() -> None:
    for offset in (1, 3, 4):
        assert isinstance(merge([], position(3), [publication(offset, "other")]), Gap)


def test_a_fork_is_a_gap() -> None:
    # The history ends with a publication of this offset, but another one was announced.
    assert isinstance(merge([], position(3), [publication(3, fork="x")]), Gap)
    # The next one follows another one than history ends with.
    assert isinstance(merge([], position(3), [publication(4, fork="x")]), Gap)


def test_nothing_announced() -> None:
    history = [publication(1), publication(2)]
    assert merge(history, position(2), []) == (history, position(2))
    assert merge([], position(0), []) == ([], position(0))
