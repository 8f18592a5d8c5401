"""Lua scripts: files beside the stores that run them, each behind what it builds upon."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script: its text, and the digest under which a server that has seen it knows it."""

    text: bytes
    digest: bytes

    @classmethod
    def of(cls, text: str) -> Script:
        encoded = text.encode()
        # What Redis itself names scripts by.
        return cls(encoded, hashlib.sha1(encoded, usedforsecurity=False).hexdigest().encode())


def load(package: str, *names: str, stream: bool = True) -> Script:
    """Return the script made of the files `names` in the folder of `package`, behind stream.lua
    unless it does without."""
    texts = [(files(package) / name).read_text(encoding="utf-8") for name in names]
    if stream:
        texts.insert(0, (files(__package__) / "stream.lua").read_text(encoding="utf-8"))
    return Script.of("\n".join(texts))
