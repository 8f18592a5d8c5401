"""The Redis inbox: its contract, on one server and on a Cluster, and what is its own."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import redis

from starlette_realtime._redis import RedisServer
from starlette_realtime.errors import BrokerUnavailable
from starlette_realtime.events import Kept, Letter
from starlette_realtime.inbox import InboxStore, MemoryInbox
from starlette_realtime.inbox.redis import RedisInbox
from starlette_realtime.testing.contracts import InboxContract
from tests.support.redis_cluster import RedisCluster, shared_cluster
from tests.support.redis_server import RedisServer as ServerUnderTest

pytestmark = pytest.mark.anyio

DAY = 86_400.0


@asynccontextmanager
async def two_stores(url: str) -> AsyncIterator[tuple[InboxStore, InboxStore]]:
    """Two that share nothing but the server, as two processes would."""
    one, two = RedisInbox(url), RedisInbox(url)
    async with one.run(), two.run():
        yield one, two


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> RedisCluster:
    return shared_cluster(request)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, protocol=2) as connected:
        yield connected


class TestContract(InboxContract):
    @pytest.fixture(autouse=True)
    def server(self, restricted_url: str) -> None:
        self.url = restricted_url

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[InboxStore, InboxStore]]:
        async with two_stores(self.url) as pair:
            yield pair


class TestContractOnACluster(InboxContract):
    @pytest.fixture(autouse=True)
    def server(self, cluster: RedisCluster) -> None:
        self.url = cluster.url

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[InboxStore, InboxStore]]:
        async with two_stores(self.url) as pair:
            yield pair


def all_keys(client: redis.Redis) -> list[bytes]:
    return list(client.scan_iter(count=1000))


def letter(id: str, sender: str, target: str, content: bytes = b"1") -> Letter:
    return Letter(id=id, sender_id=sender, target_id=target, content=content, time=1)


async def put(
    inbox: InboxStore,
    owner: str,
    what: Letter,
    *,
    size: int = 1000,
    per_peer: int = 1000,
    age: float = DAY,
) -> Letter:
    kept = await inbox.append(owner, what, size=size, per_peer=per_peer, age=age)
    return kept.letter


def comparable(kept: Kept) -> Kept:
    """Of what was trimmed, id, people and time count."""
    if kept.letter.offset:
        return kept
    return Kept(msgspec.structs.replace(kept.letter, read=False), duplicate=kept.duplicate)


@pytest.mark.parametrize("seed", range(3))
async def test_it_answers_as_the_memory_inbox_does(redis_url: str, seed: int) -> None:
    chosen = random.Random(seed)
    people = ["ann", "bob", "eve", "", "bo"]
    model = MemoryInbox()
    async with model.run(), two_stores(redis_url) as stores:
        for step in range(400):
            store = chosen.choice(stores)
            owner = chosen.choice(people[:2])
            peer = chosen.choice(people)
            offset = chosen.randrange(-1, step + 3)
            limit = chosen.randrange(0, 20)
            device = f"device-{chosen.randrange(40)}"
            match chosen.randrange(10):
                case 0 | 1 | 2 | 3:
                    sender, target = chosen.choice([(owner, peer), (peer, owner)])
                    what = letter(f"m{chosen.randrange(step + 1)}", sender, target)
                    bounds = {"size": 12, "per_peer": 5, "age": DAY}
                    expected = await model.append(owner, what, **bounds)  # type: ignore[arg-type]
                    found = await store.append(owner, what, **bounds)  # type: ignore[arg-type]
                    assert comparable(found) == comparable(expected)
                case 4:
                    assert await store.after(owner, offset, limit=limit) == await model.after(
                        owner, offset, limit=limit
                    )
                case 5:
                    before = chosen.choice([None, offset])
                    assert await store.conversation(
                        owner, peer, before=before, limit=limit
                    ) == await model.conversation(owner, peer, before=before, limit=limit)
                case 6:
                    id = f"m{chosen.randrange(step + 1)}"
                    assert await store.find(owner, id) == await model.find(owner, id)
                case 7:
                    author = chosen.choice([owner, peer, "zoe"])
                    assert await store.mark_read(
                        owner, peer, author, through=offset
                    ) == await model.mark_read(owner, peer, author, through=offset)
                case 8:
                    assert await store.open(owner, device) == await model.open(owner, device)
                case _:
                    assert await store.acknowledge(
                        owner, device, offset
                    ) == await model.acknowledge(owner, device, offset)


async def test_sending_again_completes_what_broke_off_between_two_people(redis_url: str) -> None:
    async with two_stores(redis_url) as (one, two):
        first = await put(one, "bob", letter("m1", "ann", "bob"))
        assert await one.find("ann", "m1") is None
        for _ in "12":
            assert await put(two, "bob", letter("m1", "ann", "bob")) == first
            assert (await put(two, "ann", letter("m1", "ann", "bob"))).offset == 1
        for owner in ("ann", "bob"):
            assert [kept.id for kept in (await one.after(owner, 0, limit=5)).letters] == ["m1"]


async def test_all_keys_of_a_user_share_a_slot_and_end_by_themselves(
    redis_url: str, client: redis.Redis
) -> None:
    async with two_stores(redis_url) as (one, _):
        for number in range(6):
            await put(one, "ann", letter(f"m{number}", "bob", "ann"), size=3)
        await one.open("ann", "phone")
        await one.mark_read("ann", "bob", "bob", through=6)
    names = all_keys(client)
    assert len(names) == 7
    assert len({name[name.index(b"{") : name.index(b"}")] for name in names}) == 1
    assert all(0 < client.pttl(name) <= 90 * DAY * 1000 for name in names)


async def test_users_with_odd_names_have_each_their_own(redis_url: str) -> None:
    names = ["", "l:x", "x", "}:y:x", "y:x", "{0}:y:x", "a\nb", "a\x00b", "*", "ü\u2028", ":"]
    async with two_stores(redis_url) as (one, two):
        for name in names:
            await put(one, name, letter(f"to {name}", "bob", name))
            await one.acknowledge(name, "phone", 1)
        for name in names:
            kept = await two.conversation(name, "bob", limit=5)
            assert [found.id for found in kept.letters] == [f"to {name}"]
            assert await two.open(name, "phone") == (1, 1)


async def test_looking_makes_no_keys(redis_url: str, client: redis.Redis) -> None:
    async with two_stores(redis_url) as (one, _):
        await one.after("ann", 0, limit=5)
        await one.conversation("ann", "bob", limit=5)
        await one.find("ann", "m1")
        await one.mark_read("ann", "bob", "bob", through=5)
    assert all_keys(client) == []


async def test_memory_is_bounded_whatever_a_sender_does(
    redis_url: str, client: redis.Redis
) -> None:
    async with two_stores(redis_url) as (one, _):
        for number in range(300):
            peer = f"peer-{number % 50}"
            await put(one, "ann", letter(f"m{number}", peer, "ann"), size=20, per_peer=5)
            await one.mark_read("ann", peer, peer, through=number + 1)
            await one.open("ann", f"device-{number}")

    def count(name: bytes) -> int:
        kind = client.type(name)
        return client.zcard(name) if kind == b"zset" else client.hlen(name)

    assert all(count(name) <= 40 for name in all_keys(client))
    assert sum(client.memory_usage(name) or 0 for name in all_keys(client)) < 20_000


async def test_large_letters_come_in_smaller_pages(redis_url: str) -> None:
    large = b"x" * 100_000
    async with two_stores(redis_url) as (one, _):
        for number in range(20):
            await put(one, "ann", letter(f"m{number}", "bob", "ann", large))
        await put(one, "ann", letter("huge", "bob", "ann", 20 * large))
        got: list[Letter] = []
        more = True
        while more:
            page = await one.after("ann", got[-1].offset if got else 0, limit=100)
            assert sum(len(kept.content) for kept in page.letters[:-1]) < 600_000
            more = page.more
            got += page.letters
        assert [kept.offset for kept in got] == list(range(1, 22))
        newest = await one.conversation("ann", "bob", limit=100)
        assert ([kept.id for kept in newest.letters], newest.more) == (["huge"], True)


async def test_thousands_that_are_too_old_go_in_steps(redis_url: str) -> None:
    async with two_stores(redis_url) as (one, two):
        for number in range(700):
            await put(one, "ann", letter(f"m{number}", "bob", "ann"))
        # All are older than this, those of the last moment maybe not.
        kept = await one.append(
            "ann", letter("new", "eve", "ann"), size=1000, per_peer=1000, age=0.001
        )
        assert kept.letter.offset == 701
        await put(two, "ann", letter("last", "eve", "ann"))
        left = (await two.after("ann", 0, limit=1000)).letters
        assert len(left) < 20
        assert left[-1].offset == 702


async def test_marking_that_is_tried_again_answers_the_same(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_stores(redis_url) as (one, _):
        for number in range(3):
            await put(one, "ann", letter(f"m{number}", "bob", "ann"))
        # What makes two tries one call is that their digits are the same.
        with monkeypatch.context() as patch:
            patch.setattr("starlette_realtime.inbox.redis.chance", lambda: "0" * 16)
            first = await one.mark_read("ann", "bob", "bob", through=2)
            assert first is not None and first.id == "m1"
            assert await one.mark_read("ann", "bob", "bob", through=2) == first
        assert await one.mark_read("ann", "bob", "bob", through=2) is None


async def test_a_lost_meta_key_gives_no_offset_twice(redis_url: str, client: redis.Redis) -> None:
    async with two_stores(redis_url) as (one, _):
        for number in range(3):
            await put(one, "ann", letter(f"m{number}", "bob", "ann"))
        (meta,) = client.keys("*:y:ann")
        client.delete(meta)
        assert await one.open("ann", "phone") == (0, 3)
        assert (await put(one, "ann", letter("m3", "bob", "ann"))).offset == 4


async def test_an_outage_is_an_error_and_then_over(
    own_redis: Callable[..., ServerUnderTest],
) -> None:
    server = own_redis()
    inbox = RedisInbox(RedisServer(f"{server.url}?patience=0.3&timeout=0.3"))
    async with inbox.run():
        await put(inbox, "ann", letter("m1", "bob", "ann"))
        server.pause()
        with pytest.raises(BrokerUnavailable):
            await put(inbox, "ann", letter("m2", "bob", "ann"))
        server.resume()
        for _ in range(50):
            try:
                await put(inbox, "ann", letter("m2", "bob", "ann"))
                break
            except BrokerUnavailable:
                continue
        # Whether or not the first try was carried out: once.
        kept = (await inbox.after("ann", 0, limit=5)).letters
        assert [found.id for found in kept] == ["m1", "m2"]
