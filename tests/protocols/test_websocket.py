"""The WebSocket codec: RFC 6455's and RFC 7692's own examples, and `websockets` as the judge."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask

from starlette_realtime.protocols import websocket
from starlette_realtime.protocols.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    MAX_HEADERS,
    MAX_LINE,
    MAX_REQUEST,
    PING,
    PONG,
    RSV1,
    TEXT,
    Close,
    Event,
    Failure,
    FrameReader,
    Ping,
    Pong,
    Refused,
    accept,
    close_payload,
    compressed_frame,
    frame,
    negotiate,
    read_request,
    respond,
)

LARGE = 1 << 30
MASK = bytes.fromhex("37fa213d")


def masked(first: int, payload: bytes, mask: bytes = MASK) -> bytes:
    """A client's frame."""
    head = frame(payload, first)
    body = bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))
    start = len(head) - len(payload)
    return bytes([head[0], head[1] | 0x80]) + head[2:start] + mask + body


def read(*data: bytes, max_size: int = LARGE, deflate: bool = True) -> list[Event]:
    """What a reader finds in data that arrives in these pieces."""
    reader = FrameReader(max_size, deflate=deflate)
    events: list[Event] = []
    for piece in data:
        events += reader.receive(piece)
        if events and isinstance(events[-1], Close | Failure):
            break
    return events


# RFC 6455


def test_the_handshake_of_rfc_6455() -> None:
    request = read_request(
        b"GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Origin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n"
    )
    assert request is not None
    assert (request.path, request.query) == (b"/chat", b"")
    assert request.subprotocols == ["chat", "superchat"]
    assert request.headers[0] == (b"host", b"server.example.com")
    assert accept(request, subprotocol="chat") == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("data", "events"),
    [
        ("818537fa213d7f9f4d5158", ["Hello"]),
        ("898537fa213d7f9f4d5158", [Ping(b"Hello")]),
        ("8a8537fa213d7f9f4d5158", [Pong(b"Hello")]),
        ("810548656c6c6f", [Failure(1002, "a frame is not masked")]),
    ],
)
def test_the_examples_of_rfc_6455(data: str, events: list[Event]) -> None:
    assert read(bytes.fromhex(data)) == events


def test_a_server_s_frames() -> None:
    assert frame(b"Hello") == bytes.fromhex("810548656c6c6f")
    assert frame(b"Hello", FIN | PONG) == bytes.fromhex("8a0548656c6c6f")
    assert frame(b"x" * 256, FIN | BINARY)[:4] == bytes.fromhex("827e0100")
    assert frame(b"x" * 65536, FIN | BINARY)[:10] == bytes.fromhex("827f0000000000010000")


def test_control_frames_come_between_fragments() -> None:
    fragments = [masked(TEXT, b"Hel"), masked(FIN | PING, b"?"), masked(FIN, b"lo")]
    assert read(b"".join(fragments)) == [Ping(b"?"), "Hello"]
    closing = masked(TEXT, b"Hel") + masked(FIN | CLOSE, b"\x03\xe8over")
    assert read(closing) == [Close(1000, "over", b"\x03\xe8over")]


def test_a_character_may_be_cut_in_two() -> None:
    euro = "€".encode()
    assert read(masked(TEXT, euro[:1]), masked(CONTINUATION, b""), masked(FIN, euro[1:])) == ["€"]
    broken = read(masked(TEXT, euro[:1]) + masked(FIN, b"!"))
    assert broken == [Failure(1007, "invalid UTF-8")]


# RFC 7692, section 7.2.3


@pytest.mark.parametrize(
    "frames",
    [
        [(FIN | RSV1 | TEXT, "f248cdc9c90700")],
        [(RSV1 | TEXT, "f248cd"), (FIN, "c9c90700")],
        [(FIN | RSV1 | TEXT, "000500faff48656c6c6f00")],
        [(FIN | RSV1 | TEXT, "f348cdc9c9070000")],
        [(FIN | RSV1 | TEXT, "f248050000 00ffffcac9c90700")],
    ],
    ids=["one block", "fragmented", "no compression", "BFINAL", "two blocks"],
)
def test_the_examples_of_rfc_7692(frames: list[tuple[int, str]]) -> None:
    data = b"".join(masked(first, bytes.fromhex(payload)) for first, payload in frames)
    assert read(data, data) == ["Hello", "Hello"]
    refused = read(data, deflate=False)
    assert refused == [Failure(1002, "reserved bits are set")]


def test_each_compressed_message_stands_alone() -> None:
    made = compressed_frame(b"Hello" * 100)
    payload = made[2:] if made[1] < 126 else made[4:]
    assert read(masked(made[0], payload), masked(made[0], payload)) == ["Hello" * 100] * 2
    assert compressed_frame(b"x", BINARY, 9)[0] == FIN | RSV1 | BINARY


def deflated(payload: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_what_is_decompressed_is_bounded() -> None:
    bomb = masked(FIN | RSV1 | BINARY, deflated(bytes(100_000_000)))
    assert len(bomb) < 100_000
    assert read(bomb, max_size=1_000_000) == [Failure(1009, "more than 1000000 bytes")]
    exact = masked(FIN | RSV1 | BINARY, deflated(bytes(5000)))
    assert read(exact, max_size=5000) == [bytes(5000)]
    assert read(exact, max_size=4999) == [Failure(1009, "more than 4999 bytes")]
    (failure,) = read(masked(FIN | RSV1 | BINARY, b"\xff\xff\xff\xff"))
    assert failure == Failure(1002, "a message that can't be decompressed")


# Bounds


def test_a_frame_that_is_too_large_is_known_by_its_head() -> None:
    head = masked(FIN | BINARY, bytes(70_000))[:14]
    assert read(head, max_size=100) == [Failure(1009, "more than 100 bytes")]
    assert read(bytes.fromhex("82ff ffffffffffffffff 00000000")) == [
        Failure(1009, f"more than {LARGE} bytes")
    ]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.booleans())
def test_fragments_count_together(sizes: list[int], ping: bool) -> None:
    data = b""
    for number, size in enumerate(sizes):
        first = (CONTINUATION if number else BINARY) | (FIN if number == len(sizes) - 1 else 0)
        data += masked(first, bytes(size)) + (masked(FIN | PING, bytes(120)) if ping else b"")
    events = [event for event in read(data, data, max_size=100) if not isinstance(event, Ping)]
    whole = bytes(sum(sizes))
    assert events == ([whole] * 2 if len(whole) <= 100 else [Failure(1009, "more than 100 bytes")])


def test_nothing_is_kept_between_messages() -> None:
    reader = FrameReader(LARGE)
    for data in (masked(FIN | TEXT, b"x" * 70_000), masked(TEXT, b"x") + masked(FIN, b"y")):
        pieces = [data[start : start + 7000] for start in range(0, len(data), 7000)]
        assert len([event for piece in pieces for event in reader.receive(piece)]) == 1
        assert reader._arrived is None and reader._message is None
    # Fragments of nothing are nothing.
    reader.receive(masked(TEXT, b""))
    for _ in range(1000):
        reader.receive(masked(CONTINUATION, b""))
    assert reader._message == bytearray()


# Close frames


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        (b"", Close(1005, "", b"")),
        (b"\x03", Failure(1002, "a close code of one byte")),
        (b"\x03\xe8", Close(1000, "", b"\x03\xe8")),
        (b"\x0f\xa0bye", Close(4000, "bye", b"\x0f\xa0bye")),
        (b"\x03\xe8\xff", Failure(1007, "invalid UTF-8")),
    ],
)
def test_close_frames(payload: bytes, event: Event) -> None:
    # What comes after it is not read.
    assert read(masked(FIN | CLOSE, payload) + masked(FIN | TEXT, b"late")) == [event]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_codes_that_no_close_frame_has(code: int) -> None:
    event = read(masked(FIN | CLOSE, code.to_bytes(2)))
    assert event == [Failure(1002, "an invalid close code")]
    with pytest.raises(ValueError, match=str(code)):
        close_payload(code)


def test_close_payloads() -> None:
    assert close_payload(1000) == b"\x03\xe8"
    assert close_payload(4000, "x" * 123) == b"\x0f\xa0" + b"x" * 123
    with pytest.raises(ValueError, match="123 bytes"):
        close_payload(4000, "ü" * 62)


# The judge


class Judge:
    """What `websockets` and uvicorn, with their rules for text, find in the same bytes."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.extension = PerMessageDeflate(True, True, 15, 12)

    def read(self, data: bytes) -> list[Event]:
        protocol = ServerProtocol(state=OPEN, max_size=None)
        protocol.extensions = [self.extension]
        protocol.receive_data(data)
        parts: list[bytes] = []
        text = False
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            payload = bytes(event.data)
            if event.opcode is Opcode.PING:
                self.events.append(Ping(payload))
            elif event.opcode is Opcode.PONG:
                self.events.append(Pong(payload))
            elif event.opcode is Opcode.CLOSE:
                self._close(protocol, payload)
            else:
                if event.opcode is not Opcode.CONT:
                    text = event.opcode is Opcode.TEXT
                parts.append(payload)
                if event.fin:
                    whole, parts = b"".join(parts), []
                    try:
                        self.events.append(whole.decode() if text else whole)
                    except UnicodeDecodeError:
                        self.events.append(Failure(1007, ""))
                        return self.events
        if protocol.parser_exc is not None:
            if "incomplete fragmented message" in str(protocol.parser_exc):
                # A control frame may stand there (RFC 6455, section 5.4), so this one may.
                self._close(protocol, b"")
            else:
                assert protocol.close_sent is not None
                self.events.append(Failure(protocol.close_sent.code, ""))
        return self.events

    def _close(self, protocol: ServerProtocol, payload: bytes) -> None:
        assert protocol.close_rcvd is not None
        self.events.append(Close(protocol.close_rcvd.code, protocol.close_rcvd.reason, payload))


def comparable(events: Iterable[Event]) -> list[Event]:
    return [
        event._replace(reason="")
        if isinstance(event, Failure)
        else event._replace(payload=b"")
        if isinstance(event, Close)
        else event
        for event in events
    ]


PAYLOADS = st.one_of(
    st.text(max_size=40).map(str.encode),
    st.binary(max_size=40),
    st.sampled_from([125, 126, 127, 300, 65_535, 65_536]).map(lambda size: b"x" * size),
)
MASKS = st.binary(min_size=4, max_size=4)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Valid frames of one message, with control frames between its fragments."""
    payload = draw(PAYLOADS)
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    if draw(st.booleans()):
        opcode, payload = opcode | RSV1, deflated(payload)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    data = b""
    for number, piece in enumerate(pieces):
        last = FIN if number == len(pieces) - 1 else 0
        data += masked((CONTINUATION if number else opcode) | last, piece, draw(MASKS))
        if not last and draw(st.booleans()):
            data += draw(CONTROLS)
    return data


CONTROLS = st.builds(
    masked, st.sampled_from([FIN | PING, FIN | PONG]), st.binary(max_size=125), MASKS
)
CLOSES = st.builds(
    lambda code, reason, mask: masked(FIN | CLOSE, code.to_bytes(2) + reason, mask),
    st.one_of(st.integers(990, 1020), st.integers(2990, 5010)),
    st.one_of(st.text(max_size=20).map(str.encode), st.binary(max_size=20)),
    MASKS,
)
# Any first byte at all, so most of them are wrong; masked and not.
ANY = st.builds(
    lambda first, payload, mask, bare: (
        frame(payload, first) if bare else masked(first, payload, mask)
    ),
    st.integers(0, 255).filter(lambda first: not first & RSV1),
    st.one_of(st.binary(max_size=20), st.binary(min_size=124, max_size=130)),
    MASKS,
    st.integers(0, 9).map(lambda number: number == 0),
)


def cut(data: bytes, seed: int) -> Sequence[bytes]:
    chance = random.Random(seed)
    found, start = [], 0
    while start < len(data):
        size = chance.choice([1, 1, 2, 3, 5, 9, 14, 40, 4000, 100_000])
        found.append(data[start : start + size])
        start += size
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(messages(), CONTROLS, CLOSES, ANY), max_size=6), st.integers())
def test_it_finds_what_others_find(frames: list[bytes], seed: int) -> None:
    data = b"".join(frames)
    expected = comparable(Judge().read(data))
    assert comparable(read(data)) == expected
    assert comparable(read(*cut(data, seed))) == expected


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers())
def test_anything_at_all_is_read_without_an_error(data: bytes, seed: int) -> None:
    assert read(*cut(data, seed)) == read(data)


@given(st.binary(max_size=300), MASKS)
def test_unmasking_without_the_compiled_one(data: bytes, mask: bytes) -> None:
    assert websocket._xor(data, mask) == apply_mask(data, mask)


# The handshake

GOOD = (
    b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\n"
    b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)


def test_a_request_is_whole_or_it_is_waited_for() -> None:
    for size in range(len(GOOD)):
        assert read_request(GOOD[:size]) is None
    request = read_request(GOOD)
    assert request is not None and (request.path, request.query) == (b"/a%20b", b"c=d")


def test_headers_that_come_twice_and_blanks_around_them() -> None:
    request = read_request(
        GOOD[:-2]
        + b"Sec-WebSocket-Protocol:  a\t \r\nX-Empty:\r\nsec-websocket-protocol: b,c\r\n"
        + b"X-Latin: \xe4\r\n\r\n"
    )
    assert request is not None
    assert request.subprotocols == ["a", "b", "c"]
    assert request.headers[-4:] == [
        (b"sec-websocket-protocol", b"a"),
        (b"x-empty", b""),
        (b"sec-websocket-protocol", b"b,c"),
        (b"x-latin", b"\xe4"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"GET", b"POST", 405),
        (b"HTTP/1.1", b"HTTP/1.0", 400),
        (b"/a%20b", b"/\xc3\xa4", 400),
        (b"/a%20b", b"/a b", 400),
        (b"Host: x", b"Host : x", 400),
        (b"Host: x", b"Host", 400),
        (b"Host: x", b"Host: x\x00", 400),
        (b"Host: x", b"Host: x\r\n folded", 400),
        (b"Host: x\r", b"Host: x", 400),
        (b"keep-alive, Upgrade", b"keep-alive", 426),
        (b"WebSocket\r", b"h2c\r", 426),
        (b"Version: 13", b"Version: 8", 426),
        (b"Version: 13", b"Version: 13\r\nSec-WebSocket-Version: 8", 426),
        (b"AA==", b"AAA=", 400),
        (b"Sec-WebSocket-Key", b"X-Key", 400),
        (b"Host: x", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", 400),
        (b"Host: x", b"Content-Length: 5", 400),
        (b"Host: x", b"Transfer-Encoding: chunked", 400),
        (b"/a%20b", b"/" + b"x" * MAX_LINE, 414),
        (b"Host: x", b"X-Long: " + b"x" * MAX_LINE, 431),
        (b"Host: x", b"\r\n".join([b"X-Many: y"] * MAX_HEADERS), 431),
    ],
)
def test_what_is_no_handshake(old: bytes, new: bytes, status: int) -> None:
    assert old in GOOD
    with pytest.raises(Refused) as refused:
        read_request(GOOD.replace(old, new))
    assert refused.value.status == status


def test_what_many_clients_send_alike_is_kept_once() -> None:
    def headers(n: int) -> list[tuple[bytes, bytes]]:
        more = b"User-Agent: me\r\nCookie: me\r\nHost: %d\r\n\r\n" % n
        request = read_request(GOOD.replace(b"Host: x\r\n", b"")[:-2] + more)
        assert request is not None
        return request.headers

    one, other = headers(1), headers(2)
    assert one[-1] == (b"host", b"1")
    assert other[-1] == (b"host", b"2")
    shared = {a[0] for a, b in zip(one, other, strict=True) if a is b}
    assert b"user-agent" in shared
    assert shared.isdisjoint([b"cookie", b"sec-websocket-key", b"sec-websocket-protocol"])
    for n in range(2000):
        headers(n)
    assert len(websocket._common) <= 500


def test_a_request_that_goes_on_and_on() -> None:
    endless = GOOD[:-2] + b"X: y\r\n" * (MAX_REQUEST // 6)
    with pytest.raises(Refused) as refused:
        read_request(endless)
    assert refused.value.status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


@given(st.binary(max_size=200))
def test_no_request_raises_anything_else(data: bytes) -> None:
    for request in (data, data + b"\r\n\r\n", GOOD[:30] + data + GOOD[30:]):
        try:
            read_request(request)
        except Refused as refused:
            assert respond(refused.status, refused.headers, b"x").startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "header",
    [(b"X-A", b"b\r\nX-C: d"), (b"X-A\n", b"b"), (b"", b"b"), (b"X A", b"b"), (b"X-A", b"\x00")],
)
def test_headers_that_would_be_more_than_one(header: tuple[bytes, bytes]) -> None:
    request = read_request(GOOD)
    assert request is not None
    with pytest.raises(ValueError, match="invalid header"):
        accept(request, headers=[header])
    with pytest.raises(ValueError, match="invalid header"):
        respond(403, [header])
    with pytest.raises(ValueError, match="invalid subprotocol"):
        accept(request, subprotocol="a\r\nX-C: d")


def test_responses() -> None:
    assert respond(403, []) == (
        b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n\r\n"
    )
    assert respond(599, [(b"content-type", b"a/b"), (b"x", b"y")], b"body") == (
        b"HTTP/1.1 599 \r\ncontent-type: a/b\r\nx: y\r\nConnection: close\r\n"
        b"Content-Length: 4\r\n\r\nbody"
    )


# Compression

NAMES = (
    "server_no_context_takeover",
    "client_no_context_takeover",
    "server_max_window_bits",
    "client_max_window_bits",
    "unknown",
)
PARAMETERS = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from([None, None, "7", "8", "9", "10", "12", "15", "16", "08", "x"]),
    ),
    max_size=4,
)
OFFERS = st.lists(
    st.tuples(st.sampled_from(["permessage-deflate", "permessage-deflate", "other"]), PARAMETERS),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(OFFERS)
def test_an_offer_is_taken_as_others_take_it(
    offers: list[tuple[str, list[tuple[str, str | None]]]],
) -> None:
    header = ", ".join(
        "; ".join(
            [name, *(key if value is None else f"{key}={value}" for key, value in parameters)]
        )
        for name, parameters in offers
    )
    factory = ServerPerMessageDeflateFactory(True, True, 12, 12)
    expected = None
    for name, parameters in parse_extension(header):
        if name == factory.name:
            try:
                answer, extension = factory.process_request_params(parameters, [])
            except NegotiationError:
                continue
            expected = (build_extension([(name, answer)]), extension.local_max_window_bits)
            break
    agreed = negotiate(header.encode())
    assert (agreed and (agreed.header.decode(), agreed.window_bits)) == expected


def test_what_browsers_offer() -> None:
    agreed = negotiate(b"permessage-deflate; client_max_window_bits")
    assert agreed is not None and agreed.window_bits == 12
    assert agreed.header == (
        b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        b"; server_max_window_bits=12; client_max_window_bits=12"
    )
    quoted = negotiate(b'other;a="b", permessage-deflate;server_max_window_bits="10"')
    assert quoted is not None and quoted.window_bits == 10
    assert negotiate(b"permessage-deflate" + b" " * MAX_LINE) is None
    assert negotiate(b"") is None
