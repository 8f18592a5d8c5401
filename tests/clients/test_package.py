"""The JavaScript client as an npm package: packed, installed, used in Node, and type-checked."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

import starlette_realtime
from tests.clients.app import ClientsServer
from tests.support.server import ROOT, LiveServer

pytestmark = pytest.mark.anyio

STATIC = ROOT / "starlette_realtime/static"
USE = """
import { connect, RealtimeError } from "starlette-realtime";
import * as browser from "starlette-realtime/client.js";

const [, , origin] = process.argv;
const auth = async () => (await fetch(`${origin}/token?user=ann`)).text();
const client = await connect(`${origin}/realtime`, { auth });
const room = await client.join("chat/1");
const heard = new Promise((resolve) => room.once("new-message", resolve));
await room.send("message", { content: "packed" });
const { content } = await heard;
client.close();
console.log(content, RealtimeError === browser.RealtimeError);
"""
NODE = """
import { NodeWebSocket } from "starlette-realtime";
export const socket = new NodeWebSocket("ws://host");
"""


def command(folder: Path, *words: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A project that has installed the package, from what `npm pack` makes of it."""
    packed = command(STATIC, "npm", "pack", "--json", "--pack-destination", tmp_path)
    (found,) = json.loads(packed)
    assert sorted(file["path"] for file in found["files"]) == [
        "LICENSE",
        "README.md",
        "client.d.ts",
        "client.js",
        "node.d.ts",
        "node.js",
        "package.json",
    ]
    project = tmp_path / "project"
    project.mkdir()
    (project / "package.json").write_text('{"private": true, "type": "module"}')
    quiet = ("--offline", "--no-audit", "--no-fund", "--ignore-scripts")
    command(project, "npm", "install", *quiet, tmp_path / found["filename"])
    return project


async def test_it_is_installed_used_and_typed(
    installed: Path, serve: Callable[..., LiveServer]
) -> None:
    (installed / "use.mjs").write_text(USE)
    server = serve(ClientsServer().app)
    said = await to_thread.run_sync(command, installed, "node", "use.mjs", server.http())
    assert said == "packed true\n"

    # What its README shows; in a bundler without Node's types, and in Node with them.
    readme = (installed / "node_modules/starlette-realtime/README.md").read_text()
    example = re.search(r"```ts\n(.*?)```", readme, re.S)
    assert example is not None
    name = '"starlette-realtime"'
    typed = f"import {{ connect }} from {name};\nconst client = await connect('wss://host');\n"
    typed += example[1] + 'export const id: string = (await room.send("message", '
    typed += '{ content: "hello" })).messageId;\n'
    typed += '// @ts-expect-error\nawait room.send("message", { content: 7 });\n'
    (installed / "typed.ts").write_text(typed)
    (installed / "node.ts").write_text(NODE)
    types = str(ROOT / "node_modules/@types")
    for options, files in (
        ({"module": "esnext", "moduleResolution": "bundler", "types": []}, ["typed.ts"]),
        ({"module": "nodenext", "typeRoots": [types], "types": ["node"]}, ["typed.ts", "node.ts"]),
    ):
        all_options: dict[str, Any] = {
            **options,
            "target": "es2022",
            "lib": ["es2023", "dom"],
            "strict": True,
            "noEmit": True,
            "skipDefaultLibCheck": True,  # for speed, as the next
            "skipLibCheck": files != ["typed.ts"],
        }
        config = {"compilerOptions": all_options, "files": files}
        (installed / "tsconfig.json").write_text(json.dumps(config))
        await to_thread.run_sync(command, installed, ROOT / "node_modules/.bin/tsc")


def test_both_packages_have_one_version_and_one_licence() -> None:
    package = json.loads((STATIC / "package.json").read_text())
    assert package["version"] == starlette_realtime.__version__
    assert (STATIC / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
