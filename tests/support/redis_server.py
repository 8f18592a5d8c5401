"""A Redis of the test's own: on a free port, in a folder of its own, gone when the block ends.

with RedisServer(tmp_path) as redis:
    redis.url                      # "redis://127.0.0.1:…/0"
    redis.pause(); redis.resume()  # SIGSTOP, SIGCONT: it accepts, and does not answer
    redis.kill(); redis.start()    # a crash; without `appendonly` everything is lost
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from tests.support.ports import free_port
from tests.support.processes import Process

ROOT = Path(__file__).parents[2]

CLUSTER_BUS = 10_000
"""A cluster node's second port is this far above its first."""


def redis_binary() -> str | None:
    return shutil.which("redis-server")


def documented_rights() -> list[str]:
    """What docs/deployment.md says after `ACL SETUSER realtime`: the user's password is `password`,
    the prefix `rt`."""
    found = re.search(r"ACL SETUSER realtime (.*)", (ROOT / "docs/deployment.md").read_text())
    assert found is not None
    return found[1].split()


class RedisServer(Process):
    """A `redis-server` that keeps nothing on disk unless `appendonly` is set.

    `options` are further lines of its configuration, `{"cluster-enabled": "yes"}`. With `sentinel`
    it is a Sentinel. The port stays the same over restarts. The methods block (see `Process`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        appendonly: bool = False,
        options: Mapping[str, str] | None = None,
        sentinel: bool = False,
    ) -> None:
        binary = redis_binary()
        assert binary is not None, "redis-server is not installed"
        self.folder = folder
        self._sentinel = sentinel
        self._options = {
            "bind": "127.0.0.1",
            "protected-mode": "no",
            "daemonize": "no",
            "loglevel": "notice",
            "dir": str(folder),
        }
        if not sentinel:
            self._options |= {
                "save": '""',
                "appendonly": "yes" if appendonly else "no",
                "appendfsync": "always",
                "repl-diskless-sync-delay": "0",
            }
        self._options |= options or {}
        self._config = folder / "redis.conf"
        self._choose_port()
        super().__init__(
            [binary, str(self._config), *(["--sentinel"] if sentinel else [])],
            output=folder / "redis.log",
        )

    def _choose_port(self) -> None:
        self.port = free_port(below=65536 - CLUSTER_BUS)
        # A Sentinel writes what it learns into this file, so it is written once, not at each start.
        lines = [f"port {self.port}", *(f"{name} {value}" for name, value in self._options.items())]
        self._config.write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        first = self._process is None
        for attempt in range(5):
            super().start()
            try:
                self.wait_until(self._answers, f"answering on {self.port}")
            except AssertionError:
                # Somebody took the port between the choice and the use.
                if not first or attempt == 4 or "Address already in use" not in self.output:
                    raise
                self._choose_port()
            else:
                return

    def stop(self) -> None:
        """An orderly end, also from a pause."""
        self.resume()
        self.terminate()

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freezes it: connections stay open and are accepted, nothing is answered."""
        self.signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal_group(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: as a crash."""
        super().kill()

    def command_line(self, *words: str, timeout: float = 5) -> bytes:
        """Sends one command on a connection of its own; returns the raw answer (RESP2)."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(w.encode())}\r\n{w}\r\n" for w in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as sock:
            sock.sendall(request.encode())
            return sock.recv(65536)

    def flush(self) -> None:
        """Empties all databases and forgets the functions; starts or resumes it if need be."""
        if not self.running:
            self.start()
        self.resume()
        for words in (("FLUSHALL",), ("FUNCTION", "FLUSH"), ("SCRIPT", "FLUSH")):
            answer = self.command_line(*words)
            assert answer.startswith(b"+OK"), answer

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            # Any answer but "I am loading": a password may be asked for, a Sentinel says PONG too.
            answer = self.command_line("PING", timeout=1)
            return answer != b"" and not answer.startswith(b"-LOADING") and self._is_ours()
        return False

    def _is_ours(self) -> bool:
        """Whether it is this process that has the port, not another test's that chose the same."""
        answer = self.command_line("INFO", "server", timeout=1)
        return answer.startswith(b"-NOAUTH") or f"process_id:{self.pid}\r\n".encode() in answer
