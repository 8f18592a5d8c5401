"""Names of keys: everything of a channel in one slot, partitions spread over all of them."""

from __future__ import annotations

import re

from redis.crc import key_slot

from starlette_realtime._redis.keys import PARTITIONS, SLOTS, TAGS, Keys, milliseconds, partition


def test_slots_are_those_of_redis_and_evenly_spread() -> None:
    assert [key_slot(tag.encode()) for tag in TAGS] == list(SLOTS)
    assert [slot * PARTITIONS // 16384 for slot in SLOTS] == list(range(PARTITIONS))
    for nodes in (3, 5, 6):
        shares = [slot * nodes // 16384 for slot in SLOTS]
        assert min(map(shares.count, range(nodes))) >= PARTITIONS // nodes - 2


def test_a_channels_keys_are_in_the_slot_of_its_partition() -> None:
    keys = Keys("app", 0, sharded=True)
    for channel in ("room/:chat/7", "{x}", "a}b", "чат", ""):
        slot = SLOTS[partition(channel)]
        assert key_slot(keys.meta(channel).encode()) == slot
        assert key_slot(keys.announced(channel)) == slot
        assert key_slot(keys.ends(partition(channel)).encode()) == slot


def test_databases_and_prefixes_have_announcements_of_their_own() -> None:
    names = {
        Keys(prefix, db, sharded=False).announced("room") for prefix in ("a", "b") for db in (0, 1)
    }
    assert len(names) == 4
    assert len({Keys("a", 0, sharded=False).announced(name) for name in ("x", "y")}) == 2
    assert re.fullmatch(rb"a:\{\d+\}:c", Keys("a", 0, sharded=True).announced("x"))


def test_durations_are_whole_and_bounded() -> None:
    assert [milliseconds(s) for s in (0.0, -1.0, 1.5, 0.0001, 1e300, float("inf"))] == [
        1,
        1,
        1500,
        1,
        315_360_000_000,
        315_360_000_000,
    ]
