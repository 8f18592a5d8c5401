"""The judge of the fault suite overlooks nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from starlette_realtime.core.channels import room_channel
from starlette_realtime.events import Retention
from starlette_realtime.presence.base import Lease
from starlette_realtime.presence.redis import RedisPresence
from tests.faults.guests import Said
from tests.faults.party import (
    ROOMS,
    Account,
    Party,
    extra_tasks,
    is_left_over,
    judge_acknowledged,
    judge_before_reset,
    judge_order,
    judge_shown,
)
from tests.support.redis_server import RedisServer

KEPT = ["a:0", "b:0", "a:1", "b:1"]


def said(content: str, acknowledged: float = 1.0, sent: int = 1) -> Said:
    return Said(content, ROOMS[0], content, acknowledged=acknowledged, sent=sent)


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
        [],
    ],
    ids=["lost", "twice", "swapped", "invented", "the end lost", "all lost"],
)
def test_what_is_wrong(shown: list[str], reset: bool) -> None:
    with pytest.raises(AssertionError, match="ann was not shown"):
        judge_shown("ann", KEPT, shown, reset=reset)


def test_a_beginning_that_is_missing_without_a_word() -> None:
    with pytest.raises(AssertionError, match="missing"):
        judge_shown("ann", KEPT, KEPT[1:], reset=False)


def test_what_was_shown_before_a_reset() -> None:
    judge_before_reset("ann", KEPT, {"a", "b"})
    with pytest.raises(AssertionError, match="twice"):
        judge_before_reset("ann", [*KEPT, "a:0"], set())
    swapped = ["a:1", "b:0", "a:0", "b:1"]
    with pytest.raises(AssertionError, match="a's out of order"):
        judge_before_reset("ann", swapped, {"a", "b"})
    judge_before_reset("ann", swapped, {"b"})


def test_the_order_of_an_author() -> None:
    judge_order("a", [said("a:0"), said("a:1")], KEPT, window=1)
    with pytest.raises(AssertionError, match="changed places"):
        judge_order("a", [said("a:1"), said("a:0")], KEPT, window=1)
    with pytest.raises(AssertionError, match="changed places"):
        judge_order("a", [said("a:1"), said("a:0")], KEPT, window=8)
    # What was refused once may be overtaken by what was under way.
    judge_order("a", [said("a:1"), said("a:0", sent=2)], KEPT, window=8)


def test_what_was_acknowledged() -> None:
    judge_acknowledged("ann", [said("a:0"), said("b:1"), said("c:0", acknowledged=0.0)], KEPT)
    with pytest.raises(AssertionError, match="c:0"):
        judge_acknowledged("ann", [said("c:0")], KEPT)
    # Unless it was told since that something is lost.
    judge_acknowledged("ann", [said("c:0", acknowledged=1.0)], KEPT, since=2.0)


def test_tasks_that_are_too_many() -> None:
    warm = Counter({"core/beat": 1, "_redis/read": 2})
    assert not extra_tasks(Counter({"core/beat": 1, "_redis/read": 1}), warm)
    assert extra_tasks(warm + Counter({"core/heal": 1}), warm) == {"core/heal": 1}
    assert extra_tasks(warm + Counter({"core/beat": 1}), warm) == {"core/beat": 1}


@pytest.mark.parametrize("kind", ["l", "d", "w", "u", "n"])
def test_keys_that_should_be_gone(kind: str) -> None:
    assert is_left_over(f"party:{{0}}:{kind}:room/:chat/1", 1000)
    assert is_left_over("party:{0}:ends", -1)
    assert is_left_over("party:{0}:h:room/:chat/1", -1)
    assert not is_left_over("party:{0}:h:room/:chat/1", 1000)
    assert not is_left_over("party:{0}:s:session", 1000)
    assert not is_left_over("party:{0}:secret", -1)


@pytest.mark.anyio
async def test_presence_and_keys_of_a_quiet_party(
    own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    """It passes; and would not with a ghost, for a client or in Redis, or a key too many."""
    server = own_redis()
    account = Account("quiet", 1)
    party = Party(tmp_path, server.url, account, lambda: [redis.Redis(port=server.port)])
    async with party.run(2):
        presence = RedisPresence(f"{server.url}?prefix={party._prefix}")
        ghost = Lease("nobody's", "ghost", b"{}", "online")
        thinks = party.guests[1].rooms[ROOMS[0]].members
        assert party.node is not None
        await party.node.hush()
        await party.judge_presence(party.guests, 10)
        thinks.add("ghost")
        with pytest.raises(AssertionError, match="guest-1 thinks"):
            await party.judge_presence(party.guests, 0.2)
        thinks.remove("ghost")
        async with presence.run():
            room = room_channel("/", ROOMS[1])
            retention = Retention()
            await presence.enter(
                room, ghost, ttl=60, arrival=None, departure=None, retention=retention
            )
            with pytest.raises(AssertionError, match=r"present .*ghost"):
                await party.judge_presence(party.guests, 0.2)
            await presence.leave(room, ghost.session_id)
        await party.judge_presence(party.guests, 10)
        left = party._left_keys()
        assert any(f":u:{room}" in key for key in left)
        with redis.Redis(port=server.port) as client:
            key = f"{party._prefix}:{{0}}:b:for ever"
            client.set(key, 1)
            assert key in party._left_keys()
            client.delete(key)
    assert account.outcome == "passed"
    assert account.counts["messages acknowledged"]
