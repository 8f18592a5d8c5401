from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.auth import OriginPolicy
from starlette_realtime.errors import ConfigurationError
from tests.auth.helpers import websocket


def request(origin: str | None, host: str | None = "example.com", scheme: str = "wss") -> Any:
    headers = {}
    if host is not None:
        headers["Host"] = host
    if origin is not None:
        headers["Origin"] = origin
    return websocket(headers, scheme=scheme)


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("https://example.com", "example.com", "wss"),
        ("https://example.com", "example.com", "https"),
        ("http://example.com", "example.com", "ws"),
        ("http://example.com", "example.com", "http"),
        ("https://example.com", "example.com:443", "wss"),
        ("https://example.com:443", "example.com", "wss"),
        ("http://example.com:80", "example.com", "ws"),
        ("http://localhost:8000", "localhost:8000", "ws"),
        ("HTTPS://EXAMPLE.com", "example.COM", "wss"),
        ("https://example.com.", "example.com", "wss"),
        ("https://example.com", "example.com.", "wss"),
        ("http://[::1]:8000", "[::1]:8000", "ws"),
        ("http://[::1]", "[0:0:0:0:0:0:0:1]:80", "ws"),
        ("http://[2001:DB8::1]", "[2001:db8::1]", "ws"),
        ("https://xn--bcher-kva.example", "xn--bcher-kva.example", "wss"),
    ],
)
def test_a_page_of_the_same_origin_may_connect(origin: str, host: str, scheme: str) -> None:
    assert OriginPolicy().check(request(origin, host, scheme))
    assert OriginPolicy(["https://app.example"]).check(request(origin, host, scheme))


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("https://evil.example", "example.com", "wss"),
        ("http://example.com", "example.com", "wss"),
        ("https://example.com", "example.com", "ws"),
        ("https://example.com:8443", "example.com", "wss"),
        ("https://example.com", "example.com:8443", "wss"),
        ("https://sub.example.com", "example.com", "wss"),
        ("https://example.com.evil.example", "example.com", "wss"),
        ("https://evil.example?example.com", "example.com", "wss"),
        ("https://evil.example#@example.com", "example.com", "wss"),
        ("https://example.com@evil.example", "example.com", "wss"),
        ("https://user@example.com", "example.com", "wss"),
        ("https://example.com/", "example.com", "wss"),
        ("https://example.com..", "example.com", "wss"),
        ("https://example.com https://evil.example", "example.com", "wss"),
        ("https://example.com,https://evil.example", "example.com", "wss"),
        ("https://example.com:", "example.com", "wss"),
        ("https://example.com:99999", "example.com:99999", "wss"),
        ("https://example.com:443\n", "example.com", "wss"),
        ("https://[::1", "[::1", "wss"),
        ("https://[zz]", "[zz]", "wss"),
        ("https://", "", "wss"),
        ("example.com", "example.com", "wss"),
        ("", "example.com", "wss"),
        ("null", "example.com", "wss"),
        ("https://*", "*", "wss"),
        ("https://ex\xe4mple.com", "ex\xe4mple.com", "wss"),
        ("https://example.com", None, "wss"),
    ],
)
def test_any_other_page_may_not(origin: str, host: str | None, scheme: str) -> None:
    policy = OriginPolicy()
    assert not policy.check(request(origin, host, scheme))
    assert policy.refusal(request(origin, host, scheme))


def test_a_client_that_is_no_browser_may_connect() -> None:
    assert OriginPolicy().check(request(None))
    assert OriginPolicy([]).check(request(None))


def test_several_headers_are_refused() -> None:
    twice = websocket(
        [("Host", "a.example"), ("Origin", "http://a.example"), ("Origin", "http://a.example")]
    )
    assert not OriginPolicy(["http://a.example"]).check(twice)
    for origin in ("http://a.example", "http://b.example"):
        hosts = websocket([("Host", "a.example"), ("Host", "b.example"), ("Origin", origin)])
        assert not OriginPolicy().check(hosts)


@pytest.mark.parametrize(
    ("pattern", "origin", "allowed"),
    [
        ("https://app.example", "https://app.example", True),
        ("https://app.example", "https://APP.example:443", True),
        ("https://app.example", "http://app.example", False),
        ("https://app.example", "https://app.example:8443", False),
        ("https://app.example:8443", "https://app.example:8443", True),
        ("https://app.example:8443", "https://app.example", False),
        ("https://*.app.example", "https://a.app.example", True),
        ("https://*.app.example", "https://a.b.app.example", True),
        ("https://*.app.example", "https://a.app.example.", True),
        ("https://*.app.example", "https://app.example", False),
        ("https://*.app.example", "https://evil-app.example", False),
        ("https://*.app.example", "https://.app.example", False),
        ("https://*.app.example", "https://a.app.example.evil.example", False),
        ("https://*.app.example", "https://a.app.example:444", False),
        ("https://*.app.example:*", "https://a.app.example:444", True),
        ("http://localhost:*", "http://localhost:3000", True),
        ("http://localhost:*", "http://localhost", True),
        ("http://localhost:*", "http://localhost.evil.example:3000", False),
        ("http://[::1]:*", "http://[0::1]:3000", True),
        ("http://[::1]:5000", "http://[::1]:5000", True),
        ("https://bücher.example", "https://xn--bcher-kva.example", True),
        ("capacitor://localhost", "capacitor://localhost", True),
        ("capacitor://localhost", "https://localhost", False),
        ("null", "null", True),
        ("https://app.example", "null", False),
    ],
)
def test_a_list_of_pages(pattern: str, origin: str, allowed: bool) -> None:
    assert OriginPolicy([pattern]).check(request(origin, "elsewhere.example")) is allowed


def test_a_list_may_be_the_whole_list() -> None:
    policy = OriginPolicy(["https://app.example"], same_origin=False)
    assert policy.check(request("https://app.example"))
    assert not policy.check(request("https://example.com"))
    assert not OriginPolicy(same_origin=False).check(request("https://example.com"))


def test_one_may_be_given_without_a_list() -> None:
    assert OriginPolicy("https://app.example").check(request("https://app.example"))


def test_everyone_may_connect_when_that_is_said() -> None:
    policy = OriginPolicy("*")
    assert policy.everyone
    for origin in ("https://evil.example", "null", "rubbish"):
        assert policy.check(request(origin))
    assert not OriginPolicy().everyone
    assert OriginPolicy(["*"]).everyone


@pytest.mark.parametrize(
    "pattern",
    [
        "example.com",
        "https://",
        "https://example.com/",
        "https://example.com/path",
        "https://user@example.com",
        "https://ex*mple.com",
        "https://*",
        "https://*.*.example.com",
        "https://*example.com",
        "https://a.*.example.com",
        "https://example.com:99999",
        "https://example.com:8*",
        "https://[zz]",
        "https://a..b",
        "*.example.com",
        "",
    ],
)
def test_a_pattern_that_means_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="OriginPolicy"):
        OriginPolicy([pattern])


def test_the_refusal_behind_a_proxy_says_what_is_wrong() -> None:
    said = OriginPolicy().refusal(request("https://example.com", scheme="ws"))
    assert said is not None and "X-Forwarded-Proto" in said


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)))
def test_whatever_is_sent_there_is_an_answer(origin: str, host: str) -> None:
    for policy in (OriginPolicy(), OriginPolicy(["https://*.example.com:*"])):
        assert policy.check(request(origin, host)) in (True, False)
        assert not policy.check(request(f"https://evil.example/{origin}", host))


def http(origin: str | None, method: str = "GET", **headers: str) -> Any:
    scope = request(origin, "api.example", "https")
    scope["type"], scope["method"] = "http", method
    scope["headers"] += [
        (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
    ]
    return scope


def test_cors_for_a_page_that_may() -> None:
    headers = dict(OriginPolicy(["https://app.example"]).cors_headers(http("https://app.example")))
    assert headers == {
        b"access-control-allow-origin": b"https://app.example",
        b"access-control-allow-credentials": b"true",
        b"vary": b"Origin",
    }


def test_cors_for_a_page_that_may_not() -> None:
    headers = OriginPolicy(["https://app.example"]).cors_headers(http("https://evil.example"))
    assert headers == [(b"vary", b"Origin")]
    # A cache must not hand the answer for no page to a page.
    assert OriginPolicy().cors_headers(http(None)) == [(b"vary", b"Origin")]


def test_cors_for_everyone_leaves_cookies_out() -> None:
    headers = OriginPolicy("*").cors_headers(http("https://evil.example"))
    assert headers == [(b"access-control-allow-origin", b"*")]
    headers = OriginPolicy(["null"]).cors_headers(http("null"))
    assert (b"access-control-allow-origin", b"null") in headers
    assert not any(name == b"access-control-allow-credentials" for name, _ in headers)


def test_a_preflight_is_answered() -> None:
    policy = OriginPolicy(["https://app.example"])
    asked = {"access_control_request_method": "POST"}
    headers = dict(policy.cors_headers(http("https://app.example", "OPTIONS", **asked)))
    assert b"POST" in headers[b"access-control-allow-methods"]
    assert b"Authorization" in headers[b"access-control-allow-headers"]
    refused = dict(policy.cors_headers(http("https://evil.example", "OPTIONS", **asked)))
    assert refused == {b"vary": b"Origin"}
    plain = dict(policy.cors_headers(http("https://app.example", "OPTIONS")))
    assert b"access-control-allow-methods" not in plain
