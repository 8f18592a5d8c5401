"""The judge of the fault suite overlooks nothing."""

from __future__ import annotations

import pytest

from tests.faults.party import judge_shown

KEPT = ["a:0", "b:0", "a:1", "b:1"]


def test_what_is_right() -> None:
    judge_shown("ann", KEPT, KEPT, reset=False)
    judge_shown("ann", KEPT, KEPT[2:], reset=True)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "shown",
    [
        ["a:0", "b:0", "b:1"],
        ["a:0", "b:0", "a:1", "a:1", "b:1"],
        ["a:0", "a:1", "b:0", "b:1"],
        ["a:0", "b:0", "a:1", "b:1", "c:0"],
        ["a:0", "b:0", "a:1"],
    ],
    ids=["lost", "twice", "swapped", "invented", "the end lost"],
)
def test_what_is_wrong(shown: list[str], reset: bool) -> None:
    with pytest.raises(AssertionError, match="ann was not shown"):
        judge_shown("ann", KEPT, shown, reset=reset)


def test_a_beginning_that_is_missing_without_a_word() -> None:
    with pytest.raises(AssertionError, match="missing"):
        judge_shown("ann", KEPT, KEPT[1:], reset=False)
