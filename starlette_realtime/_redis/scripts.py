"""Lua scripts: files beside the stores that run them, each behind what it builds upon."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files


@dataclass(frozen=True)
class Script:
    """A script: its text, and the digest under which a server that has seen it knows it."""

    text: bytes
    digest: bytes

    @classmethod
    def of(cls, text: str) -> Script:
        encoded = text.encode()
        # What Redis itself names scripts by.
        return cls(encoded, hashlib.sha1(encoded, usedforsecurity=False).hexdigest().encode())

    @cached_property
    def sharded(self) -> Script:
        """The same for a Cluster, where a key that never is follows those that it is for.

        A script makes names of keys from those it is given, so that a node cannot tell whether it
        has all of them. While a slot is on its way from node to node, some are here and some there;
        of a command with several keys, one of them missing, nodes then say TRYAGAIN, and nothing is
        done by halves (Redis Cluster specification, "Multiple keys operations").
        """
        return Script.of(f"table.remove(KEYS)\n{self.text.decode()}")


def load(package: str, *names: str, stream: bool = True) -> Script:
    """Return the script made of the files `names` in the folder of `package`, behind stream.lua
    unless it does without."""
    texts = [(files(package) / name).read_text(encoding="utf-8") for name in names]
    if stream:
        texts.insert(0, (files(__package__) / "stream.lua").read_text(encoding="utf-8"))
    return Script.of("\n".join(texts))
