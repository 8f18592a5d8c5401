"""The command, as a shell runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.to_thread
import httpx
import pytest

from starlette_realtime import SignedTokenAuth, __version__
from starlette_realtime.cli import PROTOCOL, main
from tests.support.ports import accepts, free_port
from tests.support.postgres_server import PostgresServer, postgres_folder
from tests.support.processes import Process
from tests.support.redis_server import RedisServer
from tests.support.server import ROOT
from tests.support.wsclient import NativeClient

pytestmark = pytest.mark.anyio

SECRET = "known to all, because it guards nothing"

APP = f"""
from starlette_realtime import Realtime, SignedTokenAuth

app = Realtime(auth=SignedTokenAuth({SECRET!r}))
app.room("chat/{{room_id}}")
admin = app.namespace("/admin")
admin.room("log")

@app.on("connection")
def connected(happening):
    import asyncio
    loop = type(asyncio.get_running_loop()).__module__
    from starlette_realtime.servers.uvicorn import EXTENSION
    fast = EXTENSION in happening.session.connection.scope["extensions"]
    print("loop", loop, "fast", fast, flush=True)
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "starlette_realtime.cli", *arguments]


class Cli:
    """Runs the command in this process, as a shell would see it: status, output, complaints."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self.monkeypatch = monkeypatch

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return status, *self._capsys.readouterr()

    def text(self, *arguments: str) -> str:
        """Return what it prints when all goes well."""
        status, out, err = self(*arguments)
        assert status == 0, err
        return out

    def complaint(self, status: int, *arguments: str) -> str:
        """Return the one line that a failure is."""
        found, out, err = self(*arguments)
        assert (found, out) == (status, ""), err
        lines = err.splitlines()
        if status == 1:
            assert len(lines) == 1, lines
            assert lines[0].startswith("starlette-realtime: ")
        return lines[-1]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("S", SECRET)
    monkeypatch.setenv("SHORT", "hunter2")
    return Cli(capsys, monkeypatch)


@pytest.fixture
def served(redis_url: str, tmp_path: Path) -> Iterator[tuple[str, Process]]:
    """The address of an app that `serve` runs, on the session's Redis."""
    (tmp_path / "cli_app.py").write_text(APP)
    port = free_port()
    process = Process(
        command("serve", "--port", str(port), "cli_app:app", "--app-dir", str(tmp_path)),
        output=tmp_path / "log",
        env={"REALTIME_BACKEND": redis_url},
        cwd=ROOT,
    )
    with process:
        process.wait_until(lambda: accepts(port), "listening")
        yield f"ws://127.0.0.1:{port}/ws", process
        assert process.terminate() in (0, -15)


async def test_what_is_published_reaches_the_clients_of_a_served_app(
    served: tuple[str, Process], redis_url: str, cli: Cli
) -> None:
    address, process = served

    async def publish(*words: str, stdin: bytes = b"") -> dict[str, object]:
        done = await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                command("publish", "env:BACKEND", *words),
                input=stdin,
                capture_output=True,
                timeout=60,
                cwd=ROOT,
                env={**os.environ, "BACKEND": redis_url},
            )
        )
        assert done.returncode == 0, done
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    token = cli.text("token", "--secret-env", "S", "ann", "--info", '{"name": "Ann"}').strip()
    async with NativeClient.open(address, token=token) as ann:
        await ann.request("join", "chat/7")
        first = await publish("chat/7", "said", '{"content": "hé"}', "--id", "m1")
        assert (first["offset"], first["duplicate"]) == (2, False)
        again = await publish("chat/7", "said", "2", "--id", "m1")
        assert (again["offset"], again["duplicate"]) == (2, True)
        assert (await ann.expect("said"))["data"] == {"content": "hé"}
        await publish("chat/7", "said", "-", stdin=b"[1]")
        assert (await ann.expect("said"))["data"] == [1]
        await publish("chat/7", "bare")
        assert (await ann.expect("bare")).get("data") is None
        assert await publish("report-ready", '"/3"', "--user", "ann") == {"sent": True}
        assert (await ann.expect("report-ready"))["data"] == "/3"
        await ann.send({"type": "connect", "ns": "/admin"})
        await ann.expect("connected", ns="/admin")
        await ann.request("join", "log", ns="/admin")
        await publish("log", "noted", "1", "--namespace", "/admin")
        assert (await ann.expect("noted"))["data"] == 1
    assert "loop asyncio" in process.output and "fast True" in process.output


def test_serve_takes_the_fast_way_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    seen: list[list[str]] = []

    def record(args: list[str], prog_name: str) -> None:
        seen.append(args)
        raise SystemExit(3)

    monkeypatch.setattr(uvicorn.main, "main", record)
    assert main(["serve", "a:app", "--ws-max-size", "9"]) == 1
    assert main(["serve", "--ws=wsproto", "--loop", "uvloop", "a:app"]) == 1
    assert seen == [
        ["a:app", "--ws-max-size", "9", "--ws", PROTOCOL, "--loop", "asyncio"],
        ["--ws=wsproto", "--loop", "uvloop", "a:app"],
    ]


def test_serve_without_uvicorn(cli: Cli) -> None:
    cli.monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'starlette-realtime[server]'" in cli.complaint(1, "serve", "a:app")


def test_serving_what_is_not_there() -> None:
    for words, status in ((["no_such_module:app"], 1), (["no_such_module:app", "--no-such"], 2)):
        done = subprocess.run(command("serve", *words), capture_output=True, timeout=60, cwd=ROOT)
        assert done.returncode == status, done
        assert b"Traceback" not in done.stderr


def test_the_demo_answers(tmp_path: Path) -> None:
    port = free_port()
    process = Process(
        command("demo", "--port", str(port)),
        output=tmp_path / "log",
        env={"REALTIME_BACKEND": "memory://", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    with process:
        process.wait_until(lambda: accepts(port), "listening")
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200


def test_the_demo_without_its_repository(cli: Cli, tmp_path: Path) -> None:
    cli.monkeypatch.setattr("starlette_realtime.cli.__file__", str(tmp_path / "package" / "cli.py"))
    assert "clone the project's repository" in cli.complaint(1, "demo")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chat/7"], "ROOM EVENT [JSON]"),
        (["chat/7", "said", "1", "2"], "ROOM EVENT [JSON]"),
        (["said", "1", "2", "--user", "ann"], "EVENT [JSON]"),
        (["said", "--user", "ann", "--id", "x"], "--id is for rooms"),
        (["chat/7", "said", "{"], "is not JSON"),
        (["chat/7", "said", "NaN"], "is not JSON"),
        (["chat/7", "said", "--namespace", "admin"], "begins with /"),
        (["chat/7", "said", "--nonsense"], "--nonsense"),
    ],
)
def test_publishing_called_wrongly(words: list[str], said: str, cli: Cli) -> None:
    assert said in cli.complaint(2, "publish", "redis://localhost:1", *words)


def test_publishing_where_it_cannot_be(cli: Cli) -> None:
    for url, said in (
        ("redis://u:hunter2@127.0.0.1:1/0?startup=0.1", "cannot be reached"),
        ("memory://", "this process's own"),
        ("env:NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE is not set"),
        ("carrier-pigeon://x", "no backend"),
    ):
        text = cli.complaint(1, "publish", url, "chat/7", "said")
        assert said in text
        assert "hunter2" not in text


async def _ends(token: str) -> float:
    user = await SignedTokenAuth(SECRET, max_age=1e6).verify(token.strip())
    assert (user.id, user.info) == ("ann", None)
    assert user.expires_at is not None
    return user.expires_at


async def test_a_token_from_a_file(cli: Cli, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    long = cli.text("token", "--secret-file", str(secret), "ann", "--expires-in", "86400")
    short = cli.text("token", "--secret-env", "S", "ann")
    assert 80_000 < await _ends(long) - await _ends(short) < 90_000


def test_tokens_that_cannot_be_made(cli: Cli, tmp_path: Path) -> None:
    for options, status, said in (
        (["--secret-env", "NO_SUCH_VARIABLE", "ann"], 1, "NO_SUCH_VARIABLE is not set"),
        (["--secret-env", "SHORT", "ann"], 1, "can be guessed"),
        (["--secret-file", str(tmp_path / "none"), "ann"], 1, "cannot be read"),
        (["ann"], 2, "is required"),
        (["--secret", SECRET, "ann"], 2, "required"),
        (["--secret-env", "S", "ann", "--info", "{"], 2, "--info is not JSON"),
        (["--secret-env", "S", "ann", "--expires-in", "nan"], 2, "positive number"),
        (["--secret-env", "S", ""], 2, "printable"),
    ):
        text = cli.complaint(status, "token", *options)
        assert said in text
        assert "hunter2" not in text


def test_the_doctor_on_redis(cli: Cli, own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    lines = cli.text("doctor", server.url).splitlines()
    assert lines[0].startswith(f"ok    redis://127.0.0.1:{server.port} is Redis ")
    assert lines[1].startswith("ok    published and heard in ")
    assert any("appendonly is off" in line for line in lines)
    replicated = cli.text("doctor", f"{server.url}?durability=replicated")
    assert "no replica is connected" in replicated
    # It leaves nothing behind.
    assert server.command_line("DBSIZE") == b":0\r\n"
    server.kill()
    assert "cannot be reached" in cli.complaint(1, "doctor", server.url)


def test_the_doctor_on_memory_and_on_nonsense(cli: Cli) -> None:
    assert "nothing to connect to" in cli.text("doctor", "memory://")
    assert "no backend" in cli.complaint(1, "doctor", "carrier-pigeon://x")
    cli.complaint(2, "doctor")


def test_the_doctor_on_postgres(cli: Cli) -> None:
    if postgres_folder() is None:
        pytest.skip("PostgreSQL is not installed")
    with PostgresServer() as server:
        text = cli.text("doctor", f"{server.url}?topic=mine&sslmode=disable")
        assert f"127.0.0.1:{server.port}/postgres is PostgreSQL 1" in text
        assert "published and heard in" in text
        wrong = server.url.replace("tester:", "tester:not")
        assert "password" in cli.complaint(1, "doctor", wrong)


def test_help_and_version(cli: Cli) -> None:
    assert cli.text("--version").strip() == __version__
    for name in ("serve", "publish", "token", "doctor", "demo"):
        assert name in cli.text("--help")
        assert cli.text(name, "--help").startswith("usage: starlette-realtime")
    cli.complaint(2)
    cli.complaint(2, "no-such-command")


def test_as_a_shell_runs_it() -> None:
    done = subprocess.run(
        command("publish", "memory://", "chat/7", "said"), capture_output=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"starlette-realtime: memory://")
    assert done.stderr.count(b"\n") == 1
