"""WebSocket (RFC 6455), a server's side of it, with messages compressed one by one (RFC 7692).
Pure: bytes in, messages out; messages in, bytes out.

The handshake: `read_request`, then `accept` or `respond`. After it: what the client sends goes
through a `FrameReader`, what the server sends is made by `frame`, `compressed_frame` and
`close_payload`.

Whatever a client may do wrong is `Refused` in the handshake, and after it a `Failure`, the last
thing that its reader finds. What is held of a client is bounded by `MAX_REQUEST` and by the
reader's `max_size`.
"""

from __future__ import annotations

import re
import struct
import zlib
from binascii import b2a_base64
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha1
from http import HTTPStatus
from typing import Final, Literal, NamedTuple

Headers = Sequence[tuple[bytes, bytes]]

MAX_LINE: Final = 8192
"""Bytes of the request line, and of each header."""
MAX_HEADERS: Final = 128
MAX_REQUEST: Final = 65_536
"""Bytes of a whole handshake request."""

CONTINUATION: Final = 0x00
TEXT: Final = 0x01
BINARY: Final = 0x02
CLOSE: Final = 0x08
PING: Final = 0x09
PONG: Final = 0x0A

FIN: Final = 0x80
RSV1: Final = 0x40
"""Set in the first frame of a compressed message."""

NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
NO_STATUS: Final = 1005
"""Never on the wire: what a close frame without a code means."""
INVALID_DATA: Final = 1007
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012

COMPRESS_FROM: Final = 1024
"""Messages of fewer bytes go out uncompressed: there is little to gain."""
WINDOW_BITS: Final = 12
"""Base-2 logarithm of the window that is negotiated for compression, if the client has no smaller
one: 4 KB."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_REQUEST_LINE = re.compile(rb"([A-Z]+) ([\x21-\x7e]+) HTTP/1\.1\r\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\n-\x1f\x7f]*)")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[^\x00-\x08\n-\x1f\x7f]*")
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_BITS: Final = {str(bits).encode(): bits for bits in range(8, 16)}


# The handshake


class Refused(Exception):
    """A request that is no WebSocket handshake, and the response that says so."""

    def __init__(self, status: HTTPStatus, why: str, headers: Headers = ()) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers


class Request(NamedTuple):
    """A WebSocket handshake. Names of headers are in lower case; `offers` is what the client says
    of the extensions that it knows, `answer` the proof that its key was understood."""

    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    subprotocols: list[str]
    offers: bytes
    answer: bytes


def read_request(data: bytes) -> Request | None:
    """Return the request that `data` begins with; None if it is not whole. Nothing that follows it
    is looked at: a client has nothing to say before it is answered.

    Raises:
        Refused: it is no WebSocket handshake, or is too large.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0 and len(data) <= MAX_REQUEST:
        return None
    if not 0 <= end <= MAX_REQUEST:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too large")
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "not a request of HTTP/1.1")
    if line.end() > MAX_LINE:
        raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "the request line is too long")
    lines = data[line.end() : end + 2].split(b"\r\n")[:-1]
    if len(lines) > MAX_HEADERS or (end > MAX_LINE and max(map(len, lines)) > MAX_LINE):
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many or too long headers")
    headers = [_common.get(each) or _header(each) for each in lines]
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = _combined(headers)
    if line[1] != b"GET":
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "GET is expected", [(b"Allow", b"GET")])
    answer = _answer(fields)
    path, _, query = line[2].partition(b"?")
    listed = fields.get(b"sec-websocket-protocol")
    subprotocols = [] if listed is None else listed.decode("latin-1").split(",")
    return Request(
        path,
        query,
        headers,
        [name.strip() for name in subprotocols],
        fields.get(b"sec-websocket-extensions", b""),
        answer,
    )


# Headers that many clients send alike, by their lines: what a browser says of itself is most of
# what a handshake leaves in memory. Not those that tell clients apart, or are nobody else's.
_common: dict[bytes, tuple[bytes, bytes]] = {}
_COMMON: Final = frozenset(
    [
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"connection",
        b"host",
        b"origin",
        b"pragma",
        b"sec-websocket-extensions",
        b"sec-websocket-version",
        b"upgrade",
        b"user-agent",
    ]
)
_MAX_COMMON: Final = 500
_MAX_COMMON_LINE: Final = 300


def _header(line: bytes) -> tuple[bytes, bytes]:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "malformed headers")
    header = match[1].lower(), match[2].rstrip(b" \t")
    if len(line) <= _MAX_COMMON_LINE and header[0] in _COMMON:
        if len(_common) >= _MAX_COMMON:
            # What is common is soon there again.
            _common.clear()
        _common[line] = header
    return header


def _combined(headers: Headers) -> dict[bytes, bytes]:
    """Return the headers' values; of several with one name, a list (RFC 9110, section 5.3)."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def _answer(fields: dict[bytes, bytes]) -> bytes:
    """Check what RFC 6455 wants of a handshake (section 4.2.1); return what answers its key."""
    connection = fields.get(b"connection", b"").lower()
    if connection != b"upgrade":
        options = [option.strip() for option in connection.split(b",")]
        if b"upgrade" not in options:
            raise _upgrade_required()
    if fields.get(b"upgrade", b"").lower() != b"websocket":
        raise _upgrade_required()
    if fields.get(b"sec-websocket-version") != b"13":
        raise Refused(
            HTTPStatus.UPGRADE_REQUIRED,
            "version 13 of the WebSocket protocol is expected",
            [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")],
        )
    if fields.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in fields:
        raise Refused(HTTPStatus.BAD_REQUEST, "a handshake has no body")
    key = fields.get(b"sec-websocket-key", b"")
    if _KEY.fullmatch(key) is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "a missing or invalid Sec-WebSocket-Key")
    return b2a_base64(sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)


def _upgrade_required() -> Refused:
    return Refused(
        HTTPStatus.UPGRADE_REQUIRED,
        "a WebSocket client is expected",
        [(b"Upgrade", b"websocket")],
    )


class Compression(NamedTuple):
    """What was agreed upon. No message refers to one before it, in either direction, so that
    neither side keeps anything between them."""

    header: bytes
    """The value of the response's `Sec-WebSocket-Extensions`."""
    window_bits: int
    """The server's window."""


@lru_cache(maxsize=64)
def negotiate(offers: bytes) -> Compression | None:
    """Choose the first offer of permessage-deflate that can be taken (RFC 7692, section 7.1)."""
    if len(offers) > MAX_LINE:
        return None
    for offer in offers.split(b","):
        name, *parameters = [part.strip() for part in offer.split(b";")]
        if name == b"permessage-deflate":
            found = _compression(parameters)
            if found is not None:
                return found
    return None


def _compression(parameters: list[bytes]) -> Compression | None:
    asked: dict[bytes, bytes] = {}
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        name, value = name.strip(), value.strip()
        if len(value) > 1 and value[:1] == value[-1:] == b'"':
            value = value[1:-1]
        if name in asked:
            return None
        asked[name] = value
    header = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    window_bits = WINDOW_BITS
    for name, value in asked.items():
        if name in (b"server_no_context_takeover", b"client_no_context_takeover"):
            if value:
                return None
        elif name == b"server_max_window_bits":
            # zlib makes no window of 8 bits.
            if _BITS.get(value, 8) == 8:
                return None
            window_bits = min(_BITS[value], window_bits)
        elif name != b"client_max_window_bits" or (value and value not in _BITS):
            return None
    header += b"; server_max_window_bits=%d" % window_bits
    if b"client_max_window_bits" in asked:
        bits = min(_BITS.get(asked[b"client_max_window_bits"], 15), WINDOW_BITS)
        header += b"; client_max_window_bits=%d" % bits
    return Compression(header, window_bits)


def accept(
    request: Request,
    *,
    extensions: bytes = b"",
    subprotocol: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return the response that opens the connection.

    Raises:
        ValueError: a header, or the subprotocol, can't be one.
    """
    lines = [
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        request.answer,
    ]
    if extensions:
        lines += b"\r\nSec-WebSocket-Extensions: ", extensions
    if subprotocol:
        name = subprotocol.encode("latin-1")
        if _VALUE.fullmatch(name) is None:
            raise ValueError(f"invalid subprotocol {subprotocol!r}")
        lines += b"\r\nSec-WebSocket-Protocol: ", name
    lines.append(b"\r\n")
    _append_headers(lines, headers)
    return b"".join(lines)


def respond(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes = b"") -> bytes:
    """Return an HTTP response that refuses to open a connection, and is its last.

    Raises:
        ValueError: a header can't be one.
    """
    try:
        phrase = HTTPStatus(status).phrase.encode()
    except ValueError:
        phrase = b""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    for name, value in (
        (b"Connection", b"close"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Content-Type", b"text/plain; charset=utf-8"),
    ):
        if name.lower() not in names:
            given.append((name, value))
    lines = [b"HTTP/1.1 %d %s\r\n" % (status, phrase)]
    _append_headers(lines, given)
    lines.append(body)
    return b"".join(lines)


def _append_headers(lines: list[bytes], headers: Iterable[tuple[bytes, bytes]]) -> None:
    for name, value in headers:
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise ValueError(f"invalid header {name!r}: {value!r}")
        lines += name, b": ", value, b"\r\n"
    lines.append(b"\r\n")


# What the client sends


def _xor(data: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """Return `data` XORed with `mask`, four bytes, over and over (RFC 6455, section 5.3)."""
    size = len(data)
    masks = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data) ^ int.from_bytes(masks)).to_bytes(size)


try:
    # The same in C: several times as fast, and a hundred times with large messages.
    from websockets.speedups import apply_mask as _unmask
except ImportError:
    _unmask = _xor  # type: ignore[assignment]


class Ping(NamedTuple):
    payload: bytes


class Pong(NamedTuple):
    payload: bytes


class Close(NamedTuple):
    """The client ends the connection; nothing that it sends after it is read. `payload` is what the
    server's close frame repeats."""

    code: int
    reason: str
    payload: bytes


class Failure(NamedTuple):
    """The client broke the rules: the connection is to be closed with this code and reason."""

    code: int
    reason: str


Event = str | bytes | Ping | Pong | Close | Failure
"""What a client sends: a text message, a binary message, or one of the others."""


class _Broken(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class FrameReader:
    """Puts messages together from what arrives of them.

    `max_size` is the bound of a message in bytes, compressed or not. Between messages, and while
    nothing of a message has arrived, nothing is kept.
    """

    __slots__ = (
        "_arrived",
        "_deflated",
        "_kind",
        "_left",
        "_max_size",
        "_message",
        "_needed",
        "deflate",
    )

    def __init__(self, max_size: int, *, deflate: bool = False) -> None:
        self._max_size = max_size
        self.deflate = deflate
        # The start of a frame that is not whole, and the bytes it takes to go on with it.
        self._arrived: bytearray | None = None
        self._needed = 0
        # The fragments of a message so far, and how much more it may have.
        self._message: bytearray | None = None
        self._left = max_size
        self._kind = TEXT
        self._deflated = False

    def receive(self, data: bytes | bytearray) -> list[Event]:
        """Return what is whole with these bytes. After a `Close` or a `Failure`, which is the last
        of them, there must be no further call."""
        if self._arrived is not None:
            self._arrived += data
            if len(self._arrived) < self._needed:
                return []
            data, self._arrived = self._arrived, None
        events: list[Event] = []
        try:
            rest = self._frames(data, events)
        except _Broken as broken:
            events.append(Failure(broken.code, str(broken)))
            rest = len(data)
        except UnicodeDecodeError:
            events.append(Failure(INVALID_DATA, "invalid UTF-8"))
            rest = len(data)
        if rest < len(data):
            self._arrived = bytearray(data[rest:] if rest else data)
        return events

    def _frames(self, data: bytes | bytearray, events: list[Event]) -> int:
        """Read whole frames into `events`; return where the first one begins that is not whole."""
        start, end = 0, len(data)
        small = min(126, self._left + 1)
        while end - start > 1:
            first = data[start]
            size = data[start + 1] - 0x80
            if first == 0x81 and 0 < size < small and self._message is None:
                # A short text in one frame, as nearly all are.
                body = start + 6
                after = body + size
                if after <= end:
                    events.append(_unmask(data[body:after], data[start + 2 : body]).decode())
                    start = after
                    continue
            if size < 0:
                raise _Broken(PROTOCOL_ERROR, "a frame is not masked")
            opcode = first & 0x0F
            if first != 0x81 or self._message is not None:
                self._check(first, opcode, size)
            body = start + 6
            if size > 125:
                # 126 announces two bytes of length, and 127 eight.
                body += 2 if size == 126 else 8
                if body > end:
                    self._needed = body - start
                    return start
                size = int.from_bytes(data[start + 2 : body - 4])
            if size > self._left and opcode < CLOSE:
                raise _Broken(TOO_BIG, f"more than {self._max_size} bytes")
            after = body + size
            if after > end:
                self._needed = after - start
                return start
            payload = _unmask(data[body:after], data[body - 4 : body]) if size else b""
            start = after
            if first == 0x81:
                events.append(payload.decode())
            elif opcode < CLOSE:
                self._fragment(first, opcode, payload, events)
            elif opcode == PING:
                events.append(Ping(payload))
            elif opcode == PONG:
                events.append(Pong(payload))
            else:
                events.append(_close(payload))
                return end
        self._needed = 2
        return start

    def _check(self, first: int, opcode: int, size: int) -> None:
        """Check what a frame's first two bytes say (RFC 6455, section 5)."""
        if first & 0x70 and (first & 0x70 != RSV1 or not self.deflate or opcode not in (1, 2)):
            raise _Broken(PROTOCOL_ERROR, "reserved bits are set")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise _Broken(PROTOCOL_ERROR, "an unknown opcode")
            if not first & FIN:
                raise _Broken(PROTOCOL_ERROR, "a fragmented control frame")
            if size > 125:
                raise _Broken(PROTOCOL_ERROR, "a control frame that is too long")
        elif opcode > BINARY:
            raise _Broken(PROTOCOL_ERROR, "an unknown opcode")
        elif opcode == CONTINUATION:
            if self._message is None:
                raise _Broken(PROTOCOL_ERROR, "a continuation of nothing")
        elif self._message is not None:
            raise _Broken(PROTOCOL_ERROR, "a message within another")

    def _fragment(self, first: int, opcode: int, payload: bytes, events: list[Event]) -> None:
        """Take a frame that is not a whole uncompressed text."""
        if opcode != CONTINUATION:
            self._kind = opcode
            self._deflated = bool(first & RSV1)
        if not first & FIN:
            if self._message is None:
                self._message = bytearray(payload)
            else:
                self._message += payload
            self._left -= len(payload)
            return
        if self._message is not None:
            self._message += payload
            payload, self._message = bytes(self._message), None
            self._left = self._max_size
        if self._deflated:
            payload = self._inflated(payload)
        events.append(str(payload, "utf-8") if self._kind == TEXT else payload)

    def _inflated(self, payload: bytes) -> bytes:
        # A decoder with the largest window reads what was made with any.
        decoder = zlib.decompressobj(-15)
        try:
            data = decoder.decompress(payload + b"\x00\x00\xff\xff", self._max_size + 1)
        except zlib.error:
            raise _Broken(PROTOCOL_ERROR, "a message that can't be decompressed") from None
        if len(data) > self._max_size:
            raise _Broken(TOO_BIG, f"more than {self._max_size} bytes")
        return data


def _close(payload: bytes) -> Close:
    if not payload:
        return Close(NO_STATUS, "", b"")
    if len(payload) == 1:
        raise _Broken(PROTOCOL_ERROR, "a close code of one byte")
    code, reason = int.from_bytes(payload[:2]), str(payload[2:], "utf-8")
    if not may_be_sent(code):
        raise _Broken(PROTOCOL_ERROR, "an invalid close code")
    return Close(code, reason, payload)


def may_be_sent(code: int) -> bool:
    """Whether a close frame may have this code: one that is registered and no sign of something
    that has no frame, or one for libraries and applications (RFC 6455, section 7.4)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


# What the server sends


def frame(payload: bytes, first: int = FIN | TEXT) -> bytes:
    """Return `payload` as a server's unfragmented text frame (RFC 6455, section 5.2). `first` is
    its first byte: FIN and the opcode, and RSV1 if it is compressed.

    An uncompressed frame is valid whether or not compression was negotiated (RFC 7692, section 6).
    """
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def compressed_frame(
    payload: bytes, opcode: Literal[0x01, 0x02] = TEXT, window_bits: int = WINDOW_BITS
) -> bytes:
    """Return `payload` as a compressed frame (RFC 7692, section 7.2.1) that refers to nothing
    before it: the same bytes serve every receiver that negotiated such a window, or a larger."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -window_bits, 5)
    data = deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return frame(data[:-4], FIN | RSV1 | opcode)


def close_payload(code: int, reason: str = "") -> bytes:
    """Return the payload of a close frame.

    Raises:
        ValueError: the code can't be sent, or the reason takes more than 123 bytes.
    """
    said = reason.encode()
    if not may_be_sent(code):
        raise ValueError(f"{code} is no code of a close frame")
    if len(said) > 123:
        raise ValueError("the reason of a close frame has at most 123 bytes")
    return code.to_bytes(2) + said
