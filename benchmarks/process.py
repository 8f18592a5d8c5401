"""Running a peer's server and the load generator, each on its core."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from . import install
from .machine import cores, cpu_seconds, free_port, process_tree
from .peers import Dialect, Peer

Report = dict[str, Any]


class Failed(Exception):
    """A server did not start, or the load generator found it wrong."""


def _pinned(core: int) -> Callable[[], None]:
    def pin() -> None:
        os.sched_setaffinity(0, {core})

    return pin


@dataclass
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    @property
    def pids(self) -> list[int]:
        return process_tree(self.process.pid)

    def said(self) -> str:
        """Return the end of what it printed."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-2000:]


def _wait_until_open(server: Server, name: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise Failed(f"{name} did not start:\n{server.said()}")


@contextmanager
def explained(*servers: Server) -> Iterator[None]:
    """Let a failure say what the servers have printed."""
    try:
        yield
    except Failed as failure:
        said = "\n".join(server.said() for server in servers)
        raise failure if said in str(failure) else Failed(f"{failure}\n{said}") from None


@contextmanager
def serve(
    peer: Peer, *, environment: Mapping[str, str] | None = None, deflate: bool = False
) -> Iterator[Server]:
    """Run a peer's server on the servers' core; with permessage-deflate if `deflate`.

    Raises:
        Failed: it did not listen within 30 seconds.
    """
    core, _ = cores()
    port = free_port()
    settings = {**os.environ, "PYTHONPATH": str(install.ROOT), **peer.environment}
    settings.update(environment or {})
    command = peer.command
    if deflate:
        settings.update(peer.deflate or {})
        command = peer.deflate_command or command
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command(port),
                cwd=install.ROOT,
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_pinned(core),
                start_new_session=True,
            )
        except OSError as error:
            raise Failed(f"{peer.name} did not start: {error}") from None
        server = Server(port, process, log)
        try:
            with explained(server):
                _wait_until_open(server, peer.name, 30)
                yield server
        finally:
            tree = server.pids if process.poll() is None else []
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                pass
            for pid in tree:
                # A worker that outlived its parent; gone already is as good.
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass
            process.wait(5)


Awake = Callable[[Server], AbstractContextManager[None]]
"""In its context a server that rests goes on."""


@contextmanager
def resting(servers: Sequence[Server]) -> Iterator[Awake]:
    """Stop servers while they wait for their turn: they have timers, and each time one fires it
    takes from the caches what whoever is measured has there.

    Yields:
        a context in which one of them goes on.
    """
    pids = {server.port: server.pids for server in servers}

    def tell(number: signal.Signals, *those: Server) -> None:
        for server in those:
            for pid in pids[server.port]:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    @contextmanager
    def awake(server: Server) -> Iterator[None]:
        tell(signal.SIGCONT, server)
        try:
            yield
        finally:
            tell(signal.SIGSTOP, server)

    try:
        tell(signal.SIGSTOP, *servers)
        yield awake
    finally:
        tell(signal.SIGCONT, *servers)
        # What clients have said meanwhile is read, and heartbeats are answered, before the next.
        time.sleep(0.2)


def settle(servers: Sequence[Server], seconds: float = 5.0) -> None:
    """Wait until servers rest: the clients of a run that leave them are no cost of the next one."""
    pids = [pid for server in servers for pid in server.pids]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        used = cpu_seconds(pids)
        time.sleep(0.02)
        if cpu_seconds(pids) - used < 0.001:
            return


def arguments(
    servers: Sequence[Server], dialect: Dialect, tokens: Path, *, ordered: bool = True
) -> list[str]:
    """Return the load generator's command for these servers."""
    made = [str(install.load_generator()), "--core", str(cores()[1]), "--tokens", str(tokens)]
    for server in servers:
        made += ["--port", str(server.port)]
        for pid in server.pids:
            made += ["--pid", str(pid)]
    if not ordered:
        made.append("--unordered")
    return [*made, *dialect.arguments()]


def generate(command: Sequence[str], *, timeout: float = 600) -> Report:
    """Run the load generator to its end and return its report.

    Raises:
        Failed: what it found wrong.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"the load generator did not end within {timeout:.0f} s") from None
    return read_report(done.stdout or done.stderr)


def read_report(text: str) -> Report:
    """Return the last line's report, marked where the generator was the narrow place.

    Raises:
        Failed: the report is an error, or there is none.
    """
    report = _read_line(text)
    # It spins: where it did not have its core all the time, something else was running there.
    report["disturbed"] = report["generator_share"] < 0.95
    report["generator_bound"] = report["generator_cpu"] > 0.9 and report["server_cpu"] < 0.9
    return report


def _read_line(text: str) -> Report:
    lines = text.strip().splitlines()
    try:
        report: Report = json.loads(lines[-1]) if lines else {"error": "no report"}
    except ValueError:
        report = {"error": lines[-1]}
    if "error" in report:
        raise Failed(str(report["error"]))
    return report


class Crowd:
    """Clients of one server that stay, and measure when they are told to."""

    def __init__(self, generator: subprocess.Popen[str]) -> None:
        self._generator = generator
        self._read()

    def measure(self, in_flight: int) -> float:
        """Measure for a moment; return the seconds that were measured since the last report.

        Raises:
            Failed: what the load generator found wrong; it has ended.
        """
        self._command(in_flight)
        return float(_read_line(self._read())["measured"])

    def report(self) -> Report:
        """Return the report on all that was measured since the last one.

        Raises:
            Failed: as `measure`.
        """
        self._command(0)
        return read_report(self._read())

    def _command(self, number: int) -> None:
        assert self._generator.stdin is not None
        try:
            # Past the buffer, which would be flushed into the broken pipe once more when it closes.
            os.write(self._generator.stdin.fileno(), f"{number}\n".encode())
        except BrokenPipeError:
            # It has ended, and its last line says why.
            pass

    def _read(self) -> str:
        assert self._generator.stdout is not None
        line = self._generator.stdout.readline()
        _read_line(line)
        return line


@contextmanager
def crowd(command: Sequence[str]) -> Iterator[Crowd]:
    """Connect the load generator's clients, and let them stay until the block ends.

    Raises:
        Failed: they did not get through their dialogue.
    """
    with subprocess.Popen(
        [*command, "--commanded"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as generator:
        try:
            yield Crowd(generator)
        finally:
            generator.kill()


@contextmanager
def redis() -> Iterator[str]:
    """Run a Redis server of our own, without persistence, on the servers' core; yield its URL.

    Raises:
        Failed: there is no redis-server, or it did not start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise Failed("the redis case needs redis-server")
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [
                program,
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tempfile.gettempdir(),
            preexec_fn=_pinned(cores()[0]),
        )
        try:
            _wait_until_open(Server(port, process, log), "redis-server", 10)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(5)


@contextmanager
def blast() -> Iterator[Server]:
    """Run the C server that shows what the load generator can take."""
    program = install.blast_server()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([program, str(cores()[0])], stdout=subprocess.PIPE)
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[1])
        try:
            yield Server(port, process, log)
        finally:
            process.terminate()
            process.wait(5)
