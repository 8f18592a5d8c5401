"""Payloads in canonical form: JSON in UTF-8, with bytes as `{"$bytes": "<base64>"}`.

The law: for every payload `p` of JSON values and bytes, `load(dump(p)) == p`. An object that looks
like one of ours, its only member `$bytes` or `$escaped`, is wrapped once in `{"$escaped": …}`.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from array import array
from functools import lru_cache
from itertools import accumulate
from typing import Any

import msgspec

from ..errors import InvalidMessage

_MARKS = frozenset(["$bytes", "$escaped"])
# To look for a number, or with `find`, is several times as fast as `b"$" in raw`, which first tries
# and fails to take the bytes for a number.
_DOLLAR = ord("$")
_NEWLINE = ord("\n")
_PLAIN = frozenset({str, int, float, bool, type(None), msgspec.Raw})
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
# "1e309" is the shortest number out of a double's range.
_NUMBERS = re.compile(rb"[0-9][-+.0-9eE]{4,}")
_AS_ZEROS = bytes.maketrans(b"123456789+E", b"0000000000e")
_LONG = b"0" * 200
# `$`, or a letter of `bytes` or `escaped`, written as an escape.
_ESCAPED_MARK = re.compile(rb"\\u00(?:24|6[1-5]|7[0349])")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# One down, one up, as signed bytes.
_AS_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def _enc_hook(value: Any) -> Any:
    # Pydantic models, told by shape so that the package need not import Pydantic.
    dump_model = getattr(value, "model_dump", None)
    if dump_model is not None:
        return dump_model(mode="python")
    if isinstance(value, msgspec.Raw):
        return load(bytes(value))
    raise TypeError(f"{type(value).__name__} cannot be part of a payload")


_encode = msgspec.json.Encoder(enc_hook=_enc_hook).encode


def _dec_hook(kind: Any, value: Any) -> Any:
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        raise TypeError(f"Expected `{getattr(kind, '__name__', kind)}`")
    try:
        return validate(value)
    except ValueError as error:
        details = getattr(error, "errors", None)
        if details is None:
            raise
        # Pydantic's own text has several lines, an address and what was sent.
        first = details()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"`{where}`: {first['msg']}" if where else first["msg"]) from None


def _is_plain(value: Any) -> bool:
    """Whether JSON alone can carry `value`. Anything unusual is answered with no."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is dict:
        if len(value) == 1 and next(iter(value)) in _MARKS:
            return False
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))
    if not issubclass(kind, msgspec.Struct):
        return False
    names = kind.__struct_encode_fields__
    if kind.__struct_config__.tag_field in _MARKS or not _MARKS.isdisjoint(names):
        return False
    return all(_is_plain(getattr(value, name)) for name in kind.__struct_fields__)


def _wrap(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if isinstance(value, dict):
        wrapped = {key: _wrap(item) for key, item in value.items()}
        if len(value) == 1 and next(iter(value)) in _MARKS:
            return {"$escaped": wrapped}
        return wrapped
    if isinstance(value, list | tuple | set | frozenset):
        return [_wrap(item) for item in value]
    return value


def _unwrap(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) == 1:
            ((key, item),) = value.items()
            if key == "$bytes" and isinstance(item, str):
                if len(item) % 4:
                    # Padding in excess, which the decoder would let pass.
                    raise InvalidMessage
                try:
                    return binascii.a2b_base64(item, strict_mode=True)
                except ValueError:
                    raise InvalidMessage from None
            if key == "$escaped" and isinstance(item, dict):
                return {name: _unwrap(inner) for name, inner in item.items()}
        return {key: _unwrap(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unwrap(item) for item in value]
    return value


def dump(value: Any) -> bytes:
    """Return `value` in canonical form.

    Takes what JSON has, bytes, and what msgspec or Pydantic can turn into these: structs,
    dataclasses, typed dicts, datetimes, UUIDs, enums, models.

    Raises:
        TypeError: something in `value` has no such form.
    """
    try:
        if not _is_plain(value):
            value = _wrap(
                msgspec.to_builtins(
                    value,
                    builtin_types=(bytes, bytearray, memoryview),
                    str_keys=True,
                    enc_hook=_enc_hook,
                )
            )
        raw = _encode(value)
    except (UnicodeEncodeError, OverflowError) as error:
        raise TypeError(f"no part of a payload: {error}") from error
    except RecursionError:
        raise TypeError("nested too deeply for a payload") from None
    # Only a `Raw` brings these; the native protocol separates messages by them.
    return msgspec.json.format(raw, indent=-1) if _NEWLINE in raw else raw


@lru_cache(maxsize=1024)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_dec_hook)


def _may_hold_marks(raw: bytes) -> bool:
    if _DOLLAR in raw and (raw.find(b"$bytes") >= 0 or raw.find(b"$escaped") >= 0):
        return True
    return raw.find(b"\\u00") >= 0 and _ESCAPED_MARK.search(raw) is not None


def load(raw: bytes, kind: Any = Any) -> Any:
    """Return the payload that `raw` (canonical form) stands for, validated against the type `kind`.

    Raises:
        InvalidMessage: `raw` is not JSON, is nested too deeply, or does not fit `kind`.
    """
    try:
        if kind is msgspec.Raw:
            msgspec.json.decode(raw)
            return msgspec.Raw(raw)
        marks = _may_hold_marks(raw)
        if not marks and kind is not Any:
            return _decoder(kind).decode(raw)
        value = msgspec.json.decode(raw)
        if marks:
            value = _unwrap(value)
        if kind is Any:
            return value
        return msgspec.convert(value, kind, str_keys=True, dec_hook=_dec_hook)
    except msgspec.ValidationError as error:
        raise InvalidMessage(f"Invalid message format: {error}") from None
    except (ValueError, RecursionError):
        # msgspec.DecodeError and UnicodeDecodeError are ValueErrors.
        raise InvalidMessage from None


def too_deep(raw: bytes, limit: int) -> bool:
    """Whether the JSON text `raw` nests arrays and objects more than `limit` levels deep.

    Takes time proportional to the length of `raw`, however it nests.
    """
    # A level takes two bytes at least.
    if len(raw) <= 2 * limit or raw.count(b"[") + raw.count(b"{") <= limit:
        return False
    steps = array("b", _STRINGS.sub(b"", raw).translate(_AS_STEPS, _NOT_BRACKETS))
    return max(accumulate(steps), default=0) > limit


def out_of_range(raw: bytes) -> bool:
    """Whether the JSON text `raw` has a number beyond the range of a double (IEEE 754 binary64).

    RFC 8259, section 6, lets readers disagree about these: some fail, some read infinity.
    """
    zeros = raw.translate(_AS_ZEROS)
    if zeros.find(b"e000") < 0 and (len(raw) < len(_LONG) or zeros.find(_LONG) < 0):
        # Whatever is out of range has one of these; little else has.
        return False
    numbers = _NUMBERS.findall(_STRINGS.sub(b"", raw))
    return any(math.isinf(float(number)) for number in numbers)
