"""What the peers and the load generator need, set up on first use."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from .machine import Unsuitable

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"
BUILD = HERE / "build"
NODE_MODULES = HERE / "node_modules"

CFLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


def _run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unsuitable(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _fresh(stamp: Path, *sources: Path) -> str | None:
    """Return the digest to write into `stamp` if the sources have changed, else None."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return None
    return digest


def python_peers() -> Path:
    """Set up benchmarks/.venv for our package and the Python peers; return its interpreter."""
    stamp = VENV / "benchmarks.stamp"
    digest = _fresh(stamp, HERE / "requirements.txt", ROOT / "pyproject.toml")
    if digest is not None:
        print("setting up benchmarks/.venv …", file=sys.stderr)
        if not PYTHON.exists():
            venv.create(VENV, with_pip=True)
        # Our package is run from the source; only what it needs is installed.
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        needed = [*project["dependencies"], *extras["redis"], *extras["server"]]
        command = [str(PYTHON), "-m", "pip", "install", "-q", "-r", str(HERE / "requirements.txt")]
        _run([*command, *needed], ROOT)
        stamp.write_text(digest)
    return PYTHON


def node_peers() -> None:
    """Install Socket.IO, ws and Bun into benchmarks/node_modules."""
    if shutil.which("npm") is None:
        raise Unsuitable("the Node peers need node and npm")
    stamp = NODE_MODULES / "benchmarks.stamp"
    digest = _fresh(stamp, HERE / "package.json")
    if digest is not None:
        print("setting up benchmarks/node_modules …", file=sys.stderr)
        _run(["npm", "install", "--no-audit", "--no-fund"], HERE)
        stamp.write_text(digest)


def _compile(name: str, variants: list[list[str]]) -> Path:
    if shutil.which("cc") is None:
        raise Unsuitable("the load generator needs a C compiler: cc")
    BUILD.mkdir(exist_ok=True)
    source, program, stamp = HERE / f"{name}.c", BUILD / name, BUILD / f"{name}.stamp"
    digest = _fresh(stamp, source)
    if digest is None and program.is_file():
        return program
    failure: Unsuitable | None = None
    for extra in variants:
        try:
            _run(["cc", *CFLAGS, "-o", str(program), str(source), *extra], HERE)
        except Unsuitable as error:
            failure = failure or error
        else:
            stamp.write_text(digest or "")
            return program
    raise failure or Unsuitable(f"{name}.c was not compiled")


def load_generator() -> Path:
    """Compile loadgen.c if it has changed; without zlib it cannot measure compression."""
    return _compile("loadgen", [["-DHAVE_ZLIB", "-lz"], []])


def blast_server() -> Path:
    """Compile blast.c if it has changed."""
    return _compile("blast", [[]])
