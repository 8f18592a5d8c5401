"""Imports only go down: from the roof to the words, never up and never sideways.

A floor is made of units. A module may import its own unit and every lower floor, except where
`RESTRICTED` says less. Imports inside functions, under `TYPE_CHECKING` and through
`importlib.import_module("…")` count like any other. A module that stands on no floor fails the
test: place it in `FLOORS`, as low as its imports permit.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = "starlette_realtime"

# From the bottom up: the name of a floor, and its units. "features/*" makes each child of the
# folder a unit of its own, a stranger to the others; "protocols" is one unit; a tuple is one unit
# of several modules.
Unit = str | tuple[str, ...]
FLOORS: list[tuple[str, list[Unit]]] = [
    ("words", [("events", "errors")]),
    ("protocols", ["protocols"]),
    ("plumbing", ["_redis"]),
    (
        "stores",
        [
            "brokers",
            "presence",
            "sessions",
            "inbox",
            "limits",
            # A ticket stands for a user, and is redeemed by an auth backend.
            ("auth", "tickets"),
            "uploads",
            "push",
        ],
    ),
    ("core", ["core"]),
    ("wires", ["wires"]),
    ("doors and features", ["transports/*", "servers", "features/*"]),
    (
        "roof",
        [
            (
                "__init__",
                "__main__",
                "admin",
                "app",
                "cli",
                "client",
                "health",
                "litestar",
                "metrics",
                "middleware",
                "publisher",
                "rest",
                "settings",
                "telemetry",
                "testing",
            )
        ],
    ),
]

# Features are written as anyone's would be: with the words, payloads and core's public names alone.
RESTRICTED: dict[str, set[str]] = {"features/*": {"words", "protocols", "core"}}
PUBLIC_ONLY = {("features/*", "core")}

# Whole packages from outside that a floor's law rules out: codecs do no I/O, core runs on any event
# loop.
FOREIGN: dict[str, set[str]] = {
    "words": {"anyio", "asyncio", "redis", "socket", "starlette", "trio", "uvicorn"},
    "protocols": {"anyio", "asyncio", "redis", "socket", "starlette", "trio", "uvicorn"},
    "core": {"asyncio", "redis", "trio", "uvicorn"},
}
# The one module that knows which event loop is running, so that no other has to.
LOOP_AWARE = {f"{PACKAGE}.core.turns"}


@dataclass(frozen=True, slots=True)
class Place:
    floor: int
    unit: str
    pattern: str

    @property
    def name(self) -> str:
        return FLOORS[self.floor][0]


def place(module: str) -> Place | None:
    """Where a module, given by its full dotted name, stands; None if it has no place."""
    path = module.removeprefix(PACKAGE).removeprefix(".").replace(".", "/") or "__init__"
    for floor, (_, units) in enumerate(FLOORS):
        for unit in units:
            for pattern in (unit,) if isinstance(unit, str) else unit:
                if pattern.endswith("/*"):
                    folder, *rest = path.split("/")
                    if folder != pattern[:-2]:
                        continue
                    if not rest:
                        # The folder's own __init__ gathers what is in it, for the roof.
                        return Place(len(FLOORS) - 1, "roof", "__init__")
                    return Place(floor, f"{folder}/{rest[0]}", pattern)
                if fnmatchcase(path, pattern) or path.startswith(pattern + "/"):
                    return Place(floor, str(unit), pattern)
    return None


@dataclass(frozen=True, slots=True)
class Source:
    module: str
    path: Path


def sources(root: Path) -> list[Source]:
    """All modules of the package in the folder `root`, packages under their own name."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        if parts[-1] == "__init__":
            del parts[-1]
        found.append(Source(".".join(parts), path))
    return found


def imports(source: Source, known: set[str]) -> Iterator[tuple[int, str]]:
    """Every import in the module: its line and the dotted name, in full where it is known."""
    package = source.module.split(".")
    if source.path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(source.path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom():
                base = package[: len(package) - node.level + 1] if node.level else []
                name = ".".join([*base, *(node.module.split(".") if node.module else [])])
                for alias in node.names:
                    member = f"{name}.{alias.name}"
                    # A private name counts in full, so that `PUBLIC_ONLY` sees it.
                    private = alias.name.startswith("_")
                    yield node.lineno, member if member in known or private else name
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def violations(root: Path) -> list[str]:
    """What is wrong with the imports of the package in the folder `root`, a sentence each."""
    found = []
    all_sources = sources(root)
    known = {source.module for source in all_sources}
    for source in all_sources:
        here = place(source.module)
        if here is None:
            found.append(f"{source.module} stands on no floor: place it in FLOORS ({__name__})")
            continue
        allowed = RESTRICTED.get(here.pattern)
        for line, name in imports(source, known):
            where = f"{source.module}, line {line}: imports {name}"
            if name.split(".")[0] != PACKAGE:
                foreign = name.split(".")[0] in FOREIGN.get(here.name, ())
                if foreign and source.module not in LOOP_AWARE:
                    found.append(f"{where}, which {here.name} does without")
                continue
            module = name
            while module not in known and "." in module:
                module = module.rpartition(".")[0]
            there = place(module)
            if there is None or (there.floor, there.unit) == (here.floor, here.unit):
                # A module without a place has its own sentence above.
                continue
            if there.floor > here.floor:
                found.append(f"{where}: up, from {here.name} to {there.name}")
            elif there.floor == here.floor:
                found.append(f"{where}: sideways, from {here.unit} to {there.unit}")
            elif allowed is not None and there.name not in allowed:
                found.append(f"{where}: {here.unit} may import {', '.join(sorted(allowed))} only")
            elif (here.pattern, there.name) in PUBLIC_ONLY and any(
                part.startswith("_") for part in name.split(".")
            ):
                found.append(f"{where}: {here.unit} may import public names only")
    # Several names from one module are one offence.
    return list(dict.fromkeys(found))


def test_imports_only_go_down() -> None:
    root = Path(__file__).resolve().parents[1]
    assert sources(root), "there is a package to look at"
    found = violations(root)
    assert not found, "\n".join(found)


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    root = build(
        tmp_path,
        {
            "__init__.py": "from .app import Realtime",
            "app.py": "from starlette_realtime.features import chat\nfrom .settings import load",
            "settings.py": "from .brokers.redis import RedisBroker",
            "errors.py": "",
            "events.py": "from . import errors",
            "_redis.py": "import redis.asyncio\nfrom .errors import X",
            "protocols/__init__.py": "",
            "protocols/native.py": "from ..events import Command\nfrom . import payload",
            "protocols/payload.py": "import json",
            "brokers/redis.py": "from .._redis import client\nfrom .base import Broker",
            "brokers/base.py": "from starlette_realtime import events",
            "core/__init__.py": "",
            "core/engine.py": "from ..brokers.base import Broker\nimport anyio",
            "core/turns.py": "import asyncio",
            "features/__init__.py": "from .chat import Chat\nfrom .typing import Typing",
            "features/chat/__init__.py": "from .store import Store",
            "features/chat/store.py": "from ...events import Command",
            "features/typing.py": "from starlette_realtime.core.engine import Engine",
            "transports/websocket.py": "from ..protocols import native\nfrom ..core import engine",
        },
    )
    assert violations(root) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        pytest.param(
            {"core/engine.py": "from ..app import Realtime", "app.py": ""},
            "starlette_realtime.core.engine, line 1: imports starlette_realtime.app: "
            "up, from core to roof",
            id="up",
        ),
        pytest.param(
            {"core/engine.py": "def f():\n    from starlette_realtime.app import x", "app.py": ""},
            "line 2: imports starlette_realtime.app: up",
            id="up in a function",
        ),
        pytest.param(
            {
                "brokers/base.py": (
                    "from typing import TYPE_CHECKING\n"
                    "if TYPE_CHECKING:\n    from ..core.room import Room"
                ),
                "core/room.py": "",
            },
            "line 3: imports starlette_realtime.core.room: up, from stores to core",
            id="up for types",
        ),
        pytest.param(
            {"core/engine.py": "import_module('starlette_realtime.app')"} | {"app.py": ""},
            "line 1: imports starlette_realtime.app: up",
            id="up by name",
        ),
        pytest.param(
            {"core/engine.py": "from starlette_realtime import Realtime", "__init__.py": ""},
            "line 1: imports starlette_realtime: up, from core to roof",
            id="up to the package",
        ),
        pytest.param(
            {"presence/redis.py": "from ..brokers import redis", "brokers/redis.py": ""},
            "imports starlette_realtime.brokers.redis: sideways, from presence to brokers",
            id="a store in a store",
        ),
        pytest.param(
            {"features/chat.py": "from .typing import Typing", "features/typing.py": ""},
            "sideways, from features/chat to features/typing",
            id="a feature in a feature",
        ),
        pytest.param(
            {"transports/sse.py": "from . import websocket", "transports/websocket.py": ""},
            "sideways, from transports/sse to transports/websocket",
            id="a door in a door",
        ),
        pytest.param(
            {"transports/websocket.py": "import starlette_realtime.servers.uvicorn"}
            | {"servers/uvicorn.py": ""},
            "sideways, from transports/websocket to servers",
            id="a server in a door",
        ),
        pytest.param(
            {"features/chat.py": "from ..features import Typing", "features/__init__.py": ""},
            "imports starlette_realtime.features: up",
            id="a feature through the gathering of features",
        ),
        pytest.param(
            {"features/chat.py": "from ..brokers.base import Broker", "brokers/base.py": ""},
            "features/chat may import core, protocols, words only",
            id="a store in a feature",
        ),
        pytest.param(
            {"features/chat.py": "from ..core.room import _Room", "core/room.py": ""},
            "starlette_realtime.core.room._Room: features/chat may import public names only",
            id="a private name in a feature",
        ),
        pytest.param(
            {"features/chat.py": "from ..core._merge import merge", "core/_merge.py": ""},
            "may import public names only",
            id="a private module in a feature",
        ),
        pytest.param(
            {"protocols/native.py": "import asyncio"},
            "imports asyncio, which protocols does without",
            id="input and output in a codec",
        ),
        pytest.param(
            {"core/hub.py": "from redis.asyncio import Redis"},
            "imports redis.asyncio, which core does without",
            id="Redis in core",
        ),
        pytest.param(
            {"utils.py": ""},
            "starlette_realtime.utils stands on no floor: place it in FLOORS",
            id="a module without a place",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, files: dict[str, str], said: str) -> None:
    found = violations(build(tmp_path, files))
    assert len(found) == 1, found
    assert said in found[0]
