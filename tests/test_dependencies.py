"""`pip install starlette-realtime` alone: what it brings is enough for the memory backend."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Run by a Python that finds nothing but the standard library, the package and the distributions
# that its plain installation brings.
SCRIPT = """
import asyncio, importlib.metadata as metadata, json, pkgutil, re, sys
sys.path[:0] = [sys.argv[1]]

def closure(name, found):
    for wanted in metadata.requires(name) or ():
        named = re.match(r"[A-Za-z0-9_.-]+", wanted)[0].lower().replace("_", "-")
        if "extra ==" not in wanted and named not in found:
            try:
                metadata.distribution(named)
            except metadata.PackageNotFoundError:
                continue  # for another platform or Python
            found.add(named)
            closure(named, found)
    return found

allowed = closure("starlette-realtime", {"starlette-realtime"})
owners = metadata.packages_distributions()

class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        of = {owner.lower().replace("_", "-") for owner in owners.get(top, ())}
        if of and not of & allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())

import starlette_realtime
from starlette_realtime import *
from starlette_realtime import AnonymousAuth, Chat, FirstOf, JWTAuth, Realtime, SignedTokenAuth

missing = set()
for module in pkgutil.walk_packages(starlette_realtime.__path__, "starlette_realtime."):
    if module.name.endswith("__main__"):
        continue
    try:
        __import__(module.name)
    except ImportError as error:
        missing.add(module.name)

async def main():
    auth = SignedTokenAuth("a secret that is long enough")
    realtime = Realtime("memory://", auth=FirstOf(auth, AnonymousAuth()))
    realtime.room("chat/{id}", features=[Chat()])
    to_app, from_app = asyncio.Queue(), asyncio.Queue()
    scope = {"type": "websocket", "path": "/ws", "root_path": "", "query_string": b"",
             "headers": [(b"authorization", f"Bearer {auth.create_token('ann')}".encode())],
             "subprotocols": ["realtime.v1"], "extensions": {}}
    to_app.put_nowait({"type": "websocket.connect"})
    for message in [{"type": "join", "id": 1, "room": "chat/1"},
                    {"type": "message", "id": 2, "room": "chat/1", "data": {"content": "hello"}}]:
        to_app.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})
    async with realtime.run():
        serving = asyncio.ensure_future(realtime(scope, to_app.get, from_app.put))
        heard = []
        while "ack" not in heard:
            sent = await asyncio.wait_for(from_app.get(), 5)
            lines = sent.get("text", "").splitlines()
            heard += [json.loads(line)["type"] for line in lines]
        to_app.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await serving
    return heard

heard = asyncio.run(main())

refused = {}
for name in ("redis://localhost", "postgres://localhost/x", "jwt"):
    try:
        JWTAuth("s" * 40, algorithms=["HS256"]) if name == "jwt" else Realtime(name, auth=JWTAuth)
    except (starlette_realtime.ConfigurationError, ImportError) as error:
        refused[name] = str(error)

print(json.dumps({"heard": heard, "missing": sorted(missing), "refused": refused}))
"""


def test_the_plain_installation_brings_four_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~ \[]", wanted)[0] for wanted in project["dependencies"]}
    assert names == {"anyio", "itsdangerous", "msgspec", "starlette"}


def test_they_are_enough_for_a_chat_in_memory() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["heard"] == ["connected", "joined", "new-message", "ack"]
    # Modules that need an extra, or pytest, and nothing else.
    extras = ("_redis", "redis", "broadcaster", "litestar", "servers", "contracts")
    assert {name for name in found["missing"] if not set(name.split(".")) & set(extras)} == set()
    for url, extra in (("redis://localhost", "redis"), ("postgres://localhost/x", "broadcaster")):
        assert f"starlette-realtime[{extra}]" in found["refused"][url]
    assert "starlette-realtime[jwt]" in found["refused"]["jwt"]
