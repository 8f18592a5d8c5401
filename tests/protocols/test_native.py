"""The native protocol's codec."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlette_realtime.errors import ClientError, InvalidMessage, RateLimited
from starlette_realtime.events import Command, Position, Publication
from starlette_realtime.protocols.native import (
    MAX_OBJECTS,
    Refused,
    abridge,
    choose,
    decode,
    encode,
    encode_error,
    encode_events,
)
from starlette_realtime.protocols.payload import dump, load
from tests.support.wsclient import continued

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def taken(frame: str | bytes, *, several: bool = False) -> Command:
    (found,) = decode(frame, several=several)
    assert isinstance(found, Command), found
    return found


def refused(frame: str | bytes, *, several: bool = False) -> Refused:
    (found,) = decode(frame, several=several)
    assert isinstance(found, Refused), found
    assert found.error.error_code == "invalid_message"
    assert found.error.error.startswith("Invalid message format")
    assert not found.error.retry
    return found


def test_a_full_command() -> None:
    command = taken(
        '{"type":"join","id":7,"room":"chat/é","data":{"a":[1]},"messageId":"m1","ns":"/admin",'
        '"since":{"epoch":"e","offset":17,"nonce":"n"},"unknown":[1]}'
    )
    assert (command.type, command.id, command.room) == ("join", 7, "chat/é")
    assert load(bytes(command.data)) == {"a": [1]}
    assert (command.message_id, command.ns) == ("m1", "/admin")
    assert command.since == Position("e", 17, "n")


def test_a_command_of_its_type_alone() -> None:
    command = taken('{"type":"ping"}')
    assert (command.type, command.id, command.room, command.since) == ("ping", None, None, None)
    assert (bytes(command.data), command.message_id, command.ns) == (b"null", "", "/")


def test_a_binary_frame_is_the_same_text() -> None:
    text = '{"type":"a","room":"é","data":"✓"}'
    frames: list[Any] = [text.encode(), bytearray(text.encode()), memoryview(text.encode())]
    for frame in frames:
        assert taken(frame).room == "é"
        assert load(bytes(taken(frame).data)) == "✓"


@pytest.mark.parametrize(
    "frame",
    [
        "",
        " ",
        "\n",
        "null",
        "[]",
        '"ping"',
        "1",
        "{",
        "{}",
        '{"type"}',
        '{"type":}',
        "{'type':'a'}",
        '{"type":"a",}',
        '{"type":"a"} x',
        '{"type":"a"}{"type":"b"}',
        '{"type":null}',
        '{"type":5}',
        '{"type":["a"]}',
        '{"type":""}',
        '{"type":"a","room":5}',
        '{"type":"a","room":""}',
        '{"type":"a","room":{}}',
        '{"type":"a","ns":null}',
        '{"type":"a","ns":""}',
        '{"type":"a","messageId":5}',
        '{"type":"a","messageId":null}',
        '{"type":"a","id":true}',
        '{"type":"a","id":{}}',
        '{"type":"a","since":5}',
        '{"type":"a","since":{}}',
        '{"type":"a","since":{"epoch":1,"offset":1}}',
        '{"type":"a","since":{"epoch":"e","offset":"1"}}',
        '{"type":"a","since":{"epoch":"e","offset":1.5}}',
        '{"type":"a","data":}',
        '{"type":"a","data":NaN}',
        '{"type":"a","data":Infinity}',
        '{"type":"a","data":-}',
        '{"type":"a","data":01}',
        '{"type":"a","data":1.}',
        '{"type":"a","data":"\\q"}',
        '{"type":"a","data":"\x00"}',
        '{"type":"a","data":[1,]}',
        '{"type":"a","data":[1 2]}',
        '{"type":"\ud800"}',
        '{"type":"\\ud800"}',
        '{"type":"a","data":"\\ud800"}',
        '{"type":"a","data":["\\udc00\\ud800"]}',
        '{"type":"a","data":{"\\udfff":1}}',
        "\ufeff" + '{"type":"a"}',
    ],
)
def test_broken_messages_are_refused(frame: str) -> None:
    assert refused(frame).error.error == "Invalid message format" or '""' in frame
    refused(frame, several=True)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff",
        b'{"type":"\xff"}',
        b'{"type":"a","data":"\xff"}',
        b'{"type":"a","data":["\xed\xa0\x80"]}',
        b'{"type":"a","data":{"\xc0\x80":1}}',
        b'{"type":"a","data":"\xf4\x90\x80\x80"}',
        b'\x00{"type":"a"}',
        '{"type":"a"}'.encode("utf-16"),
    ],
)
def test_invalid_utf8_goes_no_further(frame: bytes) -> None:
    # Spliced into a text frame it would cut the connection of everyone who gets it.
    refused(frame)


def test_a_name_that_appears_twice_takes_its_last_value() -> None:
    command = taken('{"type":"a","id":1,"room":"x","type":"b","id":2,"room":"y","data":1,"data":2}')
    assert (command.type, command.id, command.room) == ("b", 2, "y")
    assert bytes(command.data) == b"2"


@pytest.mark.parametrize("id", [0, -1, 7, 2**63 - 1, -(2**63), "", "x", "é✓", "i" * 255])
def test_ids_are_repeated_whatever_else_is_wrong(id: int | str) -> None:
    def frame(**members: Any) -> bytes:
        return json.dumps({"id": id, **members}).encode()

    assert taken(frame(type="a")).id == id
    broken = [
        frame(),
        frame(type=5),
        frame(type=""),
        frame(type="a", room="r\n"),
        frame(type="a", messageId="m" * 65),
        frame(type="a", since=1),
        frame(type="a", data=json.loads("[" * 65 + "]" * 65)),
    ]
    for each in broken:
        found = refused(each)
        assert found.id == id
        answer = json.loads(encode_error(found.error, found.id))
        assert (answer["id"], answer["code"]) == (id, "invalid_message")


@pytest.mark.parametrize(
    "id",
    ["true", "false", "null", "1.5", "[]", "{}", '"' + "i" * 256 + '"', str(2**63), "9" * 4000],
)
def test_ids_of_no_use_are_not_repeated(id: str) -> None:
    assert refused('{"type":5,"id":' + id + "}").id is None
    for found in decode('{"type":"a","id":' + id + "}"):
        assert found.id is None
        assert isinstance(found, Refused) is (id != "null")


@pytest.mark.parametrize(
    "name",
    ["a", "chat/7", "чат", "👩‍💻", "می‌خواهم", "a b\u3000c\u00a0d", "{x}:[y]", "n" * 255, "\u0378"],
)
def test_good_names(name: str) -> None:
    command = taken(json.dumps({"type": name, "room": name, "ns": name}))
    assert (command.type, command.room, command.ns) == (name, name, name)


@pytest.mark.parametrize(
    "name", ["", "n" * 256, "a\nb", "\x00", "a\tb", "\x1f", "a\x7f", "\x85", "\x9f"]
)
@pytest.mark.parametrize("member", ["type", "room", "ns"])
def test_bad_names(name: str, member: str) -> None:
    refused(json.dumps({"type": "a", member: name}))


def test_a_message_id_has_64_characters_at_most() -> None:
    assert taken(json.dumps({"type": "a", "messageId": "m" * 64})).message_id == "m" * 64
    assert "messageId" in refused(json.dumps({"type": "a", "messageId": "m" * 65})).error.error


@pytest.mark.parametrize("several", [False, True])
def test_nesting(several: bool) -> None:
    def nested(levels: int) -> str:
        return '{"type":"a","id":1,"data":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"

    taken(nested(64), several=several)
    assert refused(nested(65), several=several).error.error == (
        "Invalid message format: nested too deeply"
    )
    refused(nested(200_000), several=several)
    refused("[" * 500_000, several=several)
    refused('{"data":' * 100_000, several=several)
    # Brackets in strings do not nest.
    taken('{"type":"a","data":"' + "[" * 100_000 + '"}', several=several)


def test_several_objects_in_one_frame() -> None:
    frame = '{"type":"a","id":1}\n{"type":5,"id":2}\n\n{"type":"c"}\r\nnonsense\n'
    first, second, third, last = decode(frame, several=True)
    assert (first.id, second.id, third.id, last.id) == (1, 2, None, None)
    assert [type(found) for found in (first, second, third, last)] == [
        Command,
        Refused,
        Command,
        Refused,
    ]


def test_several_objects_need_the_subprotocol() -> None:
    refused('{"type":"a"}\n{"type":"b"}')


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\n \n\n"])
def test_256_objects_are_taken_and_257_are_not(ending: str) -> None:
    assert MAX_OBJECTS == 256
    lines = [json.dumps({"type": "a", "id": number}) for number in range(257)]
    found = decode("\n".join(lines[:256]) + ending, several=True)
    assert [each.id for each in found] == list(range(256))
    assert all(isinstance(each, Command) for each in found)
    assert "256" in refused("\n".join(lines) + ending, several=True).error.error
    refused("\n".join(['{"type":"a"}'] * 10_000), several=True)
    refused("\n" * 1_000_000 + "x", several=True)


def test_a_payload_cannot_smuggle_a_message() -> None:
    # A frame of one object may be written over several lines; what others get has only one.
    frame = '{\n"type": "broadcast",\n "data": [1,\n{"type": "connected"}\n,\r\n"a\\nb"]}'
    command = taken(frame)
    data = bytes(command.data)
    assert b"\n" not in data
    assert load(data) == [1, {"type": "connected"}, "a\nb"]
    sent = encode_events("/", "room", [Publication("broadcast", data, 1, "e")])[0]
    assert len(sent.split(b"\n")) == 1


@given(JSON_VALUES, st.sampled_from([None, 0, 1]))
def test_any_payload_arrives_as_it_was_sent(value: Any, indent: int | None) -> None:
    frame = json.dumps({"type": "a", "data": value}, indent=indent, ensure_ascii=indent != 1)
    data = bytes(taken(frame).data)
    assert json.loads(data) == value
    assert b"\n" not in data


@pytest.mark.parametrize(
    "number",
    ["1e309", "1E+400", "-1.5e0999", "9" * 310, "9" * 5000, "9" * 250 + "e60", "9" * 400 + ".5"],
)
def test_numbers_that_not_everyone_can_read_are_refused(number: str) -> None:
    for data in (number, f'[1,{{"a":{number}}}]'):
        found = refused('{"type":"a","id":1,"data":' + data + "}")
        assert found.error.error == "Invalid message format: number out of range"
        assert found.id == 1
    # In a string it is no number.
    taken('{"type":"a","data":"' + number + '\\" ' + number + '"}')


def test_huge_numbers_within_reason_are_kept() -> None:
    for number in (
        "1e308",
        "1e-999",
        "9" * 308,
        "0." + "1" * 5000,
        "123e0000001",
        "1" * 290 + "e9",
    ):
        taken('{"type":"a","data":["e999",' + number + "]}")
    command = taken('{"type":"a","data":[1e300,-1e-300,123456789012345678901234567890,1e-999]}')
    assert load(bytes(command.data))[2] == 123456789012345678901234567890


@given(
    st.binary(max_size=60)
    | st.text('{}[]":,\\u0014typeidromdasnc 1\n', max_size=80)
    | st.builds(
        lambda members: "{" + ",".join(f'"{name}":{value}' for name, value in members) + "}",
        st.lists(
            st.tuples(
                st.sampled_from(["type", "id", "room", "data", "messageId", "ns", "since"]),
                st.sampled_from(
                    ['"a"', "1", "-1e999", "null", "[]", "{}", '"\\ud800"', "true", "1" * 30]
                ),
            ),
            max_size=6,
        ),
    ),
    st.booleans(),
)
def test_whatever_comes_is_a_command_or_refused(frame: str | bytes, several: bool) -> None:
    found = decode(frame, several=several)
    assert 1 <= len(found) <= MAX_OBJECTS
    for each in found:
        if isinstance(each, Refused):
            json.loads(encode_error(each.error, each.id))
        else:
            json.loads(encode("ack", each.ns, id=each.id, data=each.data))
            publication = Publication(each.type, bytes(each.data), 1, "e")
            json.loads(encode_events(each.ns, each.room, [publication])[0].decode())


@given(
    ns=st.just("/") | TEXT,
    room=st.none() | TEXT,
    event=TEXT,
    payload=JSON_VALUES | st.binary(max_size=10),
    offset=st.sampled_from([0, 1, 17, 2**53]),
    nonce=st.just("") | TEXT,
)
def test_an_event_is_the_object_it_stands_for(
    ns: str, room: str | None, event: str, payload: Any, offset: int, nonce: str
) -> None:
    publication = Publication(event, dump(payload), offset, "epoch", nonce=nonce)
    wanted: dict[str, Any] = {"type": event, "data": json.loads(dump(payload))}
    if ns != "/":
        wanted["ns"] = ns
    if room is not None:
        wanted["room"] = room
    if offset:
        wanted["offset"] = offset
        if nonce:
            wanted["nonce"] = nonce
    (sent,) = encode_events(ns, room, [publication])
    assert json.loads(sent) == wanted
    assert b"\n" not in sent


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.sampled_from([0, 1, 2, 3, 4, 9]), st.sampled_from(["", "n"])
        ),
        max_size=12,
    ),
    st.sampled_from([("/", "r"), ("/ns", "r"), ("/", None)]),
)
def test_what_goes_without_saying_can_be_filled_in(
    events: list[tuple[str, int, str]], place: tuple[str, str | None]
) -> None:
    publications = [
        Publication(event, b"%d" % number, offset, "e", nonce=nonce if offset else "")
        for number, (event, offset, nonce) in enumerate(events)
    ]
    messages = encode_events(*place, publications)
    brief = abridge(messages, publications)
    whole: list[dict[str, Any]] = []
    for sent in brief:
        whole.append(continued(whole[-1] if whole else {}, json.loads(sent)))
    assert whole == [json.loads(message) for message in messages]


def test_events_that_follow_each_other_say_only_what_is_new() -> None:
    publications = [Publication("moved", b"[%d]" % n, n, "e", nonce=f"n{n}") for n in (1, 2, 4)]
    messages = encode_events("/ns", "r", publications)
    assert abridge(messages, publications) == [
        messages[0],
        b'{"nonce":"n2","data":[2]}',
        messages[2],
    ]
    volatile = [Publication("at", b"%d" % n) for n in (1, 2)]
    assert abridge(encode_events("/", "r", volatile), volatile)[1] == b'{"data":2}'


def test_the_newest_version_that_is_offered() -> None:
    assert choose(["realtime.v1", "realtime.v2"]) == 2
    assert choose(["realtime.v1", "realtime.v3"]) == 1
    assert choose(["realtime.token.x", ""]) == 0


def test_an_event_tells_no_more_than_the_protocol_says() -> None:
    publication = Publication(
        "moved", b'{"x":1}', 3, "e", "m1", 1, "session", True, "key", 5, "n", "p"
    )
    assert encode_events("/", "r", [publication])[0] == (
        b'{"type":"moved","room":"r","offset":3,"nonce":"n","data":{"x":1}}'
    )


def test_members_of_a_message() -> None:
    raw = msgspec.Raw(b'{"$bytes":"AA=="}')
    sent = encode("joined", "/ns", roomId="r", data=raw, id=msgspec.UNSET, note=None, since=[1])
    assert sent == (
        b'{"type":"joined","ns":"/ns","roomId":"r","data":{"$bytes":"AA=="},"note":null,"since":[1]}'
    )
    assert encode("pong", timestamp=1) == b'{"type":"pong","timestamp":1}'


def test_errors_on_the_wire() -> None:
    assert json.loads(encode_error(InvalidMessage())) == {
        "type": "error",
        "code": "invalid_message",
        "error": "Invalid message format",
        "retry": False,
    }
    assert json.loads(encode_error(RateLimited(), 0, "/ns")) == {
        "type": "error",
        "ns": "/ns",
        "code": "rate_limited",
        "error": "Rate limit exceeded",
        "retry": True,
        "id": 0,
    }
    own = ClientError("sold_out", 'Sold "out" é\n', retry=True)
    assert json.loads(encode_error(own, "")) == {
        "type": "error",
        "code": "sold_out",
        "error": 'Sold "out" é\n',
        "retry": True,
        "id": "",
    }


def test_names_that_are_too_long_are_not_remembered() -> None:
    name = "long" * 250_000
    tracemalloc.start()
    try:
        for number in range(20):
            (refused,) = decode(f'{{"type":"{name}{number}"}}')
            assert isinstance(refused, Refused)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 5_000_000


def test_of_a_name_that_appears_twice_the_last_value_counts() -> None:
    (command,) = decode('{"type":"","room":"%s","type":"x","room":"r"}' % ("r" * 300))
    assert isinstance(command, Command)
    assert (command.type, command.room) == ("x", "r")
