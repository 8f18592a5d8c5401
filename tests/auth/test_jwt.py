from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import logging
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from hypothesis import example, given
from hypothesis import strategies as st

from starlette_realtime.auth import JWTAuth
from starlette_realtime.errors import AuthenticationFailed, ConfigurationError
from tests.auth.helpers import shown
from tests.support.loops import both_loops

pytestmark = pytest.mark.anyio

SECRET = "0123456789abcdef0123456789abcdef"
HS = ["HS256"]


@cache
def rsa_key(name: str = "", size: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=size)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


def private_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "ann", "exp": int(time.time()) + 600, **more}


def made(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **more: Any) -> str:
    headers = None if kid is None else {"kid": kid}
    return jwt.encode(claims(**more), key, algorithm=algorithm, headers=headers)


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: Any, payload: Any, key: bytes = SECRET.encode()) -> str:
    """A token as no library would make it."""
    head = f"{segment(header)}.{segment(payload)}"
    return f"{head}.{segment(hmac.new(key, head.encode(), hashlib.sha256).digest())}"


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    if isinstance(key, bytes):
        return {"kty": "oct", "k": segment(key), **more}
    if isinstance(key, rsa.RSAPrivateKey):
        found = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        found = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        found = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**found, **more}


async def refusal(auth: JWTAuth, token: str) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        await auth.authenticate(shown(token))
    return caught.value.error.removeprefix("Authentication failed: ")


# Claims


@both_loops
async def test_the_claims_make_the_user() -> None:
    exp = int(time.time()) + 600
    token = made(exp=exp, name="Ann", picture="/ann.png", email="a@b", rooms=["chat/*"], role=1)
    user = await JWTAuth(SECRET, algorithms=HS).authenticate(shown(token, "header"))
    assert user is not None
    assert user.id == "ann"
    assert user.info == {"name": "Ann", "picture": "/ann.png"}
    assert user.expires_at == exp
    assert user.capabilities == ("chat/*",)
    assert user.claims["role"] == 1


async def test_a_plain_token_shows_and_restricts_nothing() -> None:
    user = await JWTAuth(SECRET, algorithms=HS).verify(made())
    assert (user.info, user.capabilities) == (None, None)


async def test_without_a_token_nobody_is_known() -> None:
    auth = JWTAuth(SECRET, algorithms=HS)
    assert await auth.authenticate(shown()) is None
    assert await auth.authenticate(shown(made(), "query")) is None


async def test_info_from_chosen_claims() -> None:
    token = made(name="Ann", profile={"age": 7})
    auth = JWTAuth(SECRET, algorithms=HS, info="profile")
    assert (await auth.verify(token)).info == {"age": 7}
    auth = JWTAuth(SECRET, algorithms=HS, info=["profile", "missing"])
    assert (await auth.verify(token)).info == {"profile": {"age": 7}}
    assert (await JWTAuth(SECRET, algorithms=HS, info=None).verify(token)).info is None


@pytest.mark.parametrize(
    ("rooms", "capabilities"),
    [([], ()), (["a", "b"], ("a", "b")), ("a  b", ("a", "b")), ("", ())],
)
async def test_capabilities(rooms: Any, capabilities: tuple[str, ...]) -> None:
    auth = JWTAuth(SECRET, algorithms=HS)
    assert (await auth.verify(made(rooms=rooms))).capabilities == capabilities
    named = JWTAuth(SECRET, algorithms=HS, capabilities="scope")
    assert (await named.verify(made(rooms=rooms))).capabilities is None
    assert (await named.verify(made(scope=rooms))).capabilities == capabilities
    ignored = JWTAuth(SECRET, algorithms=HS, capabilities=None)
    assert (await ignored.verify(made(rooms=rooms))).capabilities is None


@pytest.mark.parametrize("rooms", [None, 7, {}, [7], ["a", None], True])
async def test_a_restriction_that_is_not_understood_is_not_dropped(rooms: Any) -> None:
    auth = JWTAuth(SECRET, algorithms=HS)
    assert await refusal(auth, made(rooms=rooms)) == "malformed claim rooms"


@pytest.mark.parametrize("sub", ["", "a\nb", "x" * 256])
async def test_a_subject_that_is_no_id(sub: str) -> None:
    assert await refusal(JWTAuth(SECRET, algorithms=HS), made(sub=sub)) == "unusable claim sub"


@pytest.mark.parametrize("sub", [7, ["ann"], True, {}])
async def test_a_subject_that_is_no_text(sub: Any) -> None:
    token = by_hand({"alg": "HS256"}, claims(sub=sub))
    assert await refusal(JWTAuth(SECRET, algorithms=HS), token)


@pytest.mark.parametrize("name", ["sub", "exp"])
async def test_a_missing_claim(name: str) -> None:
    token = by_hand({"alg": "HS256"}, {k: v for k, v in claims().items() if k != name})
    assert await refusal(JWTAuth(SECRET, algorithms=HS), token) == f"missing claim {name}"
    token = by_hand({"alg": "HS256"}, claims(**{name: None}))
    assert await refusal(JWTAuth(SECRET, algorithms=HS), token) == f"missing claim {name}"


# Time


async def test_an_expired_token() -> None:
    auth = JWTAuth(SECRET, algorithms=HS)
    assert await refusal(auth, made(exp=time.time() - 1)) == "token expired"
    assert await refusal(auth, made(exp=0)) == "token expired"


async def test_a_token_that_is_not_valid_yet() -> None:
    auth = JWTAuth(SECRET, algorithms=HS)
    assert await refusal(auth, made(nbf=time.time() + 60)) == "token not yet valid"
    assert await refusal(auth, made(iat=time.time() + 60)) == "token not yet valid"
    assert (await auth.verify(made(nbf=time.time() - 60))).id == "ann"


async def test_clocks_may_differ_by_the_leeway() -> None:
    auth = JWTAuth(SECRET, algorithms=HS, leeway=30)
    exp = int(time.time()) - 10
    user = await auth.verify(made(exp=exp, nbf=time.time() + 10))
    # Else the connection would be closed as soon as it is open.
    assert user.expires_at == exp + 30
    assert await refusal(auth, made(exp=time.time() - 40)) == "token expired"
    assert await refusal(auth, made(nbf=time.time() + 40)) == "token not yet valid"


@pytest.mark.parametrize("exp", ["soon", "99999999999", [], {}, True, float("inf"), float("nan")])
async def test_an_end_that_is_no_time(exp: Any) -> None:
    token = by_hand({"alg": "HS256"}, claims(exp=exp))
    assert await refusal(JWTAuth(SECRET, algorithms=HS), token)


async def test_an_end_beyond_all_times_is_a_late_one() -> None:
    token = by_hand({"alg": "HS256"}, claims(exp=1e308))
    user = await JWTAuth(SECRET, algorithms=HS).verify(token)
    assert user.expires_at is not None and 4e9 < user.expires_at < 1e12


# Audience and issuer


async def test_the_audience() -> None:
    auth = JWTAuth(SECRET, algorithms=HS, audience="chat")
    assert (await auth.verify(made(aud="chat"))).id == "ann"
    assert (await auth.verify(made(aud=["other", "chat"]))).id == "ann"
    assert await refusal(auth, made(aud="other")) == "wrong audience"
    assert await refusal(auth, made(aud=["other"])) == "wrong audience"
    assert await refusal(auth, made(aud=[7])) == "wrong audience"
    assert await refusal(auth, made()) == "missing claim aud"
    several = JWTAuth(SECRET, algorithms=HS, audience=["chat", "game"])
    assert (await several.verify(made(aud="game"))).id == "ann"


async def test_a_token_for_an_audience_is_refused_where_none_is_named() -> None:
    assert await refusal(JWTAuth(SECRET, algorithms=HS), made(aud="chat")) == "wrong audience"


async def test_the_issuer() -> None:
    auth = JWTAuth(SECRET, algorithms=HS, issuer="https://id.example/")
    assert (await auth.verify(made(iss="https://id.example/"))).id == "ann"
    assert await refusal(auth, made(iss="https://id.example")) == "wrong issuer"
    assert await refusal(auth, made(iss="https://evil.example/")) == "wrong issuer"
    assert await refusal(auth, made()) == "missing claim iss"
    odd = by_hand({"alg": "HS256"}, claims(iss=["https://id.example/"]))
    assert await refusal(auth, odd) in ("wrong issuer", "malformed token")
    several = JWTAuth(SECRET, algorithms=HS, issuer=["a", "b"])
    assert (await several.verify(made(iss="b"))).id == "ann"


@pytest.mark.parametrize("name", ["audience", "issuer"])
def test_an_empty_list_is_a_mistake(name: str) -> None:
    options: dict[str, Any] = {name: []}
    with pytest.raises(ConfigurationError, match=name):
        JWTAuth(SECRET, algorithms=HS, **options)


# Attacks on the signature


async def test_a_changed_token() -> None:
    auth = JWTAuth(SECRET, algorithms=HS)
    head, _, signature = made().split(".")
    assert await refusal(auth, f"{head}.{segment(claims(sub='eve'))}.{signature}") == (
        "bad signature"
    )
    assert await refusal(auth, f"{head}.{segment(claims())}.") == "bad signature"
    assert await refusal(auth, made("another secret of thirty-two bytes")) == "bad signature"


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
async def test_the_algorithm_none(alg: str) -> None:
    for auth in (
        JWTAuth(SECRET, algorithms=HS),
        JWTAuth(public_pem(rsa_key()), algorithms=["RS256"]),
    ):
        for signature in ("", segment(b"x" * 32)):
            token = f"{segment({'alg': alg})}.{segment(claims())}.{signature}"
            assert await refusal(auth, token) == "algorithm not allowed"


async def test_a_public_key_is_no_secret() -> None:
    pem = public_pem(rsa_key())
    forged = by_hand({"alg": "HS256", "typ": "JWT"}, claims(), pem.encode())
    assert await refusal(JWTAuth(pem, algorithms=["RS256"]), forged) == "algorithm not allowed"
    auth = JWTAuth({"keys": [jwk(rsa_key(), kid="k")]}, algorithms=["RS256"])
    assert await refusal(auth, forged) == "algorithm not allowed"


async def test_another_algorithm_of_the_same_key_is_not_allowed() -> None:
    auth = JWTAuth(public_pem(rsa_key()), algorithms=["RS256"])
    assert await refusal(auth, made(rsa_key(), "RS512")) == "algorithm not allowed"
    assert await refusal(auth, made(rsa_key(), "PS256")) == "algorithm not allowed"
    long = SECRET * 2
    assert await refusal(JWTAuth(long, algorithms=HS), made(long, "HS512")) == (
        "algorithm not allowed"
    )


async def test_a_token_does_not_bring_its_own_key() -> None:
    evil = rsa_key("evil")
    auth = JWTAuth({"keys": [jwk(rsa_key(), kid="k")]}, algorithms=["RS256"])
    for header in ({"jwk": jwk(evil)}, {"jku": "https://evil.example/keys"}, {"kid": "k"}):
        token = jwt.encode(claims(), evil, algorithm="RS256", headers=header)
        assert await refusal(auth, token) == "bad signature"


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], "x"])
async def test_a_critical_extension_is_refused(crit: Any) -> None:
    token = by_hand({"alg": "HS256", "crit": crit, "exp": 1}, claims())
    assert await refusal(JWTAuth(SECRET, algorithms=HS), token) == "malformed token"


NESTED = b'{"alg": "HS256", "x": ' + b"[" * 4000


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "a.b",
        "a.b.c.d",
        "..",
        "{}.{}.{}",
        f"{segment(b'[' * 5000)}.e30.AA",
        f"{segment([])}.e30.AA",
        f"{segment({})}.e30.AA",
        f"{segment({'alg': 7})}.e30.AA",
        f"{segment({'alg': 'HS256', 'kid': 7})}.e30.AA",
        segment(NESTED) + ".e30.AA",
        f"{segment({'alg': 'HS256'})}.e30.!",
        f"{segment({'alg': 'HS256'})}.\ud800.AA",
        "ä.ö.ü",
        "x" * 9000,
    ],
)
async def test_what_is_no_token_is_called_malformed(token: str) -> None:
    with pytest.raises(AuthenticationFailed, match="malformed token"):
        await JWTAuth(SECRET, algorithms=HS).verify(token)


@pytest.mark.parametrize("payload", [b"", b"[]", b"7", b"\xff", b"{", b"[" * 5000, b'{"sub": '])
async def test_a_payload_that_is_none(payload: bytes) -> None:
    token = by_hand({"alg": "HS256"}, payload)
    assert await refusal(JWTAuth(SECRET, algorithms=HS), token) == "malformed token"


async def test_a_name_that_could_not_be_sent_to_others_is_refused() -> None:
    payload = json.dumps(claims(name="\ud800")).encode()
    auth = JWTAuth(SECRET, algorithms=HS)
    assert await refusal(auth, by_hand({"alg": "HS256"}, payload)) == "malformed token"


ANYTHING = st.text() | st.integers() | st.none() | st.lists(st.integers()) | st.booleans()
HEADERS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("alg", "kid", "crit", "typ", "b64"), ANYTHING)
) | st.fixed_dictionaries({"alg": st.just("HS256")}, optional={"kid": st.text(), "b64": ANYTHING})


@given(
    st.one_of(
        st.text(),
        st.builds(
            by_hand,
            HEADERS,
            st.dictionaries(st.sampled_from(["sub", "exp", "nbf", "iat", "jti"]), ANYTHING),
        ),
        st.builds(by_hand, HEADERS, st.binary()),
    )
)
@example(made()[:-4])
async def test_whatever_is_sent_the_answer_is_a_user_or_a_refusal(token: str) -> None:
    try:
        user = await JWTAuth(SECRET, algorithms=HS).verify(token)
    except AuthenticationFailed:
        return
    assert user.id


# Keys


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("RS256", rsa_key),
        ("PS384", rsa_key),
        ("ES256", ec_key),
        ("ES384", lambda: ec.generate_private_key(ec.SECP384R1())),
        ("ES512", lambda: ec.generate_private_key(ec.SECP521R1())),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate),
    ],
)
async def test_key_pairs(algorithm: str, make: Any) -> None:
    key = make()
    token = made(key, algorithm, "k")
    head, payload, signature = token.split(".")
    changed = f"{head}.{payload}.{'A' * 8}{signature[8:]}"
    for given_key in (
        public_pem(key),
        public_pem(key).encode(),
        private_pem(key),
        {"keys": [jwk(key, kid="k")]},
        jwk(key),
    ):
        auth = JWTAuth(given_key, algorithms=[algorithm])
        assert (await auth.verify(token)).id == "ann"
        assert await refusal(auth, changed) == "bad signature"


async def test_a_certificate() -> None:
    key = rsa_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "id.example")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    auth = JWTAuth(pem, algorithms=["RS256"])
    assert (await auth.verify(made(key, "RS256"))).id == "ann"


async def test_a_list_of_secrets_lets_one_change_them() -> None:
    newer = SECRET[::-1]
    auth = JWTAuth([newer, SECRET], algorithms=HS)
    for key in (newer, SECRET):
        assert (await auth.verify(made(key))).id == "ann"
        assert (await auth.verify(made(key, kid="whatever"))).id == "ann"
    assert await refusal(auth, made("x" * 32)) == "bad signature"


async def test_in_a_jwks_the_kid_selects() -> None:
    one, two = rsa_key("one"), rsa_key("two")
    auth = JWTAuth(
        {"keys": [jwk(one, kid="one"), jwk(two, kid="two")]}, algorithms=["RS256", "ES256"]
    )
    assert (await auth.verify(made(two, "RS256", "two"))).id == "ann"
    assert (await auth.verify(made(two, "RS256"))).id == "ann"
    assert await refusal(auth, made(two, "RS256", "one")) == "bad signature"
    assert await refusal(auth, made(two, "RS256", "three")) == "unknown key"
    assert await refusal(auth, made(ec_key(), "ES256", "one")) == "unknown key"


async def test_a_jwks_key_is_used_only_as_it_says() -> None:
    key = rsa_key()
    token = made(key, "RS256", "k")
    usable = [jwk(key, kid="k"), jwk(key, kid="k", use="sig", alg="RS256")]
    for one in usable:
        assert (await JWTAuth({"keys": [one]}, algorithms=["RS256"]).verify(token)).id == "ann"
    raw = x25519.X25519PrivateKey.generate().public_key().public_bytes_raw()
    unusable = [
        jwk(key, kid="k", use="enc"),
        jwk(key, kid="k", key_ops=["encrypt"]),
        jwk(key, kid="k", alg="RS512"),
        jwk(SECRET.encode(), kid="k"),
        {"kty": "OKP", "crv": "X25519", "x": segment(raw), "kid": "k"},
        {"kty": "RSA", "n": 7, "e": [], "kid": "k"},
        {"kty": "EC", "crv": "P-0", "x": "AA", "y": "AA", "kid": "k"},
        {"kty": ["RSA"]},
        {},
    ]
    for one in unusable:
        with pytest.raises(ConfigurationError, match="no key"):
            JWTAuth({"keys": [one]}, algorithms=["RS256"])
        both = JWTAuth({"keys": [one, usable[0]]}, algorithms=["RS256"])
        assert (await both.verify(token)).id == "ann"


async def test_secrets_in_a_jwks() -> None:
    auth = JWTAuth({"keys": [jwk(SECRET.encode(), kid="k"), jwk(rsa_key())]}, algorithms=HS)
    assert (await auth.verify(made(kid="k"))).id == "ann"


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        (SECRET, []),
        (SECRET, ["none"]),
        (SECRET, ["HS256", "NONE"]),
        (SECRET, ["HS1"]),
        (SECRET, ["HS256", "RS256"]),
        (SECRET, ["HS256", "ES256"]),
        (SECRET, ["RS256"]),
        ("", ["HS256"]),
        (SECRET[1:], ["HS256"]),
        (SECRET, ["HS256", "HS384"]),
        (SECRET * 2, ["HS256", 7]),
        ([SECRET, "short"], ["HS256"]),
        ([], ["HS256"]),
        (None, ["HS256"]),
        ({"keys": []}, ["HS256"]),
        ({"keys": None}, ["HS256"]),
        ({"keys": ["x"]}, ["HS256"]),
        ({"keys": [jwk(b"short")]}, ["HS256"]),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", ["RS256"]),
    ],
)
def test_what_cannot_be_safe_is_refused(key: Any, algorithms: Any) -> None:
    with pytest.raises(ConfigurationError, match="JWTAuth"):
        JWTAuth(key, algorithms=algorithms)


@pytest.mark.parametrize("key", [SECRET, public_pem(rsa_key())])
def test_secrets_and_key_pairs_are_not_mixed(key: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be mixed"):
        JWTAuth(key, algorithms=["HS256", "RS256"])


def test_a_key_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="does not fit"):
        JWTAuth(public_pem(ec_key()), algorithms=["RS256"])
    with pytest.raises(ConfigurationError, match="does not fit"):
        JWTAuth(public_pem(ec_key()), algorithms=["ES384"])
    with pytest.raises(ConfigurationError, match="looks like a key pair"):
        JWTAuth(public_pem(rsa_key()), algorithms=HS)


def test_a_short_rsa_key_is_refused() -> None:
    short = rsa_key("short", 1024)
    for key in (public_pem(short), {"keys": [jwk(short)]}):
        with pytest.raises(ConfigurationError, match="1024 bits"):
            JWTAuth(key, algorithms=["RS256"])


def test_algorithms_have_to_be_named() -> None:
    with pytest.raises(TypeError, match="algorithms"):
        JWTAuth(SECRET)  # type: ignore[call-arg]


@pytest.mark.parametrize("leeway", [-1, float("inf"), float("nan")])
def test_leeway_is_a_time(leeway: float) -> None:
    with pytest.raises(ConfigurationError, match="leeway"):
        JWTAuth(SECRET, algorithms=HS, leeway=leeway)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ConfigurationError, match=r"pip install starlette-realtime\[jwt\]"):
        JWTAuth(SECRET, algorithms=HS)


# Files


class Seconds:
    """Turns the clock by which the file is looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("starlette_realtime.auth.jwt.monotonic", lambda: self.now)


def write(path: Path, *keys: dict[str, Any]) -> None:
    # As one should: whoever reads meanwhile sees the old file or the new one.
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"keys": keys}))
    fresh.replace(path)


@both_loops
async def test_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = Seconds(monkeypatch)
    path = tmp_path / "keys.json"
    one, two = rsa_key("one"), rsa_key("two")
    write(path, jwk(one, kid="one"))
    auth = JWTAuth(path, algorithms=["RS256"])
    from_one, from_two = made(one, "RS256", "one"), made(two, "RS256", "two")
    assert (await auth.verify(from_one)).id == "ann"
    write(path, jwk(two, kid="two"))
    # At most once a second, however many connect.
    seconds.now += 0.9
    assert (await auth.verify(from_one)).id == "ann"
    assert await refusal(auth, from_two) == "unknown key"
    seconds.now += 0.2
    assert (await auth.verify(from_two)).id == "ann"
    assert await refusal(auth, from_one) == "unknown key"


async def test_a_file_that_breaks_leaves_the_keys_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = Seconds(monkeypatch)
    path = tmp_path / "keys.json"
    write(path, jwk(rsa_key(), kid="k"))
    auth = JWTAuth(path, algorithms=["RS256"])
    token = made(rsa_key(), "RS256", "k")
    for broken in (b'{"keys": [', b'{"keys": [{"kty": "RSA", "n": 1}]}', b"", None):
        caplog.clear()
        if broken is None:
            path.unlink()
        else:
            path.write_bytes(broken)
        for _ in range(3):
            seconds.now += 2
            with caplog.at_level(logging.ERROR):
                assert (await auth.verify(token)).id == "ann"
        assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    write(path, jwk(rsa_key("two"), kid="two"))
    seconds.now += 2
    assert (await auth.verify(made(rsa_key("two"), "RS256", "two"))).id == "ann"


async def test_a_pem_file(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text(public_pem(ec_key()))
    auth = JWTAuth(path, algorithms=["ES256"])
    assert (await auth.verify(made(ec_key(), "ES256"))).id == "ann"


@pytest.mark.parametrize("content", [None, b"{", b"rubbish", b'{"keys": []}'])
@pytest.mark.parametrize("algorithm", ["HS256", "RS256"])
def test_an_unusable_file_is_refused(tmp_path: Path, content: bytes | None, algorithm: str) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="JWTAuth"):
        JWTAuth(path, algorithms=[algorithm])
