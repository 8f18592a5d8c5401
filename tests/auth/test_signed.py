from __future__ import annotations

import string
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from itsdangerous import BadData, BadPayload, URLSafeTimedSerializer

from starlette_realtime.auth import SignedTokenAuth, User
from starlette_realtime.auth.signed import looks_signed
from starlette_realtime.auth.token import MAX_TOKEN
from starlette_realtime.errors import AuthenticationFailed, ConfigurationError
from tests.auth.helpers import SECRET, shown
from tests.support.loops import both_loops

pytestmark = pytest.mark.anyio

NEWER = "another secret, newer than the first one"


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


async def refusal(auth: SignedTokenAuth, token: str) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        await auth.authenticate(shown(token))
    return caught.value.error


@both_loops
async def test_a_token_brings_its_user() -> None:
    auth = SignedTokenAuth(SECRET)
    before = time.time()
    token = auth.create_token(
        "ann", {"name": "Ann"}, claims={"role": "admin"}, capabilities=["chat/*"]
    )
    user = await auth.authenticate(shown(token))
    assert user is not None
    assert user.id == "ann"
    assert user.info == {"name": "Ann"}
    assert user.claims == {"role": "admin"}
    assert user.capabilities == ("chat/*",)
    # Tokens count whole seconds.
    assert user.expires_at == pytest.approx(before + 3600, abs=2)


async def test_a_plain_token_restricts_nothing() -> None:
    auth = SignedTokenAuth(SECRET)
    user = await auth.verify(auth.create_token(7))
    assert user == User(id="7", expires_at=user.expires_at)


async def test_no_room_is_a_restriction_too() -> None:
    auth = SignedTokenAuth(SECRET)
    assert (await auth.verify(auth.create_token("ann", capabilities=[]))).capabilities == ()


async def test_the_token_is_read_wherever_the_client_may_put_it_but_not_in_the_address() -> None:
    auth = SignedTokenAuth(SECRET)
    token = auth.create_token("ann")
    for source in ("message", "header", "subprotocol"):
        user = await auth.authenticate(shown(token, source))
        assert user is not None and user.id == "ann"
    assert await auth.authenticate(shown(token, "query")) is None
    assert await auth.authenticate(shown()) is None


async def test_a_token_fits_into_a_subprotocol_header() -> None:
    token = SignedTokenAuth(SECRET).create_token("ann", {"name": "Ann Ö. " * 100})
    assert set(token) <= set(string.ascii_letters + string.digits + "-_.")


async def test_an_old_token_has_expired() -> None:
    clock = Clock()
    auth = SignedTokenAuth(SECRET, max_age=60, clock=clock)
    token = auth.create_token("ann")
    clock.ahead = 58
    assert (await auth.verify(token)).id == "ann"
    clock.ahead = 61
    assert await refusal(auth, token) == "Authentication failed: token expired"


async def test_a_token_may_end_earlier_than_others() -> None:
    clock = Clock()
    auth = SignedTokenAuth(SECRET, max_age=3600, clock=clock)
    token = auth.create_token("ann", expires_in=10)
    assert (await auth.verify(token)).expires_at == pytest.approx(clock() + 10, abs=1)
    clock.ahead = 11
    assert await refusal(auth, token) == "Authentication failed: token expired"


async def test_a_shorter_max_age_ends_tokens_that_are_out_already() -> None:
    clock = Clock()
    token = SignedTokenAuth(SECRET, max_age=3600).create_token("ann", expires_in=3000)
    clock.ahead = 100
    assert "expired" in await refusal(SignedTokenAuth(SECRET, max_age=60, clock=clock), token)


async def test_clocks_may_differ_a_little_but_not_by_an_hour() -> None:
    clock = Clock()
    auth = SignedTokenAuth(SECRET, clock=clock)
    token = auth.create_token("ann")
    clock.ahead = -30
    assert (await auth.verify(token)).id == "ann"
    clock.ahead = -3600
    assert await refusal(auth, token) == "Authentication failed: token not yet valid"


async def test_a_new_secret_signs_and_the_old_one_still_verifies() -> None:
    old, both, new = (SignedTokenAuth(keys) for keys in (SECRET, [NEWER, SECRET], NEWER))
    from_old, from_both = old.create_token("ann"), both.create_token("bob")
    assert (await both.verify(from_old)).id == "ann"
    assert (await both.verify(from_both)).id == "bob"
    assert (await new.verify(from_both)).id == "bob"
    assert await refusal(new, from_old) == "Authentication failed: bad signature"
    assert await refusal(old, from_both) == "Authentication failed: bad signature"


async def test_a_changed_token_does_not_hold() -> None:
    auth = SignedTokenAuth(SECRET)
    token = auth.create_token("ann")
    dots = [at for at, sign in enumerate(token) if sign == "."]
    for at in range(len(token)):
        if at in dots or at == len(token) - 1:
            continue
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert await refusal(auth, changed) == "Authentication failed: bad signature"


async def test_a_token_for_something_else_does_not_hold_here() -> None:
    auth = SignedTokenAuth(SECRET)
    other = SignedTokenAuth(SECRET, salt="password reset").create_token("ann")
    assert await refusal(auth, other) == "Authentication failed: bad signature"
    of_the_app = URLSafeTimedSerializer(SECRET).dumps({"sub": "ann"})
    assert isinstance(of_the_app, str)
    assert await refusal(auth, of_the_app) == "Authentication failed: bad signature"


@pytest.mark.parametrize(
    "token", ["x", "a.b", "a.b.c.d", "a b.c.d", "ä.b.c", "\ud800", "a.b.c\n", "A" * (MAX_TOKEN + 1)]
)
async def test_what_is_no_token_is_called_malformed(token: str) -> None:
    with pytest.raises(AuthenticationFailed, match="malformed token"):
        await SignedTokenAuth(SECRET).verify(token)


@pytest.mark.parametrize("payload", [None, 7, [], {}, {"sub": 7}, {"sub": ""}, {"sub": "a\nb"}])
async def test_a_good_signature_does_not_make_a_good_user(payload: Any) -> None:
    auth = SignedTokenAuth(SECRET)
    token = auth._serializer.dumps(payload)
    assert await refusal(auth, token) == "Authentication failed: malformed token"


BASE64 = st.text(string.ascii_letters + string.digits + "-_", max_size=60)


@given(st.one_of(st.text(), st.lists(BASE64, min_size=2, max_size=5).map(".".join)))
@example("A." + "_" * 60 + ".A")
@example("." + "A" * 2000 + ".AAAA.AAAA")
async def test_whatever_is_sent_the_answer_is_a_refusal(token: str) -> None:
    with pytest.raises(AuthenticationFailed):
        await SignedTokenAuth(SECRET).verify(token)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(string.printable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=5,
)


@given(st.text(string.ascii_letters + "äöü-@. ", min_size=1, max_size=255), JSON)
async def test_what_went_in_comes_out(user_id: str, info: Any) -> None:
    auth = SignedTokenAuth(SECRET)
    user = await auth.verify(auth.create_token(user_id, info))
    assert (user.id, user.info) == (user_id, info)


def judged_by_itsdangerous(auth: SignedTokenAuth, token: str) -> dict[str, Any] | str:
    """What the library that makes the tokens finds in one: its members and when it was signed, or
    why it does not hold."""
    if len(token) > MAX_TOKEN or not looks_signed(token):
        return "malformed token"
    try:
        found, signed_at = auth._serializer.loads(token, return_timestamp=True)
    except BadPayload:
        return "malformed token"
    except (BadData, ValueError, OverflowError):
        return "bad signature"
    if not isinstance(found, dict) or not isinstance(found.get("sub"), str):
        return "malformed token"
    return {"id": found["sub"], "info": found.get("info"), "signed": int(signed_at.timestamp())}


async def judged_here(auth: SignedTokenAuth, token: str) -> dict[str, Any] | str:
    try:
        user = await auth.verify(token)
    except AuthenticationFailed as error:
        return error.error.removeprefix("Authentication failed: ")
    assert user.expires_at is not None
    return {"id": user.id, "info": user.info, "signed": user.expires_at - auth._max_age}


CHANGES = st.lists(
    st.tuples(st.integers(-200, 200), st.integers(0, 2), st.text(string.ascii_letters + "-_.=09")),
    max_size=3,
)


@given(st.sampled_from(["ann", "ö" * 40, "a" * 255]), JSON, CHANGES, st.booleans())
@example("ann", "x" * 500, [], True)
@example("ann", None, [(-1, 1, "A")], False)
@example("ann", None, [(-1, 1, "")], False)
async def test_a_token_is_judged_as_itsdangerous_would(
    user_id: str, info: Any, changes: list[tuple[int, int, str]], old: bool
) -> None:
    """Changed in places, whole or compressed, under either of two secrets."""
    auth = SignedTokenAuth([NEWER, SECRET])
    token = SignedTokenAuth(SECRET if old else NEWER).create_token(user_id, info)
    for at, replaced, text in changes:
        start = at % (len(token) + 1)
        token = token[:start] + text + token[start + replaced :]
    assert await judged_here(auth, token) == judged_by_itsdangerous(auth, token)


NOW = int(time.time())
PACKED = [b"", b"e30", b".", b".eJyrVipNUrJSSszLU6oFABf3A4c", b"x", b"!", b"W10", b"AAAA", b"____"]


@pytest.mark.parametrize("packed", [*PACKED, b"eyJzdWIiOiJhbm4ifQ", b"eyJzdWIiOiJhbm4ifR"])
@pytest.mark.parametrize("at", [b"", b"A", b"AAAAA", b"_" * 6, b"_" * 4000, None])
async def test_whatever_was_signed_is_judged_as_itsdangerous_would(
    packed: bytes, at: bytes | None
) -> None:
    auth = SignedTokenAuth(SECRET, max_age=10 * NOW, clock=lambda: float(NOW))
    signer = auth._serializer.make_signer(auth._serializer.salt)
    if at is None:
        token = signer.sign(packed).decode()
    else:
        signed = packed + b"." + at
        token = (signed + b"." + signer.get_signature(signed)).decode()
    assert await judged_here(auth, token) in (
        judged_by_itsdangerous(auth, token),
        # It knows no clock that is ahead.
        "token not yet valid",
    )


@given(JSON | st.floats(allow_nan=False, allow_infinity=False) | st.integers())
async def test_json_is_read_as_itsdangerous_reads_it(info: Any) -> None:
    auth = SignedTokenAuth(SECRET)
    token = auth.create_token("ann", info)
    read = (await auth.verify(token)).info
    assert (repr(read), msgspec.json.encode(read)) == (repr(info), msgspec.json.encode(info))


@pytest.mark.parametrize("secret", ["", "fifteen bytes !", b"\xff" * 15, [], [SECRET, "short"]])
def test_a_secret_that_can_be_guessed_is_refused(secret: Any) -> None:
    with pytest.raises(ConfigurationError):
        SignedTokenAuth(secret)


def test_the_refusal_says_how_to_make_a_secret() -> None:
    with pytest.raises(ConfigurationError, match=r"32 or more.*token_urlsafe"):
        SignedTokenAuth("too short")


@pytest.mark.parametrize("max_age", [0, -1, float("inf"), float("nan")])
def test_tokens_have_an_end(max_age: float) -> None:
    with pytest.raises(ConfigurationError, match="max_age"):
        SignedTokenAuth(SECRET, max_age=max_age)


@pytest.mark.parametrize(
    ("user_id", "arguments"),
    [
        ("", {}),
        ("x" * 256, {}),
        ("a\nb", {}),
        ("\ud800", {}),
        (True, {}),
        ("ann", {"expires_in": 0}),
        ("ann", {"expires_in": 3601}),
        ("ann", {"expires_in": float("nan")}),
        ("ann", {"capabilities": "chat/*"}),
        ("ann", {"capabilities": [7]}),
        ("ann", {"info": float("nan")}),
        ("ann", {"info": "\ud800"}),
    ],
)
def test_a_token_that_could_not_work_is_not_made(user_id: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SignedTokenAuth(SECRET).create_token(user_id, **arguments)


def test_a_token_too_large_to_be_accepted_is_not_made() -> None:
    # Digits of pi would do: what compresses well is no large token.
    noise = "".join(chr(0x4E00 + (n * n * 7919) % 20000) for n in range(5000))
    with pytest.raises(ValueError, match="8192"):
        SignedTokenAuth(SECRET).create_token("ann", noise)


def test_info_that_is_not_json_is_not_signed() -> None:
    with pytest.raises(TypeError):
        SignedTokenAuth(SECRET).create_token("ann", object())
