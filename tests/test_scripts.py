"""The scripts: what a newcomer types, and the rule that in CI nothing may be skipped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port
from tests.support.processes import Process

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_runnable_bash(script: Path) -> None:
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert re.search(r"^set -e?uo pipefail$", text, re.MULTILINE)
    subprocess.run(["bash", "-n", script], check=True)


def test_install_refuses_what_it_does_not_know() -> None:
    run = subprocess.run(
        [ROOT / "scripts" / "install", "--everything"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "usage: scripts/install [--demo [redis]]" in run.stderr


def test_demo_refuses_workers_that_could_not_hear_each_other() -> None:
    run = subprocess.run(
        [ROOT / "scripts" / "demo"],
        env=os.environ | {"WORKERS": "2", "REALTIME_BACKEND": "memory://"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "only through Redis" in run.stderr


def test_demo_serves_the_chat(tmp_path: Path) -> None:
    port = free_port()
    env = {"PORT": str(port), "REALTIME_BACKEND": "", "WORKERS": ""}
    demo = Process([str(ROOT / "scripts" / "demo")], output=tmp_path / "log", env=env, cwd=ROOT)
    with demo:
        demo.wait_until(lambda: "startup complete" in demo.output, "serving", seconds=60)
        assert f"http://127.0.0.1:{port}/" in demo.output
        page = httpx.get(f"http://127.0.0.1:{port}/")
        assert page.status_code == 200 and "text/html" in page.headers["content-type"]
        assert httpx.get(f"http://127.0.0.1:{port}/realtime/client.js").status_code == 200
        # The script has become the server: what it is told, the server is told.
        assert demo.terminate() in {0, -15}
        assert "Application shutdown complete." in demo.output


def pytest_run(folder: Path, body: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(f"import pytest\n\n{body}")
    inherited = {
        name: os.environ[name]
        for name in os.environ
        if name not in {"CI", "JS_TESTS", "JS_LEFT_OUT"}
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.support.ci", "--rootdir", str(folder), "."],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | env,
        capture_output=True,
        text=True,
        check=False,
    )


SKIPS = "def test_a(): pass\ndef test_b(): pytest.skip('no browser here')\n"


def test_a_skip_is_a_failure_in_ci(tmp_path: Path) -> None:
    run = pytest_run(tmp_path, SKIPS, CI="true")
    assert run.returncode == 1
    assert "counted as failures" in run.stdout
    assert "test_it.py::test_b: Skipped: no browser here" in run.stdout
    assert "1 passed, 1 skipped" in run.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("@pytest.mark.xfail(reason='known')\ndef test_a(): assert 0", "test_it.py::test_a: known"),
        ("pytest.importorskip('not_there_at_all')", "could not import 'not_there_at_all'"),
    ],
)
def test_so_are_expected_failures_and_skipped_modules(tmp_path: Path, body: str, said: str) -> None:
    run = pytest_run(tmp_path, f"{body}\n\ndef test_other(): pass\n", CI="1")
    assert run.returncode != 0
    assert said in run.stdout.partition("counted as failures")[2]


@pytest.mark.parametrize("ci", [{}, {"CI": ""}, {"CI": "false"}])
def test_a_skip_is_a_skip_elsewhere(tmp_path: Path, ci: dict[str, str]) -> None:
    run = pytest_run(tmp_path, SKIPS, **ci)
    assert run.returncode == 0
    assert "counted as failures" not in run.stdout


def test_failed_javascript_tests_fail_the_session(tmp_path: Path) -> None:
    run = pytest_run(tmp_path, "def test_a(): pass\n", JS_TESTS="failed")
    assert run.returncode == 1
    assert "the JavaScript tests failed" in run.stdout
    assert "1 passed" in run.stdout.splitlines()[-1]


LEFT_OUT = """
import test, { describe, it } from "node:test";
test("runs", () => {});
test("says so", (t) => t.skip("no openssl"));
test("is marked", { skip: true }, () => {});
test.skip("is left out", () => {});
describe("a group", () => it("is nested", { skip: "not here" }, () => {}));
describe.skip("a whole group", () => it("never runs", () => {}));
test("is to come", { todo: "later" }, () => { throw new Error("not yet"); });
"""


def test_no_javascript_test_is_left_out_unseen(tmp_path: Path) -> None:
    (tmp_path / "some.test.mjs").write_text(LEFT_OUT)
    reporter = ROOT / "tests" / "js" / "helpers" / "left_out.mjs"
    run = subprocess.run(
        ["node", "--test", f"--test-reporter={reporter}", "some.test.mjs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(run.stdout.splitlines()) >= {
        "says so: no openssl",
        "is marked: skip",
        "is left out: skip",
        "is nested: not here",
        "a whole group: skip",
        "is to come: later",
    }
    assert "runs" not in run.stdout
    left_out = "\n".join(run.stdout.splitlines())
    session = pytest_run(tmp_path, "def test_a(): pass\n", JS_LEFT_OUT=left_out, CI="1")
    assert session.returncode == 1
    assert "a JavaScript test: is nested: not here" in session.stdout
    session = pytest_run(tmp_path, "def test_a(): pass\n", JS_LEFT_OUT=left_out)
    assert session.returncode == 0
