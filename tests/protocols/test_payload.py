"""Payloads in canonical form: the law, types, errors, depth."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import uuid
from decimal import Decimal
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from starlette_realtime.errors import InvalidMessage
from starlette_realtime.protocols.payload import dump, load, too_deep

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.sampled_from(["$bytes", "$escaped", "$", "$byte", "\\u0024bytes", "a"]) | TEXT
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.sampled_from(["AAEC", "====", '"', "\\u0024bytes", "$bytes", "\x00\x1f\x7f", "\u2028"])
    | st.binary(max_size=12)
)
PAYLOADS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES, inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$bytes", "$escaped"]), inner, min_size=1, max_size=2)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equality that tells True from 1 and 1 from 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(PAYLOADS)
@example({"$bytes": "AAEC"})
@example({"$bytes": b"\0"})
@example({"$bytes": 5})
@example({"$escaped": {"$bytes": "AAEC"}})
@example({"$escaped": {"$escaped": {"$escaped": b""}}})
@example({"$escaped": 1})
@example({"$escaped": {"a": 1, "b": 2}})
@example({"$bytes": "AAEC", "$escaped": b"x"})
@example({"\\u0024bytes": "AAEC"})
def test_what_is_dumped_is_loaded(value: Any) -> None:
    raw = dump(value)
    assert same(load(raw), value)
    assert b"\n" not in raw
    json.loads(raw)


@given(PAYLOADS)
def test_a_payload_in_other_spellings_means_the_same(value: Any) -> None:
    raw = dump(value)
    escaped = "".join(
        f"\\u{ord(c):04x}" if c in "$bytescapd" else c for c in json.dumps(json.loads(raw))
    )
    # Escapes are allowed in strings alone: leave the words of JSON as they are.
    words = {"true": True, "false": False, "null": None}
    for word in words:
        spelled = "".join(f"\\u{ord(c):04x}" if c in "$bytescapd" else c for c in word)
        escaped = escaped.replace(spelled, word)
    try:
        json.loads(escaped)
    except ValueError:
        # A number in exponential form, or a string that holds an escape already.
        return
    if json.loads(escaped) == json.loads(raw):
        assert load(escaped.encode()) == value
    assert load(json.dumps(json.loads(raw), indent=1).encode()) == value


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"$bytes":"AAEC"}', b"\x00\x01\x02"),
        (b'{"\\u0024bytes":"AAEC"}', b"\x00\x01\x02"),
        (b'{"$\\u0062ytes":"AAEC"}', b"\x00\x01\x02"),
        (b'{"$b\\u0079\\u0074\\u0065\\u0073":"AAEC"}', b"\x00\x01\x02"),
        (b'{"\\u0024e\\u0073\\u0063\\u0061\\u0070ed":{"$bytes":"AAEC"}}', {"$bytes": "AAEC"}),
        (b'{"$escape\\u0064":{"\\u0024bytes":"AAEC"}}', {"$bytes": "AAEC"}),
        (b'{"$bytes":"AAE="}', b"\x00\x01"),
        (b'{"$bytes":""}', b""),
        (b'{"$bytes":5}', {"$bytes": 5}),
        (b'{"$bytes":"AAEC","x":1}', {"$bytes": "AAEC", "x": 1}),
        (b'{"$escaped":[1]}', {"$escaped": [1]}),
        (b'[{"a":{"$bytes":"/+8="}}]', [{"a": b"\xff\xef"}]),
        (b'"\\u0024bytes"', "$bytes"),
    ],
)
def test_canonical_form(raw: bytes, value: Any) -> None:
    assert load(raw) == value


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        (b"\x00\x01\x02", b'{"$bytes":"AAEC"}'),
        (bytearray(b"\x00"), b'{"$bytes":"AA=="}'),
        (memoryview(b"\x00"), b'{"$bytes":"AA=="}'),
        ({"$bytes": "not bytes"}, b'{"$escaped":{"$bytes":"not bytes"}}'),
        ({"a": (1, None, True)}, b'{"a":[1,null,true]}'),
        ({1: b"", 2: "x"}, b'{"1":{"$bytes":""},"2":"x"}'),
        (msgspec.Raw(b'{"$bytes":"AAEC"}'), b'{"$bytes":"AAEC"}'),
        ([b"\x00", msgspec.Raw(b'{"$bytes":"AA=="}')], b'[{"$bytes":"AA=="},{"$bytes":"AA=="}]'),
        ({"r": msgspec.Raw(b'{ "a":\n[1,\n"x y"] }')}, b'{"r":{"a":[1,"x y"]}}'),
    ],
)
def test_dumping(value: Any, raw: bytes) -> None:
    assert dump(value) == raw


class Colour(enum.Enum):
    RED = "red"


class Move(msgspec.Struct):
    x: int
    y: int = 0
    blob: bytes = b""


class Box(msgspec.Struct, omit_defaults=True):
    inside: Any
    name: str = ""


class Odd(msgspec.Struct, rename={"blob": "$bytes"}):
    blob: str


class Tagged(msgspec.Struct, tag_field="$bytes"):
    pass


@dataclasses.dataclass
class Point:
    x: int
    at: datetime.datetime
    colour: Colour = Colour.RED


class Said(TypedDict):
    text: str
    blob: bytes


class Item(BaseModel):
    name: str
    blob: bytes = b""
    when: datetime.date | None = None


NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Move(1, 2), Move),
        (Move(1, 2, b"\x00\xff"), Move),
        ([Move(1), Move(2, blob=b"\xff")], list[Move]),
        (Box("x"), Box),
        ([Box(1, "n"), Box([None, 2.5])], list[Box]),
        (Box(b"\xff"), Box),
        (Box({"$bytes": "AAEC"}), Box),
        (Box([{"$escaped": {}}]), Box),
        (Odd("AAEC"), Odd),
        (Tagged(), Tagged),
        (Point(1, NOON), Point),
        ({"p": Point(1, NOON), "b": b"x"}, dict[str, Point | bytes]),
        ({"text": "hé", "blob": b"\xff"}, Said),
        (Item(name="a"), Item),
        (Item(name="a", blob=b"\xff\x00", when=datetime.date(2026, 1, 1)), Item),
        ([Item(name="a"), Item(name="$bytes", blob=b"\xff")], list[Item]),
        ({"i": Item(name="a")}, dict[str, Item]),
        (None, Item | None),
        (uuid.UUID(int=7), uuid.UUID),
        ({1: "a"}, dict[int, str]),
        ({1: b"\xff"}, dict[int, bytes]),
        (Decimal("1.10"), Decimal),
        ({"$bytes": 1}, dict[str, int]),
        ({"a", "b"}, set[str]),
    ],
)
def test_typed_values_come_back(value: Any, kind: Any) -> None:
    assert load(dump(value), kind) == value


@pytest.mark.parametrize(
    ("raw", "kind", "value"),
    [
        # Whoever writes JSON may write every character as an escape, and nothing must change by it.
        (b'{"1":"\\u0041"}', dict[int, str], {1: "A"}),
        (b'["AAEC","\\u0041AEC"]', list[bytes], [b"\x00\x01\x02"] * 2),
        (b'{"\\u0078":1,"y":2}', Move, Move(1, 2)),
        (b'{"x":1,"blob":{"\\u0024bytes":"AAEC"}}', Move, Move(1, 0, b"\x00\x01\x02")),
        (b'{"x":1,"blob":"AAEC"}', Move, Move(1, 0, b"\x00\x01\x02")),
        (b'{"name":"\\u00e9"}', Item, Item(name="é")),
        (b"[1,2]", tuple[int, int], (1, 2)),
        (b"5", Annotated[int, msgspec.Meta(ge=5)], 5),
    ],
)
def test_typed_loads(raw: bytes, kind: Any, value: Any) -> None:
    assert load(raw, kind) == value


def test_raw_is_handed_on_as_it_is() -> None:
    for raw in (b'{"$bytes":"AAEC"}', b'{"a": "\\u0024"}', b"1"):
        found = load(raw, msgspec.Raw)
        assert isinstance(found, msgspec.Raw)
        assert bytes(found) == raw
    with pytest.raises(InvalidMessage):
        load(b"{", msgspec.Raw)


@pytest.mark.parametrize(
    ("raw", "kind", "says"),
    [
        (b'{"x":"1"}', Move, "Expected `int`, got `str` - at `$.x`"),
        (b"{}", Move, "missing required field `x`"),
        (b'{"x":1,"blob":{"$bytes":"AAEC"},"y":[]}', Move, "at `$.y`"),
        (b'{"x":{"$bytes":"AAEC"}}', Move, "Expected `int`, got `bytes` - at `$.x`"),
        (b'{"text":"a"}', Said, "missing required field `blob`"),
        (b'{"x":1,"at":"noon"}', Point, "at `$.at`"),
        (b"4", Annotated[int, msgspec.Meta(ge=5)], "Expected `int` >= 5"),
        (b'{"name":[]}', Item, "`name`: Input should be a valid string"),
        (b'{"name":"a","blob":{"$bytes":"AA=="},"when":1.5}', Item, "`when`: "),
        (b"5", Item, "Input should be a valid dictionary"),
        (b'[{"name":"a"},{"name":7}]', list[Item], "at `$[1]`"),
    ],
)
def test_what_does_not_fit_says_where(raw: bytes, kind: Any, says: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        load(raw, kind)
    assert caught.value.error.startswith("Invalid message format: ")
    assert says in caught.value.error
    # One line, and nothing of what was sent.
    assert "\n" not in caught.value.error
    assert "http" not in caught.value.error


@pytest.mark.parametrize("kind", [Any, Move, dict[str, Any], Item, msgspec.Raw])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b'{"x":1,}',
        b"nul",
        b"NaN",
        b"Infinity",
        b"01",
        b"'x'",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\\u12"',
        b'"\\x41"',
        b'"\n"',
        b"1e999",
        b"9" * 5000,
        b"1 2",
        b"\xef\xbb\xbf1",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
)
def test_what_is_no_json_is_an_invalid_message(raw: bytes, kind: Any) -> None:
    with pytest.raises(InvalidMessage):
        load(raw, kind)


@pytest.mark.parametrize("text", ["=", "A", "AAE", "AA EC", "AAE\u00e9", "A-_C", "AAEC=", "\n"])
def test_broken_base64_is_an_invalid_message(text: str) -> None:
    with pytest.raises(InvalidMessage):
        load(json.dumps({"$bytes": text}).encode())


@given(st.binary(max_size=40) | st.text('[]{}",:\\u0024bytesescaped1nul ', max_size=60))
def test_whatever_comes_is_a_value_or_an_invalid_message(junk: bytes | str) -> None:
    raw = junk.encode() if isinstance(junk, str) else junk
    for kind in (Any, Move, Item, list[bytes]):
        try:
            load(raw, kind)
        except InvalidMessage:
            pass


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize(
    "value",
    [
        object(),
        [b"", object()],
        {"a": object},
        {b"key": 1},
        {None: 1},
        "\ud800",
        {"\udfff": b""},
        _circle(),
        1j,
    ],
)
def test_what_has_no_form_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        dump(value)


def _depth(raw: bytes) -> int:
    deepest = depth = 0
    quoted = escaped = False
    for byte in raw:
        if escaped:
            escaped = False
        elif quoted:
            escaped = byte == ord("\\")
            quoted = byte != ord('"')
        elif byte == ord('"'):
            quoted = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


NESTED = st.recursive(
    st.sampled_from([1, "", "[[[", "]}", '"', '\\"[', "\\", "{"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["[", "}", '"', "a"]), inner, max_size=2)
    ),
    max_leaves=25,
)


@given(NESTED, st.integers(0, 8))
def test_depth_is_counted_as_one_would_by_hand(value: Any, limit: int) -> None:
    for raw in (msgspec.json.encode(value), json.dumps(value, indent=1).encode()):
        assert too_deep(raw, limit) is (_depth(raw) > limit)


@pytest.mark.parametrize("depth", [63, 64, 65, 100])
def test_depth_at_the_limit(depth: int) -> None:
    for raw in (
        b"[" * depth + b"]" * depth,
        b'{"[":' * depth + b"1" + b"}" * depth,
        b"[" * depth + b"]" * (depth - 1) + b",[]]",
    ):
        assert too_deep(raw, 64) is (depth > 64)


def test_wide_is_not_deep() -> None:
    assert not too_deep(b"[" + b",".join([b'[{"a":[]}]'] * 10_000) + b"]", 64)
    assert not too_deep(msgspec.json.encode(["[" * 500_000, '\\"' * 200_000]), 64)
    assert not too_deep(msgspec.json.encode(["[" * 100] + [[]] * 100), 64)
