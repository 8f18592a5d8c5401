"""What a Redis URL says, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from starlette_realtime._redis import RedisURL
from starlette_realtime.errors import ConfigurationError


def test_a_single_server() -> None:
    url = RedisURL.parse("redis://example.org")
    assert (url.kind, url.hosts, url.db, url.tls) == (
        "single",
        (("example.org", 6379),),
        0,
        False,
    )
    assert (url.username, url.password, url.prefix) == (None, None, "rt")
    url = RedisURL.parse("rediss://ann:p%40ss%2Fw%3Aord@10.0.0.1:7000/3?prefix=app1&pool=5")
    assert (url.hosts, url.db, url.tls) == ((("10.0.0.1", 7000),), 3, True)
    assert (url.username, url.password) == ("ann", "p@ss/w:ord")
    assert (url.prefix, url.pool) == ("app1", 5)


@pytest.mark.parametrize(
    ("url", "username", "password"),
    [
        ("redis://:secret@localhost", None, "secret"),
        ("redis://ann@localhost", "ann", None),
        # Not every character that ought to be escaped is.
        ("redis://ann:se/cr@t@localhost/1", "ann", "se/cr@t"),
    ],
)
def test_credentials(url: str, username: str | None, password: str | None) -> None:
    parsed = RedisURL.parse(url)
    assert (parsed.username, parsed.password) == (username, password)
    assert parsed.hosts == (("localhost", 6379),)


def test_sentinels() -> None:
    url = RedisURL.parse(
        "redis+sentinel://ann:pw@one:1,two,[::1]:3/main%20room/2?sentinel_password=other"
    )
    assert url.kind == "sentinel"
    assert url.hosts == (("one", 1), ("two", 26379), ("::1", 3))
    assert (url.service, url.db) == ("main room", 2)
    assert (url.username, url.password, url.sentinel_password) == ("ann", "pw", "other")


def test_a_cluster_with_options() -> None:
    url = RedisURL.parse(
        "rediss+cluster://one:1,two?timeout=0.5&patience=7&startup=1&probe=3"
        "&durability=replicated&ssl_cert_reqs=none"
    )
    assert (url.kind, url.hosts, url.tls) == ("cluster", (("one", 1), ("two", 6379)), True)
    assert (url.timeout, url.patience, url.startup, url.probe) == (0.5, 7.0, 1.0, 3.0)
    assert url.durability == "replicated"
    assert dict(url.tls_options) == {"ssl_cert_reqs": "none"}


def test_shown_it_has_no_secrets() -> None:
    text = "redis+sentinel://ann:hidden@one/main?sentinel_password=concealed"
    url = RedisURL.parse(text)
    for shown in (str(url), repr(url)):
        assert "hidden" not in shown and "concealed" not in shown
    assert str(url) == "redis+sentinel://one:26379/main"
    assert str(RedisURL.parse("rediss://[::1]/2")) == "rediss://[::1]:6379/2"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "starts with one of redis, redis"),
        ("http://localhost", "starts with one of redis, redis"),
        ("redis+other://localhost", "starts with one of redis, redis"),
        ("redis://localhost/x", "the database is a number"),
        ("redis://localhost/1/2", "the database is a number"),
        ("redis://localhost:99999", "'localhost:99999' is not a host"),
        ("redis://localhost:", "'localhost:' is not a host"),
        ("redis://one,two", r"several hosts: use redis\+sentinel or redis\+cluster"),
        ("redis+sentinel://one", "name of the service is missing"),
        ("redis+cluster://one/1", "a cluster has no databases"),
        ("redis://:pa#hidden@localhost", "'#' in the URL; in a password it is written %23"),
        ("redis://localhost?pool=0", "pool is a number from 1 to 64"),
        ("redis://localhost?pool=many", "pool is a number from 1 to 64"),
        ("redis://localhost?patience=nan", "patience is a number"),
        ("redis://localhost?prefix={x}", "prefix is up to 64"),
        ("redis://localhost?durability=some", "durability is 'fast' or 'replicated'"),
        ("redis://localhost?colour=red", "unknown option 'colour': there are prefix, pool"),
        ("redis://localhost?sentinel_password=x", "unknown option 'sentinel_password'"),
        ("redis://localhost?ssl_ca_certs=x", "unknown option 'ssl_ca_certs'"),
        ("rediss://localhost?ssl_cert_reqs=no", "ssl_cert_reqs is"),
        ("redis://localhost?pool", "options are written"),
        ("redis://localhost?pool=1&pool=2", "stands there twice"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        RedisURL.parse(url)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
