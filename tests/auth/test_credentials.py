from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.auth import find_credentials
from starlette_realtime.errors import AuthenticationFailed
from tests.auth.helpers import websocket

EVERYWHERE = websocket(
    {"Authorization": "Bearer from-header"},
    subprotocols=["realtime.v1", "realtime.token.from-subprotocol"],
    query_string=b"ticket=from-query",
)


def test_the_order_of_places() -> None:
    found = find_credentials(EVERYWHERE, "from-message")
    assert (found.token, found.source) == ("from-message", "message")
    scope = dict(EVERYWHERE)
    for place, source in [
        ("subprotocols", "subprotocol"),
        ("headers", "header"),
        ("query_string", "query"),
    ]:
        found = find_credentials(scope)
        assert (found.token, found.source) == (f"from-{source}", source)
        assert found.scope is scope
        del scope[place]
    found = find_credentials(scope)
    assert (found.token, found.source) == ("", "")


def test_an_empty_token_is_none() -> None:
    scope = websocket(
        {"Authorization": "Bearer "}, subprotocols=["realtime.token."], query_string=b"ticket="
    )
    found = find_credentials(scope, "")
    assert (found.token, found.source) == ("", "")


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER   abc ", "abc"),
        ("Basic YTpi", ""),
        ("Bearerabc", ""),
        ("abc", ""),
        ("", ""),
    ],
)
def test_the_authorization_header(header: str, token: str) -> None:
    assert find_credentials(websocket({"Authorization": header})).token == token


@pytest.mark.parametrize(
    ("query", "token"),
    [
        (b"ticket=abc", "abc"),
        (b"hello=1&ticket=a%2Bb", "a+b"),
        (b"tickets=abc", ""),
        (b"token=abc", ""),
        (b"ticket", ""),
        (b"ticket=%FF", "\ufffd"),
    ],
)
def test_the_ticket_in_the_address(query: bytes, token: str) -> None:
    assert find_credentials(websocket(query_string=query)).token == token


@pytest.mark.parametrize(
    "scope",
    [
        websocket([("Authorization", "Bearer a"), ("Authorization", "Bearer b")]),
        websocket(subprotocols=["realtime.token.a", "realtime.token.b"]),
        websocket(query_string=b"ticket=a&ticket=b"),
    ],
)
def test_two_tokens_in_one_place_are_refused(scope: dict[str, Any]) -> None:
    with pytest.raises(AuthenticationFailed, match="several tokens"):
        find_credentials(scope)


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (websocket(), "x" * 8193),
        (websocket({"Authorization": "Bearer " + "x" * 8193}), None),
        (websocket(subprotocols=["realtime.token." + "x" * 8193]), None),
        (websocket(query_string=b"ticket=" + b"x" * 8193), None),
    ],
)
def test_a_token_is_bounded(scope: dict[str, Any], message: str | None) -> None:
    with pytest.raises(AuthenticationFailed, match="token too long"):
        find_credentials(scope, message)
    assert len(find_credentials(websocket(), "x" * 8192).token) == 8192


@pytest.mark.parametrize("token", [7, 0, False, ["a"], {"token": "a"}, b"a"])
def test_a_token_that_is_no_text(token: object) -> None:
    with pytest.raises(AuthenticationFailed, match="malformed token"):
        find_credentials(EVERYWHERE, token)


def test_a_query_of_very_many_parts_is_refused() -> None:
    with pytest.raises(AuthenticationFailed, match="malformed query"):
        find_credentials(websocket(query_string=b"&".join([b"a=b"] * 101)))


def test_an_http_request_has_the_header_and_the_ticket() -> None:
    scope: dict[str, Any] = {"type": "http", "headers": [(b"authorization", b"Bearer abc")]}
    assert find_credentials(scope).source == "header"
    assert find_credentials({"type": "http", "query_string": b"ticket=abc"}).source == "query"


@given(st.binary(max_size=300), st.lists(st.binary(max_size=40), max_size=3))
def test_whatever_is_sent_nothing_else_is_raised(query: bytes, headers: list[bytes]) -> None:
    scope = websocket(
        query_string=b"ticket=" + query,
    )
    scope["headers"] = [(b"Authorization", value) for value in headers]
    try:
        find_credentials(scope)
    except AuthenticationFailed:
        pass
