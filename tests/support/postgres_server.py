"""A PostgreSQL of the test's own: on a free port, in a folder of its own, gone when the block ends.

with PostgresServer() as postgres:
    postgres.url                         # "postgres://tester:…@127.0.0.1:…/postgres"
    postgres.pause(); postgres.resume()  # SIGSTOP, SIGCONT: it accepts, and does not answer
    postgres.crash(); postgres.start()   # connections are cut, nobody is told goodbye
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.support.ports import free_port
from tests.support.processes import Process

_PASSWORD = "let the tests in"


def postgres_folder() -> Path | None:
    """Where PostgreSQL's programs are; Debian has them in no folder of PATH."""
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).parent
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return candidates[-1].parent if candidates else None


def _as_somebody() -> list[str]:
    """What makes a command run as the user `postgres`: the server refuses to be root's."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


class PostgresServer(Process):
    """A `postgres` of the newest version that is there. The port stays the same over restarts. The
    methods block (see `Process`)."""

    def __init__(self) -> None:
        programs = postgres_folder()
        assert programs is not None, "PostgreSQL is not installed"
        # Not below pytest's own folder, which only its owner may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = free_port()
        data = self.folder / "data"
        secret = self.folder / "password"
        secret.write_text(_PASSWORD + "\n")
        log = self.folder / "postgres.log"
        log.touch()
        if os.geteuid() == 0:
            for path in (self.folder, secret):
                shutil.chown(path, "postgres", "postgres")
        made = subprocess.run(
            [
                *_as_somebody(),
                str(programs / "initdb"),
                *("--pgdata", str(data), "--username", "tester", "--pwfile", str(secret)),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            cwd=self.folder,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "40",
            "shared_buffers": "8MB",
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        super().__init__(
            [*_as_somebody(), str(programs / "postgres"), "-D", str(data), *settings],
            output=log,
            cwd=self.folder,
        )

    @property
    def url(self) -> str:
        password = _PASSWORD.replace(" ", "%20")
        return f"postgres://tester:{password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        super().start()
        self.wait_until(
            lambda: "ready to accept connections" in self.output and self._listens(),
            f"ready on {self.port}",
        )

    def _listens(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False

    def _everyone(self) -> list[int]:
        """The postmaster and its children, which are in groups of their own."""
        found = [self.pid]
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError):
                # The name, in brackets, may contain anything.
                if int(stat.read_text().rpartition(")")[2].split()[1]) == self.pid:
                    found.append(int(stat.parent.name))
        return found

    def _signal_everyone(self, number: signal.Signals) -> None:
        for pid in self._everyone():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pause(self) -> None:
        """Freezes it: connections stay open and are accepted, nothing is answered."""
        self._signal_everyone(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_everyone(signal.SIGCONT)

    def crash(self) -> None:
        """An immediate shutdown: recovers at the next start."""
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        if not self.running:
            return
        self.resume()
        os.kill(self.pid, number)
        for _ in range(500):
            if self.returncode is not None:
                break
            time.sleep(0.02)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(signal.SIGINT)
        super().__exit__(kind, error, traceback)
        shutil.rmtree(self.folder, ignore_errors=True)
