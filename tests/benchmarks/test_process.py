"""Servers that wait for their turn."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.process import Failed, Server, resting
from tests.support.processes import wait_for

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the benchmarks need Linux"
)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    with ExitStack() as stack:
        made = []
        for port in range(3):
            process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            stack.callback(process.wait)
            stack.callback(process.kill)
            made.append(Server(port, process, stack.enter_context(tempfile.TemporaryFile())))
        yield made


def wait_until_stopped(servers: list[Server], *expected: bool) -> None:
    def as_expected() -> bool:
        states = [Path(f"/proc/{server.process.pid}/stat").read_text() for server in servers]
        return [state.rpartition(")")[2].split()[0] == "T" for state in states] == list(expected)

    wait_for(as_expected, f"the servers are stopped: {expected}")


def test_only_whose_turn_it_is_runs(servers: list[Server]) -> None:
    with resting(servers) as awake:
        wait_until_stopped(servers, True, True, True)
        with awake(servers[1]):
            wait_until_stopped(servers, True, False, True)
        wait_until_stopped(servers, True, True, True)
    wait_until_stopped(servers, False, False, False)


def test_whatever_happens_all_go_on(servers: list[Server]) -> None:
    with pytest.raises(Failed), resting(servers) as awake, awake(servers[0]):
        servers[0].process.kill()
        servers[0].process.wait()
        raise Failed("it has gone")
    wait_until_stopped(servers[1:], False, False)
