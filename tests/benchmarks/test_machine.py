"""What is read from the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks.machine import cpu_seconds

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")


def test_cpu_time_is_that_of_all_the_processes_and_finer_than_a_tick() -> None:
    program = (
        "import sys, time\n"
        "while time.process_time() < 0.25: pass\n"
        "print(time.process_time(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        used = float(other.stdout.readline())
        own = time.process_time()
        assert cpu_seconds([other.pid]) == pytest.approx(used, abs=0.008)
        assert cpu_seconds([other.pid, os.getpid()]) == pytest.approx(used + own, abs=0.02)
        other.communicate("")
